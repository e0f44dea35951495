"""The broker's control socket, and its list of VMs."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat

import pytest

from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.broker.daemon import serve
from ovs_hotswap.errors import BrokerError, BusyError, HotswapError
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from tests.support.broker_bed import Bed, MakeBed
from tests.support.broker_process import BrokerProcess


def raw(bed: Bed, data: bytes) -> list[dict[str, object]]:
    """Send bytes to the control socket and return the answers up to its end or 1 s of silence."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(bed.broker.config.broker_socket))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as lines:
            return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\n", "not a request"),
        (b"{\n", "not a request"),
        (b"[1]\n", "not a request"),
        (b'"move"\n', "not a request"),
        (b"\xff\xfe\n", "not a request"),
        (b"[" * 100_000 + b"\n", "not a request"),
        (b'{"method": 7}\n', "method must be a string"),
        (b'{"method": "vms", "params": []}\n', "params an object"),
        (b'{"method": "fly"}\n', "no method 'fly'"),
        (b'{"method": "__class__"}\n', "no method"),
        (b'{"method": "move", "params": {"vm": "vm0"}}\n', "move: missing"),
        (b'{"method": "vms", "params": {"x": 1}}\n', "vms: got an unexpected"),
        (b'{"method": "vm", "params": {"vm": "nobody"}}\n', "no VM 'nobody'"),
        (b'{"method": "vm", "params": {"vm": {"a": [1]}}}\n', "no VM"),
        (b'{"method": "move", "params": {"vm": "vm0", "to": "c"}}\n', "no side 'c'"),
        (b'{"method": "park", "params": {"vm": "vm0", "side": ["a"]}}\n', "no side"),
        (b'{"method": "park_many", "params": {"vms": "vm0", "side": "b"}}\n', "not a list of names"),
        (b'{"method": "park_many", "params": {"vms": ["vm0"], "side": "c"}}\n', "no side 'c'"),
        (b'{"method": "undelivered_many", "params": {"vms": [["vm0"]]}}\n', "not a list of names"),
        (b'{"method": "move", "params": {"vm": "vm0", "to": "b"}}\n', "switch b is not connected"),
    ],
)
def test_control_socket_answers_bad_requests(make_bed: MakeBed, line: bytes, message: str) -> None:
    bed = make_bed()
    answers = raw(bed, line + b'{"method": "status"}\n')
    error = answers[0]["error"]
    assert isinstance(error, dict)
    assert error["class"] == "BrokerError"
    assert message in str(error["message"])
    assert len(answers) == 2
    assert "result" in answers[1]


def test_a_request_for_many_vms_answers_for_each(make_bed: MakeBed) -> None:
    bed = make_bed(vms=3)
    bed.running()
    names = ["vm0", "vm9", "vm1", "vm0"]
    found = bed.client.call("park_many", vms=names, side=Side.B)
    assert (found["parked"], list(found["errors"]), found["late"]) == (["vm0", "vm1"], ["vm9"], {})
    assert list(bed.client.park_many(names, Side.B)) == ["vm9"]
    assert [each.vm for each in bed.client.undelivered_many(names) if each.error is not None] == ["vm9"]
    bed.switches[1].stop()
    bed.client.unpark("vm0", Side.B)
    late = bed.client.call("park_many", vms=["vm0", "vm1"], side=Side.B)
    assert (late["parked"], late["errors"]) == (["vm1"], {})
    assert "it has not answered yet after 5 s" in late["late"]["vm0"]["message"]
    bed.switches[1].go_on()
    assert bed.client.park_many(["vm0"], Side.B) == {}


def test_control_socket_serves_two_clients_at_once(make_bed: MakeBed) -> None:
    bed = make_bed()
    with bed.broker.client() as other:
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        waiting.connect(str(bed.broker.config.broker_socket))
        waiting.sendall(b'{"method": "stat')
        assert other.status().vms == 1
        assert bed.client.status().pid == bed.broker.pid
        waiting.sendall(b'us"}\n')
        assert json.loads(waiting.makefile("rb").readline())["result"]["vms"] == 1
        waiting.close()


