"""A look at an instance that exists only as sockets which answer with what a real one has said."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config_file import load_config
from ovs_hotswap.diagnose import drop_counts
from ovs_hotswap.diagnose.asking import answers, asked
from ovs_hotswap.diagnose.facts import Facts, Switch, Unseen
from ovs_hotswap.diagnose.found import Cause
from ovs_hotswap.diagnose.judging import report
from ovs_hotswap.diagnose.looking import Look, wanted_of
from ovs_hotswap.diagnose.switch_look import SwitchLook
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Life, Side
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System
from ovs_hotswap.vm_ports import VmPort, write_ports
from tests.unit import doctor_bed
from tests.unit.diagnose_bed import FAR, HOP_MAC, OWN, VM1, VM2, VTEP
from tests.unit.fake_system import FakeSystem
from tests.unit.test_counter_reader import FLOWS, POOL, Daemon
from tests.unit.test_counters import COVERAGE, PMDS, row
from tests.unit.test_diagnose_texts import ANSWERS, BY_TUNNEL, DUMPED

OVERLAY = f"""
[vtep]
address = "{OWN}/24"
mac = "52:54:00:1f:00:01"
[[vm]]
name = "vm1"
ofport = 10
mac = "{VM1}"
vni = 100
mtu = 1450
[[vm]]
name = "vm2"
ofport = 11
mac = "{VM2}"
vni = 100
mtu = 1450
[[remote]]
vni = 100
mac = "{FAR}"
vtep = "{VTEP}"
[[neighbour]]
address = "{VTEP}"
mac = "{HOP_MAC}"
"""
CLONE = """program = "clone"
[instances.a]
pmd_cores = [0]
port_devices = { uplink = "x" }
[instances.b]
pmd_cores = [0]
port_devices = { uplink = "y" }
"""
SHOWN = """\
netdev@ovs-netdev:
  lookups: hit:1903 missed:20 lost:0
  flows: 20
  port 0: ovs-netdev (tap)
  port 1: vm2 (dpdkvhostuserclient: configured_rx_queues=1, mtu=1450)
  port 2: vm1 (dpdkvhostuserclient: configured_rx_queues=1, mtu=1450)
  port 3: vxlan_sys_4789 (vxlan: packet_type=ptap)
  port 4: uplink (dpdk: configured_rx_queues=1, mtu=1500)
  port 5: br0 (tap)
"""
QUEUES = """\
Displaying last 60 seconds pmd usage %
pmd thread numa_id 0 core_id 1:
  isolated : false
  port: uplink            queue-id:  0 (enabled)   pmd usage: NOT AVAIL
  port: vm1               queue-id:  0 (enabled)   pmd usage: NOT AVAIL
  overhead: NOT AVAIL
"""
PERFORMANCE = """\
pmd thread numa_id 0 core_id 1:

  Iterations:                    {count}  (1.00 us/it)
"""
TOLD = {
    "version": "ovs-vswitchd (Open vSwitch) 3.1.0\n", "coverage/show": COVERAGE, "dpif-netdev/pmd-stats-show": PMDS,
    "netdev-dpdk/get-mempool-info": POOL, "dpctl/ct-get-nconns": "12\n", "dpctl/ct-get-maxconns": "3000000\n",
    "dpctl/ct-get-limits": "default limit=10\n", "dpctl/show": SHOWN, "dpctl/dump-flows": DUMPED,
    "dpif-netdev/pmd-rxq-show": QUEUES, "dpif-netdev/pmd-perf-show": PERFORMANCE.format(count=7),
    "ovs/route/show": f"Route Table:\nCached: {OWN}/32 dev br0 SRC {OWN} local\nCached: 172.31.0.0/24 dev br0\n",
    "tnl/neigh/show": f"IP       MAC        Bridge\n====\n{VTEP}    {HOP_MAC}   br0\n", "ofproto/trace": BY_TUNNEL,
}  # fmt: skip
PORTS = """\
OFPST_PORT reply (OF1.4) (xid=0x2): 2 ports
  port  10: rx pkts=77, bytes=7, drop=0, errs=0, frame=?, over=?, crc=?
           tx pkts=88, bytes=8, drop=1, errs=0, coll=?
           duration=1s
                      CUSTOM Statistics
                      ovs_tx_failure_drops=1, ovs_rx_qos_drops=0,
