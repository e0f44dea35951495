"""Processes watched in an event loop."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable

from ovs_hotswap.broker.process_watch import Processes
from ovs_hotswap.process_exit import Process, start_time
from tests.support.shortage import few_descriptors


def told(act: Callable[[Processes], None], count: int = 0) -> list[int]:
    """The processes that were told to have ended: ``count`` after ``act``, and all a moment later."""

    async def main() -> list[int]:
        ended: list[int] = []
        processes = Processes(asyncio.get_running_loop(), ended.append)
        act(processes)
        async with asyncio.timeout(10):
            while len(ended) < count:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)  # nothing more comes
        processes.close()
        return ended

    return asyncio.run(main())


def since(pid: int) -> int:
    """When a process that is there was started."""
    found = start_time(pid)
    assert found
    return found


def test_a_process_that_lives_is_not_told() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert told(lambda processes: processes.track(child.pid, start_time(child.pid))) == []
        child.kill()


def test_a_process_that_ends_is_told_once() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:

        def kill(processes: Processes) -> None:
            processes.track(child.pid)
            processes.track(child.pid)
            child.kill()
            processes.doubt(child.pid)

        assert told(kill, 1) == [child.pid]


def test_a_process_that_is_killed_is_told() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:

        def kill(processes: Processes) -> None:
            processes.kill(child.pid)  # it is not tracked, so it is not killed
            assert child.poll() is None
            processes.track(child.pid)
            processes.kill(child.pid)

        assert told(kill, 1) == [child.pid]


def test_a_pid_that_is_another_processs_now_is_told_as_ended() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert told(lambda processes: processes.track(child.pid, since(child.pid) - 1), 1) == [child.pid]
        child.kill()


def test_a_process_is_known_by_when_it_was_started() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:

        def look(processes: Processes) -> None:
            processes.track(child.pid)
            assert processes.known(child.pid) == Process(child.pid, start_time(child.pid))
            assert processes.known(1 << 22) == Process(1 << 22, 0)  # the number is free or was reused

        assert told(look) == []
        child.kill()


def test_another_process_with_the_pid_of_one_that_ended_is_not_that() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:

        def look(processes: Processes) -> None:
            processes.track(child.pid, since(child.pid) - 1)
            processes.kill(child.pid)  # nor is it ended

        assert told(look, 1) == [child.pid]
        assert child.poll() is None
        child.kill()


def test_one_that_cannot_be_watched_yet_is_taken_to_live() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:

        def look(processes: Processes) -> None:
            born = since(child.pid)
            with few_descriptors(1):
                processes.mind(child.pid, born)
            assert not processes.ended(child.pid)
            assert processes.known(child.pid) == Process(child.pid, born)
            child.kill()

        assert told(look, 1) == [child.pid]
