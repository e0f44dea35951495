from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.lab.demo import Demo, DemoReport, DualReport
from ovs_hotswap.lab.demo_reports import keep, with_guests
from ovs_hotswap.lab.phases import GuestGaps, Phase
from ovs_hotswap.lab.pings import Mark, PingStats, Stream
from ovs_hotswap.lab.timeline import Gap as PingGap
from ovs_hotswap.reports.document import Gap, GapSource, Pings
from ovs_hotswap.reports.store import Reports
from ovs_hotswap.system import System
from tests.unit.report_sample import BEGUN, upgrade
from tests.unit.watch_bed import Bed
from tests.unit.watch_bed import config as config

ANSWERED = PingStats("vm1", "host", 10, 10, 0, 0, 10.0, 12.5, 0.1, 0.2, 0.3)
SILENT = replace(ANSWERED, guest="vm2", received=0, lost=10, longest_gap_ms=None, rtt_p50_ms=None, rtt_p99_ms=None,
                 rtt_max_ms=None)  # fmt: skip


def refused(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize(("pings", "longest"), [([], 0.0), ([ANSWERED], 12.5), ([ANSWERED, SILENT], None)])
def test_the_document_is_json_even_if_a_guest_got_no_answer(pings: list[PingStats], longest: float | None) -> None:
    quiet, upgrade, rollback, restart = (Phase(name, 1.0, pings, {"vm1": 50.0})
                                         for name in ("quiet", "upgrade", "rollback", "restart"))  # fmt: skip
    report = DemoReport({"old": "host", "new": "trixie"}, quiet, upgrade, rollback, restart)
    document = json.loads(json.dumps(report.document()), parse_constant=refused)
    assert {phase["longest_gap_ms"] for phase in document["phases"].values()} == {longest}


def test_the_report_of_a_phase_has_what_its_guests_saw() -> None:
    seen = [ANSWERED, replace(ANSWERED, target="vm2", longest_gap_ms=30.0, lost=2), replace(SILENT, guest="vm9")]
    gaps = [GuestGaps("vm1", "vm2", 12.0, 30.0, "soak"), GuestGaps("vm1", "host", None, 12.5, None)]
    quiet = Phase("quiet", 5.0, [replace(ANSWERED, longest_gap_ms=11.0)], {})
    found = with_guests(upgrade(), Phase("upgrade", 9.0, seen, {}, gaps), quiet, 1158.0)
    vm1, vm2, vm9 = found.vms
    assert vm1.longest == Gap(GapSource.GUEST, 30.0, None, "soak", "vm2")
    assert vm1.gaps[1:] == upgrade().vms[0].gaps
    assert vm1.pings == (Pings("host", 10, 0, 0, 12.5, None, 11.0), Pings("vm2", 10, 2, 0, 30.0, 12.0, None))
    assert vm2 == upgrade().vms[1], "it has no pings"
    assert (vm9.name, vm9.gaps, vm9.pings[0].longest_ms) == ("vm9", (), None)
    assert (found.restart_ms, found.lost) == (1158.0, 12)


def test_the_demo_has_the_reports_of_the_phases_that_left_one() -> None:
    quiet, restart = Phase("quiet", 5.0, [ANSWERED], {}), Phase("restart", 1.0, [SILENT], {})
    there, back = (Phase(name, 1.0, [ANSWERED], {}, report=upgrade()) for name in ("upgrade", "rollback"))
    report = DemoReport({}, quiet, there, back, restart)
    assert [each.restart_ms for each in report.run_reports()] == [None, None], "no guest got an answer again"
    whole = replace(report, restart=replace(restart, pings=[ANSWERED]))
    assert [each.restart_ms for each in whole.run_reports()] == [12.5, 12.5]
    dual = DualReport({}, quiet, there, back, restart, {})
    assert len(dual.run_reports()) == 2
    assert "report" not in dual.document()["phases"]["upgrade"]


def test_the_reports_of_several_demos_are_kept_together(tmp_path: Path) -> None:
    earlier = replace(upgrade(), started=upgrade().started - 60, id="20261130-005220-upgrade")
    keep([earlier], tmp_path / "demo", System())
    (page,) = keep([upgrade()], tmp_path / "demo", System())
    assert "20261130-005220-upgrade" in page.read_text()


class StubPings:
    """The pings of one guest, whose longest gap was while the VM was moved."""

    def mark(self) -> Mark:
        return Mark(())

    def between(self, _first: Mark, _second: Mark) -> list[PingStats]:
        return [ANSWERED]

    def gaps(self, _first: Mark, _second: Mark) -> dict[Stream, list[PingGap]]:
        found = [PingGap(BEGUN + 2.4, BEGUN + 2.5, 100.0), PingGap(BEGUN + 9.0, BEGUN + 9.01, 10.0)]
        return {Stream("vm1", "host", Path("/none")): found}


def test_a_gap_of_a_phase_is_in_the_step_that_its_report_has_for_that_time(config: Config) -> None:
    bed = Bed(config)
    lab: Any = SimpleNamespace(config=config, pings=StubPings())
    demo = Demo(lab, bed.world, print, contextlib.nullcontext)  # type: ignore[arg-type]  # nothing is shown
    demo._host = bed.host

    def act() -> dict[str, float]:
        Reports(config.state_dir / "reports", bed.world).write(upgrade())
        return {"vm1": 101.0}

    assert demo.phase("quiet", dict).report is None
    found = demo.phase("upgrade", act)
    assert found.report == upgrade()
    assert found.gaps == [GuestGaps("vm1", "host", None, 100.0, "move")]
    again = demo.phase("rollback", dict)
    assert (again.report, [each.step for each in again.gaps]) == (None, [None]), "that report is not of this phase"
