"""Reading what the switch prints: PMD queues, routes, neighbours. The samples are those of OVS 3.1 and 3.5."""

from __future__ import annotations

import pytest

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.pmd import parse_pmd_iterations, pmd_sleep_key
from ovs_hotswap.switch.rxqs import RxQueue, parse_pmd_rxqs
from ovs_hotswap.switch.tunnel import TunnelNeighbour, TunnelRoute, parse_neighbours, parse_routes

RXQS = """\
Displaying last 60 seconds pmd usage %
pmd thread numa_id 0 core_id 1:
  isolated : false
  port: peer              queue-id:  1 (enabled)   pmd usage: NOT AVAIL
  port: vm1               queue-id:  0 (enabled)   pmd usage:  0 %
  overhead: NOT AVAIL
pmd thread numa_id 1 core_id 12:
  isolated : true
  port: peer              queue-id:  0 (enabled)   pmd usage: 13 %
  port: a-very-long-name-of-a-vm queue-id: 10 (disabled)  pmd usage:  0 %
  overhead:  1 %
"""

ROUTES = """\
Route Table:
Cached: 127.0.0.1/32 dev lo SRC 127.0.0.1 local
User: 10.9.0.0/16 dev br0 GW 172.31.0.254 SRC 172.31.0.1
User: 10.8.0.0/16 MARK 5 dev br0 GW 172.31.0.254 SRC 172.31.0.1
Cached: 172.31.0.0/24 dev br0 SRC 172.31.0.1
User: fd00:a::/64 dev br0 GW fd00:1f::fe SRC fd00:1f::1
Cached: fe80::/64 dev br0 SRC fe80::5054:ff:fe00:aa
"""

NEIGHBOURS = """\
IP                                            MAC                 Bridge
==========================================================================
172.31.0.254                                  52:54:00:00:00:fe   br0
fd00::2                                       52:54:00:00:00:02   br0
"""


def test_queues_by_port() -> None:
    assert parse_pmd_rxqs(RXQS) == {
        "peer": (RxQueue(0, 12, True), RxQueue(1, 1, True)),
        "vm1": (RxQueue(0, 1, True),),
        "a-very-long-name-of-a-vm": (RxQueue(10, 12, False),),
    }


def test_no_pmd_thread_polls_nothing() -> None:
    assert parse_pmd_rxqs("") == {}


def test_routes() -> None:
    assert parse_routes(ROUTES) == (
        TunnelRoute("127.0.0.1/32", "lo", None, "127.0.0.1", user=False),
        TunnelRoute("10.9.0.0/16", "br0", "172.31.0.254", "172.31.0.1", user=True),
        TunnelRoute("10.8.0.0/16", "br0", "172.31.0.254", "172.31.0.1", user=True),
        TunnelRoute("172.31.0.0/24", "br0", None, "172.31.0.1", user=False),
        TunnelRoute("fd00:a::/64", "br0", "fd00:1f::fe", "fd00:1f::1", user=True),
        TunnelRoute("fe80::/64", "br0", None, "fe80::5054:ff:fe00:aa", user=False),
    )


def test_neighbours() -> None:
    assert parse_neighbours(NEIGHBOURS) == (
        TunnelNeighbour("172.31.0.254", "52:54:00:00:00:fe", "br0"),
        TunnelNeighbour("fd00::2", "52:54:00:00:00:02", "br0"),
    )


@pytest.mark.parametrize(
    ("version", "key"),
    [
        ("2.17.9", "pmd-maxsleep"),
        ("3.1.0", "pmd-maxsleep"),
        ("3.2.0", "pmd-sleep-max"),
        ("3.10.1", "pmd-sleep-max"),
        ("4.0.0", "pmd-sleep-max"),
    ],
)
def test_the_key_of_the_pmd_sleep(version: str, key: str) -> None:
    assert pmd_sleep_key(version) == key


def test_a_version_that_is_none() -> None:
    with pytest.raises(SwitchError, match="'unknown' is not a version"):
        pmd_sleep_key("unknown")


PERF_SHOW = """\

Time: 02:08:53.988
Measurement duration: 9.064 s

pmd thread numa_id 0 core_id 1:

  Iterations:                55521  (162.88 us/it)
  - Used TSC cycles:     881452404  (  3.7 % of total cycles)
  - sleep iterations:        55521  (100.0 % of iterations)
  Sleep time (us):         8703939  (157 us/iteration avg.)
  Rx packets:                 5382  (1 Kpps, 131996 cycles/pkt)

pmd thread numa_id 1 core_id 12:

  Iterations:                    0

main thread:

  Iterations:                    7
"""


def test_iterations_of_each_pmd_thread() -> None:
    assert parse_pmd_iterations(PERF_SHOW) == {1: 55521, 12: 0}
