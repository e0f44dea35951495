"""What passes after the traffic was turned to a side, over a switch whose flows count as the test says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.config_uplink import NicConfig
from ovs_hotswap.errors import SwitchError, UplinkError
from ovs_hotswap.model import Finding, Proof, Severity, Side, Steered, Way
from ovs_hotswap.overlay.tables import NIC_PORTS, Kind, cookie
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.upgrade import uplink_proof
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.steps import SteerUplink
from ovs_hotswap.upgrade.uplink_checks import Passed
from ovs_hotswap.upgrade.uplink_proof import Traffic
from ovs_hotswap.uplink.proof import End
from tests.unit.watch_bed import FakeHost, FakeUplink, World
from tests.unit.watch_bed import config as config

BEFORE = Passed(2.0, 200, 200)


@dataclass
class Flows:
    """Packets a second, from the beginning on."""

    world: World
    sent: float = 100
    received: float = 100
    broadcasts: float = 0  # packets that are not a tunnel's
    mute: bool = False
    until: float = float("inf")  # answers come

    def arrived(self, port: int) -> int:
        assert port in NIC_PORTS
        return int(self.world.now * self.broadcasts)

    def packets(self, value: int, mask: int = 0) -> int:
        if self.mute:
            raise SwitchError("ovs-ofctl: no answer")
        if value == cookie(Kind.TO_UPLINK):
            return int(self.world.now * self.sent)
        return int(min(self.world.now, self.until) * self.received)


class Counting(FakeHost):
    def __init__(self, config: Config, world: World) -> None:
        super().__init__(config, world)
        self.flows = Flows(world)

    def openflow(self, side: Side, bridge: str | None = None) -> Any:
        super().openflow(side)
        return self.flows


@pytest.fixture
def host(config: Config) -> Counting:
    return Counting(config, World(["vm1"]))


@pytest.mark.parametrize(
    ("second", "bond", "ports"), [(False, "active-backup", 1), (True, "active-backup", 2), (True, "dpdk", 1)]
)
def test_what_arrives_is_counted_once_on_each_port(host: Counting, second: bool, bond: str, ports: int) -> None:
    changes = {"second": NicConfig() if second else None, "bond": bond}
    host.config = host.config.model_copy(update={"uplink": host.config.uplink.model_copy(update=changes)})
    host.flows.broadcasts, host.world.now = 10, 2.0
    assert uplink_proof.counters(host, Side.A).arrived == 20 * ports


def test_packets_that_pass_are_seen_soon(host: Counting) -> None:
    traffic = Traffic(host, Side.B, BEFORE)
    begun = host.world.now
    traffic.look()
    (found,) = traffic.findings()
    assert found.severity is Severity.OK
    assert host.world.now - begun < 2


def test_what_came_in_before_and_does_not_any_more_is_an_error(host: Counting) -> None:
    host.flows.received = 0
    traffic = Traffic(host, Side.B, BEFORE)
    traffic.look()
    begun = host.world.now
    (found,) = traffic.findings()
    assert found.severity is Severity.ERROR
    assert host.world.now - begun >= 3.9, "counters are added up by threads that may have to wait"


def test_a_long_soak_is_not_waited_for(host: Counting) -> None:
    host.flows.received = 0
    traffic = Traffic(host, Side.B, BEFORE)
    traffic.look()
    host.world.now += 1
    traffic.look()
    host.world.now += 3.5
    with pytest.raises(SwitchError, match="nothing comes in from other hosts on instance b"):
        traffic.look()


def test_a_silent_host_is_not_proven(host: Counting) -> None:
    host.flows.received = host.flows.sent = 0
    (found,) = Traffic(host, Side.B).findings()
    assert found.severity is Severity.WARNING
    assert "not proven by traffic" in found.text


def test_counters_that_cannot_be_read_are_no_reason_to_go_back(host: Counting) -> None:
    host.flows.mute = True
    traffic = Traffic(host, Side.B, BEFORE)
    traffic.look()
    (found,) = traffic.findings()
    assert found.severity is Severity.WARNING
    assert "no answer" in found.text
    host.flows.mute = False
    host.world.stopped_pids = {2}
    (found,) = Traffic(host, Side.B, BEFORE).findings()
    assert "instance b is stopped" in found.text
    host.world.stopped_pids = set()
    host.world.no_database = {Side.B}
    (found,) = Traffic(host, Side.B, BEFORE).findings()
    assert "instance b has lost its ovsdb-server" in found.text, "its ovs-vswitchd would not answer for 10 s"


def context_of(host: Counting) -> tuple[Upgrade, StepContext]:
    facts: dict[str, Any] = {}
    return Upgrade(host, Side.A, Side.B, "host"), StepContext(lambda: facts, facts.update, lambda _event: None)


@pytest.mark.parametrize(("ends_after_s", "expected"), [(float("inf"), Severity.ERROR), (8.0, Severity.WARNING)])
def test_what_was_over_before_the_steering_is_not_missed_after_it(
    host: Counting, ends_after_s: float, expected: Severity
) -> None:
    """VMs send on, one way. Answers came for all of the time before the steering, or for most of it."""
    context, run = context_of(host)
    host.flows.until = host.world.now + ends_after_s
    uplink_proof.begin(context, run)
    uplink_proof.prove_new(context, run)
    host.world.now += 9.0
    uplink_proof.end(context, run)
    host.flows.until = min(host.flows.until, host.world.now)
    (found,) = Traffic.of(context, run).findings()
    assert found.severity is expected


@pytest.mark.parametrize("stopped", [True, False])
def test_the_uplink_is_not_steered_to_an_instance_that_broke_while_traffic_was_counted(
    host: Counting, stopped: bool
) -> None:
    context, run = context_of(host)
    uplink_proof.begin(context, run)
    if stopped:
        host.world.stopped_pids = {2}
    else:
        host.world.die(Side.B)
    before = host.world.uplink_owner
    with pytest.raises(SwitchError, match="instance b"):
        SteerUplink().do(context, run)
    assert host.world.uplink_owner is before


def steered(host: Counting, proof: Proof, *, ends: bool) -> Traffic:
    """The traffic on b, after a has carried some for a while. ``ends``: nothing comes in any more. ``proof``: what the
    frames have shown on either side."""
    context, run = context_of(host)
    host.world.proofs = {Side.A: proof, Side.B: proof}
    uplink_proof.begin(context, run)
    uplink_proof.prove_new(context, run)
    host.world.now += 9.0
    uplink_proof.end(context, run)
    if ends:
        host.flows.until, host.flows.sent = host.world.now, 0
    traffic = Traffic.of(context, run)
    traffic.look()
    return traffic


def soaked(host: Counting, traffic: Traffic) -> tuple[Severity, str]:
    """The worst finding, or the error, after the soak has waited for as long as it is asked to."""
    try:
        while traffic.waiting:
            host.world.now += 1
            traffic.look()
        uplink_proof.tell(context_of(host)[1], found := traffic.findings())
    except SwitchError as error:
        return Severity.ERROR, error.message
    worst: Finding = max(found, key=lambda each: list(Severity).index(each.severity))
    return worst.severity, worst.text


@pytest.mark.parametrize("proof", [Proof(), Proof(False, True), Proof(False, False)])
def test_an_uplink_that_nothing_proves_is_not_committed_if_the_other_one_carried_traffic(
    host: Counting, proof: Proof
) -> None:
    host.flows.received = host.flows.sent = 0.3
    begun = host.world.now
    severity, text = soaked(host, steered(host, proof, ends=True))
    assert severity is Severity.ERROR
    assert "instance b's uplink is up, but not shown to pass packets" in text
    assert host.world.now - begun > 30, "it had time to show it"


def test_an_uplink_that_frames_prove_may_be_idle(host: Counting) -> None:
    severity, _ = soaked(host, steered(host, Proof(True, True), ends=True))
    assert severity is Severity.WARNING


def test_an_uplink_that_frames_prove_is_not_committed_if_expected_packets_do_not_come(host: Counting) -> None:
    """Frames do not prove the way from the wire to the steering's rule."""
    host.flows.received = host.flows.sent = 2
    traffic = steered(host, Proof(True, True), ends=False)
    host.flows.until = host.world.now
    severity, text = soaked(host, traffic)
    assert severity is Severity.ERROR
    assert "nothing comes in from other hosts on instance b" in text


