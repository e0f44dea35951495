"""``python -m tools.schema``: the JSON schemas of what the broker and the commands ``vm``, ``diagnose``, ``trace``,
``bursts``, ``doctor``, ``check`` and ``report`` print.

The schemas are in ``docs/json``; a test fails if they are not those of the types. A field that is not ``required`` is
missing in the document of an older broker, or in one back-end mode.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter

from ovs_hotswap.backends import MoveResult, VmStatus
from ovs_hotswap.broker.control.status import BrokerStatus
from ovs_hotswap.bursts.found import Report as Bursts
from ovs_hotswap.diagnose.found import Report as Diagnosis
from ovs_hotswap.doctor.report import Report
from ovs_hotswap.reports.document import RunReport
from ovs_hotswap.tracing.found import Trace
from ovs_hotswap.upgrade.stock_checks import StockReport

DIRECTORY = Path(__file__).parents[1] / "docs" / "json"
Kind: TypeAlias = "VmStatus | MoveResult | BrokerStatus | Report | Diagnosis | Bursts | StockReport | RunReport | Trace"

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TITLES: dict[str, tuple[type[Kind], str]] = {
    "vm": (VmStatus, "ovs-hotswap vm show --json, and each of `vms` of ovs-hotswap vm list --json"),
    "move": (MoveResult, "the result of the control socket's method `move`"),
    "broker": (BrokerStatus, "ovs-hotswap broker status --json"),
    "diagnose": (Diagnosis, "ovs-hotswap diagnose --json"),
    "trace": (Trace, "ovs-hotswap trace --json"),
    "bursts": (Bursts, "ovs-hotswap bursts --json"),
    "doctor": (Report, "ovs-hotswap doctor --json"),
    "check-clone": (StockReport, 'ovs-hotswap check --json with program = "clone"'),
    "report": (RunReport, "ovs-hotswap report show --json, and ID.json in the directory of the reports"),
}


def schemas() -> dict[str, str]:
    """The text of each file, by its name."""
    return {f"{name}.schema.json": _text(kind, title) for name, (kind, title) in _TITLES.items()}


def _text(kind: type[Kind], title: str) -> str:
    found = TypeAdapter(kind).json_schema()
    found["properties"].pop("unreported", None)  # which fields are missing is not a field
    return json.dumps({"$schema": _DIALECT, "title": title, **_plain(found)}, indent=2) + "\n"


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing to a reader of documents: titles that repeat names, defaults that are not printed, and
    docstrings, which are about the code."""
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in {"title", "default", "description"}:
            continue
        if key in {"properties", "$defs"}:
            found[key] = {name: _plain(each) for name, each in value.items()}
        elif isinstance(value, dict):
            found[key] = _plain(value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found[key] = [_plain(each) for each in value]
        else:
            found[key] = value
    return found


def write(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    for name, text in schemas().items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    write(DIRECTORY)
