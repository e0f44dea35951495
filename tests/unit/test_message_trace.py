"""What is logged at level debug, and that nothing is where that level is off."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator

import pytest

from ovs_hotswap.broker.persist.recovery import restore
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.channel import Channel, OwnedFd
from ovs_hotswap.vhostuser.message_trace import MessageTrace, message_trace
from ovs_hotswap.vhostuser.messages import Request, RingAddress
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from tests.unit.broker_bed import Bed, kept, run

NAME = "ovs_hotswap.vhostuser.message_trace"


@pytest.fixture
def debug(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, NAME):
        yield caplog


def test_there_is_no_trace_unless_the_log_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, NAME):
        assert message_trace("vm0", "QEMU") is None


def test_a_message_is_named_with_its_direction_ring_and_descriptors(debug: pytest.LogCaptureFixture) -> None:
    one, other = socket.socketpair()
    sender, receiver = Channel(one, message_trace("vm0", "switch a")), Channel(other, message_trace("vm0", "QEMU"))
    event = OwnedFd(os.eventfd(0))
    sender.send(messages.build_ring_value(Request.SET_VRING_BASE, 3, 7) + messages.build(Request.GET_FEATURES))
    sender.send(messages.build_ring_descriptor(Request.SET_VRING_KICK, 2, present=True), [event])
    sender.send(messages.reply(Request.GET_VRING_BASE, messages.VRING_STATE.pack(5, 9)))
    sender.send(messages.reply(Request.GET_FEATURES, messages.U64.pack(1)))
    sender.send(messages.HEADER.pack(99, messages.VERSION, 0))
    for _ in range(3):
        frame = receiver.receive()
        assert frame is not None
        for each in frame.descriptors:
            each.close()
    for closed in (event, sender, receiver):
        closed.close()
    assert debug.messages == [
        "vm vm0: to switch a: SET_VRING_BASE of ring 3, descriptors: 0",
        "vm vm0: to switch a: GET_FEATURES, descriptors: 0",
        "vm vm0: to switch a: SET_VRING_KICK of ring 2, descriptors: 1",
        "vm vm0: to switch a: answer to GET_VRING_BASE of ring 5, descriptors: 0",
        "vm vm0: to switch a: answer to GET_FEATURES, descriptors: 0",
        "vm vm0: to switch a: request 99, descriptors: 0",
        "vm vm0: from QEMU: SET_VRING_BASE of ring 3, descriptors: 0",
        "vm vm0: from QEMU: GET_FEATURES, descriptors: 0",
        "vm vm0: from QEMU: SET_VRING_KICK of ring 2, descriptors: 1",
    ]


def test_messages_of_a_handover_are_written_when_it_is_over(debug: pytest.LogCaptureFixture) -> None:
    at = RingAddress(0, 0, 0, 0, 0)
    data = messages.build_ring_address(0, at) + messages.build_ring_address(1, at)
    MessageTrace("vm0", "switch b").exchanged(data)
    assert debug.messages == [
        "vm vm0: to switch b in the handover: SET_VRING_ADDR of ring 0",
        "vm vm0: to switch b in the handover: SET_VRING_ADDR of ring 1",
    ]


def test_what_is_no_message_is_passed_over(debug: pytest.LogCaptureFixture) -> None:
    MessageTrace("vm0", "QEMU").sent(messages.build_ring_value(Request.SET_VRING_BASE, 3, 7)[:14] + b"", 0)
    MessageTrace("vm0", "QEMU").sent(b"short", 0)
    assert debug.messages == ["vm vm0: to QEMU: SET_VRING_BASE, descriptors: 0"]


def test_connections_that_are_taken_over_are_traced_too(debug: pytest.LogCaptureFixture) -> None:
    async def test(bed: Bed) -> None:
        given = kept(bed.served(Ownership(Side.A, Certainty.OWNS)))
        made = bed.vm()
        restore(made, given, bed.processes.track)
        assert made.qemu is not None
        for channel in (made.qemu, *(link.channel for link in made.links.values())):
            assert channel.trace is not None

    run(test)
