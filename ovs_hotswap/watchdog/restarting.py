"""Starts the active instance, or its database server, again."""

from __future__ import annotations

from collections.abc import Callable

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Release, Side
from ovs_hotswap.uplink.base import steer_to_started
from ovs_hotswap.watchdog.culprit_search import Poison
from ovs_hotswap.watchdog.installed_files import present
from ovs_hotswap.watchdog.status_file import StatusFile


def restart(host: Host, active: Side, board: StatusFile, poison: Poison, start: Callable[[Release], None]) -> None:
    """Start the active instance again, and count that it ended. Every VM waits for this, as no other instance can take
    them. ``start``: brings it up with the release that it is given, programmed. Raises SwitchError, ReleaseError, and
    what ``start`` does."""
    release = host.software(active)  # if it was stopped, it has no record of its own any longer
    if release is None:
        raise SwitchError(f"what instance {active} ran is not known", hint=f"`ovs-hotswap instance start {active}`")
    release = present(host, release)
    board.event("restart", side=active, release=release.name)
    board.failure()
    board.restarted()
    poison.died(host.system.monotonic())
    poison.step(host, alive=False)  # VMs must be held back before there is a switch
    start(release)
    poison.serves(host.system.monotonic())


def start_programmed(host: Host, side: Side, release: Release) -> None:
    """Start an instance with the overlay's tables, and steer the uplink to it. Raises SwitchError, CommandError,
    ConfigError."""
    host.instances[side].start(release)
    try:
        host.program(side)
        steer_to_started(host.uplink, side)
    except BaseException:
        host.instances[side].stop(keep_log=True)  # otherwise it would count as running while half programmed
        raise


def mend(host: Host, active: Side, board: StatusFile) -> None:
    """Start the database server of the active instance again. Raises SwitchError."""
    instance = host.instances[active]
    instance.restart_ovsdb()
    if instance.database_pid() is not None:  # otherwise the instance has just ended
        board.event("database", side=active)
