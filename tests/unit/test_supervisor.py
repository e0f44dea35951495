"""What stands in for systemd: real processes that say what a service says, and a supervisor in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovs_hotswap.service.supervisor import BackOff
from ovs_hotswap.system import pid_text
from tests.support.waiting import eventually

RUN = (
    "import sys; from pathlib import Path; from ovs_hotswap.service.supervisor import Supervisor;"
    "sys.exit(Supervisor('supervisor', sys.argv[3:], Path(sys.argv[1]), sys.argv[2].split()).run())"
)
# Each service writes a line to the file `said` when it starts: its arguments and what it was given.
BEGIN = """
import os, signal, socket, sys, time
from ovs_hotswap.service import sd_notify
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
given = {name: [os.fstat(fd).st_ino for fd in fds] for name, fds in sorted(sd_notify.listen_fds().items())}
def say(text):
    with open("said", "a") as out:
        print(os.getpid(), *sys.argv[1:], text, file=out)
"""
WAIT = "\nwhile True:\n    time.sleep(60)\n"


class Service:
    """A supervisor whose service runs ``code``."""

    def __init__(self, directory: Path, code: str, once: str) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(directory), once, sys.executable, "-c", BEGIN + code],
            cwd=directory, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip

    def said(self, count: int) -> list[list[str]]:
        """The first ``count`` lines, once they are there."""
        self.wait(lambda: len(self._lines()) >= count)
        return [line.split(maxsplit=1) for line in self._lines()[:count]]

    def _lines(self) -> list[str]:
        path = self.directory / "said"
        return path.read_text().splitlines() if path.exists() else []

    def wait(self, true: Callable[[], bool]) -> None:
        eventually(true, lambda: f"more than {self._lines()}")

    @property
    def pid_file(self) -> Path:
        return self.directory / "supervisor.pid"


Make = Callable[..., Service]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Make]:
    made: list[Service] = []

    def make(code: str, once: str = "") -> Service:
        made.append(Service(tmp_path, code, once))
        return made[-1]

    yield make
    for each in made:
        if each.process.poll() is None:
            each.process.terminate()
            each.process.wait(20)
    assert not list(tmp_path.glob("*.notify"))
    assert not (tmp_path / "supervisor.pid").exists()


def test_what_was_stored_is_given_to_the_next(service: Make) -> None:
    code = """
if not given:
    ends = socket.socketpair()
    third = open(os.devnull)
    sd_notify.fdstore_add("one", [end.fileno() for end in ends])
    sd_notify.fdstore_add("two", [third.fileno()])
    given = {"one": [os.fstat(end.fileno()).st_ino for end in ends], "two": [os.fstat(third.fileno()).st_ino]}
sd_notify.notify("READY=1")
extra = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
say(repr(given) + f" {len(extra)}")
"""
    made = service(code + WAIT)
    lines = []
    for count in range(1, 4):
        lines.append(made.said(count)[-1])
        os.kill(int(lines[-1][0]), signal.SIGKILL)
    assert len({pid for pid, _ in lines}) == 3
    first, *later = [text.rpartition(" ")[0] for _, text in lines]
    assert later == [first, first]
    assert lines[1][1] == lines[2][1]  # not a descriptor more each time


def test_what_was_forgotten_is_closed(service: Make) -> None:
    code = """
if not given:
    ends = socket.socketpair()
    for name in ("one", "two"):
        sd_notify.fdstore_add(name, [ends[0].fileno()])
    sd_notify.fdstore_add("three", [0])
    ends[0].close()
    sd_notify.fdstore_remove("one")
    ends[1].setblocking(False)
    try:
        say(ends[1].recv(1))
    except BlockingIOError:
        say("kept")
    sd_notify.fdstore_remove("two")
    ends[1].setblocking(True)
    say(repr(ends[1].recv(1)))
    sd_notify.notify("READY=1")
say(" ".join(["with", *given]))
"""
    made = service(code + WAIT)
    lines = made.said(3)
    assert [text for _, text in lines[:2]] == ["kept", "b''"]
    os.kill(int(lines[0][0]), signal.SIGKILL)
    assert made.said(4)[-1][1] == "with three"


def test_what_was_stored_outlives_that_descriptors_are_short(service: Make) -> None:
    """The supervisor can open none while the service ends and is started again."""
    code = """
import resource
supervisor = os.getppid()
def limit(soft):
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
if not given:
    ends = socket.socketpair()
    sd_notify.fdstore_add("one", [ends[0].fileno()])
    sd_notify.notify("READY=1")
    time.sleep(0.2)
    limit(3)
    say("first")
    if os.fork():
        os._exit(1)
    time.sleep(1)
    limit(1024)
    os._exit(0)
sd_notify.notify("READY=1")
say(" ".join(["with", *given]))
"""
    made = service(code + WAIT)
    assert [text for _, text in made.said(2)] == ["first", "with one"]
    os.kill(int(made.said(2)[1][0]), signal.SIGKILL)
    assert made.said(3)[-1][1] == "with one"


def test_arguments_for_the_first_start_alone(service: Make) -> None:
    made = service("sd_notify.notify('READY=1'); say('here')" + WAIT, once="--take-over now")
    pid, text = made.said(1)[0]
    assert text == "--take-over now here"
    os.kill(int(pid), signal.SIGKILL)
    assert made.said(2)[1][1] == "here"


def test_a_service_that_was_never_ready_is_not_started_again(service: Make) -> None:
    made = service("say('here'); sys.exit(9)")
    assert made.process.wait(20) == 9
    assert len(made.said(1)) == 1


def test_one_that_fails_later_is_tried_again_and_again(service: Make) -> None:
    code = """
