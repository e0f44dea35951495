"""Reads facts below a root directory, which is ``/`` on a host and a directory of its own in a test."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.wording import listed


@dataclass(frozen=True, slots=True)
class Root:
    """The root directory. A file that is not there is no error; a file that may not be read is (OSError)."""

    directory: Path = Path("/")

    def path(self, name: str | Path) -> Path:
        return self.directory / str(name).lstrip("/")

    @property
    def sys(self) -> Path:
        return self.path("sys")

    @property
    def proc(self) -> Path:
        return self.path("proc")

    def text(self, name: str | Path) -> str | None:
        """Return the text of a file without white space around it; ``None`` if there is no such file, or the kernel has
        no value for it."""
        try:
            return self.path(name).read_text(errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ProcessLookupError):
            return None
        except OSError as error:
            if isinstance(error, PermissionError):
                raise
            return None

    def need(self, name: str | Path) -> str:
        """Return the text of a file without which nothing can be said. Raises OSError if there is none."""
        text = self.text(name)
        if text is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path(name)))
        return text

    def need_directory(self, name: str | Path) -> Path:
        """Return the path of a directory without which nothing can be said. Raises OSError if there is none."""
        os.listdir(self.path(name))
        return self.path(name)

    def numbers(self, name: str | Path) -> frozenset[int]:
        return listed(self.text(name) or "")

    def number(self, name: str | Path) -> int | None:
        text = self.text(name) or ""
        return int(text) if text.lstrip("-").isdecimal() else None

    def names(self, directory: str | Path) -> list[str]:
        """Return the names in a directory, sorted; none if there is no such directory."""
        try:
            return sorted(os.listdir(self.path(directory)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def link(self, name: str | Path) -> str | None:
        """Return the last part of the target of a symbolic link, as which the kernel names drivers and groups."""
        try:
            return Path(os.readlink(self.path(name))).name
        except OSError:
            return None

    def exists(self, name: str | Path) -> bool:
        return self.path(name).exists()

    def mode(self, name: str | Path) -> Mode | None:
        """Return the owner and the mode of a file; ``None`` if there is none."""
        try:
            found = self.path(name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Mode(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


@dataclass(frozen=True, slots=True)
class Mode:
    """The permission bits, the user and the group of a file."""

    bits: int
    user: int
    group: int
