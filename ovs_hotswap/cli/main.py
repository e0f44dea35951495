"""The command line: the root group, and errors turned into lines and exit codes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import click
from click.core import ParameterSource

from ovs_hotswap import __version__
from ovs_hotswap.cli.app import CONFIG_PATH, App, Lazy, LazyGroup, output_options
from ovs_hotswap.errors import HostError, HotswapError, error_classes
from ovs_hotswap.trust import restrict_umask

PROGRAM = "ovs-hotswap"
_CLI = "ovs_hotswap.cli"
# What click 8.2 raises for a group without a command, to show its help.
_HELP: tuple[type[click.ClickException], ...] = tuple(
    kind for kind in [getattr(click.exceptions, "NoArgsIsHelpError", None)] if kind is not None
)
_REST, _CONFIG = (f"{__name__}.{key}" for key in ("rest", "config"))
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_ONE = (
    "Any other error. `overlay diff`: something differs, as with diff(1). `watch status`: no standby is ready, and the "
    'mode is "required".'
)

# The lines of `--help`. They are here so that `--help` imports none of the modules.
_UPGRADE, _HOST, _FILES, _DEVELOPERS = "Upgrades", "The host", "Configuration and releases", "For developers"
COMMANDS = {
    "check": Lazy(f"{_CLI}.upgrade_cmd:check", "Run the prechecks of an upgrade; nothing is changed.", _UPGRADE),
    "upgrade": Lazy(f"{_CLI}.upgrade_cmd:upgrade", "Replace the active instance under the running VMs.", _UPGRADE),
    "rollback": Lazy(f"{_CLI}.upgrade_cmd:rollback", "Undo an upgrade, unfinished or finished.", _UPGRADE),
    "resume": Lazy(f"{_CLI}.upgrade_cmd:resume", "Finish an upgrade that was interrupted.", _UPGRADE),
    "report": Lazy(f"{_CLI}.report_cmd:report", "Show what upgrades, rollbacks and failovers did.", _UPGRADE),
    "status": Lazy(f"{_CLI}.status_cmd:status", "Show the whole host: what runs, and what is wrong.", _HOST),
    "doctor": Lazy(f"{_CLI}.doctor_cmd:doctor", "Check the host from top to bottom; each finding has its fix.", _HOST),
    "diagnose": Lazy(f"{_CLI}.diagnose_cmd:diagnose", "Say why a VM has no network, worst first.", _HOST),
    "trace": Lazy(f"{_CLI}.trace_cmd:trace", "Follow real packets of a VM through the switch.", _HOST),
    "bursts": Lazy(f"{_CLI}.bursts_cmd:bursts", "Find packets lost in bursts, and what helps.", _HOST),
    "vm": Lazy(f"{_CLI}.vm_cmd:vm", "Show the VMs: who serves each one, and its rings.", _HOST),
    "instance": Lazy(f"{_CLI}.instance_cmd:instance", "Start, stop and list the instances.", _HOST),
    "broker": Lazy(f"{_CLI}.broker_cmd:broker", "Run the broker between QEMU and the instances.", _HOST),
    "watch": Lazy(f"{_CLI}.watch_cmd:watch", "Keep a standby that takes over when the active dies.", _HOST),
    "metrics": Lazy(f"{_CLI}.metrics_cmd:metrics", "Export metrics to Prometheus.", _HOST),
    "flowlog": Lazy(f"{_CLI}.flowlog_cmd:flowlog", "Export what VMs send and are given, by IPFIX.", _HOST),
    "uplink": Lazy(f"{_CLI}.uplink_cmd:uplink", "Show the uplink, and try a NIC for it.", _HOST),
    "adopt": Lazy(f"{_CLI}.adopt_cmd:adopt", "Put VMs of a running switch under the broker.", _HOST),
    "release-vms": Lazy(f"{_CLI}.adopt_cmd:release_vms", "Give VMs back to a plain switch, without a broker.", _HOST),
    "attach": Lazy(f"{_CLI}.job_cmd:attach", "Follow a job, and end with its exit code.", _HOST),
    "job": Lazy(f"{_CLI}.job_cmd:job", "Start, list and interrupt jobs.", _HOST),
    "stock": Lazy(f"{_CLI}.shield_cmd:stock", "Shield the distribution's switch from a restart.", _HOST),
    "config": Lazy(f"{_CLI}.config_cmd:config", "Check the configuration, make it, print an example.", _FILES),
    "overlay": Lazy(f"{_CLI}.overlay_cmd:overlay", "Check the overlay intent, show its flow tables.", _FILES),
    "release": Lazy(f"{_CLI}.release_cmd:release", "Manage the releases that an instance can run.", _FILES),
    "package": Lazy(f"{_CLI}.package_cmd:package", "Do what the scripts of the Debian package do.", _FILES),
    "patches": Lazy(f"{_CLI}.patches_cmd:patches", "List, verify and apply the patch series.", _DEVELOPERS),
    "lab": Lazy(f"{_CLI}.lab_cmd:lab", "Make a test bed on this machine, show an upgrade in it.", _DEVELOPERS),
}
# What --host runs on a host; the list of commands does not have it.
UNLISTED = {
    "host-end": Lazy(f"{_CLI}.host_cmd:host_end", "Be the host's end of --host."),
    "host-command": Lazy(f"{_CLI}.host_cmd:host_command", "Run a command for --host."),
}


def exit_codes() -> list[tuple[str, str]]:
    """The rows of the table in ``--help``, each with an exit code and its meaning."""
    rows = {0: "Success.", 1: _ONE, 2: "The command line is wrong."}
    for kind in error_classes():
        summary = " ".join((kind.__doc__ or "").split())
        rows.setdefault(kind.exit_code, f"{kind.__name__}: {summary}")
    rows[INTERRUPTED] = "Interrupted, or a question was not answered with yes."
    return [(str(code), text) for code, text in sorted(rows.items())]


class Root(LazyGroup):
    """The root group. With --host, what follows its own options is not taken apart here, but runs there."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, rest, _ = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_REST] = rest
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        app = ctx.ensure_object(App)
        if not app.remote.wanted:
            return super().invoke(ctx)
        from ovs_hotswap.cli.remote_cmd import run_there

        if ctx.get_parameter_source("config") is ParameterSource.COMMANDLINE:
            app.remote.config = ctx.meta[_CONFIG]
        return run_there(app, self, ctx.meta[_REST])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl(exit_codes())
        super().format_epilog(ctx, formatter)


