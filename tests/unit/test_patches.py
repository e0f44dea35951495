"""The series tool on tiny trees: what is verified, what is applied, what is refused, and what a crash leaves."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import BusyError, HotswapError, PatchError, StateUnknown
from ovs_hotswap.patches.rules import Marker, State, contradictions, lint
from ovs_hotswap.patches.series import Kind, parse_index, parse_manifest, parse_patch, safe_path
from ovs_hotswap.patches.store import Store, Stored
from ovs_hotswap.patches.tree import MARKER, STAGE, Tree
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
Subject: [PATCH] ovs: {purpose}

Why it is so.

Upstream-Status: not sent
Test: tests/unit/test_patches.py (this, and that), tests/upstream.at
---
"""
MIDDLE = BEFORE["lib/a.c"].replace("three\n", "three\nand a half\n")
NOTHING = "0" * 10
X = "diff --git a/x b/x\nindex 0123456789..9876543210 100644\n"


def name(text: str) -> str:
    """As git-hash-object(1) names a file with this text."""
    return hashlib.sha1(f"blob {len(text)}\0{text}".encode()).hexdigest()[:10]


def of(path: str, before: str, after: str, hunks: str) -> str:
    """A patch of one file that is there before and after."""
    head = f"diff --git a/{path} b/{path}\nindex {name(before)}..{name(after)} 100644\n"
    return f"{head}--- a/{path}\n+++ b/{path}\n{hunks}"


FIRST = of("lib/a.c", BEFORE["lib/a.c"], MIDDLE, "@@ -3,0 +4 @@\n+and a half\n") + (
    f"diff --git a/new/deep/b.c b/new/deep/b.c\nnew file mode 100644\nindex {NOTHING}..{name('new' + chr(10))}\n"
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


def write_series(root: Path, patches: dict[str, str] = PATCHES, manifest: dict[str, str] = MANIFEST) -> Path:
    directory = root / "patches" / NAME
    directory.mkdir(parents=True, exist_ok=True)
    head = "# component: ovs\n# upstream: 3.1.0\n# unpacked-by: tar xf ovs.tar\n"
    (directory / "series").write_text(head + "".join(f"{name}\n" for name in patches))
    (directory / "manifest").write_text("".join(f"{digest}  {path}\n" for path, digest in manifest.items()))
    for name, diff in patches.items():
        (directory / name).write_text(MAIL.format(purpose=f"do {name}") + diff)
    return directory


def write_tree(path: Path) -> Path:
    for name, text in BEFORE.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    (path / "run.sh").chmod(0o750)
    return path


def contents(tree: Path) -> dict[str, str]:
    """The files of a tree, without the marker. A directory that is empty counts, with no text."""
    return {
        str(path.relative_to(tree)): path.read_text() if path.is_file() else ""
        for path in tree.rglob("*")
        if path.name != MARKER and (path.is_file() or not any(path.iterdir()))
    }


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    write_series(tmp_path)
    return Store(tmp_path).load(NAME)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree")


def load(tmp_path: Path, diff: str, manifest: dict[str, str]) -> Stored:
    write_series(tmp_path, {"0001-x.patch": diff}, manifest)
    return Store(tmp_path).load(NAME)


# --------------------------------------------------------------------------------------------------- what a series says


def test_a_patch_is_read() -> None:
    patch = parse_patch(
        "0002-second.patch", MAIL.format(purpose="a purpose\n that is folded") + SECOND + "-- \n2.39.2\n"
    )
    assert (patch.purpose, patch.why) == ("ovs: a purpose that is folded", "Why it is so.")
    assert (patch.status, patch.tests) == (
        "not sent",
        ("tests/unit/test_patches.py (this, and that)", "tests/upstream.at"),
    )
    assert [(change.path, change.kind, change.added, change.removed, change.context) for change in patch.changes] == [
        ("lib/a.c", Kind.MODIFIED, 1, 1, 4),
        ("lib/old.c", Kind.DELETED, 0, 1, 0),
        ("run.sh", Kind.MODIFIED, 1, 0, 0),
    ]
    assert (patch.added, patch.upstream_lines) == (2, 6)


def test_lines_of_a_hunk_are_not_taken_for_headers() -> None:
    diff = X + "--- a/x\n+++ b/x\n@@ -1,0 +2,3 @@\n+diff --git a/y b/y\n++++ b/../y\n+@@ -1 +1 @@\n"
    (change,) = parse_patch("p", MAIL + diff).changes
    assert (change.path, change.added) == ("x", 3)


def test_an_index_is_read() -> None:
    index = parse_index("# component: ovs\n# upstream: 3.1.0 (Debian)\n# unpacked-by: x: y\n\n0001-a.patch\n", "series")
    assert (index.component, index.upstream, index.unpacked_by) == ("ovs", "3.1.0 (Debian)", "x: y")
    assert index.patches == ("0001-a.patch",)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# component: ovs\n# upstream: 1\n", "no `# unpacked-by:` line"),
        ("../0001-a.patch\n", "is not the name of a patch"),
        ("/0001-a.patch\n", "is not the name of a patch"),
        ("0001-a.patch\n0001-a.patch\n", "listed twice"),
    ],
)
def test_a_faulty_index_is_refused(text: str, fault: str) -> None:
    with pytest.raises(PatchError, match=fault):
        parse_index(text, "series")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"{'0' * 63}  a\n", "manifest:1: neither"),
        (f"{'0' * 64} a\n", "manifest:1: neither"),
        ("absent  a\nabsent  a\n", "manifest:2: a is listed twice"),
        ("absent  b\nabsent  a\n", "not sorted"),
        ("absent  ../a\n", "not the path of a file"),
    ],
)
def test_a_faulty_manifest_is_refused(text: str, fault: str) -> None:
    with pytest.raises(PatchError, match=fault):
        parse_manifest(text, "manifest")


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a b", "a\\b", "a\nb", ".git/config", "a/.GIT/x",
     MARKER, f"{STAGE}/old/a", '"a\\303"'],
)  # fmt: skip
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(PatchError, match="is not the path of a file that a patch may touch"):
        safe_path(path, "here")


