"""Whatever a front end says within the specification, each back end has heard what its role entitles it to, and every
packet is taken once: a random front end between the broker's VM and two back ends with DPDK's semantics.

``OVS_HOTSWAP_EXAMPLES`` sets how many of its lives are tried; `make fuzz` tries many."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Feature, ProtocolFeature, Request
from tests.support.front_end import BITS, RINGS, Bench, Step

EXAMPLES = int(os.environ.get("OVS_HOTSWAP_EXAMPLES", "25"))
_NUM, _BASE, _ADDR = Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR
_KICK, _CALL = Request.SET_VRING_KICK, Request.SET_VRING_CALL
# What must be there before a kick, and what of it a front end may say in another order.
ORDERS = [
    [_NUM, _BASE, _ADDR, _KICK, _CALL], [_NUM, _BASE, _ADDR, _CALL, _KICK], [_CALL, _NUM, _ADDR, _BASE, _KICK],
    [_ADDR, _NUM, _BASE, _CALL, _KICK], [_BASE, _CALL, _NUM, _ADDR, _KICK],
]  # fmt: skip
# A ring that was not stopped may be described in part.
PARTS = [
    *ORDERS,
    [_BASE],
    [_ADDR],
    [_NUM],
    [_KICK],
    [_NUM, _KICK],
    [_ADDR, _KICK],
    [_BASE, _ADDR],
    [_NUM, _CALL, _BASE],
]
SIDES = st.sampled_from(Side)
NUMBERS = st.integers(0, RINGS - 1)
_ALL = messages.CARRIED_PROTOCOL_FEATURES
_SAVED = _ALL | 1 << 12  # with INFLIGHT_SHMFD, as from another back end
PROTOCOLS = st.sampled_from([0, 1 << ProtocolFeature.REPLY_ACK, _ALL, _SAVED, _ALL & ~(1 << ProtocolFeature.STATUS)])
_MERGED = 1 << Feature.NET_MRG_RXBUF


def idle(machine: FrontEnd) -> bool:
    return not machine.bench.waits and machine.bench.front.socket is not None


class FrontEnd(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.ready = False  # features and memory were said: rings may be

    def teardown(self) -> None:
        try:
            self.speak()
            self.bench.check()
        finally:
            self.bench.close()

    @initialize(protocol=PROTOCOLS, speaks_pf=st.booleans())
    def begin(self, protocol: int, speaks_pf: bool) -> None:
        self.bench.connect(Side.A)
        self.bench.connect(Side.B)
        self.bench.vm.park(Side.B)
        self.come(speaks_pf, protocol, BITS, True)
        self.start(ORDERS[0], 2, False)

    @precondition(lambda self: self.bench.front.socket is None and not self.bench.silent)
    @rule(speaks_pf=st.booleans(), protocol=PROTOCOLS, bits=st.just(BITS), owner_first=st.booleans())
    def come(self, speaks_pf: bool, protocol: int, bits: int, owner_first: bool) -> None:
        self.bench.plug(speaks_pf=speaks_pf, protocol=protocol, bits=bits, owner_first=owner_first)
        self.ready = False

    @precondition(idle)
    @rule(order=st.sampled_from(ORDERS), regions=st.integers(1, 8), ack=st.booleans())
    def start(self, order: list[Request], regions: int, ack: bool) -> None:
        """The guest's driver sets up its device: every ring is stopped, or has never been described."""
        bench = self.bench
        bench.say(*(bench.stop(ring) for ring in bench.rings if ring.started))
        bench.say(bench.set_features(BITS), bench.share_memory(regions, ack=ack))
        self.ready = True
        for ring in bench.rings:
            bench.say(bench.zero(ring, ring.place))
            bench.say(*bench.describe(ring, order, kick=True, call=True))
            self._enable(ring.number, True)
        self._status(15)

    @precondition(idle)
    @rule(number=NUMBERS)
    def stop(self, number: int) -> None:
        self.bench.say(self.bench.stop(self.bench.rings[number]))

    @precondition(idle)
    @rule()
    def stop_twice(self) -> None:
        for ring in self.bench.rings[2:]:
            self.bench.say(self.bench.stop(ring), self.bench.stop(ring))

    @precondition(lambda self: idle(self) and self.ready)
    @rule(number=NUMBERS, order=st.sampled_from(ORDERS), new=st.booleans())
    def go_on(self, number: int, order: list[Request], new: bool) -> None:
        """A ring that is stopped continues where it was, or is new."""
        ring = self.bench.rings[number]
        if not ring.started:
            if new:
                self.bench.say(self.bench.zero(ring, 1 - ring.place))
            self.bench.say(*self.bench.describe(ring, order, kick=True, call=True))

    @precondition(lambda self: idle(self) and self.ready and self.bench.front.speaks_pf)
    @rule(
        parts=st.sampled_from(PARTS),
        lines=st.booleans(),
        memory=st.booleans(),
        features=st.booleans(),
        ack=st.booleans(),
    )
    def reset(self, parts: list[Request], lines: bool, memory: bool, features: bool, ack: bool) -> None:
        """The device is reset as Cloud Hypervisor does it: rings are disabled, not stopped, and described again."""
        bench, started = self.bench, [ring for ring in self.bench.rings if ring.started]
        bench.say(*(bench.enable(ring, on=False) for ring in started))
        if bench.waits or bench.silent:
            return
        bench.say(*(bench.zero(ring, ring.place) for ring in started))
        if features:
            bench.say(bench.set_features(BITS ^ bench.front.features & _MERGED))
        if memory:
            bench.say(bench.share_memory(bench.front.regions, ack=ack))
        for ring in started:
            bench.say(*bench.describe(ring, parts, kick=lines, call=lines), bench.enable(ring, on=True))

    @precondition(lambda self: idle(self) and self.ready and not self.bench.silent)
    @rule(number=NUMBERS, parts=st.sampled_from(ORDERS), place=st.integers(0, 1))
    def describe_again(self, number: int, parts: list[Request], place: int) -> None:
        """One ring, with nothing said before."""
        bench, ring = self.bench, self.bench.rings[number]
        if ring.started:
            bench.say(bench.zero(ring, place))
            bench.say(*bench.describe(ring, parts, kick=True, call=True))

    @precondition(lambda self: idle(self) and self.ready)
    @rule(number=NUMBERS, part=st.sampled_from([_NUM, _BASE, _ADDR, _KICK, _CALL]))
    def repeat(self, number: int, part: Request) -> None:
        """A part of a ring that continues is said again."""
        ring = self.bench.rings[number]
        if ring.started:
            lines = {"kick": part is _KICK, "call": part is _CALL}
            self.bench.say(*self.bench.describe(ring, [part], **lines))

    @precondition(lambda self: idle(self) and self.bench.front.speaks_pf)
    @rule(number=NUMBERS, on=st.booleans())
    def enable(self, number: int, on: bool) -> None:
        self._enable(number, on)

    def _enable(self, number: int, on: bool) -> None:
        if self.bench.front.speaks_pf:
            self.bench.say(self.bench.enable(self.bench.rings[number], on=on))

    @precondition(idle)
    @rule(value=st.sampled_from([0, 3, 11, 15]))
    def status(self, value: int) -> None:
        self._status(value)

    def _status(self, value: int) -> None:
        if self.bench.speaks(ProtocolFeature.STATUS):
            self.bench.say(self.bench.set_status(value))

    @precondition(lambda self: idle(self) and self.ready)
    @rule(regions=st.integers(1, 8), ack=st.booleans())
    def plug_memory(self, regions: int, ack: bool) -> None:
        self.bench.say(self.bench.share_memory(regions, ack=ack))

    @precondition(lambda self: idle(self) and self.ready)
    @rule(log=st.booleans(), fewer=st.booleans())
    def change_features(self, log: bool, fewer: bool) -> None:
        bits = BITS & ~_MERGED if fewer else BITS
        self.bench.say(self.bench.set_features(bits & ~(1 << Feature.LOG_ALL) | log << Feature.LOG_ALL))

    @precondition(idle)
    @rule()
    def own_again(self) -> None:
        self.bench.say(Step(messages.build(Request.SET_OWNER)))

    @precondition(idle)
    @rule()
    def reset_owner(self) -> None:
        bench = self.bench
        bench.say(Step(messages.build(Request.RESET_OWNER)))
        for ring in bench.rings:
            ring.started = ring.called = ring.enabled = ring.known = False

    @precondition(lambda self: self.bench.front.socket is not None and not self.bench.silent)
    @rule()
    def leave(self) -> None:
        self.bench.hang_up()
        for side in Side:  # as back ends do that were hung up on
            if self.bench.ports[side].socket is None:
                self.bench.connect(side)

    # -- switches

    @precondition(lambda self: not self.bench.silent)
    @rule(side=SIDES)
    def cut(self, side: Side) -> None:
        self.bench.cut(side)

    @precondition(lambda self: not self.bench.silent)
    @rule(side=SIDES)
    def connect(self, side: Side) -> None:
        if self.bench.ports[side].socket is None:
            self.bench.connect(side)

    @rule(side=SIDES)
    def park(self, side: Side) -> None:
        heard = len(self.bench.vm.state.memory)  # what was said since waits in the socket while a switch is silent
        if max(heard, self.bench.front.regions) < messages.MAX_REGIONS:
            self.bench.vm.park(side)
            self.bench.settle()

    @rule(side=SIDES)
    def unpark(self, side: Side) -> None:
        self.bench.vm.unpark(side)
        self.bench.settle()

    @rule()
    def move(self) -> None:
        self.bench.move()

    @rule(side=SIDES)
    def fall_silent(self, side: Side) -> None:
        self.bench.silent.add(side)

    @rule(side=SIDES)
    def die_silent(self, side: Side) -> None:
        """A silent back end hangs up, and what it was asked is never answered."""
        if side in self.bench.silent:
            self.bench.silent.discard(side)
            self.bench.cut(side)

    @rule()
    def speak(self) -> None:
        self.bench.silent.clear()
        self.bench.settle()
        for side in Side:
            if self.bench.ports[side].socket is None:
                self.bench.connect(side)

    @invariant()
    def all_is_as_said(self) -> None:
        if not self.bench.silent:
            self.bench.check()


