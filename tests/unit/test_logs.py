"""How long logs become: Open vSwitch's, which the watchdog looks at, and the one that the broker's processes share."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import pytest

from ovs_hotswap.cli.logs import FileLog, PatientLog
from ovs_hotswap.config import Config
from ovs_hotswap.errors import HostError, SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import StepNames
from ovs_hotswap.switch.paths import InstancePaths, older
from ovs_hotswap.watchdog import log_rotation
from ovs_hotswap.watchdog.log_rotation import LogWatch
from ovs_hotswap.watchdog.standby_plan import Task
from tests.support.shortage import fill_pipe
from tests.unit.watch_bed import Bed
from tests.unit.watch_bed import config as config


class Daemons:
    """Answer ``vlog/reopen`` as Open vSwitch's do. ``fault``: how they do not."""

    def __init__(self, bed: Bed) -> None:
        self.told: list[Path] = []
        self.fault: Exception | None = None
        self._logs: dict[Path, Path] = {}
        for side in Side:
            paths = bed.host.instances[side].paths
            paths.run_dir.mkdir(parents=True)
            self._logs |= {paths.vswitchd_ctl: paths.log, paths.ovsdb_ctl: paths.ovsdb_log}
        for log in self._logs.values():
            log.touch()

    def reopen(self, control: Path) -> None:
        self.told.append(control)
        if self.fault is not None:
            raise self.fault
        self._logs[control].touch()


@pytest.fixture
def bed(config: Config) -> Bed:
    return Bed(config)


@pytest.fixture
def daemons(bed: Bed) -> Daemons:
    return Daemons(bed)


def paths(bed: Bed, side: Side = Side.A) -> InstancePaths:
    return bed.host.instances[side].paths


def fill(log: Path) -> None:
    os.truncate(log, log_rotation.LIMIT + 1)


def look(bed: Bed, watch: LogWatch) -> None:
    bed.world.now += 60.0
    watch.look(bed.host)


def test_a_log_that_is_too_long_is_renamed_and_its_daemon_told(bed: Bed, daemons: Daemons) -> None:
    watch = LogWatch(daemons.reopen)
    logs = [paths(bed).log, paths(bed, Side.B).ovsdb_log]
    for log in logs:
        older(log).write_text("older still")
        fill(log)
    look(bed, watch)
    assert daemons.told == [paths(bed).vswitchd_ctl, paths(bed, Side.B).ovsdb_ctl]
    for log in logs:
        assert (older(log).stat().st_size, log.stat().st_size) == (log_rotation.LIMIT + 1, 0)
    look(bed, watch)
    assert len(daemons.told) == 2


def test_sizes_are_looked_at_once_a_minute(bed: Bed, daemons: Daemons) -> None:
    watch = LogWatch(daemons.reopen)
    look(bed, watch)
    fill(paths(bed).log)
    bed.world.now += 59.0
    watch.look(bed.host)
    assert daemons.told == []
    bed.world.now += 1.0
    watch.look(bed.host)
    assert daemons.told == [paths(bed).vswitchd_ctl]


def test_no_log_is_renamed_while_an_upgrade_is_under_way_or_waits(bed: Bed, daemons: Daemons) -> None:
    watch = LogWatch(daemons.reopen)
    fill(paths(bed).log)
    with bed.host.lock():
        look(bed, watch)
    assert daemons.told == []
    with Journals(bed.config.state_dir, bed.world).begin("upgrade", StepNames(("park",))):
        pass
    look(bed, watch)
    assert daemons.told == []


@pytest.mark.parametrize("journal", ["unfinished", "damaged"])
def test_an_upgrade_that_waits_for_long_does_not_let_logs_fill_the_memory(
    bed: Bed, daemons: Daemons, journal: str
) -> None:
    with Journals(bed.config.state_dir, bed.world).begin("upgrade", StepNames(("park",))):
        pass
    if journal == "damaged":
        (path,) = bed.config.state_dir.glob("journal/*.jsonl")
        path.write_text("{}\n{}\n")
    os.truncate(paths(bed).log, log_rotation.MOST + 1)
    look(bed, LogWatch(daemons.reopen))
    assert older(paths(bed).log).stat().st_size == log_rotation.MOST + 1
    assert paths(bed).log.stat().st_size == 0


