"""Releases: the software that an instance runs, side by side in several versions.

``host`` is the installed package. Every other release is a directory. It is a tree with its own libraries, made from a
Debian suite with debootstrap, or adopted if it exists already. Or it is an adopted install prefix, side by side with
the host's package, which uses the host's libraries. A new tree becomes a release when it is renamed into place, after
its programs have run in it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Literal

from ovs_hotswap.config import Config, read_kept
from ovs_hotswap.errors import CommandError, ReleaseError
from ovs_hotswap.model import RELEASE_NAME, Release, Side
from ovs_hotswap.switch.paths import InstancePaths, read_record
from ovs_hotswap.system import System
from ovs_hotswap.toml_file import Strict
from ovs_hotswap.trust import along, strangers

HOST = "host"

# Debian's packages openvswitch-switch-dpdk, openvswitch-switch and openvswitch-common; alike on host and in trees.
VSWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
OVSDB_SERVER = "/usr/sbin/ovsdb-server"
OVSDB_TOOL = "/usr/bin/ovsdb-tool"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


@dataclass(frozen=True, slots=True)
class Programs:
    """The paths of an instance's programs, as the program that is started sees them."""

    vswitchd: str
    ovsdb_server: str
    ovsdb_tool: str
    schema: str


_DEBIAN = Programs(VSWITCHD, OVSDB_SERVER, OVSDB_TOOL, SCHEMA)

# DPDK's drivers are plug-ins that no package depends on; Debian names their packages with the ABI version.
ABI = {"bookworm": "23", "trixie": "25"}
PLUGINS = ("bus-pci", "bus-vdev", "mempool-ring", "net-af-packet", "net-memif", "net-vhost", "net-virtio")

_NAME = re.compile(RELEASE_NAME)
_NAMES = f"up to 32 lower case letters, digits, '.', '_', '-', and not {HOST!r}"
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_EAL = re.compile(r"librte_eal\.so\.?(?P<abi>[0-9]*)\S* => (?P<path>/\S+)")
_VERSIONS = re.compile(r"\(Open vSwitch\) (?P<ovs>\S+)\s+DPDK (?P<dpdk>\S+)")
_MANIFEST = "release.json"
_TREE = "tree"
LOCK = ".lock"  # of adding or removing a release
_BUILD_S = 3600.0
_RUN_S = 20.0
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

Progress = Callable[[str], None]


class Manifest(Strict):
    """How a release was made. ``adopted``: the tree is the operator's and stays where it is."""

    format: Literal[1] = 1
    suite: str | None = None
    packages: tuple[str, ...] = ()
    adopted: str | None = None
    created: float = 0.0

    def same_recipe(self, other: Manifest) -> bool:
        return self.model_copy(update={"created": 0.0}) == other.model_copy(update={"created": 0.0})

    @property
    def text(self) -> str:
        return f"the directory {self.adopted}" if self.adopted else f"Debian {self.suite}"


@dataclass(frozen=True, slots=True)
class ReleaseEntry:
    """An entry of the list. ``release`` is ``None`` if it cannot be used; ``error`` says why."""

    name: str
    release: Release | None
    source: str
    error: str | None = None


def packages(suite: str) -> tuple[str, ...]:
    """Return the Debian packages of a release of ``suite``. Raises ReleaseError if the suite is not known."""
    if suite not in ABI:
        raise ReleaseError(f"suite {suite!r} is not known", hint=f"known are: {', '.join(ABI)}")
    return ("openvswitch-switch-dpdk", *(f"librte-{plugin}{ABI[suite]}" for plugin in PLUGINS))


def programs(release: Release) -> Programs:
    """Return the release's programs. Under a prefix they are where Open vSwitch's ``make install`` puts them."""
    prefix = release.prefix
    if prefix is None:
        return _DEBIAN
    return Programs(
        vswitchd=f"{prefix}/sbin/ovs-vswitchd",
        ovsdb_server=f"{prefix}/sbin/ovsdb-server",
        ovsdb_tool=f"{prefix}/bin/ovsdb-tool",
        schema=f"{prefix}/share/openvswitch/vswitch.ovsschema",
    )


def parse_versions(text: str) -> tuple[str, str] | None:
    """Return the versions of Open vSwitch and DPDK from ``ovs-vswitchd --version``; ``None`` without DPDK."""
    found = _VERSIONS.search(text)
    return (found["ovs"], found["dpdk"]) if found else None


