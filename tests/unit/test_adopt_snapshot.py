"""The value that describes a running connection, and what a broker makes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.adopt.fetching import Fetched
from ovs_hotswap.adopt.snapshot import (
    EventFact,
    LogMark,
    ProcessFact,
    RegionFact,
    RingFact,
    RingPlaceFact,
    Snapshot,
    guest_state,
    read_snapshot,
    sent_state,
    why_not_carried,
)
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.vhostuser import reconcile
from ovs_hotswap.vhostuser.channel import OwnedFd, close_all
from ovs_hotswap.vhostuser.guest_state import Offer
from ovs_hotswap.vhostuser.messages import CARRIED_FEATURES, CARRIED_PROTOCOL_FEATURES, HEADER, Request
from ovs_hotswap.vhostuser.reconcile import Role

USER = 0x7F0000000000


def ring(index: int, *, enabled: bool = True) -> RingFact:
    start = USER + 0x10000 * index
    return RingFact(
        place=RingPlaceFact(size=256, descriptors=start, available=start + 0x1000, used=start + 0x2000),
        kick=EventFact(fd=40 + 2 * index, eventfd=100 + 2 * index),
        call=EventFact(fd=41 + 2 * index, eventfd=101 + 2 * index), enabled=enabled,
    )  # fmt: skip


def snapshot(**changes: object) -> Snapshot:
    whole = Snapshot(
        socket=Path("/run/vm/vm1.sock"),
        qemu=ProcessFact(pid=1000, born=5), qemu_fd=12,
        switch=ProcessFact(pid=2000, born=6), switch_fd=55,
        features=0x170206783, protocol_features=0x10CBF, status=0xF, mtu=None,
        memory=(RegionFact(guest_address=0, size=1 << 27, user_address=USER, offset=0, fd=11, device=1, inode=9),),
        rings=(ring(0), ring(1)),
        log=LogMark(path=Path("/var/log/openvswitch/ovs-vswitchd.log"), device=2, inode=7, offset=1234),
    )  # fmt: skip
    return whole.model_copy(update=changes)


@pytest.fixture
def descriptors() -> Iterator[list[OwnedFd]]:
    made = [OwnedFd(os.eventfd(0)) for _ in range(7)]
    yield made
    close_all(made)


def test_a_snapshot_survives_its_way_as_text() -> None:
    assert read_snapshot(snapshot().model_dump_json()) == snapshot()


def test_a_later_place_in_the_log_is_no_change_of_the_connection() -> None:
    later = snapshot(log=snapshot().log.model_copy(update={"offset": 9999}))
    assert later.same_connection(snapshot())
    assert not snapshot(rings=(ring(0), ring(1, enabled=False))).same_connection(snapshot())
    assert not snapshot(switch_fd=56).same_connection(snapshot())


@pytest.mark.parametrize("text", ["", "{}", '{"socket": 3}', snapshot().model_dump_json().replace("1000", "-1")])
def test_a_text_that_is_no_snapshot_is_refused(text: str) -> None:
    with pytest.raises(StateUnknown, match="cannot be read"):
        read_snapshot(text)


def test_a_running_guest_is_carried() -> None:
    assert why_not_carried(snapshot()) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": 0x170206783 | 1 << 34}, "bit 34"),
        ({"features": 0x170206783 | 1 << 26}, "migrated"),
        ({"features": 0x130206783}, "protocol features"),
        ({"memory": snapshot().memory * 8}, "8 regions"),
        ({"status": None}, "status"),
    ],
)
def test_what_a_broker_cannot_carry_has_a_reason(changes: dict[str, object], reason: str) -> None:
    assert reason in (why_not_carried(snapshot(**changes)) or "")


def test_the_switch_is_sent_nothing_but_the_scratch_region(descriptors: list[OwnedFd]) -> None:
    """All else was sent by QEMU: a ring that is sent a second time would be stopped and started."""
    fetched = Fetched.of(snapshot(), descriptors)
    scratch = reconcile.scratch_region(OwnedFd(os.memfd_create("scratch")))
    offer = Offer(CARRIED_FEATURES, CARRIED_PROTOCOL_FEATURES, 1)
    script, told = reconcile.reconcile(fetched.told, fetched.state, Role.OWNER, scratch, offer, lambda _: 0)
    assert [HEADER.unpack_from(out.data)[0] for out in script] == [Request.SET_MEM_TABLE]
    assert reconcile.reconcile(told, fetched.state, Role.OWNER, scratch, offer, lambda _: 0)[0] == []
    scratch.descriptor.close()


def test_parking_the_switch_sends_one_address_for_each_ring(descriptors: list[OwnedFd]) -> None:
    fetched = Fetched.of(snapshot(rings=(ring(0), ring(1, enabled=False))), descriptors)
    scratch = reconcile.scratch_region(OwnedFd(os.memfd_create("scratch")))
    offer = Offer(CARRIED_FEATURES, CARRIED_PROTOCOL_FEATURES, 1)
    script, _ = reconcile.reconcile(fetched.told, fetched.state, Role.PARKED, scratch, offer, lambda _: 0)
    sent = [HEADER.unpack_from(out.data)[0] for out in script]
    assert sent == [Request.SET_MEM_TABLE, Request.SET_VRING_ADDR, Request.SET_VRING_ADDR]
    scratch.descriptor.close()


def test_descriptors_keep_their_order_on_the_way_to_another_process(descriptors: list[OwnedFd]) -> None:
    assert Fetched.of(snapshot(), descriptors).descriptors() == descriptors


def test_a_kick_that_qemu_did_not_give_stays_absent(descriptors: list[OwnedFd]) -> None:
    polled = (ring(0).model_copy(update={"kick": None}), ring(1))
    state = guest_state(snapshot(rings=polled), descriptors[2:3], descriptors[3:6])
    assert state.started == (0, 1)
    assert state.ring(0).kick.descriptor is None
    assert state.ring(1).call.descriptor is descriptors[5]


def test_a_pair_that_the_guest_does_not_use_has_calls_alone(descriptors: list[OwnedFd]) -> None:
    unused = ring(2).model_copy(update={"place": None, "kick": None, "enabled": False})
    state = guest_state(snapshot(rings=(ring(0), unused)), descriptors[2:3], descriptors[3:6])
    assert state.started == (0,)
    assert state.ring(1).call.descriptor is descriptors[5]
    assert sent_state(state).ring(1).call == state.ring(1).call.key


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_descriptors_that_are_missing_are_noticed(descriptors: list[OwnedFd], count: int) -> None:
    with pytest.raises(StateUnknown, match="do not fit"):
        Fetched.of(snapshot(), descriptors[:count])
