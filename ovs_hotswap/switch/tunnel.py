"""What tunnels of an instance need besides flows: the VTEP's address, and routes and neighbours in user space.

Open vSwitch looks up a tunnel's next hop in its own tables (lib/ovs-router.c, lib/tnl-neigh-cache.c), not in the
kernel's. Neighbours age out after 15 minutes without use, and have to be set again before that.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from ovs_hotswap.switch.netns import Namespaces
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.waiting import wait_until

ANCHORS = ("127.255.255.254/32", "100::1/128")
"""Routes to where no tunnel goes (RFC 1122, 3.2.1.3; RFC 6666), for VTEPs of IPv4 and IPv6. One of them stays on an
instance from which a route was removed."""
_LEARNT_S = 3.0
_ROUTE = re.compile(
    r"^(?P<kind>User|Cached): (?P<destination>\S+)(?: MARK \d+)? dev (?P<device>\S+)"
    r"(?: GW (?P<gateway>\S+))?(?: SRC (?P<source>\S+))?(?P<local> local)?"
)
_NEIGHBOUR = re.compile(r"^(?P<address>\S+)\s+(?P<mac>[0-9a-f]{2}(?::[0-9a-f]{2}){5})\s+(?P<device>\S+)")


@dataclass(frozen=True, slots=True)
class TunnelRoute:
    """A route of Open vSwitch. ``user``: it was added by command, not learnt from the kernel."""

    destination: str
    device: str
    gateway: str | None
    source: str | None
    user: bool


@dataclass(frozen=True, slots=True)
class TunnelNeighbour:
    address: str
    mac: str
    device: str


def parse_routes(text: str) -> tuple[TunnelRoute, ...]:
    """Return the routes from ``ovs/route/show`` (lib/ovs-router.c, ovs_router_show)."""
    found = (_ROUTE.match(line) for line in text.splitlines())
    return tuple(
        TunnelRoute(row["destination"], row["device"], row["gateway"], row["source"], row["kind"] == "User")
        for row in found
        if row
    )


def parse_neighbours(text: str) -> tuple[TunnelNeighbour, ...]:
    """Return the entries from ``tnl/neigh/show`` (lib/tnl-neigh-cache.c, tnl_neigh_cache_show)."""
    found = (_NEIGHBOUR.match(line) for line in text.splitlines())
    return tuple(TunnelNeighbour(row["address"], row["mac"], row["device"]) for row in found if row)


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """What tunnels need: ``address`` of the VTEP with its prefix, ``routes`` from destination to gateway,
    ``neighbours`` from address to MAC, and ``links``, the addresses beside the VTEP's with their prefixes.

    What was programmed is noted in the instance's database, so that entries which others added are never removed.
    """

    address: str
    routes: Mapping[str, str] = field(default_factory=dict)
    neighbours: Mapping[str, str] = field(default_factory=dict)
    links: tuple[str, ...] = ()

    def note(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def of_note(text: str | None) -> TunnelConfig | None:
        """Return what was programmed according to a note, or ``None`` if nothing is known."""
        try:
            found = json.loads(text or "")
            known = str(found["address"]), dict(found["routes"]), dict(found["neighbours"])
            return TunnelConfig(*known, tuple(map(str, found.get("links", ()))))  # an earlier version had no links
        except (ValueError, KeyError, TypeError):
            return None

    def lines(self) -> list[str]:
        return [
            f"vtep {self.address}",
            *(f"link {address}" for address in self.links),
            *(f"route {destination} via {gateway}" for destination, gateway in sorted(self.routes.items())),
            *(f"neighbour {address} at {mac}" for address, mac in sorted(self.neighbours.items())),
        ]


def tunnel_diff(programmed: TunnelConfig | None, wanted: TunnelConfig) -> list[str]:
    """Return the differences as ``overlay diff`` prints them; none if it is not known what was programmed."""
    if programmed is None:
        return []
    before, after = programmed.lines(), wanted.lines()
    return [f"-{line}" for line in before if line not in after] + [f"+{line}" for line in after if line not in before]


class Tunnels:
    """The tunnel tables of a running instance. Methods raise SwitchError, and NoAnswer after ``timeout`` seconds."""

    def __init__(
        self, paths: InstancePaths, bridge: str, *, namespaces: Namespaces | None = None, timeout: float = 5.0
    ) -> None:
        self._ctl: Path = paths.vswitchd_ctl
        self._netns = paths.netns
        self._bridge = bridge
        self._namespaces = namespaces or Namespaces()
        self._timeout = timeout

    def put(self, wanted: TunnelConfig, before: TunnelConfig | None) -> None:
        """Program ``wanted``, and remove what is in ``before`` and not in ``wanted``.

        A neighbour stays until it ages out, because Open vSwitch can only remove all neighbours at once. No route leads
        to it any longer.
        """
        present = (wanted.address, *wanted.links)
        if before is not None:
            # First: a new address in the same network would be secondary, and be removed with it (ip-address(8)).
            for gone in (each for each in (before.address, *before.links) if each not in present):
                address, _, prefix = gone.partition("/")
                self._namespaces.remove_address(self._bridge, address, int(prefix), self._netns)
        for each in present:
            address, _, prefix = each.partition("/")
            self.set_address(address, int(prefix))
            self._await_address(address)
        for destination, gateway in wanted.routes.items():
            self.add_route(destination, gateway)
        for host, mac in wanted.neighbours.items():
            self.set_neighbour(host, mac)
        if before is not None:
            self._remove_routes(before.routes.keys() - wanted.routes.keys(), wanted.address.partition("/")[0])

    def _remove_routes(self, destinations: Iterable[str], own: str) -> None:
        """Remove routes, those that exist. With any route over a device, Open vSwitch forgets that it takes tunnel
        packets at the addresses of the device (lib/ovs-router.c, rt_entry_delete__), so none would come in until a
        route over it is added: that is one of ANCHORS, by way of the VTEP's ``own`` address."""
        for destination in destinations:
            if self.remove_route(destination):
                self.add_route(ANCHORS[":" in own], own)

    def _await_address(self, address: str) -> None:
        """Wait until Open vSwitch has learnt the address from the kernel: it adds no route before that."""
        own = f"{address}/{ip_address(address).max_prefixlen}"
        wait_until(lambda: any(route.destination == own for route in self.routes()), _LEARNT_S)

    def remove_route(self, destination: str) -> bool:
        """Remove a route, if it exists; return whether it did."""
        there = any(route.user and route.destination == destination for route in self.routes())
        if there:
            self._appctl("ovs/route/del", destination)
        return there

    def set_address(self, address: str, prefix: int) -> None:
        """Give the VTEP's address to the bridge's device. The bridge must be up (``SwitchDb.wait_ports``)."""
        self._namespaces.put_address(self._bridge, address, prefix, self._netns)

    def add_route(self, destination: str, gateway: str | None = None) -> None:
        """Route ``destination`` (``net/prefix``) over the bridge, whose device must have an address already. A route to
        the same destination is replaced at once (lib/ovs-router.c, ovs_router_insert__)."""
        self._appctl("ovs/route/add", destination, self._bridge, *([gateway] if gateway else []))

    def set_neighbour(self, address: str, mac: str) -> None:
        """Set, or refresh, the MAC address of a next hop on the bridge."""
        self._appctl("tnl/neigh/set", self._bridge, address, mac)

    def routes(self) -> tuple[TunnelRoute, ...]:
        return parse_routes(self._appctl("ovs/route/show"))

    def neighbours(self) -> tuple[TunnelNeighbour, ...]:
        return parse_neighbours(self._appctl("tnl/neigh/show"))

    def _appctl(self, command: str, *args: str) -> str:
        return appctl(self._ctl, command, *args, timeout=self._timeout)