def _set_config(context: click.Context, _option: click.Parameter, value: str) -> None:
    context.meta[_CONFIG] = value
    context.ensure_object(App).config_path = Path(value).absolute()


def _set_remote(context: click.Context, option: click.Parameter, value: object) -> None:
    setattr(context.ensure_object(App).remote, str(option.name), list(value) if isinstance(value, tuple) else value)


def _remote_options() -> list[click.Parameter]:
    """The options that have a command run on other hosts."""
    return [
        click.Option(
            ["--host", "hosts"], metavar="[USER@]HOST[:PORT]", multiple=True, expose_value=False, callback=_set_remote,
            help="Run the command on this host, over SSH. May be given several times.",
        ),
        click.Option(
            ["--hosts-file"], metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
            expose_value=False, callback=_set_remote, help="Run it on each host in FILE, which has one on a line.",
        ),
        click.Option(
            ["--parallel"], metavar="N", type=click.IntRange(1, 100), default=10, show_default=True,
            expose_value=False, callback=_set_remote, help="On at most N hosts at a time.",
        ),
        click.Option(
            ["--sudo"], is_flag=True, expose_value=False, callback=_set_remote,
            help="Become root there by sudo, which must not ask for a password.",
        ),
        click.Option(
            ["--host-program", "program"], metavar="PATH", default=PROGRAM, show_default=True, expose_value=False,
            callback=_set_remote, help="The program there.",
        ),
    ]  # fmt: skip


