"""``python -m tools.manpage FILE``: writes the manual page ovs-hotswap(8) from the help of the commands."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import click

from ovs_hotswap import __version__
from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import output_options

_COMMON = {option.name for option in output_options()}  # of every command: in the page once
_FILES = (
    ("/etc/ovs-hotswap/config.toml", "The configuration: `ovs-hotswap config example` prints one."),
    ("/etc/ovs-hotswap/overlay.toml", "The overlay intent: `ovs-hotswap overlay example` prints one."),
    ("/run/ovs-hotswap", "Sockets, pid files and logs of what runs."),
    ("/var/lib/ovs-hotswap", "Releases, journals of upgrades, and what is started after a boot."),
)


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that is for people, with its path."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def escaped(text: str) -> str:
    """Text as roff prints it."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def paragraphs(text: str) -> Iterator[str]:
    """A help text as roff: what click does not wrap is not wrapped here."""
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if part.startswith("\b"):
            yield f".PP\n.nf\n{escaped(part.removeprefix(chr(8)).strip(chr(10)))}\n.fi"
        elif part.strip():
            yield f".PP\n{escaped(part.strip())}"


def options(command: click.Command, context: click.Context, without: Collection[str | None] = ()) -> Iterator[str]:
    for parameter in command.params:
        if parameter.name in without:
            continue
        record = parameter.get_help_record(context)
        if record is not None:
            yield f".TP\n.B {escaped(record[0])}\n{escaped(record[1])}"


def page() -> str:
    """The manual page."""
    root = click.Context(main.cli, info_name=main.PROGRAM)
    lines = [
        '.\\" Written by `python -m tools.manpage`.',
        f'.TH OVS\\-HOTSWAP 8 "" "ovs\\-hotswap {__version__}"',
        ".SH NAME",
        "ovs\\-hotswap \\- replace the OVS\\-DPDK process of a hypervisor under its running VMs",
        ".SH SYNOPSIS",
        ".B ovs\\-hotswap",
        "[OPTIONS] COMMAND [ARGUMENTS]",
        ".SH OPTIONS",
        *options(main.cli, root),
        ".SH COMMANDS",
    ]
    for path, command in commands(main.cli):
        context = click.Context(command, info_name=" ".join((main.PROGRAM, *path)))
        usage = " ".join(command.collect_usage_pieces(context))
        lines.append(f'.SS "{escaped(f"{context.info_name} {usage}")}"')
        lines += [*paragraphs(command.help or ""), *options(command, context, _COMMON)]
    lines.append(".SH EXIT STATUS")
    lines += [f".TP\n.B {code}\n{escaped(text)}" for code, text in main.exit_codes()]
    lines.append(".SH FILES")
    lines += [f".TP\n.I {escaped(path)}\n{escaped(text)}" for path, text in _FILES]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page())
