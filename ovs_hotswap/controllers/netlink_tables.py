"""Reads and changes the kernel's tables of addresses, routes and neighbours (rtnetlink(7)), message by message.

It works in the network namespace of the calling thread (``uplink.frames.in_namespace``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

from ovs_hotswap.controllers.netlink_records import Entry, Kind, entry, in_order, is_tentative, out_of_order
from ovs_hotswap.errors import HostError

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST, _ACK, _DUMP_INTERRUPTED = 0x1, 0x4, 0x10
_REPLACE, _CREATE, _DUMP = 0x100, 0x400, 0x300
_ERROR, _DONE = 2, 3
_RECEIVE = 1 << 18
_TRIES = 5


class Tables:
    """The tables as one socket of rtnetlink sees them. Every method raises HostError."""

    def __init__(self) -> None:
        self._sequence = 0
        with _named("rtnetlink"):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def of(self, index: int, kinds: Iterable[Kind] = Kind) -> list[Entry]:
        """Return the entries of the device with this index, in the kernel's order."""
        with _named("the kernel's tables"):
            found = []
            for kind in kinds:
                found += [made for body in self._dump(kind) if (made := entry(kind, body, index)) is not None]
            return found

    def bring(self, index: int, entries: Sequence[Entry], *, labels: bool = True) -> tuple[str, ...]:
        """Give the device exactly these addresses, in this order, and these routes, and these neighbours in addition to
        its own. Without ``labels``, those of addresses stay as they are.

        What is there already stays as it is. Returns what the kernel refuses, in words for people.
        """
        refused = []
        for each in out_of_order(self.of(index, (Kind.ADDRESS,)), entries, labels=labels):
            self.delete(each, index)  # its routes go with it
        for kind in Kind:  # with an address the kernel makes routes
            present = {found.identity(labels=labels) for found in self.of(index, (kind,))}
            for each in in_order(entries):
                if each.kind is kind and not each.made_by_kernel and each.identity(labels=labels) not in present:
                    cause = self._make(each, index)
                    refused += [f"{kind.name.lower()} {each.request(0).hex()}: {cause}"] if cause else []
        wanted = {each.identity() for each in entries}
        for each in self.of(index, (Kind.ROUTE,)):
            if each.identity() not in wanted and not each.made_by_kernel:
                self.delete(each, index)
        return tuple(refused)

    def in_use(self, index: int) -> bool:
        """Whether all addresses of a device are in use. The kernel takes those of IPv6 into use a moment later."""
        with _named("the kernel's tables"):
            return not any(is_tentative(body, index) for body in self._dump(Kind.ADDRESS))

    def clear(self, index: int) -> None:
        """Remove all addresses and routes of a device."""
        for kind in (Kind.ADDRESS, Kind.ROUTE):
            for each in self.of(index, (kind,)):
                self.delete(each, index)

    def delete(self, each: Entry, index: int) -> None:
        """Remove an entry. It is no error if it is gone."""
        with _named("the kernel's tables"):
            code = self._ask(each.kind.message + 1, 0, each.request(index))
        if code not in (0, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENOENT, errno.ENODEV):
            raise HostError(f"{each.kind.name.lower()} of device {index} cannot be removed: {os.strerror(code)}")

    def _make(self, each: Entry, index: int) -> str:
        """Make an entry; return the cause if the kernel refuses.

        A route takes precedence over one with the same destination through another device, which stays (for IPv4: no
        NLM_F_EXCL, and the new one is put before it; net/ipv4/fib_trie.c, fib_table_insert).
        """
        flags = {Kind.ADDRESS: _REPLACE, Kind.ROUTE: 0, Kind.NEIGHBOUR: _REPLACE}[each.kind]
        with _named("the kernel's tables"):
            code = self._ask(each.kind.message, _CREATE | flags, each.request(index))
        return os.strerror(code) if code not in (0, errno.EEXIST) else ""

    def _ask(self, kind: int, flags: int, body: bytes) -> int:
        """Send one request; return the error of the kernel's acknowledgement, or 0. Raises OSError."""
        self._send(kind, flags | _ACK, body)
        while True:
            for _, got, sequence, answer in _messages(self._socket.recv(_RECEIVE)):
                if sequence == self._sequence and got == _ERROR:
                    return -int(struct.unpack_from("=i", answer)[0])

    def _dump(self, kind: Kind) -> list[bytes]:
        """Raises OSError."""
        for _ in range(_TRIES):
            self._send(kind.message + 2, _DUMP, bytes(kind.head.size))
            bodies, interrupted, done = [], False, False
            while not done:
                for flags, got, sequence, body in _messages(self._socket.recv(_RECEIVE)):
                    if sequence != self._sequence:
                        continue
                    interrupted |= bool(flags & _DUMP_INTERRUPTED)
                    if got == _ERROR:
                        code = -struct.unpack_from("=i", body)[0]
                        raise OSError(code, os.strerror(code))
                    done |= got == _DONE
                    if got == kind.message:
                        bodies.append(body)
            if not interrupted:
                break
        return bodies

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, self._sequence, 0) + body)


def _messages(data: bytes) -> Iterable[tuple[int, int, int, bytes]]:
    """Flags, type, sequence and body of each message of a datagram."""
    while len(data) >= _HEADER.size:
        size, kind, flags, sequence, _ = _HEADER.unpack_from(data)
        if size < _HEADER.size:
            return
        yield flags, kind, sequence, data[_HEADER.size : size]
        data = data[(size + 3) & ~3 :]


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, struct.error) as error:
        raise HostError(f"{what}: {error}") from error
