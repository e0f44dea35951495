"""The package of ovs-hotswap itself: the program, the Python packages that it needs and an interpreter, below one
prefix. ``program/stage.sh`` lays it out in a build tree; this module fetches, decides and packs.

The interpreter and its libraries are those of Debian 12, from its newest packages, security updates included. So a
dist-upgrade of the host replaces nothing that the program runs on but the C library.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from ovs_hotswap import __version__
from ovs_hotswap.errors import CommandError, ReleaseError
from ovs_hotswap.system import System
from tools.packages.build import listed
from tools.packages.buildtree import BuildTree
from tools.packages.debian import Apt

NAME = "hotswap"
PACKAGE = "ovs-hotswap"
PREFIX = f"/opt/{PACKAGE}"
REVISION = 1
"""The N of ``VERSION-N``. It is raised when the same version is built from other packages of Debian, or otherwise."""
RUNTIME = (
    "gcc-12-base", "libbz2-1.0", "libexpat1", "libffi8", "libgcc-s1", "liblzma5", "libpython3.11-minimal",
    "libpython3.11-stdlib", "libsqlite3-0", "libssl3", "libuuid1", "python3.11-minimal", "zlib1g",
)  # fmt: skip
"""Binary packages of Debian 12 whose files become part of this package."""
DEPENDS = ("iproute2", "libc6 (>= 2.36)", "passwd", "procps")
SUGGESTS = ("debian-archive-keyring", "debootstrap", "needrestart", "openvswitch-switch-dpdk")
"""Open vSwitch is not recommended, because apt installs what is: it would need a network, and restart a switch that
serves VMs to upgrade it."""
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
TEXT = (
    "A broker between QEMU and the switch gives each VM two switches to its one",
    "vhost-user connection. An upgrade starts the new Open vSwitch beside the old",
    "one, moves the VMs, and goes back if anything is wrong. A watchdog keeps a",
    "second switch ready and moves the VMs to it when the first one dies.",
    ".",
    "The package starts nothing when it is installed, and replaces its daemons",
    "under the running VMs when it is upgraded.",
)

HERE = Path(__file__).parent / "program"
ROOT = HERE.parents[2]
LOCK = HERE / "wheels.lock"
_SOURCES = (
    "ovs_hotswap/**/*", "systemd/*", "patches/**/*", "qemu-patches/**/*", "docs/*.md", "docs/json/*",
    "docs/monitoring/*", "README.md", "CHANGELOG.md", "LICENSE", "setup.cfg", "pyproject.toml", "tools/__init__.py",
    "tools/manpage.py", "tools/packages/program.py", "tools/packages/pack.sh", "tools/packages/program/*",
)  # fmt: skip
_RELEASED = re.compile(r"^## (?P<version>[0-9]\S*) \((?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})\)$", re.MULTILINE)
_OWN_VERSION = re.compile(r'^__version__ = ".*"$', re.MULTILINE)
_STAMP = f"{PACKAGE}.json"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that decides about the bytes of the package. ``changed``: seconds since the epoch. ``sources``: SHA-256 by
    path; ``runtime`` and ``tools``: versions of Debian's packages."""

    version: str
    changed: int
    sources: Mapping[str, str]
    runtime: Mapping[str, str]
    tools: Mapping[str, str]

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def package_version(self) -> str:
        return f"{self.version}-{REVISION}"

    @property
    def file_name(self) -> str:
        return f"{PACKAGE}_{self.package_version}_amd64.deb"


def newest_release(changelog: str) -> tuple[str, int]:
    """Version and time, in seconds since the epoch, of the newest release in CHANGELOG.md. Raises ReleaseError."""
    found = _RELEASED.search(changelog)
    if found is None:
        raise ReleaseError("CHANGELOG.md has no heading of a release", hint="such as `## 0.4.0 (2026-11-29)`")
    return found["version"], int(datetime.fromisoformat(found["date"]).replace(tzinfo=UTC).timestamp())


def debian_changelog(version: str, changed: int) -> str:
    """The changelog of the Debian package (deb-changelog(5)); what has changed is in the program's own."""
    date = format_datetime(datetime.fromtimestamp(changed, UTC))
    return (f"{PACKAGE} ({version}) unstable; urgency=medium\n\n  * CHANGELOG.md, in changelog.gz, has the changes.\n\n"
            f" -- ovs-hotswap maintainers <maintainers@ovs-hotswap.invalid>  {date}\n")  # fmt: skip


