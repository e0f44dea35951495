"""Who may use what: sockets, directories, files that root trusts, and the group of the broker's control socket."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
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
_OTHERS = 0o022  # the bits that let others write
CONTROL_MODE = 0o660


@dataclass(frozen=True, slots=True)
class Access:
    """``root``: doctor runs as root. ``socket`` and ``run_dir`` are ``None`` if they do not exist. ``groups`` has the
    id and the members of each group. ``place`` is the directory in which QEMUs make their sockets. ``strangers`` has,
    for each file that root trusts, what others could change of it."""

    root: bool
    socket: Mode | None
    run_dir: Mode | None
    groups: Mapping[str, tuple[int, tuple[str, ...]]]
    place: Mode | None
    strangers: Mapping[Path, tuple[str, ...]]


def place_of(config: Config) -> Path:
    """Return the directory in which QEMUs make the sockets to which ovs-hotswap connects."""
    pattern = config.broker.qemu_socket if config.backend is BackendMode.BROKER else config.qemu.monitor
    fixed = pattern.partition("{")[0]
    return Path(fixed if fixed.endswith("/") else os.path.dirname(fixed))


def unseen(section: Section) -> Found:
    text = "doctor does not run as root, so it cannot see everything here"
    return NOT_ROOT[section](text, "as root: `ovs-hotswap doctor`")


def read(root: Root, config: Config, config_path: Path, privileged: bool) -> Access:
    trusted = [config_path, config.overlay, config.run_dir, config.state_dir]
    return Access(
        privileged,
        root.mode(config.broker_socket),
        root.mode(config.run_dir),
        dict(_groups(root.text("etc/group") or "", root.text("etc/passwd") or "")),
        root.mode(place_of(config)),
        {path: found for path in trusted if (found := tuple(along(root.path(path))))},
    )


def _groups(text: str, users: str) -> Iterator[tuple[str, tuple[int, tuple[str, ...]]]]:
    """Read group(5); the users of passwd(5) whose first group it is are members as well."""
    first = [line.split(":") for line in users.splitlines() if line.count(":") > 3]
    for line in text.splitlines():
        name, _, number, members = [*line.split(":"), "", "", ""][:4]
        if number.isdecimal():
            named = [*filter(None, members.split(",")), *(user[0] for user in first if user[3] == number)]
            yield name, (int(number), tuple(named))


def judge(facts: Access, config: Config) -> Iterator[Found]:
    if not facts.root:
        yield unseen(_HERE)
    if config.backend is BackendMode.BROKER:
        yield from _control(facts, config)
    if facts.run_dir is not None and facts.run_dir.bits & _OTHERS:
        yield RUN_DIR(f"{config.run_dir} has mode {facts.run_dir.bits:04o}: others could replace sockets and records",
                      f"chmod 755 {config.run_dir}")  # fmt: skip
    place = place_of(config)
    if facts.place is None:
        yield NO_PLACE(f"{place}, in which each QEMU makes its socket, does not exist",
                       f"install -d -m 755 -o libvirt-qemu -g kvm {place}")  # fmt: skip
    elif facts.place.bits & 0o002:
        yield OPEN_PLACE(
            f"{place} can be written by everybody, who could pretend to be a VM's QEMU", f"chmod 755 {place}"
        )
    else:
        yield ok(_HERE, NO_PLACE.check, f"{place}, mode {facts.place.bits:04o}, user {facts.place.user}")
    strange = (
        STRANGER(f"{path}: {text}", f"chown root: {text.split()[0]} && chmod go-w {text.split()[0]}", str(path))
        for path, texts in facts.strangers.items() for text in texts
    )  # fmt: skip
    yield from healthy(strange, _HERE, STRANGER.check, "only root can change what root trusts")


def _control(facts: Access, config: Config) -> Iterator[Found]:
    name, path = config.broker.group, config.broker_socket
    group = None
    if name is not None:
        group = facts.groups.get(name)
        if group is None:
            yield NO_GROUP(f"broker.group: there is no group {name} on this host", f"groupadd --system {name}")
        elif not group[1]:
            yield NO_MEMBERS(f"group {name} has no member: only root can use the control socket",
                             f'usermod -aG {name} "$SUDO_USER"')  # fmt: skip
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
