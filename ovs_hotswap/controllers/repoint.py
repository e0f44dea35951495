"""Leads every program on the host from one instance to the other, after the cut, and back."""

from __future__ import annotations

from collections.abc import Collection

from ovs_hotswap.controllers import remotes
from ovs_hotswap.controllers.connections import Client, Connections
from ovs_hotswap.controllers.well_known import WellKnown
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.rpc import listens
from ovs_hotswap.system import System


def repoint(
    paths: WellKnown, system: System, old: InstancePaths, new: InstancePaths, spared: Collection[int] = ()
) -> tuple[Client, ...]:
    """Have the well-known paths lead to ``new``, have the controllers and managers at ``new`` in the place of ``old``,
    and end the connections of the clients of ``old``, which then connect to ``new``. Returns these clients.

    Controllers that the copy of the database holds back (``clone.changes``) are given back before. The undo of this is
    the same call with ``old`` and ``new`` exchanged. It may be repeated, also after having been killed half way, and
    ``old`` may have ended. ``spared``: processes whose connections stay, such as those that follow the old instance's
    changes; this process and what it has started are always spared, and so is every ovs-vswitchd.

    Raises SwitchError if ``new`` does not run, before anything is changed, or if a daemon refuses; StateUnknown if the
    connections of ``old`` cannot be seen; HostError.
    """
    # Before anything changes: afterwards the well-known names of the distribution's switch are those of ``new``.
    old, new = paths.by_second_names(old), paths.by_second_names(new)
    paths.lead_to(new)
    if listens(old.db_socket):
        remotes.hold(old.db_socket)
    if listens(old.ovsdb_ctl):
        remotes.leave_managers(old.ovsdb_ctl)
    remotes.release(new.db_socket)
    remotes.serve_managers(new.ovsdb_ctl)
    dropped: list[Client] = []
    for pid_file in (old.ovsdb_pid, old.vswitchd_pid):
        pid = system.read_pid(pid_file)
        if pid is not None:
            dropped += Connections(pid).drop(spared)
    return tuple(dropped)
