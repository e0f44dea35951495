"""What the driver of a network device says of itself (ethtool(8), ``-i`` and ``--show-priv-flags``)."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

# include/uapi/linux/sockios.h and ethtool.h
_SIOCETHTOOL = 0x8946
_GDRVINFO, _GSTRINGS, _GPFLAGS = 0x3, 0x1B, 0x27
_PRIV_FLAGS = 2  # ETH_SS_PRIV_FLAGS
_NAME_BYTES = 32  # ETH_GSTRING_LEN
_DRVINFO = struct.Struct("I32s32s32s32s32s12sIIIII")  # struct ethtool_drvinfo
_FIRMWARE, _FLAGS = 3, 7  # its fields fw_version and n_priv_flags
_STRINGS = struct.Struct("III")  # struct ethtool_gstrings, without the strings


def firmware(name: str) -> str | None:
    """The version of a device's firmware, which is nowhere in /sys; empty if it has none, ``None`` if its driver does
    not answer."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            return _text(_DRVINFO.unpack(_drvinfo(control, name))[_FIRMWARE]).strip()
    except OSError:
        return None


def private_flags(name: str) -> dict[str, bool]:
    """The private flags of a device by their names; none if it has none, or its driver does not answer."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            count = _DRVINFO.unpack(_drvinfo(control, name))[_FLAGS]
            if not count:
                return {}
            blank = _STRINGS.pack(_GSTRINGS, _PRIV_FLAGS, count) + bytes(count * _NAME_BYTES)
            names = _ask(control, name, blank)[_STRINGS.size :]
            return flags_of(names, _ask(control, name, struct.pack("II", _GPFLAGS, 0)))
    except OSError:
        return {}


def flags_of(names: bytes, value: bytes) -> dict[str, bool]:
    """The flags of a list of names, 32 bytes for each, and a ``struct ethtool_value`` with a bit for each."""
    (bits,) = struct.unpack("4xI", value)
    words = (_text(names[at : at + _NAME_BYTES]) for at in range(0, len(names), _NAME_BYTES))
    return {word: bool(bits >> bit & 1) for bit, word in enumerate(words)}


def _drvinfo(control: socket.socket, name: str) -> bytes:
    return _ask(control, name, _DRVINFO.pack(_GDRVINFO, *[b""] * 6, 0, 0, 0, 0, 0))


def _ask(control: socket.socket, name: str, request: bytes) -> bytes:
    """Return the request as the driver has filled it in. Raises OSError."""
    reply = ctypes.create_string_buffer(request, len(request))
    fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP", name.encode(), ctypes.addressof(reply)))
    return reply.raw


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")
