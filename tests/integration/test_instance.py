"""Instances on the real Open vSwitch and DPDK, of the host's release and of a tree."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import IPRoute, netns

from ovs_hotswap.background import threads_of
from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.instance import Instance, State
from ovs_hotswap.switch.netns import Namespaces
from ovs_hotswap.switch.release import VSWITCHD
from ovs_hotswap.switch.rpc import NoAnswer
from ovs_hotswap.switch.threads import is_pmd
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from tests.integration.conftest import INSTANCE_MB, MakeConfig, MakeInstance, RunInstance, instances_table, remains
from tests.support.waiting import eventually


@pytest.fixture(params=["host", "tree"])
def release(request: pytest.FixtureRequest) -> Release:
    found: Release = request.getfixturevalue(f"{request.param}_release")
    return found


@pytest.fixture
def uplink(config: Config) -> Iterator[str]:
    """A namespace with a veth pair up, in the place of a host with a VF ``vf-a``; yields the namespace's name."""
    name = f"{config.namespace(Side.A)}-host"
    netns.create(name)
    with IPRoute(netns=name, flags=0) as route:
        route.link("add", ifname="vf-a", kind="veth", peer={"ifname": "rep-a"}, state="up")
    yield name
    netns.remove(name)


def with_uplink(config: Config, namespace: str, **changes: object) -> Config:
    tables = {"uplink": {"namespace": namespace}, "instances": instances_table(uplink_device="vf-a"), **changes}
    return Config.model_validate({**config.model_dump(mode="json"), **tables})


def gone(instance: Instance, config: Config) -> bool:
    assert remains(config) == []
    assert instance.status().state is State.STOPPED
    return not instance.paths.run_dir.exists()


def test_starts_and_stops_and_leaves_nothing(config: Config, make_instance: MakeInstance, release: Release) -> None:
    instance = make_instance(config, Side.A)
    instance.stop()  # never started: no error
    instance.start(release)
    status = instance.status()
    assert status.state is State.RUNNING
    assert status.dpdk_initialized is True
    assert status.release == release
    assert status.vswitchd_pid is not None
    assert status.ovsdb_pid is not None
    version = appctl(instance.paths.vswitchd_ctl, "version")
    assert release.ovs_version in version
    with instance.database() as database:
        dpdk_version = database.state().dpdk_version
    assert dpdk_version is not None
    assert release.dpdk_version in dpdk_version
    pmd_cores = {core for side in Side for core in config.instance(side).pmd_cores}
    if others := os.sched_getaffinity(0) - pmd_cores:
        assert os.sched_getaffinity(status.vswitchd_pid) == others
        (pmd,) = [thread for thread, name in threads_of(status.vswitchd_pid) if is_pmd(name)]
        assert os.sched_getaffinity(pmd) <= pmd_cores
    limits = Path(f"/proc/{status.vswitchd_pid}/limits").read_text()
    soft, hard = next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3:5]
    assert soft == hard
    instance.stop()
    assert gone(instance, config)
    instance.stop()
    assert gone(instance, config)


def test_two_releases_run_side_by_side(
    config: Config, make_instance: MakeInstance, host_release: Release, tree_release: Release
) -> None:
    old, new = make_instance(config, Side.A), make_instance(config, Side.B)
    old.start(host_release)
    new.start(tree_release)
    assert [old.status().state, new.status().state] == [State.RUNNING, State.RUNNING]
    versions = [appctl(instance.paths.vswitchd_ctl, "version") for instance in (old, new)]
    assert host_release.ovs_version in versions[0]
    assert tree_release.ovs_version in versions[1]
    old.stop()
    assert new.status().state is State.RUNNING
    assert tree_release.ovs_version in appctl(new.paths.vswitchd_ctl, "version")


def test_a_running_side_is_not_started_again(config: Config, run_instance: RunInstance, host_release: Release) -> None:
    instance = run_instance(config, Side.A, host_release)
    before = instance.status()
    with pytest.raises(SwitchError, match="instance a is running already"):
        instance.start(host_release)
    assert instance.status() == before


def test_the_uplink_device_moves_in_and_back(
    config: Config, uplink: str, make_instance: MakeInstance, release: Release
) -> None:
    kernel = Namespaces()
    instance = make_instance(with_uplink(config, uplink), Side.A)
    instance.start(release)
    assert kernel.look("vf-a", uplink) is None
    inside = kernel.look("vf-a", instance.paths.netns)
    assert inside is not None
    assert inside.up
    os.kill(instance.status().vswitchd_pid or 0, signal.SIGKILL)
    instance.stop()
    outside = kernel.look("vf-a", uplink)
    assert outside is not None
    assert outside.up
    assert gone(instance, config)


