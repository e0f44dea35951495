"""An instance of Open vSwitch 2.9.0 with DPDK 17.11, from the directory that it was built in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_START_S = 30.0
_END_S = 10.0
_POLL_S = 0.05
_HUGE_MB = 384
_SOCKET_MB = 256
# Namespaces of its own: `ovs-netdev` and the bridge's tap would clash with another instance's, and DPDK 17.11 takes all
# free huge pages for a moment, so it gets a mount with a limit.
_INSIDE = """
set -e
mount -t hugetlbfs -o pagesize=2M,size={huge}M none {directory}/huge
ip link set lo up
exec {program} unix:{directory}/db.sock --unixctl={directory}/ovs.ctl --log-file={directory}/ovs-vswitchd.log \
  --pidfile={directory}/ovs-vswitchd.pid
"""


class OldSwitchError(Exception):
    """The instance cannot be started, ended by itself, or does not do what it is asked."""


class OldSwitch:
    """One instance with a bridge ``br0`` and a vhost-user client port for each of ``sockets``: ``vm0``.. with OpenFlow
    ports 1.. Its PMD thread runs on ``core``. Context manager. Methods raise OldSwitchError."""

    def __init__(self, tree: Path, name: str, sockets: Sequence[str], core: int) -> None:
        self.tree, self.name, self.sockets, self.core = tree, name, list(sockets), core
        self.directory = Path(tempfile.mkdtemp(prefix=f"ovsh-old-{name}-"))
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> OldSwitch:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self._children.values()):
            child.terminate()
            try:
                child.wait(_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        shutil.rmtree(self.directory)

    def _start(self) -> None:
        (self.directory / "huge").mkdir()
        database, sock = self.directory / "conf.db", self.directory / "db.sock"
        self._run("ovsdb/ovsdb-tool", "create", str(database), str(self.tree / "vswitchd/vswitch.ovsschema"))
        server = [str(self.tree / "ovsdb/ovsdb-server"), f"--remote=punix:{sock}", str(database)]
        self._spawn("ovsdb-server", server)
        self._wait(sock.exists, "ovsdb-server")
        self.vsctl("--no-wait", "init")
        extra = f"--no-pci -n 1 --file-prefix {self.name} --huge-dir {self.directory}/huge"
        self.vsctl(
            "--no-wait", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true",
            f"other_config:dpdk-socket-mem={_SOCKET_MB}", f"other_config:dpdk-lcore-mask={1 << self.core:x}",
            f"other_config:pmd-cpu-mask={1 << self.core:x}", f'other_config:dpdk-extra="{extra}"',
        )  # fmt: skip
        inside = _INSIDE.format(
            huge=_HUGE_MB, directory=self.directory, program=self.tree / "vswitchd/ovs-vswitchd"
        )  # fmt: skip
        self._spawn("ovs-vswitchd", ["unshare", "--net", "--mount", "sh", "-c", inside])
        self._wait((self.directory / "ovs.ctl").exists, "ovs-vswitchd")
        self.appctl("vlog/set", "dpdk:err")  # else several lines for each message of each VM
        self.vsctl("add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=netdev", "fail_mode=secure")
        for number in range(len(self.sockets)):
            self.add_port(number)

    def add_port(self, number: int) -> None:
        """That of one of ``sockets``."""
        port = f"vm{number}"
        self.vsctl(
            "add-port", "br0", port, "--", "set", "Interface", port, "type=dpdkvhostuserclient",
            f"options:vhost-server-path={self.sockets[number]}", f"ofport_request={number + 1}",
        )  # fmt: skip

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, **dict.fromkeys(("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR"), str(self.directory))}

    def _spawn(self, name: str, argv: list[str]) -> None:
        with (self.directory / "out").open("ab") as out:
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._environment)
        self._children[name] = child

    def _run(self, program: str, *arguments: str) -> str:
        argv = [str(self.tree / program), *arguments]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=_START_S, check=False, env=self._environment
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise OldSwitchError(f"{self.name}: {' '.join(argv)}: no end after {_START_S:g} s") from error
        if done.returncode:
            raise OldSwitchError(f"{self.name}: {' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def vsctl(self, *arguments: str) -> str:
        return self._run("utilities/ovs-vsctl", f"--db=unix:{self.directory}/db.sock", "--timeout=20", *arguments)

    def ofctl(self, command: str, *arguments: str) -> str:
        return self._run("utilities/ovs-ofctl", command, f"unix:{self.directory}/br0.mgmt", *arguments)

    def appctl(self, *arguments: str) -> str:
        return self._run("utilities/ovs-appctl", "-t", f"{self.directory}/ovs.ctl", *arguments)

    def echo(self) -> None:
        """Give every VM back what it sends."""
        self.ofctl("add-flow", "actions=in_port")

    @property
    def pid(self) -> int:
        return int((self.directory / "ovs-vswitchd.pid").read_text())

    def signal(self, number: signal.Signals) -> None:
        """To ovs-vswitchd."""
        os.kill(self.pid, number)

    @property
    def log(self) -> str:
        """What its processes have printed, and ovs-vswitchd has logged."""
        files = [self.directory / name for name in ("out", "ovs-vswitchd.log")]
        return "".join(path.read_text(errors="replace") for path in files if path.exists())

    def check(self) -> None:
        """Raise if one of its processes has ended."""
        for name, child in self._children.items():
            status = child.poll()
            if status is not None:
                how = signal.Signals(-status).name if status < 0 else f"status {status}"
                raise OldSwitchError(f"{self.name}: {name} ended: {how}\n{self.log[-2000:]}")

    def _wait(self, true: object, what: str) -> None:
        assert callable(true)
        end = time.monotonic() + _START_S
        while not true():
            self.check()
            if time.monotonic() > end:
                raise OldSwitchError(f"{self.name}: {what} is not there after {_START_S:g} s")
            time.sleep(_POLL_S)
