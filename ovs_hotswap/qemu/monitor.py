"""QMP commands for many QEMUs at once (qemu.qmp).

A connection lasts only as long as its command: a QMP socket serves one client at a time, and other processes of this
program, such as the watchdog, use the same sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError

from ovs_hotswap.errors import BrokerError
from ovs_hotswap.peer import credentials

_QUESTION_S = 2.0
_MUTE_S = 0.25
_LEAVE_S = 1.0


class Refused(BrokerError):
    """QEMU has answered the command, with an error."""


@dataclass(frozen=True, slots=True)
class Command:
    """One QMP command. The keys of ``arguments`` are those of QEMU's schema.

    ``changes``: the command changes something and may take its time. A query is answered at once or not at all.
    """

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    changes: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a command.

    ``value`` is what the command returned, ``error`` why it failed. ``pid`` is QEMU's process, or ``None`` if no
    process listens on the monitor.
    """

    value: Any
    error: BrokerError | None
    pid: int | None


class Monitors:
    """Sends commands to the QEMUs of many VMs. ``path_of`` returns the path of a VM's QMP socket.

    Each command ends after ``timeout_s`` seconds. A query ends sooner, and sooner still if the QEMU did not answer the
    last one, because all VMs wait for the slowest.
    """

    def __init__(self, path_of: Callable[[str], Path], timeout_s: float) -> None:
        self._path_of, self._timeout_s = path_of, timeout_s
        self._mute: set[str] = set()
        # The library logs each error that it also raises.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

    def ask(self, commands: Mapping[str, Command]) -> dict[str, Answer]:
        """Send each VM's command, all at the same time. A missing answer is an error of that VM alone."""
        return asyncio.run(self._ask(commands))

    async def _ask(self, commands: Mapping[str, Command]) -> dict[str, Answer]:
        answers = await asyncio.gather(*(self._one(vm, command) for vm, command in commands.items()))
        return dict(zip(commands, answers, strict=True))

    async def _one(self, vm: str, command: Command) -> Answer:
        path, pid = self._path_of(vm), None
        client, patience = QMPClient(vm), self._patience(vm, command)
        try:
            async with asyncio.timeout(patience):
                connection = _connect(path)
                pid = credentials(connection).pid
                await client.connect(connection)
                value = await client.execute(command.name, dict(command.arguments))
        except Exception as error:  # noqa: BLE001 - the library may raise anything over what a QEMU sends
            if isinstance(error, TimeoutError):
                self._mute.add(vm)
            return Answer(None, _fault(vm, path, command, error, patience), pid)
        finally:
            await _leave(client)
        self._mute.discard(vm)
        return Answer(value, None, pid)

    def _patience(self, vm: str, command: Command) -> float:
        if command.changes:
            return self._timeout_s
        return min(self._timeout_s, _MUTE_S if vm in self._mute else _QUESTION_S)


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


async def _leave(client: QMPClient) -> None:
    with contextlib.suppress(Exception):  # the connection had ended already: the command's own error says so
        async with asyncio.timeout(_LEAVE_S):
            await client.disconnect()


def _fault(vm: str, path: Path, command: Command, error: Exception, timeout_s: float) -> BrokerError:
    if isinstance(error, ExecuteError):
        hint = None
        if error.error_class == "CommandNotFound":
            hint = "this QEMU is not one of the dual back end: qemu-patches, `make packages`"
        return Refused(f"vm {vm}: {command.name}: {error}", hint=hint)
    if isinstance(error, TimeoutError):
        return BrokerError(f"vm {vm}: QEMU did not answer {command.name} at {path} within {timeout_s:g} s",
                           hint="its monitor may have another client")  # fmt: skip
    text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    if not isinstance(error, OSError | QMPError | ConnectError):
        text = f"what it says cannot be understood: {type(error).__name__}: {error}"
    return BrokerError(f"vm {vm}: QEMU's monitor at {path}: {text}")