def test_a_failed_start_gives_the_uplink_device_back(
    config: Config, uplink: str, make_instance: MakeInstance, host_release: Release
) -> None:
    tables = instances_table(uplink_device="vf-a", memory_mb=1 << 20)
    instance = make_instance(with_uplink(config, uplink, instances=tables), Side.A)
    with pytest.raises(SwitchError, match="Not enough memory available on socket 0! Requested: 1048576MB") as caught:
        instance.start(host_release)
    assert "vm.nr_hugepages" in str(caught.value.hint)
    assert "Not enough memory" in instance.paths.saved_log.read_text()
    assert Namespaces().look("vf-a", uplink) is not None
    assert gone(instance, config)


def test_no_such_uplink_device(make_config: MakeConfig, make_instance: MakeInstance, host_release: Release) -> None:
    config = make_config(instances=instances_table(uplink_device="no-such-vf"))
    instance = make_instance(config, Side.A)
    with pytest.raises(SwitchError, match="no network device no-such-vf in the host's network namespace"):
        instance.start(host_release)
    assert gone(instance, config)


def test_huge_pages_missing_in_a_tree_release(
    make_config: MakeConfig, make_instance: MakeInstance, tree_release: Release
) -> None:
    config = make_config(instances=instances_table(memory_mb=1 << 20))
    instance = make_instance(config, Side.A)
    with pytest.raises(SwitchError, match="Not enough memory available"):
        instance.start(tree_release)
    assert gone(instance, config)


def test_not_ready_in_time(make_config: MakeConfig, make_instance: MakeInstance, release: Release) -> None:
    config = make_config(upgrade={"ready_s": 0.05})
    instance = make_instance(config, Side.A)
    with pytest.raises(SwitchError, match=r"within|no end after"):
        instance.start(release)
    assert gone(instance, config)


def test_dpdk_arguments_that_dpdk_refuses(
    make_config: MakeConfig, make_instance: MakeInstance, host_release: Release
) -> None:
    config = make_config(instances=instances_table(dpdk_extra="--no-such-option"))
    instance = make_instance(config, Side.A)
    with pytest.raises(SwitchError, match="command line") as caught:
        instance.start(host_release)
    assert "dpdk_extra" in str(caught.value.hint)
    assert gone(instance, config)


def test_dpdk_takes_the_arguments_for_a_pci_device(
    make_config: MakeConfig, run_instance: RunInstance, host_release: Release
) -> None:
    """There is no such device here: DPDK starts without it, and looks at no other."""
    config = make_config(instances=instances_table(uplink_devargs="0000:99:00.0,auto_reset=1"))
    instance = run_instance(config, Side.A, host_release)
    with instance.database() as database:
        extra = database.other_config()["dpdk-extra"]
    assert extra.endswith("-a 0000:99:00.0,auto_reset=1")
    assert "--no-pci" not in extra


def built_without_dpdk(binary: Path) -> None:
    shutil.copy(binary.parents[1] / "openvswitch-switch/ovs-vswitchd", binary)


def another_program(binary: Path) -> None:
    shutil.copy(binary.parents[2] / "bin/true", binary)


def not_a_program(binary: Path) -> None:
    binary.write_bytes(b"\x7fELF and nothing else")


def does_not_end(binary: Path) -> None:
    binary.write_text("#!/bin/sh\nexec sleep 600\n")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (built_without_dpdk, "DPDK not supported in this copy"),
        (another_program, "it ended by itself"),
        (not_a_program, "not found|[Ee]xec"),
        (does_not_end, "no end after"),
    ],
)
def test_a_wrong_binary(
    make_config: MakeConfig,
    make_instance: MakeInstance,
    spoiled_tree: Release,
    spoil: Callable[[Path], None],
    text: str,
) -> None:
    config = make_config(upgrade={"ready_s": 5.0})
    assert spoiled_tree.root is not None
    spoil(Path(spoiled_tree.root + VSWITCHD))
    instance = make_instance(config, Side.B)
    with pytest.raises(SwitchError, match=text):
        instance.start(spoiled_tree)
    assert gone(instance, config)


