"""A NIC's classification rules, flags and driver, through ioctl(SIOCETHTOOL). The layouts are those of
include/uapi/linux/ethtool.h; all numbers are in host order, except what is part of a packet.

pyroute2 has neither the rules nor the private flags. The kernel carries the ioctl out for a socket of any address
family (net/socket.c, sock_ioctl and sock_do_ioctl; net/core/dev_ioctl.c, dev_ioctl), in the network namespace in which
the socket was made. The socket here is an AF_UNIX one, because the watchdog's unit allows no AF_INET.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.uplink.frames import in_namespace

SIOCETHTOOL = 0x8946  # include/uapi/linux/sockios.h
GDRVINFO, GFLAGS, GPFLAGS, GSTRINGS, GSSET_INFO = 0x03, 0x25, 0x27, 0x1B, 0x37
GRXCLSRLCNT, GRXCLSRULE, GRXCLSRLALL, SRXCLSRLDEL, SRXCLSRLINS = 0x2E, 0x2F, 0x30, 0x31, 0x32
ETH_SS_PRIV_FLAGS = 2
ETH_FLAG_NTUPLE = 1 << 27
UDP_V4_FLOW, IP_USER_FLOW = 0x02, 0x0D
FLOW_EXT = 0x80000000  # the rule has user-def data
_ETH_RX_NFC_IP4 = 1
RING_VF_SHIFT = 32  # ETHTOOL_RX_FLOW_SPEC_RING_VF_OFF
_GSTRING_BYTES = 32

RXNFC_BYTES = 192  # struct ethtool_rxnfc
_FS, _RULE_COUNT, _LOCATIONS = 16, 184, 188  # offsets of fs, rule_cnt and rule_locs in it
_HEADER, _HEADER_EXT, _MASK, _MASK_EXT, _COOKIE, _LOCATION = 4, 56, 76, 128, 152, 160  # offsets in fs
_USER_DATA = 12  # offset of data in struct ethtool_flow_ext
_ADDRESS, _PORT, _VERSION = 4, 10, 13  # of ip4dst, pdst and ip_ver in the structures for UDP and for any IPv4


@dataclass(frozen=True, slots=True)
class FlowRule:
    """A classification rule for IPv4. ``flow``: UDP_V4_FLOW, IP_USER_FLOW, or the number of another kind of rule, of
    which nothing but the target is decoded. ``address`` and ``port``: the destinations that it matches, ``None`` if it
    matches any. ``user``: the 64 bits of user-def data, 0 if there are none. ``vf``: the virtual function to which it
    leads, ``None`` for the device itself. ``queue``: the queue there."""

    location: int
    flow: int
    vf: int | None
    queue: int
    address: str | None = None
    port: int | None = None
    user: int = 0


@dataclass(frozen=True, slots=True)
class DriverInfo:
    """The names of a device's driver, its version and that of the NIC's firmware. For a driver without a version the
    kernel reports its own (net/ethtool/ioctl.c, ethtool_get_drvinfo)."""

    driver: str
    version: str
    firmware: str
    bus: str = ""


class Ioctl(Protocol):
    """The way to the kernel."""

    def call(self, device: str, request: bytes) -> bytes:
        """Make one request, which begins with its command, and return it as the kernel has filled it in. Raises
        OSError."""


# ------------------------------------------------------------------------------------------------- requests and answers


def insert_request(rule: FlowRule) -> bytes:
    """The request to insert a rule of flow UDP_V4_FLOW or IP_USER_FLOW, as ``ethtool -N`` makes it: what is to be
    compared has all bits of its mask set."""
    request = bytearray(RXNFC_BYTES)
    struct.pack_into("=I", request, 0, SRXCLSRLINS)
    struct.pack_into("=I", request, _FS, rule.flow | (FLOW_EXT if rule.user else 0))
    if rule.address is not None:
        _put(request, _ADDRESS, IPv4Address(rule.address).packed)
    if rule.port is not None:
        _put(request, _PORT, struct.pack("!H", rule.port))
    if rule.flow == IP_USER_FLOW:
        request[_FS + _HEADER + _VERSION] = _ETH_RX_NFC_IP4  # its mask must be 0
    if rule.user:
        struct.pack_into("!Q", request, _FS + _HEADER_EXT + _USER_DATA, rule.user)
        struct.pack_into("!Q", request, _FS + _MASK_EXT + _USER_DATA, 0xFFFFFFFFFFFFFFFF)
    struct.pack_into("=QI", request, _FS + _COOKIE, cookie(rule.vf, rule.queue), rule.location)
    return bytes(request)


def _put(request: bytearray, offset: int, value: bytes) -> None:
    begin = _FS + _HEADER + offset
    request[begin : begin + len(value)] = value
    begin = _FS + _MASK + offset
    request[begin : begin + len(value)] = b"\xff" * len(value)


def cookie(vf: int | None, queue: int) -> int:
    """The target of a rule. VFs are counted from 1 there (include/uapi/linux/ethtool.h,
    ethtool_get_flow_spec_ring_vf)."""
    return (0 if vf is None else vf + 1) << RING_VF_SHIFT | queue


def location_request(command: int, location: int) -> bytes:
    """The request to read (GRXCLSRULE) or delete (SRXCLSRLDEL) the rule at ``location``."""
    request = bytearray(RXNFC_BYTES)
    struct.pack_into("=I", request, 0, command)
    struct.pack_into("=I", request, _FS + _LOCATION, location)
    return bytes(request)


def count_request() -> bytes:
    return struct.pack("=I", GRXCLSRLCNT).ljust(RXNFC_BYTES, b"\0")


def count_of(answer: bytes) -> int:
    """The number of rules in the answer to ``count_request``."""
    return int(struct.unpack_from("=I", answer, _RULE_COUNT)[0])


def locations_request(room: int) -> bytes:
    """The request for the locations of up to ``room`` rules."""
    request = bytearray(max(RXNFC_BYTES, _LOCATIONS + 4 * room))
    struct.pack_into("=I", request, 0, GRXCLSRLALL)
    struct.pack_into("=I", request, _RULE_COUNT, room)
    return bytes(request)


def locations_of(answer: bytes) -> list[int]:
    return list(struct.unpack_from(f"={count_of(answer)}I", answer, _LOCATIONS))


def rule_of(answer: bytes) -> FlowRule:
    """The rule in the answer to a GRXCLSRULE. Masks are not read: i40e leaves them empty in what it reports
    (i40e_ethtool.c, i40e_get_cloud_filter_entry)."""
    flow = struct.unpack_from("=I", answer, _FS)[0]
    target, location = struct.unpack_from("=QI", answer, _FS + _COOKIE)
    kind, function = flow & 0xFF, (target >> RING_VF_SHIFT) & 0xFF
    address, port = None, None
    if kind in (UDP_V4_FLOW, IP_USER_FLOW):
        number = IPv4Address(answer[_FS + _HEADER + _ADDRESS :][:4])
        address = str(number) if int(number) else None
    if kind == UDP_V4_FLOW:
        port = struct.unpack_from("!H", answer, _FS + _HEADER + _PORT)[0] or None
    user = struct.unpack_from("!Q", answer, _FS + _HEADER_EXT + _USER_DATA)[0] if flow & FLOW_EXT else 0
    return FlowRule(location, kind, function - 1 if function else None, target & 0xFFFFFFFF, address, port, user)


def driver_of(answer: bytes) -> DriverInfo:
    """The answer to a GDRVINFO (struct ethtool_drvinfo)."""
    driver, version, firmware, bus = struct.unpack_from("=4x32s32s32s32s", answer)
    return DriverInfo(*(each.split(b"\0")[0].decode("ascii", "replace") for each in (driver, version, firmware, bus)))


def names_of(answer: bytes) -> list[str]:
    """The names in the answer to a GSTRINGS (struct ethtool_gstrings)."""
    count = struct.unpack_from("=8xI", answer)[0]
    raw = [answer[12 + _GSTRING_BYTES * at :][:_GSTRING_BYTES] for at in range(count)]
    return [each.split(b"\0")[0].decode("ascii", "replace") for each in raw]


# ----------------------------------------------------------------------------------------------------------- the kernel


class Ethtool:
    """The requests for one device. All methods raise UplinkError; ``code_of`` says which error of the kernel it was."""

    def __init__(self, ioctl: Ioctl, device: str) -> None:
        self._ioctl, self._device = ioctl, device

    def driver(self) -> DriverInfo:
        return driver_of(self._call("the driver's name", struct.pack("=I", GDRVINFO).ljust(196, b"\0")))

    def ntuple(self) -> bool:
        """Whether the device classifies packets by rules (``ethtool -k``: ntuple-filters)."""
        flags = self._call("the features", struct.pack("=II", GFLAGS, 0))
        return bool(struct.unpack_from("=4xI", flags)[0] & ETH_FLAG_NTUPLE)

    def private_flags(self) -> dict[str, bool]:
        """The flags that only this driver has (``ethtool --show-priv-flags``)."""
        count = self._private_count()
        if not count:
            return {}
        asked = struct.pack("=III", GSTRINGS, ETH_SS_PRIV_FLAGS, count) + bytes(_GSTRING_BYTES * count)
        names = names_of(self._call("the names of private flags", asked))
        flags = struct.unpack_from("=4xI", self._call("the private flags", struct.pack("=II", GPFLAGS, 0)))[0]
        return {name: bool(flags >> at & 1) for at, name in enumerate(names)}

    def _private_count(self) -> int:
        asked = struct.pack("=IIQI", GSSET_INFO, 0, 1 << ETH_SS_PRIV_FLAGS, 0)
        mask, count = struct.unpack_from("=8xQI", self._call("the number of private flags", asked))
        return int(count) if mask else 0

    def locations(self) -> list[int]:
        """The locations that have a rule."""
        room = count_of(self._call("the number of rules", count_request()))
        return sorted(locations_of(self._call("the rules", locations_request(room + 16)))) if room else []

    def rule(self, location: int) -> FlowRule | None:
        """The rule at the location; ``None`` if there is none."""
        try:
            return rule_of(self._call(f"rule {location}", location_request(GRXCLSRULE, location)))
        except UplinkError as error:
            if code_of(error) == errno.ENOENT:
                return None
            raise

    def insert(self, rule: FlowRule) -> None:
        self._call(f"rule {rule.location} could not be inserted", insert_request(rule))

    def delete(self, location: int) -> None:
        self._call(f"rule {location} could not be deleted", location_request(SRXCLSRLDEL, location))

    def _call(self, what: str, request: bytes) -> bytes:
        try:
            return self._ioctl.call(self._device, request)
        except OSError as error:
            raise UplinkError(f"{self._device}: {what}: {error.strerror or error}") from error


def code_of(error: UplinkError) -> int | None:
    """The errno of the kernel's refusal; ``None`` if the error has another cause."""
    return error.__cause__.errno if isinstance(error.__cause__, OSError) else None


class SocketIoctl:
    """Makes the requests on a socket in a network namespace (``open_ioctl``)."""

    def __init__(self, carrier: socket.socket) -> None:
        self._carrier = carrier

    def call(self, device: str, request: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(request, len(request))
        name = device.encode()[:15].ljust(16, b"\0")
        ifreq = struct.pack("@16sP16x", name, ctypes.addressof(buffer))  # struct ifreq, include/uapi/linux/if.h
        fcntl.ioctl(self._carrier.fileno(), SIOCETHTOOL, ifreq)
        return buffer.raw

    def close(self) -> None:
        self._carrier.close()


def open_ioctl(namespace: str | None) -> SocketIoctl:
    """A socket of the namespace; ``None`` is this process's own. Raises UplinkError."""
    return SocketIoctl(in_namespace(namespace, lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)))
