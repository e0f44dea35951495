"""The stock host itself: each kind of bridge carries all traffic, the traffic's meters notice what is lost, and nothing
is left behind."""

from __future__ import annotations

import os
import time

import pytest

from ovs_hotswap.errors import LabError
from ovs_hotswap.system import System
from tests.support.stock_drive import differences, programmed, reprogram
from tests.support.stock_guest import GuestKind
from tests.support.stock_host import BridgeKind, StockHost

SECONDS = 3.0
ROUNDS = int(os.environ.get("OVS_HOTSWAP_STOCK_ROUNDS", "1"))


# `make soak-hosts`: OVN as well, whose host test_stock_upgrade.py has.
KINDS: list[tuple[BridgeKind, list[GuestKind], int]] = [
    ("normal", [GuestKind("hugetlb", queues=2), GuestKind("file", memory_mb=192, memory_slots=1)], 0),
    ("ovn", [GuestKind(), GuestKind(), GuestKind()], 1),
]


@pytest.mark.parametrize(("bridge", "guests", "later"), KINDS if ROUNDS > 1 else KINDS[:1])
def test_every_packet_arrives_once_and_in_order_also_after_a_change(
    system: System, bridge: BridgeKind, guests: list[GuestKind], later: int
) -> None:
    with StockHost(system, bridge=bridge, guests=guests, later=later) as host:
        before = programmed(host)
        with host.traffic() as traffic:
            time.sleep(SECONDS)
        print(traffic.judgement.text())
        assert traffic.judgement.faults_beyond(30) == []
        assert min(each.sent for each in traffic.judgement.streams) > 100
        assert differences(before, programmed(host)) == []
        reprogram(host)
        after = differences(before, programmed(host))
        assert any(line.startswith("flows of br-int: +") and "5001" in line for line in after)
        assert any(line.startswith("table Interface") for line in after) is bool(later)
        assert [guest.name for guest in host.running] == [guest.name for guest in host.guests]
    assert leftovers(system, host) == []


def test_what_is_lost_is_noticed_and_who_lost_it(system: System) -> None:
    with StockHost(system, bridge="normal", guests=2) as host:
        with host.traffic(tcp=None) as traffic:
            host.ofctl("add-flow", "br-int", "priority=9,in_port=up,actions=drop")
            time.sleep(0.5)
            host.ofctl("--strict", "del-flows", "br-int", "priority=9,in_port=up")
            host.guest("vm1").qmp("set_link", name="net0", up=False)
            host.guest("vm1").qmp("set_link", name="net0", up=True)
            time.sleep(0.5)
        judgement = traffic.judgement
    lost = {each.stream: each.lost for each in judgement.streams}
    assert lost["outside -> vm2 (flood)"] > 100
    assert lost["vm2 -> remote"] > 10
    assert judgement.carrier_changes["vm1"] > 0
    assert judgement.carrier_changes["vm2"] == 0
    assert len(judgement.faults()) >= 3


def test_a_host_that_does_not_come_up_leaves_nothing(system: System) -> None:
    class Planted(StockHost):
        def start_switch(self) -> None:
            super().start_switch()
            raise LabError("planted")

    host = Planted(system, guests=1)
    with pytest.raises(LabError, match="planted"):
        host.__enter__()
    assert leftovers(system, host) == []


def leftovers(system: System, host: StockHost) -> list[str]:
    """The processes and files of a host that has ended."""
    processes = [" ".join(system.cmdline(pid)) for pid in host.space.processes()]
    return [*processes, *(str(path) for path in [host.directory] if path.exists())]
