"""The output of a job: recorded as events, and shown, also afterwards, as the command itself would show it.

An event is one call of an ``Output``, so the one who follows a job sees on a terminal what the command prints on a
terminal, whatever its size, and elsewhere the same bytes as without a job.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ovs_hotswap.cli.output import Output, plain
from ovs_hotswap.cli.progress import Progress
from ovs_hotswap.plan.executor import Event, EventKind

Record = dict[str, Any]
Write = Callable[[Record], None]


class _Raw(io.TextIOBase):
    """A text stream whose text is recorded as it is."""

    def __init__(self, stream: str, write: Write) -> None:
        self._stream, self._write = stream, write

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        self._write({"kind": "raw", "stream": self._stream, "text": text})
        return len(text)


class RecordedOutput(Output):
    """Writes each call as an event. ``ask`` puts a question to those who follow the job, if ``by_person``."""

    def __init__(self, write: Write, ask: Callable[[str], str | None], *, by_person: bool) -> None:
        self.raw_out, self.raw_err = _Raw("out", write), _Raw("err", write)
        super().__init__(out=self.raw_out, err=self.raw_err)  # type: ignore[arg-type]  # each has what is used of it
        self._write, self._ask, self._by_person = write, ask, by_person

    @property
    def asks(self) -> bool:
        return self._by_person and not self.json

    def ask(self, question: str) -> bool:
        return (self._ask(question) or "").lower() in {"y", "yes"}

    def line(self, text: str = "") -> None:
        self._event("line", text=text)

    def note(self, text: str) -> None:
        self._event("note", text=text)

    def warning(self, text: str) -> None:
        self._event("warning", text=text)

    def document(self, value: object, *, indent: int | None = 2) -> None:
        self._event("document", value=json.loads(json.dumps(value, default=plain)), indent=indent)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
        cells = [[None if cell is None else str(cell) for cell in row] for row in rows]
        self._event("table", columns=list(columns), rows=cells, title=title)

    def fault(self, kind: str, message: str, hint: str | None, exit_code: int) -> None:
        self._event("fault", name=kind, message=message, hint=hint, exit_code=exit_code)

    def progress(self, steps: Sequence[tuple[str, str]]) -> Progress:
        return _RecordedProgress(self._event, steps)

    def _event(self, kind: str, **fields: object) -> None:
        self._write({"kind": kind, "json": self.json, **fields})


class _Silent:
    """A screen on which nothing is shown."""

    terminal = False

    def console(self) -> Any:
        raise NotImplementedError("there is no terminal")

    def note(self, text: str) -> None:
        return


class _RecordedProgress(Progress):
    def __init__(self, event: Callable[..., None], steps: Sequence[tuple[str, str]]) -> None:
        super().__init__(_Silent(), steps)
        self._event, self._steps = event, steps

    def __enter__(self) -> _RecordedProgress:
        self._event("progress", steps=[list(step) for step in self._steps])
        return self

    def __exit__(self, *_error: object) -> None:
        self._event("progress-end")

    def observe(self, event: Event) -> None:
        self._event("step", event=dataclasses.asdict(event))
        super().observe(event)


class Replay:
    """Shows the events of a job on ``output``. ``answer`` is called with the number and the text of each question.

    ``quiet``: nothing is printed of what is shown now, only the progress is taken in. A context that ends ends a live
    picture.
    """

    def __init__(self, output: Output, answer: Callable[[int, str], None]) -> None:
        self._output, self._answer = output, answer
        self._json = output.json
        self._progress: Progress | None = None
        self._documents = 0
        self.quiet = False

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_error: object) -> None:
        self._end_progress()

    def show(self, event: Mapping[str, Any]) -> None:
        """Show one event. An event of an unknown kind, which a newer version wrote, is left out."""
        self._output.json = self._json or event.get("json") is True
        kind = event.get("kind")
        if kind == "progress":
            self._begin_progress([(str(name), str(text)) for name, text in event["steps"]])
        elif kind == "progress-end":
            self._end_progress()
        elif kind == "step" and self._progress is not None:
            self._progress.quiet = self.quiet
            self._progress.observe(_step(event["event"]))
        elif kind == "question":
            self._answer(int(event["number"]), str(event["text"]))
        elif not self.quiet:
            self._print(str(kind), event)

    def _print(self, kind: str, event: Mapping[str, Any]) -> None:
        out = self._output
        if kind == "line":
            out.line(event["text"])
        elif kind == "note":
            out.note(event["text"])
        elif kind == "warning":
            out.warning(event["text"])
        elif kind == "table":
            out.table(event["columns"], event["rows"], title=event["title"])
        elif kind == "document":
            self._documents += 1
            out.document(event["value"], indent=event["indent"])
        elif kind == "fault" and not (self._documents and not event.get("json") and out.json):
            out.fault(event["name"], event["message"], event["hint"], event["exit_code"])
        elif kind == "raw":
            stream = out.out if event["stream"] == "out" else out.err
            stream.write(event["text"])
            stream.flush()

    def _begin_progress(self, steps: Sequence[tuple[str, str]]) -> None:
        self._end_progress()
        self._progress = self._output.progress(steps).__enter__()

    def _end_progress(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None


def _step(fields: Mapping[str, Any]) -> Event:
    known = {field.name for field in dataclasses.fields(Event)}
    given = {name: value for name, value in fields.items() if name in known}
    return Event(**{**given, "kind": EventKind(fields["kind"])})
