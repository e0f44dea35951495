"""SIGTERM ends a long run as Ctrl-C does: what it made is removed, however often it comes."""

from __future__ import annotations

import os
import signal
from types import FrameType


def end_on_sigterm() -> None:
    process, told = os.getpid(), False

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a child that pyroute2 forked to enter a namespace, and ends by signal
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        nonlocal told
        if told:
            return
        told = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGTERM, end)
