"""The settings and counters of virtual functions (VFs) in the driver of their physical function (PF), through
rtnetlink (pyroute2)."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.errors import UplinkError

NAMES = ("mac", "vlan", "spoof_check", "link_state", "trust")
"""The settings, in the order in which they are set: trust comes last, because most drivers then reset the VF."""
Value = bool | int | str
_WITH_VFS = 1  # RTEXT_FILTER_VF, include/uapi/linux/rtnetlink.h
_LINK_STATES = ("auto", "enable", "disable")  # IFLA_VF_LINK_STATE_*, include/uapi/linux/if_link.h
_PRIORITY_SHIFT = 13  # VLAN_PRIO_SHIFT, include/linux/if_vlan.h
_VLAN_IDS = (1 << 12) - 1
_8021Q = 0x8100


@dataclass(frozen=True, slots=True)
class Counters:
    """Packets since the PF's driver was loaded, or since it has reset the VF. ``received`` and ``sent`` are the VF's
    own ways: what it has received and sent."""

    received: int
    sent: int
    receive_drops: int
    send_drops: int


@dataclass(frozen=True, slots=True)
class Vf:
    """A VF as its PF's driver reports it. A setting is ``None`` if the driver does not report it.

    ``vlan``: the VLAN to which the NIC binds the VF, as the control information of an 802.1Q tag (IEEE 802.1Q, 9.6):
    the VLAN's number, and from bit 13 on the priority; 0 is no VLAN. ``other_tag``: it is a VLAN of 802.1ad.
    """

    mac: str | None = None
    vlan: int | None = None
    spoof_check: bool | None = None
    link_state: str | None = None
    trust: bool | None = None
    other_tag: bool = False
    counters: Counters | None = field(default=None, compare=False)

    def value(self, name: str) -> Value | None:
        """The setting of ``NAMES``."""
        found: Value | None = getattr(self, name)
        return found

    def having(self, values: Mapping[str, Value]) -> Vf:
        """The VF with other settings."""
        changes: dict[str, Any] = {**values}
        return replace(self, **changes)

    def differing(self, wanted: Mapping[str, Value]) -> dict[str, Value]:
        """What of ``wanted`` the VF does not have, in the order in which it is to be set."""
        return {name: wanted[name] for name in NAMES if name in wanted and wanted[name] != self.value(name)}


class Vfs(Protocol):
    """The VFs of the PFs of a network namespace. All methods raise UplinkError."""

    def read(self, device: str, number: int) -> Vf | None:
        """The VF ``number`` of the PF ``device``; ``None`` if there is no such device, or it has no such VF."""

    def set(self, device: str, number: int, name: str, value: Value) -> None:
        """Set one setting of ``NAMES``. Raises VfBusy if the driver could not do it just now."""


class VfBusy(UplinkError):
    """The PF's driver is busy with the VF, for example with a reset; it can be tried again."""


class RtnlVfs:
    """The kernel's state of ``namespace``; ``None`` is this process's own namespace."""

    def __init__(self, namespace: str | None = None) -> None:
        self._namespace = namespace

    def read(self, device: str, number: int) -> Vf | None:
        try:
            with self._open() as route:
                (message,) = route.link("get", ifname=device, ext_mask=_WITH_VFS)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise UplinkError(f"{device}: its VFs cannot be read: {error}", hint=f"ip link show {device}") from error
        except OSError as error:
            raise UplinkError(f"{device}: its VFs cannot be read: {error}", hint=f"ip link show {device}") from error
        vfs = message.get_attr("IFLA_VFINFO_LIST")
        return None if vfs is None else decoded(vfs.get_attrs("IFLA_VF_INFO"), number)

    def set(self, device: str, number: int, name: str, value: Value) -> None:
        try:
            with self._open() as route:
                index = next(iter(route.link_lookup(ifname=device)), None)
                if index is None:
                    raise UplinkError(f"there is no network device {device}", hint="ip -br link")
                route.link("set", index=index, vf={"vf": number, **_attribute(name, value)})
        except (NetlinkError, OSError) as error:
            code = error.code if isinstance(error, NetlinkError) else error.errno
            kind = VfBusy if code in (errno.EAGAIN, errno.EBUSY) else UplinkError
            raise kind(f"VF {number} of {device}: {name} cannot be set to {shown(name, value)}: {error}",
                       hint=f"`{command(device, number, name, value)}`, and `dmesg`") from error  # fmt: skip

    def _open(self) -> Any:
        return IPRoute(netns=self._namespace, flags=0) if self._namespace else IPRoute()


def _attribute(name: str, value: Value) -> dict[str, Any]:
    """The setting as pyroute2 takes it (struct ifla_vf_*, include/uapi/linux/if_link.h)."""
    match name:
        case "vlan":
            return {"vlan": {"vlan": int(value) & _VLAN_IDS, "qos": int(value) >> _PRIORITY_SHIFT}}
        case "link_state":
            return {"link_state": _LINK_STATES.index(str(value))}
        case "spoof_check":
            return {"spoofchk": int(value)}
    return {name: value if name == "mac" else int(value)}


def command(device: str, number: int, name: str, value: Value) -> str:
    """The command that does the same by hand (ip-link(8))."""
    word = {"spoof_check": "spoofchk", "link_state": "state"}.get(name, name)
    return f"ip link set {device} vf {number} {word} {shown(name, value)}"


def shown(name: str, value: Value) -> str:
    """The setting as ip-link(8) writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if name == "vlan" and int(value) >> _PRIORITY_SHIFT:
        return f"{int(value) & _VLAN_IDS} qos {int(value) >> _PRIORITY_SHIFT}"
    return str(value)


def decoded(vfs: Any, number: int) -> Vf | None:
    """The VF ``number`` among the attributes of a PF (rtnl_fill_vfinfo, net/core/rtnetlink.c)."""
    for vf in vfs:
        mac = vf.get_attr("IFLA_VF_MAC")
        if mac is None or mac["vf"] != number:
            continue
        link, vlan = vf.get_attr("IFLA_VF_LINK_STATE"), vf.get_attr("IFLA_VF_VLAN")
        state = None if link is None else link["link_state"]
        return Vf(
            mac["mac"],
            None if vlan is None else vlan["vlan"] | vlan["qos"] << _PRIORITY_SHIFT,
            _flag(vf.get_attr("IFLA_VF_SPOOFCHK"), "spoofchk"),
            _LINK_STATES[state] if state is not None and state < len(_LINK_STATES) else None,
            _flag(vf.get_attr("IFLA_VF_TRUST"), "trust"),
            _other_tag(vf.get_attr("IFLA_VF_VLAN_LIST")),
            _counters(vf.get_attr("IFLA_VF_STATS")),
        )
    return None


def _flag(attribute: Any, name: str) -> bool | None:
    """A driver that does not report a flag leaves it at -1 (rtnl_fill_vfinfo)."""
    return bool(attribute[name]) if attribute is not None and attribute[name] in (0, 1) else None


def _other_tag(vlans: Any) -> bool:
    tags = () if vlans is None else vlans.get_attrs("IFLA_VF_VLAN_INFO")
    return any(tag["vlan"] and tag["proto"] != _8021Q for tag in tags)


def _counters(statistics: Any) -> Counters | None:
    if statistics is None:
        return None
    names = ("RX_PACKETS", "TX_PACKETS", "RX_DROPPED", "TX_DROPPED")
    return Counters(*(int(statistics.get_attr(f"IFLA_VF_STATS_{name}") or 0) for name in names))
