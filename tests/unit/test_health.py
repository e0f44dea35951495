"""When an instance has failed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.watchdog.health import Answer, Health, History, Limits, Sample, Signal, Verdict, judge

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


def test_each_signal_has_its_own_time() -> None:
    times = [LIMITS.of(signal) for signal in Signal]
    assert times == [0.0, LIMITS.hang_s / 3, LIMITS.hang_s, LIMITS.main_s]


def test_a_watcher_that_looks_seldom_is_not_taken_for_one_that_did_not_run() -> None:
    assert Limits(check_s=0.05, hang_s=0.6, main_s=10.0).stall_s == 0.6
    assert Limits(check_s=1.0, hang_s=0.6, main_s=10.0).stall_s == 4.0
    as_late_as_allowed = [Sample(time, alive=True, stopped=True) for time in (0.0, 0.6)]
    assert first_failure(as_late_as_allowed) == 0.6


@pytest.mark.parametrize(
    ("sample", "suspect", "failed"),
    [
        (Sample(0.0, alive=True, stopped=True), "its process is stopped", "its process is stopped for 10.00 s"),
        (
            Sample(0.0, alive=True, silent=True),
            "its main thread does not answer",
            "its main thread does not answer for 10.00 s",
        ),
    ],
)
def test_a_verdict_names_the_signal_and_how_long_it_has_been_bad(sample: Sample, suspect: str, failed: str) -> None:
    """The second sample is exactly as late as the limit allows, and the second is enough."""
    signal = Signal.STOPPED if sample.stopped else Signal.MAIN_THREAD
    assert judged([sample, replace(sample, time=10.0)], Limits(check_s=5.0, hang_s=30.0, main_s=10.0)) == [
        Verdict(Health.SUSPECT, signal, suspect),
        Verdict(Health.FAILED, signal, failed),
    ]


def test_one_bad_sample_is_not_enough_whatever_the_limit() -> None:
    none = Limits(check_s=0.05, hang_s=0.6, main_s=0.0)
    verdicts = judged([Sample(time, alive=True, silent=True) for time in (0.0, 0.05)], none)
    assert [verdict.health for verdict in verdicts] == [Health.SUSPECT, Health.FAILED]


def test_all_pmd_threads_that_stand_still_are_named() -> None:
    samples = [Sample(time, alive=True, answer=Answer(time, {2: 7, 1: 7, 0: int(10 * time)})) for time in (0.0, 0.5)]
    assert judged(samples)[-1] == Verdict(Health.SUSPECT, Signal.PMD, "its PMD thread on core 1, 2 does not advance")


def test_what_is_remembered_of_a_signal_is_when_it_became_bad_and_in_how_many_samples() -> None:
    history = History()
    for time in (1.0, 1.1, 1.2):
        history, _ = judge(history, Sample(time, alive=True, silent=True), LIMITS)
    trouble = history.troubles[Signal.MAIN_THREAD]
    assert (history.time, trouble.since, trouble.count) == (1.2, 1.0, 3)
    dead, _ = judge(history, Sample(1.3, alive=False), LIMITS)
    assert dead == replace(history, time=1.3)


def test_the_status_file_names_health_and_signals_so() -> None:
    assert [str(health) for health in Health] == ["healthy", "suspect", "failed"]
    assert [str(signal) for signal in Signal] == ["process", "stopped", "pmd", "main-thread"]


def test_a_healthy_instance_is_suspected_of_nothing() -> None:
    (verdict,) = judged([Sample(0.0, alive=True)])
    assert (verdict.health, verdict.signal, verdict.reason) == (Health.HEALTHY, None, "")
