"""States that a switch finds out with its neighbours: spanning trees, BFD, CFM, LACP, bonds, multicast groups.

They cannot be given to another switch; it speaks with the neighbours itself. What is compared here tells when it has
come to the same result. Until then a port may not forward, a bond may have no member, a group may have no receiver.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

States = Mapping[str, str]
"""States by name, in words."""

_NAME = re.compile(r"^---- (?P<name>.+) ----$")
_TREE_PORT = re.compile(r"^  (?P<port>\S+)\s+(?P<role>\S+)\s+(?P<state>\S+)\s+\d+\s+\d+\.\d+$")
_LACP_MEMBER = re.compile(r"^(?:member|slave): (?P<name>\S+): (?P<state>.+)$")
_BOND_MEMBER = re.compile(r"^(?:member|slave) (?P<name>\S+): (?P<state>\S+)$")
_GROUP = re.compile(r"^\s*(?P<port>\d+|LOCAL)\s+(?P<vlan>\d+)\s+(?:(?:IGMP|MLD)\S*\s+|\s*)(?P<group>\S+)\s+\d+$")


def tree_ports(kind: str) -> Callable[[str], States]:
    """A reader of ``stp/show`` or ``rstp/show`` (lib/stp.c, stp_print_details; lib/rstp.c, rstp_print_details), which
    cut names of ports after ten characters."""

    def read(text: str) -> States:
        return {f"{kind} of {bridge}, port {row['port']}": row["state"].lower()
                for bridge, line in _sections(text) if (row := _TREE_PORT.match(line))}  # fmt: skip

    return read


def bfd_sessions(text: str) -> States:
    """From ``bfd/show`` (lib/bfd.c, bfd_put_details)."""
    return _values("BFD of", text, "  Local Session State: ")


def cfm_points(text: str) -> States:
    """From ``cfm/show`` (lib/cfm.c, cfm_print_details)."""
    return _values("CFM of", text, "  fault: ")


def lacp_members(text: str) -> States:
    """From ``lacp/show`` (lib/lacp.c, lacp_print_details)."""
    return {f"LACP of {bond}, member {row['name']}": row["state"].strip()
            for bond, line in _sections(text) if (row := _LACP_MEMBER.match(line))}  # fmt: skip


def bond_members(text: str) -> States:
    """From ``bond/show`` (ofproto/bond.c, bond_print_details)."""
    found, member = {}, ""
    for bond, line in _sections(text):
        if row := _BOND_MEMBER.match(line):
            member = row["name"]
            found[f"bond {bond}, member {member}"] = row["state"]
        elif line.strip() in ("active member", "active slave"):
            found[f"bond {bond}, active member"] = member
    return found


def groups(bridge: str, text: str) -> States:
    """From ``mdb/show BRIDGE`` (ofproto/ofproto-dpif.c, ofproto_unixctl_mcast_snooping_show): who receives a multicast
    group, and behind which port a router is (``querier``)."""
    return {
        f"multicast group {row['group']} of VLAN {row['vlan']} on {bridge}, port {row['port']}": "present"
        for row in filter(None, map(_GROUP.match, text.splitlines()))
    }


READERS: Mapping[str, Callable[[str], States]] = {
    "stp/show": tree_ports("STP"),
    "rstp/show": tree_ports("RSTP"),
    "bfd/show": bfd_sessions,
    "cfm/show": cfm_points,
    "lacp/show": lacp_members,
    "bond/show": bond_members,
}


def different(active: States, new: States) -> Iterator[str]:
    """Yield a line for each state of the active side that the new side does not have."""
    for name, state in active.items():
        own = new.get(name)
        if own is None:
            yield f"{name}: {state}, and not there on the new side"
        elif own != state:
            yield f"{name}: {state}, and {own} on the new side"


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield each line with the name of the section that it is in."""
    name = ""
    for line in text.splitlines():
        if found := _NAME.match(line):
            name = found["name"]
        else:
            yield name, line


def _values(prefix: str, text: str, start: str) -> States:
    return {f"{prefix} {name}": line.removeprefix(start).strip()
            for name, line in _sections(text) if line.startswith(start)}  # fmt: skip
