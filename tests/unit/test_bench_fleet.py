"""The simulation of runs over a fleet, against formulas and properties that any run has."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fleet import closed, page, policies
from bench.fleet.measured import PAGE, Durations, at, durations
from bench.fleet.model import HOUR, Assumed, Fault, Moment, Outcome, Policy, amount, batches
from bench.fleet.policies import RECOMMENDED
from bench.fleet.simulate import simulate
from bench.fleet.studies import Laboratory, Many

ROOT = Path(__file__).parents[2]
POINTS = [Durations(1, 1.0, 3.0, 8.0, 10.0), Durations(101, 2.0, 6.0, 12.0, 20.0)]
NEVER = Assumed(ordinary=0.0)


def mean(values: list[float]) -> tuple[float, float]:
    """The mean, and its standard error."""
    middle = sum(values) / len(values)
    return middle, math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))


# ----------------------------------------------------------------------------------------------------------- measured


def test_the_durations_are_those_of_the_page() -> None:
    page = (ROOT / PAGE).read_text()
    found = durations(page)
    assert [each.vms for each in found] == sorted(each.vms for each in found)
    for each in found:
        assert 0 < each.precheck < each.moved < each.soaked < each.whole
        assert f" {each.whole:.2f} |" in page


def test_durations_of_a_table() -> None:
    page = """# x\n
