"""Where the series are, and their files."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.errors import PatchError
from ovs_hotswap.patches.series import (
    MANIFEST_FILE,
    SERIES_FILE,
    Series,
    parse_index,
    parse_manifest,
    parse_patch,
)

_QEMU = "qemu"
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+~-]*")


@dataclass(frozen=True, slots=True)
class Stored:
    """A series with its files. ``digest``: SHA-256 of the patches, in order; ``diffs``: what git is given of each."""

    series: Series
    directory: Path
    digest: str
    diffs: tuple[bytes, ...]


def default_root() -> Path:
    """The directory with ``patches/`` and ``qemu-patches/``: the checkout that this package runs from, else
    ``share/ovs-hotswap`` where it is installed (``data_files`` in setup.cfg)."""
    checkout = Path(__file__).parents[2]
    installed = Path(sys.prefix) / "share" / "ovs-hotswap"
    return checkout if (checkout / "setup.cfg").is_file() else installed


class Store:
    """The series below ``root``: ``patches/COMPONENT/VERSION`` and ``qemu-patches/VERSION``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> tuple[str, ...]:
        """``COMPONENT/VERSION`` of each series."""
        return tuple(sorted(self._directories()))

    def load(self, name: str) -> Stored:
        """Raises PatchError if there is no such series or if its files are faulty."""
        directory = self._directories().get(name)
        if directory is None:
            known = self.names()
            hint = f"known are: {', '.join(known)}" if known else "name a directory that has series with --patches"
            raise PatchError(f"{self.root}: there is no series {name!r}", hint=hint)
        component, _, version = name.partition("/")
        where = directory / SERIES_FILE
        index = parse_index(_read(where).decode(errors="replace"), str(where))
        if index.component != component:
            raise PatchError(f"{where}: its component is {index.component!r}, not {component!r}")
        contents = tuple(_read(directory / patch) for patch in index.patches)
        manifest = directory / MANIFEST_FILE
        series = Series(
            component, version, index.upstream, index.unpacked_by,
            tuple(
                parse_patch(patch, content.decode(errors="surrogateescape"))
                for patch, content in zip(index.patches, contents, strict=True)
            ),
            parse_manifest(_read(manifest).decode(errors="replace"), str(manifest)),
        )  # fmt: skip
        digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
        diffs = tuple(_lines(content, *patch.diff) for patch, content in zip(series.patches, contents, strict=True))
        return Stored(series, directory, digest, diffs)

    def _directories(self) -> dict[str, Path]:
        return {name: path for name, path in self._candidates() if _VERSION.fullmatch(path.name)}

    def _candidates(self) -> Iterator[tuple[str, Path]]:
        for path in self.root.glob(f"patches/*/*/{SERIES_FILE}"):
            yield f"{path.parents[1].name}/{path.parent.name}", path.parent
        for path in self.root.glob(f"qemu-patches/*/{SERIES_FILE}"):
            yield f"{_QEMU}/{path.parent.name}", path.parent


def _lines(content: bytes, first: int, end: int) -> bytes:
    return b"".join(line + b"\n" for line in content.split(b"\n")[first:end])


def _read(path: Path) -> bytes:
    """Of a regular file; a link could show any file of the machine in an error or a tree."""
    if path.is_symlink() or not path.is_file():
        raise PatchError(f"{path}: not a regular file")
    return path.read_bytes()