class Releases:
    """The releases in ``config.releases_dir``, each a directory with a manifest and, unless adopted, its tree."""

    def __init__(self, config: Config, system: System, keyring: Path = _KEYRING) -> None:
        self._config = config
        self._system = system
        self._directory = config.releases_dir
        self._keyring = keyring

    def get(self, name: str) -> Release:
        """Return the release, after checking that its programs exist and run. Raises ReleaseError."""
        if name == HOST:
            return self._check(name, None)
        return self._check(name, self._tree(name, self._manifest(name)))

    def installed(self) -> Release:
        """Return the release of the host as it is installed now, also if drivers are missing. Raises ReleaseError if it
        does not run."""
        return self._with_versions(Release(HOST, None, "", ""), "`ovs-hotswap release list`")

    def list(self) -> tuple[ReleaseEntry, ...]:
        """Return all releases, ``host`` first, including those that cannot be used."""
        names = sorted(path.parent.name for path in self._directory.glob(f"[!.]*/{_MANIFEST}"))
        return tuple(self._entry(name) for name in (HOST, *names))

    def add(
        self,
        name: str,
        suite: str | None = None,
        progress: Progress = lambda text: None,
        *,
        from_directory: Path | None = None,
        extra_packages: tuple[str, ...] = (),
    ) -> Release:
        """Make a release from a Debian suite (``extra_packages``: further drivers), or adopt an existing tree.

        An existing release with this name and recipe is checked and kept; ``progress`` is called with a line that says
        so, and otherwise with a line for each package. Raises ReleaseError; then, and when interrupted, nothing is left
        behind.
        """
        wanted = self._recipe(name, suite, from_directory, extra_packages)
        with self._system.lock(self._directory / LOCK, "adding or removing a release"):
            self._sweep()
            if from_directory is not None and (faults := strangers(from_directory)):
                raise ReleaseError(f"{from_directory}: its programs would be run as root, and {'; '.join(faults)}",
                                   hint=f"chown -R root: {from_directory}; chmod -R go-w {from_directory}")  # fmt: skip
            if (self._directory / name / _MANIFEST).exists():
                return self._keep(name, wanted, progress)
            build = self._directory / f".build-{name}"
            try:
                build.mkdir(parents=True)
                if suite is not None:
                    self._debootstrap(suite, wanted.packages, build / _TREE, progress)
                root = from_directory if from_directory is not None else build / _TREE
                release = self._check(name, root, "check the packages" if suite else "the tree is not complete")
                made = wanted.model_copy(update={"created": self._system.wall()})
                self._system.write_atomic(build / _MANIFEST, made.model_dump_json(indent=1))
                build.rename(self._directory / name)
            except BaseException:
                _delete(build)
                raise
        progress(f"release {release.label} is ready")
        return release if from_directory is not None else replace(release, root=str(self._tree(name, made)))

    def remove(self, name: str) -> None:
        """Remove a release, or the entry of an adopted one. Raises ReleaseError if an instance uses it."""
        if name == HOST:
            raise ReleaseError("the host's package is not removed here", hint="use apt")
        with self._system.lock(self._directory / LOCK, "adding or removing a release"):
            manifest = self._manifest(name)
            self._refuse_if_used(name, self._tree(name, manifest))
            doomed = self._directory / f".remove-{name}"
            (self._directory / name).rename(doomed)
            _delete(doomed)

    def _recipe(
        self, name: str, suite: str | None, from_directory: Path | None, extra_packages: tuple[str, ...]
    ) -> Manifest:
        if not _NAME.fullmatch(name) or name == HOST:
            raise ReleaseError(
                f"{name!r} cannot name a release",
                hint=_NAMES,
            )
        if (suite is None) == (from_directory is None):
            raise ReleaseError("a release is made either from a suite or from a directory")
        if from_directory is not None:
            return Manifest(adopted=str(from_directory.resolve()))
        assert suite is not None
        for package in extra_packages:
            if not _PACKAGE.fullmatch(package):
                raise ReleaseError(f"{package!r} is not the name of a Debian package")
        return Manifest(suite=suite, packages=(*packages(suite), *extra_packages))

    def _keep(self, name: str, wanted: Manifest, progress: Progress) -> Release:
        present = self._manifest(name)
        if not present.same_recipe(wanted):
            raise ReleaseError(
                f"release {name} exists and was made otherwise: from {present.text}",
                hint=f"`ovs-hotswap release remove {name}`, or choose another name",
            )
        release = self.get(name)
        progress(f"release {release.label} is there already")
        return release

    def _debootstrap(self, suite: str, include: tuple[str, ...], tree: Path, progress: Progress) -> None:
        """Run debootstrap in its own namespaces, which end with this process: mounts and processes vanish with them.

        What is installed will run as root, so a valid signature is required.
        """
        if not self._keyring.is_file():
            raise ReleaseError(f"{self._keyring} is missing, so nothing that is installed could be trusted",
                               hint="apt-get install debian-archive-keyring")  # fmt: skip
        errors: list[str] = []

        def line(text: str) -> None:
            if text.startswith(("E: ", "W: ")):
                errors.append(text.partition(": ")[2])
            progress(text.removeprefix("I: "))

        alone = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--"]
        signed = ["--force-check-gpg", f"--keyring={self._keyring}"]  # it checks nothing without a keyring
        make = ["debootstrap", *signed, "--variant=minbase", f"--include={','.join(include)}", suite, str(tree)]
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *alone, *make]
        environment = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            status = self._system.run_lines(argv, line, timeout=_BUILD_S, env=environment)
        except CommandError as error:
            raise ReleaseError(f"debootstrap {suite}: {error.message}", hint="apt-get install debootstrap") from error
        if status != 0:
            raise ReleaseError(
                f"debootstrap {suite} failed: {errors[-1] if errors else f'exit {status}'}",
                hint="is the Debian mirror within reach, and enough room on the disk?",
            )

    def _check(self, name: str, directory: Path | None, hint: str | None = None) -> Release:
        """Check that the release in ``directory`` (``None``: the host) is complete and runs. Raises ReleaseError."""
        if directory is None:
            debian = f"`apt-get install {' '.join(packages('bookworm'))}`"
            hint = f"install Open vSwitch with DPDK, and DPDK's plug-ins; on Debian 12: {debian}"
        hint = hint or f"`ovs-hotswap release remove {name}` and add it again"
        prefix = str(directory) if directory is not None and _is_prefix(directory) else None
        root = None if directory is None or prefix is not None else str(directory)
        found = Release(name, root, "", "", prefix)
        place, software = Path(root or "/"), programs(found)
        for path in astuple(software):
            _refuse_strangers(name, place / path.lstrip("/"))
            if not (place / path.lstrip("/")).is_file():
                raise ReleaseError(f"release {name}: {place / path.lstrip('/')} is missing", hint=hint)
        missing, abi = self._missing_plugins(found)
        if missing:
            if directory is None and abi:  # a dist-upgrade brings the libraries of another DPDK, and no driver
                hint = f"`apt-get install {' '.join(f'librte-{plugin}{abi}' for plugin in missing)}`"
            raise ReleaseError(f"release {name}: DPDK's drivers {', '.join(missing)} are missing", hint=hint)
        return self._with_versions(found, hint)

    def _with_versions(self, release: Release, hint: str) -> Release:
        """The release with the versions that its programs print. Raises ReleaseError if they do not run."""
        versions, software = None, programs(release)
        for program in (software.ovsdb_server, software.vswitchd):
            versions = parse_versions(self._output(release, program, hint))
        if versions is None:
            raise ReleaseError(f"release {release.name}: {software.vswitchd} is built without DPDK", hint=hint)
        return replace(release, ovs_version=versions[0], dpdk_version=versions[1])

    def _output(self, release: Release, program: str, hint: str) -> str:
        """Return what ``program --version`` prints. Raises ReleaseError if it does not run."""
        inside = [] if release.root is None else ["chroot", release.root]
        done = self._system.run([*inside, program, "--version"], timeout=_RUN_S, check=False)
        if done.status != 0:
            text = (done.stderr or done.stdout).strip() or f"exit {done.status}"
            raise ReleaseError(f"release {release.name}: {program} does not run: {text}", hint=hint)
        return done.stdout

    def _missing_plugins(self, release: Release) -> tuple[tuple[str, ...], str]:
        """Return the missing drivers, and the version of the DPDK that ovs-vswitchd of the host or of a prefix loads.
        DPDK looks for drivers of its own version beside its libraries (meson.build, eal_pmd_path); a DPDK that is
        linked in needs none."""
        pattern, abi = "usr/lib/*/dpdk", ""
        place = Path(release.root or "/")
        if release.root is None:
            loaded = self._system.run(["ldd", programs(release).vswitchd], timeout=_RUN_S, check=False).stdout
            eal = _EAL.search(loaded)
            if eal is None and release.prefix is not None:
                return (), ""
            if eal is not None:
                abi = eal["abi"]
                if release.prefix is not None:
                    place, pattern = Path(eal["path"]).parent, "dpdk"
        return tuple(plugin for plugin in PLUGINS if not _has_plugin(place, pattern, plugin, abi)), abi

    def _entry(self, name: str) -> ReleaseEntry:
        source = "installed package"
        try:
            if name != HOST:
                source = self._manifest(name).text
            return ReleaseEntry(name, self.get(name), source)
        except (ReleaseError, CommandError) as error:
            return ReleaseEntry(name, None, source, error.message)

    def _manifest(self, name: str) -> Manifest:
        if not _NAME.fullmatch(name):
            raise ReleaseError(f"{name!r} cannot name a release", hint=_NAMES)
        path = self._directory / name / _MANIFEST
        _refuse_strangers(name, path)
        try:
            return Manifest.model_validate_json(path.read_text())
        except FileNotFoundError as error:
            raise ReleaseError(
                f"there is no release {name!r}",
                hint=f"`ovs-hotswap release list`, or `ovs-hotswap release add {name} --suite trixie`",
            ) from error
        except (OSError, ValueError) as error:
            raise ReleaseError(f"{path}: cannot be read: {error}", hint=f"remove {path.parent}") from error

    def _tree(self, name: str, manifest: Manifest) -> Path:
        return Path(manifest.adopted) if manifest.adopted else self._directory / name / _TREE

    def _refuse_if_used(self, name: str, tree: Path) -> None:
        for side in Side:
            record = read_record(InstancePaths.of(self._config, side).record)
            if record is not None and record.release == name:
                raise ReleaseError(
                    f"release {name} is in use by instance {side}", hint=f"`ovs-hotswap instance stop {side}`"
                )
        kept = read_kept(self._config)
        if kept is not None and kept.release == name:
            raise ReleaseError(
                f"release {name} is what instance {kept.side} is started with after a boot",
                hint=f"`ovs-hotswap instance stop {kept.side}`, or `instance start {kept.side}` of another",
            )
        users = [pid for pid in self._system.pids() if _same(f"/proc/{pid}/root", tree) or _runs_from(pid, tree)]
        if users:
            raise ReleaseError(f"release {name} is in use by process {users[0]}", hint="end that process")

    def _sweep(self) -> None:
        """Delete what a killed ``add`` or ``remove`` left. The caller holds the lock, so none is under way."""
        for pattern in (".build-*", ".remove-*"):
            for path in self._directory.glob(pattern):
                _delete(path)


