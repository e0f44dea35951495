"""``ovs-hotswap broker``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ovs_hotswap.backends import kept_text, refuse_kept
from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.broker.control.status import BrokerStatus
from ovs_hotswap.cli import logs
from ovs_hotswap.cli.app import App, Group, pass_app, yes
from ovs_hotswap.config_file import load_config
from ovs_hotswap.trust import own_directory

_START_S = 10.0


@click.group(cls=Group)
def broker() -> None:
    """Run the broker, which joins the one connection of each VM's QEMU to two switches.

    Packets do not pass through it. What VMs notice of these commands:

    \b
      `start`      No VM notices. Nothing is done if a broker runs.
      `reload`     Only VMs that were added to the intent or removed from it.
      `take-over`  Packets pass. A VM that boots, or that is to be moved, waits. A VM
                   may start over, without network for about a second: see its help.
      `stop`       Every VM loses its network until a broker runs again.
    """


@broker.command(short_help="Run the broker in the foreground until SIGTERM.", changes=True)
@logs.log_level
@logs.log_file
@click.option("--take-over", is_flag=True, help="Succeed the broker that runs; VMs keep their network.")
@pass_app
def run(app: App, log_level: str, log_file: Path | None, take_over: bool) -> None:
    """Run the broker in the foreground until SIGTERM; SIGHUP reads the configuration and the overlay intent again.

    If this process is killed, its connections are lost, and every VM loses its network. `broker start` and systemd's
    unit keep them.

    It listens on the control socket `broker.sock` in run_dir (mode 0660).
    With --json: nothing is printed.

    \b
    Example:
      ovs-hotswap broker run
    """
    from ovs_hotswap.broker.daemon import serve

    own_directory(app.config.run_dir)
    logs.start_log(log_level, log_file)
    serve(app.config, app.system, lambda: load_config(app.config_path), take_over=take_over)


@broker.command(hidden=True, changes=True)
@logs.log_level
@logs.log_file
@click.option("--take-over", is_flag=True, help="Have it succeed the broker that runs; VMs keep their network.")
@pass_app
def supervise(app: App, log_level: str, log_file: Path | None, take_over: bool) -> None:
    """Run the broker in the foreground, start it again if it ends, and keep its connections in the meantime.

    This does on a host without systemd what systemd does for the broker's unit. While a broker that was killed is
    started again, packets pass. A VM on whose message it worked starts over, and is without network for about a second.
    A broker that hangs is not ended. `broker start` starts this command in the background.
    With --json: nothing is printed.

    \b
    Example:
      ovs-hotswap broker supervise
    """
    from ovs_hotswap.service.supervisor import Supervisor

    own_directory(app.config.run_dir)
    logs.start_log(log_level, log_file)
    program = [sys.executable, "-P", "-m", "ovs_hotswap", "--config", str(app.config_path)]
    argv = [*program, "broker", "run", "--log-level", log_level]
    if log_file is not None:
        argv += ["--log-file", str(log_file)]
    status = Supervisor("supervisor", argv, app.config.run_dir, ["--take-over"] if take_over else []).run()
    click.get_current_context().exit(status)


@broker.command(short_help="Start the broker in the background.", changes=True)
@pass_app
def start(app: App) -> None:
    """Start the broker in the background, if it does not run.

    Under systemd this starts the unit ovs-hotswap-broker. Without systemd it starts a supervisor, which keeps the
    broker's connections and starts it again when it ends; the log is then broker.log in run_dir, and broker.log.1 is
    the log before that. The supervisor is the command `broker supervise`, which is not in the list of commands:
    `ovs-hotswap broker supervise --help` describes it and its options.

    A broker that runs is not touched, whatever its version: `broker take-over` replaces it.
    With --json: the status of the broker, as docs/json.md describes it.

    \b
    Example:
      ovs-hotswap broker start
    """
    from ovs_hotswap.broker.lifecycle import start_broker

    found = start_broker(app.config, app.system, app.config_path, _START_S)
    app.output.done = True
    _show(app, found)


@broker.command(
    name="take-over", short_help="Replace the broker by a new process; VMs keep their network.", changes=True
)
@pass_app
def take_over(app: App) -> None:
    """Replace the running broker by a new process in the background, of this program's version.

    Use it after an update of ovs-hotswap, after a change of the configuration that `broker reload` does not follow, and
    to give a broker a supervisor again. Every connection is handed over as it is. Packets pass in that time; a VM that
    boots, or that is to be moved, waits. A VM whose QEMU waits for a switch that does not answer starts over, and is
    without network for about a second. If the new broker does not become ready, the old one continues.

    Under systemd the command restarts the unit, as `systemctl restart ovs-hotswap-broker` does: the old process ends
    first, systemd keeps its connections, and starts the new one. The two brokers cannot agree on a format of the state
    then: if the new one cannot read the state of a VM, that VM is without network until its switch has connected again,
    usually for a second. docs/operations.md has the details.
    With --json: the status of the broker, as docs/json.md describes it.

    \b
    Example:
      ovs-hotswap broker take-over
    """
    from ovs_hotswap.broker.lifecycle import replace_broker

    found = replace_broker(app.config, app.system, app.config_path, _START_S)
    app.output.done = True
    _show(app, found)


@broker.command(short_help="Stop the broker: VMs lose their network.", changes=True)
@yes
@pass_app
def stop(app: App, yes: bool) -> None:
    """Stop the broker. Every VM that it serves loses its network until a broker runs again. To replace a broker, use
    `broker take-over`.

    On a terminal it asks first. A script or a unit is not asked. Only root may stop the broker.

    The broker first takes each VM's rings back from the switch, because QEMU uses them itself as soon as its back end
    is gone. If a switch does not release its rings, for example because it hangs, the stop is refused and the broker
    keeps running.

    With --json: {"stopped"}: whether a broker was running.

    \b
    Example:
      ovs-hotswap broker stop
    """
    from ovs_hotswap.broker.lifecycle import stop_broker

    if not yes:
        app.output.confirm("Every VM that the broker serves loses its network until a broker runs again. Stop it?")
    stopped = stop_broker(app.config, app.system)
    app.output.done = True
    app.output.document({"stopped": stopped})
    app.output.line("the broker is stopped" if stopped else "no broker was running")


@broker.command(short_help="Show whether the broker runs, and its VMs.", changes=False)
@pass_app
def status(app: App) -> None:
    """Show whether the broker runs and how many VMs it serves. The exit code is 7 if it does not answer.

    With --json: the status of the broker, as docs/json.md describes it.

    \b
    Example:
      ovs-hotswap broker status
    """
    with BrokerClient(app.config.broker_socket) as client:
        _show(app, client.status())


@broker.command(name="reload", short_help="Have the broker read configuration and intent again.", changes=True)
@pass_app
def reload_(app: App) -> None:
    """Have the broker read the configuration and the overlay intent again. VMs are added and removed; the others are
    not touched.

    The broker follows the keys overlay, qemu_socket, fence_ms, capture_mb, withhold_features and pmd_cores of the
    configuration. It prints what it cannot follow.

    A VM that was removed from the intent is released once no switch can use its rings. Exit code 7: at least one VM
    could not be released yet.
    With --json: the status of the broker, as docs/json.md describes it.

    \b
    Example:
      ovs-hotswap broker reload
    """
    _ = app.intent  # a fault of the file is shown by this command, and not by the broker
    with BrokerClient(app.config.broker_socket) as client:
        refuse_kept(client.reload())
        app.output.done = True
        _show(app, client.status())


@broker.command(short_help="Print everything that the broker has of one VM.", changes=False)
@click.argument("vm")
@pass_app
def dump(app: App, vm: str) -> None:
    """Print as JSON everything that the broker has on record of one VM, for a report of a fault.

    The fields are those of the broker's code, and change with every version. Nothing is changed.
    With --json: the same.

    \b
    Example:
      ovs-hotswap broker dump vm1
    """
    with BrokerClient(app.config.broker_socket) as client:
        found = client.dump(vm)
    app.output.document(found)
    app.output.line(json.dumps(found, indent=2))


def _show(app: App, found: BrokerStatus) -> None:
    app.output.document(found.document())
    app.output.line(f"broker {found.version}: process {found.pid}, {found.vms} VMs, "
                    f"up {found.uptime_s:.0f} s")  # fmt: skip
    if (memory := found.capture) is not None:
        taken, limit, all_ = (f"{size / (1 << 20):.0f}" for size in (memory.taken, memory.limit, memory.all))
        app.output.line(f"capture rings: {taken} of at most {limit} MiB; all VMs at once need {all_} MiB")
    if found.config_fault:
        app.output.line(f"the configuration cannot be read, the one before is in force: {found.config_fault}")
    for each in found.differing:
        app.output.line(f"{each}: `ovs-hotswap broker take-over`, so that the broker follows this")
    for kept in found.leaving:
        app.output.line(kept_text([kept]))
