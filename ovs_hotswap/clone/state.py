"""All run-time state of a switch that is neither in its database nor in its flow tables, as one thing.

``read`` it from the active side, ``apply`` it to the new side, and see ``differences``, as often as needed: once while
the new side is prepared, once right before the cut, and once after it, when what came up in between is topped up. What
cannot be given to a switch (``protocols``) is only compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ovs_hotswap.clone import conntrack, fdb, protocols, runtime
from ovs_hotswap.clone.applied import Applied, ask, commands_of
from ovs_hotswap.clone.applied import undo as undo_commands
from ovs_hotswap.clone.bridges import Bridges, read_bridges
from ovs_hotswap.clone.runtime_settings import LOGS, Command, Settings, summary
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.rpc import NoAnswer
from ovs_hotswap.system import System


@dataclass(frozen=True, slots=True)
class RuntimeState:
    fdb: tuple[fdb.FdbEntry, ...]
    conntrack: conntrack.ConntrackState
    settings: Settings
    protocols: protocols.States


def read(active: InstancePaths, *, timeout: float = 60.0) -> RuntimeState:
    """Read the state of a running switch. Nothing is changed. Raises SwitchError, and NoAnswer if one answer takes
    longer than ``timeout`` seconds."""
    bridges = read_bridges(active.db_socket)
    return RuntimeState(
        fdb.read(active, bridges, timeout=timeout),
        conntrack.read(active, bridges, timeout=timeout),
        runtime.read(active, timeout=timeout),
        read_protocols(active, bridges, timeout=timeout),
    )


def without_logs(state: RuntimeState) -> RuntimeState:
    """Return the state without what is set of logs, for a time in which those of the active side are not its own."""
    settings = {name: each for name, each in state.settings.items() if not each.put[0][0].startswith(LOGS)}
    return replace(state, settings=settings)


def apply(new: InstancePaths, state: RuntimeState, system: System, *, cut: bool, timeout: float = 60.0) -> Applied:
    """Give the new side what it lacks of ``state``. ``cut``: the new side has the traffic already; then what it knows
    itself stays, and only what it does not know is added.

    Raises SwitchError; then what this call had given to the new side was taken back, except addresses in forwarding
    databases, which expire.
    """
    # Settings first: limits and intervals are those of the active side when the connections are made.
    done = runtime.apply(new, state.settings, cut=cut, timeout=timeout)
    try:
        done += conntrack.apply(system, new, state.conntrack, cut=cut, timeout=timeout)
        done += fdb.apply(system, new, state.fdb, cut=cut, timeout=timeout)
    except SwitchError as error:
        try:
            refused = undo(new, done.undo, timeout=timeout)
        except SwitchError as again:
            refused = (again.message,)
        for line in refused:
            error.add_note(f"not undone: {line}")
        raise
    return done


def undo(new: InstancePaths, commands: tuple[Command, ...], *, timeout: float = 60.0) -> tuple[str, ...]:
    """Take back what ``apply`` gave to the new side (``Applied.undo``); return a line for each refused command.

    It may be repeated. Raises NoAnswer.
    """
    return undo_commands(new.vswitchd_ctl, commands, timeout=timeout)


def differences(new: InstancePaths, state: RuntimeState, *, timeout: float = 60.0) -> tuple[str, ...]:
    """Return a line for each thing, or each kind of connection, in which the new side differs from ``state``.

    Raises SwitchError, and NoAnswer after ``timeout`` seconds.
    """
    bridges = read_bridges(new.db_socket)
    return (
        *fdb.differences(new, state.fdb, timeout=timeout),
        *conntrack.differences(new, state.conntrack, timeout=timeout),
        *runtime.differences(new, state.settings, timeout=timeout),
        *summary(protocols.different(state.protocols, read_protocols(new, bridges, timeout=timeout))),
    )


def read_protocols(paths: InstancePaths, bridges: Bridges, *, timeout: float = 10.0) -> protocols.States:
    """Return the states of spanning trees, BFD, CFM, LACP, bonds and multicast groups. Raises SwitchError."""
    ctl, found = paths.vswitchd_ctl, dict[str, str]()
    commands = commands_of(ctl, timeout=timeout)
    for name, reader in protocols.READERS.items():
        if name in commands:
            found.update(reader(ask(ctl, (name,), timeout=timeout)))
    for bridge in bridges.ports:
        try:
            found.update(protocols.groups(bridge, ask(ctl, ("mdb/show", bridge), timeout=timeout)))
        except NoAnswer:
            raise
        except SwitchError:  # a bridge without multicast snooping (ofproto_unixctl_mcast_snooping_show)
            continue
    return found
