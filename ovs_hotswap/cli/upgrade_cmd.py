"""``ovs-hotswap check``, ``upgrade``, ``rollback`` and ``resume``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ovs_hotswap.cli.app import App, Command, pass_app
from ovs_hotswap.cli.overview import document_of
from ovs_hotswap.errors import PrecheckFailed
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.upgrade.checks import verdict
from ovs_hotswap.upgrade.steps import upgrade_plan
from ovs_hotswap.upgrade.upgrade import Report, Upgrader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ovs_hotswap.plan.executor import Event

_release = click.option(
    "--release", "release", metavar="NAME", required=True,
    help="The release to upgrade to: host, or one of `ovs-hotswap release list`.",
)  # fmt: skip


_leave_out = click.option(
    "--leave-out", "leave_out", metavar="VM", multiple=True,
    help="Do not move this VM: it is without network from the end of the window until the old instance has ended. "
         "May be given several times.",
)  # fmt: skip


@click.command(cls=Command)
@_release
@_leave_out
@pass_app
def check(app: App, release: str, leave_out: tuple[str, ...]) -> None:
    """Run the prechecks of an upgrade; nothing is changed. Exit code 4 if one fails.

    With --json: {"findings": [{"check", "severity", "text", "hint", "item"}], "ready"}, with
    every single finding. As text, the same finding about many VMs or flows is one line.

    \b
    Example:
      ovs-hotswap check --release trixie
    """
    keep = app.config.upgrade.keep_old
    findings = Upgrader(Host(app.config, app.system)).check(release, leave_out, keep_old=keep)
    app.output.findings(findings)
    app.output.document({"findings": findings, "ready": _ready(findings)})
    _end(app, findings)


def _ready(findings: Iterable[Finding]) -> bool:
    return all(finding.severity is not Severity.ERROR for finding in findings)


def _end(app: App, findings: Iterable[Finding]) -> None:
    """With the exit code of an upgrade that these findings refuse; a JSON document has been printed before."""
    if app.output.json and not _ready(findings):
        click.get_current_context().exit(PrecheckFailed.exit_code)
    verdict(findings)


@click.command(cls=Command)
@_release
@click.option("--keep-old", is_flag=True, help="Leave the old instance running when the upgrade is done.")
@_leave_out
@click.option("--force", is_flag=True, help="Do it also if the active instance runs just this release.")
@click.option("--dry-run", is_flag=True, help="Show the prechecks and the steps, change nothing.")
@pass_app
def upgrade(app: App, release: str, keep_old: bool, leave_out: tuple[str, ...], force: bool, dry_run: bool) -> None:
    """Replace the active instance by one that runs another release, under the running VMs.

    If a VM cannot be moved, the upgrade is rolled back, and the error names the VM. With --leave-out VM the upgrade
    continues without that VM: it stays on the old instance until that instance ends, and then meets the new one as
    after a restart of the switch.

    If the active instance already runs that release, from files that were not replaced since, nothing is changed.
    Whatever fails before the commit is undone, and the exit code is 5: the old instance serves every VM as before.
    Ctrl-C or SIGTERM starts an orderly rollback.
    With --json: {"changed", "active", "old", "new", "release", "previous", "committed", "moves": {vm: us},
    "warnings": [text], "steps": [{"name", "description", "state", "seconds", "text", "items"}]}.

    \b
    Example:
      ovs-hotswap upgrade --release trixie --dry-run
      ovs-hotswap upgrade --release trixie
    """
    upgrader = Upgrader(Host(app.config, app.system))
    keep = keep_old or app.config.upgrade.keep_old
    if dry_run:
        _dry_run(app, upgrader.check(release, leave_out, keep_old=keep))
        return
    _execute(
        app, upgrader,
        lambda observe: upgrader.upgrade(release, observe, keep_old=keep, force=force, leave_out=leave_out),
    )  # fmt: skip


@click.command(cls=Command)
@pass_app
def rollback(app: App) -> None:
    """Undo an unfinished upgrade, or go back to the release that ran before the last one.

    Rolling back a finished upgrade is itself an upgrade, to the previous release, with the same checks.
    With --json: as upgrade.

    \b
    Example:
      ovs-hotswap rollback
    """
    upgrader = Upgrader(Host(app.config, app.system))
    _execute(app, upgrader, upgrader.rollback)


@click.command(cls=Command)
@pass_app
def resume(app: App) -> None:
    """Finish an upgrade, or its rollback, that was interrupted, in the direction in which it was going.

    With --json: as upgrade.

    \b
    Example:
      ovs-hotswap resume
    """
    upgrader = Upgrader(Host(app.config, app.system))
    _execute(app, upgrader, upgrader.resume)


def _execute(app: App, upgrader: Upgrader, act: Callable[[Callable[[Event], None]], Report]) -> None:
    plan = upgrade_plan()
    with app.output.progress([(step.name, step.description) for step in (*plan.before, *plan.after)]) as progress:
        report = act(progress.observe)
        app.output.done = True
    active = upgrader.host.recorded_active()
    app.output.document({**document_of(report), "active": active, "steps": progress.report()})
    if report.moves:
        app.output.table(
            ("VM", "handover us"), [(name, f"{us:.0f}") for name, us in report.moves.items()]
        )  # fmt: skip
    for text in report.warnings:
        app.output.line(f"warning: {text}")
    app.output.line(_outcome(upgrader.host, report, active))


def _outcome(host: Host, report: Report, active: Side | None) -> str:
    """What the operator has now: a rollback may have had to leave the new instance where it is."""
    release = None if active is None else host.instances[active].release()
    serves = f"instance {active} is active and runs {release.name if release else 'an unknown release'}"
    if not report.changed:
        return f"{serves} already, from the files that are there: nothing was changed (--force has it done again)"
    if active is None:
        return "everything was put back; no instance is active"
    if report.committed:
        return serves
    if active is report.old:
        return f"everything was put back; {serves}"
    return f"instance {report.old} had ended, so nothing could be put back: {serves}"


def _dry_run(app: App, findings: list[Finding]) -> None:
    plan = upgrade_plan()
    app.output.findings(findings)
    app.output.line()
    rows = [(number, step.name, step.description) for number, step in enumerate(plan.before, 1)]
    rows.append((len(rows) + 1, "commit", "from here on nothing goes back"))
    rows += [(len(rows) + number, step.name, step.description) for number, step in enumerate(plan.after, 1)]
    app.output.table(("step", "name", "what it does"), rows)
    steps = [{"name": row[1], "description": row[2]} for row in rows]
    app.output.document({"findings": findings, "ready": _ready(findings), "steps": steps})
    _end(app, findings)
