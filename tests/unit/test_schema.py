"""The JSON schemas in ``docs/json``: they are those of the types, and the documents are as they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.reports.store import as_json as as_report
from tests.support.json_schema import faults
from tests.unit.report_sample import upgrade
from tests.unit.test_status import BROKER, DOCUMENT, as_json
from tools import schema

PAGE = schema.DIRECTORY.parent / "json.md"
VM = json.loads((schema.DIRECTORY / "vm.schema.json").read_text())
BROKER_SCHEMA = json.loads((schema.DIRECTORY / "broker.schema.json").read_text())
DOCTOR = json.loads((schema.DIRECTORY / "doctor.schema.json").read_text())
DIAGNOSE = json.loads((schema.DIRECTORY / "diagnose.schema.json").read_text())
CLONE = json.loads((schema.DIRECTORY / "check-clone.schema.json").read_text())
MOVE = json.loads((schema.DIRECTORY / "move.schema.json").read_text())
LATER = {"absent", "owner_since", "last_proof", "quarantine", "capture_bytes", "netdev"}


def test_the_published_schemas_are_those_of_the_types() -> None:
    published = {path.name: json.loads(path.read_text()) for path in schema.DIRECTORY.iterdir()}
    assert published == {name: json.loads(text) for name, text in schema.schemas().items()}, "python -m tools.schema"


def test_they_are_written_where_they_are_published(tmp_path: Path) -> None:
    schema.write(tmp_path / "json")
    assert sorted(path.name for path in (tmp_path / "json").iterdir()) == sorted(schema.schemas())


def test_documents_are_as_their_schema_says() -> None:
    assert faults(VM, DOCUMENT) == []
    assert faults(VM, {**DOCUMENT, "more": 1}) == [], "of a newer broker"
    assert faults(VM, {name: value for name, value in DOCUMENT.items() if name not in LATER}) == [], "of an older one"
    assert faults(BROKER_SCHEMA, as_json(BROKER)) == []
    assert faults(REPORT, as_report(upgrade())) == []
    assert faults(MOVE, {"vm": "vm1", "owner": None, "give_us": 0.0, "take_us": 0.0, "total_us": 0}) == []


@pytest.mark.parametrize("missing", sorted(DOCUMENT.keys() - LATER))
def test_what_every_broker_reports_is_required(missing: str) -> None:
    document = {name: value for name, value in DOCUMENT.items() if name != missing}
    assert faults(VM, document) == [f"document: no {missing}"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"qemu": "7"}, "document.qemu"), ({"qemu": True}, "document.qemu"), ({"owner": "c"}, "document.owner"),
    ({"certainty": "hopes"}, "document.certainty"), ({"moves": None}, "document.moves"),
    ({"switches": {"a": {}}}, "document.switches.a: no connected"), ({"rings": [{"index": 0}]}, "document.rings[0]"),
    ({"feature_names": [1]}, "document.feature_names[0]"), ({"absent": {"cause": "busy"}}, "document.absent"),
    ({"rings": {}}, "document.rings"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "where"), WRONG, ids=str)
def test_a_document_of_another_shape_is_none(change: dict[str, Any], where: str) -> None:
    assert any(fault.startswith(where) for fault in faults(VM, {**DOCUMENT, **change}))


def names(found: dict[str, Any], inside: dict[str, Any], prefix: str = "") -> set[str]:
    """The fields of a schema as docs/json.md writes them: `rings[].index`, `absent.cause`, `switches.a.pid`."""
    every = set()
    for name, each in found.get("properties", {}).items():
        every |= {prefix + name}
        kinds = [each, *each.get("anyOf", ()), each.get("items", {})]
        for kind in kinds:
            if "$ref" in kind:
                deeper = f"{prefix}{name}[]." if "items" in each else f"{prefix}{name}."
                every |= names(inside["$defs"][kind["$ref"].removeprefix("#/$defs/")], inside, deeper)
    return every


REPORT = json.loads((schema.DIRECTORY / "report.schema.json").read_text())
BURSTS = json.loads((schema.DIRECTORY / "bursts.schema.json").read_text())
PAGES = [(VM, "## vm"), (BROKER_SCHEMA, "## broker"), (DOCTOR, "## doctor"), (DIAGNOSE, "## diagnose"),
         (BURSTS, "## bursts"), (CLONE, "## check on a host that others program"), (REPORT, "## report")]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "heading"), PAGES, ids=["vm", "broker", "doctor", "diagnose", "bursts", "check", "report"]
)
def test_the_page_describes_every_field(found: dict[str, Any], heading: str) -> None:
    section = PAGE.read_text().partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    here = {name for name in names(found, found) if not name.startswith(("switches.b", "differing[]"))}
    assert [name for name in sorted(here) if f"`{name}`" not in section and name != "switches.a"] == []
