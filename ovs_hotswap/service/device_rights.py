"""The rights that the uplink's devices need beyond those of the installed units, and the drop-ins that give them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ovs_hotswap.config import Config
from ovs_hotswap.model import Side
from ovs_hotswap.service.systemctl import Unit

_TEMPLATE = "ovs-hotswap-instance@.service"
INSTANCES = tuple(f"ovs-hotswap-instance@{side}.service" for side in Side)
BINDERS = ("ovs-hotswap-watch.service", "ovs-hotswap-restore.service")
UNITS = (*INSTANCES, *BINDERS)
_RAW = "cap_sys_rawio"
_RAW_LINES = r"CapabilityBoundingSet=CAP_SYS_RAWIO\nDeviceAllow=char-uio rw\nProtectKernelTunables=no"


@dataclass(frozen=True, slots=True)
class Lack:
    """A right that a unit does not give, and the command that gives it."""

    unit: str
    text: str
    hint: str


def lacking(config: Config, unit: Unit, *, raw: bool, bind: bool) -> Iterator[Lack]:
    """Yield what a unit of ``INSTANCES`` or ``BINDERS`` lacks. Raises CommandError.

    ``raw``: its devices have no IOMMU: vfio gives such a device only to a process with CAP_SYS_RAWIO
    (vfio_group_ioctl_get_device_fd, drivers/vfio/group.c), and UIO has its configuration space in /sys. ``bind``: the
    unit's command binds devices, which is done in /sys.
    """
    if not unit.serves(config):
        return
    if unit.name in INSTANCES and raw:
        held = unit.capabilities()
        if held and _RAW not in held:
            text = "does not give CAP_SYS_RAWIO, without which the kernel gives no device that has no IOMMU"
            yield Lack(_TEMPLATE, f"{_TEMPLATE} {text}", _drop_in(_TEMPLATE, _RAW_LINES))
    if unit.name in BINDERS and bind and unit.kernel_tunables_are_read_only():
        yield Lack(unit.name, f"{unit.name} cannot write to /sys, where VFs are bound ([uplink.vfs], bind)",
                   _drop_in(unit.name, "ProtectKernelTunables=no"))  # fmt: skip


def _drop_in(unit: str, lines: str) -> str:
    place = f"/etc/systemd/system/{unit}.d"
    return f"mkdir -p {place} && printf '[Service]\\n{lines}\\n' > {place}/devices.conf && systemctl daemon-reload"
