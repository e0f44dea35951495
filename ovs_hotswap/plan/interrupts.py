"""Turns the signals that ask an upgrade to stop into one orderly exception."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGHUP)


def ended_as_child(process: int, number: int) -> bool:
    """Whether a signal handler of ``process`` runs in a child that a library forked, which inherits the handler.

    If so, the signal ends the child as it would without a handler: pyroute2 forks to enter a namespace, and ends its
    child by SIGTERM.
    """
    if os.getpid() == process:
        return False
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return True


class Interrupted(KeyboardInterrupt):
    """The operator, the shutdown of the system or the loss of the terminal asked the upgrade to stop."""


class Interrupts:
    """Raises Interrupted in the block at the first of SIGINT, SIGTERM and SIGHUP.

    Later signals do nothing, because the stop is already under way. Inside ``shield`` the exception is held back until
    the end of the shield. A signal that was ignored stays ignored: nohup(1), and a shell that starts a command with
    ``&`` in a script, ask for that. Use this in the main thread only, where Python runs signal handlers.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._depth = 0
        self._pending: str | None = None
        self._raised = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupts:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself returned
        self._before.clear()

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """Hold signals back in the block. Shields may be nested.

        If the block raises, a signal that came in the meantime is not raised on top of that.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._depth == 0 and self._pending is not None and not self._raised:
            self._raise(self._pending)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # A child that a library forked has a copy of this upgrade, which must never act. A signal that a terminal sends
        # to the whole group must not end the child, because an undo may depend on it.
        if (os.getpid() != self._process and number in _FROM_TERMINAL) or ended_as_child(self._process, number):
            return
        name = signal.Signals(number).name
        if self._depth:
            self._pending = self._pending or name
        elif not self._raised:
            self._raise(name)

    def _raise(self, name: str) -> None:
        self._raised = True
        raise Interrupted(f"interrupted by {name}")
