"""What the machine has and runs, as a /proc and a /sys say it that exist only in the test."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

import pytest

from ovs_hotswap.host.machine import cores, launched_limit, running_switches
from ovs_hotswap.model import Severity, SwitchProcess
from ovs_hotswap.service.systemctl import Unit
from ovs_hotswap.switch.launch import DESCRIPTORS
from ovs_hotswap.system import Completed
from ovs_hotswap.upgrade import checks
from tests.unit.fake_system import FakeSystem

DEBIAN = ["ovs-vswitchd", "unix:/var/run/openvswitch/db.sock", "-vconsole:emer", "--mlockall", "--no-chdir", "--detach"]


def process(proc: Path, pid: int, *, exe: str, threads: tuple[str, ...] = (), maps: str = "") -> None:
    for number, name in enumerate(threads):
        task = proc / str(pid) / "task" / str(pid + number)
        task.mkdir(parents=True)
        (task / "comm").write_text(f"{name}\n")
    (proc / str(pid)).mkdir(exist_ok=True, parents=True)
    (proc / str(pid) / "exe").symlink_to(exe)
    (proc / str(pid) / "maps").write_text(maps)


def machine(proc: Path, argv: list[str], **looks: object) -> list[SwitchProcess]:
    system = FakeSystem()
    system.processes = {7: argv}
    process(proc, 7, **looks)  # type: ignore[arg-type]
    return running_switches(system, proc)


@pytest.mark.parametrize("thread", ["eal-intr-thread", "dpdk-intr"])
def test_debian_s_switch_with_dpdk_is_known_by_what_it_does(tmp_path: Path, thread: str) -> None:
    exe = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
    (found,) = machine(tmp_path, DEBIAN, exe=exe, threads=("ovs-vswitchd", thread, "pmd-c01/id:9"))
    assert (found.dpdk, found.file_prefix) == (True, None)
    assert Path(found.run_dir).name == "openvswitch"
    (finding,) = checks.conflicting_processes([found], [], "/run/ovs-hotswap/b", "ovsh-b")
    assert finding.severity is Severity.WARNING
    assert "another ovs-vswitchd with DPDK" in finding.text


def test_one_that_has_not_initialised_dpdk_is_in_nobody_s_way(tmp_path: Path) -> None:
    maps = "7f00-7f01 r-xp 0 00:00 1 /usr/lib/x86_64-linux-gnu/librte_eal.so.23\n"
    (found,) = machine(tmp_path, DEBIAN, exe="/usr/sbin/ovs-vswitchd-dpdk", threads=("ovs-vswitchd",), maps=maps)
    assert not found.dpdk


def test_its_file_prefix_is_that_of_its_runtime_files(tmp_path: Path) -> None:
    maps = "7f00-7f01 rw-s 0 00:17 9 /run/dpdk/ovsh-b/config\n"
    (found,) = machine(tmp_path, DEBIAN, exe="/usr/sbin/ovs-vswitchd (deleted)", maps=maps)
    assert (found.dpdk, found.file_prefix) == (True, "ovsh-b")
    (finding,) = checks.conflicting_processes([found], [], "/run/ovs-hotswap/b", "ovsh-b")
    assert finding.severity is Severity.ERROR
    assert "has file prefix ovsh-b" in finding.text


def test_one_under_another_name_is_known_by_its_executable(tmp_path: Path) -> None:
    (found,) = machine(tmp_path, ["switch", "--unixctl=/run/x/vs.ctl"], exe="/opt/ovs/sbin/ovs-vswitchd")
    assert found.run_dir == "/run/x"
    assert machine(tmp_path / "other", ["ovs-vsctl"], exe="/usr/bin/ovs-vsctl") == []


def test_a_process_that_cannot_be_looked_at_is_judged_by_its_name() -> None:
    system = FakeSystem()
    system.processes = {4242: DEBIAN}
    (found,) = running_switches(system, Path("/nonexistent"))
    assert not found.dpdk


def sys(tmp_path: Path, online: str, cpuset: str | None = None) -> tuple[Path, Path]:
    root, proc = tmp_path / "sys", tmp_path / "proc"
    (root / "devices/system/cpu").mkdir(parents=True)
    (root / "devices/system/cpu/online").write_text(f"{online}\n")
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/user.slice\n")
    if cpuset is not None:
        (root / "fs/cgroup/user.slice").mkdir(parents=True)
        (root / "fs/cgroup/user.slice/cpuset.cpus.effective").write_text(f"{cpuset}\n")
    return root, proc


@pytest.mark.parametrize(
    ("online", "cpuset", "unit_group", "expected"),
    [
        ("0-3", None, None, {0, 1, 2, 3}),
        ("0,2-3", None, "/system.slice/x.service", {0, 2, 3}),
        ("0-7", "0-1,5", None, {0, 1, 5}),
        ("0-7", "0-1", "/system.slice/x.service", set(range(8))),
        ("0-7", "0-1", "/user.slice/x.service", {0, 1}),
        ("0-1", "", None, {0, 1}),
    ],
)
def test_cores_are_the_machine_s_and_the_control_group_s(
    tmp_path: Path, online: str, cpuset: str | None, unit_group: str | None, expected: set[int]
) -> None:
    root, proc = sys(tmp_path, online, cpuset)
    assert cores(unit_group, root, proc) == expected


@pytest.mark.parametrize(
    ("own", "files", "unit_group", "expected"),
    [
        # The controller is turned on for slices alone, as `systemctl set-property user.slice AllowedCPUs=` does it.
        ("0::/user.slice/user-0.slice/session-1.scope", {"user.slice/cpuset.cpus.effective": "0-1"}, None, {0, 1}),
        ("0::/", {"system.slice/cpuset.cpus.effective": "4-5", "cpuset.cpus.effective": "0-7"},
         "/system.slice/system-x.slice/x.service", {4, 5}),
        ("0::/", {"cpuset.cpus.effective": "0-6"}, "/system.slice/x.service", set(range(7))),
        # Version 1, alone or beside version 2.
        ("3:cpuset:/machine\n0::/", {"cpuset/machine/cpuset.cpus": "2"}, None, {2}),
        ("4:cpu,cpuset:/machine", {"cpuset/machine/cpuset.cpus": "2"}, "/system.slice/x.service", set(range(8))),
    ],
)  # fmt: skip
def test_the_cpuset_of_a_control_group(
    tmp_path: Path, own: str, files: dict[str, str], unit_group: str | None, expected: set[int]
) -> None:
    root, proc = sys(tmp_path, "0-7")
    (proc / "self/cgroup").write_text(f"{own}\n")
    for name, text in files.items():
        (root / "fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "fs/cgroup" / name).write_text(f"{text}\n")
    assert cores(unit_group, root, proc) == expected


def test_the_limit_of_descriptors_is_the_instance_s() -> None:
    root, confined = "Name:\tx\nCapEff:\t000001ffffffffff\n", "Name:\tx\nCapEff:\t000001fffeffffff\n"
    assert launched_limit(150, root, 1 << 20) == DESCRIPTORS
    assert launched_limit(150, confined, 1 << 20) == launched_limit(150, "", 1 << 20) == 150
    assert launched_limit(1 << 20, root, 1 << 20) == 1 << 20
    assert launched_limit(resource.RLIM_INFINITY, "", 1 << 20) > 1 << 20
    assert launched_limit(150, root, 65536) == 65536, "fs.nr_open, above which not even root may go"


class Shown(FakeSystem):
    """systemctl's answers, by property."""

    def __init__(self, **shown: str) -> None:
        super().__init__()
        self.shown = shown

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        return Completed(tuple(argv), 0, self.shown.get(argv[2].partition("=")[2], "") + "\n", "")


@pytest.mark.parametrize(
    ("shown", "group"),
    [
        ({"ControlGroup": "/a.slice/x@a.service", "Slice": "b.slice"}, "/a.slice/x@a.service"),
        ({"Slice": "system-x\\x2dy.slice"}, "/system.slice/system-x\\x2dy.slice/x@a.service"),
        ({"Slice": "vms-net-dpdk.slice"}, "/vms.slice/vms-net.slice/vms-net-dpdk.slice/x@a.service"),
        ({"Slice": "-.slice"}, "/x@a.service"),
        ({}, "/system.slice/x@a.service"),
    ],
)
def test_where_a_unit_is_or_will_be(shown: dict[str, str], group: str) -> None:
    assert Unit("x@a.service", Shown(**shown)).control_group() == group
