"""``ovs-hotswap overlay``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from ovs_hotswap.cli.app import App, Group, pass_app, unless_dry_run
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay.tables import Form, Table, annotated, lines
from ovs_hotswap.switch.tunnel import tunnel_diff

if TYPE_CHECKING:
    from ovs_hotswap.host.host import Host

DIFFERENT = 1  # as diff(1)

EXAMPLE = """\
# ovs-hotswap: the overlay intent of one hypervisor. `ovs-hotswap overlay check` validates this file.
#
# What it cannot say: a VM has one MAC address, and what it sends from another (VRRP, nested bridges, allowed address
# pairs) is dropped as spoofed; a frame to a MAC that is not in this file is dropped, not flooded; every host that can
# send to this VTEP over the underlay can send into a virtual network, from any address.

# This host's end of the tunnels: its address with the prefix of the underlay network, and the MAC of the uplink's
# physical function. The address may be of IPv4 or IPv6, and so must be all other addresses of the underlay here.
[vtep]
address = "172.31.0.1/24"
mac = "52:54:00:1f:00:01"
# This host's addresses on the links to its next hops, if the VTEP's own is on none of them (a /32 on a loopback).
# link_addresses = ["192.0.2.1/31", "192.0.2.3/31"]
# MTU of the underlay, and so of the uplink's devices.
# mtu = 1500
# The tag of the underlay's packets, if the instance's port gets them with one.
# vlan = 100
# The kind of the tunnels, "vxlan" or "geneve" (without options), and their UDP port (4789 and 6081).
# tunnel = "vxlan"
# udp_port = 4789
# VMs may have an MTU that does not fit into the tunnels, for packets between VMs on this host.
# local_jumbo = false

# A VM's port. name: at most 15 characters; ofport: OpenFlow port, 10 to 4000; vni: its virtual network.
[[vm]]
name = "web1"
ofport = 11
mac = "52:54:00:00:00:01"
vni = 100
# MTU: its guest must have the same. Tunnels carry packets that are 50 bytes shorter than those of the underlay, or 70
# bytes over IPv6.
mtu = 1450
# Queue pairs of its network device.
# queues = 1

[[vm]]
name = "db1"
ofport = 12
mac = "52:54:00:00:00:02"
vni = 100
mtu = 1450
queues = 2

# A MAC address of a virtual network that is behind another host's VTEP.
[[remote]]
vni = 100
mac = "52:54:00:00:01:01"
vtep = "172.31.0.2"

[[remote]]
vni = 100
mac = "52:54:00:00:02:01"
vtep = "172.31.8.9"

# A host or router on the underlay network. Without its MAC address, it is asked for, and followed by the watchdog.
[[neighbour]]
address = "172.31.0.2"
mac = "52:54:00:1f:00:02"

[[neighbour]]
address = "172.31.0.254"
mac = "52:54:00:1f:00:fe"

# An underlay network behind a router. Several gateways are a list: the first one that answers is used.
[[route]]
destination = "172.31.8.0/24"
gateway = "172.31.0.254"
"""


def _document(table: Table) -> dict[str, object]:
    # 64 bits are more than JSON's numbers hold in many programs, so the cookie is text.
    flows = [{**dataclasses.asdict(flow), "cookie": f"{flow.cookie:#018x}"} for flow in table.flows]
    return {**dataclasses.asdict(table), "flows": flows}


_form = click.option(
    "--form", type=click.Choice([form.value for form in Form]), default=Form.FINAL.value, show_default=True,
    help="final: one instance runs. window: two run and share the peer link.",
)  # fmt: skip


@click.group(cls=Group)
def overlay() -> None:
    """Check the overlay intent, show its flow tables."""


def _host(app: App) -> Host:
    from ovs_hotswap.host.host import Host

    return Host(app.config, app.system)


def _differences(host: Host, side: Side, form: Form) -> list[str]:
    from ovs_hotswap.host import flow_tables

    flows = flow_tables.differences(host, side, form)
    return flows + tunnel_diff(host.underlay.programmed(side), host.underlay.wanted({}))


def _refuse_devices(host: Host) -> list[str]:
    """The warnings about the MTUs of the intent and of the uplink's devices. Raises ConfigError if one cannot work."""
    from ovs_hotswap.upgrade import collect

    findings = collect.mtus(host)
    faults = [each for each in findings if each.severity is Severity.ERROR]
    if faults:
        raise ConfigError("; ".join(each.text for each in faults), hint=faults[0].hint)
    return [each.text for each in findings if each.severity is Severity.WARNING]


