"""What an upgrade of a host that others program does if the old instance dies.

What others have programmed dies with it, except for its database. So before the new instance is a whole copy, the
upgrade goes back, and the distribution starts its switch again as it would have without an upgrade. Afterwards the copy
is all that is left, and the upgrade goes forward with it, without the old instance. A switch that the distribution has
started in its place since has nothing that the copy lacks, and is ended.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

from ovs_hotswap.clone import fdb
from ovs_hotswap.clone.database import bring
from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.model import Life, Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.plan.records import Facts, Json
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.monitors import end_family, monitor_of
from ovs_hotswap.switch.paths import read_stock
from ovs_hotswap.switch.rpc import hangs, listens
from ovs_hotswap.upgrade.adopt_vms import unadopted
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.wording import some

COPIED = "given"  # the fact that says that the new instance is a whole copy
ALONE = "alone"  # the fact that says that the new instance has all that the dead one had
_ADDRESSES = "addresses"
_ALONE_S = 10.0
_ANSWER_S = 3.0  # a main thread that reconfigures ports answers within two


def facts(context: Upgrade) -> Facts:
    """What would start the old switch again after its death, for the time from which that must not be."""
    pid = context.host.instances[context.old].pid()
    monitor = None if pid is None else monitor_of(pid, context.host.system)
    return {"monitor": None if monitor is None else [monitor, start_time(monitor)]}


def no_way_back(context: Upgrade, facts: Facts) -> str:
    """Why an upgrade cannot be undone; empty if it can. See the module."""
    return context.look_after_waiting().no_way_back if COPIED in facts else ""


def lost(context: Upgrade, run: StepContext) -> bool:
    """Whether a step has to do without the old instance. Raises SwitchError if there is no whole copy of it."""
    if not context.look().old_lost:
        return False
    if COPIED not in run.facts:
        raise SwitchError(f"instance {context.old} died before it was copied")
    return True


def go_without_old(context: Upgrade, run: StepContext) -> None:
    """Make the new pipeline the only one at once, and have the new instance take all that the dead one had. It may be
    repeated: each step does it that finds the old instance dead, and it is done once. What cannot be had without the
    old instance is a warning: there is nothing to go back to."""
    if ALONE in run.facts:
        return
    host, cloning = context.host, context.host.cloning
    cloning.wire.cut(context.new)
    stock, monitor = read_stock(host.config), run.facts.get("monitor")
    if stock is not None and stock.side is context.old:
        cloning.units.retire()
    if isinstance(monitor, list) and host.system.is_still(*monitor):
        end_family(monitor[0], host.system)
    exchange, old, new = cloning.exchange(context.new), cloning.paths[context.old], cloning.paths[context.new]
    try:
        devices = run.texts("devices") or cloning.kernel_devices(context.new)
        run.remember(devices=devices)
        exchange.take_over(run.texts("taps"), devices,
                           lambda: bring(old, new, cloning.changes(context.new, cut=True)))  # fmt: skip
    except HotswapError as error:
        run.warn(f"ports of instance {context.old} that the host uses are not carried over: {error.message}")
    else:
        run.remember(**{ALONE: True})
    announce(context, run, context.new)


def remember_addresses(run: StepContext, entries: Iterable[fdb.FdbEntry]) -> None:
    """Record which addresses are at ports that the new instance has only after the cut."""
    rows: list[Json] = [[each.bridge, each.port, each.vlan, each.mac] for each in entries]
    run.remember(**{_ADDRESSES: rows})


def announce(context: Upgrade, run: StepContext, side: Side) -> None:
    """Have the network learn that everything is behind this side's uplinks now. Otherwise what is silent is not reached
    until it sends, or until the network has forgotten it. A switch knows no address at a port that it has just opened,
    so it is given those addresses first."""
    host = context.host
    try:
        fdb.apply(host.system, host.cloning.paths[side], _addresses(run), cut=True)
        host.cloning.announce(side)
    except HotswapError as error:
        run.warn(f"the network is not told that instance {side} has the traffic: {error.message}")


def _addresses(run: StepContext) -> list[fdb.FdbEntry]:
    found = run.facts.get(_ADDRESSES)
    rows = found if isinstance(found, list | tuple) else []
    return [fdb.FdbEntry(str(bridge), str(port), int(vlan), str(mac)) for bridge, port, vlan, mac in rows]


def has_database(context: Upgrade, run: StepContext) -> bool:
    """Whether the old instance's database can be read. Once the upgrade is committed the distribution's own server
    cannot be started again, because the next boot's database is the new instance's, and the old instance goes anyway.
    """
    cloning = context.host.cloning
    if listens(cloning.paths[context.old].db_socket):
        return True
    if context.runs(context.old):
        run.warn(
            f"the ovsdb-server of instance {context.old} has ended, so controllers, mirrors and flow exports are not "
            f"carried over: see `ovs-vsctl show`, and `ovs-vsctl list mirror`"
        )
    return False


def give_up_hanging(context: Upgrade, run: StepContext) -> None:
    """End a new instance that is stopped, or whose main thread does not answer: whatever an undo asks of it would wait
    for its deadline and fail. Its VMs return to the old instance as when it dies. Raises CommandError."""
    if context.dead(context.old):
        return
    instance, life = context.host.instances[context.new], context.life(context.new)
    if life is Life.STOPPED or (life is Life.RUNS and hangs(instance.paths.vswitchd_ctl, _ANSWER_S)):
        run.progress(f"instance {context.new} does not answer; it is ended")
        instance.kill()


def mend(context: Upgrade) -> None:
    """Start again what an undo needs: the instances' database servers. That of the distribution's switch is started by
    the distribution, and listens under another inode then. Raises HostError, SwitchError."""
    instances = context.host.instances
    if instances[context.new].lacks_database():
        instances[context.new].restart_ovsdb()
    instances[context.old].restart_ovsdb()
    context.host.cloning.well_known.keep()


def revive(context: Upgrade) -> None:
    """Start again what a committed upgrade needs that is taken up again: the new instance, or its database server.
    Raises ReleaseError, SwitchError, UplinkError."""
    context.revive()
    if context.host.instances[context.new].lacks_database():
        context.host.instances[context.new].restart_ovsdb()


def await_left_alone(context: Upgrade, run: StepContext) -> None:
    """Wait until the broker knows of each VM without a broker that its switch has died: it then calls the VM's QEMU."""

    def direct() -> list[str]:
        return [vm.name for vm in unadopted(context.host)]

    if late := wait_until(direct, _ALONE_S, context.host.system, done=operator.not_):
        run.warn(f"VM {some(late)} is still connected without the broker, although instance {context.old} died")
