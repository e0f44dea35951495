"""``check`` and ``config init`` on a real stock host under OVN: what they find is so, they disturb nothing, and faults
that are planted are named."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.errors import PrecheckFailed
from ovs_hotswap.system import System
from tests.support.stock_host import BRIDGE, DATABASE, LOG, UPLINK, StockHost, devargs
from tests.support.stock_network import VTEP
from tests.support.stock_ovn import UPLINK_BRIDGE, Ovn

PLANTED = "br-p"


@pytest.fixture(scope="module")
def host(system: System) -> Iterator[StockHost]:
    with StockHost(system, bridge="ovn") as host:
        yield host


@pytest.fixture(scope="module")
def config(host: StockHost) -> Path:
    """The configuration that ``config init`` writes on this host."""
    path = host.directory / "config.toml"
    command(host, path, "config", "init", "--second-device", f"{UPLINK}={devargs('b')}")
    return path


def command(host: StockHost, config: Path, *words: str, status: int = 0, before: tuple[str, ...] = ()) -> Any:
    """Run a command line on the host, and return its document."""
    argv = [*before, sys.executable, "-m", "ovs_hotswap", "--config", str(config), "--json", *words]
    done = host.completed(argv, timeout=60.0)
    assert done.status == status, done.stdout + done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def findings(document: Any, severity: str) -> dict[str, str]:
    """The texts of the findings of a severity by their checks."""
    found: dict[str, str] = {}
    for each in document["findings"]:
        if each["severity"] == severity:
            found[each["check"]] = f"{found.get(each['check'], '')}{each['text']}\n"
    return found


def check(host: StockHost, config: Path, **changes: Any) -> Any:
    return command(host, config, "check", **changes)


@contextmanager
def planted(host: StockHost, begin: list[str], end: list[str]) -> Iterator[None]:
    host.run(["sh", "-ec", "\n".join(begin)])
    try:
        yield
    finally:
        host.run(["sh", "-ec", "\n".join(end)])


def test_what_is_found_is_so_and_nothing_is_disturbed(host: StockHost, config: Path) -> None:
    log, ovn = host.outside(LOG), Ovn(host)
    flows = host.flows()
    with host.traffic() as traffic:
        time.sleep(1.0)
        logged = log.stat().st_size
        document = check(host, config)
        with log.open() as file:
            file.seek(logged)
            lines = [line for line in file if "VHOST_CONFIG" in line or "|INFO|" not in line]
        time.sleep(1.0)
    assert traffic.judgement.faults_beyond(30) == []
    assert lines == [], "no VM has noticed anything"
    assert host.flows() == flows

    switch = document["switch"]
    assert (switch["vswitchd_pid"], switch["ovsdb_pid"]) == (host.switch_pid, host.database_pid)
    assert f"DPDK {switch['dpdk_version']}" == host.vsctl("get", "Open_vSwitch", ".", "dpdk_version").strip('"')
    assert switch["ovs_version"] == host.appctl("version").split("(Open vSwitch) ")[1].split()[0]
    assert (switch["database"], switch["log"]) == (DATABASE, {"file": LOG, "level": "INFO", "vhost_level": "info"})
    mask = sum(1 << core for core in switch["pmd_cores"])
    assert mask == int(host.vsctl("get", "Open_vSwitch", ".", "other_config:pmd-cpu-mask").strip('"'), 16)
    assert switch["monitor"] is None

    assert [vm["name"] for vm in document["vms"]] == [guest.name for guest in host.guests]
    for vm, guest in zip(document["vms"], host.guests, strict=True):
        assert (vm["socket"], vm["bridge"], vm["connected"]) == (str(guest.socket), BRIDGE, True)
        assert vm["ofport"] == host.ofport(guest.name)
        assert vm["acked"] == int(host.vsctl("get", "interface", guest.name, "status:features").strip('"'), 16)
        small = guest.kind.memory_mb << 20
        assert (vm["vrings"], vm["log"]) == (2, {"regions": 1, "small_pages": small, "fault": None, "hint": None})
        qemu = vm["qemu"]
        assert (qemu["pid"], qemu["guest"], qemu["kvm"]) == (guest.pid, guest.name, False)
        assert qemu["monitors"] == [{"path": str(guest.monitor), "client": None}]
        assert qemu["version"] in str(host.run([host.layout.options.qemu, "--version"]))
        assert qemu["traceable"] is True

    pipeline = document["pipeline"]
    bridges = {bridge["name"]: bridge for bridge in pipeline["bridges"]}
    assert bridges.keys() == {BRIDGE, UPLINK_BRIDGE}
    assert (bridges[BRIDGE]["flows"], bridges[BRIDGE]["identity_nat"]) == (len(flows), True)
    assert pipeline["ovn"]["pid"] == ovn.controller_pid
    assert [(port["name"], port["kind"]) for port in pipeline["uplinks"]] == [(UPLINK, "virtual device")]
    assert [port["addresses"] for port in pipeline["kernel_ports"] if port["name"] == UPLINK_BRIDGE] == [
        [f"{VTEP}/24"]
    ]  # fmt: skip
    assert list(pipeline["tunnels"].values()) == ["geneve"]

    assert document["ready"] is True
    warnings = findings(document, "warning")
    expected = {"ovn", "host ports", "memory pages"} | ({"conntrack"} if switch["ovs_version"] == "3.1.0" else set())
    assert warnings.keys() == expected, warnings
    assert VTEP in warnings["host ports"]
    assert "--mlockall" in warnings["memory pages"], "the guests' memory is of small pages"


def test_bursts_looks_at_the_distributions_switch_and_changes_what_is_the_operators(
    host: StockHost, config: Path
) -> None:
    """Before the host is taken over, under OVN: what others program stays, and an undo leaves nothing."""
    before, flows = host.vsctl("list", "Interface", "vm1"), host.flows()
    looking = ("bursts", "--seconds", "0.6")
    found = command(host, config, *looking, "--apply", "tx-retries:vm1")
    assert (found["active"], found["findings"]) == (None, []), "everything could be read"
    assert found["cost"]["looks"] > 1
    assert sum(each["queues"] for each in found["threads"]) >= len(host.guests)
    (made,) = found["applied"]
    assert (made["before"], made["after"]) == (None, "32")
    assert host.vsctl("get", "Interface", "vm1", "options:tx-retries-max") == '"32"'
    assert len(command(host, config, "bursts", "--undo")["undone"]) == 1
    assert stable(host.vsctl("list", "Interface", "vm1")) == stable(before)
    assert host.flows() == flows


def stable(row: str) -> list[str]:
    """A row of an interface without what the switch counts."""
    return [line for line in row.splitlines() if not line.startswith("statistics")]


def test_a_second_device_is_asked_for(host: StockHost, tmp_path: Path) -> None:
    bare = tmp_path / "config.toml"
    command(host, bare, "config", "init")
    errors = findings(check(host, bare, status=PrecheckFailed.exit_code), "error")
    assert errors.keys() == {"uplink"}
    assert "port up: the new instance has no device of its own" in errors["uplink"]


def test_a_bridge_with_everything_that_is_refused(host: StockHost, config: Path) -> None:
    vsctl = "ovs-vsctl --timeout=20"
    begin = [
        f"{vsctl} add-br {PLANTED} -- set bridge {PLANTED} datapath_type=netdev stp_enable=true"
        " mcast_snooping_enable=true",
        f"{vsctl} add-port {PLANTED} server -- set interface server type=dpdkvhostuser",
        f"{vsctl} add-port {PLANTED} vduse -- set interface vduse type=dpdkvhostuserclient"
        " options:vhost-server-path=/dev/vduse/none",
        f"{vsctl} add-port {PLANTED} tagged tag=7 -- set interface tagged type=dpdkvhostuserclient"
        f" options:vhost-server-path={host.directory}/none.sock",
        f"{vsctl} set port tagged lacp=active -- set interface tagged bfd:enable=true",
        f"{vsctl} -- --id=@p get port tagged -- --id=@m create mirror name=span select_all=true output_port=@p"
        f" -- set bridge {PLANTED} mirrors=@m",
        f"{vsctl} -- --id=@i create ipfix targets=[] -- set bridge {PLANTED} ipfix=@i",
        "ip link add kernel0 type veth peer name kernel1",
        f"{vsctl} add-port {PLANTED} kernel0",
        f"ovs-ofctl add-flow {PLANTED} 'ip,actions=set_field:0x6f767331->pkt_mark,drop' 2>/dev/null"
        f" || ovs-ofctl add-flow {PLANTED} 'ip,actions=load:0x6f767331->NXM_NX_PKT_MARK[]'",
    ]
    with planted(host, begin, [f"{vsctl} del-br {PLANTED}", "ip link del kernel0"]):
        document = check(host, config, status=PrecheckFailed.exit_code)
        left_out = command(host, config, "check", "--leave-out", "server", status=PrecheckFailed.exit_code)
    errors, warnings = findings(document, "error"), findings(document, "warning")
    assert errors.keys() == {"VM ports", "spanning tree", "LACP", "pkt_mark"}, errors
    assert "VM server: its port is a server (dpdkvhostuser)" in errors["VM ports"]
    assert "VM vduse: its port is the VDUSE device /dev/vduse/none" in errors["VM ports"]
    assert "VM server" not in findings(left_out, "error")["VM ports"]
    assert "VM server" in findings(left_out, "warning")["VM ports"]
    assert "port tagged has BFD" in warnings["BFD"]
    assert f"bridge {PLANTED} has mirrors (span)" in warnings["mirrors"]
    assert "IPFIX" in warnings["flow export"]
    assert "VM tagged: its port has tag 7" in warnings["VLANs"]
    assert "VM tagged: its QEMU is not connected" in warnings["VM ports"]
    assert "port kernel0 of bridge br-p is a device of the kernel (veth)" in warnings["host ports"]
    assert warnings.keys() >= {"multicast"}
    assert check(host, config)["ready"] is True, "it was all of the planted bridge"


def test_a_log_that_is_not_written(host: StockHost, config: Path) -> None:
    begin = ["ovs-appctl vlog/set dpdk:file:warn", "ovs-appctl dpdk/log-set lib.vhost.config:error"]
    with planted(host, begin, ["ovs-appctl vlog/set dpdk:file:info", "ovs-appctl dpdk/log-set lib.vhost.config:info"]):
        errors = findings(check(host, config, status=PrecheckFailed.exit_code), "error")
    assert errors.keys() == {"log"}
    assert "logged at level WARN and above" in errors["log"]
    assert "logs at level error and above" in errors["log"]


CLIENT = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
print(len(connection.recv(4096)), flush=True)
sys.stdin.read()
"""


