"""The bed of the benchmarks: the lab's network and instances and a real broker, with simulated guests."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.demo import DirectHost
from ovs_hotswap.lab.lab import INSTANCE_MB, Lab
from ovs_hotswap.lab.layout import REMOTE_INNER_MAC, VXLAN_DEVICE
from ovs_hotswap.model import Release, Side
from ovs_hotswap.upgrade import standby, watchlog
from ovs_hotswap.upgrade.host import Host, activate_first
from ovs_hotswap.vhost.service import start_broker, stop_broker
from tests.bench.guests import FleetSpec, RemoteHost, VmSpec

_BROKER_S = 20.0
_READY_S = 90.0
_POLL_S = 0.02
# Every death is on purpose: the watchdog shall not grow weary of starting instances.
_WATCH = "\n[watch]\ncrash_limit = 100\ncrash_window_s = 0.5\n"


class Bed(Lab):
    """A lab without QEMUs. ``up`` makes network and configuration, ``start`` the broker and the active instance; the
    fleet is its user's. ``down`` removes all of it."""

    most = 255

    def _make_guests(self) -> None:
        """They are the fleet's."""

    def _instance_mb(self) -> int:
        """DPDK keeps about 30 KiB for each ring of a vhost-user device, and as many mbufs as fit."""
        return INSTANCE_MB * (1 + (self.layout.count * self.layout.options.queues > 64) + (self.layout.count > 128))

    def _config_text(self) -> str:
        return super()._config_text() + _WATCH

    @cached_property
    def host(self) -> Host:
        return Host(self.config, self._system)

    @cached_property
    def release(self) -> Release:
        return self.host.releases.get("host")

    def fleet_spec(self, **changes: Any) -> FleetSpec:
        """The guests of this bed; ``changes`` are fields of ``FleetSpec``."""
        vms = tuple(VmSpec(each.name, each.mac, self.config.qemu_socket(each.name)) for each in self.layout.guests)
        remote = RemoteHost(self.layout.remote_namespace, VXLAN_DEVICE, REMOTE_INNER_MAC)
        return FleetSpec(**{"vms": vms, "pairs": self.layout.options.queues, "remote": remote, **changes})

    def start(self) -> None:
        """The broker, and instance a as the active one."""
        self.start_broker()
        self.host.instances[Side.A].start(self.release)
        self.host.program(Side.A)
        activate_first(self.host, Side.A)

    def start_broker(self) -> None:
        """As whoever keeps it running does; nothing is kept for it."""
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

    @contextlib.contextmanager
    def watchdog(self) -> Iterator[int]:
        """A watchdog with a standby that is ready; its pid."""
        log = self.layout.directory / "watch.log"
        argv = [sys.executable, "-m", "ovs_hotswap", "--config", str(self.config_path), "watch", "run"]
        pid = self._system.spawn(argv, log=log)
        try:
            self.wait_protected()
            yield pid
        finally:
            self._system.kill(pid)

    def wait_protected(self, active: Side | None = None) -> None:
        """Return when there is a standby on which every VM is parked, beside ``active`` if given."""

        def protected() -> bool:
            now, record = self.host.recorded_active(), standby.read_record(self.host)
            if now is None or (active is not None and now is not active):
                return False
            if record is None or record.side is now or not record.prepared:
                return False
            return not standby.unprotected(self.host.broker.vms(), now.other)

        self.wait(protected, _READY_S, lambda: f"no standby: {watchlog.read_state(self.config)}")

    def wait(self, true: Callable[[], bool], seconds: float, otherwise: Callable[[], str]) -> None:
        """Poll until ``true``. Raises LabError with ``otherwise`` after ``seconds``."""
        end = self._system.monotonic() + seconds
        while not true():
            if self._system.monotonic() >= end:
                raise LabError(f"{otherwise()} after {seconds:g} s")
            self._system.sleep(_POLL_S)
