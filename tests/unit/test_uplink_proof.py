"""The proof of an uplink by frames, over a stand-in for devices and neighbours, and what is concluded from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import pytest

from ovs_hotswap.model import Finding, Proof, Severity, Side, Way
from ovs_hotswap.upgrade import uplink_checks
from ovs_hotswap.upgrade.uplink_checks import Passed
from ovs_hotswap.uplink.frames import BROADCAST, MARK_BYTES, Ear, Host, answers, asks, question, tunnel_probe
from ovs_hotswap.uplink.proof import Prover

VTEP = Host("172.31.0.1", "52:54:00:1f:00:01")
NEIGHBOUR = Host("172.31.0.2", "52:54:00:1f:00:02")
OTHER = Host("172.31.0.9", "52:54:00:1f:00:09")


def arp_answer(to: str, by: Host, asked: str = VTEP.address) -> bytes:
    return (
        bytes.fromhex(to.replace(":", "") + by.mac.replace(":", "") + "0806" + "0001080006040002")
        + bytes.fromhex(by.mac.replace(":", "")) + IPv4Address(by.address).packed
        + bytes.fromhex(to.replace(":", "")) + IPv4Address(asked).packed
    ).ljust(60, b"\0")  # fmt: skip


@dataclass
class Network:
    """A virtual function between a switch and a wire with one neighbour. ``mute``: what the switch sends is lost;
    ``deaf``: what the representor is given is lost; ``lost``: so many of the first frames are."""

    mute: bool = False
    deaf: bool = False
    silent: bool = False
    lost: int = 0
    now: float = 0.0
    counted: int = 3
    arrived: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    rival: bool = False
    given: list[bytes] = field(default_factory=list)

    # the switch's end
    def send(self, frame: bytes) -> None:
        self.sent.append(frame)
        self.lost -= 1
        self.asked_at.append(self.now)
        asks_neighbour = frame == question(VTEP, NEIGHBOUR, frame[-MARK_BYTES:])
        if not self.mute:
            self.arrived.append(frame)
        if asks_neighbour and self.rival:  # the host's kernel asks the same, unpadded, and is answered
            self.arrived += [frame[:42], arp_answer(VTEP.mac, NEIGHBOUR)]
        if not (self.mute or self.silent or self.lost >= 0) and asks_neighbour:
            self.arrived.append(arp_answer(VTEP.mac, NEIGHBOUR))

    def probes(self) -> int:
        return self.counted

    # the host's sockets
    @contextmanager
    def listen(self, *devices: str) -> Iterator[Ear]:
        assert devices == ("pf0",)
        yield Hearing(self)

    def give(self, device: str, frame: bytes) -> None:
        assert device == "rep-b"
        self.given.append(frame)
        self.lost -= 1
        if not (self.deaf or self.lost >= 0):
            self.counted += 1


@dataclass
class Hearing:
    network: Network

    def heard(self, seconds: float) -> list[bytes]:
        frames, self.network.arrived = self.network.arrived, []
        if not frames:
            self.network.now += seconds
        return frames


@dataclass
class HostSockets:
    network: Network

    def listen(self, *devices: str) -> object:
        return self.network.listen(*devices)

    def send(self, device: str, frame: bytes) -> None:
        self.network.give(device, frame)


def prove(network: Network, neighbours: tuple[Host, ...] = (OTHER, NEIGHBOUR)) -> Proof:
    def sleep(seconds: float) -> None:
        network.now += seconds

    sockets = HostSockets(network)
    prover = Prover(sockets, "pf0", VTEP, neighbours, 1500, clock=lambda: network.now, sleep=sleep)  # type: ignore[arg-type]
    return prover.prove("rep-b", network)


def test_an_uplink_that_passes_is_proven_both_ways() -> None:
    assert prove(Network()) == Proof(True, True)
    assert prove(Network(lost=1)) == Proof(True, True), "the first frame may be lost"


def test_a_mute_and_a_deaf_function_are_told_apart() -> None:
    assert prove(Network(mute=True)) == Proof(False, True)
    assert prove(Network(deaf=True)) == Proof(True, False)


def test_a_neighbour_on_a_link_is_asked_from_this_hosts_address_there() -> None:
    network, asked = Network(), Host(NEIGHBOUR.address, BROADCAST, "192.0.2.1")
    assert prove(network, (asked,)).out is False, "the neighbour answers the VTEP alone"
    assert network.sent[0][:42] == question(Host("192.0.2.1", VTEP.mac), asked, b"")


def test_a_packet_for_a_neighbour_without_a_mac_does_not_come_from_its_address() -> None:
    """Open vSwitch would learn the MAC that the packet comes from."""
    network = Network()
    assert prove(network, (Host(NEIGHBOUR.address, BROADCAST),)).into
    assert network.given[0][6:12].hex(":") == "02:00:00:00:00:0e"
    assert network.given[0][26:30] == IPv4Address(VTEP.address).packed
    known = Network()
    assert prove(known, (NEIGHBOUR,)).into
    assert known.given[0][26:30] == IPv4Address(NEIGHBOUR.address).packed


def test_an_answer_to_somebody_elses_question_proves_nothing() -> None:
    network = Network(mute=True)
    network.arrived += [
        arp_answer(VTEP.mac, NEIGHBOUR, asked="0.0.0.0"),
        arp_answer(VTEP.mac, Host("172.31.0.77", OTHER.mac)),
    ]
    assert prove(network).out is False


def test_without_a_neighbour_there_is_nothing_to_tell_it_by() -> None:
    network = Network()
    assert prove(network, ()) == Proof(None, None)
    assert network.sent == []


def test_a_question_that_tells_nobody_of_a_conflict() -> None:
    """A request without a sender's address is a probe: who is about to take the address would give it up."""
    mark = bytes(range(MARK_BYTES))
    frame = question(VTEP, NEIGHBOUR, mark)
    assert len(frame) == 60
    assert frame[:6] == bytes.fromhex(NEIGHBOUR.mac.replace(":", "")), "only the neighbour sees it"
    assert frame[22:28] == frame[6:12] == bytes.fromhex(VTEP.mac.replace(":", ""))
    assert frame[28:32] == IPv4Address(VTEP.address).packed
    assert frame[38:42] == IPv4Address(NEIGHBOUR.address).packed
    assert not answers(frame, VTEP, NEIGHBOUR)
    assert not asks(frame, VTEP, NEIGHBOUR, mark), "it is ours"
    assert asks(frame[:42], VTEP, NEIGHBOUR, mark)
    assert not asks(frame[:42], VTEP, OTHER, mark)
    assert answers(arp_answer(VTEP.mac, NEIGHBOUR), VTEP, NEIGHBOUR)
    assert not answers(arp_answer("52:54:00:1f:00:07", NEIGHBOUR), VTEP, NEIGHBOUR)
    assert not answers(b"\0" * 20, VTEP, NEIGHBOUR)


