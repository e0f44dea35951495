"""An instance whose processes systemd starts: orders, faults, and when systemd is asked at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import HotswapError, ReleaseError, SwitchError, from_document, to_document
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.instance import Instance, State
from ovs_hotswap.switch.units import InstanceUnit, StartRequest
from ovs_hotswap.system import Completed
from tests.unit.test_instance import HOST, FakeDb, FakeHost, FakeNamespaces, configuration

UNIT, NETNS = "ovs-hotswap-instance@a.service", "ovs-hotswap-netns@a.service"


class FakeGivenNamespaces(FakeNamespaces):
    """A table of namespaces that others make and remove."""

    def create(self, name: str) -> None:
        assert name in self.devices

    def remove(self, name: str) -> None:
        pass


class Booted(FakeHost):
    """A machine with a systemd. ``instance`` asks it, ``direct`` does not, ``inside`` is the unit's own command.
    ``active`` is the unit's state."""

    def __init__(self, config: Config, booted: Path) -> None:
        super().__init__(config)
        self.direct = self.instance
        self.given = FakeGivenNamespaces(self.namespaces.devices)
        self.inside = Instance(
            config,
            Side.A,
            self,
            namespaces=self.given,
            connect=lambda path, timeout, lives, tables: FakeDb(self),
            control=self._control,
        )
        self.unit = InstanceUnit(Side.A, self, booted=booted, run_dir=config.run_dir)
        self.instance = Instance(
            config, Side.A, self, unit=self.unit, namespaces=self.namespaces,
            connect=lambda path, timeout, lives, tables: FakeDb(self), control=self._control,
        )  # fmt: skip
        self.config, self.loaded, self.active = config, "loaded", "inactive"
        self.asked: list[str] = []
        self.killed_in_start = False

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        if argv[0] != "systemctl":
            return super().run(argv, timeout=timeout, check=check, stdin=stdin, env=env)
        verb, units = argv[1], [word for word in argv[2:] if not word.startswith("-")]
        if verb == "show":
            state = {"LoadState": self.loaded, "ActiveState": self.active}
            return Completed(tuple(argv), 0, state[argv[2].removeprefix("--property=")] + "\n", "")
        self.asked.append(f"{verb} {' '.join(units)}")
        if verb == "start":
            return self._start(argv)
        if verb == "reload":
            self.unit.carry_out(lambda _order: self.inside.restart_ovsdb())
            return Completed(tuple(argv), 0, "", "")
        if (verb, units) == ("reset-failed", [UNIT]) or (units == [UNIT] and self.active != "failed"):
            self.active = "inactive"
        if units == [NETNS]:
            self.namespaces.remove(self.instance.paths.netns)
        return Completed(tuple(argv), 0, "", "")

    def _start(self, argv: Sequence[str]) -> Completed:
        self.active = "failed"
        self.namespaces.create(self.instance.paths.netns)
        if not self.killed_in_start:
            try:
                self.unit.carry_out(lambda order: self.inside.bring_up(order.release))
                self.active = "active"
                return Completed(tuple(argv), 0, "", "")
            except HotswapError:
                pass
        return Completed(tuple(argv), 1, "", "Job for ovs-hotswap-instance@a.service failed.\nSee ...\n")


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ovsh-") as made:  # socket paths are short
        yield Path(made)


@pytest.fixture
def host(directory: Path) -> Booted:
    config = configuration(directory)
    config.run_dir.mkdir()
    return Booted(config, directory)


def test_systemd_starts_the_processes(host: Booted) -> None:
    host.instance.start(HOST)
    assert host.instance.status().state is State.RUNNING
    assert host.instance.status().release == HOST
    assert (host.asked[-1], host.active) == (f"start {UNIT}", "active")
    assert sorted(path.name for path in host.config.run_dir.iterdir()) == ["a"]  # the order is gone


def test_a_stop_leaves_the_unit_inactive(host: Booted) -> None:
    host.instance.start(HOST)
    host.active = "failed"  # its switch was killed
    host.instance.stop()
    assert (host.processes, host.active) == ({}, "inactive")
    assert host.namespaces.devices == {None: {"lo", "vf-a"}}


def test_a_start_that_fails_says_the_same_as_without_systemd(host: Booted) -> None:
    host.fails, host.namespaces.refuse_back = "ovs-vswitchd-dpdk", True
    with pytest.raises(SwitchError) as direct:
        host.direct.start(HOST)
    host.namespaces.refuse_back = False
    host.direct.stop()
    host.given.refuse_back = True
    with pytest.raises(SwitchError) as through:
        host.instance.start(HOST)
    for error in (direct.value, through.value):
        assert error.message.startswith("instance a: ovs-vswitchd-dpdk of release host (")
        assert error.__notes__ == ["and undoing it failed: network device vf-a cannot be moved"]
    assert (through.value.message, through.value.hint) == (direct.value.message, direct.value.hint)