@click.group(
    cls=Root,
    name=PROGRAM,
    lazy=COMMANDS,
    unlisted=UNLISTED,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[
        click.Option(
            ["--config"], metavar="FILE", default=CONFIG_PATH, show_default=True, envvar="OVS_HOTSWAP_CONFIG",
            expose_value=False, callback=_set_config, help="The configuration file; with --host, the one there.",
            show_envvar=True,
        ),
        *_remote_options(),
        *output_options(),
    ],
)  # fmt: skip
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Replace a hypervisor's OVS-DPDK process under running VMs.

    \b
    Example:
      ovs-hotswap config example > /etc/ovs-hotswap/config.toml
      ovs-hotswap config check
      ovs-hotswap --json release list
      ovs-hotswap --host root@hv12 status

    \b
    Completion in bash (zsh_source and fish_source for those shells):
      eval "$(_OVS_HOTSWAP_COMPLETE=bash_source ovs-hotswap)"
    """


def run(arguments: Sequence[str], app: App, root: click.Group = cli) -> int:
    """Execute one command line, print its error if there is one, and return the exit code."""
    status = _executed(arguments, app, root)
    with contextlib.suppress(KeyboardInterrupt):  # the user does not want to read the rest
        app.output.catch_up()
    return _printed(app, status)


def _executed(arguments: Sequence[str], app: App, root: click.Group) -> int:
    try:
        status = root.main(list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=app)
    except click.ClickException as error:
        return _usage(error, arguments, app)
    except (Exception, click.Abort, KeyboardInterrupt) as error:  # noqa: BLE001 - the outermost frame
        _traceback(app)
        return _told(error, app)
    return status if isinstance(status, int) else 0


def _told(error: BaseException, app: App) -> int:
    """Print an error, and return the exit code. An error after the command has done everything, such as one of
    printing the result, does not make the command fail."""
    kind, hint, code = "InternalError", "repeat it with --debug and report what it prints", 1
    text = f"internal error: {type(error).__name__}: {error}"
    known = error if isinstance(error, HotswapError) else _refused(error)
    if known is not None:
        kind, text, hint, code = type(known).__name__, known.message, known.hint or "", known.exit_code
    elif isinstance(error, click.Abort | KeyboardInterrupt):
        kind, text, hint, code = "Interrupted", "interrupted", "", INTERRUPTED
    if app.output.done:
        text, code = f"{text}; what was asked for is done", 0
    app.output.fault(kind, text, hint or None, code)
    return code


def _refused(error: BaseException) -> HostError | None:
    """The error as a HostError if the machine refused something; ``None`` for a fault of this program."""
    from pyroute2.netlink.exceptions import NetlinkError

    from ovs_hotswap.system import host_error

    if isinstance(error, NetlinkError):
        error = OSError(error.code, f"netlink: {os.strerror(error.code)}")
    return host_error(error) if isinstance(error, OSError) else None


def _printed(app: App, status: int) -> int:
    """The exit code, given whether the output could be written. If it could not, a command that only shows something
    has failed, and a command that has done something has not."""
    fault = app.output.unprinted
    if fault is None or status != 0:
        return status
    if fault.errno != errno.EPIPE:  # otherwise the reader has seen enough
        done = "; what was asked for is done" if app.output.done else ""
        app.output.warning(f"standard output cannot be written: {fault.strerror}{done}")
    return 0 if app.output.done else 1


def _usage(error: click.ClickException, arguments: Sequence[str], app: App) -> int:
    if "--json" in arguments:  # the option itself may not have been reached
        app.output.json = True
        app.output.fault("UsageError", error.format_message(), None, error.exit_code)
    elif isinstance(error, _HELP):
        error.show(cast("IO[str]", app.output.err))
    else:
        context = getattr(error, "ctx", None)
        hint = None if context is None else f"`{context.command_path} --help`"
        app.output.fault("UsageError", error.format_message(), hint, error.exit_code)
    return error.exit_code


def _traceback(app: App) -> None:
    if app.debug:
        traceback.print_exc(file=app.output.err)


def main() -> None:
    """Run the console script."""
    restrict_umask()
    # The caller may ignore SIGCHLD: then the kernel forgets how a child ended, and every child seems to succeed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # it is closed: a file that is opened later would become a standard stream of a child
            os.open(os.devnull, os.O_RDWR)
    sys.exit(run(sys.argv[1:], App()))
