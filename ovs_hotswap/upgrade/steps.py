"""The steps of an upgrade, in order. Each is small; what they do to an instance is in ``host``.

Until the step ``retire``, the last but one, the old instance keeps everything it needs to serve every VM: its ports,
flows, tunnels and its parked or owned back ends. If it dies, the new instance takes its VMs; then the upgrade cannot go
back, and the steps skip what they would do to the old instance. If the new instance dies, the old one takes the VMs,
even after the commit; then the upgrade cannot go forward. On an instance that has died there is nothing to undo.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from ovs_hotswap.errors import BrokerError, HotswapError, SwitchError, UplinkError
from ovs_hotswap.host import flow_log, settings_transfer
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.scheduling import in_background, low, make_ready
from ovs_hotswap.host.standby import (
    await_ports,
    park_each,
    read_record,
    release_for_upgrade,
    see_uplink,
    unpark_each,
    usable,
)
from ovs_hotswap.model import Finding, Life, Severity, Side
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.plan.executor import Plan, ReversibleStep, State, Step, StepContext
from ovs_hotswap.plan.records import Facts
from ovs_hotswap.priority import Rank
from ovs_hotswap.reports.compose import kept_checks
from ovs_hotswap.switch.pmd import set_vhost_log_level, vhost_log_level
from ovs_hotswap.switch.settings import as_json, from_json
from ovs_hotswap.upgrade import baseline, checks, collect, peer_link, peer_probe, uplink_proof
from ovs_hotswap.upgrade.move_vms import move_all
from ovs_hotswap.upgrade.outlook import Outlook
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.soak import Soak, see_served, take_left_out
from ovs_hotswap.upgrade.way_back import return_vms
from ovs_hotswap.wording import some

_SAMPLE_S = 0.2


def restore_priority(host: Host, old: Side) -> list[Finding]:
    """Give the old instance normal priority, and return a finding that says what had low priority. Raises SwitchError
    if it does not get normal priority."""
    if not (found := low(host, old)):
        return []
    make_ready(host, old)
    return checks.priority(old, found)


class Precheck(Step[Upgrade]):
    name = "precheck"
    description = "look for reasons not to start"

    def do(self, context: Upgrade, run: StepContext) -> None:
        uplink_proof.begin(context, run)
        for finding in restore_priority(context.host, context.old):
            run.progress(f"{finding.check}: {finding.text}")
        found = collect.precheck(context.host, context.old, context.new, context.release, context.leave_out)
        run.remember(prechecks=kept_checks(found))
        for finding in checks.verdict(found):
            if finding.severity is Severity.WARNING:
                run.progress(f"{finding.check}: {finding.text}")

    def state(self, context: Upgrade, run: StepContext) -> State:
        return State.DONE


class StartStandby(ReversibleStep[Upgrade]):
    name = "start-standby"
    description = "start the standby instance"
    look_at = "`ovs-hotswap instance list`"

    def facts(self, context: Upgrade, run: StepContext) -> Facts:
        return {"was_running": usable(context.host, context.new, context.host.releases.get(context.release))}

    def do(self, context: Upgrade, run: StepContext) -> None:
        wanted = context.host.releases.get(context.release)
        if not release_for_upgrade(context.host, context.old, wanted):
            with in_background(context.host, context.new):
                context.host.instances[context.new].start(wanted)

    def undo(self, context: Upgrade, run: StepContext) -> None:
        if context.fled(context.look()):
            _record_at_least_now(context, run, context.new)
            run.progress(f"instance {context.old} died: instance {context.new} serves its VMs and stays")
        elif not run.fact("was_running", bool) or context.host.instances[context.new].lacks_database():
            _flush(context, run, context.new)
            context.host.instances[context.new].stop(keep_log=True)

    def state(self, context: Upgrade, run: StepContext) -> State:
        return _done(context.runs(context.new))


class ProgramDatabase(Step[Upgrade]):
    name = "database"
    description = "program the standby's bridge and ports, carry the operator's settings over"

    def do(self, context: Upgrade, run: StepContext) -> None:
        with in_background(context.host, context.new):
            context.host.set_pmd_sleep(context.new, context.host.config.upgrade.pmd_sleep_us)
            context.host.program_database(context.new)
        if not context.look().old_lost:
            _carry_settings(context, run)

    def state(self, context: Upgrade, run: StepContext) -> State:
        """Whether every port is there, and what comes after them. The step is not simply repeated, because it would
        remove the peer link."""
        host, side = context.host, context.new
        with host.instances[side].database() as database:
            present = {name for name, status in database.interfaces().items() if (status.ofport or 0) > 0}
        every = present >= {port.name for port in host.bridge_spec(side).ports}
        return _done(every and not flow_log.lacking(host, side))


def _carry_settings(context: Upgrade, run: StepContext) -> None:
    change = settings_transfer.bring(context.host, context.old, context.new)
    run.remember(settings=as_json(change.carried))


class Ports(Step[Upgrade]):
    name = "ports"
    description = "wait for the standby's ports and its connections to the VMs"

    def do(self, context: Upgrade, run: StepContext) -> None:
        host, side = context.host, context.new
        await_ports(host, side, without=context.leave_out)
        lacking = {vm.name: vm.switches[side].missing for vm in context.vms()}
        lacking = {name: bits for name, bits in lacking.items() if bits}
        if lacking:
            faults = some([f"VM {name} uses {', '.join(bits)}" for name, bits in lacking.items()], "; ")
            raise SwitchError(
                f"{faults}, which release {context.release} does not offer",
                hint="upgrade to a release that offers it, or restart the VM with the feature off; "
                + context.without(lacking),
            )


class OpenWindow(ReversibleStep[Upgrade]):
    """While two instances live, idle PMD threads sleep, the vhost log is lowered, and the threads that serve vhost-user
    messages are preferred. Two busy PMD threads on one core alternate in slices of milliseconds, and the message thread
    would wait for a core among them and write several log lines for each message. The undo restores all of this."""

    name = "open-window"
    description = "let idle PMD threads sleep, lower the vhost log, prefer the threads that matter"

    def facts(self, context: Upgrade, run: StepContext) -> Facts:
        host, now = context.host, context.look()
        model = now.living[-1]
        return {
            "pmd_sleep_us": host.pmd_sleep(model),
            "own_pmd_sleep_us": None if now.old_lost else host.own_pmd_sleep(model),
            "log_level": vhost_log_level(host.control(model)),
            **_log_facts(collect.log_end(host, context.new)),
            "scheduling": {str(side): host.scheduling(side) for side in Side},
        }

    def do(self, context: Upgrade, run: StepContext) -> None:
        host = context.host
        for side in context.look().living:
            host.set_pmd_sleep(side, max(host.config.upgrade.pmd_sleep_us, run.fact("pmd_sleep_us", int)))
            set_vhost_log_level(host.control(side), "error")
            host.prefer_threads(side, Rank.GIVES)

    def undo(self, context: Upgrade, run: StepContext) -> None:
        if context.runs(context.old):
            close_window(context.host, context.old, run)


def close_window(host: Host, side: Side, run: StepContext) -> None:
    """Restore the operator's values on ``side``. Raises SwitchError."""
    own = run.facts.get("own_pmd_sleep_us")
    host.settle_pmd_sleep(side, own if isinstance(own, int) else None)
    set_vhost_log_level(host.control(side), run.fact("log_level", str))
    before = run.fact("scheduling", dict)[str(side)]
    if before is not None:
        host.schedule(side, before)


