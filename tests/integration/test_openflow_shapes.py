"""Underlays of every shape on the real ovs-vswitchd with dummy ports: IPv6, VLAN tags, other UDP ports, Geneve."""

from __future__ import annotations

import re
import shutil
import struct
import tempfile
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import FLOOD_BYTES, FLOOD_BYTES_PER_VM, Intent, Vtep
from ovs_hotswap.overlay.ports import UPLINK, UPLINK_PORT, VXLAN
from ovs_hotswap.overlay.tables import Form, lines, render
from ovs_hotswap.system import System
from tests.integration.test_openflow import BROADCAST, FAR, INTENT, VTEP, VTEP_MAC, Switch, ethernet, mac, raw
from tests.support.waiting import eventually

VTEP_6 = "fd00:1f::1"
FOLLOWED = {4: "172.31.0.7", 6: "fd00:1f::7"}  # they have no MAC in the intent
ROUTERS, ROUTER_MAC = {4: "172.31.0.254", 6: "fd00:1f::fe"}, "52:54:00:bb:00:fe"
BEHIND = {4: "172.30.0.0/16", 6: "fd00:30::/32"}
SHAPES: dict[str, dict[str, object]] = {
    "plain": {"address": f"{VTEP}/24"},
    "tagged": {"address": f"{VTEP}/24", "vlan": 100, "udp_port": 8472},
    "IPv6": {"address": f"{VTEP_6}/64"},
    "IPv6, tagged": {"address": f"{VTEP_6}/64", "vlan": 4094, "udp_port": 8472},
    "Geneve": {"address": f"{VTEP}/24", "tunnel": "geneve"},
    "Geneve, IPv6, tagged": {"address": f"{VTEP_6}/64", "vlan": 100, "tunnel": "geneve"},
}


@pytest.fixture(scope="module")
def switch() -> Iterator[Switch]:
    """A switch with the addresses of both versions of IP, and a way by a router to the VTEPs ``behind`` it."""
    directory = Path(tempfile.mkdtemp(prefix="ovsh-os-"))
    switch = Switch(System(), directory, Side.A)
    try:
        switch.start()
        switch.appctl("netdev-dummy/ip6addr", "br0", f"{VTEP_6}/64")
        switch.appctl("ovs/route/add", f"{VTEP_6}/64", "br0")
        for version, router in ROUTERS.items():
            switch.appctl("ovs/route/add", BEHIND[version], "br0", router)
            switch.appctl("tnl/neigh/set", "br0", router, ROUTER_MAC)
        yield switch
    finally:
        switch.stop()
        shutil.rmtree(directory)


@pytest.fixture(params=SHAPES)
def vtep(request: pytest.FixtureRequest, switch: Switch) -> Iterator[Vtep]:
    """A VTEP whose kind of tunnel the switch has.

    Unlike an instance's, the tunnels' port has no ``local_ip``: OVS takes one only if the kernel says that it is local
    (ovs-router.c, ovs_router_lookup), and the kernel does not know the addresses of a dummy bridge.
    """
    vtep = Vtep.model_validate({**SHAPES[request.param], "mac": VTEP_MAC})
    options = [f"options:{name}={value}" for name, value in vtep.options.items() if name != "local_ip"]
    switch.vsctl("set", "Interface", VXLAN, f"type={vtep.tunnel}", *options)
    yield vtep
    switch.vsctl("remove", "Interface", VXLAN, "options", "dst_port")


def behind(vtep: Vtep, number: int) -> str:
    return f"fd00:30::{number + 1:x}" if vtep.version == 6 else f"172.30.{number >> 7}.{number % 128 + 1}"


def reaching(vtep: Vtep, remotes: int) -> Intent:
    """Two VMs, and so many MACs behind as many VTEPs; the first one is ``FAR``."""
    return Intent.model_validate(
        {
            "vtep": vtep.model_dump(by_alias=True),
            "vm": [vm.model_dump() for vm in INTENT.vms[:2]],
            "remote": [
                {"vni": 100, "vtep": behind(vtep, n), "mac": f"52:54:02:00:{n >> 8:02x}:{n & 255:02x}" if n else FAR}
                for n in range(remotes)
            ],
            "neighbour": [
                {"address": ROUTERS[vtep.version], "mac": ROUTER_MAC},
                {"address": FOLLOWED[vtep.version]},
            ],
            "route": [{"destination": BEHIND[vtep.version], "gateway": ROUTERS[vtep.version]}],
        }
    )


