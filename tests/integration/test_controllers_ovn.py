"""A real ovn-controller passes from the distribution's switch of a stock host to another one and back, without a
restart. The second switch has a copy of the database and the same flows; the guest stays on the first one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ovs_hotswap.clone.changes import MAX_PORT
from ovs_hotswap.controllers import ovn, remotes
from ovs_hotswap.controllers.repoint import repoint
from ovs_hotswap.controllers.well_known import WellKnown
from ovs_hotswap.model import Side
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System
from tests.support.stock_host import BRIDGE, RUN_DIR, StockHost, devargs
from tests.support.stock_ovn import GROUP, Ovn
from tests.support.waiting import eventually
from tests.unit.test_instance import configuration

WAIT_S = 30.0


@dataclass
class Bed:
    host: StockHost
    central: Ovn
    paths: WellKnown
    old: InstancePaths
    new: InstancePaths
    system: System

    def controller(self) -> ovn.OvnController:
        return next(each for each in ovn.find(self.system) if each.pid == self.central.controller_pid)

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
    """The second switch beside the first one, with a copy of its database and its flows."""
    host, new = bed.host, bed.new
    new.run_dir.mkdir(parents=True)
    host.run(["sh", "-ec", f"ovsdb-client backup unix:{RUN_DIR}/db.sock >{new.db_file}"])
    host.run(["ip", "link", "set", "ovs-netdev", "name", "ovs-netdev.a"])
    daemon = ["-vconsole:off", "--no-chdir", "--detach"]
    environment = ["env", f"OVS_RUNDIR={new.run_dir}"]
    host.run([*environment, "ovsdb-server", str(new.db_file), f"--remote=punix:{new.db_socket}", *daemon,
              f"--unixctl={new.ovsdb_ctl}", f"--pidfile={new.ovsdb_pid}"])  # fmt: skip
    remotes.hold(new.db_socket)
    change = ["set", "Open_vSwitch", ".", 'other_config:dpdk-extra="--no-pci --in-memory --file-prefix=second"',
              f"external_ids:rundir={new.run_dir}"]  # fmt: skip
    for name in host.vsctl("--bare", "--columns=name", "list", "interface").split():
        if host.ofport(name) <= MAX_PORT:  # that of a bridge's own port is not to be asked for
            change += ["--", "set", "interface", name, f"ofport_request={host.ofport(name)}"]
    for bridge in host.vsctl("list-br").split():
        number = host.vsctl("get", "bridge", bridge, "datapath_id")
        change += ["--", "set", "bridge", bridge, f"other_config:datapath-id={number}"]
    for guest in host.guests:
        change += ["--", "set", "interface", guest.name, f"options:vhost-server-path={new.run_dir}/{guest.name}.sock"]
    change += ["--", "set", "interface", "up", f"options:dpdk-devargs={devargs('b')}"]
    vsctl = ["ovs-vsctl", f"--db=unix:{new.db_socket}", "--timeout=20"]
    host.run([*vsctl, "--no-wait", *change])
    host.run([*environment, "ovs-vswitchd", f"unix:{new.db_socket}", *daemon, f"--unixctl={new.vswitchd_ctl}",
              f"--pidfile={new.vswitchd_pid}", f"--log-file={new.log}"])  # fmt: skip
    assert host.run([*vsctl, "get", "Open_vSwitch", ".", "dpdk_initialized"]).strip() == "true"
    for bridge in host.vsctl("list-br").split():
        flows = OpenFlow(bed.system, bed.old.run_dir / f"{bridge}.mgmt").dump()
        OpenFlow(bed.system, new.run_dir / f"{bridge}.mgmt").replace(flows)


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
    assert traffic.judgement.faults() == []
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
