"""Watch the VMs on the new instance before the old one is given up.

A fault of one VM is judged by itself, and only after a while: its guest may restart, or its QEMU may reconnect, at any
time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.errors import BrokerError, StateUnknown, SwitchError
from ovs_hotswap.host import rings
from ovs_hotswap.host.pmd_progress import comes_round
from ovs_hotswap.host.rings import Patience, Place, RingSample
from ovs_hotswap.host.standby import park_each
from ovs_hotswap.plan.executor import Step, StepContext
from ovs_hotswap.upgrade import baseline, checks, collect, uplink_proof
from ovs_hotswap.upgrade.move_vms import SERVED_S, tell_apart
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.waiting import Deadline, wait_until
from ovs_hotswap.wording import some

_SAMPLE_S = 0.2
_SETTLE_S = 5.0  # for one VM whose QEMU or whose switch has just reconnected
# For all such VMs, or their rings, one after the other: guests can cause faults in turn, without an end.
_STRAYS_S = 3 * _SETTLE_S
_RINGS_S = 3 * SERVED_S


class Soak(Step[Upgrade]):
    name = "soak"
    description = "watch the VMs on the new instance"

    def do(self, context: Upgrade, run: StepContext) -> None:
        host, traffic = context.host, uplink_proof.Traffic.of(context, run)

        def waits_for_traffic() -> bool:
            traffic.look()
            return traffic.waiting

        watch_vms(context, run, waits_for_traffic)
        uplink_proof.tell(run, traffic.findings())
        uplink_proof.see_silence(host)
        see_ready(context)


def watch_vms(context: Upgrade, run: StepContext, waits: Callable[[], bool] = lambda: False) -> None:
    """Watch the VMs for as long as configured, and as long as ``waits``, which is asked at each look. Raises
    SwitchError if the new instance does not serve one."""
    host = context.host
    end = host.system.monotonic() + host.config.upgrade.soak_s
    patience, strays = Patience(_rings(context), SERVED_S, baseline.known(run)), Strays(context, run)
    while True:
        host.system.sleep(min(_SAMPLE_S, max(0.0, end - host.system.monotonic())) or _SAMPLE_S)
        strays.look()
        if overdue := strays.overdue:
            raise SwitchError(_text(context, overdue), hint=context.without(overdue))
        unserved = patience.look(host.system.monotonic(), _rings(context))
        if unserved:
            judge(context, run, unserved)
            patience.forgo(unserved)
        waiting_on = waits()
        left = end - host.system.monotonic()
        run.progress(f"{max(0.0, left):.0f} s left")
        if left <= -_RINGS_S:
            _let_be(run, patience)
        if left <= -_STRAYS_S and (waiting := strays.waiting):
            raise SwitchError(_text(context, waiting), hint=context.without(waiting))
        if left <= 0 and not patience.waiting and not strays.waiting:
            if not waiting_on:
                return
            # A VM that restarts while this waits has as long as one at the end of the soak.
            end = host.system.monotonic()
            run.progress("wait until packets are seen to pass the uplink")


def see_ready(context: Upgrade) -> None:
    """Check the new instance at the last moment at which the upgrade can go back. Raises SwitchError, HostError."""
    goes_on = checks.polling(context.new, comes_round(context.host, context.new))
    answers = context.host.instances[context.new].status().dpdk_initialized is not None
    checks.verdict([*goes_on, *checks.database(context.new, answers)], SwitchError)
    context.rehearse_record(context.look())


def _rings(context: Upgrade) -> list[RingSample]:
    return [sample for sample in collect.ring_samples(context.host) if sample.vm not in context.leave_out]


def judge(context: Upgrade, run: StepContext, unserved: dict[Place, str]) -> None:
    """Judge rings from which the new instance has taken nothing for a while. Raises SwitchError if the instance is at
    fault."""
    host, new = context.host, context.new
    checks.verdict(checks.polling(new, comes_round(host, new)), SwitchError)
    if not context.dead(context.old):
        tell_apart(host, new, run, unserved)
        return
    _name(run, unserved)


def _let_be(run: StepContext, patience: Patience) -> None:
    """Stop waiting for the rings that look unserved now: warn about them, and do not judge them."""
    unserved = patience.waiting
    _name(run, unserved)
    patience.forgo(unserved)


def _name(run: StepContext, unserved: dict[Place, str]) -> None:
    for place, why in unserved.items():
        run.warn(rings.text(place, why))
    baseline.remember(run, unserved)


class Strays:
    """The VMs that have a guest and that the new instance does not serve. If the old instance serves one, it is
    moved."""

    def __init__(self, context: Upgrade, run: StepContext) -> None:
        self._context, self._run = context, run
        self._since: dict[str, float] = {}
        self._why: dict[str, str] = {}
        self._fled: set[str] = set()

    @property
    def waiting(self) -> dict[str, str]:
        """The strays, each with the reason as far as it is known."""
        return {name: self._why.get(name, "") for name in self._since}

    @property
    def overdue(self) -> dict[str, str]:
        """The strays that have been strays for too long, each with the reason."""
        now = self._context.host.system.monotonic()
        return {name: why for name, why in self.waiting.items() if now - self._since[name] >= _SETTLE_S}

    def look(self) -> None:
        """Look for strays, and move those that the old instance serves. Raises SwitchError if the new instance is
        broken, or has lost a VM a second time."""
        context = self._context
        if down := context.look().new_down:
            raise SwitchError(down, hint="its log is kept in the state directory")
        vms = context.vms()
        for vm in vms if not context.dead(context.old) else []:
            if vm.served_by(context.old):
                self._take_in(vm, came=vm.newcomer(context.old))
        now = context.host.system.monotonic()
        vms = context.vms()
        self._since = {vm.name: self._since.get(vm.name, now) for vm in vms if vm.astray(context.new)}

    def _take_in(self, vm: VmStatus, *, came: bool) -> None:
        """Move a VM to the new instance. ``came``: the VM was started after the others were moved; otherwise it was
        moved before, and has lost its connection to the new instance."""
        name, host, new = vm.name, self._context.host, self._context.new
        if not came and name not in self._since:
            lost = f"VM {name} went back to instance {self._context.old}: {vm.last_error}"
            if name in self._fled:
                raise SwitchError(f"{lost}; and it had been moved again", hint=self._context.without([name]))
            self._fled.add(name)
            self._run.warn(f"{lost}; it is moved again")
        try:
            why = park_each(host, new, [vm]).get(name)
            if why is None:
                host.backends.move(name, new)
        except (BrokerError, StateUnknown) as error:
            why = error.message
        if why is not None:
            self._why[name] = baseline.why_not(host.backends.vm(name), new) or why


def _text(context: Upgrade, strays: dict[str, str]) -> str:
    return some([f"instance {context.new} does not serve VM {name}{f': {why}' if why else ''}"
                 for name, why in strays.items()], "; ")  # fmt: skip


def see_served(context: Upgrade, run: StepContext) -> None:
    """Check that the new instance serves the VMs. A VM that is not served may be restarting, so this waits a while for
    it and then warns. Raises SwitchError if the instance is broken or serves no VM, or if the old instance still owns
    one."""
    host, strays = context.host, Strays(context, run)
    deadline = Deadline.after(_STRAYS_S, host.system)
    while True:
        strays.look()
        late = strays.waiting if deadline.passed else strays.overdue
        if late or not strays.waiting:
            break
        host.system.sleep(_SAMPLE_S)
    vms = [vm for vm in context.vms() if vm.has_guest]
    missed = [vm for vm in vms if vm.name in late and vm.astray(context.new)]
    if not missed:
        return
    text = _text(context, {vm.name: late[vm.name] for vm in missed})
    if len(missed) == len(vms) or any(vm.owner == context.old for vm in missed):
        raise SwitchError(text)
    run.warn(text)


def take_left_out(context: Upgrade, run: StepContext) -> None:
    """Give the VMs that were left out to the new instance, now that the old one has ended. For these VMs this is like a
    restart of the switch. A VM that the new instance cannot serve is reported as a warning."""
    if not context.leave_out:
        return
    host, new = context.host, context.new
    host.backends.reload()  # the VMs belong to the active side
    held = {vm.name for vm in host.backends.vms(read=False) if vm.quarantine}
    names = context.leave_out - held

    def dark() -> list[str]:
        return [vm.name for vm in host.backends.vms(read=False) if vm.name in names and vm.astray(context.new)]

    for name in wait_until(dark, _SETTLE_S, host.system, done=operator.not_, poll_s=_SAMPLE_S):
        why = baseline.why_not(host.backends.vm(name), new)
        run.warn(f"VM {name} was left out and has no network: {why or f'instance {new} does not serve it'}")
    for name in sorted(names - set(dark())):
        run.warn(f"VM {name} was left out: it was without network until instance {context.old} had ended")
    for name in sorted(context.leave_out & held):
        run.warn(f"VM {name} was left out and has no network: it is in quarantine")
