"""What the kernel has of a network device in its tables, as the messages in which it tells it. This module is pure.

A dump's message (rtnetlink(7)) is also a request that makes the same entry again: `ip route save` and `restore` work
so. Nothing of an entry is lost on the way, whether this program knows its attributes or not. What is changed in a
message is the index of the device, and what the kernel tells and does not take.
"""

from __future__ import annotations

import enum
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
# include/uapi/linux/rtnetlink.h, if_addr.h, neighbour.h
RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWNEIGH = 20, 24, 28
RTA_OIF, RTA_CACHEINFO, RTA_MULTIPATH, RTA_EXPIRES, RTA_NH_ID = 4, 12, 9, 23, 30
RTA_TABLE = 15
IFA_LABEL, IFA_CACHEINFO, IFA_FLAGS = 3, 6, 8
NDA_CACHEINFO, NDA_PROBES = 3, 4
IFA_F_TEMPORARY, IFA_F_NODAD = 0x01, 0x02
_IFA_F_TENTATIVE = 0x40
_IFA_STATES = 0x01 | 0x08 | 0x20 | 0x40  # secondary, dadfailed, deprecated, tentative: what the kernel finds out
_NUD_INCOMPLETE, _NUD_STALE, _NUD_FAILED, _NUD_NOARP, _NUD_PERMANENT = 0x01, 0x04, 0x20, 0x40, 0x80
_RTNH_F_ONLINK = 0x04
_RTM_F_CLONED = 0x200
_HZ = 100  # USER_HZ, in which the kernel tells an expiry
AF_INET, AF_INET6 = 2, 10
_NEXT_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, interface


