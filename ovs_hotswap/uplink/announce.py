"""Announces the VTEP's address from the active instance's own virtual function (VF), on any NIC with VFs.

Both VFs may carry the address, each on a MAC of its own, and other hosts send to the MAC that they learnt last. The
instance that takes over announces the address from its VF (ARP announcement, RFC 5227, section 3; unsolicited
advertisement of IPv6, RFC 4861, 7.2.6) and asks neighbours for their own address, because a question also teaches a
host that ignores announcements (RFC 826; RFC 4861, 7.2.3). From then on it alone answers for the address. Nothing is
lost while the other hosts learn, because both sides deliver in the window.

A host that never learns, such as one with a static neighbour entry, keeps sending to the old MAC. So the steering ends
only when the other side's uplink has been silent for a while; otherwise it fails and names the hosts that still send.

Who has the traffic is read from the flows: the instance that speaks for the address. A record says which side was
announced last, because the flows of an instance that died are gone.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Protocol

from ovs_hotswap.errors import HotswapError, SwitchError, UplinkError
from ovs_hotswap.mac import unteaching
from ovs_hotswap.model import Finding, Proof, Severity, Side, Steered, Way
from ovs_hotswap.overlay.tables import Voice
from ovs_hotswap.uplink.announced import Announced
from ovs_hotswap.uplink.driver import Speaker
from ovs_hotswap.uplink.frames import MARK_BYTES, Host, announcement, question
from ovs_hotswap.wording import some

_POLL_S = 0.2  # between two looks at a counter
_PAUSE_S = 0.5  # between two announcements
_ASKED = 6  # neighbours with each announcement: switches that inspect ARP take 15 packets a second from a port
_QUESTION_S = 0.1  # between two questions of a proof, for the same reason
_COUNTED_LATE_S = 0.6  # Open vSwitch adds packets to the flows' counters every half second
_PATIENCE_S = 5.0  # for hosts to learn; one may keep what it learnt for a second (locktime, arp(7))
_UNHEARD = 3  # announcements if the other side cannot be listened to
_REPEATS, _REPEAT_S = 10, 1.0  # after a failover
_ANSWER_S, _ANSWER_ALONE_S = 3.0, 2.0  # for a proof, and for one of one way only


class Speakers(Protocol):
    def end(self, side: Side, nic: int = 0) -> Speaker:
        """The instance's end of its uplink. Raises SwitchError if no process would answer."""


class Record(Protocol):
    """The record of what was announced last. All methods raise UplinkError."""

    def read(self) -> Announced | None: ...

    def write(self, announced: Announced) -> None: ...

    def remove(self) -> None: ...


