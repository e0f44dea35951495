"""``ovs-hotswap --host`` against the sshd(8) of this machine. Neither a switch nor a VM is needed here."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ovs_hotswap import __version__
from ovs_hotswap.remote.jobs import JobState
from ovs_hotswap.remote.store import Jobs
from ovs_hotswap.system import System
from tests.support.ssh_bed import SSHD, SshBed, other_version, ssh_bed
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(SSHD is None, reason="openssh-server is not installed")


@pytest.fixture(scope="session", autouse=True)
def root_and_huge_pages() -> None:
    """These tests need root, and no huge pages."""
    if os.geteuid() != 0:
        pytest.skip("integration tests need root")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBed]:
    with ssh_bed(tmp_path_factory.mktemp("ssh")) as made:
        yield made


@pytest.fixture
def bed(hosts: SshBed) -> Iterator[SshBed]:
    """The hosts, as every test finds them. No command of a test runs after it."""
    hosts.ssh_config()
    hosts.know()
    yield hosts
    for look in jobs(hosts).looks():
        if look.pid is not None:
            os.kill(look.pid, signal.SIGKILL)
    eventually(lambda: not hosts.connections() and not at_work(hosts), "no connection and no job is left")


def jobs(bed: SshBed) -> Jobs:
    return Jobs(bed.directory / "run", System())


def at_work(bed: SshBed) -> list[str]:
    return [each.job.id for each in jobs(bed).looks() if each.state is JobState.RUNNING]


def ends_there() -> list[str]:
    """The processes on the hosts that --host began."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if "ovs_hotswap host-" in line]


def running(bed: SshBed) -> str:
    """The id of the one job that runs, once its process has begun."""
    found: list[str] = []

    def seen() -> bool:
        found[:] = at_work(bed)
        return len(found) == 1

    eventually(seen, "a job runs")
    return found[0]


