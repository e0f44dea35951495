"""The watchdog on a host where something else is broken too: what it needs for the VMs, and what it does without."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, ConfigError, HostError, HotswapError, ReleaseError, SwitchError, UplinkError
from ovs_hotswap.host import standby
from ovs_hotswap.host.lifecycle import stop_for_good
from ovs_hotswap.model import Release, Side
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import StepNames
from ovs_hotswap.switch.instance import State
from ovs_hotswap.watchdog import status_file
from ovs_hotswap.watchdog.health import Health
from ovs_hotswap.watchdog.probes import MainThreadProbe
from ovs_hotswap.watchdog.standby_plan import Task
from tests.support.fake_backends import ring_status
from tests.unit.watch_bed import RELEASE, Bed, FakeHost
from tests.unit.watch_bed import config as config


class Releases:
    def get(self, name: str) -> Release:
        return replace(RELEASE, name=name)


BROKER_AWAY = BrokerError("broker at /run/broker.sock: no answer")
JOURNALS = {"damaged": "not json\n", "newer": '{"version": 2, "kind": "upgrade"}\n', "binary": "\udcff\udcfe\n"}


def state(bed: Bed) -> dict[str, Any]:
    found = status_file.read_state(bed.config)
    assert found is not None
    return found


def journal(bed: Bed, text: str) -> None:
    path = bed.config.state_dir / "journal" / "current.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(errors="surrogateescape"))


def turn(bed: Bed) -> str:
    try:
        return bed.keeper.turn()
    except (HotswapError, OSError, KeyError) as error:
        return type(error).__name__


def attempts(bed: Bed, fault: Exception, seconds: int = 600) -> int:
    """How many turns, one a second, fail by this."""
    failed = 0
    for _ in range(seconds):
        bed.world.now += 1
        failed += turn(bed) == type(fault).__name__
    return failed


def end_both(bed: Bed) -> None:
    for side in Side:
        bed.world.die(side)
    bed.world.state[Side.B] = State.STOPPED


# ------------------------------------------------------------------------------------------------ the journal


@pytest.mark.parametrize("text", JOURNALS.values(), ids=JOURNALS)
def test_a_journal_that_cannot_be_read_keeps_nobody_from_failing_over(config: Config, text: str) -> None:
    bed = Bed(config)
    journal(bed, text)
    bed.world.stopped_pids = {1}
    for _ in range(10):
        bed.look()
    assert bed.world.done == ["kill a", "steer b", "reload"]
    assert bed.host.recorded_active() is Side.B


@pytest.mark.parametrize("text", JOURNALS.values(), ids=JOURNALS)
def test_a_journal_that_cannot_be_read_keeps_nobody_from_starting_the_active_again(config: Config, text: str) -> None:
    bed = Bed(config, prepared=False)
    journal(bed, text)
    end_both(bed)
    assert turn(bed) == Task.RESTART
    assert bed.world.done == ["start a host", "program a", "steer a"]


def test_what_may_be_an_upgrade_s_is_left_alone(config: Config) -> None:
    """With an unreadable journal a standby is neither started nor ended, and the journal is reported."""
    bed = Bed(config)
    journal(bed, JOURNALS["damaged"])
    bed.world.die(Side.B)
    assert turn(bed) == "StateUnknown"
    assert bed.world.done == []


def test_a_stopped_active_that_would_not_be_started_again_is_not_ended(config: Config) -> None:
    bed = Bed(config, prepared=False)
    bed.world.parked = {name: set() for name in bed.world.owner}
    journal(bed, JOURNALS["damaged"])
    bed.world.stopped_pids = {1}
    for _ in range(10):
        bed.look()
    assert bed.world.done == []


def test_a_dead_active_is_started_again_beside_an_upgrade_s_instance_without_vms(config: Config) -> None:
    bed = Bed(config, prepared=False)
    bed.world.parked = {name: set() for name in bed.world.owner}
    with Journals(config.state_dir, bed.world).begin("upgrade", StepNames(("park",))):
        pass
    bed.world.die(Side.A)
    assert turn(bed) == Task.RESTART
    bed.world.die(Side.A)
    bed.world.parked["vm1"] = {Side.B}
    bed.world.now += 100
    assert turn(bed) == Task.NOTHING  # the failover will act


# ------------------------------------------------------------------------------------------------ disks that are full


def fill(bed: Bed, *names: str) -> None:
    bed.world.full = set(names)
    if "events.jsonl" in names:
        status_file.events_path(bed.config).mkdir(parents=True)  # it cannot be opened for writing


def test_events_that_cannot_be_kept_are_logged(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    bed = Bed(config)
    fill(bed, "events.jsonl")
    bed.world.die(Side.A)
    with caplog.at_level(logging.ERROR):
        assert bed.look({Side.A}) is Health.FAILED
    assert bed.world.done == ["steer b", "reload"]
    assert '"event": "failover"' in caplog.text
    assert "events.jsonl" in state(bed)["events_problem"]


def test_a_state_that_cannot_be_written_is_written_later(config: Config) -> None:
    bed = Bed(config)
    fill(bed, "watch.json")
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert bed.world.done == ["steer b", "reload"]
    bed.world.full = set()
    bed.look()
    assert state(bed)["health"] == Health.HEALTHY


def test_the_record_of_the_active_side_needs_no_room(config: Config) -> None:
    bed = Bed(config)
    fill(bed, "active", "active.json", "watch.json", "events.jsonl")
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert bed.world.done == ["steer b", "reload"]
    assert bed.host.recorded_active() is Side.B


def test_an_event_after_a_torn_one_is_read(config: Config) -> None:
    bed = Bed(config)
    path = status_file.events_path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"event": "fail')
    path.rename(path.with_suffix(".aside"))
    path.mkdir()
    bed.board.event("standby")
    path.rmdir()
    path.with_suffix(".aside").rename(path)
    bed.board.event("restart")
    assert [event["event"] for event in bed.events()] == ["restart"]


# ------------------------------------------------------------------------------------------------ foreign faults


def test_a_fault_that_nobody_has_thought_of_ends_no_watchdog(config: Config) -> None:
    bed = Bed(config)
    bed.world.broker_fault = KeyError("owner")
    bed.world.die(Side.A)
    for _ in range(5):
        assert bed.look({Side.A}) is Health.FAILED
    assert "KeyError" in state(bed)["failover_problem"]
    bed.world.broker_fault = None
    bed.world.now += 1
    bed.look()
    assert bed.host.recorded_active() is Side.B
    bed.look()
    assert state(bed)["failover_problem"] is None


def test_nothing_that_comes_after_the_record_undoes_a_fail_over(config: Config) -> None:
    bed = Bed(config)

    def refuse() -> list[str]:
        raise TypeError("an answer of the wrong shape")

    bed.host.broker.reload = refuse  # type: ignore[method-assign]
    bed.world.die(Side.A)
    bed.look({Side.A})
    bed.look()
    assert bed.host.recorded_active() is Side.B
    assert [event["event"] for event in bed.events()] == ["failover"]


def test_a_broker_that_does_not_answer_keeps_nobody_from_failing_over(config: Config) -> None:
    bed = Bed(config)
    bed.world.broker_fault = BROKER_AWAY
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert bed.world.done == ["steer b"]
    assert bed.host.recorded_active() is Side.B
    (event,) = bed.events()
    assert "moved" not in event


def test_one_vm_that_cannot_be_parked_in_a_fail_over_keeps_no_other(config: Config) -> None:
    bed = Bed(config)
    bed.world.parked = {name: set() for name in bed.world.owner}
    bed.world.refused = {"vm1": "vm vm1: switch b is not parked after 10 s"}
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert bed.host.recorded_active() is Side.B
    assert bed.world.owner == {"vm1": Side.A, "vm2": Side.B}


def test_an_answer_of_the_main_thread_that_nobody_understands_is_no_silence() -> None:
    def ask(*_: object) -> dict[int, int]:
        raise ValueError("pmd-perf-show: not what it was")

    main = MainThreadProbe(lambda: 0.0, 1.0, ask)
    main.watch(Path("/ctl"), 1)
    main.turn()
    assert main.seen() == (False, None)


# ------------------------------------------------------------------------------------------------ restarts


def test_a_faulty_overlay_intent_keeps_nobody_from_starting_the_active_again(config: Config) -> None:
    bed = Bed(config, prepared=False)
    config.overlay.write_text("[vtep]\naddress = 7\n")
    end_both(bed)
    assert turn(bed) == Task.RESTART
    bed.world.state[Side.B] = State.RUNNING
    bed.world.pid[Side.B] = 2
    standby.record_path(config).write_text(
        standby.StandbyRecord(side=Side.B, pid=2, log_level="info", scheduling=None, prepared=True).model_dump_json()
    )
    bed.keeper._programmed = bed.keeper._stamp
    assert "ConfigError" in [turn(bed) for _ in range(5)]  # told when there is nothing else to do


def test_an_active_without_its_database_is_given_one_without_a_broker(config: Config) -> None:
    bed = Bed(config)
    bed.world.broker_fault = BROKER_AWAY
    bed.world.no_database = {Side.A}
    assert turn(bed) == Task.MEND
    bed.world.die(Side.B)
    assert turn(bed) == Task.CLEAN


def test_a_restart_that_cannot_be_programmed_is_begun_again(config: Config) -> None:
    bed = Bed(config, prepared=False)
    end_both(bed)
    bed.world.program_fault = SwitchError("the database does not answer")
    assert turn(bed) == "SwitchError"
    assert bed.world.pid[Side.A] is None
    bed.world.program_fault = None
    bed.world.now += 2
    assert turn(bed) == Task.RESTART


def test_giving_up_on_standbys_does_not_end_the_starting_of_the_active(config: Config) -> None:
    bed = Bed(config, prepared=False)
    for _ in range(config.watch.crash_limit):
        bed.board.failure()
    assert state(bed)["gave_up"]
    end_both(bed)
    for _ in range(10):
        bed.world.now += 60
        assert turn(bed) == Task.RESTART
        bed.world.die(Side.A)


# ------------------------------------------------------------------------------------------------ what counts


FOREIGN = [OSError(24, "Too many open files"), KeyError("statistics")]


@pytest.mark.parametrize(
    "fault", [BROKER_AWAY, ConfigError("overlay.toml: faulty"), SwitchError("uplink is down"), *FOREIGN]
)
def test_a_standby_that_cannot_be_prepared_is_tried_again_for_ever(config: Config, fault: Exception) -> None:
    """The reason is the broker's, the configuration's or the cable's: no instance has failed."""
    bed = Bed(config, prepared=False)
    bed.world.program_fault = fault
    failed = attempts(bed, fault, 3600)
    assert not state(bed).get("gave_up")
    assert 5 < failed < 30  # it waits longer and longer
    bed.world.program_fault = None
    for _ in range(400):
        bed.world.now += 1
        turn(bed)
    assert state(bed)["standby"] == "b"


