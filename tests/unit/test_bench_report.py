"""The page that is made of the benchmarks' reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import host_report, report, window_cost

MACHINE = {"cpus": 2, "model": "a processor", "kernel": "6.1"}
SCALE: dict[str, Any] = {
    "machine": MACHINE,
    "cases": [{
        "case": {"vms": 64, "queues": 4, "rounds": 2}, "moves_us": [100.0, 300.0, 200.0], "all_ms": [40.0, 44.0],
        "floor_ms": {"sending": [1.0], "receiving": [1.5]}, "gaps_ms": {"sending": [1.25], "receiving": []},
        "rehearsed_ms": {"sending": [1.125], "receiving": [1.75]}, "broker_percent": 0.125, "broker_ms": [20.0],
        "frames": {"from VMs": {"sent": 9, "lost": 0, "doubled": 0, "reordered": 0}},
        "broker_kb": 30000, "broker_descriptors": 500,
    }],
}  # fmt: skip
FORWARDING: dict[str, Any] = {
    "machine": MACHINE, "seconds": 5, "paired": [{"direct": [100.0, 300.0], "broker": [98.0, 300.0]}],
    "rates": {"broker": [200.0], "broker, standby": [150.0]},
}  # fmt: skip
SOAK: dict[str, Any] = {
    "machine": MACHINE, "upgrades": 3, "vms": 8, "seconds": [5.0, 7.0, 6.0],
    "frames": {"to VMs": {"sent": 7, "lost": 0, "doubled": 1, "reordered": 0}},
    "sizes": {"broker": [{"upgrades": 0, "memory_kb": 30000, "descriptors": 100},
                         {"upgrades": 3, "memory_kb": 30100, "descriptors": 100}]},
}  # fmt: skip
WAY = {"gaps_ms": [2.0, 4.0], "whole_ms": [5.0, 4.0], "seconds": 12.25,
       "frames": {"sent": 900, "lost": 1, "doubled": 2, "reordered": 0}}  # fmt: skip
HOSTS: dict[str, Any] = {
    "machine": MACHINE,
    "cases": [{"case": {"vms": 64, "queues": 4}, "bridges": 2, "ways": {"takeover": WAY},
               "stopped_ms": {"vm1": 8.0, "vm2": 12.0}, "steps": {"wire": 2.0, "adopt": 30.0}}],
}  # fmt: skip


def slot(way: str, cycles: float, lost: int = 0) -> dict[str, Any]:
    return {"way": way, "cost": {"cycles": cycles, "p50_us": 150.0, "p99_us": 400.0, "lost": lost, "doubled": 0}}


def window_report() -> dict[str, Any]:
    ways = [way for way, base in window_cost.BASES.items() if way != base]
    slots = [slot(way, cycles) for way in window_cost.BASES for cycles in (100.0, 300.0)]
    return {"machine": MACHINE, "rate": 5000, "seconds": 2.0, "slots": [*slots, slot(ways[0], 400.0, lost=3)]}


def test_a_section_has_the_figures_of_its_report() -> None:
    text = report.scale(SCALE).text
    assert "| 64 x 4 | 3 | 200 | 300 | 300 | 40 | 44 |" in text
    assert "| 64 x 4 | 30000 | 500 | 0.12 | 20 |" in text
    assert "| 64 x 4 | sending | 1.0 | 1.0 | 1.1 | 1.1 | 1.2 | 1.2 |" in text
    assert "| 64 x 4 | receiving | 1.5 | 1.5 | 1.8 | 1.8 | - | - |" in text
    assert "| direct | 2 | 200 | 320000.0 | 1.000 (1.000 to 1.000) |" in report.forwarding(FORWARDING).text
    assert "| broker | 2 | 199 | 321608.0 | 0.990 (0.980 to 1.000) |" in report.forwarding(FORWARDING).text
    assert "| broker, standby | 1 | 150 | 426666.7 | 0.750 (0.750 to 0.750) |" in report.forwarding(FORWARDING).text
    assert "| 64 x 4 | 3 | 200 | 300 | 300 | 40 | 44 |" in report.patched(SCALE).text
    hosts = host_report.hosts(HOSTS).text
    assert "| 64 x 4 | takeover | 2 | 2.0 | 4.0 | 4.0 | 4.0 | 5.0 | 1 of 900 | 2 | 12.2 |" in hosts
    assert "| 64 x 4 | 2 | 2 | 8.0 | 12.0 | 12.0 | 30.0 | 32.0 |" in hosts
    window = host_report.window(window_report()).text
    assert f"| {window_cost.OUTSIDE} | 2 | 200 | - | - | 150 | 400 | 0 / 0 |" in window
    assert f"| {window_cost.OVERLAY[0]} | 3 | 267 | outside | " in window
    assert "| 150 | 400 | 3 / 0 |" in window
    assert "3 upgrades with 8 VMs; seconds of each: p50 6.0, p99 7.0, longest 7.0" in report.soak(SOAK).text
    assert "| broker | 30000 | 30100 | 100 | 100 |" in report.soak(SOAK).text


def test_a_page_has_the_sections_there_are_reports_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(report, "draw", lambda path, _paint: drawn.append(path))
    (tmp_path / "soak-report.json").write_text(json.dumps(SOAK))
    assert report.write(tmp_path, tmp_path / "performance.md") == ["soak"]
    page = (tmp_path / "performance.md").read_text()
    assert "Machine: 2 CPUs, a processor, Linux 6.1." in page
    assert "## Soak" in page
    assert "## Handover" not in page
    assert drawn == [tmp_path / "performance" / "soak.svg"]
    assert "](performance/soak.svg)" in page


def test_without_reports_there_is_no_section(tmp_path: Path) -> None:
    assert report.write(tmp_path, tmp_path / "performance.md") == []


def test_a_section_without_a_report_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "draw", lambda *_: None)
    page = tmp_path / "performance.md"
    (tmp_path / "soak-report.json").write_text(json.dumps(SOAK))
    (tmp_path / "scale-report.json").write_text(json.dumps(SCALE))
    report.write(tmp_path, page)
    before = page.read_text()
    (tmp_path / "soak-report.json").unlink()
    (tmp_path / "scale-report.json").write_text(json.dumps(SCALE | {"machine": MACHINE | {"cpus": 4}}))
    (tmp_path / "hosts-report.json").write_text(json.dumps(HOSTS))
    assert report.write(tmp_path, page) == ["scale", "hosts"]
    after = page.read_text()
    assert after[after.index("## Soak") :] == before[before.index("## Soak") :]
    assert after.index("## Handover") < after.index("## Taking over a running switch") < after.index("## Soak")
    assert "Machine: 2 CPUs" in after
    assert "Machine: 4 CPUs" in after
    report.write(tmp_path, page)
    assert page.read_text() == after
