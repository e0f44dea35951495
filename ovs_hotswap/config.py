"""The configuration: its keys and their values. All paths are absolute. ``config_file`` reads it; every other module
takes the frozen ``Config``."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.model import RELEASE_NAME, Side
from ovs_hotswap.toml_file import Strict
from ovs_hotswap.vhostuser.messages import Feature

DEFAULT_PATH = Path("/etc/ovs-hotswap/config.toml")
SUN_PATH_MAX = 107  # bytes of a unix socket's path, without the final NUL (unix(7))
_DEVICE_BYTES = 15  # IFNAMSIZ less the final NUL (include/uapi/linux/if.h)
DEFAULT_RUN_DIR = Path("/run/ovs-hotswap")
OWN_NAMES = (
    *Side, "vhost", "active", "peer.sock", "upgrade.lock", "broker.sock", "successor.sock", "broker.lock", "broker.pid",
    "broker.log", "supervisor.pid", "quarantine.json", "standby.json", "watch.json", "watch.lock",
    *(f"{kind}-{side}.json" for kind in ("order", "fault") for side in Side),
)  # fmt: skip
"""Names in ``run_dir`` that are ovs-hotswap's own."""
RENAMED = {"road": "backend"}
"""Keys by their earlier names, which are read for one release."""


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


def _device_name(value: str) -> str:
    """The name, if a network device can have it (net/core/dev.c, dev_valid_name; ip-link(8) takes what begins with a
    dash for an option, and the kernel counts where % stands)."""
    if value in ("", ".", "..") or len(value.encode()) > _DEVICE_BYTES:
        raise ValueError(f"must be the name of a network device, of 1 to {_DEVICE_BYTES} bytes")
    if value.startswith("-") or any(
        letter in "/:%" or letter.isspace() or not letter.isprintable() for letter in value
    ):
        raise ValueError("must be the name of a network device: no leading dash, no /, :, %, no space")
    return value


DeviceName = Annotated[str, AfterValidator(_device_name)]


OWN_KEYS: Mapping[str, str] = {
    "dpdk-init": "no instance runs without DPDK",
    "dpdk-socket-mem": "set memory_mb",
    "dpdk-socket-limit": "set memory_mb",
    "dpdk-alloc-mem": "set memory_mb",
    "shared-mempool-config": "memory_mb is reckoned with it",
    "dpdk-extra": "set dpdk_extra",
    "pmd-cpu-mask": "set pmd_cores",
    "pmd-maxsleep": "set pmd_sleep_us",
    "pmd-sleep-max": "set pmd_sleep_us",
    "vlan-limit": "the flow tables need 1",
    "flow-restore-wait": "an instance would wait indefinitely before it forwards",
}
"""Keys of Open_vSwitch.other_config that ovs-hotswap writes, and what to do instead of setting one."""


def _settings(value: object) -> object:
    """Values as the database has them, all of them text: ``true`` and ``4`` may be written without quotes."""
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


OtherConfig = Annotated[dict[str, str], BeforeValidator(_settings)]


class InstanceConfig(Strict):
    """One of the two instances.

    ``pmd_cores``: cores of its PMD threads. ``memory_mb``: the most huge page memory, in MiB, that it may take on a
    NUMA node, packet pool included; it takes what ``switch.memory.reserve`` says it needs. ``uplink_devargs``: DPDK
    device of its VF (``0000:03:02.0`` or ``eth_af_packet0,iface=vf-a``). ``uplink_device``: a kernel network device
    that is moved into the instance's namespace before its start and back after its end; not given where DPDK drives the
    VF. ``pmd_sleep_us``: longest sleep of an idle PMD thread in normal operation; 0 polls without a pause.
    ``other_config``: more keys of Open_vSwitch.other_config, set before its ovs-vswitchd starts.
    """

    pmd_cores: Annotated[list[Core], Field(min_length=1), AfterValidator(_once)]
    memory_mb: Annotated[int, Field(ge=64, le=1 << 20)] = 512
    uplink_devargs: Annotated[str, Field(min_length=1)]
    uplink_device: DeviceName | None = None
    dpdk_extra: str = "--no-pci"
    pmd_sleep_us: Annotated[int, Field(ge=0, le=10_000)] = 0
    other_config: OtherConfig = Field(default_factory=dict)