@pytest.mark.parametrize(
    ("diff", "fault"),
    [
        ("diff --git a/../x b/../x\n--- a/../x\n+++ b/../x\n@@ -1,0 +2 @@\n+y\n", "not the path"),
        ("diff --git a/x b/y\nrename from x\nrename to y\n", "renames no file"),
        (X + "--- a/x\n+++ b/../y\n@@ -1,0 +2 @@\n+y\n", r"expected '\+\+\+ b/x'"),
        (X + "--- a/y\n+++ b/x\n@@ -1,0 +2 @@\n+y\n", "expected '--- a/x'"),
        (X + "new file mode 120000\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+/etc/passwd\n", "regular files only"),
        (X + "GIT binary patch\nliteral 3\n", "does not say 'GIT binary patch'"),
        (X + "--- a/x\n+++ b/x\n@@ -1,2 +1,3 @@\n y\n", "cut short"),
        (X + "--- a/x\n+++ b/x\n@@ -1,0 +2 @@\n-y\n+z\n", "longer than it says"),
        (X + "--- a/x\n+++ b/x\n@@ -1,0 +2 @@\n+y\n+z\n", "unexpected line"),
        (X + "--- a/x\n+++ b/x\n@@ -1,0 +2 @@\n+y\n" + X + "--- a/x\n+++ b/x\n@@ -9,0 +9 @@\n+y\n", "x occurs twice"),
        (X, "nothing of x is changed"),
        ("diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,0 +2 @@\n+y\n", "no `index` line of x"),
    ],
)  # fmt: skip
def test_patches_that_are_refused(diff: str, fault: str) -> None:
    with pytest.raises(PatchError, match=fault):
        parse_patch("0001-x.patch", MAIL + diff)


def test_a_series_is_found_where_it_is(tmp_path: Path) -> None:
    write_series(tmp_path)
    qemu = tmp_path / "qemu-patches" / "7.2"
    qemu.mkdir(parents=True)
    (qemu / "series").write_text("")
    assert Store(tmp_path).names() == (NAME, "qemu/7.2")
    for name in ("ovs/9", "../ovs/3.1.0", "patches/../ovs/3.1.0"):
        with pytest.raises(PatchError, match="there is no series") as caught:
            Store(tmp_path).load(name)
        assert caught.value.hint == f"known are: {NAME}, qemu/7.2"
    with pytest.raises(PatchError, match="there is no series") as caught:
        Store(tmp_path / "nowhere").load(NAME)
    assert caught.value.hint == "name a directory that has series with --patches"


