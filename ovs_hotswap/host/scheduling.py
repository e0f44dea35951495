"""The priority of instances: one that is started beside a serving one does not take its cores from it.

Low priority lasts as long as the block of ``in_background``, which is within one step; the next step finds normal
priority. If the process that runs the block is killed, low priority stays. So all code that prepares an instance to
forward packets, or makes it the active one, calls ``serve``, and the watchdog checks the active instance repeatedly.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Protocol

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.switch.threads import is_pmd
from ovs_hotswap.system import System

log = logging.getLogger(__name__)

_PATIENCE_S = 2.0  # on a busy machine, low priority means no progress, and an upgrade must not stop for it


class Processes(Protocol):
    """The processes of an instance: their pids, or ``None`` for a process that does not run."""

    def pid(self) -> int | None: ...

    def database_pid(self) -> int | None: ...


class Instances(Protocol):
    """The two instances of a host."""

    @property
    def system(self) -> System: ...

    @property
    def instances(self) -> Mapping[Side, Processes]: ...

    def recorded_active(self) -> Side | None: ...


@contextlib.contextmanager
def in_background(host: Instances, side: Side) -> Iterator[None]:
    """Keep an instance at low priority, as soon as it runs, for as long as the block lasts and if the other instance
    serves the VMs. If none does, the VMs wait for this instance, so its priority is normal."""
    serving = host.instances[side.other].pid()
    if serving is None or host.recorded_active() is not side.other:
        yield
        return
    with host.system.background(lambda: _pids(host, side), is_pmd, serving, _PATIENCE_S):
        yield


def _pids(host: Instances, side: Side) -> list[int]:
    instance = host.instances[side]
    return [pid for pid in (instance.pid(), instance.database_pid()) if pid is not None]


def low(host: Instances, side: Side) -> dict[int, list[str]]:
    """The names of an instance's threads that are at low priority, by process; without processes that have none."""
    found = {pid: host.system.low_threads(pid) for pid in _pids(host, side)}
    return {pid: names for pid, names in found.items() if names}


def serve(host: Instances, side: Side) -> bool:
    """Give normal priority to an instance that is to forward packets, and return whether it has it. Never raises: an
    instance that serves VMs serves them at any priority."""
    done = True
    for pid in _pids(host, side):
        if not host.system.raise_priority(pid):
            log.warning("instance %s: process %d stays at low priority", side, pid)
            done = False
    return done


def make_ready(host: Instances, side: Side) -> None:
    """Call ``serve`` before VMs are given to an instance. Raises SwitchError if it does not get normal priority."""
    if not serve(host, side):
        raise SwitchError(
            f"instance {side}: some of its threads stay at low priority",
            hint="a program that starts instances needs CAP_SYS_NICE; see `ps -L -o tid,cls,comm`",
        )
