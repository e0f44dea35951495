"""What QEMU's monitor is asked, and above all what it is never asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.adopt.qmp_facts import (
    DeviceFact,
    MonitorPlace,
    SocketMonitor,
    VirshMonitor,
    device_at,
    find_monitor,
    queues,
    why_not_running,
)
from ovs_hotswap.errors import BrokerError, CommandError, StateUnknown
from ovs_hotswap.qemu.monitor import Refused
from ovs_hotswap.system import Completed, System

SOCKET = Path("/run/vm/vm1.sock")
DEVICE = DeviceFact("/machine/peripheral/net0/virtio-backend", "hostnet0", "52:54:00:00:00:01", None)
NETWORK = (
    "net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01\r\n"
    " \\ hostnet0: index=0,type=vhost-user,vhost-user0 to charnet0\r\n"
    "net0: index=1,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01\r\n"
    " \\ hostnet0: index=1,type=vhost-user,vhost-user1 to charnet0\r\n"
    "net1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:02\r\n"
    " \\ hostnet1: index=0,type=vhost-user,vhost-user0 to charnet1\r\n"
)


class Qemu:
    """A monitor of QEMU 7.2 with two NICs, of which it serves the rings 0 and 1 of the first by ``vhost-``."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.network = NETWORK
        self.netdevs = {"net0": "hostnet0", "net1": "hostnet1"}
        self.mtu = 0
        self.known_rings: tuple[int, ...] = (0, 1)
        self.not_known = "Invalid vhost virtqueue number"
        self.status: dict[str, Any] = {"vhost-started": True, "broken": False, "vhost-dev": {"log-enabled": False}}

    def ask(self, command: str, **arguments: object) -> Any:
        self.asked.append((command, arguments))
        answer = getattr(self, command.replace("-", "_"))
        return answer(**{key.replace("-", "_"): value for key, value in arguments.items()})

    def query_chardev(self) -> Any:
        return [
            {"label": "charnet0", "frontend-open": True, "filename": f"unix:{SOCKET},server=on"},
            {"label": "charnet1", "frontend-open": True, "filename": f"disconnected:unix:{SOCKET}0,server=on"},
            {"label": "charserial0", "frontend-open": True, "filename": "file"},
        ]

    def human_monitor_command(self, command_line: str) -> Any:
        assert command_line == "info network"
        return self.network

    def x_query_virtio(self) -> Any:
        return [
            {"path": f"/machine/peripheral/{name}/virtio-backend", "name": "virtio-net"} for name in self.netdevs
        ] + [{"path": "/machine/peripheral-anon/device[0]/virtio-backend", "name": "virtio-serial"}]

    def qom_get(self, path: str, property: str) -> Any:
        name = path.split("/")[3]
        return {"netdev": self.netdevs[name], "mac": f"52:54:00:00:00:0{name[-1]}", "host_mtu": self.mtu}[property]

    def x_query_virtio_status(self, path: str) -> Any:
        return self.status

    def x_query_virtio_vhost_queue_status(self, path: str, queue: int) -> Any:
        if queue not in self.known_rings:
            raise Refused(f"{self.not_known} {queue}")
        at = 0x7F0000000000 + 0x10000 * queue
        return {"num": 256, "desc": at, "avail": at + 0x1000, "used": at + 0x2000, "desc-phys": 0x10000 * queue}

    def x_query_virtio_queue_status(self, path: str, queue: int) -> Any:
        at = 0x10000 * queue
        return {"vring-num": 256, "vring-desc": at, "vring-avail": at + 0x1000, "vring-used": at + 0x2000}

    def stopping(self) -> list[object]:
        """The rings that were asked about by the command that stops a ring of the first pair."""
        return [arguments["queue"] for command, arguments in self.asked if command == "x-query-virtio-queue-status"]


def test_the_device_behind_a_socket_is_found_among_several() -> None:
    assert device_at(Qemu(), SOCKET) == DeviceFact(DEVICE.path, "hostnet0", "52:54:00:00:00:00", None)


