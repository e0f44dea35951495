"""``ovs-hotswap diagnose``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ovs_hotswap.cli.app import App, Command, pass_app
from ovs_hotswap.cli.findings_page import CODES, follow, show, vm_names

if TYPE_CHECKING:
    from ovs_hotswap.diagnose.found import Report

_PAUSE_S = 1.0  # between two looks, beside the time of a look


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

    from ovs_hotswap.diagnose.page import headlines, lines

    if watch:
        follow(app, look, headlines, lambda: time.sleep(_PAUSE_S))
        return
    found = look()
    app.output.document(found)
    show(app, lambda width: lines(found, width))
    click.get_current_context().exit(CODES.get(found.worst, 0))


def _report(app: App, vm: str | None, to: str | None, seconds: float, *, probe: bool) -> Report:
    from ovs_hotswap.diagnose.asking import answers, asked
    from ovs_hotswap.diagnose.judging import report
    from ovs_hotswap.diagnose.looking import Look

    look = Look(app.config, app.system, seconds, probe, vm)
    facts = look.facts()
    wish = asked(facts, vm, to)
    return report(facts, wish, answers(look.host(), facts, wish))
