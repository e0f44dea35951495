from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovs_hotswap.errors import BusyError, CommandError, HostError
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.system import System, files, host_error, pid_text
from tests.support.shortage import no_threads
from tests.support.waiting import eventually


@pytest.fixture
def system() -> System:
    return System()


def test_run_returns_what_was_printed(system: System) -> None:
    done = system.run(["sh", "-c", "cat; echo $GREETING >&2"], stdin="in", env={"GREETING": "hello"})
    assert (done.status, done.stdout, done.stderr) == (0, "in", "hello\n")


def test_run_without_stdin_reads_nothing(system: System) -> None:
    assert system.run(["cat"]).stdout == ""


def test_run_names_the_command_its_status_and_its_last_line(system: System) -> None:
    with pytest.raises(CommandError, match=r"sh -c .*: exit 3: second"):
        system.run(["sh", "-c", "echo first >&2; echo second >&2; exit 3"])
    assert system.run(["sh", "-c", "exit 3"], check=False).status == 3


def test_run_of_a_missing_command(system: System) -> None:
    with pytest.raises(CommandError, match="no-such-command-here: not installed") as raised:
        system.run(["no-such-command-here"])
    assert raised.value.hint == "install the package that has `no-such-command-here`"


def test_run_kills_what_takes_too_long(system: System, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(CommandError, match="no end after 2 s; killed"):
        system.run(["sh", "-c", f"echo $$ > {pid_file}; exec sleep 60"], timeout=2.0)
    assert not system.alive(int(pid_file.read_text()))


def test_spawn_outlives_its_call_and_logs(system: System, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    pid = system.spawn(["sh", "-c", "echo started; exec sleep 60"], log=log)
    try:
        assert system.alive(pid)
        assert os.getsid(pid) == pid, "a session of its own: a signal to ours does not reach it"
        while "started" not in log.read_text():
            system.sleep(0.01)
        assert log.read_text() == "before\nstarted\n"
        while system.cmdline(pid) != ["sleep", "60"]:  # none for a moment, in exec
            system.sleep(0.01)
        assert pid in system.pids()
    finally:
        system.kill(pid)
    assert not system.alive(pid)
    assert system.cmdline(pid) == []
    with pytest.raises(CommandError, match="not installed"):
        system.spawn(["no-such-command-here"], log=log)


def test_kill_asks_first(system: System, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pid = system.spawn(["sh", "-c", "trap 'echo bye; exit' TERM; echo ready; while :; do sleep 0.01; done"], log=log)
    while "ready" not in log.read_text():
        system.sleep(0.01)
    system.kill(pid)
    assert log.read_text() == "ready\nbye\n"


def test_kill_does_not_wait_for_the_deaf(system: System, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pid = system.spawn(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"], log=log)
    while "ready" not in log.read_text():
        system.sleep(0.01)
    system.kill(pid, grace=0.1)
    assert not system.alive(pid)
    system.kill(pid)  # of the dead: nothing


def test_a_zombie_is_dead(system: System) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert system.alive(child.pid)
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not system.alive(child.pid)
    finally:
        child.wait()


def test_read_pid(system: System, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    assert system.read_pid(path) is None
    for text in ("", "\n", "nonsense", "0", "-1"):
        path.write_text(text)
        assert system.read_pid(path) is None
    path.write_text(f"{os.getpid()}\n")
    assert system.read_pid(path) == os.getpid()
    child = subprocess.Popen(["true"])
    child.wait()
    path.write_text(str(child.pid))
    assert system.read_pid(path) is None


def test_write_atomic_replaces_and_leaves_nothing_else(system: System, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        system.write_atomic(path, "new")
        assert reader.read() == "old", "a reader of the old file is not disturbed"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_write_atomic_removes_what_a_writer_that_was_killed_has_left(system: System, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    for name in (f".file.{ended.pid}", ".file.1", f".other.{ended.pid}", ".file.bak"):
        (tmp_path / name).touch()
    system.write_atomic(tmp_path / "file", "new")
    assert sorted(os.listdir(tmp_path)) == [".file.1", ".file.bak", f".other.{ended.pid}", "file"]


class FullSystem(System):
    """A disk without room for a second file."""

    def write_atomic(self, path: Path, text: str) -> None:
        raise host_error(OSError(errno.ENOSPC, "No space left on device"), path)


def test_a_short_text_is_written_over_where_there_is_no_room_for_another_file(tmp_path: Path) -> None:
    path = tmp_path / "active"
    path.write_text("a, at great length\n")
    FullSystem().write_short(path, "b\n")
    assert path.read_text() == "b\n"
    with pytest.raises(HostError, match="nothing: No space left"):
        FullSystem().write_short(tmp_path / "nothing", "b\n")


def test_whether_a_file_could_be_written_is_known_before_it_must_be(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "active"
    system.see_writable(path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(HostError, match="No such file"):
        system.see_writable(tmp_path / "missing" / "file")

    def refused(number: int) -> Callable[..., None]:
        def refuse(**_: object) -> None:
            raise OSError(number, os.strerror(number))

        return refuse

    monkeypatch.setattr(tempfile, "TemporaryFile", refused(errno.ENOSPC))
    with pytest.raises(HostError, match="No space left"):
        system.see_writable(path)
    path.touch()
    system.see_writable(path)  # it is written over
    monkeypatch.setattr(tempfile, "TemporaryFile", refused(errno.EROFS))
    with pytest.raises(HostError, match="Read-only"):
        system.see_writable(path)


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "read-only"), (errno.EMFILE, "ulimit"), (errno.EACCES, "owner|root")],
)
def test_what_the_machine_refuses_names_the_file_the_cause_and_what_mends_it(number: int, hint: str) -> None:
    with pytest.raises(HostError, match=f"^/some/file: {os.strerror(number)}$") as raised, files():
        raise OSError(number, os.strerror(number), "/some/file")
    assert re.search(hint, raised.value.hint or "")


def test_a_file_that_cannot_be_replaced_is_named_and_is_as_it_was(system: System, tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "inner").touch()
    with pytest.raises(HostError, match=rf"^{tmp_path}/file: "):
        system.write_atomic(tmp_path / "file", "new")
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(HostError, match="No such file"):
        system.write_atomic(tmp_path / "missing" / "file", "new")


def test_a_full_disk_keeps_nobody_from_a_lock(system: System, tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse every write to a file, as a full disk does."""
    path = tmp_path / "lock"
    path.write_text("4000000")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        with system.lock(path, "an upgrade"):
            assert path.read_text() == "", "no process is taken for the holder"
            with pytest.raises(BusyError, match="process unknown"), system.lock(path, "an upgrade"):
                pytest.fail("two hold the lock")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_lock_that_cannot_be_made_is_named(system: System, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=rf"{tmp_path}/file"), system.lock(tmp_path / "file" / "lock", "an upgrade"):
        pytest.fail("held")


LOCKER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from ovs_hotswap.system import System

    with System().lock(Path(sys.argv[1]), "an upgrade"):
        print("held", flush=True)
        time.sleep(60)
    """
)


def test_lock_names_its_holder_and_a_dead_one_does_not_keep_it(system: System, tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", LOCKER, str(path)], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=rf"an upgrade is already under way \(process {holder.pid}\)"):
            with system.lock(path, "an upgrade"):
                pytest.fail("two hold the lock")
        holder.kill()
        holder.wait()
    with system.lock(path, "an upgrade"):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(BusyError):
            with system.lock(path, "an upgrade"):
                pytest.fail("two hold the lock")
    with system.lock(path, "an upgrade"):
        pass


def test_the_lock_is_released_when_its_body_fails(system: System, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), system.lock(tmp_path / "lock", "an upgrade"):
        raise ValueError("x")
    with system.lock(tmp_path / "lock", "an upgrade"):
        pass


def test_a_program_whose_file_was_replaced_is_told(system: System, tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    pid = system.spawn([str(program), "60"], log=tmp_path / "log")
    try:
        while system.cmdline(pid) != [str(program), "60"]:
            system.sleep(0.01)
        assert not system.runs_deleted_files(pid)
        replacement = tmp_path / "new"
        shutil.copy("/bin/sleep", replacement)
        replacement.rename(program)  # as dpkg does
        assert system.runs_deleted_files(pid)
    finally:
        system.kill(pid)
    assert not system.runs_deleted_files(pid)


def test_a_process_whose_first_thread_has_ended_is_alive(system: System, tmp_path: Path) -> None:
    program = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    program += "ctypes.CDLL(None).pthread_exit(None)"
    pid = system.spawn([sys.executable, "-c", program], log=tmp_path / "log")
    try:
        while ") Z " not in Path(f"/proc/{pid}/stat").read_text():
            system.sleep(0.01)
        assert system.alive(pid)
    finally:
        system.kill(pid)
    assert not system.alive(pid)


@pytest.mark.skipif(
    Path("/proc/sys/kernel/core_pattern").read_text().startswith("|"), reason="a program takes core files"
)
def test_a_crashed_process_that_writes_its_core_file_stands_still(system: System, tmp_path: Path) -> None:
    program = f"import os, resource, time; os.chdir({str(tmp_path)!r}); kept = bytearray(b'x') * (1 << 28); "
    program += "resource.setrlimit(resource.RLIMIT_CORE, (-1, -1)); print('ready', flush=True); time.sleep(60)"
    pid = system.spawn([sys.executable, "-c", program], log=tmp_path / "log")
    try:
        while "ready" not in (tmp_path / "log").read_text():
            system.sleep(0.01)
        assert not system.stopped(pid)
        os.kill(pid, signal.SIGSEGV)
        while not (seen := system.stopped(pid)) and system.alive(pid):
            system.sleep(0.001)
        assert seen
        system.end(pid)  # cuts the core file short
    finally:
        system.kill(pid, grace=0)
    assert not system.stopped(pid)


def test_a_command_reads_all_of_its_input_though_its_caller_is_killed(tmp_path: Path) -> None:
    program = (
        "from ovs_hotswap.system import System; print(flush=True);"
        "System().run(['sh', '-c', 'echo > begun; sleep 0.3; cat > read.new; mv read.new read'], stdin='x' * 1000000)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())}) as caller:
        eventually((tmp_path / "begun").exists, "the command has begun")
        caller.kill()
    eventually((tmp_path / "read").exists, "the command has read its input")
    assert (tmp_path / "read").stat().st_size == 1000000


def test_a_command_that_can_be_given_no_deadline_is_ended(system: System, tmp_path: Path) -> None:
    told: list[str] = []
    with no_threads(), pytest.raises(CommandError, match="thread"):
        system.run_lines(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 600"], told.append, timeout=10.0)
    if (tmp_path / "pid").exists():
        assert not system.alive(int((tmp_path / "pid").read_text() or "0"))


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def test_a_pid_file_names_its_writer_alone(system: System, tmp_path: Path, sleeper: int) -> None:
    """Whatever has the pid by now, and whatever words are among its arguments."""
    path, born = tmp_path / "x.pid", start_time(sleeper)
    assert born
    for text, word, found in (
        (pid_text(sleeper), "broker", sleeper),
        (f"{sleeper}\n{born + 1}\n", "sleep", None),
        (f"{sleeper}\n{born - 1}\n", "sleep", None),
        (f"{sleeper}\n", "sleep", sleeper),  # of an earlier version
        (f"{sleeper}\n", "broker", None),
        ("", "sleep", None),
        (f"{sleeper} then\n", "sleep", None),
    ):
        path.write_text(text)
        assert system.read_writer(path, word) == found, text
    path.write_text(pid_text(sleeper))
    assert system.read_pid(path) == sleeper
    path.unlink()
    assert system.read_writer(path, "sleep") is None
