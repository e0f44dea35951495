"""The summary of a run over a fleet: totals from the documents of hosts, and what is made of them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.model import Finding, Severity
from tests.support import collection, fleet_run

summary = collection.module("plugins.module_utils.summary")
words = collection.module("plugins.module_utils.summary_text")
pages = collection.module("plugins.module_utils.summary_page")


def totals(documents: list[fleet_run.Json], final: bool = True, **fields: Any) -> Any:
    run = fleet_run.run(**fields)
    return summary.totals(run, [summary.host(each, run["release"]) for each in documents], final)


def test_totals_are_what_the_documents_say() -> None:
    fast = fleet_run.host("hv1", "canary", "upgraded", 0, 10, report=fleet_run.report({"web1": 80.0, "web2": 120.0}))
    slow = fleet_run.host("hv2", 1, "upgraded", 20, 15, report=fleet_run.report({"db1": 940.0}))
    same = fleet_run.host("hv3", 1, "unchanged", 21, 1)
    found = totals([slow, same, fast])
    assert [host.name for host in found.hosts] == ["hv1", "hv2", "hv3"]
    assert (found.moves, found.worst_us, found.worst_vm, found.worst_host) == (3, 940.0, "db1", "hv2")
    assert (found.p50_us, found.p99_us) == (120.0, 940.0)
    assert found.states == {"unchanged": 1, "upgraded": 2}
    assert [(wave.name, wave.hosts, wave.seconds, wave.vms) for wave in found.waves] == [
        ("canary", 1, 10.0, 2),
        ("1", 2, 15.0, 1),
    ]
    assert words.elapsed(found) == 35.0
    assert (found.verdict, words.headline(found)) == ("complete", ("Complete", "all 3 hosts run trixie"))


def test_waves_are_in_the_order_of_their_numbers() -> None:
    found = totals([fleet_run.upgraded(f"hv{wave}", wave, 1) for wave in (10, 2, "canary", 1)])
    assert [wave.name for wave in found.waves] == ["canary", "1", "2", "10"]


def test_lost_frames_are_those_that_an_upgrade_warns_of() -> None:
    warnings = (
        "VM web1: 3 large frames of several segments (GSO) arrived during its move and cannot be delivered",
        "VM web2: a large frame of several segments (GSO) arrived during its move and cannot be delivered",
        "VM web3: frames that arrived during its move are not known: the broker does not answer",
        "VM web4: something else",
    )
    found = totals([fleet_run.host("hv1", 1, "upgraded", report=fleet_run.report({"web1": 80.0}, warnings))])
    assert (found.lost, found.lost_unknown, found.verdict) == (4, 1, "attention")
    assert words.losses(found) == "4 frames reported lost; not known of 1 VM"
    assert words.why(found.problems[0]) == "4 frames reported lost; losses not known of 1 VM"
    assert "web4: something else" in words.text(found)


def test_the_warnings_are_worded_as_the_upgrade_words_them() -> None:
    source = (collection.ROOT.parent / "ovs_hotswap/upgrade/move_vms.py").read_text()
    assert "of several segments (GSO) arrived during its move and cannot be delivered" in source
    assert "VM {caught.vm}: frames that arrived during its move are not known: " in source
    assert '"a large frame" if caught.undeliverable == 1 else f"{caught.undeliverable} large frames"' in source


def test_moves_of_an_upgrade_that_was_not_committed_do_not_count() -> None:
    report = {**fleet_run.report({"web1": 90.0}), "committed": False}
    assert totals([fleet_run.host("hv1", 1, "rolled_back", report=report)]).moves == 0


@pytest.mark.parametrize(
    ("watch", "expected"),
    [
        ({"mode": "automatic", "running": True, "ready": True}, ("restored", None)),
        ({"mode": "off", "running": False, "ready": False}, ("off", None)),
        ({"mode": "required", "running": False, "ready": False}, ("missing", "the watchdog does not run")),
        ({"mode": "automatic", "running": True, "ready": False, "problem": "no huge pages\nfree"},
         ("missing", "no huge pages")),
        ({"mode": "automatic", "running": True, "ready": False, "problem": None, "keeping": "waiting"},
         ("missing", "waiting")),
        (None, ("unknown", "watch status was not read after the run")),
    ],
)  # fmt: skip
def test_the_standby_is_what_watch_status_says(watch: Any, expected: tuple[str, str | None]) -> None:
    assert summary.standby(watch) == expected
    found = totals([fleet_run.upgraded("hv1", 1, 2, watch=watch)])
    assert found.verdict == ("attention" if expected[0] in ("missing", "unknown") else "complete")


def test_a_host_that_runs_the_release_and_is_not_as_it_must_be_needs_a_person() -> None:
    check = {"findings": [{"severity": "error", "text": "the flows differ", "hint": None}], "ready": False}
    watch = {"mode": "required", "running": False, "ready": False}
    found = totals(
        [
            fleet_run.upgraded("hv1", 1, 2, reason="soak: the active instance is suspect", check=check),
            fleet_run.upgraded("hv2", 1, 2, watch=watch),
            fleet_run.upgraded("hv3", 1, 2),
            fleet_run.failures()[1]("hv4", 1, 0.0),
        ]
    )
    assert [host.name for host in found.problems] == ["hv4", "hv1", "hv2"]
    assert words.why(found.problems[1]) == "soak: the active instance is suspect; the flows differ"
    assert words.why(found.problems[2]) == "no standby: the watchdog does not run"
    assert found.problems[2].look == "ovs-hotswap --host hv2 status"
    assert (found.done, found.verdict) == (3, "incomplete")
    assert pages.page(found).count(" ill") > pages.page(totals([fleet_run.upgraded("hv3", 1, 2)])).count(" ill")


def test_a_run_that_takes_another_one_back_does_not_claim_its_release() -> None:
    found = totals([fleet_run.upgraded("hv1", 1, 2), fleet_run.failures()[1]("hv2", 1, 0.0)], id="rollback")
    assert words.headline(found) == ("Not complete", "1 of 2 hosts are back from trixie")
    assert "are back from trixie" in pages.page(found)


def test_a_sentence_that_names_a_thousand_hosts_is_cut() -> None:
    found = totals([], stopped="1 000 hosts failed: " + "; ".join(f"hv{number}" for number in range(1000)))
    assert len(words.stop_line(found.stop)) < 500
    assert len(words.document(found)["stop"]["text"]) > 5000


def test_a_host_that_was_not_worked_on_has_no_standby_to_look_at() -> None:
    assert totals([fleet_run.host("hv1", 1, "unreachable", watch=None)]).standby == {}


@pytest.mark.parametrize(
    ("number", "reason", "command"),
    [
        (0, "check refuses the upgrade: VM web7: its memory has 8 regions",
         "ovs-hotswap --host hv1 check --release trixie"),
        (1, "the standby died during the moves: step move: instance b ended: signal 11",
         "ovs-hotswap --host hv1 status"),
        (2, "ssh: no route to host", "ansible hv1 -m ansible.builtin.ping"),
    ],
)  # fmt: skip
def test_a_problem_has_a_reason_of_one_line_and_a_command(number: int, reason: str, command: str) -> None:
    (host,) = totals([fleet_run.failures()[number]("hv1", 1, 0.0)]).problems
    assert (host.reason, host.look) == (reason, command)


def test_a_command_quotes_the_name_of_a_host() -> None:
    assert summary.command("a; reboot", "failed", 5, "trixie") == "ovs-hotswap --host 'a; reboot' status"


def test_the_first_finding_of_the_check_is_the_reason_if_there_is_no_other() -> None:
    finding = Finding("huge pages", Severity.ERROR, "node 0 lacks 12 huge pages", hint="free some")
    check = {
        "findings": [
            {"check": "release", "severity": "ok", "text": "release trixie", "hint": None, "item": None},
            {"check": finding.check, "severity": finding.severity.value, "text": finding.text, "hint": finding.hint},
        ],
        "ready": False,
    }
    (host,) = totals([fleet_run.host("hv1", 1, "failed", check=check)]).problems
    assert (host.reason, host.hint) == (finding.text, finding.hint)


@pytest.mark.parametrize("state", [None, "", "done", 7, ["failed"]])
def test_a_state_that_is_not_known_is_a_problem_and_never_a_success(state: Any) -> None:
    found = totals([{**fleet_run.upgraded("hv1", 1, 2), "state": state}])
    assert [host.state for host in found.problems] == ["unknown"]
    assert found.verdict == "incomplete"


def test_planned_hosts_without_a_document_are_waiting() -> None:
    run, documents = fleet_run.fleet(6, begun=2)
    hosts = [summary.host(each, "trixie") for each in documents]
    assert summary.totals(run, hosts, False).states == {"waiting": 4, "upgraded": 2}
    assert summary.totals(run, hosts, False).verdict == "running"
    assert summary.totals(run, hosts, True).verdict == "incomplete"


@pytest.mark.parametrize(
    ("stopped", "line"),
    [
        ({"threshold": "max_failed", "limit": 1, "value": 3, "wave": 2}, "max_failed is 3 and may be 1 at most"),
        ({"threshold": "max_gap_ms", "limit": 2}, "max_gap_ms may be 2 at most"),
        ({"threshold": "max_lost"}, "max_lost was exceeded"),
        ({"threshold": "max_failed", "text": "3 hosts failed"}, "3 hosts failed"),
        ("an operator paused it", "an operator paused it"),
    ],
)
def test_the_threshold_that_stopped_the_run_is_named(stopped: Any, line: str) -> None:
    found = totals([fleet_run.upgraded("hv1", 1, 2)], stopped=stopped)
    assert found.verdict == "stopped"
    assert f"The run was stopped: {line}." in words.text(found)
    assert line in pages.page(found)


@pytest.mark.parametrize(
    "value", [1_790_000_000, "2026-09-21T14:13:20Z", "2026-09-21T16:13:20+02:00", "2026-09-21 14:13:20"]
)
def test_a_time_is_seconds_or_iso_8601(value: Any) -> None:
    assert summary.instant(value) == 1_790_000_000


@pytest.mark.parametrize(
    "value", [None, "", "yesterday", True, [1], float("nan"), 1e300, 10**400, "0001-01-01T00:00:00+23:59"]
)
def test_what_is_no_time_is_none(value: Any) -> None:
    assert summary.instant(value) is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.99, 1.0]))
def test_a_quantile_occurred_and_has_that_share_at_or_below_it(values: list[float], share: float) -> None:
    found = summary.quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)


ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    ANY | st.sampled_from([*summary.STATES, 10**400, "\ud800", "hv²", "9" * 5000, "9999-12-31T23:59:59"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("host", "wave", "state", "started", "ended", "reason", "report", "check", "watch")
REPORTS = st.fixed_dictionaries({}, optional={key: JSON for key in ("error", "warnings", "moves", "committed")})


@given(st.fixed_dictionaries({}, optional={key: JSON | REPORTS for key in KEYS}), JSON, st.booleans())
def test_no_document_is_too_strange_to_be_summed_up(document: Any, stopped: Any, final: bool) -> None:
    found = totals([document], final, stopped=stopped, hosts=stopped)
    assert all(each == "\n" or each.isprintable() for each in words.text(found))
    json.loads(json.dumps(words.document(found)))
    pages.page(found)


@given(st.integers(1, 120), st.integers(0, 119), st.integers(0, 5), st.booleans())
def test_every_host_is_counted_once_everywhere(count: int, begun: int, bad: int, final: bool) -> None:
    begun = min(begun, count)
    run, documents = fleet_run.fleet(count, min(bad, max(0, begun - 1)), vms=2, begun=begun)
    found = summary.totals(run, [summary.host(each, "trixie") for each in documents], final)
    assert sum(found.states.values()) == sum(wave.hosts for wave in found.waves) == count
    assert sum(wave.vms for wave in found.waves) == found.moves == sum(len(host.moves) for host in found.hosts)
    assert len(re.findall(r'<tr id="h\d+"', pages.page(found))) == count


# --------------------------------------------------------------------------------------------------------------- text


def test_the_text_holds_no_control_character() -> None:
    found = totals([fleet_run.host("hv\x1b[2J", 1, "failed", reason="\x1b]0;x\x07bad\x9b")])
    assert all(each == "\n" or each.isprintable() for each in words.text(found))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, "-"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7260, "2 h 01 min")],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert words.duration(seconds) == expected


# --------------------------------------------------------------------------------------------------------------- page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}</style><!--"


class Tags(HTMLParser):
    """Elements and attributes as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_page() -> str:
    check = {"findings": [{"severity": "error", "text": HOSTILE, "hint": HOSTILE}]}
    report = {**fleet_run.report({HOSTILE: 90.0}, (HOSTILE,))}
    documents = [
        fleet_run.host(HOSTILE, HOSTILE, "failed", reason=HOSTILE, check=check),
        fleet_run.host(HOSTILE + "2", 1, "upgraded", report=report, watch={"ready": False, "problem": HOSTILE}),
        {**fleet_run.host("x", 1, "x"), "state": HOSTILE},
    ]
    run: dict[str, Any] = {"release": HOSTILE, "id": HOSTILE, "policy": {HOSTILE: HOSTILE}, "stopped": HOSTILE}
    return str(pages.page(totals(documents, **run)))


