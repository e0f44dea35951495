"""Keeps every VM's state where a next broker finds it (``StateSlot``), for a broker that is supervised."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ovs_hotswap.broker.persist.recovery import parts
from ovs_hotswap.broker.persist.snapshot import VmParts, Work
from ovs_hotswap.broker.persist.state_slot import LoadedState, StateSlot
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.broker.vm_record import NoJournal
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.fd_closing import hang_up
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import Process
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.backend import SwitchConnection
from ovs_hotswap.vhostuser.channel import Channel
from ovs_hotswap.vhostuser.messages import Descriptor
from ovs_hotswap.vhostuser.ownership import Certainty

log = logging.getLogger(__name__)

_SAVE_S = 0.01  # after a change: several changes within this time are saved once
_HELD_S = 2.0  # states are saved after this time even in a row of moves
_FLOOD_S = 0.5  # between two saves of a VM whose QEMU never stops: each costs the loop a millisecond or two
_RETRY_S = 1.0  # after a state could not be stored, because memory or descriptors are short
_NOTHING = LoadedState(None, {})


def _work(vm: Vm, told: Side | None, moving: bool) -> Work | None:
    """Return what is about to be done with a VM's switches, or ``None`` if no broker could continue after that."""
    owner = None if moving else vm.ownership.holder
    nobody = owner is None and not moving
    between = vm.ownership.certainty in (Certainty.LETTING_GO, Certainty.CUT)
    if vm.ownership.suspects and told is None and _all_connected(vm):
        return Work(vm.home, None, frozenset(vm.park_wanted), frozenset())
    if vm.ownership.suspects or between or (told is not None and told is owner):
        return None
    heard = frozenset() if told is None else frozenset({told})
    return Work(vm.home, owner, frozenset(vm.park_wanted), heard, nobody)


def _all_connected(vm: Vm) -> bool:
    """Whether every process that may be on the rings can be asked for them, as if they were changing hands."""
    suspects = vm.ownership.suspects
    return all(side in vm.links and vm.links[side].pid == vm.suspects.get(side) for side in suspects)


def _can_be_resynced_twice(state: VmParts) -> bool:
    offers = [link.offer for link in state.links.values()]
    return all(offer.protocol_features >> messages.ProtocolFeature.MQ & 1 for offer in offers)


def _processes(state: VmParts) -> dict[Side, Process]:
    """Return the processes that, according to a state, may be on the rings, or be given them."""
    pids = {side: pid for side, pid in state.suspects.items() if side in state.ownership.suspects}
    if state.ownership.holder is not None and state.ownership.certainty is Certainty.CUT:
        pids[state.ownership.holder] = state.cut_pid
    found = {side: Process(pid, state.born.get(pid)) for side, pid in pids.items()}
    return found | {side: Process(link.pid, link.born) for side, link in state.links.items()}


@dataclass
class _Entry:
    vm: Vm
    slot: StateSlot | None
    qemu: Descriptor | None  # the connection of an earlier broker's to the VM's QEMU, which is not to end yet
    saved_at: float = 0.0
    links: Mapping[Side, SwitchConnection] = field(default_factory=dict)  # which are stored


def _names(work: Work, entry: _Entry) -> bool:
    """Whether the stored state has the connection of each side that may be on the rings after ``work``."""
    if work.nobody:
        return True
    links = entry.vm.links
    return all(entry.links.get(side) is links.get(side) for side in (links if work.owner is None else [work.owner]))


@dataclass(frozen=True)
class _VmJournal:
    """Stores the notes of one VM."""

    saver: StateSaver
    name: str

    def start_over(self, processes: Mapping[Side, Process], qemu: Channel | None) -> None:
        self.saver.start_over(self.name, processes, qemu)

    def continues(self, told: Side | None, moving: bool) -> None:
        self.saver.continues(self.name, told, moving)


