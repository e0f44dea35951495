"""Two real switches in one network namespace, in the place of the distribution's and of a new instance. They forward in
user space and need neither DPDK nor huge pages.

The first one's run directory is the well-known directory, for its own daemons and for every tool.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

from ovs_hotswap.model import Side
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System
from tests.unit.test_instance import configuration

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


@dataclasses.dataclass
class Switch:
    """An ovsdb-server and an ovs-vswitchd with ``paths``, in network namespace ``space``. ``stock``: their control
    sockets have their pids in their names, as the distribution's have."""

    paths: InstancePaths
    space: str
    stock: bool

    def start(self, copy: Path | None = None) -> None:
        """Start both; the database is a copy of the file ``copy``, or empty."""
        run_dir = self.paths.run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        if copy is None:
            self.run("ovsdb-tool", "create", str(self.paths.db_file), SCHEMA)
        else:
            self.paths.db_file.write_bytes(copy.read_bytes())
        control = [] if self.stock else [f"--unixctl={self.paths.ovsdb_ctl}"]
        self._daemon("ovsdb-server", str(self.paths.db_file), f"--remote=punix:{run_dir}/db.sock", *control)
        self.vsctl("--no-wait", "init")

    def start_switch(self) -> None:
        control = [] if self.stock else [f"--unixctl={self.paths.vswitchd_ctl}"]
        self._daemon("ovs-vswitchd", f"unix:{self.paths.run_dir}/db.sock", *control)
        if self.stock:
            self.paths = dataclasses.replace(self.paths, vswitchd_ctl=self._control("ovs-vswitchd"),
                                             ovsdb_ctl=self._control("ovsdb-server"))  # fmt: skip

    def call_by(self, directory: Path) -> None:
        """From now on, use the files by their names in ``directory``."""
        names = ("db_socket", "ovsdb_ctl", "ovsdb_pid", "vswitchd_ctl", "vswitchd_pid")
        found = {name: directory / getattr(self.paths, name).name for name in names}
        self.paths = dataclasses.replace(self.paths, run_dir=directory, **found)

    def pid(self, daemon: str = "ovs-vswitchd") -> int | None:
        return System().read_pid(self.paths.run_dir / f"{daemon}.pid")

    def vsctl(self, *words: str) -> str:
        return self.run("ovs-vsctl", f"--db=unix:{self.paths.db_socket}", "--timeout=10", *words).strip()

    def ofctl(self, command: str, bridge: str, *words: str) -> str:
        return self.run("ovs-ofctl", "-O", "OpenFlow14", command, f"unix:{self.paths.run_dir}/{bridge}.mgmt", *words)

    def run(self, *argv: str) -> str:
        environment = {**os.environ, "OVS_RUNDIR": str(self.paths.run_dir), "OVS_LOGDIR": str(self.paths.run_dir)}
        done = subprocess.run(["ip", "netns", "exec", self.space, *argv], env=environment, check=False,
                              capture_output=True, text=True, timeout=30)  # fmt: skip
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def _daemon(self, name: str, *argv: str) -> None:
        self.run(name, *argv, f"--pidfile={self.paths.run_dir}/{name}.pid", "--log-file", "-vconsole:off", "--detach",
                 "--no-chdir")  # fmt: skip

    def _control(self, daemon: str) -> Path:
        return self.paths.run_dir / f"{daemon}.{self.pid(daemon)}.ctl"


def switch(directory: Path, space: str, *, stock: bool) -> Switch:
    paths = InstancePaths.of(configuration(directory), Side.A if stock else Side.B)
    if stock:
        run_dir = directory / "openvswitch"
        files = {field.name: getattr(paths, field.name) for field in dataclasses.fields(paths)}
        moved = {name: run_dir / path.name for name, path in files.items()
                 if isinstance(path, Path) and path.parent == paths.run_dir}  # fmt: skip
        paths = dataclasses.replace(paths, **{**moved, "run_dir": run_dir})  # type: ignore[arg-type]
    return Switch(paths, space, stock)
