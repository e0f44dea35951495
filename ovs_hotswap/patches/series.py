"""What the files of a patch series say.

A series is a directory of these files, of which none is trusted: a path that leads out of the tree is an error.

``series``
    ``# key: value`` lines (``component``, ``upstream``, ``unpacked-by``), then one patch file name a line, in order.
``manifest``
    ``SHA-256  path`` (as sha256sum(1) prints it) of each upstream file that a patch changes or deletes, as it is before
    the first patch; ``absent  path`` for each file that a patch creates. Sorted by path.
``NNNN-name.patch``
    As git-format-patch(1) writes it, with the trailers ``Upstream-Status:`` and ``Test:``. Text only, no renames.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ovs_hotswap.errors import PatchError

SERIES_FILE = "series"
MANIFEST_FILE = "manifest"
ABSENT = "absent"
OWN_PREFIX = ".ovs-hotswap"  # of the files that `patches apply` keeps in a tree

_PATCH_NAME = re.compile(r"[0-9]{4}-[A-Za-z0-9][A-Za-z0-9._+-]*\.patch")
_HEADER = re.compile(r"#\s*(?P<key>[a-z-]+):\s*(?P<value>\S.*?)\s*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH = re.compile(r"[A-Za-z0-9@_+,.=~/-]+")
_GIT_LINE = re.compile(r"diff --git a/(?P<old>\S+) b/(?P<new>\S+)")
_HUNK = re.compile(r"@@ -[0-9]+(?:,(?P<old>[0-9]+))? \+[0-9]+(?:,(?P<new>[0-9]+))? @@.*")
_INDEX = re.compile(r"index (?P<before>[0-9a-f]{7,40})\.\.(?P<after>[0-9a-f]{7,40})(?: [0-7]{6})?")
_MODE = re.compile(r"(?:new file|deleted file|old|new) mode (?P<mode>[0-7]{6})")
_TRAILER = re.compile(r"(?P<key>[A-Z][A-Za-z-]*): +(?P<value>\S.*)")
_BEFORE_PATH = re.compile(r",\s+(?=\S+/)")  # between tests; a remark in parentheses may have a comma too
_SUBJECT_TAG = re.compile(r"\[[^]]*\]\s*")
_REGULAR = ("100644", "100755")
_DEV_NULL = "/dev/null"


class Kind(StrEnum):
    """What a patch does to a file."""

    CREATED = "created"
    MODIFIED = "modified"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Change:
    """One file of a patch, with numbers of lines. ``context`` and ``removed`` are the upstream's text in the patch.

    ``before``, ``after``: the beginnings of the names that git has for the file's content (SHA-1), from the ``index``
    line; zeros where there is no file. They prove that each hunk went where its author had it, even without context.
    """

    path: str
    kind: Kind
    added: int
    removed: int
    context: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Patch:
    """``purpose``: the subject without its tag. ``status``, ``tests``: the trailers; empty if there are none.

    ``diff``: the lines that ``changes`` were read from, from 0, and the one behind them. git would find hunks in the
    message and behind the signature, too.
    """

    name: str
    purpose: str
    why: str
    status: str
    tests: tuple[str, ...]
    changes: tuple[Change, ...]
    diff: tuple[int, int]

    @property
    def added(self) -> int:
        return sum(change.added for change in self.changes)

    @property
    def upstream_lines(self) -> int:
        """Lines of the upstream's text that the patch repeats: context and removed ones."""
        return sum(change.context + change.removed for change in self.changes)


@dataclass(frozen=True, slots=True)
class Index:
    """The ``series`` file."""

    component: str
    upstream: str
    unpacked_by: str
    patches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """``manifest``: path and SHA-256 of each touched file before the first patch; ``None`` where it must be absent."""

    component: str
    version: str
    upstream: str
    unpacked_by: str
    patches: tuple[Patch, ...]
    manifest: dict[str, str | None]

    @property
    def name(self) -> str:
        return f"{self.component}/{self.version}"

    @property
    def added(self) -> int:
        return sum(patch.added for patch in self.patches)

    @property
    def upstream_lines(self) -> int:
        return sum(patch.upstream_lines for patch in self.patches)


