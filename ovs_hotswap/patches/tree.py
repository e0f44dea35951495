"""A source tree: compared with a series' manifest, and patched all or nothing.

Patches are applied by ``git apply`` to copies of the touched files in a directory of their own, never in the tree. It
has no fuzz and takes hunks without context (``--unidiff-zero``); each result is compared with the name that git gave it
when the patch was made, so that no hunk can have gone elsewhere. Trap: inside a repository, which may lie anywhere
above, ``git apply`` skips what is outside of its working directory and says nothing; so the search for one is stopped.

What ``apply`` has done is in the file ``.ovs-hotswap-series`` in the tree. It is written before the first file is
replaced, and the originals are kept in ``.ovs-hotswap-stage`` until the last one is: after a crash the next ``apply``
puts them back.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ovs_hotswap.errors import BusyError, CommandError, PatchError, StateUnknown
from ovs_hotswap.patches.rules import (
    Marker,
    State,
    contradictions,
    differences,
    few,
    parse_marker,
)
from ovs_hotswap.patches.series import OWN_PREFIX, Patch
from ovs_hotswap.patches.store import Stored
from ovs_hotswap.system import System
from ovs_hotswap.trust import strangers

MARKER = f"{OWN_PREFIX}-series"
STAGE = f"{OWN_PREFIX}-stage"
_OLD, _NEW = "old", "new"
_GIT_S = 120.0

Progress = Callable[[str], None]
Rename = Callable[[Path, Path], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """``state``: how the tree was found; ``changed``: the files that the series changes, sorted."""

    state: State
    changed: tuple[str, ...]


class Tree:
    """The source tree at ``path``. ``rename`` is os.rename, but for a test that lets it fail."""

    def __init__(self, path: Path, system: System, rename: Rename = os.rename) -> None:
        if not path.is_dir():
            raise PatchError(f"{path}: not a directory")
        self.path = path.resolve()
        self._system = system
        self._rename = rename

    def verify(self, stored: Stored, progress: Progress = lambda text: None) -> Outcome:
        """Check every file of the manifest, then apply the series to copies. Nothing in the tree is changed.

        A tree that the series was applied to is compared with what it left. Raises PatchError if tree and series do not
        fit, StateUnknown if an earlier ``apply`` was interrupted or the patched files were changed since.
        """
        changed = tuple(sorted(stored.series.manifest))
        marker = self._marker()
        if marker is not None and not marker.done:
            raise StateUnknown(
                f"{self.path}: an apply of series {marker.series} was interrupted half-way",
                hint="`ovs-hotswap patches apply` puts the files back first; or unpack the tree anew",
            )
        if marker is not None:
            self._check_applied(stored, marker)
            progress(f"series {marker.series} is applied already; its {len(changed)} files are as it left them")
            return Outcome(State.APPLIED, changed)
        with tempfile.TemporaryDirectory(prefix="ovs-hotswap-patches-") as scratch:
            self._rehearse(stored, Path(scratch), progress)
        return Outcome(State.PRISTINE, changed)

    def apply(self, stored: Stored, progress: Progress = lambda text: None) -> Outcome:
        """Apply the series, or change nothing. Twice is as once. Raises as ``verify`` does, and BusyError.

        Root does not patch a tree with directories that others can write to: whoever can put a link there meanwhile
        decides which files are written.
        """
        if os.geteuid() == 0 and (faults := strangers(self.path, directories_alone=True)):
            raise PatchError(
                f"{self.path}: root would write where others can put links: {'; '.join(faults)}",
                hint="run it as the user whose tree it is, or unpack it anew: tar --no-same-owner",
            )
        with self._locked():
            found = self._marker()
            if found is not None and not found.done:
                self._put_back(found)
                progress(f"an earlier apply of series {found.series} was interrupted: its files are put back")
            self._sweep()
            outcome = self.verify(stored, progress)
            if outcome.state is State.PRISTINE:
                self._replace(stored)
                progress(f"series {stored.series.name} is applied to {self.path}")
            return outcome

    def _sweep(self) -> None:
        """Remove what was left by an ``apply`` that ended before it changed anything."""
        stage = self.path / STAGE
        if not os.path.lexists(stage):
            return
        if stage.is_symlink() or not stage.is_dir():
            raise PatchError(f"{stage} is not a directory", hint="unpack the tree anew")
        shutil.rmtree(stage)

    def _marker(self) -> Marker | None:
        path = self.path / MARKER
        if _digest(self.path, MARKER) is None:
            return None
        return parse_marker(path.read_text(errors="replace"), str(path))

    def _check_applied(self, stored: Stored, marker: Marker) -> None:
        if (marker.series, marker.digest) != (stored.series.name, stored.digest):
            which = "another state of it" if marker.series == stored.series.name else f"series {marker.series}"
            raise PatchError(f"{self.path}: {which} is applied already", hint="unpack the tree anew")
        if faults := list(differences(marker.after, self._states(marker.after))):
            raise StateUnknown(
                f"{self.path}: series {marker.series} was applied, and since then: {few(faults)}",
                hint="unpack the tree anew",
            )

    def _rehearse(self, stored: Stored, scratch: Path, progress: Progress) -> dict[str, str | None]:
        """Apply the series to copies in ``scratch``; return the SHA-256 of each file, ``None`` where it is gone."""
        series = stored.series
        if faults := list(contradictions(series)):
            raise PatchError(few(faults), hint=f"mend {stored.directory}")
        if faults := list(differences(series.manifest, self._states(series.manifest))):
            raise PatchError(
                f"{self.path} is not the tree that series {series.name} is for: {few(faults)}",
                hint=f"it is for {series.upstream}, unpacked by: {series.unpacked_by}",
            )
        progress(f"{len(series.manifest)} files are as the manifest says")
        for path, digest in series.manifest.items():
            if digest is not None:
                _copy(self.path / path, scratch / path)
        for patch, diff in zip(series.patches, stored.diffs, strict=True):
            _check_names(scratch, patch, before=True)
            self._git_apply(scratch, patch.name, diff)
            _check_names(scratch, patch, before=False)
            progress(f"{patch.name} applies exactly")
        return {path: _digest(scratch, path) for path in series.manifest}

    def _git_apply(self, scratch: Path, name: str, diff: bytes) -> None:
        with tempfile.NamedTemporaryFile(prefix="ovs-hotswap-", suffix=".patch") as patch:
            patch.write(diff)
            patch.flush()
            # A clean environment: GIT_DIR of a hook that calls us, apply.whitespace of the user, messages to be read.
            done = self._system.run(
                ["env", "-i", f"PATH={os.environ.get('PATH', os.defpath)}", "LC_ALL=C", "HOME=/nonexistent",
                 "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
                 f"GIT_CEILING_DIRECTORIES={scratch.resolve().parent}",
                 "git", "-C", str(scratch.resolve()), "apply", "--unidiff-zero", "--whitespace=nowarn",
                 patch.name],
                timeout=_GIT_S, check=False,
            )  # fmt: skip
        if done.status == 127:
            raise CommandError("git: not installed", hint="apt-get install git")
        said = [line for line in done.stderr.splitlines() if line.startswith(("error:", "fatal:"))]
        if done.status != 0:
            raise PatchError(f"{name} does not apply: {few(said) or done.stderr.strip()}")

    def _replace(self, stored: Stored) -> None:
        """Apply the series to a copy beside the files, then rename each into place. Put back what was done if that
        fails."""
        try:
            marker = self._stage(stored)
            self._system.write_atomic(self.path / MARKER, marker.to_json())
        except BaseException:
            shutil.rmtree(self.path / STAGE, ignore_errors=True)
            raise
        try:
            for directory in marker.directories:
                (self.path / directory).mkdir()
            for path, digest in marker.after.items():
                if digest is None:
                    (self.path / path).unlink()
                else:
                    self._rename(self.path / STAGE / _NEW / path, self.path / path)
            self._sync_directories(marker.after)
        except BaseException as error:
            self._put_back(marker)
            if isinstance(error, OSError):
                raise PatchError(f"{self.path}: {error}; every file was put back") from error
            raise
        self._system.write_atomic(self.path / MARKER, replace(marker, done=True).to_json())
        shutil.rmtree(self.path / STAGE)

    def _stage(self, stored: Stored) -> Marker:
        """The originals and the patched files in directories beside the tree's own, on the disk."""
        stage = self.path / STAGE
        stage.mkdir()
        new = stage / _NEW
        new.mkdir()
        after = self._rehearse(stored, new, lambda text: None)
        before = stored.series.manifest
        for path in (path for path, digest in before.items() if digest is not None):
            _copy(self.path / path, stage / _OLD / path)
            if after[path] is not None:
                _keep_mode(self.path / path, new / path)
        for staged in stage.rglob("*"):
            _sync(staged)
        return Marker(
            stored.series.name, stored.digest, done=False, before=before, after=after, directories=self._missing(after)
        )

    def _put_back(self, marker: Marker) -> None:
        """The files as they were before an ``apply`` that did not end. Raises StateUnknown if one is neither as it was
        nor as the series leaves it: then somebody else changed it."""
        found = self._states(marker.before)
        strange = [path for path, digest in found.items() if digest not in (marker.before[path], marker.after[path])]
        lost = [
            path for path, digest in marker.before.items()
            if digest not in (None, found[path]) and _digest(self.path, f"{STAGE}/{_OLD}/{path}") != digest
        ]  # fmt: skip
        if strange or lost:
            raise StateUnknown(
                f"{self.path}: an interrupted apply cannot be put back: {few([*strange, *lost])}: not as it was left",
                hint="unpack the tree anew",
            )
        for path, digest in marker.before.items():
            if found[path] == digest:
                continue
            if digest is None:
                (self.path / path).unlink()
            else:  # a copy: the original stays until all are back; in a new directory, where no link can be
                copy = Path(tempfile.mkdtemp(dir=self.path / STAGE)) / "copy"
                _copy(self.path / STAGE / _OLD / path, copy)
                copy.rename(self.path / path)
        for directory in reversed(marker.directories):
            with contextlib.suppress(OSError):  # not made yet
                (self.path / directory).rmdir()
        self._sync_directories(marker.before)
        (self.path / MARKER).unlink()
        shutil.rmtree(self.path / STAGE, ignore_errors=True)

    def _states(self, paths: Iterable[str]) -> dict[str, str | None]:
        return {path: _digest(self.path, path) for path in paths}

    def _missing(self, after: Mapping[str, str | None]) -> tuple[str, ...]:
        """Directories that new files need, outermost first."""
        wanted = {str(above) for path, digest in after.items() if digest for above in Path(path).parents}
        return tuple(sorted(name for name in wanted if not (self.path / name).is_dir()))

    def _sync_directories(self, paths: Iterable[str]) -> None:
        for directory in {(self.path / path).parent for path in paths}:
            if directory.is_dir():
                _sync(directory)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The tree's directory is the lock: nothing is left of it."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(f"{self.path}: another apply is under way", hint="wait for it") from error
            yield
        finally:
            os.close(descriptor)


