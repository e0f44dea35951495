"""`bursts` against a switch that exists only as sockets: looking, changing with a record, undoing, and the command."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.bursts import advice, texts
from ovs_hotswap.bursts.applying import Applied, Changer, shows
from ovs_hotswap.bursts.found import Advice, Cause, Setting
from ovs_hotswap.bursts.judging import report
from ovs_hotswap.bursts.looking import Looking
from ovs_hotswap.bursts.target import target
from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.output import Output
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import BusyError, ConfigError, HostError, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import StepNames
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.rpc import NoAnswer
from tests.support.fake_backends import ring_status, vm_status
from tests.support.json_schema import faults
from tests.unit import doctor_bed
from tests.unit.fake_system import FakeSystem
from tests.unit.test_counter_reader import POOL, Daemon
from tests.unit.test_diagnose_look import CLONE, OVERLAY
from tests.unit.test_port_stats import REPLY, REQUEST, Bridge, custom, message, part, port
from tools import schema

BURSTS = json.loads((schema.DIRECTORY / "bursts.schema.json").read_text())
ANSWERS = Path(__file__).parent / "answers" / "bursts"
SHOWN = """\
netdev@ovs-netdev:
  port 1: vm1 (dpdkvhostuserclient: configured_rx_queues=1, mtu=1450)
  port 4: uplink (dpdk: configured_rx_queues=1, mtu=1500, n_rxq_desc={ring}, n_txq_desc=2048)
"""
QUEUES = """\
Displaying last 60 seconds pmd usage %
pmd thread numa_id 0 core_id 1:
  isolated : false
  port: uplink            queue-id:  0 (enabled)   pmd usage:  3 %
  port: vm1               queue-id:  0 (enabled)   pmd usage: NOT AVAIL
  overhead: NOT AVAIL
"""
PMD = """\
pmd thread numa_id 0 core_id 1:
  packets received: {received}
  packet recirculations: 0
  miss with success upcall: 0
  miss with failed upcall: 0
  idle cycles: {idle} (95.00%)
  processing cycles: {busy} (5.00%)
"""
PERFORMANCE = """\
pmd thread numa_id 0 core_id 1:

  Iterations:             {count}  (1.00 us/it)
  - sleep iterations:     {sleeps}  (  0.0 % of iterations)
"""
HISTOGRAM = """\
Histograms
   cycles/it              packets/it             cycles/pkt             pkts/batch             max vhost qlen         upcalls/it             cycles/upcall
   499       10           0         9            100       0            1         1            0         90           0         0            1000      0
   998       10           1         9            200       0            2         1            100       4            1         0            2000      0
   >         10           >         9            >         0            >         1            >         {full}       >         0            >         0
