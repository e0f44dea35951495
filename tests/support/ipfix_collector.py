"""A collector of IPFIX, written from RFC 7011 alone: it shares no code with what makes the messages."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

# Information elements (IANA's registry of IPFIX).
OCTETS, PACKETS, INTERFACE_NAME, SOURCE_MAC, DESTINATION_MAC, DIRECTION, POINT = 1, 2, 82, 56, 80, 61, 138
LAYER2_OCTETS, DROPPED_PACKETS, TOTAL_PACKETS = 352, 133, 86
ANY = 0xFFFF

Record = dict[int, bytes]


@dataclass
class Reader:
    """Takes messages of exporters, which it tells by ``exporter`` and domain. ``out_of_order``: sequence numbers that
    were not the expected ones."""

    records: list[tuple[int, Record]] = field(default_factory=list)  # domain, fields
    out_of_order: int = 0
    unknown: int = 0
    redefined: int = 0
    messages: int = 0
    _templates: dict[tuple[object, int, int], list[tuple[int, int]]] = field(default_factory=dict)
    _next: dict[tuple[object, int], int] = field(default_factory=dict)

    def take(self, exporter: object, data: bytes) -> None:
        version, length, _time, sequence, domain = struct.unpack_from(">HHIII", data)
        assert (version, length) == (10, len(data))
        self.messages += 1
        if self._next.setdefault((exporter, domain), sequence) != sequence:
            self.out_of_order += 1
        count, place = 0, 16
        while place < length:
            number, size = struct.unpack_from(">HH", data, place)
            assert size >= 4
            content = data[place + 4 : place + size]
            if number == 2:
                self._define(exporter, domain, content)
            elif number >= 256:
                count += self._decode(exporter, domain, number, content)
            place += size
        self._next[exporter, domain] = sequence + count

    def _define(self, exporter: object, domain: int, content: bytes) -> None:
        place = 0
        while place + 4 <= len(content):
            number, count = struct.unpack_from(">HH", content, place)
            place += 4
            fields = []
            for _ in range(count):
                element, length = struct.unpack_from(">HH", content, place)
                place += 4
                if element & 0x8000:
                    element |= struct.unpack_from(">I", content, place)[0] << 16
                    place += 4
                fields.append((element, length))
            if self._templates.setdefault((exporter, domain, number), fields) != fields:
                self.redefined += 1
                self._templates[exporter, domain, number] = fields

    def _decode(self, exporter: object, domain: int, number: int, content: bytes) -> int:
        fields = self._templates.get((exporter, domain, number))
        if fields is None:
            self.unknown += 1
            return 1
        place = count = 0
        while place < len(content):
            record: Record = {}
            for element, length in fields:
                if length == ANY:
                    length, place = content[place], place + 1
                assert place + length <= len(content), "a record that is longer than its set"
                record.setdefault(element, content[place : place + length])
                place += length
            self.records.append((domain, record))
            count += 1
        return count

    def sums(self, element: int = PACKETS) -> Counter[tuple[int, int, int]]:
        """What the records say in sum, by domain, observation point and direction (0: from the VM, 1: to it)."""
        found: Counter[tuple[int, int, int]] = Counter()
        for domain, record in self.records:
            key = domain, int.from_bytes(record[POINT]), int.from_bytes(record[DIRECTION])
            found[key] += int.from_bytes(record.get(element, b""))
        return found


class Collector:
    """Listens at ``address``, an ADDRESS:PORT of this host, and reads what comes."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        self._socket.bind((host, port))
        self._socket.settimeout(0.1)
        self.address = "{}:{}".format(*self._socket.getsockname())
        self.reader = Reader()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector")
        self._thread.start()

    def _run(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(TimeoutError):
                data, sender = self._socket.recvfrom(1 << 16)
                self.reader.take(sender[0], data)

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._socket.close()


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    found = Collector()
    try:
        yield found
    finally:
        found.close()