def test_neighbours_are_asked_in_turn_until_one_answers() -> None:
    network = Network()
    assert prove(network, (NEIGHBOUR, OTHER)).out is True
    assert len(network.sent) == 1
    mute = Network(mute=True)
    prove(mute, tuple(Host(f"172.31.0.{number}", OTHER.mac) for number in range(10, 30)))
    assert max(sum(begun <= at < begun + 1 for at in mute.asked_at) for begun in mute.asked_at) <= 11
    assert mute.asked_at[-1] < 2


def test_an_answer_to_the_kernels_own_question_proves_nothing() -> None:
    assert prove(Network(mute=True, rival=True)).out is False


def test_a_packet_that_every_switch_takes_for_vxlan() -> None:
    frame = tunnel_probe(NEIGHBOUR, VTEP, 1500)
    header = frame[14:34]
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, 20, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF, "RFC 791: the checksum"
    assert int.from_bytes(header[2:4], "big") == len(frame) - 14 == 1500, "as long as the underlay carries"
    assert int.from_bytes(frame[38:40], "big") == 1480
    assert frame[36:38] == (4789).to_bytes(2, "big")
    assert frame[42:50] == bytes.fromhex("0800000000000000"), "network 0"


def severity(found: list[Finding]) -> Severity:
    (only,) = found
    return only.severity


@pytest.mark.parametrize(
    ("new", "old", "expected", "text"),
    [
        (Proof(True, True), None, Severity.OK, "neighbours answer it"),
        (Proof(False, True), Proof(True, True), Severity.ERROR, "it is mute"),
        (Proof(True, False), Proof(True, True), Severity.ERROR, "it is deaf"),
        (Proof(False, False), Proof(True, False), Severity.ERROR, "it is mute"),
        (Proof(False, True), Proof(False, True), Severity.WARNING, "not proven: no neighbour"),
        (Proof(True, False), None, Severity.WARNING, "not proven: frames cannot be given"),
        (Proof(None, None), None, Severity.WARNING, "not proven: no neighbour of the overlay file can be asked"),
    ],
)  # fmt: skip
def test_what_the_proofs_say(new: Proof, old: Proof | None, expected: Severity, text: str) -> None:
    found = uplink_checks.proof(Side.B, new, old)
    assert severity(found) is expected
    assert text in found[0].text


