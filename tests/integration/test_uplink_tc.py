"""The ``tc`` uplink on the real kernel: veth pairs as NIC and VFs, real UDP through them."""

from __future__ import annotations

import gc
import itertools
import os
import socket
import struct
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from pyroute2 import IPRoute, netns

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.lab.tags import tag
from ovs_hotswap.model import Proof, Severity, Side
from ovs_hotswap.upgrade.uplink_checks import PROGRAMS
from ovs_hotswap.uplink.frames import Host, PacketSockets, tunnel_probe
from ovs_hotswap.uplink.match import Match
from ovs_hotswap.uplink.rtnl import INGRESS, RtnlTrafficControl
from ovs_hotswap.uplink.tc import TcUplink
from tests.support.bpf import program

HOST = f"ovsh-test-{os.getpid()}-host"
REMOTE = f"ovsh-test-{os.getpid()}-remote"
VTEP, PEER, OTHER_VTEP = "172.31.0.1", "172.31.0.2", "172.31.0.3"
VTEP_6, PEER_6 = "fd00:1f::1", "fd00:1f::2"
PF_MAC, PEER_MAC = "52:54:00:1f:00:01", "52:54:00:1f:00:02"
COUNTER = struct.Struct("!I")
FLIPS = 60
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h


@pytest.fixture
def bed() -> Iterator[None]:
    """A NIC (pf0, its other end in a namespace of its own) and two VFs with representors."""
    try:
        for name in (HOST, REMOTE):
            netns.create(name)
        with IPRoute(netns=HOST, flags=0) as host, IPRoute(netns=REMOTE, flags=0) as remote:
            host.link("add", ifname="net0", kind="veth", peer={"ifname": "pf0", "address": PF_MAC}, address=PEER_MAC)
            host.link("set", ifname="net0", net_ns_fd=REMOTE)
            for side in Side:
                host.link("add", ifname=f"rep-{side}", kind="veth", peer={"ifname": f"vf-{side}"})
            for name in ("pf0", "rep-a", "rep-b", "vf-a", "vf-b"):
                host.link("set", ifname=name, state="up")
            index = remote.link_lookup(ifname="net0")[0]
            remote.link("set", index=index, state="up")
            remote.addr("add", index=index, address=PEER, prefixlen=24)
            for address in (VTEP, OTHER_VTEP):
                remote.neigh("add", dst=address, lladdr=PF_MAC, ifindex=index, state=128)  # NUD_PERMANENT
            host.addr("add", index=host.link_lookup(ifname="pf0")[0], address=VTEP, prefixlen=24)
        yield
    finally:
        for name in (HOST, REMOTE):
            if name in netns.listnetns():
                netns.remove(name)


@pytest.fixture
def uplink(bed: None) -> TcUplink:
    return make(Match(VTEP))


def make(match: Match) -> TcUplink:
    names = {Side.A: "rep-a", Side.B: "rep-b"}
    return TcUplink(
        device="pf0", representors=names, match=match, mac=PF_MAC, mtu=1500, control=RtnlTrafficControl(HOST),
        sockets=PacketSockets(HOST), neighbours=[peer_of(match)],
    )  # fmt: skip


def peer_of(match: Match) -> Host:
    return Host(PEER_6 if ":" in match.address else PEER, PEER_MAC)


