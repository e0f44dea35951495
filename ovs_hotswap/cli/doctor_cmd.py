"""``ovs-hotswap doctor``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ovs_hotswap.cli.app import App, Command, pass_app
from ovs_hotswap.cli.output import MARKS, STYLES
from ovs_hotswap.doctor.report import Counts, Found, Report, Section, by_section
from ovs_hotswap.errors import ConfigError, HotswapError, PrecheckFailed, StateUnknown
from ovs_hotswap.model import Severity
from ovs_hotswap.wording import summary

if TYPE_CHECKING:
    from rich.text import Text

    from ovs_hotswap.doctor.fixes import Change, Fixer

_WORST = (Severity.ERROR, Severity.UNKNOWN, Severity.WARNING, Severity.OK)


def _changes(given: Mapping[str, object]) -> bool:
    return bool(given.get("fix") or given.get("undo")) and not given.get("dry_run")


@click.command(cls=Command, changes=_changes)
@click.option(
    "--section", "names", type=click.Choice([str(section) for section in Section]), multiple=True, metavar="NAME",
    help=f"Look at this part of the host only: {', '.join(Section)}. May be given several times.",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="Show what is well, too.")
@click.option(
    "--fix", is_flag=True, help="Run the commands that are safe and can be undone, after a question for each."
)
@click.option("--undo", is_flag=True, help="Put back what --fix has changed, after a question for each.")
@click.option("--dry-run", is_flag=True, help="With --fix or --undo: show what would be changed, change nothing.")
@click.option("--yes", is_flag=True, help="With --fix or --undo: do not ask. Needed where nothing can be asked.")
@pass_app
def doctor(
    app: App, names: tuple[str, ...], verbose: bool, fix: bool, undo: bool, dry_run: bool, yes: bool
) -> None:  # fmt: skip
    """Check this host from top to bottom, and show the command that fixes each finding.

    Nothing is changed without --fix. It works without a configuration, without Open vSwitch and without root; what it
    cannot see is reported as unknown, and never as well. No part takes longer than some seconds, whatever hangs.

    Exit code 4 if a finding is an error, otherwise 6 if something could not be seen, otherwise 0.

    --fix changes huge pages, governors, interrupts, NUMA balancing, modes of files and which units are enabled. What it
    changes is recorded in doctor.json in state_dir, and --undo puts it back, whatever --section names. What is gone
    after a boot is not put back after it.

    With --json: {"sections": [name], "findings": [{"section", "check", "severity", "text", "hint", "item", "safe"}],
    "counts": {"ok", "warning", "error", "unknown"}, "ready", "changed": [text]}.

    \b
    Example:
      ovs-hotswap doctor
      ovs-hotswap doctor --section memory --section cpu -v
      ovs-hotswap doctor --fix --dry-run
    """
    if fix and undo:
        raise click.UsageError("--fix and --undo exclude each other")
    if (fix or undo) and not (dry_run or yes or app.output.asks):
        raise click.UsageError("each change needs an answer, and nothing can be asked here: add --yes or --dry-run")
    if (dry_run or yes) and not (fix or undo):
        raise click.UsageError("--dry-run and --yes are for --fix and --undo")
    sections = tuple(Section(name) for name in dict.fromkeys(names)) or tuple(Section)
    changed = _undo(app, dry_run=dry_run, yes=yes) if undo else []
    found = _examined(app, sections)
    if fix:
        changed = _fix(app, found, dry_run=dry_run, yes=yes)
        found = _examined(app, sections) if changed else found
    report = Report.of(sections, found, changed)
    app.output.document(report)
    _show(app, report, verbose=verbose)
    app.output.done = bool(changed)
    if report.counts.error:
        click.get_current_context().exit(PrecheckFailed.exit_code)
    if report.counts.unknown:
        click.get_current_context().exit(StateUnknown.exit_code)


def _examined(app: App, sections: Sequence[Section]) -> list[Found]:
    from ovs_hotswap.cli.overview import look_with_reasons
    from ovs_hotswap.doctor.examination import examine
    from ovs_hotswap.doctor.runner import Brief

    with _shown(app) as observe:
        return examine(app.root, app.config_path, look_with_reasons, sections, observe, Brief())


@contextlib.contextmanager
def _shown(app: App) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is looked at. Elsewhere nothing is shown: it takes seconds at most."""
    if not app.output.terminal:
        yield lambda name: None
        return
    with app.output.console().status("looking") as status:
        yield lambda name: status.update(f"looking at {name}")


