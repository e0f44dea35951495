"""The watchdog's look at the uplinks of both instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.cli import watch_cmd
from ovs_hotswap.cli.app import App
from ovs_hotswap.config import Config
from ovs_hotswap.errors import UplinkError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Proof, Side
from ovs_hotswap.switch.rpc import NoAnswer
from ovs_hotswap.upgrade import uplink_proof
from ovs_hotswap.upgrade.uplink_proof import Counters
from ovs_hotswap.watchdog import status_file
from ovs_hotswap.watchdog.standby_plan import Task
from ovs_hotswap.watchdog.uplink_watch import WireWatch
from tests.unit.watch_bed import Bed

MUTE, DEAF, GOOD = Proof(False, True), Proof(True, False), Proof(True, True)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    side = {"pmd_cores": [0], "uplink_devargs": "x"}
    return Config.model_validate({
        "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
        "state_dir": str(tmp_path / "state"), "instances": {"a": side, "b": side},
    })  # fmt: skip


def uplinks(bed: Bed) -> dict[str, str]:
    state = status_file.read_state(bed.config) or {}
    return {side: found["severity"] for side, found in state.get("uplinks", {}).items()}


def proven(watch: WireWatch, bed: Bed, active: Side = Side.A) -> None:
    """Have the uplinks proven to the end of a round."""
    watch.look(bed.host, active)
    while watch.under_way:
        watch.look(bed.host, active)


@pytest.mark.parametrize("proof", [MUTE, DEAF])
def test_a_standby_that_passes_nothing_is_told(config: Config, proof: Proof) -> None:
    bed = Bed(config)
    watch = WireWatch(bed.board)
    bed.world.proofs[Side.B] = proof
    proven(watch, bed)
    assert uplinks(bed) == {"a": "ok", "b": "error"}
    assert [(event["event"], event["side"]) for event in bed.events()] == [("uplink", "b")]
    with pytest.raises(UplinkError, match="instance b's uplink passes nothing"):
        watch.require(Side.B)
    watch.require(Side.A)
    bed.world.proofs[Side.B] = GOOD
    watch.look(bed.host, Side.A)
    assert uplinks(bed)["b"] == "error", "not at once again"
    bed.world.now += 16
    watch.look(bed.host, Side.A)
    assert uplinks(bed) == {"a": "ok", "b": "ok"}


def test_a_rule_that_counts_nothing_is_told(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its counter is compared over two rounds, because the switch counts some packets late."""
    bed = Bed(config)
    watch = WireWatch(bed.board)

    def counters(host: Host, side: Side) -> Counters:
        return Counters(bed.world.now, 0, int(bed.world.now * 10), 7, 7)

    monkeypatch.setattr(uplink_proof, "counters", counters)
    for expected in ("ok", "ok", "warning"):
        proven(watch, bed)
        assert uplinks(bed) == {"a": expected, "b": "ok"}
        bed.world.now += 61
    assert "has counted no packet in 122 s" in bed.events()[-1]["text"]
    watch.require(Side.A)
    watch.after_failover(Side.B)
    proven(watch, bed, Side.B)
    assert uplinks(bed)["b"] == "ok", "it has counted nothing there yet"


def test_where_nobody_answers_nothing_is_proven(config: Config) -> None:
    bed = Bed(config)
    bed.world.proofs = {Side.A: MUTE, Side.B: MUTE}
    watch = WireWatch(bed.board)
    proven(watch, bed)
    assert uplinks(bed) == {"a": "warning", "b": "warning"}
    watch.require(Side.B)


def test_a_failover_to_a_mute_standby_is_not_healthy(config: Config) -> None:
    """There is no other instance to compare with: the answers before the failover count."""
    bed = Bed(config)
    watch = WireWatch(bed.board)
    watch.look(bed.host, Side.A)
    bed.world.proofs[Side.B] = MUTE
    bed.world.die(Side.A)
    watch.after_failover(Side.B)
    proven(watch, bed, Side.B)
    assert uplinks(bed) == {"b": "error"}
    event = bed.events()[-1]
    assert (event["event"], event["side"], event["severity"]) == ("failover-uplink", "b", "error")


def test_a_failover_to_a_standby_that_passes_is_told_when_traffic_was_seen(config: Config) -> None:
    bed = Bed(config)
    watch = WireWatch(bed.board)
    bed.world.die(Side.A)
    watch.after_failover(Side.B)
    proven(watch, bed, Side.B)
    assert bed.events() == [], "traffic is not waited for"
    bed.world.now += 5
    watch.look(bed.host, Side.B)
    watch.look(bed.host, Side.B)
    assert [event["event"] for event in bed.events()] == ["failover-uplink"]


