"""A machine that exists only in a test: processes are entries of a table, time passes only by sleeping."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ovs_hotswap.system import Completed, System

Handler = Callable[[Sequence[str]], tuple[int, str]]


class FakeSystem(System):
    """``handler`` gives status and output of each command; ``processes`` are the command lines by pid."""

    def __init__(self, handler: Handler | None = None) -> None:
        self.now = 1000.0
        self.wall_now = 1_700_000_000.0
        self.handler: Handler = handler or (lambda argv: (0, ""))
        self.processes: dict[int, list[str]] = {}
        self.ran: list[tuple[str, ...]] = []
        self.killed: list[tuple[int, float]] = []
        self.low: set[int] = set()
        self.held_low: list[int] = []  # by whom VMs were served, each time that something was kept at low priority

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.wall_now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        self.ran.append(tuple(argv))
        status, output = self.handler(argv)
        return Completed(tuple(argv), status, output, "" if status == 0 else output)

    def run_lines(
        self,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> int:
        self.ran.append(tuple(argv))
        status, output = self.handler(argv)
        for line in output.splitlines():
            on_line(line)
        return status

    def alive(self, pid: int) -> bool:
        return pid in self.processes

    def stopped(self, pid: int) -> bool:
        return False

    def cmdline(self, pid: int) -> list[str]:
        return self.processes.get(pid, [])

    def pids(self) -> list[int]:
        return sorted(self.processes)

    def has_memory(self, pid: int) -> bool:
        return self.alive(pid)

    def background(
        self, pids: Callable[[], Iterable[int]], spared: Callable[[str], bool], serving: int, patience_s: float
    ) -> contextlib.AbstractContextManager[object]:
        self.held_low.append(serving)
        return contextlib.nullcontext()

    def low_threads(self, pid: int) -> list[str]:
        return ["ovs-vswitchd"] if pid in self.low else []

    def raise_priority(self, pid: int) -> bool:
        self.low.discard(pid)
        return True

    def end(self, pid: int) -> None:
        self.kill(pid, grace=0)

    def kill(self, pid: int, *, grace: float = 5.0) -> None:
        self.killed.append((pid, grace))
        del self.processes[pid]

    def read_pid(self, path: Path) -> int | None:
        try:
            pid = int(path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if self.alive(pid) else None