class Tap:
    """Collects the counters in the overlay packets that arrive at one device."""

    def __init__(self, device: str) -> None:
        self.seen: list[int] = []
        self._socket = netns.create_socket(HOST, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        self._socket.bind((device, 0x0800))
        self._socket.setblocking(False)

    def read(self) -> list[int]:
        while True:
            try:
                frame, address = self._socket.recvfrom(2048)
            except BlockingIOError:
                return self.seen
            incoming = address[2] != socket.PACKET_OUTGOING
            if incoming and frame[23] == socket.IPPROTO_UDP and frame[36:38] == (4789).to_bytes(2):
                self.seen.append(COUNTER.unpack_from(frame, 42)[0])

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def taps(bed: None) -> Iterator[dict[Side, Tap]]:
    made = {side: Tap(f"vf-{side}") for side in Side}
    yield made
    for tap in made.values():
        tap.close()


@pytest.fixture
def sender(bed: None) -> Iterator[socket.socket]:
    with netns.create_socket(REMOTE, socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((PEER, 4789))
        yield made


def settle() -> None:
    time.sleep(0.1)  # veth delivers in softirq context: nothing is in flight after this


def test_flips_under_load_lose_and_double_nothing(
    uplink: TcUplink, taps: dict[Side, Tap], sender: socket.socket
) -> None:
    stop = threading.Event()
    sent = 0

    def load() -> None:
        nonlocal sent
        while not stop.is_set():
            sender.sendto(COUNTER.pack(sent) + bytes(100), (VTEP, 4789))
            sent += 1
            if sent % 10 == 0:
                time.sleep(0.001)

    uplink.steer(Side.A)
    thread = threading.Thread(target=load)
    thread.start()
    try:
        for flip in range(FLIPS):
            side = Side.A if flip % 2 else Side.B
            uplink.steer(side)
            assert uplink.owner() is side
            for tap in taps.values():
                tap.read()
    finally:
        stop.set()
        thread.join()
    settle()
    got = {side: tap.read() for side, tap in taps.items()}
    assert sent > 10 * FLIPS  # there was load
    assert sorted(got[Side.A] + got[Side.B]) == list(range(sent))
    assert min(len(got[Side.A]), len(got[Side.B])) > sent // 10


def test_vfs_reach_the_wire_whoever_is_active(uplink: TcUplink, sender: socket.socket) -> None:
    uplink.steer(Side.A)
    sender.settimeout(5)
    for number, side in enumerate(Side):
        # Ethernet, IPv4 without checksum offload, UDP without checksum (RFC 768 allows 0)
        udp = struct.pack("!HHHH", 4789, 4789, 8 + COUNTER.size, 0) + COUNTER.pack(number)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
        head += socket.inet_aton(VTEP) + socket.inet_aton(PEER)
        total = sum(struct.unpack("!10H", head))
        checksum = ~(total + (total >> 16)) & 0xFFFF
        head = head[:10] + checksum.to_bytes(2) + head[12:]
        macs = bytes.fromhex((PEER_MAC + PF_MAC).replace(":", ""))
        with netns.create_socket(HOST, socket.AF_PACKET, socket.SOCK_RAW) as vf:
            vf.bind((f"vf-{side}", 0))
            vf.send(macs + b"\x08\x00" + head + udp)
        assert sender.recv(100) == COUNTER.pack(number)


def test_other_traffic_stays_with_the_kernel(uplink: TcUplink, taps: dict[Side, Tap], sender: socket.socket) -> None:
    uplink.steer(Side.B)
    with netns.create_socket(HOST, socket.AF_INET, socket.SOCK_DGRAM) as kernel:
        kernel.bind((VTEP, 4790))
        kernel.settimeout(5)
        sender.sendto(COUNTER.pack(7), (VTEP, 4790))
        assert kernel.recv(100) == COUNTER.pack(7)
    sender.sendto(COUNTER.pack(8), (OTHER_VTEP, 4789))
    settle()
    assert taps[Side.A].read() == taps[Side.B].read() == []


def filters(device: str) -> list[tuple[int, int]]:
    """Priority and handle of all filters on the device's ingress."""
    with IPRoute(netns=HOST, flags=0) as route:
        index = route.link_lookup(ifname=device)[0]
        return [(f["info"] >> 16, f["handle"]) for f in route.get_filters(index=index, parent=INGRESS)]


def add_foreign(priority: int) -> None:
    with IPRoute(netns=HOST, flags=0) as route:
        route.tc(
            "add-filter", "u32", route.link_lookup(ifname="pf0")[0], parent=INGRESS, prio=priority, protocol=0x0800,
            target=0, keys=["0x32/0xff+9"],
            action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": 1},
        )  # fmt: skip


def test_clear_removes_exactly_ours(uplink: TcUplink) -> None:
    uplink.steer(Side.A)
    add_foreign(7)
    foreign = [entry for entry in filters("pf0") if entry[0] == 7]
    assert len(foreign) > 1
    uplink.clear()
    uplink.clear()
    assert filters("pf0") == foreign
    assert filters("rep-a") == filters("rep-b") == []
    assert uplink.owner() is None
    assert [finding.severity for finding in uplink.check()] == [Severity.WARNING]


def test_foreign_filter_at_our_priority_is_kept_and_reported(uplink: TcUplink) -> None:
    uplink.steer(Side.A)
    add_foreign(4789)
    assert [finding.severity for finding in uplink.check()] == [Severity.ERROR]
    with pytest.raises(UplinkError, match="foreign"):
        uplink.steer(Side.B)
    assert uplink.owner() is Side.A
    uplink.clear()
    assert uplink.owner() is None
    assert [handle & 0xFFF for priority, handle in filters("pf0") if handle & 0xFFF] == [0x800]


@pytest.mark.parametrize("name", ["pf0", "rep-b"])
def test_a_device_whose_filters_are_a_block_s_is_refused(uplink: TcUplink, name: str) -> None:
    """Give the device a shared block, as drivers' scripts do for bonds and representors."""
    subprocess.run(
        ["ip", "netns", "exec", HOST, "tc", "qdisc", "add", "dev", name, "ingress_block", "7", "clsact"], check=True
    )
    assert [finding.severity for finding in uplink.check()] == [Severity.ERROR]
    with pytest.raises(UplinkError, match=f"{name}: its ingress filters are those of block 7"):
        uplink.steer(Side.A)


def test_new_vtep_address_replaces_the_keys(uplink: TcUplink, taps: dict[Side, Tap], sender: socket.socket) -> None:
    uplink.steer(Side.A)
    moved = make(Match(OTHER_VTEP))
    assert moved.owner() is None
    moved.steer(Side.B)
    assert moved.owner() is Side.B
    assert uplink.owner() is None
    sender.sendto(COUNTER.pack(5), (OTHER_VTEP, 4789))
    settle()
    assert taps[Side.B].read() == [5]


def test_missing_namespace_is_an_uplink_error() -> None:
    absent = f"{HOST}-absent"
    with pytest.raises(UplinkError, match=absent), RtnlTrafficControl(absent).open():
        pass
    assert absent not in netns.listnetns()


def test_questions_on_a_kept_socket_leave_nothing_behind(bed: None) -> None:
    """A watchdog asks through one socket for as long as it runs."""
    control = RtnlTrafficControl(HOST, keep=True)

    def ask() -> int:
        """Bytes in use after many questions."""
        for _ in range(400):
            with control.open() as kernel:
                link = kernel.link("pf0")
                assert link is not None
                kernel.rules(link)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        ask()  # pyroute2 remembers the numbers of the last 256 requests
        before = ask()
        assert ask() - before < 400 * 30  # an answer that is kept takes 68 bytes and more
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "what"), [("tcx-pass", "1 tcx programs on ingress"), ("xdp-drop", "an XDP program")])
@pytest.mark.parametrize("device", ["pf0", "rep-b"])
def test_what_sees_packets_before_our_filters_is_named(uplink: TcUplink, kind: str, what: str, device: str) -> None:
    uplink.steer(Side.A)
    assert [finding.severity for finding in uplink.check()] == [Severity.OK]
    with program(kind, HOST, device):
        (finding,) = uplink.check()
        assert (finding.check, finding.severity) == (PROGRAMS, Severity.WARNING)
        assert f"{device}: {what}" in finding.text
    assert [finding.severity for finding in uplink.check()] == [Severity.OK]


