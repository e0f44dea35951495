"""Commands that cut VMs off ask a person, and no one else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click
import pytest

from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.config_cmd import EXAMPLE
from ovs_hotswap.cli.instance_cmd import confirm_stop
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from tests.unit.watch_bed import Bed
from tests.unit.watch_bed import config as config


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def app(answer: str = "", *, json: bool = False, err: io.StringIO | None = None) -> App:
    return App(Output(json=json, out=io.StringIO(), err=err or Terminal(), source=Terminal(answer)))


@pytest.mark.parametrize("answer", ["y\n", "yes\n", "Y\n", " YES \n"])
def test_yes_goes_ahead(answer: str) -> None:
    asked = Terminal()
    app(answer, err=asked).output.confirm("Stop it?")
    assert asked.getvalue() == "Stop it? [y/N] "


@pytest.mark.parametrize("answer", ["\n", "", "n\n", "no\n", "yesterday\n"])
def test_anything_else_ends_the_command(answer: str) -> None:
    with pytest.raises(click.Abort):
        app(answer).output.confirm("Stop it?")


def test_a_program_that_reads_json_is_not_asked() -> None:
    asked = Terminal()
    app("n\n", json=True, err=asked).output.confirm("Stop it?")
    assert asked.getvalue() == ""


def test_a_script_is_not_asked() -> None:
    for err, source in ((io.StringIO(), Terminal("n\n")), (Terminal(), io.StringIO("n\n"))):
        Output(err=err, source=source).confirm("Stop it?")
        assert err.getvalue() == ""


@pytest.fixture
def broker_stop(tmp_path: Path) -> Any:
    path = tmp_path / "config.toml"
    path.write_text(f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n{EXAMPLE}')

    def run(given: App, *options: str) -> tuple[int, str]:
        status = main.run(["--config", str(path), "broker", "stop", *options], given)
        return status, given.output._given[1].getvalue()  # type: ignore[union-attr]

    return run


def test_broker_stop_asks_on_a_terminal(broker_stop: Any) -> None:
    status, shown = broker_stop(app("n\n"))
    assert status == main.INTERRUPTED
    assert shown.startswith("Every VM that the broker serves loses its network until a broker runs again. Stop it? ")


@pytest.mark.parametrize(("given", "options"), [(app("y\n"), []), (app("n\n"), ["--yes"])])
def test_broker_stop_goes_ahead_with_yes(broker_stop: Any, given: App, options: list[str]) -> None:
    status, _ = broker_stop(given, *options)
    assert status == 0


def test_instance_stop_names_the_vms_that_it_cuts_off(config: Any) -> None:
    bed = Bed(config)
    asked = Terminal()
    with pytest.raises(click.Abort):
        confirm_stop(app("n\n", err=asked), bed.host, Side.A)
    assert asked.getvalue() == "instance a serves VM vm1, vm2. Stop it, and cut its VMs off? [y/N] "
    confirm_stop(app("y\n"), bed.host, Side.A)


def test_instance_stop_asks_where_it_is_not_known_what_it_serves(config: Any) -> None:
    bed = Bed(config)
    bed.world.broker_fault = BrokerError("the broker does not answer")
    asked = Terminal()
    with pytest.raises(click.Abort):
        confirm_stop(app("n\n", err=asked), bed.host, Side.A)
    assert "which VMs it serves is unknown: the broker does not answer" in asked.getvalue()


def test_instance_stop_does_not_ask_about_an_instance_that_serves_no_vm(config: Any) -> None:
    bed = Bed(config)
    asked = Terminal()
    confirm_stop(app("n\n", err=asked), bed.host, Side.B)
    bed.world.die(Side.A)
    bed.world.owner = dict.fromkeys(bed.world.owner, Side.A)
    confirm_stop(app("n\n", err=asked), bed.host, Side.A)
    assert asked.getvalue() == ""