---------
"""  # noqa: E501


@dataclass
class FakeSwitch:
    """What a switch says, and what its database holds. ``lost``: packets that vm1's ring has no room for, at each look.
    ``obeys``: it takes up what is written to its database. ``drops``: values of n_rxq_desc with which it loses the
    port."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    looks: int = 0
    obeys: bool = True
    drops: set[str] = field(default_factory=set)
    between: Callable[[], None] = lambda: None  # what others do before a transaction

    def command(self, method: str, params: list[Any]) -> Any:
        if method in self.told:
            return self.told[method]
        number = self.looks
        ring = self.interface("uplink")["options"].get("n_rxq_desc", "2048")
        answers = {
            "version": "ovs-vswitchd (Open vSwitch) 3.1.0\n", "netdev-dpdk/get-mempool-info": POOL,
            "dpif-netdev/pmd-rxq-show": QUEUES,
            "dpif-netdev/pmd-stats-show": PMD.format(received=900 * number, idle=9500 * number, busy=500 * number),
            "dpif-netdev/pmd-perf-show": PERFORMANCE.format(count=number, sleeps=number),
            "dpctl/show": SHOWN.format(ring=ring) if ring not in self.drops else SHOWN.partition("  port 4")[0],
        }  # fmt: skip
        return answers.get(method, RuntimeError(f'"{method}" is not a valid command'))

    def statistics(self, _version: int, kind: int, xid: int, body: bytes) -> bytes:
        """Answer as a bridge, which has counted 100 packets more at each look."""
        if kind != REQUEST:
            return b""
        self.looks += 1
        lost = sum(self.lost[: self.looks])
        counts = (100 * self.looks,) * 8
        ports = {1: port(1, counts, custom({"rx_missed_errors": 0})),
                 10: port(10, counts, custom({"ovs_tx_failure_drops": lost, "ovs_tx_retries": lost}))}  # fmt: skip
        (asked,) = struct.unpack_from("!I", body, 8)
        return message(
            REPLY, xid, part(b"".join(each for number, each in ports.items() if asked in (number, 2**32 - 1)))
        )

    # -- the database

    def interface(self, name: str) -> dict[str, Any]:
        return next(row for row in self.rows["Interface"] if row["name"] == name)

    @property
    def root(self) -> dict[str, Any]:
        return self.rows["Open_vSwitch"][0]

    def transact(self, _method: str, params: list[Any]) -> Any:
        if any(operation["op"] == "wait" for operation in params[1:]):
            self.between()
        results: list[dict[str, Any]] = []
        for operation in params[1:]:
            named = operation.get("where") or [["name", "==", None]]
            rows = [row for row in self.rows[operation["table"]] if named[0][2] in (None, row.get("name"))]
            if operation["op"] == "select":
                results.append({"rows": [{name: _written(row.get(name)) for name in operation["columns"]}
                                         for row in rows]})  # fmt: skip
            elif operation["op"] == "wait":
                if any(
                    _written(row[column]) != value for row in rows for column, value in operation["rows"][0].items()
                ):
                    return [*results, {"error": "timed out", "details": '"wait" timed out'}]
                results.append({})
            else:
                for column, how, value in operation["mutations"]:
                    _mutate(rows[0], column, how, value)
                results.append({"count": len(rows)})
        if self.obeys:
            self.root["cur_cfg"] = self.root["next_cfg"]
        return results


def _written(value: Any) -> Any:
    return ["map", [list(pair) for pair in sorted(value.items())]] if isinstance(value, dict) else value


def _mutate(row: dict[str, Any], column: str, how: str, value: Any) -> None:
    if how == "+=":
        row[column] += value
    elif how == "delete":
        for key in value[1]:
            row[column].pop(key, None)
    else:
        row[column].update(dict(value[1]))


@dataclass
class Bed:
    host: Host
    switch: FakeSwitch
    files: doctor_bed.Bed
    asked: Daemon
    bridge: Bridge
    pid_file: Path
    vms: list[Any]

    def looking(self, vm: str | None = None, seconds: float = 1.0) -> Looking:
        looking = Looking(self.host.config, self.host.system, seconds, 0.1, vm)
        looking._host.__dict__["backends"] = self.host.__dict__["backends"]
        return looking

    @property
    def changer(self) -> Changer:
        return Changer(self.host)

    @property
    def record(self) -> list[dict[str, Any]]:
        return list(json.loads(self.changer.record.read_text())["changes"])

    def command(self, *words: str) -> tuple[int, Any]:
        """Exit code and JSON document of a command, which has the bed's host as a real one."""
        out, err = io.StringIO(), io.StringIO()
        app = App(Output(json=True, out=out, err=err))
        app.__dict__["system"] = self.host.system
        code = main.run(["--config", str(self.files.config), "bursts", *words], app)
        return code, json.loads(out.getvalue()) if out.getvalue() else err.getvalue()


class Interrupted(FakeSystem):
    """A machine whose user interrupts at a time, while the program waits."""

    at: float | None = None

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.at is not None and self.now >= self.at:
            raise KeyboardInterrupt


class _Vms:
    def __init__(self, found: list[Any]) -> None:
        self._found = found

    def vms(self, *, read: bool = True) -> list[Any]:
        if self._found and isinstance(self._found[0], Exception):
            raise self._found[0]
        return self._found


