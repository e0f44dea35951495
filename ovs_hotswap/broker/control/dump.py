"""Everything that the broker has on record about one VM, for ``ovs-hotswap broker dump``.

People who look for a fault read it. Its fields are those of the code, and change with the code.
"""

from __future__ import annotations

import enum
import os
import socket
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from typing import Any

from ovs_hotswap.broker.control.server import Method
from ovs_hotswap.broker.deferred_reply import DeferredReply
from ovs_hotswap.broker.time_budget import Hearing
from ovs_hotswap.broker.vm_record import VmRecord
from ovs_hotswap.broker.vm_slot import VmSlot
from ovs_hotswap.vhostuser.backend import SwitchConnection
from ovs_hotswap.vhostuser.channel import Channel, OwnedFd
from ovs_hotswap.vhostuser.messages import FrameReader

# Addresses and feature bits, which are hexadecimal in the log and in the tools of Open vSwitch and QEMU.
_HEXADECIMAL = {
    "features", "protocol_features", "withheld", "guest_address", "user_address", "descriptors", "used", "available",
}  # fmt: skip
_SHOWN = SwitchConnection | Channel | DeferredReply | FrameReader | Hearing  # shown with all their attributes
_REPEATED = {"_agreed", "ready", "old", "new"}  # copies of what is shown elsewhere
_LEFT_OUT = object()  # stands for a value that is no data


def dump(slot: VmSlot) -> dict[str, Any]:
    """Return the slot, its VM and its mover as a document."""
    return {
        "slot": _attributes(slot),
        "vm": _attributes(slot.vm),
        "mover": _attributes(slot.mover),
        "summary": repr(slot.mover),
    }


def dump_method(slot_of: Callable[[object], VmSlot]) -> Method:
    """Return the control socket's method ``dump``. ``slot_of`` returns a VM by its name, or raises BrokerError."""

    async def method(vm: str) -> dict[str, Any]:
        return dump(slot_of(vm))

    return method


def _attributes(of: object) -> dict[str, Any]:
    found = {name.lstrip("_"): _plain(value, name) for name, value in vars(of).items() if name not in _REPEATED}
    return {name: value for name, value in found.items() if value is not _LEFT_OUT}


def _plain(value: object, name: str = "") -> Any:
    """Return ``value`` as JSON, or ``_LEFT_OUT``."""
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value, str) else value.name
    if isinstance(value, int) and not isinstance(value, bool) and name in _HEXADECIMAL:
        return f"{value:#x}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, OwnedFd | socket.socket):
        return _descriptor(value)
    return _composed(value)


def _composed(value: object) -> Any:
    if isinstance(value, VmRecord):
        value = value._asdict()
    if is_dataclass(value) and not isinstance(value, type):
        found = {
            field.name: _plain(getattr(value, field.name), field.name)
            for field in fields(value)
            if field.name not in _REPEATED
        }
    elif isinstance(value, Mapping):
        found = {str(key): _plain(each, str(key)) for key, each in value.items()}
    elif isinstance(value, Set):
        return sorted((each for each in map(_plain, value) if each is not _LEFT_OUT), key=str)
    elif isinstance(value, Sequence):
        return [each for each in map(_plain, value) if each is not _LEFT_OUT]
    elif isinstance(value, _SHOWN):
        return _attributes(value)
    else:
        return _LEFT_OUT
    return {name: each for name, each in found.items() if each is not _LEFT_OUT}


def _descriptor(of: OwnedFd | socket.socket) -> str:
    try:
        return f"{of.fileno()}: {os.readlink(f'/proc/self/fd/{of.fileno()}')}"
    except (OSError, ValueError):
        return repr(of)
