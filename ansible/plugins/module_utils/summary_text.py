# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""The totals of a run over a fleet in words: as a text for a terminal, and as a JSON document."""

from __future__ import annotations

import dataclasses
import datetime
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils.summary import (
    STATES,
    UTC,
    Host,
    Stop,
    Totals,
    Wave,
)

_WIDTH = 110
_LABEL = 10
_LONG = 400  # a sentence that names every host of a large wave says no more than its beginning


def number(value: float) -> str:
    """1 234 567; a fraction keeps up to two places."""
    digits = f"{value:,.2f}".rstrip("0").rstrip(".") if value % 1 else f"{int(value):,}"
    return digits.replace(",", " ")


def several(count: int, noun: str) -> str:
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def milliseconds(us: float | None) -> str:
    return "-" if us is None else f"{us / 1000:.2f} ms"


def duration(seconds: float | None) -> str:
    """8 s, 4 min 05 s, 3 h 12 min."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{number(whole // 3600)} h {whole % 3600 // 60:02} min"


def clock(seconds: float | None) -> str:
    """A time in UTC."""
    if seconds is None:
        return "-"
    return datetime.datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def word(state: str) -> str:
    return state.replace("_", " ")


def counted(states: Mapping[str, int], order: Sequence[str] = tuple(reversed(STATES))) -> str:
    return ", ".join(f"{number(states[state])} {word(state)}" for state in order if states.get(state))


def why(host: Host) -> str:
    """What is wrong with a host, or why it is in its state."""
    parts = [*host.concerns] if host.concerns else [host.reason] if host.reason else []
    if host.lost:
        parts.append(f"{several(host.lost, 'frame')} reported lost")
    if host.lost_unknown:
        parts.append(f"losses not known of {several(len(host.lost_unknown), 'VM')}")
    if host.standby == "missing":
        parts.append(f"no standby: {host.standby_reason}" if host.standby_reason else "no standby")
    return "; ".join(dict.fromkeys(parts))


def wave_title(name: str) -> str:
    return f"wave {name}" if name.isdigit() else "no wave yet" if name == "?" else name


def stop_line(stop: Stop) -> str:
    if stop.text:
        return stop.text if len(stop.text) <= _LONG else stop.text[:_LONG] + " ..."
    measured = "" if stop.value is None else f" is {number(stop.value)}"
    allowed = "" if stop.limit is None else f"{' and' if measured else ''} may be {number(stop.limit)} at most"
    return f"{stop.threshold}{measured}{allowed}" if measured or allowed else f"{stop.threshold} was exceeded"


def headline(totals: Totals) -> tuple[str, str]:
    """The verdict in two or three words, and what it is about."""
    does = f"are back from {totals.release}" if totals.undo else f"run {totals.release}"
    run = f"{number(totals.done)} of {several(len(totals.hosts), 'host')} {does}"
    if totals.stop is not None:
        return f"Stopped{'' if totals.stop.wave is None else ' in ' + wave_title(totals.stop.wave)}", run
    if totals.verdict == "running":
        return "Under way", run
    if totals.verdict == "incomplete":
        return "Not complete", run
    skipped = totals.states.get("skipped", 0)
    every = run if skipped else f"all {several(len(totals.hosts), 'host')} {does}"
    return ("Complete, with something to look at" if totals.verdict == "attention" else "Complete"), every


def gap(totals: Totals) -> str:
    if totals.worst_us is None:
        return "no VM was moved"
    return (
        f"worst {milliseconds(totals.worst_us)} (VM {totals.worst_vm} on {totals.worst_host}), "
        f"p50 {milliseconds(totals.p50_us)}, p99 {milliseconds(totals.p99_us)}"
    )


def losses(totals: Totals) -> str:
    lost = f"{several(totals.lost, 'frame')} reported lost" if totals.lost else "no host reports a lost frame"
    unknown = f"; not known of {several(totals.lost_unknown, 'VM')}" if totals.lost_unknown else ""
    return lost + unknown


def standby_line(totals: Totals) -> str:
    found, every = totals.standby, sum(totals.standby.values())
    if not every:
        return "no host was changed yet"
    words = {"missing": "missing on", "unknown": "not known of", "off": "not kept on"}
    parts = [f"{words[key]} {number(found[key])}" for key in words if found.get(key)]
    if not parts:
        return f"restored on all {several(every, 'host')}"
    return ", ".join([f"restored on {number(found.get('restored', 0))} of {several(every, 'host')}", *parts])


def elapsed(totals: Totals) -> float | None:
    return None if totals.started is None or totals.ended is None else max(0.0, totals.ended - totals.started)


def facts(totals: Totals) -> list[tuple[str, str]]:
    """What a reader asks first, in this order."""
    return [
        ("hosts", counted(totals.states) or "none"),
        ("VMs", f"{number(totals.moves)} moved"),
        ("gap", gap(totals)),
        ("losses", losses(totals)),
        ("standby", standby_line(totals)),
        ("time", f"{duration(elapsed(totals))}, {clock(totals.started)} to {clock(totals.ended)} UTC"),
    ]


# ------------------------------------------------------------------------------------------------------------- text


def _fact(label: str, value: str) -> str:
    return textwrap.fill(f"{label:<{_LABEL}}{value}", _WIDTH, subsequent_indent=" " * _LABEL, break_long_words=False)


def _wave_line(wave: Wave) -> str:
    progress = f"{number(wave.finished)} of {number(wave.hosts)}"
    took = duration(wave.seconds) if wave.finished == wave.hosts else "not finished"
    worst = f"worst {milliseconds(wave.worst_us):>9}"
    return f"  {wave_title(wave.name):<12}{progress:>16}  {took:>12}  {worst}  {counted(wave.states)}"


def _problem_lines(host: Host) -> Iterator[str]:
    yield f"  {host.name} ({wave_title(host.wave)}), {word(host.state)}: {why(host)}"
    if host.hint:
        yield f"      hint: {host.hint}"
    if host.look:
        yield f"      {host.look}"


def text(totals: Totals) -> str:
    """For a terminal; without control characters that a host's name or reason may hold."""
    verdict, about = headline(totals)
    lines = [f"{verdict}: {about} (run {totals.run})"]
    if totals.stop is not None:
        lines.append(f"The run was stopped: {stop_line(totals.stop)}.")
    lines += ["", *(_fact(label, value) for label, value in facts(totals)), "", "waves"]
    lines += [_wave_line(wave) for wave in totals.waves]
    if totals.problems:
        lines += ["", f"hosts to look at ({number(len(totals.problems))})"]
        lines += [line for host in totals.problems for line in _problem_lines(host)]
    warned = [(host, warning) for host in totals.hosts for warning in host.warnings]
    if warned:
        lines += [
            "",
            f"warnings of hosts ({number(len(warned))})",
            *(f"  {host.name}: {each}" for host, each in warned),
        ]
    return "\n".join(printable(line.rstrip()) for line in lines) + "\n"


