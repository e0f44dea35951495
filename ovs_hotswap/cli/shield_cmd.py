"""``ovs-hotswap stock``: the units and scripts of the distribution's switch."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from ovs_hotswap.cli.app import App, Group, pass_app
from ovs_hotswap.controllers.ovs_ctl import OvsCtl
from ovs_hotswap.controllers.stock_units import PROGRAM, StockUnits


@click.group(cls=Group)
def stock() -> None:
    """Have the distribution's own units and scripts upgrade the switch, and not end it under its VMs.

    For hosts with `program = "clone"`, whose switch is that of the distribution until it is retired.
    """


@stock.command(short_help="Show what the distribution's units and scripts would do.", changes=False)
@pass_app
def show(app: App) -> None:
    """Show whether `systemctl reload` upgrades the switch, and whether the units and `ovs-ctl` are shielded.

    With --json: {"installed", "script"}: bool, "shielded": {unit: bool}.

    \b
    Example:
      ovs-hotswap stock show
    """
    units, script = _parts(app)
    shielded = units.shielded()
    app.output.document({"installed": units.installed(), "script": script.installed(), "shielded": shielded})
    reload = "upgrades the switch" if units.installed() else "ends the daemons and starts others"
    app.output.line(f"systemctl reload {app.config.stock.unit}: {reload}")
    for name, yes in shielded.items():
        app.output.line(f"systemctl restart {name}: {'is refused' if yes else 'ends the daemons and starts others'}")
    refused = script.installed() and any(shielded.values())
    app.output.line(f"ovs-ctl restart: {'is refused' if refused else 'ends the daemons and starts others'}")


@stock.command(short_help="Have `systemctl reload` upgrade the switch, for good.", changes=True)
@pass_app
def install(app: App) -> None:
    """Have `systemctl reload` of the distribution's unit upgrade to what is installed, and put a script in the place of
    `ovs-ctl` that refuses to end a shielded switch. No process is ended or started.

    The script is put there by dpkg-divert(1); without dpkg, `ovs-ctl` stays as it is.
    With --json: {"installed", "script"}: bool.

    \b
    Example:
      ovs-hotswap stock install
    """
    units, script = _parts(app)
    units.install()
    placed = script.install()
    app.output.document({"installed": units.installed(), "script": placed})
    if not placed:
        app.output.warning("ovs-ctl is not from a package of dpkg, and stays as it is")


@stock.command(short_help="Undo `stock install`.", changes=True)
@pass_app
def remove(app: App) -> None:
    """Put the distribution's `reload` and `ovs-ctl` back. Shields stay. No process is ended or started.

    With --json: {"installed", "script"}: bool.

    \b
    Example:
      ovs-hotswap stock remove
    """
    units, script = _parts(app)
    script.remove()
    units.remove()
    app.output.document({"installed": units.installed(), "script": script.installed()})


@stock.command(short_help="Have systemd refuse to stop the switch, until the next boot.", changes=True)
@pass_app
def shield(app: App) -> None:
    """Have systemd refuse to stop or restart the distribution's units on request, also for the scripts of their
    packages, until the next boot. Other units, and the end of the host, stop them as before.

    With --json: {"shielded": {unit: bool}}.

    \b
    Example:
      ovs-hotswap stock shield
    """
    units, _ = _parts(app)
    units.shield()
    app.output.document({"shielded": units.shielded()})


@stock.command(short_help="Undo `stock shield`.", changes=True)
@pass_app
def unshield(app: App) -> None:
    """Let systemd stop and restart the distribution's units on request. `systemctl restart` then cuts every VM off that
    this switch serves; if it was retired, it would end the instance that serves them.

    With --json: {"shielded": {unit: bool}}.

    \b
    Example:
      ovs-hotswap stock unshield
    """
    units, _ = _parts(app)
    units.unshield()
    app.output.document({"shielded": units.shielded()})


def _parts(app: App) -> tuple[StockUnits, OvsCtl]:
    found = PROGRAM if PROGRAM.exists() else Path(shutil.which("ovs-hotswap") or PROGRAM)
    units = StockUnits(app.config.stock.unit, app.system, found)
    return units, OvsCtl(app.system, units.shield_file)
