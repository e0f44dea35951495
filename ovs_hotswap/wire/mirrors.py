"""Wire mode by mirrors: two switches work as one, with whatever pipelines others have programmed (``mirror_flows``).

While it is open, the VMs' rings may move between the switches in any order. The *old* switch's pipeline stays the only
one for all VMs while the new switch is wired; the cut makes the new switch's pipeline the only one. The order is:

1. ``open``, and ``wire`` the new switch, before any VM moves;
2. move the VMs; ``wire`` the new switch in another mode when its uplink receives;
3. ``cut`` when all VMs are on the new switch, or ``wire`` again to return;
4. ``close`` both switches, the one that serves the VMs first.

Each operation may be repeated, and reads from the switches what is there: no file has a state. Everything that is made
is marked, so ``close`` by any process removes it. Each change of flows is one bundle for each bridge, each change of
rows one transaction. All methods raise SwitchError.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ovs_hotswap.errors import HotswapError, PrecheckFailed, SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.switch import memif
from ovs_hotswap.switch.drivers import lacks_driver
from ovs_hotswap.switch.openflow import WITH_BUNDLES, OpenFlow
from ovs_hotswap.switch.ovsdb import PortSpec, SwitchDb
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.pmd import pmd_count
from ovs_hotswap.switch.rpc import transact
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.switch.veth import make_pair, pair_is_up, pairs, remove_pair, veth_spec
from ovs_hotswap.system import System, files
from ovs_hotswap.vm_ports import VmPort
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.wire import mirror_changes as changes
from ovs_hotswap.wire.mirror_changes import link_name
from ovs_hotswap.wire.mirror_flows import (
    CARRY,
    COOKIES,
    LINK_PORT,
    MOST_OVER_VETH,
    WIRE,
    Carried,
    Flow,
    Mode,
    carry_flows,
    group_lines,
    guard_flows,
    order,
    parse_flows,
    replacing,
    wire_flows,
)
from ovs_hotswap.wire.mirror_rows import READ, Operations, Rows, Wanted, assign, mtu, room, see_room


def veth_names(number: int | str) -> tuple[str, str]:
    """The devices of a link that is a pair of veth devices: the old switch has the first one."""
    return f"ovsh-wire{number}a", f"ovsh-wire{number}b"


TAGS = 8  # bytes on a link: its own tag, and one of the frame's
_ANSWER_S = 10.0
_LINK_S = 15.0

P = ParamSpec("P")
T = TypeVar("T")


def _one_at_a_time(method: Callable[Concatenate[MirrorWire, P], T]) -> Callable[Concatenate[MirrorWire, P], T]:
    def locked(self: MirrorWire, /, *arguments: P.args, **options: P.kwargs) -> T:
        with self._lock:
            return method(self, *arguments, **options)

    functools.update_wrapper(locked, method)
    return locked


@dataclass(frozen=True, slots=True)
class UplinkPort:
    """A port by which a bridge reaches the network: of one interface, or a bond of several."""

    bridge: str
    name: str


@dataclass(frozen=True, slots=True)
class WireState:
    """What a switch has of wire mode. ``carried``: the ports that have patch ports. ``intended`` is the mode that was
    asked for last; in words, ``missing`` has what it and the rows ask for and the switch does not have, and ``surplus``
    the opposite."""

    open: bool
    carried: tuple[Carried, ...] = ()
    intended: Mode = Mode.OWN
    missing: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return self.open and not self.missing and not self.surplus


class MirrorWire:
    """Wire mode between the two switches ``sides``, whose databases and bridges others may own.

    ``socket``: where the two ends of a link meet, with the number of the link after it; both switches must be able to
    reach this path. ``ready_s``: how long a switch may take to make ports, in seconds.
    """

    def __init__(
        self, sides: Mapping[Side, InstancePaths], system: System, socket: Path, *, ready_s: float = 15.0
    ) -> None:
        self._sides, self._system, self._socket, self._ready_s = sides, system, socket, ready_s
        self._lock = threading.RLock()  # a keeper that repairs must not bring back what a cut removes

    # -- opening and closing -------------------------------------------------------------------------------------

    @_one_at_a_time
    def open(
        self, old: Side, ports: Iterable[VmPort], uplinks: Iterable[UplinkPort] = (),
        mirrored: Collection[Side] = tuple(Side),
    ) -> None:  # fmt: skip
        """Carry these ports, besides those that are carried already. The old switch has the links' listening ends.

        ``mirrored``: the switches that output on the other one, too, what they output to these VMs. A VM is only
        reached on the other switch if the switch whose pipeline has the frames is one of them.

        Nothing changes for packets, except that what the old switch outputs to a VM is also output on the new one.
        If it fails and wire mode was not open before, it is closed again. Raises PrecheckFailed, before anything is
        changed, if a bridge has no room for the mirrors.
        """
        own, ends = list(ports), [Wanted(uplink.bridge, uplink.name, uplink=True) for uplink in uplinks]
        wanted = {
            side: [*(Wanted(port.bridge, port.name, mirrored=side in mirrored) for port in own), *ends]
            for side in self._sides
        }
        before = {side: self._rows(side) for side in self._sides}
        tags = assign((rows.tags for rows in before.values()), ((each.bridge, each.name) for each in wanted[old]))
        every = {side: list(dict.fromkeys([*rows.wanted, *wanted[side]])) for side, rows in before.items()}
        for side, rows in before.items():
            for each in wanted[side]:
                rows.port(each)
            see_room(rows, every[side])
        try:
            self._make(old, wanted, tags)
        except HotswapError as error:
            if not any(rows.open for rows in before.values()):
                self._close_after(error)
            raise

    @_one_at_a_time
    def room(self, side: Side, bridge: str) -> int:
        """How many VMs of a bridge the switch can mirror."""
        return room(self._rows(side), bridge)

    def add(self, old: Side, ports: Iterable[VmPort]) -> None:
        """Carry ports that were added to both switches while wire mode is open; a wired switch is so for them too."""
        self.open(old, ports)

    @_one_at_a_time
    def remove(self, ports: Iterable[VmPort]) -> None:
        """Carry these ports no longer. Their VMs must be gone, or on the switch that is not wired."""
        names = {(port.bridge, port.name) for port in ports}
        for side in self._sides:
            rows = self._rows(side)
            self._program(side, rows, [each for each in rows.carried() if (each.bridge, each.name) not in names])
            self._change(side, changes.remove(rows, names))

    @_one_at_a_time
    def close(self, side: Side) -> None:
        """Remove everything of ours from a switch, whatever state it is in. Its database and its flows are then as they
        were before. VMs must all be on the switch that is not wired, which is closed first: a switch that loses the
        other end of a link while it polls its own has died of it."""
        rows = self._rows(side)
        self._change(side, changes.remove(rows))
        self._remove_veths()
        for name, bridge in rows.bridges.items():
            if not bridge.userspace:
                continue
            flows = self._openflow(side, name)
            if bridge.patches or any(flows.dump_cookie(cookie) for cookie in COOKIES):
                removed = [line for cookie in COOKIES for line in replacing(cookie, [])]
                flows.bundle([*removed, *group_lines(wanted=False)])

    def _close_after(self, error: HotswapError) -> None:
        for side in self._sides:
            try:
                self.close(side)
            except HotswapError as second:
                error.add_note(f"and wire mode could not be removed from instance {side}: {second.message}")

    # -- modes ---------------------------------------------------------------------------------------------------

    @_one_at_a_time
    def wire(self, side: Side, mode: Mode = Mode.HELD) -> None:
        """Have the other switch's pipeline process what this one receives (``Mode``). Raises SwitchError if the other
        switch is wired itself, because frames would circulate between the two."""
        if mode.wired and (wired := self._wired(side.other)):
            text = f"instance {side.other} is wired ({wired}), so instance {side} cannot be"
            raise SwitchError(text, hint=f"cut instance {side.other} first")
        rows = self._rows(side)
        if mode.wired and not rows.open:
            raise SwitchError(f"wire mode is not open on instance {side}")
        self._change(side, changes.intend(rows, mode), settle=False)
        carried = rows.carried()
        self._on_each(
            side, rows, lambda name: replacing(WIRE, wire_flows(_of(name, carried), mode)), order(carried, mode)
        )

    @_one_at_a_time
    def cut(self, side: Side) -> None:
        """Have the switch's own pipeline process what it receives from now on. This needs nothing of the other switch,
        which may be dead. ``wire`` undoes it."""
        rows = self._rows(side)
        self._change(side, changes.intend(rows, Mode.OWN), settle=False)
        self._on_each(side, rows, lambda _name: replacing(WIRE, []), order(rows.carried(), Mode.OWN))

    # -- looking, and repairing ----------------------------------------------------------------------------------

    @_one_at_a_time
    def state(self, side: Side) -> WireState:
        """What the switch has, compared with what its rows ask for."""
        rows = self._rows(side)
        names = [name for name, bridge in rows.bridges.items() if bridge.userspace]
        found = {(name, flow) for name in names for flow in self._flows(side, name)}
        if not rows.open:
            return WireState(open=False, surplus=tuple(_words(found)))
        carried = rows.carried()
        wanted = {(name, flow) for name in names for flow in _flows_of(name, carried, rows.bridges[name].intended)}
        lost = {(each.bridge, each.name) for each in rows.wanted} - {(each.bridge, each.name) for each in carried}
        missing = [f"port {name} of bridge {bridge}" for bridge, name in sorted(lost)]
        missing += [f"link of bridge {name}" for name in self._bridges(rows) if rows.bridges[name].link is None]
        missing += ["mirrors"] if changes.make_mirrors(rows) else []
        modes = {rows.bridges[name].intended for name in self._bridges(rows)}
        mode = modes.pop() if len(modes) == 1 else Mode.OWN
        words = tuple(missing + _words(wanted - found)), tuple(_words(found - wanted))
        return WireState(True, tuple(carried), mode, *words)

    @_one_at_a_time
    def repair(self, side: Side) -> None:
        """Bring back what others have removed: flows after a controller has cleared a table, the mirror of a port that
        was made again, the VLAN of a port that was given another one."""
        rows = self._rows(side)
        there = [each for each in rows.wanted if each.name in rows.bridges[each.bridge].ports]
        self._change(side, changes.make_ports(rows, there, rows.tags))
        rows = self._rows(side)
        self._program(side, rows, rows.carried())
        self._mirror(side)
        self._spare_floods(side, there)

    def bridges(self, side: Side) -> list[str]:
        """The bridges on which there are flows of ours."""
        return self._bridges(self._rows(side))

    def target(self, side: Side, bridge: str) -> str:
        """A bridge as the programs of Open vSwitch are given it."""
        return self._openflow(side, bridge).target

    # -- parts ---------------------------------------------------------------------------------------------------

    def _make(self, old: Side, wanted: Mapping[Side, Sequence[Wanted]], tags: Mapping[tuple[str, str], int]) -> None:
        both = (old, old.other)
        bridges = list(dict.fromkeys(each.bridge for each in wanted[old]))
        for side in both:
            for name in bridges:
                guards = guard_flows(tags[name, each.name] for each in wanted[side] if each.bridge == name)
                self._openflow(side, name).bundle([f"flow add {flow.line}" for flow in guards])
            self._change(side, changes.make_ports(self._rows(side), wanted[side], tags))
        links = assign((self._rows(side).links for side in both), ((name, "") for name in bridges))
        for name in bridges:
            self._join(old, name, links[name, ""])
        # A copy is delivered where it arrives, so there are flows everywhere before there is a mirror anywhere. What a
        # bridge floods to a port of ours would be delivered as well, so it is kept from floods before.
        for side in both:
            self._spare_floods(side, wanted[side])
            rows = self._rows(side)
            self._program(side, rows, rows.carried())
        for side in both:
            self._mirror(side)

    def _mirror(self, side: Side) -> None:
        """Make the mirrors, and wait until every flow of the datapath has them.

        ovs-vswitchd notices a mirror in one turn of its main loop, and looks at the existing flows in a later one, for
        which it may sleep for seconds (ofproto/ofproto-dpif.c, run and type_run). A change of flows wakes it."""
        operations = changes.make_mirrors(self._rows(side))
        self._change(side, operations)
        if operations:
            rows = self._rows(side)
            self._program(side, rows, rows.carried())
            with SwitchDb(self._sides[side].db_socket) as database:
                database.wait_pass(self._ready_s)
            appctl(self._sides[side].vswitchd_ctl, "revalidator/wait", timeout=_ANSWER_S)

    def _spare_floods(self, side: Side, wanted: Collection[Wanted]) -> None:
        """Raises PrecheckFailed if a bridge floods by FLOOD and does not accept OpenFlow 1.0."""
        ports = [port for port in self._rows(side).carried() if Wanted(port.bridge, port.name, port.uplink) in wanted]
        for name in {port.bridge for port in ports}:
            flows = self._openflow(side, name)
            numbers = [number for port in _of(name, ports) for number in (port.near, port.far)]
            try:
                for number in (LINK_PORT, *numbers):
                    flows.keep_from_floods(number)
            except SwitchError as error:
                if any(re.search(r"[=,:]FLOOD\b", line) for line in flows.dump()):
                    raise PrecheckFailed(
                        f"bridge {name}: ports cannot be kept from FLOOD, which its flows use: {error.message}",
                        hint=f"`ovs-vsctl add bridge {name} protocols OpenFlow10`",
                    ) from error

    def _program(self, side: Side, rows: Rows, carried: Sequence[Carried]) -> None:
        """Give the switch's bridges the flows for these ports, and those of the mode in which it is to be."""

        def lines(name: str) -> list[str]:
            ports, mode = _of(name, carried), rows.bridges[name].intended
            return [
                *group_lines(wanted=bool(ports)),
                *replacing(CARRY, carry_flows(ports)),
                *replacing(WIRE, wire_flows(ports, mode)),
            ]

        self._on_each(side, rows, lines)

    def _join(self, old: Side, bridge: str, number: int) -> None:
        """Bring a bridge's link up. A client connects only when its port is made (DPDK drivers/net/memif,
        memif_dev_start), and a client whose server is made again never reconnects. So unless the link is up, both ends
        are made again, the server's first."""
        rows = {side: self._rows(side) for side in self._sides}
        socket = self._socket.with_name(f"{self._socket.name}.{number}")
        longest = (
            max(mtu(each, (want for want in each.wanted if want.bridge == bridge)) for each in rows.values()) + TAGS
        )
        over_veth = self._over_veth()  # once: it is read from all that the switches have mapped
        if over_veth:
            longest = MOST_OVER_VETH if longest <= MOST_OVER_VETH + TAGS else longest
        links = [link for each in rows.values() if (link := each.bridges[bridge].link) is not None and link.ofports]
        if len(links) == len(rows) and self._connected(socket, number, over_veth=over_veth):
            if longest > (shortest := min(link.mtu for link in links)):
                raise PrecheckFailed(
                    f"bridge {bridge}: wire mode's link was made for an MTU of {shortest}, and {longest} is needed",
                    hint="add the port after the upgrade, or close wire mode and begin again",
                )
            return
        for side, each in rows.items():
            self._change(side, changes.drop_link(each, bridge))
        with files(socket):
            socket.unlink(missing_ok=True)  # a killed server leaves it, and the next one would refuse it
        if over_veth and longest > MOST_OVER_VETH:
            raise PrecheckFailed(
                f"bridge {bridge}: a switch has not loaded DPDK's driver memif, without which the instances exchange no"
                f" frames of an MTU above {MOST_OVER_VETH}",
                hint="install the driver (Debian 12: `apt install librte-net-memif23`), before the switch starts the"
                " next time",
            )
        if over_veth:
            make_pair(*veth_names(number), longest + TAGS)
        for side in (old, old.other):
            spec = self._end(side, old, number, socket, longest, over_veth=over_veth)
            mode = rows[side].bridges[bridge].intended
            self._change(side, changes.make_link(self._rows(side), bridge, number, spec.options, longest, mode))
        if not wait_until(partial(self._connected, socket, number, over_veth=over_veth), _LINK_S, self._system):
            text = f"the link {number} between the instances does not come up within {_LINK_S:g} s"
            raise SwitchError(text, hint="the logs of both ovs-vswitchd say more (net_memif, net_af_packet)")

    def _over_veth(self) -> bool:
        """Whether a link has to be a pair of veth devices: a switch that runs has not loaded the driver memif."""
        pids = [self._system.read_pid(paths.vswitchd_pid) for paths in self._sides.values()]
        return any(pid is not None and lacks_driver(pid, "memif") for pid in pids)

    def _end(self, side: Side, old: Side, number: int, socket: Path, longest: int, *, over_veth: bool) -> PortSpec:
        """The port of ``side`` by which it meets the other switch."""
        name, device = link_name(number), f"wire{number}"
        if over_veth:
            return veth_spec(name, LINK_PORT, veth_names(number)[side is not old], device=device, mtu=longest)
        queues = (pmd_count(self._sides[side.other].vswitchd_ctl) or 1) + 1
        return memif.memif_spec(name, LINK_PORT, socket, device=device, server=side is old, mtu=longest, queues=queues)

    def _connected(self, socket: Path, number: int, *, over_veth: bool) -> bool:
        """Whether either switch is a client that is connected to the other's socket, or has its veth."""
        if over_veth:
            return pair_is_up(*veth_names(number))
        pids = (self._system.read_pid(paths.vswitchd_pid) for paths in self._sides.values())
        return any(pid is not None and memif.connected(pid, socket) for pid in pids)

    def _remove_veths(self) -> None:
        """Remove the veth devices of links that neither switch has, or that were made and never used."""
        if not (found := pairs(veth_names("*")[0])):
            return
        used: set[str] = set()
        for side in self._sides:
            with contextlib.suppress(SwitchError):  # it has ended
                used |= {veth_names(number)[0] for number in self._rows(side).links.values()}
        for name in found:
            if name not in used:
                remove_pair(name)

    def _on_each(
        self, side: Side, rows: Rows, lines: Callable[[str], list[str]], groups: Sequence[Collection[str]] = ()
    ) -> None:
        """Send each bridge of others its bundle: one group of bridges after the other, and those of a group at once."""
        names = self._bridges(rows)
        others = set(names).difference(*groups)  # a bridge of which no port is carried any longer may have flows still
        for group in [*groups, others]:
            if not (chosen := [name for name in names if name in group]):
                continue
            with ThreadPoolExecutor(max_workers=len(chosen)) as pool:
                acts = [pool.submit(self._openflow(side, name).bundle, lines(name)) for name in chosen]
            for act in acts:
                act.result()

    @staticmethod
    def _bridges(rows: Rows) -> list[str]:
        """The bridges on which there are flows of ours."""
        return sorted(bridge.name for bridge in rows.bridges.values() if bridge.patches)

    def _wired(self, side: Side) -> str:
        """What shows that a switch is wired, or is to be; empty if nothing does."""
        rows = self._rows(side)
        for name in self._bridges(rows):
            if rows.bridges[name].intended.wired or self._openflow(side, name).dump_cookie(WIRE):
                return f"bridge {name}"
        return ""

    def _flows(self, side: Side, bridge: str) -> list[Flow]:
        flows = self._openflow(side, bridge)
        return [flow for cookie in COOKIES for flow in parse_flows(flows.dump_cookie(cookie))]

    def _openflow(self, side: Side, bridge: str) -> OpenFlow:
        return OpenFlow(self._system, self._sides[side].mgmt(bridge), versions=WITH_BUNDLES)

    def _rows(self, side: Side) -> Rows:
        return Rows.of(self._transact(side, READ))

    def _transact(self, side: Side, operations: Operations) -> Any:
        return transact(self._sides[side].db_socket, operations, timeout=_ANSWER_S)

    def _change(self, side: Side, operations: Operations, *, settle: bool = True) -> None:
        """Carry out a transaction, and wait until the switch has followed it and has made the ports that it adds."""
        if not operations:
            return
        self._transact(side, operations)
        if settle:
            made = [each["row"]["name"] for each in operations if each["table"] == "Port" and each["op"] == "insert"]
            with SwitchDb(self._sides[side].db_socket) as database:
                database.wait_ports(made, self._ready_s)


def _of(bridge: str, carried: Iterable[Carried]) -> list[Carried]:
    return [port for port in carried if port.bridge == bridge]


def _flows_of(bridge: str, carried: Iterable[Carried], mode: Mode) -> list[Flow]:
    ports = _of(bridge, carried)
    return [*carry_flows(ports), *wire_flows(ports, mode)]


def _words(flows: Iterable[tuple[str, Flow]]) -> list[str]:
    return [f"bridge {bridge}: {flow.line}" for bridge, flow in sorted(flows)]