@pytest.fixture
def bed() -> Iterator[Bed]:
    directory = Path(tempfile.mkdtemp(prefix="ovsh-"))  # a socket's path has room for 107 bytes
    files = doctor_bed.Bed(directory)
    files.overlay.write_text(OVERLAY)
    config = load_config(files.config)
    paths = InstancePaths.of(config, Side.A)
    paths.run_dir.mkdir(parents=True)
    (config.run_dir / "active").write_text("a\n")
    switch = FakeSwitch()
    switch.rows = {
        "Open_vSwitch": [{"_uuid": ["uuid", "r"], "other_config": {}, "next_cfg": 4, "cur_cfg": 4}],
        "Bridge": [{"_uuid": ["uuid", "b"], "name": "br0", "ports": ["set", [["uuid", "p1"], ["uuid", "p2"]]]}],
        "Port": [{"_uuid": ["uuid", f"p{number}"], "name": name, "interfaces": ["uuid", f"i{number}"]}
                 for number, name in ((1, "vm1"), (2, "uplink"))],
        "Interface": [
            {"_uuid": ["uuid", "i1"], "name": "vm1", "type": "dpdkvhostuserclient", "ofport": 10,
             "options": {"vhost-server-path": "/x"}, "other_config": {}, "status": {}},
            {"_uuid": ["uuid", "i2"], "name": "uplink", "type": "dpdk", "ofport": 1,
             "options": {"dpdk-devargs": "0000:03:02.0"}, "other_config": {},
             "status": {"driver_name": "net_i40e", "max_rx_queues": "320", "numa_id": "1"}},
            {"_uuid": ["uuid", "i3"], "name": "br0", "type": "internal", "ofport": 65534, "options": {},
             "other_config": {}, "status": {}},
        ],
    }  # fmt: skip
    system = Interrupted()
    for pid, file in ((os.getpid(), paths.vswitchd_pid), (os.getppid(), paths.ovsdb_pid)):
        file.write_text(f"{pid}\n")
        system.processes[pid] = ["daemon", f"--pidfile={file}"]
    daemons = Daemon(paths.vswitchd_ctl, switch.command), Daemon(paths.db_socket, switch.transact)
    bridge = Bridge(paths.mgmt("br0"), switch.statistics)
    host = Host(config, system, quick=True)
    vms = [vm_status("vm1", rings=(ring_status(0, 500, 20, size=512), ring_status(1)))]
    host.__dict__["backends"] = _Vms(vms)
    yield Bed(host, switch, files, daemons[0], bridge, paths.vswitchd_pid, vms)
    for daemon in (*daemons, bridge):
        daemon.close()
    shutil.rmtree(directory)


# ------------------------------------------------------------------------------------------------------------ looking


def test_a_loss_in_a_moment_is_seen_with_what_the_switch_was_doing(bed: Bed) -> None:
    bed.switch.lost = [0, 0, 0, 40, 0, 0]
    window = bed.looking().window()
    assert (round(window.seconds, 6), len(window.intervals)) == (1.0, 10)
    assert (window.unseen, window.upgrade) == ((), False)
    assert [each.grown("vm1", "ovs_tx_failure_drops") for each in window.intervals] == [0, 0, 40, *[0] * 7]
    assert {each.cores[1].busy for each in window.intervals} == {0.05}
    uplink, vm1 = window.ports["uplink"], window.ports["vm1"]
    assert (uplink.numa, uplink.crosses, vm1.numa) == (1, True, None)
    assert (uplink.driver, uplink.most_queues, uplink.cores, uplink.queues[0].usage) == ("net_i40e", 320, (1,), 3)
    assert (vm1.ring, vm1.elsewhere, vm1.queues[0].usage, window.sent_rings) == (512, False, None, (256,))
    assert (window.sleep_key, window.sleeps) == ("pmd-maxsleep", {1: 11})
    assert [pool.buffers for pool in window.pools] == [16384]
    assert window.cost.looks == 11
    first = report(window, Side.A)[0].findings[0]
    assert (first.cause, first.vm, first.lost) == (Cause.GUEST_RING_SHORT, "vm1", 40)


