"""The record of a job: a command that changes something, and that runs on whether or not it is watched.

This module is pure. ``store`` has the directories of the jobs, ``launch`` starts one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ovs_hotswap.errors import StateUnknown

KEPT = 50
"""How many ended jobs are kept."""
EVENTS_MAX = 4 << 20
"""Bytes of events that are kept of one job. What it prints after that is left out; its exit code is kept."""
BEGINS_S = 60.0
"""A job that has not recorded its process within this time does not begin any more."""
_ID = re.compile(r"\d{8}-\d{6}-[a-z-]+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Job:
    """What a job was asked to do. ``arguments``: its command line after the name of the program. ``started``: in
    seconds since the epoch. ``directory``: the working directory. ``asks``: whether a person was there to answer
    questions. ``by``: who started it."""

    id: str
    arguments: tuple[str, ...]
    started: float
    directory: str = "/"
    asks: bool = False
    by: str = ""

    def document(self) -> dict[str, object]:
        return {"id": self.id, "arguments": list(self.arguments), "started": self.started,
                "directory": self.directory, "asks": self.asks, "by": self.by}  # fmt: skip

    @classmethod
    def parse(cls, document: object) -> Job:
        """Read what ``document`` wrote. Raises StateUnknown."""
        match document:
            case {"id": str(name), "arguments": list(arguments), "started": int() | float() as started, **rest}:
                directory, by = (str(rest.get(key, "")) for key in ("directory", "by"))
                asks = rest.get("asks") is True
                return cls(name, tuple(map(str, arguments)), float(started), directory or "/", asks, by)
        raise StateUnknown("the record of a job cannot be read", hint="`ovs-hotswap job list`")


class JobState(enum.StrEnum):
    """Where a job stands. ``LOST``: it did not begin in time, or its process was killed and left no exit code."""

    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"
    LOST = "lost"


def state_of(*, age_s: float, begun: bool, alive: bool, exit_code: int | None) -> JobState:
    """The state of a job that was started ``age_s`` seconds ago. ``begun``: its process has recorded itself; ``alive``:
    that process runs."""
    if exit_code is not None:
        return JobState.ENDED
    if alive:
        return JobState.RUNNING
    return JobState.STARTING if not begun and age_s < BEGINS_S else JobState.LOST


def new_id(stamp: str, words: Iterable[str], taken: Collection[str]) -> str:
    """An id for a job that was started at ``stamp`` (YYYYmmdd-HHMMSS) and whose command has the names ``words``. It is
    unlike those in ``taken``."""
    name = re.sub(r"[^a-z-]", "", "-".join(words).lower()).strip("-") or "command"
    first = f"{stamp}-{name}"
    number, found = 1, first
    while found in taken:
        number += 1
        found = f"{first}.{number}"
    return found


def is_id(name: str) -> bool:
    """Whether a directory can be that of a job."""
    return _ID.fullmatch(name) is not None


def superfluous(states: Mapping[str, JobState], kept: int) -> list[str]:
    """The ids of jobs whose records are removed: all but the ``kept`` newest of those that have ended. The order of ids
    is that of their start."""
    ended = sorted((name for name, state in states.items() if state in {JobState.ENDED, JobState.LOST}), key=order)
    return ended[: max(0, len(ended) - kept)]


def order(name: str) -> tuple[str, int, str]:
    """The key by which ids are sorted from the oldest to the newest."""
    first, _, number = name.partition(".")
    return first[:15], int(number or 1), first


def command_name(arguments: Iterable[str]) -> list[str]:
    """The names of group and command in the arguments of a job, for its id."""
    words: list[str] = []
    skip = False
    for word in arguments:
        if skip:
            skip = False
        elif word == "--config":
            skip = True
        elif word.startswith("-"):
            if words:
                break
        elif re.fullmatch(r"[a-z-]+", word) and len(words) < 2:
            words.append(word)
        else:
            break
    return words
