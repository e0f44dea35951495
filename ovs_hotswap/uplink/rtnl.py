"""The devices and filters of a network namespace, through rtnetlink (pyroute2). ``RedirectUplink`` works on them."""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool, NoSuchDevice, NotSupportedError
from pyroute2.netlink import NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_GETLINK

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.uplink import flower, flower_rtnl
from ovs_hotswap.uplink.frames import in_namespace
from ovs_hotswap.uplink.programs import tcx_counts
from ovs_hotswap.uplink.rules import FlowerKeys, Kernel, Key, Link, Rule
from ovs_hotswap.uplink.tc import ANY, NODE

flower_rtnl.register()

INGRESS = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
# This is not pyroute2's "get", which also asks for an acknowledgement after the answer and keeps each of them (0.9).
_GET_LINK = RTM_GETLINK, NLM_F_REQUEST
TCA_INGRESS_BLOCK = 13  # include/uapi/linux/rtnetlink.h
EGRESS_REDIRECT = 1  # TCA_EGRESS_REDIR, include/uapi/linux/tc_act/tc_mirred.h


class RtnlTrafficControl:
    """The kernel's state of ``namespace`` through rtnetlink; ``None`` is this process's own namespace.

    With ``keep`` the socket stays open between uses, until an error, because entering a namespace takes 40 ms. Then
    only one thread may use the object.
    """

    def __init__(self, namespace: str | None, *, keep: bool = False) -> None:
        self._namespace = namespace
        self._keep = keep
        self._kept: Any = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Kernel]:
        route = self._kept
        try:
            if route is None:
                # flags=0: the namespace is never created
                route = IPRoute(netns=self._namespace, flags=0) if self._namespace else IPRoute()
            self._kept = None
            try:
                yield RtnlKernel(route, self._namespace)
                self._kept = route if self._keep else None
            finally:
                if self._kept is None:
                    route.close()
        except (OSError, NetlinkError) as error:
            where = f"network namespace {self._namespace}" if self._namespace else "traffic control"
            raise UplinkError(f"{where}: {error}") from error


class RtnlKernel:
    """The kernel's state as one rtnetlink socket sees it. Errors of pyroute2 and of the system pass through to
    ``open``."""

    def __init__(self, route: Any, namespace: str | None = None) -> None:
        self._route = route
        self._namespace = namespace

    def link(self, name: str) -> Link | None:
        try:
            message = self._route.link(_GET_LINK, ifname=name)[0]
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise
        bus, parent = message.get_attr("IFLA_PARENT_DEV_BUS_NAME"), message.get_attr("IFLA_PARENT_DEV_NAME")
        return Link(
            message["index"], message["state"] == "up", str(message.get_attr("IFLA_ADDRESS")),
            int(message.get_attr("IFLA_MTU")), str(message.get_attr("IFLA_PHYS_SWITCH_ID") or ""),
            f"{bus}/{parent}" if bus and parent else "", message.get_attr("IFLA_CARRIER") != 0,
        )  # fmt: skip

    def offloads(self, name: str) -> bool:
        def read() -> bool:
            with contextlib.closing(IoctlEthtool(name)) as device:
                try:
                    return bool(device.get_features().is_active("hw-tc-offload"))
                except NoSuchDevice as error:
                    raise OSError(errno.ENODEV, f"no network device {name}") from error
                except (NotSupportedError, KeyError):
                    return False

        return in_namespace(self._namespace, read)

    def programs(self, link: Link) -> tuple[str, ...]:
        found = [f"{count} tcx programs on {way}" for way, count in tcx_counts(self._namespace, link.index).items()]
        xdp = self._route.link("get", index=link.index)[0].get_attr("IFLA_XDP")
        attached = None if xdp is None else xdp.get_attr("IFLA_XDP_ATTACHED")
        return (*(["an XDP program"] if attached else []), *found)

    def block(self, link: Link) -> int | None:
        """The number of the shared block of ingress filters, read from the bytes: pyroute2 0.9 does not know the
        attribute."""
        for message in self._route.get_qdiscs(index=link.index):
            for name, held in message["attrs"]:
                if name == "UNKNOWN" and held["header"]["type"] == TCA_INGRESS_BLOCK:
                    return int(struct.unpack_from("=I", held.data, held.offset + 4)[0])
        return None

    def rules(self, link: Link) -> list[Rule]:
        messages = self._route.get_filters(index=link.index, parent=INGRESS)
        return [rule for message in messages if (rule := _rule(message)) is not None]

    def replace(self, link: Link, rule: Rule) -> None:
        try:
            self._replace(link, rule)
        except NetlinkError as error:
            # There may be no clsact yet (net/sched/cls_api.c, __tcf_qdisc_find).
            if error.code != errno.EINVAL or not self._add_clsact(link):
                raise
            self._replace(link, rule)

    def _add_clsact(self, link: Link) -> bool:
        """Whether the device had no clsact and has one now."""
        try:
            self._route.tc("add", "clsact", link.index)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return False
            raise
        return True

    def _replace(self, link: Link, rule: Rule) -> None:
        if isinstance(rule.keys, FlowerKeys):
            kind, keys = flower_rtnl.KIND, {"handle": rule.handle or flower.HANDLE, "keys": rule.keys}
        else:
            kind, keys = "u32", {"handle": rule.handle or NODE, "keys": [_text(key) for key in rule.keys], "target": 0}
        self._route.tc(
            "replace-filter", kind, link.index, parent=INGRESS, prio=rule.priority, protocol=rule.protocol, **keys,
            action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": rule.target},
        )  # fmt: skip

    def delete(self, link: Link, rule: Rule, *, whole_priority: bool) -> None:
        self._route.tc(
            "del-filter", flower_rtnl.KIND if isinstance(rule.keys, FlowerKeys) else "u32", link.index,
            handle=0 if whole_priority else rule.handle, parent=INGRESS, prio=rule.priority, protocol=rule.protocol,
            target=0,
        )  # fmt: skip


