"""A fabric with hosts that learn a MAC from what they are sent, and the two instances that announce theirs. A fake of
switches and network for the driver ``announce``; packets pass as time passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.mac import unteaching
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.tables import Voice
from ovs_hotswap.uplink.announce import AnnounceUplink, Record
from ovs_hotswap.uplink.announced import Announced
from ovs_hotswap.uplink.driver import Speaker
from ovs_hotswap.uplink.frames import BROADCAST, ETH_P_8021Q, ETH_P_ARP, Host

VTEP = "172.31.0.1"
ALL_NODES = "33:33:00:00:00:01"  # of IPv6 (RFC 2464, 7)
MACS = {Side.A: "52:54:00:1f:00:0a", Side.B: "52:54:00:1f:00:0b"}


@dataclass
class Peer:
    """A host on the fabric that sends ten packets a second to the VTEP. ``learns``: what changes the MAC that it knows.
    ``deaf``: so many frames to it are lost first."""

    host: Host
    learns: str = "announcements"  # or "questions", or "nothing"
    knows: str | None = None
    sends: bool = True
    deaf: int = 0
    answers: bool = True


@dataclass
class Instance:
    """One instance's end of its uplink. ``runs``: it is neither dead nor stopped. ``stuck``: its flows do not change.
    ``mute``: what it sends is lost. ``names``: gives the hosts that send to it. ``fault`` may raise in each call."""

    fabric: Fabric
    side: Side
    runs: bool = True
    voice: Voice = Voice.SILENT
    packets: float = 0
    proofs: int = 0
    device: str | None = None
    mute: bool = False
    stuck: bool = False
    names: Callable[[], list[str]] | None = None
    fault: Callable[[], None] = lambda: None

    def send(self, frame: bytes) -> None:
        self.fault()
        if not self.mute:
            self.fabric.carry(self, frame)

    def probes(self) -> int:
        return 0

    def received(self) -> int:
        self.fault()
        return int(self.packets)

    def senders(self, seconds: float) -> list[str]:
        self.fault()
        if self.names is not None:
            return self.names()
        return [each.host.address for each in self.fabric.peers if each.sends and each.knows == MACS[self.side]]

    def answers(self) -> int:
        return self.proofs

    def speaks(self) -> bool:
        self.fault()
        return self.voice is Voice.SPEAKS

    def speak(self, address: str, voice: Voice, frames: Sequence[bytes] = (), vlan: int | None = None) -> None:
        self.fault()
        assert (address, vlan) == (self.fabric.vtep, self.fabric.vlan)
        if not self.stuck:
            self.voice = voice
        self.announce(frames)

    def announce(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.send(frame)

    def mac(self) -> str | None:
        return self.device or MACS[self.side]


@dataclass
class Fabric:
    """``vtep`` and ``vlan``: the address that is announced, and the tag of the packets."""

    peers: list[Peer] = field(default_factory=lambda: [Peer(Host("172.31.0.2", "52:54:00:1f:00:02"))])
    instances: dict[Side, Instance] = field(default_factory=dict)
    sent: list[tuple[float, Side, bytes]] = field(default_factory=list)
    record: Announced | None = None
    vtep: str = VTEP
    vlan: int | None = None
    now: float = 0.0
    wrap: Callable[[Instance], Speaker] = lambda instance: instance
    then: Callable[[], None] = lambda: None  # after each pause

    def __post_init__(self) -> None:
        self.instances = {side: Instance(self, side) for side in Side}

    def uplink(self, *, quick: bool = False, record: Record | None = None, vtep: str | None = None) -> AnnounceUplink:
        return AnnounceUplink(
            vtep=vtep or self.vtep, vlan=self.vlan, macs=MACS, neighbours=[each.host for each in self.peers],
            silence_s=1.0, switches=self, record=record or self, quick=quick, clock=lambda: self.now, sleep=self.sleep,
            background=lambda act: act(),
        )  # fmt: skip

    def end(self, side: Side, nic: int = 0) -> Speaker:
        if not self.instances[side].runs:
            raise SwitchError(f"instance {side} does not run")
        return self.wrap(self.instances[side])

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for peer in self.peers:
            for side, instance in self.instances.items():
                if peer.sends and peer.knows == MACS[side]:
                    instance.packets += 10 * seconds
        self.then()

    def carry(self, instance: Instance, frame: bytes) -> None:
        """Bring a frame of ARP or neighbour discovery to the hosts, which learn and answer."""
        self.sent.append((self.now, instance.side, frame))
        to, by = frame[0:6].hex(":"), frame[6:12].hex(":")
        if self.vlan is not None:
            assert frame[12:16] == ETH_P_8021Q.to_bytes(2) + self.vlan.to_bytes(2)
            frame = frame[:12] + frame[16:]
        if frame[12:14] == ETH_P_ARP.to_bytes(2):
            sender, target = (str(ip_address(frame[at : at + 4])) for at in (28, 38))
        else:
            sender, target = (str(ip_address(frame[at : at + 16])) for at in (22, 62))
        for peer in self.peers:
            if to not in (BROADCAST, ALL_NODES, peer.host.mac):
                continue
            if peer.deaf:
                peer.deaf -= 1
                continue
            asked = target == peer.host.address
            if sender == self.vtep and (peer.learns == "announcements" or (peer.learns == "questions" and asked)):
                peer.knows = by
            if asked and sender == unteaching(ip_address(self.vtep).version, by) and peer.answers:
                instance.proofs += 1

    # the record
    def read(self) -> Announced | None:
        return self.record

    def write(self, announced: Announced) -> None:
        self.record = announced

    def remove(self) -> None:
        self.record = None
