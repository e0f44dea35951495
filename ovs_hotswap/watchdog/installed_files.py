"""A standby runs the files of its release that are installed, also after the package manager has replaced them.

The active instance keeps running the files with which it was started: to change what serves VMs is an operator's
decision (`ovs-hotswap upgrade`). A standby serves none, and is to be what an upgrade or a failover goes to. A standby
of another version than the installed one is kept, too: otherwise a failover would change the version, and the drivers
that it needs may not be there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.package_manager import at_work
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.release import HOST

log = logging.getLogger(__name__)

_EVERY_S = 10.0  # reading what a switch has mapped takes a millisecond
# Running the installed programs takes longer, and what they say mostly stays so until an operator acts.
_PROGRAMS_S = 300.0


class InstalledFiles:
    """Looks at a standby. ``busy``: whether the package manager is at work."""

    def __init__(self, busy: Callable[[], bool] = at_work) -> None:
        self.busy = busy
        self._at = self._again = float("-inf")
        self._seen: tuple[int | None, bool] = None, False
        self._told: str | None = None

    def replaced(self, host: Host, side: Side) -> bool:
        """Whether the standby runs files that were replaced by files of the same versions, which are complete and run.
        The answer is kept for a while."""
        pid, now = host.instances[side].pid(), host.system.monotonic()
        if pid != self._seen[0]:
            self._at = self._again = float("-inf")
        if now - self._at >= _EVERY_S:
            self._at, self._seen = now, (pid, self._look(host, side, now))
        return self._seen[1]

    def _look(self, host: Host, side: Side, now: float) -> bool:
        instance = host.instances[side]
        release = instance.release()
        if release is None or not instance.outdated():
            return False
        if self.busy():
            self._again = now  # what is installed then is looked at as soon as it is complete
            return False
        if now < self._again:
            return False
        try:
            same = host.releases.get(release.name) == release
        except HotswapError as error:
            if error.message != self._told:
                log.warning("instance %s keeps its files, which were replaced: %s", side, error.message)
            self._told, same = error.message, False
        self._again = now if same else now + _PROGRAMS_S
        return same


def same_place(one: Release | None, other: Release) -> bool:
    """Whether two releases are the same but for their versions, which an upgrade of the package changes."""
    return one is not None and (one.name, one.root, one.prefix) == (other.name, other.root, other.prefix)


def present(host: Host, release: Release) -> Release:
    """The release with the versions that are installed now: an upgrade of the host's package changes them, and those of
    a record are from the last start. If they cannot be read, the release is the given one, and its start says why."""
    if release.name == HOST:
        with contextlib.suppress(HotswapError):
            return host.releases.installed()
    return release
