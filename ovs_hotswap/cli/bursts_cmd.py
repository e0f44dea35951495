"""``ovs-hotswap bursts``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ovs_hotswap.cli.app import App, Command, pass_app, yes
from ovs_hotswap.cli.findings_page import CODES, follow, show, vm_names
from ovs_hotswap.errors import ConfigError, HotswapError

if TYPE_CHECKING:
    from ovs_hotswap.bursts.applying import Changer
    from ovs_hotswap.bursts.found import Advice, Made, Report
    from ovs_hotswap.bursts.looking import Looking
    from ovs_hotswap.bursts.values import Window

_ALL = "all"


def _changes(given: Mapping[str, Any]) -> bool:
    return bool((given.get("advice") is not None or given.get("undo")) and not given.get("dry_run"))


@click.command(cls=Command, changes=_changes)
@click.argument("vm", required=False, shell_complete=vm_names)
@click.option(
    "--seconds", type=click.FloatRange(0.5, 600), default=5.0, show_default=True, metavar="SECONDS",
    help="How long counters are watched. Bursts that are rare need longer.",
)  # fmt: skip
@click.option(
    "--interval", type=click.IntRange(50, 5000), default=100, show_default=True, metavar="MS",
    help="The least time between two looks. Looks that take long are made less often.",
)  # fmt: skip
@click.option("--watch", "-w", is_flag=True, help="Look again and again until Ctrl-C, and show each change.")
@click.option(
    "--apply", "advice", is_flag=False, flag_value=_ALL, metavar="[ADVICE]",
    help="Make the change of this name; without a name, or with `all`, all that are advised now.",
)  # fmt: skip
@click.option("--undo", is_flag=True, help="Put back what --apply changed, the newest first. Nothing is looked at.")
@click.option("--dry-run", is_flag=True, help="With --apply or --undo: show the changes, make none.")
@yes
@pass_app
def bursts(
    app: App, vm: str | None, seconds: float, interval: int, watch: bool, advice: str | None, undo: bool, dry_run: bool,
    yes: bool,
) -> None:  # fmt: skip
    """Find packets that are lost in bursts: at NICs while PMD threads are idle, in short rings, in uneven queues.

    Counters of ports and PMD threads are read many times, so that a loss in moments can be told from one all the time.
    Each finding has its evidence and the command that helps; the one with the most lost packets comes first. Nothing is
    changed without --apply.

    --apply writes what only the operator sets: options of an interface (n_rxq_desc, n_txq_desc, n_rxq, tx-retries-max,
    tx-steering), and in other_config pmd-auto-lb, smc-enable and the sleep of PMD threads. The earlier values are
    recorded, and --undo puts them back, also after an upgrade. A change of rings or queues stops the port for a moment,
    and its packets are lost: the command says so and asks. ADVICE is a name that a finding gives, such as
    rx-ring:uplink.

    Exit code 4 if a finding is an error, otherwise 6 if something could not be seen, otherwise 0; with --watch,
    --apply or --undo 0.

    With --json: {"vm", "active", "seconds", "intervals", "findings": [{"cause", "severity", "vm", "port", "lost",
    "text", "evidence": [text], "command", "advice", "effect"}], "threads": [{"core", "numa", "busy", "peak", "waits",
    "queues"}], "ports": [{"port", "rx", "rx_peak", "tx", "tx_peak", "lost", "lossy"}], "cost": {"looks", "look_ms",
    "cpu"}, "limits": [text], "applied": [{"advice", "table", "row", "column", "key", "before", "after", "seconds"}]}.
    With --watch each change is a document on one line. With --undo: {"undone": as "applied", "left": [{"advice",
    "why"}]}, and the exit code of the error if a value could not be put back.

    \b
    Example:
      ovs-hotswap bursts
      ovs-hotswap bursts web1 --seconds 30
      ovs-hotswap bursts --apply tx-retries:web1 --dry-run
      ovs-hotswap bursts --undo
    """
    _refuse(watch=watch, advice=advice, undo=undo, dry_run=dry_run)
    from ovs_hotswap.bursts.applying import Changer
    from ovs_hotswap.bursts.looking import Looking
    from ovs_hotswap.bursts.page import headlines
    from ovs_hotswap.host.host import Host

    if undo:
        _undo(app, Changer(Host(app.config, app.system)), dry_run=dry_run, agreed=yes)
        return
    looking = Looking(app.config, app.system, seconds, interval / 1e3, vm)
    if watch:
        follow(app, lambda: _look(looking, vm)[0], headlines, lambda: None)
        return
    _once(app, looking, vm, advice, dry_run=dry_run, agreed=yes)


def _once(
    app: App, looking: Looking, vm: str | None, advice: str | None, *, dry_run: bool, agreed: bool
) -> None:  # fmt: skip
    """Look once, and make the changes that are asked for."""
    from ovs_hotswap.bursts.applying import Changer
    from ovs_hotswap.bursts.judging import report
    from ovs_hotswap.bursts.page import lines
    from ovs_hotswap.host.host import Host

    window = looking.window()
    found, advised = report(window, looking.target.side, vm)
    show(app, lambda width: lines(found, width))
    changer = Changer(Host(app.config, app.system))
    _remind(app, changer)
    if advice is None:
        app.output.document(found)
        click.get_current_context().exit(CODES.get(found.worst, 0))
    wanted = _wanted(advice, advised, window)
    made = _apply(app, changer, wanted, dry_run=dry_run, agreed=agreed)
    app.output.document(replace(found, applied=tuple(made)))


def _refuse(*, watch: bool, advice: str | None, undo: bool, dry_run: bool) -> None:
    if sum((watch, advice is not None, undo)) > 1:
        raise click.UsageError("--watch, --apply and --undo exclude each other")
    if dry_run and advice is None and not undo:
        raise click.UsageError("--dry-run is for --apply and --undo: nothing else changes anything")


def _remind(app: App, changer: Changer) -> None:
    """Say which changes are in force, as far as that is known."""
    with contextlib.suppress(HotswapError):
        if names := [change.advice for change in changer.changes()]:
            app.output.line(f"\nchanged by --apply before: {', '.join(names)}; `ovs-hotswap bursts --undo` undoes it")


def _look(looking: Looking, vm: str | None) -> tuple[Report, tuple[Advice, ...]]:
    from ovs_hotswap.bursts.judging import report

    window = looking.window()
    return report(window, looking.target.side, vm)


def _wanted(name: str, advised: Sequence[Advice], window: Window) -> list[Advice]:
    """The changes to make. Raises ConfigError for a name that is none."""
    from ovs_hotswap.bursts.advice import NAMES, named

    if name == _ALL:
        return list(advised)
    found = next((each for each in advised if each.name == name), None) or named(name, window)
    if found is None:
        raise ConfigError(f"there is nothing to change by the name {name}: it is no advice, or is in force already",
                          hint=f"names are {', '.join(NAMES)}")  # fmt: skip
    return [found]


def _apply(
    app: App, changer: Changer, wanted: Sequence[Advice], *, dry_run: bool, agreed: bool
) -> list[Made]:  # fmt: skip
    """Make the changes one by one, each after a question to a person. One that fails ends the command, and those before
    it stay recorded."""
    from ovs_hotswap.bursts.applying import shown
    from ovs_hotswap.bursts.page import change as line

    made: list[Made] = []
    app.output.line()
    for advised in wanted:
        for planned in changer.plan([advised]):
            app.output.line(f"{line(shown(planned))}  [{advised.name}]")
            app.output.line(f"  {advised.effect}")
            if dry_run:
                made.append(shown(planned))
            elif agreed or not app.output.asks or app.output.ask("  make this change?"):
                made.append(changer.make(planned))
                app.output.line(f"  done, in {made[-1].seconds or 0:.2f} s; `ovs-hotswap bursts --undo` puts it back")
    app.output.done = bool(made) and not dry_run
    if not made:
        app.output.line("nothing was changed")
    return made


def _undo(app: App, changer: Changer, *, dry_run: bool, agreed: bool) -> None:
    """Put the earlier values back, the newest change first. One that cannot be put back does not keep the others from
    that."""
    from ovs_hotswap.bursts.applying import shown
    from ovs_hotswap.bursts.page import change as line

    undone: list[Made] = []
    left: list[dict[str, str]] = []
    fault: HotswapError | None = None
    for change in reversed(changer.changes()):
        back = shown(change.model_copy(update={"before": change.after, "after": change.before}))
        app.output.line(f"{line(back)}  [{change.advice}]")
        if dry_run:
            undone.append(back)
            continue
        if not (agreed or not app.output.asks or app.output.ask("  put it back?")):
            continue
        try:
            result = changer.undo(change)
        except HotswapError as error:
            app.output.warning(error.message)
            left.append({"advice": change.advice, "why": error.message})
            fault = error
            continue
        if result.why_not:
            left.append({"advice": change.advice, "why": result.why_not})
            app.output.warning(f"left as it is: {result.why_not}")
        else:
            undone.append(replace(back, seconds=None if result.seconds is None else round(result.seconds, 3)))
    app.output.done = bool(undone) and not dry_run and fault is None
    app.output.document({"undone": undone, "left": left})
    if not (undone or left):
        app.output.line("nothing was put back")
    if fault is not None:
        click.get_current_context().exit(fault.exit_code)
