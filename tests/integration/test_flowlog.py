"""The flow log with real switches, guests and collectors: nfcapd, and a small one that shows every field.

What the collectors are given is compared with what simulated guests count: through an upgrade to other software and
back, with a change of the settings, and when an instance is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.bed import Bed
from bench.guests import Fleet
from bench.guests.fleet import Stats
from ovs_hotswap.config_file import load_config
from ovs_hotswap.flowlog.look import look
from ovs_hotswap.flowlog.mediator import Mediator
from ovs_hotswap.host import flow_tables
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab.layout import VTEP
from ovs_hotswap.model import Release, Severity, Side
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.reports.document import RunReport
from ovs_hotswap.reports.store import Reports
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import run_report
from ovs_hotswap.upgrade.upgrade import Upgrader
from tests.support.ipfix_collector import LAYER2_OCTETS, Collector, Reader, collecting
from tests.support.nfcapd import Nfcapd, nfcapd
from tests.support.waiting import eventually
from tests.unit.test_flowlog import NEW, OLD, Exporter

VMS, REMOTE_VMS = 3, 1
RATE, FRAME, EXPORT_S = 300, 200, 1
PORT = 50_000  # to which the simulated guests send
DESTINATION_PORT = 11
DOMAIN = int.from_bytes(socket.inet_aton(VTEP))
Sums = Counter[tuple[int, int, int]]
LONG = "OVS_HOTSWAP_FLOWLOG" in os.environ
"""`make flowlog` sets it: the upgrade is rolled back, too, and an instance is killed."""
_LOOKS = 20


def test_nfcapd_and_the_small_collector_read_the_same(tmp_path: Path) -> None:
    """Two instances of different software, of which one is started again, as one exporter."""
    shapes = [((138, 4, 0), (61, 1, 0), (2, 8, 0), (86, 8, 0), *extra) for extra in ((), ((893, 4, 6876),))]
    mediator, reader = Mediator(), Reader()
    with nfcapd(tmp_path) as real, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        host, _, port = real.address.partition(":")
        out.connect((host, int(port)))
        for side, shape in (("a", shapes[0]), ("b", shapes[1]), ("a", shapes[1]), ("b", OLD), ("a", NEW)):
            exporter = Exporter(shape)
            for given in (exporter.templates(), *(exporter.record(10 + number % 3, number) for number in range(30))):
                for message in mediator.take(side, given):
                    out.send(message)
                    reader.take("relay", message)
        real.end()
    assert real.sums() == reader.sums()
    assert sum(reader.sums().values()) == 5 * sum(range(30))
    assert (real.sequence_failures(), reader.out_of_order) == (0, 0)


@dataclass
class Logged:
    """A bed whose guests talk, with a relay and two collectors."""

    bed: Bed
    fleet: Fleet
    small: Collector
    real: Nfcapd

    @property
    def host(self) -> Host:
        """The host, as a command that is started now sees it."""
        return Host(load_config(self.bed.config_path), System())

    def configure(self, **values: object) -> None:
        """Write the flow log's settings."""
        path = self.bed.config_path
        plain = path.read_text().partition("\n[flowlog]")[0]
        lines = "".join(f"{key} = {value}\n" for key, value in values.items())
        path.write_text(f"{plain}\n[flowlog]\n{lines}" if values else plain)

    def on(self, **values: object) -> None:
        given = {"collectors": [self.small.address, self.real.address], "export_s": EXPORT_S, "sampling": 1}
        self.configure(**{**given, **values})

    def apply(self) -> None:
        host = self.host
        with host.lock(60):
            host.follow_intent([side for side in Side if host.running(side)], untried=True)

    def sums(self, element: int = 2) -> Sums:
        """What the small collector was given of the guests' own frames."""
        found = Sums()
        for domain, record in self.small.reader.records:
            if int.from_bytes(record.get(DESTINATION_PORT, b"")) == PORT:
                key = domain, int.from_bytes(record[138]), int.from_bytes(record[61])
                found[key] += int.from_bytes(record[element])
        return found

    def wanted(self, before: Stats, after: Stats) -> Sums:
        """What the guests sent between two stops: from each VM, and to each VM."""
        found = Sums()
        ports = [vm.ofport for vm in self.host.intent.vms]
        targets = self.fleet.spec.targets
        sent = {(each.source, each.queue): each.sent for each in before.streams}
        for each in after.streams:
            count = each.sent - sent[each.source, each.queue]
            if each.source < len(ports):
                found[DOMAIN, ports[each.source], 0] += count
                if (target := targets[each.source]) >= 0:
                    found[DOMAIN, ports[target], 1] += count
            else:  # the remote host
                found[DOMAIN, ports[each.queue], 1] += count
        return found

    def settled(self) -> None:
        """Return when all that was counted so far has been exported: for longer than counts are held, nothing comes."""
        seen: list[int] = []

        def still() -> bool:
            seen.append(len(self.small.reader.records))
            return len(seen) > _LOOKS and len(set(seen[-_LOOKS:])) == 1

        eventually(still, "quiet", 30, poll_s=1.5 * EXPORT_S / _LOOKS)