FrontEnd.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestFrontEnd = FrontEnd.TestCase


# Cases that were found; each fails without what was done about it.


def test_what_qemu_waits_for_is_paid_by_the_side_that_was_asked() -> None:
    """The side that is asked for a base stands still, is asked for the rings, and answers both: then it is not the
    holder any more."""
    machine = FrontEnd()
    try:
        machine.begin(messages.CARRIED_PROTOCOL_FEATURES, True)
        machine.all_is_as_said()
        machine.fall_silent(Side.A)
        machine.move()
        machine.stop(1)
        assert machine.bench.waits
    finally:
        machine.teardown()


def test_a_side_that_is_not_kept_parked_when_it_lets_go_is_told_so() -> None:
    machine = FrontEnd()
    try:
        machine.begin(0, True)
        machine.fall_silent(Side.A)
        machine.move()
        machine.bench.vm.unpark(Side.A)
    finally:
        machine.teardown()


def test_a_qemu_whose_running_guest_needs_more_is_told_of_and_offered_what_was_withheld() -> None:
    """It hangs up when it has seen the offer, and tries again."""
    bench = Bench(withheld=1 << Feature.NET_MRG_RXBUF)
    try:
        bench.connect(Side.A)
        for offered in (False, True):
            bench.plug(speaks_pf=True, protocol=0, bits=BITS, owner_first=True)
            assert bench.vm.offered is not None
            assert bool(bench.vm.offered.features >> Feature.NET_MRG_RXBUF & 1) is offered
            bench.hang_up()
            assert "packed rings, NET_MRG_RXBUF (withheld" in (bench.vm.last_error or "")
    finally:
        bench.close()