@pytest.mark.parametrize("fault", FOREIGN)
def test_an_intent_that_cannot_be_programmed_for_any_reason_is_tried_less_and_less(
    config: Config, fault: Exception
) -> None:
    """Each time, the standby's ports are configured again."""
    bed = Bed(config)
    bed.world.program_fault = fault
    assert 2 < attempts(bed, fault) < 15
    bed.world.program_fault = None
    bed.world.now += 300
    assert turn(bed) == Task.PROGRAM


@pytest.mark.parametrize("fault", FOREIGN)
def test_an_instance_that_cannot_be_started_for_any_reason_is_tried_less_and_less(
    config: Config, fault: Exception
) -> None:
    bed = Bed(config, prepared=False)
    bed.world.pid[Side.B], bed.world.state[Side.B] = None, State.STOPPED
    bed.world.start_fault = fault
    assert 2 < attempts(bed, fault) < 20


def test_a_release_that_is_not_there_is_no_failure_of_an_instance(config: Config) -> None:
    watch = config.watch.model_copy(update={"release": "gone"})
    bed = Bed(config.model_copy(update={"watch": watch}), prepared=False)
    bed.world.state[Side.B], bed.world.pid[Side.B] = State.STOPPED, None
    for _ in range(20):
        bed.world.now += 60
        assert turn(bed) == ReleaseError.__name__
    assert bed.events() == []


