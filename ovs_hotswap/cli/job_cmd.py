"""``ovs-hotswap job`` and ``ovs-hotswap attach``: commands that run whether or not they are watched."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

import ovs_hotswap
from ovs_hotswap.cli.app import App, Command, Effect, Group, pass_app
from ovs_hotswap.cli.output import Output
from ovs_hotswap.cli.recording import RecordedOutput, Replay
from ovs_hotswap.config import DEFAULT_RUN_DIR
from ovs_hotswap.errors import CommandError, HotswapError, PrecheckFailed, StateUnknown
from ovs_hotswap.plan.interrupts import ended_as_child
from ovs_hotswap.remote import launch
from ovs_hotswap.remote.jobs import Job, JobState
from ovs_hotswap.remote.store import Jobs, Look


def jobs_of(app: App) -> Jobs:
    """The jobs of this host. If the configuration cannot be read, they are in the default ``run_dir``, where the job
    will report the fault."""
    run_dir = DEFAULT_RUN_DIR
    with contextlib.suppress(HotswapError):
        run_dir = app.config.run_dir
    return Jobs(run_dir, app.system)


@click.command(cls=Command, changes=False)
@click.argument("job", required=False)
@click.option(
    "--from", "begin", type=click.Choice(["beginning", "end"]), default="beginning", show_default=True,
    help="Show all that the job has printed, or only what it prints from now on.",
)  # fmt: skip
@pass_app
def attach(app: App, job: str | None, begin: str) -> None:
    """Follow a job, and end with its exit code.

    A command that changes something and that was given with --host runs on that host as a job, which continues if the
    connection is lost. This shows it again, on any terminal, as often as you like, also after its end. Without JOB it
    is the newest one that runs, or else the newest one. Ctrl-C ends this command, and not the job: `ovs-hotswap job
    interrupt JOB` does that.

    The exit code is 6 if the job was killed and left none, and 14 if it did not begin within a minute.

    With --json: what the command of the job prints with --json.

    \b
    Example:
      ovs-hotswap attach
      ovs-hotswap --host root@hv12 attach 20261129-081500-upgrade
    """
    found = jobs_of(app)
    look = found.newest() if job is None else found.look(job)
    follow(app, found, look.job, from_end=begin == "end", interrupts=False)


@click.group(cls=Group)
def job() -> None:
    """Start, list, follow and interrupt jobs: commands that run whether or not they are watched.

    A job belongs to no session: it continues when its terminal or its connection is gone. The 50 newest jobs that have
    ended are kept until the next boot.
    """


@job.command(name="list", short_help="List the jobs that run, and those that have ended.", changes=False)
@pass_app
def list_(app: App) -> None:
    """List the jobs that run, and the newest 50 that have ended.

    With --json: {"jobs": [{"id", "arguments", "started", "directory", "asks", "by", "state", "exit_code", "pid"}]}. The
    state is starting, running, ended or lost; lost means that the job was killed and left no exit code, or did not
    begin within a minute.

    \b
    Example:
      ovs-hotswap job list
      ovs-hotswap --host root@hv12 job list
    """
    found = jobs_of(app).looks()
    app.output.document({"jobs": [each.document() for each in found]})
    rows = [
        (each.job.id, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.job.started)), each.state,
         each.exit_code, each.job.by, shlex.join(each.job.arguments))
        for each in found
    ]  # fmt: skip
    app.output.table(("job", "started", "state", "exit code", "by", "command"), rows)


@job.command(
    short_help="Start a command as a job.", changes=Effect.STARTS_JOB,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)  # fmt: skip
@click.argument("arguments", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--follow", "follows", is_flag=True, help="Follow it, as `ovs-hotswap attach` does.")
@pass_app
def start(app: App, arguments: tuple[str, ...], follows: bool) -> None:
    """Start a command of ovs-hotswap as a job, which continues when the terminal is gone.

    Under systemd the job is a transient unit, ovs-hotswap-job-ID.service; elsewhere it is a process with a session of
    its own. It is not asked anything. With --follow, Ctrl-C interrupts the job, once, and waits for its end.

    With --json: {"id", "arguments", "started", "directory", "asks", "by"}; with --follow, what the command prints.

    \b
    Example:
      ovs-hotswap job start upgrade --release trixie
      ovs-hotswap job start --follow -- --json rollback
    """
    found = jobs_of(app)
    if app.output.json:
        arguments = ("--json", *arguments)
    started = start_job(app, found, arguments, asks=False)
    if follows:
        follow(app, found, started)
        return
    app.output.done = True
    app.output.document(started.document())
    app.output.line(f"job {started.id} runs; `ovs-hotswap attach {started.id}` follows it")


@job.command(name="follow", hidden=True, changes=False)
@click.argument("job", metavar="JOB")
@pass_app
def follow_(app: App, job: str) -> None:
    """Follow a job as the command that it is: the first Ctrl-C interrupts it. This is for --host, and not for people.

    With --json: what the command of the job prints.

    \b
    Example:
      ovs-hotswap job follow 20261129-081500-upgrade
    """
    found = jobs_of(app)
    follow(app, found, found.look(job).job)


@job.command(short_help="Ask a job to stop, as Ctrl-C does.", changes=True)
@click.argument("job", metavar="JOB")
@pass_app
def interrupt(app: App, job: str) -> None:
    """Ask a job to stop, as Ctrl-C asks a command on a terminal. An upgrade before its commit is undone in order;
    follow that with `ovs-hotswap attach JOB`.

    With --json: {"id", "interrupted"}.

    \b
    Example:
      ovs-hotswap job interrupt 20261129-081500-upgrade
    """
    look = jobs_of(app).look(job)
    if not _interrupt(look):
        raise PrecheckFailed(f"job {job} does not run: it is {look.state}", hint=f"`ovs-hotswap attach {job}`")
    app.output.done = True
    app.output.document({"id": job, "interrupted": True})
    app.output.line(f"job {job} is asked to stop; `ovs-hotswap attach {job}` follows it")


@job.command(hidden=True, changes=True)
@click.argument("job", metavar="JOB")
@pass_app
def execute(app: App, job: str) -> None:
    """Work on a job. This is what a job runs, and not for people.

    With --json: nothing is printed.

    \b
    Example:
      ovs-hotswap job execute 20261129-081500-upgrade
    """
    from ovs_hotswap.cli.main import INTERRUPTED, run

    found = jobs_of(app)
    look = found.look(job)
    if look.state is not JobState.STARTING or not found.claim(job):
        raise PrecheckFailed(f"job {job} is not to be begun: it is {look.state}", hint=f"`ovs-hotswap attach {job}`")
    wanted = look.job
    recorder = found.recorder(job)
    output = RecordedOutput(recorder.write, recorder.ask, by_person=wanted.asks)
    status = 1
    try:
        with contextlib.redirect_stdout(output.raw_out), contextlib.redirect_stderr(output.raw_err), _stoppable():
            recorder.begin()
            _import_all()
            with contextlib.suppress(OSError):
                os.chdir(wanted.directory)
            status = run(wanted.arguments, App(output))
    except KeyboardInterrupt:  # before the command began
        status = INTERRUPTED
    finally:
        recorder.end(status)
    click.get_current_context().exit(status)


def start_job(app: App, jobs: Jobs, arguments: tuple[str, ...], *, asks: bool) -> Job:
    """Start a job with the configuration of this command, unless ``arguments`` begin with another one."""
    path = Path(app.config_path)
    words = arguments if arguments[:1] == ("--config",) else ("--config", str(path), *arguments)
    started = launch.start(jobs, words, path, app.system, asks=asks)
    app.names_job(started.id)
    return started


def follow(app: App, jobs: Jobs, job: Job, *, from_end: bool = False, interrupts: bool = True) -> None:
    """Show a job until it ends, and end with its exit code. ``interrupts``: the first Ctrl-C interrupts the job and the
    second leaves it; otherwise the first one leaves it. Raises StateUnknown if the job was killed, CommandError if it
    did not begin."""
    app.names_job(job.id)
    with (
        _Keys(app.output, jobs, job, interrupts) as keys,
        Replay(app.output, lambda number, text: _answer(app, jobs, job, keys, number, text)) as replay,
    ):
        replay.quiet = from_end

        def idle() -> None:
            replay.quiet = False
            keys.act()

        for event in jobs.follow(job.id, idle=idle):
            replay.show(event)
            keys.act()
    look = jobs.look(job.id)
    if look.exit_code is None:
        if jobs.claim(job.id):
            raise CommandError(f"job {job.id} did not begin, and will not", hint="repeat the command")
        raise StateUnknown(
            f"job {job.id} was killed: it left no exit code", hint="`ovs-hotswap status` says what is left to do"
        )
    app.output.done = look.exit_code == 0
    click.get_current_context().exit(look.exit_code)


class _Keys:
    """What Ctrl-C does while a job is followed."""

    def __init__(self, output: Output, jobs: Jobs, job: Job, interrupts: bool) -> None:
        self._output, self._jobs, self._job, self._left = output, jobs, job, 1 if interrupts else 0
        self._pressed = 0
        self._before: object = None
        self._process = os.getpid()

    def __enter__(self) -> _Keys:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_error: object) -> None:
        signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]  # what signal() itself returned

    def press(self) -> None:
        """Take note of a Ctrl-C."""
        self._pressed += 1

    def act(self) -> None:
        """Do what the keys since the last call ask for. Raises KeyboardInterrupt to leave the job."""
        while self._pressed:
            look = self._jobs.look(self._job.id)
            if self._pressed <= self._left and look.state is JobState.STARTING:
                return  # it is interrupted as soon as it can be
            self._pressed -= 1
            if self._left == 0:
                self._output.warning(f"job {self._job.id} continues; `ovs-hotswap attach {self._job.id}` follows it")
                raise KeyboardInterrupt
            self._left -= 1
            _interrupt(look)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not ended_as_child(self._process, number):
            self.press()


def _interrupt(look: Look) -> bool:
    if look.pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(look.pid, signal.SIGINT)
    return True


def _answer(app: App, jobs: Jobs, job: Job, keys: _Keys, number: int, text: str) -> None:
    """Put a question of a job to the person here, if there is one and it is not answered yet."""
    if jobs.answered(job.id, number) or jobs.look(job.id).state in {JobState.ENDED, JobState.LOST}:
        return
    if not app.output.asks:
        app.output.warning(f"job {job.id} waits for an answer: {text} (`ovs-hotswap attach {job.id}` on a terminal)")
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C ends the question
    try:
        jobs.answer(job.id, number, "yes" if app.output.ask(text) else "no")
    except KeyboardInterrupt:
        keys.press()
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGTERM into an interruption, as its end is to be recorded. A command that handles the signal itself, such
    as an upgrade, replaces this. SIGHUP is not for a job."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield


def _import_all() -> None:
    """Import every module of this package now, so that an upgrade of the package does not mix two versions in a job."""
    for module in pkgutil.walk_packages(ovs_hotswap.__path__, "ovs_hotswap."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
