"""A pair of veth devices as the link between two instances in one network namespace, each with one end as a port of
DPDK's driver af_packet: for a switch that has not loaded the driver memif. The kernel carries each frame."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.netns import silence
from ovs_hotswap.switch.ovsdb import PortSpec

_AROUND = 128  # bytes of a slot beside the frame: TPACKET2_HDRLEN and the Ethernet header (linux/if_packet.h)
_BLOCK, _SLOTS = 1 << 16, 2048
_NET = Path("/sys/class/net")


def veth_spec(name: str, ofport: int, interface: str, *, device: str, mtu: int) -> PortSpec:
    """Return one end of a link. ``interface``: its veth. ``device``: what DPDK calls it. ``mtu``: in bytes, with the
    tags that frames have on the link.

    A frame has to fit into one slot of the ring that the driver shares with the kernel, and a slot into a block
    (drivers/net/af_packet, rte_pmd_init_internals). The driver puts a tag back into the frame that the kernel has taken
    out of it (eth_af_packet_rx).
    """
    slot = 1 << (mtu + _AROUND - 1).bit_length()
    devargs = f"net_af_packet_{device},iface={interface},blocksz={_BLOCK},framesz={slot},framecnt={_SLOTS}"
    return PortSpec(name, "dpdk", ofport, {"dpdk-devargs": f"{devargs},qdisc_bypass=1", "n_rxq": "1"}, mtu=mtu)


def make_pair(first: str, second: str, mtu: int) -> None:
    """Make two veths that are joined, up, and without an address, or have those that are there so. Raises
    SwitchError."""
    try:
        with IPRoute() as route:
            if _index(route, first) is None:
                with _tolerating(errno.EEXIST):
                    route.link("add", ifname=first, kind="veth", peer={"ifname": second})
            for name in (first, second):
                silence(name)
                route.link("set", index=_index(route, name), mtu=mtu, state="up")
    except (NetlinkError, OSError) as error:
        raise SwitchError(f"the veth devices {first} and {second} cannot be made: {error}", hint="`ip link`") from error


def remove_pair(first: str) -> None:
    """Remove a veth, and so the other one of the pair. It is no error if it is not there. Raises SwitchError."""
    if not (_NET / first).exists():
        return
    try:
        with IPRoute() as route, _tolerating(errno.ENODEV):
            if (index := _index(route, first)) is not None:
                route.link("del", index=index)
    except (NetlinkError, OSError) as error:
        raise SwitchError(
            f"the veth device {first} cannot be removed: {error}", hint=f"`ip link del {first}`"
        ) from error


def pair_is_up(first: str, second: str) -> bool:
    """Whether both devices are there and up."""
    try:
        return all((_NET / name / "operstate").read_text().strip() == "up" for name in (first, second))
    except OSError:
        return False


def pairs(pattern: str) -> list[str]:
    """Return the names of devices that match a pattern of the shell."""
    return sorted(path.name for path in _NET.glob(pattern))


def _index(route: Any, name: str) -> int | None:
    return next(iter(route.link_lookup(ifname=name)), None)


@contextlib.contextmanager
def _tolerating(code: int) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code != code:
            raise
