"""``ovs-hotswap --host``: the frames, the versions, the names of hosts, and several hosts side by side."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ovs_hotswap import __version__
from ovs_hotswap.cli import fleet_cmd, main
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import RemoteError, error_classes
from ovs_hotswap.remote.far_end import arguments_of
from ovs_hotswap.remote.fleet import Fleet, HostRun, HostScreen, Stage
from ovs_hotswap.remote.frames import (
    MAGIC,
    PASSED_ON,
    PROTOCOL,
    Decoder,
    Frame,
    Kind,
    Request,
    Size,
    in_pieces,
)
from ovs_hotswap.remote.hosts import PROGRAM, URGENT, Destination, listed, remote_command, worst
from ovs_hotswap.remote.session import Way, lost, why_no_answer
from ovs_hotswap.remote.ssh_settings import SshFiles
from ovs_hotswap.remote.versions import Fit, Hello, judge
from tests.support.waiting import eventually
from tests.unit.test_cli import Terminal

# An argument is any bytes but NUL (execve(2)); Python has them as text with surrogates.
argument = st.binary(max_size=30).map(lambda data: os.fsdecode(data.replace(b"\0", b"")))
arguments = st.lists(argument, max_size=6)
frames = st.lists(st.builds(Frame, st.sampled_from(Kind), st.binary(max_size=40)), max_size=6)


@given(frames, st.booleans(), st.data())
def test_frames_arrive_in_whatever_pieces(sent: list[Frame], magic: bool, data: st.DataObject) -> None:
    stream = (MAGIC if magic else b"") + b"".join(frame.encode() for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    decoder = Decoder(magic=magic)
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [frame for piece in pieces for frame in decoder.feed(piece)] == sent


@given(arguments)
def test_any_command_line_arrives_unchanged(given_arguments: list[str]) -> None:
    request = Request(tuple(given_arguments), __version__, (True, False, True), Size(132, 50), {"TERM": "xterm"})
    (frame,) = Decoder(magic=False).feed(request.frame().encode())
    assert Request.parse(frame) == request


@given(arguments)
def test_any_command_line_is_passed_on_in_memory(given_arguments: list[str]) -> None:
    descriptor = os.memfd_create("arguments")
    os.write(descriptor, json.dumps(given_arguments).encode())
    assert arguments_of(descriptor) == given_arguments  # and the descriptor is closed


def test_a_descriptor_without_arguments_is_refused() -> None:
    with pytest.raises(RemoteError, match="not for people"):
        arguments_of(os.memfd_create("arguments"))


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=1, max_size=30).map(lambda data: os.fsdecode(data.replace(b"\0", b"x"))), st.booleans())
def test_the_shell_there_takes_nothing_apart(program: str, sudo: bool) -> None:
    """``remote_command`` is what sshd(8) gives to the shell of the user."""
    shown = subprocess.run(
        ["sh", "-c", f'for word in {remote_command(program, sudo=sudo)}; do printf "%s\\0" "$word"; done'],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    words = [os.fsdecode(word) for word in shown.split(b"\0")[:-1]]
    assert words == [*(["sudo", "-n", "--"] if sudo else []), program, "host-end"]


def test_only_what_decides_about_the_output_is_passed_on() -> None:
    request = Request(("status",), "1", environment={"TERM": "xterm", "LD_PRELOAD": "/evil.so", "PATH": "/evil"})
    assert Request.parse(request.frame()).environment == {"TERM": "xterm"}
    assert "PATH" not in PASSED_ON


@pytest.mark.parametrize("text", ["", "[]", "{", '{"arguments": "x"}'])
def test_a_request_that_is_none(text: str) -> None:
    with pytest.raises(RemoteError):
        Request.parse(Frame(Kind.REQUEST, text.encode()))


@pytest.mark.parametrize("said", [b"Welcome to hv12\n", b"\0\0\0", MAGIC + b"Z\0\0\0\0", MAGIC + b"o\xff\xff\xff\xff"])
def test_what_another_program_says_is_shown(said: bytes) -> None:
    with pytest.raises(RemoteError, match="does not answer as ovs-hotswap does") as error:
        list(Decoder(magic=True).feed(said))
    assert "authorized_keys" in (error.value.hint or "")


def test_much_is_sent_in_pieces() -> None:
    data = b"x" * (5 << 19)
    assert b"".join(frame.payload for frame in in_pieces(Kind.OUT, data)) == data
    assert list(in_pieces(Kind.OUT, b"")) == []


# -- versions


@pytest.mark.parametrize(
    ("here", "there", "protocol", "fit"),
    [
        ("0.3.0", "0.3.0", PROTOCOL, Fit.SAME),
        ("0.3.0", "0.3.7", PROTOCOL, Fit.SAME),
        ("0.3.0", "0.30.0", PROTOCOL, Fit.DIFFERENT),
        ("0.3.0", "0.4.0", PROTOCOL, Fit.DIFFERENT),
        ("1.3.0", "0.3.0", PROTOCOL, Fit.DIFFERENT),
        ("0.3", "0.3.1", PROTOCOL, Fit.SAME),
        ("0.3.0", "unknown", PROTOCOL, Fit.DIFFERENT),
        ("unknown", "unknown", PROTOCOL, Fit.SAME),
        ("0.3.0", "0.3.0", PROTOCOL + 1, Fit.UNFIT),
    ],
)
def test_which_versions_fit(here: str, there: str, protocol: int, fit: Fit) -> None:
    assert judge(here, Hello(there, protocol)) is fit


@pytest.mark.parametrize("document", [None, {}, {"version": 1, "protocol": PROTOCOL}])
def test_a_hello_that_says_nothing_fits_nothing(document: object) -> None:
    assert judge(__version__, Hello.parse(document)) is Fit.UNFIT


@pytest.mark.parametrize(
    ("status", "said", "raw", "sudo", "text"),
    [
        (127, "sh: 1: ovs-hotswap: not found", b"", False, "hv: ovs-hotswap is not installed there"),
        (1, "sudo: ovs-hotswap: command not found", b"", True, "hv: ovs-hotswap is not installed there"),
        (127, "sh: 1: sudo: not found", b"", True, "hv: sudo is not installed there"),
        (1, "sudo: a password is required", b"", True, "hv: sudo does not run ovs-hotswap without asking"),
        (1, "Sorry, user ann is not allowed to execute 'x' as root on hv.", b"", True, "hv: sudo does not run"),
        (2, "error: No such command 'host-end'.", b"", False, "hv has an ovs-hotswap that does not know --host"),
        (0, "", b"This account is not available", False, "says: 'This account is not available'"),
        (1, "sudo: Ein Passwort ist notwendig", b"", True, "hv: sudo does not run ovs-hotswap without asking"),
        (1, "error: no", b"", True, "hv: ovs-hotswap ended with exit code 1: error: no"),
        (1, "ovs-hotswap: Command not found.", b"", False, "hv: ovs-hotswap is not installed there"),
        (None, "", b"", False, "hv: ovs-hotswap ended without an exit code: it printed nothing"),
        (1, "Traceback\nImportError: no", b"", False, "hv: ovs-hotswap ended with exit code 1: ImportError: no"),
    ],
)
def test_why_a_host_does_not_answer(status: int | None, said: str, raw: bytes, sudo: bool, text: str) -> None:
    error = why_no_answer("hv", Way("ovs-hotswap", sudo, SshFiles()), status, said, raw)
    assert text in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("job", "changes", "text", "hint"),
    [
        ("20261129-081500-upgrade", True, "job 20261129-081500-upgrade continues there", "--host hv attach 20261129"),
        (None, True, "whether the command has begun there is not known", "--host hv job list"),
        (None, False, "nothing was being changed there", "repeat the command"),
    ],
)
def test_what_a_lost_connection_means(job: str | None, changes: bool, text: str, hint: str) -> None:
    error = lost("hv", "it was closed", Way(PROGRAM, False, SshFiles()), job=job, changes=changes)
    assert text in error.message
    assert hint in (error.hint or "")
    assert error.exit_code == 20


def test_the_way_to_follow_a_job_is_the_way_that_was_taken() -> None:
    """Without --sudo, for example, the jobs of root could not be read."""
    way = Way("/opt/x y/ovs-hotswap", True, SshFiles(), "/etc/other.toml")
    (command,) = re.findall("`(.*)`", way.continues("ann@hv", "20261129-081500-upgrade"))
    assert shlex.split(command) == [
        "ovs-hotswap", "--host", "ann@hv", "--sudo", "--host-program", "/opt/x y/ovs-hotswap", "--config",
        "/etc/other.toml", "attach", "20261129-081500-upgrade",
    ]  # fmt: skip


# -- hosts


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("hv12", Destination("hv12")),
        ("root@hv12", Destination("hv12", "root")),
        ("root@hv12:2222", Destination("hv12", "root", 2222)),
        ("ssh://root@hv12:2222/", Destination("hv12", "root", 2222)),
        ("[fe80::1%eth0]:22", Destination("fe80::1%eth0", None, 22)),
        ("ann@2001:db8::7", Destination("2001:db8::7", "ann")),
        ("::1", Destination("::1")),
    ],
)
def test_a_host_is_parsed(text: str, parsed: Destination) -> None:
    assert Destination.parse(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@hv",
        "hv:",
        "hv:0",
        "hv:99999",
        "-oProxyCommand=x",
        "a b",
        "hv:x",
        "[::1",
        "a@b@c",
        "root@-x",
        "hv;id",
        "$(id)",
        "`id`@hv",
        "hv|id",
        "hv'",
        "hv\x1b[2J",
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(RemoteError):
        Destination.parse(text)


@pytest.mark.parametrize(
    ("text", "given_to_ssh"),
    [("ann@hv", "ann@hv"), ("hv:2222", "ssh://hv:2222"), ("ann@[::1]:2222", "ssh://ann@[::1]:2222"), ("[::1]", "::1")],
)
def test_a_host_is_named_as_ssh_takes_it(text: str, given_to_ssh: str) -> None:
    assert Destination.parse(text).for_ssh == given_to_ssh


def test_a_file_of_hosts() -> None:
    assert listed("# rack 1\nhv1\n\n  root@hv2:22  # spare\nhv1\n") == ["hv1", "root@hv2:22"]


def test_the_worst_exit_code() -> None:
    assert worst([]) == worst([0, 0]) == 0
    assert worst([0, 4, 11]) == 11
    assert worst([19, 6, 0]) == 6
    assert worst([5, 130]) == 130
    assert set(URGENT) - {130} <= {kind.exit_code for kind in error_classes()}


# -- several hosts


def left(host: str, job: str) -> str:
    return f"job {job} continues on {host}"


def test_at_most_so_many_at_a_time() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def on_host(host: str, screen: HostScreen) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        screen.show(Kind.OUT, f"first\n{host} is well\n".encode())
        with lock:
            now -= 1
        return 0

    fleet = Fleet([f"hv{number}" for number in range(20)], on_host, 3, left)
    fleet.start()
    assert fleet.wait(60)
    assert most <= 3
    assert {(run.stage, run.exit_code) for run in fleet.runs.values()} == {(Stage.DONE, 0)}
    assert fleet.runs["hv7"].text == "hv7 is well"


def test_a_host_that_fails_does_not_end_the_others() -> None:
    def on_host(host: str, screen: HostScreen) -> int:
        match host:
            case "away":
                raise RemoteError("away cannot be reached")
            case "odd":
                raise ValueError("odd")
            case "left":
                raise KeyboardInterrupt
        return 4 if host == "unready" else 0

    fleet = Fleet(["away", "odd", "left", "unready", "well"], on_host, 5, left)
    fleet.start()
    assert fleet.wait(60)
    assert {host: run.exit_code for host, run in fleet.runs.items()} == {
        "away": 19, "odd": 1, "left": 130, "unready": 4, "well": 0,
    }  # fmt: skip
    assert fleet.runs["away"].text == "away cannot be reached"
    assert fleet.runs["unready"].stage is Stage.FAILED


def test_after_ctrl_c_no_other_host_is_begun() -> None:
    interrupted = threading.Event()

    def on_host(host: str, screen: HostScreen) -> int:
        interrupted.wait(60)
        return screen.interrupts()

    fleet = Fleet(["one", "two"], on_host, 1, left)
    fleet.start()
    fleet.interrupt()
    interrupted.set()
    assert fleet.wait(60)
    assert (fleet.runs["one"].exit_code, fleet.runs["two"].stage) in [(1, Stage.LEFT_OUT), (130, Stage.LEFT_OUT)]


def test_a_second_ctrl_c_leaves_jobs_and_hosts_that_do_not_answer() -> None:
    answers = threading.Event()
    begun = threading.Barrier(3)

    def on_host(host: str, screen: HostScreen) -> int:
        if host != "waits":
            begun.wait(60)
        if host == "at work":
            screen.job("20261129-081500-upgrade")
            raise KeyboardInterrupt
        answers.wait(60)
        return 0

    fleet = Fleet(["at work", "away", "waits"], on_host, 2, left)
    fleet.start()
    begun.wait(60)
    fleet.interrupt()
    fleet.interrupt()
    eventually(lambda: fleet.wait(0.1), "the fleet ends")
    assert {host: (run.exit_code, run.stage) for host, run in fleet.runs.items()} == {
        "at work": (130, Stage.FAILED), "away": (130, Stage.LEFT_OUT), "waits": (130, Stage.LEFT_OUT),
    }  # fmt: skip
    assert fleet.runs["at work"].text == "warning: job 20261129-081500-upgrade continues on at work"
    answers.set()


def test_a_line_of_one_host_does_not_reach_those_of_others() -> None:
    run = HostRun("hv1", out=bytearray(b"first\n\x1b[32mwell\x1b[0m \x1b[1Ahv2 done\n"))
    assert run.text == "well \ufffd[1Ahv2 done"


def test_the_live_table_shows_first_what_one_wants_to_know() -> None:
    fleet = Fleet([f"hv{number}" for number in range(9)], lambda _host, _screen: 0, 1, left)
    for run in fleet.runs.values():
        run.stage = Stage.DONE
    fleet.runs["hv7"].stage, fleet.runs["hv8"].stage = Stage.WAITING, Stage.FAILED
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as shown:
        console.print(fleet_cmd._table(fleet, 3))
    assert re.findall(r"hv\d|and \d+ \w+", shown.get()) == ["hv8", "hv7", "hv0", "and 6 done"]


# -- the command line


def run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return main.run(words, App(Output(out=out, err=err))), out.getvalue(), err.getvalue()


@pytest.mark.parametrize("host", ["-x", "a b", "hv:0"])
def test_a_wrong_host_is_reported_before_anything_is_connected(host: str) -> None:
    status, _, err = run("--host", host, "status")
    assert status == 19
    assert "[user@]host[:port]" in err or "65535" in err


def test_a_file_without_hosts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# none yet\n")
    status, _, err = run("--hosts-file", str(tmp_path / "hosts"), "status")
    assert (status, "names no host" in err) == (3, True)


def test_the_version_and_the_help_need_no_host(capsys: Any) -> None:
    assert run("--host", "nowhere.invalid", "--version")[0] == 0
    assert __version__ in capsys.readouterr().out
    assert run("--host", "nowhere.invalid", "--help")[0] == 0
    assert "--hosts-file FILE" in capsys.readouterr().out


def test_the_hints_about_hosts_can_be_typed() -> None:
    error = why_no_answer("hv", Way("/opt/x y/ovs-hotswap", True, SshFiles()), 1, "sudo: a password is required", b"")
    assert "NOPASSWD: /opt/x y/ovs-hotswap host-end" in (error.hint or "")
    assert shlex.split(remote_command("/opt/x y/ovs-hotswap", sudo=True))[-2:] == ["/opt/x y/ovs-hotswap", "host-end"]


def test_a_terminal_is_recognised() -> None:
    assert Output(out=Terminal(), err=io.StringIO()).terminal
