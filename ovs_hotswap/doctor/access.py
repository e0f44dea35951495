"""Who may use what: sockets, directories, files that root trusts, and the group of the broker's control socket."""

from __future__ import annotations

import grp
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.config import Config
from ovs_hotswap.doctor.facts import Mode, Root
from ovs_hotswap.doctor.report import Found, Kind, Section, healthy, ok
from ovs_hotswap.model import Severity
from ovs_hotswap.trust import along

_HERE = Section.ACCESS
NOT_ROOT = {
    section: Kind(section, "caller", Severity.UNKNOWN)
    for section in (Section.ACCESS, Section.UNITS, Section.VERSIONS, Section.RELEASES)
}
"""The sections that only root can see as a whole."""
SOCKET_MODE = Kind(_HERE, "control socket", Severity.ERROR, safe=True)
SOCKET_GROUP = Kind(_HERE, "control socket", Severity.WARNING)
NO_GROUP = Kind(_HERE, "group", Severity.ERROR)
NO_MEMBERS = Kind(_HERE, "group", Severity.WARNING)
RUN_DIR = Kind(_HERE, "run_dir", Severity.ERROR, safe=True)
STRANGER = Kind(_HERE, "trust", Severity.ERROR)
NO_PLACE = Kind(_HERE, "QEMU's sockets", Severity.ERROR)
OPEN_PLACE = Kind(_HERE, "QEMU's sockets", Severity.WARNING, safe=True)
CLOSED_PLACE = Kind(_HERE, "QEMU's sockets", Severity.WARNING)
_LIBVIRT_USER = "libvirt-qemu"  # Debian's
_USER = re.compile(r"^\s*user\s*=\s*[\"']\+?([^\"']+)[\"']", re.MULTILINE)  # of qemu.conf
_OTHERS = 0o022  # the bits that let others write
CONTROL_MODE = 0o660


@dataclass(frozen=True, slots=True)
class Access:
    """``root``: doctor runs as root. ``socket`` and ``run_dir`` are ``None`` if they do not exist. ``groups`` has the
    id and the members of each group. ``place`` is the directory in which QEMUs make their sockets, and ``qemu`` the
    name and the id of the user as whom libvirt runs them, if it does. ``booted``: by systemd. ``strangers`` has, for
    each file that root trusts, what others could change of it."""

    root: bool
    socket: Mode | None
    run_dir: Mode | None
    groups: Mapping[str, tuple[int, tuple[str, ...]]]
    place: Mode | None
    qemu: tuple[str, int] | None
    booted: bool
    strangers: Mapping[Path, tuple[str, ...]]


Members = tuple[int, tuple[str, ...]]


def group(name: str) -> Members | None:
    """Ask the system for a group: a directory service may have it, and no file."""
    try:
        found = grp.getgrnam(name)
    except KeyError:
        return None
    return found.gr_gid, tuple(found.gr_mem)


def place_of(config: Config) -> Path:
    """Return the directory in which QEMUs make the sockets to which ovs-hotswap connects."""
    pattern = config.broker.qemu_socket if config.backend is BackendMode.BROKER else config.qemu.monitor
    fixed = pattern.partition("{")[0]
    return Path(fixed if fixed.endswith("/") else os.path.dirname(fixed))


def unseen(section: Section) -> Found:
    text = "doctor does not run as root, so it cannot see everything here"
    return NOT_ROOT[section](text, "as root: `ovs-hotswap doctor`")


def read(
    root: Root, config: Config, config_path: Path, privileged: bool, ask: Callable[[str], Members | None]
) -> Access:
    """``ask`` knows the groups that are in no file."""
    trusted = [config_path, config.overlay, config.run_dir, config.state_dir]
    users = [line.split(":") for line in (root.text("etc/passwd") or "").splitlines() if line.count(":") > 3]
    groups = dict(_groups(root.text("etc/group") or "", users))
    name = config.broker.group
    if name is not None and name not in groups and (asked := ask(name)) is not None:
        groups[name] = asked
    return Access(
        privileged,
        root.mode(config.broker_socket),
        root.mode(config.run_dir),
        groups,
        root.mode(place_of(config)),
        _qemu(root, {user[0]: int(user[2]) for user in users if user[2].isdecimal()}),
        root.exists("run/systemd/system"),
        {path: found for path in trusted if (found := tuple(along(root.path(path))))},
    )


def _qemu(root: Root, users: Mapping[str, int]) -> tuple[str, int] | None:
    """Return the name and the id of the user as whom libvirt runs QEMU; ``None`` if it is not installed, or if it
    cannot be seen."""
    try:
        text = root.text("etc/libvirt/qemu.conf")
    except PermissionError:
        return None
    if text is None:
        return None
    found = _USER.search(text)
    name = found[1] if found else _LIBVIRT_USER
    number = int(name) if name.isdecimal() else users.get(name)
    return None if number is None else (name, number)


