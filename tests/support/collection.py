"""The Ansible collection of this repository, importable by its own name without an installation."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2] / "ansible"
NAME = "ansible_collections.ovs_hotswap.ovs_hotswap"


def module(name: str) -> Any:
    """A module of the collection, such as ``plugins.module_utils.summary``."""
    parts = NAME.split(".")
    for length in range(1, len(parts) + 1):
        package = types.ModuleType(".".join(parts[:length]))
        package.__path__ = [str(ROOT)] if length == len(parts) else []
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{NAME}.{name}")
