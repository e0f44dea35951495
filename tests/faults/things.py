"""Strikes the parts of the host that are not processes: the disks of two directories, the newest journal, the clock.

The disks are small file systems of the lab's own. The clock of one lab cannot be set without setting the machine's. So
on a bed with a clock of its own, all processes of this program read the time of day with an offset from a file
(``clock/sitecustomize.py``); a unit test checks that they read it in no other way. Their monotonic clock is the
machine's, which also does not change when CLOCK_REALTIME is set (clock_settime(2)). Preloading libfaketime(1) does not
work: with its version 0.9.10 the sleeps of Python 3.11 fail (EINVAL of clock_nanosleep) with every setting for the
monotonic clock. The switches keep the machine's time of day: they stamp their logs with it, and use the monotonic clock
for everything else (OVS, lib/timeval.c).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ovs_hotswap.config import Config
from ovs_hotswap.lab import Lab
from ovs_hotswap.system import Completed, System
from tests.faults.matrix import Fault

_CUSTOMS = Path(__file__).parent / "clock"
_DISK = "64m"
_FILLER, _CLOCK = "filler", "clock"
_BLOCKS = (1 << 20, 4096, 1)
_OFFSETS = {Fault.AHEAD: b"+3600\n", Fault.BACK: b"-3600\n"}
_NO_OFFSET = b"+0000\n"  # as long as the others, so that one write replaces all of it


class DiskLab(Lab):
    """A lab that has one file system for state_dir and one for run_dir."""

    def _make_guests(self) -> None:
        for directory in (self.layout.run_dir, self.layout.state_dir):
            self._system.run(["mount", "-t", "tmpfs", "-o", f"mode=0755,size={_DISK}", "tmpfs", str(directory)])
        self.layout.switch_dir.mkdir()
        super()._make_guests()


class Clocked(System):
    """Gives the processes that it starts an environment in which the time of day can be set."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / _CLOCK
        self.environment = {"PYTHONPATH": str(_CUSTOMS), "OVSH_CLOCK_OFFSET": str(self._file)}
        self.set_clock(None)

    def set_clock(self, fault: Fault | None) -> None:
        with self._file.open("r+b" if self._file.exists() else "wb", buffering=0) as file:
            file.write(_OFFSETS[fault] if fault else _NO_OFFSET)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        own = {**self.environment, **(env or {})}
        return super().run(argv, timeout=timeout, check=check, stdin=stdin, env=own)

    def spawn(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> int:
        return super().spawn(argv, log=log, env={**self.environment, **(env or {})})


def fill(directory: Path) -> None:
    """Leave no byte free on the file system of ``directory``, which no other directory uses."""
    assert directory.is_mount(), directory
    with (directory / _FILLER).open("wb", buffering=0) as filler:
        for size in _BLOCKS:
            with contextlib.suppress(OSError):
                while True:
                    filler.write(b"x" * size)


def forbid_writing(directory: Path, system: System) -> None:
    """Prevent that files below ``directory`` are opened for writing. The file system itself cannot be made read-only
    while the journal is open (mount(2), EBUSY), so files that are open already stay writable."""
    system.run(["mount", "--bind", str(directory), str(directory)])
    system.run(["mount", "-o", "remount,bind,ro", str(directory)])


def repair(config: Config, system: System) -> None:
    """Make room, and permit writing."""
    for directory in (config.state_dir, config.run_dir):
        if os.statvfs(directory).f_flag & os.ST_RDONLY:
            system.run(["umount", "--lazy", str(directory)])  # a process may have a file of it open
        (directory / _FILLER).unlink(missing_ok=True)


def damage(journals: Path, fault: Fault) -> None:
    """Overwrite the present journal. If there is none, make one that is a damaged copy of the last journal."""
    current = journals / "current.jsonl"
    newest = current if current.exists() else max(journals.glob("*.jsonl"), default=current)
    text = newest.read_bytes() if newest.exists() else b'{"version": 1}\n'
    if newest is not current:
        text = text[: text.index(b"\n") + 1]  # the journal of an upgrade that has just begun
    match fault:
        case Fault.TRUNCATE:
            text = text[: len(text) // 2]
        case Fault.GARBLE:
            text = b"}{" * (len(text) // 2) + b"\n"
        case Fault.MISSHAPE:
            text = b'[{"version": "journal"}, null]\n'
    with current.open("r+b" if current.exists() else "wb", buffering=0) as file:
        file.truncate(0)
        file.write(text)


def put_away(journals: Path) -> None:
    """Move a damaged journal away, as its error says."""
    current = journals / "current.jsonl"
    if current.exists():
        current.rename(journals.parent / "damaged-journal")
