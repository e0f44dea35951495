"""The series in this repository follow the rules of patches/README.md."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

import pytest

from ovs_hotswap.patches.rules import lint
from ovs_hotswap.patches.store import Store

ROOT = Path(__file__).parents[2]
STORE = Store(ROOT)


@pytest.mark.parametrize("name", STORE.names())
def test_the_series_follows_the_rules(name: str) -> None:
    stored = STORE.load(name)
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*")}
    assert list(lint(stored.series, os.listdir(stored.directory), tests)) == []


@pytest.mark.parametrize("name", STORE.names())
def test_the_series_is_installed(name: str) -> None:
    """``data_files`` in setup.cfg lists the directory."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    directory = STORE.load(name).directory.relative_to(ROOT)
    assert parser["options.data_files"][f"share/ovs-hotswap/{directory}"] == f"{directory}/*"
