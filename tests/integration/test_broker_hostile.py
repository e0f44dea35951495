"""Peers that break the protocol: their session ends, the broker and every other VM continue."""

from __future__ import annotations

import contextlib
import os
import struct
import threading

import pytest

from ovs_hotswap.backends import AbsenceCause
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Request
from tests.support.broker_bed import PACKETS, Bed, MakeBed
from tests.support.vhost_qemu import FakeQemu, HungUp, Traffic
from tests.support.waiting import eventually


def region(guest: int, size: int, user: int, offset: int) -> bytes:
    return struct.pack("<QQQQ", guest, size, user, offset)


def table(*regions: bytes) -> bytes:
    return messages.build(Request.SET_MEM_TABLE, struct.pack("<II", len(regions), 0) + b"".join(regions))


MALFORMED: dict[str, tuple[bytes, int]] = {
    "version": (messages.HEADER.pack(1, 2, 0), 0),
    "oversized": (messages.HEADER.pack(5, 1, 1 << 30), 0),
    "unknown-request": (messages.HEADER.pack(99, 1, 0), 3),
    "a-reply": (messages.HEADER.pack(1, 5, 0), 0),
    "size": (messages.build(Request.SET_FEATURES, b"1234"), 0),
    "descriptors-unasked": (messages.build(Request.GET_FEATURES), 2),
    "too-many-descriptors": (messages.build(Request.GET_FEATURES), 9),
    "ancillary-cut-off": (messages.build(Request.GET_FEATURES), 100),
    "kick-is-no-eventfd": (messages.build_ring_descriptor(Request.SET_VRING_KICK, 0, present=True), 1),
    "call-is-no-eventfd": (messages.build_ring_descriptor(Request.SET_VRING_CALL, 0, present=True), 1),
    "call-without-descriptor": (messages.build_ring_descriptor(Request.SET_VRING_CALL, 0, present=True), 0),
    "ring-number": (messages.build_ring_value(Request.SET_VRING_NUM, 256, 256), 0),
    "ring-size": (messages.build_ring_value(Request.SET_VRING_NUM, 0, 100), 0),
    "features-not-offered": (messages.build_number(Request.SET_FEATURES, 1 << 34), 0),
    "region-wraps": (table(region(0, 1 << 63, 1 << 63, 0)), 1),
    "region-empty": (table(region(0, 0, 0, 0)), 1),
    "regions-overlap": (table(region(0, 8192, 0, 0), region(8192, 8192, 4096, 0)), 2),
    "regions-and-descriptors": (table(region(0, 4096, 0, 0), region(4096, 4096, 4096, 0)), 1),
    "address-not-shared": (messages.build_ring_address(0, messages.RingAddress(0, 1, 2, 3, 0)), 0),
    "kick-before-address": (messages.build_ring_descriptor(Request.SET_VRING_KICK, 40, present=False), 0),
}


