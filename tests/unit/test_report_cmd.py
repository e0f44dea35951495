"""``ovs-hotswap report``: what it lists, shows and opens."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from ovs_hotswap.cli import main, report_cmd
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.output import Output
from ovs_hotswap.model import Severity
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import Kind, Record, StepNames
from ovs_hotswap.reports.document import CheckResult, Outcome, Pings, Stage
from ovs_hotswap.reports.store import Reports
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.steps import upgrade_plan
from tests.unit.report_sample import BEGUN, PARAMETERS, upgrade
from tests.unit.test_watch_status import CONFIG

NAME = "20261130-005320-upgrade"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(tmp_path))
    return path


@pytest.fixture
def store(path: Path) -> Reports:
    return Reports(path.parent / "state/reports", System())


def run(path: Path, *arguments: str, exit_code: int = 0) -> str:
    out = io.StringIO()
    assert main.run(["--config", str(path), "report", *arguments], App(Output(out=out, err=out))) == exit_code
    return out.getvalue()


def document(path: Path, *arguments: str) -> Any:
    return json.loads(run(path, *arguments, "--json"))


def killed(path: Path) -> None:
    """The journal of an upgrade whose process was killed in its first step."""
    with Journals(path.parent / "state", System()).begin(
        "upgrade", upgrade_plan().shape, parameters=PARAMETERS
    ) as journal:  # fmt: skip
        journal.append(Record(Kind.START, "precheck"))


def test_reports_are_listed_the_newest_first(path: Path, store: Reports) -> None:
    store.write(replace(upgrade(), id="20261129-005320-upgrade", started=BEGUN - 86400, outcome=Outcome.ROLLED_BACK))
    store.write(upgrade())
    head, first, second = run(path, "list").splitlines()
    assert head.split()[:2] == ["REPORT", "BEGUN"]
    assert (first.split()[0], second.split()[0]) == (NAME, "20261129-005320-upgrade")
    assert "0.10 ms" in first
    assert "rolled back" in second
    newest = document(path, "list")["reports"][0]
    assert newest["page"] == str(store.page(NAME))
    assert (newest["id"], newest["kind"], newest["outcome"], newest["vms"]) == (NAME, "upgrade", "done", 2)
    assert (newest["handover_us"], newest["longest_gap_ms"], newest["lost"]) == (102.0, pytest.approx(0.102), None)


def test_nothing_is_an_empty_list(path: Path) -> None:
    assert document(path, "list") == {"reports": []}
    assert "there is no report yet" in run(path, "show", exit_code=6)


def test_the_journal_of_a_killed_upgrade_is_a_report(path: Path) -> None:
    killed(path)
    (found,) = document(path, "list")["reports"]
    assert (found["outcome"], found["page"]) == ("unfinished", None)
    assert "It stopped in the step precheck." in run(path, "show")
    opened = document(path, "open")
    assert Path(opened["page"]).read_text().count("look for reasons not to start") > 0


def test_a_damaged_journal_is_named_and_hides_no_report(path: Path, store: Reports) -> None:
    store.write(upgrade())
    journal = path.parent / "state/journal/current.jsonl"
    journal.parent.mkdir()
    journal.write_text("{}\n")
    text = run(path, "list")
    assert text.startswith("warning: ")
    assert "line 1 is not a journal record" in text
    assert NAME in text


def test_a_journal_that_makes_no_sense_is_left_out(path: Path) -> None:
    with Journals(path.parent / "state", System()).begin("upgrade", StepNames(("move",)), parameters={}) as journal:
        journal.append(Record(Kind.DONE, "move"))
    assert "makes no sense" in run(path, "list")


def test_a_report_is_shown_as_text(path: Path, store: Reports) -> None:
    stages = (*upgrade().stages, Stage("move", BEGUN + 14, BEGUN + 15, undo=True))
    vm = replace(upgrade().vms[0], pings=(Pings("vm2", 10, 1, 0, 20.0),))
    store.write(
        replace(
            upgrade(), outcome=Outcome.ROLLED_BACK, failed_step="soak", failure="vm1 is not served", hint="`df`",
            warnings=("vm1: a frame",), stages=stages, vms=(vm, *upgrade().vms[1:]), protected_after_s=4.0,
            checks=(CheckResult("precheck", "mtu", Severity.WARNING, "small"),
                    CheckResult("precheck", "rings", Severity.OK, "served")),
        )
    )  # fmt: skip
    lines = run(path, "show", "2026").splitlines()
    assert lines[:2] == [
        "Upgrade undone: host on a → trixie on b", f"{NAME} on hv1, begun 2026-11-30 00:53:20 UTC, took 14.0 s",
    ]  # fmt: skip
    assert "why       Step soak failed: vm1 is not served" in lines
    assert "next      `df`" in lines
    assert "warning   vm1: a frame" in lines
    assert "worst     VM vm2: 0.10 ms, neither instance had its rings, in move" in lines
    assert "lost      1 packet of the guests' pings" in lines
    assert "standby   ready again after 4.00 s" in lines
    assert ["undo", "move", "1.00", "s", "-"] in [line.split() for line in lines]
    assert lines[-1] == "precheck: mtu: small"


def test_a_step_is_shown_beside_its_usual_time(path: Path, store: Reports) -> None:
    for number in (1, 2):
        store.write(replace(upgrade(), id=f"2026112{number}-005320-upgrade", started=BEGUN - number))
    store.write(upgrade())
    assert ["soak", "10.0", "s", "10.0", "s"] in [line.split() for line in run(path, "show", NAME).splitlines()]


def test_a_report_is_shown_to_programs_and_browsers(path: Path, store: Reports) -> None:
    store.write(upgrade())
    assert document(path, "show")["id"] == NAME
    assert "<!doctype html>" in run(path, "show", "--html")
    assert "--html and --json exclude each other" in run(path, "show", "--html", "--json", exit_code=2)


@pytest.mark.parametrize(("desktop", "browser", "opened"), [
    (False, True, False), (True, True, True), (True, False, False), (True, OSError(), False),
])  # fmt: skip
def test_the_page_is_opened_where_there_is_a_desktop(
    path: Path, store: Reports, monkeypatch: pytest.MonkeyPatch, desktop: bool, browser: bool | OSError, opened: bool
) -> None:
    asked = []

    def browse(address: str) -> bool:
        asked.append(address)
        if isinstance(browser, OSError):
            raise browser
        return browser

    monkeypatch.setattr("webbrowser.open", browse)
    if desktop:
        monkeypatch.setenv("DISPLAY", ":0")
    store.write(upgrade())
    found = document(path, "open", NAME)
    assert found == {"id": NAME, "page": str(store.page(NAME)), "opened": opened}
    assert asked == ([f"file://{store.page(NAME)}"] if desktop else [])
    assert (f"report show {NAME} --html" in run(path, "open")) is not opened


def test_ids_are_completed(path: Path, store: Reports) -> None:
    store.write(upgrade())
    command = report_cmd.show
    context = click.Context(command, obj=App(config_path=path))
    (argument,) = (each for each in command.params if isinstance(each, click.Argument))
    assert [each.value for each in argument.shell_complete(context, "2026")] == [NAME]
    assert argument.shell_complete(context, "x") == []
    assert argument.shell_complete(click.Context(command, obj=App(config_path=path / "none")), "") == []