def test_nothing_is_left_of_a_start_that_fails(host: Booted) -> None:
    host.fails = "ovs-vswitchd-dpdk"
    with pytest.raises(SwitchError, match="did not start"):
        host.instance.start(HOST)
    assert host.processes == {}
    assert host.namespaces.devices == {None: {"lo", "vf-a"}}
    assert list(host.config.run_dir.iterdir()) == []
    assert host.active == "failed"  # for `systemctl status`


def test_a_command_that_was_killed_is_told_from_one_that_failed(host: Booted) -> None:
    host.killed_in_start = True
    with pytest.raises(SwitchError, match=r"instance a: ovs-hotswap-instance@a.service did not start: Job for") as got:
        host.instance.start(HOST)
    assert got.value.hint is not None
    assert "journalctl -u ovs-hotswap-instance@a.service" in got.value.hint
    assert list(host.config.run_dir.iterdir()) == []


def test_a_start_that_nobody_waits_for_any_more_is_ended_first(host: Booted) -> None:
    host.active = "activating"
    host.instance.stop()
    assert host.asked == [
        f"stop {UNIT}",
        f"stop {UNIT}",
        f"stop {NETNS}",
        f"reset-failed {UNIT}",
        f"reset-failed {NETNS}",
    ]


@pytest.mark.parametrize("lacks", ["systemd", "unit", "directory"])
def test_without_the_unit_the_caller_starts_the_processes(host: Booted, directory: Path, lacks: str) -> None:
    host.loaded = "not-found" if lacks == "unit" else "loaded"
    booted = directory / "nowhere" if lacks == "systemd" else directory
    run_dir = directory / "other" if lacks == "directory" else host.config.run_dir
    unit = InstanceUnit(Side.A, host, booted=booted, run_dir=run_dir)
    assert not unit.serves(host.config)
    instance = Instance(
        host.config,
        Side.A,
        host,
        unit=unit,
        namespaces=host.namespaces,
        connect=lambda path, timeout, lives, tables: FakeDb(host),
    )
    instance.start(HOST)
    assert instance.status().state is State.RUNNING
    assert host.asked == []


def test_a_unit_is_not_restarted_the_plain_way(host: Booted) -> None:
    host.instance.start(HOST)
    with pytest.raises(SwitchError, match=r"instance a is ovs-hotswap-instance@a\.service"):
        host.instance.restart()


def test_systemd_starts_a_database_server_that_ended(host: Booted) -> None:
    host.instance.start(HOST)
    lost = host.instance.database_pid()
    assert lost is not None
    del host.processes[lost]
    host.instance.restart_ovsdb()
    assert host.asked[-1] == f"reload {UNIT}"
    assert not host.instance.lacks_database()


@pytest.mark.parametrize("text", [None, "", "{}", '{"release": "host"}'])
def test_without_an_order_there_is_nothing_to_carry_out(host: Booted, text: str | None) -> None:
    if text is not None:
        (host.config.run_dir / "order-a.json").write_text(text)
    with pytest.raises(SwitchError, match="no order to start instance a") as caught:
        host.unit.carry_out(lambda order: pytest.fail(str(order)))
    assert caught.value.hint == "`ovs-hotswap instance start a` gives one"


def test_an_order_carries_the_configuration(host: Booted) -> None:
    release = Release("new", "/srv/new", "3.5.0", "24.11.4")
    order = StartRequest(release=release, config=host.config)
    assert StartRequest.model_validate_json(order.model_dump_json()) == order


def test_a_fault_keeps_the_class_of_the_error() -> None:
    error = ReleaseError("the tree is gone", hint="add it again")
    error.add_note("and more")
    again = from_document(json.loads(json.dumps(to_document(error))))
    assert type(again) is ReleaseError
    assert (again.message, again.hint, again.__notes__) == ("the tree is gone", "add it again", ["and more"])


def test_a_fault_of_an_earlier_version_keeps_the_class_of_the_error() -> None:
    earlier = {"exit_code": ReleaseError.exit_code, "message": "the tree is gone", "hint": None, "notes": []}
    again = from_document(earlier)
    assert (type(again), again.message, again.hint) == (ReleaseError, "the tree is gone", None)


def test_an_order_of_an_earlier_version_is_carried_out(host: Booted) -> None:
    """A watchdog that was started before this version was installed says `road` for the back-end mode."""
    release = Release("new", "/srv/new", "3.5.0", "24.11.4")
    order = json.loads(StartRequest(release=release, config=host.config).model_dump_json())
    order["config"]["road"] = order["config"].pop("backend")
    assert StartRequest.model_validate_json(json.dumps(order)).config == host.config


def test_a_vfio_device_needs_its_group_and_its_container() -> None:
    """The container is a misc device (10:196), so it is not among the devices of the kind vfio."""
    text = (Path(__file__).parents[2] / "systemd/ovs-hotswap-instance@.service").read_text().splitlines()
    assert {"DevicePolicy=closed", "DeviceAllow=char-vfio rw", "DeviceAllow=/dev/vfio/vfio rw"} <= set(text)
