"""The broker daemon: listens for switches, connects to QEMUs, answers the control socket.

The daemon has one event loop in one thread. Packets never pass here; between control messages the process sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Set

from ovs_hotswap import __version__
from ovs_hotswap.backends import VmStatus
from ovs_hotswap.broker.absence import DIRECT
from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.control.adoption_api import Adoptions
from ovs_hotswap.broker.control.documents import capture_status, vm_status
from ovs_hotswap.broker.control.dump import dump_method
from ovs_hotswap.broker.control.moves_api import Moves
from ovs_hotswap.broker.control.parking_api import Parking
from ovs_hotswap.broker.control.server import ControlServer, Method
from ovs_hotswap.broker.control.status import BrokerStatus
from ovs_hotswap.broker.directory_watch import DirectoryWatch
from ovs_hotswap.broker.lifecycle import UNIT
from ovs_hotswap.broker.mover import Mover
from ovs_hotswap.broker.persist import recovery, takeover
from ovs_hotswap.broker.persist.autosave import StateSaver
from ovs_hotswap.broker.persist.formats import FORMATS
from ovs_hotswap.broker.persist.predecessor import Predecessor
from ovs_hotswap.broker.persist.recovery import StartsOver
from ovs_hotswap.broker.persist.snapshot import VmParts, Work
from ovs_hotswap.broker.persist.state_slot import StateSlot
from ovs_hotswap.broker.persist.takeover import Inherited
from ovs_hotswap.broker.process_watch import Processes
from ovs_hotswap.broker.qemu_connector import Reach
from ovs_hotswap.broker.quarantine import Quarantine
from ovs_hotswap.broker.run_directory import Place, control_group, remove_socket
from ovs_hotswap.broker.settings import Settings
from ovs_hotswap.broker.shutdown import ShutdownFence
from ovs_hotswap.broker.time_budget import Turns
from ovs_hotswap.broker.timers import Delays
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.broker.vm_log import alone
from ovs_hotswap.broker.vm_slot import VmSlot
from ovs_hotswap.broker.vm_source import SwitchProcesses, vm_source
from ovs_hotswap.broker.watchdog_ping import ping_forever
from ovs_hotswap.config import Config, read_active
from ovs_hotswap.errors import BrokerError, CommandError, ConfigError, HotswapError
from ovs_hotswap.model import Side
from ovs_hotswap.peer import credentials
from ovs_hotswap.priority import raise_priority, realtime_priority
from ovs_hotswap.process_exit import Process
from ovs_hotswap.service import sd_notify
from ovs_hotswap.service.supervisor import SUCCEEDED
from ovs_hotswap.service.systemctl import Unit
from ovs_hotswap.system import System, many_descriptors
from ovs_hotswap.vhostuser.call_signals import signaller
from ovs_hotswap.vhostuser.capture_memory import Room
from ovs_hotswap.vhostuser.guest_memory import has_pending_tx, make_scratch
from ovs_hotswap.vhostuser.messages import Descriptor, Request

log = logging.getLogger(__name__)

_LISTEN_S = 1.0  # between two attempts to make a socket, or to accept a switch's connection
_PATIENCE_S = 3.0  # a switch that lost its connection has made another one after a second


class Broker:
    """Serves the VMs of one host. ``run`` serves until a signal or a successor ends it.

    With ``inherited`` it is constructed with all VMs of another broker and all that it needs of this host, and does not
    act before ``run``: after a failure until then the other broker continues. Raises ConfigError, BrokerError, OSError.
    """

    def __init__(
        self, config: Config, system: System, loop: asyncio.AbstractEventLoop, home: Side | None,
        inherited: Inherited | None = None, load: Callable[[], Config] | None = None,
    ) -> None:  # fmt: skip
        self._settings = Settings(config, load)
        self._system, self._loop = system, loop
        self._serving = self._for_good = False
        self._delays = Delays(loop)
        self._home = home
        self._listen_at = 0.0
        self._followed: Side | None = None  # the active side when it was last made the home of VMs without a guest
        self._slots: dict[str, VmSlot] = {}
        self._source, self._switches = vm_source(self._settings), SwitchProcesses(config, system)
        self._watch = DirectoryWatch(loop, self._listen_again)
        self._processes = Processes(loop, self._process_ended, self._switches.pid_files)
        self._saver = StateSaver(loop, StateSlot.kept(), keeps=sd_notify.supervised())
        self._changes = Changes()
        self._shutdown_fence = ShutdownFence(self._slots, self._processes, self._saver, self._changes)
        self._room = Room(config.broker.capture_mb << 20)
        self._turns = Turns(loop)
        self._reading, self._stopping = asyncio.Lock(), asyncio.Event()
        self._started = time.monotonic()
        self._quarantine = Quarantine(config.run_dir / "quarantine.json", system, self._slot)
        self._methods: dict[str, Method] = {
            "status": self._status, "vms": self._vms, "vm": self._vm, "reload": self._reload,
            "withdraw": self._withdraw, "dump": dump_method(self._slot), **Parking(self._slot, self._changes).methods,
            **Moves(self._slot, self._saver, self._settings, self._changes).methods, **self._quarantine.methods,
            **Adoptions(self._slot, self._settings, self._changes, self._forget).methods,
        }  # fmt: skip
        self._inherited = inherited
        goes_on = bool(self._saver.earlier)
        signaller().ready()  # made while a failure does no harm; what it lacks is logged
        control = None if inherited is None else inherited.control
        self._control_server = ControlServer(config, self._methods, control, self._group(goes_on), needed=not goes_on)
        successors = None if inherited is None else inherited.successors
        self._predecessor = Predecessor(loop, config, successors, self._slots, self._saver, self._control_server,
                                        self._changes, self._passed_on)  # fmt: skip
        if inherited is not None:
            for name, (given, listeners) in inherited.vms.items():
                if (shared := self._source.shared(name)) is not None:
                    shared.inherit(inherited.files.get(name))
                if isinstance(given, StartsOver):
                    self._start_over(given, listeners)
                else:
                    self._restore(given, listeners)

    @property
    def _config(self) -> Config:
        return self._settings.config

    async def run(self) -> bool:
        """Serve until the end, and return whether a successor serves now. If there is no earlier broker's state, raises
        ConfigError if the overlay intent cannot be read, and BrokerError if a socket cannot be made."""
        try:
            if self._inherited is None:
                self._begin()
            for slot in self._slots.values():
                if slot.restored:
                    self._take_up(slot)
            if self._inherited is not None:
                self._reload_soon()
            await self._run(self._control_server.open())
            return self._predecessor.succeeded
        finally:
            self.close()

    def _group(self, goes_on: bool) -> int | None:
        """Return the group of the control socket. VMs that an earlier broker kept are served even if it is unknown."""
        try:
            return control_group(self._config)
        except ConfigError as error:
            if not goes_on:
                raise
            log.error("only root may use the control socket: %s", error.message)
            return None

    def _begin(self) -> None:
        """Make the VMs of the intent and those that an earlier broker kept, even if the intent cannot be read now. VMs
        that are no longer in the intent leave as after a reload."""
        earlier = self._saver.earlier
        try:
            names = self._source.read()
        except ConfigError as error:
            if not earlier:
                raise
            log.error("the VMs of the earlier broker are still served: %s", error.message)
            names = earlier
        self._make(names | earlier)
        if not earlier:
            self._refuse_unheard(names)
        if earlier - names:
            self._reload_soon()

    def _refuse_unheard(self, names: Set[str]) -> None:
        """Raise BrokerError if a socket of one of these VMs cannot be made."""
        slots = [slot for name, slot in sorted(self._slots.items()) if name in names]
        faults = [fault for slot in slots if (fault := slot.listen_again(self._loop)) is not None]
        if faults:
            more = f" (and of {len(faults) - 1} VMs more)" if len(faults) > 1 else ""
            raise BrokerError(f"{faults[0]}{more}")

    def _restore(
        self, given: VmParts, listeners: dict[Side, socket.socket], work: Work | None = None, *, first: bool = False
    ) -> None:
        """Make a VM as another broker left it; ``_take_up`` is to continue it. ``first`` is ``LoadedState.first``."""
        vm = self._new_vm(given.name, given.scratch)
        resync_with = Request.GET_QUEUE_NUM if first else Request.GET_PROTOCOL_FEATURES
        recovery.restore(vm, given, self._processes.mind, work, resync_with)
        self._add_slot(vm, listeners).restored = True

    def _start_over(self, given: StartsOver, listeners: dict[Side, socket.socket]) -> None:
        """Make a VM of which it is not known how far another broker's work with it went."""
        for process in given.processes.values():
            self._processes.mind(process.pid, process.born)
        suspects = {side: process.pid for side, process in given.processes.items()}
        self._add_slot(self._new_vm(given.name, make_scratch(), suspects), listeners, given.qemu)

    def _take_up(self, slot: VmSlot) -> None:
        """Continue a VM where another broker stopped. A fault of one VM does not affect the others."""
        slot.restored = False
        with alone(slot.vm.name, "it cannot be continued"):
            recovery.take_up(slot.vm)
            self._quarantine.enforce(slot.vm)

    async def _run(self, control_server: asyncio.Task[None]) -> None:
        self._serving = True
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        gc.collect()
        gc.freeze()
        sd_notify.notify("READY=1", f"STATUS=serves {len(self._slots)} VMs")
        log.info("broker %s serves %d VMs on %s", __version__, len(self._slots), self._config.broker_socket)
        reach = Reach(self._settings, self._slots, self._saver, self._predecessor)
        tasks = [self._loop.create_task(each) for each in (reach.forever(self._each_round), ping_forever())]
        self._predecessor.open()
        try:
            await self._stopping.wait()
            sd_notify.notify("STOPPING=1")
            if not self._predecessor.succeeded and (self._for_good or await asyncio.to_thread(self._unit_stops)):
                await self._shutdown_fence.force_release(max(self._settings.fence_s, _PATIENCE_S))
            if not self._predecessor.succeeded:
                with contextlib.suppress(BrokerError):
                    await self._changes.until(self._saver.save, takeover.TIMEOUT_S, "VMs are not settled")
        finally:
            for task in (control_server, *tasks):
                task.cancel()
            self._watch.close()
            if not self._predecessor.succeeded:
                if self._shutdown_fence.begun:  # otherwise clients wait for the next broker
                    remove_socket(self._config.broker_socket)
                remove_socket(self._config.successor_socket)

    def _stop(self, number: signal.Signals) -> None:
        """Stop serving: for good after SIGINT, and after SIGTERM if no supervisor keeps what a next broker needs."""
        self._for_good |= number is signal.SIGINT or not sd_notify.supervisor_alive() or self._shutdown_fence.begun
        self._stopping.set()

    def _passed_on(self) -> None:
        """Stop, because a successor is the broker now."""
        sd_notify.notify(SUCCEEDED)
        self._stopping.set()

    def _unit_stops(self) -> bool:
        """Whether systemd ends this process for good, which the signal does not say."""
        if not sd_notify.in_unit():
            return False
        try:
            return Unit(UNIT, self._system).job() == "stop"
        except CommandError as error:
            log.warning("is %s stopped or restarted? %s", UNIT, error.message)
            return False

    def _make(self, names: Set[str]) -> None:
        """Make the VMs ``names``; new ones get the side that is active now as home. Other VMs begin to leave."""
        self._follow_active()
        for name in sorted(names - self._slots.keys()):
            try:
                self._add(name)
            except OSError as error:  # memory or descriptors are short; the other VMs are served nevertheless
                log.error("vm %s: it is not served before the next reload: %s", name, error.strerror)
        for name, slot in self._slots.items():
            slot.vm.queues, slot.vm.mtu = self._source.limits(name)
            slot.connects_at(self._loop, self._source.shared(name))
            slot.vm.withheld, slot.mover.fence_s = self._config.broker.withheld, self._settings.fence_s
            if name not in names:
                slot.leaving = True
                slot.withdraw()
            elif slot.leaving and not self._shutdown_fence.begun:
                slot.serve_again()
        self._let_leave()

    def _follow_active(self) -> None:
        """Make the active side the home of VMs without a guest: nothing else decides the side on which they start, and
        the active side may have changed without a reload of the broker."""
        active = None
        with contextlib.suppress(OSError):
            active = read_active(self._config)
        if active is None or active is self._followed:
            return
        self._home = self._followed = active
        for slot in self._slots.values():
            slot.waits_for(active)

    def _each_round(self) -> None:
        """Do what is due before QEMUs are called."""
        self._let_leave()
        self._follow_active()
        now = time.monotonic()
        if now >= self._listen_at and not self._predecessor.under_way:
            self._listen_at = now + _LISTEN_S
            self._listen_again()

    def _listen_again(self) -> None:
        """Make each VM's sockets that are not there, and look for a change of shared ones' directories."""
        if self._predecessor.under_way:
            return
        for slot in self._slots.values():
            slot.listen_again(self._loop)
        self._watch.watch({slot.shared.path.parent for slot in self._slots.values() if slot.shared is not None})

    def _let_leave(self) -> None:
        """Remove VMs that are no longer to be served, when no switch can be on their rings, or none by the broker."""
        for name, slot in list(self._slots.items()):
            if slot.leaving and (slot.is_withdrawn or slot.direct) and not self._predecessor.succeeded:
                self._forget(name)

    def _forget(self, name: str) -> None:
        """Remove a VM that no switch serves by the broker."""
        self._saver.remove(name, forget=True)
        self._remove(name)

    def _add(self, name: str) -> None:
        shared, listeners = self._source.shared(name), dict[Side, socket.socket]()
        if shared is not None:
            with contextlib.suppress(BrokerError):  # which ``listen_again`` notes
                listeners[Side.A] = shared.listen(None)
        found = self._suspects(name)  # after that: no switch can connect to QEMU any longer
        kept = self._saver.take(name)
        if kept.state is not None:
            self._restore(kept.state, listeners, kept.work, first=kept.first)
        else:
            self._start_over(StartsOver(name, {**found, **kept.processes}, kept.qemu), listeners)
        slot = self._slots[name]
        slot.listen_again(self._loop)
        if slot.direct:  # who asks right after a reload is to take it over
            slot.vm.absence = DIRECT

    def _new_vm(self, name: str, scratch: Descriptor, suspects: Mapping[Side, int] | None = None) -> Vm:
        vm = Vm(name, self._loop, self._delays, self._turns, self._processes, scratch, self._home,
                self._config.broker.withheld, suspects, *self._source.limits(name), changes=self._changes)  # fmt: skip
        return self._quarantine.enter(vm)

    def _add_slot(self, vm: Vm, listeners: dict[Side, socket.socket], qemu: Descriptor | None = None) -> VmSlot:
        self._saver.add(vm, qemu)
        if self._shutdown_fence.begun:
            vm.commit(vm.record._replace(withdrawn=True))
        mover = Mover(vm, self._loop, self._delays, self._settings.fence_s, self._room)
        paths, shared = self._source.sockets(vm.name), self._source.shared(vm.name)
        slot = self._slots[vm.name] = VmSlot(vm, mover, listeners, paths, shared)
        slot.listen(self._loop, self._accept)
        return slot

    def _suspects(self, name: str) -> dict[Side, Process]:
        """Return the switches that may be on the VM's rings: an earlier broker, or none, served it with them. Each must
        connect again, or end, before another side is given the rings."""
        return {side: each for side, each in self._switches.found().items() if self._source.may_hold(name, side)}

    def _remove(self, name: str, *, forget: bool = True) -> None:
        """Hang up on a VM's peers. Unless ``forget``, its listening sockets' files stay for the next broker to find."""
        slot = self._slots.pop(name)
        slot.mover.close()
        for side, listener in slot.listeners.items():
            self._loop.remove_reader(listener.fileno())
            listener.close()
            if forget and slot.shared is None:
                remove_socket(self._config.vhost_socket(side, name))
        slot.listeners.clear()
        if forget and slot.shared is not None:
            with contextlib.suppress(OSError):
                slot.shared.give_back()
        slot.vm.close()

    def _accept(self, slot: VmSlot, side: Side) -> None:
        try:
            connection, _ = slot.listeners[side].accept()
        except OSError as error:
            slot.vm.note(f"switch {side}: accept: {error.strerror}")
            self._loop.remove_reader(slot.listeners[side].fileno())  # it stays readable while descriptors are short
            self._loop.call_later(_LISTEN_S, self._accept_again, slot, side)
            return
        at = side if slot.shared is None else self._switches.side_of(connection)
        if at is None:
            slot.vm.note(f"process {credentials(connection).pid} refused: it is neither side's ovs-vswitchd")
            connection.close()
            return
        slot.vm.accept(at, connection)

    def _accept_again(self, slot: VmSlot, side: Side) -> None:
        if self._slots.get(slot.vm.name) is slot:
            self._loop.add_reader(slot.listeners[side].fileno(), self._accept, slot, side)

    def _process_ended(self, pid: int) -> None:
        """Act on the death of a switch. VMs whose guests have something to send get another switch first."""
        with realtime_priority():
            for slot in sorted(self._slots.values(), key=lambda slot: not has_pending_tx(slot.vm.state)):
                with alone(slot.vm.name, f"the end of process {pid} is not taken up"):
                    slot.vm.process_ended(pid)
        self._changes.notify()

    # -- control -----------------------------------------------------------------------------------------------

    def _slot(self, name: object) -> VmSlot:
        slot = self._slots.get(str(name))
        if slot is None:
            raise BrokerError(
                f"no VM {name!r}", hint=f"`ovs-hotswap broker reload` after a change of {self._source.WHERE}"
            )
        return slot

    async def _status(self) -> BrokerStatus:
        return BrokerStatus(
            version=__version__,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started, 3),
            vms=len(self._slots),
            supervised=sd_notify.supervisor_alive(),
            withdrawn=self._shutdown_fence.begun,
            unsaved=self._saver.unsaved,
            unit=sd_notify.in_unit(),
            formats=FORMATS,
            home=self._home,
            capture=capture_status(self._room, self._source.all_limits()),
            config_fault=self._settings.fault,
            differing=tuple(self._settings.differing),
            leaving=tuple(str(slot) for _, slot in sorted(self._slots.items()) if slot.leaving),
        )

    async def _vms(self, read: bool = True) -> list[VmStatus]:
        return [vm_status(slot.vm, read=read) for _, slot in sorted(self._slots.items())]

    async def _vm(self, vm: str) -> VmStatus:
        return vm_status(self._slot(vm).vm)

    async def _reload(self) -> BrokerStatus:
        there = self._slots.keys() | ()
        before = {name for name in there if self._slots[name].leaving}
        async with self._reading:
            await asyncio.to_thread(self._settings.read)
            self._room.limit = self._config.broker.capture_mb << 20
            names = await asyncio.to_thread(self._source.read)  # switches and QEMUs are served in the meantime
            if self._predecessor.succeeded:
                raise BrokerError("another broker has taken over in the meantime")
            self._make(names)
        for slot in self._slots.values():
            slot.belongs_to(self._home)
        leaving = [slot for name, slot in self._slots.items() if slot.leaving and name not in before]

        def left() -> bool:
            self._let_leave()
            return all(self._slots.get(slot.vm.name) is not slot or not slot.leaving for slot in leaving)

        with contextlib.suppress(BrokerError):
            await self._changes.until(left, _PATIENCE_S)
        for slot in self._slots.values():
            if slot.leaving:
                slot.vm.note(f"it has left {self._source.WHERE}, and is kept while a switch may use its rings: {slot}")
        self._refuse_unheard(self._slots.keys() - there)
        return await self._status()

    async def _reload_logged(self) -> None:
        try:
            await self._reload()
        except HotswapError as error:
            log.error("reload: %s", error.message)
        except Exception:
            log.exception("reload")

    def _reload_soon(self) -> None:
        self._reloading = self._loop.create_task(self._reload_logged())

    async def _withdraw(self) -> None:
        await self._shutdown_fence.try_release(self._settings.fence_s)

    def close(self) -> None:
        """Hang up on all peers; only close this process's ends of what a successor has or the next broker is to get."""
        if not self._predecessor.succeeded:
            self._saver.save()
        for name in list(self._slots):
            self._saver.remove(name, forget=False)
            self._remove(name, forget=not self._serving)
        self._processes.close()


def serve(config: Config, system: System, load: Callable[[], Config] | None = None, *, take_over: bool = False) -> None:
    """Run a broker in this process until a signal or a successor ends it. ``load`` reads the configuration again.

    With ``take_over`` it takes over from the running broker. Raises BusyError if a broker runs already, and
    BrokerError, ConfigError or StateUnknown if the takeover failed; the running broker then continues.
    """
    many_descriptors()
    raise_priority()

    async def main() -> None:
        heir = takeover.meet(config) if take_over else None
        with Place(config) as place:
            if heir is None:
                place.take()
            else:
                place.prepare()
            inherited = None if heir is None else heir.inherited
            broker = Broker(config, system, asyncio.get_running_loop(), read_active(config), inherited, load)
            if heir is not None:
                takeover.take_over(heir)
                place.take()
            if await broker.run():
                place.pass_on()

    asyncio.run(main())
