"""The VMs of a stock host are taken over under traffic, with the distribution's Open vSwitch as both switches.

Switch a has served the guests since they started, and nothing was prepared. OVS_HOTSWAP_ADOPT_ROUNDS: how often a
broker or a switch is killed while a VM is taken over (2).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ovs_hotswap.backends import AbsenceCause
from ovs_hotswap.broker.adopting import reconnect
from ovs_hotswap.errors import HotswapError, LabError
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until
from tests.support.adopt_lab import AdoptLab
from tests.support.stock_guest import GuestKind, StockGuest

KINDS = [GuestKind("hugetlb"), GuestKind("hugetlb", queues=4)]
ROUNDS = int(os.environ.get("OVS_HOTSWAP_ADOPT_ROUNDS", "2"))


@pytest.fixture(scope="module")
def lab() -> Iterator[AdoptLab]:
    with AdoptLab(KINDS, System()) as made:
        made.host.guests[1].run("/sbin/ethtool -L eth0 combined 4")
        yield made


def direct(lab: AdoptLab, name: str) -> bool:
    absent = lab.client.vm(name).absent
    return absent is not None and absent.cause is AbsenceCause.DIRECT


def has_enabled(lab: AdoptLab, name: str, rings: int) -> bool:
    return sum(ring.enabled for ring in lab.client.vm(name).rings) == rings


def is_parked(lab: AdoptLab, name: str) -> bool:
    return lab.client.vm(name).switches[Side.A].parked


def serves(lab: AdoptLab, guest: StockGuest) -> None:
    """The guest answers a flood from outside, and all its own pings are answered."""
    with lab.host.traffic(flood=guest.name, tcp=None) as traffic:
        time.sleep(0.5)
    assert not any(each.lost or each.doubled for each in traffic.judgement.streams), traffic.judgement.text()


def comes_back(lab: AdoptLab, guest: StockGuest) -> None:
    """All guests are served again after a break, which is not measured."""
    try:
        lab.host.pings.wait_flowing(15)
    except LabError as error:
        pytest.fail(f"{guest.name}: {error.message}\n{lab.client.vms()}\n{lab.log()[-3000:]}")


def give_back(lab: AdoptLab, name: str) -> None:
    """Give a VM back to switch a, and have the broker claim its socket again."""
    lab.wait_owner(name, Side.B)
    assert wait_until(partial(is_parked, lab, name), 10), lab.client.vm(name)
    lab.client.move(name, Side.A)
    lab.stop_b()
    lab.client.give_back(name)
    lab.client.reload()
    lab.start_b()


def test_vms_are_taken_over_under_traffic(lab: AdoptLab) -> None:
    """In wire mode the first switch's pipeline stays that of all VMs, wherever their rings are. What the
    flood lost is printed: frames that arrive while the first switch maps its memory again may be. The VMs are prepared
    for that before, and then one's QEMU tells its switch everything again."""
    guests, wire, stops, caught = lab.host.guests, lab.wire, list[float](), 0
    assert all(direct(lab, guest.name) for guest in guests)
    prepared = {guest.name: lab.prepare(guest.name) for guest in guests}
    for up in (False, True):
        guests[0].qmp("set_link", name="net0", up=up)
    comes_back(lab, guests[0])
    carrier = [guest.carrier_changes() for guest in guests]
    with lab.host.traffic() as traffic:
        wire.open(Side.A, lab.ports)
        wire.wire(Side.B)
        for guest in guests:
            adopted = lab.adopt(guest.name, prepared[guest.name])
            assert adopted.vm.confirmed_on(Side.B)
            assert adopted.attempts > 1 or guest is not guests[0]
            stops.append(adopted.stopped_s)
            caught += len(lab.client.undelivered(guest.name))
        time.sleep(0.5)
    print(f"QEMU stood still for {', '.join(f'{each * 1e3:.1f}' for each in stops)} ms")
    print(f"{caught} frames caught\n{traffic.judgement.text()}")
    assert traffic.judgement.connection is not None
    assert traffic.judgement.connection.intact
    assert [guest.carrier_changes() for guest in guests] == carrier


