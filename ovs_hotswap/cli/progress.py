"""The progress of a plan: its events are folded into rows, which are shown live, as plain lines, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from ovs_hotswap.plan.executor import Event, EventKind

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.live import Live

SHOWN_ITEMS = 5
PENDING = "pending"
STATES = {
    EventKind.STARTED: "running",
    EventKind.DONE: "done",
    EventKind.SKIPPED: "done",
    EventKind.FAILED: "failed",
    EventKind.UNDOING: "being put back",
    EventKind.UNDONE: "put back",
    EventKind.UNDO_FAILED: "not put back",
}
MARKS = {
    "done": "[green]✓",
    "failed": "[red]✗",
    "put back": "[yellow]↶",
    "not put back": "[bold red]✗",
    PENDING: "[dim]·",
}
WHOLE = {
    EventKind.COMMITTED: "committed: from here on it only goes forward",
    EventKind.FINISHED: "finished",
    EventKind.ROLLED_BACK: "everything was put back",
}


@dataclass
class Row:
    """A step. ``text``: its last progress or its fault. ``items``: the last text about each part, such as a VM."""

    name: str
    description: str
    state: str = PENDING
    seconds: float | None = None
    text: str = ""
    items: dict[str, str] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        self.state = STATES.get(event.kind, self.state)
        if event.seconds is not None:
            self.seconds = event.seconds
        if event.item is not None:
            self.items.pop(event.item, None)  # the newest is the last
            self.items[event.item] = event.text
        if event.kind is EventKind.STARTED:
            self.text, self.items = "", {}
        elif event.item is None and event.text:
            self.text = event.text
        if event.count is not None and event.total is not None:
            self.text = f"{event.count}/{event.total}"


class Screen(Protocol):
    """What shows the progress; ``cli.output.Output`` is one."""

    @property
    def terminal(self) -> bool: ...

    def console(self) -> Console: ...

    def note(self, text: str) -> None: ...


class Progress:
    """Shows a plan's events while it is entered as a context. The executor calls ``observe``."""

    def __init__(self, output: Screen, steps: Sequence[tuple[str, str]]) -> None:
        self._rows = {name: Row(name, description) for name, description in steps}
        self._numbers = {name: f"[{number}/{len(steps)}]" for number, (name, _) in enumerate(steps, 1)}
        self._output = output
        self._live: Live | None = None
        self._closing = ""
        self._line = ""  # the last line, which is not repeated
        self.begun = False
        """Whether the plan has done anything."""
        self.quiet = False
        """Whether events are taken in without a line for each."""

    def __enter__(self) -> Progress:
        if self._output.terminal:
            from rich.live import Live

            self._live = Live(console=self._output.console(), get_renderable=self._render, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def observe(self, event: Event) -> None:
        self.begun = True
        row = self._rows.get(event.step)
        if row is not None:
            row.apply(event)
        else:
            self._closing = event.text or WHOLE.get(event.kind, "")
        if self._live is None and not self.quiet and (line := self._plain(event, row)) != self._line:
            self._line = line
            self._output.note(line)

    def report(self) -> list[dict[str, object]]:
        """The steps for a JSON document: ``name``, ``description``, ``state``, ``seconds``, ``text``, ``items``."""
        return [
            {
                "name": row.name,
                "description": row.description,
                "state": row.state,
                "seconds": None if row.seconds is None else round(row.seconds, 6),
                "text": row.text,
                "items": dict(row.items),
            }
            for row in self._rows.values()
        ]

    def _plain(self, event: Event, row: Row | None) -> str:
        if row is None:
            return self._closing
        lead = self._numbers[row.name]
        if event.kind is EventKind.STARTED:
            return f"{lead} {row.name}: {row.description}"
        if event.kind is EventKind.PROGRESS:
            count = f" ({event.count}/{event.total})" if event.total is not None else ""
            item = f"{event.item}: " if event.item else ""
            return f"{' ' * len(lead)} {item}{event.text}{count}"
        took = f" ({event.seconds:.2f} s)" if event.seconds is not None else ""
        return f"{lead} {row.name}: {row.state}{took}{': ' if event.text else ''}{event.text}"

    def _render(self) -> Group:
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False)
        for row in list(self._rows.values()):
            mark: RenderableType = MARKS.get(row.state) or Spinner("dots", style="cyan")
            took = "" if row.seconds is None else f"{row.seconds:.2f} s"
            text = Text(row.description, style="dim" if row.state == PENDING else "")
            if row.text:
                text.append(f"  {row.text}", style="red" if "failed" in row.state or "not" in row.state else "cyan")
            table.add_row(mark, Text(row.name, style="bold"), text, Text(took, style="dim"))
            if row.state not in {"done", PENDING}:
                for item, about in list(row.items.items())[-SHOWN_ITEMS:]:
                    table.add_row("", "", Text(f"{item}: {about}", style="dim"), "")
        return Group(table, Text(self._closing, style="bold")) if self._closing else Group(table)
