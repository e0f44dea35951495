"""What is read of a host that others program: texts of the real programs, rows of a database, and /proc."""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.config_rules import faults
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.model import Side
from ovs_hotswap.stock import flow_texts, new_config, qemu_options
from ovs_hotswap.stock.database import Database, first
from ovs_hotswap.stock.facts import MarkUse, PortKind, VmLog
from ovs_hotswap.stock.kernel_ports import _concerns, parse_listeners
from ovs_hotswap.stock.new_config import Choices, configuration
from ovs_hotswap.stock.pipeline import _uplink, dump
from ovs_hotswap.stock.qemu_options import MonitorOption
from ovs_hotswap.stock.sockets import clients, connections, holders, inode_of
from ovs_hotswap.stock.survey import running_paths
from ovs_hotswap.stock.switch import (
    dpdk_version,
    file_level,
    log_argument,
    served_database,
    unit_of,
)
from ovs_hotswap.stock.vms import stock_vms, vm_ports
from ovs_hotswap.switch.drivers import lacks_driver
from ovs_hotswap.switch.owned import MARK
from ovs_hotswap.upgrade.stock_checks import Terms
from ovs_hotswap.upgrade.stock_collect import terms, with_logs
from ovs_hotswap.wire.mirror_flows import COOKIES
from tests.unit.fake_system import FakeSystem
from tests.unit.stock_sample import HEALTHY, vm

# ------------------------------------------------------------------------------------------------------------- the log

# What ovs-vswitchd 3.1.0 with DPDK 22.11 writes when a QEMU connects.
BEGUN = """\
2026-11-29T21:02:44.847Z|00062|dpdk|INFO|VHOST_CONFIG: (/run/vm1.sock) new device, handle is 0
"""
TABLE = """\
2026-11-29T21:02:44.851Z|00001|dpdk|INFO|VHOST_CONFIG: (/run/vm1.sock) read message VHOST_USER_GET_FEATURES
2026-11-29T21:02:44.900Z|00002|dpdk|INFO|VHOST_CONFIG: (/run/vm1.sock) read message VHOST_USER_SET_MEM_TABLE
2026-11-29T21:02:44.900Z|00003|dpdk|INFO|VHOST_CONFIG: (/run/vm1.sock) guest memory region size: 0x6000000
2026-11-29T21:02:44.900Z|00004|dpdk|INFO|VHOST_CONFIG: (/run/vm1.sock) \t guest physical addr: 0x0
2026-11-29T21:02:44.900Z|00005|dpdk|INFO|VHOST_CONFIG: (/run/vm1.sock) \t guest virtual  addr: 0x7f1ac3e00000
2026-11-29T21:02:44.900Z|00006|dpdk|INFO|VHOST_CONFIG: (/run/vm1.sock) \t host  virtual  addr: 0x7f4f1fe00000
2026-11-29T21:02:44.900Z|00007|dpdk|INFO|VHOST_CONFIG: (/run/vm1.sock) \t mmap addr : 0x7f4f1fe00000
2026-11-29T21:02:44.900Z|00008|dpdk|INFO|VHOST_CONFIG: (/run/vm1.sock) \t mmap size : 0x6000000
2026-11-29T21:02:44.900Z|00009|dpdk|INFO|VHOST_CONFIG: (/run/vm1.sock) \t mmap align: 0x1000
2026-11-29T21:02:44.900Z|00010|dpdk|INFO|VHOST_CONFIG: (/run/vm1.sock) \t mmap off  : 0x0
"""


