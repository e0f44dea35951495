"""Reads the patch series that the project carries for QEMU, DPDK and Open vSwitch, and applies them to a source tree.

A series is a directory with these files:

``series``
    ``# key: value`` lines (``component``, ``upstream``, ``unpacked-by``), then the file name of each patch, in order.
``manifest``
    ``SHA-256  path`` (as sha256sum(1) prints it) of each upstream file that a patch touches, as it is before the first
    patch; ``absent  path`` for each file that a patch creates.
``NNNN-name.patch``
    As git-format-patch(1) writes it.
``README.md``
    A table row for each patch. The last two columns are its upstream status and its tests, as paths in backquotes.

``git apply`` knows no fuzz, and it takes hunks without context by their line numbers. The files are therefore compared
before the first patch (with the manifest) and after the last one (with the blob names in the patches).
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path

from ovs_hotswap.errors import CommandError, PatchError, StateUnknown
from ovs_hotswap.system import System
from ovs_hotswap.trust import strangers

_GIT_S = 120.0
_HEADER = re.compile(r"^# *([a-z-]+): *(.*\S)", re.MULTILINE)
_SUBJECT = re.compile(r"^Subject: (?:\[[^]]*\] )?(.*(?:\n[ \t].*)*)", re.MULTILINE)
_FILE = re.compile(
    r"^diff --git a/(\S+) b/\1\n(?:(?:old|new|new file|deleted file) mode \d+\n)*index [0-9a-f]+\.\.([0-9a-f]+)",
    re.MULTILINE,
)
_HUNK = re.compile(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,\d+)? @@", re.MULTILINE)
_ADDED = re.compile(r"^\+(?!\+\+ (?:b/|/dev/null))", re.MULTILINE)

Say = Callable[[str], None]


class State(StrEnum):
    """The state of a source tree with respect to a series."""

    PRISTINE = "pristine"
    APPLIED = "applied"


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch of a series. ``added`` counts the patch's own lines, ``upstream_lines`` context and removed lines."""

    name: str
    purpose: str
    status: str
    tests: tuple[str, ...]
    added: int
    upstream_lines: int


@dataclass(frozen=True, slots=True)
class Series:
    """A patch series, with what it expects of a tree and what it makes of it.

    ``before`` is the SHA-256 of each touched file, ``None`` if the file is absent. ``after`` is the beginning of the
    name that git gives to the file's content once the series is applied, or zeros if the file is removed. ``digest``
    identifies the patches.
    """

    name: str
    upstream: str
    unpacked_by: str
    directory: Path
    patches: tuple[Patch, ...]
    before: Mapping[str, str | None]
    after: Mapping[str, str]
    digest: str


def default_root() -> Path:
    """Return the directory with ``patches/`` and ``qemu-patches/``.

    It is the checkout that this package runs from, or ``share/ovs-hotswap`` if the package is installed (``data_files``
    in setup.cfg).
    """
    checkout = Path(__file__).parents[1]
    return checkout if (checkout / "setup.cfg").is_file() else Path(sys.prefix) / "share" / "ovs-hotswap"


def directories(root: Path) -> dict[str, Path]:
    """Return the directory of each series below ``root`` by the series' name (``COMPONENT/VERSION``), sorted."""
    found = {f"{path.parents[1].name}/{path.parent.name}": path.parent for path in root.glob("patches/*/*/series")}
    found |= {f"qemu/{path.parent.name}": path.parent for path in root.glob("qemu-patches/*/series")}
    return dict(sorted(found.items()))


