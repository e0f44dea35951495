"""How ovn-controller is found, what ``check`` says of it, and when it counts as passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ovs_hotswap.controllers.ovn import (
    WAIT,
    Canary,
    Ovn,
    OvnController,
    await_programmed,
    control_socket,
    database_of,
    find,
    findings,
    needed_wait,
)
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Severity
from tests.unit.fake_system import FakeSystem

# ovn-ctl of Debian's 23.03.1, and ovn-controller(8).
STARTED = ("ovn-controller unix:/var/run/openvswitch/db.sock -vconsole:emer -vsyslog:err -vfile:info --no-chdir "
           "--log-file=/var/log/ovn/ovn-controller.log --pidfile=/var/run/ovn/ovn-controller.pid --detach")  # fmt: skip
# /proc/net/unix with the control socket of 23.03, and that of `--unixctl`, each beside a connection to it.
UNIX = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 31 /var/run/ovn/ovn-controller.4711.ctl
0000000000000000: 00000003 00000000 00000000 0001 03 32 /var/run/ovn/ovn-controller.4711.ctl
0000000000000000: 00000002 00000000 00010000 0001 01 33 /var/run/ovn/br-int.mgmt
0000000000000000: 00000002 00000000 00010000 0001 01 34 /run/own name.ctl
0000000000000000: 00000003 00000000 00000000 0001 03 35
"""


@pytest.mark.parametrize(
    ("line", "remote"),
    [
        (STARTED, "unix:/var/run/openvswitch/db.sock"),
        ("ovn-controller -n x tcp:127.0.0.1:6640 --detach", "tcp:127.0.0.1:6640"),
        ("/usr/bin/ovn-controller --detach", "unix:/var/run/openvswitch/db.sock"),
    ],
)
def test_the_database_is_in_the_command_line_or_it_is_the_default(line: str, remote: str) -> None:
    assert database_of(line.split()) == remote


def test_the_control_socket_is_the_one_at_which_the_process_itself_listens() -> None:
    assert control_socket(UNIX, {31, 32, 35}) == "/var/run/ovn/ovn-controller.4711.ctl"
    assert control_socket(UNIX, {33, 34}) == "/run/own name.ctl"
    assert control_socket(UNIX, {32, 33, 35}) is None


def in_the_host_s_network(proc: Path, *pids: int) -> None:
    (proc / "self/ns").mkdir(parents=True)
    (proc / "self/ns/net").touch()
    for pid in pids:
        (proc / str(pid) / "ns").mkdir(parents=True)
        os.link(proc / "self/ns/net", proc / str(pid) / "ns/net")


def test_it_is_found_by_its_program_and_not_by_its_monitor(tmp_path: Path) -> None:
    (tmp_path / "4711/fd").mkdir(parents=True)
    (tmp_path / "4711/net").mkdir()
    (tmp_path / "4711/net/unix").write_text(UNIX)
    in_the_host_s_network(tmp_path, 4711, 4712)
    os.symlink("socket:[31]", tmp_path / "4711/fd/5")
    os.symlink("/dev/null", tmp_path / "4711/fd/0")
    system = FakeSystem()
    system.processes = {
        4710: ["ovn-controller: monitoring pid 4711 (healthy)"], 4711: STARTED.split(), 9: ["bash", "ovn-controller"],
        4712: ["/usr/bin/ovn-controller", "tcp:10.0.0.1:6640"],
    }  # fmt: skip
    found = find(system, tmp_path)
    assert found == (
        OvnController(4711, Path("/var/run/ovn/ovn-controller.4711.ctl"), "unix:/var/run/openvswitch/db.sock"),
        OvnController(4712, None, "tcp:10.0.0.1:6640"),
    )


