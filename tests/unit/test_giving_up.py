"""Nothing is given up before what comes after it has been seen to live; whatever still can serve is started again."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import HostError, SwitchError
from ovs_hotswap.host import settings_transfer
from ovs_hotswap.model import Release, Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.switch.paths import older
from ovs_hotswap.switch.settings_plan import Carry
from ovs_hotswap.upgrade import collect, peer_link, steps
from ovs_hotswap.upgrade.collect import LogEnd
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.steps import CloseWindow, PeerLink, RecordActive, Retire, StartStandby, SteerUplink
from tests.support.fake_backends import FakeBackEnds
from tests.unit.watch_bed import RELEASE, Bed, FakeInstance, World


@pytest.fixture
def config(tmp_path: Path) -> Config:
    side = {"pmd_cores": [0], "uplink_devargs": "x"}
    return Config.model_validate({
        "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
        "state_dir": str(tmp_path / "state"), "instances": {"a": side, "b": side},
    })  # fmt: skip


@pytest.fixture
def bed(config: Config) -> Bed:
    """A committed upgrade from a to b: b serves every VM, and they are parked on a."""
    made = Bed(config, prepared=False)
    made.world.owner = dict.fromkeys(made.world.owner, Side.B)
    made.world.parked = {name: {Side.A} for name in made.world.owner}
    return made


def upgrade(bed: Bed) -> Upgrade:
    return Upgrade(bed.host, Side.A, Side.B, "host")


class FakeReleases:
    def get(self, _name: str) -> Release:
        return RELEASE

    def installed(self) -> Release:
        return RELEASE


def run(**facts: Any) -> StepContext:
    return StepContext(lambda: facts, lambda _facts: None, lambda _event: None)


class BrokerOfADeath(FakeBackEnds):
    """The new instance dies when the last VM has been unparked."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._world = world

    def unpark(self, name: str, side: Side) -> None:
        super().unpark(name, side)
        if not any(side in sides for sides in self._world.parked.values()):
            self._world.die(side.other)


def test_a_new_instance_that_dies_while_the_old_one_is_given_up_has_somewhere_to_go_back_to(bed: Bed) -> None:
    bed.host.__dict__["broker"] = BrokerOfADeath(bed.world)
    with pytest.raises(SwitchError, match="instance b died"):
        Retire().do(upgrade(bed), run())
    assert "stop a" not in bed.world.done
    assert set(bed.world.owner.values()) == {Side.A}
    assert upgrade(bed).look(service=True).no_way_on == "instance b died", "so the plan goes back"


def test_no_vm_can_flee_to_an_instance_that_is_ending(bed: Bed) -> None:
    class Ending(FakeInstance):
        def stop(self, *, keep_log: bool = False) -> None:
            self.world.die(self.side.other)  # at the worst moment
            super().stop(keep_log=keep_log)

    bed.host.instances[Side.A] = Ending(bed.config, bed.world, Side.A)  # type: ignore[assignment]
    Retire().do(upgrade(bed), run())
    assert set(bed.world.owner.values()) == {Side.B}


def test_an_upgrade_that_is_taken_up_starts_what_serves_its_vms(bed: Bed) -> None:
    bed.host.__dict__["releases"] = FakeReleases()
    upgrade(bed).revive()
    assert bed.world.done == [], "an instance that lives is left alone"
    bed.world.die(Side.A)
    bed.world.die(Side.B)
    upgrade(bed).revive()
    assert bed.world.done == ["start b host", "program b", "steer b"]
    assert bed.host.recorded_active() is Side.B


def test_an_active_instance_whose_own_record_is_gone_is_started_with_the_release_it_had(bed: Bed) -> None:
    """It was being retired when everything went back to it."""

    class Stopped(FakeInstance):
        def release(self) -> Any:
            return None

    bed.world.die(Side.A)
    bed.world.die(Side.B)
    host = bed.keeper._host
    host.__dict__["releases"] = FakeReleases()
    host.instances[Side.A] = Stopped(bed.config, bed.world, Side.A)  # type: ignore[assignment]
    bed.keeper.turn()
    assert "start a host" in bed.world.done


