"""``ovs-hotswap trace``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovs_hotswap.cli.app import App, Command, pass_app
from ovs_hotswap.cli.findings_page import vm_names

if TYPE_CHECKING:
    from ovs_hotswap.host.host import Host
    from ovs_hotswap.tracing.session import Tracer

_PROTOCOLS = ("tcp", "udp", "sctp", "icmp", "icmp6", "arp", "ip", "ip6")  # tracing.wish.PROTOCOLS
_MOST_SECONDS, _MOST_PACKETS = 60, 1000


def _protocol(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A protocol by its name, or the number of one in IP."""
    if value is None or value in _PROTOCOLS or (value.isdecimal() and int(value) < 256):
        return value
    raise click.BadParameter(
        f"{value!r} is none of {', '.join(_PROTOCOLS)}, and no number below 256", context, parameter
    )


def _changes(given: Mapping[str, Any]) -> bool:
    return not given.get("dry_run")


@click.command(cls=Command, changes=_changes)
@click.argument("vm", required=False, shell_complete=vm_names)
@click.option("--to", metavar="MAC|IP|VM", shell_complete=vm_names, help="Only packets to this address.")
@click.option("--from", "source", metavar="MAC|IP|VM", shell_complete=vm_names,
              help="Only packets from this address.")  # fmt: skip
@click.option("--proto", metavar="PROTOCOL", callback=_protocol,
              help=f"Only packets of a protocol: {', '.join(_PROTOCOLS)}, or its number in IP.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), metavar="PORT",
              help="Only packets with this port of TCP, UDP or SCTP at either end.")  # fmt: skip
@click.option("--answers", is_flag=True, help="With --to or --from: also the packets of the other direction.")
@click.option("--count", type=click.IntRange(1, _MOST_PACKETS), default=10, show_default=True, metavar="PACKETS",
              help="End after so many packets.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.5, _MOST_SECONDS), default=10.0, show_default=True,
              metavar="SECONDS", help="End after this time.")  # fmt: skip
@click.option("--max-rate", type=click.IntRange(1), default=5_000, show_default=True, metavar="PACKETS",
              help="Do not copy more packets than this in a second: end, or do not begin.")  # fmt: skip
@click.option("--snaplen", type=click.IntRange(64, 65535), default=256, show_default=True, metavar="BYTES",
              help="How many bytes of each packet are copied.")  # fmt: skip
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Also write the packets to a file, as Wireshark and tcpdump read it (pcap).")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would be made in the switch, and whether it may be.")
@click.option("--clean", is_flag=True, help="End the trace that is under way, and remove what a killed one left.")
@pass_app
def trace(
    app: App, vm: str | None, to: str | None, source: str | None, proto: str | None, port: int | None, answers: bool,
    count: int, seconds: float, max_rate: int, snaplen: int, write: Path | None, dry_run: bool, clean: bool,
) -> None:  # fmt: skip
    """Follow real packets of a VM through the switch: port in, tables and flows, connection tracking, port out.

    The switch copies what passes the VM's port to a port of its own for a short time, and nothing else changes: no flow
    is touched, and other VMs' packets are not looked at. For each packet the flows of the datapath show what really
    became of it, and the flow tables are asked why; where only the tables say it, that is said. The copies end with the
    command, also if it is killed, and when an upgrade begins.

    From Open vSwitch 3.5 on only packets of the wanted addresses and protocol are copied; before, all of the VM.

    Exit code 0, also if no packet came.

    With --json: {"vm", "instance", "bridge", "wish", "began", "seconds", "ended", "copied", "missed", "filtered",
    "packets": [{"number", "time", "direction", "bytes", "text", "path"}], "paths": [{"number", "port_in", "ports_out",
    "dropped", "steps": [text], "conntrack": [text], "datapath": [{"match", "actions", "packets", "used_s"}], "basis",
    "note"}], "limits": [text]}. With --dry-run: {"vm", "bridge", "filters", "packets_per_second"}. With --clean:
    {"removed": [{"vm", "bridge", "process"}]}.

    \b
    Example:
      ovs-hotswap trace web1
      ovs-hotswap trace web1 --to 10.0.0.7 --proto tcp --port 443 --answers
      ovs-hotswap trace web1 --count 100 --write web1.pcap
      ovs-hotswap trace --clean
    """
    from ovs_hotswap.host.host import Host

    host = Host(app.config, app.system)
    if clean:
        _clean(app, host)
        return
    if vm is None:
        raise click.UsageError("name a VM: `ovs-hotswap trace VM`")
    from ovs_hotswap.tracing import target as targets
    from ovs_hotswap.tracing.capture import pcap_file
    from ovs_hotswap.tracing.session import Bounds, Tracer

    target = targets.find(host, vm)
    wish = targets.wish_of(target, source, to, proto, port, answers=answers)
    bounds = Bounds(count, seconds, max_rate, snaplen)
    if dry_run:
        _dry_run(app, vm, target.bridge, Tracer(host, target, wish, bounds))
        return
    with pcap_file(write, snaplen) as file:
        text = f"{vm}: {wish.text()}, for {seconds:g} s or {count} packets"
        _follow(app, Tracer(host, target, wish, bounds, file), text)


def _follow(app: App, tracer: Tracer, heading: str) -> None:
    from ovs_hotswap.tracing.found import Packet
    from ovs_hotswap.tracing.found import Path as Way
    from ovs_hotswap.tracing.page import packet_lines, summary

    width = shutil.get_terminal_size().columns if app.output.terminal else 100

    def show(packet: Packet, way: Way, new: bool) -> None:
        for text in packet_lines(packet, way, new, width):
            app.output.line(text)

    found = tracer.run(show, lambda: app.output.line(heading))
    app.output.document(found)
    for text in summary(found, width):
        app.output.line(text)


def _dry_run(app: App, vm: str, bridge: str, tracer: Tracer) -> None:
    tracer.see()
    filters, rate = tracer.filters(), tracer.rate()
    app.output.document({"vm": vm, "bridge": bridge, "filters": [each for each in filters if each is not None],
                         "packets_per_second": round(rate)})  # fmt: skip
    what = ", ".join(each if each is not None else "all packets" for each in filters)
    app.output.line(f"would add to bridge {bridge}: the port ovsh-trace, and {len(filters)} mirrors of {vm} ({what})")
    app.output.line(f"{vm} sends and receives {rate:.0f} packets a second now")


def _clean(app: App, host: Host) -> None:
    from ovs_hotswap.host.traces import remove

    removed = remove(host)
    app.output.document({"removed": [
        {"vm": each.owner.vm if each.owner else None, "bridge": each.bridge,
         "process": each.owner.pid if each.owner else None}
        for each in removed
    ]})  # fmt: skip
    for each in removed:
        of = f"the trace of {each.owner.vm} (process {each.owner.pid})" if each.owner else "a trace"
        app.output.line(f"removed {of} from bridge {each.bridge}")
    if not removed:
        app.output.line("there is no trace")
