"""The watchdog on a host that others program: it keeps no standby, and starts the active instance again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import HotswapError, StateUnknown, SwitchError
from ovs_hotswap.host import kept_flows
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.instance import State
from ovs_hotswap.watchdog import clone_keeper, status_file
from ovs_hotswap.watchdog.health import Health
from ovs_hotswap.watchdog.standby_plan import Task
from tests.unit.watch_bed import RELEASE, Bed, FakeInstance


class CloneBed(Bed):
    """``lacking``: what an instance does not get back. ``waiting``: the active one waits for its flows."""

    def __init__(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(config, prepared=False)
        self.world.die(Side.B)
        self.world.state[Side.B] = State.STOPPED
        self.lacking: list[str] = []
        self.waiting = False
        self.silent: HotswapError | None = None
        for module, name, fake in (
            (kept_flows, "keep", self._keep), (kept_flows, "waits", self._waits), (kept_flows, "go_on", self._go_on),
            (clone_keeper, "start_with_flows", self._start),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, fake)

    def _keep(self, _host: Host, side: Side) -> None:
        if self.silent is not None:
            raise self.silent
        self.world.done.append(f"keep {side}")

    def _waits(self, _host: Host, _side: Side) -> bool:
        if self.silent is not None:
            raise self.silent
        return self.waiting

    def _go_on(self, _host: Host, side: Side) -> list[str]:
        self.world.done.append(f"give back {side}")
        self.waiting = False
        return self.lacking

    def _start(self, host: Host, side: Side, release: Release) -> list[str]:
        host.instances[side].start(release)
        return self._go_on(host, side)

    def turns(self, count: int, seconds: float = 1.0) -> list[Task]:
        found = []
        for _ in range(count):
            self.world.now += seconds
            found.append(self.keeper.turn())
        return found


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CloneBed:
    sides = {side: {"pmd_cores": [0], "port_devices": {"dpdk0": side}} for side in Side}
    config = Config.model_validate({
        "program": "clone", "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
        "state_dir": str(tmp_path / "state"), "instances": sides,
    })  # fmt: skip
    return CloneBed(config, monkeypatch)


def test_the_flows_are_kept_every_ten_seconds_and_no_standby_is_made(bed: CloneBed) -> None:
    assert bed.turns(25) == [Task.NOTHING] * 25
    assert bed.world.done == ["keep a"] * 3
    assert bed.world.pid[Side.B] is None


def test_an_instance_that_ends_is_started_again_with_its_flows(bed: CloneBed) -> None:
    bed.turns(1)
    bed.world.die(Side.A)
    assert bed.look({Side.A}) is Health.FAILED
    assert bed.host.recorded_active() is Side.A
    assert bed.turns(2) == [Task.RESTART, Task.NOTHING]
    assert bed.world.done == ["keep a", f"start a {RELEASE.name}", "give back a", "keep a"]
    assert [each["event"] for each in bed.events()] == ["restart"]
    assert bed.look() is Health.HEALTHY


def test_what_it_does_not_get_back_is_an_event(bed: CloneBed) -> None:
    bed.lacking = ["bridge br0 does not have the flows that it had: refused"]
    bed.world.die(Side.A)
    bed.turns(1)
    (lost,) = [each for each in bed.events() if each["event"] == "flows-lost"]
    assert "br0" in lost["cause"]


def test_one_that_ends_again_and_again_is_started_less_and_less_often(bed: CloneBed) -> None:
    done = []
    for _ in range(40):
        bed.world.die(Side.A)
        done += bed.turns(1)
    assert 3 <= done.count(Task.RESTART) < 20


def test_a_start_that_was_interrupted_is_finished(bed: CloneBed) -> None:
    bed.waiting = True
    assert bed.turns(2) == [Task.RESTORE, Task.NOTHING]
    assert bed.world.done == ["give back a", "keep a"]


def test_a_database_server_that_ended_is_started_again(bed: CloneBed) -> None:
    bed.world.no_database.add(Side.A)
    assert bed.turns(1) == [Task.MEND]


@pytest.mark.parametrize("dead", [False, True])
def test_the_distribution_s_switch_is_left_to_its_units(
    bed: CloneBed, dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeInstance, "ours", False)
    if dead:
        bed.world.die(Side.A)
    assert bed.look({Side.A} if dead else set()) is None
    assert bed.turns(3) == [Task.NOTHING] * 3
    assert bed.world.done == []
    state = status_file.read_state(bed.config)
    assert state is not None
    assert state["keeping"] == "the distribution's switch is active"


@pytest.mark.parametrize("other", [None, 2])
def test_nothing_is_done_while_an_upgrade_is_unfinished(bed: CloneBed, other: int | None) -> None:
    """This holds also if its VMs are parked on the other instance."""
    path = bed.config.state_dir / "journal" / "current.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("not json\n")
    bed.world.pid[Side.B] = other
    for name in bed.world.parked:
        bed.world.parked[name].add(Side.B)
    bed.world.die(Side.A)
    assert bed.look({Side.A}) is Health.FAILED
    assert bed.host.recorded_active() is Side.A
    for _ in range(3):
        with pytest.raises(StateUnknown):  # which the watchdog reports
            bed.turns(1)
    assert bed.world.done == []


@pytest.mark.parametrize("unfinished", [False, True])
def test_one_that_is_stopped_is_ended_only_if_it_is_started_again(bed: CloneBed, unfinished: bool) -> None:
    if unfinished:
        path = bed.config.state_dir / "journal" / "current.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("not json\n")
    pid = bed.world.pid[Side.A]
    assert pid is not None
    bed.world.stopped_pids.add(pid)
    for _ in range(40):
        bed.look()
    assert ("kill a" in bed.world.done) is not unfinished


def test_a_switch_that_does_not_answer_is_asked_again_and_nothing_is_raised(bed: CloneBed) -> None:
    bed.silent = SwitchError("db.sock: no answer")
    assert bed.turns(15) == [Task.NOTHING] * 15
    bed.silent = None
    bed.turns(10)
    assert bed.world.done == ["keep a"]