def safe_path(path: str, where: str) -> str:
    """``path`` if it names a file inside a tree, as git spells it; else PatchError, with ``where`` it was read."""
    parts = path.split("/")
    inside = _PATH.fullmatch(path) and not {"", ".", ".."} & set(parts)
    if not inside or ".git" in (part.lower() for part in parts) or parts[0].startswith(OWN_PREFIX):
        raise PatchError(f"{where}: {path!r} is not the path of a file that a patch may touch")
    return path


def parse_index(text: str, where: str) -> Index:
    """Read a ``series`` file. Raises PatchError."""
    headers: dict[str, str] = {}
    names: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("#"):
            if found := _HEADER.fullmatch(line):
                headers.setdefault(found["key"], found["value"])
        elif not _PATCH_NAME.fullmatch(line):
            raise PatchError(f"{where}: {line!r} is not the name of a patch")
        elif line in names:
            raise PatchError(f"{where}: {line} is listed twice")
        else:
            names.append(line)
    missing = [key for key in ("component", "upstream", "unpacked-by") if key not in headers]
    if missing:
        raise PatchError(f"{where}: no `# {missing[0]}:` line")
    return Index(headers["component"], headers["upstream"], headers["unpacked-by"], tuple(names))


def parse_manifest(text: str, where: str) -> dict[str, str | None]:
    """Read a ``manifest`` file: SHA-256 by path, ``None`` for a file that must be absent. Raises PatchError."""
    found: dict[str, str | None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        at = f"{where}:{number}"
        digest, separator, path = line.partition("  ")
        if not separator or not (digest == ABSENT or _SHA256.fullmatch(digest)):
            raise PatchError(f"{at}: neither `SHA-256  path` nor `{ABSENT}  path`")
        if safe_path(path, at) in found:
            raise PatchError(f"{at}: {path} is listed twice")
        found[path] = None if digest == ABSENT else digest
    if list(found) != sorted(found):
        raise PatchError(f"{where}: not sorted by path")
    return found


def parse_patch(name: str, text: str) -> Patch:
    """Read a patch. Raises PatchError if it does what a series may not do, or is cut short."""
    lines = text.split("\n")
    start = next((at for at, line in enumerate(lines) if line.startswith("diff --git ")), len(lines))
    mail = lines[:start]
    blank = mail.index("") if "" in mail else len(mail)
    body = mail[blank + 1 :]
    if "---" in body:
        body = body[: body.index("---")]
    why, trailers = _split_trailers(body)
    reader = _Diff(name, lines, start)
    changes = _each_once(name, tuple(reader.changes()))
    return Patch(
        name, _subject(mail[:blank]), why,
        status=next((value for key, value in trailers if key == "Upstream-Status"), ""),
        tests=tuple(test for key, value in trailers if key == "Test" for test in _BEFORE_PATH.split(value)),
        changes=changes,
        diff=(start, reader.end),
    )  # fmt: skip


def _subject(header: list[str]) -> str:
    """The subject, unfolded (RFC 5322, 2.2.3), without ``[PATCH]``."""
    found: list[str] = []
    for line in header:
        if line.startswith("Subject:"):
            found = [line.removeprefix("Subject:").strip()]
        elif found and line.startswith((" ", "\t")):
            found.append(line.strip())
        elif found:
            break
    return _SUBJECT_TAG.sub("", " ".join(found), count=1)


def _split_trailers(body: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text, and the trailers of its last paragraph (git-interpret-trailers(1)); one may go on in lines that begin
    with a blank."""
    paragraphs = "\n".join(body).strip("\n").split("\n\n")
    trailers: list[tuple[str, str]] = []
    for line in paragraphs[-1].split("\n"):
        if found := _TRAILER.fullmatch(line):
            trailers.append((found["key"], found["value"].strip()))
        elif trailers and line.startswith((" ", "\t")):
            key, value = trailers.pop()
            trailers.append((key, f"{value} {line.strip()}"))
        else:
            return "\n\n".join(paragraphs), []
    return "\n\n".join(paragraphs[:-1]), trailers


def _each_once(name: str, changes: tuple[Change, ...]) -> tuple[Change, ...]:
    paths = [change.path for change in changes]
    for path in paths:
        if paths.count(path) > 1:
            raise PatchError(f"{name}: {path} occurs twice")
    return changes


class _Diff:
    """Reads the files of one patch. The lines of a hunk are counted, so none is taken for a header by its look."""

    def __init__(self, name: str, lines: list[str], start: int) -> None:
        self._name, self._lines, self._at = name, lines, start

    def changes(self) -> Iterator[Change]:
        while (line := self._peek()) is not None and line != "-- ":
            if line.startswith("diff --git "):
                yield self._file()
            elif line == "":
                self._at += 1
            else:
                raise self._error(f"unexpected line {line!r}")

    @property
    def end(self) -> int:
        """The line behind what was read."""
        return self._at

    def _peek(self) -> str | None:
        return self._lines[self._at] if self._at < len(self._lines) else None

    def _error(self, text: str) -> PatchError:
        return PatchError(f"{self._name}:{self._at + 1}: {text}")

    def _path(self, text: str) -> str:
        return safe_path(text, f"{self._name}:{self._at + 1}")

    def _file(self) -> Change:
        found = _GIT_LINE.fullmatch(self._lines[self._at])
        if found is None or found["old"] != found["new"]:
            raise self._error("a patch of a series renames no file and names none in quotes")
        path = self._path(found["new"])
        self._at += 1
        kind, before, after = self._extended_headers()
        added, removed, context = self._hunks(path, kind) if (self._peek() or "").startswith("--- ") else (0, 0, 0)
        if kind is Kind.MODIFIED and not added + removed:
            raise self._error(f"nothing of {path} is changed")
        if not after:
            raise self._error(f"no `index` line of {path}")
        return Change(path, kind, added, removed, context, before, after)

    def _extended_headers(self) -> tuple[Kind, str, str]:
        """What the lines between ``diff --git`` and ``---`` say: the kind, and the names before and after."""
        kind, before, after = Kind.MODIFIED, "", ""
        while (line := self._peek()) and not line.startswith(("--- ", "-- ", "diff --git ")):
            if found := _MODE.fullmatch(line):
                if found["mode"] not in _REGULAR:
                    raise self._error("a patch of a series makes regular files only")
                if line.startswith("new file"):
                    kind = Kind.CREATED
                elif line.startswith("deleted file"):
                    kind = Kind.DELETED
            elif names := _INDEX.fullmatch(line):
                before, after = names["before"], names["after"]
            else:
                raise self._error(f"a patch of a series does not say {line!r}")
            self._at += 1
        return kind, before, after

    def _hunks(self, path: str, kind: Kind) -> tuple[int, int, int]:
        """Numbers of added, removed and context lines."""
        old = _DEV_NULL if kind is Kind.CREATED else f"a/{path}"
        new = _DEV_NULL if kind is Kind.DELETED else f"b/{path}"
        for expected in (f"--- {old}", f"+++ {new}"):
            if self._peek() != expected:
                raise self._error(f"expected {expected!r}")
            self._at += 1
        counts = {"+": 0, "-": 0, " ": 0}
        while found := _HUNK.fullmatch(self._peek() or ""):
            self._at += 1
            self._hunk(int(found["old"] or "1"), int(found["new"] or "1"), counts)
        return counts["+"], counts["-"], counts[" "]

    def _hunk(self, old: int, new: int, counts: dict[str, int]) -> None:
        while old or new or (self._peek() or "").startswith("\\ "):
            line = self._peek()
            mark = line[:1] if line else ""
            if mark == "\\":  # "\ No newline at end of file"
                self._at += 1
                continue
            if mark not in counts:
                raise self._error("the hunk is cut short")
            counts[mark] += 1
            old -= mark in " -"
            new -= mark in " +"
            if old < 0 or new < 0:
                raise self._error("the hunk is longer than it says")
            self._at += 1
