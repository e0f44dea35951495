"""``python -m tools.checkpatch``: what a maintainer would return a patch of this project's series for.

There are two parts: this project's rules (patches/README.md), and the checkpatch of the tree that a series is for. The
latter comes from the source package that ``make packages`` has fetched. If it is missing, the output says so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.patches import Patch, Series, directories, load

ROOT = Path(__file__).parents[1]
SOURCES = Path(os.environ.get("OVS_HOTSWAP_CACHE", "/var/cache/ovs-hotswap")) / "packages" / "sources"
# Series for the releases of 2018. They repeat no upstream text around a change, and no tree takes them any more.
WITHOUT_CONTEXT = frozenset({"ovs/2.9.0", "dpdk/17.11", "qemu/2.9.0"})
_SUBJECTS = {
    "ovs": re.compile(r"[a-z0-9, -]+: [A-Z].*\."),
    "dpdk": re.compile(r"[a-z/]+: [a-z].*[^.]"),
    "qemu": re.compile(r"[a-z0-9/, -]+: .*[^.]"),
}
_LONGEST_SUBJECT = {"ovs": 70, "dpdk": 60, "qemu": 76}
_PRIVATE_TRAILER = re.compile(r"^(Upstream-Status|Test): ", re.MULTILINE)


def faults(series: Series, known: Collection[str]) -> Iterator[str]:
    """What of a series is against the rules. ``known``: the tests of this repository; a series brings its own."""
    names = [patch.name for patch in series.patches]
    there = {path.name for path in series.directory.glob("*.patch")}
    if names != sorted(there) or [name[:4] for name in names] != [f"{n:04}" for n in range(1, len(names) + 1)]:
        yield f"{series.name}: the series file does not list the patches of the directory, numbered from 0001"
    for patch in series.patches:
        where = f"{series.name}: {patch.name}"
        yield from (f"{where}: {fault}" for fault in _form(series.name, patch, series.directory / patch.name))
        if not patch.status:
            yield f"{where}: no upstream status in the README"
        if missing := [test for test in patch.tests if test not in {*known, *series.before}]:
            yield f"{where}: there is no {missing[0]}"


def _form(name: str, patch: Patch, path: Path) -> Iterator[str]:
    text = path.read_text("utf-8", "surrogateescape")
    message = text[: text.index("\n---\n")]
    component = name.partition("/")[0]
    if not _SUBJECTS[component].fullmatch(patch.purpose) or len(patch.purpose) > _LONGEST_SUBJECT[component]:
        yield f"the subject is not as {component} writes it: {patch.purpose}"
    author = re.search(r"^From: (.*)$", message, re.MULTILINE)
    if author is None or f"\nSigned-off-by: {author[1]}" not in message:
        yield "the author has not signed it off"
    if found := _PRIVATE_TRAILER.search(message):
        yield f"{found[1]} belongs into the README"
    if name in WITHOUT_CONTEXT and re.search(r"^ ", text[text.index("\ndiff --git ") :], re.MULTILINE):
        yield "there is context, where none may be"


@dataclass(frozen=True, slots=True)
class Tool:
    """The checkpatch of a tree: the archive with the source (a glob below the sources), and its files in there."""

    archive: str
    files: tuple[str, ...]
    command: tuple[str, ...]
    needs: str = "what `make packages` fetches"


TOOLS = {
    "ovs/3.1.0": Tool(
        "openvswitch_*/openvswitch-source_*.deb", ("utilities/checkpatch.py",),
        (sys.executable, "utilities/checkpatch.py", "--quiet"),
    ),
    "dpdk/22.11": Tool(
        "dpdk_*/dpdk_*.orig.tar.xz", ("devtools", "VERSION"), ("devtools/checkpatches.sh", "-q"),
        "what `make packages` fetches, gawk, and checkpatch.pl of linux-source-6.1, unpacked in /usr/src",
    ),
    "qemu/7.2": Tool(
        "qemu_*/qemu_*.orig.tar.xz", ("scripts/checkpatch.pl",),
        ("perl", "scripts/checkpatch.pl", "--no-tree", "--strict", "-q"),
    ),
}  # fmt: skip


def unpack(tool: Tool, sources: Path, directory: Path) -> bool:
    """Unpack the tool's files; return whether the source package is on this machine."""
    for archive in sorted(sources.glob(tool.archive), reverse=True):
        if archive.suffix == ".deb":
            subprocess.run(["dpkg-deb", "--extract", str(archive), str(directory)], check=True)
            archive = next(directory.glob("usr/src/*/*.tar.gz"))
        wanted = [f"*/{name}" for name in tool.files]
        subprocess.run(
            ["tar", "-xf", str(archive), "-C", str(directory), "--strip-components=1", "--wildcards", *wanted],
            check=True,
        )
        return True
    return False


def kernels_checkpatch() -> str | None:
    """checkpatch.pl of the kernel, which DPDK's checkpatches.sh runs."""
    places = [os.environ.get("DPDK_CHECKPATCH_PATH"), *map(str, Path("/usr/src").glob("linux-*/scripts/checkpatch.pl"))]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def run_tool(series: Series, tool: Tool, sources: Path = SOURCES) -> str | None:
    """Run the tree's checkpatch. Return what it says of the patches, ``None`` if it is not on this machine."""
    environment = dict(os.environ)
    if series.name.startswith("dpdk/"):
        # mawk does not understand the expressions of DPDK's script. DPDK's commits are not known here.
        kernels = kernels_checkpatch()
        if kernels is None or shutil.which("gawk") is None:
            return None
        environment |= {"DPDK_CHECKPATCH_PATH": kernels, "DPDK_CHECKPATCH_CODESPELL": "no",
                        "DPDK_CHECKPATCH_OPTIONS": "--ignore=UNKNOWN_COMMIT_ID"}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ovs-hotswap-checkpatch-") as scratch:
        if not unpack(tool, sources, Path(scratch)):
            return None
        patches = [str(series.directory / patch.name) for patch in series.patches]
        done = subprocess.run(
            [*tool.command, *patches], cwd=scratch, env=environment, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return done.stdout if done.returncode else ""


def main() -> int:
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*")}
    found: list[str] = []
    for name in directories(ROOT):
        series = load(ROOT, name)
        found += faults(series, tests)
        if tool := TOOLS.get(name):
            said = run_tool(series, tool)
            if said is None:
                print(f"checkpatch: {name}: its own checkpatch is skipped: it needs {tool.needs}")
            elif said:
                found.append(f"{name}: its own checkpatch says:\n{said}")
    print("\n".join(found) or "checkpatch: nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