def test_an_instance_that_ends_while_it_is_prepared_is_counted(config: Config) -> None:
    bed = Bed(config, prepared=False)
    bed.world.program_fault = SwitchError("connection refused")
    bed.world.during_stop = lambda: None

    class Dying(FakeHost):
        def program_database(self, side: Side) -> None:
            self.world.die(side)
            super().program_database(side)

    bed.keeper._host = Dying(config, bed.world)
    assert turn(bed) == "SwitchError"
    assert state(bed)["failures"] == 1


def test_a_vm_that_cannot_be_parked_is_named_and_the_standby_stays(config: Config) -> None:
    bed = Bed(config, prepared=False)
    bed.world.parked = {name: set() for name in bed.world.owner}
    bed.world.refused = {"vm2": "vm vm2: switch b is not parked after 10 s"}
    for _ in range(100):
        bed.world.now += 1
        turn(bed)
    found = state(bed)
    assert (found["standby"], found["unprotected"], found.get("failures", 0)) == ("b", ["vm2"], 0)
    assert found["not_parked"] == bed.world.refused
    assert "stop b" not in bed.world.done
    assert 2 <= bed.world.done.count("park vm2 b") <= 5  # seldom: each attempt takes ten seconds
    bed.world.refused = {}
    bed.world.now += 300
    assert turn(bed) == Task.PARK
    turn(bed)
    assert state(bed)["unprotected"] == []
    assert state(bed)["not_parked"] is None
    assert [event["event"] for event in bed.events()] == ["not-parked", "standby"]