def test_only_the_port_of_the_vm_and_of_devices_is_asked_for(bed: Bed) -> None:
    window = bed.looking("vm1").window()
    assert sorted(window.ports) == ["uplink", "vm1"]
    asked = {struct.unpack_from("!I", body, 8)[0] for kind, body in bed.bridge.heard if kind == REQUEST}
    assert asked == {1, 10}
    with pytest.raises(ConfigError, match="no VM vm9"):
        bed.looking("vm9").window()


def test_a_look_that_takes_long_is_made_less_often(bed: Bed) -> None:
    system = bed.host.system
    assert isinstance(system, FakeSystem)
    answer = bed.switch.statistics

    def slow(version: int, kind: int, xid: int, body: bytes) -> bytes:
        system.now += 0.05 if kind == REQUEST else 0
        return answer(version, kind, xid, body)

    bed.bridge._say = slow
    window = bed.looking(seconds=5.0).window()
    assert [round(each.seconds, 2) for each in window.intervals] == [0.5] * 10, "a tenth of the time"
    assert window.cost.look_ms == 50


def test_what_cannot_be_read_is_named_and_the_rest_is_judged(bed: Bed) -> None:
    bed.vms[:] = [HostError("no broker", hint="start it")]
    bed.switch.told = {"netdev-dpdk/get-mempool-info": RuntimeError("no"), "version": RuntimeError("no")}
    window = bed.looking().window()
    assert {each.part for each in window.unseen} == {"The VMs' rings", "Its packet pools", "Its version"}
    assert window.ports["vm1"].ring is None
    assert len(window.looks) == 11
    found = report(window, Side.A)[0]
    assert [each.cause for each in found.findings] == [Cause.NOT_SEEN] * 3


def test_a_switch_that_falls_silent_ends_the_looking(bed: Bed) -> None:
    bed.switch.told["dpif-netdev/pmd-stats-show"] = RuntimeError("gone")
    window = bed.looking().window()
    assert (window.looks, window.seconds) == ((), 0.0)
    assert [each.part for each in window.unseen] == ["Its counters"]


def test_the_rings_of_vms_that_lost_packets_are_looked_at(bed: Bed) -> None:
    bed.switch.lost = [0, 0, 40]
    full, room = ring_status(0, 100, 90, size=256), ring_status(0, 100, 80, size=256)
    off, sends = replace(full, enabled=False), ring_status(1, 50, 50)
    for rings, share in (((full, sends), 1.0), ((room, full, sends), 1.0), ((room, off, sends), 0.0)):
        bed.vms[:] = [vm_status("vm1", rings=rings), vm_status("vm2", rings=(full,))]
        bed.switch.looks = 0
        window = bed.looking().window()
        assert window.ports["vm1"].full == share
    assert (
        report(replace(window, ports={**window.ports, "vm1": replace(window.ports["vm1"], full=1.0)}))[0]
        .findings[0]
        .cause
        == Cause.GUEST_SLOW
    )
    bed.switch.lost, bed.switch.looks = [], 0
    assert bed.looking().window().ports["vm1"].full is None, "nothing was lost"


def test_a_vm_that_the_other_side_serves_is_known(bed: Bed) -> None:
    bed.vms[:] = [vm_status("vm1", owner=Side.B)]
    window = bed.looking().window()
    assert window.ports["vm1"].elsewhere
    assert (window.ports["vm1"].ring, window.sent_rings) == (None, ())


