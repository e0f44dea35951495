"""The wires of a stock host: its two NICs, and the outside host behind a switch of the kernel.

All devices are pairs of veths without offloads, as in ``ovs_hotswap.lab.network``.
"""

from __future__ import annotations

from pyroute2 import IPRoute

from ovs_hotswap.lab.layout import OVERLAY_PREFIX, REMOTE_INNER
from ovs_hotswap.lab.tags import tag
from tests.support.stock_space import Space

OUTSIDE, FABRIC = "outside", "fabric"
VTEP, REMOTE_VTEP = "172.31.0.1", "172.31.0.2"
_QUIET = "tx off rx off gso off gro off tso off"


def make(space: Space, vlan: int | None) -> None:
    """Make the devices ``up-a`` and ``up-b``, and the network namespace ``OUTSIDE``. ``vlan``: the outside host is in
    this VLAN, with tagged frames on both NICs."""
    inside = f"ip netns exec {OUTSIDE}"
    lines = [f"ip netns add {OUTSIDE}", f"ip -n {OUTSIDE} link add {FABRIC} type bridge"]
    for side in "ab":
        lines += [
            f"ip link add up-{side} type veth peer name net-{side} netns {OUTSIDE}",
            f"ethtool -K up-{side} {_QUIET}",
            f"{inside} ethtool -K net-{side} {_QUIET}",
            f"ip -n {OUTSIDE} link set net-{side} master {FABRIC} up",
            f"ip link set up-{side} up promisc on",
        ]
    lines += [
        f"{inside} sh -c 'echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6'",
        f"ip -n {OUTSIDE} link set lo up",
        f"ip -n {OUTSIDE} link set {FABRIC} up",
        f"{inside} ethtool -K {FABRIC} tx off",
        f"ip -n {OUTSIDE} address add {REMOTE_INNER}/{OVERLAY_PREFIX} dev {FABRIC}",
        f"ip -n {OUTSIDE} address add {REMOTE_VTEP}/24 dev {FABRIC}",
    ]
    space.run(["sh", "-ec", "\n".join(lines)])
    if vlan is not None:
        with IPRoute(netns=f"/proc/{space.pid}/root/run/netns/{OUTSIDE}", flags=0) as route:
            for side in "ab":
                tag(route, route.link_lookup(ifname=f"net-{side}")[0], vlan)
