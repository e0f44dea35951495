"""A trace from its beginning to its end: makes the copies, reads them, asks the switch about them, removes the copies.

Nothing is held while packets are waited for: the lock that instances are programmed under is taken only for the moment
in which the copies are made. An upgrade that begins removes them (``upgrade.upgrade``), and the trace ends.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ovs_hotswap.clone.conntrack_entries import Entry, parse_dump
from ovs_hotswap.counters.reading import CounterReader
from ovs_hotswap.diagnose.naming import meaning_of, ports_of
from ovs_hotswap.errors import BusyError, HostError, PrecheckFailed, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.plan.interrupts import Interrupted, Interrupts
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.datapath import USERSPACE, parse_numbers
from ovs_hotswap.switch.rpc import quick_call
from ovs_hotswap.switch.trace_mirror import TraceMirror
from ovs_hotswap.switch.trace_rows import NAME, Left, Owner
from ovs_hotswap.system import System
from ovs_hotswap.tracing import connections, datapath, fields, ways
from ovs_hotswap.tracing.capture import Capture, Caught, DeviceGone, PcapFile
from ovs_hotswap.tracing.fields import Fields
from ovs_hotswap.tracing.follow import Way
from ovs_hotswap.tracing.found import Direction, Ended, Packet, Path, Trace
from ovs_hotswap.tracing.guard import Guard
from ovs_hotswap.tracing.record import Rule, parse_record
from ovs_hotswap.tracing.target import Target
from ovs_hotswap.tracing.wish import Instruction, Wish, kernel_filter, mirror_filters
from ovs_hotswap.upgrade.upgrade import Upgrader

_ANSWER_S = 1.0
_DATAPATH = "ovs-netdev"  # as `ofproto/trace` knows it (ofproto/ofproto-dpif-trace.c, parse_flow_and_packet)
_LOOK_S = 0.5  # between two looks at the datapath's flows
_RATE_S = 0.3  # between the two looks at the VM's counters before a trace
_PATIENCE_S = 10.0  # with a task of the watchdog
_GRACE_S = 15.0  # after the end of a trace, until its guard ends it
_MOST_FLOWS = 20_000  # of the datapath: to dump these takes the switch's main thread about 0.1 s
_FLOWS = re.compile(r"^\s*flows:\s*(\d+)$", re.MULTILINE)
_MOST_WIDE = 5_000  # with their numbers and all their fields, which is three times as much text
_MOST_ENTRIES = 50_000  # of the connection table
_WAYS = 200  # that are kept for the packets that follow

Show = Callable[[Packet, Path, bool], None]
"""Shows a packet and its way. The last argument: whether that way was not shown before."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a trace ends: after ``count`` packets or ``seconds``, or if the switch would copy more than ``rate`` packets
    a second. ``snaplen``: how many bytes of each packet are copied."""

    count: int = 10
    seconds: float = 10.0
    rate: int = 5_000
    snaplen: int = 256


@dataclass
class _Kept:
    """What a trace has found so far."""

    began: float
    packets: list[Packet] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    known: dict[object, int] = field(default_factory=dict)
    waiting: list[tuple[Caught, Fields]] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)

    def limit(self, text: str) -> None:
        if text not in self.limits:
            self.limits.append(text)


class Tracer:
    """Traces the packets of ``wish`` that a VM sends and receives. ``file``: where they are written besides.

    ``run`` raises BusyError if an upgrade or another trace is under way, PrecheckFailed if the VM's traffic is too much
    or the bridge has no room, and SwitchError.
    """

    def __init__(
        self, host: Host, target: Target, wish: Wish, bounds: Bounds = Bounds(), file: PcapFile | None = None, *,
        capture: Callable[[str | None, Sequence[Instruction]], Capture] = Capture,
        guard: Callable[[Callable[[], object], float], Guard] = Guard,
    ) -> None:  # fmt: skip
        self._host, self._target, self._wish, self._bounds, self._file = host, target, wish, bounds, file
        self._capture, self._guard = capture, guard
        self._entries: dict[int, tuple[Entry, ...]] = {}
        self._mirror = TraceMirror(target.paths, host.system)
        self._owner = Owner(target.vm, os.getpid(), start_time(os.getpid()))

    # -- before

    def filters(self) -> tuple[str | None, ...]:
        """Return the filters of the mirrors that the trace needs."""
        return mirror_filters(self._wish) if self._mirror.can_filter() else (None,)

    def see(self) -> None:
        """Raises what ``run`` raises if the trace cannot begin now. Nothing is changed."""
        Upgrader(self._host).refuse_if_unfinished()
        self._refuse_second(self._mirror.left())
        target, filters = self._target, self.filters()
        if filters == (None,):
            self._refuse_rate(self.rate())
        self._mirror.rows().make(target.bridge, target.vm, self._owner, self._bounds.snaplen, filters)

    def rate(self) -> float:
        """Return how many packets a second the VM sends and receives now."""
        reader = CounterReader(self._target.paths, self._host.system, self._target.bridge, timeout=_ANSWER_S)

        def counted() -> int:
            found = reader.present_ports(self._target.bridge).get(self._target.ofport, {})
            return found.get("rx_packets", 0) + found.get("tx_packets", 0)

        before, begun = counted(), self._host.system.monotonic()
        self._host.system.sleep(_RATE_S)
        return (counted() - before) / (self._host.system.monotonic() - begun)

    def _refuse_rate(self, rate: float) -> None:
        if rate > self._bounds.rate:
            raise PrecheckFailed(
                f"{self._target.vm} sends and receives {rate:.0f} packets a second now, and the switch would copy all"
                f" of them: the limit is {self._bounds.rate}",
                hint=f"`--max-rate {round(rate * 1.5, -3):.0f}` allows it, and takes time from the core that serves the"
                " VM (docs/operations.md)",
            )

    def _refuse_second(self, left: Sequence[Left]) -> None:
        for each in left:
            owner = each.owner
            if owner is not None and self._host.system.is_still(owner.pid, owner.born):
                raise BusyError(f"a trace of {owner.vm} is under way (process {owner.pid})",
                                hint="wait for it, or end it: `ovs-hotswap trace --clean`")  # fmt: skip

    # -- the trace

    def run(self, show: Show, begins: Callable[[], object] = lambda: None) -> Trace:
        """Trace. Call ``begins`` when packets are copied, and ``show`` with each packet soon after it has come."""
        self.see()
        system, filters = self._host.system, self.filters()
        kept = _Kept(system.wall())
        with Interrupts() as interrupts:
            with self._copies(filters, kept):
                begun = system.monotonic()
                with self._capture(self._target.namespace, kernel_filter(self._wish)) as capture:
                    self._mirror.wake()
                    begins()
                    ended = self._shown(capture, kept, show)
                    with interrupts.shield():
                        copied, missed = self._counts(capture)
                        self._explain(kept, show)
                        seconds = system.monotonic() - begun
        self._limits(kept, ended, filters, missed)
        return Trace(
            self._target.vm, self._target.side, self._target.bridge, self._wish.text(), round(kept.began, 3),
            round(seconds, 3), ended, copied, missed, filters != (None,), tuple(kept.packets), tuple(kept.paths),
            tuple(kept.limits),
        )  # fmt: skip

    @contextlib.contextmanager
    def _copies(self, filters: Sequence[str | None], kept: _Kept) -> Iterator[None]:
        """Have the packets copied. The copies end with the block, or with this process, however it ends."""
        mirror, owner, target = self._mirror, self._owner, self._target
        try:
            most = self._bounds.seconds + _PATIENCE_S + _GRACE_S
            guard = self._guard(lambda: TraceMirror(target.paths, System()).remove(owner), most)
        except OSError as error:
            raise HostError(f"no process can be made that would remove the trace: {error.strerror}") from error
        try:
            with self._host.lock(_PATIENCE_S):
                Upgrader(self._host).refuse_if_unfinished()
                self._refuse_second(mirror.left())
                if mirror.remove():
                    kept.limit("an earlier trace had ended without removing its copies; they were removed")
                mirror.make(target.bridge, target.vm, owner, self._bounds.snaplen, filters)
            yield
        finally:
            with contextlib.suppress(SwitchError):  # the guard tries again
                mirror.remove(owner)
                guard.done()

    def _follow(self, capture: Capture, kept: _Kept) -> Iterator[Ended | None]:
        """Read packets, and yield when it is time to show those that wait: why the trace ends, or ``None``."""
        clock, bounds = self._host.system, self._bounds
        begun = looked = at = clock.monotonic()
        counted = capture.copied()
        while True:
            now = clock.monotonic()
            wanted = bounds.count - len(kept.packets) - len(kept.waiting)
            if wanted <= 0 or now >= begun + bounds.seconds:
                self._stop()
                yield Ended.COUNT if wanted <= 0 else Ended.SECONDS
            if now >= at + _LOOK_S:
                copied = capture.copied()
                if copied - counted > bounds.rate * (now - at):
                    self._stop()
                    yield Ended.RATE
                counted, at = copied, now
            if kept.waiting and now >= looked + _LOOK_S:
                looked = now
                yield None
            caught = capture.read(wanted, min(_LOOK_S / 2, begun + bounds.seconds - now))
            kept.waiting += [
                (each, found) for each in caught if (found := _taken_apart(each)) and self._wish.takes(found)
            ]

    def _stop(self) -> None:
        """Have nothing copied any longer: what follows costs the VM nothing."""
        with contextlib.suppress(SwitchError):  # the copies are removed later, or by the guard
            self._mirror.stop(self._owner)

    def _shown(self, capture: Capture, kept: _Kept, show: Show) -> Ended:
        """Show packets until the trace ends, and return why it does."""
        try:
            for ended in self._follow(capture, kept):
                self._explain(kept, show)
                if ended is not None:
                    return ended
        except DeviceGone:
            return Ended.REMOVED
        except Interrupted:
            return Ended.INTERRUPTED
        raise AssertionError("a trace ends for a reason")

    def _counts(self, capture: Capture) -> tuple[int, int]:
        """Return how many packets were copied, and how many of these could not be read in time."""
        missed = capture.missed
        try:
            return capture.copied(), missed
        except SwitchError:  # the device is gone
            return 0, missed

    # -- what became of the packets

    def _explain(self, kept: _Kept, show: Show) -> None:
        """Say of the packets that wait what became of them, and show them."""
        waiting, kept.waiting = kept.waiting, []
        if not waiting:
            return
        at = self._host.system.wall()
        try:
            switch = self._look(kept)
        except SwitchError as error:
            kept.limit(f"the switch did not say what it does with packets: {error.message}")
            switch = ways.Switch(self._target.vm, "", self._macs(), None, {}, {}, lambda _: None, None)
        for caught, found in waiting:
            age = max(0.0, at - caught.time)
            direction = ways.direction_of(switch, found, age)
            way = ways.way_of(switch, found, direction, age)
            number, new = self._path(switch, found, direction, way, kept)
            packet = Packet(len(kept.packets) + 1, round(caught.time, 6), direction, found.length, fields.words(found),
                            number)  # fmt: skip
            kept.packets.append(packet)
            if self._file is not None:
                self._file.add(caught, found.length)
            show(packet, kept.paths[number - 1], new)

    def _path(
        self, switch: ways.Switch, found: Fields, direction: Direction, way: Way | None, kept: _Kept
    ) -> tuple[int, bool]:  # fmt: skip
        """Return the number of the packet's way, and whether it is the first packet on it. What differs in nothing but
        what no flow looks at has the same way."""
        passed = None if way is None else tuple((each.text, each.actions) for each in way.flows)
        key = direction, passed, None if passed is not None else (repr(sorted(found.groups.items())), found.tags)
        if key in kept.known and (number := kept.known[key]):
            return number, False
        path = ways.path(switch, found, direction, way, self._ask, self._record, self._state)
        same = next((each.number for each in kept.paths if _alike(each, path)), None)
        if same is None:
            kept.paths.append(replace(path, number=len(kept.paths) + 1))
        if len(kept.known) < _WAYS:
            kept.known[key] = same or len(kept.paths)
        return same or len(kept.paths), same is None

    def _look(self, kept: _Kept) -> ways.Switch:
        """Read the datapath's ports and flows."""
        target, rows = self._target, self._mirror.rows()
        self._entries.clear()
        shown = self._appctl("dpctl/show", USERSPACE)
        numbers = parse_numbers(shown)
        counted, flows = _FLOWS.search(shown), None
        if counted is not None and int(counted[1]) > _MOST_FLOWS:
            kept.limit(f"the datapath has {counted[1]} flows: to read more than {_MOST_FLOWS} would hold up the main"
                       " thread of the switch, so what it really did was not looked at")  # fmt: skip
        else:
            wide = ("-m", "--no-names") if self._records and int(counted[1] if counted else 0) <= _MOST_WIDE else ()
            flows = datapath.parse(self._appctl("dpctl/dump-flows", *wide, USERSPACE), numbers.get(NAME))
        if rows.offloads:
            kept.limit("a NIC may carry out flows of this datapath, and what it does alone is not copied")
        return ways.Switch(
            target.vm, numbers.get(target.vm, ""), self._macs(rows.mac(target.vm)), numbers.get(NAME),
            {number: name for name, number in numbers.items()}, {**rows.names(), **ports_of(target.wanted)},
            meaning_of(target.wanted), flows,
        )  # fmt: skip

    def _macs(self, *more: str | None) -> frozenset[str]:
        known = (self._target.vms.get(self._target.vm), *more)
        return frozenset(mac for mac in known if mac is not None)

    def _ask(self, states: Sequence[str], flow: str) -> str | None:
        assumed = [word for state in states for word in ("--ct-next", state)]
        try:
            return self._appctl("ofproto/trace", *assumed, _DATAPATH, flow)
        except SwitchError:
            return None

    def _record(self, flow: datapath.Flow) -> tuple[Rule, ...]:
        if not flow.ufid:
            return ()
        thread = (f"pmd={flow.core}",) if flow.core else ()
        try:
            return parse_record(self._appctl("ofproto/detrace", f"ufid:{flow.ufid}", *thread))
        except SwitchError:
            return ()

    def _state(self, zone: int, found: Fields) -> str | None:
        """Ask the connection table, which is read at most once for each zone and look."""
        try:
            if zone not in self._entries:
                count = int(self._appctl("dpctl/ct-get-nconns", USERSPACE))
                text = (
                    self._appctl("dpctl/dump-conntrack", "-m", USERSPACE, f"zone={zone}")
                    if count <= _MOST_ENTRIES
                    else ""
                )
                self._entries[zone] = parse_dump(text).entries
        except (SwitchError, ValueError):
            return None
        return connections.state_of(self._entries[zone], found)

    @cached_property
    def _records(self) -> bool:
        """Whether the switch keeps a record of how it made flows of the datapath. Raises SwitchError."""
        return "ofproto/detrace" in self._appctl("list-commands")

    def _appctl(self, command: str, *words: str) -> str:
        return str(quick_call(self._target.paths.vswitchd_ctl, command, list(words), timeout=_ANSWER_S))

    def _limits(self, kept: _Kept, ended: Ended, filters: Sequence[str | None], missed: int) -> None:
        if not self._target.wanted.overlay:
            kept.limit("others program the bridges of this host: their tables are named by number, and what they are"
                       " for is not known")  # fmt: skip
        if missed:
            kept.limit(f"{missed} packets came faster than they were read, and are not shown")
        if ended is Ended.RATE:
            kept.limit(f"the trace was ended early: the switch copied more than {self._bounds.rate} packets a second"
                       f"{'' if filters != (None,) else ', because it can only copy all packets of a VM'}")  # fmt: skip
        if ended is Ended.REMOVED:
            kept.limit("the trace was ended early: an upgrade began, or the instance ended")
        if not kept.packets:
            kept.limit(f"no packet that passed the port of {self._target.vm} was one of these ({self._wish.text()}):"
                       f" `ovs-hotswap diagnose {self._target.vm}`")  # fmt: skip


def _taken_apart(caught: Caught) -> Fields | None:
    try:
        return fields.dissect(caught.frame)
    except ValueError:
        return None


def _alike(one: Path, other: Path) -> bool:
    """Whether two ways differ in nothing but counters."""
    flows = [[(each.match, each.actions) for each in path.datapath] for path in (one, other)]
    return flows[0] == flows[1] and replace(one, number=0, datapath=()) == replace(other, number=0, datapath=())