class OnTerminal:
    """A command on a terminal of its own."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], size: tuple[int, int] = (80, 24)) -> None:
        self.master, slave = os.openpty()
        columns, rows = size
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env={**environment, "TERM": "xterm-256color"},
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.seen = b""

    def read(self) -> bool:
        """Take what is printed; return whether there may be more."""
        if not select.select([self.master], [], [], 0.05)[0]:
            return True
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:  # the other end is closed: pty(7)
            return False
        self.seen += data
        return bool(data)

    def until(self, text: str) -> None:
        eventually(lambda: self.read() and text.encode() in self.seen, lambda: f"{text} in {self.seen!r}")

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        while self.read():
            pass
        os.close(self.master)
        return self.process.wait(30)


# -- the same as on the host

# Each is of another kind: what is printed, what is asked for, and what fails. Programs start slowly, so there are few.
COMMANDS = [
    ["status"],
    ["instance", "list", "--json"],
    ["check", "--release", "host"],
    ["upgrade", "--release", "nowhere"],
    ["upgrade", "--release", "nowhere", "--json"],
    ["upgrade", "--release", "host", "--dry-run"],
    ["broker", "stop"],
    ["overlay", "show"],
    ["vm", "quarantine", "a b'c\"$(id)\n\\ü", "--reason", ""],
    ["upgrade", "--help"],
    ["nonsense"],
    ["--debug", "config", "check"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_command_prints_and_ends_as_on_the_host(bed: SshBed, arguments: list[str]) -> None:
    here, there = bed.here(*arguments), bed.there(*arguments)
    assert there == here


@pytest.mark.parametrize(
    ("arguments", "size"),
    [(["release", "list"], (40, 60)), (["status"], (80, 24)), (["upgrade", "--release", "nowhere"], (40, 60))],
)
def test_a_terminal_is_one_there(bed: SshBed, arguments: list[str], size: tuple[int, int]) -> None:
    here = OnTerminal([str(bed.program), "--config", str(bed.config), *arguments], bed.environment(), size)
    there = OnTerminal(bed.command(*arguments), bed.environment(), size)
    assert (there.end(), there.seen) == (here.end(), here.seen)
    assert b"\x1b[" in here.seen or arguments[0] != "release", "there are colours to compare"


def test_only_what_is_a_terminal_here_is_one_there(bed: SshBed) -> None:
    """A pipe is a pipe there, although the keyboard is a terminal: ``ovs-hotswap release list | cat``."""
    master, slave = os.openpty()
    done = subprocess.run(bed.command("release", "list"), stdin=slave, stdout=subprocess.PIPE, stderr=slave,
                          env=bed.environment(), check=False)  # fmt: skip
    os.close(slave)
    os.close(master)
    assert done.stdout.decode() == bed.here("release", "list").out


def test_lines_that_come_by_a_pipe_begin_at_the_left(bed: SshBed) -> None:
    """``ovs-hotswap broker stop | tee log``: the keys are read raw, and the lines are those of tee(1)."""
    command = shlex.join(bed.command("broker", "stop", "--yes"))
    there = OnTerminal(["sh", "-c", f"{command} | cat; echo end"], bed.environment())
    there.end()
    assert b"no broker was running\r\n" in there.seen


def takes_lines(there: OnTerminal) -> bool:
    """Whether a terminal is as it was, and not raw."""
    return bool(termios.tcgetattr(there.master)[3] & termios.ICANON)


def test_a_pager_has_the_keys_of_a_command_that_only_reads(bed: SshBed) -> None:
    command = shlex.join(bed.command("status", "--watch", "--interval", "3598"))
    there = OnTerminal(["sh", "-c", f"{command} | cat"], bed.environment())
    there.until("instance")
    assert takes_lines(there)
    there.type(b"\x03")
    there.end()
    eventually(lambda: not ends_there(), lambda: str(ends_there()))


def test_sigterm_leaves_the_terminal_as_it_was(bed: SshBed) -> None:
    there = OnTerminal(bed.command("status", "--watch", "--interval", "3598"), bed.environment())
    there.until("instance")
    assert not takes_lines(there)
    there.process.terminate()
    assert there.process.wait(60) == 143
    assert takes_lines(there)
    os.close(there.master)


def test_a_terminal_that_is_resized(bed: SshBed) -> None:
    there = OnTerminal(bed.command("status", "--watch"), bed.environment(), (100, 30))
    there.until("instance")
    fcntl.ioctl(there.master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 44, 0, 0))

    def narrow() -> bool:
        there.seen = b""
        there.read()
        lines = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", there.seen).replace(b"\r", b"").split(b"\n")
        return len(lines) > 3 and max(map(len, lines)) <= 3 * 44  # bytes, at most three for a character

    eventually(narrow, "lines of the new width")
    there.type(b"\x03")
    assert there.end() == 0, "Ctrl-C ends status --watch with 0"


# -- the host's key


def test_an_unknown_key_is_refused_and_the_hint_makes_it_known(bed: SshBed) -> None:
    bed.know([])
    done = bed.there("status")
    assert done.status == 19
    assert f"the key of root@127.0.0.1:{bed.port} is not known: ssh-ed25519 SHA256:" in done.err
    assert str(bed.known_hosts) in done.err
    assert bed.known_hosts.read_text() == "", "nothing is accepted silently"
    (command,) = re.findall(r"`(ssh-keyscan [^`]*)`", done.err)
    subprocess.run(command, shell=True, check=True, capture_output=True, env=bed.environment())
    assert bed.there("release", "list").status == 0


def test_strict_host_key_checking_cannot_be_switched_off(bed: SshBed) -> None:
    bed.know([])
    bed.ssh_config("StrictHostKeyChecking no")
    assert bed.there("status").status == 19


def test_a_wrong_key_is_refused(bed: SshBed, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    other = (tmp_path / "other.pub").read_text()
    bed.known_hosts.write_text(f"# a comment\n[127.0.0.1]:{bed.port} {other}")
    done = bed.there("status")
    assert done.status == 19
    assert f"is not the one in {bed.known_hosts}, line 2" in done.err
    remove, scan = re.findall(r"`(ssh-key[^`]*)`", done.err)
    for command in (remove, scan):
        subprocess.run(command, shell=True, check=True, capture_output=True, env=bed.environment())
    assert bed.there("release", "list").status == 0


def test_a_revoked_key_is_refused(bed: SshBed) -> None:
    key = (bed.directory / "host_key.pub").read_text()
    bed.know()
    with bed.known_hosts.open("a") as file:
        file.write(f"@revoked * {key}")
    done = bed.there("status")
    assert (done.status, "is revoked" in done.err) == (19, True)


# -- the way there


def test_a_jump_host_is_verified_and_used(bed: SshBed) -> None:
    """And two of them, one of which is also reached through the first by its own settings."""
    for jump in (f"hv1,root@127.0.0.2:{bed.port}", f"ssh://root@127.0.0.1:{bed.port}"):
        bed.ssh_config("Host hv3", f"ProxyJump {jump}")
        bed.know()
        assert bed.there("release", "list", hosts=["hv3"]).status == 0
        bed.know([each for each in bed.addresses if each != "127.0.0.1"])
        done = bed.there("release", "list", hosts=["hv3"])
        assert (done.status, f"the key of root@127.0.0.1:{bed.port} is not known" in done.err) == (19, True)
    bed.know()
    bed.ssh_config("Host hv2", "ProxyJump hv3", "Host hv3", "ProxyJump hv2")
    done = bed.there("status", hosts=["hv2"])
    assert (done.status, "hosts lead to one another" in done.err) == (19, True)
    bed.ssh_config("Host *", "ProxyJump hv1")
    assert bed.there("release", "list", hosts=["hv2"]).status == 0, "hv1 is not its own jump host"
    bed.ssh_config("Host hv3", "ProxyJump nowhere.invalid")
    done = bed.there("status", hosts=["hv3"])
    assert (done.status, "root@nowhere.invalid" in done.err) == (19, True)


RELAY = """#!/usr/bin/env python3
import os, select, socket, sys
there = socket.create_connection((sys.argv[1], sys.argv[2]))
while True:
    for ready in select.select([0, there], [], [])[0]:
        data = os.read(0, 65536) if ready == 0 else there.recv(65536)
        if not data:
            sys.exit()
        there.sendall(data) if ready == 0 else os.write(1, data)
