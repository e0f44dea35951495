"""The configuration: its keys and the values that each may have. All paths are absolute.

``config_file`` reads it; every other module takes the frozen ``Config``.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.config_flowlog import FlowLogConfig
from ovs_hotswap.config_uplink import DeviceName, UplinkConfig
from ovs_hotswap.mac import Mac
from ovs_hotswap.model import RELEASE_NAME, Side
from ovs_hotswap.toml_file import Strict
from ovs_hotswap.vhostuser.messages import Feature

DEFAULT_PATH = Path("/etc/ovs-hotswap/config.toml")
SUN_PATH_MAX = 107  # bytes of a Unix socket's path, without the final NUL (unix(7))
KEPT = ".ovs-hotswap"
DEFAULT_RUN_DIR = Path("/run/ovs-hotswap")
DEFAULT_OVERLAY = Path("/etc/ovs-hotswap/overlay.toml")
OWN_NAMES = (
    *Side, "vhost", "active", "peer.sock", "upgrade.lock", "broker.sock", "successor.sock", "broker.lock", "broker.pid",
    "broker.log", "supervisor.pid", "quarantine.json", "standby.json", "watch.json", "watch.lock",
    "announced.json", "jobs", "stock.json", "metrics.json", "metrics.lock", "flowlog.json",
    "flowlog-templates.json", "flowlog.lock",
    *(f"{kind}-{side}.json" for kind in ("order", "fault", "flows") for side in Side),
)  # fmt: skip
"""Names in ``run_dir`` that ovs-hotswap itself uses."""
RENAMED = {"road": "backend"}
"""The present name of each key by its earlier name, which is read for one release."""


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError(f"must be an absolute path, not {str(value)!r}")
    return value


def _pattern(value: str, *names: str) -> str:
    for name in names:
        if name not in value:
            raise ValueError(f"must contain {name}, which stands for the {_STANDS_FOR[name]}")
    _absolute(Path(value))
    return value


_STANDS_FOR = {"{vm}": "VM's name", "{side}": "side, a or b"}
AbsolutePath = Annotated[Path, Field(strict=False)]
Core = Annotated[int, Field(ge=0, le=1023)]


OWN_KEYS: Mapping[str, str] = {
    "dpdk-init": "no instance runs without DPDK",
    "dpdk-socket-mem": "set memory_mb",
    "dpdk-socket-limit": "set memory_mb",
    "dpdk-alloc-mem": "set memory_mb",
    "shared-mempool-config": "memory_mb is computed with it",
    "dpdk-extra": "set dpdk_extra",
    "pmd-cpu-mask": "set pmd_cores",
    "pmd-maxsleep": "set pmd_sleep_us",
    "pmd-sleep-max": "set pmd_sleep_us",
    "vlan-limit": "the flow tables need 1",
    "flow-restore-wait": "an instance would wait indefinitely before it forwards",
}
"""Keys of Open_vSwitch.other_config that ovs-hotswap writes, and what to do instead of setting one."""


def _settings(value: object) -> object:
    """Return values as text, as the database has them: ``true`` and ``4`` may be written without quotes."""
    if not isinstance(value, dict):
        return value
    ours = [f"{key} is written by ovs-hotswap itself: {OWN_KEYS[key]}" for key in value if key in OWN_KEYS]
    ours += ["a key may not be empty"] if "" in value else []
    if ours:
        raise ValueError("; ".join(ours))
    return {
        key: str(held).lower() if isinstance(held, bool) else str(held) if isinstance(held, int) else held
        for key, held in value.items()
    }


def _once(value: list[int]) -> list[int]:
    if twice := sorted({core for core in value if value.count(core) > 1}):
        raise ValueError(f"a core has one PMD thread: {', '.join(map(str, twice))} is given more than once")
    return value


def _without_uplink(instances: object) -> object:
    """Return the table ``instances`` of a host that others program, where ``uplink_devargs`` is not used."""
    if not isinstance(instances, dict):
        return instances
    return {key: {"uplink_devargs": "none", **value} if key in set(Side) and isinstance(value, dict) else value
            for key, value in instances.items()}  # fmt: skip


OtherConfig = Annotated[dict[str, str], BeforeValidator(_settings)]


class InstanceConfig(Strict):
    """The settings of one of the two instances.

    ``pmd_cores``: the cores of its PMD threads. ``memory_mb``: the most huge page memory, in MiB, that it may take on a
    NUMA node, packet pool included; it takes what ``switch.memory.reserve`` says that it needs. ``uplink_devargs``: the
    DPDK device of its VF (``0000:03:02.0`` or ``eth_af_packet0,iface=vf-a``). ``uplink_device``: a kernel network
    device that is moved into the instance's namespace before its start and back after its end; not given if DPDK drives
    the VF. ``uplink_mac``: the MAC of its VF, if each instance has the VTEP's address on a MAC of its own (drivers
    ``announce`` and ``none``); otherwise both have the VTEP's. ``second_devargs`` and ``second_device``: the device of
    a second NIC. ``port_devices``: on a host that others program, the DPDK device of each port of type ``dpdk``, by the
    port's name, in place of the keys before. ``dpdk_extra``: more arguments of DPDK; for a PCI device of the uplink,
    ``-a`` with it takes the place of ``--no-pci`` (``switch.devargs``). ``pmd_sleep_us``: the longest sleep, in
    microseconds, of an idle PMD thread in normal operation; 0 polls without a pause. ``other_config``: more keys of
    Open_vSwitch.other_config, set before its ovs-vswitchd starts.
    """

    pmd_cores: Annotated[list[Core], Field(min_length=1), AfterValidator(_once)]
    memory_mb: Annotated[int, Field(ge=64, le=1 << 20)] = 512
    uplink_devargs: Annotated[str, Field(min_length=1)]
    uplink_device: DeviceName | None = None
    uplink_mac: Mac | None = None
    second_devargs: Annotated[str, Field(min_length=1)] | None = None
    second_device: DeviceName | None = None
    port_devices: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    dpdk_extra: str = "--no-pci"
    pmd_sleep_us: Annotated[int, Field(ge=0, le=10_000)] = 0
    other_config: OtherConfig = Field(default_factory=dict)

    @property
    def devices(self) -> tuple[str, ...]:
        """The DPDK devices of the uplink: one for each NIC."""
        if self.port_devices:
            return tuple(self.port_devices.values())
        return (self.uplink_devargs,) if self.second_devargs is None else (self.uplink_devargs, self.second_devargs)


class InstancesConfig(Strict):
    """The settings of both instances. ``other_config`` applies to both, unless an instance has the same key itself."""

    other_config: OtherConfig = Field(default_factory=dict)
    a: InstanceConfig
    b: InstanceConfig


class BrokerConfig(Strict):
    """The settings of the broker.

    ``qemu_socket``: the path of a VM's vhost-user socket, on which its QEMU listens; ``{vm}`` is the VM's name.
    ``fence_ms``: how long, in milliseconds, a switch may take to confirm that it has released, or taken, a VM's rings.
    ``capture_mb``: the most memory, in MiB, for frames that arrive for VMs while these are moved.
    ``withhold_features``: virtio features, such as ``NET_CSUM``, that are not offered to VMs that start from now on. A
    guest that uses a feature which only a newer release has cannot return to the older release.
    """

    qemu_socket: str = "/run/ovs-hotswap/vm/{vm}.sock"
    group: Annotated[str, Field(min_length=1)] | None = None
    fence_ms: Annotated[int, Field(ge=10, le=10_000)] = 500
    capture_mb: Annotated[int, Field(ge=64, le=1 << 20)] = 512
    withhold_features: list[str] = Field(default_factory=list)

    @field_validator("withhold_features")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in Feature.__members__:
                raise ValueError(f"no feature {name!r}; there are {', '.join(Feature.__members__)}")
        return value

    @property
    def withheld(self) -> int:
        """The withheld features as a bit mask."""
        return sum(1 << Feature[name] for name in set(self.withhold_features))

    @field_validator("qemu_socket")
    @classmethod
    def _has_vm(cls, value: str) -> str:
        return _pattern(value, "{vm}")


class QemuConfig(Strict):
    """The settings for the back-end mode ``qemu-dual``, in which each QEMU has a connection to each instance.

    ``monitor``: a VM's QMP socket, which only ovs-hotswap uses. ``socket``: where its QEMU listens for the switch of a
    side, with the netdev's ``chardev`` for side a and its ``standby-chardev`` for side b; the path is below
    ``run_dir``, because an instance of another release sees nothing else of the host. ``netdev``: the netdev's id, to
    be given if a QEMU has several. ``{vm}`` is the VM's name, ``{side}`` is ``a`` or ``b``.
    """

    monitor: str = "/run/ovs-hotswap/vm/{vm}.qmp"
    socket: str = "/run/ovs-hotswap/vm/{vm}.{side}.sock"
    netdev: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("monitor")
    @classmethod
    def _has_vm(cls, value: str) -> str:
        return _pattern(value, "{vm}")

    @field_validator("socket")
    @classmethod
    def _has_vm_and_side(cls, value: str) -> str:
        return _pattern(value, "{vm}", "{side}")


class UpgradeConfig(Strict):
    """The settings of an upgrade.

    ``pmd_sleep_us``: the longest sleep, in microseconds, of an idle PMD thread while two instances share the machine.
    ``soak_s``: how many seconds the moved VMs are watched before the commit. ``keep_old``: leave the old instance
    running after the upgrade.
    """

    pmd_sleep_us: Annotated[int, Field(ge=0, le=10_000)] = 100
    soak_s: Annotated[float, Field(ge=0, le=86_400)] = 5.0
    ready_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    keep_old: bool = False


NO_STANDBY = ("restart", "off")
"""Modes of the watchdog in which it keeps no standby."""


class WatchConfig(Strict):
    """The settings of `ovs-hotswap watch`.

    ``mode``: ``off``, ``automatic`` (keep a standby if that is possible), ``required`` (a host without a standby is in
    error), or ``restart`` (keep none, and start the active instance again when it ends). ``check_ms``: the time between
    two looks at the active instance. ``hang_ms``: the time within which a stopped active instance is replaced, and for
    which a PMD thread may stand still. ``main_ms``: how long the main thread may be silent; packets are still forwarded
    then. ``release``: the release of the standby, if it is not that
    of the active instance. ``crash_limit``: after so many failures of instances within ``crash_window_s`` seconds, no
    standby is started any longer.
    """

    mode: Literal["required", "automatic", "restart", "off"] = "automatic"
    check_ms: Annotated[int, Field(ge=10, le=1000)] = 50
    hang_ms: Annotated[int, Field(ge=200, le=60_000)] = 500
    main_ms: Annotated[int, Field(ge=1000, le=600_000)] = 10_000
    release: Annotated[str, Field(pattern=RELEASE_NAME)] | None = None
    crash_limit: Annotated[int, Field(ge=1, le=100)] = 5
    crash_window_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0

    @property
    def keeps_standby(self) -> bool:
        return self.mode not in NO_STANDBY


class Program(enum.StrEnum):
    """Who programs the bridges. ``OVERLAY``: ovs-hotswap does, from the overlay intent. ``CLONE``: others do, such as
    OVN, Neutron or scripts; the new instance becomes a copy of the active one."""

    OVERLAY = "overlay"
    CLONE = "clone"


class StockConfig(Strict):
    """Where the switch of the distribution keeps its files. With ``program = "clone"`` it is the first active instance.

    ``run_dir``: the well-known directory with ``db.sock``, ``*.mgmt``, ``*.ctl`` and the pid files, which always leads
    to the active instance. ``database``: the file of its ovsdb-server. ``log``: that of its ovs-vswitchd. ``unit``: the
    unit of systemd that starts it.
    """

    run_dir: AbsolutePath = Path("/run/openvswitch")
    database: AbsolutePath = Path("/etc/openvswitch/conf.db")
    log: AbsolutePath = Path("/var/log/openvswitch/ovs-vswitchd.log")
    unit: Annotated[str, Field(min_length=1)] = "openvswitch-switch"

    @property
    def kept_dir(self) -> Path:
        """The directory in ``run_dir`` that has the distribution's own sockets and pid files under their own names,
        also while those in ``run_dir`` lead to another instance (``controllers.well_known``)."""
        return self.run_dir / KEPT


class Config(Strict):
    """The whole configuration file. ``overlay`` is the path of the overlay intent, if ``program`` is ``overlay``."""

    overlay: AbsolutePath
    program: Annotated[Program, Field(strict=False)] = Program.OVERLAY
    stock: StockConfig = StockConfig()
    run_dir: AbsolutePath = DEFAULT_RUN_DIR
    state_dir: AbsolutePath = Path("/var/lib/ovs-hotswap")
    bridge: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,15}$")] = "br0"
    backend: Annotated[BackendMode, Field(strict=False)] = BackendMode.BROKER
    broker: BrokerConfig = BrokerConfig()
    qemu: QemuConfig = QemuConfig()
    instances: InstancesConfig
    uplink: UplinkConfig = UplinkConfig()
    upgrade: UpgradeConfig = UpgradeConfig()
    watch: WatchConfig = WatchConfig()
    flowlog: FlowLogConfig = FlowLogConfig()

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, data: object) -> object:
        """Accept keys by their earlier names also from another process, such as in an order to start an instance. A
        host that others program needs no intent."""
        if not isinstance(data, dict):
            return data
        named: dict[object, object] = {RENAMED.get(key, key): value for key, value in data.items()}
        if named.get("program") == Program.CLONE:
            named.setdefault("overlay", str(DEFAULT_OVERLAY))
            named["instances"] = _without_uplink(named.get("instances"))
            watch = named.get("watch", {})
            named["watch"] = {"mode": "restart", **watch} if isinstance(watch, dict) else watch
        return named

    @field_validator("overlay", "run_dir", "state_dir")
    @classmethod
    def _paths(cls, value: Path) -> Path:
        return _absolute(value)

    @field_validator("run_dir")
    @classmethod
    def _fits_sockets(cls, value: Path) -> Path:
        longest = f"{value}/vhost/a/{'v' * 15}.sock"
        if len(longest.encode()) > SUN_PATH_MAX:
            raise ValueError(f"too long: a socket below it must stay within {SUN_PATH_MAX} bytes")
        return value

    @model_validator(mode="after")
    def _fits_program(self) -> Self:
        if self.program is not Program.CLONE:
            return self
        if self.uplink.driver != "none":
            raise ValueError(f'uplink.driver: "{self.uplink.driver}" steers tunnels of ovs-hotswap; with program = '
                             '"clone" it must be "none": each instance has the devices of port_devices')  # fmt: skip
        if self.backend is not BackendMode.BROKER:
            raise ValueError('backend: with program = "clone" it must be "broker"')
        if self.watch.keeps_standby:
            raise ValueError('watch.mode: with program = "clone" it must be "restart" or "off": no standby is kept')
        if self.flowlog.on:
            raise ValueError('flowlog.collectors: with program = "clone" there may be none: the bridges export what '
                             "those who program them say, and the new instance exports the same")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.backend is BackendMode.QEMU_DUAL and not Path(self.qemu.socket).is_relative_to(self.run_dir):
            raise ValueError(
                f"qemu.socket must be below run_dir ({self.run_dir}): instances see nothing else of the host"
            )
        return self

    def instance(self, side: Side) -> InstanceConfig:
        return self.instances.a if side is Side.A else self.instances.b

    def other_config(self, side: Side) -> dict[str, str]:
        """Return what an instance has in Open_vSwitch.other_config besides what ovs-hotswap writes there."""
        return {**self.instances.other_config, **self.instance(side).other_config}

    def side_dir(self, side: Side) -> Path:
        """Return the run directory of one instance."""
        return self.run_dir / side.value

    def namespace(self, side: Side) -> str:
        """Return the network namespace of one instance; empty is the host's own, in which a host's controllers and
        daemons expect its switch. Configurations with different run directories share none."""
        if self.program is Program.CLONE:
            return ""
        if self.run_dir == DEFAULT_RUN_DIR:
            return f"ovsh-{side}"
        return f"ovsh-{hashlib.sha1(bytes(self.run_dir)).hexdigest()[:8]}-{side}"

    def vhost_socket(self, side: Side, vm: str) -> Path:
        """Return where the broker, or without a broker the VM's QEMU, listens for one instance's port of the VM."""
        if self.backend is BackendMode.QEMU_DUAL:
            return Path(self.qemu.socket.replace("{vm}", vm).replace("{side}", side))
        return self.run_dir / "vhost" / side.value / f"{vm}.sock"

    def qemu_socket(self, vm: str) -> Path:
        """Return where the VM's QEMU listens for its switch, which is the broker."""
        return Path(self.broker.qemu_socket.replace("{vm}", vm))

    def monitor_socket(self, vm: str) -> Path:
        """Return where the VM's QEMU answers QMP in the back-end mode ``qemu-dual``."""
        return Path(self.qemu.monitor.replace("{vm}", vm))

    def front_end(self, vm: str) -> Path:
        """Return the socket of the VM's QEMU that exists in the configured back-end mode."""
        return self.monitor_socket(vm) if self.backend is BackendMode.QEMU_DUAL else self.qemu_socket(vm)

    def sockets_of(self, vm: str) -> list[Path]:
        """Return the path of every socket that exists for a VM."""
        return [self.front_end(vm), *(self.vhost_socket(side, vm) for side in Side)]

    @property
    def own_paths(self) -> list[Path]:
        """The paths directly in ``run_dir`` that ovs-hotswap itself uses, where no VM's socket may be."""
        return [self.run_dir / name for name in OWN_NAMES]

    @property
    def broker_socket(self) -> Path:
        return self.run_dir / "broker.sock"

    @property
    def successor_socket(self) -> Path:
        """The socket on which a running broker waits for its successor (mode 0600)."""
        return self.run_dir / "successor.sock"

    @property
    def active_file(self) -> Path:
        """The file with the name of the active side, for this boot. An upgrade writes it when it commits."""
        return self.run_dir / "active"

    @property
    def announced_file(self) -> Path:
        """The file with the side that was last announced as the one with the VTEP's address, for this boot."""
        return self.run_dir / "announced.json"

    @property
    def restore_file(self) -> Path:
        """The file with the active side and its release, for the next boot, after which ``run_dir`` is empty."""
        return self.state_dir / "active.json"

    def database_file(self, side: Side) -> Path:
        """Return the file of an instance's database. On a host that others program it outlives a boot, because nothing
        else knows what they have written there."""
        if self.program is Program.CLONE:
            return self.state_dir / "databases" / f"{side}.db"
        return self.side_dir(side) / "conf.db"

    def flows_file(self, side: Side) -> Path:
        """The file with what others have programmed on an instance, for when it is started again in this boot."""
        return self.run_dir / f"flows-{side}.json"

    @property
    def stock_file(self) -> Path:
        """The record of the distribution's switch while it is one of the two instances (``switch.stock_instance``)."""
        return self.run_dir / "stock.json"

    @property
    def ports_file(self) -> Path:
        """The file with the VMs' ports of a host that others program (``vm_ports``)."""
        return self.state_dir / "ports.json"

    @property
    def releases_dir(self) -> Path:
        return self.state_dir / "releases"


class Active(Strict, extra="ignore"):
    """What is started after the next boot: the side that was active last, with the name of its release."""

    side: Side
    release: str


def read_active(config: Config) -> Side | None:
    """Return the side that is recorded as active, or ``None`` if there is no record. Raises OSError.

    If the record of this boot is damaged, the record for the next boot is read instead.
    """
    try:
        return Side(config.active_file.read_text().strip())
    except FileNotFoundError:
        return None
    except (IsADirectoryError, ValueError):
        kept = read_kept(config)
        return None if kept is None else kept.side


def read_kept(config: Config) -> Active | None:
    """Return what is started after the next boot, or ``None`` if nothing is recorded or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return Active.model_validate_json(config.restore_file.read_text())
    return None
