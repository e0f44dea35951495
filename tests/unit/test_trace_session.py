"""A trace from its beginning to its end, on a switch that exists only as sockets."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.errors import BusyError, ConfigError, HotswapError, PrecheckFailed, SwitchError
from ovs_hotswap.host import traces
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Severity
from ovs_hotswap.plan.interrupts import Interrupted
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.trace_rows import NAME
from ovs_hotswap.tracing.capture import Caught, PcapFile, received_packets
from ovs_hotswap.tracing.found import Basis, Direction, Ended, Packet, Trace
from ovs_hotswap.tracing.found import Path as Way
from ovs_hotswap.tracing.guard import Guard
from ovs_hotswap.tracing.page import packet_lines, summary
from ovs_hotswap.tracing.session import Bounds
from ovs_hotswap.tracing.target import find, wish_of
from ovs_hotswap.tracing.wish import Wish
from ovs_hotswap.waiting import wait_until
from tests.unit.diagnose_bed import FAR, VM1, VM2
from tests.unit.test_diagnose_look import CLONE, OVERLAY
from tests.unit.test_diagnose_texts import RECIRCULATED
from tests.unit.test_trace_ways import RECORD, WIDE
from tests.unit.trace_bed import EVERYTHING, GONE, OWN, USUAL, Bed, FakeCapture
from tests.unit.trace_frames import ethernet, icmp, ipv4, tcp

SENT = ethernet(VM2, FAR, 0x0800, ipv4("10.0.0.2", "10.0.0.254", 1, icmp()))
CAME = ethernet(FAR, VM2, 0x0800, ipv4("10.0.0.254", "10.0.0.2", 1, icmp(0)))
ELSE = ethernet(VM2, FAR, 0x0800, ipv4("10.0.0.2", "10.0.0.254", 6, tcp(1, 2)))


@pytest.fixture
def directory() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="ovsh-"))  # a socket's path has room for 107 bytes
    yield found
    shutil.rmtree(found)


@pytest.fixture
def bed(directory: Path) -> Iterator[Bed]:
    found = Bed(directory, OVERLAY)
    yield found
    found.close()


def traced(
    bed: Bed, capture: FakeCapture, wish: Wish = EVERYTHING, bounds: Bounds = USUAL, shown: list[bool] | None = None
) -> Trace:  # fmt: skip
    def show(_packet: Packet, _way: Way, new: bool) -> None:
        if shown is not None:
            shown.append(new)

    found = bed.tracer(capture, wish, bounds).run(show)
    assert capture.closed
    assert bed.mirrors == []
    assert NAME not in bed.names
    return found


def test_packets_are_followed_and_nothing_is_left(bed: Bed) -> None:
    shown: list[bool] = []
    capture = bed.capture([SENT], [], [SENT, CAME], counts=[0, 3])
    found = traced(bed, capture, bounds=Bounds(count=3), shown=shown)
    assert [(each.number, each.direction, each.path) for each in found.packets] == [
        (1, Direction.SENT, 1),
        (2, Direction.SENT, 1),
        (3, Direction.RECEIVED, 2),
    ]
    assert shown == [True, False, True]
    assert [each.basis for each in found.paths] == [Basis.AGREES, Basis.DIFFERS]
    assert (found.ended, found.copied, found.missed, found.filtered) == (Ended.COUNT, 3, 0, False)
    assert bed.guards[0].ended
    assert bed.guards[0].seconds > Bounds().seconds
    assert found.packets[0].text == "ICMP (ping) 10.0.0.2 to 10.0.0.254"


def test_mirrors_go_before_the_port(bed: Bed) -> None:
    traced(bed, bed.capture([SENT]), bounds=Bounds(count=1))
    made, first, last = bed.database.log
    assert {each["table"] for each in made} == {"Interface", "Port", "Bridge", "Mirror", "Open_vSwitch"}
    assert [(each["op"], each["table"]) for each in first[:-1]] == [("mutate", "Bridge"), ("update", "Port")]
    assert first[0]["mutations"][0][0] == "mirrors"
    assert [each["mutations"][0][0] for each in last[:-1]] == ["ports"]


def test_the_copies_are_made_of_what_the_switch_can_choose(bed: Bed) -> None:
    wish = Wish(target=FAR, answers=True)
    made: list[object] = []

    def follow() -> None:
        made.append([row.get("filter") for row in bed.mirrors])
        bed.database._follow()

    bed.database.follows = follow
    assert traced(bed, bed.capture([SENT]), wish, Bounds(count=1)).filtered is False
    bed.database.filters = True
    assert traced(bed, bed.capture([SENT]), wish, Bounds(count=1)).filtered is True
    assert [None] in made
    assert [f"dl_dst={FAR}", f"dl_src={FAR}"] in made


def test_only_the_packets_that_are_meant_are_shown(bed: Bed) -> None:
    found = traced(bed, bed.capture([ELSE, SENT], [CAME]), Wish(proto="icmp", target=FAR), Bounds(seconds=1.0))
    assert [each.text for each in found.packets] == ["ICMP (ping) 10.0.0.2 to 10.0.0.254"]
    assert found.ended is Ended.SECONDS


def test_a_trace_without_packets_says_what_to_do(bed: Bed) -> None:
    found = traced(bed, bed.capture(), Wish(proto="arp"), Bounds(seconds=1.0))
    assert (found.packets, found.ended) == ((), Ended.SECONDS)
    assert "diagnose vm2" in found.limits[-1]


def test_a_vm_that_is_too_busy_is_not_traced(bed: Bed) -> None:
    bed.rate = 20_000
    with pytest.raises(PrecheckFailed, match="packets a second now") as raised:
        bed.tracer(bed.capture()).run(lambda *_: None)
    assert "--max-rate" in str(raised.value.hint)
    assert bed.database.log == []
    bed.database.filters = True  # then only the packets that are meant are copied, whose number is not known before
    traced(bed, bed.capture([SENT]), Wish(target=FAR), Bounds(count=1))


def test_a_trace_that_becomes_too_busy_ends(bed: Bed) -> None:
    capture = bed.capture([SENT], *[[]] * 9, counts=[0, 50_000])
    found = traced(bed, capture, Wish(target=FAR))
    assert found.ended is Ended.RATE
    assert len(found.packets) == 1, "what was read before is shown"
    assert "it can only copy all packets" in found.limits[-1]


def test_a_trace_that_another_process_removes_ends(bed: Bed) -> None:
    found = traced(bed, bed.capture([SENT], GONE))
    assert (found.ended, len(found.packets)) == (Ended.REMOVED, 1)
    assert "an upgrade began" in found.limits[-1]


def test_an_interrupted_trace_leaves_nothing_and_is_reported(bed: Bed) -> None:
    found = traced(bed, bed.capture([SENT], [], [], Interrupted()))
    assert (found.ended, len(found.packets)) == (Ended.INTERRUPTED, 1)


def test_a_failed_beginning_leaves_nothing(bed: Bed) -> None:
    def fail() -> None:
        bed.database._follow()
        for row in bed.database.tables["Interface"].values():
            if row["name"] == NAME:
                row["error"] = "could not open network device"

    bed.database.follows = fail
    with pytest.raises(SwitchError, match="could not open network device"):
        bed.tracer(bed.capture()).run(lambda *_: None)
    assert bed.mirrors == []
    assert NAME not in bed.names
    assert bed.guards[0].ended


def test_a_switch_that_does_not_follow_is_not_waited_for_for_long(bed: Bed) -> None:
    bed.database.follows = lambda: None
    with pytest.raises(SwitchError, match="has not made the port"):
        bed.tracer(bed.capture()).run(lambda *_: None)
    assert bed.mirrors == []


def test_if_the_database_ends_the_guard_is_left_to_remove_the_copies(bed: Bed) -> None:
    class Ends(FakeCapture):
        def read(self, most: int, seconds: float) -> list[Caught]:
            bed.daemons[1].close()
            return super().read(most, seconds)

    capture = Ends(bed.system, [[SENT]], [0])
    found = bed.tracer(capture, bounds=Bounds(count=1)).run(lambda *_: None)
    assert not bed.guards[0].ended
    assert found.paths[0].basis is Basis.UNKNOWN
    assert "did not say" in found.limits[0]


def test_packets_are_shown_if_the_switch_says_nothing_of_them(bed: Bed) -> None:
    del bed.told["dpctl/dump-flows"]
    found = traced(bed, bed.capture([SENT]), bounds=Bounds(count=1))
    assert (found.packets[0].direction, found.paths[0].basis) == (Direction.SENT, Basis.UNKNOWN)


def test_too_many_flows_are_not_read(bed: Bed) -> None:
    bed.told["dpctl/show"] = bed.told["dpctl/show"].replace("flows: 20", "flows: 20001")
    found = traced(bed, bed.capture([SENT]), bounds=Bounds(count=1))
    assert found.paths[0].basis is Basis.INFERRED
    assert "20001" in found.limits[0]


def test_what_was_not_read_in_time_is_said(bed: Bed) -> None:
    capture = bed.capture([SENT])
    capture.lost = 7
    found = traced(bed, capture, bounds=Bounds(count=1))
    assert found.missed == 7
    assert "7 packets came faster" in found.limits[-1]


def test_flows_in_a_nic_are_a_limit(bed: Bed) -> None:
    bed.database.tables["Open_vSwitch"]["root"]["other_config"] = ["map", [["hw-offload", "true"]]]
    found = traced(bed, bed.capture([SENT]), bounds=Bounds(count=1))
    assert "a NIC may carry out flows" in found.limits[0]


# -- several traces


def test_a_second_trace_is_refused(bed: Bed) -> None:
    bed.leave(OWN, start_time(OWN))
    with pytest.raises(BusyError, match=f"process {OWN}") as raised:
        bed.tracer(bed.capture()).run(lambda *_: None)
    assert "trace --clean" in str(raised.value.hint)
    assert len(bed.mirrors) == 1


def test_what_a_killed_trace_has_left_is_removed_by_the_next_one(bed: Bed) -> None:
    bed.leave(OWN, 1)  # another process had that number then
    found = traced(bed, bed.capture([SENT]), bounds=Bounds(count=1))
    assert "an earlier trace" in found.limits[0]


def test_a_trace_is_refused_while_an_instance_is_worked_on(bed: Bed) -> None:
    with Host(bed.config, bed.system).lock(), pytest.raises(BusyError):
        bed.tracer(bed.capture()).run(lambda *_: None)
    assert bed.database.log == []
    assert bed.guards[0].ended


def test_all_traces_can_be_removed_by_any_process(bed: Bed) -> None:
    assert traces.remove(bed.host) == ()
    bed.leave(OWN, start_time(OWN))
    assert traces.abandoned(bed.host) == []
    (finding,) = traces.check(bed.host)
    assert (finding.severity, finding.hint) == (Severity.WARNING, "`ovs-hotswap trace --clean`")
    assert "under way" in finding.text
    (removed,) = traces.remove(bed.host)
    assert (removed.owner is not None and removed.owner.vm) == "vm1"
    assert bed.mirrors == []


def test_traces_whose_process_has_ended_are_named(bed: Bed) -> None:
    bed.leave(OWN, 1)
    assert traces.abandoned(bed.host) == [
        f"bridge br0 has what a trace of vm1 has left, whose process ({OWN}) has ended"
    ]
    bed.database.tables["Mirror"]["old"]["external_ids"] = ["map", [["ovs-hotswap", "trace"]]]
    assert traces.abandoned(bed.host) == ["bridge br0 has the copies of a trace"]
    bed.daemons[1].close()
    assert traces.abandoned(bed.host) == []
    assert traces.remove(bed.host) == ()


# -- whom, and what


def test_a_vm_that_does_not_exist(bed: Bed) -> None:
    with pytest.raises(ConfigError, match="no VM vm9"):
        find(bed.host, "vm9")


def test_without_an_active_instance_there_are_no_packets(bed: Bed) -> None:
    bed.config.active_file.unlink()
    with pytest.raises(PrecheckFailed, match="no instance is active"):
        find(bed.host, "vm2")


def test_ends_may_be_named_by_vm(bed: Bed) -> None:
    target = find(bed.host, "vm2")
    assert wish_of(target, None, "vm1", "tcp", 80, answers=True) == Wish(None, VM1, "tcp", 80, answers=True)
    assert (
        wish_of(target, "10.0.0.1", "FD00::1".replace("FD00::1", "10.0.0.2"), None, None, answers=False).target
        == "10.0.0.2"
    )
    with pytest.raises(ConfigError, match="neither a MAC"):
        wish_of(target, "web9", None, None, None, answers=False)
    with pytest.raises(ConfigError, match="both"):
        wish_of(target, "10.0.0.1", "fd00::1", None, None, answers=False)


def test_on_bridges_that_others_program_the_database_names_the_vms(directory: Path) -> None:
    state = f'run_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n'
    bed = Bed(directory, OVERLAY, state + CLONE)
    try:
        bed.database.tables["Interface"]["i2"]["external_ids"] = ["map", [["attached-mac", VM2]]]
        target = find(bed.host, "vm2")
        assert (target.bridge, target.ofport, target.namespace) == ("br0", 11, None)
        assert target.vms == {"vm1": None, "vm2": VM2}
        with pytest.raises(ConfigError, match="MAC of vm1 is not known"):
            wish_of(target, None, "vm1", None, None, answers=False)
        with pytest.raises(ConfigError, match="no VM uplink"):
            find(bed.host, "uplink")
        found = traced(bed, bed.capture([SENT]), bounds=Bounds(count=1))
        assert (found.packets[0].direction, found.paths[0].ports_out) == (Direction.SENT, ("the tunnel to 172.31.0.2",))
        assert "others program" in found.limits[-1]
    finally:
        bed.close()


# -- the guard


def _guarded(done: bool, seconds: float, how: int = 0) -> Path:
    """A process that makes a guard and ends. Return the file that the guard makes."""
    mark = Path(tempfile.mkdtemp()) / "removed"
    pid = os.fork()
    if pid == 0:
        guard = Guard(mark.touch, seconds)
        if done:
            guard.done()
        if how:
            os.kill(os.getpid(), how)
        os._exit(0)
    os.waitpid(pid, 0)
    return mark


@pytest.mark.parametrize("how", [0, signal.SIGKILL, signal.SIGTERM])
def test_the_guard_acts_however_its_process_ends(how: int) -> None:
    mark = _guarded(False, 60, how)
    assert wait_until(mark.exists, 10)


def test_the_guard_does_nothing_if_all_is_done() -> None:
    mark = _guarded(True, 60)
    time.sleep(0.1)
    assert not mark.exists()


def test_the_guard_acts_when_the_time_is_over() -> None:
    mark = Path(tempfile.mkdtemp()) / "removed"
    guard = Guard(mark.touch, 0.01)
    assert wait_until(mark.exists, 10)
    guard.done()


def test_the_guard_holds_nothing_of_its_process_open() -> None:
    reader, writer = os.pipe()
    guard = Guard(lambda: None, 60)
    os.close(writer)
    assert os.read(reader, 1) == b"", "the other end of the pipe is not open in the child"
    guard.done()
    os.close(reader)


# -- files and pages


def test_packets_are_written_as_other_programs_read_them(bed: Bed, tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    file = PcapFile(path, 64)
    capture = bed.capture([SENT[:64]])
    bed.tracer(capture, bounds=Bounds(count=1), file=file).run(lambda *_: None)
    file.close()
    written = path.read_bytes()
    assert written[:4] == b"\x4d\x3c\xb2\xa1"
    assert int.from_bytes(written[16:20], "little") == 64
    lengths = [int.from_bytes(written[at : at + 4], "little") for at in (32, 36)]
    assert lengths == [64, len(SENT)]
    assert written[40:] == SENT[:64]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(HotswapError, match=r"no/x\.pcap"):
        PcapFile(tmp_path / "no" / "x.pcap", 64)


def test_the_counter_of_a_device() -> None:
    text = "Inter-|   Receive  |\n face |bytes    packets\n    lo: 12 3 0\novsh-trace:  700      7 0 0\n"
    assert received_packets(text, NAME) == 7
    assert received_packets(text, "eth0") is None


def test_the_page(bed: Bed) -> None:
    lines: list[str] = []
    capture = bed.capture([SENT, SENT, CAME], counts=[0, 3])
    found = bed.tracer(capture, bounds=Bounds(count=3)).run(lambda *each: lines.extend(packet_lines(*each)))
    assert lines[0].endswith("sent      ICMP (ping) 10.0.0.2 to 10.0.0.254, 98 bytes")
    assert lines[1] == "  way 1: in by vm2, out by the tunnel to 172.31.0.2"
    assert any("table 2: " in each and "172.31.0.2" in each for each in lines)
    assert any(each.startswith("    known: seen in the datapath, and the flow tables agree") for each in lines)
    assert sum(each.endswith("(way 1)") for each in lines) == 1
    (line, *_) = [each for each in summary(found) if each]
    assert line.startswith("3 packets in ")


def test_a_switch_that_keeps_records_is_asked_for_them(bed: Bed) -> None:
    bed.told |= {"list-commands": "  ofproto/detrace  UFID\n", "dpctl/dump-flows": WIDE, "ofproto/detrace": RECORD}
    lines: list[str] = []

    def told(packet: Packet, way: Way, new: bool) -> None:
        lines.extend(packet_lines(packet, way, new, 400))

    found = bed.tracer(bed.capture([SENT]), bounds=Bounds(count=1)).run(told)
    assert found.paths[0].steps_recorded is True
    asked = [
        tuple(words) for command, words in bed.daemons[0].asked if command in {"dpctl/dump-flows", "ofproto/detrace"}
    ]
    assert asked == [
        ("-m", "--no-names", "netdev@ovs-netdev"),
        ("ufid:aaaaaaaa-2222-3333-4444-555555555555", "pmd=1"),
    ]
    assert lines[-1].endswith("the switch recorded that it made them of these flows")
    bed.told["ofproto/detrace"] = RECORD.replace("table_id=2", "table_id=3")
    lines.clear()
    bed.tracer(bed.capture([SENT]), bounds=Bounds(count=1)).run(told)
    assert sum(each.startswith("    recorded: bridge br0, table") for each in lines) == 4


THERE, BACK = "src=10.0.0.2,dst=10.0.0.254,sport=1,dport=2", "src=10.0.0.254,dst=10.0.0.2,sport=2,dport=1"
STATES = ",protoinfo=(state_orig=ESTABLISHED,state_reply=ESTABLISHED)\n"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (f"tcp,orig=({THERE}),reply=({BACK}),zone=5{STATES}",
         "zone 5: established, by the connection table"),
        (f"tcp,orig=({BACK}),reply=({THERE}),zone=5{STATES}",
         "zone 5: established, an answer, by the connection table"),
        ("", "zone 5: assumed to be new, as the connection table has nothing of it"),
    ],
)  # fmt: skip
def test_without_a_flow_of_the_datapath_the_connection_table_is_asked(bed: Bed, entry: str, said: str) -> None:
    bed.told |= {"dpctl/dump-flows": "", "ofproto/trace": RECIRCULATED, "dpctl/ct-get-nconns": "1\n",
                 "dpctl/dump-conntrack": entry}  # fmt: skip
    found = traced(bed, bed.capture([ELSE]), bounds=Bounds(count=1))
    assert found.paths[0].conntrack == (said,)
    assert found.paths[0].basis is Basis.INFERRED
    asked = [words for command, words in bed.daemons[0].asked if command == "ofproto/trace"]
    assert [words[:1] == ["--ct-next"] for words in asked] == ([False, True] if entry else [False])


def test_a_large_connection_table_is_not_read(bed: Bed) -> None:
    bed.told |= {"dpctl/dump-flows": "", "ofproto/trace": RECIRCULATED, "dpctl/ct-get-nconns": "50001\n"}
    traced(bed, bed.capture([ELSE]), bounds=Bounds(count=1))
    assert "dpctl/dump-conntrack" not in {command for command, _ in bed.daemons[0].asked}
