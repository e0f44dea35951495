"""Looks at a host for `diagnose`: at its VMs, its active instance, its uplink and its standby, all at the same time.

Everything is read; what is sent are the frames with which an uplink is proven anyway (``uplink.proof``), and questions
for the MACs of next hops. No lock is taken. Each part has adapters of its own, and a part that hangs is left behind.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.config import Config, Program
from ovs_hotswap.diagnose import megaflows, underlay_faults
from ovs_hotswap.diagnose.facts import (
    Facts,
    Guest,
    Hop,
    RemoteMac,
    Standby,
    Switch,
    Underlay,
    Unseen,
    VmPort,
    Wanted,
)
from ovs_hotswap.diagnose.switch_look import SwitchLook
from ovs_hotswap.errors import BrokerError, HotswapError, SwitchError
from ovs_hotswap.host import uplink_ports
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.rings import samples
from ovs_hotswap.model import Life, Severity, Side, Way
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.next_hops import asked
from ovs_hotswap.overlay.ports import SECOND_UPLINK, SECOND_UPLINK_PORT, UPLINK, UPLINK_PORT, VXLAN, VXLAN_PORT
from ovs_hotswap.switch.rpc import listens, transact
from ovs_hotswap.system import System, host_error
from ovs_hotswap.upgrade import collect, uplink_proof
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.uplink.driver import rules_of
from ovs_hotswap.waiting import Deadline, wait_until
from ovs_hotswap.watchdog import report

SECONDS = 1.5
"""Between the two looks at counters: Open vSwitch adds packets to flows every half second (ofproto-dpif-upcall.c)."""
_WHOLE_S = 5.0  # for everything beside the time between the looks
_ANSWER_S = 1.0
_ASKED = 6  # next hops that are asked, as a proof does
_PARTS = {
    "guests": "The VMs' rings and owners", "switch": "The active instance", "underlay": "The uplink",
    "standby": "The state of the watchdog", "mtus": "The MTUs on the way", "unfinished": "The upgrade's journal",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the host of a configuration. ``seconds``: the time between the two looks at counters. ``probe``: send
    frames to prove the uplink and to ask next hops. ``vm``: the one that is asked about."""

    config: Config
    system: System
    seconds: float = SECONDS
    probe: bool = True
    vm: str | None = None

    def host(self, *, quick: bool = True) -> Host:
        """A host of its own for a part. One that is not ``quick`` keeps no connection to the kernel, and so leaves none
        behind for each look."""
        return Host(self.config, self.system, quick=quick)

    def facts(self) -> Facts:
        """Return what is known now. Raises ConfigError if the intent cannot be read, and StateUnknown if the record of
        the active side cannot."""
        host = self.host()
        active, wanted = host.recorded_active(), wanted_of(host)
        parts: dict[str, Callable[[], Any]] = {
            "standby": lambda: _standby(self.host()),
            "unfinished": lambda: _unfinished(self.host()),
        }
        if active is not None or wanted.overlay or wanted.vms:  # otherwise the host's own switch was not taken over yet
            parts["guests"] = lambda: _guests(self.host(), self._pause)
        if active is not None:
            parts["switch"] = lambda: SwitchLook(self.host(), active, wanted, self._pause).switch()
            if wanted.overlay:
                parts["underlay"] = lambda: self._underlay(active, host.intent, wanted)
                parts["mtus"] = lambda: _mtus(self.host(quick=False), active)
        found, faults = together(parts, self.seconds + _WHOLE_S)
        broker = self.config.backend is BackendMode.BROKER
        gone = faults.get("guests") if broker else None
        unseen = tuple(Unseen(_PARTS[name], error.message, error.hint) for name, error in faults.items()
                       if not (broker and name == "guests"))  # fmt: skip
        switch = found.pop("switch", (None, ()))
        if active is not None and not wanted.overlay:
            wanted = replace(wanted, vms=_with_macs(host, active, wanted.vms, switch[0]))
        return Facts(wanted, self.seconds, active, None if gone is None else gone.message, switch=switch[0], **found,
                     unseen=(*unseen, *switch[1]))  # fmt: skip

    def _pause(self) -> None:
        self.system.sleep(self.seconds)

    def _underlay(self, active: Side, intent: Intent, wanted: Wanted) -> Underlay:
        return _underlay(self.host(quick=False), active, self._hops(intent, wanted), self.probe)

    def _hops(self, intent: Intent, wanted: Wanted) -> list[str]:
        """The next hops that are worth a question, at most ``_ASKED``."""
        hops = [hop_in(intent, vtep) for vtep in underlay_faults.vteps_of(Facts(wanted, 0.0), self.vm)]
        return list(dict.fromkeys(hop for hop in hops if hop is not None))[:_ASKED]


