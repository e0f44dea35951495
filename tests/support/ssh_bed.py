"""Hosts on the loopback device, served by one sshd(8) of this machine with keys and a configuration of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ovs_hotswap.cli.config_cmd import EXAMPLE
from ovs_hotswap.cli.overlay_cmd import EXAMPLE as OVERLAY_EXAMPLE
from tests.support.waiting import eventually

SSHD = os.environ.get("SSHD") or shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin")
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # sshd(8), FILES
_LOW = ["chrt", "-i", "0"]  # what else runs on the machine is not to notice


@dataclass
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str


@dataclass
class SshBed:
    """``home``: the home directory of who calls, with the key and the known_hosts file. ``port``: where sshd listens on
    each of ``addresses``. ``program``: ovs-hotswap as it is installed on the hosts."""

    directory: Path
    port: int
    addresses: Sequence[str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    other_config: Path | None = None

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def program(self) -> Path:
        return self.directory / "bin/ovs-hotswap"

    @property
    def config(self) -> Path:
        return self.other_config or self.directory / "config.toml"

    @property
    def known_hosts(self) -> Path:
        return self.home / ".ssh/known_hosts"

    def command(self, *arguments: str, hosts: Sequence[str] = ("hv1",)) -> list[str]:
        """A command line that runs ``arguments`` on hosts."""
        options = [word for host in hosts for word in ("--host", host)]
        return [*_LOW, sys.executable, "-P", "-m", "ovs_hotswap", *options, "--host-program", str(self.program),
                "--config", str(self.config), *arguments]  # fmt: skip

    def here(self, *arguments: str) -> Done:
        """What the command does without SSH."""
        return self.finished([*_LOW, str(self.program), "--config", str(self.config), *arguments])

    def there(self, *arguments: str, hosts: Sequence[str] = ("hv1",)) -> Done:
        return self.finished(self.command(*arguments, hosts=hosts))

    def with_program(self, program: Path, *arguments: str) -> Done:
        """Run a command on hosts that have ``program`` installed."""
        return self.finished([str(program) if word == str(self.program) else word for word in self.command(*arguments)])

    def finished(self, command: Sequence[str]) -> Done:
        done = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=110,
            check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in {"SSH_AUTH_SOCK", "OVS_HOTSWAP_CONFIG"}}
        return {**kept, "HOME": str(self.home)}

    def ssh_config(self, *more: str) -> None:
        """Write the configuration of who calls: hv1, hv2 ... are the addresses."""
        lines = [*more]
        for number, address in enumerate(self.addresses, 1):
            lines += [f"Host hv{number}", f"HostName {address}", f"Port {self.port}", "User root"]
        (self.home / ".ssh/config").write_text("\n".join([*lines, "Host *", f"Port {self.port}", "User root", ""]))

    def know(self, names: Sequence[str] | None = None) -> None:
        """Have the keys of hosts known."""
        key = (self.directory / "host_key.pub").read_text()
        known = [f"[{each}]:{self.port} {key}" for each in (self.addresses if names is None else names)]
        self.known_hosts.write_text("".join(known))

    def connections(self) -> list[int]:
        """The processes of sshd that serve a connection: children of the one that listens."""
        listener = self.processes[0].pid
        return [int(child) for child in Path(f"/proc/{listener}/task/{listener}/children").read_text().split()]

    def cut(self) -> None:
        """Cut all connections, without a word of goodbye."""
        for pid in self.connections():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def ssh_bed(directory: Path, hosts: int = 6) -> Iterator[SshBed]:
    """Hosts that are one machine, this one, each with an address of its own."""
    assert SSHD is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bed = SshBed(directory, port, [f"127.0.0.{number}" for number in range(1, hosts + 1)])
    (bed.home / ".ssh").mkdir(parents=True, mode=0o700)
    _write_program(bed.program, Path(__file__).parents[2])
    _key(directory / "host_key")
    _key(bed.home / ".ssh/id_ed25519")
    shutil.copy(bed.home / ".ssh/id_ed25519.pub", directory / "authorized_keys")
    _write_config(bed)
    bed.ssh_config()
    bed.know()
    made = not _PRIVILEGE_SEPARATION.exists()
    _PRIVILEGE_SEPARATION.mkdir(exist_ok=True)
    try:
        with _listening(bed):
            yield bed
    finally:
        if made:
            with contextlib.suppress(OSError):
                _PRIVILEGE_SEPARATION.rmdir()


def _write_config(bed: SshBed) -> None:
    overlay = bed.directory / "overlay.toml"
    overlay.write_text(OVERLAY_EXAMPLE)
    bed.config.write_text(
        f'state_dir = "{bed.directory}/state"\nrun_dir = "{bed.directory}/run"\n'
        + EXAMPLE.replace("/etc/ovs-hotswap/overlay.toml", str(overlay)).replace('driver = "tc"', 'driver = "none"')
    )


def _write_program(program: Path, repository: Path) -> None:
    """Install ovs-hotswap from ``repository`` as ``program``."""
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={repository} exec {sys.executable} -P -m ovs_hotswap "$@"\n')
    program.chmod(0o755)


def other_version(directory: Path, version: str) -> Path:
    """A program of another version: this one, which says so of itself."""
    repository = Path(__file__).parents[2]
    shutil.copytree(repository / "ovs_hotswap", directory / "ovs_hotswap", ignore=shutil.ignore_patterns("__pycache__"))
    init = directory / "ovs_hotswap/__init__.py"
    text = init.read_text()
    init.write_text(text[: text.index("__version__")] + f'__version__ = "{version}"\n')
    _write_program(directory / "bin/ovs-hotswap", directory)
    return directory / "bin/ovs-hotswap"


def _key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@contextlib.contextmanager
def _listening(bed: SshBed) -> Iterator[None]:
    config = bed.directory / "sshd_config"
    config.write_text("\n".join([
        f"Port {bed.port}", *(f"ListenAddress {address}" for address in bed.addresses),
        f"HostKey {bed.directory}/host_key", f"AuthorizedKeysFile {bed.directory}/authorized_keys",
        f"PidFile {bed.directory}/sshd.pid", "UsePAM no", "StrictModes no", "PermitRootLogin prohibit-password",
        "PasswordAuthentication no", "KbdInteractiveAuthentication no", "MaxStartups 100:30:200", "",
    ]))  # fmt: skip
    log = (bed.directory / "sshd.log").open("wb")
    with log:
        listener = subprocess.Popen([*_LOW, str(SSHD), "-D", "-e", "-f", str(config)], stdout=log, stderr=log)
    bed.processes.append(listener)
    try:
        eventually(lambda: _accepts(bed), lambda: (bed.directory / "sshd.log").read_text())
        yield
    finally:
        bed.cut()
        listener.terminate()
        listener.wait(10)


def _accepts(bed: SshBed) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((bed.addresses[-1], bed.port), 1):
        return True
    return False
