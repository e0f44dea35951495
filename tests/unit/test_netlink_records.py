"""Messages of the kernel's dumps become requests for another device."""

from __future__ import annotations

import struct

import pytest

from ovs_hotswap.controllers.netlink_records import (
    IFA_CACHEINFO,
    RTA_EXPIRES,
    RTA_MULTIPATH,
    RTA_OIF,
    Entry,
    Kind,
    entry,
    in_order,
    is_tentative,
)

DEVICE = 7


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def address(local: bytes, *, flags: int = 0x80, lifetimes: bytes = b"\xff" * 8, index: int = DEVICE) -> bytes:
    family = 2 if len(local) == 4 else 10
    return (struct.pack("=BBBBI", family, 24, flags & 0xFF, 0, index) + attribute(1, local)
            + attribute(8, struct.pack("=I", flags)) + attribute(IFA_CACHEINFO, lifetimes + b"\x11" * 8))  # fmt: skip


def route(*attributes: bytes, scope: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 3, scope, 1, flags) + b"".join(attributes)


def neighbour(state: int, index: int = DEVICE) -> bytes:
    head = struct.pack("=BxxxiHBB", 2, index, state, 0, 1)
    return head + attribute(1, b"\x0a\0\0\1") + attribute(2, b"\2\0\0\0\0\1") + attribute(3, b"\x22" * 16)


def made(kind: Kind, body: bytes) -> Entry:
    found = entry(kind, body, DEVICE)
    assert found is not None
    return found


def hops(*devices: int, flags: int = 0) -> bytes:
    via = attribute(5, b"\x0a\0\0\2")
    return b"".join(struct.pack("=HBBi", 8 + len(via), flags, 1, device) + via for device in devices)


OIF = attribute(RTA_OIF, struct.pack("=I", DEVICE))
BODIES = [
    (Kind.ADDRESS, address(b"\x0a\0\0\1")),
    (Kind.ROUTE, route(attribute(1, b"\x0a\1\0\0"), OIF, attribute(0x8000 | 8, attribute(2, b"\x14\5\0\0")))),
    (Kind.ROUTE, route(attribute(RTA_MULTIPATH, hops(DEVICE, 9, DEVICE)))),
    (Kind.NEIGHBOUR, neighbour(0x80)),
]


@pytest.mark.parametrize(("kind", "body"), BODIES, ids=[kind.name for kind, _ in BODIES])
def test_a_request_for_the_same_device_is_the_message_itself_but_for_what_the_kernel_finds_out(
    kind: Kind, body: bytes
) -> None:
    found = made(kind, body)
    again = made(kind, found.request(DEVICE))
    assert again == found
    assert Entry.of_text(found.text()) == found
    moved = entry(kind, found.request(5000), 5000)
    assert moved == found, "of another device it says the same"
    assert entry(kind, found.request(5000), DEVICE) is None


def test_unknown_attributes_stay() -> None:
    body = route(OIF, attribute(99, b"unknown!"))
    assert attribute(99, b"unknown!") in made(Kind.ROUTE, body).request(3)


def test_only_the_hops_of_the_device_are_led_to_the_other_one() -> None:
    found = made(Kind.ROUTE, route(attribute(RTA_MULTIPATH, hops(DEVICE, 9, flags=0x11))))
    assert attribute(RTA_MULTIPATH, hops(3, 9)) in found.request(3), "and dead or without a link they are not"
    assert entry(Kind.ROUTE, route(attribute(RTA_MULTIPATH, hops(8, 9))), DEVICE) is None


def test_what_the_kernel_finds_out_is_left_out_of_an_address() -> None:
    tentative, plain = address(b"\x20" * 16, flags=0x80 | 0x40 | 0x08), address(b"\x20" * 16)
    assert made(Kind.ADDRESS, tentative) == made(Kind.ADDRESS, plain)
    assert entry(Kind.ADDRESS, address(b"\x20" * 16, flags=0x01), DEVICE) is None, "temporary of IPv6"
    assert made(Kind.ADDRESS, address(b"\x0a\0\0\1", flags=0x81)) == made(Kind.ADDRESS, address(b"\x0a\0\0\1"))


