"""What leaves reports: an upgrade at its end, and the watchdog after a failover."""

from __future__ import annotations

import errno
import logging
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, HotswapError, PrecheckFailed, RolledBack
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import Event
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import Kind, Record, StepNames
from ovs_hotswap.reports.document import Outcome, RunKind, RunReport
from ovs_hotswap.reports.store import Reports
from ovs_hotswap.upgrade import run_report
from ovs_hotswap.upgrade.upgrade import KIND, Upgrader
from ovs_hotswap.watchdog.failover_report import FailoverReport
from ovs_hotswap.watchdog.standby_plan import Task
from tests.unit.test_upgrader import Releases
from tests.unit.watch_bed import Bed
from tests.unit.watch_bed import config as config

PARAMETERS: dict[str, Any] = {"old": "a", "new": "b", "release": "trixie", "previous": "host", "keep_old": False}


@pytest.fixture
def bed(config: Config) -> Bed:
    made = Bed(config)
    made.host.__dict__["releases"] = Releases()
    return made


def reports(bed: Bed) -> list[RunReport]:
    return Reports(run_report.directory(bed.config), bed.world).all()


def journal(bed: Bed, *records: Record) -> Journals:
    found = Journals(bed.config.state_dir, bed.world)
    with found.begin(KIND, StepNames(("precheck", "move")), parameters=PARAMETERS,
                     versions={"ovs-hotswap": "7.1"}) as begun:  # fmt: skip
        for record in records:
            bed.world.wall_now += 1.0
            begun.append(record)
    return found


def ignore(_event: Event) -> None:
    """An observer that does not look."""


def test_an_upgrade_that_is_refused_leaves_a_report(bed: Bed) -> None:
    with pytest.raises(PrecheckFailed) as refused:
        Upgrader(bed.host).upgrade("trixie", ignore)
    (found,) = reports(bed)
    assert (found.outcome, found.failed_step, found.message) == (Outcome.REFUSED, "precheck", refused.value.message)
    assert (found.release, found.previous, found.old) == ("trixie", "host", Side.A)
    assert found.labels["trixie"] == "trixie (OVS 3.5.0, DPDK 22.11)"
    assert found.descriptions["precheck"] == "look for reasons not to start"
    assert {vm.name for vm in found.vms} == set(bed.world.owner)
    assert any(check.severity == "error" for check in found.checks)


def test_a_report_is_written_again_when_the_upgrade_has_ended(bed: Bed) -> None:
    journals = journal(bed, Record(Kind.START, "precheck"))
    bed.board.event("standby", side=None)
    run_report.leave(bed.host, journals, None)
    assert [each.outcome for each in reports(bed)] == [Outcome.UNFINISHED]
    assert [each.text for each in reports(bed)[0].happenings] == ["standby, side None"]
    with journals.reopen() or pytest.fail("there is none") as again:
        again.append(Record(Kind.FAILED, "precheck", text="no"))
        again.append(Record(Kind.UNDO, "precheck"))
        again.append(Record(Kind.UNDONE, "precheck"))
        again.append(Record(Kind.END))
    run_report.leave(bed.host, journals, RolledBack("step precheck failed: no", hint="`df`"))
    (found,) = reports(bed)
    assert (found.outcome, found.message, found.hint, found.program) == (
        Outcome.ROLLED_BACK, "step precheck failed: no", "`df`", "7.1",
    )  # fmt: skip


def test_a_broker_that_is_silent_costs_the_vms_of_the_report_only(bed: Bed) -> None:
    journals = journal(bed, Record(Kind.START, "precheck"))
    bed.world.broker_fault = BrokerError("it does not answer")
    run_report.leave(bed.host, journals, None)
    assert [each.vms for each in reports(bed)] == [()]


def test_a_release_that_was_removed_has_no_label(bed: Bed) -> None:
    class Removed:
        def get(self, name: str) -> object:
            raise HotswapError(f"no release {name}")

    bed.host.__dict__["releases"] = Removed()
    run_report.leave(bed.host, journal(bed, Record(Kind.START, "precheck")), None)
    assert [each.labels for each in reports(bed)] == [{}]


def test_a_report_that_cannot_be_written_stops_nothing(bed: Bed, caplog: pytest.LogCaptureFixture) -> None:
    journals = journal(bed, Record(Kind.START, "precheck"))
    run_report.directory(bed.config).write_text("a file in its place")
    with caplog.at_level(logging.WARNING):
        run_report.leave(bed.host, journals, None)
    assert "the report of this upgrade cannot be written" in caplog.text


def test_without_a_journal_there_is_nothing_to_report(bed: Bed) -> None:
    run_report.leave(bed.host, Journals(bed.config.state_dir, bed.world), None)
    assert reports(bed) == []


# --------------------------------------------------------------------------------------------------------- a failover


def fail_over(bed: Bed) -> None:
    bed.world.die(Side.A)
    bed.look({Side.A})


def settle(bed: Bed, seconds: int = 0) -> None:
    """Let the keeper do all that is to do, and what is to do within so many seconds."""
    for _ in range(seconds + 1):
        while bed.keeper.round() is not Task.NOTHING:
            pass
        bed.world.sleep(1.0)


def test_a_failover_leaves_a_report_when_a_standby_is_there_again(config: Config) -> None:
    bed = Bed(config)
    fail_over(bed)
    assert reports(bed) == []
    settle(bed, 400)
    (found,) = reports(bed)
    assert (found.kind, found.outcome, found.old, found.new) == (RunKind.FAILOVER, Outcome.DONE, Side.A, Side.B)
    assert found.protected_after_s is not None
    assert [each.name for each in found.stages][-1] == "record"
    assert {vm.name for vm in found.vms} == set(bed.world.owner)


def test_a_failover_leaves_a_report_though_no_standby_can_be_started(config: Config) -> None:
    bed = Bed(config)
    bed.world.start_fault = OSError(errno.ENOENT, "no such file")
    fail_over(bed)
    settle(bed)
    assert [each.protected_after_s for each in reports(bed)] == [None]
    bed.world.start_fault = None
    bed.world.owner = dict.fromkeys(bed.world.owner, None)  # what becomes of VMs later is not the failover's
    before = reports(bed)[0].vms
    settle(bed, 400)
    (found,) = reports(bed)
    assert found.protected_after_s is not None
    assert found.vms == before


def test_a_failover_without_a_broker_leaves_a_report_without_vms(config: Config) -> None:
    bed = Bed(config)
    fail_over(bed)
    written = FailoverReport()
    written.due = True
    bed.world.broker_fault = BrokerError("it does not answer")
    written.write_if_due(bed.host)
    assert [each.vms for each in reports(bed)] == [()]


def test_without_a_failover_there_is_nothing_to_report(config: Config) -> None:
    bed = Bed(config)
    written = FailoverReport()
    written.due = True
    written.write_if_due(bed.host)
    assert reports(bed) == []


def test_a_watchdog_that_only_prepares_a_standby_leaves_none(config: Config) -> None:
    bed = Bed(config)
    settle(bed)
    assert reports(bed) == []


def test_a_report_of_a_failover_that_cannot_be_written_stops_nothing(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    bed = Bed(config)
    run_report.directory(bed.config).write_text("a file in its place")
    fail_over(bed)
    settle(bed)
    assert "the report of the failover cannot be written" in caplog.text
    assert bed.host.recorded_active() is Side.B


def test_the_id_is_that_of_the_moment_of_detection(config: Config) -> None:
    bed = Bed(config)
    fail_over(bed)
    settle(bed)
    (found,) = reports(bed)
    assert found.started == bed.events()[0]["detected"]
