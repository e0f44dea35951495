"""Take over the VMs that the old instance serves without a broker, in an upgrade of a host that others program."""

from __future__ import annotations

from functools import partial

from ovs_hotswap.adopt.log_settings import LogSettings, log_as_before, log_everything
from ovs_hotswap.backends import VmStatus
from ovs_hotswap.broker.adopting import adopt
from ovs_hotswap.errors import HotswapError, NotServed, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.standby import await_polled, enabled_pairs
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.upgrade.move_vms import deliver
from ovs_hotswap.upgrade.situation import Upgrade

_POLLED_S = 20.0
_PAUSE_S = 0.2


def unadopted(host: Host) -> list[VmStatus]:
    """The VMs that a switch serves without the broker. Raises BrokerError."""
    return [vm for vm in host.backends.vms(read=False) if vm.without_broker]


def _await_received(host: Host, side: Side, name: str) -> None:
    """Return when the instance receives from a VM that is parked on it. A guest may use fewer queue pairs than its QEMU
    offers, as one with fewer cores does, and those it does not use are never polled."""
    if await_polled(host, side, {name: enabled_pairs(host.backends.vm(name))}):
        raise SwitchError(f"instance {side} does not poll the queues of VM {name}")
    host.await_devices(side, _POLLED_S)


def adopt_vms(context: Upgrade, run: StepContext) -> None:
    """Take over each VM, one after the other, to the new instance. A VM that was taken over has the new instance as its
    owner. One that ends, or gets another QEMU, before its turn comes to the broker by itself; one that boots is waited
    for. Raises SwitchError if one cannot be taken over; it is served as before then."""
    host, paths = context.host, context.host.instances[context.old].paths
    vms = _waiting(context)
    if not vms:
        return
    before = log_everything(paths, vms, host.system)
    run.remember(log_level=before.level)
    count, total = 0, len(vms)
    end = host.system.monotonic() + host.config.upgrade.ready_s
    try:
        while vms:
            later = []
            for name in vms:
                if name not in _waiting(context):
                    continue
                try:
                    stopped_ms = _adopt(context, run, name)
                except NotServed as error:
                    if host.system.monotonic() >= end:
                        raise _refused(context, name, error) from error
                    later.append(name)
                    continue
                count += 1
                run.progress(f"QEMU stood still for {stopped_ms:.1f} ms", item=name, count=count, total=total)
            vms = later
            if vms:
                host.system.sleep(_PAUSE_S)
    finally:
        log_as_before(paths, before)


def _waiting(context: Upgrade) -> list[str]:
    """The VMs to be taken over, as of now."""
    return [vm.name for vm in unadopted(context.host) if vm.name not in context.leave_out]


def log_again_as_before(context: Upgrade, run: StepContext) -> None:
    """Put the old instance's log back as it was before ``adopt_vms``, which may have been killed."""
    level = run.facts.get("log_level")
    if isinstance(level, str) and context.runs(context.old):
        log_as_before(context.host.instances[context.old].paths, LogSettings(level))


def _adopt(context: Upgrade, run: StepContext, name: str) -> float:
    """Take one VM over, and return for how many milliseconds its QEMU stood still. Raises NotServed, SwitchError."""
    host, new, paths = context.host, context.new, context.host.instances[context.old].paths
    ready = partial(_await_received, host, new, name)
    try:
        done = adopt(host.broker, name, paths, new, host.system, ready=ready)
    except NotServed:
        raise
    except HotswapError as error:
        raise _refused(context, name, error) from error
    deliver(host, new, [name], run)
    stopped, earlier = done.stopped_s * 1e3, run.facts.get("stopped_ms")
    run.remember(stopped_ms={**(earlier if isinstance(earlier, dict) else {}), name: stopped})
    return stopped


def _refused(context: Upgrade, name: str, error: HotswapError) -> SwitchError:
    return SwitchError(f"VM {name} cannot be taken over: {error.message}", hint=error.hint or context.without([name]))
