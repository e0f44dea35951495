"""Uplink driver ``tc``: u32 filters in the kernel, which forwards the tunnels' packets on its own cores.

It is for NICs whose kernel driver shows the packets of virtual functions on representors, but whose card cannot forward
the tunnels' packets to them by itself. Each packet costs the kernel the receiving on one device and the sending on
another one, which is what ``switchdev`` avoids.

A ``replace`` on the same handle moves the filter on the device from one VF to the other: the kernel swaps the action in
one step, so no packet is lost. It keeps the keys of the old filter (net/sched/cls_u32.c, u32_change), so a filter with
other keys is removed and made again. Priority, handle and keys identify our filters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address

from ovs_hotswap.model import Finding, Severity
from ovs_hotswap.uplink.frames import ETH_P_8021Q, ETH_P_ALL
from ovs_hotswap.uplink.match import Match
from ovs_hotswap.uplink.redirect import RedirectUplink, Scheme
from ovs_hotswap.uplink.rules import Kernel, Key, Keys, Rule

PRIORITY = 4789  # the priority of all our filters; the kernel tries filters with lower numbers first
NODE = 1  # our filters' number within the hash table that the kernel makes for the priority
NODE_MASK = 0xFFF  # of a handle, include/uapi/linux/pkt_cls.h TC_U32_NODE


def tunnel_keys(match: Match) -> tuple[Key, ...]:
    """Keys for the packets of ``match`` over IPv4 without options (RFC 791) or IPv6 without extension headers
    (RFC 8200). Offsets are from the IP header, also behind a tag. u32 cannot compare the tag itself, which is no longer
    in the packet's bytes: the instance does, and drops packets of other VLANs."""
    address = ip_address(match.address)
    if address.version == 4:
        return (
            Key(0x45000000, 0xFF000000, 0),  # version 4, a header of five words: the offsets below depend on its length
            Key(0x00000000, 0x00001FFF, 4),  # fragment offset 0
            Key(0x00110000, 0x00FF0000, 8),  # UDP
            Key(int(address), 0xFFFFFFFF, 16),  # destination address
            Key(match.udp_port, 0x0000FFFF, 20),  # destination port
        )
    return (
        Key(0x60000000, 0xF0000000, 0),  # version 6
        Key(0x00001100, 0x0000FF00, 4),  # UDP follows at once: no fragment
        *(Key(word, 0xFFFFFFFF, 24 + 4 * at) for at, word in enumerate(struct.unpack("!4I", address.packed))),
        Key(match.udp_port, 0x0000FFFF, 40),
    )


ANY = (Key(0, 0, 0),)


def ours(rule: Rule, protocol: int, keys: Keys) -> bool:
    """Whether the filter is one that this driver makes in the place of one with ``protocol`` and ``keys``, perhaps for
    another match."""
    if rule.handle & NODE_MASK != NODE:
        return False
    if keys == ANY:
        return (rule.protocol, rule.keys) == (protocol, keys)
    return any(
        rule.protocol in (like.protocol, ETH_P_8021Q) and _shaped(rule.keys, tunnel_keys(like)) for like in _SHAPES
    )


_SHAPES = (Match("0.0.0.0"), Match("::"))


def _shaped(keys: Keys, like: tuple[Key, ...]) -> bool:
    """Whether ``keys`` equal ``like`` except for the address and the UDP port, which is the last key."""
    return (
        isinstance(keys, tuple)
        and len(keys) == len(like)
        and all(
            (a.mask, a.offset) == (b.mask, b.offset) and (a.value == b.value or a.mask == 0xFFFFFFFF or b is like[-1])
            for a, b in zip(keys, like, strict=True)
        )
    )


class TcUplink(RedirectUplink):
    """The driver. ``RedirectUplink`` explains the arguments."""

    def _make_scheme(self, match: Match) -> Scheme:
        return Scheme(PRIORITY, given=(match.protocol, tunnel_keys(match)), taken=(ETH_P_ALL, ANY), ours=ours)

    def _check_nic(self, kernel: Kernel) -> Iterator[Finding]:
        device = kernel.link(self._device)
        links = [(name, kernel.link(name)) for name in self._representors.values()]
        if device is None or not device.parent.startswith("pci/"):  # it has no virtual functions, as in a lab
            return
        strange = [name for name, link in links
                   if link is not None and not (device.switch and link.switch == device.switch)]  # fmt: skip
        if strange:
            yield Finding(
                "uplink", Severity.WARNING,
                f"{self._device}: {' and '.join(strange)} are no representors of this NIC: what is redirected there "
                "may reach no virtual function",
                "tc is for NICs in switchdev mode (`devlink port show`); for others see driver i40e or announce",
            )  # fmt: skip
        elif kernel.offloads(self._device):
            yield Finding(
                "uplink", Severity.OK,
                f"{self._device}: the kernel forwards each packet of the overlay, which the card could do",
                'driver = "switchdev" in [uplink]',
            )  # fmt: skip
