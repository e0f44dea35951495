"""Bridges and ports programmed into running instances, and what the switch says of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.ovsdb import BridgeSpec, PortSpec, SwitchDb
from ovs_hotswap.switch.pmd import pmd_rxqs, set_vhost_log_level, vhost_log_level
from ovs_hotswap.switch.rpc import NoAnswer
from ovs_hotswap.switch.tunnel import TunnelNeighbour, Tunnels
from ovs_hotswap.system import System
from tests.integration.conftest import RunInstance
from tests.support.waiting import eventually

MAC = "52:54:00:aa:00:01"


@pytest.fixture(params=["host", "tree"])
def instance(request: pytest.FixtureRequest, config: Config, run_instance: RunInstance) -> Instance:
    return run_instance(config, Side.A, request.getfixturevalue(f"{request.param}_release"))


def vhost(config: Config, name: str, ofport: int, side: Side = Side.A) -> PortSpec:
    return PortSpec(
        name, "dpdkvhostuserclient", ofport, {"vhost-server-path": str(config.vhost_socket(side, name))}
    )  # fmt: skip


def tunnel() -> PortSpec:
    return PortSpec("vxlan", "vxlan", 2, {"key": "flow", "remote_ip": "flow", "local_ip": "172.31.0.1"})


def test_a_bridge_with_its_ports(config: Config, instance: Instance) -> None:
    spec = BridgeSpec("br0", MAC, (tunnel(), vhost(config, "vm1", 11), vhost(config, "vm2", 12)))
    with instance.database() as database:
        assert database.apply(spec)
        database.wait_ports(["vxlan", "vm1", "vm2"], 20)
        found = database.interfaces()
        assert {name: status.ofport for name, status in found.items()} == {
            "br0": 65534,
            "vxlan": 2,
            "vm1": 11,
            "vm2": 12,
        }
        assert found["vm1"].type == "dpdkvhostuserclient"
        assert found["vm1"].options == {"vhost-server-path": str(config.vhost_socket(Side.A, "vm1"))}
        assert found["vxlan"].link_state == "up"
        assert not database.apply(spec)  # already so
    queues = pmd_rxqs(instance.paths.vswitchd_ctl)
    assert {port: [entry.queue for entry in found] for port, found in queues.items()} == {"vm1": [0], "vm2": [0]}
    assert instance.paths.mgmt("br0").is_socket()


def test_ports_are_changed_added_and_removed(config: Config, instance: Instance) -> None:
    with instance.database() as database:
        database.apply(BridgeSpec("br0", MAC, (tunnel(), vhost(config, "vm1", 11), vhost(config, "vm2", 12))))
        assert database.apply(BridgeSpec("br0", MAC, (vhost(config, "vm1", 21),)))
        database.wait_ports(["vm1"], 20)
        assert {name: status.ofport for name, status in database.interfaces().items()} == {"br0": 65534, "vm1": 21}
        assert database.add_port("br0", vhost(config, "vm3", 13))
        assert not database.add_port("br0", vhost(config, "vm3", 13))
        database.wait_ports(["vm1", "vm3"], 20)
        assert database.remove_port("br0", "vm1")
        assert not database.remove_port("br0", "vm1")
        database.wait_ports(["vm3"], 20)
        assert set(database.interfaces()) == {"br0", "vm3"}
        with pytest.raises(SwitchError, match="no bridge br7 to add the port vm4 to"):
            database.add_port("br7", vhost(config, "vm4", 14))


def vsctl(instance: Instance, *words: str) -> str:
    command = ["ovs-vsctl", "--timeout=10", f"--db=unix:{instance.paths.db_socket}", *words]
    return System().run(command).stdout.strip()


def test_what_the_operator_set_stays(config: Config, instance: Instance) -> None:
    """Options, policing and ports that are not ours survive that the same, and another, specification is applied."""
    spec = BridgeSpec("br0", MAC, (tunnel(), vhost(config, "vm1", 11), vhost(config, "vm2", 12)))
    with instance.database() as database:
        database.apply(spec)
        database.wait_ports(["vm1", "vm2"], 20)
        vsctl(instance, "set", "Interface", "vm1", "options:tx-retries-max=16", "ingress_policing_rate=1000",
              "other_config:x=y", "mtu_request=1400", "--", "set", "Port", "vm1", "tag=7", "--", "add-port", "br0",
              "span0", "--", "set", "Interface", "span0", "type=internal", "ofport_request=5000", "--", "set", "Bridge",
              "br0", "other_config:mac-table-size=4096")  # fmt: skip
    number = vsctl(instance, "get", "Open_vSwitch", ".", "next_cfg")
    with instance.database() as database:
        assert not database.apply(spec)
    assert vsctl(instance, "get", "Open_vSwitch", ".", "next_cfg") == number
    with instance.database() as database:
        assert database.apply(BridgeSpec("br0", MAC, (vhost(config, "vm1", 21),)))
        database.wait_ports(["vm1"], 20)
        assert set(database.interfaces()) == {"br0", "vm1", "span0"}
    assert vsctl(instance, "get", "Interface", "vm1", "options:tx-retries-max") == '"16"'
    assert vsctl(instance, "get", "Interface", "vm1", "mtu_request", "ingress_policing_rate") == "1400\n1000"
    assert vsctl(instance, "get", "Port", "vm1", "tag") == "7"
    assert vsctl(instance, "get", "Bridge", "br0", "other_config:mac-table-size") == '"4096"'


def test_a_port_that_an_earlier_version_made_without_a_mark_is_removed(config: Config, instance: Instance) -> None:
    """It is known by its socket; one of the operator's of the same type stays."""
    spec = BridgeSpec("br0", MAC, (vhost(config, "vm1", 11), vhost(config, "vm2", 12)))
    sockets = str(Path(spec.ports[0].options["vhost-server-path"]).parent)
    with instance.database() as database:
        database.apply(spec)
        vsctl(instance, "remove", "Interface", "vm2", "external_ids", "ovs-hotswap", "--", "add-port", "br0", "own",
              "--", "set", "Interface", "own", "type=dpdkvhostuserclient",
              "options:vhost-server-path=/nowhere/own.sock")  # fmt: skip
        database.wait_ports(["vm1", "vm2", "own"], 20)
    with instance.database() as database:
        assert database.apply(BridgeSpec("br0", MAC, (vhost(config, "vm1", 11),), sockets=sockets))
        assert set(database.interfaces()) == {"br0", "vm1", "own"}


