"""A bridge's port statistics of this moment, over one OpenFlow connection that is kept open.

``ovs-ofctl dump-ports`` prints the same numbers, and costs a process for each look. Who looks ten times a second needs
less: a request of 24 bytes and its answer. Only the few parts of OpenFlow 1.4 (ONF TS-012) that this takes are here;
no library that Debian has speaks them without a framework of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.rpc import NoAnswer

_VERSIONS = frozenset({5, 6})  # OpenFlow 1.4 and 1.5, whose port statistics have properties, and are alike
_BITMAP = struct.Struct("!HHI")  # struct ofp_hello_elem_versionbitmap (7.5.1), with one word
_OUR_BITMAP = _BITMAP.pack(1, _BITMAP.size, sum(1 << version for version in _VERSIONS))
_HELLO, _ERROR, _ECHO_REQUEST, _ECHO_REPLY, _MULTIPART_REQUEST, _MULTIPART_REPLY = 0, 1, 2, 3, 18, 19
_PORT_STATS, _MORE, _ANY_PORT = 4, 1, 0xFFFFFFFF
_HEADER = struct.Struct("!BBHI")  # version, type, length, xid (7.1)
_MULTIPART = struct.Struct("!HH4x")  # type, flags (7.3.5)
_REQUEST = struct.Struct("!I4x")
_PORT = struct.Struct("!H2xI8x8Q")  # struct ofp_port_stats (7.3.5.7)
_NAMES = ("rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_dropped", "tx_dropped", "rx_errors", "tx_errors")
_PROPERTY = struct.Struct("!HH")
_CUSTOM = struct.Struct("!HHII2xH")  # struct intel_port_custom_stats (include/openflow/intel-ext.h)
_EXPERIMENTER, _INTEL, _CUSTOM_STATS = 0xFFFF, 0xAA01, 2
_VALUE = struct.Struct("!Q")
_UNKNOWN = (1 << 64) - 1  # what a port does not count (7.3.5.7)
_MOST_BYTES = 1 << 26

Statistics = dict[int, dict[str, int]]
"""By OpenFlow number, the counters under the names that ``Interface.statistics`` has."""


def parse(body: bytes) -> Statistics:
    """Return the ports of an answer, given all bodies of its parts, one after the other. Raises ValueError."""
    found: Statistics = {}
    offset = 0
    while offset < len(body):
        length, number, *counts = _unpack(_PORT, body, offset)
        if not _PORT.size <= length <= len(body) - offset:
            raise ValueError(f"a port of {length} bytes at byte {offset} of {len(body)}")
        known = {name: count for name, count in zip(_NAMES, counts, strict=True) if count != _UNKNOWN}
        found[number & 0xFFFF] = known | dict(_custom(body[offset + _PORT.size : offset + length]))
        offset += length
    return found


def _custom(properties: bytes) -> Iterator[tuple[str, int]]:
    """The port's own counters: each is the length of its name, the name, and its value (lib/ofp-port.c,
    parse_intel_port_custom_property). A property is followed by padding to eight bytes, which its length leaves out."""
    offset = 0
    while offset < len(properties):
        kind, length = _unpack(_PROPERTY, properties, offset)
        if length < _PROPERTY.size:
            raise ValueError(f"a property of {length} bytes")
        if kind == _EXPERIMENTER and length >= _CUSTOM.size:
            _, _, experimenter, subtype, count = _unpack(_CUSTOM, properties, offset)
            if (experimenter, subtype) == (_INTEL, _CUSTOM_STATS):
                yield from _counters(properties[offset + _CUSTOM.size : offset + length], count)
        offset += -(-length // 8) * 8


def _counters(content: bytes, count: int) -> Iterator[tuple[str, int]]:
    offset = 0
    for _ in range(count):
        if offset >= len(content):
            raise ValueError(f"fewer counters than the {count} that were announced")
        end = offset + 1 + content[offset]
        (value,) = _unpack(_VALUE, content, end)
        if value != _UNKNOWN:
            yield content[offset + 1 : end].decode("ascii", "replace"), value
        offset = end + _VALUE.size


def _unpack(form: struct.Struct, content: bytes, offset: int) -> tuple[int, ...]:
    try:
        return form.unpack_from(content, offset)
    except struct.error as error:
        raise ValueError(str(error)) from error


class PortStatistics:
    """A connection to a bridge's management socket, to be used as a context manager. ``timeout``: in seconds, for each
    question. Methods raise SwitchError, and NoAnswer after the timeout; the connection is of no use afterwards."""

    def __init__(self, mgmt: Path, *, timeout: float = 1.0) -> None:
        self._mgmt, self._timeout = mgmt, timeout
        self._version = max(_VERSIONS)
        self._socket = socket.socket(socket.AF_UNIX)
        self._xids = itertools.count(1)

    def __enter__(self) -> PortStatistics:
        deadline = time.monotonic() + self._timeout
        try:
            with self._converted():
                self._socket.settimeout(self._timeout)
                self._socket.connect(str(self._mgmt))
                self._send(_HELLO, 0, _OUR_BITMAP)
                while True:
                    version, kind, _, content = self._message(deadline)
                    if kind == _HELLO:
                        self._version = self._agreed(version, content)
                        return self
        except SwitchError:
            self._socket.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def read(self, port: int | None = None) -> Statistics:
        """Return the statistics of the port with this OpenFlow number, or of all ports."""
        deadline, xid = time.monotonic() + self._timeout, next(self._xids)
        asked = _MULTIPART.pack(_PORT_STATS, 0) + _REQUEST.pack(_ANY_PORT if port is None else port)
        with self._converted():
            self._send(_MULTIPART_REQUEST, xid, asked)
            body = bytearray()
            while True:
                _, kind, answered, content = self._message(deadline)
                if kind == _ERROR and answered == xid:
                    raise SwitchError(f"{self._mgmt}: the bridge refuses to say its port statistics: {content.hex()}")
                if kind != _MULTIPART_REPLY or answered != xid:
                    continue
                _, flags = _unpack(_MULTIPART, content, 0)
                body += content[_MULTIPART.size :]
                if not flags & _MORE:
                    return parse(bytes(body))
                if len(body) > _MOST_BYTES:
                    raise ValueError("the answer is too long")

    def _agreed(self, version: int, content: bytes) -> int:
        """The highest version that both speak. Without a bitmap, the bridge speaks all up to that of its message."""
        theirs = set(range(1, version + 1))
        if len(content) >= _BITMAP.size and _BITMAP.unpack_from(content)[0] == 1:
            bits = _BITMAP.unpack_from(content)[2]
            theirs = {number for number in range(32) if bits >> number & 1}
        if not theirs & _VERSIONS:
            raise SwitchError(f"{self._mgmt}: the bridge speaks neither OpenFlow 1.4 nor 1.5",
                              hint="its column `protocols` has to name OpenFlow14 or OpenFlow15")  # fmt: skip
        return max(theirs & _VERSIONS)

    def _send(self, kind: int, xid: int, content: bytes = b"") -> None:
        self._socket.sendall(_HEADER.pack(self._version, kind, _HEADER.size + len(content), xid) + content)

    def _message(self, deadline: float) -> tuple[int, int, int, bytes]:
        """Return version, type, xid and content of the next message. A question whether we live is answered."""
        while True:
            version, kind, length, xid = _HEADER.unpack(self._exactly(_HEADER.size, deadline))
            content = self._exactly(max(0, length - _HEADER.size), deadline)
            if kind != _ECHO_REQUEST:
                return version, kind, xid, content
            self._send(_ECHO_REPLY, xid, content)

    def _exactly(self, size: int, deadline: float) -> bytes:
        found = bytearray()
        while len(found) < size:
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            part = self._socket.recv(size - len(found))
            if not part:
                raise ConnectionResetError(0, "the switch closed the connection")
            found += part
        return bytes(found)

    @contextlib.contextmanager
    def _converted(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            hint = "the main thread of its ovs-vswitchd is blocked; look at its log"
            raise NoAnswer(f"{self._mgmt}: no answer within {self._timeout:g} s", hint=hint) from error
        except OSError as error:
            hint = "is the instance running? `ovs-hotswap instance list`"
            raise SwitchError(f"{self._mgmt}: {error.strerror or error}", hint=hint) from error
        except ValueError as error:
            hint = "see which release runs: `ovs-hotswap instance list`"
            raise SwitchError(f"{self._mgmt}: not an answer of OpenFlow: {error}", hint=hint) from error