class PeerLink(ReversibleStep[Upgrade]):
    name = "join-peer-link"
    description = "join the two instances by a memif"

    def do(self, context: Upgrade, run: StepContext) -> None:
        if not context.look().old_lost:
            peer_link.join(context.host)

    def undo(self, context: Upgrade, run: StepContext) -> None:
        """Remove both ends of the link. A new instance that will be ended keeps its end: its database may fail."""
        if context.runs(context.old):
            peer_link.part(context.host, context.old)
        fled = context.fled(context.look())
        if not context.runs(context.new) or not (run.fact("was_running", bool) or fled):
            return
        try:
            peer_link.part(context.host, context.new)
        except SwitchError:
            if fled or not context.host.instances[context.new].lacks_database():
                raise


class ProgramTunnels(Step[Upgrade]):
    name = "tunnels"
    description = "program the standby's tunnel address, routes and neighbours"

    def do(self, context: Upgrade, run: StepContext) -> None:
        context.host.program_tunnels(context.new)


class FlowsStandby(Step[Upgrade]):
    name = "flows-standby"
    description = "install the window form of the flow tables on the standby"

    def do(self, context: Upgrade, run: StepContext) -> None:
        context.host.program_flows(context.new, Form.WINDOW)


class FlowsActive(ReversibleStep[Upgrade]):
    """The precheck has seen the final form on the active instance, so the undo installs the final form again."""

    name = "flows-active"
    description = "install the window form of the flow tables on the active instance"
    look_at = "`ovs-hotswap overlay diff --side SIDE`"

    def do(self, context: Upgrade, run: StepContext) -> None:
        if not context.look().old_lost:
            context.host.program_flows(context.old, Form.WINDOW)

    def undo(self, context: Upgrade, run: StepContext) -> None:
        if context.runs(context.old):
            context.host.program_flows(context.old, Form.FINAL)