@overlay.command(short_help="Validate the overlay intent; nothing is changed.", changes=False)
@pass_app
def check(app: App) -> None:
    """Validate the overlay intent that the configuration names, also against the uplink's devices; nothing is changed.

    With --json: {"file", "valid": true, "warnings", "vms", "remotes", "neighbours", "routes", "flows"}, the last five
    as numbers.

    \b
    Example:
      ovs-hotswap overlay check
    """
    from ovs_hotswap.host.flow_tables import tables

    intent, path = app.intent, app.config.overlay
    counts = {
        "vms": len(intent.vms),
        "remotes": len(intent.remotes),
        "neighbours": len(intent.neighbours),
        "routes": len(intent.routes),
        "flows": len(lines(tables(_host(app), Side.A, Form.FINAL))),
    }
    warnings = _refuse_devices(_host(app))
    app.output.document({"file": path, "valid": True, "warnings": warnings, **counts})
    for warning in warnings:
        app.output.line(f"warning: {warning}")
    app.output.line(f"{path}: valid: " + ", ".join(f"{count} {what}" for what, count in counts.items()))


@overlay.command(changes=False)
@pass_app
def example(app: App) -> None:
    """Print a complete overlay intent with comments.

    With --json: {"example"}, the same text.

    \b
    Example:
      ovs-hotswap overlay example > /etc/ovs-hotswap/overlay.toml
    """
    app.output.document({"example": EXAMPLE})
    app.output.line(EXAMPLE.rstrip())


@overlay.command(short_help="Print the flow tables that the intent stands for.", changes=False)
@_form
@pass_app
def show(app: App, form: str) -> None:
    """Print the flow tables that the intent is rendered to, with a comment for each table.

    Where the VTEP's address is announced, each instance has a MAC of its own; the tables are then the active one's.
    The output is also valid input of `ovs-ofctl replace-flows`.
    With --json: {"form", "tables": [{"number", "name", "comment", "flows": [{"priority", "match", "actions",
    "cookie", "comment"}]}]}.

    \b
    Example:
      ovs-hotswap overlay show
      ovs-hotswap overlay show --form window --json
    """
    from ovs_hotswap.host.flow_tables import tables

    host = _host(app)
    found = tables(host, host.recorded_active() or Side.A, Form(form))
    app.output.document({"form": form, "tables": [_document(table) for table in found]})
    for text in annotated(found):
        app.output.line(text)


@overlay.command(short_help="Compare an instance's flows and tunnels with the intent.", changes=False)
@click.option(
    "--side", type=click.Choice([side.value for side in Side]), required=True, help="The instance to look at."
)
@_form
@click.pass_context
@pass_app
def diff(app: App, context: click.Context, side: str, form: str) -> None:
    """Compare the flows installed on an instance, and its tunnels' addresses and routes, with the intent's.

    A line with "-" is only installed, a line with "+" is only in the intent. As with diff(1), the exit code is 1 if
    there are any.
    With --json: {"side", "form", "identical", "diff": [line]}.

    \b
    Example:
      ovs-hotswap overlay diff --side a
    """
    found = _differences(_host(app), Side(side), Form(form))
    app.output.document({"side": side, "form": form, "identical": not found, "diff": found})
    for text in found:
        app.output.line(text)
    if found:
        context.exit(DIFFERENT)
    app.output.line(f"instance {side}: as the intent ({form} form)")


@overlay.command(short_help="Bring broker, instances and uplink to the intent.", changes=unless_dry_run)
@click.option("--dry-run", is_flag=True, help="Show what would change, change nothing.")
@click.option("--untried", is_flag=True, help="Do so even if no other instance runs to try an MTU or port option on.")
@pass_app
def apply(app: App, dry_run: bool, untried: bool) -> None:
    """Bring the broker, every running instance and the uplink to the overlay intent: VMs, ports, tunnels, flows.

    Flow tables are replaced in one bundle; VMs that stay are not touched. The command is refused while an upgrade is
    unfinished. The active instance comes last. If a port refuses its MTU, it gets its earlier MTU again, and the
    command ends there.

    A VM that was removed from the intent loses its network, and its port is removed. If its switch does not release its
    rings, the command ends with exit code 7 before any instance is changed.
    With --json: {"applied", "sides": [side], "diff": {side: [line]}}, the lines as `overlay diff` prints them.

    \b
    Example:
      ovs-hotswap overlay apply --dry-run
      ovs-hotswap overlay apply
    """
    from ovs_hotswap.host.host import WATCHDOG_S
    from ovs_hotswap.upgrade.upgrade import Upgrader

    host = _host(app)
    _refuse_devices(host)
    with host.lock(WATCHDOG_S):
        Upgrader(host).refuse_if_unfinished()
        sides = [side for side in Side if host.running(side)]
        changes = {str(side): _differences(host, side, Form.FINAL) for side in sides}
        if not dry_run:
            host.follow_intent(sides, untried=untried)
    app.output.done = not dry_run
    app.output.document({"applied": not dry_run, "sides": sides, "diff": changes})
    for name, changed in changes.items():
        app.output.line(f"instance {name}: {len(changed)} lines {'would change' if dry_run else 'changed'}")
        for text in changed if dry_run else ():
            app.output.line(text)
    if not sides:
        app.output.line("no instance is running")
