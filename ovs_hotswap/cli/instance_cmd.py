"""``ovs-hotswap instance``."""

from __future__ import annotations

from functools import partial

import click

from ovs_hotswap.cli.app import App, Group, pass_app, yes
from ovs_hotswap.cli.status_cmd import show_instances
from ovs_hotswap.errors import BusyError, HotswapError
from ovs_hotswap.host import settings_transfer
from ovs_hotswap.host.host import WATCHDOG_S, Host
from ovs_hotswap.host.instances import instance_of_unit
from ovs_hotswap.host.lifecycle import adopt, restore, start_instance, stop_for_good
from ovs_hotswap.model import Side
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.units import InstanceUnit, StartRequest

_side = click.argument("side", type=click.Choice([side.value for side in Side]))


@click.group(cls=Group)
def instance() -> None:
    """Start, stop and list the instances."""


@instance.command(name="list", changes=False)
@pass_app
def list_(app: App) -> None:
    """List both instances and what they run.

    With --json: {"instances": [{"side", "state", "vswitchd_pid", "ovsdb_pid", "release", "dpdk_initialized",
    "started"}]}.

    \b
    Example:
      ovs-hotswap instance list
    """
    host = Host(app.config, app.system)
    found = [host.instances[side].status() for side in Side]
    app.output.document({"instances": found})
    show_instances(app, found)


@instance.command(changes=True)
@_side
@click.option("--release", default="host", show_default=True, metavar="NAME", help="What it runs.")
@pass_app
def start(app: App, side: str, release: str) -> None:
    """Start an instance and program it from the overlay intent.

    The first instance of a host becomes the active one: the uplink is steered to it. A later one is a standby until
    `ovs-hotswap upgrade` moves the VMs to it. If any part fails, all of it is undone.

    Its database is new; the operator's settings of the last active instance are given to the one that becomes active.
    If no side is active and the instance runs already, it becomes the active one, and its VMs do not notice.
    Use it also to start a dead active instance again where no watchdog runs: VMs have no network until it has ended.
    With --json: {"side", "release", "active"}.

    \b
    Example:
      ovs-hotswap instance start a
      ovs-hotswap instance start b --release trixie
    """
    host = Host(app.config, app.system)
    which = Side(side)
    with host.lock(WATCHDOG_S):
        runs = host.releases.get(release)
        if active := adopt(host, which):
            runs = host.instances[which].release() or runs
        else:
            active = start_instance(host, which, runs)
    app.output.done = True
    app.output.document({"side": side, "release": runs, "active": active})
    app.output.line(f"instance {side} runs {runs.label}{' and is active' if active else ''}")


@instance.command(short_help="Stop an instance and undo what its start did.", changes=True)
@_side
@click.option("--force", is_flag=True, help="Stop it even though it serves VMs.")
@yes
@pass_app
def stop(app: App, side: str, force: bool, yes: bool) -> None:
    """Stop an instance and undo all that its start did. It may be stopped already.

    An instance that serves VMs is stopped only with --force, and so is the active instance while the broker does not
    answer. After the active instance was stopped, no side is active, the uplink is steered to neither, and the watchdog
    does nothing until `ovs-hotswap instance start`: every VM is without network, also one that the other instance has
    taken. On a terminal, --force names the VMs that lose their network, and asks. A script or a unit is not asked.

    With --json: {"side", "state"}.

    \b
    Example:
      ovs-hotswap instance stop b
    """
    host = Host(app.config, app.system)
    which = Side(side)
    if force and not yes and app.output.asks:
        confirm_stop(app, host, which)
    with host.lock(WATCHDOG_S):
        if not force and host.running(which):
            _refuse_if_serving(host, which)
        stop_for_good(host, which)
    app.output.done = True
    app.output.document({"side": side, "state": host.instances[which].status().state})
    app.output.line(f"instance {side} is stopped")


@instance.command(name="restore", short_help="After a boot, start what was active before it.", changes=True)
@pass_app
def restore_(app: App) -> None:
    """After a boot, start and program the instance that was active before it, with the release that it had.

    Nothing is done if an instance is active already, if none ever was, or if the last one was stopped by command.
    With --json: {"side", "release"}: null if nothing was done.

    \b
    Example:
      ovs-hotswap instance restore
    """
    host = Host(app.config, app.system)
    with host.lock(WATCHDOG_S):
        done = restore(host)
    app.output.done = True
    app.output.document({"side": done.side if done else None, "release": done.release if done else None})
    app.output.line(f"instance {done.side} runs release {done.release}" if done else "nothing to restore")


