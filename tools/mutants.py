"""``python -m tools.mutants``: how many small faults in the pure core the unit tests notice.

A mutant is a module with one small change: a comparison turned round, an argument left out, a value replaced. It is
killed if a test fails, and survives if none does. The changes are those of mutmut. The run is this module's own,
because mutmut changes neither properties nor tables, and both decide much here. The module on the disk is not
touched: a mutant exists only in the process, forked for it, that imports it and runs the tests which execute its line.

The results are in ``build/mutants.json``. A result holds for the exact text of its module; a mutant that survived is
tried again when its tests change. docs/design-notes/mutants.md says what is not changed, and why.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.machinery
import json
import os
import resource
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias

import libcst
import pytest
from coverage import Coverage
from libcst import matchers
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build" / "mutants.json"
LISTS = ROOT / "tools" / "mutants.toml"  # which modules and tests, and which mutants change nothing
BAR = 90  # per cent of a module's mutants that must be killed
# What every mutant would import again.
PRELOADED = ("hypothesis.stateful", "pydantic", "click", "rich.console", "tenacity")


@dataclass(frozen=True, slots=True)
class Mutant:
    """``key`` is unique in its module. ``line`` counts from 1; ``before`` and ``after`` are the line that differs.
    ``statement`` is the line where the changed statement begins, ``inside`` whether that is in a function."""

    key: str
    line: int
    statement: int
    inside: bool
    before: str
    after: str
    source: str


@dataclass(frozen=True, slots=True)
class Place:
    """A node that may be changed, and where it is."""

    node: Any
    statement: Any
    inside: bool


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module."""
    wrapper = MetadataWrapper(libcst.parse_module(source))
    positions = wrapper.resolve(PositionProvider)
    before = source.splitlines()
    number = 0
    for place in _places(Place(wrapper.module, wrapper.module, False)):
        for changed in _changes(place.node):
            number += 1
            after = wrapper.module.deep_replace(place.node, changed).code
            line, old, new = _difference(before, after.splitlines())
            statement = positions[place.statement].start.line
            yield Mutant(f"{number} at {line}", line, statement, place.inside, old, new, after)


def _changes(node: Any) -> Iterator[Any]:
    for kind, operator in mutation_operators:
        # mypy, which is part of the tests, notices None where an annotation says otherwise.
        if isinstance(node, kind) and not isinstance(node, libcst.AnnAssign):
            changes = list(operator(node))
            # A text in other letters is noticed by the same tests as any other text.
            yield from changes[:1] if isinstance(node, libcst.SimpleString) else changes


_UNCHANGED = (libcst.Annotation, libcst.Decorator, libcst.Assert, libcst.Raise, libcst.ImportFrom)
_ALIAS = matchers.Annotation(annotation=matchers.Name("TypeAlias"))
_TYPE_VARIABLE = matchers.Assign(value=matchers.Call(func=matchers.Name("TypeVar")))


def _places(place: Place) -> Iterator[Place]:
    """The nodes below a place, without those that decide nothing: annotations, decorators, assertions for the type
    checker, errors, calls that fail with any other argument, and the values by which the members of an enumeration are
    told apart."""
    node = place.node
    if isinstance(node, _UNCHANGED):
        return
    if (
        isinstance(node, libcst.Call)
        and isinstance(node.func, libcst.Name)
        and node.func.value in {"len", "isinstance"}
    ):
        return
    if isinstance(node, libcst.ClassDef) and any(libcst.Module([]).code_for_node(b) == "enum.Enum" for b in node.bases):
        return
    if isinstance(node, libcst.AnnAssign) and matchers.matches(node.annotation, _ALIAS):
        return
    if matchers.matches(node, _TYPE_VARIABLE):
        return
    if isinstance(node, libcst.SimpleStatementLine | libcst.BaseCompoundStatement):
        place = replace(place, statement=node)
    yield place
    for child in node.children:
        inside = place.inside or (isinstance(node, libcst.FunctionDef) and child is node.body)
        yield from _places(replace(place, node=child, inside=inside))


def _difference(before: Sequence[str], after: Sequence[str]) -> tuple[int, str, str]:
    """The first line that differs: its number, and how it was and is."""
    for number, (old, new) in enumerate(zip(before, after, strict=False), 1):
        if old != new:
            return number, old.strip(), new.strip()
    return min(len(before), len(after)), "", ""


class MutatedImport(MetaPathFinder):
    """Imports one module from a text instead of its file."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _TextLoader(fullname, spec.origin, self.source)
        return spec


class _TextLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


# Takes the exit status of a mutant's tests, and says whether there is time for another.
Note: TypeAlias = "Callable[[Mutant, int], bool]"


@dataclass(frozen=True, slots=True)
class Baseline:
    """The tests of a module, unchanged, the quickest first. ``by_line``: those that run a line; a line that runs when
    the module is imported has all of them. ``seconds``: what all of them together
    take of the processor's time."""

    everything: Sequence[str]
    by_line: Mapping[str, Sequence[str]]
    seconds: float

    def of(self, mutant: Mutant) -> Sequence[str]:
        return self.by_line.get(str(mutant.statement), self.everything)

    @property
    def limit(self) -> int:
        return int(5 + 5 * self.seconds)


