"""Progress as lines, without a terminal."""

from __future__ import annotations

import io

from ovs_hotswap.cli.output import Output
from ovs_hotswap.cli.progress import Progress
from ovs_hotswap.plan.executor import Event, EventKind


def test_what_was_just_said_is_not_said_again() -> None:
    out = io.StringIO()
    with Progress(Output(out=out), [("soak", "watch the VMs")]) as progress:
        progress.observe(Event(EventKind.STARTED, "soak"))
        for text in ("2 s left", "2 s left", "1 s left", "1 s left", "2 s left"):
            progress.observe(Event(EventKind.PROGRESS, "soak", text=text))
        progress.observe(Event(EventKind.DONE, "soak", seconds=2.0))
    assert [line.strip() for line in out.getvalue().splitlines()] == [
        "[1/1] soak: watch the VMs", "2 s left", "1 s left", "2 s left", "[1/1] soak: done (2.00 s)",
    ]  # fmt: skip
