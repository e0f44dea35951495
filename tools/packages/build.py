"""Builds what the recipes say, and keeps the products by what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ovs_hotswap import patches as series_of_patches
from ovs_hotswap.errors import CommandError, HotswapError, ReleaseError
from ovs_hotswap.patches import Series
from ovs_hotswap.system import System
from tools.packages.buildtree import BuildTree
from tools.packages.debian import Apt
from tools.packages.recipes import RECIPES, Inputs, Recipe, changelog_time, control

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("OVS_HOTSWAP_CACHE", "/var/cache/ovs-hotswap")) / "packages"
OUTPUT = ROOT / "build" / "packages"
BUILD_PACKAGES = ROOT / "build-packages.txt"
_COMMON = ("recipe.sh", "pack.sh", "recipes.py", "build.py", "buildtree.py", "debian.py")
_RECORD = "record.json"
_STAGE = "stage.tar"
_UNPACK_S = 300.0
_BY_NAME = {recipe.name: recipe for recipe in RECIPES}
_COUNT = re.compile(r"\[(?P<done>[0-9]+)/(?P<all>[0-9]+)\]")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Product:
    """``path``: the package, or the stage that another recipe needs. ``cpu_s``: of all processes that made it."""

    inputs: Inputs
    path: Path
    sha256: str
    cpu_s: float


def listed(text: str) -> list[str]:
    """The package names of a list such as apt-packages.txt."""
    return [word for line in text.splitlines() if (word := line.partition("#")[0].strip())]


def chosen(names: Iterable[str]) -> tuple[Recipe, ...]:
    """The recipes of these packages, or of all if none is named. Raises ReleaseError for an unknown name."""
    packages = {recipe.name: recipe for recipe in RECIPES if recipe.summary}
    if unknown := sorted(set(names) - set(packages)):
        raise ReleaseError(f"there is no package {unknown[0]}", hint=f"known are: {', '.join(packages)}")
    wanted = set(names) or set(packages)
    return tuple(recipe for name, recipe in packages.items() if name in wanted)


class Builder:
    """``say`` gets a line at each turn. Methods raise HotswapError."""

    def __init__(
        self, system: System, say: Say, *, output: Path = OUTPUT, cache: Path = CACHE, patches: Path = ROOT
    ) -> None:
        self._system = system
        self._say = say
        self._output = output
        self._cache = cache
        self._patches = patches
        cache.mkdir(parents=True, exist_ok=True)
        output.mkdir(parents=True, exist_ok=True)
        self._apt = Apt(cache / "apt", system)
        try:
            self._apt.update()
        except CommandError as error:
            say(f"Debian's lists are those of the last time: {error.message}")
        self._tools = self._apt.versions(listed(BUILD_PACKAGES.read_text()))
        self._tree = BuildTree(output / "tree", self._tools, self._apt.mirror, system)

    def build(self, recipe: Recipe, *, anew: bool = False) -> Product:
        """Build the product, and what it needs. With ``anew``, products in the cache are not used."""
        inputs = self.inputs(recipe)
        entry = self._cache / f"{recipe.name}-{inputs.key[:16]}"
        if not anew and (known := self._cached(inputs, entry)):
            self._say(f"{recipe.name}: {inputs.source_version}, unchanged")
            return known
        needs = {name: self.build(_BY_NAME[name], anew=anew) for name in recipe.needs}
        return self._made(inputs, entry, needs)

    def publish(self, product: Product) -> Path:
        """Put a package into the output directory, and its files below ``root`` there, in place of earlier ones."""
        recipe, root = product.inputs.recipe, self._output / "root"
        for old in self._output.glob(f"{recipe.package}_*.deb"):
            old.unlink()
        for tree in (root / recipe.prefix.lstrip("/"), root / "usr/share/doc" / recipe.package):
            shutil.rmtree(tree, ignore_errors=True)
        target = self._output / product.path.name
        shutil.copyfile(product.path, target)
        self._system.run(["dpkg-deb", "--extract", str(target), str(root)], timeout=120)
        return target

    def inputs(self, recipe: Recipe) -> Inputs:
        """All that decides about the recipe's product."""
        version = self._apt.newest(recipe.binary) if recipe.binary else self._apt.newest_source(recipe.source)
        names = [f"{recipe.name}.sh", *_COMMON]
        return Inputs(
            recipe, version, self._series(recipe).digest,
            {name: _sha256(HERE / name) for name in sorted(names)}, self._tools,
            {name: self.inputs(_BY_NAME[name]).key for name in recipe.needs},
        )  # fmt: skip

    def _series(self, recipe: Recipe) -> Series:
        return series_of_patches.load(self._patches, recipe.series)

    def _cached(self, inputs: Inputs, entry: Path) -> Product | None:
        try:
            record = json.loads((entry / _RECORD).read_text())
        except FileNotFoundError:
            return None
        path = entry / record["file"]
        if not path.is_file() or _sha256(path) != record["sha256"]:
            self._say(f"{inputs.recipe.name}: {path} is damaged: it is built again")
            return None
        return Product(inputs, path, record["sha256"], record["cpu_s"])

    def _made(self, inputs: Inputs, entry: Path, needs: Mapping[str, Product]) -> Product:
        self._say(f"{inputs.recipe.name}: the build tree ({', '.join(_compiler(self._tools))})")
        log = self._output / "log" / f"{inputs.recipe.name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w", buffering=1) as out:

            def line(text: str) -> None:
                out.write(text + "\n")

            self._tree.make(line)
            before = _cpu_s()
            try:
                made = _Build(inputs, self._tree, self._say, line).run(
                    self._fetch(inputs), needs, self._series(inputs.recipe)
                )
            except HotswapError as error:
                raise type(error)(f"{inputs.recipe.name}: {error.message}", hint=error.hint or f"see {log}") from error
        product = self._keep(inputs, entry, made, _cpu_s() - before)
        self._say(f"{inputs.recipe.name}: {made.name}, {product.cpu_s:.0f} s of processor time")
        shutil.rmtree(self._tree.path / "build")
        return product

    def _fetch(self, inputs: Inputs) -> Path:
        """The directory with the source's files as Debian has them: each time it is used they are checked again."""
        recipe, version = inputs.recipe, inputs.source_version
        if recipe.binary:
            package, sums, fetch = recipe.binary, self._apt.binary_sums, self._apt.fetch_binary
        else:
            package, sums, fetch = recipe.source, self._apt.source_sums, self._apt.fetch_source
        wanted = sums(package, version)
        directory = self._cache / "sources" / f"{recipe.source}_{version.replace(':', '%3a')}"
        if directory.is_dir():
            if _sums(directory) == wanted:
                return directory
            self._say(f"{recipe.name}: {directory} is damaged")
        self._say(f"{recipe.name}: fetching {package} {version}")
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fetch(package, version, partial)
        if _sums(partial) != wanted:
            raise ReleaseError(f"what was fetched is not {package} {version} as apt's lists have it")
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
        return directory

    def _keep(self, inputs: Inputs, entry: Path, made: Path, cpu_s: float) -> Product:
        partial = entry.with_name(entry.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        shutil.copyfile(made, partial / made.name)
        sha256 = _sha256(made)
        record = {"file": made.name, "sha256": sha256, "cpu_s": round(cpu_s, 1), "inputs": asdict(inputs)}
        self._system.write_atomic(partial / _RECORD, json.dumps(record, indent=1))
        shutil.rmtree(entry, ignore_errors=True)
        partial.rename(entry)
        return Product(inputs, entry / made.name, sha256, cpu_s)


class _Build:
    """One build in the tree, in ``/build``."""

    def __init__(self, inputs: Inputs, tree: BuildTree, say: Say, line: Say) -> None:
        self._inputs = inputs
        self._recipe = inputs.recipe
        self._tree = tree
        self._say = say
        self._line = line
        self._work = tree.path / "build"

    def run(self, source: Path, needs: Mapping[str, Product], series: Series) -> Path:
        """Unpack, patch, compile, pack; return the product's file in the tree."""
        if self._work.exists():
            shutil.rmtree(self._work)
        shutil.copytree(source, self._work / "in")
        shutil.copytree(
            HERE, self._work / "recipe", ignore=lambda _, names: [n for n in names if not n.endswith(".sh")]
        )
        for name, product in needs.items():
            (self._work / name).mkdir()
            System().run(["tar", "-xf", str(product.path), "-C", str(self._work / name)], timeout=_UNPACK_S)
        self._unpack()
        series_of_patches.apply(self._work / "src", series, System(), self._line)
        changelog = (self._work / "src/debian/changelog").read_text(errors="replace")
        changed = changelog_time(changelog)
        environment = {
            "PREFIX": self._recipe.prefix, "VERSION": self._inputs.package_version, "JOBS": str(os.cpu_count() or 1),
            "SOURCE_DATE_EPOCH": str(changed),
        }  # fmt: skip
        self._say(f"{self._recipe.name}: compiling")
        self._script("recipe.sh", self._recipe.name, environment)
        if not self._recipe.summary:
            return self._stage_archive(changed)
        return self._package(environment, needs, series)

    def _unpack(self) -> None:
        if self._recipe.binary:
            command = (
                'dpkg-deb -x in/*.deb deb && mkdir src && tar --no-same-owner -xf "deb/$1" -C src --strip-components=1'
            )
        else:
            command = "dpkg-source --no-check --no-copy -x in/*.dsc src"
        self._run(["sh", "-ec", f"cd /build && {command}", "sh", self._recipe.tarball], {})

    def _stage_archive(self, changed: int) -> Path:
        """The stage below the prefix, with Debian's copyright, as a tar file whose entries are all ``changed`` then."""

        def dated(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.mtime = changed
            return entry

        made = self._work / _STAGE
        root = self._work / "stage" / self._recipe.prefix.lstrip("/")
        shutil.copy(self._work / "src/debian/copyright", root)
        with tarfile.open(made, "w") as archive:
            archive.add(root, arcname=".", filter=dated)  # sorted by name
        return made

    def _package(self, environment: Mapping[str, str], needs: Mapping[str, Product], series: Series) -> Path:
        stage = self._work / "stage"
        documentation = stage / "usr/share/doc" / self._recipe.package
        documentation.mkdir(parents=True)
        shutil.copy(self._work / "src/debian/copyright", documentation)
        (documentation / "patches").write_text("".join(f"{patch.name}  {patch.purpose}\n" for patch in series.patches))
        for name in needs:
            shutil.copy(self._work / name / "copyright", documentation / f"copyright.{name}")
        self._script("pack.sh", "depends", environment)
        depends = (self._work / "depends").read_text().strip().partition("=")[2]
        files = sorted(path for path in stage.rglob("*") if path.is_file())
        built_using = ", ".join(
            f"{product.inputs.recipe.source} (= {product.inputs.source_version})" for product in needs.values()
        )
        (stage / "DEBIAN").mkdir()
        size = sum(-(-path.stat().st_size // 1024) for path in files)
        (stage / "DEBIAN" / "control").write_text(control(self._inputs, depends, built_using, size))
        sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(stage)}\n" for path in files]
        (stage / "DEBIAN" / "md5sums").write_text("".join(sums))
        for path in (stage, *stage.rglob("*")):
            if not path.is_symlink():  # what it leads to may be a file of the machine
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        self._script("pack.sh", self._inputs.file_name, environment)
        return self._work / "out" / self._inputs.file_name

    def _script(self, script: str, argument: str, environment: Mapping[str, str]) -> None:
        self._run(["sh", f"/build/recipe/{script}", argument], environment)

    def _run(self, argv: list[str], environment: Mapping[str, str]) -> None:
        tenth = -1
        last = ""

        def line(text: str) -> None:
            nonlocal tenth, last
            self._line(text)
            last = text.strip() or last
            if (found := _COUNT.match(text)) and (now := 10 * int(found["done"]) // int(found["all"])) > tenth:
                tenth = now
                self._say(f"{self._recipe.name}: {found['done']} of {found['all']}")

        status = self._tree.run(argv, line, environment)
        if status != 0:
            raise ReleaseError(f"{' '.join(argv)}: exit {status}: {last}")


def _compiler(tools: Mapping[str, str]) -> list[str]:
    return [f"{name} {version}" for name, version in tools.items() if name.startswith("gcc-")]


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _sums(directory: Path) -> list[str]:
    """SHA-256 of the files, sorted."""
    return sorted(_sha256(path) for path in directory.iterdir())


def _cpu_s() -> float:
    """The processor time of this process and of its children that have ended, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
