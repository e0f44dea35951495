"""The output of a job: following one shows what its command prints."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.cli.output import Output
from ovs_hotswap.cli.recording import RecordedOutput, Replay
from ovs_hotswap.plan.executor import Event, EventKind
from tests.unit.test_cli import Terminal

text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
cell = st.none() | st.integers() | text
steps = st.lists(st.tuples(st.sampled_from(["prove", "park", "move"]), text), min_size=1, max_size=3,
                 unique_by=lambda step: step[0])  # fmt: skip
events = st.builds(
    Event, st.sampled_from(EventKind), st.sampled_from(["", "prove", "move"]), st.none() | st.floats(0, 10), text,
    st.none() | text, st.none() | st.integers(0, 9), st.none() | st.integers(0, 9),
)  # fmt: skip
Call = Callable[[Output], None]
calls: st.SearchStrategy[Call] = st.one_of(
    st.builds(lambda words: lambda out: out.line(words), text),
    st.builds(lambda words: lambda out: out.note(words), text),
    st.builds(lambda words: lambda out: out.warning(words), text),
    st.builds(lambda words: lambda out: out.document({"a": words, "b": [1.5, None], "side": Path(words)}), text),
    st.builds(lambda rows: lambda out: out.table(("one", "two"), rows, title="t"), st.lists(st.tuples(cell, cell))),
    st.builds(lambda words, code: lambda out: out.fault("SwitchError", words, "`x`", code), text, st.integers(1, 20)),
    st.builds(lambda words: lambda out: print(words, file=out.err), text),
    st.builds(lambda given, seen: lambda out: _plan(out, given, seen), steps, st.lists(events, max_size=6)),
)


def _plan(output: Output, given_steps: list[tuple[str, str]], seen: list[Event]) -> None:
    with output.progress(given_steps) as progress:
        for event in seen:
            progress.observe(event)
    output.document({"steps": progress.report()})


def printed(output_of: Callable[[io.StringIO, io.StringIO], Output], run: Callable[[Output], None]) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    output = output_of(out, err)
    run(output)
    output.catch_up()
    return out.getvalue(), err.getvalue()


@pytest.mark.parametrize("in_json", [False, True])
@given(given_calls=st.lists(calls, max_size=8))
def test_a_replay_prints_the_same_bytes(in_json: bool, given_calls: list[Call]) -> None:
    recorded: list[dict[str, Any]] = []

    def work(output: Output) -> None:
        output.json = in_json
        for call in given_calls:
            call(output)

    def replay(output: Output) -> None:
        with Replay(output, lambda _number, _text: None) as shown:
            for event in json.loads(json.dumps(recorded)):
                shown.show(event)

    work(RecordedOutput(recorded.append, lambda _text: None, by_person=False))
    assert printed(lambda out, err: Output(out=out, err=err), replay) == printed(
        lambda out, err: Output(out=out, err=err), work
    )


def test_a_job_is_shown_as_json_afterwards() -> None:
    recorded: list[dict[str, Any]] = []
    output = RecordedOutput(recorded.append, lambda _text: None, by_person=False)
    output.line("text")
    output.document({"ready": False})
    output.fault("PrecheckFailed", "no", None, 4)
    out = io.StringIO()
    with Replay(Output(json=True, out=out, err=io.StringIO()), lambda _number, _text: None) as replay:
        for event in recorded:
            replay.show(event)
    assert json.loads(out.getvalue()) == {"ready": False}, "one document, as with --json"


def test_from_the_end_only_what_is_new_is_printed() -> None:
    out = io.StringIO()
    with Replay(Output(out=out, err=io.StringIO()), lambda _number, _text: None) as replay:
        replay.quiet = True
        replay.show({"kind": "line", "text": "old"})
        replay.show({"kind": "progress", "steps": [["park", "park the VMs"]]})
        replay.show({"kind": "step", "event": {"kind": "started", "step": "park"}})
        replay.quiet = False
        replay.show({"kind": "step", "event": {"kind": "done", "step": "park", "seconds": 1.0, "later": "field"}})
        replay.show({"kind": "a kind of a newer version"})
    assert out.getvalue() == "[1/1] park: done (1.00 s)\n"


def test_on_a_terminal_the_progress_is_a_picture() -> None:
    out = Terminal()
    with Replay(Output(out=out, err=io.StringIO()), lambda _number, _text: None) as replay:
        replay.show({"kind": "progress", "steps": [["park", "park the VMs"]]})
        replay.show({"kind": "step", "event": {"kind": "done", "step": "park", "seconds": 1.0}})
    assert "✓" in out.getvalue()
    assert "[1/1]" not in out.getvalue()


def test_a_question_is_asked_again_and_again() -> None:
    """``doctor --fix`` asks one for each change."""
    asked: list[str] = []
    answers = iter(["yes", "no", None])

    def ask(question: str) -> str | None:
        asked.append(question)
        return next(answers)

    output = RecordedOutput(lambda _event: None, ask, by_person=True)
    assert [output.ask(f"change {number}?") for number in range(3)] == [True, False, False]
    assert asked == ["change 0?", "change 1?", "change 2?"]
