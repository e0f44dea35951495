"""Flower filters as rtnetlink attributes (include/uapi/linux/pkt_cls.h), for pyroute2, whose release 0.9 has no such
classifier. The order of the attributes is that of iproute2."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from socket import IPPROTO_UDP
from types import SimpleNamespace
from typing import Any

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl import tcmsg
from pyroute2.netlink.rtnl.tcmsg.cls_matchall import fix_request
from pyroute2.netlink.rtnl.tcmsg.common_act import get_tca_action, tca_act_prio

from ovs_hotswap.uplink.frames import ETH_P_ALL, ETH_P_IP
from ovs_hotswap.uplink.rules import FlowerKeys

KIND = "flower"
SKIP_SW, IN_HW = 1 << 1, 1 << 2  # TCA_CLS_FLAGS_SKIP_SW, TCA_CLS_FLAGS_IN_HW
_USED_HW_STATS = 9  # TCA_ACT_USED_HW_STATS
_ETH_P_IPV6 = 0x86DD
# The values of the enumeration TCA_FLOWER_*.
_CLASSID, _ACT, _ETH_SRC, _ETH_SRC_MASK, _ETH_TYPE, _IP_PROTO = 1, 3, 6, 7, 8, 9
_IPV4_DST, _IPV4_DST_MASK, _IPV6_DST, _IPV6_DST_MASK, _UDP_DST, _FLAGS = 12, 13, 16, 17, 21, 22
_VLAN_ID, _VLAN_ETH_TYPE, _UDP_DST_MASK, _IN_HW_COUNT, _LAST = 23, 25, 38, 86, 160
_NO_KEYS = {_CLASSID, _ACT, _FLAGS, _IN_HW_COUNT}
_PORT = struct.Struct("!H")
ACTIONS = f"TCA_FLOWER_{_ACT}"


class Options(nla):  # type: ignore[misc]
    """The attributes in TCA_OPTIONS of a flower filter: all are bytes, but for the actions."""

    nla_map = tuple((f"TCA_FLOWER_{number}", "tca_act_prio" if number == _ACT else "cdata") for number in range(_LAST))
    tca_act_prio = tca_act_prio


def _parameters(request: dict[str, Any]) -> dict[str, Any]:
    """The options of a filter with the FlowerKeys ``keys`` that redirects as ``action`` says, in hardware only."""
    keys: FlowerKeys | None = request.get("keys")
    if keys is None:  # to delete it
        return {"attrs": []}
    before: list[tuple[int, Any]] = []
    four = keys.address is not None and keys.address.version == 4
    inner = _PORT.pack(ETH_P_IP if four else _ETH_P_IPV6)
    if keys.vlan is not None:
        before += [(_VLAN_ID, struct.pack("=H", keys.vlan)), (_VLAN_ETH_TYPE, inner)]
    if keys.source_mac is not None:
        before += [(_ETH_SRC, bytes.fromhex(keys.source_mac.replace(":", ""))), (_ETH_SRC_MASK, b"\xff" * 6)]
    if keys.udp_port is not None:
        before.append((_IP_PROTO, bytes([IPPROTO_UDP])))
    if keys.address is not None:
        value, mask = (_IPV4_DST, _IPV4_DST_MASK) if four else (_IPV6_DST, _IPV6_DST_MASK)
        before += [(value, keys.address.packed), (mask, b"\xff" * len(keys.address.packed))]
    if keys.udp_port is not None:
        before.append((_UDP_DST, _PORT.pack(keys.udp_port)))
    after = [] if request["protocol"] == ETH_P_ALL else [(_ETH_TYPE, _PORT.pack(request["protocol"]))]
    attributes = [*before, (_ACT, get_tca_action(request)), (_FLAGS, struct.pack("=I", SKIP_SW)), *after]
    return {"attrs": [[f"TCA_FLOWER_{number}", value] for number, value in attributes]}


def register() -> None:
    """Make pyroute2 know the classifier. A repeated call changes nothing."""
    tcmsg.plugins.setdefault(
        KIND, SimpleNamespace(options=Options, get_parameters=_parameters, fix_request=fix_request)
    )


def keys_of(options: Any) -> FlowerKeys:
    """The keys in a filter's options. A value under a mask that is not full counts among ``others``."""
    raw = {int(name.removeprefix("TCA_FLOWER_")): value for name, value in options["attrs"]
           if name.startswith("TCA_FLOWER_")}  # fmt: skip
    left = set(raw) - _NO_KEYS - {_ETH_TYPE, _VLAN_ETH_TYPE, _IP_PROTO}

    def take(value: int, mask: int | None = None) -> bytes | None:
        found = raw.get(value)
        if found is None or (mask is not None and set(raw.get(mask, b"\xff")) != {0xFF}):
            return None
        left.difference_update({value, mask})
        return bytes(found)

    four, six = take(_IPV4_DST, _IPV4_DST_MASK), take(_IPV6_DST, _IPV6_DST_MASK)
    udp = raw.get(_IP_PROTO) == bytes([IPPROTO_UDP])
    port, vlan, mac = take(_UDP_DST, _UDP_DST_MASK) if udp else None, take(_VLAN_ID), take(_ETH_SRC, _ETH_SRC_MASK)
    return FlowerKeys(
        address=IPv4Address(four) if four else IPv6Address(six) if six else None,
        udp_port=None if port is None else _PORT.unpack(port)[0],
        vlan=None if vlan is None else struct.unpack("=H", vlan)[0],
        source_mac=None if mac is None else mac.hex(":"),
        others=frozenset(left),
    )


def in_hardware(options: Any) -> bool:
    """Whether the card carries the filter out."""
    flags = options.get_attr(f"TCA_FLOWER_{_FLAGS}")
    return flags is not None and bool(struct.unpack("=I", bytes(flags))[0] & IN_HW)


def counts(actions: Any) -> bool:
    """Whether the card has counted packets for the filter: only then the kernel says of which kind the counters are
    (net/sched/act_api.c, tcf_action_dump_1). ice does not (ice_setup_tc_cls_flower)."""
    unknown = [each for _, action in ([] if actions is None else actions["attrs"])
               for name, each in action["attrs"] if name == "UNKNOWN"]  # fmt: skip
    return any(each["header"]["type"] & ~NLA_F_NESTED == _USED_HW_STATS for each in unknown)