def test_a_turn_is_not_kept_for_long_where_nothing_passes(config: Config) -> None:
    bed = Bed(config)
    bed.world.proofs = {Side.A: Proof(False, False), Side.B: Proof(False, False)}
    watch, turns = WireWatch(bed.board), 0
    while turns == 0 or watch.under_way:
        begun, turns = bed.world.now, turns + 1
        watch.look(bed.host, Side.A)
        assert bed.world.now - begun < 2.5
    assert uplinks(bed) == {"a": "warning", "b": "warning"}
    begun = bed.world.now
    watch.look(bed.host, Side.A)
    assert bed.world.now == begun, "not at once again"


def test_a_new_standby_is_begun_before_the_uplink_of_the_old_one_is_proven(config: Config) -> None:
    bed = Bed(config)
    bed.world.proofs[Side.B] = Proof(False, False)
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert bed.host.recorded_active() is Side.B
    begun = bed.world.now
    while "start a host" not in bed.world.done:
        if bed.keeper.turn() is Task.NOTHING:
            bed.world.now += 0.1
    assert bed.world.now - begun < 1.5, "the back-off is a second"
    while bed.keeper.turn() is not Task.NOTHING or bed.keeper.wires.under_way:
        pass
    bed.world.now += 5
    bed.keeper.turn()
    assert "failover-uplink" in [event["event"] for event in bed.events()]


def test_an_instance_that_ends_meanwhile_ends_nothing(config: Config) -> None:
    bed = Bed(config)
    bed.world.die(Side.A)
    WireWatch(bed.board).look(bed.host, Side.A)


def test_the_keeper_looks_when_there_is_nothing_else_to_do(config: Config) -> None:
    bed = Bed(config)
    bed.keeper._programmed = bed.keeper._stamp
    bed.world.proofs[Side.B] = MUTE
    with pytest.raises(UplinkError, match="instance b's uplink passes nothing"):
        bed.keeper.bring_up()
    assert uplinks(bed) == {"a": "ok", "b": "error"}


def test_the_status_says_which_uplink_passes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("health", "reason", "keeping", "unprotected", "not_parked", "quarantined", "gave_up", *status_file.PROBLEMS)
    uplinks = {"a": {"severity": "ok", "text": "a passes"}, "b": {"severity": "error", "text": "b passes nothing"}}
    document: dict[str, Any] = dict.fromkeys(keys)
    document |= {
        "mode": "automatic",
        "running": True,
        "active": "a",
        "standby": "b",
        "uplinks": uplinks,
        "events": [],
        "differing": [],
    }
    watch_cmd._show(App(), document)
    shown = capsys.readouterr().out
    assert "uplink    b passes nothing" in shown
    assert "a passes" not in shown


def test_an_active_that_may_forward_is_not_ended_for_a_standby_that_passes_nothing(config: Config) -> None:
    bed = Bed(config)
    bed.world.proofs[Side.B] = MUTE
    proven(bed.keeper.wires, bed)

    def silent(*_: Any) -> Any:
        raise NoAnswer("no answer")

    bed.main._ask = silent
    for _ in range(300):
        bed.look()
        bed.main.turn()
    state = status_file.read_state(config) or {}
    assert "main thread" in state["reason"]
    assert "uplink" in state["failover_problem"]
    assert "kill a" not in bed.world.done
    bed.world.die(Side.A)  # it forwards no longer
    bed.look({Side.A})
    assert bed.host.recorded_active() is Side.B


def test_a_standby_is_proven_though_the_active_one_does_not_answer(config: Config) -> None:
    bed = Bed(config)
    bed.world.proofs[Side.B] = MUTE
    proven(bed.keeper.wires, bed)
    assert bed.keeper.wires.worse(Side.B)
    bed.world.stopped_pids, bed.world.proofs[Side.B] = {1}, GOOD
    bed.world.now += 61
    proven(bed.keeper.wires, bed)
    assert not bed.keeper.wires.worse(Side.B)


def test_a_standby_that_is_no_worse_than_the_active_one_is_a_refuge(config: Config) -> None:
    bed = Bed(config)
    proven(bed.keeper.wires, bed)
    bed.world.proofs = {Side.A: MUTE, Side.B: MUTE}
    bed.world.now += 61
    proven(bed.keeper.wires, bed)
    assert not bed.keeper.wires.worse(Side.B)
