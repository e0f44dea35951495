"""The state of a run over a fleet, and the decisions that follow from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.collection import ROOT, install, module, run_module

run_state = module("plugins.module_utils.run_state")
tool = module("plugins.module_utils.tool")
LAST = {"old": "a", "new": "b", "release": "trixie", "previous": "host", "committed": True, "moves": {"vm1": 90.0},
        "warnings": [], "changed": True}  # fmt: skip


def record(state: str, wave: object = 1, **fields: Any) -> dict[str, Any]:
    return {"state": state, "wave": wave, "reason": None, **fields}


def policy(**changes: Any) -> dict[str, Any]:
    return {**run_state.POLICY, **changes}


KNOWN: dict[str, Any] = {"report": LAST, "watch": {"ready": True}, "check": {"findings": [], "ready": True}}


def test_a_wave_ends_only_when_all_is_known_of_its_hosts() -> None:
    """A report that is missing is not a good one."""
    hosts = {"h1": record("upgraded", **KNOWN), "h2": record("unchanged", **{**KNOWN, "report": None}),
             "h3": record("skipped", reason="in repair")}  # fmt: skip
    assert run_state.judge(hosts, policy(), ended=list(hosts)) == []
    [reason] = run_state.judge(hosts, policy(), ended=[*hosts, "h4"])
    assert reason == "what became of 1 host is not known, and must be (h4: no record)"
    for bad in (
        record("running"),
        record("upgraded", **{**KNOWN, "watch": None}),
        record("upgraded", **{**KNOWN, "check": None}),
        record("upgraded", **{**KNOWN, "report": None}),
        record("unchanged", **{**KNOWN, "check": None}),
    ):
        assert "h1" in run_state.judge({**hosts, "h1": bad}, policy(), ended=list(hosts))[0]


def test_a_wave_begins_only_when_all_is_known_of_the_waves_before() -> None:
    """But a run that is continued comes to its unfinished waves again."""
    hosts = {"h1": record("upgraded", "canary", **KNOWN), "h2": record("running", 2), "h3": record("upgraded", 3)}
    assert run_state.judge(hosts, policy(), begins=2, batch=["h2"]) == []
    assert run_state.judge(hosts, policy(), begins=1, batch=["h0"]) == []
    [reason] = run_state.judge(hosts, policy(), begins=3, batch=["h3"])
    assert "1 host is not known, and must be (h2: running)" in reason
    hosts["h1"] = record("running", "canary")
    assert "h1: running" in run_state.judge(hosts, policy(), begins=1, batch=["h0"])[0]


def test_a_reason_names_a_few_hosts_and_counts_the_others() -> None:
    hosts = {f"h{number:03}": record("failed", reason="bad") for number in range(400)}
    [reason] = run_state.judge(hosts, policy())
    assert reason.startswith("400 hosts failed")
    assert reason.endswith("h004: bad; and 395 more)")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_failed": 1}, "the policy has no max_failed;"),
        ({"max_lost": "many"}, "max_lost of the policy is 'many'"),
        ({"max_lost": None}, "max_lost of the policy is None"),
        ({"max_failed_hosts": -1}, "not negative"),
        ({"max_failed_hosts": float("nan")}, "not negative"),
        ({"max_failed_hosts": True}, "must be a number"),
        ({"max_failed_hosts": [1]}, "must be a number"),
    ],
)
def test_a_threshold_is_a_number(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="policy") as raised:
        run_state.limits(given)
    assert said in str(raised.value)


def test_thresholds_that_a_command_line_made_texts_are_numbers() -> None:
    found = run_state.limits({"max_failed_hosts": "3", "max_failed_percent": "0.5", "max_gap_us": None})
    assert (found["max_failed_hosts"], found["max_failed_percent"], found["max_gap_us"]) == (3, 0.5, None)
    assert found["max_lost"] == 0


def test_a_host_that_was_lost_in_its_upgrade_is_asked_again_and_one_that_failed_is_tried_again() -> None:
    lost = record("unreachable", 2, job="j1", baseline=LAST, begun=True, ended="x", **{**KNOWN, "reason": "no route"})
    again = run_state.reopened(lost)
    assert (again["state"], again["job"], again["baseline"]) == ("running", "j1", LAST)
    assert (again["reason"], again["watch"], again["begun"], again["ended"]) == (None, None, None, None)
    assert run_state.reopened(record("unreachable", 2)) is None
    assert run_state.reopened(record("rolled_back", 2)) is None
    assert run_state.reopened(record("running", 2)) == record("running", 2)


def test_an_upgrade_that_was_done_stays_one_when_its_host_is_looked_at_again() -> None:
    """Otherwise the host would be `unchanged` then, and a rollback of the run would leave it out."""
    ill = record("upgraded", 2, soaked="x", **{**KNOWN, "reason": "no standby"})
    again = run_state.reopened(ill)
    assert (again["state"], again["report"]) == ("upgraded", LAST)
    assert (again["reason"], again["watch"], again["check"], again["soaked"]) == (None, None, None, None)
    well = record("upgraded", 2, **KNOWN)
    assert run_state.reopened(well) == well


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
    return {"active": "b", "last": None, "unfinished": None, "unknown_fields": [], **fields}


@pytest.mark.parametrize(
    ("baseline", "now", "state"),
    [
        (None, status(), None),
        (LAST, status(last=LAST), None),
        (None, status(last=LAST), "upgraded"),
        (LAST, status(last={**LAST, "moves": {"vm1": 91.0}}), "upgraded"),
        (None, status(last={**LAST, "committed": False}), "rolled_back"),
        (LAST, status(last=LAST, unfinished={"phase": "forward", "failure": None}), "failed"),
        (None, status(last={**LAST, "release": "custom"}), "failed"),
        (LAST, status(unknown_fields=["last"]), "failed"),
        (LAST, status(unknown_fields=["unfinished"]), "failed"),
    ],
)
def test_the_journal_tells_what_became_of_an_upgrade_that_nothing_followed(
    baseline: Any, now: dict[str, Any], state: str | None
) -> None:
    """An upgrade of another run is not taken for it, nor a journal that cannot be read for one in which nothing is."""
    assert run_state.outcome_since(baseline, now, "trixie")[0] == state


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


def test_a_run_that_nobody_has_ended_is_not_taken_up_a_week_later(collections: Path, tmp_path: Path) -> None:
    """What it says of its hosts need not be so any longer, least of all of a release `host`."""
    runs: dict[str, Any] = {"runs": str(tmp_path / "runs"), "release": "host"}
    begun = run_module(collections, "run", **runs)
    record = Path(begun["directory"], "run.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "started": "2026-01-01T00:00:00Z"}))
    refused = run_module(collections, "run", **runs)
    assert refused["failed"]
    assert f"the run {begun['id']} has not ended" in refused["msg"]
    assert run_module(collections, "run", **runs, id=begun["id"])["continued"]
    assert run_module(collections, "run", **runs)["continued"], "something was recorded just now"


def test_a_run_has_one_control_node(collections: Path, tmp_path: Path) -> None:
    runs: dict[str, Any] = {"runs": str(tmp_path / "runs"), "release": "trixie", "id": "r1"}
    record = Path(run_module(collections, "run", **runs)["directory"], "run.json")
    control_node = module("plugins.module_utils.control_node")
    alive = control_node._identity(os.getpid())
    record.write_text(json.dumps({**json.loads(record.read_text()), "process": alive}))
    refused = run_module(collections, "run", **runs)
    assert refused["failed"]
    assert f"the process id {os.getpid()} works on the run" in refused["msg"]
    for other in ({**alive, "start": alive["start"] + 1}, {**alive, "boot": "another"}):
        record.write_text(json.dumps({**json.loads(record.read_text()), "process": other}))
        assert run_module(collections, "run", **runs)["continued"]


def test_the_control_node_is_the_outermost_playbook_above_a_process(tmp_path: Path) -> None:
    control_node = module("plugins.module_utils.control_node")
    assert control_node.process() is None
    program = tmp_path / "ansible-playbook"
    code = f"import sys; sys.path[:0] = {[str(ROOT.parent)]!r}; from tests.support.collection import module; "
    code += "print(module('plugins.module_utils.control_node').process()['pid'])"
    program.write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)")
    child = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert child.communicate(timeout=60)[0].strip() == str(child.pid)


def test_a_run_with_a_host_of_which_nothing_is_known_does_not_end(collections: Path, tmp_path: Path) -> None:
    runs: dict[str, Any] = {"runs": str(tmp_path / "runs"), "release": "trixie", "id": "r1"}
    directory = run_module(collections, "run", **runs)["directory"]
    run_module(collections, "run_host", directory=directory, host="h1", wave="1", state="running")
    run_module(collections, "run", **runs, state="ended")
    assert json.loads(Path(directory, "run.json").read_text())["ended"] is None
    run_module(collections, "run", **runs, state="ended", reasons=["bad"])
    assert json.loads(Path(directory, "run.json").read_text())["ended"]


def test_what_is_not_a_record_is_named_and_stops_the_run(collections: Path, tmp_path: Path) -> None:
    runs: dict[str, Any] = {"runs": str(tmp_path / "runs"), "release": "trixie", "id": "r1"}
    assert "has no run.json" in run_module(collections, "run_gate", directory=str(tmp_path))["msg"]
    directory = run_module(collections, "run", **runs)["directory"]
    (tmp_path / "runs" / "notes.txt").write_text("not a run")
    assert run_module(collections, "run", runs=runs["runs"], release="trixie")["id"] == "r1"
    file = Path(directory, "hosts", "h1.json")
    file.parent.mkdir()
    file.write_text('{"host": "h1", "sta')
    cases: dict[str, dict[str, Any]] = {"run_gate": {}, "run_host": {"host": "h1"}}
    for name, options in cases.items():
        found = run_module(collections, name, directory=directory, **options)
        assert found["failed"]
        assert f"{file} cannot be read" in found["msg"]


@pytest.mark.parametrize("names", [{"id": "../x"}, {"id": ".x"}, {"release": "../x"}])
def test_a_run_is_not_named_out_of_its_directory(collections: Path, tmp_path: Path, names: dict[str, str]) -> None:
    options: dict[str, Any] = {"runs": str(tmp_path / "runs"), "release": "trixie", **names}
    assert "cannot name a run" in run_module(collections, "run", **options)["msg"]


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
    soaked = run_module(collections, "run_host", **place, soaked=True)["record"]
    assert soaked["soaked"]
    again = run_module(collections, "run_host", **place, wave="2", state="running")["record"]
    assert again["soaked"] is None
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


def test_a_host_that_is_lost_is_marked_if_its_upgrade_was_begun(collections: Path, tmp_path: Path) -> None:
    place: dict[str, Any] = {"directory": str(tmp_path), "host": "h1"}
    lost: dict[str, Any] = {"result": {"msg": "no route"}, "unreachable": True}
    assert run_module(collections, "run_host", **place, **lost)["record"]["begun"] is None
    run_module(collections, "run_host", **place, wave="2", state="running")
    found = run_module(collections, "run_host", **place, **lost)["record"]
    assert (found["state"], found["begun"]) == ("unreachable", True)


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
    third = run_module(collections, "run_gate", directory=directory, ended=["h1", "h2"])
    assert "h2: no record" in third["reasons"][-1]
    assert len(run_module(collections, "run_gate", directory=directory, ended=["h2"], check=True)["reasons"]) == 1
