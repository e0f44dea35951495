"""The summary of a run over a fleet in a real browser: what matters is visible, with 6 and with 1 000 hosts.

`tests/support/browser.py` has the browser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page

from tests.support import fleet_run
from tests.support.browser import CONTRAST, LEAST_CONTRAST
from tests.support.browser import browser as browser
from tests.support.collection import install, run_module

SIZES = {6: 3, 1000: 7}  # hosts, and how many of them need a person
WIDTH, HEIGHT = 1280, 900


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The page for each size, written by the module as Ansible runs it."""
    collections = install(tmp_path_factory.mktemp("collections"))
    found = {}
    for hosts, bad in SIZES.items():
        directory = tmp_path_factory.mktemp(f"run{hosts}")
        record, documents = fleet_run.fleet(hosts, bad, begun=None if hosts == 6 else hosts * 2 // 3)
        record["stopped"] = f"{bad} hosts failed, and at most 1 may"
        fleet_run.write(directory, record, documents)
        result = run_module(collections, "summary", directory=str(directory), final=True)
        assert result["changed"], result
        found[hosts] = Path(result["files"]["html"])
    return found


@pytest.fixture(params=SIZES)
def hosts(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def page(browser: Browser, pages: dict[int, Path], hosts: int) -> Iterator[Page]:
    with browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}) as context:
        opened = context.new_page()
        problems: list[str] = []
        opened.on("console", lambda message: problems.append(message.text))
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("request", lambda request: problems.extend([request.url] * (not request.url.startswith("file:"))))
        opened.goto(pages[hosts].as_uri())
        yield opened
        assert problems == []


def top(found: Locator) -> float:
    box = found.bounding_box()
    assert box is not None, "it is not shown"
    return box["y"]


def in_first_screen(found: Locator) -> bool:
    box = found.bounding_box()
    return box is not None and box["y"] + box["height"] <= HEIGHT and box["x"] + box["width"] <= WIDTH


def test_the_first_screen_answers_what_is_asked_first(page: Page, hosts: int) -> None:
    number = f"{hosts:,}".replace(",", " ")
    assert page.locator("h1").inner_text().startswith("Stopped")
    assert f"of {number} hosts run {fleet_run.RELEASE}" in page.locator(".about").inner_text()
    assert f"{SIZES[hosts]} hosts failed" in page.locator(".stop").inner_text()
    for shown in (
        page.locator("h1"),
        page.locator(".stop"),
        page.locator(".bar"),
        page.locator(".legend"),
        page.locator(".facts"),
        page.locator("#problems h2"),
        page.locator("#problems tbody tr").first,
    ):
        assert in_first_screen(shown)  # fmt: skip


def test_hosts_that_need_a_person_come_first_with_reason_and_command(page: Page, hosts: int) -> None:
    rows = page.locator("#problems tbody tr")
    assert rows.count() == SIZES[hosts]
    assert top(page.locator("#problems")) < top(page.locator("#map")) < top(page.locator("#waves"))
    for row in rows.all():
        assert row.locator("code").is_visible()
        assert row.locator(".why").inner_text().strip()


def test_the_map_has_a_cell_for_each_host_and_problems_stand_out(page: Page, hosts: int) -> None:
    cells = page.locator("#map a")
    assert cells.count() == hosts
    look = "e => { const s = getComputedStyle(e); return [e.textContent, s.borderRadius, s.borderWidth].join() }"
    states = ("upgraded", "failed", "rolled_back", "unreachable")
    looks = {state: page.locator(f"#map a.{state}").first.evaluate(look) for state in states
             if page.locator(f"#map a.{state}").count()}  # fmt: skip
    assert len(set(looks.values())) == len(looks) >= 3, "signs and shapes differ, and not the colours alone"
    boxes = [box for cell in (cells.first, cells.last) if (box := cell.bounding_box())]
    assert all(box["width"] >= 12 and box["height"] >= 12 for box in boxes)


def test_nothing_is_wider_than_the_window(page: Page) -> None:
    for width in (WIDTH, 1920, 700, 400):
        page.set_viewport_size({"width": width, "height": HEIGHT})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_either_scheme(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    seen = set()
    for selector in ("h1", ".about", ".stop", "h2", ".legend li", ".facts dt", ".facts strong", "tbody th", ".why",
                     "code", ".quiet", ".mark", "#map a"):  # fmt: skip
        for found in page.locator(f"{selector}:visible").all()[:20]:
            assert found.evaluate(CONTRAST) >= LEAST_CONTRAST, (selector, found.inner_text())
            seen.add(selector)
    assert len(seen) == 13
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_filter_and_the_order_of_columns_work(page: Page, hosts: int) -> None:
    shown = page.locator("tbody tr:visible")
    page.locator("#filter").fill("no route to host")
    unreachable = page.locator("#map a.unreachable").count()
    assert shown.count() == unreachable > 0
    assert page.locator("#shown").inner_text() == f"{unreachable} of {hosts}"
    page.locator("#clear").click()
    page.locator("#state").select_option("upgraded")
    assert shown.count() == page.locator("#map a.upgraded").count()
    page.locator("#clear").click()
    names = page.locator("#problems tbody th")
    head = page.locator("#problems thead button").first
    head.click()
    ascending = names.all_inner_texts()
    assert ascending == sorted(ascending)
    head.click()
    assert names.all_inner_texts() == ascending[::-1]


def test_a_cell_leads_to_the_row_of_its_host(page: Page) -> None:
    cell = page.locator("#map a.upgraded").last
    cell.click()
    row = page.locator("tr:target")
    assert row.is_visible()
    assert (cell.get_attribute("title") or "").startswith(row.locator("th").inner_text())


def test_the_page_is_complete_without_its_script(browser: Browser, pages: dict[int, Path], hosts: int) -> None:
    with browser.new_context(java_script_enabled=False, viewport={"width": WIDTH, "height": HEIGHT}) as context:
        page = context.new_page()
        page.goto(pages[hosts].as_uri())
        assert page.locator("#problems tbody tr").count() == SIZES[hosts]
        assert page.locator("h1").is_visible()
        assert not page.locator("#filter").is_visible()
        if page.locator("details.hosts").get_attribute("open") is None:
            page.locator("details.hosts summary").click()
        assert page.locator("tbody tr").last.is_visible()


def test_a_printed_page_keeps_the_colours_and_has_no_controls(page: Page, hosts: int) -> None:
    page.emulate_media(media="print")
    assert not page.locator("#filter").is_visible()
    assert page.locator("h1").is_visible()
    assert page.locator("#map a").first.evaluate("e => getComputedStyle(e).printColorAdjust") == "exact"
    assert page.pdf().startswith(b"%PDF")
    page.set_viewport_size({"width": 794, "height": 1123})  # A4 at 96 dots per inch
    wide = "e => e.scrollWidth > document.documentElement.clientWidth"
    assert not any(table.evaluate(wide) for table in page.locator("table").all())
    assert page.locator("#problems td.figure").first.is_visible()


def test_a_hostile_name_is_text(browser: Browser, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    directory = tmp_path / "run"
    fleet_run.write(directory, fleet_run.run(id=hostile, release=hostile), [])
    failed = {**fleet_run.host(hostile, hostile, "failed"), "reason": hostile}
    (directory / "hosts/x.json").write_text(json.dumps(failed))
    result = run_module(install(tmp_path / "collections"), "summary", directory=str(directory), final=True)
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(Path(result["files"]["html"]).as_uri())
        assert page.locator("img").count() == 0
        assert "owned" not in page.title().replace(hostile, "")
        assert hostile in page.locator("#problems .why").inner_text()