@pytest.fixture(scope="module")
def logged(system: System, tree_release: Release) -> Iterator[Logged]:
    directory = Path(tempfile.mkdtemp(prefix="ovsh-fl-"))
    bed = Bed(directory, VMS, system)
    with contextlib.ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        bed.config_path.write_text(bed.config_path.read_text() + "\n[upgrade]\nsoak_s = 0.3\n")
        bed.host.releases.add("trixie", from_directory=Path(str(tree_release.root)))
        small, real = stack.enter_context(collecting()), stack.enter_context(nfcapd(directory))
        bed.start()
        fleet = stack.enter_context(Fleet(bed.fleet_spec(remote_vms=REMOTE_VMS, frame=FRAME)))
        made = Logged(bed, fleet, small, real)
        fleet.wait_served(30)
        made.on()
        made.apply()
        fleet.start(RATE)
        fleet.wait_flowing(30)
        time.sleep(EXPORT_S + 0.5)  # so that the instance has sent its templates to nothing
        stack.enter_context(relay(bed.config_path, directory / "relay.log"))
        yield made


@contextlib.contextmanager
def relay(config: Path, log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "ovs_hotswap", "--config", str(config), "flowlog", "run"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(20)


def test_a_relay_that_is_started_later_has_the_templates_sent_again(logged: Logged) -> None:
    eventually(lambda: logged.sums().total() > 0, "records", 60)
    document = look(logged.host)
    assert document["problems"] == []
    assert document["relay"]["listening"] == ["a"]
    why = "records of instance a came before their templates"
    eventually(lambda: [each["why"] for each in look(logged.host)["gaps"]] == [why], "the relay says so", 20)


def test_nothing_is_missing_or_doubled_through_an_upgrade_and_back(logged: Logged) -> None:
    """And the ids stay the same."""
    before = logged.fleet.stop()
    logged.settled()
    counted, octets = logged.sums(), logged.sums(LAYER2_OCTETS)
    logged.fleet.start(RATE)
    host = logged.host
    assert Upgrader(host).upgrade("trixie", lambda _event: None).committed
    report = Reports(run_report.directory(host.config), host.system).all()[0]
    said = [each for each in report.checks if each.check == "flow log"]
    assert [(each.severity, each.text) for each in said] == [
        (Severity.OK, "instance a has exported all that it held")]  # fmt: skip
    if LONG:
        assert Upgrader(logged.host).rollback(lambda _event: None).committed
    after = logged.fleet.stop()
    logged.settled()
    wanted = logged.wanted(before, after)
    assert len(wanted) == 2 * VMS
    assert logged.sums() - counted == wanted
    assert logged.sums(LAYER2_OCTETS) - octets == Counter({key: count * FRAME for key, count in wanted.items()})
    reader = logged.small.reader
    assert (reader.out_of_order, reader.unknown, reader.redefined) == (0, 0, 0)
    assert {record[82] for _, record in reader.records} >= {vm.name.encode() for vm in host.intent.vms}
    assert after.total("doubled") == 0
    assert sum(each.lost for each in after.streams) == sum(each.lost for each in before.streams)


def test_a_change_of_the_settings_takes_effect_and_leaves_nothing(logged: Logged) -> None:
    logged.fleet.start(RATE)
    first = logged.host.intent.vms[0]
    logged.on(vms=[first.name], observation_domain=7, sampling=10)
    logged.apply()
    eventually(lambda: logged.sums()[7, first.ofport, 0] > 0, "records of the new domain", 30)
    logged.fleet.stop()
    logged.settled()
    found = {key[1] for key in logged.sums() if key[0] == 7}
    assert found == {first.ofport}
    logged.configure()
    logged.apply()
    host = logged.host
    side = host.active()
    plain = flow_tables.flows(host, side, Form.FINAL)
    assert not any("sample(" in line for line in plain)
    assert host.openflow(side).diff(plain) == []
    socket_path = host.instances[side].paths.db_socket
    for table in ("Flow_Sample_Collector_Set", "IPFIX"):
        assert host.system.run(["ovs-vsctl", f"--db=unix:{socket_path}", "--bare", "list", table]).stdout == ""
    logged.on()
    logged.apply()


@pytest.mark.skipif(not LONG, reason="`make flowlog` kills an instance, too")
def test_what_an_instance_held_when_it_was_killed_is_missing_and_said(logged: Logged) -> None:
    before = logged.fleet.stop()
    logged.settled()
    counted = logged.sums()
    with logged.bed.watchdog():
        logged.bed.wait_protected(Side.A)
        logged.fleet.start(RATE)
        time.sleep(1)
        pid = logged.host.instances[Side.A].pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: logged.host.recorded_active() is Side.B, "the failover", 20)
        logged.fleet.wait_flowing(20)
        eventually(lambda: bool(reports(logged)), "the report", 60)
    after = logged.fleet.stop()
    logged.settled()
    wanted = logged.wanted(before, after)
    missing = wanted - (logged.sums() - counted)
    assert logged.sums() - counted <= wanted, "nothing is counted twice"
    assert 0 < missing.total() <= 4 * VMS * RATE * (EXPORT_S + 2)
    (warning,) = reports(logged)[0].warnings
    assert warning.startswith(f"flow log: up to {EXPORT_S} s of what instance a saw last may be missing: ")
    assert any(each["why"] == "instance a died with what it had not exported" for each in look(logged.host)["gaps"])


def reports(logged: Logged) -> list[RunReport]:
    host = logged.host
    return [each for each in Reports(run_report.directory(host.config), host.system).all() if each.kind == "failover"]


def test_nfcapd_has_the_same(logged: Logged) -> None:
    """The last test: nfcapd ends."""
    logged.real.end()
    assert logged.real.sums() == logged.small.reader.sums()
    assert logged.real.sequence_failures() == 0