class LineTests:
    """A pytest plugin that notes for each test how long it takes and which lines of a file it runs."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.coverage = Coverage(data_file=None, include=[str(file)], config_file=False)
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        self.coverage.start()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        begun = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - begun

    def noted(self) -> dict[str, Any]:
        """The fields of a ``Baseline`` that are known here, for JSON."""
        self.coverage.stop()
        everything = sorted(self.seconds, key=self.seconds.__getitem__)
        contexts = self.coverage.get_data().contexts_by_lineno(str(self.file))
        by_line = {
            str(line): [test for test in everything if test in names]
            for line, names in contexts.items()
            if "" not in names
        }
        return {"everything": everything, "by_line": by_line}


class Chosen:
    """A pytest plugin that runs these tests, in this order; and all others, too, if the mutant has renamed some, whose
    parameters it has made."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.order = {test: number for number, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        renamed = not self.order.keys() <= {item.nodeid for item in items}
        chosen = [item for item in items if renamed or item.nodeid in self.order]
        items[:] = sorted(chosen, key=lambda item: self.order.get(item.nodeid, len(self.order)))


class Forked:
    """A pytest plugin that collects the tests once, and then runs them in a process for each mutant of a function,
    which has the mutant's code in the function's place."""

    def __init__(self, module: str, todo: Sequence[Mutant], baseline: Baseline, note: Note) -> None:
        self.module, self.todo, self.baseline, self.note = module, todo, baseline, note

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for mutant in self.todo:
            chosen = [items[test] for test in self.baseline.of(mutant)]

            def act(mutant: Mutant = mutant, chosen: Sequence[pytest.Item] = chosen) -> int:
                if not put_in_place(sys.modules[self.module], mutant.source):
                    return NOT_IN_PLACE
                for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    if session.testsfailed:
                        return 1
                return 0

            status, _ = in_child(self.baseline.limit, act)
            if status != NOT_IN_PLACE and not self.note(mutant, status):
                break
        return True


NOT_IN_PLACE = 77


def put_in_place(module: ModuleType, source: str) -> bool:
    """Give the one function of ``module`` that is otherwise in ``source`` the code that it has there."""
    assert module.__file__ is not None
    codes = list(_codes(compile(source, module.__file__, "exec", dont_inherit=True)))
    functions = list(_functions(module))
    differing = [function for function in functions if function.__code__ not in codes]
    if len(differing) != 1:
        return False
    known, name = [function.__code__ for function in functions], differing[0].__code__.co_qualname
    found = [code for code in codes if code.co_qualname == name and code not in known]  # lambdas share one name
    if len(found) != 1:
        return False
    differing[0].__code__ = found[0]
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """The functions and methods of a module, also below its properties and decorators."""
    owners = [vars(thing) for thing in vars(module).values() if isinstance(thing, type)]
    for thing in [*vars(module).values(), *(thing for owner in owners for thing in owner.values())]:
        for name in ("__func__", "fget", "func", "__wrapped__"):
            thing = getattr(thing, name, thing)
        if isinstance(thing, FunctionType) and thing.__code__.co_filename == module.__file__:
            yield thing


def run_tests(files: Sequence[str], plugin: object) -> int:
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:cov", "--hypothesis-profile=mutants"]
    return int(pytest.main([*options, *files], plugins=[plugin]))


def in_child(seconds: int, act: Callable[[], int]) -> tuple[int, float]:
    """Run ``act`` in a process of its own, silent, with so many seconds of the processor's time.

    Its exit status, or minus a signal; and the time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            status = act()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return os.waitstatus_to_exitcode(status), took


def measure(path: Path, files: Sequence[str]) -> Baseline:
    """Run the tests of a module once. Raises RuntimeError if they fail."""
    with tempfile.NamedTemporaryFile() as told:

        def act() -> int:
            plugin = LineTests(path)
            status = run_tests(files, plugin)
            Path(told.name).write_text(json.dumps(plugin.noted()))
            return status

        status, seconds = in_child(600, act)
        if status:
            raise RuntimeError(f"the tests fail without a mutant ({status}): {' '.join(files)}")
        return Baseline(**json.loads(told.read()), seconds=seconds)


def try_import(module: str, mutant: Mutant, baseline: Baseline) -> int:
    """Run the tests in a process that imports the mutant."""
    tests = baseline.of(mutant)

    def act() -> int:
        sys.meta_path.insert(0, MutatedImport(module, mutant.source))
        return run_tests(sorted({test.partition("::")[0] for test in tests}), Chosen(tests))

    status, _ = in_child(baseline.limit, act)
    return status


def verdict(status: int) -> str:
    """What an exit status says of a mutant. ``slow`` is killed, too: the tests took far longer than without it."""
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise RuntimeError("no test was run")
    if status == -signal.SIGXCPU:
        return "slow"
    return "killed" if status else "survived"


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:16]


class Results:
    """What is known of each module's mutants, in a file."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        self.modules: dict[str, Any] = {}
        if not fresh and path.exists():
            self.read()

    def read(self) -> None:
        self.modules = json.loads(self.path.read_text())

    def save(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.modules, indent=1))
        new.replace(self.path)

    def of(self, module: str, source: str, tests: str) -> dict[str, Any]:
        """The results that hold for these texts of a module and its tests."""
        known = self.modules.get(module, {})
        results = known.get("results", {}) if known.get("module") == source else {}
        if known.get("tests") != tests:
            results = {key: result for key, result in results.items() if result["verdict"] != "survived"}
        self.modules[module] = {"module": source, "tests": tests, "mutants": 0, "results": results}
        return results