def test_a_device_with_an_mtu_has_it() -> None:
    qemu = Qemu()
    qemu.mtu = 1400
    assert device_at(qemu, SOCKET).mtu == 1400


def test_a_socket_of_no_device_is_refused() -> None:
    with pytest.raises(StateUnknown, match="0 vhost-user netdevs"):
        device_at(Qemu(), Path("/run/vm/vm2.sock"))


def test_a_netdev_without_a_device_is_refused() -> None:
    qemu = Qemu()
    qemu.netdevs = {"net1": "hostnet1"}
    with pytest.raises(StateUnknown, match="0 network devices"):
        device_at(qemu, SOCKET)


def test_a_text_that_cannot_be_read_is_refused() -> None:
    qemu = Qemu()
    qemu.network = "no network here"
    with pytest.raises(StateUnknown, match="netdevs"):
        device_at(qemu, SOCKET)


def test_an_older_qemu_that_does_not_describe_its_devices_is_named() -> None:
    class Older(Qemu):
        def x_query_virtio(self) -> Any:
            raise Refused("The command x-query-virtio has not been found")

    with pytest.raises(StateUnknown, match="does not describe") as caught:
        device_at(Older(), SOCKET)
    assert "7.2" in (caught.value.hint or "")


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_first_pair_is_never_asked_about_by_the_command_that_stops_it(count: int) -> None:
    qemu = Qemu()
    found = queues(qemu, DEVICE, count)
    assert qemu.stopping() == list(range(2, count))
    assert [queue.translated for queue in found] == [index < 2 for index in range(count)]
    assert [queue.size for queue in found] == [256] * count


def test_the_first_pair_is_not_asked_about_otherwise_even_if_it_is_not_known() -> None:
    qemu = Qemu()
    qemu.known_rings = ()
    with pytest.raises(StateUnknown, match="ring 0"):
        queues(qemu, DEVICE, 8)
    assert qemu.stopping() == []


@pytest.mark.parametrize("said", ["Error: vhost device has not started yet", "The command has not been found"])
def test_another_error_than_that_the_ring_is_not_known_ends_the_asking(said: str) -> None:
    """In a version of QEMU that says something else, the other command might stop this ring, too."""
    qemu = Qemu()
    qemu.not_known = said
    with pytest.raises(StateUnknown, match="ring 2"):
        queues(qemu, DEVICE, 8)
    assert qemu.stopping() == []


def test_a_monitor_that_does_not_answer_is_not_an_answer() -> None:
    class Mute(Qemu):
        def x_query_virtio_vhost_queue_status(self, path: str, queue: int) -> Any:
            if queue > 1:
                raise BrokerError("no answer")
            return super().x_query_virtio_vhost_queue_status(path, queue)

    qemu = Mute()
    with pytest.raises(BrokerError, match="no answer"):
        queues(qemu, DEVICE, 8)
    assert qemu.stopping() == []


@pytest.mark.parametrize("said", [None, {}, {"num": 256}, {"num": "256"}, {"num": True}])
def test_an_answer_without_all_numbers_is_refused(said: object) -> None:
    class Strange(Qemu):
        def x_query_virtio_vhost_queue_status(self, path: str, queue: int) -> Any:
            return said

    with pytest.raises(StateUnknown, match="cannot be understood"):
        queues(Strange(), DEVICE, 1)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"vhost-started": True}, None),
        ({"vhost-started": False}, "driver"),
        ({"vhost-started": True, "broken": True}, "broken"),
        ({"vhost-started": True, "vhost-dev": {"log-enabled": True}}, "migrated"),
    ],
)
def test_a_device_that_cannot_be_entered_has_a_reason(status: dict[str, Any], reason: str | None) -> None:
    qemu = Qemu()
    qemu.status = status
    found = why_not_running(qemu, DEVICE)
    assert (found is None) if reason is None else (reason in (found or ""))


