"""``ovs-hotswap adopt`` and ``ovs-hotswap release-vms``."""

from __future__ import annotations

import click

from ovs_hotswap.cli.app import App, Command, pass_app, unless_dry_run
from ovs_hotswap.upgrade.giving_back import Changed, adopt_here, give_back, given_back, to_adopt

_vms = click.argument("vms", metavar="[VM]...", nargs=-1)


@click.command(cls=Command, changes=unless_dry_run, short_help="Put VMs of a running switch under the broker.")
@_vms
@click.option("--dry-run", is_flag=True, help="Show which VMs would be taken over, change nothing.")
@click.option("--reconnect", is_flag=True, help="Give each QEMU a new connection, also where that is not needed.")
@pass_app
def adopt(app: App, vms: tuple[str, ...], dry_run: bool, reconnect: bool) -> None:
    """Put VMs that the active switch serves without the broker under the broker; the switch stays.

    This is for hosts with `program = "clone"`. A guest has no network for some 60 milliseconds, and its QEMU notices
    nothing. A VM whose connection cannot be entered, for example because the switch's log does not have it, gets a new
    one: its guest may see its link go down and up. `ovs-hotswap upgrade` needs none of this: it takes VMs over on the
    way, without loss. Without VM, all VMs are taken over, one after the other.

    With --json: {"vms": [{"vm", "error", "reconnected"}]}; "reconnected" says why a VM got a new connection.

    \b
    Example:
      ovs-hotswap adopt --dry-run
      ovs-hotswap adopt web1
    """
    if dry_run:
        _report(app, to_adopt(app.config, app.system, vms), "would be taken over")
        return
    _report(app, adopt_here(app.config, app.system, vms, new=reconnect), "is served through the broker")


@click.command(name="release-vms", cls=Command, changes=unless_dry_run,
               short_help="Give VMs back to a plain switch, without a broker.")  # fmt: skip
@_vms
@click.option("--dry-run", is_flag=True, help="Show which VMs would be given back, change nothing.")
@pass_app
def release_vms(app: App, vms: tuple[str, ...], dry_run: bool) -> None:
    """Give VMs back to the switch that serves them, without the broker between them.

    This is for hosts with `program = "clone"`, and undoes what `upgrade` and `adopt` did to a VM's socket. Only one
    switch may run: end a standby before. A guest has no network until the switch has connected to its QEMU again: some
    ten milliseconds, or up to two seconds. Without VM, all VMs are given back, one after the other, and the broker may
    be stopped then.

    With --json: {"vms": [{"vm", "error"}]}.

    \b
    Example:
      ovs-hotswap release-vms --dry-run
      ovs-hotswap release-vms
    """
    if dry_run:
        _report(app, given_back(app.config, app.system, vms), "would be given back")
        return
    _report(app, give_back(app.config, app.system, vms), "is served without the broker")


def _report(app: App, changed: list[Changed], done: str) -> None:
    """Print what became of each VM. Raises the first error after all VMs were tried."""
    app.output.document({"vms": [
        {"vm": each.vm, "error": each.error and each.error.message, "reconnected": each.reconnected}
        for each in changed
    ]})  # fmt: skip
    for each in changed:
        more = "" if each.reconnected is None else f"; it got a new connection: {each.reconnected}"
        app.output.line(f"VM {each.vm} {done}{more}" if each.error is None else f"VM {each.vm}: {each.error.message}")
    if not changed:
        app.output.line("no VM is concerned")
    for each in changed:
        if each.error is not None:
            raise each.error