def control(version: str, built_using: Iterable[str], installed_kib: int) -> str:
    """The control file (deb-control(5))."""
    fields = {
        "Package": PACKAGE, "Version": version, "Architecture": "amd64",
        "Maintainer": "ovs-hotswap maintainers <maintainers@ovs-hotswap.invalid>",
        "Installed-Size": str(installed_kib), "Depends": ", ".join(DEPENDS),
        "Suggests": ", ".join(SUGGESTS), "Built-Using": ", ".join(sorted(set(built_using))), "Section": "net",
        "Priority": "optional", "Description": "Replace a hypervisor's OVS-DPDK process under its running VMs",
    }  # fmt: skip
    return "\n".join([*(f"{name}: {value}" for name, value in fields.items()), *(f" {line}" for line in TEXT)]) + "\n"


def sources(root: Path) -> dict[str, str]:
    """The files that the package is made of, by their path below ``root``, each with its SHA-256."""
    found = {path for pattern in _SOURCES for path in root.glob(pattern) if path.is_file()}
    kept = sorted(path.relative_to(root).as_posix() for path in found if "__pycache__" not in path.parts)
    return {name: _sha256(root / name) for name in kept}


def built(output: Path) -> Path:
    """The package that was built last in ``output``. Raises ReleaseError if there is none, or if it has another version
    than the program, or was built from other sources. Debian's packages may have newer versions by now."""
    try:
        known = json.loads((output / _STAMP).read_text())
        found = output / str(known["file"])
        own = (known["version"], known["sources"]) == (__version__, _digest(sources(ROOT)))
    except (OSError, ValueError, KeyError):
        own = False
    if not own or not found.is_file():
        raise ReleaseError(f"{output} has no package of these sources", hint="`make packages ONLY=hotswap`")
    return found


