"""The packages that `make packages` has built: on a clean Debian 12 they install, run, and leave nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.system import System
from tests.support import trees
from tools.packages.build import OUTPUT
from tools.packages.buildtree import BuildTree
from tools.packages.debian import Apt
from tools.packages.recipes import RECIPES, Recipe

PACKAGES = {recipe.name: recipe for recipe in RECIPES if recipe.summary}

# Arguments: the prefix. A switch with DPDK, without huge pages, and the ports that a hypervisor has. Open vSwitch adds
# --in-memory without the option --legacy-mem, and only the latter works with --no-huge (lib/dpdk.c, dpdk_init__).
SWITCH = r"""
set -eu
PATH=$1/bin:$1/sbin:$PATH
export OVS_RUNDIR=/tmp/switch OVS_LOGDIR=/tmp/switch OVS_DBDIR=/tmp/switch OVS_SYSCONFDIR=/tmp/switch
mkdir $OVS_RUNDIR
mount -t sysfs sysfs /sys
ovsdb-tool create /tmp/switch/conf.db "$1/share/openvswitch/vswitch.ovsschema"
ovsdb-server /tmp/switch/conf.db --remote=punix:/tmp/switch/db.sock --detach --pidfile --no-chdir
ovs-vsctl --timeout=10 --no-wait set Open_vSwitch . other_config:dpdk-init=true other_config:pmd-cpu-mask=1 \
    'other_config:dpdk-extra="--no-huge --legacy-mem -m 512 --no-pci"' other_config:pmd-maxsleep=200 \
    other_config:per-port-memory=true
ovs-vswitchd unix:/tmp/switch/db.sock --detach --pidfile --no-chdir --log-file
ovs-vsctl --timeout=60 add-br br0 -- set bridge br0 datapath_type=netdev \
    -- add-port br0 vm1 -- set interface vm1 type=dpdkvhostuserclient options:vhost-server-path=/tmp/switch/vm1.sock \
    -- add-port br0 peer -- set interface peer type=dpdk \
       'options:dpdk-devargs="net_memif0,role=server,id=0,socket=/tmp/switch/peer.sock,socket-abstract=no"'
ovs-vsctl --timeout=10 get Open_vSwitch . dpdk_initialized dpdk_version
ovs-vsctl --timeout=10 get interface vm1 error
ovs-vsctl --timeout=10 get interface peer error
ovs-appctl --timeout=10 -t ovs-vswitchd exit --cleanup
ovs-appctl --timeout=10 -t ovsdb-server exit
"""

# Arguments: the prefix. A machine that is made with its firmware and the option ROM of its network device.
MACHINE = r"""
set -eu
printf '%s\n' '{"execute": "qmp_capabilities"}' '{"execute": "query-version"}' '{"execute": "quit"}' |
    timeout 60 "$1/bin/qemu-system-x86_64" -nodefaults -no-user-config -display none -accel tcg -S \
        -machine pc,memory-backend=memory -m 64 -object memory-backend-memfd,id=memory,size=64M,share=on \
        -netdev hubport,id=network,hubid=0 -device virtio-net-pci,netdev=network -device virtio-serial-pci \
        -qmp stdio
"""


def package_file(recipe: Recipe) -> Path:
    found = sorted(OUTPUT.glob(f"{recipe.package}_*.deb"))
    if not found:
        pytest.fail("the packages are not built: `make packages`")
    (path,) = found
    return path


class Machine:
    """A Debian 12 in a directory."""

    def __init__(self, tree: BuildTree) -> None:
        self.tree = tree

    def run(self, *argv: str, network: bool = False) -> str:
        """Run a command in it; AssertionError with its output if it fails."""
        lines: list[str] = []
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        status = self.tree.run(list(argv), lines.append, environment, network=network)
        text = "\n".join(lines)
        assert status == 0, f"{argv}: exit {status}\n{text}"
        return text


@pytest.fixture(scope="module")
def machine(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A copy of a fresh Debian 12, with the packages installed."""
    files = [package_file(recipe) for recipe in PACKAGES.values()]
    directory = tmp_path_factory.mktemp("apt")
    mirror = Apt(directory, system).mirror
    path = directory / "machine"
    subprocess.run(["cp", "-a", "--reflink=auto", str(trees.bare(system)), str(path)], check=True)
    machine = Machine(BuildTree(path, {}, mirror, system))
    for file in files:
        shutil.copy(file, path / "tmp")
    machine.run("apt-get", "-q", "update", network=True)
    machine.run("apt-get", "-q", "install", "-y", "--no-install-recommends", *(f"/tmp/{file.name}" for file in files),
                network=True)  # fmt: skip
    yield machine
    machine.tree.remove()


def test_the_packages_install_side_by_side(machine: Machine) -> None:
    assert sorted(machine.run("ls", "/opt/ovs-hotswap").split()) == sorted(
        recipe.directory for recipe in PACKAGES.values()
    )
    for recipe in PACKAGES.values():
        assert machine.run("dpkg", "--verify", recipe.package) == ""
        files = machine.run("dpkg-query", "--listfiles", recipe.package).splitlines()
        outside = [path for path in files if not f"{path}/".startswith((f"{recipe.prefix}/", "/usr/share/doc/"))]
        assert set(outside) <= {"/.", "/opt", "/opt/ovs-hotswap", "/usr", "/usr/share", "/usr/share/doc"}


def test_the_switch_runs(machine: Machine) -> None:
    prefix = PACKAGES["ovs"].prefix
    said = machine.run(f"{prefix}/sbin/ovs-vswitchd", "--version").splitlines()
    assert said[0].startswith("ovs-vswitchd (Open vSwitch) 3.1.")
    assert said[1].startswith("DPDK 22.11.")
    said = machine.run("sh", "-c", SWITCH, "sh", prefix).splitlines()
    initialized, version, *errors = said[-4:]
    assert (initialized, errors) == ("true", ["[]", "[]"])
    assert version.startswith('"DPDK 22.11.')


def test_qemu_runs(machine: Machine) -> None:
    program = f"{PACKAGES['qemu'].prefix}/bin/qemu-system-x86_64"
    assert "ovs-hotswap" in machine.run(program, "-version")
    assert "vhost-user" in machine.run(program, "-netdev", "help").split()
    assert '"minor": 2, "major": 7' in machine.run("sh", "-c", MACHINE, "sh", PACKAGES["qemu"].prefix)


def test_removed_they_leave_nothing(machine: Machine) -> None:
    packages = [recipe.package for recipe in PACKAGES.values()]
    machine.run("apt-get", "-q", "purge", "-y", *packages)
    assert list(machine.tree.path.glob("opt/*")) == []  # dpkg removes directories that are empty, so /opt itself too
    assert "ovs-hotswap" not in machine.run("ls", "/usr/share/doc")
    assert "ovs-hotswap" not in machine.run("dpkg-query", "--show", "--showformat=${Package}\n")
