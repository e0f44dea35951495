"""An SSH connection to a host, through others if ssh_config says so, with the host's key verified first."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from paramiko import Agent, Channel, PasswordRequiredException, PKey, ProxyCommand, SSHConfig, SSHException, Transport
from paramiko.auth_strategy import AuthFailure, AuthSource, AuthStrategy, InMemoryPrivateKey, OnDiskPrivateKey
from paramiko.pkey import PublicBlob, UnknownKeyType
from paramiko.ssh_exception import AuthenticationException, BadAuthenticationType

from ovs_hotswap.errors import RemoteError
from ovs_hotswap.remote import known_hosts
from ovs_hotswap.remote.hosts import Destination
from ovs_hotswap.remote.ssh_settings import Settings, SshFiles, keys_of

_JUMPS_MAX = 8
_SAID = 1 << 12
_BUSY = (OSError, EOFError, SSHException)


class Keys(AuthStrategy):
    """The keys of the agent and of files. With ``IdentitiesOnly`` the agent is asked for the keys of the files alone.
    ``locked``: the files whose keys have a passphrase, which only an agent can hold."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(ssh_config=SSHConfig())
        self._settings = settings
        self.locked: list[Path] = []
        self.tried = 0

    def get_sources(self) -> Iterator[AuthSource]:
        """Yield the keys in the order of ssh(1): of the agent first those that are configured, because a host allows
        few attempts."""
        wanted = {blob for file in self._settings.key_files if (blob := _public_blob(file)) is not None}
        tried = set()
        for key in sorted(_agent_keys(), key=lambda key: key.asbytes() not in wanted):
            if not self._settings.keys_alone or key.asbytes() in wanted:
                tried.add(key.asbytes())
                self.tried += 1
                yield InMemoryPrivateKey(self._settings.user, key)
        for file in keys_of(self._settings.key_files):
            try:
                loaded = PKey.from_path(file)
            except (PasswordRequiredException, TypeError):
                if _public_blob(file) not in tried:
                    self.locked.append(file)
            except (SSHException, ValueError, OSError, UnknownKeyType, UnsupportedAlgorithm):
                continue
            else:
                if loaded.public_blob is None and loaded.asbytes() in tried:
                    continue
                self.tried += 1
                yield OnDiskPrivateKey(self._settings.user, "ssh-config", file, loaded)


def _agent_keys() -> list[PKey]:
    try:
        return list(Agent().get_keys())
    except (SSHException, OSError):
        return []


def _public_blob(file: Path) -> bytes | None:
    """What a key file's public half is on the wire. The file may itself be that half, of a key that an agent holds."""
    for each in (file.with_name(f"{file.name}.pub"), file):
        with contextlib.suppress(OSError, ValueError):
            return bytes(PublicBlob.from_file(str(each)).key_blob)
    return None


class Proxy(ProxyCommand):
    """A ProxyCommand as ssh(1) runs it: by a shell. It is in our process group, but Ctrl-C is not for it."""

    def __init__(self, command: str) -> None:
        super().__init__(shlex.join(["sh", "-c", f"trap '' INT; exec {command}"]))
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._out, self._err = self.process.stdout.fileno(), self.process.stderr.fileno()
        self._sources = [self._out, self._err]
        self._said = b""

    def recv(self, size: int) -> bytes:
        """What came; nothing at the end of the command, which paramiko's own class does not notice. Raises
        TimeoutError."""
        while ready := select.select(self._sources, [], [], self.timeout)[0]:
            if self._out in ready:
                return os.read(self._out, size)
            self._listen()
        raise TimeoutError

    def close(self) -> None:
        if self.process.poll() is None:
            super().close()

    def last_words(self) -> str:
        """The last line that the command printed on standard error."""
        while self._err in select.select(self._sources, [], [], 0)[0]:
            self._listen()
        return "".join(self._said.decode(errors="replace").split("\n")[-2:]).strip()

    def _listen(self) -> None:
        data = os.read(self._err, _SAID)
        self._said = (self._said + data)[-_SAID:]
        if not data:
            self._sources.remove(self._err)


class Connection:
    """A connection, and those to the hosts on the way, which end with it."""

    def __init__(self, settings: Settings, transports: list[Transport]) -> None:
        self.settings = settings
        self._transports = transports

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_error: object) -> None:
        _close(self._transports)

    def execute(self, command: str) -> Channel:
        """Start a command there. Raises RemoteError."""
        try:
            channel = self._transports[-1].open_session(timeout=self.settings.timeout_s)
            channel.exec_command(command)
        except _BUSY as error:
            raise RemoteError(f"{self.settings}: no command can be started: {_text(error)}") from error
        return channel


def _close(transports: list[Transport]) -> None:
    for transport in reversed(transports):
        transport.close()


