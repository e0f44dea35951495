"""A page of findings, and findings that are followed, as `diagnose` and `bursts` print them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import click

from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.output import MARKS, STYLES
from ovs_hotswap.errors import HotswapError, PrecheckFailed, StateUnknown
from ovs_hotswap.model import Severity

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from rich.text import Text

    from ovs_hotswap.diagnose.finding_lines import Line

CODES = {Severity.ERROR: PrecheckFailed.exit_code, Severity.UNKNOWN: StateUnknown.exit_code}
"""The exit code by the severity of the worst finding; 0 for all others."""
_WIDTH = 100

Report = TypeVar("Report")


def vm_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of VMs, for completion; none if the configuration cannot be read."""
    from click.shell_completion import CompletionItem

    from ovs_hotswap.host.host import Host

    app = context.find_object(App) or App()
    try:
        names = [vm.name for vm in Host(app.config, app.system).vm_ports]
    except HotswapError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def show(app: App, page: Callable[[int], Iterator[Line]]) -> None:
    """Print a page for people. ``page`` returns its lines for a width in characters."""
    if app.output.json:
        return
    if not app.output.terminal:
        for _, text in page(_WIDTH):
            app.output.line(text)
        return
    console = app.output.console()
    for severity, text in page(shutil.get_terminal_size().columns):
        console.print(_styled(severity, text), soft_wrap=True)


def _styled(severity: Severity | None, text: str) -> Text:
    from rich.text import Text

    styled = Text(text)
    if severity is not None:
        mark = MARKS[severity]
        style = STYLES[mark]
        styled.stylize(style, *((0, len(mark)) if text.startswith(mark) else (0, len(text))))
    return styled


def follow(
    app: App, look: Callable[[], Report], headlines: Callable[[Report], list[str]], wait: Callable[[], None]
) -> None:  # fmt: skip
    """Show each change of the findings until the user interrupts. A look that fails is shown, and tried again."""
    before: list[str] | None = None
    try:
        while True:
            found: Report | None = None
            try:
                found = look()
                now = headlines(found)
            except HotswapError as error:
                now = [f"{MARKS[Severity.UNKNOWN]:<5} {error.message}"]
            clock = time.strftime("%H:%M:%S")
            if found is not None and now != before:
                app.output.document(found, indent=None)
            if before is None and not now:
                app.output.line(f"{clock}  {MARKS[Severity.OK]:<5} nothing that was looked at is wrong")
            for text in [each for each in now if each not in (before or [])]:
                app.output.line(f"{clock}  {text}")
            for text in [each for each in before or [] if each not in now]:
                app.output.line(f"{clock}  no longer: {text}")
            before = now
            wait()
    except KeyboardInterrupt:
        return
