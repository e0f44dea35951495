"""What a terminal sends goes to the whole process group: it must end this program's work in order, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ovs_hotswap.errors import CommandError
from ovs_hotswap.plan.interrupts import Interrupts
from ovs_hotswap.system import System
from tests.support.waiting import eventually

GROUP = """
import sys
from pathlib import Path
from ovs_hotswap.system import System

def told(line):
    print(line, flush=True)

if sys.argv[1] == "run":
    print("begun", flush=True)
    print(System().run(["sh", "-c", "echo here; sleep 0.5; echo put back"]).stdout.split()[-1], flush=True)
else:
    System().run_lines(["sh", "-c", "echo begun; sleep 0.5; echo back"], told, timeout=10.0)
"""

UPGRADE = """
import sys, time
from pathlib import Path
from ovs_hotswap.system import System
from ovs_hotswap.plan.interrupts import Interrupts
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.executor import Executor, Plan, ReversibleStep

system = System()

class Flows(ReversibleStep):
    name = description = "flows"
    def do(self, context, run):
        print("doing", flush=True)
        system.run(["sleep", "20"])
    def undo(self, context, run):
        print("undoing", flush=True)
        system.run(["sh", "-c", "sleep 0.5; echo put back"])

plan = Plan("upgrade", (Flows(),))
with Journals(Path(sys.argv[1]), system).begin("upgrade", plan.shape) as journal, Interrupts() as interrupts:
    try:
        Executor(plan, None, journal, clock=time.monotonic, shield=interrupts.shield).run()
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


def group(program: str, *arguments: str) -> subprocess.Popen[str]:
    """``program`` in Python, as the leader of a process group that can be sent what a terminal sends."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments], stdout=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_ctrl_c_twice_leaves_the_roll_back_whole(tmp_path: Path) -> None:
    with group(UPGRADE, str(tmp_path)) as upgrade:
        assert said(upgrade) == "doing"
        os.killpg(upgrade.pid, signal.SIGINT)
        assert said(upgrade) == "undoing"
        os.killpg(upgrade.pid, signal.SIGINT)
        os.killpg(upgrade.pid, signal.SIGHUP)
        assert said(upgrade).startswith("RolledBack ")


@pytest.mark.parametrize("how", ["run", "run_lines"])
def test_a_command_does_not_get_what_a_terminal_sends(how: str) -> None:
    ignores = "import signal; signal.signal(signal.SIGINT, lambda *_: None)\n"
    with group(ignores + textwrap.dedent(GROUP), how) as child:
        assert said(child) == "begun"
        os.killpg(child.pid, signal.SIGINT)
        assert said(child) == "back"


def test_what_takes_too_long_is_killed_with_what_it_started(tmp_path: Path) -> None:
    system, pid_file = System(), tmp_path / "pid"
    script = f"sleep 60 & echo $! > {pid_file}; wait"
    for act in (
        lambda: system.run(["sh", "-c", script], timeout=1.0),
        lambda: system.run_lines(["sh", "-c", script], lambda _line: None, timeout=1.0),
    ):
        with pytest.raises(CommandError, match="no end after 1 s; killed"):
            act()
        started = int(pid_file.read_text())
        eventually(lambda: not system.alive(started), "what the command started is dead")  # noqa: B023


def test_an_exception_in_between_kills_the_command(tmp_path: Path) -> None:
    def interrupted(_line: str) -> None:
        raise KeyboardInterrupt

    system, pid_file = System(), tmp_path / "pid"
    with pytest.raises(KeyboardInterrupt):
        system.run_lines(["sh", "-c", f"echo $$ > {pid_file}; echo begun; exec sleep 60"], interrupted, timeout=30.0)
    assert not system.alive(int(pid_file.read_text()))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)  # as nohup(1), and a shell for what a script starts with `&`, do
    try:
        with Interrupts():
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) is signal.SIG_IGN
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGINT, False), (signal.SIGHUP, False), (signal.SIGTERM, True)]
)  # fmt: skip
def test_a_forked_copy_of_an_upgrade_outlives_what_a_terminal_sends(number: signal.Signals, ends: bool) -> None:
    """pyroute2 forks to enter a namespace, and ends its child by SIGTERM."""
    with Interrupts():
        pid = os.fork()
        if pid == 0:
            try:
                os.kill(os.getpid(), number)
            finally:
                os._exit(7)
        _, status = os.waitpid(pid, 0)
    assert (os.WTERMSIG(status) == number) if ends else (os.waitstatus_to_exitcode(status) == 7)


_FAILS = """
import contextlib, sys
from ovs_hotswap.cli.main import main
from ovs_hotswap.system import System
with contextlib.suppress(SystemExit):
    main()
sys.exit(System().run(["false"]).status)
"""


def test_a_command_that_fails_is_seen_to_whatever_was_ignored_before() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as some that start services do

    done = subprocess.run([sys.executable, "-c", _FAILS, "--version"], preexec_fn=ignore, check=False)
    assert done.returncode == 1
