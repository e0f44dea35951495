"""A test bed of the patch series: a switch of the patched packages, or the host's package, and front ends of guests.

Each test runs on both and asserts what each does: the patched switch the new thing, the stock one the old.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.ovsdb import BridgeSpec, PortSpec
from ovs_hotswap.switch.pmd import pmd_iterations, pmd_rxqs, pmd_sleep_key
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.switch.tunnel import Tunnels
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from tests.support.vhost_qemu import FakeQemu
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
_POLL_S = 0.002
PACKAGES = (ROOT / "build/packages/root/opt/ovs-hotswap", Path("/opt/ovs-hotswap"))  # as built; as installed
BRIDGE_MAC = "52:54:00:aa:00:01"


def prefix(component: str) -> Path:
    """The newest revision of ``component`` (``ovs-3.1.0``). ``OVS_HOTSWAP_PACKAGES`` names a directory to look in
    before all others. Fails the test if there is none."""
    given = os.environ.get("OVS_HOTSWAP_PACKAGES")
    for directory in (*([Path(given)] if given else []), *PACKAGES):
        found = sorted(directory.glob(f"{component}+hotswap*"), key=lambda path: (len(path.name), path.name))
        if found:
            return found[-1]
    pytest.fail(f"{component}+hotswap* is neither built nor installed: `make packages` builds it")


def patched(config: Config, system: System) -> Release:
    return Releases(config, system).add("patched", from_directory=prefix("ovs-3.1.0"))


class PatchedBed:
    """One running instance with a bridge, and the front ends of VMs that its ports connect to.

    ``is_patched``: the packages' programs run, else the host's.
    """

    def __init__(self, stack: contextlib.ExitStack, config: Config, instance: Instance, *, is_patched: bool) -> None:
        self._stack = stack
        self._config = config
        self.instance = instance
        self.is_patched = is_patched
        self.tunnels = Tunnels(instance.paths, config.bridge)
        self.ports: dict[str, PortSpec] = {}
        self.apply()

    def apply(self) -> None:
        """Bring the bridge to ``ports``."""
        with self.instance.database() as database:
            database.apply(BridgeSpec(self._config.bridge, BRIDGE_MAC, tuple(self.ports.values())))
            database.wait_ports([self._config.bridge, *self.ports], 20)

    def configure(self, **values: str | None) -> None:
        """Set ``other_config`` (``_`` for ``-``), and return when the switch has taken it up."""
        with self.instance.database() as database:
            database.set_other_config({key.replace("_", "-"): value for key, value in values.items()})
            eventually(lambda: not database.state().pending, "the configuration is taken up")

    def appctl(self, command: str, *arguments: str, timeout: float = 20) -> str:
        return appctl(self.instance.paths.vswitchd_ctl, command, *arguments, timeout=timeout)

    def socket(self, name: str) -> Path:
        return self._config.run_dir / f"{name}.sock"

    def add_port(self, name: str) -> None:
        options = {"vhost-server-path": str(self.socket(name))}
        self.ports[name] = PortSpec(name, "dpdkvhostuserclient", 11 + len(self.ports), options)
        self.apply()

    def add_tunnel(self, name: str) -> None:
        options = {"key": "flow", "remote_ip": "flow", "local_ip": "172.31.0.1"}
        self.ports[name] = PortSpec(name, "vxlan", 2, options)
        self.apply()

    def vm(self, name: str, pairs: int = 1) -> FakeQemu:
        """A VM whose guest runs, on a port of its own; its queues are polled."""
        qemu = self._stack.enter_context(FakeQemu(self.socket(name), pairs=pairs))
        self.add_port(name)
        qemu.boot()
        self.wait_polled(name, pairs)
        return qemu

    def maps(self, vm: FakeQemu) -> bool:
        """Whether the switch has the guest's memory mapped."""
        inode = str(os.fstat(vm.memory.fd).st_ino)
        return any(line.split()[4] == inode for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines())

    def wait_polled(self, name: str, pairs: int = 1) -> None:
        """Return when PMD threads have all queues of the port in their lists, enabled."""

        def polled() -> bool:
            queues = pmd_rxqs(self.instance.paths.vswitchd_ctl).get(name, ())
            return len(queues) == pairs and all(queue.enabled for queue in queues)

        eventually(polled, f"{name} is polled", poll_s=_POLL_S)

    def iterations(self) -> int:
        """Iterations of the PMD thread so far."""
        return sum(pmd_iterations(self.instance.paths.vswitchd_ctl).values())

    def wait_iterations(self, number: int) -> None:
        """Return when the PMD thread has polled all its queues ``number`` times more."""
        end = self.iterations() + number
        eventually(lambda: self.iterations() >= end, f"{number} iterations", poll_s=_POLL_S)

    @property
    def pid(self) -> int:
        pid = self.instance.pid()
        assert pid is not None
        return pid


@pytest.fixture(params=["patched", "stock"])
def bed(request: pytest.FixtureRequest, config: Config, system: System) -> Iterator[PatchedBed]:
    is_patched = request.param == "patched"
    release = patched(config, system) if is_patched else Releases(config, system).get("host")
    instance = Instance(config, Side.A, system)
    with contextlib.ExitStack() as stack:
        stack.callback(instance.stop)
        instance.start(release)
        with instance.database() as database:
            database.set_other_config({pmd_sleep_key(release.ovs_version): "200"})
        yield PatchedBed(stack, config, instance, is_patched=is_patched)