def test_histograms_are_read_if_the_switch_keeps_them(bed: Bed) -> None:
    bed.switch.root["other_config"]["pmd-perf-metrics"] = "true"
    bed.switch.told["dpif-netdev/pmd-perf-show"] = PERFORMANCE.format(count=1, sleeps=0) + HISTOGRAM.format(full=3)
    assert bed.looking().window().fills == {0: 0, 1: 0, 101: 0}
    assert ("dpif-netdev/pmd-perf-show", []) in bed.asked.asked
    assert texts.fills(HISTOGRAM.format(full=3)) == {0: 90, 1: 4, 101: 3}
    assert texts.grown({0: 90, 1: 4}, {0: 95, 1: 2}) == {0: 5, 1: 2}


def test_what_a_real_switch_prints_of_its_work_is_understood() -> None:
    text = (ANSWERS / "perf-3.1.txt").read_text()
    assert texts.sleeps(text) == {1: 17939}
    found = texts.fills(text)
    assert (found[0], found[1], found[17], found[413 - 80], found[513]) == (8628, 31, 143, 12, 42)
    assert max(found) == 513, "the last class is that above the largest bound"


@pytest.mark.parametrize(("key", "value", "seen"), [("n_rxq_desc", "2048", True), ("n_rxq_desc", "204", False),
                                                    ("n_txq_desc", "2048", True), ("n_rxq", "1", True),
                                                    ("n_rxq", "2", False)])  # fmt: skip
def test_what_is_in_force_is_seen_in_what_real_switches_print(key: str, value: str, seen: bool) -> None:
    """The second line is as later versions have it (lib/netdev-dpdk.c)."""
    old = next(line for line in (ANSWERS / "show-3.1.txt").read_text().splitlines() if ": uplink " in line)
    new = "  port 4: uplink (dpdk: n_rxq=1, n_rxq_desc=2048, n_txq_desc=2048, requested_rxq_descriptors=4096)"
    for line in (old, new):
        assert shows(Setting("Interface", "uplink", "options", key, value), line) is seen


def test_the_main_thread_is_none_that_sleeps() -> None:
    assert texts.sleeps(PERFORMANCE.format(count=9, sleeps=4) + "main thread:\n  - sleep iterations:  7\n") == {1: 4}


def test_an_unfinished_upgrade_is_known(bed: Bed) -> None:
    with Journals(bed.host.config.state_dir, bed.host.system).begin("upgrade", StepNames(("x",), ())):
        assert bed.looking().window().upgrade
    (current,) = (bed.host.config.state_dir / "journal").glob("current*")
    current.write_text("not a journal\n")
    assert bed.looking().window().upgrade, "it is not known to be finished"


def test_no_switch_is_no_answer(bed: Bed) -> None:
    bed.pid_file.unlink()
    with pytest.raises(SwitchError, match="instance a, which is active, died"):
        bed.looking().window()
    (bed.host.config.run_dir / "active").unlink()
    with pytest.raises(SwitchError, match="no instance is active"):
        bed.looking().window()


def test_the_distributions_switch_is_looked_at_before_it_is_taken_over(bed: Bed) -> None:
    stock = bed.host.config.run_dir / "stock"
    stock.mkdir()
    bed.files.config.write_text(f'run_dir = "{bed.host.config.run_dir}"\n' + CLONE + f'[stock]\nrun_dir = "{stock}"\n')
    (bed.host.config.run_dir / "active").unlink()
    config = load_config(bed.files.config)
    for name, pid in (("ovs-vswitchd", os.getpid()), ("ovsdb-server", os.getppid())):
        (stock / f"{name}.pid").write_text(f"{pid}\n")
    here = target(Host(config, bed.host.system))
    assert (here.side, here.pid, here.paths.db_socket) == (None, os.getpid(), stock / "db.sock")
    assert here.paths.vswitchd_ctl == stock / f"ovs-vswitchd.{os.getpid()}.ctl"


def test_a_database_of_another_form_is_none(bed: Bed) -> None:
    bed.switch.rows["Interface"][0]["options"] = []
    with pytest.raises(SwitchError, match="not a database of Open vSwitch"):
        bed.looking().window()


# ----------------------------------------------------------------------------------------------------------- changing