def run_module(module: str, names: Sequence[str], results: Results, deadline: float) -> None:
    """Try each mutant of a module that has no result yet, until a time."""
    path = ROOT / "ovs_hotswap" / module
    files = [f"tests/unit/test_{name}.py" for name in names]
    everything = list(mutants(path.read_text()))
    known = results.of(module, digest(path, Path(__file__)), digest(*(ROOT / file for file in files)))
    results.modules[module]["mutants"] = len(everything)
    results.save()
    todo = [mutant for mutant in everything if mutant.key not in known]
    print(f"{module}: {len(todo)} of {len(everything)} mutants to try", flush=True)
    if not todo:
        return
    baseline = measure(path, files)
    name = "ovs_hotswap." + module.removesuffix(".py").replace("/", ".")
    terminal = os.dup(1)

    def note(mutant: Mutant, status: int) -> bool:
        known[mutant.key] = {
            "verdict": verdict(status), "line": mutant.line, "before": mutant.before, "after": mutant.after
        }  # fmt: skip
        results.save()
        if not status:
            os.write(terminal, f"  {mutant.line}: {mutant.before}\n       {mutant.after}\n".encode())
        return time.monotonic() < deadline

    def bodies() -> int:
        # What ran when the tests were collected must run again, so such a mutant has to be imported.
        functions = [mutant for mutant in todo if mutant.inside and str(mutant.statement) in baseline.by_line]
        return run_tests(files, Forked(name, functions, baseline, note))

    in_child(resource.RLIM_INFINITY, bodies)
    results.read()
    known = results.modules[module]["results"]
    for mutant in todo:
        if mutant.key not in known and not note(mutant, try_import(name, mutant, baseline)):
            break
    os.close(terminal)


def summary(results: Results, lists: Mapping[str, Any]) -> bool:
    """Print a line for each module; whether each is complete and at the bar."""
    excused = {(entry["module"], entry["before"], entry["after"]) for entry in lists["equivalent"]}
    print(f"{'module':28} {'mutants':>8} {'tried':>6} {'killed':>7} {'survived':>9} {'equivalent':>11} {'score':>7}")
    good, totals = True, [0, 0, 0, 0, 0]
    for module in lists["tests"]:
        known = results.modules.get(module, {"mutants": 0, "results": {}})
        tried = known["results"].values()
        alive = [result for result in tried if result["verdict"] == "survived"]
        same = sum((module, result["before"], result["after"]) in excused for result in alive)
        row = [known["mutants"], len(tried), len(tried) - len(alive), len(alive) - same, same]
        totals = [total + count for total, count in zip(totals, row, strict=True)]
        good = good and row[0] > 0 and row[0] == row[1] and _score(row) >= BAR
        _print_row(module, row)
    _print_row("together", totals)
    return good


def _score(row: Sequence[int]) -> float:
    """Killed of those that could be killed, in per cent."""
    return 100 * row[2] / (row[2] + row[3]) if row[2] + row[3] else 0.0


def _print_row(name: str, row: Sequence[int]) -> None:
    score = f"{_score(row):.1f} %" if row[1] else "-"
    print(f"{name:28} {row[0]:8} {row[1]:6} {row[2]:7} {row[3]:9} {row[4]:11} {score:>7}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description="Mutation run over the pure core.")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as plan/records.py; all of them without it")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after so long; run it again to resume"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the results of earlier runs")
    parser.add_argument("--table", action="store_true", help="only print what is known")
    arguments = parser.parse_args()
    lists = tomllib.loads(LISTS.read_text())
    if unknown := set(arguments.modules) - set(lists["tests"]):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(lists['tests'])}")
    os.chdir(ROOT)
    results = Results(RESULTS, fresh=arguments.fresh)
    if not arguments.table:
        for name in PRELOADED:
            importlib.import_module(name)
        deadline = time.monotonic() + arguments.seconds
        for module in arguments.modules or lists["tests"]:
            run_module(module, lists["tests"][module], results, deadline)
        results.save()
    return 0 if summary(results, lists) else 1


if __name__ == "__main__":
    sys.exit(main())