class Program:
    """Builds the package. ``version``: another one than the program's, to try an upgrade with. Methods raise
    HotswapError."""

    def __init__(self, system: System, say: Say, output: Path, cache: Path, version: str | None = None) -> None:
        self._system, self._say, self._output, self._cache = system, say, output, cache
        self._apt = Apt(cache / "apt", system)
        try:
            self._apt.update()
        except CommandError as error:
            say(f"Debian's lists are those of the last time: {error.message}")
        tools = self._apt.versions(listed((HERE / "packages.txt").read_text()))
        self._tree = BuildTree(output / "program-tree", tools, self._apt.mirror, system)
        released, changed = newest_release((ROOT / "CHANGELOG.md").read_text())
        if version is None and released != __version__:
            raise ReleaseError(f"the newest release in CHANGELOG.md is {released}, and the program is {__version__}")
        runtime = {name: self._apt.newest(name) for name in RUNTIME}
        self.inputs = Inputs(version or __version__, changed, sources(ROOT), runtime, tools)

    def build(self, *, anew: bool = False) -> tuple[Path, str]:
        """The package in the output directory, and its SHA-256. It is built if it is not there already, or ``anew``."""
        target, stamp = self._output / self.inputs.file_name, self._output / _STAMP
        known = json.loads(stamp.read_text()) if stamp.is_file() else {}
        if not anew and known.get("key") == self.inputs.key and target.is_file() and _sha256(target) == known["sha256"]:
            self._say(f"{NAME}: {self.inputs.package_version}, unchanged")
            return target, known["sha256"]
        made = self._made()
        stamp.unlink(missing_ok=True)
        for old in self._output.glob(f"{PACKAGE}_*.deb"):
            old.unlink()
        shutil.copyfile(made, target)
        sha256 = _sha256(target)
        known = {"key": self.inputs.key, "sha256": sha256, "file": target.name, "version": self.inputs.version,
                 "sources": _digest(self.inputs.sources)}  # fmt: skip
        self._system.write_atomic(stamp, json.dumps(known))
        shutil.rmtree(self._tree.path / "build")
        return target, sha256

    def _made(self) -> Path:
        self._say(f"{NAME}: the build tree")
        log = self._output / "log" / f"{NAME}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w", buffering=1) as out:

            def line(text: str) -> None:
                out.write(text + "\n")

            self._tree.make(line)
            work = self._tree.path / "build"
            if work.exists():
                shutil.rmtree(work)
            work.mkdir()
            self._fetch(work / "in", line)
            self._copy_sources(work)
            self._say(f"{NAME}: putting {self.inputs.file_name} together")
            self._script(["sh", "/build/recipe/stage.sh"], line, log)
            self._describe(work)
            self._script(["sh", "/build/recipe/pack.sh", self.inputs.file_name], line, log)
        return work / "out" / self.inputs.file_name

    def _fetch(self, into: Path, line: Say) -> None:
        """Debian's packages, compared with apt's signed lists, and the Python packages, compared with the lock file:
        the only part that uses the network, and only for what an earlier build has not left in the cache."""
        (into / "debs").mkdir(parents=True)
        for name, version in self.inputs.runtime.items():
            wanted = self._apt.binary_sums(name, version)
            kept = self._cache / "debs" / f"{name}_{version.replace(':', '%3a')}.deb"
            if not kept.is_file() or [_sha256(kept)] != wanted:
                self._say(f"{NAME}: fetching {name} {version}")
                partial = kept.parent / f"{name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                self._apt.fetch_binary(name, version, partial)
                (fetched,) = partial.iterdir()
                if [_sha256(fetched)] != wanted:
                    raise ReleaseError(f"what was fetched is not {name} {version} as apt's lists have it")
                fetched.rename(kept)
                partial.rmdir()
            shutil.copyfile(kept, into / "debs" / f"{name}.deb")
        wheels = self._cache / "wheels" / _sha256(LOCK)[:16]
        if not wheels.is_dir():
            self._say(f"{NAME}: fetching the Python packages of {LOCK.name}")
            partial = wheels.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                    "--require-hashes", "--only-binary=:all:", "--no-binary=ovs", "--dest", str(partial),
                    "--requirement", str(LOCK)]  # fmt: skip
            status = self._system.run_lines(argv, line, timeout=1800)
            if status != 0:
                raise ReleaseError(f"pip cannot fetch what {LOCK.name} lists", hint=f"see {self._output / 'log'}")
            partial.rename(wheels)
        shutil.copytree(wheels, into / "wheels")  # pip compares each file with the lock file when it installs it

    def _copy_sources(self, work: Path) -> None:
        for name in self.inputs.sources:
            target = work / "src" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
        own = work / "src/ovs_hotswap/__init__.py"
        own.write_text(_OWN_VERSION.sub(f'__version__ = "{self.inputs.version}"', own.read_text()))
        shutil.copytree(HERE, work / "recipe", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(HERE.parent / "pack.sh", work / "recipe/pack.sh")
        text = debian_changelog(self.inputs.package_version, self.inputs.changed)
        (work / "changelog.Debian").write_text(text)

    def _describe(self, work: Path) -> None:
        """What dpkg wants to know of the package, in ``DEBIAN`` of the stage."""
        stage = work / "stage"
        everything = sorted(stage.rglob("*"))
        files = [path for path in everything if path.is_file() and not path.is_symlink()]
        about = stage / "DEBIAN"
        about.mkdir()
        size = sum(-(-path.stat().st_size // 1024) for path in files)
        debs = sorted((work / "in/debs").iterdir())
        (about / "control").write_text(control(self.inputs.package_version, map(self._source_of, debs), size))
        conffiles = [path for path in files if path.is_relative_to(stage / "etc")]
        (about / "conffiles").write_text("".join(f"/{path.relative_to(stage)}\n" for path in conffiles))
        sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(stage)}\n"
                for path in files if path not in conffiles]  # fmt: skip
        (about / "md5sums").write_text("".join(sums))
        for path in (stage, about, *everything, *about.iterdir()):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        for name in SCRIPTS:
            shutil.copyfile(HERE / name, about / name)
            (about / name).chmod(0o755)

    def _source_of(self, deb: Path) -> str:
        """The source of a binary package, as Built-Using has it."""
        asked = ["dpkg-deb", "--showformat", "${source:Package} (= ${source:Version})", "--show", str(deb)]
        return self._system.run(asked).stdout.strip()

    def _script(self, argv: list[str], line: Say, log: Path) -> None:
        last = ""

        def keep(text: str) -> None:
            nonlocal last
            line(text)
            last = text.strip() or last

        environment = {"PREFIX": PREFIX, "SOURCE_DATE_EPOCH": str(self.inputs.changed)}
        status = self._tree.run(argv, keep, environment)
        if status != 0:
            raise ReleaseError(f"{NAME}: {' '.join(argv)}: exit {status}: {last}", hint=f"see {log}")


def _digest(sums: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
