"""``ovs-hotswap lab``."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.cli.app import App, Group, pass_app
from ovs_hotswap.errors import LabError
from ovs_hotswap.lab import DEFAULT_DIRECTORY, RELEASE_CACHE, GuestOptions, Lab
from ovs_hotswap.lab.guest import dual_qemu
from ovs_hotswap.upgrade.steps import upgrade_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ovs_hotswap.lab.demo import Demo, DemoReport, DualReport
    from ovs_hotswap.lab.phases import Phase
    from ovs_hotswap.plan.executor import Event

_directory = click.option(
    "--directory", type=click.Path(path_type=Path), default=DEFAULT_DIRECTORY, show_default=True,
    help="The directory of all files of the lab.",
)  # fmt: skip
PAGES = Path("/var/cache/ovs-hotswap/demo")
_MODES = click.Choice([each.value for each in BackendMode])
_vms = click.option("--vms", type=click.IntRange(1, 64), default=4, show_default=True, help="Number of guests.")


@click.group(cls=Group)
def lab() -> None:
    """Make a test bed on this machine, and show an upgrade in it."""


@lab.command(short_help="Make the lab, and start its guests.", changes=True)
@_directory
@_vms
@pass_app
def up(app: App, directory: Path, vms: int) -> None:
    """Make the namespaces, start the guests' QEMUs, write config.toml and overlay.toml.

    No switch is started, and QEMU boots a guest only when its switch has connected: continue with the commands that
    are printed.
    With --json: {"directory", "config", "guests": [name]}.

    \b
    Example:
      ovs-hotswap lab up --vms 2
    """
    bed = Lab(directory.absolute(), vms, app.system)
    bed.up(RELEASE_CACHE)
    config = bed.layout.config_file
    app.output.done = True
    app.output.document({"directory": directory, "config": config, "guests": [g.name for g in bed.layout.guests]})
    app.output.line(f"{vms} guests wait for their switch; continue with:")
    for command in ("broker start", "instance start a", "status"):
        app.output.line(f"  ovs-hotswap --config {config} {command}")


@lab.command(short_help="Remove the lab, also what a killed lab left.", changes=True)
@_directory
@pass_app
def down(app: App, directory: Path) -> None:
    """Remove the lab: guests, instances, broker, namespaces, files. Also removes what a killed lab left behind.

    With --json: {"directory", "removed"}: what there was.

    \b
    Example:
      ovs-hotswap lab down
    """
    removed = Lab.existing(directory.absolute(), app.system).down()
    app.output.done = True
    app.output.document({"directory": directory, "removed": removed})
    app.output.line(f"the lab at {directory} is removed" if removed else f"there was no lab at {directory}")


@lab.command(changes=False)
@_directory
@pass_app
def status(app: App, directory: Path) -> None:
    """Show which parts of the lab exist.

    With --json: {"directory", "up", "guests": [{"name", "pid", "ready"}], "namespaces": [name]}.

    \b
    Example:
      ovs-hotswap lab status
    """
    found = Lab.existing(directory.absolute(), app.system).status()
    app.output.document(found)
    app.output.line(f"lab {found.directory}: {'up' if found.up else 'not up'}")
    app.output.table(("guest", "process", "ready"), [(g.name, g.pid, g.ready) for g in found.guests])


@lab.command(short_help="Upgrade under running guests, then restart plainly.", changes=True)
@_directory
@_vms
@click.option(
    "--backend",
    type=_MODES,
    show_default=BackendMode.BROKER.value,
    help="The back-end mode: what gives each guest two switches.",
)
@click.option("--road", type=_MODES, hidden=True)
@click.option("--qemu", help="QEMU of --backend qemu-dual.  [default: the installed one of `make packages`]")
@click.option("--report", type=click.Path(path_type=Path), help="Write the JSON report to this file.")
@click.option(
    "--pages", type=click.Path(path_type=Path, file_okay=False), default=PAGES, show_default=True,
    help="Keep the reports of the upgrades in this directory, beside those of earlier demos.",
)  # fmt: skip
@pass_app
def demo(
    app: App,
    directory: Path,
    vms: int,
    backend: str | None,
    road: str | None,
    qemu: str | None,
    report: Path | None,
    pages: Path,
) -> None:
    """Upgrade OVS 3.1 to 3.5 and back under running guests, then restart it plainly for comparison.

    A lab is made for the demo and removed afterwards. Exit code 9: a packet was lost in the upgrade or on the way back.
    At the end the paths of pages are printed, which show what happened in each upgrade and what each guest saw of it.
    With --json: {"releases", "lossless", "phases": {name: {"seconds", "lost", "longest_gap_ms", "moves": {vm: us},
    "pings": [...]}}, "reports": [path]}, which is also what --report writes.

    With --backend qemu-dual the upgrades are first shown without a broker, under a QEMU that has two switches itself,
    followed by a crash of the active instance; then all of the above under the same QEMU with a broker, for comparison.
    With --json: {"qemu-dual": {..., "failover_us": {vm: us}}, "broker": {...}}. Packets that are lost without a broker
    are shown and are not an error.

    \b
    Example:
      ovs-hotswap lab demo --report demo-report.json
      ovs-hotswap lab demo --backend qemu-dual
    """
    options = GuestOptions()
    document: dict[str, Any] = {}
    if back_end_mode(app, backend, road) is BackendMode.QEMU_DUAL:
        options = GuestOptions(qemu=qemu or dual_qemu())
        dual_options = options.model_copy(update={"backend": BackendMode.QEMU_DUAL})
        with _made(app, directory, vms, dual_options) as running:
            dual = running.run_dual()
        document = {str(BackendMode.QEMU_DUAL): {**dual.document(), "reports": _kept(app, dual, pages)}}
        _print_dual(app, dual)
        _name_reports(app, document[str(BackendMode.QEMU_DUAL)])
    with _made(app, directory, vms, options) as running:
        found = running.run()
    own = {**found.document(), "reports": _kept(app, found, pages)}
    document = {**document, str(BackendMode.BROKER): own} if document else own
    if report is not None:
        report.write_text(json.dumps(document, indent=2) + "\n")
    app.output.document(document)
    _print(app, found)
    _name_reports(app, own)
    if not found.lossless:
        raise LabError(f"packets were lost: {found.upgrade.lost} in the upgrade, {found.rollback.lost} on the way back")


def _kept(app: App, found: DemoReport | DualReport, pages: Path) -> list[str]:
    from ovs_hotswap.lab.demo_reports import keep

    return [str(path) for path in keep(found.run_reports(), pages.absolute(), app.system)]


def _name_reports(app: App, document: dict[str, Any]) -> None:
    for path in document["reports"]:
        app.output.line(f"report: {path}")


def back_end_mode(app: App, backend: str | None, road: str | None) -> BackendMode:
    """The back-end mode of the demo. The last argument is the value of the option's earlier name. Raises UsageError."""
    if road is not None:
        app.output.warning(
            "`--road`: the name of this option is `--backend`; the earlier name will not be read in the next release"
        )
        if backend not in (None, road):
            raise click.UsageError("`--road` is the earlier name of `--backend`, and their values differ: give one")
    return BackendMode(backend or road or BackendMode.BROKER)


