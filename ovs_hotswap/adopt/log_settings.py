"""Has a switch log every vhost-user message, so that its connections can be entered.

Open vSwitch writes at most 600 lines of DPDK in a minute (lib/dpdk.c, ``dpdk_log_write``); a VM of four queue pairs
that reboots takes a good part of them. What was left out before stays unknown, until QEMU makes the connection again or
its link is set down and up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.pmd import set_vhost_log_level, vhost_log_level
from ovs_hotswap.switch.unixctl import appctl

_ENOUGH = ("info", "debug")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What was set before: the level of DPDK's vhost library. The limit of lines is on unless it was switched off."""

    level: str

    def fact(self) -> dict[str, str]:
        """Return what is recorded in the journal."""
        return {"level": self.level}

    @classmethod
    def restored(cls, fact: dict[str, str]) -> Self:
        return cls(fact["level"])


def log_everything(paths: InstancePaths) -> LogSettings:
    """Have the switch log each message of QEMUs from now on. Return what ``log_as_before`` needs.

    Raises SwitchError; the log is then as before.
    """
    before = LogSettings(vhost_log_level(paths.vswitchd_ctl))
    try:
        appctl(paths.vswitchd_ctl, "vlog/disable-rate-limit", "dpdk")
        if before.level not in _ENOUGH:
            set_vhost_log_level(paths.vswitchd_ctl, "info")
    except SwitchError:
        log_as_before(paths, before)
        raise
    return before


def log_as_before(paths: InstancePaths, before: LogSettings) -> None:
    """Undo ``log_everything``. It may be called again. Raises SwitchError."""
    appctl(paths.vswitchd_ctl, "vlog/enable-rate-limit", "dpdk")
    if vhost_log_level(paths.vswitchd_ctl) != before.level:
        set_vhost_log_level(paths.vswitchd_ctl, before.level)