def test_a_command_renames_at_once_and_says_which(bed: Bed, daemons: Daemons) -> None:
    watch, log = LogWatch(daemons.reopen), paths(bed).log
    fill(log)
    assert watch.rotate(bed.host) == [log]
    assert watch.rotate(bed.host) == []


def test_a_log_that_another_process_has_just_renamed_is_left_alone(bed: Bed, daemons: Daemons) -> None:
    log = paths(bed).log
    fill(log)

    class Overtaken(Journals):
        """Another process renames the log while this one waits for the lock."""

        def read(self) -> None:
            older(log).write_text("")
            log.rename(older(log))
            log.touch()

    overtaken = LogWatch(daemons.reopen, Overtaken)
    assert overtaken.rotate(bed.host) == []
    assert (older(log).stat().st_size, daemons.told) == (log_rotation.LIMIT + 1, [])


def test_the_lock_is_not_asked_for_while_no_log_is_too_long(bed: Bed, daemons: Daemons) -> None:
    look(bed, LogWatch(daemons.reopen))
    assert not (bed.config.run_dir / "upgrade.lock").exists()


def test_a_daemon_that_did_not_hear_is_told_again_and_the_failure_logged_once(
    bed: Bed, daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    watch, log = LogWatch(daemons.reopen), paths(bed).log
    fill(log)
    daemons.fault = SwitchError("no answer within 1 s")
    for _ in range(3):
        look(bed, watch)
    assert len(daemons.told) == 3
    assert [each.getMessage() for each in caplog.records] == [f"{log} is not rotated: no answer within 1 s"]
    assert older(log).stat().st_size == log_rotation.LIMIT + 1, "where the log continues"
    daemons.fault = None
    look(bed, watch)
    assert log.exists()
    look(bed, watch)
    assert len(daemons.told) == 4


def test_the_log_of_an_instance_that_has_ended_is_left_alone(bed: Bed, daemons: Daemons) -> None:
    fill(paths(bed).log)
    bed.world.die(Side.A)
    look(bed, LogWatch(daemons.reopen))
    assert daemons.told == []


def test_the_keeper_looks_at_the_logs_and_goes_on_if_nobody_answers(bed: Bed, daemons: Daemons) -> None:
    bed.keeper.turn()  # the intent is programmed
    bed.world.now += 60.0
    fill(paths(bed).log)
    assert bed.keeper.turn() is Task.NOTHING
    assert older(paths(bed).log).exists()


def test_the_keeper_looks_at_the_logs_though_it_cannot_do_its_work(bed: Bed, daemons: Daemons) -> None:
    bed.world.program_fault = SwitchError("refused")
    fill(paths(bed).log)
    with pytest.raises(SwitchError, match="refused"):
        bed.keeper.turn()
    assert older(paths(bed).log).exists()


# -- the log that processes share


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, __file__, 1, text, None, None)


@pytest.fixture
def streams(tmp_path: Path) -> Iterator[list[TextIO]]:
    """Two processes share a log; the second has inherited it from the first."""
    with ExitStack() as stack:
        first = stack.enter_context((tmp_path / "log").open("a"))
        second = stack.enter_context(os.fdopen(os.dup(first.fileno()), "a"))
        yield [first, second]


def test_processes_that_share_a_log_go_on_in_the_new_file(tmp_path: Path, streams: list[TextIO]) -> None:
    path = tmp_path / "log"
    first, second = (FileLog(path, [stream], limit=10) for stream in streams)
    first.emit(record("from the first"))
    second.emit(record("from the second"))
    assert path.read_text() == "from the second\n"
    assert older(path).read_text() == "from the first\n"
    os.write(streams[0].fileno(), b"what the first says when it crashes\n")
    assert older(path).read_text() == "from the first\nwhat the first says when it crashes\n"
    path.write_text("")
    first.emit(record("one"))
    second.emit(record("two"))
    os.write(streams[0].fileno(), b"raw\n")
    assert path.read_text() == "one\ntwo\nraw\n"
    for count in range(20):
        first.emit(record(f"line {count:02d}"))
    assert path.read_text() + older(path).read_text() == "line 18\nline 19\nline 16\nline 17\n"


