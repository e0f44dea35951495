"""The patch series on tiny trees: what is read, what is verified, what is applied and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import PatchError, StateUnknown
from ovs_hotswap.patches import Patch, Series, State, apply, directories, load, verify
from ovs_hotswap.system import System

NAME = "ovs/3.1.0"
BEFORE = {
    "lib/a.c": "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n",
    "lib/old.c": "gone\n",
    "run.sh": "#!/bin/sh\n",
    "other.c": "no patch touches it\n",
}
AFTER = {
    "lib/a.c": "one\ntwo\nthree\nand a half\nfour\nfive\nsix\nSEVEN\neight\n",
    "run.sh": "#!/bin/sh\nexit 0\n",
    "other.c": BEFORE["other.c"],
    "new/deep/b.c": "new\n",
}
MAIL = """From: A Maintainer <maintainers@example.org>
Subject: [PATCH] ovs: Do {purpose}
 at once.

+This is no line of the diff.
---
"""
README = """| patch | purpose | by default | upstream status | test |
|---|---|---|---|---|
| `0001-first` | It does. | always on | not sent | `tests/unit/test_patches.py`: this, and `that`; `tests/x.at` |
| `0002-second` | It does too. | off | in part, 1234567 (25.03) | none of its own |
"""
MIDDLE = BEFORE["lib/a.c"].replace("three\n", "three\nand a half\n")
NOTHING = "0" * 10


def name(text: str) -> str:
    """The name that git-hash-object(1) gives a file with this text."""
    return hashlib.sha1(f"blob {len(text)}\0{text}".encode()).hexdigest()[:10]


def of(path: str, before: str, after: str, hunks: str) -> str:
    """A patch of one file that exists before and after."""
    head = f"diff --git a/{path} b/{path}\nindex {name(before)}..{name(after)} 100644\n"
    return f"{head}--- a/{path}\n+++ b/{path}\n{hunks}"


FIRST = of("lib/a.c", BEFORE["lib/a.c"], MIDDLE, "@@ -3,0 +4 @@\n+and a half\n") + (
    f"diff --git a/new/deep/b.c b/new/deep/b.c\nnew file mode 100644\nindex {NOTHING}..{name(AFTER['new/deep/b.c'])}\n"
    "--- /dev/null\n+++ b/new/deep/b.c\n@@ -0,0 +1 @@\n+new\n"
)
SECOND = (
    of("lib/a.c", MIDDLE, AFTER["lib/a.c"], "@@ -5,5 +5,5 @@ three\n four\n five\n six\n-seven\n+SEVEN\n eight\n")
    + f"diff --git a/lib/old.c b/lib/old.c\ndeleted file mode 100644\nindex {name(BEFORE['lib/old.c'])}..{NOTHING}\n"
    "--- a/lib/old.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-gone\n"
    + of("run.sh", BEFORE["run.sh"], AFTER["run.sh"], "@@ -1,0 +2 @@\n+exit 0\n")
)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


MANIFEST = {"lib/a.c": sha256(BEFORE["lib/a.c"]), "lib/old.c": sha256(BEFORE["lib/old.c"]), "new/deep/b.c": "absent",
            "run.sh": sha256(BEFORE["run.sh"])}  # fmt: skip
PATCHES = {"0001-first.patch": FIRST, "0002-second.patch": SECOND}


def write_series(root: Path, patches: dict[str, str] = PATCHES, manifest: dict[str, str] = MANIFEST) -> Series:
    directory = root / "patches" / NAME
    directory.mkdir(parents=True, exist_ok=True)
    head = "# component: ovs\n# upstream: 3.1.0\n# unpacked-by: tar xf ovs.tar\n"
    (directory / "series").write_text(head + "".join(f"{name}\n" for name in patches))
    (directory / "manifest").write_text("".join(f"{digest}  {path}\n" for path, digest in manifest.items()))
    (directory / "README.md").write_text(README)
    for name, diff in patches.items():
        (directory / name).write_text(MAIL.format(purpose=name) + diff + "-- \n2.39.2\n")
    return load(root, NAME)


def of_one(root: Path, diff: str, manifest: dict[str, str]) -> Series:
    return write_series(root, {"0001-x.patch": diff}, manifest)


def write_tree(path: Path) -> Path:
    for name, text in BEFORE.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    (path / "run.sh").chmod(0o755)
    return path


def contents(tree: Path) -> dict[str, str]:
    """The files of a tree. An empty directory counts, with no text."""
    return {
        str(path.relative_to(tree)): path.read_text() if path.is_file() else ""
        for path in tree.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


@pytest.fixture
def series(tmp_path: Path) -> Series:
    return write_series(tmp_path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree")


# --------------------------------------------------------------------------------------------------- what a series says


def test_a_series_is_read(series: Series) -> None:
    assert (series.upstream, series.unpacked_by, list(series.after)) == (
        "3.1.0", "tar xf ovs.tar", ["lib/a.c", "new/deep/b.c", "lib/old.c", "run.sh"],
    )  # fmt: skip
    assert series.patches == (
        Patch("0001-first.patch", "ovs: Do 0001-first.patch at once.", "not sent",
              ("tests/unit/test_patches.py", "tests/x.at"), 2, 0),
        Patch("0002-second.patch", "ovs: Do 0002-second.patch at once.", "in part, 1234567 (25.03)", (), 2, 6),
    )  # fmt: skip


def test_the_digest_is_of_the_patches(tmp_path: Path, series: Series) -> None:
    assert write_series(tmp_path).digest == series.digest
    assert write_series(tmp_path, {**PATCHES, "0002-second.patch": SECOND + "\n"}).digest != series.digest


def test_a_series_is_found_where_it_is(tmp_path: Path, series: Series) -> None:
    qemu = tmp_path / "qemu-patches" / "7.2"
    qemu.mkdir(parents=True)
    (qemu / "series").write_text("")
    assert directories(tmp_path) == {NAME: series.directory, "qemu/7.2": qemu}
    for name in ("ovs/9", "../ovs/3.1.0", "patches/../ovs/3.1.0"):
        with pytest.raises(PatchError, match="there is no series") as caught:
            load(tmp_path, name)
        assert caught.value.hint == f"known are: {NAME}, qemu/7.2"
    with pytest.raises(PatchError, match="there is no series") as caught:
        load(tmp_path / "nowhere", NAME)
    assert caught.value.hint == "name a directory that has series with --patches"


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("series", "# upstream: 1\n", "cannot be read: 'unpacked-by'"),
        ("series", "# upstream: 1\n# unpacked-by: x\n0009-x.patch\n", "No such file"),
        ("manifest", "one word\n", "cannot be read"),
        ("manifest", f"absent  x\n{'0' * 64}  lib/a.c\n", "differ in lib/old.c, new/deep/b.c, run.sh, x"),
    ],
)  # fmt: skip
def test_a_faulty_series_is_refused(tmp_path: Path, series: Series, file: str, text: str, fault: str) -> None:
    (series.directory / file).write_text(text)
    with pytest.raises(PatchError, match=fault):
        load(tmp_path, NAME)


# -------------------------------------------------------------------------------------------------------------- verify


def test_verify_changes_nothing(tree: Path, series: Series) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tree, *tree.rglob("*"))}
    said: list[str] = []
    assert verify(tree, series, System(), said.append) is State.PRISTINE
    assert said == ["0001-first.patch applies", "0002-second.patch applies"]
    assert {path: path.stat().st_mtime_ns for path in (tree, *tree.rglob("*"))} == before


def _append(path: Path) -> None:
    path.write_text(path.read_text() + "more\n")


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("")


@pytest.mark.parametrize(
    ("path", "act", "fault"),
    [
        ("lib/a.c", _append, "lib/a.c is another version"),
        ("lib/a.c", Path.unlink, "lib/a.c is missing"),
        ("new/deep/b.c", _make, "new/deep/b.c is another version"),
    ],
)
def test_another_tree_is_refused(
    tree: Path, series: Series, path: str, act: Callable[[Path], object], fault: str
) -> None:
    act(tree / path)
    before = contents(tree)
    for function in (verify, apply):
        with pytest.raises(PatchError, match=f"is not the tree that series {NAME} is for: {fault}$") as caught:
            function(tree, series, System())
        assert caught.value.hint == "it is for 3.1.0, unpacked by: tar xf ovs.tar"
    assert contents(tree) == before


def a_c(hunk: str) -> str:
    return of("lib/a.c", BEFORE["lib/a.c"], BEFORE["lib/a.c"].replace("four", "4"), hunk)


@pytest.mark.parametrize(
    ("diff", "fault"),
    [
        (a_c("@@ -4 +4 @@\n-vier\n+4\n"), "0001-x.patch does not apply: error:"),
        (a_c("@@ -3,3 +3,3 @@\n drei\n-four\n+4\n five\n"), "0001-x.patch does not apply: error:"),  # no fuzz
        (a_c("@@ -5,0 +6 @@\n+4\n"), "does not apply exactly: lib/a.c is not what its author had"),
        (a_c("@@ -4 +4 @@\n-four\n+4\n--- a/../x\n+++ b/../x\n@@ -0,0 +1 @@\n+x\n"), "does not apply: error: invalid"),
    ],
)
def test_what_does_not_apply_exactly_is_refused(tmp_path: Path, tree: Path, diff: str, fault: str) -> None:
    series = of_one(tmp_path, diff, {"lib/a.c": MANIFEST["lib/a.c"]})
    for function in (verify, apply):
        with pytest.raises(PatchError, match=fault):
            function(tree, series, System())
    assert contents(tree) == BEFORE


def test_a_path_outside_of_the_tree_is_refused(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "x").write_text("")
    series = of_one(tmp_path, of("../x", "", "y\n", "@@ -0,0 +1 @@\n+y\n"), {"../x": sha256("")})
    with pytest.raises(PatchError, match="is not a file of the tree"):
        apply(tree, series, System())


def test_a_deletion_without_context_is_exact(tmp_path: Path, tree: Path) -> None:
    after = BEFORE["lib/a.c"].replace("three\n", "")
    diff = of("lib/a.c", BEFORE["lib/a.c"], after, "@@ -3 +2,0 @@\n-three\n")
    apply(tree, of_one(tmp_path, diff, {"lib/a.c": MANIFEST["lib/a.c"]}), System())
    assert (tree / "lib/a.c").read_text() == after


# --------------------------------------------------------------------------------------------------------------- apply


def test_apply_once_and_again(tree: Path, series: Series) -> None:
    assert apply(tree, series, System()) is State.PRISTINE
    assert contents(tree) == AFTER
    assert (tree / "run.sh").stat().st_mode & 0o100
    said: list[str] = []
    for function in (apply, verify):
        assert function(tree, series, System(), said.append) is State.APPLIED
    assert said == [f"series {NAME} is applied already; its 4 files are as it left them"] * 2
    assert contents(tree) == AFTER


def test_a_patched_file_that_was_changed_is_another_version(tree: Path, series: Series) -> None:
    apply(tree, series, System())
    _append(tree / "lib/a.c")
    with pytest.raises(PatchError, match=r"lib/a\.c is another version"):
        apply(tree, series, System())


def test_a_series_that_is_applied_in_part_is_not_applied_on_top(tree: Path, series: Series) -> None:
    apply(tree, series, System())
    (tree / "run.sh").write_text(BEFORE["run.sh"])
    for function in (verify, apply):
        with pytest.raises(StateUnknown, match=f"series {NAME} is applied in part"):
            function(tree, series, System())


@pytest.mark.parametrize("place", [".", "deep/in/it"])
@pytest.mark.parametrize("variables", [(), ("GIT_DIR",), ("GIT_DIR", "GIT_WORK_TREE")])
def test_a_tree_inside_somebodys_repository(
    tmp_path: Path, series: Series, place: str, variables: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "--quiet", str(repository)], check=True)
    tree = write_tree(repository / place)
    monkeypatch.setenv("TMPDIR", str(repository))  # the copies of verify() are below it
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(repository)
    values = {"GIT_DIR": repository / ".git", "GIT_WORK_TREE": repository}
    for name in variables:  # as in a hook
        monkeypatch.setenv(name, str(values[name]))
    verify(tree, series, System())
    apply(tree, series, System())
    assert {path: text for path, text in contents(tree).items() if not path.startswith(".git/")} == AFTER


def test_settings_of_the_user_do_not_matter(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitconfig").write_text("[apply]\nignoreWhitespace = change\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tree / "run.sh").write_text("a  b\nc\n")
    diff = of("run.sh", "a  b\nc\n", "a  b\nx\nc\n", "@@ -1,2 +1,3 @@\n a b\n+x\n c\n")
    with pytest.raises(PatchError, match=r"(?s)does not apply: .*error: patch failed"):
        verify(tree, of_one(tmp_path, diff, {"run.sh": sha256("a  b\nc\n")}), System())


def test_a_link_in_the_way_is_refused(tmp_path: Path, tree: Path, series: Series) -> None:
    outside = tmp_path / "outside"
    (tree / "lib").rename(outside)
    (tree / "lib").symlink_to(outside)
    with pytest.raises(PatchError, match=r"lib/a.c is not a file of the tree, or a link leads to it"):
        apply(tree, series, System())
    (tree / "lib").unlink()
    outside.rename(tree / "lib")
    (tree / "run.sh").rename(outside)
    (tree / "run.sh").symlink_to(outside)
    with pytest.raises(PatchError, match=r"run\.sh is not a file of the tree, or a link leads to it"):
        apply(tree, series, System())
    assert outside.read_text() == BEFORE["run.sh"]


def test_a_tree_that_cannot_be_written_is_said(tree: Path, series: Series) -> None:
    (tree / "new").write_text("a file where the series makes a directory\n")
    with pytest.raises(PatchError, match=r"tree: .*new") as caught:
        apply(tree, series, System())
    assert caught.value.hint == "unpack the tree again"


# --------------------------------------------------------------------------------------------------------- command line


def run(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = main.run(["patches", *map(str, arguments)], App(Output(out=out, err=err)))
    return status, out.getvalue(), err.getvalue()


def test_the_commands(tmp_path: Path, tree: Path, series: Series) -> None:
    options = ("--series", NAME, "--patches", tmp_path)
    status, out, _ = run("list", *options, "--json")
    (document,) = json.loads(out)["series"]
    assert (status, document["series"], document["files"]) == (0, NAME, sorted(MANIFEST))
    assert (document["component"], document["version"]) == ("ovs", "3.1.0")
    assert (document["added"], document["upstream_lines"]) == (4, 6)
    assert [patch["name"] for patch in document["patches"]] == list(PATCHES)
    status, out, _ = run("list", "--patches", tmp_path)
    assert f"{NAME}: for 3.1.0; 4 files, 4 lines of its own, 6 of the upstream's\n" in out
    assert "0001-first.patch   ovs: Do 0001-first.patch at once.   not sent" in out
    assert json.loads(run("verify", tree, *options, "--json")[1]) == {
        "series": NAME, "tree": str(tree), "state": "pristine", "files": sorted(MANIFEST),
    }  # fmt: skip
    assert json.loads(run("apply", tree, *options, "--dry-run", "--json")[1])["applied"] is False
    assert contents(tree) == BEFORE
    status, out, _ = run("apply", tree, *options)
    assert (status, out.splitlines()[-1]) == (0, f"series {NAME} is applied to {tree}")
    assert contents(tree) == AFTER
    status, out, _ = run("apply", tree, *options, "--json")
    assert (status, json.loads(out)["state"], json.loads(out)["applied"]) == (0, "applied", False)
    (tree / "run.sh").write_text(BEFORE["run.sh"])
    assert run("apply", tree, *options)[0] == StateUnknown.exit_code
    status, _, err = run("apply", tree, "--series", "ovs/9", "--patches", tmp_path)
    assert (status, err) == (
        PatchError.exit_code,
        f"error: {tmp_path}: there is no series 'ovs/9'\nhint: known are: {NAME}\n",
    )
