"""VMs that are plugged while an upgrade is under way on a host that others program."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ovs_hotswap.model import Release
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until
from tests.support.stock_drive import Operator
from tests.support.stock_host import BridgeKind, StockHost

SOAK = "[upgrade]\nsoak_s = 6.0\n"


@pytest.mark.parametrize("bridge", ["ovn"])
def test_a_vm_that_is_plugged_between_the_cut_and_the_commit_has_its_network(
    system: System, tree_release: Release, bridge: BridgeKind
) -> None:
    """os-vif writes to the database of the old instance then, and the port has to be on the new one in the end."""
    with StockHost(system, bridge=bridge, guests=3, later=1) as host:
        operator = Operator(host, SOAK)
        operator.make_ready(tree_release)
        argv = [sys.executable, "-P", "-m", "ovs_hotswap", "--config", str(operator.config), "--json", "upgrade",
                "--release", "tree"]  # fmt: skip
        journal = host.directory / "hotswap/state/journal/current.jsonl"
        with subprocess.Popen(host.space.entering(argv), stdout=subprocess.PIPE, text=True) as upgrade:

            def soaks() -> bool:
                return upgrade.poll() is not None or (journal.exists() and '"step":"soak"' in journal.read_text())

            assert wait_until(soaks, 60.0, system)
            assert upgrade.poll() is None
            host.begin_plugging("vm3")
            out, _ = upgrade.communicate(timeout=120)
        print(out)
        assert upgrade.returncode == 0
        report = json.loads(out)
        (repoint,) = [step for step in report["steps"] if step["name"] == "repoint"]
        assert repoint["items"].keys() == {"vm3"}  # it was taken over there, with no disconnect
        assert not [text for text in report["warnings"] if "vm3" in text]
        host.wait_boots()
        host.pings.wait_flowing(30.0)
        assert host.vsctl("get", "interface", "vm3", "type") == "dpdkvhostuserclient"
        assert {vm["name"]: vm["owner"] for vm in operator.ask("vm", "list")["vms"]} == {
            name: "b" for name in ("vm1", "vm2", "vm3")
        }
