"""What apt knows, asked with a configuration of its own: the machine's is read, not changed.

The archive is the one the machine uses for Debian 12, with ``deb-src`` in place of ``deb`` where sources are wanted;
the machine's settings, such as a proxy, hold. Which packages are installed here does not matter.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.errors import ReleaseError
from ovs_hotswap.system import System

SUITE = "bookworm"
_SUITES = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_FETCH_S = 1800.0
# deb822(5): continuation lines begin with a space. In a list of files each is "sum size name".
_SOURCE_SUMS = re.compile(r"^Checksums-Sha256:\n(?P<files>(?: .*(?:\n|$))+)", re.MULTILINE)
_SUM = re.compile(r"^ ([0-9a-f]{64}) ", re.MULTILINE)
_BINARY_SUM = re.compile(r"^SHA256: ([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Archive:
    """A suite of an archive, as the machine's configuration has it."""

    uri: str
    suite: str


class Apt:
    """apt with its lists below ``directory``. Methods raise ReleaseError or CommandError."""

    def __init__(self, directory: Path, system: System) -> None:
        self._system = system
        self._directory = directory
        self.archives = self._archives()
        status, sources = directory / "status", directory / "sources.list"
        (directory / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        status.write_text("")
        sources.write_text(
            "".join(
                f"{kind} [arch=amd64 signed-by={_KEYRING}] {archive.uri} {archive.suite} main\n"
                for archive in self.archives
                for kind in ("deb", "deb-src")
            )
        )
        self._options = [
            "-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-", "-o", "Dir::Etc::preferences=-",
            "-o", "Dir::Etc::preferencesparts=-", "-o", f"Dir::State::lists={directory / 'lists'}",
            "-o", f"Dir::State::status={status}", "-o", f"Dir::Cache={directory}",
            "-o", "Dir::Cache::pkgcache=pkgcache.bin", "-o", "Dir::Cache::srcpkgcache=srcpkgcache.bin",
            "-o", "APT::Sandbox::User=root",
            "-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64", "-o", "Acquire::Languages=none",
            "-o", "Acquire::Retries=3",
        ]  # fmt: skip

    @property
    def mirror(self) -> str:
        """The address of Debian 12 itself, for debootstrap."""
        return next(archive.uri for archive in self.archives if archive.suite == SUITE)

    def update(self) -> None:
        """Fetch the lists. Nothing is fetched that has not changed."""
        self._run("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update")

    def versions(self, packages: Iterable[str]) -> dict[str, str]:
        """The version of each binary package in Debian 12 itself, without later updates: the one debootstrap takes."""
        names = list(packages)
        found = {name: version for name, version, suite in self._madison(*names) if suite == SUITE}
        if missing := sorted(set(names) - set(found)):
            raise ReleaseError(f"Debian 12 has no package {missing[0]}")
        return {name: found[name] for name in sorted(names)}

    def newest(self, package: str) -> str:
        """The newest version of a binary package in all suites."""
        return self._newest(package, [version for name, version, _ in self._madison(package) if name == package])

    def newest_source(self, package: str) -> str:
        said = self._run("apt-cache", "showsrc", "--only-source", package)
        return self._newest(package, [line[9:] for line in said.splitlines() if line.startswith("Version: ")])

    def source_sums(self, package: str, version: str) -> list[str]:
        """SHA-256 of each file of a source package, sorted, from the archive's signed lists."""
        said = self._run("apt-cache", "showsrc", "--only-source", package)
        entry = next((entry for entry in said.split("\n\n") if f"Version: {version}" in entry.splitlines()), "")
        found = _SOURCE_SUMS.search(entry)
        return self._sums(package, version, [] if found is None else _SUM.findall(found["files"]))

    def binary_sums(self, package: str, version: str) -> list[str]:
        """SHA-256 of the one file of a binary package, likewise."""
        said = self._run("apt-cache", "show", f"{package}={version}")
        return self._sums(package, version, sorted(set(_BINARY_SUM.findall(said))))

    def fetch_source(self, package: str, version: str, directory: Path) -> None:
        """The files of a source package into ``directory``."""
        self._run("apt-get", "-q", "source", "--download-only", "--only-source", f"{package}={version}", at=directory)

    def fetch_binary(self, package: str, version: str, directory: Path) -> None:
        self._run("apt-get", "-q", "download", f"{package}={version}", at=directory)

    def _archives(self) -> tuple[Archive, ...]:
        said = self._system.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
        ).stdout
        lines = {tuple(line.split()): None for line in said.splitlines()}  # each once, in their order
        found = tuple(
            Archive(line[0], line[1]) for line in lines if len(line) == 3 and line[1] in _SUITES and line[2] == "main"
        )
        if SUITE not in {archive.suite for archive in found}:
            raise ReleaseError(
                f"the machine's apt sources have no {SUITE} main",
                hint="packages are built on Debian 12: `man sources.list`",
            )
        return found

    def _madison(self, *packages: str) -> list[tuple[str, str, str]]:
        """Name, version and suite of binary packages, from lines ``name | version | uri suite/main amd64 Packages``."""
        found = []
        for line in self._run("apt-cache", "madison", *packages).splitlines():
            name, version, where = (part.strip() for part in line.split("|", 2))
            if where.endswith("Packages"):
                found.append((name, version, where.split()[1].partition("/")[0]))
        return found

    def _sums(self, package: str, version: str, sums: list[str]) -> list[str]:
        if not sums:
            raise ReleaseError(f"apt's lists have no SHA-256 of {package} {version}")
        return sorted(sums)

    def _newest(self, package: str, versions: list[str]) -> str:
        if not versions:
            raise ReleaseError(f"Debian 12 has no package {package}")
        return max(versions, key=functools.cmp_to_key(self._compare))

    def _compare(self, one: str, other: str) -> int:
        if one == other:
            return 0
        return -1 if self._system.run(["dpkg", "--compare-versions", one, "lt", other], check=False).status == 0 else 1

    def _run(self, *argv: str, at: Path | None = None) -> str:
        program, *arguments = argv
        where = str(at or self._directory)
        line = ["env", "-C", where, "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", program, *self._options, *arguments]
        return self._system.run(line, timeout=_FETCH_S).stdout
