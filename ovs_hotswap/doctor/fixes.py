"""What `doctor --fix` does: it runs the command of a safe finding, and keeps a record with which it can be undone.

Only three forms of commands are understood, and each changes one value that is read before. The record is on the disk
before the change is made. An undo puts a value back only if nothing else has changed it since.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.errors import HostError, HotswapError
from ovs_hotswap.system import System, files
from ovs_hotswap.toml_file import Strict

_WRITE = re.compile(r"echo (\S+) > (/(?:sys|proc)/\S+)")
_MODE = re.compile(r"chmod ([0-7]{3,4}) (/\S+)")
_ENABLE = re.compile(r"systemctl enable (\S+\.service)")
_SYSTEMCTL_S = 10.0


class Change(Strict, extra="ignore"):
    """A change of one value, from ``before`` to ``after``. ``target`` is a file, or a unit. ``time``: seconds since the
    epoch."""

    action: Literal["write", "mode", "enable"]
    target: str
    before: str
    after: str
    command: str
    time: float = 0.0


class Changes(Strict, extra="ignore"):
    """The record of all changes that were made and not undone."""

    format: Literal[1] = 1
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Undone:
    """A change that was to be undone. ``why_not`` is empty if its earlier value is in force."""

    change: Change
    why_not: str = ""


class Fixer:
    """Makes and undoes changes below ``root``, and keeps their record in ``state_dir``."""

    def __init__(self, root: Root, state_dir: Path, system: System) -> None:
        self._root, self._system = root, system
        self.record = state_dir / "doctor.json"

    def plan(self, command: str) -> Change | None:
        """Return the change that a command makes; ``None`` if it is not of a known form. Raises HostError."""
        if found := _WRITE.fullmatch(command):
            change = Change(action="write", target=found[2], before="", after=found[1], command=command)
        elif found := _MODE.fullmatch(command):
            change = Change(action="mode", target=found[2], before="", after=found[1].zfill(4), command=command)
        elif found := _ENABLE.fullmatch(command):
            change = Change(action="enable", target=found[1], before="", after="enabled", command=command)
        else:
            return None
        return change.model_copy(update={"before": self._value(change)})

    def make(self, change: Change) -> Change:
        """Make a change and return it with the value that is in force afterwards. Raises HotswapError, also if the
        value is still the earlier one."""
        made = change.model_copy(update={"time": self._system.wall()})
        kept = self.changes()
        self._keep((*kept, made))
        try:
            self._set(made, made.after)
        except HotswapError:
            self._keep(kept)
            raise
        now = self._value(made)
        if now == made.before:
            self._keep(kept)
            raise HostError(f"{made.target} stays {made.before}: the machine does not do that",
                            hint=f"`{made.command}`, and `dmesg`")  # fmt: skip
        made = made.model_copy(update={"after": now})
        self._keep((*kept, made))
        return made

    def changes(self) -> tuple[Change, ...]:
        """Return the changes that were made and not undone, the oldest first. Raises HostError."""
        try:
            with files(self.record):
                return Changes.model_validate_json(self.record.read_bytes()).changes
        except HostError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return ()
            raise
        except ValidationError as error:
            raise HostError(f"{self.record}: is not a record of changes", hint=f"rm {self.record}") from error

    def undo(self, change: Change) -> Undone:
        """Put the earlier value back, and take the change out of the record. A value that another program has changed
        since stays as it is. Raises HotswapError; the record then still has the change."""
        now = self._value(change)
        why_not = ""
        if now == change.after:
            self._set(change, change.before)
        elif now != change.before:
            why_not = f"it is {now} now, and not {change.after}"
        self._keep(tuple(each for each in self.changes() if each != change))
        return Undone(change, why_not)

    # -- one value

    def _value(self, change: Change) -> str:
        if change.action == "enable":
            argv = ["systemctl", "is-enabled", change.target]
            return self._system.run(argv, timeout=_SYSTEMCTL_S, check=False).stdout.strip() or "unknown"
        path = self._root.path(change.target)
        with files(path):
            if change.action == "mode":
                return f"{stat.S_IMODE(path.stat().st_mode):04o}"
            return path.read_text().strip()

    def _set(self, change: Change, value: str) -> None:
        if change.action == "enable":
            verb = "enable" if value == "enabled" else "disable"
            self._system.run(["systemctl", verb, change.target], timeout=_SYSTEMCTL_S)
            return
        path = self._root.path(change.target)
        with files(path):
            if change.action == "mode":
                path.chmod(int(value, 8))
            else:
                path.write_text(f"{value}\n")

    def _keep(self, changes: tuple[Change, ...]) -> None:
        with files(self.record.parent):
            self.record.parent.mkdir(parents=True, exist_ok=True)
        self._system.write_atomic(self.record, Changes(changes=changes).model_dump_json(indent=1) + "\n")
