"""Wire mode by mirrors: two switches work as one, with whatever pipelines others have programmed (``mirror_flows``).

While it is open, the VMs' rings may move between the switches in any order. The *old* switch's pipeline stays the only
one for all VMs while the new switch is wired; the cut makes the new switch's pipeline the only one. The order is:

1. ``open``, and ``wire`` the new switch, before any VM moves;
2. move the VMs; ``wire`` the new switch in another mode when its uplink receives;
3. ``cut`` when all VMs are on the new switch, or ``wire`` again to return;
4. ``close`` both switches.

Each operation may be repeated, and reads from the switches what is there: no file has a state. Everything that is made
is marked, so ``close`` by any process removes it. Each change of flows is one bundle for each bridge, each change of
rows one transaction. All methods raise SwitchError.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovs_hotswap.errors import HotswapError, PrecheckFailed, SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.switch import memif
from ovs_hotswap.switch.openflow import WITH_BUNDLES, OpenFlow
from ovs_hotswap.switch.ovsdb import SwitchDb
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.pmd import pmd_count
from ovs_hotswap.switch.rpc import transact
from ovs_hotswap.system import System
from ovs_hotswap.vm_ports import VmPort
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.wire import mirror_changes as changes
from ovs_hotswap.wire.mirror_flows import (
    CARRY,
    COOKIES,
    LINK_PORT,
    WIRE,
    Carried,
    Flow,
    Mode,
    carrier_flows,
    carrier_lines,
    carry_flows,
    parse_flows,
    replacing,
    wire_flows,
)
from ovs_hotswap.wire.mirror_rows import LINK, READ, Operations, Rows, Wanted, assign_tags, mtu, see_room

CARRIER = "br-ovsh-peer"
"""The name of the bridge of ours, with the side after it: both switches may be in one network namespace."""
TAGS = 8  # bytes on the memif: its own tag, and one of the frame's
_ANSWER_S = 10.0
_LINK_S = 15.0


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

    ``socket``: where the memif's ends meet; both switches must be able to reach this path. ``ready_s``: how long a
    switch may take to make ports, in seconds.
    """

    def __init__(
        self, sides: Mapping[Side, InstancePaths], system: System, socket: Path, *, ready_s: float = 15.0
    ) -> None:
        self._sides, self._system, self._socket, self._ready_s = sides, system, socket, ready_s

    # -- opening and closing -------------------------------------------------------------------------------------

    def open(self, old: Side, ports: Iterable[VmPort], uplinks: Iterable[UplinkPort] = ()) -> None:
        """Carry these ports, besides those that are carried already. The old switch has the memif's listening end.

        Nothing changes for packets, except that what the old switch outputs to a VM is also output on the new one.
        If it fails and wire mode was not open before, it is closed again. Raises PrecheckFailed, before anything is
        changed, if a bridge has no room for the mirrors.
        """
        wanted = [
            *(Wanted(port.bridge, port.name) for port in ports),
            *(Wanted(uplink.bridge, uplink.name, uplink=True) for uplink in uplinks),
        ]
        before = {side: self._rows(side) for side in self._sides}
        tags = assign_tags(before.values(), wanted)
        every = {side: list(dict.fromkeys([*wanted, *rows.wanted])) for side, rows in before.items()}
        for side, rows in before.items():
            for each in wanted:
                rows.port(each)
            see_room(rows, every[side])
        try:
            self._make(old, wanted, tags)
        except HotswapError as error:
            if all(rows.carrier is None for rows in before.values()):
                self._close_after(error)
            raise

    def add(self, old: Side, ports: Iterable[VmPort]) -> None:
        """Carry ports that were added to both switches while wire mode is open; a wired switch is so for them too."""
        self.open(old, ports)

    def remove(self, ports: Iterable[VmPort]) -> None:
        """Carry these ports no longer. Their VMs must be gone, or on the switch that is not wired."""
        names = {(port.bridge, port.name) for port in ports}
        for side in self._sides:
            rows = self._rows(side)
            self._program(side, rows, [each for each in rows.carried() if (each.bridge, each.name) not in names])
            self._change(side, changes.remove(rows, names))

    def close(self, side: Side) -> None:
        """Remove everything of ours from a switch, whatever state it is in. Its database and its flows are then as they
        were before. VMs must all be on the switch that is not wired."""
        self._change(side, changes.remove(self._rows(side)))
        for name in self._others(self._rows(side)):
            flows = self._openflow(side, name)
            if any(flows.dump_cookie(cookie) for cookie in COOKIES):
                flows.bundle([line for cookie in COOKIES for line in replacing(cookie, [])])

    def _close_after(self, error: HotswapError) -> None:
        for side in self._sides:
            try:
                self.close(side)
            except HotswapError as second:
                error.add_note(f"and wire mode could not be removed from instance {side}: {second.message}")

    # -- modes ---------------------------------------------------------------------------------------------------

    def wire(self, side: Side, mode: Mode = Mode.HELD) -> None:
        """Have the other switch's pipeline process what this one receives (``Mode``). Raises SwitchError if the other
        switch is wired itself, because frames would circulate between the two."""
        if mode.wired and (wired := self._wired(side.other)):
            raise SwitchError(
                f"instance {side.other} is wired ({wired}), so instance {side} cannot be",
                hint=f"cut instance {side.other} first",
            )
        rows = self._rows(side)
        self._change(side, changes.intend(rows, mode), settle=False)
        carried = rows.carried()
        self._on_each(side, rows, lambda name: replacing(WIRE, wire_flows(_of(name, carried), mode)))

    def cut(self, side: Side) -> None:
        """Have the switch's own pipeline process what it receives from now on. This needs nothing of the other switch,
        which may be dead. ``wire`` undoes it."""
        rows = self._rows(side)
        if rows.carrier is not None:
            self._change(side, changes.intend(rows, Mode.OWN), settle=False)
        self._on_each(side, rows, lambda _name: replacing(WIRE, []))

    # -- looking, and repairing ----------------------------------------------------------------------------------

    def state(self, side: Side) -> WireState:
        """What the switch has, compared with what its rows ask for."""
        rows = self._rows(side)
        if rows.carrier is None:
            stray = [flow.line for name in self._others(rows) for flow in self._flows(side, name)]
            return WireState(open=False, surplus=tuple(stray))
        carried, mode = rows.carried(), rows.carrier.intended
        wanted = {(rows.carrier.name, flow) for flow in carrier_flows(carried)}
        wanted |= {(name, flow) for name in rows.bridges for flow in _flows_of(name, carried, mode)}
        found = {(name, flow) for name in self._bridges(rows) for flow in self._flows(side, name)}
        lost = {(each.bridge, each.name) for each in rows.wanted} - {(each.bridge, each.name) for each in carried}
        missing = [*(f"port {name} of bridge {bridge}" for bridge, name in sorted(lost)), *_words(wanted - found)]
        if changes.make_mirrors(rows):
            missing.append("mirrors")
        return WireState(True, tuple(carried), mode, tuple(missing), tuple(_words(found - wanted)))

    def repair(self, side: Side) -> None:
        """Bring back what others have removed: flows after a controller has cleared a table, the mirror of a port that
        was made again, the VLAN of a port that was given another one."""
        rows = self._rows(side)
        if rows.carrier is None:
            return
        there = [each for each in rows.wanted if each.name in rows.bridges[each.bridge].ports]
        self._change(side, changes.make_ports(rows, rows.carrier.name, there, rows.tags))
        rows = self._rows(side)
        self._program(side, rows, rows.carried())
        self._change(side, changes.make_mirrors(rows))
        self._spare_floods(side, there)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _make(self, old: Side, wanted: Sequence[Wanted], tags: Mapping[tuple[str, str], int]) -> None:
        order = (old, old.other)
        for side in order:
            rows = self._rows(side)
            self._change(side, changes.make_ports(rows, f"{CARRIER}-{side}", wanted, tags))
            self._spare_floods(side, wanted)
        self._join(old)
        # A copy is delivered where it arrives, so there are flows everywhere before there is a mirror anywhere.
        for side in order:
            rows = self._rows(side)
            self._program(side, rows, rows.carried())
        for side in order:
            self._change(side, changes.make_mirrors(self._rows(side)))

    def _spare_floods(self, side: Side, wanted: Collection[Wanted]) -> None:
        for port in self._rows(side).carried():
            if Wanted(port.bridge, port.name, port.uplink) in wanted:
                self._openflow(side, port.bridge).keep_from_floods(port.patch)

    def _program(self, side: Side, rows: Rows, carried: Sequence[Carried]) -> None:
        """Give the switch's bridges the flows for these ports, the mode of which the rows speak included."""
        if rows.carrier is None:
            return
        mode = rows.carrier.intended
        self._openflow(side, rows.carrier.name).bundle(carrier_lines(carried))

        def lines(name: str) -> list[str]:
            ports = _of(name, carried)
            return [*replacing(CARRY, carry_flows(ports)), *replacing(WIRE, wire_flows(ports, mode))]

        self._on_each(side, rows, lines)

    def _join(self, old: Side) -> None:
        """Bring the memif up. A client connects only when its port is made (DPDK drivers/net/memif, memif_dev_start),
        and a client whose server is made again never reconnects. So unless the link is up, both ends are made again,
        the server's first."""
        new = old.other
        rows = {side: self._rows(side) for side in self._sides}
        longest = max(mtu(each, each.wanted) for each in rows.values()) + TAGS
        links = [each.link for each in rows.values() if each.link is not None and each.link.ofports]
        if len(links) == len(rows) and self._connected():
            if longest > (shortest := min(link.mtu for link in links)):
                raise PrecheckFailed(
                    f"the link of wire mode was made for an MTU of {shortest}, and {longest} is needed",
                    hint="move the VM's port after the upgrade, or close wire mode and begin again",
                )
            return
        for side, each in rows.items():
            self._change(side, changes.drop_link(each))
        self._socket.unlink(missing_ok=True)  # a killed server leaves it, and the next one would refuse it
        for side in (old, new):
            queues = pmd_count(self._sides[side.other].vswitchd_ctl) or 1
            spec = memif.memif_spec(
                LINK, LINK_PORT, self._socket, device="wire", server=side is old, mtu=longest, queues=queues + 1
            )
            self._change(side, changes.make_link(self._rows(side), spec.options, longest), [LINK])
        if not wait_until(self._connected, _LINK_S, self._system):
            raise SwitchError(
                f"the link between the instances at {self._socket} does not come up within {_LINK_S:g} s",
                hint="the logs of both ovs-vswitchd say more (net_memif)",
            )

    def _connected(self) -> bool:
        """Whether either switch is a client that is connected to the other's socket."""
        pids = (self._system.read_pid(paths.vswitchd_pid) for paths in self._sides.values())
        return any(pid is not None and memif.connected(pid, self._socket) for pid in pids)

    def _on_each(self, side: Side, rows: Rows, lines: Callable[[str], list[str]]) -> None:
        """Send each bridge of others its bundle, all at once."""
        names = self._bridges(rows, carrier=False)
        with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
            acts = [pool.submit(self._openflow(side, name).bundle, lines(name)) for name in names]
        for act in acts:
            act.result()

    def _bridges(self, rows: Rows, *, carrier: bool = True) -> list[str]:
        """The bridges on which there may be flows of ours."""
        found = {bridge.name for bridge in rows.bridges.values() if bridge.patches and not bridge.ours}
        return sorted(found | ({rows.carrier.name} if carrier and rows.carrier is not None else set()))

    @staticmethod
    def _others(rows: Rows) -> list[str]:
        return [name for name, bridge in rows.bridges.items() if bridge.userspace and not bridge.ours]

    def _wired(self, side: Side) -> str:
        """What shows that a switch is wired, or is to be; empty if nothing does."""
        rows = self._rows(side)
        if rows.carrier is not None and rows.carrier.intended.wired:
            return f"by intention: {rows.carrier.intended}"
        names = self._bridges(rows, carrier=False)
        return ", ".join(f"bridge {name}" for name in names if self._openflow(side, name).dump_cookie(WIRE))

    def _flows(self, side: Side, bridge: str) -> list[Flow]:
        flows = self._openflow(side, bridge)
        return [flow for cookie in COOKIES for flow in parse_flows(flows.dump_cookie(cookie))]

    def _openflow(self, side: Side, bridge: str) -> OpenFlow:
        return OpenFlow(self._system, self._sides[side].mgmt(bridge), versions=WITH_BUNDLES)

    def _rows(self, side: Side) -> Rows:
        return Rows.of(self._transact(side, READ))

    def _transact(self, side: Side, operations: Operations) -> Any:
        return transact(self._sides[side].db_socket, operations, timeout=_ANSWER_S)

    def _change(self, side: Side, operations: Operations, ports: Collection[str] = (), *, settle: bool = True) -> None:
        """Carry out a transaction, and wait until the switch has followed it and has made the ports that it adds."""
        if not operations:
            return
        paths = self._sides[side]
        self._transact(side, operations)
        if settle:
            made = {each["row"]["name"] for each in operations if each["table"] == "Port" and each["op"] == "insert"}
            with SwitchDb(paths.db_socket) as database:
                database.wait_ports([*ports, *(name for name in made if not name.startswith(CARRIER))], self._ready_s)


def _of(bridge: str, carried: Iterable[Carried]) -> list[Carried]:
    return [port for port in carried if port.bridge == bridge]


def _flows_of(bridge: str, carried: Iterable[Carried], mode: Mode) -> list[Flow]:
    ports = _of(bridge, carried)
    return [*carry_flows(ports), *wire_flows(ports, mode)]


def _words(flows: Iterable[tuple[str, Flow]]) -> list[str]:
    return [f"bridge {bridge}: {flow.line}" for bridge, flow in sorted(flows)]