def together(
    parts: Mapping[str, Callable[[], Any]], seconds: float
) -> tuple[dict[str, Any], dict[str, HotswapError]]:  # fmt: skip
    """Call all ``parts`` at once, each in a thread. Return the results, and the error of each part that failed or has
    no result after ``seconds``."""
    results: dict[str, Any] = {}
    faults: dict[str, HotswapError] = {}

    def act(name: str, part: Callable[[], Any]) -> None:
        try:
            results[name] = part()
        except HotswapError as error:
            faults[name] = error
        except OSError as error:
            faults[name] = host_error(error)

    # A thread that hangs in the kernel cannot be ended: it is left behind, and ends with the process.
    threads = [threading.Thread(target=act, args=each, daemon=True) for each in parts.items()]
    deadline = Deadline.after(seconds, System())
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(deadline.left_s)
    late = parts.keys() - results.keys() - faults.keys()
    for name in late:
        faults[name] = HotswapError(f"no answer after {seconds:g} s", hint="`ovs-hotswap doctor`")
    return {name: results[name] for name in parts if name in results and name not in late}, dict(faults)


# -------------------------------------------------------------------------------------------------- what it is to be


def wanted_of(host: Host) -> Wanted:
    """What the host is to do. Raises ConfigError."""
    config = host.config
    watched = config.watch.keeps_standby
    if config.program is Program.CLONE:
        vms = {each.name: VmPort(each.name, each.ofport, each.bridge, mtu=each.mtu or 1500) for each in host.vm_ports}
        return Wanted(vms, overlay=False, uplinks=tuple(uplink_ports.names(config)), watched=watched)
    intent = host.intent
    return Wanted(
        {vm.name: VmPort(vm.name, vm.ofport, config.bridge, vm.mac, vm.vni, vm.effective_mtu) for vm in intent.vms},
        True, config.bridge, intent.vtep.address,
        tuple(RemoteMac(each.vni, each.mac, each.vtep) for each in intent.remotes),
        {each.address: each.mac for each in intent.neighbours if each.mac is not None},
        intent.vtep.tunnel_mtu + intent.vtep.tunnel_bytes, intent.vtep.tunnel_mtu, tuple(uplink_ports.names(config)),
        watched, {UPLINK: UPLINK_PORT, SECOND_UPLINK: SECOND_UPLINK_PORT, VXLAN: VXLAN_PORT},
    )  # fmt: skip


def hop_in(intent: Intent, vtep: str) -> str | None:
    """The next hop of a VTEP by the intent: itself if it is on-link, or the preferred gateway."""
    routes = [Hop(route.destination, route.gateway) for route in intent.routes]
    route = underlay_faults.hop_of(vtep, routes)
    if intent.vtep.interface_to(vtep) is not None:
        return vtep
    return None if route is None else route.via


