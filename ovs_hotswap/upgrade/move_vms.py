"""Handing VMs over to an instance: one alone, so that a fault of the instance costs one VM its network and not many,
then all others; after each every guest is seen served.

A VM that cannot be moved is no reason not to move the others. One that is not served may have itself to blame: what
its rings look like is the guest's affair. So it is given back for a moment, and the instance that served it before is
the measure of the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from ovs_hotswap.backends import MoveResult, OwnerCertainty
from ovs_hotswap.errors import BrokerError, HotswapError, StateUnknown, SwitchError
from ovs_hotswap.host import rings
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.pmd_progress import drain_pmd_queues
from ovs_hotswap.host.rings import Place
from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.priority import Rank
from ovs_hotswap.upgrade import baseline
from ovs_hotswap.upgrade.baseline import read
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.wording import some

SERVED_S = 2.0  # until a ring that nobody takes from counts as one
_AGAIN_S = 5.0  # for VMs that cannot be moved at once, such as one that restarts just then
_BACK_S = 2.0  # the same on the way back, where ending the new instance is a way too
_POLL_S = 0.1
_AT_ONCE = 1 << 20  # bytes of frames


def move_all(
    host: Host,
    to: Side,
    run: StepContext,
    *,
    back: bool = False,
    first: str | None = None,
    without: Collection[str] = (),
) -> dict[str, float]:
    """Hand every VM to ``to`` that is not in quarantine, one alone and then all others, and see each served there.
    Returns microseconds by VM. ``first``: which one; ``without``: those that stay. ``back``: to where they were served
    before, and whatever that is like, nothing keeps them from it.

    Frames that arrived during a move are delivered by the new owner afterwards. Raises BrokerError if a VM stayed
    where it was, when all others have been moved, StateUnknown if its owner is not known, and SwitchError if ``to``
    does not serve a VM which the other side serves.
    """
    vms = [vm for vm in host.backends.vms(read=False)
           if not vm.quarantine and not vm.confirmed_on(to)]  # fmt: skip
    names = sorted((vm.name for vm in vms if vm.name not in without), key=lambda name: name != first)

    def act(row: _Row, names: Sequence[str]) -> None:
        alone = 0 if row.moves else 1
        for batch in (names[:alone], names[alone:]):
            row.move(batch)
            row.see_served([name for name in batch if name not in row.left])
        row.again()

    moves, left = _rows(host, names, to, run, act, back=back)
    if left:
        raise BrokerError(some(list(left.values()), "; "))
    return moves


def _rows(
    host: Host,
    names: Sequence[str],
    to: Side,
    run: StepContext,
    act: Callable[[_Row, Sequence[str]], None],
    *,
    back: bool,
) -> tuple[dict[str, float], dict[str, str]]:
    """``act`` on one row of VMs after the other: no more are between two instances than all frames can be caught for.
    ``moves`` and ``left`` of all."""
    before: _Row | None = None
    left: dict[str, str] = {}
    for part in host.backends.rows(names):
        with _row(host, part, to, run, back=back, before=before, total=len(names)) as row:
            act(row, part)
            if row.left:
                host.backends.disarm(list(row.left))
        before, left = row, left | row.left
    return {} if before is None else before.moves, left


class _Row:
    """VMs on their way to ``to``. ``moves``: microseconds of those that were moved, those of the row ``before`` it
    included; ``left``: why others were not."""

    def __init__(
        self, host: Host, to: Side, run: StepContext, total: int, threads: Mapping[Side, MessageThread],
        before: _Row | None, *, back: bool,
    ) -> None:  # fmt: skip
        self.moves: dict[str, float] = {} if before is None else dict(before.moves)
        self.left: dict[str, str] = {}
        self._host, self._to, self._run, self._total, self._threads = host, to, run, total, threads
        self._back = back
        self._patience = _BACK_S if back else _AGAIN_S
        self._end: float | None = None
        self._repeats = False
        self._count: int = 0 if before is None else before._count
        self._held: set[str] = set()  # put in quarantine meanwhile

    def move(self, names: Sequence[str]) -> None:
        """Those that cannot be moved are passed over. Raises what is not the fault of single VMs."""
        left = list(names)
        if left and not self._back:
            _see_that_it_runs(self._host, self._to)
        while left:
            done, fault = self._host.backends.move_many(left, self._to, self._threads)
            for each in done:
                self._note(each)
            if fault is not None:
                self._pass_over(left[len(done)], fault)
            left = left[len(done) + 1 :]

    def again(self) -> None:
        """Those that were passed over, until they are moved or patience ends."""
        self._repeats = True
        while self.left and not self._late():
            self._host.system.sleep(_POLL_S)
            names = list(self.left)
            self.left = {}
            self.move(names)
            self.see_served([name for name in names if name not in self.left])

    def _note(self, done: MoveResult) -> None:
        text = "is there" if done.owner == self._to else "has no guest to move"
        if done.total_us:
            self.moves[done.vm] = done.total_us
            text = f"{done.total_us / 1000:.2f} ms"
        self._count += 1
        self._run.progress(text, item=done.vm, count=self._count, total=self._total)

    def _pass_over(self, name: str, fault: HotswapError) -> None:
        host = self._host
        if not isinstance(fault, BrokerError | StateUnknown) or any(_broken(host, side) for side in Side):
            raise fault
        if not self._settles(name):
            raise fault
        vm = host.backends.vm(name)
        if vm.quarantine:
            self._held.add(name)
            self._run.progress("is in quarantine", item=name)
            return
        why = baseline.why_not(vm, self._to)
        self.left[name] = f"VM {name} cannot be moved to {self._to}: {why}" if why else fault.message
        if self._late() and not self._repeats:  # it may be the instance after all, and each VM would take as long
            raise BrokerError(some(list(self.left.values()), "; ")) from fault
        if self._end is None:
            self._end = host.system.monotonic() + self._patience
        self._run.progress(f"has to wait: {why or fault.message}", item=name)

    def _late(self) -> bool:
        return self._end is not None and self._host.system.monotonic() >= self._end

    def _settles(self, name: str) -> bool:
        """Whether it is clear before long who serves the VM, if it has a guest."""

        def clear() -> bool:
            vm = self._host.backends.vm(name)
            return not vm.to_serve or vm.certainty is OwnerCertainty.OWNS

        return wait_until(clear, 0.0 if self._back else SERVED_S, self._host.system, poll_s=_POLL_S)

    def see_served(self, names: Sequence[str]) -> None:
        """What guests have to send must be taken: an address that does not translate is not reported otherwise."""
        host, to, known = self._host, self._to, {vm for vm, _ in baseline.known(self._run)}
        names = [name for name in names if name not in known | self._held]

        def unserved() -> list[str]:
            return host.backends.unserved(names)

        with contextlib.suppress(SwitchError):
            host.wait(lambda: not unserved(), SERVED_S, str)
            return
        waiting = unserved()
        if self._back:
            self._run.warn(f"instance {to} does not take what the guest sends of VM {some(waiting)}")
            return
        suspects = [sample.place for sample in read(host, waiting) if sample.transmits and sample.outstanding]
        tell_apart(host, to, self._run, suspects)


@contextlib.contextmanager
def _row(
    host: Host, names: Sequence[str], to: Side, run: StepContext, *, back: bool, before: _Row | None, total: int
) -> Iterator[_Row]:
    """What surrounds moves: frames that come meanwhile are caught before, and delivered after."""
    row: _Row | None = None
    try:
        if names:
            _prefer(host, to)
            if not back:
                _see_that_it_runs(host, to)
            arm(host, names, to, None if back else to)
        with host.message_threads() as threads:
            row = _Row(host, to, run, total, threads, before, back=back)
            yield row
    except HotswapError:
        with contextlib.suppress(BrokerError):
            host.backends.disarm(names)  # those that were not moved
        raise
    finally:
        if row is not None and (moved := [name for name in names if name in row.moves]):
            drain_pmd_queues(host)
            _deliver(host, to, moved, run)


def tell_apart(host: Host, to: Side, run: StepContext, suspects: Collection[Place]) -> None:
    """Of rings from which ``to`` takes nothing: the other side is given their VMs for a moment.

    Raises SwitchError if that takes something, and leaves the VMs there. Else the guests have it so, and the VMs return
    to ``to`` and are not judged. Raises also what keeps a VM from being moved."""
    before = {sample.place: sample for sample in read(host, {vm for vm, _ in suspects}) if sample.place in suspects}
    names = sorted({vm for vm, _ in before})
    if not names:
        return
    drain_pmd_queues(host)
    _deliver(host, to, names, run)  # of the moves before
    _, left = _rows(host, names, to.other, run, _Row.move, back=True)
    served = _served_there(host, before) if not left else []
    if left or served:
        fault = f"instance {to} does not take what the guest sends of VM {some(sorted(left) or served)}"
        raise SwitchError("; ".join([f"{fault}, instance {to.other} does" if served else fault, *left.values()]))
    faults = {place: rings.fault(sample, sample) for place, sample in before.items()}
    for place, why in faults.items():
        run.warn(f"{rings.text(place, why)}, on either instance alike: not judged")
    baseline.remember(run, faults)

    def return_them(row: _Row, names: Sequence[str]) -> None:
        row.move(names)
        row.again()

    _, left = _rows(host, names, to, run, return_them, back=False)
    if left:
        raise BrokerError(some(list(left.values()), "; "))


def _served_there(host: Host, before: Mapping[Place, rings.RingSample]) -> list[str]:
    """VMs of which a ring is served now that was not ``before``."""

    def served() -> list[str]:
        now = {sample.place: sample for sample in read(host, {vm for vm, _ in before})}
        return sorted({place[0] for place, then in before.items()
                       if place in now and now[place].enabled and not rings.fault(then, now[place])})  # fmt: skip

    with contextlib.suppress(SwitchError):
        host.wait(lambda: bool(served()), SERVED_S, str)
    return served()


def _broken(host: Host, side: Side) -> bool:
    pid = host.instances[side].pid()
    return pid is None or host.system.stopped(pid)


def _see_that_it_runs(host: Host, side: Side) -> None:
    """The uplink is turned to it already, so its deadlines are not waited for. Raises SwitchError."""
    if _broken(host, side):
        raise SwitchError(f"instance {side} died or is stopped", hint="its log is kept in the state directory")


def _prefer(host: Host, to: Side) -> None:
    """Whoever is to run first in these moves. They are made without it too."""
    for side, rank in ((to, Rank.TAKES), (to.other, Rank.GIVES)):
        with contextlib.suppress(SwitchError):
            host.prefer_threads(side, rank)


def arm(host: Host, names: Sequence[str], to: Side, needed: Side | None) -> None:
    """Have frames for VMs caught on ``to``; those that were not caught yet have reached the VM when this returns. As
    ``drain_pmd_queues`` for ``needed``."""
    if host.backends.arm(names, to):
        drain_pmd_queues(host, needed)


def _deliver(host: Host, side: Side, names: Sequence[str], run: StepContext) -> None:
    """What nobody delivered to VMs, many frames at a time: they wait in the broker's memory for seconds only."""
    waiting: list[tuple[bytes, str]] = []
    for caught in host.backends.undelivered_many(names):
        if caught.error is not None:
            run.warn(f"VM {caught.vm}: frames that arrived during its move are not known: {caught.error.message}")
        elif caught.frames and (port := host.ofport(caught.vm)) is not None:
            waiting += [(frame, f"output:{port}") for frame in caught.frames]
        if sum(len(frame) for frame, _ in waiting) > _AT_ONCE:
            host.openflow(side).packet_outs(waiting)
            waiting = []
    if waiting:
        host.openflow(side).packet_outs(waiting)
