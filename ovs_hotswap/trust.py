"""Who else could write to what this program, as root, runs, reads and listens on: modes, owners and links."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ovs_hotswap.errors import ConfigError

# Below it are users and groups of the system, such as Debian's polkitd and staff, who own some of its directories
# (login.defs(5): SYS_UID_MAX, SYS_GID_MAX).
SYSTEM_IDS = 1000
_SHOWN = 3
_CODE = {"bin", "etc", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "usr"}  # of a system's tree


def restrict_umask() -> None:
    """Whatever this process and its children make, others cannot write to: some init systems start with no umask."""
    os.umask(os.umask(0o022) | 0o022)


def own_directory(path: Path) -> None:
    """Make a directory of ours where it is missing. Raises ConfigError if somebody else could replace what is in it, or
    the directory itself: sockets that QEMUs and switches connect to, records that are believed."""
    path.mkdir(parents=True, exist_ok=True, mode=0o755)
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} belongs to user {found.st_uid}, who could replace what is in it",
                          hint=f"chown root: {path}")  # fmt: skip
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: others could replace what is in it",
                          hint=f"chmod 755 {path}")  # fmt: skip
    for fault in _along(path):
        raise ConfigError(f"{fault}, so somebody else could replace {path}",
                          hint="chown root: and chmod go-w what it names, or take another directory")  # fmt: skip


def along(path: Path) -> list[str]:
    """What of a file, or on the way to it, others than root and this user could change, at most three of it."""
    return list(islice(_along(path), _SHOWN))


def _along(path: Path) -> Iterator[str]:
    """Links on the way are looked at as well: who owns one says where it leads."""
    path = Path(os.path.abspath(path))
    links = [place for place in (*reversed(path.parents), path) if place.is_symlink()]
    real = path.resolve()
    for place in dict.fromkeys((*links, *reversed(real.parents), real)):
        with contextlib.suppress(FileNotFoundError):
            if fault := _stranger(place):
                yield fault


def strangers(tree: Path, *, directories_alone: bool = False) -> list[str]:
    """What of a tree's code, or above it, others than root and this user could change, at most three of it. Directories
    in which nobody can replace what is not his own (sticky, like /tmp) are none of it; what a system of its own has
    below /var and /run is no code, and users of its own have some of that."""
    tree = tree.resolve()
    paths = _code(tree, directories_alone)
    return list(islice((fault for path in paths if (fault := _stranger(path))), _SHOWN))


def _code(tree: Path, directories_alone: bool) -> Iterator[Path]:
    yield from (*reversed(tree.parents), tree)
    for directory, directories, files in os.walk(tree):
        if Path(directory) == tree and "usr" in directories:
            directories[:] = [name for name in directories if name in _CODE]
        for name in directories if directories_alone else (*directories, *files):
            yield Path(directory, name)


def _stranger(path: Path) -> str | None:
    found = path.lstat()
    foreign = found.st_uid >= SYSTEM_IDS and found.st_uid != os.geteuid()
    if stat.S_ISLNK(found.st_mode):
        return f"{path} belongs to user {found.st_uid}" if foreign else None
    if foreign:
        return f"{path} belongs to user {found.st_uid}"
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return None
    if found.st_mode & stat.S_IWOTH and (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return f"{path} can be written by everybody"
    if found.st_mode & stat.S_IWGRP and found.st_gid >= SYSTEM_IDS and found.st_gid != os.getegid():
        return f"{path} can be written by group {found.st_gid}"
    return None
