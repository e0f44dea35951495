"""The record of the active side: for this boot in run_dir, and with its release for the next one in state_dir."""

from __future__ import annotations

import contextlib

from ovs_hotswap.config import Active, Config, Program
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.system import System, files


def record(config: Config, system: System, side: Side, release: str | None) -> None:
    """Record ``side`` as the active one; the record for the next boot is only written if it changes. Raises HostError.
    In this boot ``side`` is the active one as soon as the first of the two files says it."""
    with files():
        config.run_dir.mkdir(parents=True, exist_ok=True)
    system.write_short(config.active_file, f"{side}\n")
    if release is None or config.program is Program.CLONE:  # there, the distribution starts its own switch
        return
    kept = Active(side=side, release=release)
    with contextlib.suppress(StateUnknown):
        if last(config) == kept:
            return
    with files():
        config.state_dir.mkdir(parents=True, exist_ok=True)
    system.write_short(config.restore_file, kept.model_dump_json() + "\n")


def recorded(config: Config, side: Side, release: str) -> bool:
    """Whether the next boot will start ``side`` with ``release``. It is False if the record cannot be read."""
    try:
        return last(config) == Active(side=side, release=release)
    except StateUnknown:
        return False


def rehearse(config: Config, system: System) -> None:
    """Check that ``record`` can write, before something is done that has to be recorded. Raises HostError."""
    for path in (config.active_file,) if config.program is Program.CLONE else (config.active_file, config.restore_file):
        system.see_writable(path)


def forget(config: Config, system: System) -> None:
    """Record that no side is active, now and after the next boot. If it raises HostError, the record is unchanged."""
    path = config.restore_file
    with files():
        kept = path.read_text(errors="replace") if path.exists() else None
        path.unlink(missing_ok=True)
        try:
            config.active_file.unlink(missing_ok=True)
        except OSError:
            if kept is not None:
                system.write_short(path, kept)
            raise


def last(config: Config) -> Active | None:
    """The side that was active last, in this boot or before it; ``None`` if none was, or it was stopped on purpose.
    Raises StateUnknown if the record cannot be read."""
    path = config.restore_file
    try:
        return Active.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValidationError is one, and so is text that is not UTF-8
        raise StateUnknown(
            f"{path}: cannot be read, so which side was active last is unknown",
            hint="`ovs-hotswap instance start a` starts one and makes it the active one",
        ) from error
