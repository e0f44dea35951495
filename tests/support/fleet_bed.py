"""A fleet of hosts for Ansible. Each has a lab with guests, a watchdog, and an sshd in a network namespace of its own.
The control node is a namespace that reaches nothing but these.

The hosts share this machine's files, so that a host is a configuration, and everything of it is below its directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.bed import WATCH, Bed
from bench.guests import Fleet
from ovs_hotswap.broker.lifecycle import start_broker
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance
from ovs_hotswap.lab.hugepages import ensure_hugepages, restore_hugepages
from ovs_hotswap.lab.lab import Lab
from ovs_hotswap.lab.layout import GuestOptions
from ovs_hotswap.lab.watch import wait_protected
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from tests.faults.strike import Trail
from tests.support.collection import PROGRAM, install
from tests.support.waiting import eventually

BIN = Path(sys.executable).parent
_BROKER_S = 20.0
PLAY_S = 280.0
_ASK_S = 60.0
_END_S = 10.0
_LOOK_S = 0.002
_HUGE_MB = 12 * 80  # two instances of each host; a standby starts while the next host is made
RATE = 50  # frames a second of each simulated guest
_PAUSE_US = 2000  # of their drivers, which share two cores with everything else
# Twelve instances and six watchdogs share two cores: they sleep longer than on a host of their own.
_CALM = "check_ms = 250\nhang_ms = 5000\n\n[upgrade]\nsoak_s = 0.5\npmd_sleep_us = 1000\n"
_SSHD = """\
ListenAddress {address}
HostKey {directory}/host_key
AuthorizedKeysFile {control}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


def find_sshd() -> str | None:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@dataclass
class FleetHost:
    """A host. ``lab``: with QEMU guests, or a ``Bed`` with simulated ones."""

    name: str
    number: int
    lab: Lab
    system: System
    fleet: Fleet | None = None
    processes: list[int] = field(default_factory=list)
    lost_before: int = 0

    @property
    def address(self) -> str:
        return f"198.18.{self.number}.2"

    @property
    def host(self) -> Host:
        return Host(self.lab.config, self.system)

    @property
    def log(self) -> Path:
        return self.lab.layout.directory / "watch.log"

    def ask(self, *words: str) -> dict[str, Any]:
        """The document of a command on the host, whatever its exit code."""
        argv = [str(PROGRAM), "--config", str(self.lab.config_path), "--json", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_ASK_S, check=False)
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def identity(self) -> tuple[object, ...]:
        """What is another one after any upgrade or restart."""
        status = self.ask("status")
        pids = [each["vswitchd_pid"] for each in status["instances"] if each["side"] == status["active"]]
        return (status["active"], status["last"], status["unfinished"], *pids)

    def has_ended(self) -> bool:
        """Whether an upgrade has ended, and none is unfinished."""
        status = self.ask("status")
        return status["unfinished"] is None and status["last"] is not None

    def start(self) -> None:
        """Start the broker, the active instance of the host's own release, the guests and the watchdog."""
        host = self.host
        start_broker(self.lab.config, self.system, self.lab.config_path, _BROKER_S)
        start_instance(host, Side.A, host.releases.get("host"))
        argv = [sys.executable, "-m", "ovs_hotswap", "--config", str(self.lab.config_path), "watch", "run"]
        self.processes.append(self.system.spawn(argv, log=self.log))

    def wait_ready(self) -> None:
        """Return when the guests have their network and the standby is ready."""
        if self.fleet is None:
            self.lab.pings.wait_flowing(90.0)
        else:
            self.fleet.wait_served(60.0)
            self.fleet.start(RATE)
            self.fleet.wait_flowing(60.0)
            self.lost_before = self.fleet.stop().total("lost")  # what was sent while the other VM was not up yet
            self.fleet.start(RATE)
        wait_protected(self.host)

    def lost(self) -> int:
        """How many frames of simulated guests have been lost. They send no longer."""
        assert self.fleet is not None
        return self.fleet.stop().total("lost") - self.lost_before

    @contextlib.contextmanager
    def struck_in(self, step: str) -> Iterator[list[int]]:
        """Kill the new instance of the first upgrade in the block that reaches ``step``. The value is its pid, once it
        was killed."""
        trail = Trail(self.lab.config.state_dir / "journal" / "current.jsonl")
        struck: list[int] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_LOOK_S):
                if trail.step() == step:
                    active = self.host.recorded_active()
                    pid = None if active is None else self.host.instances[active.other].pid()
                    if pid is not None:
                        os.kill(pid, signal.SIGKILL)
                        struck.append(pid)
                        return

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield struck
        finally:
            over.set()
            thread.join()

    def close(self) -> None:
        for pid in self.processes:
            self.system.kill(pid)
        self.lab.down()