def longer(value: str | None = "4096") -> Advice:
    return Advice("rx-ring:uplink", (Setting("Interface", "uplink", "options", "n_rxq_desc", value),), "it stops", True)


def made(bed: Bed, advised: Advice) -> Applied:
    (planned,) = bed.changer.plan([advised])
    bed.changer.make(planned)
    return bed.changer.changes()[-1]


def test_a_change_is_recorded_made_and_undone(bed: Bed) -> None:
    (planned,) = bed.changer.plan([longer()])
    assert (planned.before, planned.after) == (None, "4096")
    assert not bed.changer.record.exists(), "a plan changes nothing"
    result = bed.changer.make(planned)
    assert (result.before, result.after, result.seconds) == (None, "4096", 0.0)
    assert bed.switch.interface("uplink")["options"] == {"dpdk-devargs": "0000:03:02.0", "n_rxq_desc": "4096"}
    assert [(each["advice"], each["before"]) for each in bed.record] == [("rx-ring:uplink", None)]
    assert bed.changer.plan([longer()]) == [], "it is so already"
    (change,) = Changer(Host(bed.host.config, bed.host.system)).changes()
    undone = bed.changer.undo(change)
    assert (undone.why_not, undone.seconds) == ("", 0.0)
    assert bed.switch.interface("uplink")["options"] == {"dpdk-devargs": "0000:03:02.0"}
    assert bed.record == []


def test_an_earlier_value_of_the_operator_comes_back(bed: Bed) -> None:
    bed.switch.root["other_config"] = {"pmd-auto-lb": "false", "pmd-rxq-assign": "group"}
    change = made(bed, advice.auto_balance())
    assert bed.switch.root["other_config"]["pmd-auto-lb"] == "true"
    bed.changer.undo(change)
    assert bed.switch.root["other_config"] == {"pmd-auto-lb": "false", "pmd-rxq-assign": "group"}


def test_two_changes_of_a_value_are_undone_one_after_the_other(bed: Bed) -> None:
    first, second = made(bed, longer("1024")), made(bed, longer("4096"))
    bed.changer.undo(second)
    assert bed.switch.interface("uplink")["options"]["n_rxq_desc"] == "1024"
    bed.changer.undo(first)
    assert "n_rxq_desc" not in bed.switch.interface("uplink")["options"]


def test_what_others_have_set_since_is_left(bed: Bed) -> None:
    change = made(bed, longer())
    bed.switch.interface("uplink")["options"]["n_rxq_desc"] = "512"
    assert bed.changer.undo(change).why_not == "it is 512 now, and not 4096"
    assert bed.switch.interface("uplink")["options"]["n_rxq_desc"] == "512"
    assert bed.record == []


def test_a_change_that_was_recorded_and_not_made_is_forgotten_by_an_undo(bed: Bed) -> None:
    """A command that was killed between the two leaves that."""
    change = made(bed, longer())
    del bed.switch.interface("uplink")["options"]["n_rxq_desc"]
    undone = bed.changer.undo(change)
    assert (undone.why_not, undone.seconds) == ("", None)
    assert bed.record == []


def test_a_port_that_is_gone_keeps_no_record(bed: Bed) -> None:
    change = made(bed, longer())
    bed.switch.rows["Interface"].pop(1)
    assert bed.changer.undo(change).why_not == "Interface uplink is not there any longer"
    with pytest.raises(SwitchError, match="no Interface uplink"):
        bed.changer.plan([longer()])


def test_a_port_that_does_not_come_up_gets_its_earlier_configuration(bed: Bed) -> None:
    bed.switch.drops = {"4096"}
    (planned,) = bed.changer.plan([longer()])
    with pytest.raises(SwitchError, match=r"does not have it with n_rxq_desc=4096.*was put back") as caught:
        bed.changer.make(planned)
    assert "grep uplink" in str(caught.value.hint)
    assert "n_rxq_desc" not in bed.switch.interface("uplink")["options"]
    assert bed.record == []


