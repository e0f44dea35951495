"""What the Makefile's variables choose. Nothing is made."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ([], "broker"),
        (["BACKEND=qemu-dual"], "qemu-dual"),
        (["ROAD=qemu-dual"], "qemu-dual"),  # the earlier name
        (["ROAD=broker", "BACKEND=qemu-dual"], "qemu-dual"),
    ],
)
def test_the_back_end_mode_has_two_names(variables: list[str], mode: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}
    argv = ["make", "--dry-run", "demo", "guests", *variables]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert f"ovs-hotswap lab demo --backend {mode} " in done.stdout
    assert f"python -m bench kinds --backend {mode} " in done.stdout
    assert ("tools.packages" in done.stdout) is (mode == "qemu-dual")
