"""Whether a host's key is the one that is known for it: known_hosts files (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).

An unknown key is never accepted, whatever ``StrictHostKeyChecking`` says.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paramiko import HostKeys, PKey
from paramiko.hostkeys import HostKeyEntry, InvalidHostKey

from ovs_hotswap.errors import RemoteError

SSH_PORT = 22


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
    return [known for file in files for known in _in_file(name, file)]


def _in_file(name: str, file: Path) -> Iterator[Known]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return
    for number, line in enumerate(lines, 1):
        words = line.split()
        revoked = words[:1] == ["@revoked"]
        if not words or words[0].startswith("#") or (words[0].startswith("@") and not revoked):
            continue
        try:
            entry = HostKeyEntry.from_line(" ".join(words[1:] if revoked else words), number)
        except InvalidHostKey:
            continue
        if entry is not None and entry.key is not None and _is_for(name, entry):
            yield Known(entry.key, file, number, revoked)


def _is_for(name: str, entry: HostKeyEntry) -> bool:
    names = HostKeys()
    for each in entry.hostnames or []:
        names.add(each, entry.key.get_name(), entry.key)
    return names.lookup(name) is not None or any(_pattern(each, name) for each in entry.hostnames or [])


def _pattern(pattern: str, name: str) -> bool:
    """Whether a pattern with ``*`` or ``?`` matches."""
    if not {"*", "?"} & set(pattern) or pattern.startswith(("|", "!")):
        return False
    signs = {"*": ".*", "?": "."}
    return re.fullmatch("".join(signs.get(sign, re.escape(sign)) for sign in pattern), name) is not None


def key_types(known: Sequence[Known], offered: Sequence[str]) -> list[str]:
    """The key types in the order in which to ask for them: first those of which a key is known."""
    names = {each.key.get_name() for each in known if not each.revoked}
    if "ssh-rsa" in names:
        names |= {"rsa-sha2-512", "rsa-sha2-256"}
    return sorted(offered, key=lambda each: each not in names)


def verify(host: str, name: str, key: PKey, known: Sequence[Known], files: Sequence[Path]) -> None:
    """Raise RemoteError unless ``key`` is one of those that are known for ``host``. ``name``: what it is called in
    ``files``."""
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
        raise RemoteError(
            f"the key of {host} is not known: {shown} is not in {', '.join(map(str, files))}",
            hint=f"compare it with the host's own (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there), then "
            f"`{_scan(name)} >> {shlex.quote(str(file))}`",
        )
    other = next((each for each in valid if each.key.get_name() == key.get_name()), valid[0])
    raise RemoteError(
        f"the key of {host} is not the one in {other.file}, line {other.line}: it is {shown}. Another "
        "machine may answer in its place",
        hint="if the host was given a new key: "
        f"`ssh-keygen -f {shlex.quote(str(other.file))} -R {shlex.quote(name)}`, then "
        f"`{_scan(name)} >> {shlex.quote(str(other.file))}`",
    )


def _scan(name: str) -> str:
    host, port = name, ""
    if name.startswith("["):
        host, _, port = name[1:].partition("]:")
    return shlex.join(["ssh-keyscan", *(["-p", port] if port else []), host])
