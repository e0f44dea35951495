"""The broker as `ovs-hotswap broker start` starts it where there is no systemd: below a supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.vhost.control import BrokerClient
from ovs_hotswap.vhost.service import replace_broker, start_broker, stop_broker
from tests.broker_process import BrokerProcess
from tests.vhost_device import SwitchSpec
from tests.vhost_qemu import FakeQemu, Traffic
from tests.vhost_rings import Ledger, overlaps
from tests.vhost_switch import SwitchProcess

PACKETS = 1 << 20
KILLS = 20


class Host:
    """A configuration with VM ``vm0``, whose broker the tests start; nothing of it is left in the end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.files = BrokerProcess(["vm0"])
        self.log = self.files.config.run_dir / "broker.log"
        self.config, self.path, self.system = self.files.config, self.files.config_path, System()
        stack.callback(self.files.remove)
        stack.callback(stop_broker, self.config, self.system)

    def start(self) -> int:
        return int(start_broker(self.config, self.system, self.path, 20.0)["pid"])

    def supervisor(self) -> int | None:
        return self.system.read_pid(self.config.run_dir / "supervisor.pid")

    def wait_other(self, before: int) -> int:
        """The broker after ``before`` was killed."""
        end = time.monotonic() + 20.0
        while time.monotonic() < end:
            with contextlib.suppress(BrokerError), BrokerClient(self.config.broker_socket) as client:
                if (pid := client.status()["pid"]) != before:
                    return int(pid)
            time.sleep(0.01)
        raise AssertionError(self.log.read_text())


def wait(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def host() -> Iterator[Host]:
    with contextlib.ExitStack() as stack:
        yield Host(stack)


class Guest:
    """VM ``vm0`` on side a, parked on side b, with both switches."""

    def __init__(self, host: Host) -> None:
        self.ledger = Ledger(1, PACKETS)
        host.stack.callback(self.ledger.close)
        self.client = host.stack.enter_context(BrokerClient(host.config.broker_socket))
        self.switches = [
            host.stack.enter_context(SwitchProcess(SwitchSpec(host.files.sockets(side)), self.ledger)) for side in Side
        ]
        wait(lambda: all(self.client.vm("vm0")["switches"][side]["connected"] for side in Side))
        self.vm = host.stack.enter_context(FakeQemu(host.files.qemu_path("vm0")))
        self.vm.boot()
        self.client.park("vm0", Side.B)
        self.kept()

    def kept(self) -> None:
        """Wait until the broker has nothing left to save."""
        wait(lambda: self.client.status()["unsaved"] == 0)

    def served(self) -> None:
        """Wait until a switch has taken something."""
        wait(lambda: any(span for switch in self.switches for span in switch.touches.spans()))

    def untouched_since(self, instant: int) -> None:
        """No switch was on the rings when QEMU saw its back end go, nor has been since."""
        spans = [span for switch in self.switches for span in switch.touches.spans()]
        assert spans
        assert max(span.end for span in spans) <= instant

    def ends_well(self, *, loses: bool = False) -> None:
        """``loses``: what was sent while nobody served the VM is lost, as QEMU takes it."""
        self.vm.drain()
        lost, doubled = self.ledger.lost_and_doubled(0, self.vm.next_packet)
        assert doubled == 0
        assert lost == 0 or loses
        assert overlaps(self.switches[0].touches, self.switches[1].touches) == []


def test_killed_again_and_again_no_vm_notices(host: Host) -> None:
    pid = host.start()
    (notify,) = host.config.run_dir.glob("*.notify")
    assert stat.S_IMODE(notify.stat().st_mode) == 0o600
    guest = Guest(host)
    with Traffic([guest.vm], PACKETS):
        for _ in range(KILLS):
            os.kill(pid, signal.SIGKILL)
            pid = host.wait_other(pid)
            guest.kept()
            assert guest.client.vm("vm0")["owner"] == "a"
    assert host.log.read_text().count("QEMU connected") == 1
    guest.ends_well()


def test_two_that_start_it_at_once_get_one(host: Host) -> None:
    def start(_: int) -> int | None:
        with contextlib.suppress(HotswapError):  # that another one is a moment ahead
            return host.start()
        return None

    with ThreadPoolExecutor(4) as pool:
        pids = {pid for pid in pool.map(start, range(4)) if pid is not None}
    assert pids == {host.start()}
    assert host.supervisor() is not None

    def running() -> int:
        return sum(str(host.path) in host.system.cmdline(pid) for pid in host.system.pids())

    wait(lambda: running() == 2)  # the broker and its supervisor


def test_a_successor_comes_with_its_own_supervisor(host: Host) -> None:
    pid = host.start()
    first = host.supervisor()
    guest = Guest(host)
    with Traffic([guest.vm], PACKETS):
        new = int(replace_broker(host.config, host.system, host.path, 20.0)["pid"])
        assert new != pid
        second = host.supervisor()
        assert second not in (None, first)
        wait(lambda: first is not None and not host.system.alive(first))
        guest.kept()
        os.kill(new, signal.SIGKILL)
        host.wait_other(new)
        assert host.supervisor() == second
    assert host.log.read_text().count("QEMU connected") == 1
    guest.ends_well()


def test_a_supervisor_that_dies_leaves_the_broker_at_work(host: Host) -> None:
    pid = host.start()
    guest = Guest(host)
    supervisor = host.supervisor()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    wait(lambda: not host.system.alive(supervisor))
    assert not guest.client.status()["supervised"]
    guest.client.move("vm0", Side.B)
    assert host.start() == pid
    assert replace_broker(host.config, host.system, host.path, 20.0)["supervised"]
    assert host.supervisor() is not None
    guest.ends_well()


def test_stopping_takes_the_rings_back_before_qemu_sees_it_go(host: Host) -> None:
    """QEMU would take the rings itself."""
    host.start()
    guest = Guest(host)
    with Traffic([guest.vm], PACKETS):
        guest.served()
        with ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(stop_broker, host.config, host.system)
            guest.vm.wait_hung_up()
            hung_up = time.monotonic_ns()
            assert stopped.result()
        assert host.supervisor() is None
    guest.untouched_since(hung_up)
    assert not host.config.broker_socket.exists()
    host.start()
    guest.vm.boot()
    wait(lambda: guest.client.vm("vm0")["certainty"] == "owns")
    guest.ends_well(loses=True)


def test_one_that_cannot_start_says_why(host: Host) -> None:
    host.config.overlay.write_text("nonsense")
    with pytest.raises(BrokerError, match=r"the broker ended: .*overlay"):
        host.start()
    assert host.supervisor() is None


def test_in_the_foreground_a_signal_takes_the_rings_back_too(host: Host) -> None:
    log = host.log.open("wb")
    with log, subprocess.Popen(
        [sys.executable, "-m", "ovs_hotswap", "--config", str(host.path), "broker", "run"],
        stderr=log, cwd=Path(__file__).parents[2],
    ) as broker:  # fmt: skip
        host.start()  # it runs, so it only waits
        guest = Guest(host)
        with Traffic([guest.vm], PACKETS):
            guest.served()
            broker.terminate()
            guest.vm.wait_hung_up()
            hung_up = time.monotonic_ns()
            assert broker.wait(20) == 0
    guest.untouched_since(hung_up)
    assert not host.config.broker_socket.exists()