def load(root: Path, name: str) -> Series:
    """Read a series. Raises PatchError if it does not exist or is faulty."""
    known = directories(root)
    if name not in known:
        hint = f"known are: {', '.join(known)}" if known else "name a directory that has series with --patches"
        raise PatchError(f"{root}: there is no series {name!r}", hint=hint)
    directory = known[name]
    try:
        index = (directory / "series").read_text("utf-8")
        names = [line for line in index.splitlines() if line and not line.startswith("#")]
        texts = [(directory / patch).read_text("utf-8", "surrogateescape") for patch in names]
        manifest = [line.split("  ", 1) for line in (directory / "manifest").read_text("utf-8").splitlines()]
        readme = (directory / "README.md").read_text("utf-8")
        headers = dict(_HEADER.findall(index))
        series = Series(
            name, headers["upstream"], headers["unpacked-by"], directory,
            tuple(_patch(patch, text, readme) for patch, text in zip(names, texts, strict=True)),
            before={path: None if digest == "absent" else digest for digest, path in manifest},
            after={path: blob for text in texts for path, blob in _FILE.findall(text)},
            digest=hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest(),
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise PatchError(f"{directory}: cannot be read: {error}") from error
    if different := set(series.before) ^ set(series.after):
        raise PatchError(f"{directory}: manifest and patches differ in {', '.join(sorted(different))}")
    return series


def _patch(name: str, text: str, readme: str) -> Patch:
    subject = _SUBJECT.search(text)
    row = re.search(rf"^\| `{re.escape(name.removesuffix('.patch'))}` \|(.*)\|$", readme, re.MULTILINE)
    status, tests = row[1].split(" | ")[-2:] if row else ("", "")
    diff = text[text.find("\ndiff --git ") :]
    return Patch(
        name, " ".join(subject[1].split()) if subject else "", status.strip(),
        tests=tuple(re.findall(r"`([^`]*/[^`]*)`", tests)),
        added=len(_ADDED.findall(diff)),
        upstream_lines=sum(int(lines or "1") for lines in _HUNK.findall(diff)),
    )  # fmt: skip


def verify(tree: Path, series: Series, system: System, say: Say = lambda text: None) -> State:
    """Check that the series fits the tree, or that it is applied already. Nothing in the tree is changed.

    Raises PatchError if tree and series do not fit, and StateUnknown if the series is applied in part.
    """
    state = _state(tree.resolve(), series)
    if state is State.PRISTINE:
        with tempfile.TemporaryDirectory(prefix="ovs-hotswap-") as scratch:
            _apply_to_copies(tree.resolve(), series, Path(scratch), system, say)
    else:
        say(f"series {series.name} is applied already; its {len(series.after)} files are as it left them")
    return state


def apply(tree: Path, series: Series, system: System, say: Say = lambda text: None) -> State:
    """Apply the series unless it is applied already, and return the state in which the tree was found.

    No file of the tree is replaced before all patches have been applied to copies. Raises as ``verify`` does. Root does
    not patch a tree with directories that others can write to: links there would decide which files are written.
    """
    tree = tree.resolve()
    if os.geteuid() == 0 and (faults := strangers(tree, directories_alone=True)):
        raise PatchError(
            f"{tree}: root would write where others can put links: {'; '.join(faults)}",
            hint="run it as the user who owns the tree, or unpack it again: tar --no-same-owner",
        )
    if _state(tree, series) is State.APPLIED:
        return verify(tree, series, system, say)
    try:
        with tempfile.TemporaryDirectory(prefix=".ovs-hotswap-", dir=tree) as scratch:
            _apply_to_copies(tree, series, Path(scratch), system, say)
            for path in series.after:
                if (copy := Path(scratch, path)).exists():
                    (tree / path).parent.mkdir(parents=True, exist_ok=True)
                    copy.replace(tree / path)
                else:
                    (tree / path).unlink()
    except OSError as error:
        raise PatchError(f"{tree}: {error}", hint="unpack the tree again") from error
    say(f"series {series.name} is applied to {tree}")
    return State.PRISTINE


def _state(tree: Path, series: Series) -> State:
    found = {path: _read(tree, path) for path in series.after}
    after = [path for path, content in found.items() if _blob(content).startswith(series.after[path])]
    before = [path for path, content in found.items() if _sha256(content) == series.before[path]]
    if len(after) == len(found):
        return State.APPLIED
    if len(before) == len(found):
        return State.PRISTINE
    if others := [path for path in found if path not in before and path not in after]:
        faults = [f"{path} is {'missing' if found[path] is None else 'another version'}" for path in islice(others, 3)]
        more = f"; and {len(others) - 3} more" if len(others) > 3 else ""
        raise PatchError(
            f"{tree} is not the tree that series {series.name} is for: {'; '.join(faults)}{more}",
            hint=f"it is for {series.upstream}, unpacked by: {series.unpacked_by}",
        )
    raise StateUnknown(f"{tree}: series {series.name} is applied in part", hint="unpack the tree again")


def _apply_to_copies(tree: Path, series: Series, scratch: Path, system: System, say: Say) -> None:
    scratch = scratch.resolve()
    for path in series.after:
        if (content := _read(tree, path)) is not None:
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_bytes(content)
            (scratch / path).chmod((tree / path).stat().st_mode & 0o7777)
    for patch in series.patches:
        # A clean environment hides the settings of the user and of a git hook. The ceiling hides a repository above,
        # in which git would skip what lies outside of the working directory, and say nothing.
        done = system.run(
            ["env", "-i", f"PATH={os.environ.get('PATH', os.defpath)}", "LC_ALL=C", "HOME=/nonexistent",
             "GIT_CONFIG_NOSYSTEM=1", f"GIT_CEILING_DIRECTORIES={scratch.parent}", "git", "-C", str(scratch),
             "apply", "--unidiff-zero", "--whitespace=nowarn", str((series.directory / patch.name).resolve())],
            timeout=_GIT_S, check=False,
        )  # fmt: skip
        if done.status == 127:
            raise CommandError("git: not installed", hint="apt-get install git")
        if done.status != 0:
            raise PatchError(f"{patch.name} does not apply: {done.stderr.strip()}")
        say(f"{patch.name} applies")
    for path, blob in series.after.items():
        if not _blob(_read(scratch, path)).startswith(blob):
            raise PatchError(f"series {series.name} does not apply exactly: {path} is not what its author had")


def _read(tree: Path, path: str) -> bytes | None:
    """Return a file of the tree, or ``None`` if it is absent. Raises PatchError if a link leads to it.

    The target of a link may lie outside of the tree.
    """
    file = tree / path
    if file.resolve() != file:
        raise PatchError(f"{file} is not a file of the tree, or a link leads to it", hint="unpack the tree again")
    return file.read_bytes() if file.is_file() else None


def _sha256(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _blob(content: bytes | None) -> str:
    """Return the name of the content in git (git-hash-object(1)), or zeros if there is none."""
    return "0" * 40 if content is None else hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
