"""The command ``trace``: what it refuses, what it would do, and what it removes."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import BusyError, ConfigError, PrecheckFailed
from ovs_hotswap.process_exit import start_time
from tests.unit.diagnose_bed import FAR
from tests.unit.test_diagnose_look import OVERLAY
from tests.unit.trace_bed import OWN, Bed


class Shell:
    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.out, self.err = io.StringIO(), io.StringIO()

    def __call__(self, *words: str) -> int:
        self.out, self.err = io.StringIO(), io.StringIO()
        app = App(Output(out=self.out, err=self.err))
        app.__dict__.update(config=self.bed.config, system=self.bed.system)
        return main.run(["--config", str(self.bed.directory / "config.toml"), *words], app)

    @property
    def document(self) -> Any:
        return json.loads(self.out.getvalue())


@pytest.fixture
def shell() -> Iterator[Shell]:
    directory = Path(tempfile.mkdtemp(prefix="ovsh-"))
    bed = Bed(directory, OVERLAY)
    yield Shell(bed)
    bed.close()
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), 2, "name a VM"),
        (("vm2", "--proto", "x"), 2, "none of tcp"),
        (("vm2", "--proto", "256"), 2, "no number below 256"),
        (("vm2", "--count", "0"), 2, "--count"),
        (("vm2", "--seconds", "3600"), 2, "--seconds"),
        (("vm2", "--snaplen", "14"), 2, "--snaplen"),
        (("vm9",), ConfigError.exit_code, "no VM vm9"),
        (("vm2", "--to", "web9"), ConfigError.exit_code, "neither a MAC"),
        (("vm2", "--proto", "icmp", "--port", "80"), ConfigError.exit_code, "have no ports"),
        (("vm2", "--write", "/no/such/x.pcap"), 17, "/no/such/x.pcap"),
    ],
)
def test_what_cannot_be_meant_is_refused(shell: Shell, words: tuple[str, ...], code: int, text: str) -> None:
    assert shell("trace", *words) == code
    assert text in shell.err.getvalue()
    assert shell.bed.database.log == []


def test_a_dry_run_says_what_would_be_made_and_makes_nothing(shell: Shell) -> None:
    shell.bed.database.filters = True
    assert shell("trace", "vm2", "--to", FAR, "--answers", "--dry-run") == 0
    assert "port ovsh-trace, and 2 mirrors of vm2" in shell.out.getvalue()
    assert shell("--json", "trace", "vm2", "--to", FAR, "--dry-run") == 0
    assert (shell.document["bridge"], shell.document["filters"]) == ("br0", [f"dl_dst={FAR}"])
    assert shell.document["packets_per_second"] > 0
    assert shell.bed.database.log == []


def test_a_dry_run_is_refused_as_the_trace_would_be(shell: Shell) -> None:
    shell.bed.rate = 20_000
    assert shell("trace", "vm2", "--dry-run") == PrecheckFailed.exit_code
    shell.bed.leave(OWN, start_time(OWN))
    assert shell("trace", "vm2", "--dry-run") == BusyError.exit_code


def test_traces_are_removed_by_hand(shell: Shell) -> None:
    assert shell("trace", "--clean") == 0
    assert shell.out.getvalue() == "there is no trace\n"
    shell.bed.leave(OWN)
    assert shell("trace", "--clean") == 0
    assert shell.out.getvalue() == f"removed the trace of vm1 (process {OWN}) from bridge br0\n"
    shell.bed.leave(OWN)
    assert shell("--json", "trace", "--clean") == 0
    assert shell.document == {"removed": [{"vm": "vm1", "bridge": "br0", "process": OWN}]}
    assert shell.bed.mirrors == []
