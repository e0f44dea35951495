"""The network of a stock host itself: ports of its switch with addresses of the host, which the outside host pings.

``br-int`` has an address on the bridge's own port, ``int0`` is a further internal port, and ``md0`` is one end of a
veth whose other end is in the network namespace "metadata", as that of an agent is.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from tests.support.stock_host import BRIDGE, StockHost
from tests.support.stock_network import FABRIC, OUTSIDE
from tests.support.stock_traffic import METERS

INTERNAL, VETH, AGENT = "int0", "md0", "metadata"
RATE = 100  # pings a second of each port
_NOW_S, _END_S = 1.5, 10.0  # a meter takes half a second to start
# Each in a network of its own, so that only its own port answers for it.
ADDRESSES = {BRIDGE: "10.201.0.1", INTERNAL: "10.202.0.1", VETH: "10.203.0.1"}
_ROUTE = "198.51.100.0/24"


def add_host_ports(host: StockHost) -> None:
    """Give the host the three ports, with addresses and a route."""
    host.vsctl("add-port", BRIDGE, INTERNAL, "--", "set", "interface", INTERNAL, "type=internal")
    lines = [
        "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore",
        f"ip netns add {AGENT}",
        f"ip link add {VETH} type veth peer name agent netns {AGENT}",
        f"ip link set {VETH} up",
        f"ip -n {AGENT} address add {ADDRESSES[VETH]}/24 dev agent",
        f"ip -n {AGENT} link set agent up",
        f"ip netns exec {AGENT} ethtool -K agent tx off",
    ]
    for name in (BRIDGE, INTERNAL):
        lines += [f"ip link set {name} up", f"ip address add {ADDRESSES[name]}/24 dev {name}"]
    lines.append(f"ip route add {_ROUTE} via {_beside(ADDRESSES[INTERNAL])} dev {INTERNAL}")
    lines += [f"ip -n {OUTSIDE} address add {_beside(each)}/24 dev {FABRIC}" for each in ADDRESSES.values()]
    host.run(["sh", "-ec", "\n".join(lines)])
    host.vsctl("add-port", BRIDGE, VETH)


def network(host: StockHost) -> dict[str, Any]:
    """The addresses and routes of the host, by what an operator knows them by."""
    addresses = json.loads(host.run(["ip", "-json", "-4", "address", "show", "up"]))
    routes = json.loads(host.run(["ip", "-json", "-4", "route", "show", "table", "all"]))
    return {
        "addresses": sorted((link["ifname"], each["local"], each["prefixlen"])
                            for link in addresses for each in link["addr_info"] if each["label"] in ADDRESSES),
        "routes": sorted((each["dst"], each.get("dev", ""), each.get("gateway", ""), each.get("type", ""))
                         for each in routes if each.get("dev") in ADDRESSES),
    }  # fmt: skip


class HostPings:
    """What became of the pings of each port, which is known after the block of ``host_pings``."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    @property
    def lost(self) -> dict[str, int]:
        return {name: int(each["lost"]) for name, each in self.found.items()}


@contextlib.contextmanager
def host_pings(host: StockHost) -> Iterator[HostPings]:
    """Ping each port from the outside host for as long as the block takes."""
    argv = ["python3", str(METERS), "flood", str(RATE)]
    meters = {name: host.space.popen([*argv, address], netns=OUTSIDE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
              for name, address in ADDRESSES.items()}  # fmt: skip
    pings = HostPings()
    try:
        yield pings
    finally:
        for meter in meters.values():
            assert meter.stdin is not None
            meter.stdin.close()
            meter.stdin = None  # or ``communicate`` would flush it
        for name, meter in meters.items():
            told, _ = meter.communicate(timeout=_END_S)
            if told:
                pings.found[name] = json.loads(told)
        print(pings.found)


def answered(host: StockHost) -> None:
    """Every ping of each port is answered now."""
    with host_pings(host) as pings:
        time.sleep(_NOW_S)
    assert all(each["sent"] for each in pings.found.values()), pings.found
    assert pings.lost == dict.fromkeys(ADDRESSES, 0)


def _beside(address: str) -> str:
    """The outside host's address in the network of ``address``."""
    return f"{address.rpartition('.')[0]}.254"