def test_a_log_that_cannot_be_made_anew_is_gone_on_with(tmp_path: Path, streams: list[TextIO]) -> None:
    path = tmp_path / "log"
    log = FileLog(path, streams[:1], limit=10)
    (tmp_path / "log.1").mkdir()
    for text in ("longer than ten bytes", "more"):
        log.emit(record(text))
    assert path.read_text() == "longer than ten bytes\nmore\n"
    with pytest.raises(HostError, match="none"):
        FileLog(tmp_path / "none" / "log", streams[:1])


def test_a_service_that_ends_before_it_logs_does_so_to_a_log_of_limited_length(tmp_path: Path) -> None:
    """A supervisor that is started with a log as `broker start` does, and whose service crashes at once."""
    path = tmp_path / "log"
    path.write_text("x" * 1000)
    code = (
        "import logging, subprocess, sys; from pathlib import Path; from ovs_hotswap.cli.logs import FileLog\n"
        "log = FileLog(Path(sys.argv[1]), [sys.stderr, sys.stdout], limit=500)\n"
        "logging.basicConfig(handlers=[log])\n"
        "for number in range(8):\n"
        "    logging.error('start %d', number)\n"
        "    subprocess.run([sys.executable, '-S', '-c', f'print(1); undefined_{number}'])\n"
    )
    with path.open("ab") as out:
        subprocess.run([sys.executable, "-c", code, str(path)], stdout=out, stderr=out, check=True,
                       cwd=Path(__file__).parents[2])  # fmt: skip
    assert "undefined_7" in path.read_text()
    assert path.stat().st_size < 1000
    assert older(path).stat().st_size < 1000


# ------------------------------------------------------------------------------------------------ without a reader


def logged(log: PatientLog, text: str) -> None:
    log.emit(logging.LogRecord("x", logging.INFO, __file__, 1, text, None, None))


def test_who_does_not_read_a_log_holds_nobody_up() -> None:
    reader, writer = os.pipe()
    fill_pipe(writer)
    log = PatientLog(writer)
    logged(log, "first")
    long = "x" * 100_000
    for _ in range(4):
        logged(log, long)
    logged(log, "one too many")
    with contextlib.suppress(BlockingIOError):
        os.set_blocking(reader, False)
        while os.read(reader, 1 << 16).endswith(b"."):
            pass
    logged(log, "last")
    text = b""
    while b"last" not in text:
        log.flush()
        text += os.read(reader, 1 << 20)
    lines = text.decode().splitlines()
    assert lines[0] == "first"
    assert lines[1:4] == [long] * 3
    assert lines[4:] == ["2 messages were left out, because they were not read", "last"]
    os.close(reader)
    logged(log, "to nobody")
    os.close(writer)
    logged(log, "to nothing")


def test_what_cannot_be_put_into_words_is_logged_nevertheless(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = PatientLog(file.fileno())
        log.emit(logging.LogRecord("x", logging.INFO, __file__, 1, "%d \udcff", ("a",), None))
    assert "cannot be logged" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("to_file", [True, False])
def test_a_daemon_without_its_standard_streams_logs(tmp_path: Path, closed: str, to_file: bool) -> None:
    program = (
        "import logging, pathlib; from ovs_hotswap.cli import main, logs;"
        "main.run = lambda *_: (logs.start_log('info', FILE), logging.info('x'), pathlib.Path('ok').touch())[2] or 0;"
        "main.main()"
    ).replace("FILE", f"pathlib.Path('{tmp_path}/log')" if to_file else "None")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = f'exec "{sys.executable}" -c "{program}" {closed}'
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, check=False, timeout=60)
    assert (tmp_path / "ok").exists()
    assert not to_file or (tmp_path / "log").read_text().endswith("x\n")
