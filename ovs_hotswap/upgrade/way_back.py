"""The way back of an upgrade: the old instance serves the VMs again. No guest can keep the way back from ending."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Collection

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.errors import BrokerError, HotswapError, StateUnknown, SwitchError
from ovs_hotswap.model import Life
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.reports.compose import MOVED_BACK
from ovs_hotswap.upgrade import baseline
from ovs_hotswap.upgrade.move_vms import move_all
from ovs_hotswap.upgrade.outlook import Outlook
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.waiting import POLL_S, Deadline, wait_until
from ovs_hotswap.wording import some

_CONFIRM_S = 1.0  # a switch that is slow and does not hang has confirmed by then
_RETURNED_S = 5.0  # until the VMs of an instance that was ended are served by the other


def return_vms(context: Upgrade, run: StepContext) -> None:
    """Do what ``take_back`` does, unless neither instance is left, or the old one died and the VMs went to the new one.
    Raises what ``take_back`` raises."""
    now = context.look()
    if now.outlook is not Outlook.NONE and not context.fled(now):
        take_back(context, run)


def take_back(context: Upgrade, run: StepContext) -> None:
    """Have the old instance serve every VM again that is not in quarantine. If the new instance keeps some, it is ended
    now and not later, which gives them to the old one. A single VM that is not served then is a warning. Raises
    BrokerError, StateUnknown or SwitchError if the old instance cannot serve VMs."""
    host, old, new = context.host, context.old, context.new
    now = context.look_after_waiting()
    if now.old_lost:
        return  # the VMs went to the new one
    if now.new_down:
        host.instances[new].kill()  # otherwise every VM would have to wait for a deadline
    _patiently(context, run, "has no port for", lambda vm: vm.switches[old].connected)
    try:
        move_back(context, run)
    except (BrokerError, StateUnknown) as error:
        now = context.look_after_waiting()
        if now.old_lost:
            return  # it died during the moves, and the VMs went to the new one
        if not now.new_down:
            if not (_hangs(context) or _old_answers(context)):
                raise
            run.progress(f"{error.message}; instance {new} is ended")
            host.instances[new].kill()
        _bring_home(context)
        _patiently(context, run, "does not serve", lambda vm: vm.confirmed_on(old))


def move_back(context: Upgrade, run: StepContext, without: Collection[str] = ()) -> None:
    """Move the VMs but those ``without`` to the old instance, and record how long each move took. Raises what
    ``move_all`` raises."""
    run.remember_entries(MOVED_BACK, move_all(context.host, context.old, run, back=True, without=without))


def _hangs(context: Upgrade) -> bool:
    """Whether there is a VM for which the new instance has not confirmed for a while that it has taken or released the
    rings."""
    host, new = context.host, context.new

    def unconfirmed() -> bool:
        return any(vm.owner == new and not vm.confirmed_on(new) for vm in host.backends.vms(read=False))

    return wait_until(unconfirmed, _CONFIRM_S, host.system, done=operator.not_)


def _old_answers(context: Upgrade) -> bool:
    """Whether the VMs themselves are why they cannot be moved back: the old instance serves other VMs, or answers for
    one of these."""
    vms = context.host.backends.vms(read=False)
    served = any(vm.served_by(context.old) for vm in vms)
    return served or any(vm.to_serve and _parks(context, vm) for vm in vms)


def _parks(context: Upgrade, vm: VmStatus) -> bool:
    if vm.switches[context.old].connected and baseline.why_not(vm, context.old):
        return True
    try:
        context.host.backends.park(vm.name, context.old)
    except BrokerError:
        return False
    return True


def _bring_home(context: Upgrade) -> None:
    """Give the old instance the VMs that no instance serves, also those that cannot be parked."""
    host = context.host
    names = [vm.name for vm in host.backends.vms(read=False)
             if vm.to_serve and vm.owner != context.old and not baseline.why_not(vm, context.old)]  # fmt: skip
    with contextlib.suppress(BrokerError):
        host.backends.park_many(names, context.old)
    with contextlib.suppress(HotswapError):
        host.backends.reload()


def _patiently(context: Upgrade, run: StepContext, lacks: str, well: Callable[[VmStatus], bool]) -> None:
    """Wait until each VM is ``well``, and warn about those that are not after a while. Raises SwitchError if no VM is
    well or the old instance is broken, because then the instance is at fault."""
    host, old = context.host, context.old
    deadline = Deadline.after(_RETURNED_S, host.system)
    while True:
        vms = [vm for vm in host.backends.vms(read=False) if vm.to_serve]
        amiss = [vm for vm in vms if not well(vm)]
        if not amiss:
            return
        names = some([vm.name for vm in amiss])
        if deadline.passed:
            break
        host.system.sleep(POLL_S)
    if len(amiss) == len(vms) or host.instances[old].life() is not Life.RUNS:
        raise SwitchError(f"instance {old} {lacks} VM {names} after {_RETURNED_S:g} s")
    why = some([f"VM {vm.name}: {vm.last_error}" for vm in amiss if vm.last_error], "; ")
    run.warn(f"instance {old} {lacks} VM {names}{f' ({why})' if why else ''}")
