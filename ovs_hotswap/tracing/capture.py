"""Reads the copies of a trace from their network device, and writes them to a file for other programs.

The device is down at first, and then ovs-vswitchd drops what is for it without a system call (lib/netdev-linux.c,
netdev_linux_tap_batch_send). So the kernel is kept silent on it and the filter is set before it is set up. It is never
set down again: whenever a link changes, ovs-vswitchd reads its routes again, and a tunnel may have none for a moment
(lib/route-table.c, name_table_change).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ovs_hotswap.errors import SwitchError, UplinkError
from ovs_hotswap.switch.netns import silence
from ovs_hotswap.switch.trace_rows import NAME
from ovs_hotswap.system import files
from ovs_hotswap.tracing.wish import Instruction
from ovs_hotswap.uplink.frames import ETH_P_ALL, in_namespace

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # include/uapi/linux/sockios.h, if.h
_SO_ATTACH_FILTER, _SO_TIMESTAMPNS = 26, 35  # include/uapi/asm-generic/socket.h
_SOL_PACKET, _AUXDATA, _STATISTICS, _IGNORE_OUTGOING = 263, 8, 6, 23  # include/uapi/linux/if_packet.h
_AUX = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_TAGGED = 1 << 4  # TP_STATUS_VLAN_VALID
_BUFFER = 1 << 20  # bytes: some thousands of short packets, and no more than that of a burst
_GONE = frozenset({errno.ENETDOWN, errno.ENXIO, errno.ENODEV})


@dataclass(frozen=True, slots=True)
class Caught:
    """A copy of a packet, with its tag. ``time``: seconds since the epoch, when the kernel got it."""

    time: float
    frame: bytes


class DeviceGone(SwitchError):
    """The device of the trace was removed, or set down."""


class Capture:
    """The copies that arrive on the trace's device in a network namespace; ``None`` is this process's own. It is set up
    as soon as it is read from. All methods raise SwitchError."""

    def __init__(self, namespace: str | None, program: Sequence[Instruction]) -> None:
        self._namespace, self._missed = namespace, 0
        try:
            self._socket = in_namespace(namespace, lambda: _opened(program))
        except UplinkError as error:
            raise SwitchError(f"the copies cannot be read: {error.message}") from error

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def read(self, most: int, seconds: float) -> list[Caught]:
        """Return up to ``most`` packets; waits up to ``seconds`` for one. Raises DeviceGone besides."""
        found: list[Caught] = []
        try:
            ready, _, _ = select.select([self._socket], [], [], max(0.0, seconds))
            while ready and len(found) < most:
                found.append(_received(self._socket))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in _GONE:
                raise DeviceGone(f"{NAME} is gone") from error
            raise SwitchError(f"{NAME}: {error.strerror}") from error
        return found

    @property
    def missed(self) -> int:
        """The packets that came faster than they were read."""
        with contextlib.suppress(OSError):
            answer = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8)
            self._missed += struct.unpack("=II", answer)[1]  # the kernel begins again after each question
        return self._missed

    def copied(self) -> int:
        """Return how many packets the switch has copied, those included that the filter keeps away. Raises DeviceGone
        besides."""
        try:
            text = in_namespace(self._namespace, Path("/proc/thread-self/net/dev").read_text)
        except UplinkError as error:
            raise SwitchError(error.message) from error
        if (found := received_packets(text, NAME)) is None:
            raise DeviceGone(f"{NAME} is gone")
        return found


def received_packets(text: str, device: str) -> int | None:
    """Return what a device has received, from /proc/net/dev; ``None`` if it is not there."""
    for line in text.splitlines():
        name, separator, counts = line.partition(":")
        if separator and name.strip() == device:
            return int(counts.split()[1])
    return None


def _opened(program: Sequence[Instruction]) -> socket.socket:
    silence(NAME)
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
        found.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER,
                         struct.pack("@HP", len(program), ctypes.addressof(packed)))  # fmt: skip
        found.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        with contextlib.suppress(OSError):  # before Linux 4.20
            found.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        found.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        found.setblocking(False)
        found.bind((NAME, ETH_P_ALL))
        _set_up(NAME)
        # While it was down, the kernel noted that as an error of the socket (net/packet/af_packet.c, packet_do_bind).
        found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError:
        found.close()
        raise
    return found


def _set_up(device: str) -> None:
    """Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        request = fcntl.ioctl(asker, _SIOCGIFFLAGS, struct.pack("16sh14x", device.encode(), 0))
        flags = struct.unpack_from("16sh", request)[1]
        fcntl.ioctl(asker, _SIOCSIFFLAGS, struct.pack("16sh14x", device.encode(), flags | _IFF_UP))


def _received(heard: socket.socket) -> Caught:
    frame, beside, _flags, _from = heard.recvmsg(1 << 16, 256)
    when = 0.0
    for level, kind, data in beside:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("@ll", data[:16])
            when = seconds + nanoseconds / 1e9
        elif (level, kind) == (_SOL_PACKET, _AUXDATA):
            status, _length, _captured, _mac_at, _net_at, tag, protocol = _AUX.unpack(data)
            if status & _TAGGED:  # the kernel takes the tag off on arrival
                frame = frame[:12] + struct.pack("!HH", protocol, tag) + frame[12:]
    return Caught(when, frame)


class PcapFile:
    """A file of packets, as tcpdump and Wireshark read it (draft-ietf-opsawg-pcap): with nanoseconds, of Ethernet. All
    methods raise HostError."""

    def __init__(self, path: Path, snaplen: int) -> None:
        self._path = path
        with files(path):
            self._file: BinaryIO = path.open("wb")
            self._file.write(struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, snaplen, 1))

    def add(self, caught: Caught, length: int) -> None:
        """Add a packet, of which ``length`` bytes were on the way."""
        seconds = int(caught.time)
        nanoseconds = min(999_999_999, round((caught.time - seconds) * 1e9))
        with files(self._path):
            self._file.write(
                struct.pack("=IIII", seconds, nanoseconds, len(caught.frame), max(length, len(caught.frame)))
            )
            self._file.write(caught.frame)

    def close(self) -> None:
        with files(self._path):
            self._file.close()


@contextlib.contextmanager
def pcap_file(path: Path | None, snaplen: int) -> Iterator[PcapFile | None]:
    """The file, if there is a path. Raises HostError."""
    if path is None:
        yield None
        return
    file = PcapFile(path, snaplen)
    try:
        yield file
    finally:
        file.close()
