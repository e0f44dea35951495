"""The journal of a plan: an append-only file of JSON lines, each of which is on the disk before the act it announces.

``<state_dir>/journal/current.jsonl`` is the journal of the plan under way; journals of ended plans are kept beside it.
The first line is the ``Header``. A last line that a power cut tore is ignored: its act was not begun, because
``append`` returns, and the act begins, only when the line is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, ValidationError

from ovs_hotswap.errors import BusyError, HostError, StateUnknown
from ovs_hotswap.plan.records import Facts, Kind, PlanProgress, Record, StepNames, fold
from ovs_hotswap.system import System, files, host_error
from ovs_hotswap.toml_file import Strict

FORMAT = 2
_OLDER = frozenset({1})  # its steps have former names, and it is otherwise the same
KEPT = 20
_YEAR_9999 = 253_370_764_800.0
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_ENDED = re.compile(r"\d{8}T\d{6}\.\d{6}Z-")
FORMER_STEPS = {
    "standby": "start-standby", "window": "open-window", "peer": "join-peer-link", "record": "record-active",
}  # fmt: skip
"""The names of steps in the journals of earlier versions, which are read as the names that the steps have now."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Documentation/admin-guide/sysctl/kernel.rst: "random"

StepName = Annotated[str, AfterValidator(lambda name: FORMER_STEPS.get(name, name))]


class Header(Strict):
    """The first line of a journal.

    ``parameters`` is what the plan was asked to do, ``versions`` has those of this program and of the releases.
    ``started`` is in seconds since the epoch. ``before`` and ``after`` are the step names on either side of the commit.
    """

    version: int = FORMAT
    kind: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    before: tuple[StepName, ...]
    after: tuple[StepName, ...]
    started: Annotated[float, Field(ge=0, lt=_YEAR_9999, allow_inf_nan=False)]
    boot_id: str

    @property
    def shape(self) -> StepNames:
        return StepNames(self.before, self.after)


class _Line(Strict):
    record: Kind
    step: StepName = ""
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    text: str = ""
    time: float


class _Version(Strict, extra="ignore"):
    version: int


@dataclass(frozen=True, slots=True)
class Contents:
    """A parsed journal.

    ``times`` are those of the records, in seconds since the epoch. ``size`` is the length, in bytes, of the complete
    lines; a torn line begins there.
    """

    header: Header
    records: tuple[Record, ...]
    times: tuple[float, ...]
    size: int

    @property
    def standing(self) -> PlanProgress:
        """Where the plan stands according to the records. Raises StateUnknown if they make no sense."""
        return fold(self.header.shape, self.records)

    @property
    def boot_id(self) -> str:
        """The boot id of the host when the plan was last worked on."""
        resumes = [record.text for record in self.records if record.kind is Kind.RESUME]
        return resumes[-1] if resumes else self.header.boot_id


def parse(data: bytes, name: str) -> Contents | None:
    """Parse the bytes of a journal, which is called ``name`` in errors.

    Returns ``None`` if not even the header is complete: nothing was begun then. Raises StateUnknown, which names the
    line, if anything but a torn last line is wrong.
    """
    lines = _whole_lines(data)
    if not lines:
        return None
    header = _header(lines[0], name)
    parsed = [_record(line, name, number) for number, line in enumerate(lines[1:], 2)]
    return Contents(
        header,
        tuple(Record(line.record, line.step, line.facts, line.text) for line in parsed),
        tuple(line.time for line in parsed),
        sum(len(line) + 1 for line in lines),
    )


def _whole_lines(data: bytes) -> list[bytes]:
    """Return the lines without a torn last one.

    A torn line has no newline at its end, or NUL in it where blocks never reached the disk.
    """
    *lines, _torn = data.split(b"\n")
    if lines and b"\0" in lines[-1]:
        lines.pop()
    return lines


def _header(line: bytes, name: str) -> Header:
    try:
        version = _Version.model_validate_json(line).version
        if version == FORMAT or version in _OLDER:
            return Header.model_validate_json(line)
    except ValidationError as error:
        raise _corrupt(name, 1) from error
    raise StateUnknown(
        f"{name}: journal format {version}, this program knows {FORMAT}",
        hint="take the version of ovs-hotswap that began the plan",
    )


def _record(line: bytes, name: str, number: int) -> _Line:
    try:
        return _Line.model_validate_json(line)
    except ValidationError as error:
        raise _corrupt(name, number) from error


def _corrupt(name: str, number: int) -> StateUnknown:
    return StateUnknown(
        f"{name}: line {number} is not a journal record: the file was damaged or edited",
        hint="see which instance owns each VM with `ovs-hotswap vm list`; then move the file away",
    )


