"""A report beside earlier ones, its charts, and its page."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.model import Severity, Side
from ovs_hotswap.reports import charts, words
from ovs_hotswap.reports.comparison import Comparison, Figures, compare
from ovs_hotswap.reports.document import (
    CheckResult,
    Gap,
    GapSource,
    Happening,
    Outcome,
    Pings,
    RunKind,
    RunReport,
    Stage,
    StageResult,
    VmPart,
)
from ovs_hotswap.reports.page import page
from tests.unit.report_sample import BEGUN, upgrade

_VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Reads a page as a strict reader does: every element ends where it must. ``texts`` has the visible texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.texts.append(" ".join(data.split()))


def read(report: RunReport, *others: RunReport) -> Reader:
    return Reader(page(report, others))


def earlier(days: int, **changes: Any) -> RunReport:
    """An upgrade like the other one, so many days before it."""
    found = upgrade()
    return replace(found, id=f"2026-{days}", started=found.started - 86400 * days, **changes)


# ------------------------------------------------------------------------------------------------------- comparison


def test_a_run_is_compared_with_earlier_ones_that_are_like_it() -> None:
    own = upgrade()
    later, refused = earlier(-1), earlier(1, outcome=Outcome.REFUSED)
    other_plan, failover = earlier(2, steps=("precheck",)), earlier(3, kind=RunKind.FAILOVER)
    back, undone = earlier(5, kind=RunKind.ROLLBACK), earlier(4, outcome=Outcome.ROLLED_BACK)
    found = compare(own, [own, later, refused, other_plan, failover, back, undone])
    assert [each.report for each in found.earlier] == [undone, back]


def test_the_usual_time_of_a_step_is_the_median() -> None:
    def with_park(days: int, seconds: float, **more: Any) -> RunReport:
        stages = [Stage("park", 0, seconds), Stage("park", 0, 100.0, undo=True), Stage("move", 0, 1, **more)]
        return earlier(days, stages=tuple(stages))

    found = compare(upgrade(), [with_park(1, 1.0), with_park(2, 2.0), with_park(3, 9.0, result=StageResult.FAILED)])
    assert found.usual == {"park": 2.0, "move": 1.0}
    assert compare(upgrade(), [with_park(1, 1.0)]).usual == {}, "one run shows no usual time"


@pytest.mark.parametrize(("seconds", "slow"), [(0.9, False), (1.6, True), (1.4, False)])
def test_a_step_is_slow_if_it_took_clearly_longer(seconds: float, slow: bool) -> None:
    compared = Comparison(Figures.of(upgrade()), (), {"park": 1.0, "steer": 0.01})
    assert compared.slow("park", seconds) is slow
    assert not compared.slow("steer", 0.1), "a tenth of a second is noise"
    assert not compared.slow("soak", 99.0)


def test_figures_are_values_that_occurred() -> None:
    found = Figures.of(upgrade(100))
    assert (found.vms, found.p50_us, found.p99_us, found.worst_us) == (100, 150.0, 199.0, 200.0)
    assert found.longest_ms == pytest.approx(0.2)
    assert Figures.of(upgrade(0)) == Figures(upgrade(0), 0, None, None, None, None)


# ------------------------------------------------------------------------------------------------------------ charts


def test_a_lane_is_where_its_step_was() -> None:
    report = upgrade()
    found = charts.lanes(report, compare(report, []))
    assert [each.name for each in found] == ["precheck", "park", "move", "soak", "retire"]
    assert found[3].left == pytest.approx(100 * 3 / 14, abs=0.01)
    assert found[3].width == pytest.approx(100 * 10 / 14, abs=0.01)
    assert charts.commit_at(report) == pytest.approx(100 * 13 / 14, abs=0.01)
    assert charts.commit_at(replace(report, committed=None)) is None


def test_a_lane_shows_how_its_step_ended() -> None:
    bad = Stage("move", BEGUN, BEGUN + 1, result=StageResult.FAILED, text="deaf")
    report = replace(upgrade(), stages=(bad, replace(bad, undo=True, result=StageResult.DONE)))
    compared = replace(compare(report, []), usual={"move": 0.1})
    first, back = charts.lanes(report, compared)
    assert (first.look, first.note, first.slow, first.usual) == ("failed", "failed: deaf", True, "100 ms")
    assert (back.name, back.look, back.slow, back.usual) == ("undo move", "done undo", False, "")


@pytest.mark.parametrize("count", [2, 20, charts.NAMED, charts.NAMED + 1, 255])
def test_every_vm_is_in_both_charts(count: int) -> None:
    report = upgrade(count)
    gaps, order = charts.gaps(report), charts.order(report)
    for found in (gaps, order):
        assert found is not None
        assert len(found.marks) == count
        assert len(found.rows) == (count if count <= charts.NAMED else 0)
        assert all(0 <= mark.x <= 100 and 0 <= mark.y <= found.height for mark in found.marks)
    assert gaps is not None
    assert gaps.marks[0].text.startswith(f"vm{count}:"), "the longest gap is first"
    assert order is not None
    assert order.marks[0].text.startswith("vm1:")
    assert order.height < 900


def test_the_note_at_a_chart_is_about_that_chart() -> None:
    """If few of many VMs were handed over, their chart has a row for each of them."""
    report = upgrade(charts.NAMED + 2)
    report = replace(report, vms=(*report.vms[:2], *(replace(vm, handover_us=None) for vm in report.vms[2:])))
    texts = read(report).texts
    assert any("A bar is as long as its handover took." in text for text in texts)
    assert any("The worst VM is on the left." in text for text in texts)


def test_what_is_ten_times_as_long_is_as_far_to_the_right_everywhere() -> None:
    vms = [VmPart(f"vm{power}", gaps=(Gap(GapSource.HANDOVER, 10.0**power),)) for power in (2, 1, 0, -1)]
    found = charts.gaps(replace(upgrade(), vms=tuple(vms)))
    assert found is not None
    places = [mark.x for mark in found.marks]
    assert [round(a - b, 2) for a, b in pairwise(places)] == [31.33] * 3
    assert [tick.text for tick in found.across] == ["0.1 ms", "1 ms", "10 ms", "100 ms"]
    assert [tick.at for tick in found.across] == pytest.approx(places[::-1])


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=5))
def test_gaps_of_any_length_have_a_place(lengths: list[float]) -> None:
    vms = tuple(VmPart(f"vm{number}", gaps=(Gap(GapSource.GUEST, ms),)) for number, ms in enumerate(lengths))
    found = charts.gaps(replace(upgrade(), vms=vms))
    assert found is not None
    assert all(math.isfinite(mark.x) for mark in found.marks)
    assert 2 <= len(found.across) <= 340


@given(st.floats(0, 1e6))
def test_an_axis_has_some_ticks_at_round_numbers(longest: float) -> None:
    share, ticks = charts._linear(longest)
    assert 1 <= len(ticks) <= 8
    assert all(re.fullmatch(r"[\d.e+-]+ ms", text) for _, text in ticks)
    assert share(0) == 0


def test_without_gaps_there_is_no_chart() -> None:
    report = replace(upgrade(), vms=(VmPart("vm1"),))
    assert charts.gaps(report) is None
    assert charts.order(report) is None
    assert charts.order(upgrade(1)) is None, "one VM has no order"


# ------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0.064, "0.06 ms"), (8.41, "8.4 ms"), (120.4, "120 ms"), (1310, "1.31 s"), (61_000, "1 min 01 s"), (None, "-")],
)
def test_milliseconds(ms: float | None, text: str) -> None:
    assert words.milliseconds(ms) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0381, "38 ms"), (12.41, "12.4 s"), (245, "4 min 05 s"), (3720, "1 h 02 min"), (None, "-")]
)
def test_seconds(seconds: float | None, text: str) -> None:
    assert words.seconds(seconds) == text


OUTCOMES = [
    (RunKind.UPGRADE, Outcome.DONE, "Upgraded to trixie"),
    (RunKind.ROLLBACK, Outcome.DONE, "Rolled back to trixie"),
    (RunKind.UPGRADE, Outcome.ROLLED_BACK, "Upgrade undone"),
    (RunKind.ROLLBACK, Outcome.ROLLED_BACK, "Rollback undone"),
    (RunKind.UPGRADE, Outcome.REFUSED, "Upgrade refused: nothing was changed"),
    (RunKind.UPGRADE, Outcome.UNFINISHED, "Upgrade not finished"),
    (RunKind.FAILOVER, Outcome.DONE, "Failover from a to b"),
    (RunKind.FAILOVER, Outcome.INCOMPLETE, "Failover from a to b left VMs behind"),
]


@pytest.mark.parametrize(("kind", "outcome", "title"), OUTCOMES)
def test_every_outcome_has_a_title_and_a_page(kind: RunKind, outcome: Outcome, title: str) -> None:
    report = replace(upgrade(), kind=kind, outcome=outcome)
    assert words.title(report) == title
    assert title in read(report).texts


WHY: list[tuple[dict[str, Any], list[str]]] = [
    ({"outcome": Outcome.DONE, "failure": "x"}, []),
    ({"outcome": Outcome.INCOMPLETE, "kind": RunKind.FAILOVER, "failure": "x"}, ["x"]),
    ({"outcome": Outcome.INCOMPLETE, "kind": RunKind.FAILOVER}, []),
    ({"outcome": Outcome.REFUSED, "failed_step": "precheck", "failure": "x"}, ["Step precheck failed: x"]),
    ({"outcome": Outcome.REFUSED, "failed_step": "precheck", "failure": "x", "message": "no: x\ny"}, ["no: x", "y"]),
    ({"outcome": Outcome.ROLLED_BACK}, ["No step failed: it was undone by order."]),
    ({"outcome": Outcome.UNFINISHED}, ["It stopped in the step retire."]),
    ({"outcome": Outcome.UNFINISHED, "failure": "x", "message": "y"}, ["Step commit failed: x", "y"]),
]


@pytest.mark.parametrize(("changes", "texts"), WHY)
def test_why_it_ended_early(changes: dict[str, Any], texts: list[str]) -> None:
    assert words.why(replace(upgrade(), **changes)) == texts


def test_what_helps_next() -> None:
    assert words.advice(replace(upgrade(), hint="`df`")) == "`df`"
    assert "resume" in str(words.advice(replace(upgrade(), outcome=Outcome.UNFINISHED)))
    assert words.advice(replace(upgrade(), outcome=Outcome.INCOMPLETE)) == "`ovs-hotswap vm list`"
    assert words.advice(upgrade()) is None


# -------------------------------------------------------------------------------------------------------------- page


@pytest.mark.parametrize("count", [0, 1, 4, charts.NAMED, 255])
def test_the_page_needs_nothing_else(count: int) -> None:
    text = page(upgrade(count))
    found = Reader(text)
    assert not found.names & {"script", "link", "img", "iframe"}
    assert not [value for name, value in found.attributes if name in {"src", "href", "onclick", "srcset"}]
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert len(text) < 400_000


def test_every_vm_is_on_the_page_with_its_figures() -> None:
    texts = read(upgrade(255)).texts
    assert {f"vm{number}" for number in range(1, 256)} <= set(texts)
    assert "255 VMs, the longest gap first" in texts
    assert texts.count("neither instance had its rings") > 255


def test_texts_of_the_host_are_escaped() -> None:
    evil = '<script>alert(1)</script>&"'
    report = upgrade()
    report = replace(
        report, outcome=Outcome.ROLLED_BACK, host=evil, failure=evil, failed_step=evil, message=evil, hint=evil,
        warnings=(evil,), labels={"host": evil}, checks=(CheckResult("precheck", evil, Severity.ERROR, evil, evil),),
        happenings=(Happening(BEGUN + 1, evil),), stages=(replace(report.stages[0], name=evil),),
        vms=(VmPart(evil, 100.0, BEGUN + 2, (Gap(GapSource.GUEST, 1.0, None, evil, evil),), evil, evil,
                    (Pings(evil, 1, 0, 0, 1.0),)),), descriptions={evil: evil},
    )  # fmt: skip
    text = page(report)
    assert "<script" not in text
    assert evil in " ".join(Reader(text).texts)


def test_a_run_that_failed_says_why_first() -> None:
    report = replace(upgrade(), outcome=Outcome.ROLLED_BACK, failed_step="move", failure="vm1 is not served",
                     hint="`ovs-hotswap vm show vm1`", stages=(Stage("move", BEGUN, BEGUN + 1),
                     Stage("move", BEGUN + 1, BEGUN + 2, undo=True)))  # fmt: skip
    texts = read(report).texts
    place = texts.index("What went wrong, and what was put back")
    assert texts[place + 1 : place + 6] == [
        "Step move failed: vm1 is not served", "Undone, in this order: move.",
        "Never begun: precheck, park, soak, retire.", "Next:", "`ovs-hotswap vm show vm1`",
    ]  # fmt: skip
    assert place < texts.index("Timeline")


def test_what_guests_saw_is_beside_the_handover() -> None:
    vm = replace(upgrade().vms[0], pings=(Pings("vm2", 900, 3, 1, 21.5, 12.5, 20.5),),
                 gaps=(Gap(GapSource.GUEST, 21.5, None, "soak", "vm2"), *upgrade().vms[0].gaps))  # fmt: skip
    texts = read(replace(upgrade(), vms=(vm,), restart_ms=1158.0)).texts
    assert "a plain restart: 1.16 s" in texts
    assert "21.5 ms in soak" in texts
    assert texts[texts.index("Packets lost") + 1 :][:2] == ["3", "of 900 that guests sent; 1 doubled"]
    row = texts[texts.index("What it was") :]
    assert row[row.index("vm1") :][:10] == [
        "vm1", "0.10 ms", "21.5 ms", "soak", "its guest got no answer", "vm2", "900", "3", "12.5 ms", "21.5 ms",
    ]  # fmt: skip


PASSED: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["2", "all of them"]),
    ({"vms": ()}, ["0", "not known of any"]),
    ({"vms": (), "outcome": Outcome.REFUSED}, ["0", "nothing was changed"]),
    ({"vms": (VmPart("vm1", apart="left out"), VmPart("vm2", gaps=(Gap(GapSource.STOPPED, 7.0, None, "adopt"),)))},
     ["1", "1 taken over from a switch without a broker; 1 did not"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "shown"), PASSED)
def test_the_page_says_how_many_vms_passed(changes: dict[str, Any], shown: list[str]) -> None:
    texts = read(replace(upgrade(), **changes)).texts
    assert texts[texts.index("VMs that passed") + 1 :][:2] == shown


def test_each_shape_is_explained_if_it_is_there() -> None:
    gaps = (Gap(GapSource.UPLINK, 250.0, None, "steer"), Gap(GapSource.STOPPED, 7.0, None, "adopt"))
    texts = read(replace(upgrade(), vms=(VmPart("vm1", gaps=gaps),))).texts
    assert "QEMU stood still while the broker entered or no instance had the uplink" in texts
    assert "neither instance had its rings" not in texts
    assert "250 ms in steer" in texts


def test_findings_to_look_at_are_apart_from_those_that_are_well() -> None:
    checks = [CheckResult("precheck", f"check {severity}", severity, "text") for severity in Severity]
    texts = read(replace(upgrade(), checks=tuple(checks))).texts
    order = [texts.index(f"check {severity}") for severity in words.SEVERITIES]
    assert order == sorted(order)
    assert order[2] < texts.index("1 findings are well") < order[3]


def test_a_step_that_was_slow_is_marked_and_earlier_runs_are_listed() -> None:
    quick = [earlier(day, stages=(Stage("soak", BEGUN, BEGUN + 1),)) for day in (1, 2)]
    text = page(upgrade(), quick)
    assert '<span class="took slow">10.0 s</span>' in text
    texts = Reader(text).texts
    assert texts.index("20261130-005320-upgrade (this one)") < texts.index("2026-1") < texts.index("2026-2")
    assert "Beside earlier runs" not in read(upgrade()).texts


def test_a_failover_has_its_own_words() -> None:
    report = replace(
        upgrade(), kind=RunKind.FAILOVER, reason="its process is dead", protected_after_s=8.2, committed=None,
        stages=(Stage("steer", BEGUN, BEGUN + 0.01),), old=Side.A, new=Side.B,
        descriptions={"steer": "steer the uplink to the standby"},
    )  # fmt: skip
    texts = read(report).texts
    assert "instance a: its process is dead" in texts
    assert texts[texts.index("Protected again") + 1] == "8.20 s"
    assert texts.count("steer the uplink to the standby") == 1
    assert "Each stage from its beginning to its end, in order of time." in texts