"""


class Passing(FakeSystem):
    """A system on which something happens while a caller sleeps."""

    meanwhile: Callable[[float], None] = staticmethod(lambda seconds: None)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.meanwhile(seconds)


@dataclass
class Bed:
    """``told``: what ovs-vswitchd answers to each command; one that is missing is refused. ``printed``: what ovs-ofctl
    prints, by command. ``pid_file`` is its own. ``ids``: the ``external_ids`` of interfaces."""

    host: Host
    system: Passing
    told: dict[str, Any]
    printed: dict[str, str]
    pid_file: Path
    asked: Daemon
    ids: dict[str, list[list[str]]]

    def look(self) -> tuple[Switch, tuple[Unseen, ...]]:
        return SwitchLook(self.host, Side.A, wanted_of(self.host), 1.0).switch()


@pytest.fixture
def bed() -> Iterator[Bed]:
    directory = Path(tempfile.mkdtemp(prefix="ovsh-"))  # a socket's path has room for 107 bytes
    files = doctor_bed.Bed(directory)
    files.overlay.write_text(OVERLAY)
    config = load_config(files.config)
    paths = InstancePaths.of(config, Side.A)
    paths.run_dir.mkdir(parents=True)
    told: dict[str, Any] = dict(TOLD)
    ids: dict[str, list[list[str]]] = {}

    def command(method: str, params: list[Any]) -> Any:
        return told.get(method, RuntimeError(f'"{method}" is not a valid command'))

    def transact(method: str, params: list[Any]) -> Any:
        named = [row(name=name, ofport=number, external_ids=["map", ids.get(name, [])], _uuid=["uuid", name])
                 for name, number in (("vm1", 10), ("vm2", 11), ("uplink", 1))]  # fmt: skip
        ports = [{"_uuid": ["uuid", f"port {each['name']}"], "interfaces": ["uuid", each["name"]]} for each in named]
        bridge = {"name": "br0", "ports": ["set", [each["_uuid"] for each in ports]]}
        rows = {"Interface": named, "Port": ports, "Bridge": [bridge]}
        return [{"rows": rows.get(each["table"], [])} for each in params[1:]]

    def run(argv: Sequence[str]) -> tuple[int, str]:
        return 0, next((text for command, text in printed.items() if command in argv), "")

    printed = {"dump-ports-desc": (ANSWERS / "dump-ports-desc.txt").read_text(), "dump-ports": PORTS,
               "dump-flows": FLOWS}  # fmt: skip
    system = Passing(run)
    for pid, file in ((os.getpid(), paths.vswitchd_pid), (os.getppid(), paths.ovsdb_pid)):
        file.write_text(f"{pid}\n")
        system.processes[pid] = ["daemon", f"--pidfile={file}"]
    daemons = Daemon(paths.vswitchd_ctl, command), Daemon(paths.db_socket, transact)
    yield Bed(Host(config, system, quick=True), system, told, printed, paths.vswitchd_pid, daemons[0], ids)
    for daemon in daemons:
        daemon.close()
    shutil.rmtree(directory)


def test_a_look_has_everything_of_an_instance(bed: Bed) -> None:
    found, unseen = bed.look()
    assert unseen == ()
    assert (found.life, found.silent, found.database, found.differences) == (Life.RUNS, None, True, ())
    assert found.watched == 1.0
    assert found.log.endswith("ovs-vswitchd.log")
    assert found.ports is not None
    assert (found.ports["vm1"].number, found.ports["vm1"].mtu, found.ports["vm1"].queues) == ("2", 1450, 1)
    assert found.ports["vm1"].flags == {"NO_FWD"}
    assert found.ports["vm2"].queues == 0
    assert [(each.destination, each.via) for each in found.routes or ()] == [
        (f"{OWN}/32", None),
        ("172.31.0.0/24", None),
    ]
    assert found.neighbours == {VTEP: HOP_MAC}
    assert len(found.megaflows or ()) == 20
    assert found.standing == (1,), "the same number of iterations, twice"


def test_ports_have_the_counters_of_this_moment_and_not_those_of_the_database(bed: Bed) -> None:
    found, _ = bed.look()
    assert found.after is not None
    ports = found.after.ports or {}
    assert ports["vm1"].count("rx_packets") == 77
    assert ports["vm2"].statistics == {}, "the bridge says nothing of it, and the database's are of another time"


def test_counters_that_only_one_look_has_are_of_no_use(bed: Bed) -> None:
    """All that a port ever dropped would otherwise be taken for what it drops now."""
    assert _grown(bed) == {}, "nothing changes"
    bed.printed["dump-ports"] = ""

    def now(seconds: float) -> None:
        bed.printed["dump-ports"] = PORTS if seconds == 1.0 else ""

    bed.system.meanwhile = now
    assert _grown(bed) == {}, "the first look has none"
    bed.printed["dump-ports"] = PORTS
    bed.system.meanwhile = lambda seconds: bed.printed.update({"dump-ports": PORTS if seconds < 1.0 else ""})
    assert _grown(bed) == {}, "the second one has none"
    bed.told["coverage/show"] = "1 events never hit\n"
    bed.printed["dump-ports"] = PORTS
    bed.system.meanwhile = lambda seconds: bed.told.update({"coverage/show": COVERAGE} if seconds == 1.0 else {})
    assert _grown(bed) != {}, "events that had never happened happen"
    del bed.told["coverage/show"]
    assert _grown(bed) == {}, "the first look could not be made"


def _grown(bed: Bed) -> dict[str, int]:
    found, _ = bed.look()
    grown = drop_counts.grown(Facts(wanted_of(bed.host), 1.0, Side.A, switch=found))
    return {each.reason: each.packets for each in grown if each.packets}


def test_what_flows_count_too_late_is_not_of_this_look(bed: Bed) -> None:
    """Before the first look at counters, packets of the time before have half a second to be added to them."""
    more = FLOWS.replace("n_packets=3", "n_packets=12")
    bed.system.meanwhile = lambda seconds: bed.printed.update({"dump-flows": more})
    assert _grown(bed) == {}
    bed.printed["dump-flows"] = FLOWS
    bed.system.meanwhile = lambda seconds: bed.printed.update({"dump-flows": more} if seconds == 1.0 else {})
    assert _grown(bed) == {"spoofed": 9}


@pytest.mark.parametrize(
    ("command", "field", "part"),
    [
        ("ovs/route/show", "routes", "routes"), ("tnl/neigh/show", "neighbours", "neighbours"),
        ("dpctl/dump-flows", "megaflows", "datapath flows"), ("dpif-netdev/pmd-rxq-show", "ports", "ports"),
    ],
)  # fmt: skip
def test_a_part_that_cannot_be_read_is_named(bed: Bed, command: str, field: str, part: str) -> None:
    del bed.told[command]
    found, unseen = bed.look()
    assert getattr(found, field) is None
    assert f"The {part} of instance a" in {each.part for each in unseen}


def test_a_counter_that_cannot_be_read_is_named(bed: Bed) -> None:
    del bed.told["coverage/show"]
    found, unseen = bed.look()
    assert found.after is not None
    assert found.after.coverage is None
    assert [each.part for each in unseen] == ["The counters (coverage) of instance a"]


def test_too_many_flows_are_not_read(bed: Bed) -> None:
    bed.told["dpctl/show"] = SHOWN.replace("flows: 20\n", "flows: 20001\n")
    found, unseen = bed.look()
    assert found.megaflows is None
    assert unseen == (), "to leave them out is no fault of the host"
    assert any("20001 flows" in each for each in report(Facts(wanted_of(bed.host), 1.0, Side.A, switch=found)).limits)
    assert "dpctl/dump-flows" not in {command for command, _ in bed.asked.asked}


def test_a_thread_that_makes_progress_does_not_stand(bed: Bed) -> None:
    rounds = {"dpif-netdev/pmd-perf-show": PERFORMANCE.format(count=9)}
    bed.system.meanwhile = lambda seconds: bed.told.update(rounds if seconds == 1.0 else {})
    assert bed.look()[0].standing == ()


def test_an_instance_that_does_not_answer_is_asked_no_more(bed: Bed) -> None:
    del bed.told["version"]
    found, unseen = bed.look()
    assert found.silent
    assert (found.before, unseen) == (None, ())
    assert [command for command, _ in bed.asked.asked] == ["version"]


def test_an_instance_without_its_database_is_not_asked_what_it_cannot_answer(bed: Bed) -> None:
    paths = bed.host.instances[Side.A].paths
    paths.ovsdb_pid.unlink()
    bed.printed.clear()
    before = len(bed.system.ran)
    found, unseen = bed.look()
    assert (found.database, unseen) == (False, ())
    assert len(bed.system.ran) == before, "no ovs-ofctl was run"
    facts = Facts(wanted_of(bed.host), 1.0, Side.A, switch=replace(found, standing=(), megaflows=()))
    assert report(facts).findings[0].cause is Cause.DATABASE_GONE
    assert any("ovsdb-server" in each for each in report(facts).limits)


def test_a_dead_instance_is_not_asked(bed: Bed) -> None:
    bed.pid_file.unlink()
    found, _ = bed.look()
    assert found.life is Life.DEAD
    assert bed.asked.asked == []


def test_the_flow_tables_are_asked_about_a_vm(bed: Bed) -> None:
    found, _ = bed.look()
    facts = Facts(wanted_of(bed.host), 1.0, Side.A, switch=found)
    told = answers(bed.host, facts, asked(facts, "vm1", FAR))
    assert [each.trace.delivered for each in told] == [True, True]
    assert answers(bed.host, facts, asked(facts, None, None)) == []
    silent = replace(facts, switch=replace(found, silent="no answer"))
    assert answers(bed.host, silent, asked(facts, "vm1", FAR)) == []
    del bed.told["ofproto/trace"]
    unknown = answers(bed.host, facts, asked(facts, "vm1", FAR))
    assert [each.trace.delivered for each in unknown] == [None, None], "it is not taken for a drop"
    told_of = report(facts, asked(facts, "vm1", FAR), unknown)
    assert not any("ofproto/trace" in each.command for each in told_of.findings)
    assert "is not known" in told_of.paths[0].steps[0]


def test_the_next_hops_of_a_vm_are_asked_and_no_others(bed: Bed) -> None:
    look, wanted = Look(bed.host.config, bed.host.system), wanted_of(bed.host)
    assert look._hops(bed.host.intent, wanted) == [VTEP]
    alone = replace(wanted, vms={**wanted.vms, "vm1": replace(wanted.vms["vm1"], vni=7)})
    assert replace(look, vm="vm1")._hops(bed.host.intent, alone) == []


def test_all_parts_of_a_host_become_facts(bed: Bed) -> None:
    """Nothing of the host runs but the instance; what hangs or is missing is named, and keeps nothing from being
    seen."""
    config = bed.host.config
    look = Look(config, bed.host.system, 0.6, probe=False)
    assert look.facts().switch is None, "no side is recorded as active"
    config.active_file.write_text("a")
    facts = look.facts()
    assert facts.active is Side.A
    assert facts.switch is not None
    assert facts.switch.neighbours == {VTEP: HOP_MAC}
    assert facts.broker_fault is not None
    assert "no process listens" in facts.broker_fault
    assert facts.guests is None
    assert facts.standby is not None
    assert facts.standby.running is False
    assert facts.unfinished is None
    found = report(facts)
    assert found.findings[0].cause is Cause.BROKER_GONE
    assert Cause.NOT_POLLED not in {each.cause for each in found.findings}, "it is not known whether vm2 has a guest"


def test_on_a_host_that_others_program_vms_have_the_macs_that_are_written_or_seen(bed: Bed, tmp_path: Path) -> None:
    file, before = tmp_path / "clone.toml", bed.host.config
    file.write_text(f'run_dir = "{before.run_dir}"\nstate_dir = "{before.state_dir}"\n{CLONE}')
    config = load_config(file)
    ports = tuple(VmPort(name=name, bridge="br0", ofport=number, socket=Path(f"/run/{name}.sock"))
                  for name, number in (("vm1", 10), ("vm2", 11)))  # fmt: skip
    write_ports(config, System(), ports)
    config.active_file.write_text("a")
    bed.ids["vm2"] = [["attached-mac", VM2.upper()]]
    facts = Look(config, bed.host.system, 0.6, probe=False).facts()
    assert not facts.wanted.overlay
    assert {name: vm.mac for name, vm in facts.wanted.vms.items()} == {"vm1": VM1, "vm2": VM2}
    assert facts.underlay is None
    found = {each.cause for each in report(facts).findings}
    assert found == {Cause.BROKER_GONE, Cause.PMD_STANDS, Cause.PORT_BLOCKED}
