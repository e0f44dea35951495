"""An upgrade of the distribution's switch on a host that others program, and the way back, under its traffic.

Nothing was prepared on the host. What others do between the two, a new rule and a new port, reaches the new instance.
``OVS_HOTSWAP_STOCK_ROUNDS``: how many hosts of each kind; if it is more than one, each packet counts, but where the
instances have no memif (docs/limits.md).
"""

from __future__ import annotations

import os

import pytest

from ovs_hotswap.model import Release
from ovs_hotswap.system import System
from tests.support.lab_bed import SHORT_SOAK
from tests.support.stock_drive import Operator, differences, programmed, reprogram, without_own
from tests.support.stock_host import BridgeKind, StockHost
from tests.support.stock_ovn import Ovn

ROUNDS = int(os.environ.get("OVS_HOTSWAP_STOCK_ROUNDS", "1"))
# Otherwise test_stock_docs.py has the kind "normal".
KINDS = [*([("normal", True), ("pipeline", True)] if ROUNDS > 1 else []), ("pipeline", False), ("ovn", True)]
MOST = 30  # packets that may be lost or doubled; none on a machine that does nothing else


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize(("bridge", "memif"), KINDS)
def test_there_and_back_without_a_lost_packet(
    system: System, tree_release: Release, bridge: BridgeKind, memif: bool, number: int
) -> None:
    """Whether the instances can exchange frames over a memif, or only over a pair of veth devices."""
    with StockHost(system, bridge=bridge, guests=2, memif=memif) as host:
        operator = Operator(host, SHORT_SOAK)
        operator.make_ready(tree_release)
        if not memif:
            host.add_mirrors(31)  # one VM passes before the cut, and the other one after it
        assert operator.ask("check")["ready"]
        before, south, stock = programmed(host), southbound(host), host.switch_pid
        devices = host.run(["ls", "/sys/class/net"])
        with host.traffic() as traffic:
            there = operator.ask("upgrade", "--release", "tree")
            print(there)
            looked = operator.ask("diagnose", timeout=30.0)
            after = programmed(host)
            version = host.appctl("version")
            running = host.switch_pid
            reprogram(host)
            host.vsctl("add-port", "br-int", "probe", "--", "set", "interface", "probe", "type=internal")
            changed = programmed(host)
            if not memif:
                host.install_memif()  # without which the distribution's release cannot be started
            back = operator.ask("rollback")
        print(traffic.judgement.text())
        assert looked["findings"] == []
        assert any("others program" in limit for limit in looked["limits"])
        assert there["committed"]
        assert back["committed"]
        assert tree_release.ovs_version in version
        assert running not in (stock, None)
        assert differences(without_own(before), without_own(after)) == []
        assert differences(without_own(changed), without_own(programmed(host))) == []
        assert southbound(host) >= south
        assert set(host.run(["ls", "/sys/class/net"]).split()) - {"probe"} == set(devices.split())
        assert traffic.judgement.faults_beyond(0 if ROUNDS > 1 and memif else MOST) == []


def southbound(host: StockHost) -> set[str]:
    return Ovn(host).southbound() if host.kind == "ovn" else set()