count = len(open("said").readlines()) if os.path.exists("said") else 0
if count in (0, 3):
    sd_notify.notify("READY=1")
say("here")
if count in (0, 3):
    while True:
        time.sleep(60)
sys.exit(3)
"""
    made = service(code)
    os.kill(int(made.said(1)[0][0]), signal.SIGKILL)
    made.said(4)
    assert made.process.poll() is None


def test_one_that_was_succeeded_ends_it(service: Make) -> None:
    made = service("sd_notify.notify('READY=1'); say('here'); sd_notify.notify('X_SUCCEEDED=1'); sys.exit(0)")
    assert made.process.wait(20) == 0
    assert len(made.said(1)) == 1
    made.pid_file.unlink()  # it is the successor's


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_service(service: Make, number: signal.Signals) -> None:
    code = """
def end(*_):
    say("ends")
    sys.exit(0)
signal.signal(signal.SIGINT, end)
sd_notify.notify("READY=1")
say("here")
"""
    made = service(code + WAIT)
    made.said(1)
    made.wait(lambda: made.pid_file.exists() and made.pid_file.read_text() == pid_text(made.process.pid))
    made.process.send_signal(number)
    assert made.process.wait(20) == 0
    assert [text for _, text in made.said(2)] == ["here", "ends"]


def test_what_was_stored_is_put_in_order_by_the_next_if_there_is_none(service: Make) -> None:
    """Only the first one is stored for; the second one is started in order to be ended."""
    code = """
if not given:
    sd_notify.fdstore_add("one", [0])
def end(*_):
    say("ends")
    sys.exit(0)
signal.signal(signal.SIGINT, end)
say(" ".join(["with", *given]))
sd_notify.notify("READY=1")
"""
    made = service(code + WAIT)
    pid = int(made.said(1)[0][0])
    for process, number in (
        (made.process.pid, signal.SIGSTOP), (pid, signal.SIGKILL),
        (made.process.pid, signal.SIGTERM), (made.process.pid, signal.SIGCONT),
    ):  # fmt: skip
        os.kill(process, number)
    assert made.process.wait(20) == 0
    assert [text for _, text in made.said(3)] == ["with", "with one", "ends"]


def test_one_that_fails_at_its_end_is_not_the_last(service: Make) -> None:
    code = """
if not given:
    sd_notify.fdstore_add("one", [0])
signal.signal(signal.SIGINT, lambda *_: sys.exit(0 if given else 1))
say(" ".join(["with", *given]))
sd_notify.notify("READY=1")
"""
    made = service(code + WAIT)
    made.said(1)
    made.process.terminate()
    assert made.process.wait(20) == 0
    assert [text for _, text in made.said(2)] == ["with", "with one"]


def test_a_hang_up_is_passed_on(service: Make) -> None:
    made = service(
        "signal.signal(signal.SIGHUP, lambda *_: say('again'))\nsd_notify.notify('READY=1'); say('here')" + WAIT
    )
    made.said(1)
    made.process.send_signal(signal.SIGHUP)
    assert made.said(2)[1][1] == "again"
    assert made.process.poll() is None


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUN, str(tmp_path), "", "/nowhere"], check=False, capture_output=True)
    assert done.returncode == 127
    assert b"/nowhere cannot be started" in done.stderr


def test_one_that_was_ready_is_started_again_at_once() -> None:
    back_off = BackOff()
    assert [back_off.after(ready=True, now=100.0 * number) for number in range(50)] == [0.0] * 50


def test_one_that_is_not_ready_is_started_less_and_less_often() -> None:
    back_off = BackOff()
    delays = [back_off.after(ready=False, now=float(number)) for number in range(8)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert back_off.after(ready=True, now=8.0) == 0.0


def test_one_that_is_ready_and_ends_again_and_again_is_started_less_and_less_often() -> None:
    back_off, now, delays = BackOff(), 0.0, []
    for _ in range(200):
        delays.append(back_off.after(ready=True, now=now))
        now += 0.3 + delays[-1]
    assert delays[:20] == [0.0] * 20
    in_a_minute = 60.0 / (now / 200)
    assert in_a_minute < 30


UNITS = Path(__file__).parents[2] / "systemd"


@pytest.mark.parametrize("name", ["ovs-hotswap-broker", "ovs-hotswap-watch"])
def test_a_unit_that_keeps_failing_waits_before_it_is_started_again(name: str, tmp_path: Path) -> None:
    """What the unit runs after its service has ended, with a `sleep` that says how long."""
    text = (UNITS / f"{name}.service").read_text().replace("\\\n", "")
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStopPost=/bin/sh -c '")]
    script = line.partition("'")[2].removesuffix("'").replace("$$", "$").replace("%N", name)
    sleep = tmp_path / "sleep"
    sleep.write_text('#!/bin/sh\necho "$1"\n')
    sleep.chmod(0o755)
    run_dir = tmp_path / "run"
    run_dir.mkdir()

    def ended(result: str) -> str:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SERVICE_RESULT": result, "RUNTIME_DIRECTORY": str(run_dir)}
        argv = ["/bin/sh", "-c", script]
        return subprocess.run(argv, env=environment, check=False, capture_output=True, text=True).stdout.strip()

    assert [ended("exit-code") for _ in range(7)] == ["", "", "", "1", "2", "5", "5"]
    assert ended("success") == ""
    (record,) = run_dir.iterdir()
    os.utime(record, (0, 0))  # long ago
    assert ended("signal") == ""
    record.unlink()
    run_dir.rmdir()  # nothing can be written
    assert ended("exit-code") == "5"
