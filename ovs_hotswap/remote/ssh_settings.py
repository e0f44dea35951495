"""How a host is reached: what ssh_config(5) and the command line say about it."""

from __future__ import annotations

import getpass
import glob
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paramiko import SSHConfig
from paramiko.ssh_exception import ConfigParseError, CouldNotCanonicalize

from ovs_hotswap.errors import RemoteError
from ovs_hotswap.remote.hosts import Destination
from ovs_hotswap.remote.known_hosts import SSH_PORT, known_name

CONNECT_S = 30.0
_INCLUDES_MAX = 16  # as OpenSSH: readconf.c, READCONF_MAX_DEPTH
_INCLUDE = re.compile(r"^\s*include(?:\s*=\s*|\s+)(.*)$", re.IGNORECASE)
_BLOCK = re.compile(r"^\s*(?:host|match)\b", re.IGNORECASE)
# A comment may end any line but one whose value is for a shell.
_COMMENT = re.compile(r"""^(\s*(?!match|\w*command)\w+[\s=][^"#]*?)\s+#.*$""", re.IGNORECASE)
_ALL = "Host *"
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one host. ``name``: what ssh(1) is to be given for it. ``jumps``: the hosts to go through, in
    order. ``known_as``: its name in known_hosts files. ``keys_alone``: no other keys of the agent than those of
    ``key_files`` are tried."""

    name: str
    host: str
    port: int
    user: str
    known_as: str
    known_hosts: tuple[Path, ...]
    key_files: tuple[Path, ...]
    keys_alone: bool = False
    jumps: tuple[Destination, ...] = ()
    proxy_command: str | None = None
    timeout_s: float = CONNECT_S

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" + ("" if self.port == SSH_PORT else f":{self.port}")

    @property
    def direct(self) -> bool:
        """Whether a program that is given its name in known_hosts files, and nothing else, reaches the host."""
        return not self.jumps and self.proxy_command is None and self.known_as == known_name(self.host, self.port)


@dataclass(frozen=True)
class SshFiles:
    """The files of this user, and of this machine, that say how hosts are reached."""

    user: Path = field(default_factory=lambda: Path("~/.ssh").expanduser())
    machine: Path = Path("/etc/ssh")

    def settings(self, destination: Destination) -> Settings:
        """What applies to a host. Raises RemoteError if a file is faulty."""
        name = destination.name
        try:
            found = SSHConfig.from_text("\n".join(self.lines(destination))).lookup(name)
        except (ConfigParseError, CouldNotCanonicalize, ImportError, OSError, ValueError) as error:
            raise RemoteError(f"{self.user / 'config'}: {error}", hint="`ssh -G HOST` says where") from error
        host = found.get("hostname", name)
        port = _number(found.get("port"), SSH_PORT)
        user = found.get("user") or getpass.getuser()
        jump = found.get("proxyjump") or "none"
        command = found.get("proxycommand") or "none"  # a value none is None here
        alias = found.get("hostkeyalias")
        files = [_names(found.get(f"{whose}knownhostsfile"), f"{directory}/{name}")
                 for whose, directory, name in (("user", self.user, "known_hosts"),
                                                ("global", self.machine, "ssh_known_hosts"))]  # fmt: skip
        keys = found.get("identityfile") or [str(self.user / name) for name in _DEFAULT_KEYS]
        jumps = () if jump.lower() == "none" else tuple(Destination.parse(each.strip()) for each in jump.split(","))
        # paramiko replaces the other signs of the command.
        proxy = None if jumps or command.lower() == "none" else command.replace("%n", name)
        return Settings(
            destination.for_ssh, host, port, user, alias or known_name(host, port),
            tuple(self._path(name) for names in files for name in names),
            tuple(self._path(name) for name in keys),
            found.get("identitiesonly", "no").lower() == "yes",
            jumps, proxy,
            _number(found.get("connecttimeout"), 0) or CONNECT_S,
        )  # fmt: skip

    def lines(self, destination: Destination) -> list[str]:
        """What the command line says, the user's file and that of the machine, in one file in which the first value
        counts. Raises RemoteError."""
        given = (("User", destination.user), ("Port", destination.port))
        lines = [f"{key} {value}" for key, value in given if value is not None]
        for file in (self.user / "config", self.machine / "ssh_config"):
            lines.append(_ALL)
            self._add(file, lines, destination.name, _ALL)
        return lines

    def _add(self, file: Path, lines: list[str], name: str, block: str, depth: int = 0) -> None:
        """Add the lines of a file, with those of the files that it includes in their places: paramiko does not know
        Include. An Include counts only if its ``block`` is for the host ``name``; the block continues after it.

        Raises RemoteError."""
        if depth > _INCLUDES_MAX:
            raise RemoteError(f"{file}: files include one another", hint="remove an Include")
        try:
            found = file.read_text().splitlines()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise RemoteError(f"{file}: cannot be read: {error}") from error
        for line in found:
            if (include := _INCLUDE.match(line)) is None:
                lines.append(_COMMENT.sub(r"\1", line))
                block = lines[-1] if _BLOCK.match(line) else block
            elif _counts(lines, name):
                for inner in self._included(include[1], file):
                    self._add(inner, lines, name, block, depth + 1)
                    lines.append(block)

    def _included(self, patterns: str, file: Path) -> Iterator[Path]:
        below = self.machine if file.is_relative_to(self.machine) else self.user
        for pattern in shlex.split(patterns, comments=True):
            yield from map(Path, sorted(glob.glob(str(self._path(pattern, below)))))

    def _path(self, name: str, below: Path | None = None) -> Path:
        home = str(self.user.parent)
        return (below or Path()) / re.sub(r"^~(?=/|$)", lambda _: home, name.replace("%d", home))


def _counts(lines: Sequence[str], name: str) -> bool:
    """Whether a line after these would count for the host ``name``."""
    return "included" in SSHConfig.from_text("\n".join([*lines, "Included yes"])).lookup(name)


def _number(text: str | None, default: int) -> int:
    try:
        return int(text or default)
    except ValueError:
        raise RemoteError(f"ssh_config: {text!r} is not a number", hint="`ssh -G HOST` says where") from None


def _names(text: str | None, default: str) -> list[str]:
    """The files of a list; without one, the ``default`` and that with a 2 behind it, as ssh_config(5) says."""
    if text is None:
        return [default, f"{default}2"]
    try:
        return [name for name in shlex.split(text) if name.lower() != "none"]
    except ValueError as error:
        raise RemoteError(f"ssh_config: {text!r} is not a list of files: {error}",
                          hint="`ssh -G HOST` says where") from error  # fmt: skip


def keys_of(files: Sequence[Path]) -> list[Path]:
    """The key files that exist."""
    return [file for file in files if os.access(file, os.R_OK)]
