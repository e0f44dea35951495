"""Making, adopting, checking and removing releases on a machine that is not there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import ovs_hotswap
from ovs_hotswap.config import Active, Config
from ovs_hotswap.errors import BusyError, ReleaseError
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.paths import InstancePaths, InstanceRecord
from ovs_hotswap.switch.release import (
    OVSDB_SERVER,
    OVSDB_TOOL,
    PLUGINS,
    SCHEMA,
    VSWITCHD,
    Manifest,
    Releases,
    _has_plugin,
    packages,
    parse_versions,
    programs,
)
from tests.unit.fake_system import FakeSystem

VERSION = "ovs-vswitchd-dpdk (Open vSwitch) 3.5.0\nDPDK 24.11.4\n"


def make_tree(root: Path) -> None:
    libraries = [
        f"usr/lib/x86_64-linux-gnu/dpdk/pmds-25.0/librte_{plugin.replace('-', '_')}.so.25" for plugin in PLUGINS
    ]
    for path in (VSWITCHD, OVSDB_SERVER, OVSDB_TOOL, SCHEMA, *libraries):
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


class Builder(FakeSystem):
    """``debootstrap`` makes a tree of empty files, ``--version`` answers; ``failure`` is what debootstrap says."""

    def __init__(self) -> None:
        super().__init__(self._run)
        self.failure: str | None = None
        self.interrupt = False
        self.version = (0, VERSION)

    def _run(self, argv: Sequence[str]) -> tuple[int, str]:
        if "debootstrap" not in argv:
            return self.version
        tree = Path(argv[-1])
        (tree / "half").mkdir(parents=True)
        if self.interrupt:
            raise KeyboardInterrupt
        if self.failure is not None:
            return 1, f"I: Retrieving InRelease\nE: {self.failure}\n"
        make_tree(tree)
        return 0, "I: Retrieving adduser 3.152\nI: Base system installed successfully.\n"

    @property
    def built(self) -> int:
        return sum("debootstrap" in argv for argv in self.ran)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    instance = {"pmd_cores": [0], "uplink_devargs": "0000:03:02.0"}
    tables = {"overlay": "/x", "state_dir": str(tmp_path / "s"), "instances": {"a": instance, "b": instance}}
    return Config.model_validate({**tables, "run_dir": f"/tmp/ovsh-{tmp_path.name[-20:]}"})


@pytest.fixture
def system() -> Builder:
    return Builder()


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    made = tmp_path / "keyring.gpg"
    made.touch()
    return made


@pytest.fixture
def releases(config: Config, system: Builder, keyring: Path) -> Releases:
    return Releases(config, system, keyring)


def test_what_is_installed_must_be_signed(releases: Releases, system: Builder, keyring: Path) -> None:
    releases.add("new", "trixie")
    (make,) = (argv for argv in system.ran if "debootstrap" in argv)
    assert {"--force-check-gpg", f"--keyring={keyring}"} <= set(make)


def test_without_a_keyring_nothing_is_installed(releases: Releases, system: Builder, keyring: Path) -> None:
    keyring.unlink()
    with pytest.raises(ReleaseError, match="is missing, so nothing that is installed could be trusted") as failure:
        releases.add("new", "trixie")
    assert failure.value.hint == "apt-get install debian-archive-keyring"
    assert system.built == 0


def names(config: Config) -> list[str]:
    return sorted(path.name for path in config.releases_dir.iterdir() if path.name != ".lock")


def test_packages_carry_the_abi_of_the_suite() -> None:
    assert packages("trixie")[0] == "openvswitch-switch-dpdk"
    assert "librte-mempool-ring25" in packages("trixie")
    assert "librte-net-memif23" in packages("bookworm")
    with pytest.raises(ReleaseError, match="suite 'potato' is not known") as caught:
        packages("potato")
    assert caught.value.hint == "known are: bookworm, trixie"


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        (VERSION, ("3.5.0", "24.11.4")),
        ("ovs-vswitchd (Open vSwitch) 2.9.0\nDPDK 17.11.0\n", ("2.9.0", "17.11.0")),
        ("ovs-vswitchd (Open vSwitch) 3.5.0\n", None),
        ("", None),
    ],
)
def test_versions(text: str, versions: tuple[str, str] | None) -> None:
    assert parse_versions(text) == versions


def test_a_tree_is_made_once(config: Config, system: Builder, releases: Releases) -> None:
    said: list[str] = []
    release = releases.add("new", "trixie", said.append)
    tree = config.releases_dir / "new/tree"
    assert release == Release("new", str(tree), "3.5.0", "24.11.4")
    assert releases.get("new") == release
    assert said == [
        "Retrieving adduser 3.152",
        "Base system installed successfully.",
        f"release {release.label} is ready",
    ]
    assert names(config) == ["new"]
    assert releases.add("new", "trixie", said.append) == release
    assert said[-1] == f"release {release.label} is there already"
    assert system.built == 1


def test_debootstrap_runs_in_namespaces_of_its_own(system: Builder, releases: Releases) -> None:
    releases.add("new", "trixie", extra_packages=("librte-net-iavf25",))
    (argv,) = (argv for argv in system.ran if "debootstrap" in argv)
    assert {"--mount", "--pid", "--kill-child", "--pdeathsig"} <= set(argv)
    assert argv[-4:-1] == (
        "--variant=minbase",
        f"--include={','.join(packages('trixie'))},librte-net-iavf25",
        "trixie",
    )


def test_another_recipe_under_the_same_name_is_refused(config: Config, system: Builder, releases: Releases) -> None:
    releases.add("new", "trixie")
    for wanted in ({"suite": "bookworm"}, {"suite": "trixie", "extra_packages": ("strace",)}):
        with pytest.raises(ReleaseError, match="release new exists and was made otherwise: from Debian trixie"):
            releases.add("new", **wanted)
    assert system.built == 1


def test_a_failure_leaves_nothing(config: Config, system: Builder, releases: Releases) -> None:
    system.failure = "Failed getting release file http://deb.example.org/"
    with pytest.raises(ReleaseError, match="debootstrap trixie failed: Failed getting release file") as caught:
        releases.add("new", "trixie")
    assert "mirror" in str(caught.value.hint)
    assert names(config) == []
    system.failure = None
    assert releases.add("new", "trixie").name == "new"


def test_an_interrupt_leaves_nothing(config: Config, system: Builder, releases: Releases) -> None:
    system.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        releases.add("new", "trixie")
    assert names(config) == []


def test_what_a_killed_one_left_is_swept(config: Config, releases: Releases) -> None:
    for left in (".build-old", ".remove-older"):
        make_tree(config.releases_dir / left / "tree")
    releases.add("new", "trixie")
    assert names(config) == ["new"]


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ((127, "cannot execute"), "ovsdb-server does not run: cannot execute"),
        ((0, "ovs-vswitchd (Open vSwitch) 3.5.0\n"), "is built without DPDK"),
    ],
)
def test_a_tree_whose_programs_do_not_do_is_not_kept(
    config: Config, system: Builder, releases: Releases, version: tuple[int, str], text: str
) -> None:
    system.version = version
    with pytest.raises(ReleaseError, match=text):
        releases.add("new", "trixie")
    assert names(config) == []


def test_an_adopted_tree_stays_where_it_is(config: Config, releases: Releases, tmp_path: Path) -> None:
    make_tree(tmp_path / "mine")
    release = releases.add("mine", from_directory=tmp_path / "mine")
    assert release.root == str(tmp_path / "mine")
    releases.remove("mine")
    assert names(config) == []
    assert (tmp_path / "mine" / SCHEMA.lstrip("/")).exists()


def make_prefix(prefix: Path) -> None:
    for path in ("sbin/ovs-vswitchd", "sbin/ovsdb-server", "bin/ovsdb-tool", "share/openvswitch/vswitch.ovsschema"):
        (prefix / path).parent.mkdir(parents=True, exist_ok=True)
        (prefix / path).touch()


def test_a_prefix_runs_on_the_hosts_libraries(
    config: Config, system: Builder, releases: Releases, tmp_path: Path
) -> None:
    prefix = tmp_path / "opt/ovs-3.5.0"
    make_prefix(prefix)
    release = releases.add("patched", from_directory=prefix)
    assert release == Release("patched", None, "3.5.0", "24.11.4", str(prefix))
    assert releases.get("patched") == release
    assert programs(release).vswitchd == str(prefix / "sbin/ovs-vswitchd")
    assert not any("chroot" in argv for argv in system.ran)
    releases.remove("patched")
    assert names(config) == []
    assert (prefix / "sbin/ovs-vswitchd").exists()


def test_a_prefix_that_a_process_runs_from_is_not_removed(system: Builder, releases: Releases, tmp_path: Path) -> None:
    make_prefix(tmp_path / "mine")
    program = tmp_path / "mine/sbin/ovs-vswitchd"
    shutil.copy("/bin/sleep", program)
    releases.add("mine", from_directory=tmp_path / "mine")
    with subprocess.Popen([program, "60"]) as process:
        try:
            system.processes[process.pid] = ["ovs-vswitchd"]
            with pytest.raises(ReleaseError, match=f"release mine is in use by process {process.pid}"):
                releases.remove("mine")
        finally:
            process.kill()
    releases.remove("mine")


@pytest.mark.parametrize("path", ["sbin/ovsdb-server", "bin/ovsdb-tool", "share/openvswitch/vswitch.ovsschema"])
def test_an_incomplete_prefix_names_what_is_missing(releases: Releases, tmp_path: Path, path: str) -> None:
    make_prefix(tmp_path / "mine")
    (tmp_path / "mine" / path).unlink()
    with pytest.raises(ReleaseError, match=f"release mine: .*{path} is missing"):
        releases.add("mine", from_directory=tmp_path / "mine")


def test_the_drivers_of_a_prefix_are_beside_its_dpdk(
    config: Config, system: Builder, releases: Releases, tmp_path: Path
) -> None:
    make_prefix(tmp_path / "ovs")
    dpdk = tmp_path / "dpdk/lib"
    loaded = f"\tlibrte_eal.so.23 => {dpdk}/librte_eal.so.23 (0x00007f0000000000)\n"
    system.handler = lambda argv: (0, loaded if argv[0] == "ldd" else VERSION)
    with pytest.raises(ReleaseError, match=r"release mine: DPDK's drivers bus-pci, .*, net-virtio are missing"):
        releases.add("mine", from_directory=tmp_path / "ovs")
    (dpdk / "dpdk/pmds-23.0").mkdir(parents=True)
    for plugin in PLUGINS:
        (dpdk / f"dpdk/pmds-23.0/librte_{plugin.replace('-', '_')}.so.23").touch()
    assert releases.add("mine", from_directory=tmp_path / "ovs").prefix == str(tmp_path / "ovs")


@pytest.mark.parametrize(("abi", "there"), [("23", True), ("25", False), ("", True)])
def test_drivers_of_another_dpdk_do_not_count(tmp_path: Path, abi: str, there: bool) -> None:
    """After a dist-upgrade those of the older one are still installed."""
    drivers = tmp_path / "usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0"
    drivers.mkdir(parents=True)
    (drivers / "librte_net_vhost.so.23.0").touch()
    assert _has_plugin(tmp_path, "usr/lib/*/dpdk", "net-vhost", abi) is there


def test_the_versions_that_are_installed_are_known_although_drivers_are_missing(
    system: Builder, releases: Releases
) -> None:
    """After a dist-upgrade, an instance that is started has the new version, and must not be programmed as the old."""
    assert releases.installed() == Release("host", None, "3.5.0", "24.11.4")
    system.version = (127, "error while loading shared libraries: librte_eal.so.25")
    with pytest.raises(ReleaseError, match="does not run"):
        releases.installed()


@pytest.mark.parametrize("path", [VSWITCHD, OVSDB_TOOL, SCHEMA])
def test_an_incomplete_tree_names_what_is_missing(releases: Releases, tmp_path: Path, path: str) -> None:
    make_tree(tmp_path / "mine")
    (tmp_path / "mine" / path.lstrip("/")).unlink()
    with pytest.raises(ReleaseError, match=f"release mine: .*{path} is missing"):
        releases.add("mine", from_directory=tmp_path / "mine")


def test_a_release_that_broke_is_listed_with_its_fault(config: Config, system: Builder, releases: Releases) -> None:
    releases.add("new", "trixie")
    releases.add("old", "bookworm")
    shutil.rmtree(config.releases_dir / "new/tree/usr/lib/x86_64-linux-gnu/dpdk")
    listed = {entry.name: entry for entry in releases.list()}
    assert list(listed) == ["host", "new", "old"]
    assert listed["new"].release is None
    assert "bus-pci" in str(listed["new"].error)
    assert listed["new"].source == "Debian trixie"
    assert listed["old"].release == releases.get("old")


@pytest.mark.parametrize("name", ["", "host", "UP", "a/b", "..", ".hidden", "x" * 33])
def test_names_that_cannot_be(releases: Releases, name: str) -> None:
    with pytest.raises(ReleaseError, match="cannot name a release"):
        releases.add(name, "trixie")


def test_one_source_exactly(releases: Releases, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="either from a suite or from a directory"):
        releases.add("new")
    with pytest.raises(ReleaseError, match="either from a suite or from a directory"):
        releases.add("new", "trixie", from_directory=tmp_path)
    with pytest.raises(ReleaseError, match="not the name of a Debian package"):
        releases.add("new", "trixie", extra_packages=("a,b",))


def test_a_release_that_an_instance_uses_is_not_removed(config: Config, releases: Releases) -> None:
    releases.add("new", "trixie")
    record = InstancePaths.of(config, Side.B).record
    record.parent.mkdir(parents=True)
    try:
        used = InstanceRecord(
            release="new", root="/x", ovs_version="3", dpdk_version="2", started=1.0, starter=1
        )  # fmt: skip
        record.write_text(used.model_dump_json())
        with pytest.raises(ReleaseError, match="release new is in use by instance b") as caught:
            releases.remove("new")
        assert caught.value.hint == "`ovs-hotswap instance stop b`"
        record.unlink()
        releases.remove("new")
        assert names(config) == []
    finally:
        shutil.rmtree(config.run_dir)


def test_a_release_that_is_started_after_a_boot_is_not_removed(config: Config, releases: Releases) -> None:
    """Between a boot and `instance restore` nothing runs of it."""
    releases.add("new", "trixie")
    config.restore_file.write_text(Active(side=Side.B, release="new").model_dump_json())
    with pytest.raises(ReleaseError, match="release new is what instance b is started with after a boot"):
        releases.remove("new")
    config.restore_file.unlink()
    releases.remove("new")
    assert names(config) == []


def test_what_is_not_there_or_not_ours_is_not_removed(releases: Releases) -> None:
    with pytest.raises(ReleaseError, match="no release 'new'"):
        releases.remove("new")
    with pytest.raises(ReleaseError, match="the host's package is not removed here"):
        releases.remove("host")


def test_a_manifest_that_cannot_be_read_is_named(config: Config, releases: Releases) -> None:
    releases.add("new", "trixie")
    manifest = config.releases_dir / "new/release.json"
    manifest.write_text('{"format": 2}')
    with pytest.raises(ReleaseError, match=r"new/release\.json: cannot be read"):
        releases.get("new")


def test_one_change_at_a_time(config: Config, system: Builder, releases: Releases) -> None:
    with system.lock(config.releases_dir / ".lock", "adding or removing a release"):
        with pytest.raises(BusyError, match="adding or removing a release is already under way"):
            releases.add("new", "trixie")


@pytest.mark.parametrize("name", ["", "..", "../elsewhere", "a/b", "a\0b", "n" * 300])
def test_a_release_is_looked_for_among_the_releases_alone(config: Config, releases: Releases, name: str) -> None:
    elsewhere = config.releases_dir.parent / "elsewhere"
    elsewhere.mkdir(parents=True)
    config.releases_dir.mkdir(exist_ok=True)
    (elsewhere / "release.json").write_text(Manifest(adopted="/").model_dump_json())
    for use in (releases.get, releases.remove):
        with pytest.raises(ReleaseError, match="cannot name a release"):
            use(name)
    assert elsewhere.exists()


def test_no_hint_for_an_installed_host_names_a_target_of_the_source_tree() -> None:
    sources = Path(ovs_hotswap.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "make setup" in path.read_text()] == []
