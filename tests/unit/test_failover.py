from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.watchdog.failover import (
    Act,
    Answer,
    Backoff,
    FailoverState,
    Health,
    History,
    Limits,
    Sample,
    Signal,
    StandbyState,
    Task,
    Verdict,
    judge,
    next_act,
    next_task,
)

LIMITS = Limits(check_s=0.05, hang_s=0.6, main_s=10.0)


def judged(samples: Iterable[Sample], limits: Limits = LIMITS) -> list[Verdict]:
    history, verdicts = History(), []
    for sample in samples:
        history, verdict = judge(history, sample, limits)
        verdicts.append(verdict)
    return verdicts


def first_failure(samples: list[Sample]) -> float | None:
    verdicts = judged(samples)
    return next((s.time for s, v in zip(samples, verdicts, strict=True) if v.health is Health.FAILED), None)


def ticks(count: int, start: float = 0.0, step: float = 0.05) -> list[float]:
    return [start + number * step for number in range(count)]


def test_a_dead_process_fails_in_one_sample() -> None:
    assert judged([Sample(0.0, alive=False)]) == [Verdict(Health.FAILED, Signal.PROCESS, "its process is dead")]


def test_a_stopped_process_is_suspect_at_once_and_fails_after_a_third_of_the_hang_time() -> None:
    samples = [Sample(time, alive=True, stopped=True) for time in ticks(20)]
    verdicts = judged(samples)
    assert verdicts[0].health is Health.SUSPECT
    failed = first_failure(samples)
    assert failed is not None
    assert 0.2 <= failed < 0.3


def test_one_good_sample_clears_a_signal() -> None:
    samples = [Sample(time, alive=True, stopped=number % 4 != 3) for number, time in enumerate(ticks(200))]
    assert first_failure(samples) is None


def test_a_silent_main_thread_is_given_its_own_time() -> None:
    samples = [Sample(time, alive=True, silent=True) for time in ticks(400)]
    failed = first_failure(samples)
    assert failed is not None
    assert 10.0 <= failed < 10.2