class Prove(Step[Upgrade]):
    name = "prove"
    description = "send frames through the peer link and the new uplink to prove that they pass"

    def do(self, context: Upgrade, run: StepContext) -> None:
        uplink_proof.prove_new(context, run)
        for sender in () if context.look().old_lost else (context.old, context.new):
            peer_probe.across_peer_link(context.host, sender)


class Park(ReversibleStep[Upgrade]):
    name = "park"
    description = "park every VM on the standby"
    look_at = "`ovs-hotswap vm list`"

    def do(self, context: Upgrade, run: StepContext) -> None:
        host, side = context.host, context.new
        vms = context.vms()

        def parked(number: int, name: str) -> None:
            run.progress("parked", item=name, count=number, total=len(vms))

        refused = park_each(host, side, vms, parked)
        if refused:
            whys = [f"VM {name} cannot be parked on {side}: {baseline.why_not(host.backends.vm(name), side) or why}"
                    for name, why in refused.items()]  # fmt: skip
            raise SwitchError(some(whys, "; "), hint=context.without(refused))

    def undo(self, context: Upgrade, run: StepContext) -> None:
        if context.look().outlook is Outlook.NONE:
            return
        vms = context.host.backends.vms(read=False)
        unpark_each(context.host, context.new, [vm.name for vm in vms if vm.owner != context.new])


class SteerUplink(ReversibleStep[Upgrade]):
    name = "steer"
    description = "steer the uplink to the standby"
    look_at = "the uplink's rules: `ovs-hotswap status`"

    def do(self, context: Upgrade, run: StepContext) -> None:
        uplink_proof.end(context, run)
        now = context.look()
        if now.new_down:  # packets for the VMs would be lost until the steer is undone
            raise SwitchError(now.new_down, hint="its log is kept in the state directory")
        context.rehearse_record(now)
        if not (context.host.config.uplink.both_open or now.old_lost):
            _keep_settings(context.host, context.old, run)  # the new instance's port is made with the uplink's options
        uplink_proof.steer(context, run, context.new)
        uplink_proof.prove_taken(context, run)

    def undo(self, context: Upgrade, run: StepContext) -> None:
        now = context.look()
        if now.outlook is Outlook.NONE:
            return
        if context.fled(now):
            uplink_proof.steer(context, run, context.new)
            return
        try:
            uplink_proof.steer(context, run, context.old)
        except UplinkError as error:
            if context.host.config.uplink.both_open or now.new_life is Life.DEAD:
                raise
            # Every VM is served by the old instance again, and only the end of the new one gives the uplink back.
            run.progress(f"{error.message}; instance {context.new} is ended")
            context.host.instances[context.new].kill()
            uplink_proof.steer(context, run, context.old)


