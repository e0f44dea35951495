"""The kernel device that an instance's uplink uses, which is in the instance's network namespace while it is used."""

from __future__ import annotations

from dataclasses import dataclass

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Device, Side
from ovs_hotswap.switch.netns import Namespaces
from ovs_hotswap.switch.paths import InstancePaths, InstanceRecord, read_record
from ovs_hotswap.system import System


@dataclass(frozen=True, slots=True)
class UplinkDevice:
    """The device of one side. An uplink may have none: then both methods do nothing. They raise SwitchError."""

    config: Config
    side: Side
    system: System
    namespaces: Namespaces
    paths: InstancePaths

    def take(self, record: InstanceRecord | None = None) -> None:
        """Move the device into the instance's namespace, unless it is there, and write to the instance's record how it
        was before. ``record``: the record, if the caller has it."""
        name, origin = self.config.instance(self.side).uplink_device, self.config.uplink.namespace
        if name is None:
            return
        record = record or read_record(self.paths.record)
        if record is None:
            raise SwitchError(f"instance {self.side} does not run", hint=f"`ovs-hotswap instance start {self.side}`")
        device = self.namespaces.look(name, origin)
        if device is None and self.namespaces.look(name, self.paths.netns) is not None:
            return
        if device is None:
            where = f"network namespace {origin}" if origin else "the host's network namespace"
            raise SwitchError(
                f"instance {self.side}: there is no network device {name} in {where}",
                hint=f"correct instances.{self.side}.uplink_device",
            )
        record = record.model_copy(update={"uplink": device})
        self.system.write_atomic(self.paths.record, record.model_dump_json())
        # Where the switch owns the whole NIC, ARP for the VTEP arrives on it, and is the bridge's to answer.
        self.namespaces.move_in(device, self.paths.netns, quiet=not self.config.uplink.both_open)

    def give_back(self) -> None:
        """Move the device back to where it was, if the instance has it."""
        record, name = read_record(self.paths.record), self.config.instance(self.side).uplink_device
        device = record.uplink if record else None
        if device is None and name is not None:
            device = Device(name, self.config.uplink.namespace, up=True)
        if device is not None:
            self.namespaces.move_back(device, self.paths.netns)
