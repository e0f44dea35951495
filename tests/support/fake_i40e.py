"""An X710 whose physical function is driven by Intel's out-of-tree i40e, behind ioctl(SIOCETHTOOL) and rtnetlink.

There is no such card where the tests run. What the fake does was read in the driver's version 2.28.16, in the functions
that are named here; what the NIC's firmware does is marked as assumed. The layouts are declared again with ctypes, so
that a fault in the product's packing is not repeated here. test_ethtool.py has the real ``ethtool`` talk to the fake.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Literal

from ovs_hotswap.model import Side
from ovs_hotswap.uplink.i40e_card import Card, Function
from ovs_hotswap.uplink.i40e_rules import Plan
from ovs_hotswap.uplink.rules import Link

Match = Literal["udp-port", "address"]

VERSION = "2.28.16"
U8, U16, U32, U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64
B16, B32 = U16.__ctype_be__, U32.__ctype_be__
B64 = U64.__ctype_be__
GDRVINFO, GSTRINGS, GFLAGS, GPFLAGS, GSSET_INFO = 0x3, 0x1B, 0x25, 0x27, 0x37
CNT, RULE, ALL, DEL, INS = 0x2E, 0x2F, 0x30, 0x31, 0x32
UDP_V4_FLOW, IP_USER_FLOW, FLOW_EXT = 2, 0xD, 0x80000000
ANY_QUEUE = 0xFFFF
EADMINQ = 53  # I40E_ERR_ADMIN_QUEUE_ERROR: the driver returns its own error numbers as if they were the kernel's


class Spec(ctypes.Structure):
    """The fields that struct ethtool_tcpip4_spec and struct ethtool_usrip4_spec have at the same places."""

    _fields_ = [("ip4src", B32), ("ip4dst", B32), ("psrc", B16), ("pdst", B16), ("tos", U8), ("ip_ver", U8),
                ("proto", U8), ("rest", U8 * 37)]  # fmt: skip


class Ext(ctypes.Structure):
    """struct ethtool_flow_ext, with the two words of data as one number."""

    _pack_ = 4
    _fields_ = [("padding", U8 * 2), ("h_dest", U8 * 6), ("vlan_etype", B16), ("vlan_tci", B16), ("data", B64)]


class FlowSpec(ctypes.Structure):
    _fields_ = [("flow_type", U32), ("h_u", Spec), ("h_ext", Ext), ("m_u", Spec), ("m_ext", Ext),
                ("ring_cookie", U64), ("location", U32)]  # fmt: skip


class Rxnfc(ctypes.Structure):
    _fields_ = [("cmd", U32), ("flow_type", U32), ("data", U64), ("fs", FlowSpec), ("rule_cnt", U32)]


class DrvInfo(ctypes.Structure):
    _fields_ = [("cmd", U32), ("driver", ctypes.c_char * 32), ("version", ctypes.c_char * 32),
                ("fw_version", ctypes.c_char * 32), ("bus_info", ctypes.c_char * 32),
                ("erom_version", ctypes.c_char * 32), ("reserved2", U8 * 12), ("n_priv_flags", U32),
                ("n_stats", U32), ("testinfo_len", U32), ("eedump_len", U32), ("regdump_len", U32)]  # fmt: skip


@dataclass(frozen=True)
class Cloud:
    """A cloud filter in the driver's list. ``outer``: it is in one of the tables for outer addresses."""

    port: int
    address: int
    seid: int
    queue: int
    udp: bool
    outer: bool

    @property
    def match(self) -> tuple[object, ...]:
        return (self.port, self.address, self.outer)


@dataclass
class Vf:
    """A VF: the number ``seid`` of its port in the NIC's switch, and what the PF reports of it."""

    seid: int
    function: Function
    queues: int = 4


def _functions() -> dict[int, Vf]:
    return {n: Vf(0x200 + n, Function(n, True, False, False, 1000, 500)) for n in range(2)}