def connect(destination: Destination, files: SshFiles) -> Connection:
    """Connect to a host. Raises RemoteError, which says what to do."""
    settings = files.settings(destination)
    with contextlib.ExitStack() as undo:
        transports: list[Transport] = []
        undo.callback(_close, transports)
        _reach(settings, files, transports)
        undo.pop_all()
    return Connection(settings, transports)


def _reach(settings: Settings, files: SshFiles, transports: list[Transport], depth: int = 0) -> None:
    """Connect to a host after the hosts on the way; each connection is added to ``transports``.

    With ProxyJump A,B the host A is reached as ssh_config says, B from A, and the host from B. A host on the way to
    itself is left out, because ``Host *`` may name it.
    """
    if depth > _JUMPS_MAX:
        raise RemoteError(f"{settings}: the way leads through more than {_JUMPS_MAX} hosts",
                          hint="correct ProxyJump in ssh_config: hosts lead to one another")  # fmt: skip
    way = [jump for each in settings.jumps if not _same(jump := files.settings(each), settings)]
    if not way:
        transports.append(_open(settings, _socket(settings)))
        return
    _reach(way[0], files, transports, depth + 1)
    for middle, each in itertools.pairwise([*way, settings]):
        transports.append(_open(each, _through(transports[-1], middle, each)))


def _same(one: Settings, other: Settings) -> bool:
    return (one.host, one.port) == (other.host, other.port)


def _socket(settings: Settings) -> Any:
    if settings.proxy_command is not None:
        return Proxy(settings.proxy_command)
    try:
        return socket.create_connection((settings.host, settings.port), settings.timeout_s)
    except OSError as error:
        shown = shlex.join(["ssh", "-v", *(["-p", str(settings.port)] if settings.port != known_hosts.SSH_PORT else []),
                            f"{settings.user}@{settings.host}"])  # fmt: skip
        raise RemoteError(f"{settings} cannot be reached: {_text(error)}", hint=f"`{shown}`") from error


def _through(transport: Transport, middle: Settings, settings: Settings) -> Channel:
    try:
        return transport.open_channel(
            "direct-tcpip", (settings.host, settings.port), ("127.0.0.1", 0), timeout=settings.timeout_s
        )
    except _BUSY as error:
        raise RemoteError(
            f"{settings} cannot be reached from {middle}: {_text(error)}",
            hint=f"see whether {middle.host} reaches it and sshd_config there has AllowTcpForwarding",
        ) from error


def _open(settings: Settings, sock: Any) -> Transport:
    """Agree on keys with the host, verify its key, and log in."""
    known = known_hosts.known_keys(settings.known_as, settings.known_hosts)
    try:
        transport = Transport(sock)
    except _BUSY as error:
        sock.close()
        raise RemoteError(f"{settings} does not speak SSH: {_text(error)}") from error
    with contextlib.ExitStack() as undo:
        undo.callback(transport.close)
        transport.banner_timeout = transport.auth_timeout = settings.timeout_s
        options = transport.get_security_options()
        options.key_types = known_hosts.key_types(known, list(options.key_types))
        try:
            transport.start_client(timeout=settings.timeout_s)
            key = transport.get_remote_server_key()
        except _BUSY as error:
            said = sock.last_words() if isinstance(sock, Proxy) else ""
            cause = f"ProxyCommand says: {said}" if said else _text(error)
            raise RemoteError(f"{settings} does not speak SSH: {cause}") from error
        accept = None if settings.direct else f"ssh {shlex.quote(settings.name)} true"
        known_hosts.verify(str(settings), settings.known_as, key, known, settings.known_hosts, accept=accept)
        _log_in(settings, transport)
        undo.pop_all()
    return transport


def _log_in(settings: Settings, transport: Transport) -> None:
    keys = Keys(settings)
    try:
        keys.authenticate(transport)
        if transport.is_authenticated():
            return
        cause = "it asks for more than a key"
    except AuthFailure:
        cause = f"it accepts none of {keys.tried} keys" if keys.tried else "there is no key to log in with"
    except (BadAuthenticationType, AuthenticationException, *_BUSY) as error:
        cause = _text(error)
    if keys.locked:
        hint = f"`ssh-add {shlex.quote(str(keys.locked[0]))}`: its key has a passphrase, which an agent is to hold"
    else:
        port = [] if settings.port == known_hosts.SSH_PORT else ["-p", str(settings.port)]
        copy = shlex.join(["ssh-copy-id", *port, f"{settings.user}@{settings.host}"])
        hint = f"`{copy}`, or name a key: IdentityFile in ssh_config"
    raise RemoteError(f"{settings} does not let user {settings.user} in: {cause}", hint=hint)


def _text(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip() or type(error).__name__


def silence(*, debug: bool) -> None:
    """Have paramiko log nothing: its errors are reported as ours. ``debug``: it logs everything."""
    logging.getLogger("paramiko").setLevel(logging.DEBUG if debug else logging.CRITICAL + 1)