# Where the monitor is.

LIBVIRT = [
    "/usr/bin/qemu-system-x86_64", "-name", "guest=web,debug-threads=on",
    "-chardev", "socket,id=charmonitor,fd=34,server=on,wait=off", "-mon", "chardev=charmonitor,id=monitor,mode=control",
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["qemu", "-qmp", "unix:/run/a.qmp,server=on,wait=off"], MonitorPlace(Path("/run/a.qmp"))),
        (["qemu", "-chardev", "socket,id=m,path=/run/b.qmp,server=on", "-mon", "chardev=m,mode=control"],
         MonitorPlace(Path("/run/b.qmp"))),
        (LIBVIRT, MonitorPlace(None, "web")),
        ([*LIBVIRT, "-qmp", "unix:/run/extra.qmp,server=on"], MonitorPlace(Path("/run/extra.qmp"))),
        ([each.replace("fd=34", "path=/l/m.sock") for each in LIBVIRT], MonitorPlace(Path("/l/m.sock"), "web")),
    ],
)  # fmt: skip
def test_the_monitor_is_found_on_the_command_line(arguments: list[str], place: MonitorPlace) -> None:
    assert find_monitor(arguments) == place


@pytest.mark.parametrize(
    "arguments",
    [
        ["qemu"],
        ["qemu", "-qmp", "stdio"],
        ["qemu", "-chardev", "socket,id=m,path=/run/b.hmp", "-mon", "chardev=m,mode=readline"],
    ],
)
def test_a_qemu_without_a_monitor_is_refused(arguments: list[str]) -> None:
    with pytest.raises(StateUnknown, match="no monitor"):
        find_monitor(arguments)


def test_libvirt_s_monitor_needs_virsh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StateUnknown, match="virsh"):
        MonitorPlace(None, "web").monitor(System(), tmp_path)
    (tmp_path / "virsh").write_text("#!/bin/sh\n")
    (tmp_path / "virsh").chmod(0o755)
    assert isinstance(MonitorPlace(None, "web").monitor(System(), tmp_path), VirshMonitor)


def test_libvirt_s_monitor_is_asked_directly_only_where_libvirt_does_not_run(tmp_path: Path) -> None:
    both = MonitorPlace(Path("/l/m.sock"), "web")
    assert isinstance(both.monitor(System(), tmp_path), SocketMonitor)
    (tmp_path / "virtqemud-sock").touch()
    (tmp_path / "virsh").write_text("#!/bin/sh\n")
    (tmp_path / "virsh").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert isinstance(both.monitor(System(), tmp_path), VirshMonitor)


class Virsh(System):
    def __init__(self, stdout: str, error: CommandError | None = None) -> None:
        self._stdout, self._error = stdout, error
        self.argv: list[str] = []

    def run(self, argv: Any, **_: Any) -> Completed:
        self.argv = list(argv)
        if self._error is not None:
            raise self._error
        return Completed(tuple(argv), 0, self._stdout, "")


def test_virsh_is_asked_for_the_domain() -> None:
    virsh = Virsh('{"return": [1], "id": "libvirt-9"}')
    assert VirshMonitor("web", virsh).ask("qom-get", path="/x", property="mac") == [1]
    assert virsh.argv[-2] == "web"
    assert json.loads(virsh.argv[-1]) == {"execute": "qom-get", "arguments": {"path": "/x", "property": "mac"}}


def test_an_error_of_qemu_is_not_an_error_of_virsh() -> None:
    with pytest.raises(Refused, match="Invalid vhost virtqueue number 2"):
        VirshMonitor("web", Virsh('{"error": {"desc": "Invalid vhost virtqueue number 2"}}')).ask("x")
    for virsh in (Virsh("", CommandError("no domain")), Virsh("nonsense")):
        with pytest.raises(BrokerError) as caught:
            VirshMonitor("web", virsh).ask("x")
        assert not isinstance(caught.value, Refused)
