"""``ovs-hotswap status``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from ovs_hotswap.cli.app import App, Command, pass_app
from ovs_hotswap.cli.overview import Document, differences, lines, look
from ovs_hotswap.host.host import Host

if TYPE_CHECKING:
    from rich.console import Group

    from ovs_hotswap.switch.instance import InstanceStatus

_UNKNOWN = 6  # errors.StateUnknown


@click.command(cls=Command, changes=False)
@click.option("--watch", "-w", is_flag=True, help="Follow it until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, metavar="SECONDS",
    help="Time between two looks of --watch.",
)  # fmt: skip
@pass_app
def status(app: App, watch: bool, interval: float) -> None:
    """Show the whole host: the active instance, the standby, which instance serves the VMs, an unfinished upgrade, and
    every problem.

    What cannot be read is shown as unknown, with the reason; then the exit code is 6.

    With --watch a terminal always shows the present state. Elsewhere, each change is a line with its time; with --json
    each change is a document on one line. Ctrl-C ends it with exit code 0.

    With --json: {"active", "uplink", "instances": [...], "packet_pools": {side: [{"node", "buffers", "in_use",
    "buffer_bytes"}]}, "vms": {"total", "connected", "owners": {side: n}, "quarantined": {vm: text},
    "unprotected": [vm]}, "unfinished": {"kind", "phase", "parameters", "failure", "rebooted"} or null,
    "last": {...} or null, "watch": {...}, "broker": {...} or null, "flowlog": {...} or null,
    "problems": [{"about", "text", "hint"}], "unknown": [text], "unknown_fields": [name]}.

    \b
    Example:
      ovs-hotswap status
      ovs-hotswap status -w
    """
    if watch:
        follow(app, lambda: look(Host(app.config, app.system)), lambda: time.sleep(interval))
        return
    document = look(Host(app.config, app.system))
    app.output.document(document)
    for label, text in lines(document):
        app.output.line(f"{label:<9}{text}")
    app.output.line()
    show_instances(app, document["instances"])
    if document["unknown"]:
        click.get_current_context().exit(_UNKNOWN)


def follow(app: App, look_again: Callable[[], Document], wait: Callable[[], None]) -> None:
    """Show each change until the user interrupts."""
    try:
        if app.output.terminal:
            _follow_live(app, look_again, wait)
        else:
            _follow_lines(app, look_again, wait)
    except KeyboardInterrupt:
        return


def _follow_live(app: App, look_again: Callable[[], Document], wait: Callable[[], None]) -> None:
    from rich.live import Live

    with Live(console=app.output.console(), auto_refresh=False) as live:
        while True:
            live.update(_rendered(look_again()), refresh=True)
            wait()


def _rendered(document: Document) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    styles = {"problem": "yellow", "unknown": "bold red"}
    facts = Table(box=None, show_header=False, pad_edge=False)
    for label, text in lines(document):
        facts.add_row(Text(label, style="bold"), Text(text, style=styles.get(label, "")))
    instances = Table(box=None, header_style="bold", pad_edge=False)
    for column in _COLUMNS:
        instances.add_column(column)
    for row in _rows(document["instances"]):
        instances.add_row(*("-" if cell is None else str(cell) for cell in row))
    return Group(facts, "", instances)


def _follow_lines(app: App, look_again: Callable[[], Document], wait: Callable[[], None]) -> None:
    before = None
    while True:
        document = look_again()
        now = lines(document)
        if before is None or differences(before, now):
            app.output.document(document, indent=None)
        clock = time.strftime("%H:%M:%S")
        for text in differences(before or [], now):
            app.output.line(f"{clock}  {text}")
        before = now
        wait()


_COLUMNS = ("instance", "state", "release", "ovs-vswitchd", "ovsdb-server")


def _rows(instances: Iterable[InstanceStatus]) -> list[tuple[object, ...]]:
    return [
        (each.side, each.state, each.release.label if each.release else None, each.vswitchd_pid, each.ovsdb_pid)
        for each in instances
    ]


def show_instances(app: App, instances: Iterable[InstanceStatus]) -> None:
    """Print the table of ``status`` and ``instance list``."""
    app.output.table(_COLUMNS, _rows(instances))