def _groups(text: str, users: list[list[str]]) -> Iterator[tuple[str, Members]]:
    """Read group(5); the users of passwd(5) whose first group it is are members as well."""
    for line in text.splitlines():
        name, _, number, members = [*line.split(":"), "", "", ""][:4]
        if number.isdecimal():
            named = [*filter(None, members.split(",")), *(user[0] for user in users if user[3] == number)]
            yield name, (int(number), tuple(named))


def judge(facts: Access, config: Config) -> Iterator[Found]:
    if not facts.root:
        yield unseen(_HERE)
    if config.backend is BackendMode.BROKER:
        yield from _control(facts, config)
    if facts.run_dir is not None and facts.run_dir.bits & _OTHERS:
        yield RUN_DIR(f"{config.run_dir} has mode {facts.run_dir.bits:04o}: others could replace sockets and records",
                      f"chmod 755 {config.run_dir}")  # fmt: skip
    yield from _place(facts, place_of(config))
    strange = (
        STRANGER(f"{path}: {text}", _own(text), str(path)) for path, texts in facts.strangers.items() for text in texts
    )
    yield from healthy(strange, _HERE, STRANGER.check, "only root can change what root trusts")


def _own(fault: str) -> str:
    """Return the command for a fault of ``trust``, which begins with a path. A link has an owner of its own."""
    path = shlex.quote(re.split(r" (?:belongs to|can be written by) ", fault)[0])
    return f"chown -h root: {path} && chmod go-w {path}"


def _place(facts: Access, place: Path) -> Iterator[Found]:
    found = facts.place
    if found is None:
        yield NO_PLACE(f"{place}, in which each QEMU makes its socket, does not exist", _given(facts, place))
    elif found.bits & 0o002 and found.user == 0:  # without the right of everybody, QEMU's user may have none
        yield OPEN_PLACE(f"{place} belongs to root and can be written by everybody, who could pretend to be a VM's "
                         "QEMU", _given(facts, place), safe=False)  # fmt: skip
    elif found.bits & 0o002:
        yield OPEN_PLACE(
            f"{place} can be written by everybody, who could pretend to be a VM's QEMU", f"chmod 755 {place}"
        )
    elif facts.qemu is not None and facts.qemu[1] not in (0, found.user) and not found.bits & 0o020:
        yield CLOSED_PLACE(f"{place} belongs to user {found.user}, and libvirt runs QEMU as {facts.qemu[0]}, who "
                           "cannot make a socket there", _given(facts, place))  # fmt: skip
    else:
        yield ok(_HERE, NO_PLACE.check, f"{place}, mode {found.bits:04o}, user {found.user}")


def _given(facts: Access, place: Path) -> str:
    """Return the command that gives the directory to QEMU's user; if it is in memory, also after each boot."""
    user = "root" if facts.qemu is None else facts.qemu[0]
    if facts.booted and place.is_relative_to("/run"):
        line, name = f"d {place} 0755 {user} - -", "ovs-hotswap.conf"
        return f"echo '{line}' > /etc/tmpfiles.d/{name} && systemd-tmpfiles --create {name}"
    return f"install -d -m 755 -o {user} {place}"


def _control(facts: Access, config: Config) -> Iterator[Found]:
    name, path = config.broker.group, config.broker_socket
    group = None
    if name is not None:
        group = facts.groups.get(name)
        if group is None:
            yield NO_GROUP(f"broker.group: there is no group {name} on this host", f"groupadd --system {name}")
        elif not group[1]:
            yield NO_MEMBERS(f"group {name} has no member: only root can use the control socket",
                             f'usermod -aG {name} "${{SUDO_USER:-USER}}"')  # fmt: skip
    if facts.socket is None:
        return  # whether there is a broker is another section's question
    if facts.socket.bits != CONTROL_MODE:
        yield SOCKET_MODE(f"{path} has mode {facts.socket.bits:04o}, and not {CONTROL_MODE:04o}",
                          f"chmod {CONTROL_MODE:o} {path}")  # fmt: skip
    elif group is not None and facts.socket.group != group[0]:
        yield SOCKET_GROUP(f"{path} belongs to group {facts.socket.group}, and group {name} is {group[0]}",
                           f"chgrp {name} {path}")  # fmt: skip
    else:
        yield ok(_HERE, SOCKET_MODE.check, f"{path}, mode {facts.socket.bits:04o}")
