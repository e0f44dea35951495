"""Room for what ovs-hotswap writes: journals, releases, records and logs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.config import Config
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Kind, Section, ok
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.watchdog.log_rotation import LIMIT

_HERE = Section.DISK
FULL = Kind(_HERE, "space", Severity.ERROR)
LOW = Kind(_HERE, "space", Severity.WARNING)
NO_INODES = Kind(_HERE, "inodes", Severity.ERROR)
READ_ONLY = Kind(_HERE, "read-only", Severity.ERROR)
LONG_LOG = Kind(_HERE, "logs", Severity.WARNING)
_MIB = 1 << 20
# Both directories get two logs of each instance; the state directory gets journals and events besides.
_ENOUGH, _LITTLE = 8 * LIMIT, LIMIT
_LOGS = 4 * LIMIT  # a log that is longer is not rotated: the watchdog does that


@dataclass(frozen=True, slots=True)
class Volume:
    """The file system of a directory of the configuration, whose name is ``key``; sizes are in bytes."""

    key: str
    path: Path
    free: int
    inodes: int
    read_only: bool


@dataclass(frozen=True, slots=True)
class Log:
    path: Path
    size: int


def read(root: Root, config: Config) -> tuple[list[Volume], list[Log]]:
    keys = {"state_dir": config.state_dir, "run_dir": config.run_dir}
    logs = [*config.run_dir.glob("*.log"), *config.run_dir.glob("[ab]/*.log"), *config.state_dir.glob("*.log")]
    return [_volume(key, root.path(path)) for key, path in keys.items()], list(_sizes(logs))


def _sizes(logs: Iterable[Path]) -> Iterator[Log]:
    for path in logs:
        with contextlib.suppress(FileNotFoundError):  # it was rotated, or went with its instance
            yield Log(path, path.stat().st_size)


def _volume(key: str, path: Path) -> Volume:
    """Look at the file system of a directory, or of the next one above that exists."""
    place = next(each for each in (path, *path.parents) if each.exists())
    found = os.statvfs(place)
    # A file system that makes inodes as it needs them, such as btrfs, reports 0 of them.
    inodes = found.f_favail if found.f_files else 1 << 30
    return Volume(key, path, found.f_bavail * found.f_frsize, inodes, bool(found.f_flag & os.ST_RDONLY))


def judge(volumes: Iterable[Volume], logs: Iterable[Log] = ()) -> Iterator[Found]:
    for each in volumes:
        where, mib = f"{each.key} ({each.path})", each.free // _MIB
        most = f"du -xah {each.path} | sort -h | tail -n 20"
        if each.read_only:
            yield READ_ONLY(f"{where} cannot be written", f"mount -o remount,rw $(findmnt -nT {each.path} -o TARGET)")
        elif each.free < _LITTLE:
            yield FULL(f"{where} has {mib} MiB left: an upgrade cannot write its journal", most)
        elif each.free < _ENOUGH:
            yield LOW(f"{where} has {mib} MiB left", most)
        elif each.inodes < 1000:
            yield NO_INODES(f"{where} has {each.inodes} inodes left", f"df -i {each.path}")
        else:
            yield ok(_HERE, FULL.check, f"{where}: {mib} MiB left")
    for log in logs:
        if log.size > _LOGS:
            yield LONG_LOG(f"{log.path} has {log.size // _MIB} MiB and is not rotated", _shorter(log.path))


def _shorter(log: Path) -> str:
    """Return the command for a log that is too long. Those of instances that run are in a directory of the side."""
    truncated = f"truncate -s 0 {log}"
    return (
        f"`ovs-hotswap instance rotate-logs`; if it stays: `{truncated}`" if log.parent.name in {*Side} else truncated
    )
