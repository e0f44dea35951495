"""How tests wait for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(
    true: Callable[[], object], what: str | Callable[[], str], seconds: float = 60.0, *, poll_s: float = 0.01
) -> None:
    """Return when ``true``. AssertionError with ``what``, which may be made then, after ``seconds``."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(poll_s)