def test_what_was_steered_is_counted(uplink: TcUplink, sender: socket.socket) -> None:
    assert uplink.steered(Side.A) is None
    uplink.steer(Side.A)
    before = uplink.steered(Side.A)
    assert before is not None
    for _ in range(5):
        sender.sendto(bytes(100), (VTEP, 4789))
    settle()
    after = uplink.steered(Side.A)
    assert after is not None
    assert after.given - before.given == 5
    assert uplink.steered(Side.B) is None, "it has not the traffic"
    with program("tcx-pass", HOST, "pf0"):
        sender.sendto(bytes(100), (VTEP, 4789))
        settle()
        unseen = uplink.steered(Side.A)
        assert unseen is not None
        assert unseen.given == after.given  # what a function sends of itself for IPv6 is counted as taken


class End:
    """A switch behind a virtual function, which sends the frames that the test gives it and counts what comes in."""

    def __init__(self, device: str) -> None:
        self._tap = Tap(device)
        self._sockets, self._device = PacketSockets(HOST), device

    def send(self, frame: bytes) -> None:
        self._sockets.send(self._device, frame)

    def probes(self) -> int:
        return len(self._tap.read())

    def close(self) -> None:
        self._tap.close()


@pytest.fixture
def end(bed: None) -> Iterator[End]:
    made = End("vf-b")
    yield made
    made.close()


def test_an_uplink_is_proven_while_the_other_side_has_the_traffic(uplink: TcUplink, end: End) -> None:
    uplink.steer(Side.A)
    assert uplink.prove(Side.B, end) == Proof(True, True)
    assert uplink.owner() is Side.A


def test_a_mute_function_is_found(uplink: TcUplink, end: End) -> None:
    uplink.steer(Side.A)
    with program("xdp-drop", HOST, "rep-b"):
        assert uplink.prove(Side.B, end) == Proof(False, True)