def test_a_monitor_that_has_a_client(host: StockHost, config: Path) -> None:
    argv = [sys.executable, "-c", CLIENT, str(host.guests[0].monitor)]
    with host.space.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert int(client.stdout.readline()), "it is served"
        errors = findings(check(host, config, status=PrecheckFailed.exit_code), "error")
    assert errors.keys() == {"QEMU"}
    assert "VM vm1: the QMP socket of QEMU" in errors["QEMU"]
    assert "has room for one client, and has one: python3" in errors["QEMU"]


def test_processes_that_may_not_be_looked_into(host: StockHost, config: Path) -> None:
    confined = ("setpriv", "--bounding-set=-sys_ptrace", "--")
    document = check(host, config, status=PrecheckFailed.exit_code, before=confined)
    errors = findings(document, "error")
    assert all(f"VM {guest.name}: the process at the other end" in errors["QEMU"] for guest in host.guests)


def test_a_log_that_was_rotated(host: StockHost, config: Path) -> None:
    with planted(host, [f"mv {LOG} {LOG}.1", "ovs-appctl vlog/reopen"], []):
        print(host.run(["sh", "-c", f"tail -n 3 {LOG}.1; echo; head -n 3 {LOG}"]))
        assert check(host, config)["ready"] is True, "older files are read as well"
    with planted(host, [f"mv {LOG}.1 /run/away.log"], [f"mv /run/away.log {LOG}.1"]):
        errors = findings(check(host, config, status=PrecheckFailed.exit_code), "error")
    assert errors.keys() == {"log"}
    assert all(f"VM {guest.name}: " in errors["log"] for guest in host.guests)
    with planted(host, [f"mv {LOG} {LOG}.2"], [f"mv {LOG}.2 {LOG}"]):
        errors = findings(check(host, config, status=PrecheckFailed.exit_code), "error")
    assert f"logs to {LOG}.2, and stock.log is {LOG}" in errors["switch"], "without vlog/reopen"


def test_a_switch_that_has_ended(host: StockHost, config: Path, system: System) -> None:
    """The last test: the host has no switch afterwards."""
    assert host.switch_pid is not None
    system.kill(host.switch_pid)
    errors = findings(check(host, config, status=PrecheckFailed.exit_code), "error")
    assert "no ovs-vswitchd runs" in errors["switch"]
