"""One command on several hosts: a live table, then what each host printed; or one JSON document."""

from __future__ import annotations

import contextlib
import json
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ovs_hotswap.cli.app import App
from ovs_hotswap.errors import to_document
from ovs_hotswap.remote import session
from ovs_hotswap.remote.fleet import Fleet, HostRun, HostScreen, Stage
from ovs_hotswap.remote.frames import Request, harmless
from ovs_hotswap.remote.hosts import worst

if TYPE_CHECKING:
    from rich.table import Table

_TURN_S = 0.2
_AROUND = 3  # lines beside those of the hosts: the heading, the last line, and that of the cursor
_URGENT = [Stage.FAILED, Stage.LEFT_OUT, Stage.RUNNING, Stage.CONNECTING, Stage.WAITING, Stage.DONE]
_STYLES = {Stage.DONE: "green", Stage.FAILED: "bold red", Stage.RUNNING: "cyan", Stage.LEFT_OUT: "yellow"}


def run_on_several(app: App, hosts: Sequence[str], request: Request, way: session.Way, changes: bool) -> int:
    """Run a request on hosts side by side, show it, and return the exit code of all."""

    def on_host(host: str, screen: HostScreen) -> int:
        return session.run(host, request, way, screen, changes=changes)

    fleet = Fleet(hosts, on_host, app.remote.parallel, way.continues)
    with _ctrl_c(fleet):
        fleet.start()
        if app.output.terminal:
            _show_live(app, fleet)
        else:
            _show_lines(app, fleet)
    code = worst(1 if run.exit_code is None else run.exit_code for run in fleet.runs.values())
    app.output.done = code == 0
    app.output.document({run.host: _document(run) for run in fleet.runs.values()})
    for run in fleet.runs.values():
        _print(app, run)
    return code


@contextlib.contextmanager
def _ctrl_c(fleet: Fleet) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, lambda _number, _frame: fleet.interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show_live(app: App, fleet: Fleet) -> None:
    from rich.live import Live

    console = app.output.console()
    with Live(console=console, get_renderable=lambda: _table(fleet, console.height - _AROUND), refresh_per_second=4):
        while not fleet.wait(_TURN_S):
            pass


def _table(fleet: Fleet, room: int) -> Table:
    """The hosts in their order. If there is not room for all, those are shown first of which one wants to know."""
    from rich.table import Table
    from rich.text import Text

    runs = list(fleet.runs.values())
    if len(runs) > room:
        runs.sort(key=lambda run: _URGENT.index(run.stage))
    shown, hidden = runs[: max(1, room)], Counter(run.stage for run in runs[max(1, room) :])
    rest = ", ".join(f"{number} {stage}" for stage, number in hidden.items())
    table = Table(box=None, header_style="bold", pad_edge=False, caption_justify="left",
                  caption=f"and {rest}" if rest else None)  # fmt: skip
    for column in ("HOST", "STATE", "EXIT"):
        table.add_column(column, no_wrap=True)
    table.add_column("LAST", no_wrap=True, overflow="ellipsis", ratio=1)
    for run in shown:
        code = "" if run.exit_code is None else str(run.exit_code)
        table.add_row(Text(run.host), Text(run.stage, style=_STYLES.get(run.stage, "")), Text(code), Text(run.text))
    return table


def _show_lines(app: App, fleet: Fleet) -> None:
    """A line for each change of a host."""
    shown: dict[str, Stage] = {}
    ended = False
    while not ended:
        ended = fleet.wait(_TURN_S)
        for run in fleet.runs.values():
            if shown.get(run.host) is not (stage := run.stage):
                shown[run.host] = stage
                if stage is not Stage.WAITING:
                    code = "" if run.exit_code is None else f", exit code {run.exit_code}"
                    app.output.note(f"{run.host}: {stage}{code}")


def _document(run: HostRun) -> dict[str, object]:
    printed = list(_documents(run.out.decode(errors="replace")))
    error = None if run.error is None else to_document(run.error)
    return {
        "exit_code": run.exit_code, "job": run.job, "error": error,
        "document": printed[0] if len(printed) == 1 else (printed or None),
        "messages": run.err.decode(errors="replace").splitlines(),
    }  # fmt: skip


def _documents(text: str) -> Iterator[object]:
    """The JSON documents in a text. Text that is none ends it."""
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        try:
            found, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            yield text
            return
        yield found
        text = text[end:]


def _print(app: App, run: HostRun) -> None:
    """Print what a host printed, for people."""
    if app.output.json:
        return
    app.output.line(f"--- {run.host}: exit code {run.exit_code}")
    for sink, data in ((app.output.out, run.out), (app.output.err, run.err)):
        text = data.decode(errors="surrogateescape")
        sink.write_bytes((harmless(text) if sink.isatty() else text).encode(errors="surrogateescape"))
    if run.error is not None:
        app.output.error(run.error)
    elif run.stage is Stage.LEFT_OUT:
        app.output.line("it was left out")
