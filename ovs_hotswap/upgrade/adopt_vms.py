"""Take over the VMs that the old instance serves without a broker, in an upgrade of a host that others program."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from ovs_hotswap.adopt.log_settings import LogSettings, log_as_before, log_everything
from ovs_hotswap.adopt.snapshot import Snapshot
from ovs_hotswap.backends import VmStatus
from ovs_hotswap.broker.adopting import adopt, cancel, prepare
from ovs_hotswap.errors import BrokerError, HotswapError, NotServed, SwitchError, TryAgain
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.standby import await_polled, enabled_pairs
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.switch.answering import see_going
from ovs_hotswap.upgrade.move_vms import deliver
from ovs_hotswap.upgrade.situation import Upgrade

_POLLED_S = 20.0
_PAUSE_S = 0.2
_ROW = 64  # VMs that are prepared together: the broker undoes what is not used within minutes


def unadopted(host: Host) -> list[VmStatus]:
    """The VMs that a switch serves without the broker. Raises BrokerError."""
    return [vm for vm in host.backends.vms(read=False) if vm.without_broker]


def _await_received(host: Host, side: Side, names: Collection[str]) -> list[str]:
    """Wait until the instance receives from VMs that are parked on it, and return those from which it does not. A guest
    may use fewer queue pairs than its QEMU offers, as one with fewer cores does, and those it does not use are never
    polled."""
    pairs = {vm.name: enabled_pairs(vm) for vm in host.backends.vms(read=False) if vm.name in names}
    late = await_polled(host, side, pairs)
    if len(late) < len(pairs):
        host.await_devices(side, _POLLED_S)
    return late


def _see_received(host: Host, side: Side, name: str) -> None:
    """Return when the instance receives from a VM that is parked on it. Raises SwitchError."""
    if _await_received(host, side, [name]):
        raise SwitchError(f"instance {side} does not poll the queues of VM {name}")


def adopt_vms(context: Upgrade, run: StepContext, without: Collection[str] = ()) -> None:
    """Take over each VM but those ``without``, one after the other, to the new instance. A VM that was taken over has
    the new instance as its owner. One that ends, or gets another QEMU, before its turn comes to the broker by itself;
    one that boots is waited for. Raises SwitchError if one cannot be taken over; it is served as before then.

    An instance that is given the rings of a VM distributes all queues among its threads again, which stop for that. So
    many VMs are prepared before the first of them is moved."""
    host, paths = context.host, context.host.instances[context.old].paths
    vms = [name for name in _waiting(context) if name not in without]
    if not vms:
        return
    before = log_everything(paths, vms, host.system)
    run.remember(log_level=before.level)
    count = _Count(len(vms))
    end = host.system.monotonic() + host.config.upgrade.ready_s
    try:
        while vms:
            late = host.system.monotonic() >= end
            later = []
            for begin in range(0, len(vms), _ROW):
                later += _adopt_row(context, run, vms[begin : begin + _ROW], count, late=late)
            vms = later
            if vms:
                host.system.sleep(_PAUSE_S)
    finally:
        log_as_before(paths, before)


@dataclass
class _Count:
    """How many VMs of the ``total`` were taken over."""

    total: int
    done: int = 0


def _adopt_row(context: Upgrade, run: StepContext, names: Sequence[str], count: _Count, *, late: bool) -> list[str]:
    """Prepare VMs, and then take them over. Returns those that no switch serves at the moment, unless it is ``late``,
    in which case SwitchError is raised."""
    host, prepared, later = context.host, dict[str, Snapshot](), []
    with contextlib.ExitStack() as stack:
        for name in names:
            if (snapshot := _prepare(context, name)) is not None:
                stack.callback(cancel, host.broker, name)
                prepared[name] = snapshot
        for name in _await_received(host, context.new, prepared):  # it has ended, or is prepared again by itself
            del prepared[name]
        for name in names:
            if name not in _waiting(context):
                continue
            try:
                stopped_ms = _adopt(context, run, name, prepared.get(name))
            except NotServed as error:
                if late:
                    raise _refused(context, name, error) from error
                later.append(name)
                continue
            count.done += 1
            run.progress(f"QEMU stood still for {stopped_ms:.1f} ms", item=name, count=count.done, total=count.total)
    return later


def _prepare(context: Upgrade, name: str) -> Snapshot | None:
    """Prepare one VM. Returns nothing for one that has to be looked at again when its turn comes."""
    host = context.host
    see_going(host.instances[context.new])  # the broker would wait for seconds for one that has died
    try:
        return prepare(host.broker, name, host.instances[context.old].paths, context.new, host.system)
    except (TryAgain, NotServed):
        return None
    except HotswapError as error:
        raise _refused(context, name, error) from error


def _waiting(context: Upgrade) -> list[str]:
    """The VMs to be taken over, as of now."""
    return [vm.name for vm in unadopted(context.host) if vm.name not in context.leave_out]


def clean_up_after(context: Upgrade, run: StepContext) -> None:
    """Put the old instance's log back as it was before ``adopt_vms``, which may have been killed, and undo what it has
    prepared."""
    level = run.facts.get("log_level")
    if isinstance(level, str) and context.runs(context.old):
        log_as_before(context.host.instances[context.old].paths, LogSettings(level))
    with contextlib.suppress(BrokerError):
        for vm in unadopted(context.host):
            cancel(context.host.broker, vm.name)


def _adopt(context: Upgrade, run: StepContext, name: str, prepared: Snapshot | None) -> float:
    """Take one VM over, and return for how many milliseconds its QEMU stood still. Raises NotServed, SwitchError."""
    host, new, paths = context.host, context.new, context.host.instances[context.old].paths
    see_going(host.instances[new])
    ready = partial(_see_received, host, new, name)
    try:
        done = adopt(host.broker, name, paths, new, host.system, ready=ready, prepared=prepared)
    except NotServed:
        raise
    except HotswapError as error:
        if name not in _waiting(context):
            raise NotServed(error.message) from error  # its guest has ended in the meantime, or comes by itself
        raise _refused(context, name, error) from error
    deliver(host, new, [name], run)
    stopped = done.stopped_s * 1e3
    run.remember_entries("stopped_ms", {name: stopped})
    return stopped


def _refused(context: Upgrade, name: str, error: HotswapError) -> SwitchError:
    return SwitchError(f"VM {name} cannot be taken over: {error.message}", hint=error.hint or context.without([name]))