def test_a_patch_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    path = write_series(tmp_path) / "0001-first.patch"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PatchError, match="not a regular file"):
        Store(tmp_path).load(NAME)


# --------------------------------------------------------------------------------------------------------------- rules


def test_a_good_series_has_no_faults(stored: Stored) -> None:
    files = [path.name for path in stored.directory.iterdir()]
    assert list(lint(stored.series, files, {"tests/upstream.at"})) == []


@pytest.mark.parametrize(
    ("manifest", "fault"),
    [
        ({**MANIFEST, "x": "0" * 64}, "the manifest lists x, which no patch touches"),
        ({path: MANIFEST[path] for path in sorted(MANIFEST) if path != "run.sh"},
         "0002-second.patch touches run.sh, which is not in the manifest"),
        ({**MANIFEST, "new/deep/b.c": "0" * 64}, "0001-first.patch: new/deep/b.c is created, but is there already"),
        ({**MANIFEST, "lib/a.c": "absent"}, "0001-first.patch: lib/a.c is modified, but is not there"),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_its_patches(tmp_path: Path, manifest: dict[str, str], fault: str) -> None:
    write_series(tmp_path, manifest=manifest)
    stored = Store(tmp_path).load(NAME)
    assert f"{NAME}: {fault}" in list(contradictions(stored.series))
    with pytest.raises(PatchError, match=fault):
        Tree(write_tree(tmp_path / "tree"), System()).verify(stored)


def test_what_the_rules_find(tmp_path: Path) -> None:
    directory = write_series(tmp_path, {"0002-x.patch": FIRST}, dict(list(MANIFEST.items())[0:3:2]))
    (directory / "0002-x.patch").write_text(
        "Subject: [PATCH] Something\n\n\n---\n" + SECOND.partition("diff --git a/run")[0]
    )
    (directory / "0009-y.patch").write_text("")
    series = Store(tmp_path).load(NAME).series
    faults = [fault.removeprefix(f"{NAME}: ") for fault in lint(series, os.listdir(directory), ())]
    assert faults == [
        "0002-x.patch touches lib/old.c, which is not in the manifest",
        "the manifest lists new/deep/b.c, which no patch touches",
        "0009-y.patch is not listed in the series",
        "the patches are not numbered from 0001 in their order",
        "0002-x.patch: the subject is not `component: purpose`",
        "0002-x.patch: does not say why",
        "0002-x.patch: no Upstream-Status",
        "0002-x.patch: no Test",
    ]


def test_a_test_that_is_not_there_and_context_where_none_may_be(tmp_path: Path) -> None:
    old = tmp_path / "patches" / "ovs" / "2.9.0"
    write_series(tmp_path).rename(old)
    series = Store(tmp_path).load("ovs/2.9.0").series
    assert list(lint(series, (), ())) == [
        "ovs/2.9.0: 0001-first.patch: there is no tests/unit/test_patches.py (this, and that)",
        "ovs/2.9.0: 0002-second.patch: there is no tests/unit/test_patches.py (this, and that)",
        "ovs/2.9.0: 0002-second.patch: 4 lines of context, where none may be",
    ]


# -------------------------------------------------------------------------------------------------------------- verify


def test_verify_changes_nothing(tree: Path, stored: Stored) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tree, *tree.rglob("*"))}
    said: list[str] = []
    outcome = Tree(tree, System()).verify(stored, said.append)
    assert (outcome.state, outcome.changed) == (State.PRISTINE, tuple(MANIFEST))
    assert said == [
        "4 files are as the manifest says",
        "0001-first.patch applies exactly",
        "0002-second.patch applies exactly",
    ]
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
        ("new/deep/b.c", _make, "new/deep/b.c is there already"),
    ],
)
def test_another_tree_is_refused(
    tree: Path, stored: Stored, path: str, act: Callable[[Path], object], fault: str
) -> None:
    act(tree / path)
    before = contents(tree)
    for method in (Tree(tree, System()).verify, Tree(tree, System()).apply):
        with pytest.raises(PatchError, match=f"is not the tree that series {NAME} is for: {fault}$") as caught:
            method(stored)
        assert caught.value.hint == "it is for 3.1.0, unpacked by: tar xf ovs.tar"
    assert contents(tree) == before