def misbehave(bed: Bed, vm: FakeQemu, data: bytes, descriptors: int) -> None:
    """Say something malformed as the VM's QEMU and wait for the broker to hang up; QEMU then listens again."""
    null = [os.open(os.devnull, os.O_RDONLY) for _ in range(descriptors)]
    with contextlib.suppress(HungUp):
        vm.say(data, null)
    for fd in null:
        os.close(fd)
    vm.wait_hung_up()


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_message_from_qemu_ends_that_session_only(make_bed: MakeBed, kind: str) -> None:
    bed = make_bed(2)
    bed.switch(Side.A)
    bed.switch(Side.B)
    good, bad = bed.qemu("vm0"), bed.qemu("vm1")
    for name in ("vm0", "vm1"):
        bed.client.park(name, Side.B)
    with Traffic([good], PACKETS // 2):
        misbehave(bed, bad, *MALFORMED[kind])
        assert bed.client.vm("vm1").last_error is not None
        bad.quit()
        bad.listen()
        bad.boot()
        bed.client.move("vm0", Side.B)
    assert not good.hung_up
    assert bed.client.vm("vm0").last_error is None
    bed.ends_well((0, good), (1, bad))


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize(
    ("data", "descriptors"),
    [
        (messages.reply(Request.GET_FEATURES, bytes(8)), 0),
        (messages.HEADER.pack(1, 7, 0), 0),
        (messages.HEADER.pack(1, 5, 1 << 20), 0),
        (messages.build(Request.SET_OWNER), 4),
        (messages.build(Request.SET_OWNER), 60),
    ],
)
def test_malformed_message_from_a_switch_ends_that_session_only(
    make_bed: MakeBed, side: Side, data: bytes, descriptors: int
) -> None:
    bed = make_bed(2)
    switches = {Side.A: bed.switch(Side.A), Side.B: bed.switch(Side.B)}
    vms = [bed.qemu("vm0"), bed.qemu("vm1")]
    for name in ("vm0", "vm1"):
        bed.client.park(name, Side.B)
    before = bed.broker.descriptors()
    with Traffic(vms, PACKETS // 2):
        switches[side].say(1, data, descriptors)
        bed.wait(lambda: bed.client.vm("vm1").last_error is not None, "fault noted")
        bed.wait_owner(Side.A, "vm1")
        bed.wait(lambda: bool(bed.client.vm("vm1").switches[Side.B].parked), "parked again")
        bed.client.move("vm1", Side.B)
    assert bed.client.vm("vm0").last_error is None
    assert not any(vm.hung_up for vm in vms)
    assert bed.broker.descriptors() == before
    bed.ends_well((0, vms[0]), (1, vms[1]))


def test_descriptors_of_malformed_sessions_are_closed(make_bed: MakeBed) -> None:
    """100 sessions, each broken at another point: before the guest, with the guest up, in the middle of a message,
    while descriptors are in transit. They are of many VMs: a QEMU that misbehaves is tried again after a while only."""
    bed = make_bed(51)
    bed.switch(Side.A)
    good = bed.qemu("vm50")
    before = bed.broker.descriptors()
    faults = list(MALFORMED.values())
    for number in range(100):
        with FakeQemu(bed.broker.qemu_path(f"vm{number % 50}")) as bad:
            bad.accept()
            if number % 3:
                bad.initialise()
            if number % 3 == 2:
                bad.start_driver()
            if number % 5 == 4:
                bad.say(table(region(0, 4096, 0, 0))[: 1 + number % 40], [bad.memory.fd])
                bad.quit()
            else:
                misbehave(bed, bad, *faults[number % len(faults)])
    bed.wait(lambda: all(vm.qemu is None for vm in bed.client.vms()[:-1] if vm.name != "vm50"), "sessions ended")
    bed.wait(lambda: all(vm.switches[Side.A].connected for vm in bed.client.vms()), "ports back")
    bed.wait(lambda: bed.broker.descriptors() == before, f"{before} descriptors")
    assert not good.hung_up
    bed.ends_well((50, good))


def test_silent_and_slow_peers_disturb_nobody(make_bed: MakeBed) -> None:
    """A QEMU that asks and never reads, and a process that connects as a switch and says nothing."""
    bed = make_bed(2)
    bed.switch(Side.A)
    bed.switch(Side.B)
    good, bad = bed.qemu("vm0"), bed.qemu("vm1")
    bed.client.park("vm0", Side.B)
    with Traffic([good], PACKETS // 2):
        with contextlib.suppress(HungUp):
            for _ in range(20):
                bad.say(messages.build(Request.GET_FEATURES) * 10_000)
        bed.wait(lambda: bed.client.vm("vm1").qemu is None, "the deaf QEMU is hung up on", 30)
        bed.client.move("vm0", Side.B)
        bed.client.move("vm0", Side.A)
    bad.quit()
    bed.ends_well((0, good))


def test_answers_of_stopped_rings_are_not_taken_for_other_answers(make_bed: MakeBed) -> None:
    """RESET_OWNER stops every ring, and the switch answers for each while QEMU waits for something else."""
    bed = make_bed()
    bed.switch(Side.A)
    vm = bed.qemu(pairs=4)
    for _ in range(20):
        vm.drain()
        vm.say(messages.build(Request.RESET_OWNER))
        assert vm.ask(Request.SET_LOG_BASE, messages.build(Request.SET_LOG_BASE, bytes(16)), [vm.memory.fd]) == b""
        vm.start_driver()
    bed.ends_well((0, vm))


def test_a_qemu_has_no_more_rings_than_the_intent_gives_it(make_bed: MakeBed) -> None:
    bed = make_bed(queues=2)
    bed.switch(Side.A)
    vm = bed.qemu(pairs=2)
    assert vm.number(Request.GET_QUEUE_NUM) == 2
    bed.ends_well((0, vm))
    vm.say(messages.build_ring_value(Request.SET_VRING_NUM, 4, 256))
    vm.wait_hung_up()
    said = "vm vm0: QEMU: SET_VRING_NUM: ring 4 of 2 queue pairs"
    eventually(lambda: said in bed.broker.log.read_text(), "it is logged, after QEMU has seen the end")
    vm.quit()
    no_socket = AbsenceCause.NO_SOCKET
    bed.wait(lambda: getattr(bed.client.vm("vm0").absent, "cause", None) is no_socket, "why it is not there")


@pytest.mark.parametrize("request_", [Request.SET_VRING_ENABLE, Request.SET_VRING_BASE])
def test_floods_hold_up_nobody(make_bed: MakeBed, request_: Request) -> None:
    """QEMUs that never stop talking are served, and so is everybody else: at other times too, VMs are moved."""
    bed = make_bed(4)
    bed.switch(Side.A)
    bed.switch(Side.B)
    good = bed.qemu("vm0")
    floods = [bed.qemu(f"vm{k}", pairs=8, ring_size=8) for k in (1, 2, 3)]
    bed.client.park("vm0", Side.B)
    ending = threading.Event()

    def flood(vm: FakeQemu) -> None:
        data = b"".join(messages.build_ring_value(request_, 0, k) for k in range(1, 256))
        while not ending.is_set():
            with contextlib.suppress(TimeoutError):
                vm.say(data)

    threads = [threading.Thread(target=flood, args=(vm,)) for vm in floods]
    for thread in threads:
        thread.start()
    with Traffic([good], PACKETS // 2):
        for side in (Side.B, Side.A) * 5:
            bed.client.move("vm0", side)
            bed.client.park("vm0", side.other)
    ending.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    bed.ends_well((0, good))


def test_full_event_counters_block_nobody(make_bed: MakeBed) -> None:
    """The VM's QEMU has made its call eventfd blocking again and filled it: writing to it would hang the broker."""
    bed = make_bed(2)
    bed.switch(Side.A)
    bed.switch(Side.B)
    good, bad = bed.qemu("vm0"), bed.qemu("vm1")
    for name in ("vm0", "vm1"):
        bed.client.park(name, Side.B)
    for fd in bad.calls:
        _fill(fd)
        os.set_blocking(fd, True)
    bed.client.move("vm1", Side.B)
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, good))
    for fd in bad.calls:
        os.eventfd_read(fd)


def _fill(fd: int) -> None:
    """The broker may still be notifying: what it adds between the two calls is taken out again."""
    while True:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(fd, (1 << 64) - 2)
            return
