"""Decisions about a series and a tree: no file is read here."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.patches.series import Kind, Series, safe_path

# Series for releases of 2018, which the project does not build: they repeat no upstream text around a change.
WITHOUT_CONTEXT = frozenset({"ovs/2.9.0", "dpdk/17.11", "qemu/2.9.0"})


class State(StrEnum):
    """Of a tree in respect of a series. ``HALF_WAY``: an ``apply`` was interrupted."""

    PRISTINE = "pristine"
    APPLIED = "applied"
    HALF_WAY = "half-way"


@dataclass(frozen=True, slots=True)
class Marker:
    """What ``apply`` notes in the tree. ``digest`` identifies the patches; ``before`` and ``after`` hold the SHA-256 of
    each touched file, ``None`` where there is none; ``directories`` are those made for new files, outermost first."""

    series: str
    digest: str
    done: bool
    before: dict[str, str | None]
    after: dict[str, str | None]
    directories: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps({"format": 1, **asdict(self)}, indent=1) + "\n"


def parse_marker(text: str, where: str) -> Marker:
    """Raises StateUnknown if the text is not a marker, or if it names what no series can touch."""
    try:
        found = json.loads(text)
        if found.pop("format") != 1:
            raise ValueError("unknown format")
        before, after = dict(found["before"]), dict(found["after"])
        directories = tuple(found["directories"])
        for path in (*before, *after, *directories):
            safe_path(path, where)
        if set(before) != set(after):
            raise ValueError("its files do not match")
        return Marker(found["series"], found["digest"], bool(found["done"]), before, after, directories)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StateUnknown(f"{where}: cannot be read: {error}", hint="unpack the tree anew") from error


def contradictions(series: Series) -> Iterator[str]:
    """Where patches and manifest do not fit each other; an empty series does not either."""
    if not series.patches:
        yield f"{series.name}: no patches"
    there = {path: digest is not None for path, digest in series.manifest.items()}
    touched = set()
    for patch in series.patches:
        for change in patch.changes:
            touched.add(change.path)
            if change.path not in there:
                yield f"{series.name}: {patch.name} touches {change.path}, which is not in the manifest"
            elif there[change.path] == (change.kind is Kind.CREATED):
                yield f"{series.name}: {patch.name}: {change.path} is {change.kind}, but {_whether(there[change.path])}"
            there[change.path] = change.kind is not Kind.DELETED
    for path in sorted(set(series.manifest) - touched):
        yield f"{series.name}: the manifest lists {path}, which no patch touches"


def _whether(present: bool) -> str:
    return "is there already" if present else "is not there"


def lint(series: Series, files: Collection[str], known: Collection[str]) -> Iterator[str]:
    """What is against the rules of patches/README.md. ``files``: the names in the series' directory; ``known``: the
    paths that a ``Test:`` trailer may name besides those that the series creates or changes."""
    yield from contradictions(series)
    names = [patch.name for patch in series.patches]
    unlisted = {name for name in files if name.endswith(".patch")} - set(names)
    yield from (f"{series.name}: {name} is not listed in the series" for name in sorted(unlisted))
    expected = [f"{number:04}" for number in range(1, len(names) + 1)]
    if [name[:4] for name in names] != expected:
        yield f"{series.name}: the patches are not numbered from 0001 in their order"
    may_name = {*known, *series.manifest}
    for patch in series.patches:
        where = f"{series.name}: {patch.name}"
        if not patch.purpose.startswith(tuple("abcdefghijklmnopqrstuvwxyz")) or ": " not in patch.purpose:
            yield f"{where}: the subject is not `component: purpose`"
        if not patch.why:
            yield f"{where}: does not say why"
        if not patch.status:
            yield f"{where}: no Upstream-Status"
        if not patch.tests:
            yield f"{where}: no Test"
        elif not any(_is_known(test, may_name) for test in patch.tests):  # others may be upstream, left as they are
            yield f"{where}: there is no {patch.tests[0]}"
        if series.name in WITHOUT_CONTEXT and (context := sum(change.context for change in patch.changes)):
            yield f"{where}: {context} lines of context, where none may be"


def _is_known(test: str, paths: Collection[str]) -> bool:
    """Whether a ``Test:`` trailer is ``none`` with a reason, or begins with one of ``paths``, which may go on with
    ``::name`` or a remark after a blank."""
    return test.startswith("none ") or test.partition("::")[0].partition(" ")[0] in paths


def differences(wanted: Mapping[str, str | None], found: Mapping[str, str | None]) -> Iterator[str]:
    """A line for each file that is not as ``wanted``; both are SHA-256 by path, ``None`` where there is no file."""
    for path, digest in wanted.items():
        there = found[path]
        if there == digest:
            continue
        if there is None:
            yield f"{path} is missing"
        elif digest is None:
            yield f"{path} is there already"
        else:
            yield f"{path} is another version"


def few(texts: Iterable[str], most: int = 3) -> str:
    """The first texts, and how many more there are."""
    found = list(texts)
    rest = len(found) - most
    return "; ".join(found[:most]) + (f"; and {rest} more" if rest > 0 else "")