def test_a_change_elsewhere_in_the_tree_is_none_of_the_series(tree: Path, stored: Stored) -> None:
    _append(tree / "other.c")
    Tree(tree, System()).verify(stored)


def a_c(hunk: str) -> str:
    after = BEFORE["lib/a.c"].replace("four", "4")
    return of("lib/a.c", BEFORE["lib/a.c"], after, hunk)


@pytest.mark.parametrize(
    ("diff", "fault"),
    [
        (a_c("@@ -4 +4 @@\n-vier\n+4\n"), "error:"),
        (a_c("@@ -3,3 +3,3 @@\n drei\n-four\n+4\n five\n"), "error:"),  # the context is another: fuzz
        (a_c("@@ -3,2 +3,2 @@\n-four\n+4\n six\n"), "error:"),
        (a_c("@@ -5,0 +6 @@\n+4\n"), "exactly: lib/a.c is not what its author had after it"),
        (
            of("lib/a.c", "one\n", "one\ntwo\n", "@@ -1,0 +2 @@\n+two\n"),
            "exactly: lib/a.c is not what its author had before it",
        ),
    ],
)
def test_what_does_not_apply_exactly_is_refused(tmp_path: Path, tree: Path, diff: str, fault: str) -> None:
    with pytest.raises(PatchError, match=f"0001-x.patch does not apply.* {fault}"):
        Tree(tree, System()).verify(load(tmp_path, diff, {"lib/a.c": MANIFEST["lib/a.c"]}))
    assert contents(tree) == BEFORE


QUOTED = "--- a/run.sh\n+++ b/run.sh\n@@ -1 +1,2 @@\n #!/bin/sh\n+rm -rf /\n"  # git needs no `diff --git` line


def test_a_hunk_outside_of_the_diff_is_not_applied(tmp_path: Path, tree: Path) -> None:
    """Quoted in the message, or behind the signature: what is not checked is not given to git."""
    directory = write_series(tmp_path)
    path = directory / "0001-first.patch"
    path.write_text(path.read_text().replace("Why it is so.", QUOTED) + "-- \n2.39.2\n\n" + QUOTED)
    Tree(tree, System()).apply(Store(tmp_path).load(NAME))
    assert contents(tree) == AFTER


def test_a_deletion_without_context_is_exact(tmp_path: Path, tree: Path) -> None:
    after = BEFORE["lib/a.c"].replace("three\n", "")
    diff = of("lib/a.c", BEFORE["lib/a.c"], after, "@@ -3 +2,0 @@\n-three\n")
    Tree(tree, System()).apply(load(tmp_path, diff, {"lib/a.c": MANIFEST["lib/a.c"]}))
    assert (tree / "lib/a.c").read_text() == after


# --------------------------------------------------------------------------------------------------------------- apply


def test_apply_once_and_again(tree: Path, stored: Stored) -> None:
    subject = Tree(tree, System())
    assert subject.apply(stored).state is State.PRISTINE
    assert contents(tree) == AFTER
    assert (tree / "run.sh").stat().st_mode & 0o7777 == 0o750
    said: list[str] = []
    for method in (subject.apply, subject.verify):
        assert method(stored, said.append).state is State.APPLIED
    assert said == [f"series {NAME} is applied already; its 4 files are as it left them"] * 2
    assert contents(tree) == AFTER


def test_a_patched_file_that_was_changed_since_is_told(tree: Path, stored: Stored) -> None:
    Tree(tree, System()).apply(stored)
    _append(tree / "lib/a.c")
    with pytest.raises(StateUnknown, match=f"series {NAME} was applied, and since then: lib/a.c is another version"):
        Tree(tree, System()).apply(stored)


def test_another_state_of_the_series_is_not_applied_on_top(tmp_path: Path, tree: Path, stored: Stored) -> None:
    Tree(tree, System()).apply(stored)
    write_series(tmp_path, {"0001-first.patch": FIRST}, dict(list(MANIFEST.items())[0:3:2]))
    with pytest.raises(PatchError, match="another state of it is applied already"):
        Tree(tree, System()).apply(Store(tmp_path).load(NAME))
    assert contents(tree) == AFTER


