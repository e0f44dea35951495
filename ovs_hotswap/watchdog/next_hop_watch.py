"""Follows the underlay's next hops: the MAC addresses of neighbours that have none in the overlay intent, and which of
a route's gateways answers. Open vSwitch forgets a neighbour that it has not used for 15 minutes
(lib/tnl-neigh-cache.c), so all of them are also set again from time to time."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.underlay import in_use
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay.intent import Intent, Neighbour
from ovs_hotswap.overlay.next_hops import NextHops, asked, changes, choose, judge
from ovs_hotswap.switch.tunnel import TunnelConfig
from ovs_hotswap.watchdog.status_file import StatusFile

log = logging.getLogger(__name__)

_REFRESH_S = 300.0
_ASK_S = 2.0
_NOTES_S = 30.0
_AT_ONCE = 8  # neighbours that are asked in one turn; the next turn asks the next ones


class NextHopWatch:
    """Follows next hops. The keeper calls ``look`` in every turn in which it has nothing else to do. A call takes up to
    about a second if a neighbour is silent, and up to three if all that it asks are."""

    def __init__(self, board: StatusFile) -> None:
        self._board = board
        self._refreshed = self._asked = float("-inf")
        self._intent: Intent | None = None
        self._left: list[Neighbour] = []  # still to be asked in this round
        self._answers: dict[str, str] = {}
        self._complete = False  # whether every neighbour has been asked
        self._notes: dict[Side, TunnelConfig] = {}  # what the instances were given
        self._of: tuple[int | None, ...] | None = None  # the processes of which the notes are
        self._noted = float("-inf")
        self._told: dict[str, str] = {}  # the faults that were reported, by what they concern

    def look(self, host: Host) -> None:
        """Ask, and give the running instances what has changed. Never raises for a fault of the host."""
        try:
            try:
                if host.underlay.asks:
                    self._follow(host)
            finally:  # what is known is forgotten otherwise
                self._refresh(host)
        except HotswapError as error:
            self._tell({"": error.message})

    def _refresh(self, host: Host) -> None:
        now = host.system.monotonic()
        if now - self._refreshed < _REFRESH_S:
            return
        self._refreshed = now
        for side in _running(host):
            for address, mac in choose(host.intent, self._answers, in_use(self._notes)).macs.items():
                host.tunnels(side).set_neighbour(address, mac)

    def _follow(self, host: Host) -> None:
        now = host.system.monotonic()
        if self._intent is not host.intent:
            self._intent, self._left, self._complete, self._of = host.intent, [], False, None
        elif now - self._asked < _ASK_S:
            return
        self._asked = now
        self._look_up(host, now)
        self._left = self._left or list(asked(host.intent))
        turn, self._left = self._left[:_AT_ONCE], self._left[_AT_ONCE:]
        before = in_use(self._notes)
        self._answers = self._asked_again(host, turn, before)
        self._complete = self._complete or not self._left
        if not self._complete:
            return
        for side in _running(host):
            self._give(host, side, before)
        found = judge(host.intent, self._answers, before)
        self._tell({each.item or "": each.text for each in found if each.severity is not Severity.OK})

    def _look_up(self, host: Host, now: float) -> None:
        """Read what the instances were given, unless they are the ones of the last look, and the look is not old."""
        instances = tuple(host.instances[side].pid() for side in Side)
        if self._of != instances or now - self._noted >= _NOTES_S:
            self._notes, self._of, self._noted = host.underlay.notes(), instances, now

    def _asked_again(self, host: Host, turn: Sequence[Neighbour], before: NextHops) -> dict[str, str]:
        silent = {each.address for each in turn}
        kept = {address: mac for address, mac in self._answers.items() if address not in silent}
        return {**kept, **host.underlay.asker().ask(turn, before.macs)}

    def _give(self, host: Host, side: Side, before: NextHops) -> None:
        """Give an instance the next hops if they have changed. All else that the intent says of its tunnels is
        programmed by others, and first."""
        given, vtep = self._notes.get(side), host.intent.vtep
        if given is None or (given.address, given.links) != (vtep.interface, vtep.link_addresses):
            return
        told = changes(in_use({side: given}), choose(host.intent, self._answers, before))
        if not told:
            return
        self._of = None
        host.underlay.program(side, self._answers)
        for text in told:
            log.warning("instance %s: %s", side, text)
        self._board.event("next-hop", side=side, changes=told)

    def _tell(self, faults: dict[str, str]) -> None:
        for what, text in faults.items():
            if self._told.get(what) != text:
                log.warning("%s", text)
                self._board.event("next-hop-fault", text=text)
        self._told = faults


def _running(host: Host) -> list[Side]:
    return [side for side in Side if host.instances[side].pid() is not None]
