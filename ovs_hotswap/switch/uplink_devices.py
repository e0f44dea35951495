"""The kernel devices that an instance's uplink uses, which are in the instance's network namespace while they are used.
There are none if DPDK drives the virtual functions itself."""

from __future__ import annotations

from dataclasses import dataclass

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Device, Side
from ovs_hotswap.switch.net_bonding import at_start
from ovs_hotswap.switch.netns import Namespaces
from ovs_hotswap.switch.paths import InstancePaths, InstanceRecord, read_record
from ovs_hotswap.system import System

_KEYS = {"uplink": "uplink_device", "second": "second_device"}  # by the record's fields


@dataclass(frozen=True, slots=True)
class UplinkDevices:
    """The devices of one side, one for each NIC. Without any, both methods do nothing. They raise SwitchError."""

    config: Config
    side: Side
    system: System
    namespaces: Namespaces
    paths: InstancePaths

    def take(self, record: InstanceRecord | None = None) -> None:
        """Move the devices into the instance's namespace, unless they are there, and write to the instance's record how
        they were before. ``record``: the record, if the caller has it."""
        if not self._names():
            return
        record = record or read_record(self.paths.record)
        if record is None:
            raise SwitchError(f"instance {self.side} does not run", hint=f"`ovs-hotswap instance start {self.side}`")
        found = self._outside()
        if not found:
            return
        record = record.model_copy(update=found)
        self.system.write_atomic(self.paths.record, record.model_dump_json())
        for device in found.values():
            self.namespaces.move_in(device, self.paths.netns)

    def give_back(self) -> None:
        """Move the devices that the instance has back to where they were. Without a record of them, all that the
        configuration names may be in its namespace."""
        record = read_record(self.paths.record)
        devices = record.devices if record else ()
        if not devices:
            devices = tuple(Device(name, self.config.uplink.namespace, up=True) for name in self._names().values())
        for device in devices:
            self.namespaces.move_back(device, self.paths.netns)

    def _names(self) -> dict[str, str]:
        """The configured devices, by the fields of InstanceRecord."""
        instance = self.config.instance(self.side)
        return {field: name for field, key in _KEYS.items() if (name := getattr(instance, key)) is not None}

    def _outside(self) -> dict[str, Device]:
        """The devices that are not in the instance's namespace yet, by the fields of InstanceRecord."""
        origin, found = self.config.uplink.namespace, {}
        for field, name in self._names().items():
            device = self.namespaces.look(name, origin)
            if device is not None:
                found[field] = device
            elif self.namespaces.look(name, self.paths.netns) is None:
                where = f"network namespace {origin}" if origin else "the host's network namespace"
                raise SwitchError(
                    f"instance {self.side}: there is no network device {name} in {where}",
                    hint=f"correct instances.{self.side}.{_KEYS[field]}",
                )
        return found


def bonded_at_start(config: Config, side: Side) -> list[str]:
    """Return the arguments of EAL that make the virtual devices of a bond of DPDK. The PCI devices have theirs from
    ``switch.devargs``, as without a bond."""
    instance = config.instance(side)
    if instance.second_devargs is None or config.uplink.bond != "dpdk":
        return []
    return at_start(instance.devices)
