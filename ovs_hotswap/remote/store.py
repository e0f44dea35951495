"""The directories of jobs, ``<run_dir>/jobs/<id>``: what was asked, who works on it, its events, and its exit code.

The directories are in ``run_dir``, which is usually in memory: a job can be started when the disk of ``state_dir`` is
full, because a rollback has to be possible then. A boot ends all jobs, and removes their records.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovs_hotswap.errors import HotswapError, StateUnknown
from ovs_hotswap.remote import jobs
from ovs_hotswap.remote.jobs import Job, JobState
from ovs_hotswap.system import System, files, pid_text
from ovs_hotswap.trust import own_directory

_POLL_S = 0.05
_LOOK_S = 0.5  # between two looks whether the process of a job lives
_ANSWER_S = 600.0
_PLACEHOLDER = "-\n"
_UNCLAIMED = "unclaimed"
_LEFT_OUT = "the rest of what the job prints is left out"
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Look:
    """A job and where it stands."""

    job: Job
    state: JobState
    exit_code: int | None = None
    pid: int | None = None

    def document(self) -> dict[str, object]:
        return {**self.job.document(), "state": self.state, "exit_code": self.exit_code, "pid": self.pid}


class Jobs:
    """The jobs of one host."""

    def __init__(self, run_dir: Path, system: System, *, kept: int = jobs.KEPT) -> None:
        self.directory = run_dir / "jobs"
        self._run_dir, self._system, self._kept = run_dir, system, kept

    def create(self, arguments: Sequence[str], *, asks: bool, by: str) -> Job:
        """Record a new job, and remove the records of old ones. Raises ConfigError, HostError."""
        with files():
            own_directory(self._run_dir)
            self.directory.mkdir(exist_ok=True)
            self.directory.chmod(0o700)  # also a directory that was made with more rights
        self._remove_old()
        now = self._system.wall()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        while True:
            name = jobs.new_id(stamp, jobs.command_name(arguments), self.ids())
            job = Job(name, tuple(arguments), now, os.getcwd(), asks, by)
            with files(), contextlib.suppress(FileExistsError):
                (self.directory / name).mkdir(mode=0o700)
                break
        try:
            # The process and its exit code are written over these, also when the file system is full by then.
            for file in ("pid", "end"):
                self._system.write_atomic(self.directory / name / file, _PLACEHOLDER)
            self._system.write_atomic(self.directory / name / _UNCLAIMED, "")
            self._system.write_atomic(self.directory / name / "job.json", json.dumps(job.document()) + "\n")
        except HotswapError:
            shutil.rmtree(self.directory / name, ignore_errors=True)
            raise
        return job

    def ids(self) -> list[str]:
        """The ids of all jobs, the oldest first."""
        try:
            return sorted((name for name in os.listdir(self.directory) if jobs.is_id(name)), key=jobs.order)
        except FileNotFoundError:
            return []

    def look(self, name: str) -> Look:
        """A job and its state. Raises StateUnknown if there is no such job, or its record cannot be read."""
        if not jobs.is_id(name) or not (self.directory / name).is_dir():
            raise StateUnknown(f"there is no job {name}", hint="`ovs-hotswap job list`")
        try:
            job = Job.parse(json.loads((self.directory / name / "job.json").read_text()))
        except (OSError, ValueError) as error:
            raise StateUnknown(f"the record of job {name} cannot be read", hint="`ovs-hotswap job list`") from error
        file = self.directory / name / "pid"
        pid = self._system.read_writer(file, "execute")
        code = self._exit_code(name)  # after the process: it writes the code before it ends
        age_s = max(0.0, self._system.wall() - job.started)
        begun = False
        with contextlib.suppress(OSError):
            begun = file.read_text() != _PLACEHOLDER
        state = jobs.state_of(age_s=age_s, begun=begun, alive=pid is not None, exit_code=code)
        return Look(job, state, code, pid if state is JobState.RUNNING else None)

    def looks(self) -> list[Look]:
        """All jobs whose records can be read, the oldest first."""
        found = []
        for name in self.ids():
            with contextlib.suppress(StateUnknown):
                found.append(self.look(name))
        return found

    def newest(self) -> Look:
        """The newest job that runs, or else the newest one. Raises StateUnknown if there is none."""
        found = self.looks()
        at_work = [each for each in found if each.state in {JobState.STARTING, JobState.RUNNING}]
        if not found:
            raise StateUnknown("there is no job", hint="`ovs-hotswap status`")
        return (at_work or found)[-1]

    def recorder(self, name: str) -> Recorder:
        """What the process of the job writes with."""
        return Recorder(self.directory / name, self._system)

    def follow(self, name: str, *, idle: Callable[[], None] = lambda: None) -> Iterator[Event]:
        """Yield the events of a job from its beginning, and end when the job has ended. ``idle`` is called at least
        every 0.05 s while there is none."""
        ended, checked = False, -_LOOK_S
        path = self.directory / name / "events.jsonl"
        with _Tail(path) as tail:
            while True:
                found = tail.read()
                yield from found
                if found:
                    continue
                if ended:
                    return
                idle()
                now = self._system.monotonic()
                if self._exit_code(name) is not None or now - checked >= _LOOK_S:
                    checked = now
                    ended = self.look(name).state in {JobState.ENDED, JobState.LOST}
                if not ended:
                    self._system.sleep(_POLL_S)

    def answer(self, name: str, number: int, text: str) -> None:
        """Answer question ``number`` of a job, if it is not answered yet. Raises HostError."""
        if not self.answered(name, number):
            self._system.write_atomic(self.directory / name / f"answer-{number}", text + "\n")

    def answered(self, name: str, number: int) -> bool:
        return (self.directory / name / f"answer-{number}").exists()

    def claim(self, name: str) -> bool:
        """Decide what becomes of a job that has not begun: the process that is to work on it claims it, and so does a
        process that gives it up. Return whether this is the first claim; only the first one counts. So no job begins
        that was given up, and none begins twice. Raises HostError."""
        file = self.directory / name / _UNCLAIMED
        with files(file), contextlib.suppress(FileNotFoundError):
            file.unlink()
            return True
        return False

    def give_up(self, name: str) -> bool:
        """Remove the record of a job that could not be started. False: it has begun all the same."""
        if not self.claim(name):
            return False
        shutil.rmtree(self.directory / name, ignore_errors=True)
        return True

    def _exit_code(self, name: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self.directory / name / "end").read_text())
        return None

    def _remove_old(self) -> None:
        for name in jobs.superfluous({each.job.id: each.state for each in self.looks()}, self._kept):
            shutil.rmtree(self.directory / name, ignore_errors=True)


class Recorder:
    """Writes the events of a job. Nothing here raises: what a command does must not depend on its record."""

    def __init__(self, directory: Path, system: System, *, limit: int = jobs.EVENTS_MAX) -> None:
        self._directory, self._system, self._limit = directory, system, limit
        self._size, self._torn, self._full = 0, False, False
        self._questions = 0
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(
                directory / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )

    def begin(self) -> None:
        """Record this process as the one that works on the job."""
        with contextlib.suppress(HotswapError):
            self._system.write_short(self._directory / "pid", pid_text(os.getpid()))

    def write(self, event: Event) -> None:
        data = json.dumps(event).encode() + b"\n"
        if self._full or self._file is None:
            return
        if self._size + len(data) > self._limit:
            self._full = True
            data = json.dumps({"kind": "warning", "text": _LEFT_OUT}).encode() + b"\n"
        try:
            written = os.write(self._file, b"\n" + data if self._torn else data)
        except OSError:
            return
        self._size += written
        self._torn = written < len(data)

    def ask(self, text: str) -> str | None:
        """Ask those who follow the job, and return the first answer; ``None`` if there is none in ten minutes."""
        self._questions += 1
        self.write({"kind": "question", "text": text, "number": self._questions})
        file = self._directory / f"answer-{self._questions}"
        end = self._system.monotonic() + _ANSWER_S
        while not file.exists():
            if self._system.monotonic() > end:
                return None
            self._system.sleep(_POLL_S)
        return file.read_text().strip()

    def end(self, exit_code: int) -> None:
        with contextlib.suppress(HotswapError):
            self._system.write_short(self._directory / "end", f"{exit_code}\n")


class _Tail:
    """Reads the complete lines of a file that grows and may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._rest = b""

    def __enter__(self) -> _Tail:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._file is not None:
            os.close(self._file)

    def read(self) -> list[Event]:
        """The events that are new. A line that is no event, because a full disk tore it, is left out."""
        if self._file is None:
            try:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return []
        *lines, self._rest = (self._rest + os.read(self._file, 1 << 16)).split(b"\n")
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    found.append(event)
        return found