def _in_thread(act: Callable[[], None]) -> None:
    threading.Thread(target=act, name="announce", daemon=True).start()


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Faults of a switch are faults of the uplink."""
    try:
        yield
    except SwitchError as error:
        raise UplinkError(error.message, hint=error.hint) from error


class AnnounceUplink:
    """The driver. ``vtep`` is the VTEP's address, which side ``s`` has on the MAC ``macs[s]``. ``neighbours``: on-link
    hosts. ``silence_s``: how long the other side must have been silent, in seconds. ``vlan``: the underlay's tag.

    ``quick``: ``steer`` announces and does not wait, and ``background`` repeats the announcements some times, because
    the other instance is dead, and how silent it is cannot be counted.
    """

    def __init__(
        self,
        *,
        vtep: str,
        macs: Mapping[Side, str],
        neighbours: Sequence[Host],
        silence_s: float,
        switches: Speakers,
        record: Record,
        vlan: int | None = None,
        quick: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        background: Callable[[Callable[[], None]], None] = _in_thread,
    ) -> None:
        self._vtep, self._macs, self._neighbours, self._vlan = vtep, dict(macs), tuple(neighbours), vlan
        self._silence_s = silence_s + _COUNTED_LATE_S
        self._switches, self._announced, self._quick = switches, record, quick
        self._clock, self._sleep, self._background = clock, sleep, background

    def owner(self) -> Side | None:
        """The side that speaks for the VTEP's address. If both do, a steering was interrupted, and it is the one that
        was announced last. It also is if its instance does not answer, because other hosts still know its MAC.

        A ``quick`` uplink gives the side that was announced last, because an instance that hangs must not delay it."""
        with _faults():
            record = self._announced.read()
            if not self._quick:
                return self._owner(record)
            return record.side if record is not None and record.address == self._vtep else None

    def steer(self, side: Side) -> None:
        """If the other side is not silent in time, this raises with ``side`` announced: which hosts have learnt its MAC
        and which have not is not known, so the caller must keep both instances, and steer back or again."""
        with _faults():
            record, end = self._announced.read(), self._switches.end(side)
            if self._settled(record, side):
                return
            self._speak(side, end)
            if self._quick:
                self._announced.write(Announced(side=side, address=self._vtep, settled=True))
                self._background(lambda: self._repeat(side))
                return
            before = self._await_silence(side, end)
            self._announced.write(Announced(side=side, address=self._vtep, settled=True, before=before))
            owner = self._owner(self._announced.read())
        if owner is not side:
            raise UplinkError(
                f"instance {side} was made to answer for {self._vtep}, but "
                f"{f'instance {owner}' if owner else 'neither instance'} does",
                hint=f"ovs-ofctl dump-flows of instance {side}, table 0, in_port=LOCAL",
            )

    def steer_at_once(self, side: Side) -> None:
        """The next ``steer`` sees whether the other side is silent."""
        with _faults():
            self._speak(side, self._switches.end(side))
        self._background(lambda: self._repeat(side))

    def _speak(self, side: Side, end: Speaker) -> None:
        self._announced.write(Announced(side=side, address=self._vtep))
        end.speak(self._vtep, Voice.SPEAKS, self._frames(side), self._vlan)
        if (other := self._end(side.other)) is not None:
            other.speak(self._vtep, Voice.SILENT, vlan=self._vlan)

    def prove(self, side: Side, end: Speaker, way: Way | None = None) -> Proof:
        """Neighbours answer to the VF's own MAC, so an answer proves both ways. If none comes, either may be broken,
        and this does not tell which: other hosts were not heard."""
        answered = self._answered(side, end, _ANSWER_S if way is None else _ANSWER_ALONE_S)
        return Proof(None if way is Way.INTO else answered, None if way is Way.OUT or not answered else True)

    def steered(self, side: Side) -> Steered | None:
        """Nothing but the instances counts packets."""
        return None

    def clear(self) -> None:
        with _faults():
            for side in Side:
                if (end := self._end(side)) is not None and end.speaks():
                    end.speak(self._vtep, Voice.SILENT, vlan=self._vlan)
            self._announced.remove()

    def check(self) -> list[Finding]:
        """Which hosts would learn another MAC cannot be known before it is announced."""
        try:
            with _faults():
                record = self._announced.read()
                owner = self._owner(record)
                found = [*self._check_macs(), *self._check_voices(record), *self._check_peers(record)]
        except UplinkError as error:
            return [Finding("uplink", Severity.ERROR, error.message, error.hint)]
        if owner is None:
            return found or [Finding("uplink", Severity.OK, f"{self._vtep} is announced by neither instance yet")]
        text = (
            f"{self._vtep} is announced by instance {owner} ({self._macs[owner]}); a host that will not learn the MAC "
            "of the other one cannot be known before that is announced, and the upgrade then goes back"
        )
        return found or [Finding("uplink", Severity.OK, text)]

    # -- who speaks

    def _end(self, side: Side) -> Speaker | None:
        """The end of an instance that would answer; ``None`` if it does not run or is stopped."""
        try:
            return self._switches.end(side)
        except SwitchError:
            return None

    def _owner(self, record: Announced | None) -> Side | None:
        if record is not None and record.address != self._vtep:
            return None
        ends = {side: self._end(side) for side in Side}
        if record is not None and ends[record.side] is None:
            return record.side
        found = [side for side, end in ends.items() if end is not None and end.speaks()]
        if len(found) == 1:
            return found[0]
        return record.side if found and record is not None else None

    def _settled(self, record: Announced | None, side: Side) -> bool:
        """Whether there is nothing to do for ``side``."""
        if record is None or not record.settled or (record.side, record.address) != (side, self._vtep):
            return False
        other = self._end(side.other)
        return self._switches.end(side).speaks() and not (other is not None and other.speaks())

    # -- announcing

    def _frames(self, side: Side, turn: int = 0) -> list[bytes]:
        """One announcement to all hosts, and questions to some neighbours: to others in each ``turn``."""
        host = Host(self._vtep, self._macs[side])
        count = len(self._neighbours)
        asked = [self._neighbours[(turn * _ASKED + n) % count] for n in range(min(_ASKED, count))]
        questions = (question(host, each, bytes(MARK_BYTES), self._vlan) for each in asked)
        return [announcement(host, self._vlan), *questions]

    def _await_silence(self, side: Side, end: Speaker) -> int:
        """Announce ``side`` again and again until the other one is silent, and return the number of packets that the
        other one has counted. Raises UplinkError if it is not silent in time."""
        other = self._end(side.other)
        if other is not None:
            try:
                return self._silent(side, end, other)
            except SwitchError:
                if self._end(side.other) is not None:
                    raise
        for turn in range(1, _UNHEARD):  # it has ended, and does not count what still comes for it
            self._sleep(_PAUSE_S)
            end.announce(self._frames(side, turn))
        return 0

    def _silent(self, side: Side, end: Speaker, other: Speaker) -> int:
        begun = since = announced = self._clock()
        count, turn = other.received(), 0
        while (now := self._clock()) - since < self._silence_s:
            if now - begun >= _PATIENCE_S + self._silence_s:
                raise self._still_sent(side, other, turn + 1)
            if now - announced >= _PAUSE_S:
                announced, turn = now, turn + 1
                end.announce(self._frames(side, turn))
            self._sleep(_POLL_S)
            if (more := other.received()) != count:
                since, count = self._clock(), more
        return count

    def _still_sent(self, side: Side, other: Speaker, announcements: int) -> UplinkError:
        return UplinkError(
            f"{self._vtep} was announced {announcements} times from instance {side}'s MAC {self._macs[side]}, and "
            f"{self._senders(other)} still sends to instance {side.other}'s {self._macs[side.other]}",
            hint=self._hint,
        )

    def _senders(self, end: Speaker) -> str:
        with contextlib.suppress(SwitchError):
            return some(end.senders(self._silence_s)) or "a host that is not known"
        return "a host that is not known"

    @property
    def _hint(self) -> str:
        return (f"on that host, or on the gateway to it: `ip neigh show {self._vtep}`; a static (PERMANENT) entry must "
                "become a learnt one")  # fmt: skip

    def _repeat(self, side: Side) -> None:
        """Announce ``side`` again some times, unless the other one has been announced since."""
        for turn in range(1, _REPEATS + 1):
            self._sleep(_REPEAT_S)
            with contextlib.suppress(HotswapError):  # the watchdog acts on an instance that does not answer
                record = self._announced.read()
                if record is None or record.side is not side:
                    return
                self._switches.end(side).announce(self._frames(side, turn))

    # -- looking

    def _answered(self, side: Side, end: Speaker, seconds: float) -> bool | None:
        asked = self._neighbours[:_ASKED]
        if not asked:
            return None
        before, until = end.answers(), self._clock() + seconds
        asker = Host(unteaching(ip_address(self._vtep).version, self._macs[side]), self._macs[side])
        while True:
            for each in asked:
                end.send(question(asker, each, os.urandom(MARK_BYTES), self._vlan))
                self._sleep(_QUESTION_S)
                if end.answers() > before:
                    return True
            if self._clock() >= until:
                return False

    def _check_macs(self) -> Iterator[Finding]:
        for side, mac in self._macs.items():
            found = None if (end := self._end(side)) is None else end.mac()
            if found is not None and found != mac:
                yield Finding(
                    "uplink", Severity.ERROR,
                    f"instance {side}'s uplink has MAC {found}, the configuration {mac}: packets may not come in",
                    f'set instances.{side}.uplink_mac = "{found}", or give the VF the other: `ip link set PF vf N mac`',
                )  # fmt: skip

    def _check_voices(self, record: Announced | None) -> Iterator[Finding]:
        ends = {side: self._end(side) for side in Side}
        found = [side for side, end in ends.items() if end is not None and end.speaks()]
        if len(found) > 1:
            text = f"both instances answer for {self._vtep}"
        elif record is not None and not found and ends[record.side] is not None:
            text = f"neither instance answers for {self._vtep}, though instance {record.side} was announced"
        else:
            return
        yield Finding("uplink", Severity.ERROR, text, "`ovs-hotswap overlay apply` makes the flows again")

    def _check_peers(self, record: Announced | None) -> Iterator[Finding]:
        """Packets for the side that is not announced are lost there, unless it has the window form."""
        if record is None or not record.settled or (other := self._end(record.side.other)) is None:
            return
        count = other.received()
        more = count - record.before if count >= record.before else count  # it may have been started since
        if more:
            text = (
                f"{self._senders(other)} sent {more} packets to instance {record.side.other}'s MAC after instance "
                f"{record.side} was announced"
            )
            yield Finding("uplink peers", Severity.WARNING, text, self._hint)
