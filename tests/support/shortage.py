"""A process that is short of something."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Iterator

_NO_STACK = 1 << 47  # bytes: more than a process has addresses


@contextlib.contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """This process can open ``left`` more descriptors and no other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        for _ in range(left):
            os.close(taken.pop())
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def no_threads() -> Iterator[None]:
    """This process can start no thread."""
    before = threading.stack_size(_NO_STACK)
    try:
        yield
    finally:
        threading.stack_size(before)


def fill_pipe(writer: int) -> None:
    """Leave no room in a pipe, so that to write to it blocks."""
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 4096)
    os.set_blocking(writer, True)
