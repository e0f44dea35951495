"""Snapshots of running connections on a stock host, and the guarded section: nothing notices either of them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from ovs_hotswap.adopt.fetching import fetch
from ovs_hotswap.adopt.guard import Guarded, guarded
from ovs_hotswap.adopt.log_settings import log_as_before, log_everything
from ovs_hotswap.adopt.snapshot import Snapshot, read_snapshot
from ovs_hotswap.adopt.taking import take
from ovs_hotswap.errors import StateUnknown, TryAgain
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until
from tests.support.stock_guest import GuestKind, StockGuest
from tests.support.stock_host import DATABASE, LOG, RUN_DIR, StockHost

KINDS = [GuestKind(), GuestKind("hugetlb", queues=4), GuestKind("file", memory_mb=192, memory_slots=1)]
ROUNDS = 20


@pytest.fixture(scope="module")
def host() -> Iterator[StockHost]:
    with StockHost(System(), guests=KINDS) as made:
        yield made


@pytest.fixture(scope="module")
def paths(host: StockHost) -> InstancePaths:
    """The files of the stock switch, as they are called outside the host."""
    run_dir, log = host.outside(RUN_DIR), host.outside(LOG)
    return InstancePaths(
        run_dir=run_dir, db_file=host.outside(DATABASE), db_socket=run_dir / "db.sock",
        ovsdb_ctl=run_dir / f"ovsdb-server.{host.database_pid}.ctl", ovsdb_pid=run_dir / "ovsdb-server.pid",
        ovsdb_log=log.with_name("ovsdb-server.log"), vswitchd_ctl=run_dir / f"ovs-vswitchd.{host.switch_pid}.ctl",
        vswitchd_pid=run_dir / "ovs-vswitchd.pid", log=log,
        record=host.directory / "instance.json", saved_log=host.directory / "saved.log", netns="",
    )  # fmt: skip


def messages(paths: InstancePaths, guest: StockGuest) -> list[str]:
    """The vhost-user messages that the switch has logged of a guest."""
    lines = paths.log.read_text(errors="replace").splitlines()
    return [line.rpartition("VHOST_USER_")[2] for line in lines if f"({guest.socket}) read message " in line]


def refusal(paths: InstancePaths, guest: StockGuest) -> str:
    """Why no snapshot can be taken now; empty if one can be."""
    try:
        take(paths, guest.name, System())
    except StateUnknown as error:
        return error.message
    return ""


def wait_taken(paths: InstancePaths, guest: StockGuest) -> None:
    """Wait until a snapshot can be taken: the status in the database follows a link that was set down, with delay."""
    assert wait_until(lambda: not refusal(paths, guest), 20, poll_s=0.2), refusal(paths, guest)


@contextlib.contextmanager
def entered(paths: InstancePaths, guest: StockGuest, snapshot: Snapshot | None = None) -> Iterator[Guarded]:
    snapshot = snapshot or take(paths, guest.name, System())
    with contextlib.closing(fetch(snapshot)) as fetched, guarded(snapshot, fetched) as section:
        yield section


def test_a_snapshot_has_everything_and_disturbs_nothing(host: StockHost, paths: InstancePaths) -> None:
    before = {guest.name: messages(paths, guest) for guest in host.guests}
    with host.traffic() as traffic:
        found = {guest.name: take(paths, guest.name, System()) for guest in host.guests}
        for snapshot in found.values():
            fetch(snapshot).close()
    print(traffic.judgement.text())
    assert traffic.judgement.faults_beyond(30) == []
    assert {guest.name: messages(paths, guest) for guest in host.guests} == before
    for guest, kind in zip(host.guests, KINDS, strict=True):
        snapshot = found[guest.name]
        assert (snapshot.qemu.pid, snapshot.switch.pid, snapshot.socket) == (guest.pid, host.switch_pid, guest.socket)
        assert len(snapshot.rings) == 2 * kind.queues
        assert snapshot.status == 0xF
        assert all(ring.place is not None and ring.kick is not None and ring.call for ring in snapshot.rings)
        used = 2 * min(kind.queues, os.cpu_count() or 1)  # the driver takes a pair for each vCPU
        assert [ring.enabled for ring in snapshot.rings] == [True] * used + [False] * (2 * kind.queues - used)
        assert sum(region.size for region in snapshot.memory) >= kind.memory_mb << 20
        assert read_snapshot(snapshot.model_dump_json()) == snapshot


def test_queue_pairs_and_memory_that_are_added_are_seen(host: StockHost, paths: InstancePaths) -> None:
    many, plugged = host.guests[1], host.guests[2]
    many.run("/sbin/ethtool -L eth0 combined 4")
    before = take(paths, plugged.name, System())
    memory: dict[str, Any] = {"qom-type": "memory-backend-memfd", "id": "more", "size": 128 << 20, "share": True}
    plugged.qmp("object-add", **memory)
    plugged.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")

    def regions() -> int:
        with contextlib.suppress(TryAgain):
            return len(take(paths, plugged.name, System()).memory)
        return 0

    assert wait_until(lambda: regions() == len(before.memory) + 1, 10)
    assert all(ring.enabled for ring in take(paths, many.name, System()).rings)
    for guest in (many, plugged):
        with entered(paths, guest):
            pass


def test_the_section_is_entered_and_left_without_a_trace(host: StockHost, paths: InstancePaths) -> None:
    guest = host.guests[0]
    stops = []
    with host.traffic(flood=guest.name) as traffic:
        for _ in range(ROUNDS):
            with entered(paths, guest) as section:
                pass
            stops.append(section.stopped_s)
    print(f"QEMU was stopped for {min(stops) * 1000:.1f} to {max(stops) * 1000:.1f} ms")
    print(traffic.judgement.text())
    assert traffic.judgement.faults_beyond(30) == []
    assert messages(paths, guest)[-ROUNDS:] == ["GET_QUEUE_NUM"] * ROUNDS


def test_a_message_since_the_snapshot_keeps_the_section_closed(host: StockHost, paths: InstancePaths) -> None:
    guest = host.guests[1]
    snapshot = take(paths, guest.name, System())
    guest.qmp("set_link", name="net0", up=False)
    with pytest.raises(StateUnknown):
        take(paths, guest.name, System())
    guest.qmp("set_link", name="net0", up=True)
    with pytest.raises(StateUnknown), entered(paths, guest, snapshot):
        pytest.fail("the section was entered")
    wait_taken(paths, guest)
    with entered(paths, guest):
        pass


def test_a_guest_that_talks_all_the_time_is_not_harmed(host: StockHost, paths: InstancePaths) -> None:
    """QEMU sends some twenty messages each time its link is set. Whether an attempt succeeds depends on the moment."""
    guest, ended = host.guests[0], threading.Event()
    kept = log_everything(paths, [guest.name], System())

    def talk() -> None:
        while not ended.is_set():
            for up in (False, True):
                guest.qmp("set_link", name="net0", up=up)
                time.sleep(0.3 if up else 0.0)

    talker = threading.Thread(target=talk)
    talker.start()
    outcomes: list[str] = []
    try:
        end = time.monotonic() + 5.0
        while time.monotonic() < end:
            try:
                with entered(paths, guest):
                    outcomes.append("entered")
            except StateUnknown as error:
                outcomes.append(f"{type(error).__name__}: {error.message}")
    finally:
        ended.set()
        talker.join()
        log_as_before(paths, kept)
    print(*sorted(Counter(outcomes).items()), sep="\n")
    wait_taken(paths, guest)
    assert any(outcome != "entered" for outcome in outcomes)
    with host.traffic(flood=guest.name) as traffic:
        with entered(paths, guest):
            pass
        time.sleep(0.5)
    assert traffic.judgement.faults_beyond(30) == []


def test_a_log_that_is_rotated_is_read_in_both_files(host: StockHost, paths: InstancePaths) -> None:
    guest = host.guests[2]
    paths.log.rename(paths.log.with_name(f"{paths.log.name}.1"))
    host.appctl("vlog/reopen")
    assert wait_until(paths.log.exists, 5)
    with entered(paths, guest):
        pass


def test_a_log_with_gaps_is_refused_until_the_connection_is_made_again(host: StockHost, paths: InstancePaths) -> None:
    """This is the last test: after it the log has gaps for all guests."""
    guest = host.guests[0]
    for number in range(60):
        guest.qmp("set_link", name="net0", up=bool(number % 2))
    assert wait_until(lambda: "lacks lines" in refusal(paths, guest), 15), refusal(paths, guest)
    with pytest.raises(StateUnknown, match="lacks lines"):
        log_everything(paths, [each.name for each in host.guests], System())
    host.appctl("vlog/disable-rate-limit", "dpdk")
    host.vsctl("del-port", guest.name)
    host.add_port(guest)
    wait_taken(paths, guest)
    with entered(paths, guest):
        pass