def _text(key: Key) -> str:
    """The key as pyroute2 takes it: leading zero bytes of a mask count, but an empty mask has one digit."""
    return f"{key.value:#010x}/{key.mask:#010x}+{key.offset}" if key.mask else f"0x0/0x0+{key.offset}"


def _rule(message: Any) -> Rule | None:
    """The filter in an rtnetlink message; ``None`` for a priority's head and hash table, which match nothing."""
    options = message.get_attr("TCA_OPTIONS")
    kind = message.get_attr("TCA_KIND")
    selector = options.get_attr("TCA_U32_SEL") if kind == "u32" and options is not None else None
    if message["handle"] == 0 or (kind == "u32" and selector is None):
        return None
    priority, protocol = message["info"] >> 16, struct.unpack("!H", struct.pack("=H", message["info"] & 0xFFFF))[0]
    if selector is not None:
        actions = options.get_attr("TCA_U32_ACT")
        return Rule(priority, protocol, message["handle"], _keys(selector), _target(actions), _packets(actions) or 0)
    if kind == flower_rtnl.KIND and options is not None:
        actions, keys = options.get_attr(flower_rtnl.ACTIONS), flower_rtnl.keys_of(options)
        counted = _packets(actions) if flower_rtnl.counts(actions) else None
        return Rule(priority, protocol, message["handle"], keys, _target(actions), counted,
                    flower_rtnl.in_hardware(options))  # fmt: skip
    return Rule(priority, protocol, message["handle"], (), None)


def _keys(selector: Any) -> tuple[Key, ...]:
    """The keys of a ``struct tc_u32_sel`` (include/uapi/linux/pkt_cls.h), merged to one key for each word.

    They are read from the bytes, because pyroute2 0.9 decodes them four bytes too early. They begin after the
    attribute's header (4 bytes) and the structure's own fields (16 bytes). Each has mask and value in network order,
    and offset and offset mask in host order.
    """
    start = selector.offset + 4 + 16
    raw = bytes(selector.data[start : start + 16 * selector["nkeys"]])
    words: dict[int, tuple[int, int]] = {}
    for at in range(0, len(raw), 16):
        mask, value = struct.unpack_from("!II", raw, at)
        (offset,) = struct.unpack_from("=i", raw, at + 8)
        for byte in range(4):  # a key may begin at any byte, and our keys are compared word by word
            shift = 8 * (3 - byte)
            word, place = divmod(offset + byte, 4)
            old_value, old_mask = words.get(4 * word, (0, 0))
            one_mask, one_value = (mask >> shift) & 0xFF, (value >> shift) & 0xFF
            up = 8 * (3 - place)
            words[4 * word] = (old_value | one_value << up, old_mask | one_mask << up)
    return tuple(Key(value, mask, offset) for offset, (value, mask) in sorted(words.items()) if mask) or ANY


def _packets(actions: Any) -> int | None:
    """The packets of the filter's first action (include/uapi/linux/gen_stats.h), whether software or the card has
    carried it out."""
    statistics = actions["attrs"][0][1].get_attr("TCA_ACT_STATS") if actions is not None and actions["attrs"] else None
    basic = None if statistics is None else statistics.get_attr("TCA_STATS_BASIC")
    return None if basic is None else int(basic["packets"])


def _target(actions: Any) -> int | None:
    """The index of the device to which the filter redirects; ``None`` if it has another action, or several."""
    if actions is None or len(actions["attrs"]) != 1:
        return None
    action = actions["attrs"][0][1]
    if action.get_attr("TCA_ACT_KIND") != "mirred":
        return None
    parameters = action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
    return int(parameters["ifindex"]) if parameters["eaction"] == EGRESS_REDIRECT else None
