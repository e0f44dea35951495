"""``ovs-hotswap package``: what the scripts of the Debian package ask."""

from __future__ import annotations

import click

from ovs_hotswap.cli.app import App, Group, pass_app
from ovs_hotswap.host.host import Host
from ovs_hotswap.watchdog import replacement


@click.group(cls=Group)
def package() -> None:
    """Do what the scripts of ovs-hotswap's own package do when it is upgraded or removed.

    The scripts call these commands; they may also be given by hand. docs/packages.md says when each one is called.
    """


@package.command(name="may-replace", short_help="Say whether another version may be installed now.", changes=False)
@pass_app
def may_replace(app: App) -> None:
    """Say whether the files of this program may be replaced by those of another version. Nothing is changed.

    The exit code is 10 if an upgrade of the switch is under way or unfinished: the version that began it is to finish
    it. If the watchdog works on an instance, its task is waited for.
    With --json: {"replaceable"}: true.

    \b
    Example:
      ovs-hotswap package may-replace
    """
    replacement.see_replaceable(Host(app.config, app.system))
    app.output.document({"replaceable": True})


@package.command(name="replace-daemons", short_help="Have the broker and the watchdog run this version.", changes=True)
@pass_app
def replace_daemons(app: App) -> None:
    """Have this version take over from the broker that runs, and restart the watchdog if it runs. VMs keep their
    network, both instances stay, and what does not run is not started.

    A broker that this version cannot succeed keeps running, and nothing is replaced while an upgrade of the switch is
    under way. Every fault is printed; the exit code is that of the first.
    With --json: {"done": [text], "faults": [text]}.

    \b
    Example:
      ovs-hotswap package replace-daemons
    """
    done: list[str] = []

    def say(text: str) -> None:
        done.append(text)
        app.output.line(text)

    faults = replacement.replace_daemons(app.config, app.system, app.config_path, say)
    app.output.document({"done": done, "faults": [fault.message for fault in faults]})
    for fault in faults:
        app.output.warning(f"{fault.message}; {fault.hint}" if fault.hint else fault.message)
    if faults:
        click.get_current_context().exit(faults[0].exit_code)


@package.command(name="may-remove", short_help="Say whether this program may be removed now.", changes=False)
@pass_app
def may_remove(app: App) -> None:
    """Say whether this program may be removed. Nothing is changed.

    The exit code is 10 if an instance runs or is being started, which may serve VMs. The hint has the commands that
    stop it.
    With --json: {"removable"}: true.

    \b
    Example:
      ovs-hotswap package may-remove
    """
    replacement.see_removable(Host(app.config, app.system))
    app.output.document({"removable": True})
