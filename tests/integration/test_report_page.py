"""The page of a report in a real browser: with 4 and with 255 VMs, in light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from ovs_hotswap.model import Severity
from ovs_hotswap.reports.document import (
    CheckResult,
    Gap,
    GapSource,
    Happening,
    Outcome,
    Pings,
    RunReport,
    Stage,
    StageResult,
    VmPart,
)
from ovs_hotswap.reports.page import page as page_of
from tests.support.browser import CONTRAST, LEAST_CONTRAST
from tests.support.browser import browser as browser
from tests.unit.report_sample import BEGUN, upgrade

SIZES = (4, 255)
WIDTH, HEIGHT = 1280, 900


def guests(vm: VmPart, number: int) -> VmPart:
    """The VM with a guest that counts its answers."""
    ms = 10.5 + number / 10
    seen = Gap(GapSource.GUEST, ms, None, "soak", "vm2")
    return replace(vm, gaps=(seen, *vm.gaps), pings=(Pings("vm2", 900, number % 2, 0, ms, 11.0, 10.4),))


def report(count: int) -> RunReport:
    """A run that has all that a page can show: it failed, was put back, warned, and was slower than usual."""
    found = upgrade(count)
    failed = Stage("soak", BEGUN + 3, BEGUN + 13, result=StageResult.FAILED, text="vm1 is not served")
    stages = (*found.stages[:3], failed, Stage("move", BEGUN + 13, BEGUN + 14, undo=True))
    checks = tuple(CheckResult("precheck", "rings", severity, f"a finding {severity}", "`df`") for severity in Severity)
    return replace(
        found, outcome=Outcome.ROLLED_BACK, failed_step="soak", failure="vm1 is not served", hint="`df`", stages=stages,
        warnings=("vm1: a frame was lost",), checks=checks, restart_ms=1158.0,
        happenings=(Happening(BEGUN + 5, "an interrupted plan was taken up again"),),
        vms=tuple(guests(vm, number) for number, vm in enumerate(found.vms)),
    )  # fmt: skip


def earlier(count: int) -> list[RunReport]:
    """Runs in which the step was quicker."""
    quick = (Stage("soak", BEGUN, BEGUN + 1),)
    return [
        replace(upgrade(count), id=f"2026112{day}-005320-upgrade", started=BEGUN - day, stages=quick) for day in (1, 2)
    ]


@pytest.fixture(params=SIZES)
def vms(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def page(browser: Browser, tmp_path: Path, vms: int) -> Iterator[Page]:
    file = tmp_path / "report.html"
    file.write_text(page_of(report(vms), earlier(vms)))
    with browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}) as context:
        opened = context.new_page()
        problems: list[str] = []
        opened.on("console", lambda message: problems.append(message.text))
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("request", lambda request: problems.extend([request.url] * (not request.url.startswith("file:"))))
        opened.goto(file.as_uri())
        yield opened
        assert problems == []


def test_the_first_screen_says_how_it_ended_and_why(page: Page) -> None:
    for selector in ("h1", ".about", ".cards", ".box >> nth=0", ".box >> nth=1"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= HEIGHT, selector


def test_nothing_is_wider_than_the_window(page: Page) -> None:
    for width in (WIDTH, 1920, 700, 400):
        page.set_viewport_size({"width": width, "height": HEIGHT})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [WIDTH, 400])
def test_every_mark_is_within_its_chart_and_none_is_invisible(page: Page, vms: int, width: int) -> None:
    page.set_viewport_size({"width": width, "height": HEIGHT})
    charts = page.locator(".chart svg[role=img]")
    assert charts.count() == 2
    for chart, marks_of_a_vm in zip(charts.all(), (3, 1), strict=True):
        found = chart.evaluate("""svg => {
          const all = svg.getBoundingClientRect();
          return [...svg.querySelectorAll('circle, path, rect')].map(each => each.getBoundingClientRect())
            .map(box => [box.left - all.left, all.right - box.right, box.top - all.top, all.bottom - box.bottom,
                         box.width, box.height]);
        }""")
        assert len(found) == vms * marks_of_a_vm
        assert all(min(left, right, above) >= -6 and below >= 0 for left, right, above, below, _, _ in found)
        assert all(wide >= 1.9 and high >= 1.9 for _, _, _, _, wide, high in found)


def test_texts_of_a_chart_do_not_cover_each_other(page: Page) -> None:
    for width in (WIDTH, 400):
        page.set_viewport_size({"width": width, "height": HEIGHT})
        for chart in page.locator(".chart svg[role=img]").all():
            boxes = [box for text in chart.locator("text:visible").all() if (box := text.bounding_box())]
            for number, one in enumerate(boxes):
                for other in boxes[number + 1 :]:
                    apart = one["x"] + one["width"] <= other["x"] + 1 or other["x"] + other["width"] <= one["x"] + 1
                    assert apart or abs(one["y"] - other["y"]) >= 10, (width, one, other)


def test_bars_of_the_timeline_are_within_their_tracks(page: Page) -> None:
    bars = page.locator(".track span").evaluate_all("""all => all.map(bar => [bar, bar.parentElement])
      .map(both => both.map(each => each.getBoundingClientRect()))
      .map(([bar, track]) => [bar.width, bar.left - track.left, track.right - bar.right])""")
    assert len(bars) == 5
    assert all(width >= 3 and left >= -0.5 and right >= -0.5 for width, left, right in bars)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_either_scheme(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    closed = page.locator("details:not([open]) summary")
    while closed.count():
        closed.first.click()
    for selector in ("h1", ".about", "header .quiet", ".cards dt", ".cards strong", ".cards span", ".box p", ".note",
                     ".lane .name", ".took", ".slow", ".usual", ".why", ".legend li", "tbody th", "td", ".lossy",
                     ".sev.error", ".sev.warning", ".sev.unknown", ".sev.ok", "tr.own td", "footer"):  # fmt: skip
        shown = page.locator(f"{selector}:visible").all()[:20]
        assert shown, selector
        for found in shown:
            assert found.evaluate(CONTRAST) >= LEAST_CONTRAST, (selector, found.inner_text())


def test_a_printed_page_keeps_its_colours_and_columns(page: Page) -> None:
    page.emulate_media(media="print")
    assert page.locator(".track span").first.evaluate("e => getComputedStyle(e).printColorAdjust") == "exact"
    assert page.pdf().startswith(b"%PDF")
    page.set_viewport_size({"width": 794, "height": 1123})  # A4 at 96 dots per inch
    wide = "e => e.scrollWidth > document.documentElement.clientWidth"
    assert not any(table.evaluate(wide) for table in page.locator("table").all())
