"""``ovs-hotswap flowlog``."""

from __future__ import annotations

import time
from typing import Any

import click

from ovs_hotswap.cli import logs
from ovs_hotswap.cli.app import App, Group, pass_app


@click.group(cls=Group)
def flowlog() -> None:
    """Export what VMs send and are given, by IPFIX."""


@flowlog.command(short_help="Send the instances' records to the collectors until SIGTERM.", changes=True)
@logs.log_level
@pass_app
def run(app: App, log_level: str) -> None:
    """Take the records of both instances, and send them to the collectors as those of one exporter, until SIGTERM.

    The table [flowlog] of the configuration says what is logged; a change of it is followed. Nothing depends on this
    command: if it does not run, records are lost, and nothing else. Records that VMs' packets make while it does not
    run are missing, which `ovs-hotswap flowlog show` says.
    With --json: nothing is printed.

    \b
    Example:
      ovs-hotswap flowlog run
    """
    import signal

    from ovs_hotswap.flowlog.relay import Relay
    from ovs_hotswap.service import sd_notify
    from ovs_hotswap.trust import own_directory

    logs.start_log(log_level)
    own_directory(app.config.run_dir)
    relay = Relay(app.config, app.system, app.config_path)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: relay.stop())
    relay.run(lambda: sd_notify.notify("READY=1"))


@flowlog.command(short_help="Show what is logged, where it goes, and what may be missing.", changes=False)
@pass_app
def show(app: App) -> None:
    """Show the ids of this host and of its VMs in the records, the collectors, the relay, and the times of which
    records may be missing.

    The exit code is 1 if something keeps records from the collectors.
    With --json: {"on", "observation_domain", "sampling", "export_s", "vms": [{"vm", "observation_point", "logged"}],
    "relay": {"running", "pid", "listening": [side], "sources": {side: {...}}}, "collectors": [{"collector", "sent",
    "refused", "fault"}], "gaps": [{"begin", "end", "why"}], "problems": [{"text", "hint"}]}.

    \b
    Example:
      ovs-hotswap flowlog show
      ovs-hotswap flowlog show --json
    """
    from ovs_hotswap.flowlog.look import look
    from ovs_hotswap.host.host import Host

    document = look(Host(app.config, app.system))
    app.output.document(document)
    _show(app, document)
    if document["problems"]:
        click.get_current_context().exit(1)


def _show(app: App, document: dict[str, Any]) -> None:
    out = app.output
    if not document["on"]:
        out.line("the flow log is off: [flowlog] names no collector")
        return
    logged = [each for each in document["vms"] if each["logged"]]
    domain = "unknown" if document["observation_domain"] is None else document["observation_domain"]
    out.line(f"domain     {domain}")
    out.line(f"packets    1 of {document['sampling']}, of {len(logged)} of {len(document['vms'])} VMs, "
             f"exported after {document['export_s']} s")  # fmt: skip
    relay = document["relay"]
    out.line(f"relay      {_relay(relay)}" if relay["running"] else "relay      does not run")
    for each in document["collectors"]:
        counts = "" if each["sent"] is None else f": {each['sent']} messages sent, {each['refused']} refused"
        out.line(f"collector  {each['collector']}{counts}")
    for each in document["gaps"]:
        out.line(f"missing    {_when(each['begin'])} to {_when(each['end'])}: {each['why']}")
    for each in document["problems"]:
        out.line(f"problem    {each['text']}; {each['hint']}")
    out.line()
    out.table(("VM", "observation point"), [(each["vm"], each["observation_point"]) for each in logged])


def _relay(relay: dict[str, Any]) -> str:
    heard = [f"{side}: {each['records']} records, {each['overflowed'] + each['unknown'] + each['malformed']} lost"
             for side, each in relay["sources"].items()]  # fmt: skip
    listening = ", ".join(relay["listening"]) or "none"
    return f"runs, process {relay['pid']}, hears instance {listening}; {'; '.join(heard)}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
