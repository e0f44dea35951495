"""Move VMs to an instance: first one VM alone, so that a fault of the instance costs only one VM its network, then all
others. After each of the two, the guests are checked to be served.

A VM that cannot be moved does not keep the others from being moved. If a VM looks unserved, its guest may be the cause,
because the guest writes the rings. So the VM is given back for a moment: the instance that served it before shows
whether the new one is at fault.
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
from ovs_hotswap.model import Life, MessageThread, Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.priority import Rank
from ovs_hotswap.upgrade import baseline
from ovs_hotswap.upgrade.baseline import read
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.wording import some

SERVED_S = 2.0  # a ring from which no switch takes anything for this long counts as unserved
_AGAIN_S = 5.0  # for VMs that cannot be moved at once, such as one that is restarting
_BACK_S = 2.0  # for such VMs on the way back, where the new instance can be ended instead
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
    """Move every VM that is not in quarantine to ``to``, one alone and then all others, and check that each is served
    there. Returns the microseconds of each move by VM. ``first``: the VM that is moved alone. ``without``: VMs that
    stay. ``back``: return the VMs to the side that served them before, in whatever state that side is; a VM that it
    serves without the broker was never moved.

    The new owner delivers the frames that arrived during a move. Raises BrokerError if a VM has stayed where it was,
    after all others have been moved; StateUnknown if a VM's owner is not known; and SwitchError if ``to`` does not
    serve a VM which the other side serves.
    """
    vms = [vm for vm in host.backends.vms(read=False)
           if not vm.quarantine and not vm.confirmed_on(to) and not (back and vm.without_broker)]  # fmt: skip
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
    """Call ``act`` for one row of VMs after the other. The VMs of a row are as many as all frames can be captured for.
    Returns ``moves`` and ``left`` of all rows."""
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
    """VMs that are moved to ``to``. ``moves``: the microseconds of each move by VM, with those of the row ``before``.
    ``left``: the VMs that were not moved, each with the reason."""

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
        self._held: set[str] = set()  # VMs that have been put in quarantine since

    def move(self, names: Sequence[str]) -> None:
        """Move the VMs, and pass over those that cannot be moved. Raises faults that do not concern a single VM."""
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
        """Try the VMs that were passed over again, until they are moved or the patience ends."""
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
        both_run = all(host.instances[side].life() is Life.RUNS for side in Side)
        if not isinstance(fault, BrokerError | StateUnknown) or not both_run:
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
        if self._late() and not self._repeats:  # the instance may be at fault, and every VM would take as long
            raise BrokerError(some(list(self.left.values()), "; ")) from fault
        if self._end is None:
            self._end = host.system.monotonic() + self._patience
        self._run.progress(f"has to wait: {why or fault.message}", item=name)

    def _late(self) -> bool:
        return self._end is not None and self._host.system.monotonic() >= self._end

    def _settles(self, name: str) -> bool:
        """Whether it becomes clear soon which side owns the VM. A VM without a guest needs no owner."""

        def clear() -> bool:
            vm = self._host.backends.vm(name)
            return not vm.to_serve or vm.certainty is OwnerCertainty.OWNS

        return wait_until(clear, 0.0 if self._back else SERVED_S, self._host.system, poll_s=_POLL_S)

    def see_served(self, names: Sequence[str]) -> None:
        """Check that the switch takes what the guests send. An address that does not translate shows in no other
        way."""
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
    """Surround the moves of a row: capture rings catch the frames that arrive during the moves, and what neither side
    has delivered is delivered afterwards."""
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
            host.backends.disarm(names)  # which concerns those that were not moved
        raise
    finally:
        if row is not None and (moved := [name for name in names if name in row.moves]):
            drain_pmd_queues(host)
            deliver(host, to, moved, run)


def tell_apart(host: Host, to: Side, run: StepContext, suspects: Collection[Place]) -> None:
    """Find out whether ``to`` or the guests are the cause of ``suspects``, the rings from which ``to`` takes nothing:
    move their VMs to the other side for a moment.

    If the other side takes something, raises SwitchError and leaves the VMs there. Otherwise the guests are the cause:
    the VMs return to ``to``, and these rings are no longer judged. Also raises what keeps a VM from being moved."""
    before = {sample.place: sample for sample in read(host, {vm for vm, _ in suspects}) if sample.place in suspects}
    names = sorted({vm for vm, _ in before})
    if not names:
        return
    drain_pmd_queues(host)
    deliver(host, to, names, run)  # frames of the moves before
    _, left = _rows(host, names, to.other, run, _Row.move, back=True)
    served = _served_there(host, before) if not left else []
    if left or served:
        fault = f"instance {to} does not take what the guest sends of VM {some(sorted(left) or served)}"
        raise SwitchError("; ".join([f"{fault}, instance {to.other} does" if served else fault, *left.values()]))
    faults = {place: rings.fault(sample, sample) for place, sample in before.items()}
    for place, why in faults.items():
        run.warn(f"{rings.text(place, why)}, on both instances: not judged")
    baseline.remember(run, faults)

    def return_them(row: _Row, names: Sequence[str]) -> None:
        row.move(names)
        row.again()

    _, left = _rows(host, names, to, run, return_them, back=False)
    if left:
        raise BrokerError(some(list(left.values()), "; "))


def _served_there(host: Host, before: Mapping[Place, rings.RingSample]) -> list[str]:
    """The VMs that have a ring that is served now and was not served ``before``."""

    def served() -> list[str]:
        now = {sample.place: sample for sample in read(host, {vm for vm, _ in before})}
        return sorted({place[0] for place, then in before.items()
                       if place in now and now[place].enabled and not rings.fault(then, now[place])})  # fmt: skip

    with contextlib.suppress(SwitchError):
        host.wait(lambda: bool(served()), SERVED_S, str)
    return served()


def _see_that_it_runs(host: Host, side: Side) -> None:
    """Check that the instance runs, as the uplink is steered to it already: waiting for the deadlines of an instance
    that does not would take too long. Raises SwitchError."""
    life = host.instances[side].life()
    if life is not Life.RUNS:
        raise SwitchError(f"instance {side} {life.value}", hint="its log is kept in the state directory")


def _prefer(host: Host, to: Side) -> None:
    """Prefer the threads that must run first in these moves. A failure does not stop the moves."""
    for side, rank in ((to, Rank.TAKES), (to.other, Rank.GIVES)):
        with contextlib.suppress(SwitchError):
            host.prefer_threads(side, rank)


def arm(host: Host, names: Sequence[str], to: Side, needed: Side | None) -> None:
    """Catch frames for the VMs on ``to``. Frames that were under way before have reached their VM when this returns.
    ``needed`` and the errors are those of ``drain_pmd_queues``; also raises what the back ends raise."""
    if host.backends.arm(names, to):
        drain_pmd_queues(host, needed)


def deliver(host: Host, side: Side, names: Sequence[str], run: StepContext) -> None:
    """Give the VMs the frames that neither side has delivered, many at a time, because the broker's memory holds them
    only for seconds."""
    waiting: dict[str, list[tuple[bytes, str]]] = {}  # by bridge

    def send() -> None:
        for bridge, frames in waiting.items():
            host.openflow(side, bridge).packet_outs(frames)
        waiting.clear()

    for caught in host.backends.undelivered_many(names):
        if caught.error is not None:
            run.warn(f"VM {caught.vm}: frames that arrived during its move are not known: {caught.error.message}")
        if caught.undeliverable:
            frames = "a large frame" if caught.undeliverable == 1 else f"{caught.undeliverable} large frames"
            run.warn(
                f"VM {caught.vm}: {frames} of several segments (GSO) arrived during its move and cannot be delivered"
            )
        if caught.frames and (port := host.port_of(caught.vm)) is not None:
            waiting.setdefault(port.bridge, []).extend((frame, f"output:{port.ofport}") for frame in caught.frames)
        if sum(len(frame) for frames in waiting.values() for frame, _ in frames) > _AT_ONCE:
            send()
    send()