def test_a_vm_whose_queues_are_not_polled_is_named_too(config: Config) -> None:
    bed = Bed(config, prepared=False)
    bed.world.unpolled = {"vm1"}
    bed.world.rings = ring_status(0), ring_status(1)
    assert turn(bed) == Task.PREPARE
    turn(bed)
    assert state(bed)["unprotected"] == ["vm1"]
    assert "poll" in state(bed)["not_parked"]["vm1"]


def test_a_problem_is_not_told_any_longer_when_all_is_well(config: Config) -> None:
    bed = Bed(config, prepared=False)
    bed.world.parked = {name: set() for name in bed.world.owner}
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert "no standby" in state(bed)["failover_problem"]
    bed.world.die(Side.B)
    turn(bed)
    for _ in range(3):
        bed.look()
    assert state(bed)["failover_problem"] is None


def test_an_uplink_that_does_not_come_back_at_once_is_tried_again(config: Config) -> None:
    bed = Bed(config)
    bed.world.uplink_owner = Side.B
    bed.host.fake_uplink.failures = 1
    bed.world.die(Side.B)
    bed.look({Side.B})
    assert "card" in state(bed)["failover_problem"]
    bed.look()
    assert bed.world.done == ["steer a"]


# ------------------------------------------------------------------------------------------------ beside the commands


def test_an_instance_that_is_stopped_on_purpose_is_no_death(config: Config) -> None:
    bed = Bed(config)
    bed.world.during_stop = lambda: bed.look({Side.A})  # the watchdog is as quick as can be
    stop_for_good(bed.host, Side.A)
    bed.world.during_stop = lambda: None
    assert turn(bed) == Task.NOTHING
    assert bed.world.done == ["stop a", "clear uplink"]
    assert bed.host.recorded_active() is None


def test_a_fail_over_under_way_ends_when_the_active_is_stopped_on_purpose(config: Config) -> None:
    """The broker has given the VMs to b, and the uplink was turned: it is not cleared after that."""
    bed = Bed(config)
    bed.world.parked["vm2"] = set()  # what the watchdog waits for
    sleep = bed.world.sleep

    def sleeping(seconds: float) -> None:
        sleep(seconds)
        if bed.host.recorded_active() is Side.A:
            stop_for_good(bed.host, Side.A)

    bed.world.sleep = sleeping  # type: ignore[method-assign]
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert bed.host.recorded_active() is None
    assert bed.world.uplink_owner is Side.B
    assert "clear uplink" not in bed.world.done


def test_an_active_that_cannot_be_stopped_stays_the_active_one(config: Config) -> None:
    bed = Bed(config)

    def refuse() -> None:
        bed.world.pid[Side.A] = 1
        raise SwitchError("process 1 does not die")

    bed.world.during_stop = refuse
    with pytest.raises(SwitchError):
        stop_for_good(bed.host, Side.A)
    assert bed.host.recorded_active() is Side.A


def test_a_standby_that_took_over_meanwhile_is_not_ended(config: Config) -> None:
    bed = Bed(config)
    bed.host.record_active(Side.B)
    with pytest.raises(HotswapError, match="become the active one"):
        standby.end_standby(bed.host, Side.B)
    assert bed.world.done == []


# ------------------------------------------------------------------------------------------------ a changed intent


def test_a_fail_over_steers_by_the_intent_that_was_programmed(config: Config) -> None:
    bed = Bed(config)
    before = bed.host
    config.overlay.write_text('[vtep]\naddress = "172.31.0.9/24"\nmac = "52:54:00:1f:00:01"\n')
    bed.look()
    assert bed.guard._host is before  # it is not programmed yet
    assert turn(bed) == Task.PROGRAM
    bed.look()
    assert str(bed.guard._host.intent.vtep.address) == "172.31.0.9"


