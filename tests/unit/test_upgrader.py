"""An upgrade that is asked for again, and the release to which a rollback goes back."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import (
    BrokerError,
    BusyError,
    HostError,
    HotswapError,
    PrecheckFailed,
    ReleaseError,
    StateUnknown,
)
from ovs_hotswap.host import package_manager, standby
from ovs_hotswap.model import Finding, Release, Severity, Side
from ovs_hotswap.plan.executor import Event
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import Kind, Record, StepNames
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.instance import State
from ovs_hotswap.upgrade import collect
from ovs_hotswap.upgrade.steps import upgrade_plan
from ovs_hotswap.upgrade.upgrade import KIND, Upgrader
from tests.unit.test_counter_reader import Daemon
from tests.unit.trace_bed import Database, leave_trace
from tests.unit.watch_bed import RELEASE, Bed
from tests.unit.watch_bed import config as config


class Releases:
    """``host`` is what the active instance runs."""

    def get(self, name: str) -> Release:
        return RELEASE if name == RELEASE.name else replace(RELEASE, name=name, ovs_version="3.5.0")


def nobody(_event: Event) -> None:
    """An observer that does not look."""


@pytest.fixture
def bed(config: Config) -> Bed:
    made = Bed(config)
    made.host.__dict__["releases"] = Releases()
    return made


def ended(bed: Bed, release: str, previous: str, *, committed: bool = True, **more: Any) -> None:
    """An upgrade in the history."""
    bed.world.wall_now += 1.0
    parameters = {"old": "a", "new": "b", "release": release, "previous": previous, "keep_old": False, **more}
    with Journals(bed.config.state_dir, bed.world).begin(KIND, StepNames(()), parameters=parameters) as journal:
        if committed:
            journal.append(Record(Kind.COMMIT))
        journal.append(Record(Kind.END))


def test_an_upgrade_to_what_runs_changes_nothing(bed: Bed) -> None:
    report = Upgrader(bed.host).upgrade("host", nobody)
    assert (report.changed, report.committed, report.old, report.new) == (False, False, Side.A, Side.A)
    assert bed.world.done == []
    assert standby.read_record(bed.host) is not None
    assert Journals(bed.config.state_dir, bed.world).history() == []


def test_an_upgrade_ends_traces_before_anything_else(bed: Bed) -> None:
    database, socket = Database(), bed.host.instances[Side.A].paths.db_socket
    leave_trace(database, os.getpid(), start_time(os.getpid()))
    socket.parent.mkdir(parents=True, exist_ok=True)
    daemon = Daemon(socket, database.answer)
    try:
        Upgrader(bed.host).upgrade("host", nobody)
        assert database.tables["Mirror"], "an upgrade that has nothing to do disturbs no trace"
        with contextlib.suppress(HotswapError):
            Upgrader(bed.host).upgrade("trixie", nobody)
        assert database.tables["Mirror"] == {}
    finally:
        daemon.close()


def test_it_is_not_taken_for_done_while_one_is_unfinished(bed: Bed) -> None:
    with Journals(bed.config.state_dir, bed.world).begin(KIND, StepNames(("move",))):
        pass
    with pytest.raises(BusyError, match="not finished"):
        Upgrader(bed.host).upgrade("host", nobody)


def test_the_check_refuses_what_the_upgrade_does_while_one_is_unfinished(bed: Bed) -> None:
    with Journals(bed.config.state_dir, bed.world).begin(KIND, StepNames(("move",))):
        pass
    (finding,) = Upgrader(bed.host).check("trixie")
    assert (finding.severity, finding.text) == (Severity.ERROR, "an upgrade is not finished")


def test_the_check_reports_what_it_can_while_the_broker_is_down(bed: Bed) -> None:
    bed.world.broker_fault = BrokerError("the broker does not answer", hint="`ovs-hotswap broker start`")
    findings = Upgrader(bed.host).check("trixie")
    errors = [each for each in findings if each.severity is Severity.ERROR]
    assert [(each.text, each.hint) for each in errors[:1]] == [
        ("the broker does not answer", "`ovs-hotswap broker start`")
    ]
    assert [each.text for each in errors].count("the broker does not answer") == 1
    assert ("release", Severity.OK) in [(each.check, each.severity) for each in findings]
    assert "PMD cores" in [each.check for each in findings]


def test_the_check_reports_an_active_side_that_is_not_clear(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    more = Finding("PMD cores", Severity.OK, "each instance has its own")
    monkeypatch.setattr(collect, "precheck", lambda *_: [more])
    bed.world.owner["vm1"] = Side.B
    unclear, rest = Upgrader(bed.host).check("trixie")
    assert unclear.text == "active side: recorded is a, VMs are owned by a, b"
    assert rest == more
    bed.host.forget_active()
    (finding,) = Upgrader(bed.host).check("trixie")
    assert "recorded is none" in finding.text


def test_a_dry_run_finds_nothing_to_do_where_the_upgrade_does_nothing(bed: Bed) -> None:
    same = Upgrader(bed.host).nothing_to_do("host")
    assert same is not None
    assert same.text == "instance a already runs it, from the present files: `upgrade` changes nothing"
    assert Upgrader(bed.host).nothing_to_do("trixie") is None
    bed.world.outdated = True
    assert Upgrader(bed.host).nothing_to_do("host") is None


@pytest.mark.parametrize("why", ["dead", "unfinished", "unclear"])
def test_an_upgrade_that_cannot_be_made_is_not_taken_for_done(bed: Bed, why: str) -> None:
    if why == "dead":
        bed.world.state[Side.A] = State.DEAD  # the record of its start is still there
    elif why == "unclear":
        bed.world.owner["vm1"] = Side.B
    else:
        with Journals(bed.config.state_dir, bed.world).begin(KIND, StepNames(("move",))):
            pass
    assert Upgrader(bed.host).nothing_to_do("host") is None
    with pytest.raises(HotswapError):
        Upgrader(bed.host).upgrade("host", nobody)


def test_an_upgrade_to_files_that_apt_is_replacing_is_refused(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    for busy in (True, False):
        monkeypatch.setattr(package_manager, "at_work", lambda busy=busy: busy)
        errors = [each.text for each in Upgrader(bed.host).check("host") if each.severity is Severity.ERROR]
        assert ("apt or dpkg is at work, so the files of release host may be of two versions" in errors) is busy
        errors = [each.text for each in Upgrader(bed.host).check("trixie") if each.severity is Severity.ERROR]
        assert not [text for text in errors if "apt" in text]


def test_a_rollback_is_decided_and_done_under_one_lock(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two another upgrade could change what ran before."""
    ended(bed, "host", "older")
    taken: list[str] = []
    lock = bed.host.lock

    def counted(patience_s: float = 0.0) -> AbstractContextManager[None]:
        taken.append("taken")
        return lock(patience_s)

    monkeypatch.setattr(bed.host, "lock", counted)
    with pytest.raises(HotswapError):  # it begins, and looks at a host that does not exist
        Upgrader(bed.host).rollback(nobody)
    assert taken == ["taken"]
    last = Upgrader(bed.host).last()
    assert last is not None
    assert last.release == "older"


