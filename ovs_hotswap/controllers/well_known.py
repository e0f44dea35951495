"""The well-known paths of Open vSwitch, by which everything on a host finds the switch, lead to the active instance.

Programs find ovsdb-server at ``db.sock``, a bridge at ``BRIDGE.mgmt`` and ``BRIDGE.snoop`` (lib/vconn.c), and the
control socket of a daemon, ``DAEMON.PID.ctl``, by its pid file (utilities/ovs-appctl.c, connect_to_target;
lib/daemon-unix.c, read_pidfile). An instance of ovs-hotswap has these files in a directory of its own, so a path is a
symbolic link to one of them. The distribution's own files are hard links in a directory beside them, ``kept``, before
anything is replaced: there they can be reached at any time, and from there they are put back.

Each path is replaced by rename(2), so it always leads to one of the two instances. If the caller is killed half way,
some paths lead to one and some to the other; ``lead_to`` finishes, in either direction.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import files

DAEMONS = ("ovs-vswitchd", "ovsdb-server")
_PATHS = re.compile(r"db\.sock|.+\.(mgmt|snoop)|(ovs-vswitchd|ovsdb-server)(\.\d+\.ctl|\.pid)")
_CONTROL = re.compile(r"(ovs-vswitchd|ovsdb-server)\.\d+\.ctl")
_BESIDE = ".new"


def is_well_known(name: str) -> bool:
    """Whether a file of this name in the well-known directory is to lead to the active instance."""
    return _PATHS.fullmatch(name) is not None


def wanted(files_of: Mapping[str, Path], own: Collection[str]) -> dict[str, Path]:
    """Return where each well-known name is to lead.

    ``files_of``: the file for each well-known name that the instance has. ``own``: names of the distribution's own
    files. Control sockets among them, which a program may have remembered, lead to that daemon of the instance.
    """
    control = {found[1]: path for name, path in files_of.items() if (found := _CONTROL.fullmatch(name))}
    remembered = {name: control[found[1]] for name in own
                  if (found := _CONTROL.fullmatch(name)) and found[1] in control}  # fmt: skip
    return remembered | dict(files_of)


class WellKnown:
    """The well-known directory, such as ``config.stock.run_dir``; ``kept`` is a directory in it
    (``config.stock.kept_dir``). Every method may be called again at any time."""

    def __init__(self, directory: Path, kept: Path) -> None:
        self.directory, self.kept = directory, kept

    def keep(self) -> None:
        """Give the distribution's own files their second names. Nothing that exists is changed.

        It follows a switch that was started again and bridges that were added or removed. Raises HostError.
        """
        with files(self.kept):
            self.kept.mkdir(mode=0o755, exist_ok=True)
            for name, path in self._entries():
                kept = self.kept / name
                if path.is_symlink() or _same(path, kept):
                    continue
                beside = _beside(kept)
                os.link(path, beside)
                _rename(beside, kept)
            if not any(path.is_symlink() for _, path in self._entries()):
                for name in self._kept_names():
                    if not (self.directory / name).exists():
                        (self.kept / name).unlink(missing_ok=True)

    def by_second_names(self, instance: InstancePaths) -> InstancePaths:
        """Return the files of an instance by names that always lead to it: of the distribution's, the second ones,
        which ``keep`` has made. Its well-known names may lead to the other instance by then. Raises HostError."""
        if instance.run_dir != self.directory:
            return instance
        self.keep()
        found = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
        moved = {name: self.kept / path.name for name, path in found.items()
                 if isinstance(path, Path) and path.parent == self.directory}  # fmt: skip
        return dataclasses.replace(instance, **{**moved, "run_dir": self.kept})  # type: ignore[arg-type]

    def lead_to(self, instance: InstancePaths) -> None:
        """Have every well-known path lead to ``instance``. It must run: its pid files name its control sockets.

        It is to be called again when the instance was started again, or has another bridge. Raises SwitchError if the
        instance lacks a file without which the paths would lead nowhere; then nothing was changed. Raises HostError.
        """
        self.keep()
        if self._is_own(instance):
            self.put_back()
            return
        targets = wanted(files_of(instance), self._kept_names())
        with files(self.directory):
            # The pid files come last: until then a program reads the old pid, and opens a socket that is still there.
            for name in sorted(targets, key=lambda name: name.endswith(".pid")):
                path, beside = self.directory / name, _beside(self.directory / name)
                if not (path.is_symlink() and path.readlink() == targets[name]):
                    beside.symlink_to(targets[name])
                    _rename(beside, path)
            self._remove_others(targets)

    def hide_bridges(self) -> None:
        """Remove the links to bridges' sockets, until ``lead_to``: what programs bridges by them waits. Raises
        HostError."""
        with files(self.directory):
            for name, path in self._entries():
                if path.is_symlink() and name.endswith((".mgmt", ".snoop")):
                    path.unlink(missing_ok=True)

    def put_back(self) -> None:
        """Put the distribution's own files back at their places. Raises HostError."""
        with files(self.directory):
            own = self._kept_names()
            for name in sorted(own, key=lambda name: name.endswith(".pid")):
                path, kept = self.directory / name, self.kept / name
                if not _same(path, kept):
                    beside = _beside(path)
                    os.link(kept, beside)
                    _rename(beside, path)
            self._remove_others(own)

    def forget(self) -> None:
        """Remove the distribution's own files, whose daemons have ended. Links to other instances stay, except for
        remembered control sockets. If no path leads to an instance, the paths are empty then. Raises HostError."""
        with files(self.directory):
            for name in self._kept_names():
                path, kept = self.directory / name, self.kept / name
                if _same(path, kept) or _CONTROL.fullmatch(name):
                    path.unlink(missing_ok=True)
                kept.unlink()
            if self.kept.exists():
                self.kept.rmdir()

    def clear(self) -> None:
        """Remove every link, so that the distribution's daemons find the directory as after a boot. For a host without
        a running switch. Raises HostError."""
        with files(self.directory):
            for _, path in self._entries():
                if path.is_symlink():
                    path.unlink(missing_ok=True)

    def state(self) -> dict[str, Path | None]:
        """Return, for each well-known path, the run directory of the instance to which it leads: ``directory`` itself
        for the distribution's own file, and ``None`` if it leads to a file that is not there. Raises HostError."""
        with files(self.directory):
            found: dict[str, Path | None] = {}
            for name, path in self._entries():
                target = path.readlink().parent if path.is_symlink() else self.directory
                found[name] = target if path.exists() else None
            return found

    def strays(self, instance: InstancePaths) -> tuple[str, ...]:
        """Return the well-known names that do not lead to ``instance``; none means that ``lead_to`` has nothing to do.
        Raises SwitchError as ``lead_to`` does, and HostError."""
        own = self._is_own(instance)
        targets = (
            {name: self.directory / name for name in self._kept_names()}
            if own
            else wanted(files_of(instance), self._kept_names())
        )
        entries = dict(self._entries())

        def stray(name: str) -> bool:
            path = entries.get(name)
            if path is None or name not in targets:
                return not own or path is None or path.is_symlink()
            return path.is_symlink() if own else not path.is_symlink() or path.readlink() != targets[name]

        return tuple(sorted(name for name in {*targets, *entries} if stray(name)))

    def _is_own(self, instance: InstancePaths) -> bool:
        return instance.run_dir in (self.directory, self.kept)

    def _entries(self) -> Iterator[tuple[str, Path]]:
        with files(self.directory):
            return iter([(path.name, path) for path in sorted(self.directory.iterdir()) if is_well_known(path.name)])

    def _kept_names(self) -> set[str]:
        with files(self.kept):
            found = self.kept.iterdir() if self.kept.exists() else ()
            return {path.name for path in found if is_well_known(path.name)}

    def _remove_others(self, names: Collection[str]) -> None:
        for name, path in self._entries():
            if name not in names and (path.is_symlink() or _same(path, self.kept / name)):
                path.unlink(missing_ok=True)