def test_traffic_proves_what_frames_cannot(host: Counting) -> None:
    traffic = steered(host, Proof(), ends=False)
    begun = host.world.now
    assert soaked(host, traffic)[0] is Severity.OK
    assert host.world.now - begun < 5


def test_where_nothing_was_ever_proven_it_is_said(host: Counting) -> None:
    host.flows.received = host.flows.sent = 0
    traffic = steered(host, Proof(), ends=True)
    assert not traffic.waiting
    assert [each.severity for each in traffic.findings()] == [Severity.WARNING]


def test_counters_that_cannot_be_read_prove_nothing(host: Counting) -> None:
    traffic = steered(host, Proof(), ends=False)
    host.flows.mute = True
    assert soaked(host, traffic)[0] is Severity.ERROR


def test_a_long_soak_ends_when_nothing_was_shown(host: Counting) -> None:
    host.flows.received = host.flows.sent = 0.3
    traffic = steered(host, Proof(), ends=True)
    host.world.now += 5
    traffic.look()
    host.world.now += 26
    with pytest.raises(SwitchError, match="not shown to pass packets"):
        traffic.look()


class Unreachable(FakeUplink):
    """No frame can be given to b's virtual function."""

    def prove(self, side: Side, end: End, way: Way | None = None) -> Proof:
        if side is Side.B:
            raise UplinkError("network devices: rep-b is down")
        return super().prove(side, end, way)