def printable(line: str) -> str:
    """The line with ``?`` for each control character, so that no name of a host moves a terminal's cursor."""
    return "".join(each if each == "\n" or each.isprintable() else "?" for each in line)


# ------------------------------------------------------------------------------------------------------------- JSON


def _host_document(host: Host) -> dict[str, Any]:
    found = {**dataclasses.asdict(host), "seconds": host.seconds, "vms": len(host.moves)}
    found.pop("moves")
    worst = host.worst
    return {**found, "worst_us": worst[1] if worst else None, "worst_vm": worst[0] if worst else None}


def document(totals: Totals) -> dict[str, Any]:
    """The fields of `summary.json`; docs/fleet.md has the same list."""
    verdict, about = headline(totals)
    plain = {field.name: getattr(totals, field.name) for field in dataclasses.fields(totals)}
    return {
        **plain,
        "verdict": totals.verdict,
        "headline": f"{verdict}: {about}",
        "seconds": elapsed(totals),
        "done": totals.done,
        "stop": None if totals.stop is None else {**dataclasses.asdict(totals.stop), "line": stop_line(totals.stop)},
        "waves": [
            {**dataclasses.asdict(each), "hosts": each.hosts, "finished": each.finished, "seconds": each.seconds}
            for each in totals.waves
        ],
        "problems": [_host_document(each) for each in totals.problems],
        "hosts": [_host_document(each) for each in totals.hosts],
    }
