"""A broker started as `ovs-hotswap broker start` starts it where there is no systemd, and a guest to lose."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.broker.lifecycle import start_broker, stop_broker
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from tests.support.broker_process import BrokerProcess
from tests.support.vhost_device import SwitchSpec
from tests.support.vhost_qemu import FakeQemu
from tests.support.vhost_rings import Ledger, overlaps
from tests.support.vhost_switch import SwitchProcess

PACKETS = 1 << 20  # more than any test sends


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
        return int(start_broker(self.config, self.system, self.path, 20.0).pid)

    def supervisor(self) -> int | None:
        return self.system.read_pid(self.config.run_dir / "supervisor.pid")

    def wait_other(self, before: int) -> int:
        """The broker after ``before`` was killed."""
        end = time.monotonic() + 20.0
        while time.monotonic() < end:
            with contextlib.suppress(BrokerError), BrokerClient(self.config.broker_socket) as client:
                if (pid := client.status().pid) != before:
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
        wait(lambda: all(self.client.vm("vm0").switches[side].connected for side in Side))
        self.vm = host.stack.enter_context(FakeQemu(host.files.qemu_path("vm0")))
        self.vm.boot()
        self.client.park("vm0", Side.B)
        self.kept()

    def kept(self) -> None:
        """Wait until the broker has nothing left to save."""
        wait(lambda: self.client.status().unsaved == 0)

    def served(self) -> None:
        """Wait until a switch has taken something."""
        wait(lambda: any(span for switch in self.switches for span in switch.touches.spans()))

    def untouched_since(self, instant: int) -> None:
        """No switch was on the rings when QEMU saw its back end go, nor has been since."""
        spans = [span for switch in self.switches for span in switch.touches.spans()]
        assert spans
        assert max(span.end for span in spans) <= instant

    def ends_well(self, *, loses: bool = False) -> None:
        """Check the end of a test. ``loses``: frames sent while no switch served the VM are lost, as QEMU took them."""
        self.vm.drain()
        lost, doubled = self.ledger.lost_and_doubled(0, self.vm.next_packet)
        assert doubled == 0
        assert lost == 0 or loses
        assert overlaps(self.switches[0].touches, self.switches[1].touches) == []
