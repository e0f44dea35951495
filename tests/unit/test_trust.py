"""Who else could write to what root runs and listens on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap import patches
from ovs_hotswap.config import Config
from ovs_hotswap.errors import ConfigError, PatchError, ReleaseError
from ovs_hotswap.switch.release import Manifest, Releases
from ovs_hotswap.system import System
from ovs_hotswap.trust import own_directory, restrict_umask, strangers
from tests.unit.test_release import config as config

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def open_umask() -> Iterator[None]:
    """No umask, as under some init systems."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_without_a_umask_others_cannot_write(tmp_path: Path) -> None:
    restrict_umask()
    own_directory(tmp_path / "run" / "ours")
    (tmp_path / "pid").write_text("1")
    assert (tmp_path / "run" / "ours").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "run").stat().st_mode & 0o022 == 0
    assert (tmp_path / "pid").stat().st_mode & 0o777 == 0o644


def test_a_stricter_umask_stays(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        restrict_umask()
        (tmp_path / "pid").write_text("1")
    finally:
        os.umask(before)
    assert (tmp_path / "pid").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}: others could replace") as failure:
        own_directory(tmp_path)
    assert failure.value.hint == f"chmod 755 {tmp_path}"


@as_root
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        own_directory(tmp_path)


@pytest.fixture
def above(tmp_path: Path) -> Path:
    made = tmp_path / "above"
    (made / "run").mkdir(parents=True)
    return made


@pytest.mark.parametrize(("mode", "fault"), [(0o777, True), (0o757, True), (0o1777, False), (0o755, False)])
def test_who_can_write_above_a_directory_can_replace_it(above: Path, mode: int, fault: bool) -> None:
    above.chmod(mode)
    if fault:
        with pytest.raises(ConfigError, match=f"{above} can be written by everybody, so another user could replace"):
            own_directory(above / "run")
    else:
        own_directory(above / "run")


@as_root
def test_above_a_directory_owners_groups_and_links_count(above: Path) -> None:
    os.chown(above, -1, 54321)
    above.chmod(0o775)
    with pytest.raises(ConfigError, match="can be written by group 54321"):
        own_directory(above / "run")
    os.chown(above, 12345, 0)
    with pytest.raises(ConfigError, match=f"{above} belongs to user 12345"):
        own_directory(above / "run")
    os.chown(above, 0, 0)
    above.chmod(0o1777)
    (above / "link").symlink_to(above / "run")
    own_directory(above / "link")
    os.chown(above / "link", 12345, -1, follow_symlinks=False)
    with pytest.raises(ConfigError, match=f"{above}/link belongs to user 12345"):
        own_directory(above / "link")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    (made / "usr/sbin").mkdir(parents=True)
    (made / "usr/sbin/program").write_text("x")
    (made / "var/lib").mkdir(parents=True)
    (made / "tmp").mkdir()
    (made / "tmp").chmod(0o1777)
    return made


def test_a_tree_of_ones_own_is_nobody_elses(tree: Path) -> None:
    assert strangers(tree) == []


def test_what_everybody_can_write_is_named(tree: Path) -> None:
    (tree / "usr/sbin/program").chmod(0o666)
    assert strangers(tree) == [f"{tree}/usr/sbin/program can be written by everybody"]


def test_a_directory_above_counts(tree: Path) -> None:
    tree.parent.chmod(0o777)
    assert strangers(tree) == [f"{tree.parent} can be written by everybody"]


@as_root
def test_files_and_links_of_somebody_else_are_named(tree: Path) -> None:
    (tree / "usr/lib").symlink_to("elsewhere")
    os.chown(tree / "usr/lib", 12345, -1, follow_symlinks=False)
    os.chown(tree / "var/lib", 12345, -1)  # no code
    (tree / "etc/polkit-1").mkdir(parents=True)
    os.chown(tree / "etc/polkit-1", 996, -1)  # a user of the system
    os.chown(tree / "usr/sbin/program", -1, 54321)
    (tree / "usr/sbin/program").chmod(0o664)
    assert set(strangers(tree)) == {
        f"{tree}/usr/lib belongs to user 12345",
        f"{tree}/usr/sbin/program can be written by group 54321",
    }


def test_a_tree_that_others_can_write_to_is_no_release(config: Config, tree: Path) -> None:
    (tree / "usr/sbin").chmod(0o777)
    with pytest.raises(ReleaseError, match=r"run as root, and .*/usr/sbin can be written by everybody"):
        Releases(config, System()).add("x", from_directory=tree)
    assert not (config.releases_dir / "x").exists()


def test_what_others_can_write_to_is_no_release_any_more(config: Config, tree: Path) -> None:
    """A user who could write an entry would decide what root runs."""
    entry = config.releases_dir / "x"
    entry.mkdir(parents=True)
    (entry / "release.json").write_text(Manifest(adopted=str(tree)).model_dump_json())
    with pytest.raises(ReleaseError, match="is missing"):
        Releases(config, System()).get("x")
    (tree / "usr").chmod(0o777)
    with pytest.raises(ReleaseError, match=f"believed by root, and {tree}/usr can be written by everybody"):
        Releases(config, System()).get("x")
    (tree / "usr").chmod(0o755)
    config.releases_dir.chmod(0o777)
    for use in (Releases(config, System()).get, Releases(config, System()).remove):
        with pytest.raises(ReleaseError, match=f"{config.releases_dir} can be written by everybody"):
            use("x")
    assert Releases(config, System()).list()[1].error is not None


@as_root
def test_root_does_not_patch_a_tree_of_somebody_else(tree: Path) -> None:
    os.chown(tree / "usr", 12345, -1)
    with pytest.raises(PatchError, match="root would write where others can put links"):
        patches.apply(tree, None, System())  # type: ignore[arg-type]  # it is not looked at
