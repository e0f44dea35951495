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
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one host. ``jumps``: the hosts to go through, in order. ``known_as``: its name in known_hosts
    files. ``keys_alone``: no other keys of the agent than those of ``key_files`` are tried."""

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


@dataclass(frozen=True)
class SshFiles:
    """The files of this user, and of this machine, that say how hosts are reached."""

    user: Path = field(default_factory=lambda: Path("~/.ssh").expanduser())
    machine: Path = Path("/etc/ssh")

    def settings(self, destination: Destination) -> Settings:
        """What applies to a host. Raises RemoteError if a file is faulty."""
        try:
            found = SSHConfig.from_text(self.text()).lookup(destination.name)
        except (ConfigParseError, CouldNotCanonicalize, ImportError, OSError, ValueError) as error:
            raise RemoteError(f"{self.user / 'config'}: {error}", hint="`ssh -G HOST` says where") from error
        host = found.get("hostname", destination.name)
        port = destination.port or _number(found.get("port"), SSH_PORT)
        user = destination.user or found.get("user") or getpass.getuser()
        jump = found.get("proxyjump") or "none"
        command = found.get("proxycommand") or "none"  # a value none is None here
        alias = found.get("hostkeyalias")
        files = [_names(found.get(f"{whose}knownhostsfile"), f"{directory}/{name}")
                 for whose, directory, name in (("user", self.user, "known_hosts"),
                                                ("global", self.machine, "ssh_known_hosts"))]  # fmt: skip
        keys = found.get("identityfile") or [str(self.user / name) for name in _DEFAULT_KEYS]
        jumps = () if jump.lower() == "none" else tuple(Destination.parse(each.strip()) for each in jump.split(","))
        return Settings(
            host, port, user, alias or known_name(host, port),
            tuple(self._path(name) for names in files for name in names),
            tuple(self._path(name) for name in keys),
            found.get("identitiesonly", "no").lower() == "yes",
            jumps, None if jumps or command.lower() == "none" else command,
            _number(found.get("connecttimeout"), 0) or CONNECT_S,
        )  # fmt: skip

    def text(self) -> str:
        """The user's file and that of the machine as one, in which the first value counts. Raises RemoteError."""
        parts = [self._read(self.user / "config"), "Host *", self._read(self.machine / "ssh_config")]
        return "\n".join(parts) + "\n"

    def _read(self, file: Path, depth: int = 0) -> str:
        """A file, with those that it includes in their places: paramiko does not know Include. Raises RemoteError."""
        if depth > _INCLUDES_MAX:
            raise RemoteError(f"{file}: files include one another", hint="remove an Include")
        try:
            lines = file.read_text().splitlines()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise RemoteError(f"{file}: cannot be read: {error}") from error
        taken = [text for line in lines for text in self._included(line, file, depth)]
        return "\n".join(taken)

    def _included(self, line: str, file: Path, depth: int) -> Iterator[str]:
        found = _INCLUDE.match(line)
        if found is None:
            yield line
            return
        for pattern in shlex.split(found[1]):
            place = self._path(pattern, self.machine if file.is_relative_to(self.machine) else self.user)
            for name in sorted(glob.glob(str(place))):
                yield self._read(Path(name), depth + 1)

    def _path(self, name: str, below: Path | None = None) -> Path:
        home = str(self.user.parent)
        return (below or Path()) / re.sub(r"^~(?=/|$)", lambda _: home, name.replace("%d", home))


def _number(text: str | None, default: int) -> int:
    try:
        return int(text or default)
    except ValueError:
        raise RemoteError(f"ssh_config: {text!r} is not a number", hint="`ssh -G HOST` says where") from None


def _names(text: str | None, default: str) -> list[str]:
    """The files of a list; without one, the ``default`` and that with a 2 behind it, as ssh_config(5) says."""
    return [default, f"{default}2"] if text is None else [name for name in shlex.split(text) if name.lower() != "none"]


def keys_of(files: Sequence[Path]) -> list[Path]:
    """The key files that exist."""
    return [file for file in files if os.access(file, os.R_OK)]
