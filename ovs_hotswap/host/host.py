"""One host as plans and watchdog see it: two instances, the VMs, an uplink, an overlay. It programs the instances."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ovs_hotswap.backends import BackendMode, BackEnds, refuse_kept
from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.config import Active, Config, Program, read_active
from ovs_hotswap.errors import BusyError, HostError, HotswapError, StateUnknown, SwitchError
from ovs_hotswap.host import active_record, flow_tables, scheduling, uplink_ports
from ovs_hotswap.host.cloning import Cloning
from ovs_hotswap.host.instances import make_instance
from ovs_hotswap.host.underlay import Underlay
from ovs_hotswap.host.untried import refuse_untried
from ovs_hotswap.host.uplink_ends import UplinkEnds, UplinkExchange
from ovs_hotswap.model import MessageThread, Release, Side
from ovs_hotswap.overlay.intent import ETHERNET_MTU, Intent, load_intent
from ovs_hotswap.overlay.path_mtu import TAGS
from ovs_hotswap.overlay.ports import PEER, PEER_PORT, VXLAN, VXLAN_PORT
from ovs_hotswap.overlay.tables import REQUIRED_OTHER_CONFIG, Form
from ovs_hotswap.plan.records import Json
from ovs_hotswap.priority import Rank
from ovs_hotswap.qemu.dual import DualQemu
from ovs_hotswap.qemu.held import Held, VmPorts
from ovs_hotswap.qemu.monitor import Monitors
from ovs_hotswap.switch import threads
from ovs_hotswap.switch.answering import see_answering, see_going
from ovs_hotswap.switch.datapath import DatapathPort, await_ports, ports, ports_with_mtus, put_ports
from ovs_hotswap.switch.flow_log import put as put_flow_log
from ovs_hotswap.switch.instance import State
from ovs_hotswap.switch.memif import memif_spec
from ovs_hotswap.switch.memory import DEFAULT_MTU, Demand, PacketPool, Reservation, limited, reserve
from ovs_hotswap.switch.notify_pipe import notify_pipe
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.switch.ovsdb import INTERFACE_TABLES, ROOT_TABLES, BridgeSpec, PortSpec
from ovs_hotswap.switch.owned import CONFIGURED_SLEEP
from ovs_hotswap.switch.pmd import pmd_rxqs, pmd_sleep_key, pmd_sleep_us, set_vhost_log_level, vhost_log_level
from ovs_hotswap.switch.pools import packet_pools, page_mib
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.switch.rxqs import RxQueue
from ovs_hotswap.switch.tunnel import Tunnels
from ovs_hotswap.system import System
from ovs_hotswap.uplink import base
from ovs_hotswap.uplink.nic_links import NicLinks
from ovs_hotswap.uplink.none import NoUplink
from ovs_hotswap.vm_ports import VmPort, read_ports
from ovs_hotswap.waiting import POLL_S, Deadline, wait_until

_ANSWER_S = 30.0
_QUICK_ANSWER_S = 2.0  # for a caller that has to continue with or without an answer
WATCHDOG_S = 60.0  # the longest task of the watchdog: to start an instance and park every VM


class Host:
    """The adapters of one configuration, made at their first use, which changes nothing. ``quick``: keep the uplink
    connected to the kernel, and wait for the VMs' back ends only briefly. ``intent``: one that was read already."""

    def __init__(self, config: Config, system: System, *, quick: bool = False, intent: Intent | None = None) -> None:
        self._quick, self._answer_s = quick, _QUICK_ANSWER_S if quick else _ANSWER_S
        if intent is not None:
            self.intent = intent
        self.config, self.system = config, system
        self.instances = {
            side: make_instance(config, system, side, partial(self.reservation, side), lambda: self.cloning)
            for side in Side
        }

    @cached_property
    def cloning(self) -> Cloning:
        """The copying of one instance to the other, on a host that others program."""
        return Cloning(self.config, self.system, {side: instance.paths for side, instance in self.instances.items()})

    @cached_property
    def intent(self) -> Intent:
        """Raises ConfigError."""
        return load_intent(self.config.overlay, self.config)

    @cached_property
    def releases(self) -> Releases:
        return Releases(self.config, self.system)

    @cached_property
    def uplink(self) -> base.Uplink:
        if self.config.program is Program.CLONE:  # both instances have devices, and the network learns which one sends
            return NoUplink()
        return base.make_uplink(self.config, self.intent, self.uplink_ends, quick=self._quick)

    @cached_property
    def nic_links(self) -> NicLinks:
        return base.make_links(self.config, quick=self._quick)

    @property
    def uplink_ends(self) -> UplinkEnds:
        exchange = UplinkExchange(self.config, self.instances, lambda: self.intent)
        return UplinkEnds(self.openflow, self.control, exchange, uplink_ports.numbers(self.config))

    @cached_property
    def backends(self) -> BackEnds:
        """The VMs' two back ends, in the configured back-end mode."""
        if self.config.backend is BackendMode.QEMU_DUAL:
            return self.dual
        return self.broker

    @cached_property
    def broker(self) -> BrokerClient:
        return BrokerClient(self.config.broker_socket, timeout=self._answer_s)

    @cached_property
    def held(self) -> Held:
        return Held(self.config.run_dir / "quarantine", self.system)

    @cached_property
    def dual(self) -> DualQemu:
        config = self.config
        monitors = Monitors(config.monitor_socket, self._answer_s)
        netdev = config.qemu.netdev
        return DualQemu(
            monitors,
            lambda: [vm.name for vm in self.intent.vms],
            lambda vm: None if netdev is None else netdev.replace("{vm}", vm),
            config.broker.fence_ms,
            self.held,
            VmPorts(config, self.instances, lambda side: self.bridge_spec(side).ports, self.recorded_active),
        )

    def unconnected(self, side: Side) -> list[str]:
        """The VMs for which the side's switch is not connected. Without a broker, a VM whose QEMU does not run, or does
        not answer, does not count: nothing listens for it, or it is not known. Raises BrokerError."""
        broker = self.config.backend is BackendMode.BROKER
        vms = [vm for vm in self.backends.vms(read=False) if broker or (vm.netdev and not vm.quarantine)]
        return [vm.name for vm in vms if not vm.switches[side].connected]

    @contextlib.contextmanager
    def lock(self, patience_s: float = 0.0) -> Iterator[None]:
        """Hold the lock that is needed to start, stop or program instances. Raises BusyError if another process has it.

        ``patience_s``: how long to wait if that process is the watchdog, whose tasks end by themselves.
        """
        path = self.config.run_dir / "upgrade.lock"
        deadline = Deadline.after(patience_s, self.system)
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(self.system.lock(path, "an upgrade, or work on an instance,"))
                    break
                except BusyError:
                    watchdog = self.system.read_pid(self.config.run_dir / "watch.lock")
                    if watchdog is None or watchdog != self.system.read_pid(path) or deadline.passed:
                        raise
                self.system.sleep(POLL_S)
            yield

    def openflow(self, side: Side, bridge: str | None = None) -> OpenFlow:
        """A bridge of the side; the configured one unless ``bridge`` is given. Raises SwitchError if no process would
        answer."""
        see_answering(self.instances[side])
        return OpenFlow(self.system, self.instances[side].paths.mgmt(bridge or self.config.bridge))

    def tunnels(self, side: Side) -> Tunnels:
        return Tunnels(self.instances[side].paths, self.config.bridge)

    def control(self, side: Side) -> Path:
        """The control socket of the side's ovs-vswitchd."""
        return self.instances[side].paths.vswitchd_ctl

    def running(self, side: Side) -> bool:
        return self.instances[side].status().state is State.RUNNING

    def software(self, side: Side) -> Release | None:
        """The release with which a side was started, whether it runs or is dead. If its own record is gone, the record
        for the next boot is used for the active side. Raises ReleaseError, StateUnknown."""
        found = self.instances[side].release()
        last = None if found is not None else self.last_active()
        return self.releases.get(last.release) if last is not None and last.side is side else found

    def version(self, side: Side) -> str:
        """The OVS version of a running side. Raises SwitchError."""
        release = self.software(side)
        if release is None:
            raise SwitchError(f"instance {side} does not run", hint=f"`ovs-hotswap instance start {side}`")
        return release.ovs_version

    # -- which side is active ----------------------------------------------------------------------------------

    def recorded_active(self) -> Side | None:
        return read_active(self.config)

    def record_active(self, side: Side) -> None:
        """Record ``side`` as the active one, for this boot and the next, and give it normal priority. Raises HostError;
        in this boot ``side`` is the active one as soon as the first of the two files says it."""
        scheduling.serve(self, side)
        release = self.instances[side].release()
        active_record.record(self.config, self.system, side, None if release is None else release.name)

    def record_now(self, side: Side) -> str:
        """Like ``record_active``, but a failure to record ``side`` for the next boot is returned in words and not
        raised; empty if there is none. Raises HostError if ``side`` is not recorded for this boot either."""
        try:
            self.record_active(side)
        except HostError as error:
            if self.recorded_active() is not side:
                raise
            return f"instance {side} is not recorded for the next boot: {error.message}"
        return ""

    def forget_active(self) -> None:
        """Record that no side is active, now and after the next boot. If it raises HostError, nothing has changed."""
        active_record.forget(self.config, self.system)

    def last_active(self) -> Active | None:
        """The side that was active last, as ``active_record.last`` gives it. Raises StateUnknown."""
        return active_record.last(self.config)

    def active(self) -> Side:
        """The side that serves the VMs. Raises StateUnknown if the record and the back ends disagree."""
        recorded = self.recorded_active()
        owners = {vm.owner for vm in self.backends.vms(read=False) if vm.owner}
        if recorded is None or owners - {recorded}:
            by = ", ".join(sorted(owners)) or "none"
            raise StateUnknown(
                f"active side: recorded is {recorded or 'none'}, VMs are owned by {by}",
                hint="`ovs-hotswap status`, `ovs-hotswap vm list`; an unfinished upgrade: `ovs-hotswap resume`",
            )
        return recorded

    # -- memory ------------------------------------------------------------------------------------------------

    def demand(self, side: Side) -> Demand:
        """What an instance needs memory for. Raises ConfigError."""
        intent = self.intent
        mtus = (intent.vtep.mtu, self.peer_spec(side).mtu, *(vm.mtu for vm in intent.vms))
        return Demand(
            vms=tuple(vm.queues for vm in intent.vms),
            mtus=tuple(DEFAULT_MTU if mtu is None else mtu for mtu in mtus),
            pmds=len(set(self.config.instance(side).pmd_cores)),
            uplinks=uplink_ports.queues(self),
        )

    def reservation(self, side: Side) -> Reservation:
        """The huge pages that the side's instance takes when it is started. If the intent cannot be read, these are all
        that the configuration allows: after a death, an instance can be started without the intent."""
        limit = self.config.instance(side).memory_mb
        if self.pool_for_each_port(side):
            return Reservation(limit, 0)
        try:
            demand = self.demand(side)
        except HotswapError:
            return Reservation(limit, 0)
        return limited(reserve(demand, page_mib()), limit, demand)

    def packet_pools(self, side: Side) -> list[PacketPool]:
        """The shared packet pools of a running side. There are none if each port has its own pool, and then the ports'
        errors show a lack of memory. Raises SwitchError."""
        return [] if self.pool_for_each_port(side) else packet_pools(self.control(side))

    def pool_for_each_port(self, side: Side) -> bool:
        """Whether the configuration gives each port a packet pool of its own. Then only Open vSwitch knows how much it
        needs, so the instance gets all the memory that it may have."""
        return self.config.other_config(side).get("per-port-memory") == "true"

    def polled(self, side: Side) -> dict[str, tuple[RxQueue, ...]]:
        """The receive queues that the side's PMD threads poll, by port. Raises SwitchError."""
        return pmd_rxqs(self.control(side))

    def await_devices(self, side: Side, seconds: float) -> None:
        """Wait until the side's datapath receives from each vhost-user device that is connected. Raises SwitchError."""
        with self.instances[side].database(tables=ROOT_TABLES) as database:
            database.wait_pass(seconds)

    def log_level(self, side: Side) -> str:
        return vhost_log_level(self.control(side))

    def set_log_level(self, side: Side, level: str) -> None:
        set_vhost_log_level(self.control(side), level)

    # -- programming -------------------------------------------------------------------------------------------

    @property
    def vm_ports(self) -> tuple[VmPort, ...]:
        """The VMs' ports: those of the intent, or of the active instance's database. Raises ConfigError."""
        if self.config.program is Program.CLONE:
            return read_ports(self.config)
        bridge, socket = self.config.bridge, self.config.qemu_socket
        return tuple(VmPort(name=vm.name, bridge=bridge, ofport=vm.ofport, socket=socket(vm.name), queues=vm.queues,
                            mtu=vm.mtu) for vm in self.intent.vms)  # fmt: skip

    def port_of(self, vm: str) -> VmPort | None:
        """The port of a VM; ``None`` if there is none any longer."""
        return next((each for each in self.vm_ports if each.name == vm), None)

    def switch_socket(self, side: Side, vm: str) -> Path:
        """The socket to which the side's port of a VM connects."""
        return self.config.vhost_socket(side, vm)

    def bridge_spec(self, side: Side) -> BridgeSpec:
        """The bridge without the peer link. If no broker keeps the switches from a VM in quarantine, it has no port. An
        uplink that only one instance has open is a port of the side that has it: the uplink's driver moves it."""
        config, intent = self.config, self.intent
        has_uplink = config.uplink.both_open or self.uplink_ends.configured(side)
        held = self.held.reasons() if self.config.backend is BackendMode.QEMU_DUAL else {}
        vms = tuple(
            PortSpec(
                vm.name,
                "dpdkvhostuserclient",
                vm.ofport,
                {"vhost-server-path": str(self.switch_socket(side, vm.name))},
                mtu=vm.mtu,
            )
            for vm in intent.vms
            if vm.name not in held
        )
        fixed = (
            *(uplink_ports.specs(self, side) if has_uplink else ()),
            PortSpec(VXLAN, intent.vtep.tunnel, VXLAN_PORT, intent.vtep.options),
        )
        sockets = str(self.switch_socket(side, "any").parent)
        return BridgeSpec(self.config.bridge, flow_tables.mac(config, intent, side), fixed + vms, sockets=sockets)

    @property
    def peer_socket(self) -> Path:
        """The socket at which the two ends of the peer link meet."""
        return self.config.run_dir / "peer.sock"

    def peer_spec(self, side: Side) -> PortSpec:
        """The side's end of the peer link."""
        # Where one instance has the uplink, the other one's encapsulated packets pass here.
        underlay = 0 if self.config.uplink.both_open else self.intent.vtep.mtu or ETHERNET_MTU
        queues = len(set(self.config.instance(side.other).pmd_cores)) + 1
        return memif_spec(
            PEER, PEER_PORT, self.peer_socket, device="peer", server=side is Side.A,
            mtu=max(self.intent.mtu, underlay) + TAGS, queues=queues,
        )  # fmt: skip

    def program_database(self, side: Side) -> None:
        """Make the bridge and the ports as the intent says. Raises SwitchError, also if a port cannot be made or
        refuses its new configuration; such a port has its earlier configuration again."""
        spec, instance = self.bridge_spec(side), self.instances[side]
        with instance.database() as database:
            database.set_other_config(REQUIRED_OTHER_CONFIG)
            look = partial(ports_with_mtus, instance.paths)
            put_ports(database, look, spec, self.config.upgrade.ready_s, instance.paths.log)
        put_flow_log(instance.paths.db_socket, self.config.bridge, self.config.flowlog)

    def reshaped(self, side: Side) -> list[str]:
        """The ports of a running side that ``program_database`` would reconfigure while packets pass through them."""
        with self.instances[side].database() as database:
            shapes = database.shapes(self.bridge_spec(side))
        found = self.datapath_ports(side) if shapes else {}
        return sorted(name for name in shapes if name in found and found[name].in_use)

    @property
    def underlay(self) -> Underlay:
        return Underlay(self.config, self.intent, self.instances, self.uplink_ends.end, self.recorded_active)

    def program_tunnels(self, side: Side) -> None:
        """Give the side the intent's VTEP address, routes and neighbours, and remove those that have left it."""
        self.underlay.program(side)

    def program_flows(self, side: Side, form: Form) -> None:
        self.openflow(side).replace(flow_tables.flows(self, side, form))

    def set_pmd_sleep(self, side: Side, microseconds: int) -> None:
        """Set the longest sleep of the side's idle PMD threads until ``settle_pmd_sleep`` is called."""
        with self.instances[side].database(tables=ROOT_TABLES) as database:
            database.set_other_config({pmd_sleep_key(self.version(side)): str(microseconds)})

    def settle_pmd_sleep(self, side: Side, microseconds: int | None = None) -> None:
        """Give the side's idle PMD threads the configured longest sleep, unless the operator set another."""
        configured = self.config.instance(side).pmd_sleep_us
        value = str(configured if microseconds is None else microseconds)
        with self.instances[side].database(tables=ROOT_TABLES) as database:
            database.set_other_config({pmd_sleep_key(self.version(side)): value}, {CONFIGURED_SLEEP: str(configured)})

    def follow_pmd_sleep(self, side: Side) -> None:
        """Give the side the configured PMD sleep if the configuration has changed since the sleep was last given.
        Otherwise the value that the operator set in the database stays."""
        with self.instances[side].database(tables=ROOT_TABLES) as database:
            given = database.external_ids().get(CONFIGURED_SLEEP)
        if given is not None and given != str(self.config.instance(side).pmd_sleep_us):
            self.settle_pmd_sleep(side)

    def own_pmd_sleep(self, side: Side) -> int | None:
        """The PMD sleep that the operator set in the side's database, in microseconds; ``None`` if it is the configured
        one. The answer is wrong between ``set_pmd_sleep`` and ``settle_pmd_sleep``."""
        with self.instances[side].database(tables=ROOT_TABLES) as database:
            given = database.external_ids().get(CONFIGURED_SLEEP, str(self.config.instance(side).pmd_sleep_us))
            value = pmd_sleep_us(database.other_config(), self.version(side))
        return None if given == str(value) else value

    def pmd_sleep(self, side: Side) -> int:
        """The longest sleep of the side's idle PMD threads, in microseconds."""
        with self.instances[side].database(tables=ROOT_TABLES) as database:
            return pmd_sleep_us(database.other_config(), self.version(side))

    def scheduling(self, side: Side) -> dict[str, Json] | None:
        """How the side's threads are scheduled, for ``schedule``; ``None`` if it is not known."""
        pid = self.instances[side].pid()
        found = None if pid is None else threads.scheduling(pid)
        return None if found is None else {**dataclasses.asdict(found), "cores": list(found.cores)}

    def prefer_threads(self, side: Side, rank: Rank) -> None:
        """Schedule the side's threads for handovers in which the side has ``rank``. Raises SwitchError."""
        scheduling.serve(self, side)
        pid = self.instances[side].pid()
        if pid is not None:
            config = self.config
            threads.prefer(pid, config.instance(side).pmd_cores, config.instance(side.other).pmd_cores, rank)

    @contextlib.contextmanager
    def message_threads(self) -> Iterator[dict[Side, MessageThread]]:
        """The vhost-user message thread of each instance that has one. The pipes are closed after the block."""
        found: dict[Side, MessageThread] = {}
        try:
            for side, instance in self.instances.items():
                pid = instance.pid()
                tid = None if pid is None else threads.vhost_thread(pid)
                if pid is not None and tid is not None:
                    found[side] = MessageThread(tid, notify_pipe(pid, tid))
            yield found
        finally:
            for thread in found.values():
                if thread.pipe is not None:
                    os.close(thread.pipe)

    def schedule(self, side: Side, before: Mapping[str, Any]) -> None:
        if (pid := self.instances[side].pid()) is not None:
            threads.schedule(pid, threads.Scheduling(**{**before, "cores": tuple(before["cores"])}))

    def program(self, side: Side) -> None:
        """Give a side everything that an instance needs to run alone. The PMD sleep comes first: beside a PMD thread
        that never sleeps, adding ports takes seconds if the main thread shares its core."""
        self.settle_pmd_sleep(side)
        self.program_database(side)
        self.program_tunnels(side)
        self.program_flows(side, Form.FINAL)

    def follow_intent(self, sides: Iterable[Side], *, untried: bool = False) -> None:
        """Bring the broker, the running instances and the uplink to the present intent. The active instance comes last:
        a configuration that its ports would refuse is then refused by the other instance's ports first.

        ``untried``: do so even if no other instance runs on which to try it. Raises BrokerError if a VM cannot leave;
        the broker is asked first, because without its port a switch cannot be shown to have released the VM's rings.
        Raises SwitchError and UplinkError.
        """
        active = self.recorded_active()
        order = sorted(sides, key=lambda side: side is active)
        if active in order and len(order) == 1 and not untried:
            self._refuse_untried(active)
        refuse_kept(self.backends.reload())  # also, it must listen before a port is added
        for side in order:
            if side is active and len(order) > 1 and not untried:
                self._refuse_untried(active)
            self.program_database(side)
            self.program_tunnels(side)
            self.program_flows(side, Form.FINAL)
            if side is active:
                self.uplink.steer(side)  # the VTEP's address may be another one

    def _refuse_untried(self, active: Side) -> None:
        others = self.datapath_ports(active.other)
        refuse_untried(active, self.reshaped(active), others, self.bridge_spec(active).ports)

    def await_ports(self, side: Side, wanted: Iterable[PortSpec]) -> None:
        """Wait until the side's datapath has these ports. Raises SwitchError."""
        await_ports(partial(ports_with_mtus, self.instances[side].paths), wanted)

    def has_port(self, side: Side, name: str) -> bool:
        return name in ports(self.control(side))  # what the datapath of a running side has

    def datapath_ports(self, side: Side) -> dict[str, DatapathPort]:
        """The ports that the side's datapath has, with their MTUs; none if it does not run. Raises SwitchError."""
        return {} if self.instances[side].pid() is None else ports_with_mtus(self.instances[side].paths)

    def wait(
        self, true: Callable[[], bool], seconds: float, otherwise: Callable[[], str], *, on: Iterable[Side] = ()
    ) -> None:
        """Poll until ``true``. Raises SwitchError with ``otherwise`` after ``seconds``, or if one of the instances
        ``on`` which the answer depends is dead or stopped."""

        def look() -> bool:
            found = true()
            for side in () if found else on:
                see_going(self.instances[side])
            return found

        if not wait_until(look, seconds, self.system):
            raise SwitchError(f"{otherwise()} after {seconds:g} s")

    def link_up(self, side: Side, port: str) -> bool:
        with self.instances[side].database(tables=INTERFACE_TABLES) as database:
            return (found := database.interfaces().get(port)) is not None and found.link_state == "up"
