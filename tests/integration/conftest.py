"""Fixtures for tests on the real Open vSwitch and DPDK: huge pages, configurations in directories of their own,
releases and instances. What a test made is ended after it, and the test fails if anything of it is still there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyroute2 import netns

from ovs_hotswap.config import Config
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.pmd import pmd_sleep_key
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.system import System
from tests.support import trees
from tests.support.broker_bed import make_bed as make_bed
from tests.support.service_bed import host as host

HUGE_PAGES = 512  # of 2 MiB: two instances that take all of ``INSTANCE_MB``, two labs, and room for guests
INSTANCE_MB = 256
MakeConfig = Callable[..., Config]
MakeInstance = Callable[[Config, Side], Instance]
RunInstance = Callable[[Config, Side, Release], Instance]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that needs the tree waits until it is made."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session", autouse=True)
def root_and_huge_pages() -> Iterator[None]:
    """Integration tests need root and huge pages; pages that were added are given back."""
    if os.geteuid() != 0:
        pytest.skip("integration tests need root")
    knob = Path("/proc/sys/vm/nr_hugepages")
    before = int(knob.read_text())
    if before < HUGE_PAGES:
        knob.write_text(str(HUGE_PAGES))
    yield
    if before < HUGE_PAGES:
        knob.write_text(str(before))


@pytest.fixture(scope="session")
def system() -> System:
    return System()


def instances_table(**changes: object) -> dict[str, dict[str, object]]:
    """The ``instances`` table: a core for each side where there are two; ``changes`` apply to both sides."""
    cores = (0, 1) if (os.cpu_count() or 1) > 1 else (0, 0)
    return {
        side: {
            "pmd_cores": [core],
            "memory_mb": INSTANCE_MB,
            "uplink_devargs": f"eth_af_packet0,iface=vf-{side}",
            **changes,
        }
        for side, core in zip("ab", cores, strict=True)
    }


def config_in(directory: Path, **changes: object) -> Config:
    """A configuration with everything below ``directory``; ``changes`` replace or add top-level tables."""
    tables: dict[str, object] = {
        "overlay": str(directory / "overlay.toml"),
        "run_dir": str(directory / "run"),
        "state_dir": str(directory / "state"),
        "instances": instances_table(),
    }
    return Config.model_validate({**tables, **changes})


@pytest.fixture
def make_config() -> Iterator[MakeConfig]:
    """Makes configurations, each in a short directory of its own (socket paths are limited), removed afterwards."""
    made: list[tuple[Path, Config]] = []

    def make(**changes: object) -> Config:
        directory = Path(tempfile.mkdtemp(prefix="ovsh-"))
        config = config_in(directory, **changes)
        config.run_dir.mkdir()
        made.append((directory, config))
        return config

    yield make
    try:
        for _, config in made:
            assert remains(config) == []
    finally:
        for directory, _ in made:
            shutil.rmtree(directory)


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    return make_config()


@pytest.fixture
def make_instance(make_config: MakeConfig, system: System) -> Iterator[MakeInstance]:
    """Makes instances that are stopped afterwards, however the test ended."""
    made: list[Instance] = []

    def make(config: Config, side: Side) -> Instance:
        instance = Instance(config, side, system)
        made.append(instance)
        return instance

    yield make
    for instance in made:
        instance.stop()


@pytest.fixture
def run_instance(make_instance: MakeInstance) -> RunInstance:
    """Makes and starts instances whose idle PMD threads sleep: busy ones starve everything else on two cores."""

    def run(config: Config, side: Side, release: Release) -> Instance:
        instance = make_instance(config, side)
        instance.start(release)
        with instance.database() as database:
            database.set_other_config({pmd_sleep_key(release.ovs_version): "200"})
        return instance

    return run


def remains(config: Config) -> list[str]:
    """Processes, namespaces, mounts and huge page files that belong to ``config`` and are there."""
    own = str(config.run_dir)
    system = System()
    found = [
        f"process {pid}: {' '.join(line)}" for pid in system.pids() if own in " ".join(line := system.cmdline(pid))
    ]
    names = {config.namespace(side) for side in Side}
    found += [f"namespace {name}" for name in netns.listnetns() if name in names]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line.split()[4]}" for line in mounts if own in line or str(config.state_dir) in line]
    pages = Path("/dev/hugepages")
    found += [str(path) for path in pages.glob("*") if any(path.name.startswith(name) for name in names)]
    return found


@pytest.fixture(scope="session")
def host_release(system: System) -> Release:
    with tempfile.TemporaryDirectory() as directory:
        return Releases(config_in(Path(directory)), system).get("host")


@pytest.fixture(scope="session")
def tree_release(system: System) -> Release:
    """Debian 13 as a tree. ``OVS_HOTSWAP_TEST_TREE`` names a tree to use in its place."""
    given = os.environ.get("OVS_HOTSWAP_TEST_TREE")
    if given is None:
        return trees.trixie(system)
    with tempfile.TemporaryDirectory() as directory:
        releases = Releases(config_in(Path(directory)), system)
        return releases.add("trixie", from_directory=Path(given))