def test_a_deaf_function_is_found(uplink: TcUplink, end: End) -> None:
    uplink.steer(Side.A)
    with program("xdp-drop", HOST, "vf-b"):
        assert uplink.prove(Side.B, end) == Proof(True, False)


SHAPES = [
    Match(VTEP, 8472), Match(VTEP, 4789, 100), Match(VTEP_6), Match(VTEP_6, 6081, 4094),
]  # fmt: skip


class Wire:
    """The frames that arrive at a device, with their tags."""

    def __init__(self, device: str) -> None:
        self._socket = netns.create_socket(HOST, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self._socket.bind((device, 0x0003))
        self._socket.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA
        self._socket.setblocking(False)

    def read(self) -> list[bytes]:
        frames: list[bytes] = []
        while True:
            try:
                frame, beside, _, address = self._socket.recvmsg(4096, 64)
            except BlockingIOError:
                return frames
            status, _, _, _, _, tci, protocol = struct.unpack("=IIIHHHH", beside[0][2])
            if address[2] != socket.PACKET_OUTGOING:
                frames.append(frame[:12] + struct.pack("!HH", protocol, tci) + frame[12:] if status & 0x10 else frame)

    def close(self) -> None:
        self._socket.close()


def packet(match: Match) -> bytes:
    """A packet of a tunnel as the other host sends it."""
    return tunnel_probe(peer_of(match), Host(match.address, PF_MAC), 200, match.vlan, match.udp_port)


@pytest.mark.parametrize("match", SHAPES, ids=str)
def test_only_packets_of_the_underlay_s_shape_are_steered(bed: None, match: Match) -> None:
    uplink, vf = make(match), Wire("vf-b")
    uplink.steer(Side.B)
    assert uplink.owner() is Side.B
    other_tag = replace(match, vlan=100 if match.vlan is None else None)
    other_address = VTEP if ":" in match.address else VTEP_6
    neighbour = str(ip_address(match.address) + 8)
    strangers = [
        replace(match, udp_port=4790), replace(match, address=neighbour), other_tag,
        replace(match, address=other_address),
    ]  # fmt: skip
    with netns.create_socket(REMOTE, socket.AF_PACKET, socket.SOCK_RAW) as remote:
        remote.bind(("net0", 0))
        for frame in (packet(match), *map(packet, strangers), packet(match)):
            remote.send(frame)
    settle()
    ours = [frame for frame in vf.read() if frame[0:6] == bytes.fromhex(PF_MAC.replace(":", ""))]
    vf.close()
    assert ours == [packet(match)] * 2
    given = uplink.steered(Side.B)
    assert given is not None
    assert given.given == 2


class WireEnd(End):
    """It counts packets of tunnels of any shape."""

    def __init__(self, device: str, match: Match) -> None:
        super().__init__(device)
        self._wire, self._counted = Wire(device), 0
        self._wanted = tunnel_probe(peer_of(match), Host(match.address, PF_MAC), 1500, match.vlan, match.udp_port)

    def probes(self) -> int:
        self._counted += self._wire.read().count(self._wanted)
        return self._counted

    def close(self) -> None:
        super().close()
        self._wire.close()


@pytest.mark.parametrize("match", SHAPES, ids=str)
def test_an_uplink_of_any_shape_is_proven(bed: None, match: Match) -> None:
    with IPRoute(netns=REMOTE, flags=0) as remote:
        index = remote.link_lookup(ifname="net0")[0]
        remote.addr("add", index=index, address=PEER_6, prefixlen=64, flags=0x02)  # IFA_F_NODAD
        if match.vlan is not None:
            tag(remote, index, match.vlan)
    uplink, end = make(match), WireEnd("vf-b", match)
    try:
        uplink.steer(Side.A)
        assert uplink.prove(Side.B, end) == Proof(True, True)
        with program("xdp-drop", HOST, "rep-b"):
            assert uplink.prove(Side.B, end) == Proof(False, True)
        if match.vlan is not None:
            assert make(replace(match, vlan=match.vlan - 1)).prove(Side.B, end) == Proof(False, False)
    finally:
        end.close()


def test_an_underlay_that_gets_another_shape_keeps_its_traffic(bed: None) -> None:
    for before, after in itertools.pairwise((*SHAPES, *reversed(SHAPES))):
        make(before).steer(Side.A)
        make(after).steer(Side.B)
        assert make(after).owner() is Side.B
        assert (make(before).owner() is None) is (before != after)
    make(SHAPES[0]).clear()
    assert filters("pf0") == []