def test_everything_that_qemu_says_afterwards_comes_to_the_broker(lab: AdoptLab) -> None:
    first, many = lab.host.guests
    for pairs in (2, 4):
        many.run(f"/sbin/ethtool -L eth0 combined {pairs}")
        assert wait_until(partial(has_enabled, lab, many.name, 2 * pairs), 5)
    for guest in (first, many):
        serves(lab, guest)
        for up in (False, True):
            guest.qmp("set_link", name="net0", up=up)
        comes_back(lab, guest)
    lab.kill_broker()
    lab.wait_owner(first.name, Side.B)
    serves(lab, first)
    serves(lab, many)


def test_a_vm_is_given_back_and_taken_over_again(lab: AdoptLab) -> None:
    """The second time by a new connection, for the switch that serves it."""
    guest, wire = lab.host.guests[0], lab.wire
    for each in lab.host.guests:
        assert wait_until(partial(is_parked, lab, each.name), 10)
        lab.client.move(each.name, Side.A)
    wire.cut(Side.B)
    for side in Side:
        wire.close(side)
    lab.stop_b()
    begun = time.monotonic()
    lab.client.give_back(guest.name)
    comes_back(lab, guest)
    print(f"given back within {time.monotonic() - begun:.2f} s")
    assert [vm.name for vm in lab.client.vms()] == [lab.host.guests[1].name]
    assert guest.socket.is_socket()
    assert not guest.socket.with_name(f"{guest.socket.name}.qemu").exists()
    lab.client.reload()
    assert wait_until(partial(direct, lab, guest.name), 5)
    serves(lab, guest)
    assert reconnect(lab.client, guest.name, lab.paths(Side.A), Side.A, System()).confirmed_on(Side.A)
    comes_back(lab, guest)
    lab.client.give_back(guest.name)
    comes_back(lab, guest)
    lab.client.reload()
    lab.start_b()
    assert wait_until(partial(direct, lab, guest.name), 5)


def kill_while_stopped(guest: StockGuest, victim: Callable[[], int], delay_s: float) -> threading.Thread:
    """Kill a process ``delay_s`` after the guest's QEMU was stopped by a tracer."""
    status = Path(f"/proc/{guest.pid}/status")

    def work() -> None:
        end = time.monotonic() + 20
        while "TracerPid:\t0\n" in status.read_text() and time.monotonic() < end:
            time.sleep(0.0001)
        time.sleep(delay_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim(), signal.SIGKILL)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("victim", ["broker", "new switch"])
@pytest.mark.parametrize("number", range(ROUNDS))
def test_what_is_killed_while_a_vm_is_taken_over(lab: AdoptLab, victim: str, number: int) -> None:
    """The VM ends on one working switch, and the broker knows which."""
    guest = lab.host.guests[0]
    assert wait_until(lambda: lab.client.vm(guest.name).switches[Side.B].connected, 10)
    pid_file = lab.config.run_dir / "broker.pid" if victim == "broker" else lab.paths(Side.B).vswitchd_pid
    killer = kill_while_stopped(guest, lambda: int(pid_file.read_text().split()[0]), 0.002 * number)
    outcome = "taken over"
    try:
        lab.adopt(guest.name)
    except HotswapError as error:
        outcome = f"{type(error).__name__}: {error.message}"
    killer.join()
    print(f"{victim} killed {2 * number} ms after the stop: {outcome}")
    comes_back(lab, guest)
    if victim == "new switch":
        lab.start_b()
    known = lambda: direct(lab, guest.name) or lab.owner(guest.name) is not None  # noqa: E731
    assert wait_until(known, 15), f"{lab.client.vm(guest.name)}\n{lab.log()}"
    comes_back(lab, guest)
    if not direct(lab, guest.name):
        assert wait_until(lambda: all(lab.client.vm(guest.name).switches[side].connected for side in Side), 10)
        if lab.owner(guest.name) is Side.A:
            lab.client.park(guest.name, Side.B)
            lab.client.move(guest.name, Side.B)
        give_back(lab, guest.name)
        comes_back(lab, guest)