def test_what_the_log_tells_of_vms(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(BEGUN + TABLE)
    vms = (vm("vm1"), vm("vm2"), vm("vm3", connected=False), vm("vm4", kind=PortKind.SERVER), vm("vm5", adopted=True))
    bare = [replace(each, log=VmLog()) for each in vms]
    first, second, *others = with_logs(bare, log)
    assert first.log == VmLog(regions=1, small_pages=0x6000000)
    assert second.log.regions is None
    assert "beginning of the connection" in (second.log.fault or "")
    assert others == bare[2:]
    first, _, *others = with_logs(bare, tmp_path / "none")
    assert "none: No such file" in (first.log.fault or "")
    assert others == bare[2:]
    assert with_logs(bare[2:], tmp_path / "none") == tuple(bare[2:])


def test_what_the_configuration_plans(tmp_path: Path) -> None:
    found = Config.model_validate({
        "program": "clone", "stock": {"log": Path("/var/log/ovs.log")}, "run_dir": tmp_path,
        "instances": {"a": {"pmd_cores": [0], "port_devices": {"up": "x", "more": "z"}},
                      "b": {"pmd_cores": [0], "port_devices": {"up": "y"}}},
    })  # fmt: skip
    assert terms(found, ["vm1"]) == Terms(
        devices={"up"}, left_out=["vm1"], database="/etc/openvswitch/conf.db", log="/var/log/ovs.log"
    )
    found.active_file.write_text("b")
    assert terms(found) == Terms(devices={"up"}), "the distribution's switch is retired"


# ---------------------------------------------------------------------------------------------------------- the switch

LEVELS = """\
                 console    syslog    file
                 -------    ------    ------
daemon             OFF        ERR       INFO
dpdk               OFF        ERR       WARN
netdev_dpdk        OFF        ERR       INFO
"""


def test_texts_about_the_switch() -> None:
    assert file_level(LEVELS) == "WARN"
    assert file_level("") is None
    assert dpdk_version("DPDK 22.11.9") == "22.11.9"
    assert dpdk_version("") is None
    assert log_argument(["ovs-vswitchd", "--log-file=/var/log/a.log"]) == "/var/log/a.log"
    assert log_argument(["ovs-vswitchd", "--log-file"]) == "/var/log/openvswitch/ovs-vswitchd.log"
    assert log_argument(["ovs-vswitchd"]) is None
    assert served_database(["ovsdb-server", "-vfile:info", "/var/lib/conf.db", "--remote=x"]) == "/var/lib/conf.db"
    assert served_database(["ovsdb-server"]) == "/etc/openvswitch/conf.db"
    assert unit_of("0::/system.slice/ovs-vswitchd.service\n") == "ovs-vswitchd.service"
    assert unit_of("0::/user.slice/user-0.slice/session-1.scope\n") is None


def test_a_driver_that_was_not_loaded(tmp_path: Path) -> None:
    libraries = "/usr/lib/x86_64-linux-gnu"
    eal = f"7f11c2a00000-7f11c2a1c000 r--p 00000000 08:01 77 {libraries}/librte_eal.so.23.0\n"
    memif = f"7f11bd000000-7f11bd003000 r--p 00000000 08:01 78 {libraries}/dpdk/pmds-23.0/librte_net_memif.so.23.0\n"
    whole = "55d0c0000000-55d0c0400000 r-xp 00000000 08:01 79 /opt/ovs/sbin/ovs-vswitchd\n"
    (tmp_path / "7").mkdir()
    for maps, lacks in ((eal, True), (eal + memif, False), (whole, False)):
        (tmp_path / "7/maps").write_text(maps)
        assert lacks_driver(7, "memif", tmp_path) is lacks
    assert not lacks_driver(8, "memif", tmp_path)


def test_the_files_of_the_running_switch(tmp_path: Path) -> None:
    system = FakeSystem()
    system.processes = {os.getpid(): ["ovs-vswitchd"]}
    run_dir = tmp_path / "openvswitch"
    run_dir.mkdir()
    config = Config.model_validate({
        "program": "clone", "stock": {"run_dir": run_dir}, "run_dir": tmp_path / "run", "state_dir": tmp_path / "state",
        "instances": {side: {"pmd_cores": [0]} for side in "ab"},
    })  # fmt: skip
    assert running_paths(config, system).vswitchd_ctl == run_dir / "ovs-vswitchd.0.ctl", "it does not run"
    (run_dir / "ovs-vswitchd.pid").write_text(f"{os.getpid()}\n")
    assert running_paths(config, system).vswitchd_ctl == run_dir / f"ovs-vswitchd.{os.getpid()}.ctl"
    config.run_dir.mkdir()
    config.active_file.write_text("b")
    assert running_paths(config, system).db_socket == config.side_dir(Side.B) / "db.sock", "ours, once it is active"


# ------------------------------------------------------------------------------------------------------------- QEMUs

LIBVIRT = [
    "/usr/bin/qemu-system-x86_64", "-name", "guest=instance-00000001,debug-threads=on", "-S",
    "-object", '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/libvirt/m.aes"}',
    "-machine", "pc-i440fx-7.2,usb=off,dump-guest-core=off,memory-backend=pc.ram", "-accel", "kvm",
    "-object", '{"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"/dev/hugepages","share":true,"size":1}',
    "-no-user-config", "-chardev", "socket,id=charmonitor,fd=25,server=on,wait=off",
    "-mon", "chardev=charmonitor,id=monitor,mode=control", "-chardev", "socket,id=charnet0,path=/run/vm1.sock",
    "-netdev", '{"type":"vhost-user","chardev":"charnet0","queues":2,"id":"hostnet0"}', "-msg", "timestamp=on",
]  # fmt: skip


def test_a_command_line_of_libvirt() -> None:
    assert qemu_options.parse(LIBVIRT) == qemu_options.QemuOptions(
        guest="instance-00000001", monitors=(MonitorOption(fd=25),), libvirt=True, memory=("memory-backend-file",),
        machine="pc-i440fx-7.2", kvm=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "monitors"),
    [
        ("-qmp unix:/run/a.qmp,server=on,wait=off", [MonitorOption("/run/a.qmp")]),
        ("--qmp unix:/run/a,,b.qmp,server", [MonitorOption("/run/a,b.qmp")]),
        ("-qmp-pretty unix:/run/a.qmp,server", [MonitorOption("/run/a.qmp")]),
        ("-qmp tcp:localhost:4444,server", [MonitorOption()]),
        ("-chardev socket,id=m,path=/run/m,server=on -mon m,mode=control", [MonitorOption("/run/m")]),
        ("-chardev socket,id=m,path=/run/m -qmp chardev:m", [MonitorOption("/run/m")]),
        ("-chardev socket,id=m,path=/run/m -mon chardev=m,mode=readline", []),
        ("-mon chardev=gone,mode=control", [MonitorOption()]),
        ("-monitor unix:/run/hmp,server", []),
        ("-qmp unix:/run/a -qmp unix:/run/b", [MonitorOption("/run/a"), MonitorOption("/run/b")]),
        ("-object {broken -qmp unix:/run/a", [MonitorOption("/run/a")]),
    ],
)
def test_qmp_sockets(words: str, monitors: list[MonitorOption]) -> None:
    assert list(qemu_options.parse(["qemu", *words.split()]).monitors) == monitors


