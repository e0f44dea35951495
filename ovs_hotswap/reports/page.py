"""A report as one HTML page that loads nothing and runs no script. What came from the host is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from ovs_hotswap.model import Severity
from ovs_hotswap.reports import charts, words
from ovs_hotswap.reports.comparison import Comparison, Figures, compare
from ovs_hotswap.reports.document import CheckResult, GapSource, Outcome, RunKind, RunReport, VmPart

if TYPE_CHECKING:
    from jinja2 import Template

_OPEN = 16  # a table of up to so many VMs is open from the start
_TONES = {
    Outcome.DONE: "good", Outcome.ROLLED_BACK: "back", Outcome.REFUSED: "back", Outcome.UNFINISHED: "bad",
    Outcome.INCOMPLETE: "bad",
}  # fmt: skip
_SIGNS = {
    Outcome.DONE: "✓", Outcome.ROLLED_BACK: "↩", Outcome.REFUSED: "–", Outcome.UNFINISHED: "!", Outcome.INCOMPLETE: "!",
}  # fmt: skip
_MARKS = {Severity.OK: "✓", Severity.WARNING: "!", Severity.ERROR: "✕", Severity.UNKNOWN: "?"}


@cache
def _template() -> Template:
    import jinja2  # takes long to import, and the watchdog must not wait for it when it starts

    found = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_file),
    )  # fmt: skip
    return found.get_template("page.html")


def _file(name: str) -> str:
    return resources.files("ovs_hotswap.reports").joinpath(name).read_text(encoding="utf-8")


def page(report: RunReport, others: Sequence[RunReport] = ()) -> str:
    """Return the page. It compares the report with those among ``others`` that are earlier and like it."""
    compared = compare(report, others)
    attention = report.outcome is Outcome.DONE and (report.warnings or report.lost)
    fail, gaps, order = words.why(report), charts.gaps(report), charts.order(report)
    return _template().render(
        report=report, title=words.title(report), about=words.about(report),
        tone="back" if attention else _TONES[report.outcome], sign="!" if attention else _SIGNS[report.outcome],
        begun=words.clock(report.started), ended=words.clock(report.ended), cards=_cards(report, compared.own),
        why=fail, advice=words.advice(report) if report.outcome is not Outcome.DONE else None,
        undone=[stage for stage in report.stages if stage.undo], lanes=charts.lanes(report, compared),
        commit=charts.commit_at(report), begun_steps=_not_begun(report), gaps=gaps,
        order=order, legend=_legend(report), by_step=_by_step(report), vms=_rows(report),
        open=len(report.vms) <= _OPEN, guests=any(vm.pings for vm in report.vms), checks=_checks(report.checks),
        runs=_runs(compared), compared=bool(compared.usual), failover=report.kind is RunKind.FAILOVER,
        timeline_note=_timeline_note(report, compared), gaps_note=_gaps_note(report, gaps),
        order_note=_order_note(order),
        happenings=[(words.seconds(max(0.0, each.time - report.started)), each.text) for each in report.happenings],
    )  # fmt: skip


def _timeline_note(report: RunReport, compared: Comparison) -> str:
    what = "stage" if report.kind is RunKind.FAILOVER else "step"
    found = [f"Each {what} from its beginning to its end, in order of time."]
    if report.committed is not None:
        found.append("The green line is the commit, after which no step is undone.")
    if compared.usual:
        found.append("Usually: the median of earlier runs; a time that is clearly longer than that is red.")
    return " ".join(found)


def _gaps_note(report: RunReport, chart: charts.Chart | None) -> str:
    place, way = ("first", "to the right") if chart is not None and chart.rows else ("on the left", "up")
    found = [f"The worst VM is {place}. Equal distances {way} are equal ratios."]
    if not any(vm.pings for vm in report.vms):
        found.append("What the guests themselves noticed is not known to the host.")
    return " ".join(found)


def _order_note(chart: charts.Chart | None) -> str:
    rows = chart is not None and chart.rows
    end = "A bar is as long as its handover took." if rows else "The height is how long it took."
    return f"When each VM was handed over, from the beginning of the first handover. {end}"


def _not_begun(report: RunReport) -> list[str]:
    """The steps of the plan that were never begun, if it did not come to its end."""
    begun = {stage.name for stage in report.stages}
    return [] if report.outcome is Outcome.DONE else [name for name in report.steps if name not in begun]


def _cards(report: RunReport, own: Figures) -> list[tuple[str, str, str]]:
    """Label, value and note of each figure that a reader asks for first."""
    undone = sum(stage.undo for stage in report.stages)
    done = words.several(len(report.stages) - undone, "stage" if report.kind is RunKind.FAILOVER else "step")
    found = [("Took", words.seconds(report.seconds), f"{done}{f', {undone} undone' if undone else ''}")]
    found.append(("VMs that passed", str(own.vms), _passed(report)))
    if own.worst_us is not None:
        spread = ", ".join(f"{name} {words.milliseconds(us / 1e3)}" for name, us in
                           (("p50", own.p50_us), ("p99", own.p99_us)) if us is not None)  # fmt: skip
        found.append(("Longest handover", words.milliseconds(own.worst_us / 1e3), spread))
    if report.worst is not None:
        vm, gap = report.worst
        where = f"VM {vm.name}: {words.SOURCES[gap.source]}{f', in {gap.step}' if gap.step else ''}"
        found.append(("Longest gap", words.milliseconds(gap.ms), where))
    if report.lost is not None:
        sent = sum(each.sent for vm in report.vms for each in vm.pings)
        doubled = sum(each.duplicated for vm in report.vms for each in vm.pings)
        found.append(("Packets lost", str(report.lost), f"of {sent} that guests sent; {doubled} doubled"))
    if report.protected_after_s is not None:
        found.append(("Protected again", words.seconds(report.protected_after_s), "after the failover was detected"))
    return found


def _passed(report: RunReport) -> str:
    """How the VMs passed, and how many did not."""
    if not report.vms:
        return "nothing was changed" if report.outcome is Outcome.REFUSED else "not known of any"
    taken = sum(any(gap.source is GapSource.STOPPED for gap in vm.gaps) for vm in report.vms)
    left = len(report.vms) - len(report.passed)
    parts = [f"{taken} taken over from a switch without a broker"] if taken else []
    parts += [f"{left} did not"] if left else []
    return "; ".join(parts) or "all of them"


def _legend(report: RunReport) -> list[tuple[str, str]]:
    """The shapes of the chart that occur, with their meanings."""
    sources = {gap.source for vm in report.vms for gap in vm.gaps}
    found = [("handover", words.SOURCES[GapSource.HANDOVER])] if GapSource.HANDOVER in sources else []
    if GapSource.GUEST in sources:
        found.append(("guest", "the longest time in which its guest got no answer"))
    if others := sorted(sources - {GapSource.HANDOVER, GapSource.GUEST}):
        found.append(("other", " or ".join(words.SOURCES[source] for source in others)))
    if any(each.quiet_ms for vm in report.vms for each in vm.pings):
        found.append(("quiet", "the same while nothing was done"))
    return found


def _by_step(report: RunReport) -> list[tuple[str, int, str, str]]:
    """Group the longest gaps of all VMs by step: the step, how many there are, and the worst one with its VM."""
    found: dict[str, list[tuple[float, str]]] = {}
    for vm in report.vms:
        if vm.gaps:
            found.setdefault(vm.gaps[0].step or "no step", []).append((vm.gaps[0].ms, vm.name))
    rows = [(step, len(gaps), max(gaps)) for step, gaps in found.items()]
    rows.sort(key=lambda row: -row[2][0])
    return [(step, count, words.milliseconds(ms), name) for step, count, (ms, name) in rows]


def _rows(report: RunReport) -> list[dict[str, Any]]:
    """The rows of the table of VMs, the worst first."""
    ordered = sorted(report.vms, key=lambda vm: (-(vm.gaps[0].ms if vm.gaps else 0.0), vm.name))
    return [_row(vm) for vm in ordered]


def _row(vm: VmPart) -> dict[str, Any]:
    return {
        "name": vm.name,
        "handover": "" if vm.handover_us is None else words.milliseconds(vm.handover_us / 1e3),
        "longest": words.milliseconds(vm.gaps[0].ms) if vm.gaps else "",
        "step": (vm.gaps[0].step or "") if vm.gaps else "",
        "what": vm.apart or vm.note or (words.SOURCES[vm.gaps[0].source] if vm.gaps else ""),
        "apart": vm.apart is not None,
        "pings": [{"target": each.target, "sent": each.sent, "lost": each.lost,
                   "around": words.milliseconds(each.around_ms), "longest": words.milliseconds(each.longest_ms),
                   "quiet": words.milliseconds(each.quiet_ms)} for each in vm.pings],
    }  # fmt: skip


def _checks(found: Sequence[CheckResult]) -> dict[str, list[dict[str, Any]]]:
    """The findings to look at, worst first, and those that are well."""
    rows = sorted(found, key=lambda each: words.SEVERITIES.index(each.severity))
    shown = [{"mark": _MARKS[each.severity], "severity": str(each.severity), "step": each.step, "check": each.check,
              "text": each.text, "hint": each.hint} for each in rows]  # fmt: skip
    return {"look": [row for row in shown if row["severity"] != "ok"],
            "well": [row for row in shown if row["severity"] == "ok"]}  # fmt: skip


def _runs(compared: Comparison) -> list[dict[str, Any]]:
    """This run and the earlier ones, with bars as long as their longest handovers are."""
    found = [compared.own, *compared.earlier]
    most = max((each.worst_us or 0.0 for each in found), default=0.0) or 1.0
    return [
        {
            "own": each is compared.own, "id": each.report.id, "begun": words.clock(each.report.started),
            "outcome": str(each.report.outcome), "to": each.report.release or "", "vms": each.vms,
            "took": words.seconds(each.report.seconds),
            "p50": "" if each.p50_us is None else words.milliseconds(each.p50_us / 1e3),
            "p99": "" if each.p99_us is None else words.milliseconds(each.p99_us / 1e3),
            "worst": "" if each.worst_us is None else words.milliseconds(each.worst_us / 1e3),
            "bar": round(100 * (each.worst_us or 0.0) / most, 1), "longest": words.milliseconds(each.longest_ms),
        }
        for each in found
    ] if compared.earlier else []  # fmt: skip