@contextmanager
def _made(app: App, directory: Path, vms: int, options: GuestOptions) -> Iterator[Demo]:
    """A demo in a lab of its own, which is removed afterwards."""
    from ovs_hotswap.lab.demo import Demo

    Lab.existing(directory.absolute(), app.system).down()
    bed = Lab(directory.absolute(), vms, app.system, options)
    with ExitStack() as stack:
        stack.callback(bed.down)
        app.output.line(f"booting {vms} guests, back-end mode {options.backend}")
        bed.up(RELEASE_CACHE)
        yield Demo(bed, app.system, app.output.line, lambda: _shown(app))


@contextmanager
def _shown(app: App) -> Iterator[Callable[[Event], None]]:
    plan = upgrade_plan()
    with app.output.progress([(step.name, step.description) for step in (*plan.before, *plan.after)]) as progress:
        yield progress.observe


def _print(app: App, report: DemoReport) -> None:
    for phase in (report.upgrade, report.rollback):
        app.output.line()
        _vm_table(app, phase, report.quiet)
    _phase_table(app, report.phases)
    worst = max(report.upgrade.longest_gap_ms, report.rollback.longest_gap_ms)
    app.output.line(f"a plain restart cut the guests off {report.restart.longest_gap_ms / worst:.0f} times as long "
                    "as the longest gap of the upgrades, which includes the 10 ms between two pings")  # fmt: skip


def _print_dual(app: App, report: DualReport) -> None:
    for phase in (report.upgrade, report.rollback):
        app.output.line()
        _vm_table(app, phase, report.quiet)
    _phase_table(app, report.phases)
    times = ", ".join(f"{vm} {us:.0f}" for vm, us in report.failover_us.items())
    app.output.line(f"microseconds in the crash in which the VMs' rings had no owner, by QEMU's clock: {times}")
    app.output.line()


def _phase_table(app: App, phases: Sequence[Phase]) -> None:
    app.output.line()
    rows = [
        (phase.name, f"{phase.seconds:.1f}", sum(each.sent for each in phase.pings), phase.lost, phase.duplicated,
         f"{phase.longest_gap_ms:.1f}")
        for phase in phases
    ]  # fmt: skip
    app.output.table(
        ("phase", "seconds", "sent", "lost", "doubled", "longest gap ms"), rows, title="What the guests saw"
    )


def _vm_table(app: App, phase: Phase, quiet: Phase) -> None:
    """Print for each guest the gap around its handover, the longest gap of the phase with the step that ran then, and
    the longest gap while nothing was done, which is the noise of this machine."""
    gaps = {(each.guest, each.target): each for each in phase.gaps}
    floor = {(each.guest, each.target): each.longest_gap_ms for each in quiet.pings}
    rows = []
    for stats in phase.pings:
        key = stats.guest, stats.target
        found = gaps.get(key)
        rows.append(
            (*key, stats.sent, stats.lost, stats.duplicated, f"{phase.moves.get(stats.guest, 0):.0f}",
             _ms(found.handover if found else None), _ms(stats.longest_gap_ms), found.step if found else None,
             _ms(floor.get(key)))
        )  # fmt: skip
    columns = ("VM", "pings", "sent", "lost", "doubled", "handover us", "gap around it ms", "longest gap ms", "in step",
               "quiet ms")  # fmt: skip
    app.output.table(columns, rows, title=f"{phase.name}, {phase.seconds:.1f} s")


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