def test_a_port_that_does_not_come_back_either_is_said(bed: Bed) -> None:
    bed.switch.drops = {"4096", "2048"}
    (planned,) = bed.changer.plan([longer()])
    with pytest.raises(SwitchError, match="with the earlier value it does not come back either"):
        bed.changer.make(planned)


def test_a_switch_that_does_not_take_it_up_leaves_the_record(bed: Bed) -> None:
    bed.switch.obeys = False
    (planned,) = bed.changer.plan([longer()])
    with pytest.raises(NoAnswer, match="has not taken up the change") as caught:
        bed.changer.make(planned)
    assert "bursts --undo" in str(caught.value.hint)
    assert len(bed.record) == 1


def test_a_switch_that_ends_during_the_change_is_said(bed: Bed) -> None:
    bed.switch.obeys = False
    system = bed.host.system
    assert isinstance(system, FakeSystem)
    bed.switch.between = system.processes.clear
    (planned,) = bed.changer.plan([longer()])
    with pytest.raises(SwitchError, match="ended while it took up the change"):
        bed.changer.make(planned)


@pytest.mark.parametrize("moment", ["before it is read again", "before the transaction"])
def test_a_value_that_others_change_at_the_same_time_is_not_overwritten(bed: Bed, moment: str) -> None:
    (planned,) = bed.changer.plan([longer()])

    def others() -> None:
        bed.switch.interface("uplink")["options"]["n_rxq_desc"] = "64"

    if moment == "before the transaction":
        bed.switch.between = others
    else:
        others()
    with pytest.raises(SwitchError, match=r"changed by others|timed out"):
        bed.changer.make(planned)
    assert bed.switch.interface("uplink")["options"]["n_rxq_desc"] == "64"


def test_nothing_is_changed_while_an_upgrade_is_unfinished(bed: Bed) -> None:
    (planned,) = bed.changer.plan([longer()])
    with (
        Journals(bed.host.config.state_dir, bed.host.system).begin("upgrade", StepNames(("x",), ())),
        pytest.raises(BusyError),
    ):
        bed.changer.make(planned)
    assert "n_rxq_desc" not in bed.switch.interface("uplink")["options"]
    assert not bed.changer.record.exists()


def test_a_record_that_others_could_write_or_that_is_none_is_not_believed(bed: Bed) -> None:
    bed.changer.record.parent.mkdir(parents=True, exist_ok=True)
    bed.changer.record.write_text("[]")
    with pytest.raises(HostError, match="not a record of changes"):
        bed.changer.changes()
    bed.changer.record.chmod(0o666)
    with pytest.raises(HostError, match="is not believed"):
        bed.changer.changes()


# -------------------------------------------------------------------------------------------------------- the command


def test_the_document_is_as_its_schema_says_and_the_exit_code_is_that_of_the_worst(bed: Bed) -> None:
    bed.switch.lost = [0, 0, 40]
    code, document = bed.command("--seconds", "1")
    assert code == 4
    assert faults(BURSTS, document) == []
    assert document["findings"][0]["advice"] == "tx-retries:vm1"
    bed.switch.lost = []
    code, document = bed.command("--seconds", "1")
    assert (code, document["findings"][0]["cause"]) == (6, "not-seen"), "no broker runs"
    assert document["applied"] == []


def test_what_is_advised_is_applied_and_undone_by_the_command(bed: Bed) -> None:
    bed.switch.lost = [0, 0, 40]
    code, document = bed.command("--seconds", "1", "--apply", "--dry-run")
    assert (code, [each["seconds"] for each in document["applied"]]) == (0, [None])
    assert "tx-retries-max" not in bed.switch.interface("vm1")["options"]
    bed.switch.looks = 0
    code, document = bed.command("--seconds", "1", "--apply")
    assert (code, [(each["key"], each["after"]) for each in document["applied"]]) == (0, [("tx-retries-max", "32")])
    assert bed.switch.interface("vm1")["options"]["tx-retries-max"] == "32"
    assert faults(BURSTS, document) == []
    code, document = bed.command("--undo", "--dry-run")
    assert (code, [(each["before"], each["after"]) for each in document["undone"]]) == (0, [("32", None)])
    assert bed.switch.interface("vm1")["options"]["tx-retries-max"] == "32"
    code, document = bed.command("--undo")
    assert (code, len(document["undone"]), document["left"]) == (0, 1, [])
    assert "tx-retries-max" not in bed.switch.interface("vm1")["options"]
    assert bed.command("--undo") == (0, {"undone": [], "left": []})


