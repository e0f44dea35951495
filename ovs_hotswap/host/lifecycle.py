"""Instances as the operator starts and stops them: beside a watchdog, and over a boot. The caller holds the lock."""

from __future__ import annotations

import contextlib
import logging

from ovs_hotswap.config import Active
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host import settings_transfer
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.scheduling import in_background
from ovs_hotswap.model import Release, Side
from ovs_hotswap.plan.interrupts import Interrupts

log = logging.getLogger(__name__)

_KEEP_S = 1.0


def stop_for_good(host: Host, side: Side) -> None:
    """Stop an instance on purpose. That it is the active one no more is recorded before it ends, or a watchdog would
    take its end for a death; one that is in the middle of a fail-over may have turned the uplink already, and then it
    stays. The caller holds the lock."""
    was_active = host.recorded_active() is side
    if was_active:
        with contextlib.suppress(HotswapError):  # one that is dead or hangs; then those stay that were kept before
            settings_transfer.keep(host, side, _KEEP_S)
        host.forget_active()
    try:
        host.instances[side].stop()
    except BaseException:
        if was_active and host.instances[side].pid() is not None and host.recorded_active() is None:
            host.record_active(side)
        raise
    if was_active:
        _clear_uplink(host, side)
    elif host.recorded_active() is None:  # an earlier attempt may have come no further, or it was a boot that ended it
        with contextlib.suppress(HotswapError):
            last = host.last_active()
            if last is not None and last.side is side:
                host.forget_active()
            _clear_uplink(host, side)


def _clear_uplink(host: Host, side: Side) -> None:
    if host.uplink.owner() is side:
        host.uplink.clear()


def start_instance(host: Host, side: Side, release: Release) -> bool:
    """Start an instance and program it, or undo all of that, also when a signal asks for an end. The first one of a
    host becomes the active one, with what the operator had set on the last one. Returns whether it is active. The
    caller holds the lock."""
    _ = host.intent  # a fault in it is told before anything is changed
    first = host.recorded_active() is None
    with Interrupts() as interrupts:
        with in_background(host, side):
            host.instances[side].start(release)
        try:
            with in_background(host, side):
                host.program(side)
            if host.recorded_active() in (None, side):
                settings_transfer.give_kept(host, side)
            return activate_first(host, side) or host.recorded_active() is side
        except BaseException:
            with interrupts.shield():
                if first:
                    _deactivate(host, side)
                host.instances[side].stop()
            raise


def _deactivate(host: Host, side: Side) -> None:
    """Undo what ``activate_first`` may have done, as far as that is possible: the cause is told."""
    with contextlib.suppress(HotswapError):
        if host.recorded_active() is side:
            host.forget_active()
    with contextlib.suppress(HotswapError):
        _clear_uplink(host, side)


def restore(host: Host) -> Active | None:
    """After a boot: start what was active before it, of the release it had, and return what was started.

    Nothing is done where an instance is active already, or none was. The caller holds the lock. Raises ReleaseError,
    SwitchError, StateUnknown.
    """
    last = host.last_active()
    if last is None or host.recorded_active() is not None:
        return None
    start_instance(host, last.side, host.releases.get(last.release))
    return last


def activate_first(host: Host, side: Side) -> bool:
    """Make a programmed instance the active one if no side is. Returns whether it did. A state directory that cannot be
    written, which is for the next boot, keeps no VM from being served."""
    if host.recorded_active() is not None:
        return False
    host.uplink.steer(side)
    if lag := host.record_now(side):
        log.warning("%s", lag)
    return True
