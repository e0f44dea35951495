"""The module `summary`, run as Ansible runs it, on directories of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import fleet_run
from tests.support.collection import install, run_module

NAMES = {"summary.txt", "summary.json", "summary.html"}


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    return install(tmp_path / "collections")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    record, documents = fleet_run.fleet(6, 2, vms=3)
    fleet_run.write(tmp_path / "run", record, documents)
    return tmp_path / "run"


def written(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} & NAMES


def test_check_mode_writes_nothing_and_says_what_would_be(collections: Path, directory: Path) -> None:
    result = run_module(collections, "summary", check=True, directory=str(directory), final=True)
    assert (result["changed"], written(directory)) == (True, set())
    assert result["diff"]["before"] == ""
    assert result["diff"]["after"].startswith("Not complete: 4 of 6 hosts run trixie")


def test_files_are_written_once(collections: Path, directory: Path) -> None:
    first = run_module(collections, "summary", directory=str(directory), final=True)
    assert (first["changed"], written(directory)) == (True, NAMES)
    before = {name: (directory / name).stat().st_mtime_ns for name in NAMES}
    second = run_module(collections, "summary", directory=str(directory), final=True)
    assert second["changed"] is False
    assert {name: (directory / name).stat().st_mtime_ns for name in NAMES} == before
    assert {(directory / name).stat().st_mode & 0o777 for name in NAMES} == {0o644}


def test_a_file_is_written_again_if_it_or_a_host_changed(collections: Path, directory: Path) -> None:
    run_module(collections, "summary", directory=str(directory), final=True)
    (directory / "summary.html").write_bytes(b"\xff")
    assert run_module(collections, "summary", directory=str(directory), final=True)["changed"]
    assert (directory / "summary.html").read_text().startswith("<!doctype html>")
    for path in (directory / "hosts").iterdir():
        name = json.loads(path.read_text())["host"]
        path.write_text(json.dumps(fleet_run.host(name, 1, "unchanged")))
    result = run_module(collections, "summary", directory=str(directory), final=True)
    assert (result["changed"], result["totals"]["verdict"]) == (True, "complete")


def test_the_totals_are_those_of_the_file(collections: Path, directory: Path) -> None:
    result = run_module(collections, "summary", directory=str(directory))
    document = json.loads((directory / "summary.json").read_text())
    assert len(document.pop("hosts")) == 6
    assert result["totals"] == document
    assert document["verdict"] == "running"
    assert result["text"] == (directory / "summary.txt").read_text()
    assert {Path(path).name for path in result["files"].values()} == NAMES


def test_a_record_that_was_cut_short_is_a_host_that_needs_a_person(collections: Path, directory: Path) -> None:
    (directory / "hosts/hv%2F9.json").write_text('{"host": "hv/9", "sta')
    (directory / "hosts/.hidden.json").write_text("{")
    result = run_module(collections, "summary", directory=str(directory), final=True)
    (host,) = (each for each in result["totals"]["problems"] if each["state"] == "unknown")
    assert host["name"] == "hv/9"
    assert "its record cannot be read" in host["reason"]


@pytest.mark.parametrize("content", [None, "[]", "{"])
def test_a_directory_without_a_run_is_an_error(collections: Path, tmp_path: Path, content: str | None) -> None:
    (tmp_path / "none").mkdir()
    if content is not None:
        (tmp_path / "none/run.json").write_text(content)
    result = run_module(collections, "summary", directory=str(tmp_path / "none"))
    assert result["failed"] is True
    assert "has no record of a run" in result["msg"]
    assert written(tmp_path / "none") == set()


def test_half_a_surrogate_pair_does_not_end_the_module(collections: Path, directory: Path) -> None:
    (directory / "hosts/x.json").write_text('{"host": "hv\\ud800", "state": "failed", "reason": "\\ud800"}')
    assert run_module(collections, "summary", directory=str(directory), final=True)["changed"]
    assert written(directory) == NAMES