# ------------------------------------------------------------------------------------------------------------ changes


def _fixer(app: App) -> Fixer:
    from ovs_hotswap.config import Config
    from ovs_hotswap.doctor.facts import Root
    from ovs_hotswap.doctor.fixes import Fixer

    try:
        state_dir = app.config.state_dir
    except ConfigError:
        state_dir = Path(Config.model_fields["state_dir"].default)
    return Fixer(Root(app.root), state_dir, app.system)


def _fix(app: App, found: Iterable[Found], *, dry_run: bool, yes: bool) -> list[str]:
    """Run the commands of safe findings, and return those that were run. One that fails does not keep the next from
    being tried."""
    fixer, changed = _fixer(app), []
    for each in dict.fromkeys((each.text, each.hint) for each in found if each.safe and each.severity != Severity.OK):
        text, command = each
        try:
            change = fixer.plan(command or "")
            if change is None or not _agreed(app, change, text, dry_run=dry_run, yes=yes):
                continue
            fixer.make(change)
        except HotswapError as error:
            app.output.warning(error.message)
            continue
        changed.append(change.command)
    if changed:
        app.output.line(f"recorded in {fixer.record}; `ovs-hotswap doctor --undo` puts it back")
        app.output.line()
    return changed


def _agreed(app: App, change: Change, text: str, *, dry_run: bool, yes: bool) -> bool:
    app.output.line(f"{text}\n  {change.command}    # now {change.before}")
    return not dry_run and (yes or app.output.ask("  run this?"))


def _undo(app: App, *, dry_run: bool, yes: bool) -> list[str]:
    fixer, changed = _fixer(app), []
    for change in reversed(fixer.changes()):
        app.output.line(f"{change.target}: {change.after} -> {change.before}    # was `{change.command}`")
        if dry_run or not (yes or app.output.ask("  put it back?")):
            continue
        try:
            undone = fixer.undo(change)
        except HotswapError as error:
            app.output.warning(error.message)
            continue
        if undone.why_not:
            app.output.warning(f"{change.target} was left as it is: {undone.why_not}")
        else:
            changed.append(f"{change.target}: {change.after} -> {change.before}")
    if not (changed or dry_run):
        app.output.line("nothing was put back")
    return changed


# ------------------------------------------------------------------------------------------------------ how it is shown


def lines(report: Report, *, verbose: bool) -> Iterator[tuple[str, str]]:
    """The lines for people, each with the mark that its style depends on."""
    for section, found in by_section(report.findings, report.sections).items():
        worst = next((each for each in _WORST if each in {one.severity for one in found}), None)
        mark = MARKS[worst] if worst is not None else "-"
        yield mark, f"{mark:<5} {section}" + ("" if found else ": nothing to look at on this host")
        safe = {each.hint for each in found if each.safe}
        shown = [each.finding for each in found if verbose or each.severity is not Severity.OK]
        for finding in summary(shown, "`ovs-hotswap --json doctor`"):
            mark = MARKS[finding.severity]
            yield mark, f"      {mark:<5} {finding.check}: {finding.text}"
            if finding.hint:
                yield "", f"            {finding.hint}" + ("    # or: doctor --fix" if finding.hint in safe else "")


def closing(counts: Counts) -> str:
    """The last line."""
    return f"errors: {counts.error}, warnings: {counts.warning}, unknown: {counts.unknown}, ok: {counts.ok}"


def _show(app: App, report: Report, *, verbose: bool) -> None:
    if app.output.json:
        return
    if not app.output.terminal:
        for _, text in lines(report, verbose=verbose):
            app.output.line(text)
    else:
        console = app.output.console()
        for mark, text in lines(report, verbose=verbose):
            console.print(_styled(mark, text), soft_wrap=True)
    app.output.line(closing(report.counts))


def _styled(mark: str, text: str) -> Text:
    from rich.text import Text

    styled = Text(text, style="" if mark else "cyan")
    if mark:
        start = text.index(mark)
        styled.stylize(STYLES.get(mark, "dim"), start, start + len(mark))
    return styled