def test_an_intent_that_cannot_be_followed_at_once_is_tried_again(config: Config) -> None:
    bed = Bed(config)
    bed.look()
    bed.keeper.followed = bed.host.intent
    tried: list[Intent] = []

    def follow(intent: Intent) -> FakeHost:
        tried.append(intent)
        if len(tried) == 1:
            raise UplinkError("out of descriptors")
        return bed.follow(intent)

    bed.guard._follow = follow
    for _ in range(3):
        bed.look()
    assert tried == [bed.keeper.followed] * 2


@pytest.mark.parametrize("fault", [OSError(24, "Too many open files"), KeyError("statistics")])
def test_an_active_that_cannot_be_programmed_for_any_reason_does_not_count_as_running(
    config: Config, fault: Exception
) -> None:
    bed = Bed(config, prepared=False)
    bed.world.pid[Side.B], bed.world.state[Side.B] = None, State.STOPPED
    bed.world.die(Side.A)
    bed.world.program_fault = fault
    with pytest.raises(type(fault)):
        bed.keeper.turn()
    assert bed.world.pid[Side.A] is None
    bed.world.program_fault = None
    bed.world.now += 10
    assert bed.keeper.turn() is Task.RESTART
    assert bed.world.pid[Side.A] is not None


@pytest.mark.parametrize("fails", ["active", "active.json"])
def test_an_instance_that_cannot_be_forgotten_is_not_stopped_and_stays_the_active_one(
    config: Config, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    bed = Bed(config)
    unlink, last = Path.unlink, bed.host.last_active()

    def read_only(path: Path, missing_ok: bool = False) -> None:
        if path.name == fails:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(HostError):
        stop_for_good(bed.host, Side.A)
    assert bed.world.pid[Side.A] is not None
    assert bed.host.recorded_active() is Side.A
    assert last is not None
    assert bed.host.last_active() == last


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (SwitchError("no such port"), "no such port"),
        (KeyError("statistics"), "internal error: see the watchdog's log"),
    ],
)
def test_a_fault_that_stays_is_logged_once(
    config: Config, caplog: pytest.LogCaptureFixture, fault: Exception, problem: str
) -> None:
    bed = Bed(config)
    bed.world.program_fault = fault
    for _ in range(5):
        bed.world.now += 1000
        bed.keeper.round()
        assert state(bed)["problem"] is not None
        assert problem in state(bed)["problem"]
    told = [record for record in caplog.records if record.name.endswith("keeper") and record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert bool(told[0].exc_info) is not isinstance(fault, SwitchError)
    bed.world.program_fault = None
    bed.world.now += 1000
    bed.keeper.round()
    bed.keeper.round()
    assert state(bed)["problem"] is None


def test_an_active_whose_record_is_damaged_has_a_standby(config: Config) -> None:
    """What is kept for the next boot tells what it runs."""
    bed = Bed(config)
    for host in (bed.host, bed.keeper._host):
        host.__dict__["releases"] = Releases()
        host.instances[Side.A].release = lambda: None  # type: ignore[method-assign]
    assert bed.host.software(Side.A) == RELEASE
    assert turn(bed) == Task.PROGRAM
    assert turn(bed) == Task.NOTHING


def test_a_vm_is_not_returned_to_an_instance_that_takes_no_devices(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = Bed(config)
    bed.keeper._programmed = bed.keeper._stamp
    bed.world.owner["vm1"], bed.world.rings = Side.B, (ring_status(0), ring_status(1))

    def gone(_host: object, _side: Side, _seconds: float) -> None:
        raise SwitchError("db.sock: cannot connect")

    monkeypatch.setattr(type(bed.host), "await_devices", gone)  # its database ends in just this moment
    with pytest.raises(SwitchError, match="cannot connect"):
        bed.keeper.turn()
    assert bed.world.owner["vm1"] is Side.B


def test_a_vm_on_a_standby_that_was_given_up_on_returns(config: Config) -> None:
    """It was served there while the active was away."""
    bed = Bed(config, prepared=False)
    for _ in range(config.watch.crash_limit):
        bed.board.failure()
    bed.world.owner["vm2"] = Side.B
    assert turn(bed) == Task.RETURN
    assert bed.world.owner == {"vm1": Side.A, "vm2": Side.A}
    assert turn(bed) == Task.NOTHING