@dataclass
class FakeI40e:
    """The NIC. ``firmware``: the filters that the NIC itself has, each with its target's seid; packets go by these.
    ``busy``: so many requests from now on find the NIC in a reset. ``refuse``: the errno of the next insert, after the
    old rule of the location was removed."""

    device: str = "pf0"
    driver: str = "i40e"
    version: str = VERSION
    l4mode: bool = True
    option: str | None = "0"  # of the module, as the host sets it
    package: bool = True  # the DDP package for outer addresses
    ntuple: bool = True
    flags: dict[str, bool] = field(default_factory=lambda: {"MFP": False, "mdd-auto-reset-vf": True})
    qdisc: str = "mq"
    links: dict[str, Link] = field(default_factory=lambda: {"pf0": Link(2, True, "52:54:00:1f:00:01")})
    vfs: dict[int, Vf] = field(default_factory=_functions)
    capacity: int = 128  # assumed
    outer_capacity: int = 512 + 1024
    cloud: dict[int, Cloud] = field(default_factory=dict)
    director: dict[int, bytes] = field(default_factory=dict)  # the flow director's rules, as they were given
    firmware: dict[tuple[object, ...], int] = field(default_factory=dict)
    busy: int = 0
    refuse: int | None = None
    next_seid: int = 0x280

    # ------------------------------------------------------------------------------------------------ SIOCETHTOOL

    def call(self, device: str, request: bytes) -> bytes:
        if device not in self.links:
            raise _error(errno.ENODEV)
        buffer = bytearray(request)
        command = int.from_bytes(buffer[:4], "little")
        if command in (CNT, RULE, ALL, DEL, INS):
            nfc = Rxnfc.from_buffer(buffer)
            if self.driver != "i40e":
                raise _error(errno.EOPNOTSUPP)
            if self.busy and command in (DEL, INS):
                self.busy -= 1
                raise _error(errno.EBUSY)
            if command == ALL:
                self._locations(nfc, buffer)
            else:
                self._of_rules(command, nfc)
            del nfc
        else:
            self._describe(command, buffer)
        return bytes(buffer)

    def _of_rules(self, command: int, nfc: Rxnfc) -> None:
        if command == CNT:
            self._count(nfc)
        elif command == RULE:
            self._rule(nfc)
        elif command == DEL:
            self._delete(nfc)
        else:
            self._insert(nfc)

    def _describe(self, command: int, buffer: bytearray) -> None:
        words = (U32 * (len(buffer) // 4)).from_buffer(buffer)
        if command == GDRVINFO:
            info = DrvInfo.from_buffer(buffer)
            info.driver, info.version = self.driver.encode(), self.version.encode()
            info.fw_version, info.n_priv_flags = b"9.50 0x8000f2fe 1.3682.0", len(self.flags)
        elif command == GFLAGS:
            words[1] = 1 << 27 if self.ntuple else 0
        elif command == GSSET_INFO:
            assert (words[2], words[3]) == (1 << 2, 0), "private flags alone are asked for"
            words[4] = len(self.flags)
        elif command == GSTRINGS:
            assert words[1] == 2
            assert words[2] == len(self.flags)
            for at, name in enumerate(self.flags):
                buffer[12 + 32 * at : 12 + 32 * at + len(name)] = name.encode()
        elif command == GPFLAGS:
            words[1] = sum(1 << at for at, name in enumerate(self.flags) if self.flags[name])
        else:
            raise _error(errno.EOPNOTSUPP)

    def _count(self, nfc: Rxnfc) -> None:
        nfc.rule_cnt, nfc.data = len(self.director) + len(self.cloud), 8192

    def _locations(self, nfc: Rxnfc, buffer: bytearray) -> None:  # i40e_get_rx_filter_ids
        found = [*sorted(self.director), *sorted(self.cloud)]
        if len(found) > nfc.rule_cnt:
            raise _error(errno.EMSGSIZE)
        nfc.rule_cnt = len(found)
        for at, location in enumerate(found):
            buffer[188 + 4 * at : 192 + 4 * at] = bytes(U32(location))

    def _rule(self, nfc: Rxnfc) -> None:
        location = nfc.fs.location
        if location in self.director:
            ctypes.memmove(ctypes.addressof(nfc.fs), self.director[location], ctypes.sizeof(FlowSpec))
            return
        rule = self.cloud.get(location)
        if rule is None:
            raise _error(errno.ENOENT)
        fs = nfc.fs  # i40e_get_cloud_filter_entry; masks stay as the caller has them
        number = next((n for n, vf in self.vfs.items() if vf.seid == rule.seid), None)
        fs.ring_cookie = rule.queue | (0 if number is None else (number + 1) << 32)
        udp = self.l4mode and not rule.outer
        fs.flow_type = (UDP_V4_FLOW if udp else IP_USER_FLOW) | FLOW_EXT
        if udp:
            fs.h_u.pdst = rule.port
        fs.h_u.ip4dst, fs.h_u.ip_ver = rule.address, 1
        fs.h_ext.data = 1 << 63 | (1 << 62 if rule.outer else 0)
        fs.m_ext.data = fs.h_ext.data

    def _delete(self, nfc: Rxnfc) -> None:
        if self.director.pop(nfc.fs.location, None) is None:
            rule = self.cloud.pop(nfc.fs.location, None)
            if rule is None:
                raise _error(errno.ENOENT)
            self._forget(rule)

    def _forget(self, rule: Cloud) -> None:
        if self.firmware.get(rule.match) == rule.seid:
            del self.firmware[rule.match]

    def _insert(self, nfc: Rxnfc) -> None:  # i40e_add_fdir_ethtool
        if not self.ntuple:
            raise _error(errno.EOPNOTSUPP)
        fs = nfc.fs
        user = fs.h_ext.data & fs.m_ext.data if fs.flow_type & FLOW_EXT else 0
        if user >> 63 and self.version == VERSION:
            self._insert_cloud(fs, user)
            return
        if user >> 32:  # reserved bits
            raise _error(errno.EINVAL)
        self._insert_director(fs)

    def _insert_director(self, fs: FlowSpec) -> None:
        given = {at: FlowSpec.from_buffer_copy(raw) for at, raw in self.director.items() if at != fs.location}
        for other in given.values():
            if other.flow_type != fs.flow_type:
                continue
            if bytes(other.m_u) != bytes(fs.m_u):  # i40e_check_fdir_input_set: one mask for each type of flow
                raise _error(errno.EOPNOTSUPP)
            if bytes(other.h_u) == bytes(fs.h_u):  # i40e_disallow_matching_filters
                raise _error(errno.EINVAL)
        if fs.location >= 8192:
            raise _error(errno.EINVAL)
        vf = fs.ring_cookie >> 32 & 0xFF
        if vf and (vf - 1 not in self.vfs or fs.ring_cookie & 0xFFFFFFFF >= self.vfs[vf - 1].queues):
            raise _error(errno.EINVAL)
        old = self.cloud.pop(fs.location, None)
        if old is not None:
            self._forget(old)
        self.director[fs.location] = bytes(fs)

    def _insert_cloud(self, fs: FlowSpec, user: int) -> None:  # i40e_add_cloud_filter_ethtool
        outer = bool(user >> 62 & 1)
        if outer and not self.package:  # i40e_parse_rx_flow_user_data
            raise _error(errno.ENOPKG)
        if not outer and user >> 32 & 0x7FFFFFFF:
            raise _error(errno.EINVAL)
        if self.flags["MFP"]:
            raise _error(errno.EOPNOTSUPP)
        number, queue = (fs.ring_cookie >> 32 & 0xFF) - 1, fs.ring_cookie & 0xFFFFFFFF
        if number < 0 or number not in self.vfs:
            raise _error(errno.EINVAL)
        if queue >= self.vfs[number].queues and (queue != ANY_QUEUE or not (self.l4mode or outer)):
            raise _error(errno.EINVAL)
        rule = self._cloud_of(fs, self.vfs[number].seid, queue, outer)
        if outer and any(each.address == rule.address for each in self.cloud.values()):
            raise _error(errno.EEXIST)
        old = self.cloud.pop(fs.location, None)
        if old is not None:
            self._forget(old)
        self.director.pop(fs.location, None)
        self._program(rule)
        self.cloud[fs.location] = rule

    def _cloud_of(self, fs: FlowSpec, seid: int, queue: int, outer: bool) -> Cloud:  # i40e_cloud_filter_mask2flags
        flow = fs.flow_type & ~FLOW_EXT
        if flow == UDP_V4_FLOW:
            if fs.m_u.pdst != 0xFFFF:
                raise _error(errno.EINVAL)
            return Cloud(fs.h_u.pdst, 0, seid, queue, True, outer)  # the address is not looked at
        if flow == IP_USER_FLOW and fs.m_u.ip4dst == 0xFFFFFFFF:
            return Cloud(0, fs.h_u.ip4dst, seid, queue, False, outer)
        raise _error(errno.EINVAL)

    def _program(self, rule: Cloud) -> None:
        """Give the rule to the firmware. It is assumed to refuse a match that it has already."""
        if self.refuse is not None:
            code, self.refuse = self.refuse, None
            raise _error(code)
        alike = [each for each in self.cloud.values() if each.outer == rule.outer]
        if len(alike) >= (self.outer_capacity if rule.outer else self.capacity):
            raise _error(errno.ENOSPC if rule.outer else EADMINQ)
        if rule.match in self.firmware or (rule.udp and not self.l4mode):
            raise _error(EADMINQ)
        self.firmware[rule.match] = rule.seid

    # --------------------------------------------------------------------------------------------------- rtnetlink

    def link(self, device: str) -> Link | None:
        return self.links.get(device)

    def functions(self, device: str) -> dict[int, Function]:
        return {number: vf.function for number, vf in self.vfs.items()}

    def queueing(self, device: str) -> str:
        return self.qdisc

    def module_l4mode(self) -> str | None:
        return self.option

    # ------------------------------------------------------------------------------------------ what happens to it

    def reset_vf(self, number: int, *, same_seid: bool = False) -> None:
        """A VF is reset: its port in the NIC's switch is made again, and the filters for the old one are gone
        (i40e_cleanup_reset_vf). Whether the firmware gives the new one the same number is not known."""
        vf = self.vfs[number]
        self.firmware = {match: seid for match, seid in self.firmware.items() if seid != vf.seid}
        if not same_seid:
            vf.seid, self.next_seid = self.next_seid, self.next_seid + 1
        vf.function = replace(vf.function, received=0, sent=0)

    def vf_of(self, address: str, port: int = 4789) -> int | None:
        """The VF that gets UDP packets to ``port`` of ``address`` from the wire."""
        number = int(IPv4Address(address))
        for match in ((0, number, True), (0, number, False), (port, 0, False)):
            seid = self.firmware.get(match)
            if seid is not None:
                return next((n for n, vf in self.vfs.items() if vf.seid == seid), None)
        return None


class Look:
    """``HostLook`` of the fake."""

    def __init__(self, nic: FakeI40e) -> None:
        self._nic = nic
        self.link, self.functions, self.queueing, self.l4mode = nic.link, nic.functions, nic.queueing, nic.module_l4mode


def plan(match: Match, address: str = "172.31.0.1", port: int = 4789) -> Plan:
    """Rules of side a for VF 0 at location 4094, and of side b for VF 1 at location 4095."""
    return Plan({Side.A: 0, Side.B: 1}, {Side.A: 4094, Side.B: 4095}, port, address if match == "address" else None)


@dataclass
class FakeCards:
    """Opens the fake. ``ioctl`` and ``look``, if given, stand in front of it."""

    nic: FakeI40e
    ioctl: object = None
    look: object = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Card]:
        yield Card(self.nic.device, self.ioctl or self.nic, lambda: self.look or Look(self.nic))  # type: ignore[arg-type, return-value]


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
