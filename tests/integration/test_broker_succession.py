"""A broker is replaced by another process under running VMs, and no VM notices."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
from collections.abc import Callable

import pytest

from ovs_hotswap.broker.persist import takeover
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Request
from tests.support.broker_bed import PACKETS, MakeBed
from tests.support.vhost_qemu import Traffic

TIMES = 20


def test_twenty_successions_lose_nothing(make_bed: MakeBed) -> None:
    bed = make_bed()
    vm = bed.running()
    before = [bed.client.vm("vm0").switches[side].pid for side in Side]
    usual = bed.broker.descriptors()
    with Traffic([vm], PACKETS):
        for number in range(TIMES):
            bed.broker.succeed()
            bed.wait_descriptors(usual)
            found = bed.client.vm("vm0")
            assert (found.owner, found.certainty) == ("a" if number % 2 == 0 else "b", "owns")
            assert [found.switches[side].pid for side in Side] == before
            bed.client.move("vm0", Side.B if number % 2 == 0 else Side.A)
            bed.client.undelivered("vm0")
    bed.ends_well((0, vm))


def test_no_connection_is_closed(make_bed: MakeBed) -> None:
    bed = make_bed()
    vm = bed.running()
    bed.broker.succeed()
    text = bed.broker.log.read_text()
    assert text.count("QEMU connected") == 1
    assert text.count("switch a connected") == text.count("switch b connected") == 1
    bed.ends_well((0, vm))


def test_a_guest_reboots_after_a_succession(make_bed: MakeBed) -> None:
    bed = make_bed()
    vm = bed.running()
    bed.broker.succeed()
    vm.reboot()
    bed.wait(lambda: bool(bed.client.vm("vm0").switches[Side.B].parked), "parked again")
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_the_successor_knows_who_must_not_be_trusted(make_bed: MakeBed) -> None:
    """The owner's connection closed while its process lives: the next broker does not give the rings to the other side
    either."""
    bed = make_bed()
    a = bed.switch(Side.A, reconnect_s=3600)
    bed.switch(Side.B)
    vm = bed.qemu()
    bed.wait_owner(Side.A)
    bed.client.park("vm0", Side.B)
    a.hang_up(0)
    bed.wait(lambda: bed.client.vm("vm0").certainty == "cut", "cut")
    bed.broker.succeed()
    found = bed.client.vm("vm0")
    assert (found.owner, found.certainty) == ("a", "cut")
    a.kill()
    bed.wait_owner(Side.B)
    bed.ends_well((0, vm), doubled=1)


def test_a_successor_without_its_group_leaves_the_old_broker_at_work(make_bed: MakeBed) -> None:
    bed = make_bed()
    vm = bed.running()
    pid = bed.broker.pid
    bed.broker.write(bed.broker.names, 'group = "no-such-group"\n')
    assert "no group 'no-such-group'" in bed.broker.try_to_succeed()
    assert bed.client.status().pid == pid == bed.broker.pid
    assert not vm.hung_up
    bed.broker.write(bed.broker.names)
    bed.broker.succeed()
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_kept_vms_are_served_whatever_has_become_of_the_group(make_bed: MakeBed) -> None:
    bed = make_bed(managed=True)
    vm = bed.running()
    bed.wait(lambda: bed.client.status().unsaved == 0, "kept")
    bed.broker.write(bed.broker.names, 'group = "no-such-group"\n')
    bed.broker.restart(signal.SIGKILL)
    assert not vm.hung_up
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_a_pid_file_that_cannot_be_written_costs_no_vm_its_network(make_bed: MakeBed) -> None:
    """What cannot be done after the old broker has given up its VMs is reported, and the VMs are still served."""
    bed = make_bed()
    vm = bed.running()
    pid_file = bed.broker.config.run_dir / "broker.pid"
    pid_file.unlink()
    pid_file.mkdir()
    (pid_file / "x").touch()
    before = bed.client.status().pid
    bed.broker.succeed()
    assert bed.client.status().pid != before
    assert not vm.hung_up
    shutil.rmtree(pid_file)
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_half_a_message_of_one_vm_is_handed_over(make_bed: MakeBed) -> None:
    bed = make_bed(vms=2)
    bed.switch(Side.A)
    bed.switch(Side.B)
    good, slow = bed.qemu("vm0"), bed.qemu("vm1")
    for name in ("vm0", "vm1"):
        bed.wait_owner(Side.A, name)
    table = messages.build(Request.SET_MEM_TABLE, slow.memory_table())
    slow.say(table[:20], [slow.memory.fd] * slow.regions)
    bed.broker.succeed()
    slow.say(table[20:])
    slow.reboot()
    assert not good.hung_up
    assert bed.broker.log.read_text().count("QEMU connected") == 2
    bed.ends_well((0, good), (1, slow))


def test_a_switch_that_owes_an_answer_is_handed_over(make_bed: MakeBed) -> None:
    bed = make_bed()
    vm = bed.running()
    b = bed.switches[1]
    b.stop()
    bed.client.unpark("vm0", Side.B)
    bed.broker.succeed()
    assert bed.owner() is Side.A
    b.go_on()
    bed.client.park("vm0", Side.B)
    bed.client.move("vm0", Side.B)
    assert bed.broker.log.read_text().count("QEMU connected") == 1
    bed.ends_well((0, vm))


def test_a_vm_whose_qemu_waits_for_a_switch_starts_over_alone(make_bed: MakeBed) -> None:
    bed = make_bed(vms=2)
    a = bed.switch(Side.A)
    good, stuck = bed.qemu("vm0"), bed.qemu("vm1")
    for name in ("vm0", "vm1"):
        bed.wait_owner(Side.A, name)
    a.stop()
    request = Request.GET_VRING_BASE
    stuck.say(messages.build_ring_value(request, 0, 0))
    bed.wait(lambda: not bed.client.vm("vm1").rings[0].started, "the question")
    bed.broker.succeed()
    assert (good.hung_up, stuck.hung_up) == (False, False)  # a may be on its rings
    a.go_on()
    stuck.wait_hung_up()
    stuck.boot()
    bed.wait_owner(Side.A, "vm1")
    bed.wait_owner(Side.A, "vm0")
    assert not good.hung_up
    bed.ends_well((0, good), (1, stuck))


def hang_up(connection: socket.socket) -> None:
    connection.close()


def say_nonsense(connection: socket.socket) -> None:
    connection.sendall(b"X")


def read_and_leave(connection: socket.socket) -> None:
    length, _ = struct.unpack("<QI", connection.recv(12))
    assert length > 0
    connection.close()


@pytest.mark.parametrize("act", [hang_up, say_nonsense, read_and_leave])
def test_a_successor_that_fails_leaves_the_old_broker_at_work(
    make_bed: MakeBed, act: Callable[[socket.socket], None]
) -> None:
    bed = make_bed()
    vm = bed.running()
    pid = bed.broker.pid
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(bed.broker.config.successor_socket))
        act(connection)
        bed.wait(lambda: "could not take over" in bed.broker.log.read_text(), "refusal", 10.0)
    assert bed.client.status().pid == pid
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_a_silent_successor_is_not_waited_for_long(make_bed: MakeBed) -> None:
    bed = make_bed()
    vm = bed.running()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(bed.broker.config.successor_socket))
        bed.wait(lambda: "could not take over" in bed.broker.log.read_text(), "refusal", takeover.TIMEOUT_S + 10.0)
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_a_successor_that_reads_no_format_of_the_old_broker_is_refused(make_bed: MakeBed) -> None:
    """The error names both versions and the way out, and the old broker keeps working."""
    bed = make_bed()
    vm = bed.running()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.bind(b"\0ovs-hotswap-successor/9.0.0/8,9/" + os.urandom(8).hex().encode())
        connection.connect(str(bed.broker.config.successor_socket))
        with pytest.raises(BrokerError, match=r"broker 9\.0\.0 \(formats 8 and 9\): no format in common") as refused:
            takeover._receive(connection)
    assert "version between the two" in str(refused.value.hint)
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))
