"""``ovs-hotswap report``."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import click

from ovs_hotswap.cli.app import App, Group, pass_app
from ovs_hotswap.errors import HostError, HotswapError, StateUnknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem

    from ovs_hotswap.reports.document import RunReport
    from ovs_hotswap.reports.store import Reports


@click.group(cls=Group)
def report() -> None:
    """Show what upgrades, rollbacks and failovers did.

    Each of them leaves a report in the directory `reports` of state_dir: ID.json, and ID.html, a page for a browser
    that needs nothing else. The 50 newest are kept.
    """


def _completed(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    with contextlib.suppress(HotswapError, OSError):
        names = _store(context.ensure_object(App)).ids()
        return [CompletionItem(name) for name in names if name.startswith(begun)]
    return []


_name = click.argument("name", metavar="[REPORT]", required=False, shell_complete=_completed)


@report.command(name="list", short_help="List the reports, the newest first.", changes=False)
@pass_app
def list_(app: App) -> None:
    """List the reports, the newest first.

    An upgrade whose process was killed left no report. What its journal says of it is listed nevertheless.

    With --json: {"reports": [{"id", "kind", "outcome", "started", "seconds", "old", "new", "previous", "release",
    "vms", "handover_us", "longest_gap_ms", "lost", "page"}]}.

    \b
    Example:
      ovs-hotswap report list
    """
    from ovs_hotswap.reports import words
    from ovs_hotswap.reports.comparison import Figures

    store, found = _store(app), _all(app)
    figures = [Figures.of(each) for each in found]
    app.output.document({"reports": [
        {"id": one.id, "kind": one.kind, "outcome": one.outcome, "started": one.started, "seconds": one.seconds,
         "old": one.old, "new": one.new, "previous": one.previous, "release": one.release, "vms": each.vms,
         "handover_us": each.worst_us, "longest_gap_ms": each.longest_ms, "lost": one.lost, "page": _page(store, one)}
        for each in figures for one in [each.report]
    ]})  # fmt: skip
    rows = [
        (each.report.id, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.report.started)), each.report.outcome,
         each.report.release, each.vms, None if each.worst_us is None else words.milliseconds(each.worst_us / 1e3),
         None if each.longest_ms is None else words.milliseconds(each.longest_ms), words.seconds(each.report.seconds))
        for each in figures
    ]  # fmt: skip
    app.output.table(
        ("report", "begun", "outcome", "release", "VMs", "longest handover", "longest gap", "took"), rows
    )  # fmt: skip


@report.command(short_help="Show a report as text, or as its page.", changes=False)
@_name
@click.option("--html", is_flag=True, help="Print the page, compared with the earlier reports that are there now.")
@pass_app
def show(app: App, name: str | None, html: bool) -> None:
    """Show a report. REPORT is its id or the beginning of it; without REPORT it is the newest one.

    With --json: the report, docs/json.md. Times are in UTC.

    \b
    Example:
      ovs-hotswap report show
      ovs-hotswap report show 20261129-0815
      ovs-hotswap --host root@hv12 report show --html > hv12.html
    """
    from ovs_hotswap.reports.page import page
    from ovs_hotswap.reports.store import as_json, find

    if html and app.output.json:
        raise click.UsageError("--html and --json exclude each other")
    every = _all(app)
    found = find(every, name)
    if html:
        app.output.line(page(found, every))
        return
    app.output.document(as_json(found))
    _show(app, found, every)


@report.command(name="open", short_help="Open a report's page in a browser.", changes=False)
@_name
@pass_app
def open_(app: App, name: str | None) -> None:
    """Open a report's page in a browser. REPORT is as for `report show`.

    Without a desktop it prints the path of the page, which is one file: copy it to where a browser is.

    With --json: {"id", "page", "opened"}.

    \b
    Example:
      ovs-hotswap report open
    """
    from ovs_hotswap.reports.store import find

    store, found = _store(app), find(_all(app), name)
    path = _page(store, found)
    if path is None:  # the process of that upgrade was killed
        store.write(found)
        path = str(store.page(found.id))
    opened = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) and _browse(path)
    app.output.document({"id": found.id, "page": path, "opened": opened})
    app.output.line(path)
    if not opened:
        app.output.line("no browser was found here; elsewhere: "
                        f"`ovs-hotswap --host HOST report show {found.id} --html > {found.id}.html`")  # fmt: skip


def _browse(path: str) -> bool:
    """Open the page in a browser; return whether there is one."""
    import webbrowser

    try:
        return webbrowser.open(f"file://{path}")
    except (webbrowser.Error, OSError):
        return False


# ----------------------------------------------------------------------------------------------------- what is there


def _store(app: App) -> Reports:
    from ovs_hotswap.reports.store import Reports
    from ovs_hotswap.upgrade.run_report import directory

    return Reports(directory(app.config), app.system)


def _page(store: Reports, found: RunReport) -> str | None:
    path = store.page(found.id)
    return str(path) if path.exists() else None


def _all(app: App) -> list[RunReport]:
    """All reports, and those that the journals of upgrades without one make, the newest first."""
    from ovs_hotswap.host.event_log import last_events
    from ovs_hotswap.plan.journal import Contents, Journals
    from ovs_hotswap.reports.compose import Seen
    from ovs_hotswap.upgrade.plans import plan_for
    from ovs_hotswap.upgrade.run_report import EVENTS, descriptions, of_contents

    found = _store(app).all()
    begun = {each.started for each in found}
    journals = Journals(app.config.state_dir, app.system)
    left: list[Contents] = []
    try:
        left += [each for each in [journals.read()] if each is not None]
        left += journals.ended()
    except (HostError, StateUnknown) as error:
        app.output.warning(error.message)
    events = last_events(app.config, EVENTS)
    does = descriptions(plan_for(app.config))
    for each in left:
        if each.header.started not in begun:
            seen = Seen(
                os.uname().nodename, each.header.versions.get("ovs-hotswap", "?"), descriptions=does, events=events
            )
            with contextlib.suppress(StateUnknown):
                found.append(of_contents(each, seen))
    return sorted(found, key=lambda each: -each.started)


# ----------------------------------------------------------------------------------------------------------- as text


def _show(app: App, found: RunReport, every: Sequence[RunReport]) -> None:
    from ovs_hotswap.reports import words
    from ovs_hotswap.reports.comparison import compare

    out, compared = app.output, compare(found, every)
    out.line(f"{words.title(found)}: {words.about(found)}")
    out.line(f"{found.id} on {found.host}, begun {words.clock(found.started)} UTC, took {words.seconds(found.seconds)}")
    for text in words.why(found):
        out.line(f"why       {text}")
    if (advice := words.advice(found)) is not None:
        out.line(f"next      {advice}")
    for text in found.warnings:
        out.line(f"warning   {text}")
    if found.worst is not None:
        vm, gap = found.worst
        out.line(f"worst     VM {vm.name}: {words.gap_text(gap)}")
    if found.lost is not None:
        out.line(f"lost      {words.several(found.lost, 'packet')} of the guests' pings")
    if found.protected_after_s is not None:
        out.line(f"standby   ready again after {words.seconds(found.protected_after_s)}")
    out.line()
    out.table(("step", "took", "usually", ""), [
        (words.stage_name(each), words.seconds(each.seconds),
         None if each.undo or each.name not in compared.usual else words.seconds(compared.usual[each.name]),
         words.stage_note(each))
        for each in found.stages
    ])  # fmt: skip
    _vm_table(app, found)
    for check in found.checks:
        if check.severity != "ok":
            out.line(f"{check.step}: {check.check}: {check.text}")


def _vm_table(app: App, found: RunReport) -> None:
    from ovs_hotswap.reports import words

    if not found.vms:
        return
    app.output.line()
    ordered = sorted(found.vms, key=lambda vm: (-(vm.gaps[0].ms if vm.gaps else 0.0), vm.name))
    app.output.table(("VM", "handover", "longest gap", "in step", "what it was"), [
        (vm.name, None if vm.handover_us is None else words.milliseconds(vm.handover_us / 1e3),
         words.milliseconds(vm.gaps[0].ms) if vm.gaps else None, vm.gaps[0].step if vm.gaps else None,
         vm.apart or vm.note or (words.SOURCES[vm.gaps[0].source] if vm.gaps else None))
        for vm in ordered
    ])  # fmt: skip
