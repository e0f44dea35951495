"""Sees that the uplink still leads to the active instance, and steers it there again if it does not.

Rules can be lost while the instances run: by a reset of the NIC or of a virtual function, or by another program.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ovs_hotswap.errors import BusyError, HotswapError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.uplink.base import looks_every_s, steer_again
from ovs_hotswap.uplink.none import NoUplink
from ovs_hotswap.watchdog.status_file import StatusFile

log = logging.getLogger(__name__)


class SteeringWatch:
    """The keeper calls ``look`` in every turn in which it has nothing else to do, and never during an upgrade.

    Only steering that was once seen to be right is restored: after a change of the overlay intent the rules may be for
    another address than that of the instance. ``turning`` is held while the uplink is steered, so that a failover does
    not steer at the same time. ``problem`` is what keeps the uplink from being steered now.
    """

    def __init__(self, board: StatusFile) -> None:
        self._board = board
        self._not_before = float("-inf")
        self._right: tuple[Host, Side] | None = None
        self.turning = threading.Lock()
        self.problem: HotswapError | None = None

    def look(self, host: Host, active: Side, may_steer: Callable[[], bool]) -> None:
        """Look if it is time. ``may_steer`` is asked under the lock of the instances. Raises BusyError while another
        process has that; any other fault is in ``problem``."""
        now = host.system.monotonic()
        if now < self._not_before or isinstance(host.uplink, NoUplink):
            return
        self._not_before = now + looks_every_s(host.uplink)
        try:
            if host.uplink.owner() is active:
                self._right, self.problem = (host, active), None
            elif self._right == (host, active) and host.instances[active].pid() is not None:
                with host.lock():
                    if may_steer():
                        self._restore(host, active)
        except BusyError:
            raise
        except HotswapError as error:
            self.problem = error

    def _restore(self, host: Host, active: Side) -> None:
        """Steer the uplink to the active side, unless that has just died: the failover steers then."""
        with self.turning:
            if host.recorded_active() is not active or host.instances[active].pid() is None:
                return
            found = host.uplink.owner()
            if found is active:
                return
            steer_again(host.uplink, active)
        self.problem = None
        log.warning("the uplink led to %s; it was steered to instance %s again", found or "neither instance", active)
        self._board.event("uplink-restored", side=active, found=found)