BEFORE = Passed(2.0, 100, 100, 100, 100)


@pytest.mark.parametrize(
    ("after", "before", "expected"),
    [
        (Passed(2.0, 90, 90, 90, 90), BEFORE, Severity.OK),
        (Passed(2.0, 90, 3, None, None), None, Severity.OK),
        (Passed(2.0, 90, 0, 0, 90), BEFORE, Severity.ERROR),  # mute for what matters, or taken before it is steered
        (Passed(2.0, 90, 0, 90, 90), None, Severity.ERROR),  # deaf
        (Passed(4.0, 5, 0, 0, 5), BEFORE, Severity.ERROR),  # they try again, ever more slowly
        (Passed(4.0, 0, 0, 0, 0), BEFORE, Severity.ERROR),
        (Passed(4.0, 0, 0, 0, 0), Passed(2.0, 0, 100), Severity.ERROR),  # what comes in one way
        (Passed(2.0, 90, 5, 5, 0), None, Severity.ERROR),  # the host sees nothing of it
        (Passed(2.0, 90, 0, 3, 90), None, Severity.WARNING),
        (Passed(2.0, 0, 0, 0, 0), None, Severity.WARNING),
        (Passed(2.0, 0, 0, 0, 0), Passed(20.0, 50, 50), Severity.WARNING),  # too little to miss any of it
        (Passed(2.0, 0, 0), Passed(0.0, 5, 5), Severity.WARNING),
    ],
)  # fmt: skip
def test_what_the_traffic_says(after: Passed, before: Passed | None, expected: Severity) -> None:
    assert severity(uplink_checks.traffic(Side.B, after, before)) is expected


@pytest.mark.parametrize(
    ("after", "proof", "expected"),
    [
        (Passed(4.0, 0, 0, 0, 0), Proof(True, True), Severity.WARNING),  # the VMs and the other hosts have finished
        (Passed(4.0, 0, 0, 0, 0), Proof(False, True), Severity.ERROR),
        (Passed(4.0, 5, 0, 0, 5), Proof(True, True), Severity.ERROR),
        (Passed(4.0, 0, 0, 90, 0), Proof(True, True), Severity.ERROR),
    ],
)
def test_vms_that_send_nothing_any_more_may_have_finished(after: Passed, proof: Proof, expected: Severity) -> None:
    assert severity(uplink_checks.traffic(Side.B, after, BEFORE, proof)) is expected


def missing(after: Passed, carried: Passed | None, proof: Proof) -> str:
    return " ".join(each.text for each in uplink_checks.unshown(Side.B, after, carried, proof))


def test_each_way_must_be_shown_by_frames_or_by_traffic() -> None:
    silent = Passed(30.0, 0, 0)
    assert missing(silent, BEFORE, Proof(True, True)) == missing(Passed(1.0, 5, 5), BEFORE, Proof()) == ""
    assert "nothing came in" in missing(silent, BEFORE, Proof())
    assert "nothing was sent" in missing(silent, BEFORE, Proof())
    assert "nothing is answered" in missing(Passed(30.0, 9, 0), BEFORE, Proof(False, True))
    assert "nothing came in" not in missing(Passed(30.0, 0, 9), BEFORE, Proof())
    assert "nothing came in" not in missing(silent, BEFORE, Proof(False, True))
    assert missing(silent, None, Proof()) == missing(silent, Passed(9.0, 0, 0), Proof()) == ""
    assert missing(silent, Passed(9.0, 50, 0), Proof()) == "", "it was never answered on the other side"


def test_the_port_tells_where_packets_are_lost() -> None:
    """Something else steers the traffic, and all packets of the port can be compared."""
    silent, other = Passed(30.0, 0, 0), Passed(30.0, 0, 0, arrived=9)
    assert "has received none of any kind" in missing(silent, BEFORE, Proof())
    assert "has received 9 other packets" in missing(other, BEFORE, Proof())
    assert "had received 90 packets" in missing(silent, Passed(9.0, 0, 0, arrived=90), Proof())
    assert missing(other, Passed(9.0, 0, 0, arrived=90), Proof()) == ""
    assert missing(silent, Passed(9.0, 0, 0, arrived=3), Proof()) == "", "broadcasts are rare on some networks"


