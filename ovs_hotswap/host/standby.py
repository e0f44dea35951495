"""The warm standby: an instance beside the active one that is programmed and has every VM parked on it.

The active instance is not changed for it. Both have the final form of the flow tables and no peer link. When the active
instance dies, all VMs move at once, so there is never traffic between VMs on different sides, and in normal operation
no packet is copied. Only a planned upgrade, which moves one VM after another, opens the window.

Some values are set on the standby alone: a long PMD sleep, a quiet log, preferred threads. A record in the run
directory has the earlier values, so that another watchdog, or an upgrade, can restore them.
"""

from __future__ import annotations

import contextlib
import logging
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.config import Config, Program
from ovs_hotswap.errors import BrokerError, BusyError, SwitchError
from ovs_hotswap.host import flow_log, settings_transfer, uplink_ports
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.memory_checks import too_small
from ovs_hotswap.host.scheduling import in_background, make_ready
from ovs_hotswap.model import Release, Side
from ovs_hotswap.overlay.tables import NIC_PORTS, Form
from ovs_hotswap.priority import Rank
from ovs_hotswap.switch.answering import see_going
from ovs_hotswap.switch.instance import State
from ovs_hotswap.switch.ovsdb import PortSpec
from ovs_hotswap.switch.settings import Settings
from ovs_hotswap.toml_file import Strict
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.wording import some

log = logging.getLogger(__name__)

_AT_ONCE = 32  # VMs that are parked before progress is shown

_PORT_S = 15.0
_POLLED_S = 20.0
# The longest sleep of a PMD thread that only waits for a failover, in microseconds; the first packets after a failover
# are delayed by as much. At each wake-up the thread looks at every queue, so it sleeps longer if there are many.
_SLEEP_US = 2000
_SLEEP_PER_QUEUE_US = 160  # a wake-up takes some 30 us and one more for each queue: 2 % of a core
_SLEEP_MOST_US = 10_000  # the most that Open vSwitch allows (vswitch.xml, pmd-sleep-max)

Parked = Callable[[int, str], None]


class StandbyRecord(Strict, extra="ignore"):
    """The values that the standby had before it was prepared. ``pid``: the ovs-vswitchd from which they were read.
    ``prepared``: the standby is programmed and the VMs were parked on it. ``pmd_sleep_us``: the PMD sleep that the
    operator set on the active instance, in microseconds, if it is not the configured one. Fields that a newer version
    of this program writes in addition are ignored.
    """

    side: Side
    pid: int
    log_level: str
    scheduling: dict[str, Any] | None
    prepared: bool = False
    pmd_sleep_us: int | None = None

    def is_warm(self, side: Side) -> bool:
        """Whether ``side`` is the warm standby."""
        return self.side is side and self.prepared


def record_path(config: Config) -> Path:
    return config.run_dir / "standby.json"


def read_record(host: Host) -> StandbyRecord | None:
    """The record of a standby whose process still runs, perhaps as the active instance by now; otherwise ``None``."""
    try:
        record = StandbyRecord.model_validate_json(record_path(host.config).read_text())
    except (OSError, ValueError):
        return None
    return record if host.instances[record.side].pid() == record.pid else None


def warm(host: Host, side: Side) -> StandbyRecord | None:
    """Return the record of ``side`` if it is the warm standby: it runs and is prepared."""
    record = read_record(host)
    return record if record is not None and record.is_warm(side) else None


def forget(config: Config) -> None:
    record_path(config).unlink(missing_ok=True)


def prepare(host: Host, side: Side) -> tuple[list[VmStatus], dict[str, str]]:
    """Make a running instance the warm standby. Returns the VMs that were to be parked, and for each that was not the
    reason. May be repeated. Raises SwitchError or BrokerError."""
    queues = sum(vm.queues for vm in host.intent.vms)
    with in_background(host, side):
        host.set_pmd_sleep(side, max(idle_sleep_us(queues), host.config.upgrade.pmd_sleep_us))
        host.program_database(side)
    own_sleep = _carry_settings(host, side)
    await_ports(host, side)
    record = read_record(host)
    if record is None or record.side is not side:
        record = _look(host, side)
        _write(host, record)
    host.set_log_level(side, "error")
    host.prefer_threads(side, Rank.TAKES)
    host.program_tunnels(side)
    host.program_flows(side, Form.FINAL)
    vms = [vm for vm in host.backends.vms(read=False) if vm.parkable(side)]
    refused = park_each(host, side, vms)
    _write(host, record.model_copy(update={"prepared": True, "pmd_sleep_us": own_sleep}))
    return vms, refused


