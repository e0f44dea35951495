"""Watches the instances' processes: notices their ends at once, and asks whether the main thread answers."""

from __future__ import annotations

import contextlib
import logging
import select
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import ExitWatch
from ovs_hotswap.switch.pmd import pmd_iterations, pmd_rxqs
from ovs_hotswap.switch.rpc import NoAnswer
from ovs_hotswap.watchdog.health import Answer

log = logging.getLogger(__name__)

_ANSWER_S = 1.0  # for one question; the main thread's deadline is long enough for several
_PROMPT_S = 0.1  # an answer that takes longer makes the main thread suspect


class ExitPoller:
    """Waits for the end of processes (``ExitWatch``). ``pid_files``: the files on which they may hold a lock."""

    def __init__(self, pid_files: Sequence[Path] = ()) -> None:
        self._pid_files = pid_files
        self._exits: dict[Side, ExitWatch] = {}

    def track(self, pids: Mapping[Side, int | None]) -> None:
        """Watch these processes from now on. The next ``wait`` reports a process that has ended. For a side with
        ``None``, nothing changes."""
        for side, pid in pids.items():
            before = self._exits.get(side)
            if pid is None or (before is not None and before.pid == pid):
                continue
            self._drop(side)
            with contextlib.suppress(ProcessLookupError):
                self._exits[side] = ExitWatch(pid, self._pid_files)

    def pid(self, side: Side) -> int | None:
        """The watched process of ``side``, if it had not ended at the last ``wait``."""
        found = self._exits.get(side)
        return None if found is None else found.pid

    def wait(self, seconds: float) -> set[Side]:
        """The sides whose process has ended, each reported once. Waits at most ``seconds`` for the first."""
        poller = select.poll()
        sides = {each.fileno(): side for side, each in self._exits.items()}
        for descriptor in sides:
            poller.register(descriptor, select.POLLIN)
        dead = {sides[ready] for ready, _ in poller.poll(seconds * 1e3) if self._exits[sides[ready]].ended()}
        for side in dead:
            self._drop(side)
        return dead

    def _drop(self, side: Side) -> None:
        found = self._exits.pop(side, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        for side in Side:
            self._drop(side)


Iterations = Mapping[int, int]
Ask = Callable[[Path, float, Iterations], Iterations]


def ask_main_thread(ctl: Path, timeout: float, before: Iterations) -> Iterations:
    """Ask for the iterations of the PMD threads, by core. Threads that stand still because they have no queues are left
    out. ``before``: an earlier answer. Raises NoAnswer, SwitchError."""
    now = pmd_iterations(ctl, timeout=timeout)
    if all(before.get(core) != count for core, count in now.items()):
        return now
    queues = pmd_rxqs(ctl, timeout=timeout)
    polling = {queue.core for port in queues.values() for queue in port if queue.enabled}
    return {core: count for core, count in now.items() if core in polling}


class MainThreadProbe:
    """Asks an ovs-vswitchd's main thread repeatedly, in a thread of its own: while a question is not answered, the
    watchdog must notice everything else."""

    def __init__(self, clock: Callable[[], float], every_s: float, ask: Ask = ask_main_thread) -> None:
        self._clock, self._every_s, self._ask = clock, every_s, ask
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._target: tuple[Path, int] | None = None
        self._asked: float | None = None
        self._failed = False
        self._answer: Answer | None = None
        self._thread = threading.Thread(target=self._run, name="main-thread", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def watch(self, ctl: Path, pid: int) -> None:
        """Ask process ``pid`` at its control socket ``ctl`` from now on. Answers of another process are forgotten."""
        with self._lock:
            if self._target != (ctl, pid):
                self._target, self._asked, self._failed, self._answer = (ctl, pid), None, False, None

    def seen(self) -> tuple[bool, Answer | None]:
        """Whether the main thread is silent, and its newest answer."""
        with self._lock:
            waits = self._asked is not None and self._clock() - self._asked > _PROMPT_S
            return self._failed or waits, self._answer

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2 * _ANSWER_S)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self.turn()

    def turn(self) -> None:
        """Ask one question, if there is an instance to ask."""
        with self._lock:
            target = self._target
            if target is None:
                return
            self._asked = self._clock()
            before = self._answer.iterations if self._answer else {}
        failed, iterations = False, None
        try:
            iterations = self._ask(target[0], _ANSWER_S, before)
        except NoAnswer:
            failed = True
        except HotswapError:
            pass  # an answered error, or no socket (yet), does not show that the main thread is silent
        except Exception:  # nor does an answer of an unforeseen shape, or a lack of descriptors
            log.exception("asking the main thread")
        with self._lock:
            if self._target == target:
                self._asked, self._failed = None, failed
                self._answer = self._answer if iterations is None else Answer(self._clock(), iterations)