def answers(times: list[float], iterations: list[dict[int, int]], every: int = 4) -> list[Sample]:
    """An answer with every ``every``-th sample; those between know the one before."""
    samples: list[Sample] = []
    for number, time in enumerate(times):
        last = number - number % every
        counters = iterations[min(number // every, len(iterations) - 1)]
        samples.append(Sample(time, alive=True, answer=Answer(times[last], counters)))
    return samples


def test_a_pmd_thread_that_stands_still_fails_after_the_hang_time() -> None:
    samples = answers(ticks(40), [{0: 5, 1: 1}, {0: 6, 1: 1}, {0: 7, 1: 1}, {0: 8, 1: 1}, {0: 9, 1: 1}])
    verdicts = judged(samples)
    failed = first_failure(samples)
    assert failed is not None
    assert failed >= 0.6
    found = next(verdict for verdict in verdicts if verdict.health is Health.FAILED)
    assert found.signal is Signal.PMD
    assert "core 1" in found.reason


def test_pmd_threads_that_advance_are_healthy() -> None:
    samples = answers(ticks(40), [{0: number, 1: 2 * number} for number in range(10)])
    assert {verdict.health for verdict in judged(samples)} == {Health.HEALTHY}


def test_a_pmd_thread_that_lost_its_queues_is_not_judged() -> None:
    samples = answers(ticks(40), [{0: 1, 1: 1}, {0: 2, 1: 1}] + [{0: number} for number in range(3, 12)])
    assert first_failure(samples) is None


def test_what_a_silent_main_thread_held_up_is_not_held_against_the_pmd_threads() -> None:
    still = {0: 7}
    before = [Sample(time, alive=True, answer=Answer(time, still)) for time in ticks(2)]
    silent = [Sample(time, alive=True, silent=True, answer=Answer(0.05, still)) for time in ticks(40, 0.1)]
    after = [Sample(time, alive=True, answer=Answer(time, still)) for time in ticks(3, 2.1)]
    assert first_failure([*before, *silent, *after]) is None


def test_a_watcher_that_did_not_run_begins_anew() -> None:
    samples = [Sample(time, alive=True, stopped=True) for time in (0.0, 0.05, 5.0, 5.05)]
    assert first_failure(samples) is None
    assert judged(samples)[-1].health is Health.SUSPECT


@st.composite
def histories(draw: st.DrawFn) -> list[Sample]:
    time, samples, iterations = 0.0, [], 0
    for _ in range(draw(st.integers(1, 60))):
        time += draw(st.sampled_from([0.05, 0.06, 0.1, 0.7]))
        iterations += draw(st.integers(0, 1))
        samples.append(
            Sample(time, alive=True, stopped=draw(st.booleans()), silent=draw(st.booleans()),
                   answer=Answer(time, {0: iterations}))
        )  # fmt: skip
    return samples


def is_bad(sample: Sample, signal: Signal) -> bool:
    if signal is Signal.STOPPED:
        return sample.stopped
    return sample.silent is (signal is Signal.MAIN_THREAD)


@given(histories())
def test_a_living_instance_fails_only_by_what_was_bad_throughout_its_limit(samples: list[Sample]) -> None:
    for number, (sample, verdict) in enumerate(zip(samples, judged(samples), strict=True)):
        if verdict.health is not Health.FAILED:
            continue
        assert verdict.signal is not None
        since = sample.time - LIMITS.of(verdict.signal)
        window = [one for one in samples[: number + 1] if one.time > since - 1e-9]
        assert len(window) >= 2
        assert all(is_bad(one, verdict.signal) for one in window)
        assert all(b.time - a.time <= LIMITS.stall_s for a, b in pairwise(window))
        if verdict.signal is Signal.PMD:
            assert len({one.answer.iterations[0] for one in window if one.answer}) == 1


@given(st.lists(st.sampled_from([0.05, 0.1, 0.3]), min_size=1, max_size=80))
def test_a_good_instance_never_fails(steps: list[float]) -> None:
    time, samples = 0.0, []
    for number, step in enumerate(steps):
        time += step
        samples.append(Sample(time, alive=True, answer=Answer(time, {0: number})))
    assert {verdict.health for verdict in judged(samples)} == {Health.HEALTHY}


scenes = st.builds(
    FailoverState, alive=st.booleans(), failed=st.booleans(), target_ready=st.booleans(), useless=st.booleans(),
    steered=st.booleans(), stranded=st.integers(0, 3), patience=st.booleans(),
)  # fmt: skip


@given(scenes)
def test_nothing_is_given_away_while_the_active_lives(scene: FailoverState) -> None:
    act = next_act(scene)
    if scene.alive:
        assert act in {Act.NOTHING, Act.NO_TARGET, Act.FENCE}
    if act is Act.FENCE:
        assert scene.failed
        assert scene.target_ready or scene.useless
    if not scene.target_ready:
        assert act in {Act.NOTHING, Act.NO_TARGET, Act.FENCE}


def test_with_nowhere_to_go_only_what_forwards_nothing_is_ended() -> None:
    assert next_act(FailoverState(True, True, target_ready=False)) is Act.NO_TARGET
    assert next_act(FailoverState(True, True, target_ready=False, useless=True)) is Act.FENCE
    assert next_act(FailoverState(False, True, target_ready=False, useless=True)) is Act.NO_TARGET


def test_the_acts_of_a_failover_come_in_order() -> None:
    assert next_act(FailoverState(True, True, True)) is Act.FENCE
    assert next_act(FailoverState(False, True, True)) is Act.STEER
    assert next_act(FailoverState(False, True, True, steered=True, stranded=1)) is Act.AWAIT
    assert next_act(FailoverState(False, True, True, steered=True, stranded=1, patience=False)) is Act.RECORD
    assert next_act(FailoverState(False, True, True, steered=True)) is Act.RECORD


@pytest.mark.parametrize(
    ("house", "task"),
    [
        (StandbyState(active_runs=False, standby_runs=True, prepared=True), Task.NOTHING),
        (StandbyState(active_runs=False, standby_runs=True), Task.RESTART),
        (StandbyState(active_runs=False, standby_runs=False, may_restart=False), Task.NOTHING),
        (StandbyState(active_runs=False, standby_runs=False, may_start=False), Task.RESTART),
        (StandbyState(active_runs=True, standby_runs=False, standby_dead=True, settle=True), Task.SETTLE),
        (StandbyState(active_runs=True, standby_runs=False, standby_dead=True, may_start=False), Task.CLEAN),
        (StandbyState(active_runs=True, standby_runs=False), Task.START),
        (StandbyState(active_runs=True, standby_runs=False, may_start=False), Task.NOTHING),
        (StandbyState(active_runs=True, standby_runs=True, right_release=False, prepared=True), Task.REPLACE),
        (StandbyState(active_runs=True, standby_runs=True), Task.PREPARE),
        (StandbyState(active_runs=True, standby_runs=True, may_start=False), Task.NOTHING),
        (StandbyState(active_runs=True, standby_runs=True, prepared=True, outdated=True), Task.PROGRAM),
        (StandbyState(active_runs=True, standby_runs=True, prepared=True, strays=("a",), unparked=("b",)), Task.RETURN),
        (StandbyState(active_runs=True, standby_runs=True, prepared=True, unparked=("b",)), Task.PARK),
        (StandbyState(active_runs=True, standby_runs=True, prepared=True), Task.NOTHING),
    ],
)
def test_one_task_at_a_time(house: StandbyState, task: Task) -> None:
    assert next_task(house) is task


def test_each_failure_doubles_the_wait() -> None:
    backoff = Backoff(limit=10, window_s=100.0)
    assert backoff.may_start(0.0)
    waits = []
    for _ in range(4):
        backoff = backoff.failed(10.0)
        earliest = backoff.not_before()
        assert earliest is not None
        waits.append(earliest - 10.0)
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_old_failures_are_forgotten() -> None:
    backoff = Backoff(limit=2, window_s=100.0).failed(0.0).failed(100.0)
    assert not backoff.given_up
    assert backoff.failures == (100.0,)


@given(st.lists(st.floats(0, 50), min_size=3, max_size=10))
def test_giving_up_is_final(gaps: list[float]) -> None:
    backoff, now = Backoff(limit=3, window_s=1e9), 0.0
    for gap in gaps:
        now += gap
        backoff = backoff.failed(now)
    assert backoff.given_up
    assert not backoff.may_start(now + 1e12)


def test_vms_return_from_a_standby_that_cannot_be_prepared_for_long() -> None:
    """Given up on, or between two attempts: its uplink is not the one that is steered to."""
    waits = StandbyState(active_runs=True, standby_runs=True, prepared=False, strays=("vm1",), may_start=False)
    assert next_task(waits) is Task.RETURN
    assert next_task(replace(waits, may_start=True)) is Task.PREPARE
    assert next_task(replace(waits, strays=())) is Task.NOTHING