def _digest(root: Path, path: str) -> str | None:
    """SHA-256 of a file below ``root``, ``None`` if there is none. Raises PatchError where a link, a device or the like
    is in the way: what it leads to may be outside of the tree."""
    at = root
    for part in path.split("/"):
        at /= part
        try:
            mode = at.lstat().st_mode
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PatchError(f"{at}: {error.strerror}") from error
        is_file = at == root / path
        if not (stat.S_ISREG(mode) if is_file else stat.S_ISDIR(mode)):
            raise PatchError(f"{at} is not a {'regular file' if is_file else 'directory'}", hint="unpack the tree anew")
    with at.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _check_names(scratch: Path, patch: Patch, *, before: bool) -> None:
    """Compare the files with the names that the patch gives them (git-hash-object(1)). git goes by the lines' text and
    finds them elsewhere too; where a hunk has no context, it goes by the number alone."""
    for change in patch.changes:
        name = change.before if before else change.after
        path = scratch / change.path
        content = path.read_bytes() if path.is_file() else None
        found = "0" * 40 if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if not found.startswith(name):
            when = "before" if before else "after"
            raise PatchError(f"{patch.name} does not apply exactly: {change.path} is not what its author had {when} it")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    _keep_owner(source, target)


def _keep_owner(original: Path, made: Path) -> None:
    """Of files of another user in a tree of root's."""
    if os.geteuid() == 0:
        found = original.lstat()
        os.chown(made, found.st_uid, found.st_gid, follow_symlinks=False)


def _keep_mode(original: Path, patched: Path) -> None:
    """git knows one bit of a mode and takes the rest from the umask; and it makes a new file."""
    _keep_owner(original, patched)
    mode = original.stat().st_mode
    if bool(mode & stat.S_IXUSR) == bool(patched.stat().st_mode & stat.S_IXUSR):
        patched.chmod(stat.S_IMODE(mode))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