def test_control_socket_mode(make_bed: MakeBed) -> None:
    bed = make_bed()
    assert stat.S_IMODE(bed.broker.config.broker_socket.stat().st_mode) == 0o660
    for path in bed.broker.sockets(Side.A):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_nothing_is_moved_for_a_caller_who_has_given_up(make_bed: MakeBed) -> None:
    """He may be about to move VMs back."""
    bed = make_bed()
    bed.running()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(bed.broker.config.broker_socket))
        bed.client.status()  # he has been taken in
        bed.broker.signal(signal.SIGSTOP)
        sock.sendall(b'{"method": "move_many", "params": {"vms": ["vm0"], "to": "b"}}\n')
    bed.broker.signal(signal.SIGCONT)
    bed.wait(lambda: "move_many" in bed.broker.log.read_text(), "the request is read")
    assert bed.owner() is Side.A
    assert bed.client.vm("vm0").moves == 0


def test_second_broker_is_refused(make_bed: MakeBed) -> None:
    bed = make_bed()
    with pytest.raises(BusyError, match=str(bed.broker.pid)):
        serve(bed.broker.config, System())
    assert bed.client.status().pid == bed.broker.pid
    assert int((bed.broker.config.run_dir / "broker.pid").read_text().split()[0]) == bed.broker.pid


@pytest.mark.parametrize("how", ["sighup", "method"])
def test_vms_are_added_and_removed_by_reload(make_bed: MakeBed, how: str) -> None:
    bed = make_bed(2)

    def reload() -> None:
        if how == "method":
            bed.client.call("reload")
        else:
            bed.broker.signal(signal.SIGHUP)

    def names() -> list[str]:
        return [vm.name for vm in bed.client.vms()]

    bed.switch(Side.A)
    kept, leaving = bed.qemu("vm0"), bed.qemu("vm1")
    bed.wait_owner(Side.A, "vm1")
    bed.broker.write(["vm0", "vm2"])
    reload()
    bed.wait(lambda: names() == ["vm0", "vm2"], "reload")
    leaving.wait_hung_up()
    assert not bed.broker.config.vhost_socket(Side.A, "vm1").exists()
    newcomer = bed.one_port(str(bed.broker.config.vhost_socket(Side.A, "vm2")))
    vm2 = bed.qemu("vm2")
    bed.wait_owner(Side.A, "vm2")
    vm2.send(10)
    vm2.drain()
    (bed.broker.directory / "overlay.toml").write_text("[[vm]]\n")
    if how == "method":
        with pytest.raises(HotswapError):
            reload()
    else:
        reload()
    assert names() == ["vm0", "vm2"]
    assert newcomer.pid
    assert not kept.hung_up
    assert kept.send(10) == 10
    kept.drain()


def test_more_vms_than_the_soft_limit_of_descriptors_allows() -> None:
    """Three sockets a VM already need more than the 1024 descriptors that a daemon is started with."""
    with BrokerProcess([f"vm{k}" for k in range(600)], descriptor_limit=1024) as broker, broker.client() as client:
        assert client.status().vms == 600


def test_client_error_when_no_broker_runs(make_bed: MakeBed) -> None:
    bed = make_bed()
    with (
        BrokerClient(bed.broker.directory / "nowhere.sock") as client,
        pytest.raises(BrokerError, match=r"broker at .*nowhere") as caught,
    ):
        client.status()
    assert caught.value.hint is not None


@pytest.mark.parametrize("guest", ["comes later", "cannot be parked"])
def test_a_vm_that_nobody_serves_belongs_to_the_side_that_is_active_by_now(make_bed: MakeBed, guest: str) -> None:
    bed = make_bed(vms=2)
    a = bed.switch(Side.A)
    bed.switch(Side.B)
    for name in ("vm0", "vm1"):
        bed.wait(lambda name=name: bed.connected(Side.B, name), "switch b")  # type: ignore[misc]
    if guest == "cannot be parked":
        bed.qemu("vm1", regions=8)
        bed.wait_owner(Side.A, "vm1")
    a.kill()
    bed.wait(lambda: not bed.connected(Side.A, "vm1"), "the end of switch a")
    bed.broker.config.active_file.write_text("b\n")
    bed.client.reload()
    if guest == "comes later":
        bed.qemu("vm1")
    bed.wait_owner(Side.B, "vm1")