def test_a_change_can_be_named_though_no_burst_came(bed: Bed) -> None:
    code, document = bed.command("--seconds", "1", "--apply", "rx-ring:uplink")
    assert (code, document["applied"][0]["after"]) == (0, "4096")
    code, document = bed.command("--seconds", "1", "--apply", "rx-ring:uplink")
    assert (code, document["error"]["class"]) == (3, "ConfigError"), "it is so already"
    assert "rx-ring:PORT" in document["error"]["hint"]


def test_an_undo_names_what_it_leaves_and_what_it_cannot_do(bed: Bed) -> None:
    for name in ("rx-ring:uplink", "smc"):
        assert bed.command("--seconds", "1", "--apply", name)[0] == 0
    bed.switch.root["other_config"]["smc-enable"] = "maybe"
    bed.switch.drops = {"2048"}
    code, document = bed.command("--undo")
    assert code == 8
    assert document["left"][0] == {"advice": "smc", "why": "it is maybe now, and not true"}
    assert (document["undone"], document["left"][1]["advice"]) == ([], "rx-ring:uplink")
    assert [each["advice"] for each in bed.record] == ["rx-ring:uplink"]


@pytest.mark.parametrize("words", [["--watch", "--undo"], ["--apply", "smc", "--undo"], ["--dry-run"]])
def test_what_does_not_go_together_is_refused(bed: Bed, words: list[str]) -> None:
    assert bed.command(*words)[0] == 2


def test_changes_are_followed_until_the_user_interrupts(bed: Bed) -> None:
    bed.switch.lost = [0] * 13 + [40]  # in the second time of looking
    system = bed.host.system
    assert isinstance(system, Interrupted)
    system.at = system.now + 3.5
    out = io.StringIO()
    app = App(Output(out=out, err=io.StringIO()))
    app.__dict__["system"] = system
    assert main.run(["--config", str(bed.files.config), "bursts", "--seconds", "1", "--watch"], app) == 0
    shown = [line[10:] for line in out.getvalue().splitlines()]
    assert shown[0].startswith("?     The VMs' rings could not be read")
    assert shown[1].startswith("FAIL  vm1 gets more packets at once")
    assert shown[2].startswith("no longer: FAIL  vm1 gets more packets at once")


def test_people_see_what_a_change_does_to_packets(bed: Bed) -> None:
    out = io.StringIO()
    app = App(Output(out=out, err=io.StringIO()))
    app.__dict__["system"] = bed.host.system
    here = ["--config", str(bed.files.config), "bursts"]
    assert main.run([*here, "--seconds", "1", "--apply", "rx-ring:uplink"], app) == 0
    text = out.getvalue()
    assert "Interface uplink: options:n_rxq_desc: not set -> 4096  [rx-ring:uplink]\n  the switch stops uplink" in text
    assert "done, in 0.00 s; `ovs-hotswap bursts --undo` puts it back" in text
    assert main.run([*here, "--seconds", "1"], app) == 6, "no broker runs"
    assert "changed by --apply before: rx-ring:uplink; `ovs-hotswap bursts --undo` undoes it" in out.getvalue()
    out.truncate(0)
    assert main.run([*here, "--undo"], app) == 0
    assert "Interface uplink: options:n_rxq_desc: 4096 -> not set" in out.getvalue()
    assert main.run([*here, "--undo"], app) == 0
    assert "nothing was put back" in out.getvalue()
