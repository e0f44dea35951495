"""Which cases of a benchmark run, what their report holds, and the page on guests."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from bench import cases, kinds
from bench.users import UserResult
from ovs_hotswap.backends import BackendMode
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import LabError


def run(tmp_path: Path, wanted: list[str] | None) -> tuple[list[int], dict[str, object]]:
    arguments = argparse.Namespace(report=tmp_path / "report.json", cases=wanted)
    found = cases.each_case(["1x1", "16x1", "16x4"], arguments, Output(), len, lambda result: {"length": result})
    return found, json.loads(arguments.report.read_text())


@pytest.mark.parametrize(("wanted", "lengths"), [(None, [3, 4, 4]), ([], [3, 4, 4]), (["16x"], [4, 4]), (["1x1"], [3])])
def test_chosen_cases_are_run_and_reported(tmp_path: Path, wanted: list[str] | None, lengths: list[int]) -> None:
    found, report = run(tmp_path, wanted)
    assert found == lengths
    assert report["cases"] == [{"length": length} for length in lengths]
    assert report["machine"]


def test_the_report_has_what_was_measured_before_a_failure(tmp_path: Path) -> None:
    arguments = argparse.Namespace(report=tmp_path / "report.json", cases=None)

    def measure(case: str) -> str:
        if case == "b":
            raise LabError("the case failed")
        return case

    with pytest.raises(LabError):
        cases.each_case(["a", "b"], arguments, Output(), measure, str)
    assert json.loads(arguments.report.read_text())["cases"] == ["a"]


def test_rows_of_the_page() -> None:
    works = kinds.Result("legacy", sent=100, lost=0, doubled=1, gap_ms=11.4, moves_us=[201.4, 199.6])
    assert kinds.row(works) == "| legacy | 100 | 0 | 1 | 11 ms | 201, 200 us | works |\n"
    silent = kinds.Result("legacy", sent=100, lost=100)
    assert "| none answered |" in kinds.row(silent)
    broken = kinds.Result("legacy", fault="vm vm1 cannot be parked")
    assert kinds.row(broken) == "| legacy | | | | | | vm vm1 cannot be parked |\n"


def test_each_back_end_mode_has_a_part_of_the_page() -> None:
    works = [kinds.Result("legacy", sent=100, gap_ms=11.4, moves_us=[201.4])]
    users: list[kinds.Result | UserResult] = [*works, UserResult("virtio_user", rates=[1, 2, 3, 4])]
    dual = kinds.section(BackendMode.QEMU_DUAL, works, qemu="7.2.22", release="3.1.0")
    broker = kinds.section(BackendMode.BROKER, users, qemu="7.2.22", release="3.1.0")
    one = kinds.page("", dual)
    both = kinds.page(one, broker)
    assert one.count("\n## ") == 1
    assert both.index("\n## With a broker\n") < both.index("\n## Without a broker\n")
    assert both.count("| legacy | 100 ") == 2
    assert both.count("| virtio_user | 1 | 2 | 3 | 4 |") == 1
    assert kinds.page(both, broker) == both
    again = kinds.section(
        BackendMode.QEMU_DUAL, [kinds.Result("legacy", fault="it broke")], qemu="7.2.22", release="3.1.0"
    )
    assert kinds.page(both, again).count("| legacy | 100 ") == 1
    assert "it broke" in kinds.page(both, again)


def test_every_kind_has_a_name_of_its_own() -> None:
    names = [str(kind) for kind in kinds.KINDS]
    assert len(set(names)) == len(names)
    assert all("|" not in name for name in names)
