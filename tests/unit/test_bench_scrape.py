"""What the benchmark of scrapes makes of its figures."""

from __future__ import annotations

import io
import os
import threading
import time

from bench.scrape import CASES, Case, Result, but_pmds, show
from ovs_hotswap.cli.output import Output


def test_the_share_of_a_core_is_that_of_all_processes() -> None:
    result = Result(
        Case(255), {"exporter": 60.0, "broker": 30.0, "ovs-vswitchd": 50.0, "ovsdb-server": 10.0}, [0.1, 0.3]
    )
    assert result.percent == 1.0
    out = io.StringIO()
    show(Output(out=out), [result])
    assert "1.00" in out.getvalue()
    assert max(case.vms for case in CASES) == 255


def test_the_time_of_each_thread_is_counted_once() -> None:
    """The file of a thread below /proc itself has the time of its whole process."""
    ended = threading.Event()
    threads = [threading.Thread(target=ended.wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        assert 0 < but_pmds(os.getpid()) < 2 * time.process_time()
    finally:
        ended.set()
        for thread in threads:
            thread.join()
