"""The format of IPFIX messages (RFC 7011, section 3), as far as a mediator needs it. Pure.

All numbers are in network byte order. A message is a header of 16 bytes and sets; a set is a header of 4 bytes and
records. Open vSwitch sends each data record in a set of its own (ofproto/ofproto-dpif-ipfix.c, ipfix_put_data_set).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

VERSION = 10
TEMPLATES, OPTIONS_TEMPLATES, FIRST_DATA = 2, 3, 256
HEADER, SET = struct.Struct(">HHIII"), struct.Struct(">HH")
_PAIR, _NUMBER = struct.Struct(">HH"), struct.Struct(">I")
_ENTERPRISE = 0x8000
PADDING = 210  # paddingOctets, which may have any length and be there several times (RFC 5102, 5.12.1)
MOST_BYTES = 1400  # of a message that is made here: it fits into a packet everywhere

# What Open vSwitch fills with the totals of its process, and not of the flow that the record is about
# (ipfix_cache_entry_init): octetTotalCount, packetTotalCount, postMCast*TotalCount, octetTotalSumOfSquares,
# tcp*TotalCount, layer2OctetTotalCount, ingress*PacketTotalCount, egress*PacketTotalCount.
_TOTALS = frozenset({85, 86, 134, 135, 174, 175, 199, *range(218, 224), *range(353, 359)})
# droppedOctetDeltaCount, droppedPacketDeltaCount: what Open vSwitch does not find the actions of counts as dropped, and
# it finds them by the flow's first packet alone (ofproto-dpif-upcall.c, dpif_read_actions).
_GUESSED = frozenset({132, 133})
WITHOUT_MEANING = _TOTALS | _GUESSED
"""The information elements that say nothing of the flow. Programs add them up, or prefer them to the counts of the
flow: nfdump takes the last of packetDeltaCount and packetTotalCount (src/netflow/ipfix.c, ipfixTranslationMap)."""


class Malformed(ValueError):
    """A message is not what RFC 7011 says."""


@dataclass(frozen=True, slots=True)
class Message:
    """``time``: of the export, in seconds since the epoch. ``sets``: the id and the bytes of each set, without its
    header."""

    time: int
    sequence: int
    domain: int
    sets: tuple[tuple[int, bytes], ...]


def parse(data: bytes) -> Message:
    """Raises Malformed."""
    if len(data) < HEADER.size:
        raise Malformed(f"a message of {len(data)} bytes")
    version, length, time, sequence, domain = HEADER.unpack_from(data)
    if version != VERSION or length != len(data):
        raise Malformed(f"version {version}, {length} bytes in {len(data)}")
    sets, place = [], HEADER.size
    while place < length:
        if length - place < SET.size:
            raise Malformed("a set without a header")
        number, size = SET.unpack_from(data, place)
        if not SET.size <= size <= length - place:
            raise Malformed(f"a set of {size} bytes")
        sets.append((number, data[place + SET.size : place + size]))
        place += size
    return Message(time, sequence, domain, tuple(sets))


def build(message: Message) -> bytes:
    body = b"".join(SET.pack(number, SET.size + len(content)) + content for number, content in message.sets)
    return HEADER.pack(VERSION, HEADER.size + len(body), message.time, message.sequence, message.domain) + body


def templates(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the id of each template in a set of templates, with its field specifiers. Raises Malformed."""
    place = 0
    while len(content) - place >= _PAIR.size:  # less is padding
        number, count = _PAIR.unpack_from(content, place)
        if number < FIRST_DATA:
            raise Malformed(f"a template with the id {number}")
        begin = place = place + _PAIR.size
        for _ in range(count):
            place += _specifier(content, place)
        yield number, content[begin:place]


def _specifier(content: bytes, place: int) -> int:
    """The length of a field specifier: 4 bytes, or 8 with an enterprise number."""
    if len(content) - place < _PAIR.size:
        raise Malformed("a template that is cut off")
    size = 8 if content[place] & 0x80 else 4
    if len(content) - place < size:
        raise Malformed("a template that is cut off")
    return size


def fields(specifiers: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the information element, the length and the enterprise number (0 is none) of each field. The length 65535
    stands for any (RFC 7011, section 7)."""
    place = 0
    while place < len(specifiers):
        element, length = _PAIR.unpack_from(specifiers, place)
        size = _specifier(specifiers, place)
        yield element & ~_ENTERPRISE, length, _NUMBER.unpack_from(specifiers, place + 4)[0] if size == 8 else 0
        place += size


def without_totals(specifiers: bytes) -> bytes:
    """Return the fields with padding in the place of those that say nothing of the flow. Records stay as they are."""
    found = []
    for element, length, enterprise in fields(specifiers):
        if not enterprise and element in WITHOUT_MEANING:
            element = PADDING
        found.append(_PAIR.pack(element | (_ENTERPRISE if enterprise else 0), length))
        found += [_NUMBER.pack(enterprise)] if enterprise else []
    return b"".join(found)


def template_messages(
    defined: Iterable[tuple[int, bytes]], *, time: int, sequence: int, domain: int
) -> Iterator[bytes]:  # fmt: skip
    """Yield messages that define templates, each with its id and its field specifiers. They do not count in the
    sequence (RFC 7011, section 3.1)."""
    part = b""
    for number, specifiers in defined:
        record = _PAIR.pack(number, sum(1 for _ in fields(specifiers))) + specifiers
        if part and HEADER.size + SET.size + len(part) + len(record) > MOST_BYTES:
            yield build(Message(time, sequence, domain, ((TEMPLATES, part),)))
            part = b""
        part += record
    if part:
        yield build(Message(time, sequence, domain, ((TEMPLATES, part),)))