@pytest.mark.parametrize("place", [".", "deep/in/it"])
@pytest.mark.parametrize("variables", [(), ("GIT_DIR",), ("GIT_DIR", "GIT_WORK_TREE")])
def test_a_tree_inside_somebodys_repository(
    tmp_path: Path, stored: Stored, place: str, variables: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "--quiet", str(repository)], check=True)
    tree = write_tree(repository / place)
    monkeypatch.setenv("TMPDIR", str(repository))  # the copies lie in it too
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(repository)
    values = {"GIT_DIR": repository / ".git", "GIT_WORK_TREE": repository}
    for name in variables:  # as in a hook
        monkeypatch.setenv(name, str(values[name]))
    Tree(tree, System()).apply(stored)
    assert {path: text for path, text in contents(tree).items() if not path.startswith(".git/")} == AFTER


def test_settings_of_the_user_do_not_matter(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitconfig").write_text("[apply]\nignoreWhitespace = change\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tree / "run.sh").write_text("a  b\nc\n")
    diff = of("run.sh", "a  b\nc\n", "a  b\nx\nc\n", "@@ -1,2 +1,3 @@\n a b\n+x\n c\n")
    with pytest.raises(PatchError, match="does not apply: error:"):
        Tree(tree, System()).verify(load(tmp_path, diff, {"run.sh": sha256("a  b\nc\n")}))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_patched_files_keep_their_owner(tree: Path, stored: Stored) -> None:
    for path in (tree / "run.sh", tree / "lib/a.c"):
        os.chown(path, 12, 34)
    Tree(tree, System()).apply(stored)
    found = [(tree / name).stat() for name in ("run.sh", "lib/a.c")]
    assert [(each.st_uid, each.st_gid) for each in found] == [(12, 34)] * 2


def test_a_link_in_the_way_is_refused(tmp_path: Path, tree: Path, stored: Stored) -> None:
    outside = tmp_path / "outside"
    (tree / "lib").rename(outside)
    (tree / "lib").symlink_to(outside)
    with pytest.raises(PatchError, match=r"lib is not a directory"):
        Tree(tree, System()).apply(stored)
    (tree / "lib").unlink()
    outside.rename(tree / "lib")
    (tree / "run.sh").rename(outside)
    (tree / "run.sh").symlink_to(outside)
    with pytest.raises(PatchError, match=r"run\.sh is not a regular file"):
        Tree(tree, System()).apply(stored)
    assert outside.read_text() == BEFORE["run.sh"]


@pytest.mark.parametrize("name", [MARKER, STAGE])
def test_a_link_in_place_of_the_tools_own_files_is_refused(
    tmp_path: Path, tree: Path, stored: Stored, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tree / name).symlink_to(outside)
    with pytest.raises(PatchError, match=f"{name} is not a"):
        Tree(tree, System()).apply(stored)
    assert list(outside.iterdir()) == []


def renames(until: int, error: OSError) -> Callable[[Path, Path], None]:
    """os.rename, but the one after ``until`` fails."""
    left = [until]

    def rename(source: Path, target: Path) -> None:
        if not left[0]:
            raise error
        left[0] -= 1
        source.rename(target)

    return rename


@pytest.mark.parametrize("until", [0, 1, 2])
def test_a_rename_that_fails_puts_everything_back(tree: Path, stored: Stored, until: int) -> None:
    with pytest.raises(PatchError, match="No space left on device; every file was put back"):
        Tree(tree, System(), renames(until, OSError(28, "No space left on device"))).apply(stored)
    assert contents(tree) == BEFORE
    assert not (tree / MARKER).exists()
    Tree(tree, System()).apply(stored)
    assert contents(tree) == AFTER


_CRASH = """
import os, sys
from pathlib import Path
from ovs_hotswap.patches.store import Store
from ovs_hotswap.patches.tree import Tree
from ovs_hotswap.system import System

left = int(sys.argv[3])

def rename(source, target):
    global left
    if not left:
        os._exit(9)
    left -= 1
    os.rename(source, target)

Tree(Path(sys.argv[1]), System(), rename).apply(Store(Path(sys.argv[2])).load("ovs/3.1.0"))
"""