def _refuse_strangers(name: str, path: Path) -> None:
    """Raise ReleaseError if others could replace a file that root trusts or runs."""
    if faults := along(path):
        raise ReleaseError(f"release {name}: {path} is run or believed by root, and {'; '.join(faults)}",
                           hint="chown root: and chmod go-w what it names")  # fmt: skip


def _is_prefix(directory: Path) -> bool:
    """Whether ``directory`` is an install prefix; a tree has a directory ``usr``."""
    return (directory / "sbin/ovs-vswitchd").is_file() and not (directory / "usr").exists()


def _has_plugin(place: Path, pattern: str, plugin: str, abi: str) -> bool:
    library = f"librte_{plugin.replace('-', '_')}.so.{abi}*"
    return any(place.glob(f"{pattern}/pmds-{abi}*/{library}"))


def _runs_from(pid: int, directory: Path) -> bool:
    """Whether the program of process ``pid`` is a file in ``directory``."""
    try:
        return Path(f"/proc/{pid}/exe").readlink().is_relative_to(directory)
    except OSError:
        return False


def _same(path: str, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def _mounted_below(directory: Path) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if Path(point).is_relative_to(directory):
            yield point


def _delete(directory: Path) -> None:
    """Delete a tree that is not in use, unless something is mounted in it: /dev or /proc may be mounted by hand."""
    for point in _mounted_below(directory.resolve()):
        raise ReleaseError(f"{point} is mounted", hint=f"`umount {point}`")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)
