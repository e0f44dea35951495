"""A broker that starts while a switch of an earlier broker's time may still be on the rings."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from ovs_hotswap.switch.paths import InstancePaths
from tests.support.broker_process import BrokerProcess
from tests.support.vhost_device import SwitchSpec
from tests.support.vhost_qemu import FakeQemu
from tests.support.vhost_rings import Ledger
from tests.support.vhost_switch import SwitchProcess
from tests.support.waiting import eventually


@pytest.fixture
def left_behind() -> Iterator[tuple[BrokerProcess, subprocess.Popen[bytes]]]:
    """What a broker that was killed leaves: its VM's sockets, and side b's switch, which lives and stays silent."""
    broker = BrokerProcess(["vm0"], home=Side.A)
    pid_file = InstancePaths.of(broker.config, Side.B).vswitchd_pid
    silent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", f"--pidfile={pid_file}"])
    try:
        pid_file.parent.mkdir(parents=True)
        pid_file.write_text(f"{silent.pid}\n")
        for side in Side:
            socket = broker.config.vhost_socket(side, "vm0")
            socket.parent.mkdir(parents=True)
            socket.touch()
        yield broker, silent
    finally:
        silent.kill()
        silent.wait()


def wait_connected(broker: BrokerProcess) -> None:
    with broker.client() as client:
        eventually(lambda: client.vm("vm0").switches[Side.A].connected, "switch a is connected")


def test_nobody_is_given_rings_that_a_silent_switch_may_hold(
    left_behind: tuple[BrokerProcess, subprocess.Popen[bytes]],
) -> None:
    broker, silent = left_behind
    with contextlib.ExitStack() as stack:
        ledger = Ledger(1, 1024)
        stack.callback(ledger.close)
        stack.enter_context(broker)
        stack.enter_context(SwitchProcess(SwitchSpec(broker.sockets(Side.A)), ledger))
        client = stack.enter_context(broker.client())
        wait_connected(broker)
        qemu = stack.enter_context(FakeQemu(broker.qemu_path("vm0")))
        qemu.boot()
        vm = client.vm("vm0")
        assert (vm.owner, vm.certainty) == (None, "nobody")
        client.park("vm0", Side.A)
        with pytest.raises(BrokerError, match="vm0 cannot move to a: switch b may still use the rings"):
            client.move("vm0", Side.A)
        vm = client.vm("vm0")
        assert (vm.owner, vm.certainty) == (None, "nobody")
        silent.kill()
        silent.wait()
        eventually(lambda: client.vm("vm0").owner == "a", "switch a owns the VM")
        assert qemu.send(8) == 8
        qemu.drain()
        assert ledger.lost_and_doubled(0, qemu.next_packet) == (0, 0)


def test_a_vm_that_no_broker_served_before_waits_for_nobody(
    left_behind: tuple[BrokerProcess, subprocess.Popen[bytes]],
) -> None:
    broker, _ = left_behind
    for side in Side:
        broker.config.vhost_socket(side, "vm0").unlink()
    with contextlib.ExitStack() as stack:
        ledger = Ledger(1, 1024)
        stack.callback(ledger.close)
        stack.enter_context(broker)
        stack.enter_context(SwitchProcess(SwitchSpec(broker.sockets(Side.A)), ledger))
        client = stack.enter_context(broker.client())
        wait_connected(broker)
        stack.enter_context(FakeQemu(broker.qemu_path("vm0"))).boot()
        assert client.vm("vm0").owner == "a"