## A whole upgrade\n
| step | 16 x 1, 93 flows | 1 x 1, 18 flows | 16 x 1, 10093 flows | 16 x 4, 1 flows |
| --- | --- | --- | --- | --- |
| precheck | 0.20 | 0.10 | 9 | 9 |
| move | 0.50 | 0.25 | 9 | 9 |
| soak | 5.00 | 5.00 | 9 | 9 |
| retire | 1.00 | 0.50 | 9 | 9 |
| whole | 7.00 | 6.00 | 9 | 9 |
"""
    assert durations(page) == [
        Durations(1, 0.10, 0.35, 5.35, 6.0),
        Durations(16, 0.20, 0.70, 5.70, 7.0),
    ]


def test_a_page_without_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="A whole upgrade"):
        durations("# Performance\n")


def test_durations_between_and_beyond_what_was_measured() -> None:
    assert at(POINTS, 51).whole == 15.0
    assert at(POINTS, 101).moved == 6.0
    assert at(POINTS, 1000) == POINTS[-1]
    assert at(POINTS, 0) == POINTS[0]


# -------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("size", "hosts", "expected"), [(5, 100, 5), ("10%", 100, 10), ("10%", 5, 1), ("2.5%", 100, 2), ("100%", 7, 7)]
)
def test_sizes_of_waves_are_counted_as_ansible_does(size: int | str, hosts: int, expected: int) -> None:
    assert amount(size, hosts) == expected


def test_the_last_size_is_repeated() -> None:
    policy = Policy("x", (1, 5, "10%"), canaries=2)
    assert [batch.size for batch in batches(policy, 52)] == [2, 1, 5, *[5] * 8, 4]


SIZES = st.one_of(st.integers(1, 40), st.sampled_from(["1%", "5%", "10%", "50%", "100%"]))
POLICIES = st.builds(
    Policy,
    name=st.just("x"),
    serial=st.lists(SIZES, min_size=1, max_size=3).map(tuple),
    canaries=st.integers(0, 10),
    soak_h=st.floats(0, 48),
    forks=st.integers(1, 50),
    max_failed=st.integers(0, 20),
    percent=st.floats(0, 100),
    pause_h=st.floats(0, 24),
    early=st.booleans(),
)
FAULTS = st.one_of(
    st.none(), st.builds(Fault, moment=st.sampled_from(Moment), share=st.floats(0, 1), hours=st.floats(0, 48))
)
SEEDS = st.integers(0, 10**6)


@given(POLICIES, st.integers(1, 300))
def test_each_host_is_in_one_batch(policy: Policy, hosts: int) -> None:
    assert sum(batch.size for batch in batches(policy, hosts)) == hosts


# ---------------------------------------------------------------------------------------------------------- properties


@given(POLICIES, st.integers(1, 120), FAULTS, st.floats(0, 0.2), SEEDS)
def test_what_any_run_has(policy: Policy, hosts: int, fault: Fault | None, ordinary: float, seed: int) -> None:
    assumed = Assumed(ordinary=ordinary)
    found = simulate(policy, hosts, fault, assumed, POINTS, seed)
    assert found == simulate(policy, hosts, fault, assumed, POINTS, seed)
    assert found.running <= found.exposed <= found.touched <= hosts
    assert found.stopped or found.touched == hosts
    assert assumed.vms[0] * found.running <= found.vms <= assumed.vms[1] * found.running
    assert 1 <= found.waves <= len(list(batches(policy, hosts)))
    assert found.hours > 0


@given(POLICIES, st.integers(1, 80), SEEDS)
def test_a_good_release_without_failures_reaches_every_host(policy: Policy, hosts: int, seed: int) -> None:
    found = simulate(policy, hosts, None, NEVER, POINTS, seed)
    assert (found.stopped, found.touched, found.running, found.failed) == (False, hosts, hosts, 0)


@given(POLICIES, st.integers(1, 80), st.sampled_from([Moment.PRECHECK, Moment.MOVES, Moment.SOAK]), SEEDS)
def test_a_host_that_puts_itself_back_does_not_run_the_release(
    policy: Policy, hosts: int, moment: Moment, seed: int
) -> None:
    found = simulate(policy, hosts, Fault(moment, 1.0), NEVER, POINTS, seed)
    assert (found.running, found.failed) == (0, found.touched)
    assert found.exposed == (0 if moment is Moment.PRECHECK else found.touched)


@given(POLICIES, st.integers(1, 80), st.floats(0, 1), SEEDS)
def test_to_look_before_each_host_never_touches_more_of_them(
    policy: Policy, hosts: int, share: float, seed: int
) -> None:
    fault = Fault(Moment.MOVES, share)
    late, early = (
        simulate(replace(policy, early=early), hosts, fault, NEVER, POINTS, seed).touched for early in (False, True)
    )
    assert early <= late


@given(POLICIES, st.integers(2, 80), SEEDS)
def test_more_forks_never_take_longer(policy: Policy, hosts: int, seed: int) -> None:
    one, many = (simulate(replace(policy, forks=n), hosts, None, NEVER, POINTS, seed).hours for n in (1, 50))
    assert many <= one


@given(st.integers(1, 10), st.integers(1, 5), SEEDS)
def test_a_fault_that_every_canary_shows_ends_with_the_canaries(canaries: int, size: int, seed: int) -> None:
    policy = Policy("x", (size,), canaries=canaries, soak_h=24, max_failed=100)
    for fault in (Fault(Moment.SOAK, 1.0), Fault(Moment.LATER, 1.0, hours=10)):
        found = simulate(policy, 100, fault, NEVER, POINTS, seed)
        assert (found.stopped, found.touched, found.waves) == (True, canaries, 1)


def test_a_fault_that_shows_after_the_soak_is_not_seen_by_the_canaries() -> None:
    policy = Policy("x", ("100%",), canaries=5, soak_h=4)
    found = simulate(policy, 100, Fault(Moment.LATER, 1.0, hours=10), NEVER, POINTS, 1)
    assert (found.touched, found.running) == (100, 100)


def test_a_share_of_the_hosts_that_were_begun_may_fail() -> None:
    policy = Policy("x", (10,), max_failed=100, percent=50)
    assert not simulate(policy, 100, Fault(Moment.MOVES, 0.25), NEVER, POINTS, 1).stopped
    found = simulate(policy, 100, Fault(Moment.MOVES, 1.0), NEVER, POINTS, 1)
    assert (found.stopped, found.touched) == (True, 10)


def test_the_time_of_one_host_at_a_time_is_the_sum_of_the_hosts() -> None:
    assumed = Assumed(ordinary=0.0, overhead_s=(30.0, 30.0), gate_s=0.0, vms=(1, 1))
    found = simulate(Policy("x", (1,), pause_h=0.5), 10, None, assumed, POINTS, 1)
    assert found.hours * HOUR == pytest.approx(10 * (30 + 10) + 9 * 0.5 * HOUR)


# -------------------------------------------------------------------------------------------------------- closed forms


def agrees(values: list[float], expected: float) -> bool:
    """Within five standard errors; the seeds are fixed, so this does not vary from run to run."""
    middle, error = mean(values)
    return abs(middle - expected) <= 5 * error + 1e-9


@pytest.mark.parametrize(("share", "allowed"), [(0.2, 0), (0.05, 0), (0.05, 3), (0.5, 10)])
def test_hosts_touched_one_by_one(share: float, allowed: int) -> None:
    policy = Policy("x", (1,), max_failed=allowed)
    found = [
        float(simulate(policy, 200, Fault(Moment.MOVES, share), NEVER, POINTS, seed).touched) for seed in range(400)
    ]
    assert agrees(found, closed.touched_one_by_one(200, share, allowed))


def test_hosts_touched_one_by_one_in_a_large_fleet_is_the_negative_binomial() -> None:
    assert closed.touched_one_by_one(5000, 0.05, 2) == pytest.approx(3 / 0.05)


@pytest.mark.parametrize("share", [0.3, 0.05, 0.01])
def test_hosts_touched_in_waves(share: float) -> None:
    policy = Policy("x", (1, 5, "10%"))
    sizes = [batch.size for batch in batches(policy, 200)]
    found = [
        float(simulate(policy, 200, Fault(Moment.SOAK, share), NEVER, POINTS, seed).touched) for seed in range(400)
    ]
    assert agrees(found, closed.touched_in_waves(sizes, share))


@pytest.mark.parametrize(("ordinary", "allowed"), [(0.01, 0), (0.01, 3), (0.002, 1)])
def test_false_stops(ordinary: float, allowed: int) -> None:
    policy = Policy("x", ("100%",), max_failed=allowed)
    found = [
        float(simulate(policy, 300, None, Assumed(ordinary=ordinary), POINTS, seed).stopped) for seed in range(400)
    ]
    assert agrees(found, closed.stops(300, ordinary, allowed))
    assert closed.stops(300, ordinary, allowed) == pytest.approx(1 - closed.at_most(300, ordinary, allowed))


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_canaries_see_a_fault(share: float) -> None:
    policy = Policy("x", ("100%",), canaries=10, max_failed=50)
    found = [
        float(simulate(policy, 50, Fault(Moment.MOVES, share), NEVER, POINTS, seed).stopped) for seed in range(400)
    ]
    assert agrees(found, closed.seen(10, share))


def test_no_failures_never_stop_a_run() -> None:
    assert closed.stops(10_000, 0.0, 0) == 0.0
    assert closed.seen(10, 0.0) == 0.0


# --------------------------------------------------------------------------------------------------------------- page


@pytest.fixture(scope="module")
def made() -> page.Made:
    return page.make(Laboratory(durations((ROOT / PAGE).read_text()), Assumed(), runs=1))


def test_the_page_has_a_mark_for_each_part_and_shows_each_plot(made: page.Made) -> None:
    text = (ROOT / "docs/fleet.md").read_text()
    assert sorted(page.names(text)) == sorted(made.parts)
    assert sorted(made.plots) == sorted(path.stem for path in (ROOT / "docs/fleet").glob("*.svg"))
    assert all(f"(fleet/{name}.svg)" in text for name in made.plots)


def test_the_plots_are_small_and_suit_a_light_and_a_dark_page() -> None:
    for path in (ROOT / "docs/fleet").glob("*.svg"):
        text = path.read_text()
        assert len(text) < 8_000, path
        assert len(text.splitlines()) < 100, path
        assert "prefers-color-scheme:dark" in text
        root = ElementTree.fromstring(text)
        assert len(root.findall("{*}text")) > 10, "text is text"


def test_the_page_says_what_is_measured_and_assumed_now(made: page.Made) -> None:
    text = (ROOT / "docs/fleet.md").read_text()
    assert made.parts["measured"] in text
    for name, assumed, _ends in policies.RANGES:
        assert text.count(f"| {name} | {assumed} |") == 2


def test_the_page_recommends_what_was_simulated() -> None:
    text = (ROOT / "docs/fleet.md").read_text()
    for hosts, policy in RECOMMENDED:
        start = f"| up to {page.number(hosts)} | " + " | ".join(page._settings(policy))
        assert sum(line.startswith(start) for line in text.splitlines()) == 1


def test_the_variables_on_the_page_are_those_of_the_last_row() -> None:
    text = (ROOT / "docs/fleet.md").read_text()
    _hosts, policy = RECOMMENDED[-1]
    assert f"upgrade_canary_soak: {policy.soak_h * HOUR:.0f}\n" in text
    assert f"upgrade_wave_soak: {policy.pause_h * HOUR:.0f}\n" in text
    assert f"upgrade_waves: {page._sizes(policy)}\n" in text
    limits = f"max_failed_hosts: {policy.max_failed}, max_failed_percent: {policy.percent:g}"
    assert f"upgrade_policy: {{{limits}}}\n" in text
    assert f"--forks {policy.forks} " in text


def test_parts_replace_what_was_between_their_marks() -> None:
    text = "# x\n<!-- make bench-fleet: a -->\nold\n<!-- end -->\ny\n<!-- make bench-fleet: b -->\n<!-- end -->\n"
    new = page.replaced(text, {"a": "A\n", "b": "B"})
    assert new.count("old") == 0
    assert page.replaced(new, {"a": "A\n", "b": "B"}) == new
    assert new.index("A") < new.index("y") < new.index("B")


def test_a_part_without_a_mark_is_an_error() -> None:
    with pytest.raises(ValueError, match="marks"):
        page.replaced("# x\n", {"a": "A"})


def test_spreads_are_ranks_of_the_runs() -> None:
    outcomes = [Outcome(False, float(n), n, n, n, n, 0, 1) for n in range(1, 21)]
    found = Many(tuple(outcomes)).spread(lambda outcome: outcome.touched)
    assert (found.p50, found.p95) == (10, 19)


def test_what_is_assumed_is_named_by_its_value() -> None:
    standard = policies.STANDARD
    assert [assumed for _name, assumed, _ends in policies.RANGES] == [
        f"{standard.ordinary * 100:g} %",
        f"{standard.overhead_s[0]:g} to {standard.overhead_s[1]:g} s, evenly",
        "as long as what it undoes",
        f"{standard.gate_s:g} s",
        f"{standard.vms[0]} to {standard.vms[1]}, evenly",
    ]
    assert standard.undo == 1
    assert Assumed() == standard
    changed = [assumed for _name, _assumed, ends in policies.RANGES for _value, assumed in ends]
    assert len(set(changed)) == len(changed) == 10
    assert standard not in changed


def test_every_fault_is_named_by_what_it_is() -> None:
    for name, fault in policies.FAULTS:
        assert f"1 host in {round(1 / fault.share)}" in name
        assert not fault.hours or f"{fault.hours:g} hours later" in name