def _carry_settings(host: Host, side: Side) -> int | None:
    """Give the standby the operator's settings on the active instance, and return the PMD sleep that was set there. A
    failure is only logged: a standby without the settings is better than none."""
    try:
        found = settings_transfer.read(host, side.other)
        settings_transfer.put(host, settings_transfer.own(host, found), side.other, side)
        return settings_transfer.own_sleep(host, found, side.other)
    except SwitchError as error:
        log.warning("settings of instance %s are not carried over: %s", side.other, error.message)
        return None


def follow_settings(host: Host, side: Side, wanted: Settings, own_sleep: int | None) -> None:
    """Give a prepared standby the settings that the active instance has now. Raises SwitchError."""
    settings_transfer.put(host, wanted, side.other, side)
    record = read_record(host)
    if record is not None and record.side is side:
        _write(host, record.model_copy(update={"pmd_sleep_us": own_sleep}))


def idle_sleep_us(queues: int) -> int:
    """The longest sleep of the standby's PMD threads, in microseconds, with ``queues`` queue pairs of VMs parked."""
    return min(max(_SLEEP_US, _SLEEP_PER_QUEUE_US * queues), _SLEEP_MOST_US)


def _look(host: Host, side: Side) -> StandbyRecord:
    pid = host.instances[side].pid()
    if pid is None:
        raise SwitchError(f"instance {side} ended", hint="its log is kept in the state directory")
    return StandbyRecord(side=side, pid=pid, log_level=host.log_level(side), scheduling=host.scheduling(side))


def _write(host: Host, record: StandbyRecord) -> None:
    host.system.write_atomic(record_path(host.config), record.model_dump_json())


def restore_operator_settings(host: Host, record: StandbyRecord) -> None:
    """Give the operator's values to a standby that has become, or will become, the active instance."""
    side = record.side
    host.settle_pmd_sleep(side, record.pmd_sleep_us)
    host.set_log_level(side, record.log_level)
    if record.scheduling is not None:
        host.schedule(side, record.scheduling)
    forget(host.config)


def settle(host: Host, side: Side) -> None:
    """Call ``restore_operator_settings`` if the record is that of ``side``."""
    record = read_record(host)
    if record is not None and record.side is side:
        restore_operator_settings(host, record)


def end_standby(host: Host, side: Side) -> None:
    """End a standby, dead or alive. The VMs that are parked on it stay with the other side. A broker that does not
    answer is not needed: it sees later that the switch is gone. Raises BusyError if the side is active by now."""
    with contextlib.suppress(BrokerError):
        unpark_each(host, side, [vm.name for vm in host.backends.vms(read=False)])
    if host.recorded_active() is side:
        raise BusyError(f"instance {side} has just become the active one")
    flow_log.flush(host, side)
    host.instances[side].stop()
    forget(host.config)


def usable(host: Host, side: Side, release: Release) -> bool:
    """Whether an upgrade to ``release`` can use the instance that runs on a side that is not active."""
    instance = host.instances[side]
    return host.running(side) and instance.release() == release and not instance.outdated()


def release_for_upgrade(host: Host, active: Side, release: Release) -> bool:
    """Prepare the instance beside the active one for an upgrade to ``release``. If it runs just this release, it keeps
    running with the operator's values; otherwise it is ended, as it serves no VM. Returns whether it keeps running."""
    side = active.other
    settle(host, active)
    if host.instances[side].status().state not in (State.RUNNING, State.STARTING):
        return False  # the remains of one that died are removed when the next instance is started
    if not usable(host, side, release):
        end_standby(host, side)
        return False
    settle(host, side)
    return True


# ------------------------------------------------------------------------------------- shared with an upgrade's steps


def await_ports(host: Host, side: Side, *, without: Collection[str] = ()) -> None:
    """Wait for an instance's uplink, unless it gets it only later, and its connections to the VMs, except those
    ``without`` which it is to run. Check that none of its threads is at low priority and that its packet pool is large
    enough: if memory is short, Open vSwitch makes a smaller pool and reports nothing. Raises SwitchError."""
    make_ready(host, side)
    if host.config.uplink.both_open:
        _await_links(host, side)
        uplinks = uplink_ports.names(host.config)
        found = [port for port in host.bridge_spec(side).ports if port.name in uplinks]
        host.await_ports(side, found)  # its link may be up without it

    def missing() -> list[str]:
        return [name for name in host.unconnected(side) if name not in without]

    host.wait(lambda: not missing(), _PORT_S,
              lambda: f"instance {side} did not connect for VM {some(missing())}", on=[side])  # fmt: skip
    fault = too_small(host.packet_pools(side), host.demand(side).buffers)
    if fault:
        raise SwitchError(
            f"instance {side}: {fault}", hint="`ovs-hotswap check --release NAME` says how many huge pages it needs"
        )