class Kind(enum.Enum):
    """A table of the kernel. Values: the type of its messages, and the struct at the beginning of each."""

    ADDRESS = (RTM_NEWADDR, struct.Struct("=BBBBI"))  # ifaddrmsg
    ROUTE = (RTM_NEWROUTE, struct.Struct("=BBBBBBBBI"))  # rtmsg
    NEIGHBOUR = (RTM_NEWNEIGH, struct.Struct("=BxxxiHBB"))  # ndmsg

    @property
    def message(self) -> int:
        return int(self.value[0])

    @property
    def head(self) -> struct.Struct:
        head: struct.Struct = self.value[1]
        return head


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a table, without what only the kernel finds out. ``head``: the fields of the struct at the beginning,
    with 0 for the device's index. ``attributes``: type and value of each; 0 stands for the device's index. Two entries
    of two devices are equal if they say the same."""

    kind: Kind
    head: tuple[int, ...]
    attributes: tuple[tuple[int, bytes], ...]

    @property
    def family(self) -> int:
        return self.head[0]

    @property
    def made_by_kernel(self) -> bool:
        """Whether the kernel makes and removes it together with an address: a route for local delivery."""
        local = (2, 3, 4, 5)  # RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST
        return self.kind is Kind.ROUTE and self.head[5] == 2 and self.head[7] in local  # RTPROT_KERNEL

    def identity(self, *, labels: bool = True) -> tuple[object, ...]:
        """What makes it this entry: all but its remaining lifetime, and the label of an address without ``labels``."""
        passing = {Kind.ADDRESS: {IFA_CACHEINFO}, Kind.ROUTE: {RTA_EXPIRES}, Kind.NEIGHBOUR: set()}[self.kind]
        if self.kind is Kind.ADDRESS and not labels:
            passing = passing | {IFA_LABEL}
        return (self.kind, self.head, frozenset(each for each in self.attributes if each[0] not in passing))

    def has(self, kind: int) -> bool:
        return any(each == kind for each, _ in self.attributes)

    def request(self, index: int) -> bytes:
        """Return the body of the request that makes this entry for the device with this index."""
        head = list(self.head)
        if self.kind is not Kind.ROUTE:
            head[_INDEX[self.kind]] = index
        attributes = (_attribute(kind, _with_index(self.kind, kind, value, index)) for kind, value in self.attributes)
        return self.kind.head.pack(*head) + b"".join(attributes)

    def text(self) -> str:
        """Return the entry for a file."""
        return f"{self.kind.name} {self.request(0).hex()}"

    @classmethod
    def of_text(cls, text: str) -> Entry:
        """Return what ``text`` wrote. Raises ValueError."""
        name, _, body = text.partition(" ")
        try:
            kind = Kind[name]
            found = entry(kind, bytes.fromhex(body), 0)
        except (KeyError, struct.error) as error:
            raise ValueError(f"not an entry: {text[:40]}") from error
        if found is None:
            raise ValueError(f"not an entry of a device: {text[:40]}")
        return found


_INDEX = {Kind.ADDRESS: 4, Kind.NEIGHBOUR: 1}  # where the device's index is in the head; a route has an attribute


def entry(kind: Kind, body: bytes, index: int) -> Entry | None:
    """Return the entry of a dump's message, or ``None`` if it is not of the device with this index, or is one that the
    kernel makes by itself and no request can. Raises struct.error if it is cut off."""
    head = list(kind.head.unpack_from(body))
    attributes = list(_attributes(body[kind.head.size :]))
    if kind is Kind.ROUTE:
        return _route(head, attributes, index)
    if head[_INDEX[kind]] != index:
        return None
    head[_INDEX[kind]] = 0
    return _address(head, attributes) if kind is Kind.ADDRESS else _neighbour(head, attributes)


def labelled(entries: Iterable[Entry], before: Iterable[Entry], name: str) -> list[Entry]:
    """Return entries of a device with another name, with the labels that its addresses had ``before``, under ``name``,
    and the name itself for an address that was not there. The kernel makes other labels when a device is renamed
    (net/ipv4/devinet.c, inetdev_changename)."""
    known = {each.identity(labels=False): each for each in before}

    def named(each: Entry) -> Entry:
        if not each.has(IFA_LABEL) or each.kind is not Kind.ADDRESS:
            return each
        had = dict(known[key].attributes) if (key := each.identity(labels=False)) in known else {}
        label = had.get(IFA_LABEL, name.encode() + bytes(1))
        return Entry(each.kind, each.head, tuple((kind, label if kind == IFA_LABEL else value)
                                                 for kind, value in each.attributes))  # fmt: skip

    return [named(each) for each in entries]


def out_of_order(present: Sequence[Entry], wanted: Sequence[Entry], *, labels: bool = True) -> list[Entry]:
    """Return the addresses that are to be removed so that what is missing can be added in the order of ``wanted``:
    those that are not wanted, and those that come too early. The last one comes first. Both are in the kernel's
    order."""
    found: list[Entry] = []
    for is_v6 in (False, True):
        have = [each for each in present if (each.family == AF_INET6) is is_v6]
        want = [each for each in wanted if each.kind is Kind.ADDRESS and (each.family == AF_INET6) is is_v6]
        if is_v6:  # a new one is put before the others
            have.reverse()
            want.reverse()
        equal = (one.identity(labels=labels) == other.identity(labels=labels)
                 for one, other in zip(have, want, strict=False))  # fmt: skip
        right = sum(1 for _ in itertools.takewhile(bool, equal))
        found += reversed(have[right:])
    return found


def is_tentative(body: bytes, index: int) -> bool:
    """Whether a dump's message is of an address of the device that is not in use yet: the kernel makes the route by
    which it is delivered when it is (net/ipv6/addrconf.c, addrconf_dad_completed)."""
    head = Kind.ADDRESS.head.unpack_from(body)
    flags = dict(_attributes(body[Kind.ADDRESS.head.size :])).get(IFA_FLAGS, bytes(4))
    return bool(head[4] == index and struct.unpack("=I", flags)[0] & _IFA_F_TENTATIVE)


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries in the order in which to make them: addresses (of IPv6 the last one first, because the kernel puts
    a new one before the others), the routes that others go through, and the rest."""
    of = {kind: [each for each in entries if each.kind is kind] for kind in Kind}
    addresses = [each for each in of[Kind.ADDRESS] if each.family != AF_INET6]
    addresses += reversed([each for each in of[Kind.ADDRESS] if each.family == AF_INET6])
    return [*addresses, *sorted(of[Kind.ROUTE], key=_distance), *of[Kind.NEIGHBOUR]]


