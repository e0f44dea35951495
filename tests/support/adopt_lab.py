"""A stock host (``stock_host``) with what takes its VMs over: a broker, and a second instance of the same release as
side b, in the host's own network namespace, whose bridge has the VMs' ports alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from ovs_hotswap.adopt.log_settings import log_everything
from ovs_hotswap.adopt.snapshot import Snapshot
from ovs_hotswap.broker.adopting import Adopted, adopt, prepare
from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.config import Config
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.paths import InstancePaths, StockRecord
from ovs_hotswap.switch.pmd import pmd_rxqs
from ovs_hotswap.system import System
from ovs_hotswap.vm_ports import VmPort, write_ports
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.wire.mirrors import MirrorWire
from tests.support.stock_guest import GuestKind
from tests.support.stock_host import BRIDGE, SCHEMA, SWITCH_MB, StockHost

_READY_S = 20.0


class AdoptLab:
    """The host between ``with`` and its end; ``client`` asks the broker. The broker is killed and started by tests."""

    def __init__(self, kinds: Sequence[GuestKind], system: System) -> None:
        self._stack = contextlib.ExitStack()
        self._system = system
        self._kinds = kinds
        self._broker: subprocess.Popen[str] | None = None

    def __enter__(self) -> AdoptLab:
        with self._stack as stack:
            self.host = stack.enter_context(StockHost(self._system, guests=self._kinds))
            self.config_path = self.host.directory / "config.toml"
            self.config_path.write_text(self.host.config_text(well_known=False))
            self.config: Config = load_config(self.config_path)
            for directory in (self.config.run_dir, self.config.state_dir, self.config.side_dir(Side.B)):
                directory.mkdir(parents=True, exist_ok=True)
            self.config.active_file.write_text("a\n")
            self._record()
            log_everything(self.paths(Side.A), [port.name for port in self.ports], self._system)
            write_ports(self.config, self._system, self.ports)
            self.start_broker()
            stack.callback(self.stop_broker)
            self.client = stack.enter_context(BrokerClient(self.config.broker_socket))
            self.start_b()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def ports(self) -> tuple[VmPort, ...]:
        return tuple(
            VmPort(name=guest.name, bridge=BRIDGE, ofport=self.host.ofport(guest.name), socket=guest.socket,
                   queues=guest.kind.queues)
            for guest in self.host.guests
        )  # fmt: skip

    def paths(self, side: Side) -> InstancePaths:
        return InstancePaths.of(self.config, side)

    @property
    def wire(self) -> MirrorWire:
        return MirrorWire({side: self.paths(side) for side in Side}, self._system, self.config.run_dir / "wire.sock")

    def _record(self) -> None:
        switch, database = self.host.switch_pid, self.host.database_pid
        assert switch is not None
        assert database is not None
        record = StockRecord(side=Side.A, pid=switch, born=start_time(switch), ovsdb_pid=database,
                             ovsdb_born=start_time(database))  # fmt: skip
        self.config.stock_file.write_text(record.model_dump_json())

    # The broker, which runs in the host's namespaces as its unit does.

    def start_broker(self) -> None:
        argv = [sys.executable, "-P", "-m", "ovs_hotswap", "--config", str(self.config_path), "broker", "supervise",
                "--log-file", str(self.config.run_dir / "broker.log")]  # fmt: skip
        log = (self.config.run_dir / "broker.log").open("a")
        with log:
            self._broker = self.host.space.popen(argv, stdout=log, stderr=log)
        assert wait_until(self._answers, _READY_S, self._system), self.log()

    def log(self) -> str:
        return (self.config.run_dir / "broker.log").read_text(errors="replace")

    def _answers(self) -> bool:
        with contextlib.suppress(BrokerError), BrokerClient(self.config.broker_socket) as client:
            client.status()
            return True
        return False

    def stop_broker(self) -> None:
        if self._broker is not None:
            self._broker.send_signal(signal.SIGTERM)
            self._broker.wait(20)

    def kill_broker(self) -> None:
        """Kill it; its supervisor starts another one."""
        os.kill(int((self.config.run_dir / "broker.pid").read_text().split()[0]), signal.SIGKILL)

    # The second instance.

    def vsctl_b(self, *words: str) -> str:
        socket = self.paths(Side.B).db_socket
        return self.host.run(["ovs-vsctl", f"--db=unix:{socket}", "--timeout=20", *words]).strip()

    def start_b(self) -> None:
        """Start side b, and wait until it is connected for every VM."""
        run, paths = self.config.side_dir(Side.B), self.paths(Side.B)
        env = {"OVS_RUNDIR": str(run), "OVS_LOGDIR": str(run)}
        if not paths.db_file.exists():
            paths.db_file.parent.mkdir(exist_ok=True)
            # Each ovs-vswitchd makes a device of this name (lib/dpif-netdev.c), and its own is the first one's.
            self.host.run(["sh", "-ec", "ip link set ovs-netdev down; ip link set ovs-netdev name ovs-netdev.a"])
            self.host.run(["ovsdb-tool", "create", str(paths.db_file), SCHEMA])
            self._daemon(["ovsdb-server", str(paths.db_file), f"--remote=punix:{paths.db_socket}", "--no-chdir",
                          f"--log-file={paths.ovsdb_log}", f"--pidfile={paths.ovsdb_pid}",
                          f"--unixctl={paths.ovsdb_ctl}", "--detach"], env)  # fmt: skip
            self._configure_b()
        self._daemon(["ovs-vswitchd", f"unix:{paths.db_socket}", "-vconsole:emer", "-vfile:info", "--no-chdir",
                      f"--log-file={paths.log}", f"--pidfile={paths.vswitchd_pid}",
                      f"--unixctl={paths.vswitchd_ctl}", "--detach"], env)  # fmt: skip
        names = [vm.name for vm in self.client.vms()]
        assert wait_until(lambda: all(self.client.vm(name).switches[Side.B].connected for name in names),
                          _READY_S, self._system), self.log()  # fmt: skip

    def _daemon(self, argv: list[str], env: dict[str, str]) -> None:
        self.host.space.run(argv, env={**os.environ, **env})

    def _configure_b(self) -> None:
        self.vsctl_b("--no-wait", "init")
        self.vsctl_b(
            "--no-wait", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true",
            f"other_config:dpdk-socket-mem={SWITCH_MB}", 'other_config:dpdk-extra="--no-pci --in-memory"',
            "other_config:dpdk-lcore-mask=0x1", "other_config:pmd-cpu-mask=0x1",
            "other_config:pmd-maxsleep=100", "other_config:pmd-sleep-max=100",
        )  # fmt: skip
        words = ["--no-wait", "add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev"]
        for port in self.ports:
            words += ["--", "add-port", BRIDGE, port.name, "--", "set", "interface", port.name,
                      "type=dpdkvhostuserclient", f"options:vhost-server-path={port.socket}",
                      f"ofport_request={port.ofport}"]  # fmt: skip
        self.vsctl_b(*words)

    def stop_b(self) -> None:
        pid = self._system.read_pid(self.paths(Side.B).vswitchd_pid)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            assert wait_until(lambda: not self._system.alive(pid), _READY_S, self._system)

    # Taking over.

    def receives(self, name: str) -> None:
        """Return when switch b's PMD threads poll the queues of a VM that it is parked for."""
        pairs = next(port.queues for port in self.ports if port.name == name)
        enabled = sum(ring.enabled for ring in self.client.vm(name).rings) // 2

        def polled() -> bool:
            queues = pmd_rxqs(self.paths(Side.B).vswitchd_ctl).get(name, ())
            return sum(each.enabled for each in queues) >= min(pairs, enabled)

        assert wait_until(polled, _READY_S, self._system)
        time.sleep(0.2)  # the datapath's own reconfiguration

    def prepare(self, name: str) -> Snapshot:
        made = prepare(self.client, name, self.paths(Side.A), Side.B, self._system)
        self.receives(name)
        return made

    def adopt(self, name: str, prepared: Snapshot | None = None) -> Adopted:
        return adopt(self.client, name, self.paths(Side.A), Side.B, self._system, ready=lambda: self.receives(name),
                     prepared=prepared)  # fmt: skip

    def owner(self, name: str) -> Side | None:
        vm = self.client.vm(name)
        return vm.owner if vm.owner is not None and vm.confirmed_on(vm.owner) else None

    def wait_owner(self, name: str, side: Side) -> None:
        assert wait_until(lambda: self.owner(name) is side, _READY_S, self._system), self.client.vm(name)
