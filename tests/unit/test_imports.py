"""The directions of import: core <- seams <- adapters <- orchestration <- cli. The core does no I/O."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ovs_hotswap"

CORE, SEAM, ADAPTER, ORCHESTRATION, CLI = range(5)
# The first entry that is the module's name or a package around it decides.
LAYERS = {
    "ovs_hotswap.errors": CORE,
    "ovs_hotswap.model": CORE,
    "ovs_hotswap.road": CORE,
    "ovs_hotswap.vhost.wire": CORE,
    "ovs_hotswap.vhost.absence": CORE,
    "ovs_hotswap.vhost.unoffered": CORE,
    "ovs_hotswap.vhost.session": CORE,
    "ovs_hotswap.vhost.replay": CORE,
    "ovs_hotswap.vhost.ownership": CORE,
    "ovs_hotswap.vhost.snapshot": CORE,
    "ovs_hotswap.upgrade.plan": CORE,
    "ovs_hotswap.upgrade.records": CORE,
    "ovs_hotswap.upgrade.checks": CORE,
    "ovs_hotswap.upgrade.uplinkchecks": CORE,
    "ovs_hotswap.upgrade.rings": CORE,
    "ovs_hotswap.upgrade.failover": CORE,
    "ovs_hotswap.upgrade.memory": CORE,
    "ovs_hotswap.switch.memory": CORE,
    "ovs_hotswap.config": SEAM,
    "ovs_hotswap.config_rules": SEAM,
    "ovs_hotswap.changes": SEAM,
    "ovs_hotswap.system": SEAM,
    "ovs_hotswap.trust": SEAM,
    "ovs_hotswap.sd": SEAM,
    "ovs_hotswap.supervisor": SEAM,
    "ovs_hotswap.exits": SEAM,
    "ovs_hotswap.background": SEAM,
    "ovs_hotswap.priority": SEAM,
    "ovs_hotswap.systemctl": SEAM,
    "ovs_hotswap.vhost.channel": SEAM,
    "ovs_hotswap.vhost.closing": SEAM,
    "ovs_hotswap.vhost.memory": SEAM,
    "ovs_hotswap.vhost.capture": SEAM,
    "ovs_hotswap.qemu": ADAPTER,
    "ovs_hotswap.switch": ADAPTER,
    "ovs_hotswap.uplink": ADAPTER,
    "ovs_hotswap.overlay": ADAPTER,
    "ovs_hotswap.patches": ADAPTER,
    "ovs_hotswap.upgrade": ORCHESTRATION,
    "ovs_hotswap.vhost": ORCHESTRATION,
    "ovs_hotswap.lab": ORCHESTRATION,
    "ovs_hotswap.cli": CLI,
    "ovs_hotswap.__main__": CLI,
    "ovs_hotswap": CORE,  # the version alone
}
IO_MODULES = {
    "asyncio", "ctypes", "fcntl", "glob", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "pty",
    "resource", "select", "selectors", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "termios",
    "threading", "time",
}  # fmt: skip
IO_CALLS = {"open", "print", "input", "exec", "eval"}
# Libraries that only these layers may use.
LIBRARIES = {"click": {CLI}, "rich": {CLI}, "ovs": {ADAPTER}, "ovsdbapp": {ADAPTER}, "qemu": {ADAPTER}}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    return next(value for name, value in LAYERS.items() if module == name or module.startswith(f"{name}."))


def imports(tree: ast.AST, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each imported module; ``from package import module`` counts as the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in modules else str(node.module)


def faults(module: str, source: str, modules: set[str]) -> list[str]:
    own = layer(module)
    found = []
    for line, name in imports(ast.parse(source), modules):
        top = name.partition(".")[0]
        if top == "ovs_hotswap":
            if layer(name) > own:
                found.append(f"{module}:{line} imports {name}, which is of a later layer")
        elif own not in LIBRARIES.get(top, {own}):
            found.append(f"{module}:{line} imports {name}, which is not for its layer")
        elif own == CORE and (top in IO_MODULES or top not in sys.stdlib_module_names):
            found.append(f"{module}:{line} imports {name}, but the core does no I/O")
        if top == "subprocess" and module != "ovs_hotswap.system":
            found.append(f"{module}:{line} imports subprocess: processes are run by ovs_hotswap.system alone")
    if own == CORE:
        found += [
            f"{module}:{node.lineno} calls {node.func.id}(), but the core does no I/O"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IO_CALLS
        ]
    return found


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_in_one_direction(module: str) -> None:
    assert faults(module, SOURCES[module].read_text(), set(SOURCES)) == []


def test_every_layer_names_modules_that_exist() -> None:
    assert [name for name in LAYERS if name not in SOURCES] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ovs_hotswap.errors", "from ovs_hotswap import config"),
        ("ovs_hotswap.vhost.wire", "from ovs_hotswap.vhost.channel import Channel"),
        ("ovs_hotswap.upgrade.plan", "import os"),
        ("ovs_hotswap.upgrade.plan", "from pathlib import Path"),
        ("ovs_hotswap.upgrade.checks", "import pydantic"),
        ("ovs_hotswap.upgrade.plan", "def f():\n    import time"),
        ("ovs_hotswap.upgrade.checks", "open('/proc/meminfo')"),
        ("ovs_hotswap.config", "import ovs_hotswap.switch.unixctl"),
        ("ovs_hotswap.switch.unixctl", "from ovs_hotswap.upgrade import journal"),
        ("ovs_hotswap.upgrade.journal", "import click"),
        ("ovs_hotswap.switch.unixctl", "import subprocess"),
        ("ovs_hotswap.lab", "import rich.table"),
    ],
)
def test_the_test_sees_what_it_looks_for(module: str, source: str) -> None:
    assert len(faults(module, source, set(SOURCES))) == 1
