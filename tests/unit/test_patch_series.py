"""The series in this repository follow the rules of patches/README.md."""

from __future__ import annotations

import configparser
import io
import tarfile
from pathlib import Path

import pytest

from ovs_hotswap.patches import Series, directories, load
from tools.checkpatch import Tool, faults, run_tool

ROOT = Path(__file__).parents[2]
NAMES = list(directories(ROOT))


@pytest.mark.parametrize("name", NAMES)
def test_the_series_follows_the_rules(name: str) -> None:
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*")}
    assert list(faults(load(ROOT, name), tests)) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_series_is_installed(name: str) -> None:
    """``data_files`` in setup.cfg lists the directory."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    directory = load(ROOT, name).directory.relative_to(ROOT)
    assert parser["options.data_files"][f"share/ovs-hotswap/{directory}"] == f"{directory}/*"


def faulty(tmp_path: Path) -> Series:
    directory = tmp_path / "patches/ovs/2.9.0"
    directory.mkdir(parents=True)
    (directory / "series").write_text("# component: ovs\n# upstream: x\n# unpacked-by: x\n0002-x.patch\n")
    (directory / "manifest").write_text(f"{'0' * 64}  x\n")
    (directory / "README.md").write_text("| `0002-x` | purpose | default |  | `tests/nowhere.py` |\n")
    (directory / "0002-x.patch").write_text(
        "From: A <a@example.org>\nSubject: [PATCH] something\n\nTest: x\n---\n"
        "diff --git a/x b/x\nindex 0123456..6543210 100644\n--- a/x\n+++ b/x\n@@ -1 +1,2 @@\n context\n+new\n"
    )
    return load(tmp_path, "ovs/2.9.0")


def test_what_the_rules_find(tmp_path: Path) -> None:
    assert [fault.removeprefix("ovs/2.9.0: ") for fault in faults(faulty(tmp_path), ())] == [
        "the series file does not list the patches of the directory, numbered from 0001",
        "0002-x.patch: the subject is not as ovs writes it: something",
        "0002-x.patch: the author has not signed it off",
        "0002-x.patch: Test belongs into the README",
        "0002-x.patch: there is context, where none may be",
        "0002-x.patch: no upstream status in the README",
        "0002-x.patch: there is no tests/nowhere.py",
    ]


@pytest.mark.parametrize(("status", "said"), [(0, ""), (1, "WARNING: 0002-x.patch\n")])
def test_a_trees_own_checkpatch(tmp_path: Path, status: int, said: str) -> None:
    tool = Tool("x_*/x_*.orig.tar.xz", ("check/it.sh",), ("sh", "check/it.sh"))
    assert run_tool(faulty(tmp_path), tool, tmp_path) is None  # no source package
    script = f'echo "WARNING: ${{1##*/}}" >&2\nexit {status}\n'.encode()
    (tmp_path / "x_1").mkdir()
    with tarfile.open(tmp_path / "x_1/x_1.orig.tar.xz", "w:xz") as archive:
        for name in ("x-1/check/it.sh", "x-1/check/other.sh"):
            member = tarfile.TarInfo(name)
            member.size = len(script)
            archive.addfile(member, io.BytesIO(script))
    assert run_tool(load(tmp_path, "ovs/2.9.0"), tool, tmp_path) == said
