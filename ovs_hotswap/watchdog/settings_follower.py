"""Carries the operator's settings from the active instance to the standby, and keeps them.

An active instance that is started again, also after a boot, gets back the settings that it had.
"""

from __future__ import annotations

import logging

from ovs_hotswap.errors import HostError, SwitchError
from ovs_hotswap.host import saved_settings, settings_transfer, standby
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.switch.settings import Settings

log = logging.getLogger(__name__)

_EVERY_S = 5.0
_ANSWER_S = 1.0

Seen = tuple[Settings, int | None]  # the settings, and the PMD sleep that the operator set


class SettingsWatch:
    """Follows the operator's settings. A database that does not answer is asked again later, and nothing is raised."""

    def __init__(self) -> None:
        self._at = float("-inf")
        self._seen: tuple[Side, Seen] | None = None
        self._kept: tuple[Side, Seen] | None = None
        self._told = ""
        self._given: tuple[int, Seen] | None = None  # the process, and what it was given

    def look(self, host: Host, active: Side) -> None:
        """Keep the settings and give them to the standby, if it is time and they have changed. Raises BusyError if the
        standby must not be changed now."""
        now = host.system.monotonic()
        if now - self._at < _EVERY_S:
            return
        self._at = now
        try:
            found = settings_transfer.read(host, active, _ANSWER_S)
            seen = settings_transfer.own(host, found), settings_transfer.own_sleep(host, found, active)
            self._seen = active, seen
            if self._kept != self._seen:
                self._keep(host, active, seen)
            record = standby.warm(host, active.other)
            if record is None or self._given == (record.pid, seen):
                return
            with host.lock():
                standby.follow_settings(host, record.side, *seen)
            self._given = record.pid, seen
        except SwitchError as error:
            log.warning("settings of instance %s: %s", active, error.message)

    def _keep(self, host: Host, active: Side, seen: Seen) -> None:
        """Keep the settings for the next boot. If they cannot be written, this is logged once and tried again later."""
        try:
            saved_settings.write(host.config, host.system, active, *seen)
        except HostError as error:
            if error.message != self._told:
                log.warning("settings of instance %s are not kept for the next boot: %s", active, error.message)
            self._told = error.message
            return
        self._kept, self._told = (active, seen), ""

    def put_back(self, host: Host, active: Side) -> None:
        """Give the settings of the last look to an active instance that was started again."""
        if self._seen is None or self._seen[0] is not active:
            return
        settings, own_sleep = self._seen[1]
        try:
            host.settle_pmd_sleep(active, own_sleep)
            settings_transfer.put(host, settings, active, active)
        except SwitchError as error:
            log.warning("settings of instance %s are lost: %s", active, error.message)
