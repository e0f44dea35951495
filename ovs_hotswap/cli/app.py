"""What every command is given, and the click classes that all commands are made of."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovs_hotswap.cli.output import Output

if TYPE_CHECKING:  # pydantic takes longer to import than `--help` may take
    from ovs_hotswap.config import Config
    from ovs_hotswap.overlay.intent import Intent
    from ovs_hotswap.system import System

CONFIG_PATH = "/etc/ovs-hotswap/config.toml"


@dataclass
class App:
    """The global options and what follows from them, loaded when first asked for."""

    output: Output = field(default_factory=Output)
    config_path: Path = Path(CONFIG_PATH)
    debug: bool = False

    @cached_property
    def config(self) -> Config:
        """Raises ConfigError."""
        from ovs_hotswap.config_file import load_config

        return load_config(self.config_path, self.output.warning)

    @cached_property
    def intent(self) -> Intent:
        """Raises ConfigError."""
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
    "--yes", is_flag=True, help="Do not ask. On no terminal, and with --json, nothing is asked in any case."
)


def output_options() -> list[click.Parameter]:
    """``--json`` and ``--debug``: understood before and after the name of a command."""
    return [
        _flag("--json", set_json, "Print one JSON document on standard output instead of text."),
        _flag("--debug", set_debug, "Show the traceback of an error."),
    ]


class Command(click.Command):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(output_options())


class Group(click.Group):
    command_class = Command
    group_class = type


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command that is imported when it is used: ``target`` is ``module:attribute``, ``help`` its one line."""

    target: str
    help: str

    def load(self) -> click.Command:
        module, _, attribute = self.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.target} is not a click command")
        return command


class LazyGroup(Group):
    """A group whose commands' modules are imported only when one is used, so that ``--help`` is quick."""

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = self.lazy.get(cmd_name)
        return lazy.load() if lazy else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in self.lazy.items()])
