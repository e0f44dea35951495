"""The files of the reports: for each one ``ID.json``, and ``ID.html`` which shows it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.reports.document import FORMAT, RunReport
from ovs_hotswap.reports.page import page
from ovs_hotswap.system import System, files

KEPT = 50
"""How many reports are kept."""
_ID = re.compile(r"\d{8}-\d{6}-[a-z]+(\.\d+)?")
_LIST = "`ovs-hotswap report list`"


@cache
def _adapter() -> TypeAdapter[RunReport]:
    return TypeAdapter(RunReport)


def document(report: RunReport) -> str:
    """The JSON text of a report."""
    return _adapter().dump_json(report, indent=2).decode() + "\n"


def parse(text: str, name: str) -> RunReport:
    """Read what ``document`` wrote; ``name`` is that of its file. Fields of a later version are left out. Raises
    StateUnknown."""
    try:
        found = _adapter().validate_json(text)
    except ValidationError as error:
        raise StateUnknown(f"{name}: it is no report of this version", hint=_LIST) from error
    if found.version > FORMAT:
        raise StateUnknown(f"{name}: report format {found.version}, this program knows {FORMAT}",
                           hint="read its page, the .html beside it")  # fmt: skip
    return found


class Reports:
    """The reports in one directory, which is made when the first one is written."""

    def __init__(self, directory: Path, system: System) -> None:
        self.directory = directory
        self._system = system

    def write(self, report: RunReport) -> RunReport:
        """Write a report and its page, in the place of an earlier one of the same run, and return it. It gets another
        id if another run has its own. The page compares it with the reports that are there. Raises HostError."""
        with files(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        others = self.all()
        report = replace(report, id=_free(report, others))
        self._system.write_atomic(self.directory / f"{report.id}.json", document(report))
        self._system.write_atomic(self.page(report.id), page(report, others))
        for old in self.ids()[KEPT:]:
            for path in (self.directory / f"{old}.json", self.page(old)):
                with contextlib.suppress(OSError):  # the next one does it
                    path.unlink(missing_ok=True)
        return report

    def page(self, name: str) -> Path:
        """The path of a report's page."""
        return self.directory / f"{name}.html"

    def ids(self) -> list[str]:
        """The ids of all reports, the newest first."""
        found = (path.stem for path in self.directory.glob("*.json") if _ID.fullmatch(path.stem))
        return sorted(found, reverse=True)

    def all(self) -> list[RunReport]:
        """All reports that can be read, the newest first."""
        found = []
        for name in self.ids():
            with contextlib.suppress(StateUnknown):
                found.append(self.read(name))
        return found

    def read(self, name: str) -> RunReport:
        """Read the report with this id. Raises StateUnknown if there is none, or it cannot be read."""
        path = self.directory / f"{name}.json"
        try:
            return parse(path.read_text(), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise StateUnknown(f"{path}: cannot be read: {error}", hint=_LIST) from error


def _free(report: RunReport, others: Sequence[RunReport]) -> str:
    """The id of a report, with a number if another run in the same second has it."""
    taken = {each.id for each in others if each.started != report.started}
    base, number = re.sub(r"\.\d+$", "", report.id), 1
    while (name := base if number == 1 else f"{base}.{number}") in taken:
        number += 1
    return name


def find(reports: Sequence[RunReport], name: str | None) -> RunReport:
    """The report whose id is ``name`` or begins with it, or the newest one for ``None``. Raises StateUnknown."""
    if name is None:
        if not reports:
            raise StateUnknown("there is no report yet", hint="an upgrade, a rollback and a failover leave one")
        return reports[0]
    exact = [each for each in reports if each.id == name]
    found = exact or [each for each in reports if each.id.startswith(name)]
    if len(found) != 1:
        raise StateUnknown(f"{'no report has' if not found else f'{len(found)} reports have'} an id that begins with "
                           f"{name!r}", hint=_LIST)  # fmt: skip
    return found[0]


def as_json(report: RunReport) -> dict[str, object]:
    """The document of a report as an object."""
    found = json.loads(document(report))
    assert isinstance(found, dict)
    return found