def test_an_address_that_is_not_in_use_yet_is_seen() -> None:
    assert is_tentative(address(b"\x20" * 16, flags=0xC0), DEVICE)
    assert not is_tentative(address(b"\x20" * 16, flags=0x80), DEVICE)
    assert not is_tentative(address(b"\x20" * 16, flags=0xC0), DEVICE + 1)


def test_a_lifetime_passes_on_and_makes_no_other_address() -> None:
    one = made(Kind.ADDRESS, address(b"\x0a\0\0\1", lifetimes=struct.pack("=II", 100, 200)))
    other = made(Kind.ADDRESS, address(b"\x0a\0\0\1", lifetimes=struct.pack("=II", 99, 199)))
    assert one.identity() == other.identity()
    assert one.request(1) != other.request(1)


def test_a_route_that_expires_still_does() -> None:
    cacheinfo = struct.pack("=IIiIIIII", 0, 0, 3000, 0, 0, 0, 0, 0)
    found = made(Kind.ROUTE, route(OIF, attribute(12, cacheinfo)))
    assert attribute(RTA_EXPIRES, struct.pack("=I", 30)) in found.request(1)
    assert not made(Kind.ROUTE, route(OIF, attribute(12, bytes(32)))).has(RTA_EXPIRES)


@pytest.mark.parametrize(
    ("state", "kept"),
    [(0x02, 0x04), (0x04, 0x04), (0x08, 0x04), (0x10, 0x04), (0x80, 0x80), (0x20, None), (0x01, None), (0x40, None),
     (0, None)],
)  # fmt: skip
def test_a_neighbour_is_kept_if_its_address_is_known(state: int, kept: int | None) -> None:
    found = entry(Kind.NEIGHBOUR, neighbour(state), DEVICE)
    assert (found.head[2] if found else None) == kept


@pytest.mark.parametrize(("protocol", "kind", "by_kernel"), [(2, 2, True), (2, 5, True), (2, 1, False), (3, 2, False)])
def test_routes_for_local_delivery_are_the_kernels(protocol: int, kind: int, by_kernel: bool) -> None:
    body = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 255, protocol, 254, kind, 0) + OIF
    assert made(Kind.ROUTE, body).made_by_kernel is by_kernel
    assert not made(Kind.ADDRESS, address(b"\x0a\0\0\1")).made_by_kernel


def test_a_cached_route_is_none() -> None:
    assert entry(Kind.ROUTE, route(OIF, flags=0x200), DEVICE) is None


def test_each_entry_comes_after_those_it_depends_on() -> None:
    def to(number: int, scope: int, *more: bytes) -> Entry:
        return made(Kind.ROUTE, route(OIF, attribute(1, bytes([10, number, 0, 0])), *more, scope=scope))

    via, link, host = to(1, 0, attribute(5, b"\x0a\0\0\2")), to(2, 253), to(3, 0)
    first, second = made(Kind.ADDRESS, address(b"\x0a\0\0\1")), made(Kind.ADDRESS, address(b"\x0a\0\0\2"))
    last, before = made(Kind.ADDRESS, address(b"\x20" * 16)), made(Kind.ADDRESS, address(b"\x21" * 16))
    known = made(Kind.NEIGHBOUR, neighbour(0x80))
    assert in_order([known, via, link, host, first, second, last, before]) == [
        first, second, before, last, link, host, via, known,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "ADDRESS", "ADDRESS zz", "LINK 00", "ROUTE 00", f"ADDRESS {address(b'1234').hex()}"]
)
def test_text_that_is_no_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"entry|non-hexadecimal"):
        Entry.of_text(text)


def test_a_message_that_is_cut_off_is_refused() -> None:
    with pytest.raises(struct.error):
        entry(Kind.ADDRESS, address(b"\x0a\0\0\1")[:-3], DEVICE)
