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


class InstalledFiles:
    """Looks at a standby. ``busy``: whether the package manager is at work."""

    def __init__(self, busy: Callable[[], bool] = at_work) -> None:
        self.busy = busy
        self._at = float("-inf")
        self._seen: tuple[int | None, bool] = None, False

    def replaced(self, host: Host, side: Side) -> bool:
        """Whether the standby runs files that were replaced by files of the same versions, which are complete and run.
        The answer is kept for a while."""
        pid, now = host.instances[side].pid(), host.system.monotonic()
        if pid != self._seen[0] or now - self._at >= _EVERY_S:
            self._at, self._seen = now, (pid, self._look(host, side))
        return self._seen[1]

    def _look(self, host: Host, side: Side) -> bool:
        instance = host.instances[side]
        release = instance.release()
        if release is None or not instance.outdated() or self.busy():
            return False
        try:
            return host.releases.get(release.name) == release
        except HotswapError as error:
            log.warning("instance %s keeps its files, which were replaced: %s", side, error.message)
            return False


def same_place(one: Release | None, other: Release) -> bool:
    """Whether two releases are the same but for their versions, which an upgrade of the package changes."""
    return one is not None and (one.name, one.root, one.prefix) == (other.name, other.root, other.prefix)


def present(host: Host, release: Release) -> Release:
    """The release with the versions that are installed now: an upgrade of the host's package changes them, and those of
    a record are from the last start. If they cannot be read, the release is the given one, and its start says why."""
    if release.name == HOST:
        with contextlib.suppress(HotswapError):
            return host.releases.get(release.name)
    return release