@pytest.mark.parametrize(
    ("after", "before", "expected"),
    [
        (Passed(1.0, 0, 0), Passed(9.0, 9, 9), True),
        (Passed(1.0, 1, 1), Passed(9.0, 9, 9), False),
        (Passed(25.0, 1, 0), Passed(9.0, 9, 9), False),  # enough are missing
        (Passed(25.0, 0, 0), Passed(9.0, 9, 9), False),
        (Passed(1.0, 0, 0), Passed(9.0, 1, 1), False),  # too few would come
        (Passed(1.0, 0, 0), None, False),
    ],
)
def test_how_long_packets_are_waited_for(after: Passed, before: Passed | None, expected: bool) -> None:
    assert uplink_checks.undecided(after, before, Proof(True, True)) is expected


@pytest.mark.parametrize(
    ("whole", "late", "expected"),
    [
        (Passed(20.0, 50, 50, 0, 50), Passed(10.0, 25, 25), [Severity.ERROR]),
        (Passed(20.0, 50, 50, 0, 50), Passed(10.0, 25, 0), [Severity.WARNING]),
        (Passed(20.0, 50, 50, 0, 50), Passed(10.0, 3, 0), []),  # what was counted late
        (Passed(20.0, 50, 50, 1, 50), Passed(10.0, 25, 25), []),
        (Passed(20.0, 50, 50, None, 50), Passed(10.0, 25, 25), []),  # the card does not count
    ],
)
def test_a_counter_that_does_not_move(whole: Passed, late: Passed, expected: list[Severity]) -> None:
    assert [each.severity for each in uplink_checks.rule(Side.A, whole, late)] == expected


def test_a_program_in_front_is_an_error_unless_packets_come() -> None:
    found = [
        Finding(uplink_checks.PROGRAMS, Severity.WARNING, "pf0: 1 tcx programs"),
        Finding("uplink", Severity.OK, "x"),
    ]
    assert uplink_checks.steering(found, Passed(1.5, 10, 9)) == found
    program, other = uplink_checks.steering(found, Passed(1.5, 10, 0, 0, 10))
    assert program.severity is Severity.ERROR
    assert other.severity is Severity.OK


class Slow(Network):
    """The neighbour answers ``late`` seconds after it was asked."""

    late = 0.6

    def __init__(self) -> None:
        super().__init__(silent=True)
        self.due: list[float] = []

    def send(self, frame: bytes) -> None:
        super().send(frame)
        if not self.mute and frame == question(VTEP, NEIGHBOUR, frame[-MARK_BYTES:]):
            self.due.append(self.now + self.late)

    def advance(self, seconds: float) -> None:
        """Frames that arrive without a listener are lost."""
        self.now += seconds
        self.due = [at for at in self.due if at > self.now]

    @contextmanager
    def listen(self, *devices: str) -> Iterator[Ear]:
        yield SlowHearing(self)


@dataclass
class SlowHearing:
    network: Slow

    def heard(self, seconds: float) -> list[bytes]:
        network = self.network
        if not network.due or network.due[0] > network.now + seconds:
            network.now += seconds
            return []
        network.now = max(network.now, network.due.pop(0))
        return [arp_answer(VTEP.mac, NEIGHBOUR)]


def test_a_late_answer_to_an_earlier_question_proves_nothing_of_another_instance() -> None:
    """Both are proven one after the other, by the same driver: the answer to the second try of the first one's."""
    network = Slow()
    prover = Prover(HostSockets(network), "pf0", VTEP, (NEIGHBOUR,), 1500,  # type: ignore[arg-type]
                    clock=lambda: network.now, sleep=network.advance)  # fmt: skip
    assert prover.prove("rep-a", network, Way.OUT).out is True
    network.mute = True
    assert prover.prove("rep-b", network, Way.OUT).out is False
    network.mute = False
    assert prover.prove("rep-a", network, Way.OUT).out is True


def test_an_answer_of_who_was_not_asked_yet_proves_nothing() -> None:
    network = Network(mute=True, arrived=[arp_answer(VTEP.mac, NEIGHBOUR)])
    assert prove(network, (OTHER, NEIGHBOUR)).out is False


def test_who_answers_at_once_is_not_waited_for() -> None:
    network = Network()
    prover = Prover(HostSockets(network), "pf0", VTEP, (NEIGHBOUR,), 1500,  # type: ignore[arg-type]
                    clock=lambda: network.now, sleep=lambda _: pytest.fail("waited"))  # fmt: skip
    assert [prover.prove("rep-a", network, Way.OUT).out for _ in range(2)] == [True, True]
