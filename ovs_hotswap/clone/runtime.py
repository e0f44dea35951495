"""The settings of a running switch that are in no database: read from the active side, given to the new one."""

from __future__ import annotations

from ovs_hotswap.clone.applied import Applied, ask, attempt, commands_of
from ovs_hotswap.clone.runtime_settings import READERS, Setting, Settings, changes, different, summary
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.paths import InstancePaths


def read(paths: InstancePaths, *, timeout: float = 10.0) -> Settings:
    """Return the settings that this switch can tell. Raises SwitchError, and NoAnswer after ``timeout`` seconds."""
    commands = commands_of(paths.vswitchd_ctl, timeout=timeout)
    found: dict[str, Setting] = {}
    for command, reader in READERS.items():
        if command[0] in commands:
            found.update(reader(ask(paths.vswitchd_ctl, command, timeout=timeout)))
    return found


def apply(paths: InstancePaths, active: Settings, *, cut: bool, timeout: float = 10.0) -> Applied:
    """Give the new side the active side's settings. What it refuses now it may take later: a route, for example, needs
    the address of the bridge's device. ``cut``: the new side has the traffic; what it has stays, and what it lacks is
    added. Raises SwitchError, after which the new side has its own settings again."""
    ctl = paths.vswitchd_ctl
    due = changes(active, read(paths, timeout=timeout), commands_of(ctl, timeout=timeout), cut=cut)
    done = Applied()
    try:
        for change in due:
            refused = tuple(attempt(ctl, change.put, timeout=timeout))
            done += Applied(() if refused else (change.name,), refused, () if refused else change.undo)
    except SwitchError as error:
        try:
            list(attempt(ctl, done.undo, timeout=timeout))
        except SwitchError as again:
            error.add_note(f"the settings that were changed before it could not be put back: {again.message}")
        raise
    count = len(done.done)
    return Applied((f"settings of the running switch: {count}",) if count else (), summary(done.refused), done.undo)


def differences(paths: InstancePaths, active: Settings, *, timeout: float = 10.0) -> tuple[str, ...]:
    """Return a line for each setting that differs, the first twenty. Raises SwitchError."""
    return summary(different(active, read(paths, timeout=timeout)))