def _distance(route: Entry) -> int:
    gateway = any(route.has(kind) for kind in (5, RTA_MULTIPATH, 18))  # RTA_GATEWAY, RTA_VIA
    return 2 if gateway else 0 if route.head[6] >= 253 else 1  # RT_SCOPE_LINK, RT_SCOPE_HOST


def _address(head: list[int], attributes: list[tuple[int, bytes]]) -> Entry | None:
    flags = head[2]
    for kind, value in attributes:
        if kind == IFA_FLAGS:
            flags = int(struct.unpack("=I", value)[0])
    if head[0] == AF_INET6 and flags & IFA_F_TEMPORARY:
        return None  # made and renewed by the kernel (RFC 8981)
    flags &= ~_IFA_STATES
    head[2] = flags & 0xFF
    kept = [(kind, struct.pack("=I", flags) if kind == IFA_FLAGS else _lifetimes(kind, value))
            for kind, value in attributes]  # fmt: skip
    return Entry(Kind.ADDRESS, tuple(head), tuple(kept))


def _lifetimes(kind: int, value: bytes) -> bytes:
    """Keep the two lifetimes of struct ifa_cacheinfo, and not the times of the last changes."""
    return value[:8] + bytes(8) if kind == IFA_CACHEINFO else value


def _route(head: list[int], attributes: list[tuple[int, bytes]], index: int) -> Entry | None:
    if head[8] & _RTM_F_CLONED:
        return None
    head[8] &= _RTNH_F_ONLINK
    kept: list[tuple[int, bytes]] = []
    concerned = False
    for kind, value in attributes:
        if kind == RTA_CACHEINFO:
            expires = struct.unpack_from("=i", value, 8)[0]
            if expires > 0:
                kept.append((RTA_EXPIRES, struct.pack("=I", expires // _HZ)))
            continue
        if kind == RTA_OIF and struct.unpack("=I", value)[0] == index:
            concerned, value = True, bytes(4)
        if kind == RTA_MULTIPATH:
            hops = list(_hops(value))
            concerned |= any(hop[3] == index for hop, _ in hops)
            value = b"".join(
                _NEXT_HOP.pack(size, flags & _RTNH_F_ONLINK, weight, 0 if device == index else device) + rest
                for (size, flags, weight, device), rest in hops
            )
        kept.append((kind, value))
    return Entry(Kind.ROUTE, tuple(head), tuple(kept)) if concerned else None


def _neighbour(head: list[int], attributes: list[tuple[int, bytes]]) -> Entry | None:
    if head[0] not in (AF_INET, AF_INET6) or head[2] & (_NUD_INCOMPLETE | _NUD_FAILED | _NUD_NOARP) or not head[2]:
        return None
    if not head[2] & _NUD_PERMANENT:
        head[2] = _NUD_STALE  # usable at once, and asked for when it is used
    kept = [(kind, value) for kind, value in attributes if kind not in (NDA_CACHEINFO, NDA_PROBES)]
    return Entry(Kind.NEIGHBOUR, tuple(head), tuple(kept))


def _with_index(table: Kind, kind: int, value: bytes, index: int) -> bytes:
    if table is not Kind.ROUTE:
        return value
    if kind == RTA_OIF and not any(value):
        return struct.pack("=I", index)
    if kind == RTA_MULTIPATH:
        return b"".join(_NEXT_HOP.pack(size, flags, weight, device or index) + rest
                        for (size, flags, weight, device), rest in _hops(value))  # fmt: skip
    return value


def _hops(value: bytes) -> Iterator[tuple[tuple[int, int, int, int], bytes]]:
    while len(value) >= _NEXT_HOP.size:
        hop = _NEXT_HOP.unpack_from(value)
        padded = (hop[0] + 3) & ~3
        yield hop, value[_NEXT_HOP.size : padded]
        value = value[padded:]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        if size < _ATTRIBUTE.size or size > len(data):
            raise struct.error(f"an attribute of {size} bytes")
        yield kind, data[_ATTRIBUTE.size : size]
        data = data[(size + 3) & ~3 :]


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)