@pytest.mark.parametrize("was_running", [True, False])
def test_a_new_instance_without_its_database_is_not_needed_for_the_way_back(
    bed: Bed, was_running: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parted: list[Side] = []

    def part(host: Any, side: Side) -> None:
        if host.instances[side].lacks_database():
            raise SwitchError("the ovsdb-server of instance b does not answer")
        parted.append(side)

    monkeypatch.setattr(peer_link, "part", part)
    bed.world.owner = dict.fromkeys(bed.world.owner, Side.A)
    bed.world.no_database = {Side.B}
    context, facts = upgrade(bed), run(was_running=was_running)
    PeerLink().undo(context, facts)
    assert parted == [Side.A]
    StartStandby().undo(context, facts)
    assert bed.world.done == ["stop b"], "the watchdog starts another"


def test_a_peer_link_that_stays_on_a_switch_that_stays_is_told(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(_host: Any, side: Side) -> None:
        if side is Side.B:
            raise SwitchError("no answer")

    monkeypatch.setattr(peer_link, "part", part)
    with pytest.raises(SwitchError, match="no answer"):
        PeerLink().undo(upgrade(bed), run(was_running=True))


def test_a_log_that_is_not_there_has_no_length_and_says_nothing(bed: Bed) -> None:
    assert collect.log_end(bed.host, Side.A) == LogEnd()
    assert collect.log_since(bed.host, Side.A, LogEnd(100)) == ""
    log = bed.host.instances[Side.A].paths.log
    log.parent.mkdir(parents=True)
    log.write_text("new\n")  # an operator has cut it
    assert collect.log_since(bed.host, Side.A, LogEnd(100)) == "new\n"
    assert collect.log_since(bed.host, Side.A, LogEnd(100, log.stat().st_ino)) == "new\n"
    bed.host.instances[Side.A].paths = replace(bed.host.instances[Side.A].paths, log=log / "below")
    with pytest.raises(HostError, match="Not a directory"):
        collect.log_end(bed.host, Side.A)


def test_what_was_logged_before_a_log_was_renamed_is_seen_as_well(bed: Bed) -> None:
    log = bed.host.instances[Side.A].paths.log
    log.parent.mkdir(parents=True)
    log.write_text("old\n")
    end = collect.log_end(bed.host, Side.A)
    with log.open("a") as daemon:
        daemon.write("an error\n")
        daemon.flush()
        log.rename(older(log))
        daemon.write("not told yet\n")
    assert collect.log_since(bed.host, Side.A, end) == "an error\nnot told yet\n"
    assert collect.log_end(bed.host, Side.A).file == end.file
    log.write_text("another\n")
    assert collect.log_since(bed.host, Side.A, end) == "an error\nnot told yet\nanother\n"
    assert collect.log_since(bed.host, Side.A, collect.log_end(bed.host, Side.A)) == "", "renamed before the beginning"
    assert collect.log_since(bed.host, Side.A, LogEnd(4)) == "her\n", "of a journal that names no file"


def test_a_journal_that_names_no_file_of_the_log_is_gone_on_with() -> None:
    assert steps._log_end(run(log_offset=5)) == LogEnd(5)
    assert steps._log_end(run(**steps._log_facts(LogEnd(5, 6)))) == LogEnd(5, 6)


@pytest.mark.parametrize("name", ["restore_file", "active_file"])
def test_the_uplink_is_not_turned_if_the_commit_could_not_be_recorded(bed: Bed, name: str) -> None:
    bed.world.full, bed.world.no_writing = {getattr(bed.config, name).name}, errno.EROFS
    with pytest.raises(HostError, match="Read-only"):
        SteerUplink().do(upgrade(bed), run())
    assert bed.world.done == []


def test_but_it_is_turned_to_the_only_instance_that_is_left(bed: Bed) -> None:
    bed.world.die(Side.A)
    bed.world.full, bed.world.no_writing = {bed.config.restore_file.name}, errno.EROFS
    SteerUplink().do(upgrade(bed), run())
    assert bed.world.done == ["steer b"]


def test_a_commit_does_not_end_because_the_state_directory_cannot_be_written(bed: Bed) -> None:
    facts: dict[str, Any] = {}
    bed.world.full, bed.world.no_writing = {bed.config.restore_file.name}, errno.EROFS
    RecordActive().do(upgrade(bed), StepContext(lambda: facts, facts.update, lambda _event: None))
    assert bed.host.recorded_active() is Side.B
    (warning,) = facts["warnings"]
    assert "not recorded for the next boot" in warning


def test_the_way_back_does_not_end_because_the_state_directory_cannot_be_written(bed: Bed) -> None:
    bed.host.record_active(Side.B)
    bed.world.full, bed.world.no_writing = {bed.config.restore_file.name}, errno.EROFS
    RecordActive().undo(upgrade(bed), run())
    assert bed.host.recorded_active() is Side.A
    assert "reload" in bed.world.done


def test_nor_where_the_vms_have_fled_to_the_new_instance(bed: Bed) -> None:
    bed.world.die(Side.A)
    bed.world.full, bed.world.no_writing = {bed.config.restore_file.name}, errno.EROFS
    StartStandby().undo(upgrade(bed), run(was_running=False))
    assert bed.host.recorded_active() is Side.B
    assert bed.world.pid[Side.B] is not None


def test_a_way_back_that_is_not_recorded_at_all_has_failed(bed: Bed) -> None:
    bed.host.record_active(Side.B)
    bed.world.full, bed.world.no_writing = {bed.config.active_file.name}, errno.EROFS
    with pytest.raises(HostError):
        RecordActive().undo(upgrade(bed), run())


def test_an_old_instance_is_not_given_up_for_one_that_has_lost_the_uplink(bed: Bed) -> None:
    bed.world.no_uplink = {Side.B}
    with pytest.raises(SwitchError, match="port uplink"):
        Retire().do(upgrade(bed), run())
    assert "stop a" not in bed.world.done
    assert all(Side.A in sides for sides in bed.world.parked.values())
    assert upgrade(bed).look(service=True).no_way_on, "so the plan goes back"


@pytest.mark.parametrize("refused", [True, False])
def test_settings_that_are_carried_over_at_the_end_may_cost_the_uplink(
    bed: Bed, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window is left open then."""

    def bring(_host: Any, _source: Side, target: Side) -> Any:
        bed.world.no_uplink = {target}
        if refused:
            raise SwitchError("port uplink: could not set configuration")
        return Carry()

    parted: list[Side] = []
    monkeypatch.setattr(settings_transfer, "bring", bring)
    monkeypatch.setattr(peer_link, "part", lambda _host, side: parted.append(side))
    with pytest.raises(SwitchError, match="the datapath does not have it"):
        CloseWindow().do(upgrade(bed), run())
    assert parted == []
