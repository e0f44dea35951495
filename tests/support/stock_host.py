"""A stock host: the distribution's Open vSwitch with DPDK, programmed by others, and QEMU guests on its sockets.

Nothing of this project has a part in it, except what the guests boot and what measures their traffic. The host is a
``Space``: it has its own ``/run``, ``/etc/openvswitch`` and network, so several hosts can run on one machine.

    network namespace "outside"                 the host                              guests
    10.100.255.254 on the bridge fabric --+-- net-a ==== up-a -- port up of the       vm1, vm2, ... on
                                          |              switch's bridge              vhost/vm1.sock, ...
                                          +-- net-b ==== up-b, for a second instance

``bridge`` says who programs ``br-int``. ``normal``: no program. ``pipeline``: a script (``stock_pipeline``). ``ovn``:
OVN, whose central part is in the network namespace "central"; the outside host is behind a localnet port on ``br-ex``.
``neutron``: the flows of Neutron's agent (``stock_neutron_tables``). ``neutron-agent``: the agent itself
(``stock_neutron``).
"""

from __future__ import annotations

import operator
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.hugepages import ensure_hugepages, restore_hugepages
from ovs_hotswap.lab.initramfs import build, find_kernel
from ovs_hotswap.lab.layout import (
    AF_PACKET_OPTIONS,
    GuestLayout,
    GuestOptions,
    Layout,
)
from ovs_hotswap.lab.pings import Pings, Stream
from ovs_hotswap.system import Completed, System
from ovs_hotswap.waiting import wait_until
from tests.support import stock_network, stock_neutron, stock_neutron_tables, stock_ovn, stock_pipeline
from tests.support.stock_guest import GuestKind, StockGuest, command_line
from tests.support.stock_network import OUTSIDE
from tests.support.stock_space import PLACES, Space
from tests.support.stock_traffic import Traffic

BridgeKind = Literal["normal", "pipeline", "ovn", "neutron", "neutron-agent"]
UPLINK, UPLINK_OFPORT = "up", 100
BRIDGE = "br-int"
RUN_DIR, DATABASE = "/run/openvswitch", "/etc/openvswitch/conf.db"
LOG = "/var/log/openvswitch/ovs-vswitchd.log"
PROGRAM = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
ALTERNATIVES = "/etc/alternatives"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
# As ``ovs-ctl`` starts it (utilities/ovs-lib.in, start_daemon).
START_DATABASE = (
    "ovsdb-server", DATABASE, "-vconsole:emer", "-vsyslog:err", "-vfile:info", f"--remote=punix:{RUN_DIR}/db.sock",
    "--remote=db:Open_vSwitch,Open_vSwitch,manager_options", "--no-chdir",
    "--log-file=/var/log/openvswitch/ovsdb-server.log", f"--pidfile={RUN_DIR}/ovsdb-server.pid", "--detach",
)  # fmt: skip
SWITCH_MB = 256
CHASSIS = "stock-1"
_OPENFLOW = ",".join(f"OpenFlow{version}" for version in (10, 13, 14, 15))  # the highest that the bridge allows
_VLANS = {"pipeline": stock_pipeline.VLAN, "neutron": stock_neutron_tables.VLAN,
          "neutron-agent": stock_neutron_tables.VLAN}  # of the outside host  # fmt: skip
_SPARE_MB = 64  # for memory that is plugged, and for others who use huge pages
_READY_S, _BOOT_S = 30.0, 60.0


def devargs(side: str) -> str:
    """The DPDK device of the uplink: side ``a`` is the stock switch's, ``b`` is kept for a second instance."""
    return f"net_af_packet0,iface=up-{side},{AF_PACKET_OPTIONS}"


def _drivers() -> Path:
    """Where DPDK's packages put their drivers."""
    (found,) = Path("/usr/lib").glob("*-linux-gnu/dpdk/pmds-*")
    return found