@pytest.mark.parametrize("until", [0, 1, 2])
def test_a_crash_half_way_is_told_and_put_back(tmp_path: Path, tree: Path, stored: Stored, until: int) -> None:
    argv = [sys.executable, "-c", _CRASH, str(tree), str(tmp_path), str(until)]
    assert subprocess.run(argv, check=False).returncode == 9
    before = contents(tree)
    with pytest.raises(StateUnknown, match=f"an apply of series {NAME} was interrupted half-way"):
        Tree(tree, System()).verify(stored)
    assert contents(tree) == before
    said: list[str] = []
    Tree(tree, System()).apply(stored, said.append)
    assert said[0] == f"an earlier apply of series {NAME} was interrupted: its files are put back"
    assert contents(tree) == AFTER


@pytest.mark.parametrize("lost", ["lib/a.c", f"{STAGE}/old/lib/a.c"])
def test_half_way_and_changed_since_is_not_touched(tmp_path: Path, tree: Path, stored: Stored, lost: str) -> None:
    subprocess.run([sys.executable, "-c", _CRASH, str(tree), str(tmp_path), "2"], check=False)
    _append(tree / lost)
    before = contents(tree)
    with pytest.raises(StateUnknown, match=r"cannot be put back: lib/a\.c: not as it was left"):
        Tree(tree, System()).apply(stored)
    assert contents(tree) == before


def test_half_way_with_a_link_leads_nowhere(tmp_path: Path, tree: Path, stored: Stored) -> None:
    """A tree may come with a marker and a stage of somebody's making."""
    subprocess.run([sys.executable, "-c", _CRASH, str(tree), str(tmp_path), "2"], check=False)
    outside = tmp_path / "outside"
    outside.write_text("precious\n")
    (tree / STAGE / "copy").symlink_to(outside)
    Tree(tree, System()).apply(stored)
    assert (outside.read_text(), contents(tree)) == ("precious\n", AFTER)


def test_what_ended_before_it_changed_anything_is_swept(tree: Path, stored: Stored) -> None:
    (tree / STAGE / "new").mkdir(parents=True)
    Tree(tree, System()).apply(stored)
    assert contents(tree) == AFTER


def test_one_apply_at_a_time(tree: Path, stored: Stored) -> None:
    descriptor = os.open(tree, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(BusyError):
        Tree(tree, System()).apply(stored)
    os.close(descriptor)
    Tree(tree, System()).apply(stored)


@pytest.mark.parametrize(
    "change",
    [
        {"before": {"../x": None}, "after": {"../x": None}},
        {"directories": ["/tmp"]},
        {"after": {}},
        {"format": 2},
        {"before": 5},
    ],
)
def test_a_marker_that_no_apply_wrote_is_refused(tree: Path, stored: Stored, change: dict[str, object]) -> None:
    marker = json.loads(Marker(NAME, "0", False, {"lib/a.c": None}, {"lib/a.c": None}, ()).to_json())
    (tree / MARKER).write_text(json.dumps({**marker, **change}))
    with pytest.raises(HotswapError):
        Tree(tree, System()).apply(stored)
    assert contents(tree) == BEFORE


# --------------------------------------------------------------------------------------------------------- command line


def run(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = main.run(["patches", *map(str, arguments)], App(Output(out=out, err=err)))
    return status, out.getvalue(), err.getvalue()


def test_the_commands(tmp_path: Path, tree: Path) -> None:
    write_series(tmp_path)
    options = ("--series", NAME, "--patches", tmp_path)
    status, out, _ = run("list", *options, "--json")
    (document,) = json.loads(out)["series"]
    assert (status, document["series"], document["files"]) == (0, NAME, sorted(MANIFEST))
    assert (document["added"], document["upstream_lines"]) == (4, 6)
    assert [patch["name"] for patch in document["patches"]] == list(PATCHES)
    status, out, _ = run("list", "--patches", tmp_path)
    assert f"{NAME}: for 3.1.0; 4 files, 4 lines of its own, 6 of the upstream's\n" in out
    assert "0002-second.patch  ovs: do 0002-second.patch  not sent" in out
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
    _append(tree / "run.sh")
    assert run("apply", tree, *options)[0] == StateUnknown.exit_code
    status, _, err = run("apply", tree, "--series", "ovs/9", "--patches", tmp_path)
    assert (status, err) == (
        PatchError.exit_code,
        f"error: {tmp_path}: there is no series 'ovs/9'\nhint: known are: {NAME}\n",
    )