@pytest.mark.parametrize(
    ("words", "kvm"),
    [
        ("-accel tcg", False), ("-accel kvm", True), ("-accel kvm -accel tcg", True), ("-accel tcg -accel kvm", False),
        ("-machine pc,accel=kvm:tcg", True), ("-M q35,accel=tcg", False), ("-enable-kvm -m 64", True), ("", False),
    ],
)  # fmt: skip
def test_accelerators(words: str, kvm: bool) -> None:
    assert qemu_options.parse(["qemu", *words.split()]).kvm is kvm


def test_names_machines_and_versions() -> None:
    found = qemu_options.parse(["qemu", "-name", "vm1", "-machine", "type=q35,usb=off"])
    assert (found.guest, found.machine, found.libvirt) == ("vm1", "q35", False)
    assert qemu_options.version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)") == "7.2"
    assert qemu_options.version("hello") is None


# ------------------------------------------------------------------------------------------------------------- sockets


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket, Path]]:
    """A connection to a listener at a path: the end that connected, the end that accepted, and the path."""
    with ExitStack() as stack:
        listener, client = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        client.connect(str(tmp_path / "sock"))
        accepted = stack.enter_context(listener.accept()[0])
        yield client, accepted, tmp_path / "sock"


def test_who_is_connected_to_whom(pair: tuple[socket.socket, socket.socket, Path]) -> None:
    client, accepted, path = pair
    inodes = [inode_of(os.getpid(), each.fileno()) for each in (client, accepted)]
    assert None not in inodes
    found = {each.inode: each for each in connections()}
    assert found[inodes[1] or 0].name == str(path)
    assert found[inodes[1] or 0].peer == inodes[0]
    assert found[inodes[0] or 0].name == ""
    holder = holders([inode or 0 for inode in inodes], [os.getpid(), 1 << 22])
    assert holder == {inode: (os.getpid(),) for inode in inodes}
    assert clients(str(path), found.values(), holder) == [os.getpid()]
    assert clients("/nowhere", found.values(), holder) == []


