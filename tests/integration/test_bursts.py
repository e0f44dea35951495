"""Bursts between guests on the real switch: what is found first, and what its advice is worth, in the same run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.bursts import BURST, FLOWS, LONG_RING, PAIRS, RING, BurstsBed, bed_up, exchange, guests
from ovs_hotswap.bursts.found import Cause
from ovs_hotswap.counters import texts
from ovs_hotswap.host import settings_transfer
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.ports import UPLINK_PORT
from ovs_hotswap.switch.settings import INTERFACE, Key
from ovs_hotswap.system import System

SECONDS = 0.7


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[BurstsBed]:
    with bed_up(system) as bed:
        yield bed


def test_a_short_ring_is_found_first_and_a_longer_one_ends_the_losses(bed: BurstsBed) -> None:
    with guests(bed, receive_size=RING, pairs=1) as fleet:
        before = exchange(bed, fleet, "short", SECONDS, BURST)
        assert (before.cause, before.advice) == (Cause.GUEST_RING_SHORT, None)
    with guests(bed, receive_size=LONG_RING, pairs=1) as fleet:
        after = exchange(bed, fleet, "long", SECONDS, BURST)
    assert before.lost == before.counted > 0, "what the guests miss is what the switch has counted"
    assert (after.lost, after.counted, after.cause) == (0, 0, None)


def test_unused_queues_are_found_first_used_after_a_change_and_unused_after_its_undo(bed: BurstsBed) -> None:
    with guests(bed, receive_size=RING, pairs=PAIRS, flows=FLOWS) as fleet:
        before = exchange(bed, fleet, "one queue", SECONDS, BURST)
        assert before.cause == Cause.GUEST_QUEUES_UNUSED
        made = [each for vm in ("vm1", "vm2") for each in bed.apply(f"tx-steering:{vm}")]
        assert [(each.row, each.before, each.after) for each in made] == [("vm1", None, "hash"), ("vm2", None, "hash")]
        after = exchange(bed, fleet, "all queues", SECONDS, BURST)
        host = Host(bed.config, System())
        carried = settings_transfer.own(host, settings_transfer.read(host, Side.A))
        assert carried[Key(INTERFACE, "vm1", "other_config", "tx-steering")] == "hash", "an upgrade carries it over"
        assert [(each.change.row, each.why_not) for each in bed.undo()] == [("vm2", ""), ("vm1", "")]
        again = exchange(bed, fleet, "undone", SECONDS, BURST)
    assert (before.lost, again.lost) == (before.counted, again.counted)
    assert after.lost * 10 < before.lost
    assert again.cause == Cause.GUEST_QUEUES_UNUSED
    assert bed.changer.changes() == ()


def test_the_counters_of_ports_are_those_that_the_tools_print(bed: BurstsBed) -> None:
    """No frames pass now, so both look at the same numbers."""
    told = texts.port_statistics(bed.host.openflow(Side.A).port_counters())
    found = bed.counters()
    assert found.keys() == told.keys()
    for number, counters in told.items():
        assert counters.items() <= found[number].items(), f"port {number}"
    assert "ovs_tx_failure_drops" in found[bed.host.intent.vms[0].ofport]
    assert {"rx_packets", "rx_missed_errors"} <= found[UPLINK_PORT].keys()