def test_a_port_gets_its_number_from_one_that_has_it_by_chance(config: Config, instance: Instance) -> None:
    with instance.database() as database:
        database.apply(BridgeSpec("br0", MAC, (vhost(config, "vm1", 1),)))
        vsctl(instance, "add-port", "br0", "span0", "--", "set", "Interface", "span0", "type=internal")
        taken = int(vsctl(instance, "get", "Interface", "span0", "ofport"))
        assert taken > 1
        database.add_port("br0", vhost(config, "vm2", taken))
        database.wait_ports(["vm1", "vm2", "span0"], 20)
        found = database.interfaces()
        assert found["vm2"].ofport == taken
        assert found["span0"].ofport not in (taken, None, -1)
        vsctl(instance, "set", "Interface", "span0", "ofport_request=77")
        database.add_port("br0", vhost(config, "vm3", 77))
        with pytest.raises(SwitchError, match=r"port vm3 has OpenFlow number \d+, not 77, which span0 has"):
            database.wait_ports(["vm3"], 20)


def test_a_restart_keeps_bridge_and_ports(config: Config, instance: Instance) -> None:
    with instance.database() as database:
        database.apply(BridgeSpec("br0", MAC, (tunnel(), vhost(config, "vm1", 11))))
        database.wait_ports(["vxlan", "vm1"], 20)
    before = instance.status()
    instance.restart()
    after = instance.status()
    assert after.vswitchd_pid != before.vswitchd_pid
    assert after.ovsdb_pid == before.ovsdb_pid
    assert list(pmd_rxqs(instance.paths.vswitchd_ctl)) == ["vm1"]
    with instance.database() as database:
        database.wait_ports(["vxlan", "vm1"], 20)


def test_ports_that_cannot_be_made_are_named_with_their_reasons(config: Config, instance: Instance) -> None:
    ports = (
        PortSpec("uplink", "dpdk", 1, {"dpdk-devargs": "eth_af_packet0,iface=no-such-vf"}),
        vhost(config, "vm1", 11),
        PortSpec("odd", "no-such-type", 12),
    )
    with instance.database() as database:
        database.apply(BridgeSpec("br0", MAC, ports))
        with pytest.raises(SwitchError) as caught:
            database.wait_ports(["uplink", "vm1", "odd", "vm2"], 20)
    faults = dict(part.split(": ", 1) for part in caught.value.message.split("; "))
    assert set(faults) == {"port uplink", "port odd", "port vm2"}
    assert "attach" in faults["port uplink"]
    assert faults["port vm2"] == "not in the database"


def test_255_ports_in_one_transaction(config: Config, run_instance: RunInstance, host_release: Release) -> None:
    instance = run_instance(config, Side.A, host_release)
    ports = tuple(vhost(config, f"vm{number}", 10 + number) for number in range(255))
    set_vhost_log_level(instance.paths.vswitchd_ctl, "error")
    with instance.database(20) as database:
        database.apply(BridgeSpec("br0", MAC, ports))
        database.wait_ports([port.name for port in ports], 60)
        found = database.interfaces()
    assert {name: status.ofport for name, status in found.items() if name != "br0"} == {
        port.name: port.ofport for port in ports
    }
    assert len(pmd_rxqs(instance.paths.vswitchd_ctl)) == 255


def test_other_config(instance: Instance) -> None:
    with instance.database() as database:
        before = database.other_config()
        assert before["dpdk-init"] == "true"
        assert "--file-prefix=" in before["dpdk-extra"]
        assert database.set_other_config({"max-idle": "5000", "vlan-limit": "1"})
        assert database.other_config() == {**before, "max-idle": "5000", "vlan-limit": "1"}
        assert database.set_other_config({"vlan-limit": None})
        assert database.other_config() == {**before, "max-idle": "5000"}
        assert not database.set_other_config({"max-idle": "5000", "vlan-limit": None})
    with instance.database() as database:
        assert database.other_config()["max-idle"] == "5000"


