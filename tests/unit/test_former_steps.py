"""Journals in which steps have the names that earlier versions gave them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import PrecheckFailed
from ovs_hotswap.plan.executor import Executor, Plan, ReversibleStep, StepContext
from ovs_hotswap.plan.journal import FORMER_STEPS, Journals, parse
from ovs_hotswap.plan.records import Kind, Phase, Record
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.steps import upgrade_plan
from ovs_hotswap.upgrade.upgrade import Report, Upgrader
from tests.faults import matrix
from tests.unit.watch_bed import Bed
from tests.unit.watch_bed import config as config

SHAPE = upgrade_plan().shape
STEPS = (*SHAPE.before, *SHAPE.after)
PARAMETERS = {"old": "a", "new": "b", "release": "new", "previous": "old", "keep_old": False}
_FORMER = {name: former for former, name in FORMER_STEPS.items()}
CASES = [(name, action) for name in FORMER_STEPS.values() for action in ("run", "rollback")]


class Note(ReversibleStep[list[str]]):
    """Notes that it was done or undone."""

    def __init__(self, name: str) -> None:
        self.name = self.description = name

    def do(self, context: list[str], run: StepContext) -> None:
        context.append(self.name)

    def undo(self, context: list[str], run: StepContext) -> None:
        context.append(f"undo {self.name}")


PLAN: Plan[list[str]] = Plan(
    "upgrade", tuple(Note(name) for name in SHAPE.before), tuple(Note(name) for name in SHAPE.after)
)


@pytest.fixture
def bed(config: Config) -> Bed:
    return Bed(config)


def former(name: str) -> str:
    return _FORMER.get(name, name)


def until(last: str) -> list[Record]:
    """What an upgrade has recorded when it is interrupted in the step ``last``."""
    records = []
    for name in STEPS[: STEPS.index(last) + 1]:
        if name == SHAPE.after[0]:
            records.append(Record(Kind.COMMIT))
        records += [Record(Kind.START, name), Record(Kind.DONE, name)]
    return records[:-1]


def write(path: Path, records: Iterable[Record]) -> None:
    """Write a journal of an earlier version, which has the former name of each step."""
    header = {
        "version": 1, "kind": "upgrade", "parameters": PARAMETERS, "versions": {},
        "before": [former(name) for name in SHAPE.before], "after": [former(name) for name in SHAPE.after],
        "started": 1.0, "boot_id": "boot",
    }  # fmt: skip
    lines = [{"record": record.kind, "step": former(record.step), "time": 1.0} for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))


def finish(directory: Path, action: str) -> list[str]:
    """Continue the journal in ``directory`` and return which steps were done and undone, in their order."""
    journal, acts = Journals(directory, System()).reopen(), list[str]()
    assert journal is not None
    with journal:
        getattr(Executor(PLAN, acts, journal, records=journal.records, clock=lambda: 0.0), action)()
    return acts


def test_each_former_name_is_that_of_a_step_of_the_plan() -> None:
    assert set(FORMER_STEPS.values()) <= set(STEPS)
    assert not set(FORMER_STEPS) & set(STEPS)


@pytest.mark.parametrize(("step", "action"), CASES)
def test_an_upgrade_of_an_earlier_version_is_finished_as_if_this_one_had_begun_it(
    tmp_path: Path, step: str, action: str
) -> None:
    write(tmp_path / "journal" / "current.jsonl", until(step))
    if action == "rollback" and step in SHAPE.after:
        with pytest.raises(PrecheckFailed, match="committed"):
            finish(tmp_path, action)
        return
    began = STEPS[: STEPS.index(step) + 1]
    undone = [f"undo {name}" for name in reversed(began)]
    section = SHAPE.before if step in SHAPE.before else SHAPE.after  # what is done before the commit stays done
    again = [name for name in STEPS if name not in SHAPE.before or section is SHAPE.before]
    assert finish(tmp_path, action) == (again if action == "run" else undone)
    (path,) = Journals(tmp_path, System()).history()
    contents = parse(path.read_bytes(), str(path))
    assert contents is not None
    assert contents.standing.phase is (Phase.FINISHED if action == "run" else Phase.ROLLED_BACK)


def test_the_failed_step_of_an_earlier_version_has_the_name_of_today(tmp_path: Path) -> None:
    failed = Record(Kind.FAILED, "join-peer-link", text="no answer")
    write(tmp_path / "journal" / "current.jsonl", [*until("join-peer-link"), failed])
    contents = Journals(tmp_path, System()).read()
    assert contents is not None
    assert (contents.standing.phase, contents.standing.failed_step) == (Phase.BACK, "join-peer-link")


def test_the_last_report_of_an_earlier_version_is_read(bed: Bed) -> None:
    records = [*until(STEPS[-1]), Record(Kind.DONE, STEPS[-1]), Record(Kind.END)]
    write(bed.config.state_dir / "journal" / "20231114T221320.000000Z-upgrade.jsonl", records)
    report = Upgrader(bed.host).last()
    assert isinstance(report, Report)
    assert (report.committed, report.release, report.back_to) == (True, "new", "old")


def test_the_fault_matrix_takes_only_the_names_of_today() -> None:
    assert set(FORMER_STEPS.values()) <= set(matrix.MOMENTS)
    assert not set(FORMER_STEPS) & set(matrix.MOMENTS)
