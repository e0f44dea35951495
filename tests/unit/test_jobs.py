"""Jobs: their records, what is kept of them, and what ends them."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App, Effect, effect_of
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import CommandError, HostError, StateUnknown
from ovs_hotswap.remote import jobs, launch
from ovs_hotswap.remote.jobs import Job, JobState
from ovs_hotswap.remote.store import Jobs, Recorder
from ovs_hotswap.system import System, host_error, pid_text
from tests.support.waiting import eventually
from tests.unit.fake_system import FakeSystem
from tests.unit.test_cli import Shell, Terminal, leaves
from tests.unit.test_cli import shell as shell  # the fixture

CHANGING = {
    "upgrade", "rollback", "resume", "vm quarantine", "vm release", "instance start", "instance stop",
    "instance restore", "instance keep", "instance bring-up", "instance mend", "broker run", "broker supervise",
    "broker start", "broker take-over", "broker stop", "broker reload", "watch run", "overlay apply", "release add",
    "release remove", "patches apply", "lab up", "lab down", "lab demo", "job interrupt", "job execute",
    "doctor", "instance rotate-logs", "package replace-daemons", "uplink selftest", "adopt", "release-vms",
    "config init", "stock install", "stock remove", "stock shield", "stock unshield", "metrics write",
    "flowlog run", "trace",
    "bursts",
}  # fmt: skip


def every_command() -> dict[str, click.Command]:
    listed = {" ".join(path): command for name in main.COMMANDS for path, command in leaves(name).items()}
    return listed | {name: lazy.load() for name, lazy in main.UNLISTED.items()}


@pytest.mark.parametrize("name", every_command())
def test_every_command_says_whether_it_changes_something(name: str) -> None:
    declared = every_command()[name].changes  # type: ignore[attr-defined]
    assert declared is not None, "give @command(changes=...)"
    assert (declared not in {False, Effect.STARTS_JOB}) == (name in CHANGING)


def test_the_list_of_changing_commands_names_commands() -> None:
    assert set(every_command()) >= CHANGING


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("upgrade --release x", True),
        ("--json --config /x upgrade --release x", True),
        ("upgrade --release x --dry-run", False),
        ("overlay apply --dry-run --json", False),
        ("vm quarantine x --reason --help", True),  # the option's value
        ("status", False),
        ("doctor", False),
        ("doctor --fix --dry-run", False),
        ("doctor --fix", True),
        ("doctor --undo --yes", True),
        ("upgrade --help", False),
        ("-h upgrade --release x", False),
        ("--version", False),
        ("vm", False),
        ("", False),
        ("no-such-command", False),
        ("upgrade --no-such-option", False),
    ],
)
def test_whether_a_command_line_changes_something(line: str, changes: bool) -> None:
    assert effect_of(main.cli, line.split()) is (Effect.CHANGES if changes else Effect.READS)


def test_a_command_that_makes_a_job_by_itself_is_not_run_as_one() -> None:
    assert effect_of(main.cli, ["job", "start", "--follow", "rollback"]) is Effect.STARTS_JOB
    assert effect_of(main.cli, ["job", "start", "--help"]) is Effect.READS


# -- records


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_record_is_read_as_it_was_written(arguments: list[str], directory: str) -> None:
    job = Job("20261129-081500-upgrade", tuple(arguments), 1.5, directory or "/", True, "ann from 192.0.2.1")
    assert Job.parse(json.loads(json.dumps(job.document()))) == job


@pytest.mark.parametrize("document", [None, [], {}, {"id": "x"}, {"id": 1, "arguments": [], "started": 0}])
def test_a_damaged_record_is_refused(document: object) -> None:
    with pytest.raises(StateUnknown):
        Job.parse(document)


@pytest.mark.parametrize(
    ("age_s", "begun", "alive", "exit_code", "state"),
    [
        (1.0, False, False, None, JobState.STARTING),
        (60.0, False, False, None, JobState.LOST),
        (1.0, True, True, None, JobState.RUNNING),
        (1.0, True, False, None, JobState.LOST),
        (1.0, True, True, 5, JobState.ENDED),
        (1.0, True, False, 0, JobState.ENDED),
    ],
)
def test_the_state_of_a_job(age_s: float, begun: bool, alive: bool, exit_code: int | None, state: JobState) -> None:
    assert jobs.state_of(age_s=age_s, begun=begun, alive=alive, exit_code=exit_code) is state


@given(st.lists(st.text(max_size=8), max_size=3), st.integers(0, 12))
def test_ids_are_unique_and_their_order_is_that_of_the_start(words: list[str], number: int) -> None:
    taken: list[str] = []
    for _ in range(number + 1):
        taken.append(jobs.new_id("20261129-081500", words, taken))
    assert len(set(taken)) == len(taken)
    assert all(map(jobs.is_id, taken))
    assert sorted(taken, key=jobs.order) == taken


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "upgrade", "--json", "upgrade", "--release", "x"], ["upgrade"]),
        (["broker", "take-over"], ["broker", "take-over"]),
        (["vm", "release", "web1"], ["vm", "release"]),
        (["instance", "stop", "b"], ["instance", "stop"]),
        (["--config=/x", "status", "/etc"], ["status"]),
        ([], []),
    ],
)
def test_the_id_has_the_name_of_the_command(arguments: list[str], words: list[str]) -> None:
    assert jobs.command_name(arguments) == words


def test_only_the_newest_ended_jobs_are_kept() -> None:
    states = {f"20261129-08{minute:02d}00-x": JobState.ENDED for minute in range(5)}
    states["20261129-070000-x"] = JobState.RUNNING
    assert jobs.superfluous(states, 3) == ["20261129-080000-x", "20261129-080100-x"]
    assert jobs.superfluous(states, 5) == []


def created(tmp_path: Path, *arguments: str, system: System | None = None) -> tuple[Jobs, str]:
    found = Jobs(tmp_path, system or System())
    return found, found.create(arguments or ("status",), asks=False, by="ann").id


def test_the_store_removes_old_jobs_and_keeps_those_that_run(tmp_path: Path) -> None:
    system = FakeSystem()
    found = Jobs(tmp_path, system, kept=2)
    made = []
    for _ in range(5):
        made.append(found.create(["status"], asks=False, by="ann").id)
        found.recorder(made[-1]).end(0)
        system.wall_now += 60
    assert found.ids() == made[-3:], "the two that were kept, and the new one"


def test_a_job_of_which_nothing_is_known_is_refused(tmp_path: Path) -> None:
    found, name = created(tmp_path)
    with pytest.raises(StateUnknown, match="there is no job x"):
        found.look("x")
    with pytest.raises(StateUnknown, match=r"there is no job \.\./x"):
        found.look("../x")
    (found.directory / name / "job.json").write_text("{")
    with pytest.raises(StateUnknown, match="cannot be read"):
        found.look(name)
    with pytest.raises(StateUnknown, match="there is no job"):
        found.newest()


def test_the_newest_is_one_that_runs(tmp_path: Path) -> None:
    found, first = created(tmp_path)
    second = found.create(["upgrade"], asks=False, by="").id
    found.recorder(first).begin()
    found.recorder(second).end(5)
    assert (found.newest().job.id, found.newest().state, found.newest().pid) == (first, JobState.RUNNING, os.getpid())
    found.recorder(first).end(0)
    assert found.newest().job.id == second
    assert found.newest().exit_code == 5


def test_a_killed_job_is_lost(tmp_path: Path) -> None:
    found, name = created(tmp_path)
    (found.directory / name / "pid").write_text(pid_text(os.getpid()).replace("\n", "\n1", 1))  # another start time
    assert found.look(name).state is JobState.LOST


def test_process_and_exit_code_are_recorded_on_a_full_disk(tmp_path: Path) -> None:
    class Full(System):
        def write_atomic(self, path: Path, text: str) -> None:
            raise host_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path)

    found, name = created(tmp_path)
    recorder = Recorder(found.directory / name, Full())
    recorder.begin()
    assert (found.look(name).state, found.look(name).pid) == (JobState.RUNNING, os.getpid())
    recorder.end(15)
    assert found.look(name).exit_code == 15


def test_a_torn_event_is_left_out_and_the_next_one_is_read(tmp_path: Path) -> None:
    found, name = created(tmp_path)
    events = found.directory / name / "events.jsonl"
    events.write_bytes(b'{"kind": "line"}\n{"kind": "li\n[]\n{"kind": "note"}\n')
    found.recorder(name).end(0)
    assert [event["kind"] for event in found.follow(name)] == ["line", "note"]


def test_what_is_recorded_of_one_job_is_bounded(tmp_path: Path) -> None:
    found, name = created(tmp_path)
    recorder = Recorder(found.directory / name, System(), limit=2000)
    for number in range(200):
        recorder.write({"kind": "line", "text": f"line {number}"})
    recorder.end(0)
    assert (found.directory / name / "events.jsonl").stat().st_size < 2200
    assert list(found.follow(name))[-1]["text"] == "the rest of what the job prints is left out"
    assert found.look(name).exit_code == 0


def test_a_job_whose_start_fails_leaves_no_record(tmp_path: Path) -> None:
    def refuse(argv: Any) -> tuple[int, str]:
        raise CommandError("systemd-run: exit 1: no")

    found = Jobs(tmp_path, FakeSystem(refuse))
    with pytest.raises(CommandError):
        launch.start(found, ["status"], Path("/x"), FakeSystem(refuse), booted=tmp_path)
    assert found.ids() == []


def test_a_job_that_began_although_its_start_seemed_to_fail_is_a_job(tmp_path: Path) -> None:
    """systemd-run(1) is killed after its time, and the unit may have begun by then."""
    found = Jobs(tmp_path, FakeSystem())

    def begin_and_refuse(_argv: Any) -> tuple[int, str]:
        assert found.claim(found.ids()[0])
        raise CommandError("systemd-run: no end after 20 s; killed")

    job = launch.start(found, ["status"], Path("/x"), FakeSystem(begin_and_refuse), booted=tmp_path)
    assert found.ids() == [job.id]


def test_a_job_is_begun_or_given_up_once(shell: Shell, tmp_path: Path) -> None:
    found = Jobs(tmp_path / "run", System())
    begun, given_up = (found.create(["status"], asks=False, by="").id for _ in range(2))
    assert found.claim(begun)
    assert not found.give_up(begun)
    assert shell("job", "execute", begun) == 4
    assert f"job {begun} is not to be begun" in shell.err.getvalue()
    assert found.give_up(given_up)
    assert found.ids() == [begun]
    assert shell("job", "execute", given_up) == 6


def test_a_job_that_did_not_begin_in_time_never_begins(shell: Shell, tmp_path: Path) -> None:
    found = Jobs(tmp_path / "run", FakeSystem())  # long ago
    name = found.create(["status"], asks=False, by="").id
    assert Jobs(tmp_path / "run", System()).look(name).state is JobState.LOST
    assert shell("attach", name) == 14
    assert "did not begin, and will not" in shell.err.getvalue()
    assert not found.claim(name)


@pytest.mark.parametrize("file", ["pid", "end", "unclaimed", "job.json"])
def test_a_job_that_cannot_be_recorded_leaves_nothing(tmp_path: Path, file: str) -> None:
    class Full(System):
        def write_atomic(self, path: Path, text: str) -> None:
            if path.name == file:
                raise host_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path)
            super().write_atomic(path, text)

    with pytest.raises(HostError):
        created(tmp_path, system=Full())
    assert list((tmp_path / "jobs").iterdir()) == []


def test_jobs_are_for_root_alone(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir(mode=0o755)
    found, name = created(tmp_path)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (found.directory, found.directory / name)] == [0o700] * 2


def test_under_systemd_a_job_is_a_unit_that_keeps_its_children_when_it_ends(tmp_path: Path) -> None:
    system = FakeSystem()
    job = launch.start(Jobs(tmp_path, system), ["upgrade", "--release", "secret"], Path("/c"), system, booted=tmp_path)
    (argv,) = system.ran
    assert argv[:2] == ("systemd-run", f"--unit=ovs-hotswap-job-{job.id}")
    assert "--property=KillMode=process" in argv
    assert "--user" not in argv
    assert "--scope" not in argv
    assert argv[argv.index("--") + 1 :][-3:] == ("job", "execute", job.id)
    assert not [word for word in argv if "secret" in word], "the arguments of the command are not in ps"


# -- a job of this machine


@pytest.fixture
def working(shell: Shell, tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "run", System())


def launched(found: Jobs, shell: Shell, *arguments: str, asks: bool = False) -> Job:
    """A job in a process of its own. This machine need not be run by systemd."""
    command = ["--config", str(shell.config), *arguments]
    return launch.start(found, command, shell.config, System(), asks=asks, booted=shell.config / "none")


def process_of(found: Jobs, job: Job) -> int:
    events = found.directory / job.id / "events.jsonl"
    eventually(lambda: events.exists() and events.stat().st_size > 0, "the job prints")
    pid = found.look(job.id).pid
    assert pid is not None
    return pid


def test_a_job_prints_and_ends_as_its_command_does(shell: Shell, working: Jobs) -> None:
    for line in (["release", "list"], ["upgrade", "--release", "nowhere"], ["--json", "instance", "list"]):
        job = launched(working, shell, *line)
        status = shell("attach", job.id)
        seen = shell.out.getvalue(), shell.err.getvalue()
        assert status == shell(*line)
        assert seen == (shell.out.getvalue(), shell.err.getvalue())
    assert shell("job", "list", "--json") == 0
    assert [each["state"] for each in shell.document["jobs"]] == ["ended"] * 3
    assert {each["pid"] for each in shell.document["jobs"]} == {None}


def test_an_interrupted_job_ends_in_order_and_says_so(shell: Shell, working: Jobs) -> None:
    job = launched(working, shell, "status", "--watch", "--interval", "3600")
    process_of(working, job)
    assert shell("job", "interrupt", job.id) == 0
    assert shell("attach", job.id) == 0, "Ctrl-C ends status --watch with 0"
    assert shell("job", "interrupt", job.id) == 4


def test_a_killed_job_is_reported(shell: Shell, working: Jobs) -> None:
    job = launched(working, shell, "status", "--watch", "--interval", "3600")
    pid = process_of(working, job)
    os.kill(pid, signal.SIGKILL)
    assert shell("attach") == 6
    assert f"job {job.id} was killed" in shell.err.getvalue()


def test_ctrl_c_leaves_an_attached_job_alone(shell: Shell, working: Jobs) -> None:
    name = working.create(["upgrade"], asks=False, by="").id
    working.recorder(name).begin()  # this process works on it

    class Impatient(System):
        def sleep(self, seconds: float) -> None:
            signal.raise_signal(signal.SIGINT)

    app = App(Output(out=io.StringIO(), err=(err := io.StringIO())))
    app.__dict__["system"] = Impatient()
    assert main.run(["--config", str(shell.config), "attach"], app) == main.INTERRUPTED
    assert f"job {name} continues; `ovs-hotswap attach {name}` follows it" in err.getvalue()
    assert working.look(name).state is JobState.RUNNING


def test_ctrl_c_before_a_job_has_begun_interrupts_it_when_it_has(shell: Shell, working: Jobs) -> None:
    name = working.create(["upgrade"], asks=False, by="").id
    child = subprocess.Popen(["sleep", "100"])

    class Slow(System):
        """Ctrl-C comes at the first look, and the job begins at the third."""

        looks = 0

        def sleep(self, seconds: float) -> None:
            self.looks += 1
            if self.looks == 1:
                signal.raise_signal(signal.SIGINT)
            elif self.looks == 3:
                assert working.claim(name)
                (working.directory / name / "pid").write_text(pid_text(child.pid))
            elif self.looks > 20:
                child.kill()
            super().sleep(seconds)

    app = App(Output(out=io.StringIO(), err=io.StringIO()))
    app.__dict__["system"] = Slow()
    assert main.run(["--config", str(shell.config), "job", "follow", name], app) == 6
    assert child.wait() == -signal.SIGINT


@pytest.mark.parametrize(("answer", "status"), [("yes\n", 0), ("\n", 130)])
def test_a_question_of_a_job_is_answered_by_who_follows_it(
    shell: Shell, working: Jobs, answer: str, status: int
) -> None:
    job = launched(working, shell, "broker", "stop", asks=True)
    out, err = io.StringIO(), Terminal()
    source = Terminal(answer)
    app = App(Output(out=out, err=err, source=source))
    assert main.run(["--config", str(shell.config), "attach", job.id], app) == status
    assert "Stop it? [y/N]" in err.getvalue()
    assert ("no broker was running" in out.getvalue()) == (status == 0)


def test_ctrl_c_at_a_question_leaves_it_to_the_next_who_follows(shell: Shell, working: Jobs) -> None:
    class Interrupted(Terminal):
        def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
            raise KeyboardInterrupt

    job = launched(working, shell, "broker", "stop", asks=True)
    statuses = []
    for source in (Interrupted(), Terminal("y\n")):
        app = App(Output(out=io.StringIO(), err=Terminal(), source=source))
        statuses.append(main.run(["--config", str(shell.config), "attach", job.id], app))
    assert statuses == [130, 0]


def test_the_arguments_of_a_job_are_not_in_the_list_of_processes(shell: Shell, working: Jobs) -> None:
    job = launched(working, shell, "status", "--watch", "--interval", "3599.25")
    pid = process_of(working, job)
    command = System().cmdline(pid)
    assert command[:1] == [sys.executable]
    assert "3599.25" not in command
    assert os.getsid(pid) == pid, "a session of its own"
    os.kill(pid, signal.SIGTERM)
    assert shell("attach", job.id) in (0, 130)


def test_the_recorder_never_raises(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "missing", System())
    recorder.begin()
    recorder.write({"kind": "line"})
    recorder.end(0)
