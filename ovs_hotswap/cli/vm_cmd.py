"""``ovs-hotswap vm``."""

from __future__ import annotations

import click

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.cli.app import App, Group, pass_app
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side


@click.group(cls=Group)
def vm() -> None:
    """Show the VMs: who serves each one, and its rings."""


@vm.command(name="list", short_help="List the VMs: who owns each one, where it is parked.", changes=False)
@pass_app
def list_(app: App) -> None:
    """List the VMs: who owns each one's rings, and whether it is parked on the other side.

    A VM is served if the certainty is "owns". Outside an upgrade its owner is then the active side. It survives the end
    of that instance if it is parked on the other side. RINGS: how many are in use. MOVES, LAST US: handovers, and the
    microseconds of the last one. docs/runbook.md says what to do about any other owner or certainty, and how to see
    whether the uplink leads to the owner.

    With --json: {"vms": [...]}, each as `vm show` prints it.

    \b
    Example:
      ovs-hotswap vm list
    """
    found = Host(app.config, app.system).backends.vms()
    app.output.document({"vms": [each.document() for each in found]})
    rows = [
        (each.name, each.qemu, each.owner, each.certainty, _parked(each),
         sum(ring.started for ring in each.rings), each.moves, each.last_move_us)
        for each in found
    ]  # fmt: skip
    app.output.table(("VM", "QEMU", "owner", "certainty", "parked on", "rings", "moves", "last us"), rows)
    for each in found:
        if each.quarantine:
            app.output.line(
                f"VM {each.name} is in quarantine: {each.quarantine} (`ovs-hotswap vm release {each.name}`)"
            )


@vm.command(short_help="Show one VM: features, memory, switches, rings.", changes=False)
@click.argument("name")
@pass_app
def show(app: App, name: str) -> None:
    """Show one VM: features, memory, its switches, each ring's indices.

    Look twice while the guest sends: where `available` of a transmit ring grows and `used` does not, the switch does
    not serve that ring. docs/runbook.md has the steps for a VM without a network.

    With --json: {"name", "qemu", "absent": {"cause", "text"}, "owner", "certainty", "owner_since", "home",
    "last_proof": {"side", "proof"}, "features", "feature_names", "memory_bytes", "memory_regions", "unparkable",
    "quarantine",
    "switches": {side: {"connected", "pid", "role", "parked", "offers", "missing"}},
    "rings": [{"index", "size", "started", "enabled", "available", "used"}], "capture_bytes", "moves", "last_move_us",
    "last_error", "netdev"}.

    \b
    Example:
      ovs-hotswap vm show web1
    """
    found = Host(app.config, app.system).backends.vm(name)
    app.output.document(found.document())
    for label, value in _lines(found):
        app.output.line(f"{label:<12} {value}")
    rings = [
        (ring.index, "transmit" if ring.transmits else "receive", ring.size, ring.started, ring.enabled,
         ring.available, ring.used)
        for ring in found.rings
    ]  # fmt: skip
    app.output.line()
    app.output.table(("ring", "guest", "size", "started", "enabled", "available", "used"), rings)


@vm.command(short_help="Keep a VM from both switches until `vm release`.", changes=True)
@click.argument("name")
@click.option("--reason", default="by order", show_default=True, metavar="TEXT", help="What is shown for it.")
@pass_app
def quarantine(app: App, name: str, reason: str) -> None:
    """Keep a VM that ends every instance which serves it from both switches, until `vm release`.

    The VM has no network then; its QEMU stays connected. A quarantine survives a restart of the broker, and ends at the
    next boot of the host. With backend = "qemu-dual" the switches have no port for the VM. The watchdog puts a VM into
    quarantine by itself when it finds that instances end because of it.
    With --json: {"vm", "quarantine", "owner"}; `owner` is not null if a switch has not released its rings yet.

    \b
    Example:
      ovs-hotswap vm quarantine web1 --reason "see ticket 4711"
    """
    found = Host(app.config, app.system).backends.quarantine(name, reason)
    app.output.done = True
    app.output.document({"vm": name, "quarantine": found.quarantine, "owner": found.owner})
    still = f"; switch {found.owner} has not released its rings yet" if found.owner else ""
    app.output.line(f"VM {name} is in quarantine{still}; `ovs-hotswap vm release {name}` ends it")


@vm.command(changes=True)
@click.argument("name")
@pass_app
def release(app: App, name: str) -> None:
    """End a VM's quarantine: it is served again.

    With --json: {"vm"}.

    \b
    Example:
      ovs-hotswap vm release web1
    """
    Host(app.config, app.system).backends.release(name)
    app.output.done = True
    app.output.document({"vm": name})
    app.output.line(f"VM {name} is no longer in quarantine")


def _parked(found: VmStatus) -> str | None:
    return ", ".join(side for side in Side if found.switches[side].parked) or None


def _absent(found: VmStatus) -> str:
    return f"not connected: {found.absent.text}" if found.absent else "not connected"


def _lines(found: VmStatus) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = [
        ("VM", found.name),
        ("QEMU", f"process {found.qemu}" if found.has_guest else _absent(found)),
        ("owner", f"{found.owner or 'none'} ({found.certainty})"),
        ("features", ", ".join(found.feature_names) or "none yet"),
        ("memory", f"{found.memory_bytes >> 20} MiB in {found.memory_regions} regions"),
        ("moves", found.moves),
    ]
    if last := found.last_proof:
        lines.append(("last proof", f"switch {last.side} was off the rings: {last.proof}"))
    for side in Side:
        switch = found.switches[side]
        state = switch.role if switch.connected else "not connected"
        lines.append((f"switch {side}", f"{state}, process {switch.pid}" if switch.pid else state))
    if found.unparkable:
        lines.append(("unparkable", found.unparkable))
    if found.last_error:
        lines.append(("last note", found.last_error))
    return lines