@instance.command(short_help="Record the operator's settings for the next start.", changes=True)
@pass_app
def keep(app: App) -> None:
    """Record the operator's settings on the active instance, for when it is started again.

    Each start makes a new database. What the operator has set there is recorded by the watchdog within seconds, by an
    upgrade, by `instance stop`, and by ovs-hotswap-restore.service when the host goes down.
    With --json: {"side", "settings"}: how many there are; null and 0 if no instance is active.

    \b
    Example:
      ovs-hotswap instance keep
    """
    host = Host(app.config, app.system)
    side = host.recorded_active()
    found = {} if side is None else settings_transfer.keep(host, side)
    app.output.document({"side": side, "settings": len(found)})
    app.output.line("no instance is active" if side is None else f"{len(found)} settings of instance {side} are kept")


@instance.command(name="rotate-logs", short_help="Rename the logs of the instances that are too long.", changes=True)
@pass_app
def rotate_logs(app: App) -> None:
    """Rename each log of an instance that is longer than 16 MiB to NAME.log.1, and have its daemon begin a new one.

    The watchdog does so by itself, and under systemd ovs-hotswap-logs.timer does. The logs are in run_dir, which is in
    memory: on a host without either, run this command from cron. While an upgrade is under way, nothing is renamed;
    while one is unfinished, only a log that is longer than 64 MiB.
    With --json: {"renamed"}: the paths of the logs that were renamed.

    \b
    Example:
      ovs-hotswap instance rotate-logs
    """
    from ovs_hotswap.watchdog.log_rotation import LogWatch

    renamed = LogWatch().rotate(Host(app.config, app.system))
    app.output.done = True
    app.output.document({"renamed": [str(path) for path in renamed]})
    for path in renamed:
        app.output.line(f"{path} is now {path.name}.1")


@instance.command(name="bring-up", hidden=True, changes=True)
@_side
@pass_app
def bring_up(app: App, side: str) -> None:
    """Carry out an order to start an instance: the command of ovs-hotswap-instance@.service, not for people.

    The order is what `ovs-hotswap instance start`, an upgrade or the watchdog left when it had systemd start the unit.
    With --json: nothing is printed.

    \b
    Example:
      ovs-hotswap instance bring-up a
    """
    which = Side(side)
    unit = InstanceUnit(which, app.system)

    def act(order: StartRequest) -> None:
        _of_unit(app, order, which).bring_up(order.release)

    unit.carry_out(act)


@instance.command(hidden=True, changes=True)
@_side
@pass_app
def mend(app: App, side: str) -> None:
    """Start an instance's ovsdb-server again, under an order. Like `bring-up`, this is not for people.

    The watchdog does it by itself. With --json: nothing is printed.

    \b
    Example:
      ovs-hotswap instance mend a
    """
    which = Side(side)
    InstanceUnit(which, app.system).carry_out(lambda order: _of_unit(app, order, which).restart_ovsdb())


def _of_unit(app: App, order: StartRequest, side: Side) -> Instance:
    host = Host(order.config, app.system)
    return instance_of_unit(order.config, app.system, side, partial(host.reservation, side), lambda: host.cloning)


def confirm_stop(app: App, host: Host, side: Side) -> None:
    """Ask, if the stop would be refused without ``--force``. Raises click.Abort."""
    if not host.running(side):
        return
    try:
        _refuse_if_serving(host, side)
    except BusyError as error:
        app.output.confirm(f"{error.message}. Stop it, and cut its VMs off?")


def _refuse_if_serving(host: Host, side: Side) -> None:
    hint = f"`ovs-hotswap instance stop {side} --force` cuts them off"
    try:
        served = [vm.name for vm in host.backends.vms() if vm.has_guest and vm.owner == side]
    except HotswapError as error:
        if host.recorded_active() is not side:
            return
        raise BusyError(f"instance {side} is active, and which VMs it serves is unknown: {error.message}",
                        hint=hint) from error  # fmt: skip
    if served:
        raise BusyError(f"instance {side} serves VM {', '.join(served)}", hint=hint)