def test_one_in_a_container_is_reached_through_its_root(tmp_path: Path) -> None:
    (tmp_path / "4711/fd").mkdir(parents=True)
    (tmp_path / "4711/net").mkdir()
    (tmp_path / "4711/net/unix").write_text(UNIX)
    in_the_host_s_network(tmp_path, 4711)
    os.symlink("socket:[31]", tmp_path / "4711/fd/5")
    inside = tmp_path / "4711/root/run/ovn/ovn-controller.4711.ctl"
    inside.parent.mkdir(parents=True)
    inside.touch()
    (tmp_path / "4711/root/var").mkdir()
    os.symlink("/run", tmp_path / "4711/root/var/run")  # as every distribution has it
    system = FakeSystem()
    system.processes = {4711: STARTED.split()}
    assert [each.control for each in find(system, tmp_path)] == [inside]


def test_a_controller_in_order_is_led_without_a_finding() -> None:
    good = OvnController(1, Path("/x.ctl"), "unix:/run/openvswitch/db.sock")
    assert findings([good], Path("/run/openvswitch"), {WAIT: "8000"}) == []
    assert findings([], Path("/run/openvswitch"), {}) == []


def test_what_does_not_follow_the_well_known_paths_is_an_error() -> None:
    there = Path("/run/openvswitch")
    elsewhere = OvnController(1, None, "unix:/run/other/db.sock")
    found = findings([elsewhere], there, {"ovn-bridge-remote": "tcp:127.0.0.1:6653", WAIT: "8000"})
    assert [each.severity for each in found] == [Severity.ERROR] * 3
    assert all(each.hint for each in found)
    by_manager = OvnController(1, Path("/x.ctl"), "tcp:127.0.0.1:6640")
    assert [each.severity for each in findings([by_manager], there, {WAIT: "8000"})] == [Severity.OK]
    (finding,) = findings([OvnController(1, Path("/x.ctl"), f"unix:{there}/db.sock")], there, {})
    assert (finding.severity, "not set" in finding.text) == (Severity.WARNING, True)
    inside = {"ovn-bridge-remote": f"unix:{there}/br-int.mgmt", WAIT: "8000"}
    assert findings([OvnController(1, Path("/x.ctl"), f"unix:{there}/db.sock")], there, inside) == []


@pytest.mark.parametrize(
    ("present", "flows", "wanted"),
    [(None, 0, "2000"), ("1999", 0, "2000"), ("2000", 0, None), ("many", 0, "2000"), (None, 100_000, "10000"),
     ("10000", 100_000, None), (None, 10_000_000, "60000")],
)  # fmt: skip
def test_the_wait_is_raised_if_it_is_too_short_for_the_flows(
    present: str | None, flows: int, wanted: str | None
) -> None:
    assert needed_wait(present, flows) == wanted


class Ofctl:
    """Answers for ovs-ofctl: the canary's flow is there for ``looks`` looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def __call__(self, argv: object) -> tuple[int, str]:
        self.looks -= 1
        return 0, " cookie=0x6f76736863616e01, table=253, priority=0 actions=drop" if self.looks >= 0 else ""


def ovn(answer: str) -> Ovn:
    return Ovn(OvnController(1, Path("/x.ctl"), ""), control=lambda socket, command: f"{answer}\n")


def test_it_is_programmed_when_the_canary_is_gone_and_it_is_connected() -> None:
    system = FakeSystem(Ofctl(looks=5))
    await_programmed(ovn("connected"), Canary(system, Path("/b/br-int.mgmt")), 10, system)
    assert system.ran[0][-2:] == ("unix:/b/br-int.mgmt", "cookie=0x6f76736863616e01/0xffffffffffffffff")


@pytest.mark.parametrize(
    ("answer", "looks", "cause"), [("connected", 10_000, "not programmed"), ("not connected", 0, "not connected")]
)
def test_the_cause_is_named_when_it_does_not_come(answer: str, looks: int, cause: str) -> None:
    system = FakeSystem(Ofctl(looks))
    with pytest.raises(SwitchError, match=cause):
        await_programmed(ovn(answer), Canary(system, Path("/b/br-int.mgmt")), 10, system)


def test_one_without_a_control_socket_is_not_controlled() -> None:
    with pytest.raises(SwitchError, match="pid 7"):
        Ovn(OvnController(7, None, ""))
    assert ovn("paused").paused()
    assert not ovn("running").paused()
