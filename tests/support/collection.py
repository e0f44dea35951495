"""The Ansible collection of this repository, importable by its own name without an installation, and where Ansible
looks for collections."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2] / "ansible"
NAME = "ansible_collections.ovs_hotswap.ovs_hotswap"
PROGRAM = Path(sys.executable).with_name("ovs-hotswap")
_MODULE_S = 60.0


def module(name: str) -> Any:
    """A module of the collection, such as ``plugins.module_utils.summary``."""
    parts = NAME.split(".")
    for length in range(1, len(parts) + 1):
        package = types.ModuleType(".".join(parts[:length]))
        package.__path__ = [str(ROOT)] if length == len(parts) else []
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{NAME}.{name}")


def install(directory: Path) -> Path:
    """Make ``directory`` a path of collections that has the one of this repository."""
    place = directory / "ansible_collections" / "ovs_hotswap"
    place.mkdir(parents=True)
    (place / "ovs_hotswap").symlink_to(ROOT)
    return directory


def run_module(collections: Path, module: str, /, *, check: bool = False, **options: Any) -> dict[str, Any]:
    """What a module returns, run as Ansible runs it. ``check``: in check mode."""
    arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True,
                 "_ansible_tmpdir": str(collections), "_ansible_remote_tmp": str(collections)}  # fmt: skip
    file = collections / "arguments.json"
    file.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    argv = [sys.executable, "-m", f"{NAME}.plugins.modules.{module}", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(collections)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_MODULE_S, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise AssertionError(f"{module}: {done.stdout}{done.stderr}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result