def _with_macs(host: Host, side: Side, vms: Mapping[str, VmPort], switch: Switch | None) -> dict[str, VmPort]:
    """The VMs with the MACs that libvirt and Nova write to the interfaces (``external_ids:attached-mac``), or from
    which their packets come."""
    select = {"op": "select", "table": "Interface", "where": [], "columns": ["name", "external_ids"]}
    macs: dict[str, str] = {}
    with contextlib.suppress(SwitchError):  # then what is seen has to do
        (answer,) = transact(host.instances[side].paths.db_socket, [select], timeout=_ANSWER_S)
        told = {row["name"]: dict(row["external_ids"][1]).get("attached-mac") for row in answer["rows"]}
        macs = {name: mac.lower() for name, mac in told.items() if mac is not None}
    if switch is not None and switch.megaflows is not None:
        for name in vms.keys() & (switch.ports or {}).keys() - macs.keys():
            if (mac := megaflows.sender(switch.megaflows, (switch.ports or {})[name].number)) is not None:
                macs[name] = mac
    return {name: replace(vm, mac=macs.get(name)) for name, vm in vms.items()}


# ------------------------------------------------------------------------------------------------------------ the parts


def _guests(host: Host, pause: Callable[[], None]) -> dict[str, Guest]:
    """Raises BrokerError. One that is being replaced listens again within a second."""
    socket = host.config.broker_socket
    if host.config.backend is BackendMode.BROKER and not wait_until(lambda: listens(socket), _ANSWER_S, host.system):
        raise BrokerError(f"no process listens on {socket}", hint="`ovs-hotswap broker start`")
    before: dict[str, list[Any]] = {}
    for each in samples(host.backends.vms()):
        before.setdefault(each.vm, []).append(each)
    pause()
    found = {}
    for status in host.backends.vms():
        stopped = status.qemu is not None and host.system.stopped(status.qemu)
        found[status.name] = Guest(status, tuple(before.get(status.name, ())), tuple(samples([status])), stopped)
    return found


def _standby(host: Host) -> Standby:
    found = report.read(host.config, host.system)
    side = found["standby"]
    return Standby(found["running"], None if side is None else Side(side), found["keeping"],
                   tuple(map(str, found["unprotected"] or ())))  # fmt: skip


def _unfinished(host: Host) -> str | None:
    contents = Upgrader(host).unfinished()
    return None if contents is None else str(contents.standing.phase)


def _mtus(host: Host, active: Side) -> tuple[tuple[str, str | None], ...]:
    if host.instances[active].life() is not Life.RUNS:  # it would be waited for
        return ()
    found = collect.mtus(host, active)
    return tuple((each.text, each.hint) for each in found if each.severity is Severity.ERROR)


def _underlay(host: Host, active: Side, hops: Collection[str], probe: bool) -> Underlay:
    """Raises UplinkError."""
    uplink = host.uplink
    steers = host.config.uplink.driver != "none"
    faults = tuple((each.text, each.hint) for each in uplink.check() if each.severity is Severity.ERROR)
    found = Underlay(steers, uplink.owner(), faults=faults, rules=tuple(rules_of(uplink)))
    if not probe or host.instances[active].life() is not Life.RUNS:
        return found
    wanted = [
        each for each in host.intent.neighbours if each.address in hops and _answers_are_heard(host, each.address)
    ]
    answers = host.underlay.asker().ask(wanted, {}) if wanted else {}
    found = replace(found, asked=tuple(each.address for each in wanted), answers=answers, apart=_by_kernel(host))
    if not steers or faults:
        return found
    ways = [uplink_proof.prove(host, active, way) for way in Way]  # a proof of both at once would wait for longer
    return replace(found, proof=ways[0].joined(ways[1]))


def _answers_are_heard(host: Host, address: str) -> bool:
    """Whether the answer of a neighbour would be heard. Where the kernel has no device of the NIC, the bridge's flows
    let only answers pass of those that are followed (``overlay.tables``)."""
    return _by_kernel(host) or address in {each.address for each in asked(host.intent)}


def _by_kernel(host: Host) -> bool:
    """Whether next hops are asked from the kernel's devices (``host.underlay``)."""
    config = host.config.uplink
    return config.both_open and config.driver != "announce" and any(nic.device for nic in config.nics)
