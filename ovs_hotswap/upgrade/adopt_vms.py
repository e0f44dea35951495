"""Take over the VMs that the old instance serves without a broker, in an upgrade of a host that others program."""

from __future__ import annotations

from functools import partial

from ovs_hotswap.backends import AbsenceCause, VmStatus
from ovs_hotswap.broker.adopting import adopt
from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.standby import await_polled
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.upgrade.situation import Upgrade

_POLLED_S = 20.0


def unadopted(host: Host) -> list[VmStatus]:
    """The VMs that a switch serves without the broker. Raises BrokerError."""
    return [
        vm for vm in host.backends.vms(read=False) if vm.absent is not None and vm.absent.cause is AbsenceCause.DIRECT
    ]


def _await_received(host: Host, side: Side, name: str, queues: int) -> None:
    if await_polled(host, side, {name: queues}):
        raise SwitchError(f"instance {side} does not poll the queues of VM {name}")
    host.await_devices(side, _POLLED_S)


def adopt_vms(context: Upgrade, run: StepContext) -> None:
    """Take over each VM, one after the other, to the new instance. A VM that was taken over has the new instance as its
    owner. Raises SwitchError if one cannot be taken over; it is served as before then."""
    host, new = context.host, context.new
    vms = [vm for vm in unadopted(host) if vm.name not in context.leave_out]
    stops: dict[str, float] = {}
    for number, vm in enumerate(vms, 1):
        port = host.port_of(vm.name)
        queues = 1 if port is None else port.queues
        try:
            done = adopt(host.broker, vm.name, host.instances[context.old].paths, new, host.system,
                         ready=partial(_await_received, host, new, vm.name, queues))  # fmt: skip
        except HotswapError as error:
            raise SwitchError(f"VM {vm.name} cannot be taken over: {error.message}",
                              hint=error.hint or context.without([vm.name])) from error  # fmt: skip
        stops[vm.name] = done.stopped_s * 1e3
        run.progress(f"QEMU stood still for {done.stopped_s * 1e3:.1f} ms", item=vm.name, count=number, total=len(vms))
    earlier = run.facts.get("stopped_ms")
    run.remember(stopped_ms={**(earlier if isinstance(earlier, dict) else {}), **stops})
