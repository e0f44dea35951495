"""``ovs-hotswap watch``."""

from __future__ import annotations

import time
from typing import Any

import click

from ovs_hotswap.cli import logs
from ovs_hotswap.cli.app import App, Group, pass_app
from ovs_hotswap.model import Severity


@click.group(cls=Group)
def watch() -> None:
    """Keep a warm standby, and move every VM to it when the active instance dies or hangs."""


@watch.command(short_help="Run the watchdog in the foreground until SIGTERM.", changes=True)
@logs.log_level
@pass_app
def run(app: App, log_level: str) -> None:
    """Run the watchdog in the foreground until SIGTERM; the standby stays when it ends.

    The watchdog keeps a standby: the instance that is not active runs, is programmed, and has every VM parked on it. An
    upgrade uses that standby if it runs the wanted release, and otherwise ends it; after the upgrade the watchdog makes
    a new one. With mode = "restart" in [watch], which a host that others program has, no standby is kept. With mode =
    "off" the command ends at once.

    When the active instance dies, or hangs, every VM moves to the standby, which becomes the active one. Without a
    ready standby, an active instance that died is started again, and the VMs have no network until it is programmed, or
    on a host that others program has its flows again; one that hangs is left alone, because it may still forward. VMs
    keep their network while the watchdog itself is restarted.
    With --json: nothing is printed.

    \b
    Example:
      ovs-hotswap watch run
    """
    import signal

    from ovs_hotswap.service import sd_notify
    from ovs_hotswap.watchdog.daemon import Watchdog

    logs.start_log(log_level)
    if app.config.watch.mode == "off":
        sd_notify.notify("READY=1")  # so that its end is not a failure of its unit
        app.output.line('the watchdog is off: watch.mode = "off"')
        return
    watchdog = Watchdog(app.config, app.system, app.config_path)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's script ignores SIGINT in what it starts with `&`
            signal.signal(number, watchdog.on_signal)
    watchdog.run()


@watch.command(short_help="Show the watchdog, the standby and what happened.", changes=False)
@click.option("--events", metavar="N", type=click.IntRange(0, 1000), default=5, show_default=True,
              help="Show the N newest events.")  # fmt: skip
@pass_app
def status(app: App, events: int) -> None:
    """Show whether the watchdog runs, whether a standby is ready, and what happened last.

    The exit code is 1 if mode is "required" and no standby is ready.
    With --json: {"mode", "running", "ready", "active", "standby", "health", "reason", "keeping", "unprotected",
    "not_parked", "quarantined", "differing", "problem", "failover_problem", "events_problem", "failures", "gave_up",
    "uplinks": {side: {"severity", "text"}}, "events": [{"time", "event", ...}]}.

    \b
    Example:
      ovs-hotswap watch status
      ovs-hotswap watch status --events 50 --json
    """
    from ovs_hotswap.watchdog import report, status_file

    newest = status_file.last_events(app.config, events) if events else []
    document = {**report.read(app.config, app.system), "events": newest}
    app.output.document(document)
    _show(app, document)
    if app.config.watch.mode == "required" and not document["ready"]:
        click.get_current_context().exit(1)


def _show(app: App, document: dict[str, Any]) -> None:
    from ovs_hotswap.watchdog import status_file

    out = app.output
    out.line(f"watchdog  {'runs' if document['running'] else 'does not run'}, mode {document['mode']}")
    if document["running"]:
        health = ": ".join(filter(None, (document["health"], document["reason"])))
        out.line(f"active    {document['active'] or 'none'}, {health or 'not looked at yet'}")
        out.line(f"standby   {document['standby'] or 'none'}, {document['keeping'] or 'not looked at yet'}")
        if document["unprotected"]:
            out.line(f"not parked: VM {', '.join(map(str, document['unprotected']))}")
        for name, cause in (document["not_parked"] or {}).items():
            out.line(f"  {name}: {cause}")
        for name, cause in (document["quarantined"] or {}).items():
            out.line(f"in quarantine: VM {name}: {cause}; `ovs-hotswap vm release {name}` ends it")
        if document["gave_up"]:
            out.line(f"gave up after {document['failures']} failures: no standby is started any longer; "
                     "repair the cause, then start the watchdog again; if the cause is a VM, "
                     "`ovs-hotswap vm quarantine VM` cuts it off")  # fmt: skip
        for seen in (document["uplinks"] or {}).values():
            if seen["severity"] != Severity.OK:
                out.line(f"uplink    {seen['text']}")
        for key in status_file.PROBLEMS:
            if document[key]:
                out.line(f"problem   {document[key]}")
    for each in document["differing"]:
        out.line(f"{each}: start the watchdog again, so that it follows this")
    for event in document["events"]:
        rest = ", ".join(f"{key} {value}" for key, value in event.items() if key not in {"time", "event"})
        out.line(f"{_when(event.get('time'))}  {event.get('event')}  {rest}")


def _when(seconds: object) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(str(seconds))))
    except (ValueError, OverflowError, OSError):  # another program wrote the time
        return "at an unknown time"
