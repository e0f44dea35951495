"""An upgrade and the way back on a host that Neutron's Open vSwitch agent programs: the agent does not take either for
a restart of the switch, and hardly a packet is lost.

By default the bridges have the agent's flows, and a small controller asks what the agent asks. With
``OVS_HOTSWAP_NEUTRON`` (``make neutron``) the agent and the server of Debian run, and a port that is made after the
upgrade has to work.
"""

from __future__ import annotations

import os

import pytest

from ovs_hotswap.model import Release
from ovs_hotswap.system import System
from tests.support import stock_neutron_tables as tables
from tests.support.lab_bed import SHORT_SOAK
from tests.support.stock_drive import Operator, differences, programmed, without_own
from tests.support.stock_host import StockHost
from tests.support.stock_neutron import PACKAGES, RESTARTED, Neutron
from tests.support.waiting import eventually

MOST = 20  # packets: the machine is busy with other tests
ROUNDS = int(os.environ.get("OVS_HOTSWAP_STOCK_ROUNDS", "1"))  # `make soak-hosts`: the way back as well
pytestmark = pytest.mark.timeout(300)


def test_the_flows_of_the_agent_pass_over_and_back(system: System, tree_release: Release) -> None:
    with StockHost(system, bridge="neutron") as host:
        operator = Operator(host, SHORT_SOAK)
        operator.make_ready(tree_release)
        assert operator.ask("check")["ready"]
        before = programmed(host)
        asked = len(tables.asked(host)[tables.identity(host, "br-int")])
        for command in (("upgrade", "--release", "tree"), ("rollback",))[: 2 if ROUNDS > 1 else 1]:
            with host.traffic() as traffic:
                assert operator.ask(*command)["committed"]
                eventually(lambda: connected(host), lambda: "the bridges do not connect to the controller")
            print(traffic.judgement.text())
            assert differences(without_own(before), without_own(programmed(host))) == []
            assert traffic.judgement.faults_beyond(MOST) == []
        answers = tables.asked(host)
        assert set(answers) == {tables.identity(host, bridge) for bridge in tables.BRIDGES}
        assert set(answers[tables.identity(host, "br-int")][asked:]) == {1}, "an empty table 23 is a restart to it"


def connected(host: StockHost) -> bool:
    return set(host.vsctl("--bare", "--columns=is_connected", "list", "controller").split()) == {"true"}


@pytest.mark.skipif(PACKAGES is None, reason="`make neutron` runs it")
def test_neutrons_agent_carries_on(system: System, tree_release: Release) -> None:
    with StockHost(system, bridge="neutron-agent", guests=3, later=1) as host:
        neutron, operator = Neutron(host), Operator(host, SHORT_SOAK)
        operator.make_ready(tree_release)
        assert operator.ask("check")["ready"]
        before = programmed(host)
        with host.traffic() as traffic:
            assert operator.ask("upgrade", "--release", "tree")["committed"]
            after = programmed(host)
            eventually(lambda: settled(neutron, 1), lambda: neutron.log("agent"), 30)
        print(traffic.judgement.text())
        assert traffic.judgement.faults_beyond(MOST) == []
        assert differences(without_own(before), without_own(after)) == []
        with host.traffic() as traffic:
            host.plug("vm3")
        assert traffic.judgement.faults_beyond(MOST) == []
        # A guest that booted on the new release uses a feature that the old one lacks.
        host.unplug("vm3")
        with host.traffic() as traffic:
            assert operator.ask("rollback")["committed"]
            eventually(lambda: settled(neutron, 2), lambda: neutron.log("agent"), 30)
        print(traffic.judgement.text())
        assert traffic.judgement.faults_beyond(MOST) == []
        assert RESTARTED not in neutron.log("agent")


def settled(neutron: Neutron, times: int) -> bool:
    """Whether the agent has looked at its ports again, which it does when the database's connection has ended."""
    _, *rounds = neutron.log("agent").split("was just re-created")
    return len(rounds) == times and "cleanup stale flows" in rounds[-1]
