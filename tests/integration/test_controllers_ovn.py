"""A real ovn-controller passes from the distribution's switch of a stock host to another one and back, without a
restart. The second switch has a copy of the database and the same flows; the guest stays on the first one."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ovs_hotswap.clone import database
from ovs_hotswap.clone.changes import Changes
from ovs_hotswap.clone.follow import Follower
from ovs_hotswap.controllers import ovn
from ovs_hotswap.controllers.repoint import repoint
from ovs_hotswap.controllers.well_known import WellKnown
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System
from tests.support.stock_host import BRIDGE, RUN_DIR, SCHEMA, SWITCH_MB, StockHost, devargs
from tests.support.stock_ovn import GROUP, Ovn
from tests.support.waiting import eventually
from tests.unit.test_instance import configuration

WAIT_S = 30.0
REPOSITORY = Path(__file__).parents[2]
FIND = """
import json
from ovs_hotswap.controllers.ovn import find
from ovs_hotswap.system import System
print(json.dumps([(each.pid, str(each.control), each.database) for each in find(System())]))
"""


@dataclass
class Bed:
    host: StockHost
    central: Ovn
    paths: WellKnown
    old: InstancePaths
    new: InstancePaths
    system: System

    def controller(self) -> ovn.OvnController:
        """The host's controller, found by a process in the host's namespaces."""
        (found,) = json.loads(self.host.run(["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-c", FIND]))
        assert found[0] == self.central.controller_pid
        return ovn.OvnController(found[0], Path(found[1]), found[2])

    def flows(self, paths: InstancePaths) -> list[str]:
        return OpenFlow(self.system, paths.run_dir / f"{BRIDGE}.mgmt").dump()

    def pass_to(self, new: InstancePaths) -> list[str]:
        """Pass ovn-controller over as an upgrade does, and return the clients that were led over."""
        old = self.new if new is self.old else self.old
        controller, canary = ovn.Ovn(self.controller()), ovn.Canary(self.system, new.run_dir / f"{BRIDGE}.mgmt")
        before = {paths: ovn.wait_of(paths.db_socket) for paths in (old, new)}
        for paths, value in before.items():
            if (wanted := ovn.needed_wait(value, len(self.flows(old)))) is not None:
                ovn.set_wait(paths.db_socket, wanted)
        controller.pause()
        assert controller.paused()
        canary.plant()
        dropped = repoint(self.paths, self.system, old, new)
        assert canary.present(), "a paused controller programs nothing"
        controller.resume()
        ovn.await_programmed(controller, canary, WAIT_S, self.system)
        for paths, value in before.items():
            ovn.set_wait(paths.db_socket, value)
            assert ovn.wait_of(paths.db_socket) == value
        return [client.program for client in dropped]


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Bed]:
    with StockHost(system, bridge="ovn", guests=1) as host:
        paths = WellKnown(host.outside(RUN_DIR), host.outside(RUN_DIR) / ".ovs-hotswap")
        paths.keep()
        new = InstancePaths.of(configuration(host.directory), Side.B)
        old = dataclasses.replace(
            new, run_dir=paths.kept, db_socket=paths.kept / "db.sock", ovsdb_pid=paths.kept / "ovsdb-server.pid",
            vswitchd_pid=paths.kept / "ovs-vswitchd.pid",
            vswitchd_ctl=paths.kept / f"ovs-vswitchd.{host.switch_pid}.ctl",
            ovsdb_ctl=paths.kept / f"ovsdb-server.{host.database_pid}.ctl",
        )  # fmt: skip
        made = Bed(host, Ovn(host), paths, old, new, system)
        start_copy(made)
        yield made


def start_copy(bed: Bed) -> None:
    """The second switch beside the first one: an exact copy, but for its devices."""
    host, new = bed.host, bed.new
    new.run_dir.mkdir(parents=True)
    host.run(["ip", "link", "set", "ovs-netdev", "name", "ovs-netdev.a"])
    host.run(["ovsdb-tool", "create", str(new.db_file), SCHEMA])
    daemon = ["env", f"OVS_RUNDIR={new.run_dir}", "nice"]
    options = ["-vconsole:off", "--no-chdir", "--detach"]
    host.run([*daemon, "ovsdb-server", str(new.db_file), f"--remote=punix:{new.db_socket}", *options,
              f"--unixctl={new.ovsdb_ctl}", f"--pidfile={new.ovsdb_pid}"])  # fmt: skip
    options_of = {guest.name: {"vhost-server-path": f"{new.run_dir}/{guest.name}.sock"} for guest in host.guests}
    options_of["up"] = {"dpdk-devargs": devargs("b")}
    changes = Changes(
        other_config={"dpdk-init": "true", "dpdk-socket-mem": str(SWITCH_MB), "dpdk-lcore-mask": "0x1",
                      "pmd-cpu-mask": "0x1", "dpdk-extra": "--no-pci --in-memory --file-prefix=second"},
        interfaces={name: {"options": keys} for name, keys in options_of.items()},
    )  # fmt: skip
    database.copy(bed.old, new, Release("host", None, "3.1.0", "22.11.1"), changes)
    host.run([*daemon, "ovs-vswitchd", f"unix:{new.db_socket}", *options, f"--unixctl={new.vswitchd_ctl}",
              f"--pidfile={new.vswitchd_pid}", f"--log-file={new.log}"])  # fmt: skip
    follower = Follower(bed.system, bed.old, new, changes)
    eventually(lambda: not follower.round(), lambda: f"{follower.equal()}", WAIT_S)


def test_it_passes_over_and_back_and_nothing_in_the_southbound_database_changes(bed: Bed) -> None:
    before, pid = bed.central.southbound(), bed.central.controller_pid
    had = bed.flows(bed.old)
    with bed.host.traffic() as traffic:
        for number, (target, other) in enumerate(((bed.new, bed.old), (bed.old, bed.new))):
            assert "ovn-controller" in bed.pass_to(target)
            left = bed.flows(other)
            match = f"outport == @{GROUP} && ip4 && udp.dst == {7000 + number}"
            bed.central.nbctl("--type=port-group", "acl-add", GROUP, "to-lport", "1100", match, "allow-related")
            found = str(7000 + number)
            eventually(lambda: found in str(bed.flows(target)), lambda: "the new ACL has not come")  # noqa: B023
            assert bed.flows(other) == left, "the other switch is not programmed any longer"
            assert bed.host.appctl("version")
            assert "br-int" in bed.host.vsctl("show")
    print(traffic.judgement.text())
    assert traffic.judgement.faults_beyond(30) == []
    assert bed.central.southbound() == before
    assert bed.central.controller_pid == pid
    assert set(had) <= set(bed.flows(bed.old))


def test_check_finds_it_in_order_but_for_the_wait_that_is_not_set(bed: Bed) -> None:
    controller = bed.controller()
    assert controller.control is not None
    assert controller.database == "unix:/var/run/openvswitch/db.sock"
    assert ovn.wait_of(bed.old.db_socket) is None
    (finding,) = ovn.findings([controller], Path("/run/openvswitch"), {})
    assert ovn.WAIT in finding.text