class MoveVms(ReversibleStep[Upgrade]):
    name = "move"
    description = "move each VM to the standby"
    look_at = "`ovs-hotswap vm list`"

    def stay(self, context: Upgrade, run: StepContext) -> Collection[str]:
        """The VMs that are not moved."""
        return context.leave_out

    def do(self, context: Upgrade, run: StepContext) -> None:
        before = baseline.look(context.host)
        baseline.remember(run, before.wedged)
        for finding in checks.rings_before(before.wedged, before.unread):
            if finding.severity is Severity.WARNING:
                run.warn(finding.text)
        try:
            moves = move_all(context.host, context.new, run, first=before.liveliest, without=self.stay(context, run))
        except BrokerError as error:
            raise BrokerError(error.message, hint=error.hint or context.without()) from error
        run.remember_entries("moves", moves)

    def undo(self, context: Upgrade, run: StepContext) -> None:
        return_vms(context, run)


class FinalFlows(Step[Upgrade]):
    name = "flows-final"
    description = "install the final form of the flow tables"

    def do(self, context: Upgrade, run: StepContext) -> None:
        context.host.program_flows(context.new, Form.FINAL)


class RecordActive(ReversibleStep[Upgrade]):
    """The first step after the commit. From here on the watchdog guards the new instance."""

    name = "record-active"
    description = "record which side is active"

    def do(self, context: Upgrade, run: StepContext) -> None:
        _record_at_least_now(context, run, context.new)
        context.host.backends.reload()  # VMs that start from now on belong to the new instance

    def undo(self, context: Upgrade, run: StepContext) -> None:
        if context.look().outlook is not Outlook.NONE:
            _record_at_least_now(context, run, context.old)
            context.host.backends.reload()


def _record_at_least_now(context: Upgrade, run: StepContext, side: Side) -> None:
    """Record the active side, and only warn if it cannot be recorded for the next boot: neither a committed upgrade nor
    a rollback stops because the state directory cannot be written. The watchdog repeats the record later."""
    if lag := context.host.record_now(side):
        run.warn(lag)


def _keep_settings(host: Host, side: Side, run: StepContext) -> None:
    try:
        settings_transfer.keep(host, side)
    except HotswapError as error:
        run.warn(f"settings of instance {side} are not recorded for the next boot: {error.message}")


class CloseWindow(Step[Upgrade]):
    name = "close-window"
    description = "remove the peer link, restore PMD sleep and log level"

    def do(self, context: Upgrade, run: StepContext) -> None:
        host = context.host
        if context.runs(context.old):
            try:
                _carry_settings(context, run)  # for settings that were made during the upgrade
            except SwitchError as error:
                run.warn(f"settings of instance {context.old} were not looked at again: {error.message}")
            see_uplink(host, context.new)  # it may have refused them
        _keep_settings(host, context.new, run)
        peer_link.part(host, context.new)
        close_window(host, context.new, run)
        if context.keep_old and context.runs(context.old):
            host.program_flows(context.old, Form.FINAL)
            peer_link.part(host, context.old)
            close_window(host, context.old, run)


