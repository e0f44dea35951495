"""SIGTERM ends a long run as Ctrl-C does: what it made is removed, however often it comes."""

from __future__ import annotations

import os
import signal
from types import FrameType

from ovs_hotswap.plan.interrupts import ended_as_child


def end_on_sigterm() -> None:
    process, told = os.getpid(), False

    def end(number: int, frame: FrameType | None) -> None:
        if ended_as_child(process, number):
            return
        nonlocal told
        if told:
            return
        told = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGTERM, end)
