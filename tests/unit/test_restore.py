"""What was active before a boot, and what is started after it."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from ovs_hotswap.config import Active, Config
from ovs_hotswap.errors import BusyError, HostError, StateUnknown, SwitchError
from ovs_hotswap.host import saved_settings, standby
from ovs_hotswap.host.lifecycle import adopt, restore, start_instance, stop_for_good
from ovs_hotswap.model import Release, Side
from ovs_hotswap.plan.interrupts import Interrupted
from ovs_hotswap.switch.paths import read_record
from tests.unit.watch_bed import RELEASE, FakeHost, World


class Releases:
    def get(self, name: str) -> Release:
        return Release(name, None, "3.1.0", "22.11")


class Machine(FakeHost):
    """``boot`` empties run_dir. ``fails``: programming does."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, World([]))
        self.__dict__["releases"] = Releases()
        config.overlay.write_text('[vtep]\naddress = "172.31.0.1/24"\nmac = "52:54:00:1f:00:01"\n')
        self.fails = False

    def boot(self) -> None:
        self.config.active_file.unlink()
        self.world.uplink_owner = None

    def program(self, side: Side) -> None:
        if self.fails:
            raise SwitchError("no such port")
        self.world.done.append(f"program {side}")


@pytest.fixture
def host(tmp_path: Path) -> Machine:
    side = {"pmd_cores": [0], "uplink_devargs": "x"}
    return Machine(Config.model_validate({
        "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
        "state_dir": str(tmp_path / "state"), "instances": {"a": side, "b": side},
    }))  # fmt: skip


def test_a_boot_brings_back_the_side_that_was_active_last(host: Machine) -> None:
    host.record_active(Side.A)
    host.record_active(Side.B)
    host.boot()
    assert host.recorded_active() is None
    assert restore(host) == Active(side=Side.B, release="host")
    assert host.world.done == ["start b host", "program b", "steer b"]
    assert host.recorded_active() is Side.B


def test_where_a_side_is_active_nothing_is_restored(host: Machine) -> None:
    host.record_active(Side.A)
    assert restore(host) is None
    assert host.world.done == []


def test_where_none_ever_was_nothing_is_restored(host: Machine) -> None:
    assert restore(host) is None
    assert host.world.done == []


def test_what_was_stopped_on_purpose_is_not_restored(host: Machine) -> None:
    host.record_active(Side.A)
    host.forget_active()
    assert restore(host) is None
    assert host.last_active() is None


def test_what_cannot_be_programmed_is_stopped_and_restored_the_next_time(host: Machine) -> None:
    host.record_active(Side.A)
    host.boot()
    host.fails = True
    with pytest.raises(SwitchError):
        restore(host)
    assert host.world.done == ["start a host", "stop a"]
    assert host.recorded_active() is None
    host.fails = False
    assert restore(host) is not None


@pytest.mark.parametrize("text", ["", "{}", '{"side": "c", "release": "host"}'])
def test_a_record_that_cannot_be_read_is_not_guessed(host: Machine, text: str) -> None:
    host.record_active(Side.A)
    host.boot()
    host.config.restore_file.write_text(text)
    with pytest.raises(StateUnknown, match=r"active\.json: cannot be read"):
        restore(host)
    assert host.world.done == []


def read_only(host: Machine) -> None:
    host.world.full, host.world.no_writing = {"active.json"}, errno.EROFS


