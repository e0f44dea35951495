"""The hosts that a command is for, and the exit code of all of them. This module is pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ovs_hotswap.errors import RemoteError

PROGRAM = "ovs-hotswap"
_DESTINATION = re.compile(r"(?:(?P<user>[^@]+)@)?(?:\[(?P<six>[^@\]]+)\]|(?P<host>[^:@\[\]]+))(?::(?P<port>\d{1,5}))?")
_BARE_SIX = re.compile(r"(?:(?P<user>[^@]+)@)?(?P<host>[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f.:]*(?:%\S+)?)")
# What a ProxyCommand, which a shell takes apart, must not be given as a name (OpenSSH: ssh.c, valid_hostname).
_UNFIT = re.compile(r"""(?:^|@)-|[\s\x00-\x1f\x7f'"`$\\;&<>|(){}]""")
URGENT = (6, 15, 20, 130, 5)
"""The exit codes that say most urgently that a host wants to be looked at, the most urgent first."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A host as the operator names it. ``name`` is looked up in ssh_config; ``user`` and ``port`` take precedence."""

    name: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Parse ``[user@]host[:port]``, also as a URL of the scheme ssh. An IPv6 address with a port is in brackets.
        Raises RemoteError."""
        plain = text.removeprefix("ssh://").rstrip("/") if text.startswith("ssh://") else text
        found = _BARE_SIX.fullmatch(plain) or _DESTINATION.fullmatch(plain)
        if found is None or _UNFIT.search(plain):
            raise RemoteError(f"{text!r} is not a host", hint="write it as [user@]host[:port]")
        parts = found.groupdict()
        port = int(parts["port"]) if parts.get("port") else None
        if port is not None and not 0 < port < 1 << 16:
            raise RemoteError(f"{text!r}: there is no port {port}", hint="a port is a number from 1 to 65535")
        return cls(parts.get("six") or parts["host"], parts["user"], port)

    @property
    def for_ssh(self) -> str:
        """The host as ssh(1) takes it."""
        user = "" if self.user is None else f"{self.user}@"
        if self.port is None:
            return f"{user}{self.name}"
        return f"ssh://{user}{f'[{self.name}]' if ':' in self.name else self.name}:{self.port}"


def listed(text: str) -> list[str]:
    """The hosts in a file: one on a line. Empty lines, and what follows a #, are left out."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def worst(codes: Iterable[int]) -> int:
    """The exit code for several hosts: the first of ``URGENT`` that occurs, else the greatest."""
    found = set(codes)
    return next((code for code in URGENT if code in found), max(found, default=0))


def remote_command(program: str, *, sudo: bool) -> str:
    """The command that starts the host's end, for the login shell there. It is the same for every command, so that a
    rule of sudoers(5) can allow just it."""
    words: Sequence[str] = [*(["sudo", "-n", "--"] if sudo else []), program, "host-end"]
    return shlex.join(words)
