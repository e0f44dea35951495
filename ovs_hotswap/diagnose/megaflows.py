"""Reads the flows of the datapath, which say what became of packets that really came. This module is pure.

``dpctl/dump-flows`` prints a line for each flow (lib/dpctl.c, dpctl_dump_flows; lib/odp-util.c, odp_flow_format): the
fields that it matches, packets, the seconds since the last one, and what is done with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_IN_PORT = re.compile(r"\bin_port\((?P<port>[\w.-]+)\)")
_TUNNEL = re.compile(r"\btunnel\(tun_id=(?P<id>0x[0-9a-f]+),(?:ipv6_)?src=(?P<source>[^,)/]+)")
_ETHERNET = re.compile(r"\beth\((?:src=(?P<source>[0-9a-f:]{17})(?P<any>/[^,)]*)?,?)?(?:dst=(?P<to>[0-9a-f:/]+))?\)")
_INNER = re.compile(r"\bipv[46]\((?:src=(?P<source>[^,)/]+)(?:/[^,)]*)?,)?(?:dst=(?P<to>[^,)/]+)(?P<mask>/[^,)]*)?)?")
_PACKETS = re.compile(r"\bpackets:(?P<count>\d+)\b")
_USED = re.compile(r"\bused:(?P<seconds>[\d.]+)s\b")
_PUSH = re.compile(r"\btnl_push\(.*?\bipv[46]\(src=[^,]+,dst=(?P<address>[^,]+)")
_INNERMOST = re.compile(r"\([^()]*\)")
_SAMPLED = re.compile(r"\buserspace\(pid=\d+,(?:flow_sample|sFlow|ipfix)\([^()]*\)[^()]*\)")
_ZONE = re.compile(r"\bzone=(\d+)")
_MAC = re.compile(r"^(?:[0-9a-f]{2}:){5}[0-9a-f]{2}$")


@dataclass(frozen=True, slots=True)
class MegaFlow:
    """A flow of the datapath. ``port``: its number there, or its name. ``vni`` and ``vtep``: of a packet that came
    through a tunnel, after it was taken out. ``source``, ``to``: MACs; ``None`` if the flow does not match the whole of
    it. ``address``: the IP address to which the packets go. ``used``: seconds since the last packet; ``None`` if none
    came. ``actions``: what is done with the packets."""

    port: str
    vni: int | None
    vtep: str | None
    source: str | None
    to: str | None
    packets: int
    used: float | None
    actions: str
    address: str | None = None

    @property
    def drops(self) -> bool:
        """Whether packets go nowhere, other than into a sample of the traffic (a flow log: lib/odp-util.c,
        format_odp_userspace_action)."""
        words = _flat(_SAMPLED.sub("sample", self.actions))
        return all(word in ("drop", "sample", "") for word in words)

    def fresh(self, seconds: float) -> bool:
        """Whether a packet came in the last ``seconds``."""
        return self.used is not None and self.used <= seconds


def parse(text: str) -> tuple[MegaFlow, ...]:
    """Return the flows. What is not one is left out, such as the headings of threads."""
    return tuple(found for line in text.splitlines() if (found := _flow(line)) is not None)


def _flow(line: str) -> MegaFlow | None:
    match, separator, actions = line.partition(", actions:")
    port, packets = _IN_PORT.search(match), _PACKETS.search(match)
    if not separator or port is None or packets is None:
        return None
    tunnel, ethernet, used, inner = (each.search(match) for each in (_TUNNEL, _ETHERNET, _USED, _INNER))
    return MegaFlow(
        port["port"],
        int(tunnel["id"], 16) if tunnel else None,
        tunnel["source"] if tunnel else None,
        ethernet["source"] if ethernet and ethernet["any"] is None else None,
        _whole(ethernet["to"]) if ethernet else None,
        int(packets["count"]),
        float(used["seconds"]) if used else None,
        actions.strip(),
        inner["to"] if inner and inner["mask"] is None else None,
    )  # fmt: skip


def _whole(mac: str | None) -> str | None:
    return mac if mac is not None and _MAC.match(mac) else None


def outputs(actions: str) -> list[str]:
    """Return to where packets go: the numbers of ports, and the address of each tunnel's other end as ``-> address``.
    The list is empty if they are dropped, or go to another lookup."""
    found = [f"-> {tunnel['address']}" for tunnel in _PUSH.finditer(actions)]
    words = _flat(actions)
    own = [word for number, word in enumerate(words) if word.isdecimal() and words[number - 1 : number] != ["tnl_push"]]
    return [*own, *found]


def _flat(actions: str) -> list[str]:
    """The names of the actions, and the numbers of ports, without what is in brackets."""
    flat, before = actions, None
    while flat != before:
        before, flat = flat, _INNERMOST.sub("", flat)
    return [word.strip() for word in flat.split(",")]


def zones(actions: str) -> set[int]:
    """Return the zones of connection tracking that packets pass."""
    return {int(zone) for zone in _ZONE.findall(actions)}


def senders(flows: Iterable[MegaFlow]) -> dict[str, str]:
    """Return the MAC from which packets come by each port from which they come from one MAC alone."""
    found = dict[str, set[str]]()
    for each in flows:
        if each.vtep is None and each.source is not None:
            found.setdefault(each.port, set()).add(each.source)
    return {port: macs.pop() for port, macs in found.items() if len(macs) == 1}


def mac_of(flows: Iterable[MegaFlow], address: str) -> str | None:
    """Return the MAC to which packets for an IP address are sent, if the flows say it, and with one voice."""
    found = {each.to for each in flows if each.address == address and each.to is not None}
    return found.pop() if len(found) == 1 else None
