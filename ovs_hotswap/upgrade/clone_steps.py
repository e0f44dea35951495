"""The steps of an upgrade on a host that others program, in order.

The new instance becomes a copy of the old one and is wired: the old pipeline stays the only one for all VMs while these
pass to the new instance, one by one. VMs that have no broker yet are taken over on the way. One atomic change, the cut,
makes the new pipeline the only one. Until the commit every step can be undone, the cut included; a VM that was taken
over keeps the broker then, because giving it back would cost it a second of its network (`ovs-hotswap release-vms`).

What follows if the old instance dies is in ``clone_loss``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ovs_hotswap.backends import refuse_kept
from ovs_hotswap.clone import state as run_time
from ovs_hotswap.clone.database import bring
from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.host import boot_database, kept_flows
from ovs_hotswap.host.standby import await_vm_ports, park_each
from ovs_hotswap.model import Severity
from ovs_hotswap.plan.executor import Plan, ReversibleStep, State, Step, StepContext
from ovs_hotswap.plan.records import Facts
from ovs_hotswap.reports.compose import kept_checks
from ovs_hotswap.switch.answering import see_going
from ovs_hotswap.switch.ovsdb import ROOT_TABLES
from ovs_hotswap.switch.paths import read_stock
from ovs_hotswap.upgrade import checks, clone_checks, clone_loss, wire_turns
from ovs_hotswap.upgrade.adopt_vms import adopt_vms, clean_up_after
from ovs_hotswap.upgrade.clone_controllers import Pause, Repoint, settle
from ovs_hotswap.upgrade.clone_window import CloseCloneWindow, OpenCloneWindow
from ovs_hotswap.upgrade.move_vms import move_all
from ovs_hotswap.upgrade.outlook import Outlook
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.soak import see_ready, see_served, watch_vms
from ovs_hotswap.upgrade.steps import (
    MoveVms,
    Park,
    RecordActive,
    Retire,
    StartStandby,
    restore_priority,
)
from ovs_hotswap.upgrade.way_back import move_back, return_vms
from ovs_hotswap.vm_ports import VmPort, read_ports, write_ports
from ovs_hotswap.wire.mirror_flows import Mode
from ovs_hotswap.wording import some

_PASS_S = 10.0


class ClonePrecheck(Step[Upgrade]):
    name = "precheck"
    description = "look for reasons not to start"

    def state(self, context: Upgrade, run: StepContext) -> State:
        return State.DONE

    def do(self, context: Upgrade, run: StepContext) -> None:
        for finding in restore_priority(context.host, context.old):
            run.progress(f"{finding.check}: {finding.text}")
        found = clone_checks.precheck(context.host, context.old, context.new, context.release, context.leave_out)
        run.remember(prechecks=kept_checks(found))
        for finding in checks.verdict(found):
            if finding.severity is Severity.WARNING:
                run.progress(f"{finding.check}: {finding.text}")


class Sockets(ReversibleStep[Upgrade]):
    """QEMU's sockets get a second name and the broker listens in their places. Connections that exist are not touched;
    the new instance's ports, and the old one's when they connect again, find the broker there."""

    name = "sockets"
    description = "have the broker listen at the VMs' sockets"
    look_at = "`ovs-hotswap vm list`, and the sockets: `ss -xlp`"

    def facts(self, context: Upgrade, run: StepContext) -> Facts:
        return {"ports": [port.model_dump(mode="json") for port in read_ports(context.host.config)]}

    def do(self, context: Upgrade, run: StepContext) -> None:
        host = context.host
        if clone_loss.lost(context, run):
            return
        host.cloning.units.shield()
        write_ports(host.config, host.system, clone_checks.vm_ports(host))
        refuse_kept(host.backends.reload())

    def undo(self, context: Upgrade, run: StepContext) -> None:
        """VMs that were taken over keep the broker, and so their sockets."""
        host = context.host
        before = tuple(VmPort.model_validate(each) for each in run.fact("ports", list))
        served = {vm.name for vm in host.backends.vms(read=False) if vm.has_guest}
        kept = [port for port in read_ports(host.config) if port.name in served and port not in before]
        write_ports(host.config, host.system, (*before, *kept))
        host.backends.reload()
        if not (before or kept):
            host.cloning.units.unshield()


class StartClone(StartStandby):
    description = "start the new instance with a copy of the old one's database"

    def do(self, context: Upgrade, run: StepContext) -> None:
        context.host.cloning.make_room(context.old)
        super().do(context, run)
        await_vm_ports(context.host, context.new)

    def undo(self, context: Upgrade, run: StepContext) -> None:
        super().undo(context, run)
        if context.dead(context.new):
            context.host.cloning.give_room_back(context.old)
            for name in run.texts("taps"):
                context.host.cloning.taps.forget_new(name)


class Copy(Step[Upgrade]):
    name = "copy"
    description = "copy flows, groups, meters and settings, and follow their changes"

    def facts(self, context: Upgrade, run: StepContext) -> Facts:
        return clone_loss.facts(context)

    def do(self, context: Upgrade, run: StepContext) -> None:
        if clone_loss.lost(context, run):
            return
        cloning = context.host.cloning
        settle(context)
        state, ports = run_time.read(cloning.paths[context.old]), cloning.host_ports(context.new)
        clone_loss.remember_addresses(run, [entry for entry in state.fdb if entry.port in ports])
        now = replace(state, fdb=tuple(entry for entry in state.fdb if entry.port not in ports))
        given = run_time.apply(cloning.paths[context.new], now, context.host.system, cut=False)
        for text in given.refused:
            run.warn(f"not carried over: {text}")
        run.remember(**{clone_loss.COPIED: [list(command) for command in given.undo]})


class Wire(ReversibleStep[Upgrade]):
    name = "wire"
    description = "wire the new instance: the old pipeline serves the VMs of both"

    def do(self, context: Upgrade, run: StepContext) -> None:
        cloning = context.host.cloning
        if clone_loss.lost(context, run):
            clone_loss.go_without_old(context, run)
            return
        if context.runs(context.old) and cloning.wire.state(context.old).intended.wired:
            _take_cut_back(context, run)  # this upgrade is resumed, and had made the cut
        wire_turns.open_wire(context, run)
        cloning.wire.wire(context.new, Mode.HELD)
        cloning.keep_wired()

    def undo(self, context: Upgrade, run: StepContext) -> None:
        clone_loss.give_up_hanging(context, run)
        context.host.cloning.keep_wired_no_longer()
        for side in (context.old, context.new):
            if context.runs(side):
                context.host.cloning.wire.close(side)


class Adopt(ReversibleStep[Upgrade]):
    """The undo returns the VMs to the old instance, which serves them through the broker then, before wire mode ends:
    the step ``move`` may not have begun."""

    name = "adopt"
    description = "take over VMs that have no broker yet"
    look_at = "`ovs-hotswap vm list`"

    def do(self, context: Upgrade, run: StepContext) -> None:
        if clone_loss.lost(context, run):
            clone_loss.go_without_old(context, run)
            clone_loss.await_left_alone(context, run)
            return
        adopt_vms(context, run, wire_turns.later(run))

    def undo(self, context: Upgrade, run: StepContext) -> None:
        clean_up_after(context, run)
        return_vms(context, run)


class CloneMove(MoveVms):
    def stay(self, context: Upgrade, run: StepContext) -> Collection[str]:
        return {*context.leave_out, *wire_turns.later(run)}


class Cut(ReversibleStep[Upgrade]):
    """Both directions stay open: the undo wires the new instance again.

    After the cut the old instance is wired in turn, because frames still arrive at its uplink until the network has
    learned otherwise."""

    name = "cut"
    description = "rebuild connections and addresses, then make the new pipeline the only one"

    def do(self, context: Upgrade, run: StepContext) -> None:
        host, cloning = context.host, context.host.cloning
        old, new = cloning.paths[context.old], cloning.paths[context.new]
        see_going(host.instances[context.new])
        if clone_loss.lost(context, run):
            clone_loss.go_without_old(context, run)
            return
        follower = cloning.follower(context.new)
        if left := follower.equal(tries=3):
            raise SwitchError(f"the new instance is not equal to the old one: {some(left, '; ')}",
                              hint="something else than the paused controllers programs the old one")  # fmt: skip
        run_time.apply(new, run_time.without_logs(run_time.read(old)), host.system, cut=False)
        cloning.wire.wire(context.new, Mode.UPLINKS)
        follower.arm()
        exchange = cloning.exchange(context.new)
        devices = cloning.kernel_devices(context.new)
        run.remember(devices=devices, taps=exchange.taps())
        taps = exchange.make_way()  # the old switch's tunnels are without their address from here on
        cloning.wire.cut(context.new)
        exchange.pass_to_new(taps, devices, lambda: bring(old, new, cloning.changes(context.new, cut=True)))
        cloning.wire.wire(context.old, Mode.UPLINKS)
        _move_bare(context, run)
        late = run_time.without_logs(run_time.read(old))  # what came up in between
        for text in run_time.apply(new, late, host.system, cut=True).refused:
            run.warn(f"not carried over: {text}")
        clone_loss.announce(context, run, context.new)

    def undo(self, context: Upgrade, run: StepContext) -> None:
        clone_loss.give_up_hanging(context, run)
        _take_cut_back(context, run)


def _move_bare(context: Upgrade, run: StepContext) -> None:
    """Move the VMs that no switch mirrors, and that are without network since the cut. Raises what ``move_all``
    raises."""
    if names := set(wire_turns.bare(run)) - context.leave_out:
        others = {vm.name for vm in context.host.backends.vms(read=False)} - names
        run.remember_entries("moves", move_all(context.host, context.new, run, without=others))


def _take_cut_back(context: Upgrade, run: StepContext) -> None:
    """Make the old pipeline the only one again, and wire the new instance if it runs. The VMs that passed after the cut
    return first, because the old switch does not mirror them."""
    wire = context.host.cloning.wire
    if context.look().outlook is Outlook.NONE or not context.runs(context.old):
        return
    if (names := wire_turns.later(run)) and context.runs(context.new):
        _return_others(context, run, names)
    wire.cut(context.old)
    if context.runs(context.new):
        wire.wire(context.new, Mode.UPLINKS)
    exchange = context.host.cloning.exchange(context.new)
    exchange.pass_back(run.texts("taps"), run.texts("devices"), new_lives=context.runs(context.new))
    clone_loss.announce(context, run, context.old)


def _return_others(context: Upgrade, run: StepContext, names: Collection[str]) -> None:
    """Return the VMs that passed after the cut. What keeps one on the new instance does not keep the cut from being
    taken back: the undo of the moves returns all of them."""
    try:
        others = {vm.name for vm in context.host.backends.vms(read=False)} - set(names)
        move_back(context, run, others)
    except HotswapError as error:
        run.warn(f"VMs that passed after the cut return later: {error.message}")


class MoveOthers(Step[Upgrade]):
    """Bridges with few VMs have none of these (``wire_turns``). They return with the cut (``Cut.undo``)."""

    name = "move-others"
    description = "take over and move the VMs that could not pass before the cut"

    def do(self, context: Upgrade, run: StepContext) -> None:
        host, new = context.host, context.new
        names = set(wire_turns.later(run)) - context.leave_out
        see_going(host.instances[new])
        lost = clone_loss.lost(context, run)
        if lost:
            clone_loss.go_without_old(context, run)
            clone_loss.await_left_alone(context, run)
        if not names:
            return
        others = {vm.name for vm in host.backends.vms(read=False)} - names
        if not lost:
            adopt_vms(context, run, others)
        if refused := park_each(host, new, [vm for vm in context.vms() if vm.name in names]):
            whys = [f"VM {name} cannot be parked on {new}: {why}" for name, why in refused.items()]
            raise SwitchError(some(whys, "; "), hint=context.without(refused))
        if not lost:
            run.remember_entries("moves", move_all(host, new, run, without=others))


class CloneSoak(Step[Upgrade]):
    name = "soak"
    description = "watch the VMs on the new instance"

    def do(self, context: Upgrade, run: StepContext) -> None:
        watch_vms(context, run)
        see_ready(context)


class RecordClone(RecordActive):
    """From here on a boot starts with the new instance's database, and an instance that is started again gets the flows
    of now, until a watchdog keeps later ones."""

    def do(self, context: Upgrade, run: StepContext) -> None:
        super().do(context, run)
        boot_database.lead_to(context.host.config, context.new)
        try:
            kept_flows.keep(context.host, context.new)
        except HotswapError as error:
            run.warn(f"if instance {context.new} ends now, its flows are lost: {error.message}")

    def undo(self, context: Upgrade, run: StepContext) -> None:
        super().undo(context, run)
        boot_database.put_back(context.host.config)


class Unwire(Step[Upgrade]):
    name = "unwire"
    description = "remove wire mode from both instances"

    def do(self, context: Upgrade, run: StepContext) -> None:
        context.host.cloning.keep_wired_no_longer()
        for side in (context.new, context.old):  # the death of one also disconnects the link of the other
            if context.runs(side) and (side is context.new or clone_loss.has_database(context, run)):
                context.host.cloning.wire.close(side)


class RetireClone(Retire):
    """The devices that both switches have by name, such as that of a bridge, stay when the old switch is killed. The
    new one takes them when it looks at its configuration again."""

    def do(self, context: Upgrade, run: StepContext) -> None:
        host, old = context.host, context.host.instances[context.old]
        stock = read_stock(host.config)
        super().do(context, run)
        if old.pid() is not None:  # it is kept
            return
        with host.instances[context.new].database(tables=ROOT_TABLES) as database:
            database.wait_pass(_PASS_S)
        host.cloning.clear_away(context.old)
        host.cloning.exchange(context.new).finish(run.texts("taps"))
        if stock is not None:
            host.cloning.well_known.forget()
            host.cloning.units.forget_failures()


class ClonePostcheck(Step[Upgrade]):
    name = "postcheck"
    description = "check ports, rings and the well-known paths"

    def do(self, context: Upgrade, run: StepContext) -> None:
        see_served(context, run)
        findings = clone_checks.postcheck(context.host, context.new)
        run.remember(postchecks=kept_checks(findings))
        for finding in checks.verdict(findings, SwitchError):
            if finding.severity is Severity.WARNING:
                run.warn(f"{finding.check}: {finding.text}")


def clone_plan() -> Plan[Upgrade]:
    return Plan(
        "upgrade",
        before=(ClonePrecheck(), Sockets(), StartClone(), Copy(), OpenCloneWindow(), Wire(), Adopt(), Park(),
                CloneMove(), Pause(), Cut(), MoveOthers(), CloneSoak()),
        after=(RecordClone(), Unwire(), Repoint(), CloseCloneWindow(), RetireClone(), ClonePostcheck()),
        no_way_back=clone_loss.no_way_back,
        no_way_on=lambda context: context.look_after_the_commit().no_way_on,
        mend=clone_loss.mend,
        revive=clone_loss.revive,
        unrestored=lambda context: context.unrestored(),
    )  # fmt: skip