@pytest.mark.parametrize("why", ["files", "force", "release"])
def test_it_is_done_where_files_were_replaced_or_by_force(bed: Bed, why: str) -> None:
    bed.world.outdated = why == "files"
    with pytest.raises(HotswapError):  # it continues, and looks at a host that does not exist
        Upgrader(bed.host).upgrade("trixie" if why == "release" else "host", nobody, force=why == "force")
    assert Upgrader(bed.host).last() is not None


def test_a_standby_is_not_given_up_before_the_precheck_has_passed(bed: Bed) -> None:
    with pytest.raises(HotswapError):
        Upgrader(bed.host).upgrade("trixie", nobody)
    assert "stop b" not in bed.world.done
    assert standby.read_record(bed.host) is not None


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("state", "release", "outdated", "goes_on"),
    [
        (State.RUNNING, "host", False, True),
        (State.RUNNING, "host", True, False),
        (State.RUNNING, "trixie", False, False),
        (State.STARTING, "host", False, False),
        (State.STOPPED, "host", False, False),
    ],
)
def test_the_check_says_what_the_upgrade_does_with_an_instance_that_runs_already(
    bed: Bed, state: State, release: str, outdated: bool, goes_on: bool, recorded: bool
) -> None:
    bed.world.state[Side.B], bed.world.outdated = state, outdated
    if not recorded:
        standby.forget(bed.config)
    findings = collect.beside(bed.host, Side.B, release)
    assert not any(finding.severity is Severity.ERROR for finding in findings)
    assert any("continues with it" in finding.text for finding in findings) is goes_on
    assert any("ends it" in finding.text for finding in findings) is (state is State.RUNNING and not goes_on)
    if goes_on and recorded:
        return  # it is given the operator's values, on a switch that is not here
    assert standby.release_for_upgrade(bed.host, Side.A, Releases().get(release)) is goes_on
    assert bed.world.done == ([] if goes_on or state is State.STOPPED else ["stop b"])