class Journal:
    """An open journal. At the end of its context it is closed and, if its plan has ended, moved into the history.

    A journal can be opened and read even if it cannot be written, because a rollback does not have to write it.
    ``ended``: the plan has ended, even if there was no room to write that.
    """

    def __init__(self, path: Path, contents: Contents, system: System, *, rebooted: bool, owner: Journals) -> None:
        self.path = path
        self.header = contents.header
        self.records: Sequence[Record] = contents.records
        self.rebooted = rebooted
        """Whether the host was restarted since the plan was last worked on, so that no process of that time is left."""
        self._system, self._owner = system, owner
        self._size = contents.size
        self.ended = contents.standing.ended
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            os.ftruncate(self._descriptor, self._size)
        except OSError:  # ``append`` will raise
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def append(self, record: Record) -> None:
        """Write ``record`` and return when it is on the disk. Raises HostError if that fails; it is not there then."""
        line = _Line(
            record=record.kind, step=record.step, facts=_plain(record.facts), text=record.text,
            time=self._system.wall(),
        )  # fmt: skip
        data = line.model_dump_json(exclude_defaults=True).encode() + b"\n"
        try:
            if not fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & os.O_ACCMODE:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            _write_all(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise HostError(
                f"{self.path}: cannot be written: {error.strerror}",
                hint=f"{host_error(error).hint or 'repair that'}; `ovs-hotswap status` says what is left to do",
            ) from error
        self._size += len(data)
        self.ended = self.ended or record.kind is Kind.END

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        if self.ended:
            with contextlib.suppress(HostError):  # the next plan does it
                self._owner.archive(self.header)


class Journals:
    """The journals of one host. A process must hold the upgrade lock to write one."""

    def __init__(self, state_dir: Path, system: System, *, boot_id: Path = BOOT_ID) -> None:
        self.directory = state_dir / "journal"
        self._current = self.directory / "current.jsonl"
        self._system = system
        self._boot_id = boot_id

    def begin(
        self, kind: str, shape: StepNames, *, parameters: Facts | None = None, versions: dict[str, str] | None = None
    ) -> Journal:
        """Create the journal of a new plan.

        Raises BusyError if a plan is under way, StateUnknown if its journal is damaged, and HostError if the journal
        cannot be written.
        """
        last = self._parse()
        if last is not None and last.standing.ended:
            self.archive(last.header)  # its writer died after the plan's end and before archiving it
        elif last is not None:
            raise BusyError(
                f"an {last.header.kind} begun {_stamp(last.header.started)} is not finished",
                hint="`ovs-hotswap resume` or `ovs-hotswap rollback`",
            )
        header = Header(
            kind=kind, parameters=_plain(parameters or {}), versions=versions or {}, before=shape.before,
            after=shape.after, started=self._system.wall(), boot_id=self._this_boot(),
        )  # fmt: skip
        with files(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        self._system.write_atomic(self._current, header.model_dump_json() + "\n")
        return self._open(header)

    def read(self) -> Contents | None:
        """Return the unfinished plan, or ``None``, without changing anything. Raises StateUnknown if it is damaged."""
        contents = self._parse()
        return None if contents is None or contents.standing.ended else contents

    def reopen(self) -> Journal | None:
        """Return the journal of the unfinished plan, to continue it, or ``None``. Raises StateUnknown if it is damaged.

        A journal that cannot be written raises only at the next record, because a rollback does not need to write it.
        """
        contents = self.read()
        if contents is None:
            return None
        journal = self._open(contents.header)
        with contextlib.suppress(HostError):
            journal.append(Record(Kind.RESUME, text=self._this_boot()))
        return journal

    def rebooted(self, contents: Contents) -> bool:
        """Whether the host was restarted since ``contents`` was last worked on."""
        return contents.boot_id != self._this_boot()

    def history(self) -> list[Path]:
        """Return the journals of ended plans, newest first.

        Other files there, such as a damaged journal that was moved away, are left out.
        """
        return sorted((path for path in self.directory.glob("*.jsonl") if _ENDED.match(path.name)), reverse=True)

    def ended(self) -> Iterator[Contents]:
        """Yield the ended plans, newest first.

        That includes a plan whose journal is still the current one because it could not be renamed. Raises HostError,
        and StateUnknown for a damaged journal.
        """
        current = self._parse()
        if current is not None and current.standing.ended:
            yield current
        for path in self.history():
            with files(path):
                data = path.read_bytes()
            contents = parse(data, str(path))
            if contents is not None:
                yield contents

    def archive(self, header: Header) -> None:
        """Move the current journal into the history, and remove all but the latest 20 from it. Raises HostError."""
        stamp = datetime.fromtimestamp(header.started, UTC)
        for newest in self.history()[:1]:  # the clock may have been set back since: the order is what counts
            with contextlib.suppress(ValueError, OverflowError):  # it is named like a journal, and is none
                stamp = max(stamp, _time_of(newest) + timedelta(microseconds=1))
        with files(self._current):
            self._current.rename(self.directory / f"{stamp.strftime(_STAMP)}-{header.kind}.jsonl")
        for path in self.history()[KEPT:]:
            with contextlib.suppress(OSError):  # the next plan does it
                path.unlink()

    def _open(self, header: Header) -> Journal:
        contents = self._parse()
        if contents is None or contents.header != header:
            raise StateUnknown(f"{self._current}: changed while it was opened", hint="`ovs-hotswap status`")
        return Journal(self._current, contents, self._system, rebooted=self.rebooted(contents), owner=self)

    def _parse(self) -> Contents | None:
        try:
            return parse(self._current.read_bytes(), str(self._current))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StateUnknown(f"{self._current}: cannot be read: {error.strerror}",
                               hint=host_error(error).hint) from error  # fmt: skip

    def _this_boot(self) -> str:
        return self._boot_id.read_text().strip()


def _plain(facts: Facts) -> dict[str, JsonValue]:
    """Return ``facts`` as plain JSON values: tuples become lists, mappings become dictionaries."""
    return {key: _plain_value(value) for key, value in facts.items()}


def _plain_value(value: object) -> JsonValue:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(each) for each in value]
    raise TypeError(f"{value!r} cannot be kept in a journal")


def _time_of(path: Path) -> datetime:
    stamp, _, _ = path.name.partition("-")
    return datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