class FleetBed:
    """The hosts and the control node. ``directory``: of the control node."""

    def __init__(self, stack: contextlib.ExitStack, system: System) -> None:
        self.system = system
        self.directory = Path(tempfile.mkdtemp(prefix="ovsf-"))
        stack.callback(shutil.rmtree, self.directory)
        self.namespace = f"{self.directory.name}-control"
        self.runs = self.directory / "runs"
        self.hosts: dict[str, FleetHost] = {}
        if (before := ensure_hugepages(_HUGE_MB, system)) is not None:
            stack.callback(restore_hugepages, before)
        self._stack = stack
        self._ip("netns", "add", self.namespace)
        stack.callback(self._ip, "netns", "delete", self.namespace)
        stack.callback(self.end_connections)
        install(self.directory / "collections")
        self._keygen(self.directory / "key")

    def _ip(self, *words: str) -> None:
        self.system.run(["ip", *words])

    def _keygen(self, path: Path) -> None:
        self.system.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)])

    def add(self, name: str, *, qemu: bool) -> FleetHost:
        """Make a host, of which everything but the watchdog's standby runs then."""
        number = len(self.hosts) + 1
        directory = Path(tempfile.mkdtemp(prefix="ovsf-"))
        options = GuestOptions(ping_interval_ms=50.0)
        lab = Lab(directory, 1, self.system, options) if qemu else Bed(directory, 2, self.system, options)
        host = self.hosts[name] = FleetHost(name, number, lab, self.system)
        self._stack.callback(host.close)
        lab.up()
        text = lab.config_path.read_text().replace("pmd_sleep_us = 100", "pmd_sleep_us = 2000")
        lab.config_path.write_text(text + ("" if isinstance(lab, Bed) else WATCH) + _CALM)
        if isinstance(lab, Bed):
            host.fleet = self._stack.enter_context(Fleet(lab.fleet_spec(pause_us=_PAUSE_US, nice=0)))
        host.start()
        self._connect(host)
        return host

    def _connect(self, host: FleetHost) -> None:
        """A link from the control node to the host, and its sshd."""
        there, link = host.lab.layout.host_namespace, f"h{host.number}"
        self._ip("-n", self.namespace, "link", "add", link, "type", "veth", "peer", "name", "mgmt", "netns", there)
        for namespace, device, end in ((self.namespace, link, 1), (there, "mgmt", 2)):
            self._ip("-n", namespace, "address", "add", f"198.18.{host.number}.{end}/30", "dev", device)
            self._ip("-n", namespace, "link", "set", device, "up")
        directory = host.lab.layout.directory
        self._keygen(directory / "host_key")
        with (self.directory / "known_hosts").open("a") as file:
            file.write(f"{host.address} {(directory / 'host_key.pub').read_text()}")
        settings = directory / "sshd_config"
        settings.write_text(_SSHD.format(address=host.address, directory=directory, control=self.directory))
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd(8): its privilege separation directory
        argv = ["nsenter", f"--net=/run/netns/{there}", "--", str(find_sshd()), "-D", "-e", "-f", str(settings)]
        host.processes.append(self.system.spawn(argv, log=directory / "sshd.log"))

    # -- the control node

    def write_inventory(self, canaries: Sequence[str], **variables: object) -> None:
        common = ["-F /dev/null", "-o IdentitiesOnly=yes", f"-o UserKnownHostsFile={self.directory}/known_hosts"]
        every: dict[str, object] = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": f"{self.directory}/key",
            "ansible_ssh_common_args": " ".join(common),
            "ansible_python_interpreter": sys.executable,
            "ovs_hotswap_program": str(PROGRAM),
            "upgrade_runs": str(self.runs),
            "upgrade_poll": 1,
            "upgrade_soak_every": 1,
            **variables,
        }

        def of(host: FleetHost) -> dict[str, object]:
            directory = host.lab.layout.directory
            return {"ansible_host": host.address, "ovs_hotswap_config_file": str(host.lab.config_path),
                    "ansible_async_dir": f"{directory}/async", "ansible_remote_tmp": f"{directory}/tmp"}  # fmt: skip

        groups: dict[str, object] = {
            "ovs_hotswap": {"hosts": {name: of(host) for name, host in self.hosts.items()}},
            "ovs_hotswap_canaries": {"hosts": {name: {} for name in canaries}},
        }
        (self.directory / "inventory.json").write_text(json.dumps({"all": {"vars": every, "children": groups}}))

    def play(self, name: str, *options: str, **variables: object) -> subprocess.Popen[str]:
        """Start a playbook of the collection, as its own process group."""
        argv = ["nsenter", f"--net=/run/netns/{self.namespace}", "--", str(BIN / "ansible-playbook"), "-i",
                str(self.directory / "inventory.json"), f"ovs_hotswap.ovs_hotswap.{name}", "-e",
                json.dumps(variables), *options]  # fmt: skip
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")} | {
            "ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"),
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.directory / "cp"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_FORKS": str(len(self.hosts)),
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        log = (self.directory / f"{name}.log").open("a")
        return subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True, start_new_session=True
        )

    def run(self, name: str, *options: str, code: int = 0, **variables: object) -> None:
        """Run a playbook to its end, which must be with this exit code."""
        child = self.play(name, *options, **variables)
        try:
            assert child.wait(PLAY_S) == code, self.text(name)
        finally:
            self.kill(child)

    def text(self, name: str, size: int = 8000) -> str:
        """The end of what a playbook has printed."""
        return (self.directory / f"{name}.log").read_text()[-size:]

    def changed(self, name: str) -> set[str]:
        """The hosts that the last run of a playbook has changed, or in check mode would change, as it says itself."""
        recap = self.text(name).rpartition("PLAY RECAP")[2]
        return {line.split()[0] for line in recap.splitlines() if "changed=" in line and "changed=0" not in line}

    def kill(self, child: subprocess.Popen[str]) -> None:
        """End a control node as a loss of power does, with its connections."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(_END_S)
        self.end_connections()

    def end_connections(self) -> None:
        """End what is left of a control node: Ansible's workers, each of which has a session of its own, and the
        processes of ssh that keep connections open for the next task."""
        for pid in self.system.pids():
            if f"{self.directory}/" in " ".join(self.system.cmdline(pid)):
                self.system.kill(pid)

    def records(self, run: str | None = None) -> dict[str, dict[str, Any]]:
        """What a run, or the newest one, has recorded of each host."""
        directory = self.runs / run if run else self.newest()
        files = [json.loads(path.read_text()) for path in directory.glob("hosts/*.json")]
        return {each["host"]: each for each in files}

    def newest(self) -> Path:
        return sorted(self.runs.iterdir())[-1]

    def states(self) -> Mapping[str, str]:
        return {name: record["state"] for name, record in sorted(self.records().items())}

    def wait_recorded(self, true: Callable[[dict[str, dict[str, Any]]], bool], what: str, child: Any) -> None:
        def look() -> bool:
            assert child.poll() is None, self.text("upgrade")
            return self.runs.exists() and bool(list(self.runs.iterdir())) and true(self.records())

        eventually(look, what, 200.0, poll_s=0.05)
