"""A real broker in a process of its own, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.broker.control.status import BrokerStatus
from ovs_hotswap.config import Config
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side

_SERVE = (
    "import logging, sys; from pathlib import Path; from ovs_hotswap.config_file import load_config;"
    "from ovs_hotswap.system import System; from ovs_hotswap.broker.daemon import serve;"
    "logging.basicConfig(level=logging.INFO);"
    "load = lambda: load_config(Path(sys.argv[1]));"
    "serve(load(), System(), load, take_over=len(sys.argv) > 2)"
)


_SUPERVISE = (
    "import logging, sys; from pathlib import Path; from ovs_hotswap.service.supervisor import Supervisor;"
    "logging.basicConfig(level=logging.INFO);"
    "sys.exit(Supervisor('supervisor', sys.argv[2:], Path(sys.argv[1])).run())"
)
_SUPERVISORS_OWN = 3  # sockets: one that the service speaks to, two for signals
_UNIT = 'SYSTEMD_EXEC_PID=$$ exec "$@"'  # what systemd tells the process of a unit


class BrokerProcess:
    """A broker with a run directory of its own and the VMs ``names``. Context manager.

    ``home`` is written as the active side before it starts, ``descriptor_limit`` is its soft limit. ``managed``: a
    supervisor keeps its descriptors and starts it again. ``unit``: it believes to be systemd's. Its log is printed if
    the test fails. ``queues``: of each VM.
    """

    def __init__(
        self,
        names: Sequence[str],
        fence_ms: int = 300,
        home: Side | None = Side.A,
        descriptor_limit: int | None = None,
        *,
        managed: bool = False,
        unit: bool = False,
        queues: int = 32,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ovsh-"))
        self.names = list(names)
        self._fence_ms = fence_ms
        self._queues = queues
        self._limit = descriptor_limit
        self.config_path = self.directory / "config.toml"
        self.log = self.directory / "broker.log"
        self.write(names)
        self.config: Config = load_config(self.config_path)
        self.config.run_dir.mkdir()
        if home is not None:
            self.config.active_file.write_text(f"{home}\n")
        self._child: subprocess.Popen[bytes] | None = None
        self._managed, self._unit = managed, unit

    def write(self, names: Sequence[str], more: str = "") -> None:
        """Write the overlay intent with these VMs, and the configuration, with ``more`` keys of the broker's."""
        self.names = list(names)
        vms = "".join(
            f'[[vm]]\nname = "{name}"\nofport = {10 + k}\nmac = "52:54:00:00:{k >> 8:02x}:{k & 255:02x}"\nvni = 1\n'
            f"queues = {self._queues}\n"
            for k, name in enumerate(names)
        )
        intent = f'[vtep]\naddress = "172.31.0.1/24"\nmac = "52:54:01:00:00:01"\n{vms}'
        (self.directory / "overlay.toml").write_text(intent)
        instances = "".join(f'[instances.{x}]\npmd_cores = [0]\nuplink_devargs = "net_null_{x}"\n' for x in "ab")
        self.config_path.write_text(
            f'overlay = "{self.directory}/overlay.toml"\nrun_dir = "{self.directory}/run"\n'
            f'state_dir = "{self.directory}/state"\n'
            f'[broker]\nqemu_socket = "{self.directory}/qemu/{{vm}}"\nfence_ms = {self._fence_ms}\n{more}'
            f"{instances}"
        )

    @property
    def pid(self) -> int:
        return int((self.config.run_dir / "broker.pid").read_text().split()[0])

    def successor_waits(self) -> bool:
        """Whether the newest process that ``succeed`` has started is connected with the broker it succeeds."""
        assert self._child is not None
        if self._child.pid == self.pid:
            return False
        lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        connected = {f"socket:[{words[6]}]" for words in lines if words[5] == "03"}  # net/unix/af_unix.c
        return not connected.isdisjoint(self._links())

    def stored(self) -> int:
        """How many descriptors its supervisor keeps."""
        return sum(link.startswith("socket:") for link in self._links()) - _SUPERVISORS_OWN

    def _links(self) -> list[str]:
        """What the descriptors of the newest process that was started stand for."""
        assert self._child is not None
        links = []
        for each in Path(f"/proc/{self._child.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since: its polling descriptor is a new one each time
                links.append(os.readlink(each))
        return links

    def _spawn(self, *arguments: str, log: int | None = None) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", _SERVE, str(self.config_path), *arguments]
        if self._managed:
            argv = [sys.executable, "-c", _SUPERVISE, str(self.config.run_dir), *argv]
        if self._unit:
            argv = ["sh", "-c", _UNIT, "sh", *argv]
        with self.log.open("ab") as out:
            to = out.fileno() if log is None else log
            return subprocess.Popen(argv, stdout=to, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2])

    def __enter__(self) -> BrokerProcess:
        self._child = self._spawn()
        if self._limit is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.prlimit(self._child.pid, resource.RLIMIT_NOFILE, (self._limit, hard))
        end = time.monotonic() + 10
        while True:
            try:
                with self.client() as client:
                    client.status()
                return self
            except BrokerError:
                if self._child.poll() is not None or time.monotonic() > end:
                    self.__exit__(AssertionError)
                    raise
                time.sleep(0.01)

    def __exit__(self, kind: object = None, *_: object) -> None:
        assert self._child is not None
        status = self._child.poll()
        if status is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                status = self._child.wait(10)
            except subprocess.TimeoutExpired:
                self._child.kill()
                status = self._child.wait()
        text = self.log.read_text()
        # The VMs' own sockets stay, for the next broker to know whom an earlier one served.
        expected = set() if not self._managed else {"broker.sock"}  # clients wait there for the next broker
        left = sorted({path.name for path in self.config.run_dir.glob("*.sock")} - expected)
        self.remove()
        if kind is not None:
            print(text)
            return
        if status != 0 or "Traceback" in text or left:
            raise AssertionError(f"broker ended with status {status}, left {left}:\n{text}")

    def remove(self) -> None:
        """Remove the files of one that does not run."""
        shutil.rmtree(self.directory)

    def succeed(self) -> None:
        """Have a new process take over; the old one has ended when this returns."""
        old = self._child
        assert old is not None
        self._child = self._spawn("take-over")
        assert old.wait(20) == 0, self.log.read_text()
        self._await_child()

    def try_to_succeed(self) -> str:
        """Have a new process take over, which fails: what it says."""
        with self._spawn("take-over", log=subprocess.PIPE) as child:
            said, _ = child.communicate(timeout=20)
        assert child.returncode != 0
        return said.decode()

    def restart(self, number: signal.Signals) -> None:
        """End it by a signal; its supervisor starts it again."""
        before = self.pid
        os.kill(before, number)
        self._await(lambda status: status.pid != before)

    def _await_child(self) -> None:
        child = self._child
        assert child is not None
        self._await(lambda status: status.pid == child.pid)

    def _await(self, true: Callable[[BrokerStatus], bool]) -> None:
        assert self._child is not None
        end = time.monotonic() + 10
        while True:
            with contextlib.suppress(BrokerError), self.client() as client:
                if true(client.status()):
                    return
            assert self._child.poll() is None, self.log.read_text()
            assert time.monotonic() < end
            time.sleep(0.01)

    def client(self, timeout: float = 30.0) -> BrokerClient:
        return BrokerClient(self.config.broker_socket, timeout)

    def sockets(self, side: Side) -> list[str]:
        return [str(self.config.vhost_socket(side, name)) for name in self.names]

    def qemu_path(self, name: str) -> Path:
        return self.config.qemu_socket(name)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)
