"""Checks who else could write to files that this program, as root, runs, reads or listens on: modes, owners, links."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ovs_hotswap.errors import ConfigError

# Smaller ids are users and groups of the system, such as Debian's polkitd and staff, who own some of its directories
# (login.defs(5): SYS_UID_MAX, SYS_GID_MAX).
SYSTEM_IDS = 1000
_SHOWN = 3
_CODE = {"bin", "etc", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "usr"}  # of a system's tree


def restrict_umask() -> None:
    """Set the umask so that others cannot write to files of this process: some init systems start with no umask."""
    os.umask(os.umask(0o022) | 0o022)


def own_directory(path: Path) -> None:
    """Create a directory of this program if it is missing.

    Raises ConfigError if another user could replace the directory or files in it: it has sockets to which QEMUs and
    switches connect, and records that this program trusts.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o755)
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} belongs to user {found.st_uid}, who could replace what is in it",
                          hint=f"chown root: {path}")  # fmt: skip
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: others could replace what is in it",
                          hint=f"chmod 755 {path}")  # fmt: skip
    for fault in _along(path):
        raise ConfigError(f"{fault}, so another user could replace {path}",
                          hint="chown root: and chmod go-w what it names, or take another directory")  # fmt: skip


def along(path: Path) -> list[str]:
    """Return faults, at most three: what users other than root and this one could change of a file or on its path."""
    return list(islice(_along(path), _SHOWN))


def _along(path: Path) -> Iterator[str]:
    """Yield the faults of a path. Links on the way count as well: the owner of a link decides where it leads."""
    path = Path(os.path.abspath(path))
    links = [place for place in (*reversed(path.parents), path) if place.is_symlink()]
    real = path.resolve()
    for place in dict.fromkeys((*links, *reversed(real.parents), real)):
        with contextlib.suppress(FileNotFoundError):
            if fault := _stranger(place):
                yield fault


def strangers(tree: Path, *, directories_alone: bool = False) -> list[str]:
    """Return faults, at most three: what users other than root and this one could change of a tree's code or above it.

    Directories in which a user can replace only the user's own files (sticky, like /tmp) are no fault. In a tree that
    is a complete system, the files below /var and /run are no code, and some belong to users of that system.
    """
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
