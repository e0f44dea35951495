"""``ovs-hotswap diagnose``."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ovs_hotswap.cli.app import App, Command, pass_app
from ovs_hotswap.cli.output import MARKS, STYLES
from ovs_hotswap.errors import HotswapError, PrecheckFailed, StateUnknown
from ovs_hotswap.model import Severity

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from rich.text import Text

    from ovs_hotswap.diagnose.found import Report

_PAUSE_S = 1.0  # between two looks, beside the time of a look
_CODES = {Severity.ERROR: PrecheckFailed.exit_code, Severity.UNKNOWN: StateUnknown.exit_code}


def vm_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of VMs, for completion; none if the configuration cannot be read."""
    from click.shell_completion import CompletionItem

    from ovs_hotswap.host.host import Host

    app = context.find_object(App) or App()
    try:
        names = [vm.name for vm in Host(app.config, app.system).vm_ports]
    except HotswapError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command(cls=Command, changes=False)
@click.argument("vm", required=False, shell_complete=vm_names)
@click.option(
    "--to", metavar="MAC|IP|VM", shell_complete=vm_names,
    help="What the VM does not reach: a MAC, an IP address, or a VM of this host.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(0.6, 60), default=1.0, show_default=True, metavar="SECONDS",
    help="How long counters are watched. Longer finds what is dropped now and then.",
)  # fmt: skip
@click.option("--no-probe", is_flag=True, help="Send no frames: neither prove the uplink nor ask next hops.")
@click.option("--watch", "-w", is_flag=True, help="Look again and again until Ctrl-C, and show each change.")
@pass_app
def diagnose(app: App, vm: str | None, to: str | None, seconds: float, no_probe: bool, watch: bool) -> None:
    """Say why a VM has no network, or where its packets go: worst first, with evidence and the next command.

    Without a VM, everything of the host is looked at. With a VM, the page also shows its rings, its port, the way to
    other hosts, and what the flow tables do with its packets; with --to, with those to one target and back. Nothing is
    changed. Frames are sent only to prove the uplink and to ask next hops for their MACs, as a watchdog does anyway.

    Exit code 4 if a finding is an error, otherwise 6 if something could not be seen, otherwise 0; with --watch always
    0.

    With --json: {"vm", "to", "active", "seconds", "findings": [{"cause", "severity", "vm", "text", "evidence":
    [text], "command"}], "seen": [{"about", "text"}], "paths": [{"question", "steps": [text], "delivered"}], "drops":
    [{"vm", "vni", "reason", "packets", "now"}], "limits": [text]}. With --watch each change is a document on one line.

    \b
    Example:
      ovs-hotswap diagnose
      ovs-hotswap diagnose web1
      ovs-hotswap diagnose web1 --to 52:54:00:64:00:02
    """
    if to is not None and vm is None:
        raise click.UsageError("--to needs a VM: `ovs-hotswap diagnose VM --to MAC`")

    def look() -> Report:
        return _report(app, vm, to, seconds, probe=not no_probe)

    if watch:
        follow(app, look, lambda: time.sleep(_PAUSE_S))
        return
    found = look()
    app.output.document(found)
    _show(app, found)
    click.get_current_context().exit(_CODES.get(found.worst, 0))


def _report(app: App, vm: str | None, to: str | None, seconds: float, *, probe: bool) -> Report:
    from ovs_hotswap.diagnose.asking import answers, asked
    from ovs_hotswap.diagnose.judging import report
    from ovs_hotswap.diagnose.looking import Look

    look = Look(app.config, app.system, seconds, probe, vm)
    facts = look.facts()
    wish = asked(facts, vm, to)
    return report(facts, wish, answers(look.host(), facts, wish))


def _show(app: App, found: Report) -> None:
    if app.output.json:
        return
    from ovs_hotswap.diagnose.page import lines

    if not app.output.terminal:
        for _, text in lines(found):
            app.output.line(text)
        return
    console = app.output.console()
    for severity, text in lines(found, shutil.get_terminal_size().columns):
        console.print(_styled(severity, text), soft_wrap=True)


def _styled(severity: Severity | None, text: str) -> Text:
    from rich.text import Text

    styled = Text(text)
    if severity is not None:
        mark = MARKS[severity]
        style = STYLES[mark]
        styled.stylize(style, *((0, len(mark)) if text.startswith(mark) else (0, len(text))))
    return styled


def follow(app: App, look: Callable[[], Report], wait: Callable[[], None]) -> None:
    """Show each change of the findings until the user interrupts. A look that fails is shown, and tried again."""
    from ovs_hotswap.diagnose.page import headlines

    before: list[str] | None = None
    try:
        while True:
            try:
                found = look()
                now = headlines(found)
            except HotswapError as error:
                found, now = None, [f"{MARKS[Severity.UNKNOWN]:<5} {error.message}"]
            clock = time.strftime("%H:%M:%S")
            if found is not None and now != before:
                app.output.document(found, indent=None)
            if before is None and not now:
                app.output.line(f"{clock}  {MARKS[Severity.OK]:<5} nothing that was looked at is wrong")
            for text in [each for each in now if each not in (before or [])]:
                app.output.line(f"{clock}  {text}")
            for text in [each for each in before or [] if each not in now]:
                app.output.line(f"{clock}  no longer: {text}")
            before = now
            wait()
    except KeyboardInterrupt:
        return
