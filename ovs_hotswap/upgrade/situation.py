"""What an upgrade works on, and which of its two instances can still serve."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from ovs_hotswap.errors import BrokerError
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance
from ovs_hotswap.host.standby import Document, lacks_uplink, owned
from ovs_hotswap.model import Side
from ovs_hotswap.switch.instance import State

_POLL_S = 0.02


def command_without(release: str, names: Iterable[str]) -> str:
    return " ".join([f"ovs-hotswap upgrade --release {release}", *(f"--leave-out {name}" for name in sorted(names))])


@dataclass(frozen=True, slots=True)
class Upgrade:
    """``old`` serves the VMs when it begins, ``new`` shall run ``release``. VMs in ``leave_out`` stay on ``old``
    until it ends; only then ``new`` is given them."""

    host: Host
    old: Side
    new: Side
    release: str
    keep_old: bool = False
    leave_out: frozenset[str] = frozenset()

    def vms(self) -> list[Document]:
        """The VMs to be moved: also not those that were put in quarantine since it began."""
        vms = self.host.backends.vms(read=False)
        return [vm for vm in vms if vm["name"] not in self.leave_out and not vm.get("quarantine")]

    def without(self, names: Iterable[str] = ("VM",)) -> str:
        """The command that goes on without some VMs."""
        return f"mend that, or go on without: `{command_without(self.release, [*self.leave_out, *names])}`"

    def runs(self, side: Side) -> bool:
        return self.host.instances[side].status().state is State.RUNNING

    def dead(self, side: Side) -> bool:
        return self.host.instances[side].pid() is None

    @property
    def living(self) -> list[Side]:
        """The instances to work on: the new one, and the old one unless it died."""
        return [self.new] if self.lost else [self.new, self.old]

    @property
    def lost(self) -> str:
        """Why the old instance is nothing to go back to: it died and the new one runs. Empty if it is."""
        return f"instance {self.old} died" if self.dead(self.old) and not self.dead(self.new) else ""

    def lost_for_good(self) -> str:
        """The same for whoever is about to go back. An old instance that stands still, or has hung up on a VM, may be
        about to end, by itself or by the watchdog: that is waited for, for twice the time the watchdog needs."""
        system = self.host.system
        end = system.monotonic() + 2 * self.host.config.watch.hang_ms / 1e3
        while self._falters() and system.monotonic() < end:
            system.sleep(_POLL_S)
        return self.lost

    def _falters(self) -> bool:
        pid = self.host.instances[self.old].pid()
        if pid is None or self.dead(self.new):
            return False
        try:
            connected = not self.host.unconnected(self.old)
        except BrokerError:
            connected = True
        return self.host.system.stopped(pid) or not connected

    @property
    def broken(self) -> str:
        """Why the new instance forwards nothing. Empty if it may."""
        pid = self.host.instances[self.new].pid()
        if pid is None:
            return f"instance {self.new} died"
        return f"instance {self.new} is stopped" if self.host.system.stopped(pid) else ""

    @property
    def failed(self) -> str:
        """Why an upgrade is given up though it is committed: the old instance lives, and the new one is broken or has
        lost the uplink, or all VMs have gone back. Empty if it is not."""
        if self.dead(self.old):
            return ""
        if self.broken:
            return self.broken
        with contextlib.suppress(BrokerError):
            vms = self.vms()
            if owned(vms, self.old) and not owned(vms, self.new):
                return f"instance {self.old} serves the VMs again"
        return lacks_uplink(self.host, self.new)

    @property
    def gone(self) -> bool:
        """Whether neither instance runs, as after a reboot: then nothing of the window is left to undo."""
        return self.dead(self.old) and self.dead(self.new)

    def revive(self) -> None:
        """Start the new instance again, where neither is left though the upgrade is committed: every VM waits for it.
        Raises ReleaseError, SwitchError, UplinkError."""
        if self.gone:
            host = self.host
            start_instance(host, self.new, host.releases.get(self.release))
            host.uplink.steer(self.new)
            host.record_active(self.new)

    @property
    def fled(self) -> bool:
        """Whether the old instance died in a roll-back and its VMs went to the new one, which must stay then."""
        return bool(self.lost) and bool(owned(self.host.backends.vms(read=False), self.new))
