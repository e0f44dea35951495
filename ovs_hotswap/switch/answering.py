"""Whether an instance can answer at all, so that nobody waits for a deadline to learn that it cannot."""

from __future__ import annotations

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.system import System

_HINT = "see whether the instance runs: `ovs-hotswap instance list`"


def see_answering(instance: Instance, system: System) -> None:
    """Raises SwitchError for an instance that has ended, stands still, or serves no OpenFlow because it lacks its
    ovsdb-server (``Instance.lacks_database``)."""
    pid = instance.pid()
    if pid is None:
        raise SwitchError(f"instance {instance.side} does not run", hint=_HINT)
    if system.stopped(pid):
        raise SwitchError(f"instance {instance.side} is stopped", hint=f"see what stopped it, then `kill -CONT {pid}`")
    if instance.lacks_database():
        raise SwitchError(f"instance {instance.side} has lost its ovsdb-server", hint=_HINT)


def see_going(instance: Instance, system: System) -> None:
    """Raises SwitchError for an instance that has ended or is stopped."""
    pid = instance.pid()
    if pid is None or system.stopped(pid):
        raise SwitchError(f"instance {instance.side} {'has ended' if pid is None else 'is stopped'}")
