"""The trees of Debian that tests start from. Each is made with debootstrap once and kept in ``CACHE``.

`make test` runs this module beside `make packages`: what one of them does on a single core leaves the other one free.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ovs_hotswap.config import Config
from ovs_hotswap.model import Release
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.system import System
from tools.packages.buildtree import BuildTree
from tools.packages.debian import Apt

CACHE = Path(os.environ.get("OVS_HOTSWAP_TEST_CACHE", "/var/cache/ovs-hotswap"))
SUITES = ("bookworm", "trixie")
# What a hypervisor has, beside the packages of a release: none of it is in a release tree.
_HYPERVISOR = (
    "systemd-sysv", "dbus", "iproute2", "procps", "qemu-system-x86", "busybox-static", "ethtool", "needrestart",
)  # fmt: skip


def _releases(system: System) -> Releases:
    instances = {side: {"pmd_cores": [0], "uplink_devargs": f"eth_af_packet0,iface=vf-{side}"} for side in "ab"}
    tables = {"overlay": str(CACHE / "overlay.toml"), "state_dir": str(CACHE), "instances": instances}
    return Releases(Config.model_validate(tables), system)


def trixie(system: System) -> Release:
    """Debian 13's Open vSwitch."""
    return _releases(system).add("trixie", "trixie", print)


def clean(suite: str, system: System) -> Release:
    """A clean distribution with what a hypervisor has."""
    return _releases(system).add(f"clean-{suite}", suite, print, extra_packages=_HYPERVISOR)


def root(suite: str, system: System) -> Path:
    """The directory of ``clean``."""
    return Path(str(clean(suite, system).root))


def bare(system: System) -> Path:
    """A Debian 12 with nothing but apt."""
    with tempfile.TemporaryDirectory() as directory:
        tree = BuildTree(CACHE / "clean-machine", {}, Apt(Path(directory), system).mirror, system)
    tree.make(print)
    return tree.path


def main() -> None:
    system = System()
    trixie(system)
    for suite in SUITES:
        clean(suite, system)
    bare(system)


if __name__ == "__main__":
    main()
