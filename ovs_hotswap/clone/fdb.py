"""The forwarding databases of the bridges: which MAC address is behind which port.

A bridge learns from each frame that the action NORMAL handles. So a packet-out gives a bridge of the new side a frame
from each address, as if it had come in at the address's port. Nothing is emitted, because the frame goes to a
*destination* that the bridge has at the same port (ofproto/ofproto-dpif-xlate.c, xlate_normal: "learned port is input
port, dropping"). It is added by command before, and deleted afterwards. Without it the frame would be flooded, even one
to its own sender: what a packet-out teaches takes effect only after its actions were chosen (ofproto/ofproto-dpif.c,
packet_xlate). A mirror of the bridge that selects what comes in at the port gets the frame.

What was learnt expires like everything else. What was added with ``fdb/add`` is added so again, and does not expire.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from ovs_hotswap.clone.applied import Applied, ask, attempt
from ovs_hotswap.clone.bridges import LOCAL, BridgePort, Bridges, read_bridges
from ovs_hotswap.clone.runtime_settings import Command, summary
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System

VERSIONS = "OpenFlow13,OpenFlow14,OpenFlow15"  # those that have bundles; a bridge may accept only some
_ROW = re.compile(r"^\s*(?P<port>\d+|LOCAL)\s+(?P<vlan>\d+)\s+(?P<mac>[0-9a-f]{2}(?::[0-9a-f]{2}){5})\s+(?P<age>\S+)$")
_EXPERIMENT = bytes.fromhex("88b5")  # a local experimental ethertype (IEEE 802, 9.2.3)
_DESTINATION = 0x066F76730000  # a locally administered address; destinations are this one and those after it
_UNKNOWN = Bridges({})
_SHORTEST = 60  # bytes of an Ethernet frame without its checksum (IEEE 802.3)


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """``port`` is the name of a port, which may be a bond. ``static``: added by command, does not expire. ``age`` is in
    seconds since the address was seen."""

    bridge: str
    port: str
    vlan: int
    mac: str
    static: bool = False
    age: int | None = field(default=None, compare=False)

    @property
    def key(self) -> tuple[str, int, str]:
        return self.bridge, self.vlan, self.mac

    def __str__(self) -> str:
        kind = " (static)" if self.static else ""
        return f"{self.mac} of VLAN {self.vlan} at {self.port} of {self.bridge}{kind}"


Place = tuple[str, str, int]
"""A bridge, a port of it, and a VLAN."""


def parse_fdb(bridge: str, text: str, bridges: Bridges) -> Iterator[FdbEntry]:
    """Yield the entries from ``fdb/show BRIDGE`` (ofproto/ofproto-dpif.c, ofproto_unixctl_fdb_show), except those of a
    port that has gone."""
    for row in filter(None, map(_ROW.match, text.splitlines())):
        port = bridges.port_of(bridge, LOCAL if row["port"] == "LOCAL" else int(row["port"]))
        if port is not None:
            static = row["age"] == "static"
            age = None if static else int(row["age"])
            yield FdbEntry(bridge, port.name, int(row["vlan"]), row["mac"], static, age)


def read(paths: InstancePaths, bridges: Bridges | None = None, *, timeout: float = 10.0) -> tuple[FdbEntry, ...]:
    """Return the entries of all bridges. Raises SwitchError, and NoAnswer after ``timeout`` seconds."""
    known = bridges or read_bridges(paths.db_socket, timeout=timeout)
    return tuple(
        entry
        for bridge in known.ports
        for entry in parse_fdb(bridge, ask(paths.vswitchd_ctl, ("fdb/show", bridge), timeout=timeout), known)
    )


def message(entry: FdbEntry, port: BridgePort, destination: str) -> str:
    """Return the packet-out, as ovs-ofctl(8) writes it, from which a bridge learns ``entry`` at ``port``.

    ``destination`` is an address that the bridge has at ``port`` in the same VLAN.
    """
    return _packet_out(_mac(destination), entry, port, _EXPERIMENT)


def _packet_out(destination: bytes, entry: FdbEntry, port: BridgePort, rest: bytes) -> str:
    tag = port.carries(entry.vlan)
    tagged = b"" if tag is None else b"\x81\x00" + tag.to_bytes(2, "big")
    frame = destination + _mac(entry.mac) + tagged + rest
    _, ofport = port.interfaces[0]
    in_port = "LOCAL" if ofport == LOCAL else ofport
    return f"packet-out in_port={in_port},packet={frame.ljust(_SHORTEST, bytes(1)).hex()},actions=NORMAL"


def announcement(entry: FdbEntry, port: BridgePort) -> str:
    """Return the packet-out by which the network learns that ``entry`` is behind this switch: a request of reverse ARP
    (RFC 903) to all, as QEMU sends it after a migration (net/announce.c, announce_self_create)."""
    mac, nobody, everybody = _mac(entry.mac), bytes(4), b"\xff" * 6
    request = bytes.fromhex("0001080006040003") + mac + nobody + mac + nobody
    return _packet_out(everybody, entry, port, bytes.fromhex("8035") + request)


def destinations(entries: Iterable[FdbEntry], known: Iterable[FdbEntry]) -> dict[Place, FdbEntry]:
    """Return a destination for each place where one of ``entries`` is: an address that is in neither list."""
    entries = list(entries)
    used = {entry.mac for entry in (*entries, *known)}
    free = (mac for number in count() if (mac := (_DESTINATION + number).to_bytes(6, "big").hex(":")) not in used)
    places = dict.fromkeys((entry.bridge, entry.port, entry.vlan) for entry in entries)
    return {place: FdbEntry(*place, mac, static=True) for place, mac in zip(places, free, strict=False)}


def wanted(
    active: Iterable[FdbEntry], new: Iterable[FdbEntry], *, cut: bool, bridges: Bridges = _UNKNOWN
) -> list[FdbEntry]:
    """Return the active side's entries that the new side is to be given. ``cut``: the new side has the traffic, and
    what it knows about an address is newer, unless it has seen a frame that the network has sent back. Such a frame of
    a VM or of the host leaves by the active side, comes to the new side's port to the network, and is learnt there."""

    def outward(entry: FdbEntry) -> int:
        port = bridges.port(entry.bridge, entry.port)
        return 0 if port is None else port.outward

    own = {entry.key: entry for entry in new}
    return [
        entry
        for entry in active
        if (there := own.get(entry.key)) != entry
        and not (cut and there is not None and outward(there) <= outward(entry))
    ]


