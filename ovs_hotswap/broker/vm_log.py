"""Limits what is logged about a VM, so that a VM that causes the same line again and again does not fill the log.

A fault of one VM is a line of the log for the others, and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

AGAIN_S = 60.0
MOST = 120  # lines about a VM in that time, however different they are
_KINDS = 32  # different texts that are remembered


@contextlib.contextmanager
def alone(vm: str, what: str, known: dict[str, str] | None = None) -> Iterator[None]:
    """Log whatever the block raises as a fault of ``vm``, so that the caller continues with the next VM. ``known``: the
    fault of each VM that was logged last, which is not logged again."""
    known = {} if known is None else known
    try:
        yield
    except Exception as error:
        before, known[vm] = known.get(vm), repr(error)
        if before != known[vm]:
            log.exception("vm %s: %s", vm, what)


class Notes:
    def __init__(self, vm: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._vm, self._clock = vm, clock
        self._said: dict[str, tuple[float, int]] = {}  # when a text was logged, and how often it was left out since
        self._since, self._lines = clock(), 0

    def say(self, text: str) -> None:
        """Log ``text``, unless the same text, or MOST lines of any text, were logged in the last AGAIN_S seconds.

        Repetitions are counted, and the next line with this text says how many there were.
        """
        now = self._clock()
        at, left_out = self._said.pop(text, (now - AGAIN_S, 0))
        if now - at < AGAIN_S:
            self._said[text] = at, left_out + 1
            return
        if self._has_room(now):
            often = f" (and {left_out} times since this was last logged)" if left_out else ""
            log.warning("vm %s: %s%s", self._vm, text, often)
        self._said[text] = now, 0
        if len(self._said) > _KINDS:
            del self._said[next(iter(self._said))]

    def _has_room(self, now: float) -> bool:
        if now - self._since >= AGAIN_S:
            if self._lines > MOST:
                log.warning("vm %s: %d more lines were left out", self._vm, self._lines - MOST)
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines == MOST + 1:
            log.warning("vm %s: nothing more is logged about it for up to a minute", self._vm)
        return self._lines <= MOST
