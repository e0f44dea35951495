"""The files of reports: one for programs and one for people, of the newest runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ovs_hotswap.errors import HostError, StateUnknown
from ovs_hotswap.reports.document import Pings, RunKind, RunReport
from ovs_hotswap.reports.store import KEPT, Reports, as_json, document, find, parse
from ovs_hotswap.system import System
from tests.unit.report_sample import upgrade


@pytest.fixture
def store(tmp_path: Path) -> Reports:
    return Reports(tmp_path / "state/reports", System())


def numbered(number: int) -> RunReport:
    return replace(upgrade(), id=f"202611{number // 24 + 1:02}-{number % 24:02}0000-upgrade", started=float(number))


def test_what_was_written_is_read_back() -> None:
    report = upgrade(labels={"host": "host"})
    report = replace(report, vms=(replace(report.vms[0], pings=(Pings("vm2", 1, 0, 0, None),)),))
    assert parse(document(report), "x") == report
    assert as_json(report)["kind"] == "upgrade"


def test_a_report_and_its_page_are_written(store: Reports) -> None:
    written = store.write(upgrade())
    assert store.all() == [written]
    assert "Upgraded to trixie" in store.page(written.id).read_text()
    assert store.ids() == ["20261130-005320-upgrade"]


def test_the_same_run_is_written_in_the_place_of_its_earlier_report(store: Reports) -> None:
    store.write(upgrade())
    store.write(replace(upgrade(), message="and now it is finished"))
    assert [each.message for each in store.all()] == ["and now it is finished"]


def test_two_runs_of_one_second_have_two_reports(store: Reports) -> None:
    first = store.write(upgrade())
    second = store.write(replace(upgrade(), started=upgrade().started + 0.3))
    assert (first.id, second.id) == ("20261130-005320-upgrade", "20261130-005320-upgrade.2")
    assert store.write(second) == second
    assert len(store.all()) == 2


def test_the_newest_are_kept(store: Reports) -> None:
    for number in range(KEPT + 2):
        store.write(numbered(number))
    assert len(store.ids()) == KEPT
    assert store.ids()[0] == numbered(KEPT + 1).id
    assert len(list(store.directory.iterdir())) == 2 * KEPT


def test_a_damaged_report_hides_no_other(store: Reports) -> None:
    store.write(upgrade())
    (store.directory / "20261201-000000-upgrade.json").write_text("{")
    (store.directory / "notes.json").write_text("{}")
    assert [each.id for each in store.all()] == ["20261130-005320-upgrade"]
    with pytest.raises(StateUnknown, match="no report of this version"):
        store.read("20261201-000000-upgrade")
    with pytest.raises(StateUnknown, match="cannot be read"):
        store.read("20261202-000000-upgrade")


def test_a_later_version_is_told_apart() -> None:
    text = document(upgrade()).replace('"version": 1', '"version": 2, "more": 3')
    with pytest.raises(StateUnknown, match="report format 2, this program knows 1"):
        parse(text, "x.json")
    assert parse(document(upgrade()).replace('"version": 1', '"version": 1, "more": 3'), "x") == upgrade()


def test_a_directory_that_cannot_be_made_is_an_error_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="file"):
        Reports(tmp_path / "file/reports", System()).write(upgrade())


def test_no_directory_is_no_report(store: Reports) -> None:
    assert store.all() == []


def test_a_report_is_found_by_the_beginning_of_its_id() -> None:
    one, two = upgrade(), replace(upgrade(), id="20261130-005320-upgrade.2", kind=RunKind.ROLLBACK)
    assert find([two, one], None) is two
    assert find([two, one], "20261130-005320-upgrade") is one, "the whole id is meant as it is"
    assert find([one], "202611") is one
    with pytest.raises(StateUnknown, match="2 reports have an id that begins with '2026'"):
        find([one, two], "2026")
    with pytest.raises(StateUnknown, match="no report has an id that begins with 'x'"):
        find([one], "x")
    with pytest.raises(StateUnknown, match="there is no report yet"):
        find([], None)
