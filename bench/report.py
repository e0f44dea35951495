"""Writes docs/performance.md and its plots from the reports of the other benchmarks.

A section is written if its report is there: scale, patched (scale with the patched switch), alternatives, failover,
phases, hosts, forwarding, window, soak. A section without a report stays on the page as it is. Nothing is written that
is not in a report.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import forwarding as forwarded
from bench import host_report
from bench.drawing import draw
from bench.sections import Json, Section, ecdf, named, spread, table, tenths, whole
from bench.testpmd import IN_FLIGHT
from ovs_hotswap.cli.output import Output
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.plan.journal import FORMER_STEPS
from ovs_hotswap.system import System

DIRECTIONS = ("sending", "receiving")
_PHASES = ("floor", "fail-over", "hang", "broker lost", "restart")  # keys of the failover benchmark's report

INTRODUCTION = """\
# Performance

Written by `make bench-full` from the reports it made; do not edit. Every figure stands beside its alternative in the
same run, and beside the noise floor: the same traffic with nothing done. Guests are simulated (`bench/guests`)
and exchange numbered frames with one another and, over VXLAN, with another host; switches, broker and watchdog are
real.
"""

GAPS = """
The longest gap that each guest saw in the second around its move, in milliseconds. Rehearsed: all that surrounds the
moves was done, and none was made. The guests share their core with the upgrade, the broker and both switches'
message threads.

"""

CRASHES = """
Milliseconds from an instant to each guest's next packet. Floor: from any instant while nothing is done. Failover: from
SIGKILL of the active instance. Hang: from SIGSTOP of the active instance, all of whose threads stand still then.
Restart: from SIGKILL of the only instance, without a broker and a watchdog.

Broker lost is another measure and does not compare with the floor: the longest gap between two packets of a guest while
the broker is killed and started again. It contains the guest's own spacing of packets.

