"""A BPF program on a device's ingress, as other software may have one there: it passes or drops every packet."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator

from ovs_hotswap.uplink.frames import in_namespace

_BPF = 321  # __NR_bpf on x86-64
_PROG_LOAD, _LINK_CREATE = 5, 28  # include/uapi/linux/bpf.h, enum bpf_cmd
_SKB_MODE = 2  # include/uapi/linux/if_link.h, XDP_FLAGS_SKB_MODE
# Type of program, what it returns, where it is attached, flags.
_KINDS = {"xdp-drop": (6, 1, 37, _SKB_MODE), "tcx-pass": (3, 0, 46, 0), "tcx-next": (3, -1, 46, 0)}


@contextlib.contextmanager
def program(kind: str, namespace: str, device: str) -> Iterator[None]:
    """``xdp-drop`` takes everything; after ``tcx-pass`` no tc filter is asked, after ``tcx-next`` they are."""
    link = in_namespace(namespace, lambda: _attach(kind, device))
    try:
        yield
    finally:
        os.close(link)


def _attach(kind: str, device: str) -> int:
    sort, verdict, place, flags = _KINDS[kind]
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("=IIQQIIQII16sII", sort, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0, 0,
                       b"test", 0, place)  # fmt: skip
    made = _bpf(_PROG_LOAD, attr)
    try:
        index = socket.if_nametoindex(device)
        return _bpf(_LINK_CREATE, struct.pack("=IIIIIIQQ", made, index, place, flags, 0, 0, 0, 0))
    finally:
        os.close(made)


def _bpf(command: int, attr: bytes) -> int:
    buffer = ctypes.create_string_buffer(attr, len(attr))
    found = int(ctypes.CDLL(None, use_errno=True).syscall(_BPF, command, buffer, len(attr)))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
