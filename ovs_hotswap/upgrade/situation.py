"""What an upgrade works on, and which of its two instances can still serve the VMs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.host import active_record
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance
from ovs_hotswap.host.standby import lacks_uplink
from ovs_hotswap.model import Life, Side
from ovs_hotswap.switch.instance import State
from ovs_hotswap.upgrade.outlook import Outlook, Service, Situation
from ovs_hotswap.uplink.base import steer_to_started
from ovs_hotswap.waiting import wait_until


def command_without(release: str, names: Iterable[str]) -> str:
    return " ".join([f"ovs-hotswap upgrade --release {release}", *(f"--leave-out {name}" for name in sorted(names))])


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One upgrade. ``old`` serves the VMs when it begins, and ``new`` is to run ``release``. The VMs in ``leave_out``
    stay on ``old`` until it ends, and only then pass to ``new``. ``keep_old``: ``old`` is not ended. ``old_process``:
    the pid and the start time of the old switch, if another one in its place does not have what this one had."""

    host: Host
    old: Side
    new: Side
    release: str
    keep_old: bool = False
    leave_out: frozenset[str] = frozenset()
    old_process: tuple[int, int | None] | None = None

    def vms(self) -> list[VmStatus]:
        """The VMs to be moved. VMs that were put in quarantine since the upgrade began are not among them."""
        vms = self.host.backends.vms(read=False)
        return [vm for vm in vms if vm.name not in self.leave_out and not vm.quarantine]

    def without(self, names: Iterable[str] = ("VM",)) -> str:
        """A hint with the command that leaves out these VMs as well."""
        return f"fix that, or leave it out: `{command_without(self.release, [*self.leave_out, *names])}`"

    def runs(self, side: Side) -> bool:
        return not self.dead(side) and self.host.instances[side].status().state is State.RUNNING

    def dead(self, side: Side) -> bool:
        return self.life(side) is Life.DEAD

    def life(self, side: Side) -> Life:
        """Whether the switch lives with which the upgrade began, or which it has started."""
        if side is self.old and self.old_process is not None and not self.host.system.is_still(*self.old_process):
            return Life.DEAD
        return self.host.instances[side].life()

    # -- one look

    def look(self, *, service: bool = False) -> Situation:
        """Look at the two processes; with ``service`` also at which instance serves the VMs, and at the new instance's
        uplink. A step looks once and decides from that; a step that waits looks again afterwards."""
        lives = {side: self.life(side) for side in (self.old, self.new)}
        # Otherwise the service does not influence the outlook.
        asked = service and lives[self.old] is not Life.DEAD and lives[self.new] is Life.RUNS
        seen = self._service() if asked else None
        return Situation(self.old, self.new, lives[self.old], lives[self.new], seen)

    def _service(self) -> Service:
        uplink = lacks_uplink(self.host, self.new)
        try:
            vms = self.vms()
        except BrokerError:
            return Service(uplink=uplink)
        on_old, on_new = (tuple(vm.name for vm in vms if vm.served_by(side)) for side in (self.old, self.new))
        return Service(on_old, on_new, True, uplink)

    def look_after_waiting(self) -> Situation:
        """Look before the upgrade goes back. An old instance that is stopped, takes no commands, or has hung up on a VM
        may be about to end, by itself or by the watchdog. So this waits first, for at most twice ``watch.hang_ms``,
        until one of the instances has ended or the old one recovers."""
        self._wait_while(self._falters)
        return self.look()

    def look_after_the_commit(self) -> Situation:
        """Look, with ``service``, whether a committed upgrade can be finished. A new instance that takes no commands
        may be about to end. So this waits first, as ``look_after_waiting`` does, until it has ended or recovers."""
        new = self.host.instances[self.new]
        self._wait_while(lambda: new.life() is Life.RUNS and not new.listens())
        return self.look(service=True)

    def _wait_while(self, falters: Callable[[], bool]) -> None:
        patience_s = 2 * self.host.config.watch.hang_ms / 1e3
        wait_until(falters, patience_s, self.host.system, done=operator.not_)

    def _falters(self) -> bool:
        now = self.look()
        if Life.DEAD in (now.old_life, now.new_life):
            return False
        if now.old_life is Life.STOPPED or not self.host.instances[self.old].listens():
            return True
        try:
            return bool(self.host.unconnected(self.old))
        except BrokerError:
            return False

    def fled(self, now: Situation) -> bool:
        """Whether the old instance died during a rollback and its VMs went to the new one, which then must stay. Raises
        BrokerError if this cannot be found out."""
        return now.old_lost and any(vm.served_by(self.new) for vm in self.host.backends.vms(read=False))

    def unrestored(self) -> str:
        """What is not as it was after a rollback, in words; empty if all is. Raises BrokerError."""
        now = self.look()
        if now.old_life is not Life.DEAD:
            lacks = self.host.instances[self.old].lacks_database()
            return f"the ovsdb-server of instance {self.old} does not run" if lacks else ""
        if self.fled(now):
            return f"instance {self.old} died, and instance {self.new} serves its VMs"
        again = self.host.instances[self.old].pid() is not None
        return f"instance {self.old} died and {'was' if again else 'has to be'} started again"

    def rehearse_record(self, now: Situation) -> None:
        """Check that the new instance can be recorded as the active one, while the upgrade can still go back. An
        upgrade that can only go forward is not kept from it. Raises HostError."""
        if not now.old_lost:
            active_record.rehearse(self.host.config, self.host.system)

    def revive(self) -> None:
        """If neither instance is left after the commit, start the new one again, as every VM waits for it. Raises
        ReleaseError, SwitchError, UplinkError."""
        if self.look().outlook is Outlook.NONE:
            host = self.host
            start_instance(host, self.new, host.releases.get(self.release))
            steer_to_started(host.uplink, self.new)
            host.record_active(self.new)
