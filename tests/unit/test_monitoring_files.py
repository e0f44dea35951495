"""Alert rules, dashboard and page of the metrics: they name metrics, labels and headings that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.counters.drops import Reason
from ovs_hotswap.metrics.catalogue import METRICS, PREFIX, Kind
from tests.unit.test_prose import anchors
from tools import dashboard

DOCS = Path(__file__).parents[2] / "docs"
RULES = (DOCS / "monitoring/alerts.yml").read_text()
ALERTS = re.findall(r"^      - alert: (\w+)$", RULES, re.MULTILINE)
RUNBOOK, PAGE = (DOCS / "runbook.md").read_text(), (DOCS / "monitoring.md").read_text()
_METRIC = re.compile(rf"\b{PREFIX}(\w+)\b(?:\{{([^{{}}]*)\}})?")
_MATCHER = re.compile(r"\b(\w+)\s*(?:=~|!~|!=|=)")


def named(text: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric of an expression, without the ending of a histogram's series, and the labels that it is asked for."""
    for found in _METRIC.finditer(text):
        name = found[1]
        histogram = re.sub(r"_(?:bucket|sum|count)$", "", name)
        if histogram in METRICS and METRICS[histogram].kind is Kind.HISTOGRAM:
            name = histogram
        yield name, set(_MATCHER.findall(found[2] or ""))


def expressions() -> list[str]:
    panels = [panel for panel in dashboard.dashboard()["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    return [*queries, *(each["expr"] for each in dashboard.dashboard()["annotations"]["list"])]


@pytest.mark.parametrize("text", [RULES, *expressions()])
def test_rules_and_panels_use_metrics_and_labels_that_exist(text: str) -> None:
    faults = [name for name, _ in named(text) if name not in METRICS]
    faults += [f"{name}: {label}" for name, labels in named(text) if name in METRICS
               for label in labels - {"host", *METRICS[name].labels}]  # fmt: skip
    assert faults == []


def test_the_check_sees_a_metric_and_a_label_that_do_not_exist() -> None:
    found = dict(named('ovs_hotswap_nothing + ovs_hotswap_active{sides="a"} + ovs_hotswap_handover_seconds_bucket'))
    assert found == {"nothing": set(), "active": {"sides"}, "handover_seconds": set()}


def test_reasons_in_rules_are_reasons() -> None:
    asked = {word for group in re.findall(r'reason(?:!~|=|!=)"([^"]*)"', RULES) for word in group.split("|")}
    assert asked, "the rules do ask for reasons"
    assert {word for word in asked if not any(re.fullmatch(word, reason) for reason in Reason)} == set()


def test_every_alert_has_a_heading_in_the_runbook_to_which_it_links_and_every_heading_an_alert() -> None:
    links = re.findall(r"^          runbook_url: docs/runbook\.md#(\S+)$", RULES, re.MULTILINE)
    assert links == [alert.lower() for alert in ALERTS]
    assert set(links) <= anchors(RUNBOOK)
    section = RUNBOOK.partition("\n## Alerts by name\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == ALERTS


def test_every_alert_has_a_severity_and_the_host_in_its_summary() -> None:
    rules = RULES.split("      - alert: ")[1:]
    assert len(rules) == len(ALERTS) > 30
    for rule in rules:
        assert re.search(r"labels: \{severity: (?:page|ticket)\}", rule), rule
        assert re.search(r'summary: "\{\{ \$labels\.(?:host|instance) \}\}: ', rule), rule


def test_every_metric_and_every_reason_is_on_the_page_and_in_the_runbook() -> None:
    rows = set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE))
    assert sorted(metric.name for metric in METRICS.values() if metric.name not in rows) == []
    assert sorted(reason for reason in Reason if f"`{reason}`" not in PAGE) == []


def test_the_published_dashboard_is_that_of_the_list() -> None:
    assert json.loads(dashboard.PATH.read_text()) == dashboard.dashboard(), "python -m tools.dashboard"


def test_panels_do_not_overlap_and_stay_within_the_row() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    numbers = [panel["id"] for panel in dashboard.dashboard()["panels"]]
    assert len(numbers) == len(set(numbers))
