"""Looks at a host for `diagnose`: at its VMs, its active instance, its uplink and its standby, all at the same time.

Everything is read; what is sent are the frames with which an uplink is proven anyway (``uplink.proof``), and questions
for the MACs of next hops. No lock is taken. Each part has adapters of its own, and a part that hangs is left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
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
from ovs_hotswap.diagnose.parts import together
from ovs_hotswap.diagnose.switch_look import SwitchLook
from ovs_hotswap.errors import BrokerError, SwitchError
from ovs_hotswap.host import traces, uplink_ports
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.rings import samples
from ovs_hotswap.model import Life, Severity, Side
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.ports import SECOND_UPLINK, SECOND_UPLINK_PORT, UPLINK, UPLINK_PORT, VXLAN, VXLAN_PORT
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.switch.rpc import listens, transact
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.watchdog import report

SECONDS = 1.0
"""Between the two looks at counters: Open vSwitch adds packets to flows every half second (ofproto-dpif-upcall.c)."""
_WHOLE_S = 7.0  # for everything beside the time between the looks; half a second more than for frames
_ANSWER_S = 1.0
_ASKED = 6  # next hops that are asked, as a proof does
_PARTS = {
    "guests": "The VMs' rings and owners", "switch": "The active instance", "underlay": "The uplink",
    "standby": "The state of the watchdog", "mtus": "The MTUs on the way", "unfinished": "The upgrade's journal",
    "traces": "What traces have left",
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
            "traces": lambda: tuple(traces.abandoned(self.host())),
        }
        if active is not None or wanted.overlay or wanted.vms:  # otherwise the host's own switch was not taken over yet
            parts["guests"] = lambda: _guests(self.host(), self.seconds)
        if active is not None:
            parts["switch"] = lambda: SwitchLook(self.host(), active, wanted, self.seconds).switch()
            if wanted.overlay:
                parts["underlay"] = lambda: self._underlay(active, host.intent, wanted)
                parts["mtus"] = lambda: _mtus(self.host(quick=False), active)
        found, faults = together(parts, self.seconds + _WHOLE_S)
        broker = self.config.backend is BackendMode.BROKER
        gone = faults.get("guests") if broker else None
        unseen = tuple(Unseen(_PARTS[name], error.message, error.hint) for name, error in faults.items()
                       if not (broker and name == "guests"))  # fmt: skip
        switch = found.pop("switch", (None, ()))
        journal = "unfinished" not in faults
        if active is not None and not wanted.overlay:
            wanted = replace(wanted, vms=_with_macs(host, active, wanted.vms, switch[0]))
        return Facts(wanted, self.seconds, active, None if gone is None else gone.message, switch=switch[0], **found,
                     journal=journal, unseen=(*unseen, *switch[1]))  # fmt: skip

    def _underlay(self, active: Side, intent: Intent, wanted: Wanted) -> Underlay:
        # What one part alone needs is imported by it, while others wait for time to pass.
        from ovs_hotswap.diagnose.underlay_look import look

        return look(lambda: self.host(quick=False), active, self._hops(intent, wanted), self.probe)

    def _hops(self, intent: Intent, wanted: Wanted) -> list[str]:
        """The next hops that are worth a question, at most ``_ASKED``."""
        hops = [hop_in(intent, vtep) for vtep in underlay_faults.vteps_of(Facts(wanted, 0.0), self.vm)]
        return list(dict.fromkeys(hop for hop in hops if hop is not None))[:_ASKED]


# -------------------------------------------------------------------------------------------------- what it is to be


def wanted_of(host: Host) -> Wanted:
    """What the host is to do. Raises ConfigError."""
    config = host.config
    watched = config.watch.keeps_standby
    if config.program is Program.CLONE:
        vms = {each.name: VmPort(each.name, each.ofport, each.bridge) for each in host.vm_ports}
        return Wanted(vms, overlay=False, uplinks=tuple(uplink_ports.names(config)), watched=watched)
    intent = host.intent
    return Wanted(
        {vm.name: VmPort(vm.name, vm.ofport, config.bridge, vm.mac, vm.vni) for vm in intent.vms},
        True, config.bridge, intent.vtep.address,
        tuple(RemoteMac(each.vni, each.mac, each.vtep) for each in intent.remotes),
        {each.address: each.mac for each in intent.neighbours if each.mac is not None},
        intent.vtep.tunnel_mtu, tuple(uplink_ports.names(config)), watched,
        {UPLINK: UPLINK_PORT, SECOND_UPLINK: SECOND_UPLINK_PORT, VXLAN: VXLAN_PORT},
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
        ports, seen = switch.ports or {}, megaflows.senders(switch.megaflows)
        macs = {name: seen[port.number] for name, port in ports.items() if port.number in seen} | macs
    return {name: replace(vm, mac=macs.get(name)) for name, vm in vms.items()}


# ------------------------------------------------------------------------------------------------------------ the parts


def _guests(host: Host, seconds: float) -> dict[str, Guest]:
    """Raises BrokerError. One that is being replaced listens again within a second."""
    socket = host.config.broker_socket
    if host.config.backend is BackendMode.BROKER and not wait_until(lambda: listens(socket), _ANSWER_S, host.system):
        raise BrokerError(f"no process listens on {socket}", hint="`ovs-hotswap broker start`")
    before: dict[str, list[Any]] = {}
    for each in samples(host.backends.vms()):
        before.setdefault(each.vm, []).append(each)
    host.system.sleep(seconds)
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
    contents = Journals(host.config.state_dir, host.system).read()
    return None if contents is None else str(contents.standing.phase)


def _mtus(host: Host, active: Side) -> tuple[tuple[str, str | None], ...]:
    from ovs_hotswap.upgrade import collect

    instance = host.instances[active]
    if instance.life() is not Life.RUNS or instance.lacks_database():  # it would be waited for
        return ()
    found = collect.mtus(host, active)
    return tuple((each.text, each.hint) for each in found if each.severity is Severity.ERROR)