class StateSaver:
    """Stores the states of all VMs. ``slots`` are the slots of an earlier broker.

    ``keeps`` is whether a supervisor keeps the slots for a next broker; if not, nothing is stored.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, slots: Mapping[str, StateSlot], *, keeps: bool) -> None:
        self._loop, self._keeps = loop, keeps
        self._earlier = dict(slots)
        self._entries: dict[str, _Entry] = {}
        self._changed: set[str] = set()
        self._failed: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._held, self._held_until = 0, 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Store nothing in the block, for a limited time, so that a row of moves is not delayed."""
        self._held += 1
        self._held_until = self._loop.time() + _HELD_S
        try:
            yield
        finally:
            self._held -= 1

    @property
    def earlier(self) -> frozenset[str]:
        """The VMs whose state an earlier broker stored and that were not added yet."""
        return frozenset(self._earlier)

    def take(self, name: str) -> LoadedState:
        """Return what an earlier broker stored of a VM. The state stays stored for one more broker, in case this broker
        ends before it has stored its own. So a fault that ends each broker does not recur from the same state forever.
        """
        slot = self._earlier.get(name)
        if slot is None:
            return _NOTHING
        try:
            kept = slot.load()
        except StateUnknown as error:
            log.warning("vm %s: %s", name, error.message)
            return _NOTHING
        if kept.state is None:
            slot.mark_dirty(kept.processes, kept.qemu)
        elif not (kept.first and _can_be_resynced_twice(kept.state) and slot.mark_read()):
            slot.mark_dirty(_processes(kept.state), kept.state.qemu)
            return replace(kept, first=False)
        return kept

    @property
    def unsaved(self) -> int:
        """The number of VMs whose newest state is not stored yet."""
        return len(self._changed | self._failed)

    def add(self, vm: Vm, qemu: Descriptor | None = None) -> None:
        """Store a VM's state from now on. ``qemu`` is an earlier broker's connection that is to stay open for now."""
        name, slot = vm.name, None
        if self._keeps:
            slot = self._earlier.pop(name, None) or StateSlot.make(name)
        self._entries[name] = _Entry(vm, slot, qemu)
        if qemu is not None:
            switches = " and ".join(f"{side} (process {pid})" for side, pid in sorted(vm.suspects.items())) or "none"
            log.warning("vm %s: its QEMU is kept waiting until no switch can be on the rings: %s", name, switches)
        if slot is None:
            return
        vm.journal = _VmJournal(self, name)
        if slot.busy:
            vm.starts_over()
        else:
            self._entries[name].links = dict(vm.links)
            self._save_soon(name)

    def remove(self, name: str, *, forget: bool) -> None:
        """Stop storing a VM's state. Unless ``forget``, what was stored last stays for the next broker."""
        entry = self._entries.pop(name, None)
        self._changed.discard(name)
        self._failed.discard(name)
        if entry is None:
            return
        entry.vm.journal = NoJournal()
        if entry.slot is not None and forget:
            entry.slot.remove(name)
        elif entry.slot is not None:
            entry.vm.shared = True
            entry.slot.close()
        if entry.qemu is not None and forget:
            hang_up(socket.socket(fileno=entry.qemu.detach()))
        elif entry.qemu is not None:
            entry.qemu.close()

    def defers_qemu_close(self, name: str) -> bool:
        """Whether the connection to the VM's QEMU must stay open, because a switch may be on the rings: QEMU would take
        them if its back end went away. When that is over, this closes the connection, so it is to be called often."""
        entry = self._entries.get(name)
        if entry is None or entry.qemu is None:
            return False
        if entry.vm.ownership.suspects:
            return True
        qemu, entry.qemu = entry.qemu, None
        entry.vm.starts_over()  # the slot's duplicate goes first: what QEMU left unread is closed with the last
        hang_up(socket.socket(fileno=qemu.detach()))
        return False

    def held_qemu(self, name: str) -> Descriptor | None:
        """Return the connection for which ``defers_qemu_close`` is true, or ``None``."""
        return self._entries[name].qemu if self.defers_qemu_close(name) else None

    def start_over(self, name: str, processes: Mapping[Side, Process], qemu: Channel | None) -> None:
        """Note that work is under way with a VM, and that its stored state is no longer valid."""
        entry = self._entries[name]
        assert entry.slot is not None
        entry.slot.mark_dirty(processes, qemu or entry.qemu)
        self._save_soon(name)

    def continues(self, name: str, told: Side | None, moving: bool) -> None:
        """Note what is being done with a VM's switches beside its stored state, if a next broker can continue so."""
        entry = self._entries[name]
        work = _work(entry.vm, told, moving)
        assert entry.slot is not None
        # While no state is stored, the note must name a process that has connected since: it may be given the rings.
        if entry.slot.busy or work is None or not _names(work, entry) or not entry.slot.add(work):
            entry.vm.starts_over()
        self._save_soon(name)

    def _save_soon(self, name: str) -> None:
        self._changed.add(name)
        if self._timer is None:
            self._timer = self._loop.call_later(_SAVE_S, self._on_time)

    def _on_time(self) -> None:
        self._timer = None  # first, so that the next change is saved even after an error here
        now = self._loop.time()
        waits = self._held and now < self._held_until
        if not waits:
            self.save(now - _FLOOD_S)
            waits = any(each.settled and each.hearing.in_turns for each in self._unsaved())
        if waits:
            self._timer = self._loop.call_later(_SAVE_S, self._on_time)

    def _again(self) -> None:
        failed, self._failed = self._failed, set()
        for name in failed:
            self._save_soon(name)

    def _unsaved(self) -> list[Vm]:
        return [self._entries[name].vm for name in sorted(self._changed)]

    def save(self, before: float = math.inf) -> bool:
        """Store the states of the changed VMs that are settled; return whether none is left. VMs whose QEMU floods are
        stored only if they were not stored after ``before``, by the loop's time."""
        for vm in self._unsaved():
            name, entry = vm.name, self._entries[vm.name]
            if not vm.settled or (vm.hearing.in_turns and entry.saved_at > before):
                continue
            entry.saved_at = self._loop.time()
            self._changed.discard(name)
            if entry.qemu is not None:
                continue  # the note of work under way keeps that connection; ``defers_qemu_close`` will close it
            try:
                assert entry.slot is not None
                with parts(vm) as state:
                    entry.slot.store(state)
                    entry.links = vm.transferable
            except OSError as error:
                vm.note(f"its state cannot be stored yet: {error.strerror}")
                if not self._failed:
                    self._loop.call_later(_RETRY_S, self._again)
                self._failed.add(name)
        return not self._changed