def test_what_is_no_socket_has_no_inode(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert inode_of(os.getpid(), file.fileno()) is None
    assert inode_of(os.getpid(), 1 << 20) is None


# ----------------------------------------------------------------------------------------------------------- the flows


@pytest.mark.parametrize(
    ("flow", "uses"),
    [
        ("priority=0 actions=NORMAL", []),
        ("pkt_mark=0x5 actions=drop", [(None, False)]),
        ("ip actions=set_field:0x5->pkt_mark,NORMAL", [(5, False)]),
        ("ip actions=load:0x7->NXM_NX_PKT_MARK[],NORMAL", [(7, False)]),
        ("ip actions=load:0x7->NXM_NX_PKT_MARK[0..7],NORMAL", [(7, True)]),
        ("ip actions=set_field:0x5/0xff->pkt_mark,NORMAL", [(5, True)]),
        ("ip actions=move:NXM_NX_REG0[]->NXM_NX_PKT_MARK[],NORMAL", [(None, True)]),
        ("ip actions=pop:NXM_NX_PKT_MARK[]", [(None, True)]),
        ("ip actions=move:NXM_NX_PKT_MARK[]->NXM_NX_REG0[]", [(None, False)]),
        ("pkt_mark=1 actions=set_field:2->pkt_mark,set_field:3->pkt_mark", [(2, False), (3, False)]),
    ],
)
def test_uses_of_pkt_mark(flow: str, uses: list[tuple[int | None, bool]]) -> None:
    assert flow_texts.mark_uses([flow]) == tuple(MarkUse(flow, *use) for use in uses)


def test_uses_that_set_the_mark_come_first_and_not_all_are_kept() -> None:
    match, sets = "pkt_mark=0x5 actions=drop", "ip actions=set_field:0x5->pkt_mark"
    found = flow_texts.mark_uses([*[match] * 20, sets])
    assert len(found) == flow_texts.MOST
    assert found[0] == MarkUse(sets, 5)


@pytest.mark.parametrize(
    ("actions", "identity"),
    [
        ("ct(commit,zone=NXM_NX_REG13[0..15],nat(src),exec(load:0->NXM_NX_CT_MARK[0]))", True),
        ("ct(commit,nat(dst))", True), ("ct(table=1,nat)", False), ("ct(commit,nat(src=10.0.0.1))", False),
        ("ct(commit)", False),
    ],
)  # fmt: skip
def test_identity_nat(actions: str, identity: bool) -> None:
    assert flow_texts.has_identity_nat([f"ip actions={actions}"]) is identity


def test_flows_are_dumped_whatever_version_the_bridge_speaks() -> None:
    ours = "".join(f" cookie={each:#x}, table=0 actions=drop\n" for each in COOKIES)
    system = FakeSystem(lambda argv: (0, f"OFPST_FLOW reply:\n table=0, priority=0 actions=NORMAL\n{ours}"))
    assert dump(system, Path("/run/br0.mgmt"), "dump-flows") == [" table=0, priority=0 actions=NORMAL"]
    assert dump(system, Path("/run/br0.mgmt"), "dump-groups") == [" table=0, priority=0 actions=NORMAL"]
    flows, groups = system.ran
    assert "OpenFlow10" in flows[2]
    assert "OpenFlow15" in flows[2]
    assert "--no-stats" in flows
    assert "--no-stats" not in groups, "ovs-ofctl does not have it for groups"


# -------------------------------------------------------------------------------------------------------- the database


def row(**columns: Any) -> dict[str, Any]:
    return columns


def interface(name: str, kind: str, **columns: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"options": {}, "status": {}, "ofport": [5], "error": [], "mtu_request": []}
    return {"name": name, "type": kind, **empty, **columns}


def database(*interfaces: dict[str, Any], datapath: str = "netdev", **port: Any) -> Database:
    ports = {
        f"p-{each['name']}": row(**{"name": each["name"], "interfaces": [f"i-{each['name']}"], "tag": [], "trunks": [],
                                    "vlan_mode": [], "external_ids": {}, **port})
        for each in interfaces
    }  # fmt: skip
    return Database({
        "Open_vSwitch": {"root": row(other_config={"vhost-sock-dir": "vhost"})},
        "Bridge": {"b": row(name="br0", datapath_type=datapath, ports=list(ports), external_ids={}),
                   "ours": row(name="br-ovsh-peer-a", external_ids={MARK: "wire"})},
        "Port": ports,
        "Interface": {f"i-{each['name']}": each for each in interfaces},
    })  # fmt: skip


STATUS = {"status": "connected", "features": "0x000000017020a782", "num_of_vrings": "4", "socket": "/run/vm1.sock"}


def test_vms_of_a_database() -> None:
    found = stock_vms(
        database(
            interface("a", "dpdkvhostuserclient", options={"vhost-server-path": "/run/a.sock"}, status=STATUS),
            interface("b", "dpdkvhostuser"),
            interface("c", "dpdkvhostuserclient", options={"vhost-server-path": "/dev/vduse/c"}),
            interface("d", "dpdkvhostuserclient", ofport=[-1], error=["no room"]),
            interface("e", "dpdkvhostuserclient", ofport=[], status={"status": "disconnected", "features": "0x1"}),
            interface("up", "dpdk"),
            tag=[5], vlan_mode=["access"],
        ),
        Path("/run/openvswitch"),
    )  # fmt: skip
    a, b, c, d, e = found
    assert (a.name, a.bridge, a.kind, a.connected, a.acked, a.vrings) == (
        "a", "br0", PortKind.CLIENT, True, 0x17020A782, 4,
    )  # fmt: skip
    assert (a.ofport, a.tag, a.vlan_mode, a.fault) == (5, 5, "access", None)
    assert (b.kind, b.socket) == (PortKind.SERVER, "/run/openvswitch/vhost/b")
    assert c.kind is PortKind.VDUSE
    assert (d.ofport, d.fault) == (None, "no room")
    assert (e.connected, e.acked, e.fault) == (False, None, "it has no OpenFlow number")
    (port,) = vm_ports(found)
    assert (port.name, port.bridge, port.ofport, port.queues, str(port.socket)) == ("a", "br0", 5, 2, "/run/a.sock")


def test_vms_of_a_bridge_of_the_kernel_are_none() -> None:
    assert stock_vms(database(interface("b", "dpdkvhostuser"), datapath=""), Path("/run")) == ()


def test_rows_are_found_by_reference() -> None:
    found = database(interface("a", "dpdk"))
    (bridge,) = found.bridges
    assert [each["name"] for each in found.of(bridge, "ports", "Port")] == ["a"]
    assert found.of({"qos": "none"}, "qos", "Port") == []
    assert found.of({}, "qos", "Port") == []
    assert Database({"Open_vSwitch": {}}).root == {}
    assert (first([]), first([3]), first("x")) == (None, 3, "x")


# -------------------------------------------------------------------------------------------------------- the devices


def test_kinds_of_uplinks(tmp_path: Path) -> None:
    for name in ("0000:03:00.0", "0000:03:02.0"):
        (tmp_path / "bus/pci/devices" / name).mkdir(parents=True)
    (tmp_path / "bus/pci/devices/0000:03:02.0/physfn").symlink_to("../0000:03:00.0")
    (tmp_path / "bus/pci/devices/0000:03:00.0/driver").symlink_to("/sys/bus/pci/drivers/vfio-pci")

    def kind(devargs: str) -> tuple[str, str | None]:
        found = _uplink("up", "br0", devargs, tmp_path)
        return found.kind.name, found.driver

    assert kind("0000:03:00.0") == ("PF", "vfio-pci")
    assert kind("0000:03:02.0,trust=on") == ("VF", None)
    assert kind("0000:03:00.0,representor=[0]") == ("REPRESENTOR", "vfio-pci")
    assert kind("0000:09:00.0") == ("ABSENT", None)
    assert kind("net_af_packet0,iface=up-a") == ("VIRTUAL", None)
    assert kind("class=eth,mac=00:11:22:33:44:55") == ("ABSENT", None)


SS = """\
udp UNCONN 0 0 0.0.0.0%br-ex:67 0.0.0.0:* users:(("dnsmasq",pid=7,fd=4))
tcp LISTEN 0 128 10.0.0.1:80 0.0.0.0:* users:(("nginx",pid=9,fd=6),("nginx",pid=8,fd=6))
tcp LISTEN 0 128 [fe80::1%br-ex]:22 [::]:* users:(("sshd",pid=5,fd=3))
tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:*
"""


def test_who_listens_on_a_port_of_the_kernel() -> None:
    found = parse_listeners(SS)
    assert found[1:3] == [("10.0.0.1:80", "nginx (9)"), ("10.0.0.1:80", "nginx (8)")]
    assert [who for local, who in found if _concerns(local, "br-ex", ["10.0.0.9/24"])] == ["dnsmasq (7)", "sshd (5)"]
    assert [who for local, who in found if _concerns(local, "br-2", ["10.0.0.1/24"])] == ["nginx (9)", "nginx (8)"]


# --------------------------------------------------------------------------------------------------- the configuration


@pytest.mark.parametrize("devices", [{}, {"up": "0000:03:02.1"}], ids=["to be filled in", "with a second device"])
def test_the_configuration_that_follows_is_valid(devices: dict[str, str]) -> None:
    text = configuration(HEALTHY, range(4), Choices(devices))
    found = Config.model_validate(tomllib.loads(text))
    assert faults(found) == []
    assert found.program == "clone"
    assert found.instances.a.port_devices == ({"up": "0000:03:02.0"} if devices else {})
    assert found.instances.b.port_devices == devices
    assert ('# port_devices = { "up" = "..." }' in text) == (not devices)
    assert (found.instances.a.pmd_cores, found.instances.b.pmd_cores) == ([1], [2])
    assert found.instances.b.memory_mb == 1024
    assert (str(found.stock.database), str(found.stock.log)) == ("/etc/openvswitch/conf.db", HEALTHY.switch.log.file)


def test_a_host_without_a_port_of_dpdk_needs_no_device() -> None:
    facts = replace(HEALTHY, pipeline=replace(HEALTHY.pipeline, uplinks=()))
    assert "port_devices" not in configuration(facts, range(4), Choices())


def test_what_was_chosen_is_in_the_configuration() -> None:
    sleeping = replace(HEALTHY, switch=replace(HEALTHY.switch, other_config={"pmd-maxsleep": "100"}))
    chosen = Choices({"up": "0000:03:02.1"}, [3], "/srv/ovs", "ovs")
    found = Config.model_validate(tomllib.loads(configuration(sleeping, range(4), chosen)))
    assert (found.instances.b.pmd_cores, found.instances.b.pmd_sleep_us, found.instances.b.memory_mb) == ([3], 100, 512)
    assert (str(found.stock.run_dir), found.stock.unit) == ("/srv/ovs", "ovs")


def test_what_the_configuration_cannot_say() -> None:
    stopped = replace(HEALTHY, switch=replace(HEALTHY.switch, vswitchd_pid=None))
    with pytest.raises(ConfigError, match="does not run"):
        configuration(stopped, range(4), Choices())
    with pytest.raises(ConfigError, match="no port other of type dpdk; there is up"):
        configuration(HEALTHY, range(4), Choices({"other": "0000:03:02.1"}))


@pytest.mark.parametrize(
    ("settings", "memory"),
    [({}, 512), ({"dpdk-socket-mem": "2048,0"}, 2048), ({"dpdk-socket-mem": "1", "dpdk-socket-limit": "4096"}, 4096),
     ({"dpdk-socket-mem": "0,0"}, 512), ({"dpdk-socket-mem": "many"}, 512), ({"dpdk-socket-mem": "16"}, 64)],
)  # fmt: skip
def test_memory_of_an_instance(settings: dict[str, str], memory: int) -> None:
    assert new_config.memory_mb(settings) == memory


@pytest.mark.parametrize(
    ("cores", "used", "chosen"),
    [([0, 1, 2, 3], [1], [2]), ([0, 1], [1], [0]), ([0, 1], [0, 1], [0, 1]), ([0, 1, 2], [1], [2]),
     (range(8), [2, 3], [1, 4])],
)  # fmt: skip
def test_cores_of_the_new_instance(cores: list[int], used: list[int], chosen: list[int]) -> None:
    assert new_config.others(cores, used) == chosen


def test_a_text_of_toml_may_have_anything_in_it() -> None:
    name = 'net_x,iface="a"\\b'
    facts = replace(HEALTHY, pipeline=replace(HEALTHY.pipeline, uplinks=(
        replace(HEALTHY.pipeline.uplinks[0], devargs=name),)))  # fmt: skip
    loaded = tomllib.loads(configuration(facts, range(4), Choices({"up": name})))
    assert loaded["instances"]["a"]["port_devices"] == {"up": name}


@pytest.mark.parametrize(
    ("actions", "outputs"),
    [
        ("ALL", True), ("output:ALL", True), ("pop_vlan,all,resubmit(,8)", True), ("clone(output:all)", True),
        ("FLOOD", False), ("NORMAL", False), ("set_field:1->reg0,output:3", False), ("bundle(eth_src,0,hrw)", False),
        ("CONTROLLER:65535", False),
    ],
)  # fmt: skip
def test_an_output_to_all_ports_is_seen(actions: str, outputs: bool) -> None:
    flow = f"cookie=0x0, priority=1,in_port=1 actions={actions}"
    assert flow_texts.output_to_all([f" {flow}", "group_id=1,type=all,bucket=actions=output:1"]) == (flow,) * outputs


def test_a_flow_of_the_highest_priority_in_the_first_table_is_seen() -> None:
    first = "cookie=0x0, priority=65535,in_port=1 actions=output:2"
    flows = [
        first,
        "cookie=0x1, priority=65535,dl_vlan=4095 actions=drop",
        "cookie=0x1, priority=65535,vlan_tci=0x0fff/0x1fff actions=drop",
        "cookie=0x1, table=2, priority=65535,in_port=1 actions=output:1",
        "cookie=0x1, table=252, priority=6553 actions=resubmit(,table=7)",
    ]
    assert flow_texts.highest(flows) == (first,)
    assert flow_texts.tables(flows) == (0, 2, 252)