def apply(
    system: System, paths: InstancePaths, active: Iterable[FdbEntry], *, cut: bool, timeout: float = 10.0
) -> Applied:
    """Give the new side's bridges the active side's entries. Raises SwitchError; then bridges may have learnt entries,
    which are right and expire."""
    ctl, bridges = paths.vswitchd_ctl, read_bridges(paths.db_socket, timeout=timeout)
    before = read(paths, bridges, timeout=timeout)
    due = wanted(active, before, cut=cut, bridges=bridges)
    ports = {entry: port for entry in due if (port := bridges.port(entry.bridge, entry.port)) and port.interfaces}
    _teach(system, paths, {entry: port for entry, port in ports.items() if not entry.static}, before, timeout)
    static = [_add(entry, port) for entry, port in ports.items() if entry.static]
    failed = tuple(attempt(ctl, static, timeout=timeout))
    now = frozenset(read(paths, bridges, timeout=timeout))
    taken = {entry: port for entry, port in ports.items() if entry in now}
    # A port that spanning tree or LACP keeps from forwarding learns nothing (xlate_normal, is_admissible).
    why = {entry: "the new side did not learn it; does its port forward?" for entry in ports if entry not in now}
    why |= {entry: "the new side has no such port" for entry in due if entry not in ports}
    return Applied(
        (f"addresses in forwarding databases: {len(taken)}",) if taken else (),
        summary(f"{entry}: {text}" for entry, text in why.items()) + failed,
        tuple(command for entry, port in taken.items() for command in (_add(entry, port), _delete(entry))),
    )


def announce(
    system: System, paths: InstancePaths, uplinks: Collection[tuple[str, str]], *, timeout: float = 10.0
) -> None:
    """Have the network learn that the addresses of the bridges are behind this switch, which it otherwise notices only
    when each sends something. Raises SwitchError.

    ``uplinks``: the bridges and names of the ports to the network, whose addresses are not announced.
    """
    bridges, outside = read_bridges(paths.db_socket, timeout=timeout), {bridge for bridge, _ in uplinks}
    lines: dict[str, list[str]] = {}
    for entry in read(paths, bridges, timeout=timeout):
        port = bridges.port(entry.bridge, entry.port)
        if port is not None and entry.bridge in outside and (entry.bridge, entry.port) not in uplinks:
            lines.setdefault(entry.bridge, []).append(announcement(entry, port))
    for bridge, messages in lines.items():
        OpenFlow(system, paths.mgmt(bridge), timeout=timeout, versions=VERSIONS).bundle(messages)


def _teach(
    system: System,
    paths: InstancePaths,
    ports: Mapping[FdbEntry, BridgePort],
    known: Iterable[FdbEntry],
    timeout: float,
) -> None:
    """Have bridges learn entries. Where a destination cannot be added, nothing is sent. Raises SwitchError."""
    ctl = paths.vswitchd_ctl
    places = {(entry.bridge, entry.port, entry.vlan): port for entry, port in ports.items()}
    added: dict[Place, FdbEntry] = {}
    try:
        for place, destination in destinations(ports, known).items():
            added[place] = destination
            if list(attempt(ctl, [_add(destination, places[place])], timeout=timeout)):
                del added[place]
        lines: dict[str, list[str]] = {}
        for entry, port in ports.items():
            if found := added.get((entry.bridge, entry.port, entry.vlan)):
                lines.setdefault(entry.bridge, []).append(message(entry, port, found.mac))
        for bridge, messages in lines.items():
            OpenFlow(system, paths.mgmt(bridge), timeout=timeout, versions=VERSIONS).bundle(messages)
    finally:
        list(attempt(ctl, map(_delete, added.values()), timeout=timeout))


def differences(paths: InstancePaths, active: Iterable[FdbEntry], *, timeout: float = 10.0) -> tuple[str, ...]:
    """Return a line for each address that the new side does not know, or at another port. Raises SwitchError."""
    own: Mapping[tuple[str, int, str], FdbEntry] = {entry.key: entry for entry in read(paths, timeout=timeout)}
    found = []
    for entry in active:
        there = own.get(entry.key)
        if there is None:
            found.append(f"{entry}: the new side does not know it")
        elif there != entry:
            found.append(f"{entry}: the new side has it at {there.port}{' (static)' if there.static else ''}")
    return summary(found)


def _add(entry: FdbEntry, port: BridgePort) -> Command:
    """The command takes the name of an interface, not of a bond (ofproto_unixctl_fdb_add)."""
    return "fdb/add", entry.bridge, port.interfaces[0][0], str(entry.vlan), entry.mac


def _delete(entry: FdbEntry) -> Command:
    """Only what was added by command can be deleted alone. So the undo of a learnt entry adds it and deletes it."""
    return "fdb/del", entry.bridge, str(entry.vlan), entry.mac


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
