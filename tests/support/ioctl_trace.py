"""Runs a program whose ioctl(SIOCETHTOOL) calls are answered by the test instead of the kernel (ptrace(2)).

So the real ``ethtool`` shows which bytes it sends for a command, and works on a NIC that does not exist. For x86-64.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_TRACEME, _GETREGS, _SETREGS, _SYSCALL, _SETOPTIONS = 0, 12, 13, 24, 0x4200  # include/uapi/linux/ptrace.h
_OPTIONS = 0x00000001 | 0x00100000  # TRACESYSGOOD, EXITKILL
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_IOCTL, _SIOCETHTOOL = 16, 0x8946
_REGISTERS = 27  # of struct user_regs_struct, arch/x86/include/asm/user_64.h
_RAX, _RDX, _RSI, _ORIG_RAX = 10, 12, 13, 15
_NOTHING = 0xFFFFFFFFFFFFFFFF  # a system call that does not exist, so that none is made

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass
class Run:
    """How a program ended, and the requests that it made."""

    status: int = 0
    output: str = ""
    requests: list[bytes] = field(default_factory=list)


def run(arguments: Sequence[str], answer: Callable[[str, bytes], bytes]) -> Run:
    """Run a program. ``answer`` is given the device and the request, and returns the filled-in request or raises
    OSError."""
    process = subprocess.Popen(
        list(arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: _libc.ptrace(_TRACEME, 0, None, None),
    )  # fmt: skip
    found, result = Run(), None
    os.waitpid(process.pid, 0)  # it stops after its exec
    _trace(_SETOPTIONS, process.pid, _OPTIONS)
    entering = True
    while True:
        _trace(_SYSCALL, process.pid, 0)
        _, status = os.waitpid(process.pid, 0)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            break
        if os.WSTOPSIG(status) != _SYSCALL_STOP:
            continue
        registers = _registers(process.pid)
        if entering and registers[_ORIG_RAX] == _IOCTL and registers[_RSI] & 0xFFFFFFFF == _SIOCETHTOOL:
            result = _answered(process.pid, registers[_RDX], answer, found.requests)
            registers[_ORIG_RAX] = _NOTHING
            _set(process.pid, registers)
        elif not entering and result is not None:
            registers[_RAX], result = result & 0xFFFFFFFFFFFFFFFF, None
            _set(process.pid, registers)
        entering = not entering
    found.status = process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stdout is not None
    with process.stdout:
        found.output = process.stdout.read()
    return found


def _answered(pid: int, ifreq: int, answer: Callable[[str, bytes], bytes], requests: list[bytes]) -> int:
    """What the system call is to return."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        name, data = struct.unpack("@16sP", _read(memory.fileno(), ifreq, 24))
        command = struct.unpack("=I", _read(memory.fileno(), data, 4))[0]
        request = _read(memory.fileno(), data, _size(memory.fileno(), data, command))
        requests.append(request)
        try:
            filled = answer(name.split(b"\0")[0].decode(), request)
        except OSError as error:
            return -(error.errno or 1)
        os.pwrite(memory.fileno(), filled, data)
    return 0


def _size(memory: int, data: int, command: int) -> int:
    """The bytes of a request, by include/uapi/linux/ethtool.h."""
    if command == 0x30:  # ETHTOOL_GRXCLSRLALL
        return max(192, 188 + 4 * int(struct.unpack("=I", _read(memory, data + 184, 4))[0]))
    if command in (0x2D, 0x2E, 0x2F, 0x31, 0x32):  # with struct ethtool_rxnfc
        return 192
    return 196 if command == 0x03 else 8


def _read(memory: int, at: int, size: int) -> bytes:
    return os.pread(memory, size, at)


def _registers(pid: int) -> list[int]:
    buffer = (ctypes.c_uint64 * _REGISTERS)()
    _trace(_GETREGS, pid, ctypes.addressof(buffer))
    return list(buffer)


def _set(pid: int, registers: list[int]) -> None:
    _trace(_SETREGS, pid, ctypes.addressof((ctypes.c_uint64 * _REGISTERS)(*registers)))


def _trace(request: int, pid: int, data: int) -> None:
    if _libc.ptrace(request, pid, None, data) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