def _await_links(host: Host, side: Side) -> None:
    """Wait for the links of an instance's uplink. Of two NICs, one may have no link if it has none on the other
    instance either, or if no other runs to compare with. Raises SwitchError."""
    names = uplink_ports.names(host.config)

    def down() -> list[str]:
        missing = [name for name in names if not host.link_up(side, name)]
        if len(missing) == len(names) or not missing:
            return missing
        if host.instances[side.other].pid() is None:
            return []
        with contextlib.suppress(SwitchError):
            return [name for name in missing if host.link_up(side.other, name)]
        return []

    host.wait(
        lambda: not down(), _PORT_S,
        lambda: f"instance {side}: the {' and the '.join(down() or names)} is down", on=[side],
    )  # fmt: skip


def await_vm_ports(host: Host, side: Side) -> None:
    """Wait until the side's switch is connected to the broker for each VM. Raises SwitchError and BrokerError."""
    missing = partial(host.unconnected, side)
    host.wait(lambda: not missing(), _PORT_S, lambda: f"instance {side} is not connected for VM {some(missing())}",
              on=[side])  # fmt: skip


def see_uplink(host: Host, side: Side) -> None:
    """Check that the datapath has the uplink, with any MTU. This needs no intent. Raises SwitchError."""
    if host.config.program is Program.CLONE:
        host.wait(lambda: not lacks_uplink(host, side), _PORT_S, lambda: lacks_uplink(host, side), on=[side])
        return
    named = zip(uplink_ports.names(host.config), NIC_PORTS, strict=False)
    host.await_ports(side, [PortSpec(name, "dpdk", number) for name, number in named])


def lacks_uplink(host: Host, side: Side) -> str:
    """Says in words that the datapath of an instance has lost the uplink. Empty if it has it, or does not answer."""
    with contextlib.suppress(SwitchError):
        for name in uplink_ports.names(host.config):
            if not host.has_port(side, name):  # Open vSwitch 3.5 does not report its MTU
                return f"the datapath of instance {side} does not have the {name}"
    return ""


def park_each(
    host: Host, side: Side, vms: Iterable[VmStatus], parked: Parked = lambda _number, _name: None
) -> dict[str, str]:
    """Park VMs on an instance as far as possible, and return for each VM that is not parked the reason. A guest decides
    whether its own VM can be parked, and must not decide this for others. Raises SwitchError for a fault of the
    instance, BrokerError if the back ends do not answer."""
    refused: dict[str, str] = {}
    expected: dict[str, int] = {}
    every = list(vms)
    for start in range(0, len(every), _AT_ONCE):
        batch = every[start : start + _AT_ONCE]
        errors = host.backends.park_many([vm.name for vm in batch], side)
        refused |= {name: error.message for name, error in errors.items()}
        for number, vm in enumerate(batch, start + 1):
            if vm.name not in errors:
                parked(number, vm.name)
            if vm.name not in errors and vm.has_guest:
                expected[vm.name] = enabled_pairs(vm)
    late = await_polled(host, side, expected)
    if expected:  # a queue counts as polled before the datapath receives from it
        host.await_devices(side, _POLLED_S)
    return refused | {name: f"instance {side} does not poll its queues" for name in late}


def unpark_each(host: Host, side: Side, names: Iterable[str]) -> None:
    """Keep VMs parked on a side no longer. A VM that cannot be unparked has left the overlay intent in the meantime,
    and does not keep the others. Raises BrokerError if the broker does not answer."""
    for name in names:
        try:
            host.backends.unpark(name, side)
        except BrokerError as error:
            host.backends.vms(read=False)  # raises what is not the fault of this VM
            log.warning("VM %s stays parked on %s: %s", name, side, error.message)


def await_polled(host: Host, side: Side, expected: Mapping[str, int]) -> list[str]:
    """Wait until an instance polls as many queues of each VM as ``expected``. Returns the VMs for which it does not."""

    def unpolled() -> list[str]:
        polled = host.polled(side)
        return [name for name, pairs in expected.items()
                if sum(queue.enabled for queue in polled.get(name, ())) < pairs]  # fmt: skip

    def look() -> list[str]:
        if late := unpolled():
            see_going(host.instances[side])
        return late

    return wait_until(look, _POLLED_S, host.system, done=operator.not_) if expected else []


def enabled_pairs(vm: VmStatus) -> int:
    """The number of queue pairs whose transmit ring the guest has enabled."""
    return sum(ring.enabled and ring.started for ring in vm.rings if ring.transmits)