def test_connections_to_two_instances_are_apart(
    config: Config, run_instance: RunInstance, host_release: Release, tree_release: Release
) -> None:
    old, new = run_instance(config, Side.A, host_release), run_instance(config, Side.B, tree_release)
    with old.database() as left, new.database() as right:
        left.set_other_config({"max-idle": "1111"})
        right.set_other_config({"max-idle": "2222"})
        assert left.other_config()["max-idle"] == "1111"
        assert right.other_config()["max-idle"] == "2222"
        versions = [left.state().dpdk_version, right.state().dpdk_version]
    assert versions == [f"DPDK {release.dpdk_version}" for release in (host_release, tree_release)]


def test_a_database_that_goes_away_is_told(instance: Instance) -> None:
    with instance.database(0.5) as database:
        assert database.other_config()
        database.wait_pass(20)
        assert not database.state().pending
        System().kill(instance.status().ovsdb_pid or 0)
        with pytest.raises(SwitchError):
            database.wait_pass(20)
        with pytest.raises(SwitchError):
            database.set_other_config({"max-idle": "1"})

        def lost() -> bool:
            try:
                database.state()
            except SwitchError:
                return True
            return False

        eventually(lost, "the loss is reported")


def test_a_database_that_hangs_is_told(instance: Instance) -> None:
    ovsdb = instance.status().ovsdb_pid or 0
    with instance.database(0.3) as database:
        os.kill(ovsdb, signal.SIGSTOP)
        for _ in range(3):
            with pytest.raises(NoAnswer):
                database.set_other_config({"max-idle": "1111"})
        with pytest.raises(NoAnswer):
            database.other_config()
        with pytest.raises(NoAnswer):
            database.wait_pass(0.3)
    with pytest.raises(NoAnswer, match="get_schema: no answer within"), instance.database(0.3):
        pass
    os.kill(ovsdb, signal.SIGCONT)
    with instance.database() as database:
        assert database.set_other_config({"max-idle": "2222"})


def test_nothing_listens(tmp_path: Path) -> None:
    with pytest.raises(SwitchError, match=r"no\.sock: get_schema: cannot connect"), SwitchDb(tmp_path / "no.sock"):
        pass


def test_vhost_log_level(instance: Instance) -> None:
    ctl = instance.paths.vswitchd_ctl
    before = vhost_log_level(ctl)
    set_vhost_log_level(ctl, "error")
    assert vhost_log_level(ctl) == "error"
    set_vhost_log_level(ctl, before)
    assert vhost_log_level(ctl) == before == "info"


def test_tunnel_tables(config: Config, instance: Instance) -> None:
    tunnels = Tunnels(instance.paths, "br0")
    with instance.database() as database:
        database.apply(BridgeSpec("br0", MAC, (tunnel(),)))
        database.wait_ports(["vxlan"], 20)
    for _ in range(2):  # setting again is no error
        tunnels.set_address("172.31.0.1", 24)
        tunnels.set_neighbour("172.31.0.254", "52:54:00:aa:00:fe")
    eventually(lambda: "172.31.0.0/24" in {route.destination for route in tunnels.routes()}, "the route")
    tunnels.add_route("10.20.0.0/16", "172.31.0.254")
    (added,) = (route for route in tunnels.routes() if route.user)
    assert (added.destination, added.device, added.gateway) == ("10.20.0.0/16", "br0", "172.31.0.254")
    assert tunnels.neighbours() == (TunnelNeighbour("172.31.0.254", "52:54:00:aa:00:fe", "br0"),)
    with pytest.raises(SwitchError, match="ovs/route/add"):
        tunnels.add_route("not an address")


def test_packets_pass_between_the_releases_over_memif(
    config: Config, run_instance: RunInstance, host_release: Release, tree_release: Release, system: System
) -> None:
    """DPDK without files in hugetlbfs (``--in-memory``) still has memif ports that connect and carry packets."""
    sides = {Side.A: host_release, Side.B: tree_release}
    for number, (side, release) in enumerate(sides.items(), 1):
        instance = run_instance(config, side, release)
        role = "server" if side is Side.A else "client"
        devargs = f"net_memif0,role={role},id=0,socket={config.run_dir}/peer.sock,socket-abstract=no"
        peer = PortSpec("peer", "dpdk", 3, {"dpdk-devargs": devargs, "n_rxq": "2"})
        with instance.database() as database:
            database.apply(BridgeSpec("br0", f"52:54:00:aa:00:0{number}", (peer,)))
            database.wait_ports(["peer"], 20)
        system.run(["ovs-ofctl", "add-flow", f"unix:{instance.paths.mgmt('br0')}", "actions=NORMAL"])
        Tunnels(instance.paths, "br0").set_address(f"10.77.0.{number}", 24)
    ping = ["ip", "netns", "exec", config.namespace(Side.A), "busybox", "ping", "-c", "1", "-W", "1", "10.77.0.2"]
    eventually(lambda: system.run(ping, check=False).status == 0, "an answer through the peer link")