class InstancesConfig(Strict):
    """``other_config`` is of both; a key that an instance has as well is the instance's."""

    other_config: OtherConfig = Field(default_factory=dict)
    a: InstanceConfig
    b: InstanceConfig


class BrokerConfig(Strict):
    """``qemu_socket``: path of a VM's vhost-user socket, on which its QEMU listens; ``{vm}`` is the VM's name.

    ``fence_ms``: how long a switch may take to confirm that it has released, or taken, a VM's rings.
    ``capture_mb``: MiB of memory, at the most, for frames that arrive for VMs while those are moved.
    ``withhold_features``: virtio features that no VM which starts from now on is offered, such as ``NET_CSUM``. A guest
    that uses a feature of a newer release only cannot go back to the older one.
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
    """For the back-end mode ``qemu-dual``, in which each QEMU has a connection to either instance.

    ``monitor``: a VM's QMP socket, one that is for ovs-hotswap alone. ``socket``: where its QEMU listens for the switch
    of a side: that of the netdev's ``chardev`` for a, of its ``standby-chardev`` for b; below ``run_dir``, which is all
    of the host that an instance of another release sees. ``netdev``: the netdev's id, to be given where a QEMU has
    several. ``{vm}`` is the VM's name, ``{side}`` is ``a`` or ``b``.
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


class UplinkConfig(Strict):
    """How overlay traffic reaches the active instance.

    ``tc``: UDP to port 4789 of the VTEP, arriving on ``device``, is redirected to the representor of the active
    instance's VF (``representor_a`` / ``representor_b``). ``none``: something else steers it.
    ``namespace``: the network namespace of ``device``, where it is not the host's own.
    """

    driver: Literal["tc", "none"] = "none"
    device: DeviceName | None = None
    representor_a: DeviceName | None = None
    representor_b: DeviceName | None = None
    namespace: str | None = None

    @model_validator(mode="after")
    def _tc_needs(self) -> UplinkConfig:
        missing = [key for key in ("device", "representor_a", "representor_b") if getattr(self, key) is None]
        if self.driver == "tc" and missing:
            raise ValueError(f'driver "tc" needs {", ".join(missing)}')
        return self

    def representor(self, side: Side) -> str | None:
        return self.representor_a if side is Side.A else self.representor_b


class UpgradeConfig(Strict):
    """``pmd_sleep_us``: longest sleep of an idle PMD while two instances share the machine. ``soak_s``: how long the
    moved VMs are watched before the old instance is given up. ``keep_old``: leave the old instance running after."""

    pmd_sleep_us: Annotated[int, Field(ge=0, le=10_000)] = 100
    soak_s: Annotated[float, Field(ge=0, le=86_400)] = 5.0
    ready_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    keep_old: bool = False


class WatchConfig(Strict):
    """What `ovs-hotswap watch` does.

    ``mode``: ``off``, ``automatic`` (keep a standby where that is possible), or ``required`` (a host without one is in
    error). ``check_ms``: time between two looks at the active instance. ``hang_ms``: within it a stopped active
    instance is replaced, and for that long a PMD thread may stand still. ``main_ms``: how long its main thread may be
    silent, during which packets are forwarded. ``release``: what the standby runs, if not what the active one does.
    ``crash_limit`` failures of instances within ``crash_window_s`` end the starting of new ones.
    """

    mode: Literal["required", "automatic", "off"] = "automatic"
    check_ms: Annotated[int, Field(ge=10, le=1000)] = 50
    hang_ms: Annotated[int, Field(ge=200, le=60_000)] = 500
    main_ms: Annotated[int, Field(ge=1000, le=600_000)] = 10_000
    release: Annotated[str, Field(pattern=RELEASE_NAME)] | None = None
    crash_limit: Annotated[int, Field(ge=1, le=100)] = 5
    crash_window_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0


