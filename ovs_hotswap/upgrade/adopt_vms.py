"""Take over the VMs that the old instance serves without a broker, in an upgrade of a host that others program."""

from __future__ import annotations

from functools import partial

from ovs_hotswap.adopt.log_settings import LogSettings, log_as_before, log_everything
from ovs_hotswap.backends import VmStatus
from ovs_hotswap.broker.adopting import adopt
from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.standby import await_polled
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.upgrade.move_vms import deliver
from ovs_hotswap.upgrade.situation import Upgrade

_POLLED_S = 20.0


def unadopted(host: Host) -> list[VmStatus]:
    """The VMs that a switch serves without the broker. Raises BrokerError."""
    return [vm for vm in host.backends.vms(read=False) if vm.without_broker]


def _await_received(host: Host, side: Side, name: str, queues: int) -> None:
    if await_polled(host, side, {name: queues}):
        raise SwitchError(f"instance {side} does not poll the queues of VM {name}")
    host.await_devices(side, _POLLED_S)


def adopt_vms(context: Upgrade, run: StepContext) -> None:
    """Take over each VM, one after the other, to the new instance. A VM that was taken over has the new instance as its
    owner. Raises SwitchError if one cannot be taken over; it is served as before then."""
    host, paths = context.host, context.host.instances[context.old].paths
    vms = [vm.name for vm in unadopted(host) if vm.name not in context.leave_out]
    if not vms:
        return
    before = log_everything(paths, vms, host.system)
    run.remember(log_level=before.level)
    try:
        for number, name in enumerate(vms, 1):
            stopped_ms = _adopt(context, run, name)
            run.progress(f"QEMU stood still for {stopped_ms:.1f} ms", item=name, count=number, total=len(vms))
    finally:
        log_as_before(paths, before)


def log_again_as_before(context: Upgrade, run: StepContext) -> None:
    """Put the old instance's log back as it was before ``adopt_vms``, which may have been killed."""
    level = run.facts.get("log_level")
    if isinstance(level, str) and context.runs(context.old):
        log_as_before(context.host.instances[context.old].paths, LogSettings(level))


def _adopt(context: Upgrade, run: StepContext, name: str) -> float:
    """Take one VM over, and return for how many milliseconds its QEMU stood still."""
    host, new, paths = context.host, context.new, context.host.instances[context.old].paths
    port = host.port_of(name)
    ready = partial(_await_received, host, new, name, 1 if port is None else port.queues)
    try:
        done = adopt(host.broker, name, paths, new, host.system, ready=ready)
    except HotswapError as error:
        hint = error.hint or context.without([name])
        raise SwitchError(f"VM {name} cannot be taken over: {error.message}", hint=hint) from error
    deliver(host, new, [name], run)
    stopped, earlier = done.stopped_s * 1e3, run.facts.get("stopped_ms")
    run.remember(stopped_ms={**(earlier if isinstance(earlier, dict) else {}), name: stopped})
    return stopped
