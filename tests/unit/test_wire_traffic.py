"""What passes after the traffic was turned to a side, over a switch whose flows count as the test says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay.tables import Kind, cookie
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.upgrade import uplink_proof
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.steps import SteerUplink
from ovs_hotswap.upgrade.uplink_checks import Passed
from ovs_hotswap.upgrade.uplink_proof import Traffic
from tests.unit.watch_bed import FakeHost, World
from tests.unit.watch_bed import config as config

BEFORE = Passed(2.0, 200, 200)


@dataclass
class Flows:
    """Packets a second, from the beginning on."""

    world: World
    sent: int = 100
    received: int = 100
    mute: bool = False
    until: float = float("inf")  # answers come

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

    def openflow(self, side: Side) -> Any:
        super().openflow(side)
        return self.flows


@pytest.fixture
def host(config: Config) -> Counting:
    return Counting(config, World(["vm1"]))


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


@pytest.mark.parametrize(("ends_after_s", "expected"), [(float("inf"), Severity.ERROR), (8.0, Severity.WARNING)])
def test_what_was_over_before_the_steering_is_not_missed_after_it(
    host: Counting, ends_after_s: float, expected: Severity
) -> None:
    """VMs send on, one way. Answers came for all of the time before the steering, or for most of it."""
    facts: dict[str, Any] = {}
    run = StepContext(lambda: facts, facts.update, lambda _event: None)
    context = Upgrade(host, Side.A, Side.B, "host")
    host.flows.until = host.world.now + ends_after_s
    uplink_proof.begin(context, run)
    host.world.now += 9.0
    uplink_proof.end(context, run)
    host.flows.until = min(host.flows.until, host.world.now)
    (found,) = Traffic.of(context, run).findings()
    assert found.severity is expected


@pytest.mark.parametrize("stopped", [True, False])
def test_the_uplink_is_not_steered_to_an_instance_that_broke_while_traffic_was_counted(
    host: Counting, stopped: bool
) -> None:
    context = Upgrade(host, Side.A, Side.B, "host")
    facts: dict[str, Any] = {}
    run = StepContext(lambda: facts, facts.update, lambda _event: None)
    uplink_proof.begin(context, run)
    if stopped:
        host.world.stopped_pids = {2}
    else:
        host.world.die(Side.B)
    before = host.world.uplink_owner
    with pytest.raises(SwitchError, match="instance b"):
        SteerUplink().do(context, run)
    assert host.world.uplink_owner is before
