"""Releases: trees made with the real debootstrap, adopted trees, and what may not be removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import ReleaseError
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.release import PLUGINS, VSWITCHD, Releases
from ovs_hotswap.system import System
from tests.integration.conftest import RunInstance, remains


@pytest.fixture
def releases(config: Config, system: System) -> Releases:
    return Releases(config, system)


def names(config: Config) -> list[str]:
    """What is in the directory of releases, without its lock."""
    found = config.releases_dir.iterdir() if config.releases_dir.is_dir() else ()
    return sorted(path.name for path in found if path.name != ".lock")


def test_the_host_is_a_release(releases: Releases) -> None:
    release = releases.get("host")
    assert release.root is None
    assert release.ovs_version
    assert release.dpdk_version
    assert [entry.release for entry in releases.list()] == [release]


def test_the_tree_is_newer_than_the_host(host_release: Release, tree_release: Release) -> None:
    assert tree_release.root is not None
    assert (Path(tree_release.root) / VSWITCHD.lstrip("/")).is_file()

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    assert numbers(tree_release.ovs_version) > numbers(host_release.ovs_version)


def test_a_tree_is_adopted_once(config: Config, releases: Releases, tree_release: Release) -> None:
    root = Path(tree_release.root or "")
    said: list[str] = []
    release = releases.add("new", from_directory=root, progress=said.append)
    assert said[-1].startswith("release new (OVS ")
    assert (release.root, release.ovs_version) == (str(root), tree_release.ovs_version)
    assert releases.get("new") == release
    assert releases.add("new", from_directory=root, progress=said.append) == release
    assert said[-1].endswith("is there already")
    with pytest.raises(ReleaseError, match="release new exists and was made otherwise: from the directory"):
        releases.add("new", "trixie")
    assert [entry.name for entry in releases.list()] == ["host", "new"]
    releases.remove("new")
    assert names(config) == []
    assert (root / VSWITCHD.lstrip("/")).is_file()  # the operator's tree is left as it is
    with pytest.raises(ReleaseError, match="no release 'new'"):
        releases.get("new")


def test_a_release_in_use_is_not_removed(
    config: Config, releases: Releases, tree_release: Release, run_instance: RunInstance
) -> None:
    release = releases.add("new", from_directory=Path(tree_release.root or ""))
    instance = run_instance(config, Side.B, release)
    with pytest.raises(ReleaseError, match="release new is in use by instance b"):
        releases.remove("new")
    instance.paths.record.unlink()  # not known to us, but running
    with pytest.raises(ReleaseError, match="release new is in use by process"):
        releases.remove("new")
    assert releases.get("new") == release
    instance.stop()
    releases.remove("new")


def test_incomplete_trees_are_refused(config: Config, releases: Releases, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=f"release empty: .*{VSWITCHD} is missing"):
        releases.add("empty", from_directory=tmp_path)
    assert names(config) == []


def test_a_tree_that_broke_is_listed_with_its_fault(
    config: Config, releases: Releases, tree_release: Release, tmp_path: Path
) -> None:
    copy = tmp_path / "tree"
    subprocess.run(["cp", "-a", str(tree_release.root), str(copy)], check=True)
    releases.add("new", from_directory=copy)
    for library in copy.glob("usr/lib/*/dpdk/pmds-*/librte_mempool_ring.so.*"):
        library.unlink()
    with pytest.raises(ReleaseError, match="release new: DPDK's drivers mempool-ring are missing"):
        releases.get("new")
    (entry,) = (entry for entry in releases.list() if entry.name == "new")
    assert entry.release is None
    assert "mempool-ring" in str(entry.error)
    (copy / VSWITCHD.lstrip("/")).write_bytes(b"\x7fELF")
    assert len(PLUGINS) == 7
    releases.remove("new")


def test_debootstrap_that_fails_leaves_nothing(config: Config, releases: Releases) -> None:
    with pytest.raises(ReleaseError, match=r"debootstrap trixie failed: .*no-such-package") as caught:
        releases.add("new", "trixie", extra_packages=("no-such-package",))
    assert caught.value.hint
    assert names(config) == []
    assert remains(config) == []


_ADD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from ovs_hotswap.config import Config
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.system import System

config = Config.model_validate_json(sys.argv[1])
Releases(config, System()).add("new", "trixie", lambda text: print(text, flush=True))
"""


@pytest.mark.parametrize(("number", "act"), [(signal.SIGINT, "Retrieving"), (signal.SIGKILL, "Extracting")])
def test_an_interrupted_debootstrap_leaves_nothing(
    config: Config, releases: Releases, number: signal.Signals, act: str
) -> None:
    argv = [sys.executable, "-c", _ADD, config.model_dump_json()]
    adding = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert adding.stdout is not None
    for line in adding.stdout:
        if line.startswith(act):  # files are being written now
            break
    else:
        pytest.fail(f"debootstrap ended and had not begun with {act.lower()} a package")
    os.kill(adding.pid, number)
    adding.wait()
    adding.stdout.close()
    end = time.monotonic() + 10
    while (left := users(config)) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []
    if number == signal.SIGINT:
        assert names(config) == []
    assert [entry.name for entry in releases.list()] == ["host"]
    with pytest.raises(ReleaseError, match="is missing"):  # the next call sweeps what a killed one left
        releases.add("other", from_directory=config.run_dir)
    assert names(config) == []


def users(config: Config) -> list[str]:
    own = str(config.releases_dir)
    system = System()
    return [line for pid in system.pids() if own in (line := " ".join(system.cmdline(pid)))]
