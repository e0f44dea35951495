"""How the operator, and a boot, start and stop instances, also beside a watchdog. The caller holds the lock."""

from __future__ import annotations

import contextlib
import logging

from ovs_hotswap.config import Active, Program
from ovs_hotswap.errors import BusyError, HotswapError, SwitchError
from ovs_hotswap.host import flow_log, kept_flows, settings_transfer, standby
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.scheduling import in_background
from ovs_hotswap.model import Release, Side
from ovs_hotswap.plan.interrupts import Interrupts
from ovs_hotswap.uplink.base import steer_to_started
from ovs_hotswap.wording import some

log = logging.getLogger(__name__)

_KEEP_S = 1.0


def stop_for_good(host: Host, side: Side) -> None:
    """Stop an instance on purpose. Before the active instance ends, the record says that no side is active: otherwise a
    watchdog would take its end for a death. A watchdog that is in the middle of a failover may have steered the uplink
    to the other side already; then the uplink stays there. The caller holds the lock."""
    was_active = host.recorded_active() is side
    if was_active:
        with contextlib.suppress(HotswapError):  # it is dead or hangs; then the settings that were kept before stay
            settings_transfer.keep(host, side, _KEEP_S)
        host.forget_active()
    flow_log.flush(host, side)
    try:
        host.instances[side].stop()
    except BaseException:
        if was_active and host.instances[side].pid() is not None and host.recorded_active() is None:
            host.record_active(side)
        raise
    if was_active:
        _clear_uplink(host, side)
    elif host.recorded_active() is None:  # an earlier attempt may have stopped here, or a boot ended the instance
        with contextlib.suppress(HotswapError):
            last = host.last_active()
            if last is not None and last.side is side:
                host.forget_active()
            _clear_uplink(host, side)


def _clear_uplink(host: Host, side: Side) -> None:
    if host.uplink.owner() is side:
        host.uplink.clear()


def start_instance(host: Host, side: Side, release: Release) -> bool:
    """Start an instance and program it. If this fails, or a signal asks for an end, all of it is undone. The first
    instance of a host becomes the active one and gets the settings that the operator had made on the last active one.
    Returns whether the instance is active. The caller holds the lock."""
    if host.config.program is Program.CLONE:
        return _start_again(host, side, release)
    _ = host.intent  # a fault in it is reported before anything is changed
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


def _start_again(host: Host, side: Side, release: Release) -> bool:
    """Start the active instance of a host that others program again, with its own database.
    Raises SwitchError for another instance: the distribution starts its own, and an upgrade the new one."""
    active = host.recorded_active()
    if active is None:
        raise SwitchError(
            'others program this host (program = "clone"), and no instance of ovs-hotswap is active',
            hint=f"`systemctl start {host.config.stock.unit}` starts the distribution's switch",
        )
    if active is not side:
        raise SwitchError(f"instance {active} is active: an upgrade starts instance {side}",
                          hint="`ovs-hotswap upgrade --release NAME`")  # fmt: skip
    with Interrupts():
        for text in start_with_flows(host, side, release):
            log.warning("%s", text)
    return True


def start_with_flows(host: Host, side: Side, release: Release) -> list[str]:
    """Start the active instance of a host that others program again, with its database and its flows. What programs
    bridges by their sockets, as ovn-controller does, finds them when the flows are back. Returns what it did not get
    back, in words. If this fails, it is undone. The caller holds the lock. Raises SwitchError, HostError."""
    kept_flows.drop_others(host, side)
    host.cloning.well_known.hide_bridges()
    host.instances[side].start(release)
    try:
        return kept_flows.go_on(host, side)
    except BaseException:
        host.instances[side].stop(keep_log=True)
        raise


def adopt(host: Host, side: Side) -> bool:
    """Make an instance that runs the active one if no side is recorded as active, as after the loss of the record.
    Returns whether it did so. The instance keeps its VMs and their traffic; if it was the warm standby, it gets the
    operator's settings back. The caller holds the lock.

    Raises BrokerError if it is not known which instance serves the VMs, BusyError if the other one serves some.
    """
    if host.recorded_active() is not None or not host.running(side):
        return False
    owned = [vm.name for vm in host.backends.vms(read=False) if vm.owner == side.other]
    if owned:
        raise BusyError(
            f"instance {side} does not become the active one: instance {side.other} owns the rings of VM {some(owned)}",
            hint=f"`ovs-hotswap instance start {side.other}`",
        )
    standby.settle(host, side)
    return activate_first(host, side, started=False)


def _deactivate(host: Host, side: Side) -> None:
    """Undo what ``activate_first`` may have done, as far as that is possible. Never raises: the caller reports the
    cause."""
    with contextlib.suppress(HotswapError):
        if host.recorded_active() is side:
            host.forget_active()
    with contextlib.suppress(HotswapError):
        _clear_uplink(host, side)


def restore(host: Host) -> Active | None:
    """Start the side that was active before a boot, with the release that it had, and return the two.

    If an instance is active already, or none was, nothing is done and ``None`` is returned. The caller holds the lock.
    Raises ReleaseError, SwitchError, StateUnknown.
    """
    last = host.last_active()
    if last is None or host.recorded_active() is not None:
        return None
    start_instance(host, last.side, host.releases.get(last.release))
    return last


def activate_first(host: Host, side: Side, *, started: bool = True) -> bool:
    """Make a programmed instance the active one if no side is active. Returns whether it did so. If the state directory
    cannot be written, only the next boot is affected, so a warning is logged and the VMs are served. ``started``: the
    instance has just been started; otherwise it may have the traffic, from which nothing is to be taken."""
    if host.recorded_active() is not None:
        return False
    if started:
        steer_to_started(host.uplink, side)
    else:
        host.uplink.steer(side)
    if lag := host.record_now(side):
        log.warning("%s", lag)
    return True
