"""Decisions of an instance: what it runs, what it undoes, which processes it may end."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.config_uplink import UplinkConfig
from ovs_hotswap.errors import HostError, HotswapError, SwitchError
from ovs_hotswap.model import Device, Release, Side
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch import launch
from ovs_hotswap.switch.instance import Instance, State
from ovs_hotswap.switch.logscan import fatal, telling_cause
from ovs_hotswap.switch.machine_parts import cpu_mask, socket_limit, socket_mem
from ovs_hotswap.switch.netns import Namespaces
from ovs_hotswap.switch.ovsdb import InterfaceStatus, SwitchDb, SwitchState, faults
from ovs_hotswap.switch.paths import InstanceRecord, older, read_record
from tests.unit.fake_system import FakeSystem

HOST = Release("host", None, "3.1.0", "22.11.11")
TREE = Release("new", "/srv/new", "3.5.0", "24.11.4")


class FakeNamespaces(Namespaces):
    """Namespaces as a table of the devices in them; ``members``: the processes in one."""

    def __init__(self, devices: dict[str | None, set[str]]) -> None:
        self.devices = devices
        self.members: dict[str, set[int]] = {}
        self.refuse_back = False

    def exists(self, name: str) -> bool:
        return name in self.devices

    def holds(self, name: str, pid: int) -> bool:
        return pid in self.members.get(name, set())

    def create(self, name: str) -> None:
        assert name not in self.devices
        self.devices[name] = {"lo"}

    def remove(self, name: str) -> None:
        self.devices.pop(name, None)

    def look(self, name: str, namespace: str | None) -> Device | None:
        return Device(name, namespace, up=True) if name in self.devices[namespace] else None

    def move_in(self, device: Device, namespace: str) -> None:
        self.devices[device.namespace].remove(device.name)
        self.devices[namespace].add(device.name)

    def move_back(self, device: Device, namespace: str) -> None:
        if device.name in self.devices.get(namespace, set()):
            if self.refuse_back:
                raise SwitchError(f"network device {device.name} cannot be moved")
            self.devices[namespace].remove(device.name)
            self.devices[device.namespace].add(device.name)


class FakeDb(SwitchDb):
    def __init__(self, host: FakeHost) -> None:
        self.host = host

    def __enter__(self) -> FakeDb:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def set_other_config(self, values: Any, notes: Any = None) -> bool:
        self.host.other_config.update(values)
        return True

    def state(self) -> SwitchState:
        return SwitchState(self.host.initialized, None, pending=False)


class FakeHost(FakeSystem):
    """A machine on which both daemons can be started: they write their pid files and stay in the process table."""

    def __init__(self, config: Config) -> None:
        super().__init__(self._run)
        self.namespaces = FakeNamespaces({None: {"lo", "vf-a"}})
        self.other_config: dict[str, str] = {}
        self.initialized = True
        self.exits = True
        self.fails: str | None = None
        self.hung: set[Path] = set()
        self.instance = Instance(
            config, Side.A, self, namespaces=self.namespaces, connect=lambda path, timeout, lives, tables: FakeDb(self),
            control=self._control, hangs=lambda path: path in self.hung,
        )  # fmt: skip

    def _run(self, argv: Sequence[str]) -> tuple[int, str]:
        words = list(argv)
        if self.fails is not None and any(word.endswith(self.fails) for word in words):
            return 1, "ovs-vswitchd-dpdk: Cannot init EAL (Cannot allocate memory)"
        for word in words:
            if word.startswith("--pidfile="):
                pid = 100 + len(self.ran)
                self.processes[pid] = words
                Path(word.removeprefix("--pidfile=")).write_text(f"{pid}\n")
        return 0, ""

    def _control(self, socket: Path, command: str, timeout: float) -> str:
        assert command == "exit"
        if not self.exits:
            raise SwitchError(f"{socket}: no answer")
        pid = int(socket.with_suffix(".pid").read_text())
        del self.processes[pid]
        return ""


def configuration(directory: Path, **instance: Any) -> Config:
    table = {"pmd_cores": [1, 3], "uplink_devargs": "0000:03:02.0", "uplink_device": "vf-a", **instance}
    return Config.model_validate(
        {
            "overlay": str(directory / "overlay.toml"),
            "run_dir": str(directory / "r"),
            "state_dir": str(directory / "s"),
            "instances": {"a": table, "b": table},
        }
    )


@pytest.fixture
def host() -> Iterator[FakeHost]:
    with tempfile.TemporaryDirectory(prefix="ovsh-") as directory:  # socket paths are short
        yield FakeHost(configuration(Path(directory)))


def test_start_programs_dpdk_before_it_starts_the_switch(host: FakeHost) -> None:
    host.instance.start(HOST)
    assert host.instance.status().state is State.RUNNING
    assert host.other_config["pmd-cpu-mask"] == "0xa"
    extra = host.other_config["dpdk-extra"].split()
    assert f"--file-prefix={host.instance.paths.netns}" in extra
    assert extra[-2:] == ["-a", "0000:03:02.0"], "no other PCI device"
    assert "--no-pci" not in extra
    programs = [Path(next(word for word in argv if word.startswith("/usr/"))).name for argv in host.ran]
    assert programs == ["ovsdb-tool", "ovsdb-server", "ovs-vswitchd-dpdk"]
    assert "vf-a" in host.namespaces.devices[host.instance.paths.netns]
    record = read_record(host.instance.paths.record)
    assert record is not None
    assert record.ready
    assert record.uplink == Device("vf-a", None, up=True)
    assert record.second is None


def test_two_devices_move_in_and_back(tmp_path: Path) -> None:
    config = configuration(tmp_path, second_devargs="eth_af_packet1,iface=vf1-a", second_device="vf1-a")
    host = FakeHost(config)
    with pytest.raises(SwitchError, match="there is no network device vf1-a in the host's network namespace") as caught:
        host.instance.start(HOST)
    assert caught.value.hint == "correct instances.a.second_device"
    host.namespaces.devices[None].add("vf1-a")
    before = {name: set(devices) for name, devices in host.namespaces.devices.items()}
    host.instance.start(HOST)
    assert host.namespaces.devices[host.instance.paths.netns] >= {"vf-a", "vf1-a"}
    assert "--vdev" not in host.other_config["dpdk-extra"]
    record = read_record(host.instance.paths.record)
    assert record is not None
    assert [device.name for device in record.devices] == ["vf-a", "vf1-a"]
    host.instance.paths.record.unlink()  # without it, the configuration says what may be in the namespace
    host.instance.stop()
    assert host.namespaces.devices == before


def test_the_devices_of_a_bond_of_dpdk_are_made_at_the_start(tmp_path: Path) -> None:
    config = configuration(tmp_path, second_devargs="eth_af_packet1,iface=vf1-a")
    host = FakeHost(config.model_copy(update={"uplink": config.uplink.model_copy(update={"bond": "dpdk"})}))
    host.instance.start(HOST)
    assert "--vdev=eth_af_packet1,iface=vf1-a" in host.other_config["dpdk-extra"].split()


def test_the_pci_devices_of_a_bond_of_dpdk_are_given_at_the_start_with_their_arguments(tmp_path: Path) -> None:
    config = configuration(
        tmp_path, uplink_devargs="0000:03:02.0,x=1", second_devargs="0000:04:02.0", uplink_device=None
    )
    host = FakeHost(config.model_copy(update={"uplink": config.uplink.model_copy(update={"bond": "dpdk"})}))
    host.instance.start(HOST)
    extra = host.other_config["dpdk-extra"]
    assert extra.endswith("-a 0000:03:02.0,x=1 -a 0000:04:02.0")
    assert "--vdev" not in extra


def test_an_uplink_that_the_other_instance_may_have_is_taken_and_given_back_later(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    host = FakeHost(config.model_copy(update={"uplink": UplinkConfig(driver="exclusive")}))
    netns = host.instance.paths.netns
    with pytest.raises(SwitchError, match="does not run"):
        host.instance.devices.take()
    host.instance.start(HOST)
    assert "vf-a" not in host.namespaces.devices[netns]
    for _ in range(2):
        host.instance.devices.take()
        assert "vf-a" in host.namespaces.devices[netns]
        record = read_record(host.instance.paths.record)
        assert record is not None
        assert (record.ready, record.uplink) == (True, Device("vf-a", None, up=True))
    for _ in range(2):
        host.instance.devices.give_back()
        assert host.namespaces.devices[None] == {"lo", "vf-a"}


def test_stop_undoes_all_and_may_be_repeated(host: FakeHost) -> None:
    host.instance.start(HOST)
    for _ in range(2):
        host.instance.stop()
        assert host.processes == {}
        assert host.killed == []
        assert host.namespaces.devices == {None: {"lo", "vf-a"}}
        assert not host.instance.paths.run_dir.exists()
        assert host.instance.status().state is State.STOPPED
    assert not host.instance.paths.saved_log.exists()


@pytest.mark.parametrize("program", ["ovsdb-tool", "ovsdb-server", "ovs-vswitchd-dpdk"])
def test_a_failed_start_is_undone(host: FakeHost, program: str) -> None:
    host.fails = program
    with pytest.raises(SwitchError, match=f"instance a: {program} of release host .* did not start: exit 1: "):
        host.instance.start(HOST)
    assert host.processes == {}
    assert host.namespaces.devices == {None: {"lo", "vf-a"}}
    assert not host.instance.paths.run_dir.exists()


def test_dpdk_that_is_never_initialized_ends_the_start_at_its_deadline(host: FakeHost) -> None:
    host.initialized = False
    began = host.now
    with pytest.raises(SwitchError, match="DPDK is not initialized within 30 s"):
        host.instance.start(HOST)
    assert 30 <= host.now - began < 31
    assert host.processes == {}


def test_an_undo_that_fails_does_not_hide_the_first_error(host: FakeHost) -> None:
    host.fails, host.namespaces.refuse_back = "ovs-vswitchd-dpdk", True
    with pytest.raises(SwitchError, match="did not start") as caught:
        host.instance.start(HOST)
    assert caught.value.__notes__ == ["and undoing it failed: network device vf-a cannot be moved"]
    assert host.instance.status().state is State.DEAD  # known, so that it can be stopped again
    host.namespaces.refuse_back = False
    host.instance.stop()
    assert host.namespaces.devices == {None: {"lo", "vf-a"}}


def test_a_switch_that_does_not_answer_is_killed(host: FakeHost) -> None:
    host.instance.start(HOST)
    host.exits = False
    host.instance.stop()
    assert len(host.killed) == 2
    assert host.processes == {}


def test_kill_ends_the_switch_at_once_and_nothing_else(host: FakeHost) -> None:
    host.instance.start(HOST)
    pid = host.instance.status().vswitchd_pid
    host.instance.kill()
    assert host.killed == [(pid, 0)]
    assert host.instance.status().state is State.DEAD
    assert host.instance.status().ovsdb_pid is not None


def test_restart_replaces_the_switch_and_nothing_else(host: FakeHost) -> None:
    with pytest.raises(SwitchError, match="instance a does not run"):
        host.instance.restart()
    host.instance.start(HOST)
    before = host.instance.status()
    host.instance.restart()
    after = host.instance.status()
    assert after.state is State.RUNNING
    assert after.vswitchd_pid != before.vswitchd_pid
    assert after.ovsdb_pid == before.ovsdb_pid
    assert "vf-a" in host.namespaces.devices[host.instance.paths.netns]


def test_the_log_of_a_crashed_switch_is_kept(host: FakeHost) -> None:
    host.instance.start(HOST)
    host.instance.paths.log.write_text("last words")
    host.instance.kill()
    host.instance.stop()
    assert host.instance.paths.saved_log.read_text() == "last words"


def test_the_log_of_a_switch_that_crashed_before_it_made_a_new_one_is_kept(host: FakeHost) -> None:
    host.instance.start(HOST)
    older(host.instance.paths.log).write_text("last words")
    host.instance.kill()
    host.instance.stop()
    assert host.instance.paths.saved_log.read_text() == "last words"


def test_a_log_that_cannot_be_kept_does_not_keep_a_dead_instance_from_being_started(host: FakeHost) -> None:
    host.instance.start(HOST)
    host.instance.paths.log.write_text("x" * 100_000)
    state_dir = host.instance.paths.saved_log.parent
    assert not state_dir.exists()
    state_dir.touch()  # no directory, so nothing can be kept in it
    host.instance.kill()
    host.instance.stop()
    assert not host.instance.paths.run_dir.exists()
    host.instance.start(HOST)
    assert host.instance.status().state is State.RUNNING


def test_a_database_server_that_ended_is_started_again(host: FakeHost) -> None:
    host.instance.start(HOST)
    host.instance.restart_ovsdb()
    status = host.instance.status()
    assert status.ovsdb_pid is not None
    assert not host.instance.lacks_database()
    del host.processes[status.ovsdb_pid]
    assert host.instance.lacks_database()
    host.instance.restart_ovsdb()
    assert not host.instance.lacks_database()
    assert host.instance.status().vswitchd_pid == status.vswitchd_pid
    host.instance.stop()
    host.instance.restart_ovsdb()
    assert host.processes == {}


def test_a_database_server_that_hangs_is_replaced(host: FakeHost) -> None:
    host.instance.start(HOST)
    before = host.instance.status()
    host.hung.add(host.instance.paths.db_socket)
    host.instance.restart_ovsdb()
    after = host.instance.status()
    assert after.ovsdb_pid not in (None, before.ovsdb_pid)
    assert after.vswitchd_pid == before.vswitchd_pid


def test_only_proven_processes_are_ended(host: FakeHost) -> None:
    host.instance.start(HOST)
    paths = host.instance.paths
    ours = [f"--pidfile={paths.vswitchd_pid}"]
    host.processes |= {
        900: ["ovs-vswitchd", *ours],  # a namesake in a container: neither the pid file nor our namespace says it
        901: ["ovs-vswitchd", f"--pidfile={paths.vswitchd_pid}.other"],
        902: ["ovs-vswitchd", *ours],  # ours by its namespace, though the pid file names another
    }
    host.namespaces.members[paths.netns] = {901, 902}
    host.instance.stop()
    assert sorted(host.processes) == [900, 901]


def test_a_recycled_pid_is_not_ended(host: FakeHost) -> None:
    host.instance.start(HOST)
    host.instance.kill()
    pid = int(host.instance.paths.vswitchd_pid.read_text())
    host.processes[pid] = ["postgres"]
    assert host.instance.status().state is State.DEAD
    host.instance.stop()
    assert host.processes == {pid: ["postgres"]}


def test_a_running_side_is_not_started(host: FakeHost) -> None:
    host.instance.start(HOST)
    with pytest.raises(SwitchError, match="instance a is running already") as caught:
        host.instance.start(TREE)
    assert caught.value.hint == "`ovs-hotswap instance stop a`"


def test_a_side_that_another_process_starts_is_not_started(host: FakeHost) -> None:
    paths = host.instance.paths
    paths.run_dir.mkdir(parents=True)
    record = (
        '{"release": "host", "root": null, "ovs_version": "3", "dpdk_version": "2", "started": 1, "starter": 77}'
    )  # fmt: skip
    paths.record.write_text(record)
    host.processes[77] = ["ovs-hotswap"]
    assert host.instance.status().state is State.STARTING
    with pytest.raises(SwitchError, match="instance a is starting already"):
        host.instance.start(HOST)
    del host.processes[77]
    assert host.instance.status().state is State.DEAD


def test_whoever_has_the_number_of_a_starter_that_ended_starts_nothing(host: FakeHost) -> None:
    paths = host.instance.paths
    paths.run_dir.mkdir(parents=True)
    record = InstanceRecord(release="host", root=None, ovs_version="3", dpdk_version="2", started=1.0,
                            starter=os.getppid(), starter_born=start_time(os.getppid()))  # fmt: skip
    host.processes[os.getppid()] = ["ovs-hotswap"]
    paths.record.write_text(record.model_dump_json())
    assert host.instance.status().state is State.STARTING
    paths.record.write_text(record.model_copy(update={"starter_born": 1}).model_dump_json())
    assert host.instance.status().state is State.DEAD
    host.instance.start(HOST)
    assert "starter_born" not in paths.record.read_text()  # an earlier version refuses what it does not know


@pytest.mark.parametrize("text", ["", "{", '{"release": "host"}', "null"])
def test_status_and_stop_bear_a_broken_record(host: FakeHost, text: str) -> None:
    host.instance.start(HOST)
    host.instance.paths.record.write_text(text)
    status = host.instance.status()
    assert (status.state, status.release) == (State.RUNNING, None)
    host.instance.stop()
    assert host.processes == {}
    assert host.namespaces.devices == {None: {"lo", "vf-a"}}


def test_a_device_that_is_not_there_is_named(host: FakeHost) -> None:
    host.namespaces.devices[None].remove("vf-a")
    with pytest.raises(HotswapError, match="no network device vf-a in the host's network namespace"):
        host.instance.start(HOST)
    assert host.namespaces.devices == {None: {"lo"}}


def test_the_host_s_release_runs_in_the_namespace() -> None:
    argv = launch.command(HOST, "ovsh-a", [Path("/run/x")], ["prog", "--arg"])
    assert argv[:3] == ["nsenter", "--net=/run/netns/ovsh-a", "--"]
    assert argv[-3:] == ["sh", "prog", "--arg"]
    assert "chroot" not in " ".join(argv)


@pytest.mark.parametrize("release", [HOST, TREE])
def test_threads_that_choose_no_core_stay_on_the_given_ones(release: Release) -> None:
    argv = launch.command(release, "ovsh-a", [Path("/run/x")], ["prog"], {3, 0, 2})
    assert argv[:4] == ["taskset", "--cpu-list", "0,2,3", "nsenter"]
    assert argv[3:] == launch.command(release, "ovsh-a", [Path("/run/x")], ["prog"])


def test_an_instance_is_started_beside_the_pmd_cores(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1, 2, 3, 4})
    host.instance.start(HOST)  # the PMD threads of both sides are on 1 and 3
    assert {tuple(argv[:3]) for argv in host.ran} == {("taskset", "--cpu-list", "0,2,4")}


def test_an_instance_that_has_no_other_cores_is_started_on_its_pmd_cores(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {1, 3})
    host.instance.start(HOST)
    assert {argv[0] for argv in host.ran} == {"nsenter"}


def test_a_tree_release_runs_in_the_namespace_with_mounts_of_its_own() -> None:
    argv = launch.command(TREE, "ovsh-a", [Path("/run/x"), Path("/run/vms")], ["prog", "--arg"])
    assert argv[:7] == ["nsenter", "--net=/run/netns/ovsh-a", "--", "unshare", "--mount", "--propagation", "private"]
    assert argv[-6:] == ["/srv/new", "/run/x", "/run/vms", "--", "prog", "--arg"]
    assert 'exec chroot "$tree" "$@"' in argv[-8]


def test_mount_points_outside_run_and_tmp_are_made_in_the_tree(tmp_path: Path) -> None:
    """The process that starts the instance makes them, because its unit cannot write there."""
    tree = replace(TREE, root=str(tmp_path))
    launch.make_places(tree, [Path("/run/x"), Path("/tmp/y"), Path("/var/lib/vms"), Path("/srv/z")])
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")) == [
        "srv", "srv/z", "var", "var/lib", "var/lib/vms",
    ]  # fmt: skip
    launch.make_places(HOST, [Path("/srv/other")])
    assert not Path("/srv/other").exists()
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="file"):
        launch.make_places(tree, [Path("/file/below")])


def test_an_instance_in_the_host_s_namespace_enters_none() -> None:
    assert launch.command(HOST, "", [], ["prog"])[:2] == ["sh", "-c"]
    assert launch.command(TREE, "", [], ["prog"])[0] == "unshare"


@pytest.mark.parametrize(
    ("cores", "mask"), [([0], "0x1"), ([1, 3], "0xa"), ([64], "0x10000000000000000"), ([2, 2], "0x4")]
)
def test_cpu_mask(cores: list[int], mask: str) -> None:
    assert cpu_mask(cores) == mask


@pytest.mark.parametrize(("nodes", "value"), [({0}, "512"), ({1}, "0,512"), ({0, 2}, "512,0,512"), (set(), "512")])
def test_socket_mem(nodes: set[int], value: str) -> None:
    assert socket_mem(512, nodes) == value


def test_socket_limit_leaves_no_node_without_one() -> None:
    assert socket_limit(66, [1, 0]) == "66,66"
    assert socket_limit(66, []) == "66"


LOG = """\
2026-11-22T00:24:08.714Z|00013|dpdk|WARN|EAL: No free 1048576 kB hugepages reported on node 0
2026-11-22T00:24:08.715Z|00014|dpdk|ERR|EAL: Not enough memory available on socket 0! Requested: 9MB, available: 4MB
2026-11-22T00:24:08.715Z|00015|dpdk|ERR|EAL: Cannot init memory
2026-11-22T00:24:08.716Z|00016|dpdk|EMER|Unable to initialize DPDK: Cannot allocate memory
2026-11-22T00:24:08.717Z|00003|daemon_unix|EMER|could not detach from foreground session
"""
LINES = LOG.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("log", "output", "text", "hint"),
    [
        (LOG, "", "Not enough memory available on socket 0! Requested: 9MB, available: 4MB", "vm.nr_hugepages"),
        ("".join(LINES[2:]), "", "otherwise: Unable to initialize DPDK: Cannot allocate memory", "log"),
        (LINES[4], "exec failed", "otherwise: exec failed", "log"),
        ("", "", "otherwise", "log"),
        ("t|1|dpdk|ERR|DPDK not supported in this copy of Open vSwitch.", "", "DPDK not supported", "switch-dpdk"),
        (
            "t|1|netdev_dpdk|ERR|Failed to create memory pool for netdev x",
            "",
            "Failed to create memory pool",
            "mempool",
        ),
        ("", "a: error while loading shared libraries: librte_eal.so.23", "error while loading", "incomplete"),
    ],
)
def test_the_telling_line_of_a_log(log: str, output: str, text: str, hint: str) -> None:
    cause = telling_cause(log, output, "otherwise")
    assert text in cause.text
    assert hint in cause.hint


def test_huge_pages_of_1_gib_that_nobody_asked_for_are_no_cause() -> None:
    assert telling_cause(LINES[0], "", "otherwise").text == "otherwise"


def test_fatal() -> None:
    assert fatal(LOG)
    assert not fatal(LINES[0])


def test_faults_of_ports() -> None:
    def port(ofport: int | None, error: str | None) -> InterfaceStatus:
        return InterfaceStatus(ofport, error, None, None, "dpdk", {}, None, {})

    found = {"good": port(1, None), "bad": port(-1, "no device"), "silent": port(-1, None), "new": port(None, None)}
    expected = {"bad": "no device", "silent": "could not be made", "gone": "not in the database"}
    assert faults(found, [*found, "gone"]) == expected


def test_a_fault_of_the_kernel_is_one_of_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that only look may be run by anyone, and the kernel lets only root into a namespace."""

    def refuse(**_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("ovs_hotswap.switch.netns.IPRoute", refuse)
    for ask in (Namespaces().look, Namespaces().mtu):
        with pytest.raises(SwitchError, match=r"the host's network devices: .*not permitted"):
            ask("vf-a", None)


@pytest.mark.parametrize("keeps", [True, False])
def test_an_instance_may_start_with_the_database_that_it_had_last(host: FakeHost, tmp_path: Path, keeps: bool) -> None:
    """Where others program a host, only its database knows what they have written."""
    filled: list[str] = []
    host.instance._keeps_database = lambda: keeps
    host.instance._fill_database = lambda release: filled.append(release.name)
    kept = tmp_path / "databases" / "a.db"
    kept.parent.mkdir()
    kept.write_text("what others have written")
    host.instance.paths = dataclasses.replace(host.instance.paths, db_file=kept)
    host.instance.start(HOST)
    assert filled == ([] if keeps else ["host"])
    assert any("create" in argv for argv in host.ran) is not keeps
    host.instance.stop()
    assert kept.exists() is keeps
