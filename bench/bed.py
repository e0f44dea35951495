"""The bed of the benchmarks: the lab's network and instances and a real broker, with simulated guests."""

from __future__ import annotations

import contextlib
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.guests import FleetSpec, RemoteHost, VmSpec
from ovs_hotswap.broker.lifecycle import start_broker, stop_broker
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance
from ovs_hotswap.lab import watch
from ovs_hotswap.lab.demo import DirectHost
from ovs_hotswap.lab.lab import Lab
from ovs_hotswap.lab.layout import REMOTE_INNER_MAC, VXLAN_DEVICE
from ovs_hotswap.model import Release, Side

_BROKER_S = 20.0
# Every death is on purpose: the watchdog shall not grow weary of starting instances.
WATCH = "\n[watch]\ncrash_limit = 100\ncrash_window_s = 0.5\n"


class Bed(Lab):
    """A lab without QEMUs. ``up`` makes network and configuration, ``start`` the broker and the active instance; the
    fleet is its user's. ``down`` removes all of it.

    ``software``: a directory to adopt as the release of the instances, in place of the host's package; set before
    ``start``.
    """

    most = 255
    software: Path | None = None

    def _make_guests(self) -> None:
        """They are the fleet's."""

    def _config_text(self) -> str:
        return super()._config_text() + WATCH

    @cached_property
    def host(self) -> Host:
        return Host(self.config, self._system)

    @cached_property
    def release(self) -> Release:
        releases = self.host.releases
        return releases.get("host") if self.software is None else releases.add("given", from_directory=self.software)

    def fleet_spec(self, **changes: Any) -> FleetSpec:
        """The guests of this bed; ``changes`` are fields of ``FleetSpec``."""
        vms = tuple(VmSpec(each.name, each.mac, self.config.qemu_socket(each.name)) for each in self.layout.guests)
        remote = RemoteHost(self.layout.remote_namespace, VXLAN_DEVICE, REMOTE_INNER_MAC)
        return FleetSpec(**{"vms": vms, "pairs": self.layout.options.queues, "remote": remote, **changes})

    def start(self) -> None:
        """Start the broker, and instance a as the active one."""
        self.start_broker()
        start_instance(self.host, Side.A, self.release)

    def start_broker(self) -> None:
        """Start the broker as a service manager does. Nothing keeps its descriptors."""
        start_broker(self.config, self._system, self.layout.config_file, _BROKER_S)

    def go_direct(self) -> DirectHost:
        """End broker and instances; start instance a with ports that connect straight to the guests, as on a host of
        today."""
        stop_broker(self.config, self._system)
        for side in Side:
            self.host.instances[side].stop()
        direct = DirectHost(self.config, self._system)
        direct.instances[Side.A].start(self.release)
        direct.program(Side.A)
        direct.uplink.steer(Side.A)
        direct.record_active(Side.A)
        return direct

    def watchdog(self) -> contextlib.AbstractContextManager[int]:
        """A watchdog with a standby that is ready; its pid."""
        return watch.watchdog(self.host, self.config_path, self.layout.directory / "watch.log")

    def wait_protected(self, active: Side | None = None) -> None:
        """Return when there is a standby on which every VM is parked, beside ``active`` if given."""
        watch.wait_protected(self.host, active)
