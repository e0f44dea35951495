"""``ovs-hotswap metrics``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ovs_hotswap.cli import logs
from ovs_hotswap.cli.app import App, Group, pass_app

DEFAULT_LISTEN = "127.0.0.1:9865"


@click.group(cls=Group)
def metrics() -> None:
    """Export metrics of this host to Prometheus."""


def _address(context: click.Context, option: click.Parameter, value: str) -> tuple[str, int]:
    """Take ADDRESS:PORT apart. Without an address, it is every one of this host."""
    address, _, port = value.rpartition(":")
    if not port.isdecimal() or int(port) > 0xFFFF:
        raise click.BadParameter(
            f"{value!r} is no ADDRESS:PORT, such as {DEFAULT_LISTEN} or [::1]:9865", context, option
        )
    return address.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)


_host = click.option("--host-label", metavar="NAME", envvar="OVS_HOTSWAP_METRICS_HOST", show_envvar=True,
                     show_default="the host's name", help="The value of the label `host`.")  # fmt: skip


@metrics.command(short_help="Answer scrapes until SIGTERM.", changes=False)
@click.option("--listen", callback=_address, default=DEFAULT_LISTEN, show_default=True, metavar="ADDRESS:PORT",
              envvar="OVS_HOTSWAP_METRICS_LISTEN", show_envvar=True,
              help="Where to answer. Anyone who reaches it may read; nothing can be changed there.")  # fmt: skip
@_host
@logs.log_level
@pass_app
def serve(app: App, listen: tuple[str, int], host_label: str | None, log_level: str) -> None:
    """Answer scrapes of Prometheus at http://ADDRESS:PORT/metrics until SIGTERM.

    Each scrape looks at the host, which takes part of a second with hundreds of VMs and only looks. What cannot be read
    is left out, and the metric `ovs_hotswap_unknown` says so. Counters of packets never go backwards: what an instance
    counted is kept in metrics.json in run_dir when another takes its place, and when this command is started again.
    With --json: nothing is printed.

    \b
    Example:
      ovs-hotswap metrics serve
      ovs-hotswap metrics serve --listen 192.0.2.10:9865
    """
    import gc
    import signal
    import threading

    from ovs_hotswap.metrics import collector
    from ovs_hotswap.service import sd_notify

    logs.start_log(log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server, thread = collector.serve(collector.HostCollector(app.config, app.system, host=host_label), *listen)
    gc.freeze()  # what is there for as long as the process lives is left out of each collection
    sd_notify.notify("READY=1")
    try:
        while not stop.wait(3600):
            pass
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _writes(given: Mapping[str, Any]) -> bool:
    return str(given.get("file")) != "-"


@metrics.command(short_help="Write the metrics into a file for node_exporter.", changes=_writes)
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@_host
@pass_app
def write(app: App, file: Path, host_label: str | None) -> None:
    """Look at the host once, and write the metrics into FILE, or print them if it is `-`.

    FILE is for the textfile collector of node_exporter, which wants a name that ends with .prom. It is replaced as a
    whole. Counters continue from one call to the next, as they do with `metrics serve`.
    With --json: {"file", "bytes"}.

    \b
    Example:
      ovs-hotswap metrics write /var/lib/prometheus/node-exporter/ovs-hotswap.prom
      ovs-hotswap metrics write -
    """
    from ovs_hotswap.metrics.collector import HostCollector
    from ovs_hotswap.metrics.exposition import text

    found = text(HostCollector(app.config, app.system, host=host_label))
    if str(file) == "-":
        app.output.document({"file": None, "bytes": len(found)})
        app.output.line(found.rstrip("\n"))
        return
    app.system.write_atomic(file.absolute(), found)
    app.output.document({"file": str(file), "bytes": len(found)})


@metrics.command("list", short_help="List every metric with its labels and meaning.", changes=False)
@pass_app
def list_(app: App) -> None:
    """List every metric, whether this host has it now or not.

    With --json: [{"name", "kind", "labels": [name], "help"}].

    \b
    Example:
      ovs-hotswap metrics list
    """
    from ovs_hotswap.metrics.catalogue import METRICS

    rows = [(each.full_name, each.kind, ("host", *each.labels), each.help) for each in METRICS.values()]
    app.output.document([{"name": name, "kind": kind, "labels": list(labels), "help": text}
                         for name, kind, labels, text in rows])  # fmt: skip
    for name, kind, labels, text in rows:
        app.output.line(f"{name}  {kind}  {{{', '.join(labels)}}}\n    {text}")