def test_a_roll_back_goes_to_the_release_before_however_often_that_of_now_was_asked_for(bed: Bed) -> None:
    upgrader = Upgrader(bed.host)
    ended(bed, "trixie", "host")
    assert upgrader.release_before("trixie") == "host"
    for _ in range(30):
        ended(bed, "trixie", "trixie", before=upgrader.release_before("trixie"))
    assert upgrader.release_before("trixie") == "host"
    for _ in range(30):
        ended(bed, "newer", "trixie", committed=False, before=upgrader.release_before("trixie"))
    assert upgrader.release_before("trixie") == "host"


def test_a_roll_back_is_gone_back_on(bed: Bed) -> None:
    ended(bed, "trixie", "host")
    ended(bed, "host", "trixie", before="host")
    assert Upgrader(bed.host).release_before("host") == "trixie"


def test_journals_that_do_not_know_what_ran_before_are_read(bed: Bed) -> None:
    ended(bed, "trixie", "host")
    ended(bed, "trixie", "trixie")
    assert Upgrader(bed.host).release_before("trixie") == "host"


def test_after_an_upgrade_that_was_rolled_back_the_one_before_is_not_rolled_back_by_mistake(bed: Bed) -> None:
    ended(bed, "host", "older")
    ended(bed, "trixie", "host", committed=False, before="older")
    with pytest.raises(PrecheckFailed, match="was rolled back already") as raised:
        Upgrader(bed.host).rollback(nobody)
    assert "--release older" in str(raised.value.hint)


class Gone:
    """Releases that are not there any longer."""

    def get(self, name: str) -> Release:
        raise ReleaseError(f"release {name} is wanted")


@pytest.mark.parametrize(
    ("history", "wanted"),
    [
        ([("host", "trixie")], "trixie"),
        ([("trixie", "older"), ("newer", "trixie")], "newer"),  # host was started by hand since
        ([("trixie", "older"), ("newer", "trixie"), ("trixie", "newer")], "trixie"),
        ([("host", "trixie"), ("host", "host")], "trixie"),
    ],
)
def test_a_rollback_goes_to_what_really_ran_before(bed: Bed, history: list[tuple[str, str]], wanted: str) -> None:
    for release, previous in history:
        ended(bed, release, previous, before=Upgrader(bed.host).release_before(previous))
    assert Upgrader(bed.host).release_before("host") == wanted
    bed.host.__dict__["releases"] = Gone()
    with pytest.raises(ReleaseError, match=f"release {wanted} is wanted"):
        Upgrader(bed.host).rollback(nobody)


def test_a_failover_to_the_release_before_is_not_rolled_back_to_the_one_that_failed(bed: Bed) -> None:
    """With ``watch.release`` the standby keeps the release from before the upgrade."""
    ended(bed, "host", "older")
    ended(bed, "trixie", "host", before="older")
    assert Upgrader(bed.host).release_before("host") == "trixie"
    with pytest.raises(PrecheckFailed, match="instance a runs host already, which ran before the last") as raised:
        Upgrader(bed.host).rollback(nobody)
    assert "`ovs-hotswap upgrade --release trixie`" in str(raised.value.hint)
    assert bed.world.done == []


def test_a_rollback_whose_old_instance_had_died_left_the_new_one(bed: Bed) -> None:
    ended(bed, "host", "trixie", committed=False, before="older")
    assert Upgrader(bed.host).release_before("host") == "trixie"
    with pytest.raises(PrecheckFailed, match="was rolled back already") as raised:
        Upgrader(bed.host).rollback(nobody)
    assert "--release trixie" in str(raised.value.hint)


def test_where_nothing_else_ever_ran_there_is_nothing_to_roll_back(bed: Bed) -> None:
    with pytest.raises(PrecheckFailed, match="no upgrade to roll back"):
        Upgrader(bed.host).rollback(nobody)
    ended(bed, "host", "host")
    with pytest.raises(PrecheckFailed, match="from host to its newer files, and no other release ran") as raised:
        Upgrader(bed.host).rollback(nobody)
    assert "`ovs-hotswap upgrade --release host`" in str(raised.value.hint)