def test_the_largest_allowed_flood_reaches_every_vtep(switch: Switch, vtep: Vtep) -> None:
    vteps = (FLOOD_BYTES - 2 * FLOOD_BYTES_PER_VM) // vtep.flood_bytes
    switch.openflow.replace(lines(render(reaching(vtep, vteps), Form.WINDOW)))
    flood = switch.trace(f"in_port=10,dl_src={mac(1)},dl_dst={BROADCAST}")
    assert len(set(re.findall(r"[,(]dst=(172\.30\.[0-9.]+|fd00:30::[0-9a-f]+)", flood))) == vteps
    assert flood.count("tnl_push(") == vteps


def only_sent(switch: Switch, port: str) -> bytes:
    """The one frame that the port sends now."""
    found: list[bytes] = []

    def sent() -> bool:
        found.extend(switch.sent(port))
        return bool(found)

    eventually(sent, f"{port} sends")
    (frame,) = found
    return frame


@pytest.mark.parametrize("tags", [b"", bytes.fromhex("88a8200581004006")], ids=["untagged", "QinQ"])
def test_tunnels_of_any_shape_carry_frames_unchanged(switch: Switch, vtep: Vtep, tags: bytes) -> None:
    switch.openflow.replace(lines(render(reaching(vtep, 1), Form.FINAL)))
    for port in (UPLINK, "vm1"):
        switch.sent(port)
    inner = ethernet(FAR, mac(1), tags=tags)
    switch.inject("vm1", inner)
    outer = only_sent(switch, UPLINK)
    tag = b"" if vtep.vlan is None else struct.pack("!HH", 0x8100, vtep.vlan)
    kind, udp_at = (b"\x86\xdd", 54) if vtep.version == 6 else (b"\x08\x00", 34)
    assert outer.startswith(raw(ROUTER_MAC) + raw(VTEP_MAC) + tag + kind)
    plain = outer[:12] + outer[12 + len(tag) :]
    own, other = ip_address(vtep.address).packed, ip_address(behind(vtep, 0)).packed
    assert plain[:udp_at].endswith(own + other)
    assert int.from_bytes(plain[udp_at + 2 : udp_at + 4]) == vtep.port
    assert (int.from_bytes(plain[udp_at + 12 : udp_at + 15]), plain[udp_at + 16 :]) == (100, inner)

    answer = ethernet(mac(1), FAR, tags=tags)
    arriving = raw(VTEP_MAC) + raw(ROUTER_MAC) + plain[12 : udp_at - 2 * len(own)] + other + own
    arriving += struct.pack("!HH", 50000, vtep.port) + plain[udp_at + 4 : udp_at + 6] + bytes(2)  # no UDP checksum
    arriving += plain[udp_at + 8 : udp_at + 16] + answer

    def tagged(number: int) -> bytes:
        return arriving[:12] + struct.pack("!HH", 0x8100, number) + arriving[12:]

    strangers = [tagged(7)] if vtep.vlan is None else [tagged(7), arriving]
    for frame in (*strangers, arriving if vtep.vlan is None else tagged(vtep.vlan)):
        switch.inject(UPLINK, frame)
    assert only_sent(switch, "vm1") == answer, "only what has the underlay's tag comes"


def test_an_untagged_underlay_decapsulates_nothing_with_a_tag(switch: Switch) -> None:
    """The flow lets it pass to LOCAL, where it stays as it is: the kernel there has no use for it."""
    switch.vsctl("set", "Interface", VXLAN, "type=vxlan")
    switch.openflow.replace(lines(render(INTENT, Form.FINAL)))
    underlay = f"udp,in_port={UPLINK_PORT},dl_dst={VTEP_MAC},nw_src=172.31.0.2,nw_dst={VTEP},udp_dst=4789"
    assert switch.trace(underlay).startswith("tnl_pop(")
    assert switch.trace(f"{underlay},dl_vlan=100") == "br0"