@pytest.mark.parametrize(("old", "raises"), [(Proof(True, True), True), (Proof(False, True), False)])
def test_an_uplink_that_cannot_be_proven_is_an_error_if_the_other_one_can(
    host: Counting, old: Proof, raises: bool
) -> None:
    context, run = context_of(host)
    host.__dict__["uplink"] = Unreachable(host.world)
    host.world.proofs = {Side.A: old}
    if raises:
        with pytest.raises(SwitchError, match="rep-b is down; instance a's is"):
            uplink_proof.prove_new(context, run)
    else:
        uplink_proof.prove_new(context, run)
        assert run.facts["warnings"] == ["instance b's uplink is not proven: network devices: rep-b is down"]
    assert run.facts["uplink_proof"] == {"out": None, "into": None}


class Ruled(FakeUplink):
    """Its rule has counted as many packets as the test says."""

    given = 0

    def steered(self, side: Side) -> Steered | None:
        return Steered(self.given, 0)


@pytest.mark.parametrize(
    ("sent", "received", "given", "expected"),
    [(100, 100, 0, Severity.ERROR), (100, 0, 0, Severity.WARNING), (100, 100, 5, None), (0, 0, 0, None)],
)
def test_a_rule_whose_counter_does_not_move_is_reported(
    host: Counting, sent: int, received: int, given: int, expected: Severity | None
) -> None:
    ruled = Ruled(host.world)
    host.__dict__["uplink"] = ruled
    begun = uplink_proof.counters(host, Side.A)
    host.flows.sent, host.flows.received, ruled.given = sent, received, given
    host.world.now += 1
    found = [each for each in uplink_proof.check(host, Side.A, begun) if "has counted no packet" in each.text]
    assert [each.severity for each in found] == ([] if expected is None else [expected])