class StockHost:
    """A host with guests under traffic between ``with`` and its end. ``guests``: a kind for each guest, or how many.
    The last ``later`` of them are only started by ``plug``. ``monitored``: a switch that crashes is started again, as
    ``ovs-ctl`` does it unless told otherwise. ``memif``: the package of DPDK's driver memif is installed.

    ``directory`` has everything. What is in ``/run`` on the host is in ``directory/run`` outside (``outside``); the
    guests' sockets, reports and logs have the same path on either side.
    """

    places: tuple[str, ...] = PLACES
    switch_mb = SWITCH_MB  # of huge pages for each switch

    def __init__(
        self,
        system: System,
        *,
        bridge: BridgeKind = "normal",
        guests: int | Sequence[GuestKind] = 2,
        later: int = 0,
        ping_interval_ms: float = 10.0,
        monitored: bool = False,
        memif: bool = True,
    ) -> None:
        self._system = system
        self._monitored, self._memif = monitored, memif
        self.kind: BridgeKind = bridge
        self._kinds = [GuestKind()] * guests if isinstance(guests, int) else list(guests)
        self.directory = Path(tempfile.mkdtemp(prefix="ovsh-stock-"))
        self.layout = Layout(self.directory, len(self._kinds), GuestOptions(ping_interval_ms=ping_interval_ms))
        self.vhost_dir = self.directory / "vhost"
        self.guests = [
            self._make_guest(guest, kind) for guest, kind in zip(self.layout.guests, self._kinds, strict=True)
        ]
        self._plugged = [guest.name for guest in self.guests[: len(self.guests) - later]]
        self._space: Space | None = None
        self._pages: int | None = None  # how many huge pages the machine had before

    def __enter__(self) -> Self:
        try:
            self._up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_guest(self, guest: GuestLayout, kind: GuestKind) -> StockGuest:
        return StockGuest(self.layout, guest, kind, self.vhost_dir / f"{guest.name}.sock", self._system)

    def close(self) -> None:
        """End everything, and remove it. It may be called again."""
        if self._space is not None:
            self._space.close()
        if self._pages is not None:
            restore_hugepages(self._pages)
            self._pages = None
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def space(self) -> Space:
        assert self._space is not None, "the host is not up"
        return self._space

    # Commands on the host.

    def run(self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, netns: str | None = None) -> str:
        """Run a command on the host, and return what it printed. Raises CommandError."""
        return self.completed(argv, timeout=timeout, check=check, netns=netns).stdout

    def completed(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = False, netns: str | None = None
    ) -> Completed:
        """Run a command on the host, and return its status as well. ``netns``: ``OUTSIDE``, for example."""
        return self.space.run(argv, timeout=timeout, check=check, netns=netns)

    def outside(self, path: str | Path) -> Path:
        """Where a file of the host's ``/run``, ``/etc/openvswitch`` and so on is for the tests."""
        return self.space.outside(path)

    def vsctl(self, *words: str) -> str:
        return self.run(["ovs-vsctl", "--timeout=20", *words]).strip()

    def appctl(self, *words: str) -> str:
        return self.run(["ovs-appctl", *words])

    def ofctl(self, *words: str) -> str:
        return self.run(["ovs-ofctl", "-O", _OPENFLOW, *words])

    def ofport(self, interface: str) -> int:
        return int(self.vsctl("get", "interface", interface, "ofport"))

    def flows(self, bridge: str = BRIDGE) -> list[str]:
        """The flows of a bridge without counters, sorted."""
        text = self.run(["ovs-ofctl", "-O", _OPENFLOW, "--no-stats", "--no-names", "dump-flows", bridge])
        return sorted(line.strip() for line in text.splitlines() if "actions=" in line)

    def config_text(self, *, well_known: bool = True, more: str = "") -> str:
        """A configuration of ovs-hotswap for this host. Its own directories are below ``directory``.

        ``well_known``: the stock switch's files have the paths that commands on the host see; otherwise those that the
        tests see, which the host sees as well. ``more``: further tables.
        """
        root = "" if well_known else self.directory
        cores = (1, 0) if (os.cpu_count() or 1) > 1 else (0, 0)
        tables = [
            f'program = "clone"\nbridge = "{BRIDGE}"\nrun_dir = "{self.directory}/hotswap/run"\n'
            f'state_dir = "{self.directory}/hotswap/state"\n',
            f'[stock]\nrun_dir = "{root}{RUN_DIR}"\ndatabase = "{root}{DATABASE}"\nlog = "{root}{LOG}"\n',
        ]
        for side, core in zip("ab", cores, strict=True):
            tables.append(
                f"[instances.{side}]\npmd_cores = [{core}]\nmemory_mb = {self.switch_mb}\npmd_sleep_us = 100\n"
                f'port_devices = {{ {UPLINK} = "{devargs(side)}" }}\n'
            )
        return "\n".join([*tables, more])

    # The switch.

    @property
    def switch_pid(self) -> int | None:
        """The pid of the stock ovs-vswitchd; ``None`` if it does not run."""
        return self._system.read_pid(self.outside(f"{RUN_DIR}/ovs-vswitchd.pid"))

    @property
    def retired(self) -> bool:
        """Whether the well-known paths lead away from the stock switch's own files."""
        return self.outside(f"{RUN_DIR}/db.sock").is_symlink()

    @property
    def database_pid(self) -> int | None:
        return self._system.read_pid(self.outside(f"{RUN_DIR}/ovsdb-server.pid"))

    def start_database(self) -> None:
        self.run(START_DATABASE)

    def start_switch(self) -> None:
        """Start ovs-vswitchd as ``ovs-ctl`` does, or ``ovs-ctl --no-monitor``; return when DPDK is initialized."""
        self.run(
            ["ovs-vswitchd", f"unix:{RUN_DIR}/db.sock", "-vconsole:emer", "-vsyslog:err", "-vfile:info", "--mlockall",
             *(["--monitor"] if self._monitored else []), "--no-chdir", f"--log-file={LOG}",
             f"--pidfile={RUN_DIR}/ovs-vswitchd.pid", "--detach"]
        )  # fmt: skip
        assert self.vsctl("get", "Open_vSwitch", ".", "dpdk_initialized") == "true"

    # Guests and their traffic.

    def guest(self, name: str) -> StockGuest:
        return next(guest for guest in self.guests if guest.name == name)

    @property
    def running(self) -> list[StockGuest]:
        """The guests that have been plugged."""
        return [self.guest(name) for name in self._plugged]

    @property
    def streams(self) -> list[Stream]:
        return [
            Stream(guest.name, target.name, self.layout.report_file(guest.name, target.name))
            for guest in self.running
            for target in guest.layout.targets
        ]

    @property
    def pings(self) -> Pings:
        """The figures of the guests' pings, which never stop."""
        return Pings(self.streams, self.layout.options.ping_interval_ms, self._system)

    def traffic(self, *, flood: str | None = "last", tcp: str | None = "vm1", rate: float = 1000.0) -> Traffic:
        """Traffic for a ``with`` block: the pings, a flood of ``rate`` requests a second from outside to the guest
        ``flood``, and a TCP connection from outside to the guest ``tcp``."""
        flooded = self.running[-1] if flood == "last" else self.guest(flood) if flood else None
        echoing = self.guest(tcp) if tcp else None
        return Traffic(
            self.space, OUTSIDE, self.pings, self.streams, self.running, flooded=flooded, echoing=echoing, rate=rate
        )

    def start_guest(self, name: str) -> None:
        """Start the guest's QEMU, and return when it listens. It runs the guest once the switch has connected."""
        guest = self.guest(name)
        argv = command_line(self.layout, guest.layout, guest.kind, guest.socket, find_kernel().image)
        log = self.layout.guest_file(name, "err")
        guest.pid_file.write_text(f"{self._system.spawn(self.space.entering(argv), log=log)}\n")
        assert wait_until(guest.socket.exists, _READY_S, self._system), log.read_text()

    def stop_guest(self, name: str) -> None:
        """End the guest's QEMU in order, as libvirt's `destroy` does, if it runs."""
        guest = self.guest(name)
        if guest.pid is not None:
            self._system.kill(guest.pid)
        guest.pid_file.unlink(missing_ok=True)

    def wait_boots(self, boots: int = 1) -> None:
        """Wait until every guest has booted ``boots`` times."""

        def missing() -> list[str]:
            return [guest.name for guest in self.running if guest.boots() < boots]

        if late := wait_until(missing, _BOOT_S, self._system, done=operator.not_, poll_s=0.05):
            said = "".join(self.layout.guest_file(name, "err").read_text() for name in late)
            raise LabError(f"{', '.join(late)} did not boot within {_BOOT_S:g} s: {said or 'QEMU says nothing'}")

    # Its beginning.

    def _up(self) -> None:
        huge = sum(kind.memory_mb for kind in self._kinds if kind.memory != "memfd")
        self._pages = ensure_hugepages(2 * self.switch_mb + huge + _SPARE_MB, self._system)
        for directory in (self.vhost_dir, self.layout.guest_dir):
            directory.mkdir()
        self._space = self._make_space()
        stock_network.make(self.space, _VLANS.get(self.kind))
        self._install()
        self.start_database()
        self._configure()
        self.start_switch()
        if self.kind == "ovn":
            stock_ovn.program(self)
        elif self.kind == "neutron":
            stock_neutron_tables.program(self)
        elif self.kind == "neutron-agent":
            stock_neutron.program(self)
        else:
            self._make_bridge()
        self._start_guests()

    def _make_space(self) -> Space:
        return Space(self.directory, self._system, self.places)

    def _start_guests(self) -> None:
        self.layout.initramfs_file.write_bytes(build(find_kernel(), self._system))
        for guest in self.running:
            self.start_guest(guest.name)
        self.wait_boots()
        self.pings.wait_flowing(_READY_S)

    def _install(self) -> None:
        """What the packages' scripts and ``ovs-ctl start`` do before the daemons (utilities/ovs-ctl.in)."""
        # `update-alternatives --set ovs-vswitchd PROGRAM`, for this host alone.
        alternatives = self.outside(ALTERNATIVES)
        shutil.copytree(ALTERNATIVES, alternatives, symlinks=True)
        (alternatives / "ovs-vswitchd").unlink()
        (alternatives / "ovs-vswitchd").symlink_to(PROGRAM)
        self.run(["mount", "--bind", str(alternatives), ALTERNATIVES])
        if not self._memif:
            self._hide_memif()
        if self.kind == "neutron-agent":
            stock_neutron.install(self)
        self.run(["mkdir", "-p", RUN_DIR])
        self.run(["ovsdb-tool", "create", DATABASE, SCHEMA])

    def _hide_memif(self) -> None:
        """Debian's packages of Open vSwitch and DPDK do not install the driver by themselves."""
        others = self.directory / "pmds"
        shutil.copytree(_drivers(), others, symlinks=True, ignore=shutil.ignore_patterns("librte_net_memif.so*"))
        self.run(["mount", "--bind", str(others), str(_drivers())])

    def install_memif(self) -> None:
        """`apt install librte-net-memif23`, on a host without it. A switch that runs does not load it."""
        self.run(["umount", str(_drivers())])

    def _configure(self) -> None:
        """The settings of the guide (Documentation/intro/install/dpdk.rst). Two switches have to share this machine's
        cores, so that idle PMD threads sleep: OVS 3.1 has the first key, later ones the second."""
        core = 1 if (os.cpu_count() or 1) > 1 else 0
        self.vsctl("--no-wait", "init")
        self.vsctl(
            "--no-wait", "set", "Open_vSwitch", ".",
            f"external_ids:system-id={CHASSIS}", f"external_ids:hostname={CHASSIS}",
            "external_ids:rundir=/var/run/openvswitch", "other_config:dpdk-init=true",
            f"other_config:dpdk-socket-mem={self.switch_mb}", f"other_config:dpdk-socket-limit={self.switch_mb}",
            'other_config:dpdk-extra="--no-pci --in-memory"',
            "other_config:dpdk-lcore-mask=0x1", f"other_config:pmd-cpu-mask={1 << core:#x}",
            "other_config:pmd-maxsleep=100", "other_config:pmd-sleep-max=100",
        )  # fmt: skip

    def _make_bridge(self) -> None:
        self.vsctl("add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev")
        self.add_uplink(BRIDGE)
        for guest in self.running:
            self._connect(guest)
        if self.kind == "pipeline":
            self._load_pipeline()

    def plug(self, name: str) -> None:
        """Make the port of a guest that was left for later, as the bridge's kind wants it, and start the guest; return
        when its pings are answered."""
        self.begin_plugging(name)
        self.wait_boots()
        self.pings.wait_flowing(_READY_S)

    def begin_plugging(self, name: str) -> None:
        """Do what ``plug`` does, without waiting for the guest. os-vif makes the port first, too; libvirt's QEMU waits
        for the switch."""
        self._plugged.append(name)
        self._connect(self.guest(name))
        self.start_guest(name)

    def unplug(self, name: str) -> None:
        """End a guest, and remove its port as os-vif does."""
        self._plugged.remove(name)
        self.stop_guest(name)
        self.vsctl("del-port", BRIDGE, name)

    def _connect(self, guest: StockGuest) -> None:
        if self.kind == "ovn":
            stock_ovn.Ovn(self).add_port(guest)
            self.add_port(guest, f"external_ids:iface-id={guest.name}")
            return
        if self.kind == "neutron-agent":
            stock_neutron.Neutron(self).add_port(guest)
            return
        self.add_port(guest)
        if self.kind == "pipeline":
            self.vsctl("set", "port", guest.name, f"tag={stock_pipeline.VLAN}")

    def add_mirrors(self, count: int) -> None:
        """Add mirrors to ``BRIDGE`` that copy nothing, and take the places of wire mode's."""
        for number in range(count):
            self.vsctl("--", "--id=@new", "create", "mirror", f"name=span{number}", "--", "add", "bridge", BRIDGE,
                       "mirrors", "@new")  # fmt: skip

    def add_uplink(self, bridge: str) -> None:
        """Add the port ``UPLINK`` to the bridge."""
        self.vsctl(
            "add-port", bridge, UPLINK, "--", "set", "interface", UPLINK, "type=dpdk",
            f"options:dpdk-devargs={devargs('a')}", *self._request(UPLINK_OFPORT),
        )  # fmt: skip

    def add_port(self, guest: StockGuest, *more: str) -> None:
        """Add the guest's port to ``BRIDGE``. ``more``: further columns of the interface."""
        self.vsctl(
            "add-port", BRIDGE, guest.name, "--", "set", "interface", guest.name, "type=dpdkvhostuserclient",
            f"options:vhost-server-path={guest.socket}", *self._request(guest.layout.ofport), *more,
        )  # fmt: skip

    def _request(self, ofport: int) -> list[str]:
        """Only those who write flows by hand ask for numbers of ports; os-vif and OVN do not."""
        return [f"ofport_request={ofport}"] if self.kind == "pipeline" else []

    def _load_pipeline(self) -> None:
        for meter in stock_pipeline.METERS:
            self.ofctl("add-meter", BRIDGE, meter)
        for group in stock_pipeline.GROUPS:
            self.ofctl("add-group", BRIDGE, group)
        flows = stock_pipeline.flows([guest.layout.ofport for guest in self.guests], UPLINK_OFPORT)
        file = self.directory / "pipeline.flows"
        file.write_text("".join(f"{flow}\n" for flow in flows))
        self.ofctl("replace-flows", BRIDGE, str(file))