def test_a_state_directory_that_cannot_be_written_keeps_nobody_from_being_served_after_a_boot(
    host: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    host.record_active(Side.A)
    host.boot()
    read_only(host)
    assert restore(host) is not None
    assert host.world.done == ["start a host", "program a", "steer a"]
    assert caplog.text == ""  # it is recorded already


def test_a_first_instance_that_cannot_be_recorded_for_the_next_boot_is_started(
    host: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    read_only(host)
    assert start_instance(host, Side.B, RELEASE)
    assert host.recorded_active() is Side.B
    assert "not recorded for the next boot" in caplog.text
    assert "Read-only file system" in caplog.text


def test_a_first_instance_that_cannot_be_recorded_at_all_is_undone(host: Machine) -> None:
    host.world.full = {"active"}
    with pytest.raises(HostError, match="No space left"):
        start_instance(host, Side.B, RELEASE)
    assert host.recorded_active() is None
    assert host.world.pid[Side.B] is None
    assert host.world.uplink_owner is not Side.B


def test_what_fails_after_the_record_is_undone_with_it(host: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    record = host.record_active

    def interrupted(side: Side) -> None:
        record(side)
        raise KeyboardInterrupt

    monkeypatch.setattr(host, "record_active", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_instance(host, Side.B, RELEASE)
    assert (host.recorded_active(), host.last_active(), host.world.uplink_owner) == (None, None, None)


def test_a_stop_that_failed_half_way_is_finished_by_the_next(host: Machine) -> None:
    host.record_active(Side.A)

    def fail() -> None:
        host.world.during_stop = lambda: None
        raise SwitchError("its namespace is busy")

    host.world.during_stop = fail
    with pytest.raises(SwitchError):
        stop_for_good(host, Side.A)
    assert host.world.uplink_owner is Side.A
    stop_for_good(host, Side.A)
    assert host.world.uplink_owner is None


def test_what_is_stopped_between_a_boot_and_its_restore_is_not_restored(host: Machine) -> None:
    host.record_active(Side.A)
    host.boot()
    stop_for_good(host, Side.B)
    assert host.last_active() == Active(side=Side.A, release="host")
    stop_for_good(host, Side.A)
    assert restore(host) is None


@pytest.mark.parametrize("damage", [b"", b"\0\0", b"\xff\xfe", b"c\n", None])
def test_where_the_record_of_this_boot_is_damaged_that_for_the_next_one_tells(
    host: Machine, damage: bytes | None
) -> None:
    host.record_active(Side.B)
    host.config.active_file.unlink()
    if damage is None:
        host.config.active_file.mkdir()
    else:
        host.config.active_file.write_bytes(damage)
    assert host.recorded_active() is Side.B


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"[]", b"\0" * 4096])
def test_damaged_records_of_any_kind_are_none(host: Machine, damage: bytes) -> None:
    host.record_active(Side.A)
    for side in Side:
        path = host.instances[side].paths.record
        path.parent.mkdir(parents=True)
        path.write_bytes(damage)
        assert read_record(path) is None
    standby.record_path(host.config).write_bytes(damage)
    assert standby.read_record(host) is None
    host.config.restore_file.write_bytes(damage)
    with pytest.raises(StateUnknown, match=r"active\.json"):
        host.last_active()
    stop_for_good(host, Side.A)
    assert host.last_active() is None


def test_records_of_a_newer_version_are_read(host: Machine) -> None:
    """The one before is put back beside running instances."""
    host.record_active(Side.A)
    newer = {"side": "a", "release": "host", "since": 5}
    host.config.restore_file.write_text(json.dumps(newer))
    assert host.last_active() == Active(side=Side.A, release="host")
    path = host.instances[Side.A].paths.record
    path.parent.mkdir(parents=True)
    record = {"release": "host", "root": None, "ovs_version": "3.1.0", "dpdk_version": "22.11", "started": 1.0}
    path.write_text(json.dumps({**record, "starter": 7, "unheard_of": []}))
    found = read_record(path)
    assert found is not None
    assert found.release == "host"
    of_standby = {"side": "b", "pid": 2, "log_level": "info", "scheduling": None, "prepared": True, "unheard_of": {}}
    standby.record_path(host.config).write_text(json.dumps(of_standby))
    assert standby.read_record(host) is not None


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_start_that_a_signal_ends_is_undone_whatever_comes_meanwhile(
    host: Machine, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Such a signal comes when the connection to a remote terminal is lost."""

    def ended(_side: Side) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(host, "program", ended)
    host.world.during_stop = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match=number.name):
        start_instance(host, Side.B, RELEASE)
    assert host.world.done == ["start b host", "stop b"]
    assert host.world.pid[Side.B] is None


def test_a_signal_does_not_end_the_undoing_of_a_start(host: Machine) -> None:
    stopped: list[bool] = []

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        stopped.append(True)

    host.fails, host.world.during_stop = True, stop
    with pytest.raises((SwitchError, Interrupted)):
        start_instance(host, Side.B, RELEASE)
    assert stopped == [True]


@pytest.mark.parametrize("settings", [[], [["Interface", "uplink", "options", "n_rxq", {"no": "number"}]]])
def test_kept_settings_that_cannot_be_given_for_any_reason_keep_nobody_from_being_served(
    host: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, settings: list[object]
) -> None:
    host.record_active(Side.A)
    host.boot()
    saved_settings.path_of(host.config).write_text(
        json.dumps({"side": "a", "settings": settings, "pmd_sleep_us": 5, "unheard_of": 1})
    )

    def refuse(_side: Side, _microseconds: int) -> None:
        raise TypeError("no number")

    monkeypatch.setattr(host, "settle_pmd_sleep", refuse)
    assert restore(host) is not None
    assert "does not get back its settings" in caplog.text
    assert saved_settings.path_of(host.config).with_suffix(".not-given.json").exists()


def test_an_instance_that_serves_without_a_record_becomes_the_active_one_untouched(host: Machine) -> None:
    host.world.done.clear()
    assert adopt(host, Side.B)
    assert host.recorded_active() is Side.B
    assert host.world.done == ["steer b"]
    assert not adopt(host, Side.A)  # a side is active now


def test_the_rule_of_an_instance_that_runs_is_not_taken_away_first(
    host: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_away(_uplink: object, _side: Side) -> None:
        raise AssertionError("it was not started, so its virtual function was not reset")

    monkeypatch.setattr("ovs_hotswap.host.lifecycle.steer_to_started", take_away)
    assert adopt(host, Side.B)


def test_an_instance_does_not_become_the_active_one_while_the_other_owns_a_vm(host: Machine) -> None:
    host.world.owner["vm1"] = Side.A
    host.world.parked["vm1"] = set()
    with pytest.raises(BusyError, match="instance a owns the rings of VM vm1") as failure:
        adopt(host, Side.B)
    assert failure.value.hint == "`ovs-hotswap instance start a`"
    assert host.recorded_active() is None


def test_the_other_side_stays_the_warm_standby_of_an_instance_that_becomes_the_active_one(host: Machine) -> None:
    record = standby.StandbyRecord(side=Side.B, pid=2, log_level="info", scheduling=None, prepared=True)
    host.config.run_dir.mkdir()
    host.world.write_atomic(standby.record_path(host.config), record.model_dump_json())
    assert adopt(host, Side.A)
    assert standby.warm(host, Side.B) == record
