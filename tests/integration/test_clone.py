"""The clone on the real switch: the host's release is copied to a newer one, followed under fire, and given back.

Both instances have DPDK, in network namespaces of their own. No guest is connected: frames come as packet-outs.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ovs_hotswap.clone import database
from ovs_hotswap.clone.changes import Changes, Hold
from ovs_hotswap.clone.database import Copied
from ovs_hotswap.clone.follow import Follower
from ovs_hotswap.clone.pipeline import BridgePipeline
from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.pmd import pmd_sleep_key
from ovs_hotswap.system import System
from tests.integration.conftest import config_in, remains

OVN_FLOWS = Path(__file__).parents[1] / "support/ovn_br_int.flows"  # OVN 23.03, two VMs with stateful ACLs
FLOWS = """\
cookie=0x11,table=0,priority=100,in_port=5,ip actions=ct(table=1,zone=3,nat)
cookie=0x12,table=0,priority=0,send_flow_rem actions=NORMAL
cookie=0x13,table=0,priority=90,in_port=6,arp actions=learn(table=5,idle_timeout=300,hard_timeout=900,priority=7,\
cookie=0x99,delete_learned,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],output:NXM_OF_IN_PORT[]),resubmit(,5),group:1
table=1,ct_state=+est+trk,ip,tun_metadata0=0x1 actions=meter:1,group:3
table=1,ct_state=+new+trk,tcp,nw_src=10.0.0.0/8,tp_dst=80 actions=\
ct(commit,zone=3,exec(set_field:0x5->ct_mark,load:0x1->NXM_NX_CT_LABEL[0..31]),nat(src=192.0.2.4:1000-2000,random)),group:2
table=2,priority=10,conj_id=8,ip actions=output:5
table=2,priority=10,ip,nw_src=10.1.1.1 actions=conjunction(8,1/2)
table=2,priority=10,ip,nw_src=10.1.1.2 actions=conjunction(8,1/2),conjunction(9,1/2)
table=2,priority=10,tcp,tp_dst=0x50/0xfff0 actions=conjunction(8,2/2)
table=3,idle_timeout=600,hard_timeout=900,importance=7,cookie=0xabc,priority=3,ipv6,ipv6_dst=fe80::/10 actions=output:6
table=3,dl_vlan=5,no_packet_counts,no_byte_counts actions=pop_vlan,check_pkt_larger(1500)->reg0[0],\
controller(userdata=00.01.02,pause),clone(ct_clear,set_field:192.0.2.1->tun_dst,set_field:0x5->tun_id,\
set_field:0x1->tun_metadata0,move:NXM_NX_REG0[]->NXM_NX_REG1[],output:8)
table=4,reg0=0x1/0x3,metadata=0x5 actions=output:5,write_metadata:0x7/0xff,goto_table:9
table=6,tcp actions=dec_ttl,bundle(eth_src,0,hrw,ofport,members:5,6),note:01.02.03,fin_timeout(idle_timeout=5),\
multipath(eth_src,50,modulo_n,1,0,NXM_NX_REG0[]),sample(probability=10,collector_set_id=1,obs_domain_id=2,obs_point_id=3)
table=8,priority=6,in_port=5 actions=push_vlan:0x8100,set_field:4105->vlan_vid,NORMAL
"""
OLD_ACTIONS = (
    "table=8,priority=5,in_port=5,actions=mod_vlan_vid:9,mod_nw_src:192.0.2.9,mod_tp_dst:80,enqueue:5:3,NORMAL"
)
GROUPS = (
    "group_id=2,type=select,selection_method=hash,fields(ip_src,ip_dst),bucket=weight:3,output:5,bucket=output:6",
    "group_id=1,type=all,bucket=group:2,bucket=set_field:1->reg0,output:5",
    "group_id=3,type=ff,bucket=watch_port:5,actions=output:5,bucket=watch_port:6,actions=output:6",
)
METERS = (
    "meter=1,pktps,burst,stats,band=type=drop,rate=1000,burst_size=100",
    "meter=7,kbps,band=type=drop,rate=500",
)
ARP = "ffffffffffff020000000099080600010800060400010200000000990a000099000000000000" + "0a000001"


@dataclass
class Lab:
    system: System
    a: Instance
    b: Instance
    copied: Copied
    follower: Follower

    def vsctl(self, instance: Instance, *words: str) -> str:
        argv = ["ovs-vsctl", "--timeout=20", f"--db=unix:{instance.paths.db_socket}", *words]
        return self.system.run(argv).stdout.strip()

    def ofctl(self, instance: Instance, bridge: str, command: str, *words: str, version: str = "OpenFlow15") -> str:
        options = [word for word in words if word.startswith("--")]
        rest = [word for word in words if not word.startswith("--")]
        argv = ["ovs-ofctl", "-O", version, *options, command, f"unix:{instance.paths.mgmt(bridge)}", *rest]
        return self.system.run(argv).stdout

    def add_flows(self, text: str, bridge: str = "br-int") -> None:
        argv = ["ovs-ofctl", "-O", "OpenFlow15", "add-flows", f"unix:{self.a.paths.mgmt(bridge)}", "-"]
        self.system.run(argv, stdin=text)

    def rows(self, instance: Instance, table: str, column: str) -> dict[str, str]:
        done = self.vsctl(instance, "--format=json", f"--columns=_uuid,{column}", "list", table)
        return {row[0][1]: json.dumps(row[1]) for row in json.loads(done)["data"]}


def program(system: System, paths: InstancePaths, sockets: Path) -> None:
    """Make a host as others program it."""

    def vsctl(*words: str) -> str:
        done = system.run(["ovs-vsctl", "--timeout=20", f"--db=unix:{paths.db_socket}", *words])
        return done.stdout.strip()

    def ofctl(command: str, *words: str, version: str = "OpenFlow15", text: str | None = None) -> None:
        target = f"unix:{paths.mgmt('br-int')}"
        system.run(["ovs-ofctl", "-O", version, command, target, *words], stdin=text)

    def port(name: str, kind: str, ofport: int, *options: str) -> list[str]:
        return ["--", "add-port", "br-int", name, "--", "set", "interface", name, f"type={kind}",
                f"ofport_request={ofport}", *options]  # fmt: skip

    vsctl("add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev", "fail_mode=secure",
          "external_ids:ct-zone-vm1=5", "external_ids:ct-zone-vm2=6",
          "--", "add-br", "br-ex", "--", "set", "bridge", "br-ex", "datapath_type=netdev",
          "protocols=OpenFlow10,OpenFlow13",
          *port("vm1", "dpdkvhostuserclient", 5, f"options:vhost-server-path={sockets}/vm1", "external_ids:vm-id=u1"),
          *port("vm2", "dpdkvhostuserclient", 6, f"options:vhost-server-path={sockets}/vm2"),
          *port("up", "dpdk", 7, "options:dpdk-devargs=net_null0,no-rx=1"),
          *port("tun", "geneve", 8, "options:remote_ip=flow", "options:key=flow"),
          *port("to-ex", "patch", 9, "options:peer=to-int"),
          "--", "add-port", "br-ex", "to-int", "--", "set", "interface", "to-int", "type=patch", "options:peer=to-ex",
          "--", "set", "port", "vm1", "tag=5")  # fmt: skip
    vsctl("set-controller", "br-ex", "tcp:127.0.0.1:16633", "ptcp:16634:127.0.0.1", "--", "set-manager", "ptcp:16640",
          "--", "set-ssl", "/k", "/c", "/ca")  # fmt: skip
    for row in vsctl("--bare", "--columns=_uuid", "list", "controller").split():
        vsctl("set", "controller", row, "inactivity_probe=60000")  # br-ex would fail open, and lose its flows, sooner
    vsctl("--", "--id=@b", "get", "bridge", "br-int",
          "--", "--id=@m", "create", "mirror", "name=m", "select_all=true", "--", "set", "bridge", "br-int",
          "mirrors=@m", "sflow=@s", "netflow=@n", "ipfix=@i", "flow_tables:3=@f",
          "--", "--id=@s", "create", "sflow", 'targets="192.0.2.1:6343"',
          "--", "--id=@n", "create", "netflow", 'targets="192.0.2.1:2055"',
          "--", "--id=@i", "create", "ipfix", 'targets="192.0.2.1:4739"',
          "--", "--id=@f", "create", "flow_table", "name=three", "flow_limit=10000",
          "--", "--id=@c", "create", "flow_sample_collector_set", "id=1", "bridge=@b", "ipfix=@x",
          "--", "--id=@x", "create", "ipfix", 'targets="192.0.2.1:4740"',
          "--", "set", "port", "vm2", "qos=@q", "--", "--id=@q", "create", "qos", "type=egress-policer",
          "other_config:cir=1000000", "other_config:cbs=2048", "queues:3=@u",
          "--", "--id=@u", "create", "queue", "dscp=4",
          "--", "set", "open", ".", "external_ids:system-id=h1", "other_config:max-idle=5000", "datapaths:netdev=@d",
          "--", "--id=@d", "create", "datapath", 'datapath_version="x"', "ct_zones:5=@z",
          "--", "--id=@z", "create", "ct_zone", "timeout_policy=@t",
          "--", "--id=@t", "create", "ct_timeout_policy", "timeouts:tcp_syn_sent=5")  # fmt: skip
    ofctl("add-tlv-map", "{class=0x102,type=0x80,len=4}->tun_metadata0")
    for meter in METERS:
        ofctl("add-meter", meter)
    for group in GROUPS:
        ofctl("add-group", group)
    ofctl("add-flows", "-", text=FLOWS)
    ofctl("add-flow", OLD_ACTIONS, version="OpenFlow10")
    ofctl("mod-port", "vm2", "no-flood", version="OpenFlow10")
    ofctl("mod-port", "vm2", "no-packet-in", version="OpenFlow10")
    ofctl("mod-table", "3", "evict")
    ofctl("set-frags", "nx-match")
    system.run(["ovs-ofctl", "-O", "OpenFlow13", "add-flow", f"unix:{paths.mgmt('br-ex')}",
                "priority=5,dl_vlan=7,send_flow_rem,actions=strip_vlan,output:1"])  # fmt: skip


CHANGES = Changes(interfaces={"up": {"options": {"dpdk-devargs": "net_null1,no-rx=1"}}})


def of_active(system: System, paths: InstancePaths) -> dict[str, object]:
    """Everything that the clone could have changed on the active side."""
    contents = database.read(paths)
    bridges = database.bridges(contents)
    return {"rows": contents.rows, **{name: BridgePipeline(system, paths, name).read() for name in bridges}}


def rest(instance: Instance, release: Release) -> None:
    """Have idle PMD threads sleep: busy ones starve everything else on two cores."""
    with instance.database() as connection:
        connection.set_other_config({pmd_sleep_key(release.ovs_version): "200"})


@pytest.fixture(scope="module")
def lab(system: System, host_release: Release, tree_release: Release) -> Iterator[Lab]:
    directory = Path(tempfile.mkdtemp(prefix="ovsh-"))
    config: Config = config_in(directory)
    config.run_dir.mkdir()
    copies: list[Copied] = []
    a = Instance(config, Side.A, system)

    def fill(release: Release) -> None:
        copies.append(database.copy(a.paths, b.paths, release, CHANGES))

    b = Instance(config, Side.B, system, fill_database=fill)
    try:
        a.start(host_release)
        rest(a, host_release)
        program(system, a.paths, directory)
        b.start(tree_release)
        rest(b, tree_release)
        yield Lab(system, a, b, copies[0], Follower(system, a.paths, b.paths, CHANGES))
        b.stop()
        a.stop()
        assert remains(config) == []
    finally:
        b.stop()
        a.stop()
        shutil.rmtree(directory)


def test_the_database_is_the_same_to_the_row(lab: Lab, tree_release: Release) -> None:
    assert lab.copied.lost == lab.copied.notes == lab.copied.waiting == ()
    lab.follower.round()  # ovs-vswitchd has looked at it
    assert database.differences(lab.a.paths, lab.b.paths, CHANGES) == []
    for table, column in (("interface", "ofport"), ("bridge", "datapath_id"), ("bridge", "external_ids"),
                          ("queue", "dscp"), ("qos", "queues"), ("ct_timeout_policy", "timeouts"), ("ssl", "ca_cert"),
                          ("flow_sample_collector_set", "ipfix"), ("port", "tag"), ("manager", "target"),
                          ("datapath", "ct_zones"), ("flow_table", "flow_limit")):  # fmt: skip
        assert lab.rows(lab.b, table, column) == lab.rows(lab.a, table, column), (table, column)
    assert lab.vsctl(lab.b, "get", "open", ".", "ovs_version").strip('"') == tree_release.ovs_version
    assert lab.vsctl(lab.b, "get", "interface", "up", "options:dpdk-devargs").strip('"') == "net_null1,no-rx=1"
    assert lab.vsctl(lab.b, "get", "open", ".", "other_config:max-idle") == '"5000"'
    local = lab.vsctl(lab.a, "get", "interface", "br-int", "mac_in_use")
    assert lab.vsctl(lab.b, "get", "interface", "br-int", "mac_in_use") == local


def test_controllers_and_observers_are_held_back(lab: Lab) -> None:
    targets = lab.vsctl(lab.b, "--bare", "--columns=target", "list", "controller").split()
    assert len(targets) == 2
    assert all(str(lab.b.paths.run_dir) in target for target in targets)
    assert not lab.vsctl(lab.b, "--bare", "list", "mirror")
    assert not lab.vsctl(lab.b, "--bare", "list", "sflow")


def test_a_filled_database_is_not_filled_again(lab: Lab, tree_release: Release) -> None:
    with pytest.raises(SwitchError, match="is not empty"):
        database.copy(lab.a.paths, lab.b.paths, tree_release, CHANGES)


def test_the_pipeline_is_the_same_to_the_cookie(lab: Lab) -> None:
    before = of_active(lab.system, lab.a.paths)
    lab.follower.round()
    assert lab.follower.round().texts == []
    assert lab.follower.equal() == []
    assert of_active(lab.system, lab.a.paths) == before
    pipeline = BridgePipeline(lab.system, lab.b.paths, "br-int").read()
    assert len(pipeline.flows) == FLOWS.count("actions=") + 1
    assert len(pipeline.groups) == len(GROUPS)
    assert len(pipeline.meters) == len(METERS)
    assert pipeline.tlvs.keys() == {"tun_metadata0"}
    assert pipeline.fragments == "nx-match"
    assert pipeline.tables == {3: ("evict",)}
    assert pipeline.ports["6"] == {"NO_FLOOD", "NO_PACKET_IN"}
    assert sum(flow.legacy for flow in pipeline.flows.values()) == 1
    held = lab.system.run(["ovs-appctl", "-t", str(lab.b.paths.vswitchd_ctl), "bridge/dump-flows", "br-int"]).stdout
    assert "mod_vlan_vid:9,mod_nw_src:192.0.2.9,mod_tp_dst:80,enqueue:5:3,NORMAL" in held


def test_learned_flows_and_other_changes_are_followed(lab: Lab) -> None:
    lab.ofctl(lab.a, "br-int", "packet-out", f"in_port=6,packet={ARP},actions=table")
    learned = lab.follower.round().texts
    assert [text for text in learned if "table=5" in text and "cookie=0x99" in text and "output:6" in text]
    lab.ofctl(lab.a, "br-int", "mod-meter", "meter=7,kbps,band=type=drop,rate=800")
    lab.ofctl(lab.a, "br-int", "mod-group", "group_id=3,type=all,bucket=output:6")
    lab.ofctl(lab.a, "br-int", "add-tlv-map", "{class=0x102,type=0x81,len=8}->tun_metadata1")
    lab.ofctl(lab.a, "br-int", "mod-port", "vm2", "flood", version="OpenFlow10")
    lab.ofctl(lab.a, "br-int", "set-frags", "normal")
    lab.vsctl(lab.a, "set", "port", "vm1", "tag=7", "--", "set", "interface", "vm2", "external_ids:x=y")
    assert len(lab.follower.round().texts) >= 6
    assert lab.follower.equal() == []
    lab.ofctl(lab.a, "br-int", "del-groups", "group_id=1")  # takes the flow along, and what that has learned
    lab.ofctl(lab.a, "br-int", "del-meter", "meter=7")
    lab.ofctl(lab.a, "br-int", "del-tlv-map", "{class=0x102,type=0x81,len=8}->tun_metadata1")
    gone = lab.follower.round().texts
    assert [text for text in gone if text.startswith("br-int: - flow") and "cookie=0x13" in text]
    assert lab.follower.equal() == []
    assert "table=5" not in lab.ofctl(lab.b, "br-int", "dump-flows", "table=5").partition("\n")[2]


def test_the_tables_of_ovn_are_copied(lab: Lab) -> None:
    flows = [line for line in OVN_FLOWS.read_text().splitlines() if "actions=" in line]
    lab.add_flows("\n".join(flows))
    assert len(lab.follower.round().texts) >= len(flows)
    assert lab.follower.equal() == []
    assert len(BridgePipeline(lab.system, lab.b.paths, "br-int").read().flows) >= len(flows) == 280


def fire(lab: Lab, end: threading.Event) -> int:
    """Add and remove flows, groups and ports on the active side until ``end``; return how often."""
    turn = 0
    while turn < 10 or not end.is_set():
        number, name = 50 + turn % 3, f"p{turn % 4}"
        addresses = [f"10.0.{turn % 5}.{n}" for n in range(40)]
        lab.add_flows("\n".join(f"cookie={turn + 1:#x},table=30,ip,nw_src={each},actions=drop" for each in addresses))
        lab.ofctl(lab.a, "br-int", "add-group", f"group_id={number},type=all,bucket=output:5")
        lab.ofctl(lab.a, "br-int", "add-flow", f"table=31,priority={number},actions=group:{number}")
        lab.vsctl(lab.a, "--may-exist", "add-port", "br-int", name, "--", "set", "interface", name, "type=patch",
                  f"options:peer=q{turn}")  # fmt: skip
        lab.ofctl(lab.a, "br-int", "del-groups", f"group_id={number}")
        lab.ofctl(lab.a, "br-int", "del-flows", f"table=30,ip,nw_src=10.0.{(turn + 2) % 5}.0/24")
        if turn % 2:
            lab.vsctl(lab.a, "--if-exists", "del-port", "br-int", f"p{(turn + 1) % 4}")
        turn += 1
    return turn


def test_changes_under_fire_end_in_the_same_state(lab: Lab) -> None:
    end = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        firing = pool.submit(fire, lab, end)
        try:
            busy = lab.follower.settle(0.5, 4.0)
        finally:
            end.set()
        assert firing.result(60) >= 10
    assert busy.rounds >= 1
    settled = lab.follower.settle(0.5, 20.0)
    assert settled.left == ()
    assert lab.follower.equal() == []
    assert lab.rows(lab.b, "interface", "ofport") == lab.rows(lab.a, "interface", "ofport")


def test_what_an_older_release_loses_is_known_before(lab: Lab, host_release: Release) -> None:
    mutation = [{"op": "update", "table": "CT_Zone", "where": [], "row": {"limit": 9}}]
    assert database.losses(lab.b.paths, host_release) == []
    lab.system.run(["ovsdb-client", "transact", f"unix:{lab.b.paths.db_socket}",
                    json.dumps(["Open_vSwitch", *mutation])])  # fmt: skip
    (lost,) = database.losses(lab.b.paths, host_release)
    assert lost.startswith("CT_Zone ")
    assert lost.endswith("limit=9")


def test_the_cut_starts_timeouts_and_gives_back_what_was_held(lab: Lab) -> None:
    assert lab.follower.arm() >= 1
    (flow,) = [each for each in BridgePipeline(lab.system, lab.b.paths, "br-int").read().flows.values()
               if each.cookie == 0xABC]  # fmt: skip
    assert flow.idle == 600
    assert 1 <= flow.hard < 900
    lab.add_flows("table=9,priority=9,cookie=0x7,actions=output:5")
    assert lab.follower.late() == ["br-int: + flow cookie=0x7,table=9,priority=9,actions=output:5"]
    assert lab.follower.late() == []
    lab.ofctl(lab.a, "br-int", "del-flows", "--strict", "table=9,priority=9")
    assert lab.follower.late() == ["br-int: - flow cookie=0x7,table=9,priority=9,actions=output:5"]
    before = {name: BridgePipeline(lab.system, lab.b.paths, name).read(13).flows for name in ("br-int", "br-ex")}
    database.give_back(lab.a.paths, lab.b.paths, CHANGES, frozenset(Hold))
    lab.vsctl(lab.b, "get", "mirror", "m", "select_all")
    controllers = lab.rows(lab.a, "controller", "target")
    assert lab.rows(lab.b, "controller", "target") == controllers
    assert lab.rows(lab.b, "bridge", "protocols") == lab.rows(lab.a, "bridge", "protocols")
    time.sleep(1)  # had ovs-vswitchd deleted the flows, it would have done so when it looked at the controllers
    after = {name: BridgePipeline(lab.system, lab.b.paths, name).read(13).flows for name in ("br-int", "br-ex")}
    assert after == before
