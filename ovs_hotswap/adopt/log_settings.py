"""Has a switch log every vhost-user message, so that many connections can be entered one after the other.

Open vSwitch writes at most 600 lines of DPDK in a minute (lib/dpdk.c, ``dpdk_log_write``), and an adoption takes about
a hundred. A line that was left out is announced by the next line that is written *under the limit* (lib/vlog.c,
``vlog_should_drop``): if the limit was switched off before that, it would never be announced, and a log that lacks
lines would look complete. So a line is written under the limit first, by entering one connection and leaving it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from ovs_hotswap.adopt.fetching import fetch
from ovs_hotswap.adopt.guard import guarded
from ovs_hotswap.adopt.taking import take
from ovs_hotswap.errors import BrokerError, StateUnknown, SwitchError
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.pmd import set_vhost_log_level, vhost_log_level
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System

_ENOUGH = ("info", "debug")

Prove = Callable[[InstancePaths, str, System], None]


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What was set before: the level of DPDK's vhost library. The limit of lines is on by default."""

    level: str

    def fact(self) -> dict[str, str]:
        """Return what is recorded in the journal."""
        return {"level": self.level}

    @classmethod
    def restored(cls, fact: Mapping[str, str]) -> Self:
        return cls(fact["level"])


def prove_log(paths: InstancePaths, port: str, system: System) -> None:
    """Prove that the log has every message up to now, by a question over the connection of ``port``.

    Its QEMU stands still for some milliseconds, and nothing else happens. Raises StateUnknown, BrokerError and
    SwitchError.
    """
    snapshot = take(paths, port, system)
    with contextlib.closing(fetch(snapshot)) as fetched, guarded(snapshot, fetched):
        pass


def log_everything(paths: InstancePaths, ports: Sequence[str], system: System, prove: Prove = prove_log) -> LogSettings:
    """Have the switch log each message of QEMUs from now on. Return what ``log_as_before`` needs.

    ``ports`` are those whose connections are to be entered; one of them serves for the proof that no line is pending.
    Raises StateUnknown if none does: then none can be entered, and its message is that of the last port. Raises
    SwitchError. In both cases the log is as before.
    """
    before = LogSettings(vhost_log_level(paths.vswitchd_ctl))
    appctl(paths.vswitchd_ctl, "vlog/enable-rate-limit", "dpdk")  # an operator may have switched it off
    try:
        if before.level not in _ENOUGH:
            set_vhost_log_level(paths.vswitchd_ctl, "info")
        _prove_one(paths, ports, system, prove)
        appctl(paths.vswitchd_ctl, "vlog/disable-rate-limit", "dpdk")
    except BaseException:
        with contextlib.suppress(SwitchError):
            log_as_before(paths, before)
        raise
    return before


def _prove_one(paths: InstancePaths, ports: Sequence[str], system: System, prove: Prove) -> None:
    fault = StateUnknown("there is no port whose connection is to be entered")
    for port in ports:
        try:
            return prove(paths, port, system)
        except (StateUnknown, BrokerError) as error:
            fault = StateUnknown(error.message, hint=error.hint)
    raise fault


def log_as_before(paths: InstancePaths, before: LogSettings) -> None:
    """Undo ``log_everything``. It may be called again. Raises SwitchError."""
    appctl(paths.vswitchd_ctl, "vlog/enable-rate-limit", "dpdk")
    if vhost_log_level(paths.vswitchd_ctl) != before.level:
        set_vhost_log_level(paths.vswitchd_ctl, before.level)
