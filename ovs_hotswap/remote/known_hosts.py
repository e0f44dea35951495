"""Whether a host's key is the one that is known for it: known_hosts files (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).

An unknown key is never accepted, whatever ``StrictHostKeyChecking`` says.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paramiko import HostKeys, PKey, SSHException
from paramiko.hostkeys import HostKeyEntry, InvalidHostKey

from ovs_hotswap.errors import RemoteError

SSH_PORT = 22
_REVOKED, _AUTHORITY = "@revoked", "@cert-authority"


@dataclass(frozen=True, slots=True)
class Known:
    """A key that a line of a file has for the host."""

    key: PKey
    file: Path
    line: int
    revoked: bool = False


def known_name(host: str, port: int) -> str:
    """The name that a host has in these files."""
    return host if port == SSH_PORT else f"[{host}]:{port}"


def known_keys(name: str, files: Sequence[Path]) -> list[Known]:
    """The keys that the files have for a host. Files that are missing, and lines of another kind, are left out."""
    found = (_parsed(line) for line in _lines(name, files) if line.marker in {"", _REVOKED})
    return [each for each in found if each is not None]


@dataclass(frozen=True, slots=True)
class _Line:
    file: Path
    number: int
    marker: str
    words: list[str]


def _lines(name: str, files: Sequence[Path]) -> Iterator[_Line]:
    """The lines that are for a host."""
    for file in files:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            words = line.split()
            marker = words.pop(0) if line.lstrip().startswith("@") else ""
            if len(words) > 2 and not words[0].startswith("#") and _is_for(name, words[0].split(",")):
                yield _Line(file, number, marker, words)


def _parsed(line: _Line) -> Known | None:
    """The key of a line; ``None`` if it is damaged, or of an unknown type."""
    try:
        entry = HostKeyEntry.from_line(" ".join(line.words), line.number)
    except (InvalidHostKey, SSHException, ValueError):
        return None
    if entry is None or entry.key is None:
        return None
    return Known(entry.key, line.file, line.number, line.marker == _REVOKED)


def _is_for(name: str, patterns: Sequence[str]) -> bool:
    """Whether a line is for a host: a pattern matches, and none with ``!`` does."""
    if any(_matches(pattern[1:], name) for pattern in patterns if pattern.startswith("!")):
        return False
    return any(_matches(pattern, name) for pattern in patterns)


def _matches(pattern: str, name: str) -> bool:
    """Whether a name is meant: hashed, or as a pattern with ``*`` and ``?``. Case does not matter."""
    if pattern.startswith("|"):
        with contextlib.suppress(ValueError, IndexError, AssertionError):  # what a damaged hash raises
            return pattern in {HostKeys.hash_host(each, pattern) for each in (name, name.lower())}
        return False
    if not {"*", "?"} & set(pattern):
        return pattern.lower() == name.lower()
    signs = {"*": ".*", "?": "."}
    return re.fullmatch("".join(signs.get(sign, re.escape(sign)) for sign in pattern), name, re.IGNORECASE) is not None


def key_types(known: Sequence[Known], offered: Sequence[str]) -> list[str]:
    """The key types in the order in which to ask for them: first those of which a key is known."""
    names = {each.key.get_name() for each in known if not each.revoked}
    if "ssh-rsa" in names:
        names |= {"rsa-sha2-512", "rsa-sha2-256"}
    return sorted(offered, key=lambda each: each not in names)


def verify(
    host: str, name: str, key: PKey, known: Sequence[Known], files: Sequence[Path], *, accept: str | None = None
) -> None:
    """Raise RemoteError unless ``key`` is one of those that are known for ``host``. ``name``: what it is called in
    ``files``. ``accept``: the command that makes its key known, if ssh-keyscan(1) cannot reach it."""
    if stop := next((each for each in known if each.revoked and each.key == key), None):
        raise RemoteError(
            f"{host} has a key that is revoked: {stop.file}, line {stop.line}",
            hint="give the host a new key, and remove the line of the host's old one",
        )
    valid = [each for each in known if not each.revoked]
    if any(each.key == key for each in valid):
        return
    shown = f"{key.get_name()} {key.fingerprint}"
    file = files[0] if files else Path("~/.ssh/known_hosts")
    if not valid:
        vouched = next((line for line in _lines(name, files) if line.marker == _AUTHORITY), None)
        more = vouched and f" (line {vouched.number} of {vouched.file} is for certificates, which are not used here)"
        raise RemoteError(
            f"the key of {host} is not known: {shown} is not in {', '.join(map(str, files))}{more or ''}",
            hint=f"compare it with the host's own (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there), then "
            f"`{accept or _scan(name, file)}`",
        )
    other = next((each for each in valid if each.key.get_name() == key.get_name()), valid[0])
    raise RemoteError(
        f"the key of {host} is not the one in {other.file}, line {other.line}: it is {shown}. Another "
        "machine may answer in its place",
        hint="if the host was given a new key: "
        f"`ssh-keygen -f {shlex.quote(str(other.file))} -R {shlex.quote(name)}`, then "
        f"`{accept or _scan(name, other.file)}`",
    )


def _scan(name: str, file: Path) -> str:
    host, port = name, ""
    if name.startswith("["):
        host, _, port = name[1:].partition("]:")
    return f"{shlex.join(['ssh-keyscan', *(['-p', port] if port else []), host])} >> {shlex.quote(str(file))}"