"""


def _moves(cases: Sequence[Json]) -> str:
    rows = [
        (named(each["case"]), len(each["moves_us"]), *spread(each["moves_us"], whole),
         *spread(each["all_ms"], whole)[::2])
        for each in cases
    ]  # fmt: skip
    return table(("VMs x queues", "moves", "p50 us", "p99 us", "max us", "all VMs, p50 ms", "all, max ms"), rows)


def _frames(cases: Sequence[Json]) -> str:
    rows = [(named(each["case"]), kind, *tally.values()) for each in cases for kind, tally in each["frames"].items()]
    return table(("VMs x queues", "frames", "sent", "lost", "doubled", "reordered"), rows)


def scale(document: Json) -> Section:
    cases = document["cases"]
    broker = [
        (named(each["case"]), each["broker_kb"], each["broker_descriptors"], f"{each['broker_percent']:.2f}",
         whole(quantile(sorted(each["broker_ms"]), 0.5)))
        for each in cases
    ]  # fmt: skip
    gaps = [
        (named(each["case"]), direction,
         *(value for what in ("floor_ms", "rehearsed_ms", "gaps_ms")
           for value in spread(each[what][direction], tenths)[:2]))
        for each in cases for direction in DIRECTIONS
    ]  # fmt: skip

    def distributions(axes: Any) -> None:
        for each in cases:
            ecdf(axes, each["moves_us"], named(each["case"]))
        axes.set(xlabel="handover, microseconds", ylabel="share of the moves", xscale="log")
        axes.legend(title="VMs x queues")

    def growth(axes: Any) -> None:
        for queues in sorted({each["case"]["queues"] for each in cases}):
            chosen = [each for each in cases if each["case"]["queues"] == queues]
            vms = [each["case"]["vms"] for each in chosen]
            for share, style in ((0.5, "o-"), (0.99, "o--")):
                values = [quantile(sorted(each["moves_us"]), share) for each in chosen]
                axes.plot(vms, values, style, label=f"p{share * 100:.0f}, {queues} queues")
        axes.set(xlabel="VMs on the host", ylabel="handover, microseconds", xscale="log", yscale="log")
        axes.legend()

    text = "One VM's rings from switch to switch, on the broker's clock; all VMs: first to last.\n\n"
    text += _moves(cases)
    text += "\nThe broker: memory, descriptors, % of a core while idle, ms of processor time to move all VMs.\n\n"
    text += table(("VMs x queues", "kB", "descriptors", "idle %", "all moved ms"), broker)
    text += GAPS
    text += table(("VMs x queues", "guests", "floor p50", "floor p99", "rehearsed p50", "rehearsed p99", "moved p50",
                   "moved p99"), gaps)  # fmt: skip
    text += "\n" + _frames(cases)
    return Section(text, {"handover": distributions, "handover-growth": growth})


def patched(document: Json) -> Section:
    text = "As above, with the switch of `make packages`.\n\n"
    return Section(text + _moves(document["cases"]) + "\n" + _frames(document["cases"]), {})


def alternatives(document: Json) -> Section:
    results = [result for results in document["cases"] for result in results]
    rows = [
        (named(each["case"]), each["way"], len(each["times_us"]), *spread(each["times_us"], whole)) for each in results
    ]

    def ways(axes: Any) -> None:
        chosen = max((each["case"]["vms"], each["case"]["queues"]) for each in results)
        for each in results:
            if (each["case"]["vms"], each["case"]["queues"]) == chosen:
                ecdf(axes, each["times_us"], each["way"])
        axes.set(xlabel="microseconds", ylabel="share of the handovers", xscale="log",
                 title=f"{chosen[0]} VMs x {chosen[1]} queues")  # fmt: skip
        axes.legend()

    text = "By a front end with a connection to either switch, without traffic.\n\n"
    text += table(("VMs x queues", "way", "times", "p50 us", "p99 us", "max us"), rows)
    return Section(text, {"alternatives": ways})


def failover(document: Json) -> Section:
    rows, idle = [], []
    for each in document["cases"]:
        vms = each["case"]["vms"]
        idle.append((vms, tenths(each["standby_percent"])))
        for phase in _PHASES:
            for direction in DIRECTIONS:
                figures = each["ms"].get(phase, {}).get(direction, {})
                rows.append(
                    (
                        vms,
                        phase.replace("fail-over", "failover"),
                        direction,
                        *(tenths(figures.get(name)) for name in ("p50", "p99", "max")),
                    )
                )

    def outages(axes: Any) -> None:
        for each in document["cases"]:
            for name, style in (("failovers", "failover"), ("restarts", "restart")):
                values = [ms for crash in each[name] for ms in crash["outage"]["sending"].values() if ms is not None]
                if values:
                    ecdf(axes, values, f"{each['case']['vms']} VMs, {style}")
        axes.set(xlabel="from the SIGKILL to a guest's next packet, ms", ylabel="share of the guests", xscale="log")
        axes.legend()

    text = CRASHES
    text += table(("VMs", "what", "guests", "p50", "p99", "max"), rows)
    text += "\n" + table(("VMs", "idle standby, % of a core"), idle)
    return Section(text, {"failover": outages})


def phases(document: Json) -> Section:
    cases = document["cases"]
    seconds = [{FORMER_STEPS.get(step, step): took for step, took in each["seconds"].items()} for each in cases]
    steps = list(dict.fromkeys(step for each in seconds for step in each))
    names = [f"{named(each['case'])}, {each['flows']} flows" for each in cases]
    rows = [(step, *(f"{each.get(step, 0.0):.2f}" for each in seconds)) for step in steps]

    def bars(axes: Any) -> None:
        left = [0.0] * len(cases)
        for step in steps[:-1]:
            width = [each.get(step, 0.0) for each in seconds]
            axes.barh(names, width, left=left, label=step)
            left = [one + other for one, other in zip(left, width, strict=True)]
        axes.set(xlabel="seconds")
        axes.legend(fontsize="x-small", ncols=2)

    text = "Seconds by step; VMs x queues.\n\n" + table(("step", *names), rows)
    return Section(text, {"phases": bars})


def forwarding(document: Json) -> Section:
    pairs, rates = document["paired"], document["rates"]

    def boxes(axes: Any) -> None:
        axes.boxplot(list(rates.values()))
        axes.set_xticklabels(list(rates))
        axes.set(ylabel="frames a second", ylim=0)

    text = f"""{IN_FLIGHT} frames of 64 bytes that go round between two guests (DPDK's `testpmd`). One switch serves two
such pairs of guests, one through the broker and one without, in turn; and two that are both without, which shows what
two pairs differ by anyway. Guests are started again for each round.

"""
    for each in pairs:
        text += table(forwarded.COLUMNS, forwarded.rows(each, forwarded.DIRECT)) + "\n"
    text += "Beside a standby, and in the window, compared to the broker alone:\n\n"
    text += table(forwarded.COLUMNS, forwarded.rows(rates, forwarded.BROKER))
    return Section(text, {"forwarding": boxes})


def soak(document: Json) -> Section:
    sizes = document["sizes"]
    frames = [(kind, *tally.values()) for kind, tally in document["frames"].items()]
    held = [
        (name, looks[0]["memory_kb"], looks[-1]["memory_kb"], looks[0]["descriptors"], looks[-1]["descriptors"])
        for name, looks in sizes.items()
    ]

    def memory(axes: Any) -> None:
        for name, looks in sizes.items():
            axes.plot([each["upgrades"] for each in looks], [each["memory_kb"] for each in looks], label=name)
        axes.set(xlabel="upgrades", ylabel="memory, kB", ylim=0)
        axes.legend()

    seconds = ", ".join(f"{name} {value}" for name, value in
                        zip(("p50", "p99", "longest"), spread(document["seconds"], tenths), strict=True))  # fmt: skip
    text = f"{document['upgrades']} upgrades with {document['vms']} VMs; seconds of each: {seconds}.\n\n"
    text += table(("frames", "sent", "lost", "doubled", "reordered"), frames)
    text += "\n" + table(("process", "kB, first", "last", "descriptors, first", "last"), held)
    return Section(text, {"soak": memory})


# In the order of the page, with the heading of each.
SECTIONS: dict[str, tuple[str, Callable[[Json], Section]]] = {
    "scale": ("Handover", scale),
    "patched": ("Handover with the patched switch", patched),
    "alternatives": ("Ways to hand rings over", alternatives),
    "failover": ("Crash failover", failover),
    "phases": ("A whole upgrade", phases),
    "hosts": ("Taking over a running switch", host_report.hosts),
    "forwarding": ("Forwarding", forwarding),
    "window": ("The cost of a window", host_report.window),
    "soak": ("Soak", soak),
}


def write(reports: Path, target: Path) -> list[str]:
    """Write the page and, in the directory of its name beside it, the plots; return the sections that were written."""
    documents = {
        name: json.loads(path.read_text())
        for name in SECTIONS
        if (path := reports / f"{name}-report.json").exists()
    }  # fmt: skip
    head, kept = _parts(target.read_text() if target.exists() else "")
    machines = {line for line in head.splitlines() if line.startswith("Machine: ")} if kept else set[str]()
    for document in documents.values():
        found = document["machine"]
        machines.add(f"Machine: {found['cpus']} CPUs, {found['model']}, Linux {found['kernel']}.")
    parts = [INTRODUCTION, *(f"{line}\n" for line in sorted(machines))]
    images = target.with_suffix("")
    for name, (heading, make) in SECTIONS.items():
        if name not in documents:
            parts += [kept[heading]] if heading in kept else []
            continue
        section = make(documents[name])
        shown = "\n".join(f"![{plot}]({images.name}/{plot}.svg)" for plot in section.plots)
        parts.append(f"## {heading}\n\n{section.text.lstrip()}\n{shown}\n")
        for plot, paint in section.plots.items():
            draw(images / f"{plot}.svg", paint)
    target.write_text("\n".join(parts))
    return list(documents)


def _parts(page: str) -> tuple[str, dict[str, str]]:
    """What is before the first section of a page, and each section by its heading."""
    head, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    return head, {each.splitlines()[0].removeprefix("## "): each.rstrip("\n") + "\n" for each in sections}


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reports", type=Path, default=Path(), help="directory of the *-report.json files")
    parser.add_argument("--target", type=Path, default=Path("docs/performance.md"))


def run(arguments: argparse.Namespace, output: Output, _system: System) -> int:
    """Exit status: 1 if there is no report."""
    found = write(arguments.reports, arguments.target)
    output.line(f"{arguments.target}: {', '.join(found) or 'no report'}")
    return 0 if found else 1