@pytest.mark.parametrize("damaged", [True, False])
def test_an_earlier_journal_that_cannot_be_read_keeps_nobody_from_the_next_upgrade(bed: Bed, damaged: bool) -> None:
    """The earlier release is only reported here; a rollback would use it."""
    ended(bed, "host", "older")
    (path,) = Journals(bed.config.state_dir, bed.world).history()
    if damaged:
        path.write_bytes(b"{}\n" + path.read_bytes())
    else:
        path.unlink()
        path.mkdir()
    report = Upgrader(bed.host).upgrade("host", nobody)
    assert (report.changed, report.before) == (False, None)
    with pytest.raises(StateUnknown if damaged else HostError):
        Upgrader(bed.host).rollback(nobody)


def test_the_check_and_the_upgrade_leave_out_the_same(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.world.quarantine, bed.world.owner["vm1"] = {"vm1": "by order"}, None
    seen: list[list[str]] = []

    def precheck(*given: Any) -> list[Any]:
        seen.append(sorted(given[-1]))
        raise PrecheckFailed("enough")

    monkeypatch.setattr(collect, "precheck", precheck)
    upgrader = Upgrader(bed.host)
    with pytest.raises(PrecheckFailed):
        upgrader.check("trixie", ["vm2"])
    with pytest.raises(PrecheckFailed):
        upgrader.upgrade("trixie", nobody, leave_out=["vm2"])
    assert seen == [["vm1", "vm2"]] * 2


ODD: list[dict[str, Any]] = [
    {"old": "c"}, {"old": None}, {"new": ["b"]}, {"leave_out": 5}, {"leave_out": None}, {"keep_old": None, "old": {}},
]  # fmt: skip


@pytest.mark.parametrize("parameters", ODD, ids=str)
def test_an_unfinished_journal_with_odd_parameters_is_named(bed: Bed, parameters: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"old": "a", "new": "b", "release": "trixie", "previous": "host", "keep_old": False}
    with Journals(bed.config.state_dir, bed.world).begin(KIND, upgrade_plan().shape, parameters=usual | parameters):
        pass
    upgrader = Upgrader(bed.host)
    for act in (upgrader.resume, upgrader.rollback):
        with pytest.raises(StateUnknown, match="not an upgrade's") as raised:
            act(nobody)
        assert raised.value.hint


@pytest.mark.parametrize("key", ["old", "release", "previous"])
def test_an_earlier_journal_without_parameters_is_none_of_an_upgrade(bed: Bed, key: str) -> None:
    parameters = {"old": "a", "new": "b", "release": "trixie", "previous": "host"}
    del parameters[key]
    with Journals(bed.config.state_dir, bed.world).begin(KIND, StepNames(()), parameters=parameters) as journal:
        journal.append(Record(Kind.END))
    upgrader = Upgrader(bed.host)
    assert upgrader.upgrade("host", nobody).before is None
    with pytest.raises(StateUnknown):
        upgrader.last()


@pytest.mark.parametrize("facts", [{"moves": [1]}, {"moves": {"vm1": "soon"}}, {"moves": None}, {"warnings": 5}])
def test_an_earlier_journal_with_odd_facts_is_none_of_an_upgrade(bed: Bed, facts: dict[str, Any]) -> None:
    parameters = {"old": "a", "new": "b", "release": "trixie", "previous": "host"}
    with Journals(bed.config.state_dir, bed.world).begin(KIND, StepNames(()), parameters=parameters) as journal:
        journal.append(Record(Kind.FACTS, facts=facts))
        journal.append(Record(Kind.END))
    with pytest.raises(StateUnknown):
        Upgrader(bed.host).last()


def test_a_clock_that_was_set_back_makes_no_roll_back_go_elsewhere(bed: Bed) -> None:
    ended(bed, "trixie", "host")
    bed.world.wall_now -= 86400
    ended(bed, "newer", "trixie", before="host")
    assert Upgrader(bed.host).release_before("newer") == "trixie"


def test_the_check_refuses_to_keep_the_old_one_with_a_vm_left_out_as_the_upgrade_does(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "precheck", lambda *_: [])
    upgrader = Upgrader(bed.host)
    assert upgrader.check("trixie", ["vm1"]) == upgrader.check("trixie", keep_old=True) == []
    (found,) = upgrader.check("trixie", ["vm1"], keep_old=True)
    with pytest.raises(PrecheckFailed, match="left out") as raised:
        upgrader.upgrade("trixie", nobody, leave_out=["vm1"], keep_old=True)
    assert (found.severity, found.text, found.hint) == (Severity.ERROR, raised.value.message, raised.value.hint)
