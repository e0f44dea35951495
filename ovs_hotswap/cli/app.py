"""The object that every command is given, and the click classes of all commands."""

from __future__ import annotations

import difflib
import enum
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from ovs_hotswap.cli.output import Output

if TYPE_CHECKING:  # pydantic takes longer to import than `--help` may take
    from ovs_hotswap.config import Config
    from ovs_hotswap.overlay.intent import Intent
    from ovs_hotswap.system import System

CONFIG_PATH = "/etc/ovs-hotswap/config.toml"


@dataclass
class Remote:
    """Where a command is to run, if not here. ``config``: the configuration file there, if it is named."""

    hosts: list[str] = field(default_factory=list)
    hosts_file: Path | None = None
    parallel: int = 10
    sudo: bool = False
    program: str = "ovs-hotswap"
    config: str | None = None

    @property
    def wanted(self) -> bool:
        return bool(self.hosts) or self.hosts_file is not None


@dataclass
class App:
    """The global options, and what follows from them, which is loaded at its first use. ``root``: where `doctor` finds
    the files of the host."""

    output: Output = field(default_factory=Output)
    config_path: Path = Path(CONFIG_PATH)
    debug: bool = False
    root: Path = Path("/")
    remote: Remote = field(default_factory=Remote)
    names_job: Callable[[str], object] = lambda job: None  # called with the id of a job that is started or followed

    @cached_property
    def config(self) -> Config:
        """The configuration. Raises ConfigError."""
        from ovs_hotswap.config_file import load_config

        return load_config(self.config_path, self.output.warning)

    @cached_property
    def intent(self) -> Intent:
        """The overlay intent. Raises ConfigError."""
        from ovs_hotswap.overlay.intent import load_intent

        return load_intent(self.config.overlay, self.config)

    @cached_property
    def system(self) -> System:
        from ovs_hotswap.system import System

        return System()


pass_app = click.make_pass_decorator(App)


def set_json(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(App).output.json = True


def set_debug(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(App).debug = True


def _flag(name: str, callback: Callable[[click.Context, click.Parameter, bool], None], text: str) -> click.Option:
    return click.Option([name], is_flag=True, is_eager=True, expose_value=False, callback=callback, help=text)


yes = click.option(
    "--yes", is_flag=True, help="Do not ask. Without a terminal, and with --json, nothing is asked in any case."
)


def output_options() -> list[click.Parameter]:
    """The options ``--json`` and ``--debug``, which may stand before and after the name of a command."""
    return [
        _flag("--json", set_json, "Print one JSON document on standard output instead of text."),
        _flag("--debug", set_debug, "Show the traceback of an error."),
    ]


class Effect(enum.Enum):
    """What a command does on the host."""

    READS = enum.auto()
    CHANGES = enum.auto()
    STARTS_JOB = enum.auto()  # which changes something


Changes: TypeAlias = "bool | Effect | Callable[[Mapping[str, Any]], bool]"


def unless_dry_run(given: Mapping[str, Any]) -> bool:
    """Whether a command that has the option ``--dry-run`` changes anything, given its options."""
    return not given.get("dry_run")


class Command(click.Command):
    """A command with the common options. In its help, what ``--json`` prints is a paragraph of its own.

    ``changes``: whether it changes anything on the host, or how to tell from the options that are given. A command that
    changes something runs on another host as a job, which a lost connection does not end. Each command says which of
    the two it is; one that does not counts as changing something. ``Effect.STARTS_JOB`` is for a command that makes a
    job by itself.
    """

    def __init__(self, *args: Any, changes: Changes | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.changes = changes
        self.params.extend(output_options())
        self.help = re.sub(r"\n(?=[ ]*With --json:)", "\n\n", self.help or "")

    def effect(self, given: Mapping[str, Any]) -> Effect:
        """What the command does if it is given these options."""
        if isinstance(self.changes, Effect):
            return self.changes
        changes = self.changes(given) if callable(self.changes) else self.changes is not False
        return Effect.CHANGES if changes else Effect.READS


class Group(click.Group):
    """A group that suggests a command when it is given a wrong name."""

    command_class = Command
    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(name, self._visible(ctx))
            meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            ctx.fail(f"No such command {name!r}.{meant}")
        return super().resolve_command(ctx, args)

    def _visible(self, ctx: click.Context) -> list[str]:
        found = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        return [name for name, command in found.items() if command is not None and not command.hidden]


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command that is imported when it is used. ``target`` is ``module:attribute``, ``help`` the command's line in
    the group's help, and ``section`` the heading above that line."""

    target: str
    help: str
    section: str = "Commands"

    def load(self) -> click.Command:
        module, _, attribute = self.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.target} is not a click command")
        return command


class LazyGroup(Group):
    """A group whose commands' modules are imported only when one is used, so that ``--help`` is quick."""

    def __init__(
        self, *args: Any, lazy: Mapping[str, Lazy], unlisted: Mapping[str, Lazy] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy, self.unlisted = lazy, unlisted or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = self.lazy.get(cmd_name) or self.unlisted.get(cmd_name)
        return lazy.load() if lazy else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        spacing = max(map(len, self.lazy))  # one column for all sections
        for section in dict.fromkeys(lazy.section for lazy in self.lazy.values()):
            rows = [(name.ljust(spacing), lazy.help) for name, lazy in self.lazy.items() if lazy.section == section]
            with formatter.section(section):
                formatter.write_dl(rows)

    def _visible(self, ctx: click.Context) -> list[str]:
        return self.list_commands(ctx)  # without importing them


def effect_of(root: click.Group, arguments: Sequence[str]) -> Effect:
    """What a command line does on the host. One that only shows help, or that is wrong, changes nothing."""
    command: click.Command = root
    context: click.Context | None = None
    left = list(arguments)
    while True:
        context = click.Context(command, parent=context, **command.context_settings)
        try:
            given, left, _ = command.make_parser(context).parse_args(args=left)
        except click.UsageError:
            return Effect.READS
        shows = command.get_help_option(context)
        if given.get("version") or (shows is not None and given.get(shows.name)):
            return Effect.READS
        if not isinstance(command, click.Group):
            break
        inner = command.get_command(context, left[0]) if left else None
        if inner is None:
            return Effect.READS
        command, left = inner, left[1:]
    return command.effect(given) if isinstance(command, Command) else Effect.CHANGES
