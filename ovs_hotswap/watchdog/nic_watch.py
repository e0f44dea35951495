"""Follows the links of two NICs: packets leave only by a NIC whose physical function has a link.

Open vSwitch follows the links of its own ports by itself, but the link of a virtual function may be forced to be up,
and some drivers of DPDK do not report it. This needs no lock: it changes the actions of one flow, in either form of
the tables, to what any program that installs the tables now would write there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host import uplink_ports
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.watchdog.status_file import StatusFile

log = logging.getLogger(__name__)

_LOOK_S = 0.1
# For so long after a change the flow is written again: another process may have read the links before the change, and
# install its tables after it.
_SURE_S = 3.0
_UP_S = 1.0  # a link must have been up for so long: a switch may forward only some time after the link is up


class NicWatch:
    """Looks at the links in a thread of its own: a switch that does not answer must not keep the watchdog from anything
    else. Does nothing with one NIC, or with two that DPDK bonds, which follows them by itself. ``make_host`` is called
    in that thread."""

    def __init__(self, make_host: Callable[[], Host], board: StatusFile) -> None:
        self._make_host, self._board = make_host, board
        self._host: Host | None = None
        self._used: dict[Side, tuple[int, tuple[int, ...]]] = {}  # the process, and the NICs that its flow names
        self._live: tuple[int, ...] | None = None
        self._since: dict[int, float] = {}  # when each link came up
        self._until = float("-inf")
        self._problem: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2 * _LOOK_S)

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_S):
            try:
                if not self.look():
                    return
                self._problem = None
            except Exception as error:  # noqa: BLE001 - a fault of the host; the next look follows soon
                problem = error.message if isinstance(error, HotswapError) else repr(error)
                if problem != self._problem:
                    log.warning("the NICs' links are not followed: %s", problem)
                self._problem = problem

    def look(self) -> bool:
        """Look once. Returns whether there is anything to look at. Raises what keeps it from writing a flow."""
        self._host = host = self._host or self._make_host()
        if not uplink_ports.two(host.config):
            return False
        nics = host.config.uplink.nics
        now = host.system.monotonic()
        live = self._settled(host.nic_links.live(), now)
        if live != self._live:
            names = [nics[number].device or f"NIC {number + 1}" for number in live]
            if self._live is not None or len(live) < len(nics):
                log.warning("the overlay's packets leave by %s", ", ".join(names))
                self._board.event("nics", links=names)
            self._live, self._until = live, now + _SURE_S
        faults: list[HotswapError] = []
        for side in Side:
            try:
                self._follow(host, side, live, sure=now >= self._until)
            except HotswapError as error:  # it starts, or does not answer; the other one may
                faults.append(error)
        if faults:
            raise faults[0]
        return True

    def _settled(self, live: tuple[int, ...], now: float) -> tuple[int, ...]:
        """The NICs whose link has been up long enough, or all with a link if there is no such NIC."""
        first = now if self._live is not None else float("-inf")
        self._since = {number: self._since.get(number, first) for number in live}
        return tuple(number for number in live if now - self._since[number] >= _UP_S) or live

    def _follow(self, host: Host, side: Side, live: tuple[int, ...], *, sure: bool) -> None:
        pid = host.instances[side].pid()
        if pid is None:
            self._used.pop(side, None)
        elif not sure or self._used.get(side) != (pid, live):
            uplink_ports.use(host, side, live)
            self._used[side] = pid, live
