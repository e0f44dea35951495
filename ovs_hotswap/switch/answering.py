"""Checks whether an instance can answer at all, so that no caller waits for a deadline to learn that it cannot."""

from __future__ import annotations

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Life
from ovs_hotswap.switch.instance import Instance

_HINT = "see whether the instance runs: `ovs-hotswap instance list`"


def see_answering(instance: Instance) -> None:
    """Raise SwitchError for an instance that has ended, is stopped, or serves no OpenFlow because it lacks its
    ovsdb-server (``Instance.lacks_database``)."""
    life = instance.life()
    if life is Life.DEAD:
        raise SwitchError(f"instance {instance.side} does not run", hint=_HINT)
    if life is Life.STOPPED:
        hint = f"see what stopped it, then `kill -CONT {instance.pid()}`"
        raise SwitchError(f"instance {instance.side} is stopped", hint=hint)
    if instance.lacks_database():
        raise SwitchError(f"instance {instance.side} has lost its ovsdb-server", hint=_HINT)


def see_going(instance: Instance) -> None:
    """Raise SwitchError for an instance that has ended or is stopped."""
    life = instance.life()
    if life is not Life.RUNS:
        raise SwitchError(f"instance {instance.side} {life.value}")