"""


def test_a_proxy_command_is_used(bed: SshBed, tmp_path: Path) -> None:
    bed.known_hosts.write_text(f"known {(bed.directory / 'host_key.pub').read_text()}")
    relay = tmp_path / "nc"
    relay.write_text(RELAY)
    relay.chmod(0o755)
    bed.ssh_config("Host behind", "HostName 127.0.0.2", f"ProxyCommand {relay} %h %p", "HostKeyAlias known")
    assert bed.there("release", "list", hosts=["behind"]).status == 0
    bed.ssh_config("Host behind", "HostName 127.0.0.2", "ProxyCommand /nowhere/nc %h %p", "HostKeyAlias known")
    done = bed.there("release", "list", hosts=["behind"])
    assert (done.status, "/nowhere/nc" in done.err) == (19, True)


def test_a_host_that_does_not_answer(bed: SshBed) -> None:
    done = bed.there("status", hosts=["127.0.0.99"])
    assert done.status == 19
    assert f"root@127.0.0.99:{bed.port} cannot be reached: Connection refused" in done.err


def test_the_files_of_ssh_config(bed: SshBed, tmp_path: Path) -> None:
    """Include, UserKnownHostsFile, IdentityFile, and a key that no agent holds and that has a passphrase."""
    (bed.home / ".ssh/more").write_text(
        f"Host elsewhere\nHostName 127.0.0.4\nUserKnownHostsFile {tmp_path}/known\nIdentitiesOnly yes\n"
        f"IdentityFile {tmp_path}/key\n"
    )
    bed.ssh_config("Include more")
    (tmp_path / "known").write_text(f"[127.0.0.4]:{bed.port} {(bed.directory / 'host_key.pub').read_text()}")
    done = bed.there("status", hosts=["elsewhere"])
    assert (done.status, "there is no key to log in with" in done.err) == (19, True)
    subprocess.run(["cp", "-p", bed.home / ".ssh/id_ed25519", tmp_path / "key"], check=True)
    assert bed.there("release", "list", hosts=["elsewhere"]).status == 0
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", tmp_path / "key"], check=True)
    done = bed.there("status", hosts=["elsewhere"])
    assert (done.status, f"`ssh-add {tmp_path}/key`" in done.err) == (19, True)
    bed.ssh_config("Port no-number")
    done = bed.there("status")
    assert (done.status, "no-number" in done.err) == (19, True)


def test_the_agent_holds_the_key(bed: SshBed, tmp_path: Path) -> None:
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        eventually((tmp_path / "agent").exists, "the agent")
        environment = {**bed.environment(), "SSH_AUTH_SOCK": str(tmp_path / "agent")}
        subprocess.run(["ssh-add", "-q", str(bed.home / ".ssh/id_ed25519")], env=environment, check=True)
        for more in ([], ["IdentitiesOnly yes", f"IdentityFile {tmp_path}/key"]):
            (tmp_path / "key.pub").write_text((bed.home / ".ssh/id_ed25519.pub").read_text())
            bed.ssh_config("Host hv1", "IdentityFile /nowhere/key", *more)
            done = subprocess.run(bed.command("release", "list"), env=environment, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
    finally:
        agent.terminate()
        agent.wait()


# -- the program there


def test_the_program_is_missing(bed: SshBed) -> None:
    done = bed.with_program(Path("/nowhere/ovs-hotswap"), "status")
    assert done.status == 19
    assert "hv1: /nowhere/ovs-hotswap is not installed there" in done.err
    assert "--host-program /opt/ovs-hotswap/bin/ovs-hotswap" in done.err


def test_another_version_only_reads(bed: SshBed, tmp_path: Path) -> None:
    version = "9.9.9"
    program = other_version(tmp_path, version)
    known = jobs(bed).ids()
    done = bed.with_program(program, "release", "list")
    assert (done.status, done.out) == (0, bed.here("release", "list").out)
    assert done.err == f"warning: hv1 has ovs-hotswap {version}, and this is {__version__}\n"
    done = bed.with_program(program, "rollback")
    assert done.status == 19
    assert "a command that changes something needs the same version" in done.err
    assert f"install {__version__} there" in done.err
    assert jobs(bed).ids() == known, "nothing was begun"


def test_a_last_number_that_differs_is_the_same_version(bed: SshBed, tmp_path: Path) -> None:
    major, minor, _ = __version__.split(".")
    program = other_version(tmp_path, f"{major}.{minor}.99")
    assert bed.with_program(program, "rollback") == bed.here("rollback")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('echo welcome to hv1; exec {program} "$@"', "not answer as ovs-hotswap does, but says: 'welcome to hv1"),
        ("echo \"Error: No such command 'host-end'.\" >&2; exit 2", "that does not know --host"),
        ("echo sudo: a password is required >&2; exit 1", "ended with exit code 1: sudo: a password is required"),
        ("exit 0", "ended with exit code 0: it printed nothing"),
    ],
)
def test_a_program_that_is_not_ours(bed: SshBed, tmp_path: Path, script: str, said: str) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script.format(program=bed.program)}\n")
    program.chmod(0o755)
    done = bed.with_program(program, "status")
    assert done.status == 19
    assert said in done.err


@pytest.mark.skipif(shutil.which("sudo") is None, reason="sudo is not installed")
def test_sudo_passes_everything_on_and_ends_with_the_connection(bed: SshBed) -> None:
    def by_sudo(*arguments: str) -> list[str]:
        words = bed.command(*arguments)
        words.insert(words.index("--host-program"), "--sudo")
        return words

    for arguments in (["release", "list"], ["upgrade", "--release", "nowhere"]):
        assert bed.finished(by_sudo(*arguments)) == bed.here(*arguments)
    client = subprocess.Popen(by_sudo("status", "--watch", "--interval", "3598"), env=bed.environment(),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert client.stdout is not None
    assert client.stdout.readline()
    bed.cut()
    client.communicate(timeout=60)
    assert client.returncode == 20
    eventually(lambda: not ends_there(), lambda: str(ends_there()))


def test_a_key_that_is_for_nothing_else(bed: SshBed) -> None:
    """docs/security.md: a forced command takes the place of the one that is asked for."""
    key = (bed.home / ".ssh/id_ed25519.pub").read_text()
    allowed = bed.directory / "authorized_keys"
    allowed.write_text(f'restrict,command="{bed.program} host-end" {key}')
    try:
        assert bed.with_program(Path("/nowhere/program"), "release", "list") == bed.here("release", "list")
    finally:
        allowed.write_text(key)


def test_a_hosts_end_that_is_started_by_hand(bed: SshBed) -> None:
    """It waits for a request, and ends with its input."""
    done = bed.finished([str(bed.program), "host-end"])
    assert (done.status, done.out.startswith("ovs-hotswap\0")) == (0, True)


# -- connections that are lost


def started(bed: SshBed, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(bed.command(*arguments), env=bed.environment(), stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def test_a_change_continues_without_its_connection(bed: SshBed) -> None:
    """``watch run`` changes something, and takes as long as one likes."""
    client = started(bed, "watch", "run")
    name = running(bed)
    bed.cut()
    _, err = client.communicate(timeout=60)
    assert client.returncode == 20
    assert f"job {name} continues there" in err
    (again,) = re.findall(r"hint: `(ovs-hotswap --host hv1 .* attach \S+)`", err)
    assert shlex.split(again)[-2:] == ["attach", name]
    assert jobs(bed).look(name).state is JobState.RUNNING
    listed = json.loads(bed.there("--json", "job", "list").out)["jobs"]
    assert [each["state"] for each in listed if each["id"] == name] == ["running"]

    watcher = started(bed, "attach")  # and this one is cut, too
    eventually(lambda: len(ends_there()) == 2, "it is followed")
    bed.cut()
    watcher.communicate(timeout=60)
    assert watcher.returncode == 20
    assert jobs(bed).look(name).state is JobState.RUNNING

    assert bed.there("job", "interrupt", name).status == 0
    done = bed.there("attach", name)
    assert done.status == jobs(bed).look(name).exit_code == bed.here("attach", name).status


def test_the_caller_is_killed(bed: SshBed) -> None:
    client = started(bed, "watch", "run")
    name = running(bed)
    client.kill()
    client.wait()
    eventually(lambda: not bed.connections(), "the connection has ended")
    assert jobs(bed).look(name).state is JobState.RUNNING


def test_a_command_that_reads_ends_with_its_connection(bed: SshBed) -> None:
    client = started(bed, "status", "--watch", "--interval", "3598")
    assert client.stdout is not None
    assert client.stdout.readline()

    assert len(ends_there()) >= 2, "the host's end and the command; its arguments are in neither"
    assert not [line for line in ends_there() if "3598" in line]
    bed.cut()
    _, err = client.communicate(timeout=60)
    assert (client.returncode, "nothing was being changed there" in err) == (20, True)
    eventually(lambda: not ends_there(), lambda: str(ends_there()))


def test_ctrl_c_interrupts_the_command_there(bed: SshBed) -> None:
    client = started(bed, "status", "--watch", "--interval", "3598")
    assert client.stdout is not None
    assert client.stdout.readline()
    client.send_signal(signal.SIGINT)
    assert client.wait(60) == 0, "as on the host"
    client.communicate()

    client = started(bed, "watch", "run")
    name = running(bed)
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=60)
    assert jobs(bed).look(name).exit_code == client.returncode
    assert client.returncode in {0, 130}


def test_a_question_is_asked_here_and_answered_from_another_terminal(bed: SshBed) -> None:
    first = OnTerminal(bed.command("broker", "stop"), bed.environment())
    first.until("[y/N]")
    name = running(bed)
    bed.cut()
    assert first.end() == 20
    second = OnTerminal(bed.command("attach"), bed.environment())
    second.until("[y/N]")
    second.type(b"y\r")
    assert second.end() == 0
    assert b"no broker was running" in second.seen
    assert jobs(bed).look(name).exit_code == 0

    third = OnTerminal(bed.command("broker", "stop"), bed.environment())
    third.until("[y/N]")
    third.type(b"\x03")
    assert third.end() == 130


# -- several hosts


def test_six_hosts_of_which_one_does_not_answer(bed: SshBed) -> None:
    names = [f"hv{number}" for number in range(1, 6)]
    done = bed.there("--json", "release", "list", hosts=[*names, "127.0.0.99"])
    assert done.status == 19
    found = json.loads(done.out)
    assert list(found) == [*names, "127.0.0.99"]
    here = json.loads(bed.here("--json", "release", "list").out)
    for name in names:
        assert found[name] == {"exit_code": 0, "job": None, "error": None, "document": here, "messages": []}
    lost = found["127.0.0.99"]
    assert (lost["exit_code"], lost["document"], lost["error"]["class"]) == (19, None, "RemoteError")

    done = bed.there("release", "list", hosts=["hv1", "127.0.0.99"])
    assert done.status == 19
    assert bed.here("release", "list").out in done.out
    assert "hv1: connecting" in done.out
    assert "127.0.0.99: failed, exit code 19" in done.out
    assert "Connection refused" in done.err


def test_changes_on_several_hosts_are_jobs_and_the_exit_code_is_the_worst(bed: SshBed, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# the rack\nhv1\n\nhv2  # the second\nhv1\n")
    words = bed.command("--json", "upgrade", "--release", "nowhere", hosts=[])
    words.insert(words.index("--host-program"), "--hosts-file")
    words.insert(words.index("--host-program"), str(file))
    done = bed.finished(words)
    found = json.loads(done.out)
    assert (done.status, list(found)) == (11, ["hv1", "hv2"])
    assert {each["document"]["error"]["exit_code"] for each in found.values()} == {11}
    assert len({each["job"] for each in found.values()} & set(jobs(bed).ids())) == 2


def test_the_live_table_of_several_hosts(bed: SshBed) -> None:
    there = OnTerminal(bed.command("release", "list", hosts=["hv1", "hv2", "127.0.0.99"]), bed.environment(), (100, 40))
    assert there.end() == 19
    text = there.seen.decode()
    assert "HOST" in text
    assert re.search(r"hv1 .*done", text)
    assert re.search(r"127\.0\.0\.99.*failed", text)


def test_ctrl_c_on_several_hosts_interrupts_each_and_leaves_out_the_rest(bed: SshBed) -> None:
    words = bed.command("--json", "status", "--watch", "--interval", "3598", hosts=["hv1", "hv2", "hv3"])
    words[words.index("--host") : words.index("--host")] = ["--parallel", "2"]
    client = subprocess.Popen(words, env=bed.environment(), stdout=subprocess.PIPE, text=True)
    eventually(lambda: len(ends_there()) == 4, "two hosts are at work")
    time.sleep(2)  # until the commands have begun
    client.send_signal(signal.SIGINT)
    found = json.loads(client.communicate(timeout=60)[0])
    assert [each["exit_code"] for each in found.values()] == [0, 0, 130]
    assert client.returncode == 130
    with contextlib.suppress(KeyError):
        assert found["hv3"]["document"] is None
