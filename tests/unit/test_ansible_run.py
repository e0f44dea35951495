"""The state of a run over a fleet, and the decisions that follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.collection import install, module, run_module

run_state = module("plugins.module_utils.run_state")
tool = module("plugins.module_utils.tool")
LAST = {"old": "a", "new": "b", "release": "trixie", "previous": "host", "committed": True, "moves": {"vm1": 90.0},
        "warnings": [], "changed": True}  # fmt: skip


def record(state: str, wave: object = 1, **fields: Any) -> dict[str, Any]:
    return {"state": state, "wave": wave, "reason": None, **fields}


def policy(**changes: Any) -> dict[str, Any]:
    return {**run_state.POLICY, **changes}


def test_a_healthy_run_continues() -> None:
    hosts = {"h1": record("upgraded", "canary"), "h2": record("unchanged"), "h3": record("running"),
             "h4": record("skipped", reason="in repair")}  # fmt: skip
    assert run_state.judge(hosts, policy(), waves_begin=True) == []


@pytest.mark.parametrize("state", ["rolled_back", "failed", "unreachable"])
def test_failures_count_over_the_whole_run(state: str) -> None:
    hosts = {"h1": record(state, 1, reason="no memory"), "h2": record("upgraded", 2)}
    assert run_state.judge(hosts, policy(max_failed_hosts=1)) == []
    [reason] = run_state.judge(hosts, policy())
    assert reason == "1 host failed, and at most 0 may (h1: no memory)"
    hosts["h3"] = record(state, 3)
    [reason] = run_state.judge(hosts, policy(max_failed_hosts=1))
    assert reason.startswith("2 hosts failed")


def test_failures_count_in_percent_of_the_hosts_that_were_begun() -> None:
    hosts = {f"h{number}": record("upgraded") for number in range(9)} | {"bad": record("failed")}
    wide = policy(max_failed_hosts=100, max_failed_percent=10)
    assert run_state.judge(hosts, wide) == []
    [reason] = run_state.judge({**hosts, "worse": record("failed")}, wide)
    assert reason.startswith("2 of 11 hosts failed, which is more than 10 %")


@pytest.mark.parametrize(
    ("fields", "limits", "text"),
    [
        ({"reason": "no standby is ready"}, {}, "no standby is ready"),
        ({"report": {"moves": {"vm1": 80.0, "vm2": 900.0}}}, {"max_gap_us": 500}, "900 us"),
        ({"report": {"warnings": ["VM vm1: 3 large frames of several segments (GSO) arrived during its move and cannot "
                                  "be delivered"]}}, {}, "frames were lost: 3"),
        ({"check": {"findings": [{"severity": "error", "text": "no memory"}]}}, {}, "no memory"),
    ],
)  # fmt: skip
def test_an_upgraded_host_may_be_unhealthy(fields: dict[str, Any], limits: dict[str, Any], text: str) -> None:
    [reason] = run_state.judge({"h1": record("upgraded", **fields)}, policy(**limits))
    assert reason.startswith("1 host is upgraded and not healthy")
    assert text in reason
    assert run_state.judge({"h1": record("upgraded", **fields)}, policy(**limits, max_unhealthy_hosts=1)) == []


def test_a_gap_is_not_looked_at_without_a_limit() -> None:
    hosts = {"h1": record("upgraded", report={"moves": {"vm1": 1e6}})}
    assert run_state.judge(hosts, policy(max_gap_us=None)) == []
    assert "1000000 us" in run_state.judge(hosts, policy())[0]


def test_a_canary_that_fails_stops_the_run_whatever_hosts_may() -> None:
    wide = policy(max_failed_hosts=9, max_unhealthy_hosts=9)
    for fields in ({"state": "rolled_back", "reason": "died"}, {"state": "upgraded", "reason": "no standby"}):
        hosts = {"h1": record("upgraded", "canary"), "h2": record(wave="canary", **fields)}
        [reason] = run_state.judge(hosts, wide, waves_begin=True)
        assert reason == f"1 canary failed, and at most 0 may (h2: {fields['reason']})"
        assert run_state.judge(hosts, {**wide, "max_failed_canaries": 1}, waves_begin=True) == []


def test_the_waves_need_a_canary() -> None:
    hosts = {"h1": record("failed", "canary")}
    wide = policy(max_failed_hosts=9, max_failed_canaries=9)
    assert run_state.judge(hosts, wide) == []
    [reason] = run_state.judge(hosts, wide, waves_begin=True)
    assert reason == "0 canaries are upgraded in this run, and at least 1 must be before the waves begin"
    assert run_state.judge(hosts, {**wide, "min_canaries": 0}, waves_begin=True) == []


def test_waves_are_numbered_in_order_and_an_interrupted_one_keeps_its_number() -> None:
    assert run_state.next_wave({"h1": record("upgraded", "canary")}, ["h2"]) == 1
    hosts = {"h1": record("upgraded", "canary"), "h2": record("upgraded", 1), "h3": record("running", 2)}
    assert run_state.next_wave(hosts, ["h4", "h5"]) == 3
    assert run_state.next_wave(hosts, ["h3", "h4"]) == 2


def test_what_failed_is_classified_by_what_the_module_says() -> None:
    assert run_state.classify({"outcome": "rolled_back", "msg": "put back"}) == ("rolled_back", "put back")
    said = {"outcome": "rolled_back", "msg": "put back: died (look)", "error": {"message": "died", "hint": "look"}}
    assert run_state.classify(said) == ("rolled_back", "died")
    assert run_state.classify({"outcome": "precheck_failed", "msg": "refused"}) == ("failed", "refused")
    assert run_state.classify({"unreachable": True, "msg": "no route"}) == ("unreachable", "no route")
    assert run_state.classify({}, unreachable=True)[0] == "unreachable"


@pytest.mark.parametrize(
    ("code", "document", "text", "said"),
    [
        (5, {"error": {"message": "b died", "hint": "look"}}, "", "the upgrade failed and was put back: b died (look)"),
        (4, {"findings": [{"severity": "error", "text": "no room", "hint": "make some"},
                          {"severity": "warning", "text": "x"}]}, "",
         "a precheck refuses, and nothing was changed: no room: make some "
         "(`ovs-hotswap check --release NAME` shows all findings)"),
        (15, {"error": {"message": "no end", "hint": None}}, "",
         "the upgrade was committed, but a later step failed: no end (remove the cause, then `ovs-hotswap resume`)"),
        (2, {}, "usage\n", "usage"),
        (1, {}, "", "exit code 1"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_with_the_command_that_helps(
    code: int, document: dict[str, Any], text: str, said: str
) -> None:
    assert tool.message(code, document, text) == said


def test_a_program_that_was_killed_is_not_taken_for_one_that_has_ended() -> None:
    said = tool.message(-9, {}, "")
    assert said.startswith("the program was killed by signal 9 (`ovs-hotswap status`")


def status(**fields: Any) -> dict[str, Any]:
    return {"active": "b", "last": None, "unfinished": None, **fields}


@pytest.mark.parametrize(
    ("baseline", "now", "state"),
    [
        (None, status(), None),
        (LAST, status(last=LAST), None),
        (None, status(last=LAST), "upgraded"),
        (LAST, status(last={**LAST, "moves": {"vm1": 91.0}}), "upgraded"),
        (None, status(last={**LAST, "committed": False}), "rolled_back"),
        (LAST, status(last=LAST, unfinished={"phase": "forward", "failure": None}), "failed"),
    ],
)
def test_the_journal_tells_what_became_of_an_upgrade_that_nothing_followed(
    baseline: Any, now: dict[str, Any], state: str | None
) -> None:
    assert run_state.outcome_since(baseline, now)[0] == state


# ------------------------------------------------------------------------------------------------------------- modules


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    pytest.importorskip("ansible.module_utils.basic", reason="the extra `ansible` is not installed")
    return install(tmp_path / "collections")


def hosts_of(directory: str) -> dict[str, Any]:
    files = Path(directory, "hosts").glob("*.json")
    return {found["host"]: found for found in (json.loads(path.read_text()) for path in files)}


def test_a_run_is_begun_continued_and_ended(collections: Path, tmp_path: Path) -> None:
    runs: dict[str, Any] = {"runs": str(tmp_path / "runs"), "release": "trixie"}
    tried = run_module(collections, "run", check=True, **runs)
    assert tried["changed"]
    assert not (tmp_path / "runs").exists()
    begun = run_module(
        collections, "run", **runs, policy={"max_failed_hosts": 2}, planned=["h1", "h2"], canaries=["h1"]
    )
    assert not begun["continued"]
    assert begun["policy"]["max_failed_hosts"] == 2
    again = run_module(
        collections, "run", **runs, policy={"max_failed_hosts": 2}, planned=["h1", "h2"], canaries=["h1"]
    )
    assert again["continued"]
    assert not again["changed"]
    assert again["directory"] == begun["directory"]
    run_module(collections, "run", **runs, id=begun["id"], state="ended", reasons=["bad", "worse"])
    document = json.loads(Path(begun["directory"], "run.json").read_text())
    assert document["stopped"] == "bad; worse"
    assert document["hosts"] == {"h1": "canary", "h2": None}
    assert run_module(collections, "run", **runs, id="other")["directory"] != begun["directory"]
    assert "is a run to trixie" in run_module(collections, "run", **{**runs, "release": "host"}, id="other")["msg"]
    assert "has no max_failed;" in run_module(collections, "run", **runs, policy={"max_failed": 1})["msg"]


def test_a_run_that_ended_is_continued_by_its_name_and_tries_again_what_failed(
    collections: Path, tmp_path: Path
) -> None:
    runs: dict[str, Any] = {"runs": str(tmp_path / "runs"), "release": "trixie", "id": "r1"}
    directory = run_module(collections, "run", **runs)["directory"]
    for host, state in (("h1", "upgraded"), ("h2", "rolled_back")):
        run_module(collections, "run_host", directory=directory, host=host, wave="1", state=state)
    run_module(collections, "run", **runs, state="ended")
    assert run_module(collections, "run", **runs)["states"] == {"upgraded": 1}
    assert list(hosts_of(directory)) == ["h1"]
    assert [path.name for path in Path(directory, "attempts", "1").iterdir()] == ["h2.json"]


def test_a_host_s_file_has_what_is_known_at_each_moment(collections: Path, tmp_path: Path) -> None:
    place: dict[str, Any] = {"directory": str(tmp_path), "host": "hv/1"}
    assert run_module(collections, "run_host", **place)["record"] is None
    run_module(collections, "run_host", **place, wave="2", state="running", baseline=LAST)
    run_module(collections, "run_host", **place, job="j1")
    running = hosts_of(str(tmp_path))["hv/1"]
    assert (running["wave"], running["state"], running["job"], running["ended"]) == (2, "running", "j1", None)
    done = run_module(collections, "run_host", **place, state="upgraded", report=LAST)
    assert done["done"]
    assert done["record"]["ended"] is not None
    late = run_module(collections, "run_host", **place, result={"msg": "no standby", "watch": {"ready": False}})
    assert late["done"], "the upgrade itself is not undone by what is found afterwards"
    assert late["record"]["reason"] == "no standby"
    assert late["record"]["report"] == LAST
    again = run_module(collections, "run_host", **place, wave="2", state="running")["record"]
    assert (again["report"], again["reason"], again["baseline"], again["job"]) == (None, None, None, None)


def test_a_host_that_failed_is_left_out_with_its_reason_and_its_document(collections: Path, tmp_path: Path) -> None:
    result = {"msg": "put back", "outcome": "rolled_back", "document": {"error": {}, "steps": []}}
    tried = run_module(collections, "run_host", directory=str(tmp_path), host="h1", result=result, check=True)
    assert tried["left_out"]
    assert not (tmp_path / "hosts").exists()
    found = run_module(collections, "run_host", directory=str(tmp_path), host="h1", wave="canary", result=result)
    assert found["left_out"]
    assert found["record"]["report"] == result["document"]
    later = run_module(collections, "run_host", directory=str(tmp_path), host="h1", result={"msg": "left out"})
    assert later["record"] == found["record"]


def test_the_gate_reads_the_files_of_the_run(collections: Path, tmp_path: Path) -> None:
    runs: dict[str, Any] = {"runs": str(tmp_path / "runs"), "release": "trixie", "id": "r1"}
    directory = run_module(collections, "run", **runs)["directory"]
    first = run_module(collections, "run_gate", directory=directory)
    assert (first["stop"], first["paused"]) == (False, False)
    Path(directory, "pause").touch()
    run_module(collections, "run_host", directory=directory, host="h1", wave="canary", state="failed", reason="bad")
    second = run_module(collections, "run_gate", directory=directory, batch=["h2"])
    assert (second["stop"], second["paused"], second["wave"]) == (True, True, 1)
    assert len(second["reasons"]) == 2
