"""What `doctor --fix` does: it runs the command of a safe finding, and keeps a record with which it can be undone.

Only three forms of commands are understood, and each changes one value that is read before. The record is on the disk
before the change is made. An undo puts a value back only if nothing else has changed it since, and only in the boot
that it was changed in, if it does not last longer: after the next one, the same name may be of another thing.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.errors import HostError, HotswapError
from ovs_hotswap.system import System, files
from ovs_hotswap.toml_file import Strict
from ovs_hotswap.trust import along

_WRITE = re.compile(r"echo (\S+) > (/(?:sys|proc)/\S+)")
_MODE = re.compile(r"chmod ([0-7]{3,4}) (/\S+)")
_ENABLE = re.compile(r"systemctl enable (\S+\.service)")
_SYSTEMCTL_S = 10.0
_OF_ONE_BOOT = ("/sys/", "/proc/", "/run/")


class Change(Strict, extra="ignore"):
    """A change of one value, from ``before`` to ``after``. ``target`` is a file, or a unit. ``time``: seconds since the
    epoch. ``boot``: the boot that the change is gone after; empty if it stays. ``made`` is false until it is known that
    the change was made: ``after`` is then what was asked for."""

    action: Literal["write", "mode", "enable"]
    target: str
    before: str
    after: str
    command: str
    time: float = 0.0
    boot: str = ""
    made: bool = True

    def is_in_force(self, now: str) -> bool:
        """Whether the value ``now`` is what this change has left. The kernel may give fewer huge pages than it was
        asked for, and how many they were is not known if doctor was killed."""
        if now == self.after:
            return True
        counts = (self.before, now, self.after)
        return not self.made and all(map(str.isdecimal, counts)) and int(self.before) < int(now) < int(self.after)


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
        """Return the change that a command makes; ``None`` if it is not of a known form, or would not improve anything
        any longer. Raises HostError if it cannot be undone."""
        if found := _WRITE.fullmatch(command):
            change = Change(action="write", target=found[2], before="", after=found[1], command=command)
        elif found := _MODE.fullmatch(command):
            change = Change(action="mode", target=found[2], before="", after=found[1].zfill(4), command=command)
        elif found := _ENABLE.fullmatch(command):
            change = Change(action="enable", target=found[1], before="", after="enabled", command=command)
        else:
            return None
        before = self._value(change)
        if before == change.after or (_counts_pages(change) and int(before) >= int(change.after)):
            return None
        if change.action == "enable" and before != "disabled":
            raise HostError(f"{change.target} is {before}, which could not be put back",
                            hint=f"`systemctl status {change.target}`")  # fmt: skip
        boot = self._boot() if change.target.startswith(_OF_ONE_BOOT) else ""
        return change.model_copy(update={"before": before, "boot": boot})

    def make(self, change: Change) -> Change:
        """Make a change and return it with the value that is in force afterwards. Raises HotswapError, also if the
        value is still the earlier one."""
        with self._alone():
            made = change.model_copy(update={"time": self._system.wall(), "made": False})
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
            made = made.model_copy(update={"after": now, "made": True})
            self._keep((*kept, made))
            return made

    def changes(self) -> tuple[Change, ...]:
        """Return the changes that were made and not undone, the oldest first, without those that ended with a boot.
        Raises HostError, also if others could have written the record: root puts back what it says."""
        if faults := along(self.record):
            raise HostError(f"{self.record} is not believed: {'; '.join(faults)}",
                            hint="chown root: and chmod go-w what it names")  # fmt: skip
        try:
            with files(self.record):
                found = Changes.model_validate_json(self.record.read_bytes()).changes
            return tuple(each for each in found if each.boot in ("", self._boot()))
        except HostError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return ()
            raise
        except ValidationError as error:
            raise HostError(f"{self.record}: is not a record of changes", hint=f"rm {self.record}") from error

    def undo(self, change: Change) -> Undone:
        """Put the earlier value back, and take the change out of the record. A value that another program has changed
        since stays as it is. Raises HotswapError; the record then still has the change."""
        with self._alone():
            why_not = self._undo(change)
            self._keep(tuple(each for each in self.changes() if each != change))
            return Undone(change, why_not)

    def _undo(self, change: Change) -> str:
        """Put the earlier value back, or return why not."""
        try:
            now = self._value(change)
        except HostError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return "it is not there any longer"
            raise
        if change.is_in_force(now):
            self._set(change, change.before)
        elif now != change.before:
            return f"it is {now} now, and not {change.after}"
        return ""

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other doctor change the host, and the record, at the same time. Raises BusyError."""
        with self._system.lock(self.record.with_suffix(".lock"), "a change by doctor"):
            yield

    def _boot(self) -> str:
        return self._root.text("proc/sys/kernel/random/boot_id") or "unknown"

    # -- one value

    def _value(self, change: Change) -> str:
        if change.action == "enable":
            argv = ["systemctl", "is-enabled", change.target]
            return self._system.run(argv, timeout=_SYSTEMCTL_S, check=False).stdout.strip() or "unknown"
        path = self._root.path(change.target)
        with files(path):
            if change.action == "write":
                return path.read_text().strip()
            with _itself(path) as (_, mode):
                return f"{mode:04o}"

    def _set(self, change: Change, value: str) -> None:
        if change.action == "enable":
            verb = "enable" if value == "enabled" else "disable"
            self._system.run(["systemctl", verb, change.target], timeout=_SYSTEMCTL_S)
            return
        path = self._root.path(change.target)
        with files(path):
            if change.action == "write":
                path.write_text(f"{value}\n")
                return
            with _itself(path) as (same, _):
                os.chmod(same, int(value, 8))

    def _keep(self, changes: tuple[Change, ...]) -> None:
        with files(self.record.parent):
            self.record.parent.mkdir(parents=True, exist_ok=True)
        self._system.write_atomic(self.record, Changes(changes=changes).model_dump_json(indent=1) + "\n")


def _counts_pages(change: Change) -> bool:
    return change.target.endswith("/nr_hugepages")


@contextlib.contextmanager
def _itself(path: Path) -> Iterator[tuple[str, int]]:
    """Yield a name of the file that ``path`` is now, which leads to it also if ``path`` is exchanged, and its mode.
    Raises HostError if it is a link: who may change a directory's entries could make root change another file."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISLNK(mode):
            raise HostError(f"{path} is a symbolic link, and doctor changes no file that it did not look at",
                            hint=f"`ls -l {path}`")  # fmt: skip
        yield f"/proc/self/fd/{descriptor}", stat.S_IMODE(mode)
    finally:
        os.close(descriptor)
