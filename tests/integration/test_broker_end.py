"""A broker ends, or a VM leaves it, while the VM's switch does not answer: QEMU, which takes the rings of a back end
that is gone, must not see it go before the switch is off them."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ovs_hotswap.broker.lifecycle import stop_broker
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.host.host import Host as HotswapHost
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from tests.support.broker_bed import PACKETS, Bed, MakeBed
from tests.support.service_bed import Guest, Host, wait
from tests.support.vhost_qemu import FakeQemu, Traffic
from tests.support.vhost_switch import SwitchProcess
from tests.support.waiting import eventually


def hung_up_at(vm: FakeQemu) -> int:
    vm.wait_hung_up(20.0)
    return time.monotonic_ns()


@pytest.mark.parametrize("all_of_it", [True, False])
def test_stop_is_refused_while_a_switch_does_not_let_go(host: Host, all_of_it: bool) -> None:
    """It stands still, or only its thread for messages does."""
    pid = host.start()
    guest = Guest(host)
    active = guest.switches[0]
    if all_of_it:
        active.stop()
    else:
        active.deafen(deaf=True)
    with pytest.raises(BrokerError, match=rf"VM vm0: switch a .process {active.pid}") as refused:
        stop_broker(host.config, host.system)
    assert "ovs-hotswap instance stop a --force" in str(refused.value.hint)
    assert not guest.vm.hung_up
    assert guest.client.status().pid == pid
    assert guest.vm.send(16) == 16
    if all_of_it:
        active.go_on()
    else:
        active.deafen(deaf=False)
    wait(lambda: guest.client.vm("vm0").certainty == "owns")
    guest.ends_well()
    assert stop_broker(host.config, host.system)
    guest.untouched_since(hung_up_at(guest.vm))


def test_stop_goes_on_when_the_switch_was_ended(host: Host) -> None:
    host.start()
    guest = Guest(host)
    guest.switches[0].stop()
    with pytest.raises(BrokerError, match="vm0"):
        stop_broker(host.config, host.system)
    guest.switches[0].kill()
    wait(lambda: guest.client.vm("vm0").owner == "b")
    assert stop_broker(host.config, host.system)
    assert guest.vm.hung_up
    assert host.supervisor() is None


def test_stop_is_refused_while_the_broker_does_not_answer(host: Host) -> None:
    pid = host.start()
    guest = Guest(host)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(BrokerError, match="the broker keeps running") as refused:
        stop_broker(host.config, host.system)
    assert f"kill -KILL {pid}" in str(refused.value.hint)
    assert not guest.vm.hung_up
    os.kill(pid, signal.SIGKILL)
    host.wait_other(pid)
    guest.ends_well()


def test_a_signal_ends_the_switch_that_does_not_let_go(host: Host) -> None:
    """At that time no caller can be refused."""
    host.start()
    guest = Guest(host)
    active, other = guest.switches
    supervisor = host.supervisor()
    assert supervisor is not None
    with Traffic([guest.vm], PACKETS):
        guest.served()
        active.deafen(deaf=True)
        os.kill(supervisor, signal.SIGTERM)
        hung_up = hung_up_at(guest.vm)
        assert not host.system.has_memory(active.pid)
        wait(lambda: host.supervisor() is None)
    guest.untouched_since(hung_up)
    assert host.system.alive(other.pid)  # it was parked


def test_a_supervisor_that_ends_while_there_is_no_broker(host: Host) -> None:
    """The broker that takes the rings back is started for that."""
    pid = host.start()
    guest = Guest(host)
    supervisor = host.supervisor()
    assert supervisor is not None
    with Traffic([guest.vm], PACKETS):
        guest.served()
        for process, number in ((supervisor, signal.SIGSTOP), (pid, signal.SIGKILL), (supervisor, signal.SIGTERM)):
            os.kill(process, number)
        guest.switches[0].deafen(deaf=True)
        with ThreadPoolExecutor(1) as pool:
            hung_up = pool.submit(hung_up_at, guest.vm)
            os.kill(supervisor, signal.SIGCONT)
            wait(lambda: host.log.read_text().count("serves 1 VMs") == 2)
            guest.switches[0].deafen(deaf=False)
            instant = hung_up.result()
        wait(lambda: host.supervisor() is None)
    guest.untouched_since(instant)


# -- a VM that is not in the overlay intent any more


def untouched_since(bed: Bed, instant: int) -> bool:
    spans = [span for switch in bed.switches for span in switch.touches.spans()]
    assert spans
    return max(span.end for span in spans) <= instant


def two_served(bed: Bed) -> tuple[SwitchProcess, FakeQemu, FakeQemu]:
    """The switch, and vm0 and vm1 that it serves."""
    active = bed.switch(Side.A)
    vms = bed.qemu("vm0"), bed.qemu("vm1")
    for name in ("vm0", "vm1"):
        bed.wait_owner(Side.A, name)
    return active, *vms


def test_a_vm_that_leaves_is_kept_until_its_switch_lets_go(make_bed: MakeBed) -> None:
    bed = make_bed(2)
    active, leaving, staying = two_served(bed)
    with Traffic([leaving], PACKETS):
        bed.wait(lambda: any(active.touches.spans()), "served")
        active.deafen(deaf=True)
        bed.broker.write(["vm1", "vm2"])
        with pytest.raises(BrokerError, match=rf"VM vm0: switch a .process {active.pid}"):
            HotswapHost(bed.broker.config, System()).follow_intent([Side.A], untried=True)  # before it asks an instance
        assert [vm.name for vm in bed.client.vms()] == ["vm0", "vm1", "vm2"]
        assert f"switch a (process {active.pid})" in str(bed.client.vm("vm0").last_error)
        program = [sys.executable, "-m", "ovs_hotswap", "--config", str(bed.broker.config_path), "broker"]
        assert System().run([*program, "reload"], check=False).status == BrokerError.exit_code
        assert f"VM vm0: switch a (process {active.pid})" in System().run([*program, "status"]).stdout
        assert not leaving.hung_up
        active.deafen(deaf=False)
        instant = hung_up_at(leaving)
    bed.wait(lambda: [vm.name for vm in bed.client.vms()] == ["vm1", "vm2"], "it has left")
    assert not bed.broker.config.vhost_socket(Side.A, "vm0").exists()
    spans = [span for span in active.touches.spans() if span.vm == 0]
    assert max(span.end for span in spans) <= instant
    bed.ends_well((1, staying))


def test_a_vm_that_comes_back_before_it_could_leave_is_served_on(make_bed: MakeBed) -> None:
    bed = make_bed()
    vm = bed.running()
    bed.switches[0].stop()
    bed.broker.write(["vm1"])
    assert [text.partition(":")[0] for text in bed.client.reload()] == ["vm0"]
    bed.broker.write(["vm0", "vm1"])
    assert bed.client.reload() == []
    bed.switches[0].go_on()
    bed.wait_owner(Side.A)
    bed.ends_well((0, vm))


def test_a_vm_that_has_ended_leaves_at_once(make_bed: MakeBed) -> None:
    """Its switch was hung up on, and is not known to be off the rings before it connects again."""
    bed = make_bed()
    vm = bed.running()
    vm.quit()
    bed.broker.write([])
    assert bed.client.reload() == []
    assert bed.client.vms() == []


def test_a_vm_leaves_when_its_switch_died(make_bed: MakeBed) -> None:
    bed = make_bed()
    vm = bed.running()
    bed.switches[0].stop()
    bed.broker.write([])
    assert [text.partition(":")[0] for text in bed.client.reload()] == ["vm0"]
    bed.switches[0].kill()
    vm.wait_hung_up()
    bed.wait(lambda: bed.client.vms() == [], "it has left")
    assert list(bed.switches[1].touches.spans()) == []


def test_a_vm_leaves_while_a_successor_waits_for_it(make_bed: MakeBed) -> None:
    bed = make_bed(2)
    active, leaving, staying = two_served(bed)
    active.deafen(deaf=True)
    bed.broker.write(["vm1"])
    assert [text.partition(":")[0] for text in bed.client.reload()] == ["vm0"]
    with ThreadPoolExecutor(1) as pool:
        succeeded = pool.submit(bed.broker.succeed)
        eventually(bed.broker.successor_waits, "a successor")
        active.deafen(deaf=False)
        succeeded.result()
    leaving.wait_hung_up()
    bed.wait(lambda: [vm.name for vm in bed.client.vms()] == ["vm1"], "it has left")
    bed.ends_well((1, staying))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_vm_that_was_removed_while_there_was_no_broker(make_bed: MakeBed, number: signal.Signals) -> None:
    bed = make_bed(managed=True)
    vm = bed.running()
    active = bed.switches[0]
    bed.wait(lambda: bed.client.status().unsaved == 0, "kept")
    with Traffic([vm], PACKETS):
        bed.wait(lambda: any(active.touches.spans()), "served")
        active.deafen(deaf=True)
        bed.broker.write([])
        bed.broker.restart(number)
        bed.wait(lambda: "switch a" in (bed.client.vm("vm0").last_error or ""), "it is kept")
        assert not vm.hung_up
        active.deafen(deaf=False)
        instant = hung_up_at(vm)
    assert untouched_since(bed, instant)
    bed.wait(lambda: bed.broker.stored() == 0, "its slot is gone")
