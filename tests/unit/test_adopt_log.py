"""What the switch's log says of a connection: real logs, and logs that are damaged in every way."""

from __future__ import annotations

import contextlib
import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovs_hotswap.adopt import log_files
from ovs_hotswap.adopt.log_reader import (
    Logged,
    LoggedRegion,
    LoggedRing,
    continuous,
    joined,
    messages_since,
    read_connection,
)
from ovs_hotswap.errors import StateUnknown, TryAgain

SOCKET = "/run/vm/vm1.sock"
OTHER = "/run/vm/vm10.sock"


class Log:
    """Writes a log as DPDK and Open vSwitch do: the message thread and the main thread, each with its own numbers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._numbers = {"main": 400, "vhost": 0}

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)

    def line(self, text: str, thread: str = "vhost", module: str = "dpdk", level: str = "INFO") -> None:
        self._numbers[thread] += 1
        number = self._numbers[thread]
        self.lines.append(f"2026-11-29T20:50:55.562Z|{number:05d}|{module}|{level}|{text}")

    def vhost(self, text: str, socket: str = SOCKET, thread: str = "vhost") -> None:
        self.line(f"VHOST_CONFIG: ({socket}) {text}", thread)

    def message(self, name: str, *details: str, socket: str = SOCKET) -> None:
        self.vhost(f"read message VHOST_USER_{name}", socket)
        for detail in details:
            self.vhost(detail, socket)

    def table(self, *regions: tuple[int, int, int, int], socket: str = SOCKET) -> None:
        details = []
        for size, guest, user, offset in regions:
            details += [
                f"guest memory region size: {size:#x}", f"\t guest physical addr: {guest:#x}",
                f"\t guest virtual  addr: {user:#x}", "\t host  virtual  addr: 0x7fdd00000000",
                "\t mmap addr : 0x7fdd00000000", f"\t mmap size : {size:#x}", "\t mmap align: 0x1000",
                f"\t mmap off  : {offset:#x}",
            ]  # fmt: skip
        self.message("SET_MEM_TABLE", *(details or ["memory regions not changed"]), socket=socket)

    def starts(self, socket: str = SOCKET, *, kick: int = 60, pairs: int = 1) -> None:
        for index in range(2 * pairs):
            self.message("SET_VRING_NUM", socket=socket)
            self.message("SET_VRING_BASE", f"vring base idx:{index} last_used_idx:0 last_avail_idx:0.", socket=socket)
            self.message("SET_VRING_ADDR", socket=socket)
            self.message("SET_VRING_KICK", f"vring kick idx:{index} file:{kick + 2 * index}", socket=socket)
            self.message("SET_VRING_CALL", f"vring call idx:{index} file:{kick + 2 * index + 1}", socket=socket)

    def enables(self, value: int, socket: str = SOCKET, *, pairs: int = 1) -> None:
        for index in range(2 * pairs):
            self.message("SET_VRING_ENABLE", f"set queue enable: {value} to qp idx: {index}", socket=socket)

    def stops(self, socket: str = SOCKET, *, pairs: int = 1) -> None:
        for index in range(2 * pairs):
            self.message("GET_VRING_BASE", f"vring base idx:{index} file:{index + 7}", socket=socket)

    def connects(self, socket: str = SOCKET, *, kick: int = 60, pairs: int = 1) -> None:
        """What QEMU 7.2 sends to OVS 3.1 from connecting to a running guest."""
        self.vhost("new device, handle is 0", socket, "main")
        self.message("GET_FEATURES", socket=socket)
        self.message("GET_PROTOCOL_FEATURES", socket=socket)
        self.message("SET_PROTOCOL_FEATURES", "negotiated Vhost-user protocol features: 0x10cbf", socket=socket)
        self.message("GET_QUEUE_NUM", socket=socket)
        self.message("SET_SLAVE_REQ_FD", socket=socket)
        self.message("SET_OWNER", socket=socket)
        self.message("GET_FEATURES", socket=socket)
        for index in range(2 * pairs):
            self.message("SET_VRING_CALL", f"vring call idx:{index} file:{index + 50}", socket=socket)
            self.message("SET_VRING_ERR", "not implemented", socket=socket)
        self.enables(1, socket, pairs=pairs)
        self.message("SET_FEATURES", "negotiated Virtio features: 0x17020a783", socket=socket)
        self.table((0x8000000, 0, 0x7F5588000000, 0), socket=socket)
        self.starts(socket, kick=kick, pairs=pairs)
        self.message("SET_STATUS", "new device status(0x0000000f):", "\t-RESET: 0", "\t-DRIVER_OK: 1", socket=socket)
        self.vhost("virtio is now ready for processing.", socket)


def logs() -> Log:
    log = Log()
    log.line("DPDK Enabled - initialized", "main")
    log.connects(OTHER, kick=200)
    log.connects()
    log.line("bridge br-int: added interface vm1 on port 1", "main", "bridge")
    return log


EXPECTED = Logged(
    features=0x17020A783, protocol_features=0x10CBF, status=0xF,
    memory=(LoggedRegion(0x8000000, 0, 0x7F5588000000, 0),), rings=(LoggedRing(60, 61, True), LoggedRing(62, 63, True)),
)  # fmt: skip


def facts(logged: Logged) -> Logged:
    """Return what is known without the names of the messages."""
    return Logged(logged.features, logged.protocol_features, logged.status, logged.memory, logged.rings)


def read(log: Log) -> Logged:
    return read_connection(log.text(), SOCKET)


def test_a_running_connection_is_read() -> None:
    assert facts(read(logs())) == EXPECTED
    assert read_connection(logs().text(), OTHER).ring(0).kick == 200


def test_a_ring_that_was_stopped_has_neither_kick_nor_call() -> None:
    log = logs()
    log.stops()
    assert read(log).rings == (LoggedRing(enabled=True), LoggedRing(enabled=True))


def test_a_link_that_went_down_and_up_has_new_descriptors() -> None:
    log = logs()
    log.enables(0)
    log.stops()
    log.table()
    log.message("SET_FEATURES", "negotiated Virtio features: 0x17020a783")
    log.starts(kick=90)
    log.enables(1)
    assert facts(read(log)) == facts(Logged(EXPECTED.features, 0x10CBF, 0xF, EXPECTED.memory,
                                            (LoggedRing(90, 91, True), LoggedRing(92, 93, True))))  # fmt: skip


def test_memory_that_was_plugged_makes_another_table() -> None:
    log = logs()
    table = ((0x8000000, 0, 0x7F5588000000, 0), (0x8000000, 0x100000000, 0x7F5500000000, 0x1000))
    log.table(*table)
    assert read(log).memory == tuple(LoggedRegion(*each) for each in table)


def test_a_table_that_is_sent_again_leaves_the_regions() -> None:
    log = logs()
    log.table()
    log.table()
    assert read(log).memory == EXPECTED.memory


def test_a_table_without_regions_and_without_an_earlier_one_is_refused() -> None:
    log = Log()
    log.vhost("new device, handle is 0")
    log.message("GET_FEATURES")
    log.table()
    with pytest.raises(StateUnknown, match="cannot be understood: memory regions not changed"):
        read(log)


def test_features_that_are_sent_again_to_a_running_device_are_not_logged() -> None:
    log = logs()
    log.message("SET_FEATURES")
    log.enables(1)
    assert facts(read(log)) == EXPECTED


def test_pairs_beyond_the_first_are_read() -> None:
    log = Log()
    log.connects(pairs=4)
    log.enables(0, pairs=4)
    log.enables(1, pairs=2)
    found = read(log)
    assert [ring.enabled for ring in found.rings] == [True] * 4 + [False] * 4
    assert [ring.kick for ring in found.rings] == list(range(60, 76, 2))


def test_a_kick_that_qemu_has_none_of_is_negative() -> None:
    log = logs()
    log.message("SET_VRING_KICK", "vring kick idx:0 file:-1")
    assert read(log).ring(0).kick == -1


def test_the_last_connection_counts() -> None:
    log = logs()
    log.vhost("vhost peer closed")
    log.vhost("reconnecting...", thread="main")
    log.connects(kick=300)
    assert read(log).ring(0).kick == 300


def test_a_line_that_is_not_complete_yet_is_not_read() -> None:
    log = logs()
    begun = log.text()
    log.message("SET_VRING_KICK", "vring kick idx:0 file:777")
    whole = log.text()
    assert facts(read_connection(whole[: len(begun) + 30], SOCKET)) == EXPECTED


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda log: log.vhost("vhost peer closed"), "closed the connection"),
        (lambda log: log.vhost("vhost message handling failed."), "closed the connection"),
        (lambda log: log.vhost("processing VHOST_USER_SET_MEM_TABLE failed."), "closed the connection"),
        (lambda log: log.line("Dropped 89 log messages in last 5 seconds (most recently, 3 seconds ago) due to "
                              "excessive rate"), "lacks lines"),
        (lambda log: log.message("RESET_OWNER"), "RESET_OWNER"),
        (lambda log: log.message("POSTCOPY_LISTEN"), "POSTCOPY_LISTEN"),
        (lambda log: log.message("FLY_AWAY"), "not known"),
        (lambda log: log.message("SET_VRING_KICK"), "lacks what VHOST_USER_SET_VRING_KICK said"),
        (lambda log: log.message("SET_VRING_KICK", "vring call idx:0 file:3"), "cannot be understood"),
        (lambda log: log.message("SET_VRING_KICK", "vring kick idx:256 file:3"), "cannot be understood"),
        (lambda log: log.message("SET_VRING_ENABLE", "set queue enable: 7 to qp idx: 0"), "cannot be understood"),
        (lambda log: log.message("SET_MEM_TABLE", "guest memory region size: 0x1000"), "incomplete memory region"),
        (lambda log: log.vhost("vring kick idx:0 file:3"), "cannot be understood"),
        (lambda log: log.lines.append("VHOST_CONFIG: (/run/vm/vm1.sock) read mes"), "damaged"),
    ],
)  # fmt: skip
def test_what_makes_a_log_useless_is_named(spoil: object, reason: str) -> None:
    log = logs()
    assert callable(spoil)
    spoil(log)
    with pytest.raises(StateUnknown, match=reason):
        read(log)


def test_a_connection_that_was_never_made_is_named() -> None:
    with pytest.raises(StateUnknown, match="beginning of the connection"):
        read_connection(logs().text(), "/run/vm/vm2.sock")


def test_a_socket_whose_name_begins_with_another_one_s_is_another() -> None:
    with pytest.raises(StateUnknown, match="beginning"):
        read_connection(logs().text(), "/run/vm/vm1")


# Damage that is a loss of lines or of parts of lines: the facts are the same, or the log is refused.

WHOLE = logs().lines
BEGIN = next(at for at, line in enumerate(WHOLE) if SOCKET in line)
LAST = max(at for at, line in enumerate(WHOLE) if SOCKET in line and "read message" in line)


def outcome(lines: list[str]) -> Logged | None:
    """Return the facts, or ``None`` if the log was refused."""
    try:
        return facts(read_connection("".join(f"{line}\n" for line in lines), SOCKET))
    except StateUnknown:
        return None


@given(st.sets(st.integers(BEGIN, LAST - 1), min_size=1))
@settings(deadline=None)
def test_lost_lines_are_noticed(lost: set[int]) -> None:
    left = [line for at, line in enumerate(WHOLE) if at not in lost]
    assert outcome(left) in (None, EXPECTED)


@given(st.integers(BEGIN, LAST - 1), st.integers(0, 120))
@settings(deadline=None)
def test_a_line_whose_end_is_lost_is_noticed(at: int, length: int) -> None:
    """So a full disk leaves it: the next line follows in the middle of it."""
    cut = [*WHOLE[:at], WHOLE[at][:length] + WHOLE[at + 1], *WHOLE[at + 2 :]]
    assert outcome(cut) in (None, EXPECTED)


@given(st.integers(BEGIN, LAST - 1))
@settings(deadline=None)
def test_two_lines_that_were_joined_are_noticed(at: int) -> None:
    assert outcome([*WHOLE[:at], WHOLE[at] + WHOLE[at + 1], *WHOLE[at + 2 :]]) in (None, EXPECTED)


@given(st.integers(BEGIN, len(WHOLE) - 1), st.integers(BEGIN, len(WHOLE) - 1))
@settings(deadline=None)
def test_a_line_that_is_there_twice_is_noticed(at: int, to: int) -> None:
    assert outcome([*WHOLE[:to], WHOLE[at], *WHOLE[to:]]) in (None, EXPECTED)


@given(st.lists(st.text(max_size=80), max_size=4), st.integers(BEGIN, LAST))
@settings(deadline=None)
def test_foreign_lines_change_nothing(foreign: list[str], at: int) -> None:
    assert outcome([*WHOLE[:at], *foreign, *WHOLE[at:]]) in (None, EXPECTED)


def test_every_fact_is_lost_only_together_with_the_whole() -> None:
    """Each single line of the connection, when it is lost, leaves the facts as they are or makes the log useless."""
    for at in range(BEGIN, LAST):
        assert outcome(WHOLE[:at] + WHOLE[at + 1 :]) in (None, EXPECTED), WHOLE[at]


# Behind a mark.


def test_messages_behind_a_mark_are_those_of_the_socket() -> None:
    log = Log()
    log.message("GET_FEATURES", socket=OTHER)
    log.message("GET_QUEUE_NUM")
    since = messages_since(log.text(), SOCKET)
    assert (since.messages, since.dropped, since.ended) == (("VHOST_USER_GET_QUEUE_NUM",), False, False)


def test_a_connection_that_ended_behind_a_mark_is_noticed() -> None:
    log = Log()
    log.vhost("vhost peer closed")
    assert messages_since(log.text(), SOCKET).ended
    log = Log()
    log.vhost("new device, handle is 3", thread="main")
    assert messages_since(log.text(), SOCKET).ended
    log = Log()
    log.line("Dropped 3 log messages in last 1 seconds (most recently, 0 seconds ago) due to excessive rate")
    assert messages_since(log.text(), SOCKET).dropped


# Files.


def rotated(log: Log, at: int, number: int = 403) -> tuple[str, str]:
    """Return the log as two files, between which ovs-vswitchd was told to open its log again.

    ``number`` is that of the line which says so: the main thread's line before is in the first file.
    """
    older = "".join(f"{line}\n" for line in log.lines[:at])
    newer = "".join(f"{line}\n" for line in log.lines[at:])
    return older, f"2026-11-29T00:00:01.000Z|{number:05d}|vlog|INFO|opened log file /var/log/ovs-vswitchd.log\n{newer}"


def beside(path: Path, name: str, data: bytes, age: int) -> None:
    """Write a rotated file, which is ``age`` days old."""
    other = path.with_name(name)
    other.write_bytes(data)
    os.utime(other, (1e9 - age * 86400, 1e9 - age * 86400))


def test_a_rotated_log_is_read_over_both_files(tmp_path: Path) -> None:
    path = tmp_path / "ovs-vswitchd.log"
    older, newer = rotated(logs(), BEGIN + 20)
    path.write_text(newer)
    beside(path, "ovs-vswitchd.log.1", older.encode(), 1)
    assert facts(log_files.connection(log_files.mark(path), Path(SOCKET))) == EXPECTED


@pytest.mark.parametrize(("first", "second"), [(".log.1", ".log.2.gz"), (".log-20261128", ".log-20261127.gz")])
def test_a_rotated_log_that_was_packed_is_read_as_well(tmp_path: Path, first: str, second: str) -> None:
    path = tmp_path / "ovs-vswitchd.log"
    older, newer = rotated(logs(), BEGIN + 20)
    path.write_text("2026-11-30T00:00:01.000Z|00405|vlog|INFO|opened log file /var/log/ovs-vswitchd.log\n")
    beside(path, f"ovs-vswitchd{first}", newer.encode(), 1)
    beside(path, f"ovs-vswitchd{second}", gzip.compress(older.encode()), 2)
    assert facts(log_files.connection(log_files.mark(path), Path(SOCKET))) == EXPECTED


def test_a_rotated_log_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ovs-vswitchd.log"
    path.write_text(rotated(logs(), BEGIN + 20)[1])
    beside(path, "ovs-vswitchd.log.1.gz", gzip.compress(b"x" * 5000)[:30], 1)
    with pytest.raises(StateUnknown):
        log_files.connection(log_files.mark(path), Path(SOCKET))


def test_a_gap_between_two_files_is_noticed() -> None:
    older, newer = rotated(logs(), BEGIN + 20)
    assert continuous(older, newer)
    assert continuous(older, newer.replace("|00403|vlog|", "|00405|vlog|")), "`closing log file` was not written"
    assert not continuous(older, newer.replace("|00403|vlog|", "|00406|vlog|"))
    copied_and_cut = newer.partition("\n")[2]
    after_a_restart = newer.replace("|00403|vlog|", "|00001|vlog|")
    of_another_day = newer.replace("|00403|vlog|", "|00900|vlog|")
    for other in (copied_and_cut, after_a_restart, of_another_day, ""):
        assert not continuous(older, other)
        with pytest.raises(StateUnknown, match="rotated"):
            joined([older, other])


def test_a_mark_is_behind_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\nthr")
    assert log_files.mark(path).offset == 8
    path.write_text("x" * 10000)
    assert log_files.mark(path).offset == 0


def test_what_is_written_behind_a_mark_is_seen(tmp_path: Path) -> None:
    log, path = logs(), tmp_path / "log"
    path.write_text(log.text())
    mark = log_files.mark(path)
    assert log_files.since(mark, Path(SOCKET)).messages == ()
    log.message("GET_QUEUE_NUM")
    with path.open("a") as file:
        file.write(log.text()[mark.offset :])
    assert log_files.since(mark, Path(SOCKET)).messages == ("VHOST_USER_GET_QUEUE_NUM",)


def test_a_log_that_was_replaced_behind_a_mark_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(logs().text())
    mark = log_files.mark(path)
    path.rename(tmp_path / "log.1")
    with pytest.raises(StateUnknown, match="log"):
        log_files.since(mark, Path(SOCKET))
    path.write_text("")
    for look in (log_files.since, log_files.connection):
        with pytest.raises(TryAgain, match="rotated"):
            look(mark, Path(SOCKET))


@pytest.mark.parametrize("block", [13, 64, 100, 1000])
def test_the_beginning_is_found_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """The file is read backwards in blocks, and any part of it may lie on the border of two."""
    monkeypatch.setattr(log_files, "_BLOCK", block)
    path = tmp_path / "log"
    for more in range(0, block, 7):
        path.write_text(f"{'x' * more}\n{logs().text()}{'y' * more}")
        assert facts(log_files.connection(log_files.mark(path), Path(SOCKET))) == EXPECTED


# Real logs, of guests on a stock host: the link of ``vm1`` was set down and up three times before it was reset; ``vm2``
# has four queue pairs, of which its two vCPUs use two; to ``vm3`` memory was added.

REAL = Path(__file__).parent / "vhost_logs"


def real(name: str) -> str:
    return gzip.decompress((REAL / f"{name}.log.gz").read_bytes()).decode()


def test_a_real_log_is_read() -> None:
    text = real("ovs-3.1.0-dpdk-22.11")
    one, four, plugged = (read_connection(text, f"/run/vhost/vm{number}.sock") for number in (1, 2, 3))
    assert [ring.enabled for ring in one.rings] == [True, True]
    assert [ring.enabled for ring in four.rings] == [True] * 4 + [False] * 4
    assert all(ring.kick is not None and ring.call is not None for ring in (*one.rings, *four.rings, *plugged.rings))
    assert [region.size >> 20 for region in one.memory] == [96]
    assert [region.size >> 20 for region in plugged.memory] == [192, 128]
    assert {each.status for each in (one, four, plugged)} == {0xF}
    assert {each.protocol_features for each in (one, four, plugged)} == {0x10CBF}
    assert one.messages.count("VHOST_USER_GET_VRING_BASE") == 2 * 4  # the rings were stopped four times


def test_a_real_log_of_a_newer_switch_is_read() -> None:
    """The link of ``vm1`` was set down and up twice before it was reset; ``vm2`` has two queue pairs."""
    text = real("ovs-3.5.0-dpdk-24.11")
    one, two = (read_connection(text, f"/run/vhost/vm{number}.sock") for number in (1, 2))
    assert [ring.enabled for ring in one.rings] == [True] * 2
    assert [ring.enabled for ring in two.rings] == [True] * 4
    assert all(ring.kick is not None and ring.call is not None for ring in (*one.rings, *two.rings))
    assert [region.size >> 20 for region in (*one.memory, *two.memory)] == [96, 96]
    assert {each.status for each in (one, two)} == {0xF}
    assert {each.protocol_features for each in (one, two)} == {0x10CBF}
    assert one.messages.count("VHOST_USER_GET_VRING_BASE") == 2 * 3


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_real_log_with_lines_left_out_is_refused(number: int) -> None:
    with pytest.raises(StateUnknown, match="Dropped"):
        read_connection(real("ovs-3.1.0-dpdk-22.11-limited"), f"/run/vhost/vm{number}.sock")


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_a_real_log_that_lost_lines_is_refused(data: st.DataObject) -> None:
    lines = real("ovs-3.1.0-dpdk-22.11").splitlines(keepends=True)
    mine = [at for at, line in enumerate(lines) if "(/run/vhost/vm2.sock)" in line]
    whole = facts(read_connection("".join(lines), "/run/vhost/vm2.sock"))
    lost = data.draw(st.sets(st.sampled_from(mine[:-2]), min_size=1, max_size=5))
    left = "".join(line for at, line in enumerate(lines) if at not in lost)
    with contextlib.suppress(StateUnknown):
        assert facts(read_connection(left, "/run/vhost/vm2.sock")) == whole
