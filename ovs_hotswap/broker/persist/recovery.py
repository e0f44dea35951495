"""Continues a VM where another broker stopped, at whatever moment that was.

A state says what each switch was sent and which of them has the rings. If the other broker worked with the switches
after it had stored the state (``Work``), or was still waiting for answers, each connection is first brought to a
known point (``SwitchConnection.resync``). Then the addresses of all rings are sent again: the owner's to the only side
that may have them, or, if the rings were changing hands, the parking address to both sides. Their answers prove that
they are off the rings, and the home side is given them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ovs_hotswap.broker.persist.snapshot import LinkParts, VmParts, Work
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.broker.vm_record import VmRecord
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import Process
from ovs_hotswap.vhostuser.backend import SwitchConnection
from ovs_hotswap.vhostuser.channel import Channel, OwnedFd
from ovs_hotswap.vhostuser.messages import Descriptor, Request
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from ovs_hotswap.vhostuser.reconcile import unplaced


@dataclass(frozen=True)
class StartsOver:
    """A VM that cannot be continued.

    Its switches' ``processes`` may be on its rings, and QEMU's connection is to be closed when none can be any longer.
    """

    name: str
    processes: Mapping[Side, Process]
    qemu: Descriptor | None


@contextmanager
def parts(vm: Vm) -> Iterator[VmParts]:
    """Yield the state of a VM that is settled. Its connections are duplicates, which are closed after the block."""
    with ExitStack() as stack:

        def duplicate(channel: Channel) -> OwnedFd:
            made = channel.duplicate()
            stack.callback(made.close)
            return made

        links = {}
        for side, link in vm.transferable.items():
            assert link.offer is not None
            links[side] = LinkParts(
                duplicate(link.channel), link.pid, vm.processes[side].born, link.offer, link.told,
                link.inherited or not link.quiet,
            )  # fmt: skip
        yield VmParts(
            name=vm.name, home=vm.home, state=vm.state, ownership=vm.ownership, scratch=vm.scratch,
            qemu=None if vm.qemu is None else duplicate(vm.qemu), offered=vm.offered, links=links,
            park_wanted=frozenset(vm.park_wanted), suspects=vm.suspects, cut_pid=vm.cut_pid, moves=vm.moves,
            born=vm.born(), half=(b"", ()) if vm.qemu is None else vm.qemu.half,
        )  # fmt: skip


def restore(
    vm: Vm,
    given: VmParts,
    track: Callable[[int, int | None], None],
    work: Work | None = None,
    resync_with: Request = Request.GET_PROTOCOL_FEATURES,
) -> None:
    """Give a new ``vm`` the state ``given``, changed by the ``work`` that was done since, without sending anything.

    The VM owns the descriptors from then on. ``track`` is called with each process whose end matters to the VM, and the
    process's start time, if that is known. ``resync_with`` is explained in ``SwitchConnection.resync``.
    """
    qemu, links = None, {}
    if given.qemu is not None:
        qemu = vm.channel(socket.socket(fileno=given.qemu.detach()), "QEMU")
        qemu.resume(*given.half)
    for side, link in given.links.items():
        channel = vm.channel(socket.socket(fileno=link.connection.detach()), f"switch {side}")
        made = links[side] = SwitchConnection(side, channel)
        made.pid, made.offer, made.told, made.inherited = link.pid, link.offer, link.told, link.due
        made.resync_with = resync_with
    record = vm.record._replace(
        home=given.home, state=given.state, ownership=given.ownership, offered=given.offered,
        qemu=qemu, links=links, park_wanted=given.park_wanted, suspects=dict(given.suspects),
        cut_pid=given.cut_pid, met={**vm.met, **{side: link.pid for side, link in links.items()}},
        moves=given.moves,
    )  # fmt: skip
    vm.commit(record if work is None else _redone(record, work))
    for side, made in links.items():
        if side not in vm.links:  # what it was sent is not known: it connects again
            made.hang_up()
    born = {**given.born, **{link.pid: link.born for link in given.links.values()}}
    for pid in {*vm.switch_pids.values(), *vm.suspects.values()}:
        track(pid, born.get(pid))


def _redone(record: VmRecord, work: Work) -> VmRecord:
    """Return ``record`` with what was done since it was stored."""
    links = {side: link for side, link in record.links.items() if side not in work.told}
    for link in links.values():
        link.told, link.inherited = unplaced(link.told), True
    before = record.ownership.holder
    more = frozenset() if before is None or before is work.owner else frozenset({before})
    redone = record._replace(home=work.home, park_wanted=work.parked | more, links=links)
    if record.qemu is None or work.nobody:
        return redone._replace(ownership=Ownership())
    if work.owner is None:
        suspects = {side: link.pid for side, link in record.links.items()}
        return redone._replace(suspects=suspects, ownership=Ownership(suspects=frozenset(suspects)))
    ownership = Ownership(work.owner, Certainty.TAKING)
    if work.owner in work.told and work.owner in record.links:  # by an earlier version: its connection is closed
        return redone._replace(ownership=ownership.disconnected(work.owner), cut_pid=record.links[work.owner].pid)
    return redone._replace(ownership=ownership)


def take_up(vm: Vm) -> None:
    """Continue a VM that was restored."""
    inherited = [link for link in vm.links.values() if link.inherited]
    for link in inherited:
        vm.guarded(link, link.resync)
        link.inherited = False
    vm.resume_reading()
    for side in Side:
        vm.repark(side)  # away from capture rings that the other broker had armed
    for link in inherited:
        _ask(vm, link, let_go=vm.ownership == Ownership(link.side, Certainty.LETTING_GO))
    vm.assign()


def _ask(vm: Vm, link: SwitchConnection, *, let_go: bool) -> None:
    vm.guarded(link, lambda: link.fence(lambda: vm.answered(link.side, let_go=let_go)))