def files_of(instance: InstancePaths) -> dict[str, Path]:
    """Return the file of the instance for each well-known name. Raises SwitchError if it lacks a necessary one."""
    found = {"db.sock": instance.db_socket}
    daemons = zip(
        DAEMONS, (instance.vswitchd_pid, instance.ovsdb_pid), (instance.vswitchd_ctl, instance.ovsdb_ctl), strict=True
    )
    for name, pid_file, control in daemons:
        try:
            pid = int(pid_file.read_text())
        except (OSError, ValueError) as error:
            raise _lacks(instance, f"{pid_file}: {error}") from error
        found |= {f"{name}.pid": pid_file, f"{name}.{pid}.ctl": control}
    for path in found.values():
        if not path.exists():
            raise _lacks(instance, f"{path} is not there")
    with files(instance.run_dir):
        bridges = [path for path in instance.run_dir.iterdir() if path.suffix in (".mgmt", ".snoop")]
    return found | {path.name: path for path in bridges}


def _lacks(instance: InstancePaths, text: str) -> SwitchError:
    hint = "see whether the instance runs: `ovs-hotswap instance list`"
    return SwitchError(f"{instance.run_dir}: no path can lead to this instance: {text}", hint=hint)


def _same(one: Path, other: Path) -> bool:
    """Whether both names are of one file, and neither is a symbolic link. Raises OSError."""
    try:
        first, second = one.lstat(), other.lstat()
    except FileNotFoundError:
        return False
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _beside(path: Path) -> Path:
    """Return a free name beside ``path``. What a killed predecessor left there is removed. Raises OSError."""
    beside = path.with_name(f".{path.name}{_BESIDE}")
    beside.unlink(missing_ok=True)
    return beside


def _rename(beside: Path, path: Path) -> None:
    """Rename, also where both names are of one file already: then rename(2) does nothing. Raises OSError."""
    beside.rename(path)
    beside.unlink(missing_ok=True)
