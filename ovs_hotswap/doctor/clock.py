"""The clock: whether something keeps it right. Journals and events are compared across hosts by their times."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Kind, Section, ok
from ovs_hotswap.model import Severity

_HERE = Section.CLOCK
UNSYNCHRONISED = Kind(_HERE, "synchronised", Severity.WARNING)
UNSEEN = Kind(_HERE, "synchronised", Severity.UNKNOWN)
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 208  # struct timex on 64 bits (include/uapi/linux/timex.h); modes = 0 only reads
# What keeps the clock right, with the command that shows whether it reaches a server.
_SERVICES = {"chrony": "chronyc sources", "ntpsec": "ntpq -p", "systemd-timesyncd": "timedatectl timesync-status",
             "chronyd": "chronyc sources", "openntpd": "ntpctl -s status"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clock:
    """``synchronised``: what the kernel says; ``None`` if it cannot be asked. ``service``: what is installed to keep
    the clock right."""

    synchronised: bool | None
    service: str | None


def read(root: Root, synchronised: bool | None) -> Clock:
    places = ("usr/lib/systemd/system", "lib/systemd/system", "etc/systemd/system")
    installed = (name for name in _SERVICES if any(root.exists(f"{place}/{name}.service") for place in places))
    return Clock(synchronised, next(installed, None))


def synchronised() -> bool | None:
    """Ask the kernel (adjtimex(2)), which knows it whatever program keeps the clock; ``None`` if it does not say."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    return None if state < 0 else state != _TIME_ERROR


def judge(facts: Clock) -> Found:
    if facts.synchronised is None:
        return UNSEEN("the kernel does not say whether the clock is synchronised", "timedatectl show-timesync")
    if facts.synchronised:
        return ok(_HERE, UNSYNCHRONISED.check, f"by {facts.service}" if facts.service else "by the host")
    if facts.service is None:
        return UNSYNCHRONISED("nothing is installed that keeps the clock right", "apt-get install chrony")
    command = f"systemctl enable --now {facts.service}; if it runs: `{_SERVICES[facts.service]}`"
    return UNSYNCHRONISED(f"the clock is not synchronised, though {facts.service} is installed", command)