class Retire(Step[Upgrade]):
    name = "retire"
    description = "give the old instance up"

    def do(self, context: Upgrade, run: StepContext) -> None:
        """Give up the old instance in an order that never leaves a VM without an instance.

        First, the new instance is checked to have the uplink, because it may refuse a setting some time after this was
        carried over. Then the VMs are unparked from the old instance, so that none is given to an instance that is
        ending. Then the new instance is checked to live, and only then the old one is ended: if the new one dies before
        that, the VMs go back."""
        host = context.host
        see_served(context, run)
        if context.runs(context.old):
            see_uplink(host, context.new)
        if not context.keep_old:
            _flush(context, run, context.old)  # before the last look at the new instance, as it may take seconds
        names = [vm.name for vm in host.backends.vms(read=False)]
        unpark_each(host, context.old, names)
        if context.keep_old:
            run.progress(f"instance {context.old} is kept running")
            return
        back = [vm.name for vm in context.vms() if vm.served_by(context.old)]
        if fault := context.look().new_down or (back and f"instance {context.old} serves VM {', '.join(back)} again"):
            with contextlib.suppress(BrokerError):
                host.backends.park_many(names, context.old)
            raise SwitchError(fault)
        host.instances[context.old].stop()
        take_left_out(context, run)

    def state(self, context: Upgrade, run: StepContext) -> State:
        """Whether the old instance has been retired. If it runs, the watchdog may have made its side the standby since,
        because the watchdog does not wait for the postcheck."""
        record = read_record(context.host)
        return _done(not context.runs(context.old) or (record is not None and record.side is context.old))


def _flush(context: Upgrade, run: StepContext, side: Side) -> None:
    """Have an instance that is about to end export what it holds of the flow log, and warn of what may be missing."""
    if not context.host.config.flowlog.on:
        return
    missing = flow_log.flush(context.host, side)
    run.remember(flow_log=missing)
    if missing:
        run.warn(missing)


def exported(facts: Facts, side: Side) -> list[Finding]:
    """Report that an instance that was ended had exported what it held. If it had not, that was a warning already."""
    found = Finding("flow log", Severity.OK, f"instance {side} has exported all that it held")
    return [found] if facts.get("flow_log") == "" else []


class Postcheck(Step[Upgrade]):
    name = "postcheck"
    description = "check ports, tables, rings and the log"

    def do(self, context: Upgrade, run: StepContext) -> None:
        see_served(context, run)
        host, seen = context.host, collect.log_end(context.host, context.new)
        findings = collect.postcheck(host, context.new, _SAMPLE_S, _log_end(run), baseline.known(run))
        findings += settings_transfer.compared(host, from_json(run.facts.get("settings")), context.new)
        findings += exported(run.facts, context.old)
        # A resumed upgrade does not report the settings again.
        run.remember(**_log_facts(seen), settings=[], postchecks=kept_checks(findings))
        for finding in checks.verdict(findings, SwitchError):
            if finding.severity is Severity.WARNING:
                run.warn(f"{finding.check}: {finding.text}")


def _log_facts(end: collect.LogEnd) -> dict[str, int]:
    return {"log_offset": end.offset, "log_file": end.file}


def _log_end(run: StepContext) -> collect.LogEnd:
    file = run.facts.get("log_file")  # not in the journal of an earlier version
    return collect.LogEnd(run.fact("log_offset", int), file if isinstance(file, int) else 0)


def _done(done: bool) -> State:
    return State.DONE if done else State.NOT_DONE


def upgrade_plan() -> Plan[Upgrade]:
    return Plan(
        "upgrade",
        before=(Precheck(), StartStandby(), ProgramDatabase(), Ports(), OpenWindow(), PeerLink(), ProgramTunnels(),
                FlowsStandby(), FlowsActive(), Prove(), Park(), SteerUplink(), MoveVms(), Soak()),
        after=(RecordActive(), FinalFlows(), CloseWindow(), Retire(), Postcheck()),
        no_way_back=lambda context, _facts: context.look_after_waiting().no_way_back,
        no_way_on=lambda context: context.look_after_the_commit().no_way_on,
        mend=lambda context: context.host.instances[context.old].restart_ovsdb(),
        revive=lambda context: context.revive(),
        unrestored=lambda context: context.unrestored(),
    )  # fmt: skip
