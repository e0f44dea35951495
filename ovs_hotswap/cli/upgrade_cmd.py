"""``ovs-hotswap check``, ``upgrade``, ``rollback`` and ``resume``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ovs_hotswap.cli.app import App, Command, pass_app, unless_dry_run
from ovs_hotswap.cli.overview import document_of
from ovs_hotswap.cli.stock_cmd import check_stock
from ovs_hotswap.config import Program
from ovs_hotswap.errors import PrecheckFailed
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.upgrade.checks import verdict
from ovs_hotswap.upgrade.plans import plan_for
from ovs_hotswap.upgrade.upgrade import Report, Upgrader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ovs_hotswap.plan.executor import Event

_release = click.option(
    "--release", "release", metavar="NAME", required=True,
    help="The release to upgrade to: host, or one of `ovs-hotswap release list`.",
)  # fmt: skip


_checked_release = click.option(
    "--release", "release", metavar="NAME",
    help="The release to upgrade to: host, or one of `ovs-hotswap release list`. Not needed on a host that others "
         "program.",
)  # fmt: skip
_leave_out = click.option(
    "--leave-out", "leave_out", metavar="VM", multiple=True,
    help="Do not move this VM. It keeps its network until the commit, is without network from the step flows-final "
         "until the old instance has ended, and then meets the new one as after a restart of the switch. Not together "
         "with --keep-old. May be given several times.",
)  # fmt: skip


@click.command(cls=Command, changes=False)
@_checked_release
@_leave_out
@pass_app
def check(app: App, release: str | None, leave_out: tuple[str, ...]) -> None:
    """Run the prechecks of an upgrade; nothing is changed. Exit code 4 if one fails.

    On a host that others program (`program = "clone"`) it shows what was found there as well: the running switch, its
    VMs with their QEMUs, who programs the bridges; and it names what cannot be taken over without loss, with the
    alternatives. That needs no --release.

    With --json: {"findings": [{"check", "severity", "text", "hint", "item"}], "ready"}, with every single finding; with
    `program = "clone"` also what was found: {"switch", "vms", "pipeline", "confinement", "unreadable"}. As text, the
    same finding about many VMs or flows is one line.

    \b
    Example:
      ovs-hotswap check --release trixie
    """
    if app.config.program is Program.CLONE and release is None:
        check_stock(app, leave_out)
        return
    if release is None:
        raise click.UsageError("Missing option '--release'.")
    keep = app.config.upgrade.keep_old
    findings = Upgrader(Host(app.config, app.system)).check(release, leave_out, keep_old=keep)
    app.output.findings(findings)
    app.output.document({"findings": findings, "ready": _ready(findings)})
    _end(app, findings)


def _ready(findings: Iterable[Finding]) -> bool:
    return all(finding.severity is not Severity.ERROR for finding in findings)


def _end(app: App, findings: Iterable[Finding]) -> None:
    """End with the exit code of a refused upgrade if a finding is an error. A JSON document has been printed before."""
    if app.output.json and not _ready(findings):
        click.get_current_context().exit(PrecheckFailed.exit_code)
    verdict(findings)


@click.command(cls=Command, changes=unless_dry_run)
@_release
@click.option(
    "--keep-old",
    is_flag=True,
    help="Leave the old instance running when the upgrade is done, so that `rollback` need not start it again.",
)
@_leave_out
@click.option(
    "--force",
    is_flag=True,
    help="Upgrade even if the active instance already runs just this release, for example to apply new settings.",
)
@click.option("--dry-run", is_flag=True, help="Show the prechecks and the steps, change nothing.")
@pass_app
def upgrade(app: App, release: str, keep_old: bool, leave_out: tuple[str, ...], force: bool, dry_run: bool) -> None:
    """Replace the active instance by one that runs another release, under the running VMs.

    If a VM cannot be moved, the upgrade is rolled back, and the error names the VM; --leave-out VM upgrades without it.

    If the active instance already runs that release, from files that were not replaced since, nothing is checked and
    nothing is changed, and the exit code is 0. `check` makes the prechecks nevertheless.

    Whatever fails before the commit is undone, and the exit code is 5: the old instance serves every VM as before. If
    it dies before the commit, the upgrade goes forward instead; if it dies while the upgrade is being undone, the exit
    code is 5 and the new instance serves the VMs (`ovs-hotswap status`). Ctrl-C or SIGTERM before the commit starts an
    orderly rollback.

    After the commit a failure or an interruption ends with exit code 15, and `ovs-hotswap resume` does what is left.
    The new instance then serves the VMs; a VM that was left out waits for the end of the old instance. If a step fails
    because the new instance has died, is stopped or has lost its uplink, or if the old one serves all VMs again, and if
    the old one still lives, everything is put back even after the commit, with exit code 5. If neither lives, the exit
    code is 15 and no VM has a network.

    One upgrade runs at a time, and `instance start` and `instance stop` are refused while it runs. Until it is
    finished, `overlay apply` is refused and the watchdog keeps no standby. docs/operations.md has the steps, and what a
    VM notices.

    With --json: {"changed", "active", "old", "new", "release", "previous", "committed", "moves": {vm: us},
    "warnings": [text], "uplink_gap_ms", "steps": [{"name", "description", "state", "seconds", "text", "items"}]}.

    \b
    Example:
      ovs-hotswap upgrade --release trixie --dry-run
      ovs-hotswap upgrade --release trixie
    """
    upgrader = Upgrader(Host(app.config, app.system))
    keep = keep_old or app.config.upgrade.keep_old
    if dry_run:
        same = None if force or (leave_out and keep) else upgrader.nothing_to_do(release)
        if same is not None:
            _dry_run(app, [same], changed=False)
            return
        findings = upgrader.check(release, leave_out, keep_old=keep)
        _dry_run(app, findings, changed=True if _ready(findings) else None)
        return
    _execute(
        app, upgrader,
        lambda observe: upgrader.upgrade(release, observe, keep_old=keep, force=force, leave_out=leave_out),
    )  # fmt: skip


@click.command(cls=Command, changes=True)
@pass_app
def rollback(app: App) -> None:
    """Undo an unfinished upgrade, or go back to the release that ran before the last one.

    Rolling back a finished upgrade is itself an upgrade, to the previous release, with the same checks.

    The rollback of an unfinished upgrade gives each VM back to the old instance. It is refused (exit code 4) if the old
    instance has died and the new one lives, and after the commit as long as the new one serves: `ovs-hotswap resume` is
    the way then. Exit code 6: a step could not be undone; remove the cause that the message names, and repeat the
    command.

    With --json: as upgrade.

    \b
    Example:
      ovs-hotswap rollback
    """
    upgrader = Upgrader(Host(app.config, app.system))
    _execute(app, upgrader, upgrader.rollback)


@click.command(cls=Command, changes=True)
@pass_app
def resume(app: App) -> None:
    """Finish an upgrade, or its rollback, that was interrupted, in the direction in which it was going.

    Before the commit it continues the upgrade; `ovs-hotswap rollback` is the other choice. After the commit it does
    what is left, such as ending the old instance; if the new instance is lost and the old one lives, it puts everything
    back instead, and ends with exit code 5. If the upgrade was being undone, it undoes the rest, and ends with exit
    code 5.
    `ovs-hotswap status` shows which of them it is (`phase`). It may be repeated.

    With --json: as upgrade.

    \b
    Example:
      ovs-hotswap resume
    """
    upgrader = Upgrader(Host(app.config, app.system))
    _execute(app, upgrader, upgrader.resume)


def _execute(app: App, upgrader: Upgrader, act: Callable[[Callable[[Event], None]], Report]) -> None:
    plan = plan_for(app.config)
    with app.output.progress([(step.name, step.description) for step in (*plan.before, *plan.after)]) as progress:
        report = act(progress.observe)
        app.output.done = True
    active = upgrader.host.recorded_active()
    app.output.document({**document_of(report), "active": active, "steps": progress.report()})
    if report.moves:
        app.output.table(
            ("VM", "handover us"), [(name, f"{us:.0f}") for name, us in report.moves.items()]
        )  # fmt: skip
    if report.uplink_gap_ms is not None:
        app.output.line(f"no instance had the uplink for {report.uplink_gap_ms:.0f} ms")
    for text in report.warnings:
        app.output.line(f"warning: {text}")
    app.output.line(_outcome(upgrader.host, report, active))
    if report.changed:
        app.output.line("`ovs-hotswap report show` has each step and each VM")


def _outcome(host: Host, report: Report, active: Side | None) -> str:
    """A text about the outcome. After a rollback the new instance may still be the active one, if the old one had
    ended."""
    release = None if active is None else host.instances[active].release()
    serves = f"instance {active} is active and runs {release.name if release else 'an unknown release'}"
    if not report.changed:
        return f"{serves} already, from the present files: nothing was changed (--force upgrades again)"
    if active is None:
        return "everything was put back; no instance is active"
    if report.committed:
        return serves
    if active is report.old:
        if not host.running(active):
            return f"everything that was changed was put back, but instance {active}, which is active, does not run"
        return f"everything was put back; {serves}"
    return f"instance {report.old} had ended, so nothing could be put back: {serves}"


def _dry_run(app: App, findings: list[Finding], *, changed: bool | None) -> None:
    """Show what an upgrade would do. ``changed``: whether there is anything to do; ``None`` if it would not start."""
    app.output.findings(findings)
    app.output.line()
    rows: list[tuple[int, str, str]] = []
    if changed is False:
        app.output.line("nothing would be changed (--force upgrades again)")
    else:
        plan = plan_for(app.config)
        rows += [(number, step.name, step.description) for number, step in enumerate(plan.before, 1)]
        rows.append((len(rows) + 1, "commit", "from here on, no step is undone"))
        rows += [(len(rows) + number, step.name, step.description) for number, step in enumerate(plan.after, 1)]
        app.output.table(("step", "name", "what it does"), rows)
    steps = [{"name": row[1], "description": row[2]} for row in rows]
    app.output.document({"findings": findings, "ready": _ready(findings), "changed": changed, "steps": steps})
    _end(app, findings)