class Config(Strict):
    """The whole file. ``overlay`` is the path of the overlay intent."""

    overlay: AbsolutePath
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

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, data: object) -> object:
        """Read what a process of an earlier version hands to this one, too, such as an order to start an instance."""
        if not isinstance(data, dict):
            return data
        return {RENAMED.get(key, key): value for key, value in data.items()}

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
    def _reachable(self) -> Self:
        if self.backend is BackendMode.QEMU_DUAL and not Path(self.qemu.socket).is_relative_to(self.run_dir):
            raise ValueError(
                f"qemu.socket must be below run_dir ({self.run_dir}): instances see nothing else of the host"
            )
        return self

    def instance(self, side: Side) -> InstanceConfig:
        return self.instances.a if side is Side.A else self.instances.b

    def other_config(self, side: Side) -> dict[str, str]:
        """What an instance has in Open_vSwitch.other_config besides what ovs-hotswap writes there."""
        return {**self.instances.other_config, **self.instance(side).other_config}

    def side_dir(self, side: Side) -> Path:
        """Run directory of one instance."""
        return self.run_dir / side.value

    def namespace(self, side: Side) -> str:
        """Network namespace of one instance; two configurations with different run directories never share one."""
        if self.run_dir == DEFAULT_RUN_DIR:
            return f"ovsh-{side}"
        return f"ovsh-{hashlib.sha1(bytes(self.run_dir)).hexdigest()[:8]}-{side}"

    def vhost_socket(self, side: Side, vm: str) -> Path:
        """Where the broker, or a VM's QEMU that has no broker, listens for one instance's port of the VM."""
        if self.backend is BackendMode.QEMU_DUAL:
            return Path(self.qemu.socket.replace("{vm}", vm).replace("{side}", side))
        return self.run_dir / "vhost" / side.value / f"{vm}.sock"

    def qemu_socket(self, vm: str) -> Path:
        """Where the VM's QEMU listens for its switch."""
        return Path(self.broker.qemu_socket.replace("{vm}", vm))

    def monitor_socket(self, vm: str) -> Path:
        """Where the VM's QEMU answers QMP in the back-end mode ``qemu-dual``."""
        return Path(self.qemu.monitor.replace("{vm}", vm))

    def front_end(self, vm: str) -> Path:
        """Where to look for the VM's QEMU in the configured back-end mode."""
        return self.monitor_socket(vm) if self.backend is BackendMode.QEMU_DUAL else self.qemu_socket(vm)

    def sockets_of(self, vm: str) -> list[Path]:
        """Every socket that there is for a VM."""
        return [self.front_end(vm), *(self.vhost_socket(side, vm) for side in Side)]

    @property
    def own_paths(self) -> list[Path]:
        """What ovs-hotswap has in ``run_dir`` itself, where no VM's socket may be."""
        return [self.run_dir / name for name in OWN_NAMES]

    @property
    def broker_socket(self) -> Path:
        return self.run_dir / "broker.sock"

    @property
    def successor_socket(self) -> Path:
        """Where a running broker waits for its successor (mode 0600)."""
        return self.run_dir / "successor.sock"

    @property
    def active_file(self) -> Path:
        """Holds the name of the side that is active; written when an upgrade commits."""
        return self.run_dir / "active"

    @property
    def restore_file(self) -> Path:
        """The active side and its release, for the next boot: all of ``run_dir`` is gone then."""
        return self.state_dir / "active.json"

    @property
    def releases_dir(self) -> Path:
        return self.state_dir / "releases"


class Active(Strict, extra="ignore"):
    """What is started after the next boot: the side that was active last, and the name of its release."""

    side: Side
    release: str


def read_active(config: Config) -> Side | None:
    """The side that was active when that was last recorded; ``None`` if it was not. Where the record of this boot is
    damaged, what is kept for the next one tells. Raises OSError."""
    try:
        return Side(config.active_file.read_text().strip())
    except FileNotFoundError:
        return None
    except (IsADirectoryError, ValueError):
        kept = read_kept(config)
        return None if kept is None else kept.side


def read_kept(config: Config) -> Active | None:
    """What is started after the next boot; ``None`` if nothing is, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return Active.model_validate_json(config.restore_file.read_text())
    return None
