"""Which instance is at low priority, and when it ends."""

from __future__ import annotations

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host import scheduling, standby
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.upgrade import checks, steps
from ovs_hotswap.watchdog.health import Health
from tests.unit.watch_bed import Bed
from tests.unit.watch_bed import config as config


@pytest.fixture
def bed(config: Config) -> Bed:
    return Bed(config)


def test_what_is_done_beside_an_instance_that_serves_is_done_at_low_priority(bed: Bed) -> None:
    with scheduling.in_background(bed.host, Side.B):
        assert bed.world.held_low == [bed.world.pid[Side.A]]


@pytest.mark.parametrize("why", ["first", "only", "itself"])
def test_an_instance_that_vms_wait_for_is_not_at_low_priority(bed: Bed, why: str) -> None:
    if why == "first":
        bed.host.forget_active()
    if why == "only":
        bed.world.die(Side.A)
    with scheduling.in_background(bed.host, Side.A if why == "itself" else Side.B):
        assert bed.world.held_low == []


def test_whoever_becomes_the_active_side_has_normal_priority(bed: Bed) -> None:
    bed.world.low = {2}
    bed.host.record_active(Side.B)
    assert bed.world.low == set()


def test_a_standby_is_prepared_at_normal_priority(bed: Bed) -> None:
    bed.world.low = {2}
    standby.await_ports(bed.host, Side.B)
    assert bed.world.low == set()


def test_what_cannot_be_given_normal_priority_is_no_standby(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bed.world, "raise_priority", lambda _pid: False)
    with pytest.raises(SwitchError, match="low priority"):
        standby.await_ports(bed.host, Side.B)
    bed.host.record_active(Side.B)  # it serves all the same


def test_the_watchdog_finds_an_active_instance_at_low_priority(bed: Bed) -> None:
    bed.world.low = {1}
    while bed.look() is not Health.HEALTHY:
        pass
    assert bed.world.low == set()


def test_a_fail_over_to_an_instance_at_low_priority_raises_it(bed: Bed) -> None:
    bed.world.low = {2}
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert bed.host.recorded_active() is Side.B
    assert bed.world.low == set()


def test_the_check_names_what_serves_at_low_priority(bed: Bed) -> None:
    assert [each.severity for each in checks.priority(Side.A, scheduling.low(bed.host, Side.A))] == [Severity.OK]
    bed.world.low = {1}
    (finding,) = checks.priority(Side.A, scheduling.low(bed.host, Side.A))
    assert (finding.severity, "process 1 (ovs-vswitchd)" in finding.text) == (Severity.WARNING, True)


def test_an_upgrade_ends_the_low_priority_of_the_instance_that_serves_and_says_so(bed: Bed) -> None:
    bed.world.low = {1}
    (finding,) = steps.restore_priority(bed.host, Side.A)
    assert "instance a serves VMs at low priority" in finding.text
    assert bed.world.low == set()
    assert steps.restore_priority(bed.host, Side.A) == []
