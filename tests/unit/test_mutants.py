"""The lists of `make mutants` fit the sources. The run itself takes too long for the unit tests."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTS = tomllib.loads((ROOT / "tools" / "mutants.toml").read_text())


def test_each_module_and_each_test_that_is_named_exists() -> None:
    for module, tests in LISTS["tests"].items():
        assert (ROOT / "ovs_hotswap" / module).is_file(), module
        assert tests, module
        for name in tests:
            assert (ROOT / "tests" / "unit" / f"test_{name}.py").is_file(), name


def test_a_mutant_that_is_not_counted_is_a_change_of_a_line_that_is_there_and_has_a_reason() -> None:
    for entry in LISTS["equivalent"]:
        lines = {line.strip() for line in (ROOT / "ovs_hotswap" / entry["module"]).read_text().splitlines()}
        assert entry["before"] in lines, entry
        assert entry["after"] != entry["before"], entry
        assert entry["reason"], entry
