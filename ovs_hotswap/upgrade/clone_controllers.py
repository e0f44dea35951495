"""The steps of an upgrade in which the host's controllers take part, on a host that others program.

They are paused right before the cut, and are led to the new instance after the commit. One that ends in between and is
started again is not paused: it programs the old instance, as the well-known paths lead there, and what it has
programmed is carried over before it is led to the new one.
"""

from __future__ import annotations

from ovs_hotswap.clone.changes import Hold
from ovs_hotswap.clone.database import give_back
from ovs_hotswap.clone.follow import Follower
from ovs_hotswap.controllers import ovn
from ovs_hotswap.controllers.connections import Connections
from ovs_hotswap.controllers.repoint import repoint
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Life, Side
from ovs_hotswap.plan.executor import ReversibleStep, StepContext
from ovs_hotswap.plan.records import Facts
from ovs_hotswap.switch.answering import see_going
from ovs_hotswap.switch.monitors import end_monitors
from ovs_hotswap.switch.paths import read_stock
from ovs_hotswap.upgrade import clone_loss
from ovs_hotswap.upgrade.late_ports import bring_late_ports
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.wording import some

_QUIET_S = 0.3
_FOLLOW_S = 60.0
_PROGRAMMED_S = 60.0
_STARTS_S = 5.0
_OVN_BRIDGE = "br-int"  # external_ids:ovn-bridge, ovn-controller(8)


def settle(context: Upgrade) -> None:
    """Wait until the new instance is what the old one is. Raises SwitchError if it does not become that."""
    see_going(context.host.instances[context.new])  # it may have VMs already, which would wait for all deadlines
    follower = context.host.cloning.follower(context.new)
    settled = follower.settle(_QUIET_S, _FOLLOW_S, lambda: all(_follows(context, side) for side in Side))
    if settled.left:
        raise SwitchError(
            f"the new instance cannot be made equal to the old one: {some(list(settled.left), '; ')}",
            hint="see what keeps changing: `ovs-ofctl monitor BRIDGE watch:`, `ovsdb-client monitor`",
        )


def _follows(context: Upgrade, side: Side) -> bool:
    """Whether an instance can still be read or written, perhaps after its database server was started again."""
    context.host.cloning.well_known.keep()
    return context.life(side) is Life.RUNS and context.runs(side) and not context.host.instances[side].lacks_database()


class Pause(ReversibleStep[Upgrade]):
    """The controllers compute nothing while the two instances are compared for the last time and the pipelines change.
    Their connections stay, and what they have programmed stays."""

    name = "pause"
    description = "pause the controllers, and see that both instances are equal"
    look_at = "`ovn-appctl -t ovn-controller debug/status`"

    def facts(self, context: Upgrade, run: StepContext) -> Facts:
        socket = context.host.cloning.paths[_model(context)].db_socket
        return {"wait": ovn.wait_of(socket), "paused": [each.paused() for each in _controllers(context)]}

    def do(self, context: Upgrade, run: StepContext) -> None:
        controllers, socket = _controllers(context), context.host.cloning.paths[_model(context)].db_socket
        wait = run.facts.get("wait")
        if controllers and (needed := ovn.needed_wait(str(wait) if wait else None, _flows(context))) is not None:
            ovn.set_wait(socket, needed)
        for controller in controllers:
            controller.pause()
        if clone_loss.lost(context, run):
            clone_loss.go_without_old(context, run)
        else:
            settle(context)

    def undo(self, context: Upgrade, run: StepContext) -> None:
        controllers = _controllers(context)
        if context.runs(context.old):
            _put_wait_back(context, run, context.old)
        for controller, paused in zip(controllers, run.fact("paused", list), strict=False):
            if not paused:
                controller.resume()


def _put_wait_back(context: Upgrade, run: StepContext, side: Side) -> None:
    wait, socket = run.facts.get("wait"), context.host.cloning.paths[side].db_socket
    before = None if wait is None else str(wait)
    if ovn.wait_of(socket) != before:
        ovn.set_wait(socket, before)


def _model(context: Upgrade) -> Side:
    """The old side, or the new one if the old one died."""
    return context.look().living[-1]


def _flows(context: Upgrade) -> int:
    """The number of flows of OVN's bridge."""
    return len(context.host.openflow(_model(context), _OVN_BRIDGE).dump())


def _controllers(context: Upgrade) -> list[ovn.Ovn]:
    return [ovn.Ovn(each) for each in _running(context)]


def _running(context: Upgrade) -> tuple[ovn.OvnController, ...]:
    """The controllers of OVN. One that was started a moment ago has no control socket yet."""
    system = context.host.system

    def reachable(found: tuple[ovn.OvnController, ...]) -> bool:
        return all(each.control for each in found)

    return wait_until(lambda: ovn.find(system), _STARTS_S, system, done=reachable)


class Repoint(ReversibleStep[Upgrade]):
    name = "repoint"
    description = "lead the well-known paths, controllers and tools to the new instance"
    look_at = "where the paths lead: `ls -l /run/openvswitch`"

    def do(self, context: Upgrade, run: StepContext) -> None:
        """Nothing may start the distribution's switch again from here on: it would take the well-known paths."""
        host = context.host
        stock = read_stock(host.config)
        if stock is not None and stock.side is context.old:
            host.cloning.units.retire()
            end_monitors((stock.pid, stock.ovsdb_pid), host.system)
        _lead(context, run, context.old, context.new)

    def undo(self, context: Upgrade, run: StepContext) -> None:
        stock = read_stock(context.host.config)
        if stock is not None and stock.side is context.old:
            context.host.cloning.units.shield()
        if context.runs(context.old):
            _lead(context, run, context.new, context.old)


def _lead(context: Upgrade, run: StepContext, old: Side, new: Side) -> None:
    cloning, found = context.host.cloning, _running(context)
    if new is context.new and clone_loss.has_database(context, run):
        changes = cloning.changes(new, cut=True)
        if context.runs(old):
            bring_late_ports(context, run, changes)
            _follow_late(cloning.follower(new), run)
        give_back(cloning.paths[old], cloning.paths[new], changes, frozenset(Hold))
    canary = ovn.Canary(context.host.system, cloning.paths[new].mgmt(_OVN_BRIDGE))
    # A controller that is connected to this instance already, as when this is repeated, sends it only what changes.
    connected = _clients(context, new)
    coming = [each for each in found if each.pid not in connected]
    if coming:
        canary.plant()
    repoint(cloning.well_known, context.host.system, cloning.paths[old], cloning.paths[new])
    for each in found:
        ovn.Ovn(each).resume()
    for each in coming:
        ovn.await_programmed(ovn.Ovn(each), canary, _PROGRAMMED_S, context.host.system)
    _put_wait_back(context, run, new)


def _clients(context: Upgrade, side: Side) -> set[int]:
    """The processes that are connected to an instance's bridges."""
    pid = context.host.instances[side].pid()
    return set() if pid is None else {client.pid for client in Connections(pid).clients()}


def _follow_late(follower: Follower, run: StepContext) -> None:
    """Take over what controllers that cannot be paused have programmed on the old instance since the cut."""
    try:
        follower.late()
    except SwitchError as error:
        run.warn(f"what was programmed on the old instance since the cut is not carried over: {error.message}")
