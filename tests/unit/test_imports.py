"""The layers, and the directions of import. This list is the only one: the documentation refers to it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ovs_hotswap"

# From the lowest to the highest. A module imports modules of its own layer and of lower ones. A folder is a layer, and
# so is each group of modules beside them.
LAYERS = (
    ("ovs_hotswap",),  # the version alone
    ("ovs_hotswap.errors", "ovs_hotswap.model", "ovs_hotswap.wording", "ovs_hotswap.checksums"),
    ("ovs_hotswap.backends",),
    ("ovs_hotswap.fd_closing", "ovs_hotswap.process_exit", "ovs_hotswap.background", "ovs_hotswap.priority",
     "ovs_hotswap.trust", "ovs_hotswap.waiting", "ovs_hotswap.peer", "ovs_hotswap.system"),
    ("ovs_hotswap.vhostuser",),
    ("ovs_hotswap.toml_file", "ovs_hotswap.mac", "ovs_hotswap.config_uplink",
     "ovs_hotswap.config_flowlog", "ovs_hotswap.config",
     "ovs_hotswap.config_rules",
     "ovs_hotswap.config_file", "ovs_hotswap.config_changes", "ovs_hotswap.config_follower", "ovs_hotswap.vm_ports"),
    ("ovs_hotswap.service", "ovs_hotswap.patches"),
    ("ovs_hotswap.plan",),
    ("ovs_hotswap.reports",),
    ("ovs_hotswap.overlay",),
    ("ovs_hotswap.uplink",),
    ("ovs_hotswap.switch",),
    ("ovs_hotswap.counters",),
    ("ovs_hotswap.qemu",),
    ("ovs_hotswap.stock",),
    ("ovs_hotswap.adopt",),
    ("ovs_hotswap.broker",),
    ("ovs_hotswap.clone",),
    ("ovs_hotswap.wire",),
    ("ovs_hotswap.controllers",),
    ("ovs_hotswap.host",),
    ("ovs_hotswap.flowlog",),
    ("ovs_hotswap.upgrade",),
    ("ovs_hotswap.watchdog",),
    ("ovs_hotswap.doctor",),
    ("ovs_hotswap.diagnose",),
    ("ovs_hotswap.tracing",),
    ("ovs_hotswap.bursts",),
    ("ovs_hotswap.metrics",),
    ("ovs_hotswap.lab",),
    ("ovs_hotswap.remote",),
    ("ovs_hotswap.cli", "ovs_hotswap.__main__"),
)  # fmt: skip
# Decisions and formats: no I/O, and imports of one another alone.
PURE = {
    "ovs_hotswap", "ovs_hotswap.errors", "ovs_hotswap.model", "ovs_hotswap.wording", "ovs_hotswap.checksums",
    "ovs_hotswap.backends",
    "ovs_hotswap.vhostuser.messages", "ovs_hotswap.vhostuser.unsupported", "ovs_hotswap.vhostuser.guest_state",
    "ovs_hotswap.vhostuser.reconcile", "ovs_hotswap.vhostuser.ownership",
    "ovs_hotswap.broker.absence", "ovs_hotswap.broker.persist.snapshot", "ovs_hotswap.broker.persist.formats",
    "ovs_hotswap.plan.executor", "ovs_hotswap.plan.records",
    "ovs_hotswap.reports.document", "ovs_hotswap.reports.timeline", "ovs_hotswap.reports.compose",
    "ovs_hotswap.reports.comparison", "ovs_hotswap.reports.charts", "ovs_hotswap.reports.words",
    "ovs_hotswap.wire.mirror_flows", "ovs_hotswap.stock.facts", "ovs_hotswap.stock.qemu_options",
    "ovs_hotswap.stock.flow_texts", "ovs_hotswap.stock.new_config",
    "ovs_hotswap.upgrade.stock_checks", "ovs_hotswap.upgrade.stock_vm_checks",
    "ovs_hotswap.clone.rows",
    "ovs_hotswap.switch.memory", "ovs_hotswap.switch.column_values",
    "ovs_hotswap.host.rings", "ovs_hotswap.host.memory_checks",
    "ovs_hotswap.upgrade.outlook",
    "ovs_hotswap.upgrade.checks", "ovs_hotswap.upgrade.uplink_checks", "ovs_hotswap.watchdog.health",
    "ovs_hotswap.watchdog.failover", "ovs_hotswap.watchdog.standby_plan", "ovs_hotswap.watchdog.backoff",
    "ovs_hotswap.remote.jobs", "ovs_hotswap.remote.frames", "ovs_hotswap.remote.versions", "ovs_hotswap.remote.hosts",
    "ovs_hotswap.doctor.report",
    "ovs_hotswap.counters.values", "ovs_hotswap.counters.texts", "ovs_hotswap.counters.drops",
    "ovs_hotswap.diagnose.found", "ovs_hotswap.diagnose.facts", "ovs_hotswap.diagnose.host_faults",
    "ovs_hotswap.diagnose.vm_faults", "ovs_hotswap.diagnose.underlay_faults", "ovs_hotswap.diagnose.seen",
    "ovs_hotswap.diagnose.megaflows", "ovs_hotswap.diagnose.trace", "ovs_hotswap.diagnose.page",
    "ovs_hotswap.diagnose.drop_counts",
    "ovs_hotswap.tracing.fields", "ovs_hotswap.tracing.datapath", "ovs_hotswap.tracing.found",
    "ovs_hotswap.tracing.record", "ovs_hotswap.tracing.follow", "ovs_hotswap.tracing.connections",
    "ovs_hotswap.diagnose.finding_lines", "ovs_hotswap.diagnose.core_use", "ovs_hotswap.switch.rxqs",
    "ovs_hotswap.bursts.values", "ovs_hotswap.bursts.texts", "ovs_hotswap.bursts.found", "ovs_hotswap.bursts.advice",
    "ovs_hotswap.bursts.losses", "ovs_hotswap.bursts.spread", "ovs_hotswap.bursts.judging", "ovs_hotswap.bursts.page",
    "ovs_hotswap.metrics.catalogue", "ovs_hotswap.metrics.histogram", "ovs_hotswap.metrics.history",
    "ovs_hotswap.metrics.tally",
    "ovs_hotswap.flowlog.ipfix", "ovs_hotswap.flowlog.mediator",
    "ovs_hotswap.clone.conntrack_entries", "ovs_hotswap.clone.conntrack_packets", "ovs_hotswap.clone.protocols",
    "ovs_hotswap.clone.runtime_settings",
}  # fmt: skip
IO_MODULES = {
    "asyncio", "ctypes", "fcntl", "glob", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "pty",
    "resource", "select", "selectors", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "termios",
    "threading", "time",
}  # fmt: skip
IO_CALLS = {"open", "print", "input", "exec", "eval"}
# Libraries that only these layers may use.
LIBRARIES = {
    "click": {"cli"}, "rich": {"cli"}, "paramiko": {"remote"}, "jinja2": {"reports"},
    "ovs": {"switch"}, "ovsdbapp": {"switch"}, "qemu": {"qemu"},
    "prometheus_client": {"metrics"},
    "pyroute2": {"switch", "stock", "uplink", "controllers", "doctor", "lab", "cli"},
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    """The number of the layer with the longest entry that is the module or a package around it."""
    entries = [(len(name), rank) for rank, names in enumerate(LAYERS) for name in names
               if module == name or module.startswith(f"{name}.")]  # fmt: skip
    return max(entries)[1]


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
    tree, pure, package = ast.parse(source), module in PURE, module.split(".")[1:2]
    found = []
    for line, name in imports(tree, modules):
        top = name.partition(".")[0]
        if top == "ovs_hotswap":
            if layer(name) > layer(module):
                found.append(f"{module}:{line} imports {name}, which is of a higher layer")
            elif pure and name not in PURE:
                found.append(f"{module}:{line} imports {name}, which is not pure")
        elif top in LIBRARIES and not LIBRARIES[top] & set(package):
            found.append(f"{module}:{line} imports {name}, which is not for its layer")
        elif pure and (top in IO_MODULES or top not in sys.stdlib_module_names):
            found.append(f"{module}:{line} imports {name}, but is pure")
        if top == "subprocess" and module != "ovs_hotswap.system":
            found.append(f"{module}:{line} imports subprocess: processes are run by ovs_hotswap.system alone")
    if pure:
        found += [
            f"{module}:{node.lineno} calls {node.func.id}(), but is pure"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IO_CALLS
        ]
    return found


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_in_one_direction(module: str) -> None:
    assert faults(module, SOURCES[module].read_text(), set(SOURCES)) == []


def test_every_layer_names_modules_that_exist() -> None:
    assert [name for name in (*sum(LAYERS, ()), *PURE) if name not in SOURCES] == []


def test_every_module_has_a_layer_of_its_own() -> None:
    assert [name for name in SOURCES if layer(name) == 0 and name != "ovs_hotswap"] == []


def cycles(arrows: Mapping[str, Collection[str]]) -> list[set[str]]:
    """Sets of modules each of which imports all others of its set, directly or not."""
    reached: dict[str, set[str]] = {}
    for module in arrows:
        seen: set[str] = set()
        left = [module]
        while left:
            new = set(arrows[left.pop()]) - seen
            seen |= new
            left += new
        reached[module] = seen
    found = {frozenset(each for each in seen if module in reached[each]) for module, seen in reached.items()}
    return sorted((set(cycle) for cycle in found if cycle), key=sorted)


def test_there_are_no_import_cycles() -> None:
    """Imports for types alone, and inside functions, count as well."""
    modules = set(SOURCES)
    arrows = {
        module: {name for _, name in imports(ast.parse(path.read_text()), modules) if name in modules} - {module}
        for module, path in SOURCES.items()
    }
    assert cycles(arrows) == []


def test_the_test_sees_a_cycle() -> None:
    assert cycles({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a"]}) == [{"b", "c"}]
    assert cycles({"a": ["b"], "b": []}) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ovs_hotswap.errors", "from ovs_hotswap import config"),
        ("ovs_hotswap.vhostuser.messages", "from ovs_hotswap.vhostuser.channel import Channel"),
        ("ovs_hotswap.plan.executor", "import os"),
        ("ovs_hotswap.plan.executor", "from pathlib import Path"),
        ("ovs_hotswap.upgrade.checks", "import pydantic"),
        ("ovs_hotswap.plan.executor", "def f():\n    import time"),
        ("ovs_hotswap.upgrade.checks", "open('/proc/meminfo')"),
        ("ovs_hotswap.config", "import ovs_hotswap.switch.unixctl"),
        ("ovs_hotswap.switch.unixctl", "from ovs_hotswap.broker import vm"),
        ("ovs_hotswap.vhostuser.channel", "from ovs_hotswap.config import Config"),
        ("ovs_hotswap.plan.journal", "import click"),
        ("ovs_hotswap.switch.unixctl", "import subprocess"),
        ("ovs_hotswap.lab", "import rich.table"),
    ],
)
def test_the_test_sees_what_it_looks_for(module: str, source: str) -> None:
    assert len(faults(module, source, set(SOURCES))) == 1