def test_what_documents_say_never_becomes_markup() -> None:
    tags = Tags(hostile_page())
    assert tags.seen.count("script") == tags.seen.count("style") == 1
    assert "img" not in tags.seen
    assert not [name for name, _value in tags.attributes if name.startswith("on")]
    assert HOSTILE in tags.text


def test_the_page_loads_nothing() -> None:
    run, documents = fleet_run.fleet(6, 3)
    page = pages.page(summary.totals(run, [summary.host(each, "trixie") for each in documents], True))
    tags = Tags(page)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(tags.seen)
    assert not [value for name, value in tags.attributes if name in ("src", "srcset", "action")]
    assert {value[:1] for name, value in tags.attributes if name == "href"} == {"#"}
    assert "url(" not in page
    assert "@import" not in page


def test_the_same_documents_make_the_same_files() -> None:
    def made() -> tuple[str, str, str]:
        run, documents = fleet_run.fleet(20, 3)
        found = summary.totals(run, [summary.host(each, "trixie") for each in documents], True)
        return words.text(found), json.dumps(words.document(found)), pages.page(found)

    assert made() == made()


def test_each_cell_says_its_state_in_words_and_by_a_sign() -> None:
    documents = [fleet_run.host(f"hv{number}", 1, state) for number, state in enumerate(summary.STATES)]
    page = pages.page(totals(documents))
    for number, state in enumerate(summary.STATES):
        assert f'aria-label="hv{number}, wave 1, {words.word(state)}' in page
    assert len(set(pages.SIGNS.values())) == len(summary.STATES) == len(pages.SIGNS)


def test_a_row_of_the_map_has_many_waves_if_there_are_many() -> None:
    documents = [fleet_run.upgraded(f"hv{number}", number, 1) for number in range(1, 301)]
    page = pages.page(totals(documents))
    assert 5 <= page.count('<div class="wave">') < 10
    assert "<h3>1 to 50</h3>" in page
    assert len(re.findall(r'<a href="#h\d+"', page)) == 300
    assert page.count('<div class="lane">') == 301


def test_a_page_of_a_small_fleet_names_the_hosts_and_of_a_large_one_has_cells() -> None:
    assert 'class="map chips"' in pages.page(totals([fleet_run.upgraded("hv1", 1, 1)]))
    many = [fleet_run.upgraded(f"hv{number}", 1, 1) for number in range(pages.CHIPS + 1)]
    assert 'class="map cells"' in pages.page(totals(many))
