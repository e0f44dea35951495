"""VLAN tags on a kernel device: what leaves it gets the tag, and only what arrives with the tag is taken, without it.

Two BPF programs at the device's traffic control do this. A VLAN device (8021q) is not used, because not every kernel
has them; and above the NIC of the lab's host it would take the packets that have to be steered with their tags.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from typing import Any

_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or _EGRESS)
_BPF = 321  # __NR_bpf on x86-64, on which the lab's guests run
_PROG_LOAD, _SCHED_CLS = 5, 3  # include/uapi/linux/bpf.h, enum bpf_cmd and bpf_prog_type
_PUSH, _POP = 18, 19  # BPF_FUNC_skb_vlan_push and _pop
_TCI = 24  # struct __sk_buff, vlan_tci: 0 if there is no tag
_OK, _SHOT = 0, 2  # include/uapi/linux/pkt_cls.h, TC_ACT_*


def _instruction(code: int, registers: int, offset: int, value: int) -> bytes:
    return struct.pack("<BBhi", code, registers, offset, value)


_MOVE, _MASK, _LOAD, _CALL, _EXIT, _IF_EQUAL, _IF_NOT = 0xB7, 0x57, 0x61, 0x85, 0x95, 0x15, 0x55
_DONE = (
    (_IF_EQUAL, 0, 1, 0),  # the function has returned 0, which is _OK
    (_MOVE, 0, 0, _SHOT),
    (_EXIT, 0, 0, 0),
)


def push_program(vlan: int) -> bytes:
    """Gives a packet the tag."""
    steps = ((_MOVE, 2, 0, socket.htons(0x8100)), (_MOVE, 3, 0, vlan), (_CALL, 0, 0, _PUSH), *_DONE)
    return b"".join(_instruction(*step) for step in steps)


def pop_program(vlan: int) -> bytes:
    """Takes the tag off a packet, and drops packets without it."""
    steps = (
        (_LOAD, 0x12, _TCI, 0),  # register 2 from the packet, which is register 1
        (_MASK, 2, 0, 0xFFF),
        (_MOVE, 0, 0, _SHOT),
        (_IF_NOT, 2, 3, vlan),  # to the exit
        (_CALL, 0, 0, _POP),
        *_DONE,
    )
    return b"".join(_instruction(*step) for step in steps)


def tag(route: Any, index: int, vlan: int) -> None:
    """Tag the device with this index, in the namespace of the rtnetlink socket ``route``. The programs are removed with
    the device. Raises OSError and NetlinkError."""
    route.tc("add", "clsact", index)
    for parent, code in ((_EGRESS, push_program(vlan)), (_INGRESS, pop_program(vlan))):
        loaded = _load(code)
        try:
            route.tc("add-filter", "bpf", index, parent=parent, prio=1, fd=loaded, name="tag", direct_action=True)
        finally:
            os.close(loaded)


def _load(code: bytes) -> int:
    """A file descriptor of the program."""
    held, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQII16s", _SCHED_CLS, len(code) // 8, ctypes.addressof(held), ctypes.addressof(licence), 0, 0, 0, 0, 0,
        b"tag",
    )  # fmt: skip
    given = ctypes.create_string_buffer(attributes, len(attributes))
    found = int(ctypes.CDLL(None, use_errno=True).syscall(_BPF, _PROG_LOAD, given, len(attributes)))
    if found < 0:
        raise OSError(ctypes.get_errno(), f"BPF program: {os.strerror(ctypes.get_errno())}")
    return found
