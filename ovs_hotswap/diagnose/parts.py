"""Looks at several parts of a host at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.system import System, host_error
from ovs_hotswap.waiting import Deadline


def together(
    parts: Mapping[str, Callable[[], Any]], seconds: float
) -> tuple[dict[str, Any], dict[str, HotswapError]]:  # fmt: skip
    """Call all ``parts`` at once, each in a thread. Return the results, and the error of each part that failed or has
    no result after ``seconds``."""
    results: dict[str, Any] = {}
    faults: dict[str, HotswapError] = {}

    def act(name: str, part: Callable[[], Any]) -> None:
        try:
            results[name] = part()
        except HotswapError as error:
            faults[name] = error
        except OSError as error:
            faults[name] = host_error(error)

    # A thread that hangs in the kernel cannot be ended: it is left behind, and ends with the process.
    threads = [threading.Thread(target=act, args=each, daemon=True) for each in parts.items()]
    deadline = Deadline.after(seconds, System())
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(deadline.left_s)
    late = parts.keys() - results.keys() - faults.keys()
    for name in late:
        faults[name] = HotswapError(f"no answer after {seconds:g} s", hint="`ovs-hotswap doctor`")
    return {name: results[name] for name in parts if name in results and name not in late}, dict(faults)