def test_what_a_qemu_did_wrong_is_what_is_shown() -> None:
    bench = Bench()
    try:
        bench.connect(Side.A)
        bench.plug(speaks_pf=True, protocol=0, bits=BITS, owner_first=True)
        bench.say(bench.set_features(BITS), bench.share_memory(1))
        with pytest.raises(AssertionError, match="bit 34"):
            bench.say(bench.set_features(BITS | 1 << 34))
        assert bench.vm.last_error == "QEMU: SET_FEATURES: not offered: bit 34"
    finally:
        bench.close()


def test_who_is_not_parked_is_told_with_the_reason() -> None:
    machine = FrontEnd()
    try:
        machine.begin(messages.CARRIED_PROTOCOL_FEATURES, True)
        vm = machine.bench.vm
        assert vm.parking_fault(Side.B) is None
        machine.plug_memory(messages.MAX_REGIONS, True)
        assert "8 regions" in (vm.parking_fault(Side.B) or "")
        machine.plug_memory(2, True)
        assert vm.is_parked(Side.B)
        machine.fall_silent(Side.B)
        machine.repeat(1, _BASE)
        assert "has not answered yet" in (vm.parking_fault(Side.B) or "")
    finally:
        machine.teardown()


def test_rings_that_were_never_stopped_begin_anew() -> None:
    machine = FrontEnd()
    try:
        machine.begin(messages.CARRIED_PROTOCOL_FEATURES, True)
        machine.all_is_as_said()
        for parts in PARTS:
            machine.reset(parts, True, True, False, True)
            machine.all_is_as_said()
            machine.move()
            machine.all_is_as_said()
    finally:
        machine.teardown()


def test_a_ring_that_ran_after_it_was_described_begins_anew_the_next_time() -> None:
    machine = FrontEnd()
    try:
        machine.begin(0, True)
        machine.repeat(0, _NUM)
        machine.all_is_as_said()
        machine.reset([_ADDR], False, False, False, False)
        machine.all_is_as_said()
    finally:
        machine.teardown()


def test_back_end_forgets_protocol_features_of_a_qemu_that_left() -> None:
    """With STATUS acknowledged it would wait for a status that the next QEMU never says."""
    machine = FrontEnd()
    try:
        machine.begin(0, False)
        machine.leave()
        machine.come(True, messages.CARRIED_PROTOCOL_FEATURES, BITS, True)
        machine.leave()
        machine.come(False, 0, BITS, True)
        machine.start(ORDERS[0], 1, False)
        machine.all_is_as_said()
    finally:
        machine.teardown()