@pytest.fixture(scope="module")
def spoiled_tree(tree_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A copy of the tree whose ovs-vswitchd a test may overwrite."""
    copy = tmp_path_factory.mktemp("tree") / "tree"
    subprocess.run(["cp", "-a", str(tree_release.root), str(copy)], check=True)
    yield replace(tree_release, name="spoiled", root=str(copy))
    shutil.rmtree(copy)


def test_a_failure_leaves_the_other_side_alone(
    config: Config, make_instance: MakeInstance, run_instance: RunInstance, host_release: Release
) -> None:
    active = run_instance(config, Side.A, host_release)
    before = active.status()
    greedy = {"a": instances_table()["a"], "b": instances_table(memory_mb=1 << 20)["b"]}
    standby = make_instance(Config.model_validate({**config.model_dump(mode="json"), "instances": greedy}), Side.B)
    with pytest.raises(SwitchError, match="instance b: "):
        standby.start(host_release)
    assert active.status() == before
    assert host_release.ovs_version in appctl(active.paths.vswitchd_ctl, "version")


@pytest.mark.parametrize("victims", ["vswitchd", "ovsdb", "both"])
def test_killed_instances_are_seen_and_cleaned(
    config: Config, run_instance: RunInstance, release: Release, victims: str
) -> None:
    instance = run_instance(config, Side.A, release)
    status = instance.status()
    for name, pid in (("ovsdb", status.ovsdb_pid), ("vswitchd", status.vswitchd_pid)):
        if victims in (name, "both"):
            System().kill(pid or 0, grace=0)
    after = instance.status()
    assert after.state is (State.RUNNING if victims == "ovsdb" else State.DEAD)
    assert after.release == release
    instance.stop()
    assert gone(instance, config)
    assert instance.paths.saved_log.exists() == (victims != "ovsdb")


def test_a_dead_instance_can_be_started_again(config: Config, run_instance: RunInstance, release: Release) -> None:
    instance = run_instance(config, Side.A, release)
    instance.kill()
    assert instance.status().state is State.DEAD
    instance.start(release)
    assert instance.status().state is State.RUNNING


def test_a_hung_instance_is_told_and_stopped(config: Config, run_instance: RunInstance, release: Release) -> None:
    instance = run_instance(config, Side.A, release)
    os.kill(instance.status().vswitchd_pid or 0, signal.SIGSTOP)
    with pytest.raises(NoAnswer, match=r"ovs-vswitchd\.ctl: version: no answer within 0\.2 s"):
        appctl(instance.paths.vswitchd_ctl, "version", timeout=0.2)
    with instance.database() as database:  # the database answers all the same
        assert database.set_other_config({"max-idle": "5000"})
        with pytest.raises(SwitchError, match="ovs-vswitchd has ended or is stopped"):
            database.wait_ports([], 60.0)
    os.kill(instance.status().ovsdb_pid or 0, signal.SIGSTOP)
    assert instance.status().dpdk_initialized is None
    instance.stop()
    assert gone(instance, config)


def test_a_pid_that_was_used_again_is_not_killed(
    config: Config, run_instance: RunInstance, host_release: Release
) -> None:
    instance = run_instance(config, Side.A, host_release)
    instance.kill()
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        instance.paths.vswitchd_pid.write_text(f"{bystander.pid}\n")
        assert instance.status().state is State.DEAD
        instance.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_daemon_without_pid_file_is_found(config: Config, run_instance: RunInstance, release: Release) -> None:
    instance = run_instance(config, Side.A, release)
    instance.paths.vswitchd_pid.unlink()
    instance.paths.record.unlink()
    instance.stop()
    assert gone(instance, config)


_STARTER = """
import sys
from pathlib import Path
from ovs_hotswap.config import Config
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.system import System

config = Config.model_validate_json(sys.argv[1])
Instance(config, Side.A, System()).start(Release("r", sys.argv[2] or None, "3", "3"))
"""


def helpers(config: Config) -> list[str]:
    """Processes that a killed start has left behind, but for the daemons: those are ``stop``'s to end."""
    return [each for each in remains(config) if each.startswith("process") and "--pidfile" not in each]


@pytest.mark.parametrize("point", ["record", "db_file", "db_socket", "vswitchd_pid", "log"])
def test_stop_cleans_after_a_killed_start(
    config: Config, make_instance: MakeInstance, release: Release, uplink: str, point: str
) -> None:
    config = with_uplink(config, uplink)
    instance = make_instance(config, Side.A)
    argv = [sys.executable, "-c", _STARTER, config.model_dump_json(), release.root or ""]
    starter = subprocess.Popen(argv)
    watched: Path = getattr(instance.paths, point)
    while not watched.exists() and starter.poll() is None:
        pass
    starter.kill()
    starter.wait()
    assert watched.exists()
    eventually(lambda: not helpers(config), "what the start had begun has ended")
    instance.stop()
    assert Namespaces().look("vf-a", uplink) is not None
    assert gone(instance, config)


def test_memory_is_given_back(config: Config, run_instance: RunInstance, release: Release) -> None:
    def pages_of(pid: int) -> int:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Hugetlb", "Shared_Hugetlb")))

    instance = run_instance(config, Side.A, release)
    pid = instance.status().vswitchd_pid or 0
    assert pages_of(pid) >= INSTANCE_MB * 1024
    files = Path("/dev/hugepages")
    assert not list(files.glob(f"{instance.paths.netns}*"))  # nothing that would outlive a killed process
