"""An instance that is started beside one that serves VMs takes no core of theirs, and one that serves has its own.

Low priority lasts as long as ``in_background``, within one step: what comes after it finds normal priority. If whoever
holds it is killed meanwhile, it stays; so all that makes ready to forward, and all that makes an instance the active
one, calls ``serve``, and the watchdog looks at the active one again and again.
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

_PATIENCE_S = 2.0  # where the machine is busy low priority means no progress, and an upgrade is to get on


class Processes(Protocol):
    """The processes of an instance; ``None`` for one that does not run."""

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
    """Keep an instance, as soon as it is there, at low priority while something is done to it, if the other one serves
    the VMs. Where none does they wait for this one, and nothing is low."""
    serving = host.instances[side.other].pid()
    if serving is None or host.recorded_active() is not side.other:
        yield
        return
    with host.system.background(lambda: _pids(host, side), is_pmd, serving, _PATIENCE_S):
        yield


def _pids(host: Instances, side: Side) -> list[int]:
    instance = host.instances[side]
    return [pid for pid in (instance.pid(), instance.database_pid()) if pid is not None]


def low(host: Instances, side: Side) -> list[int]:
    """Processes of an instance that are at low priority."""
    return [pid for pid in _pids(host, side) if host.system.is_low(pid)]


def serve(host: Instances, side: Side) -> bool:
    """Give an instance that is to forward normal priority, and return whether it has it. Never raises: one that serves
    VMs does so anyway."""
    done = True
    for pid in _pids(host, side):
        if not host.system.raise_priority(pid):
            log.warning("instance %s: process %d stays at low priority", side, pid)
            done = False
    return done


def make_ready(host: Instances, side: Side) -> None:
    """``serve``, before VMs are given to an instance. Raises SwitchError if it has not."""
    if not serve(host, side):
        raise SwitchError(
            f"instance {side}: threads of it stay at low priority",
            hint="whoever starts instances needs CAP_SYS_NICE; see `ps -L -o tid,cls,comm`",
        )
