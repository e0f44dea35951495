"""Makes and removes the copies of a VM's packets that a trace reads (``trace_rows``), in a running switch.

Only ovs-vswitchd is waited for, and only where it has to have followed. Removing needs its database alone, so it works
from any process at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.rpc import quick_call, transact
from ovs_hotswap.switch.trace_rows import NAME, READ, Left, Owner, Rows
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until

_ANSWER_S = 2.0
_FOLLOWS_S = 5.0  # until ovs-vswitchd has carried out a change of its database
_POLL_S = 0.005
_TURNS = 4
_ROUNDS = 2  # of the threads that look at the flows: the first may have begun before the change
_SCHEMA = "Open_vSwitch"


class TraceMirror:
    """The copies in the switch with these ``paths``. All methods raise SwitchError."""

    def __init__(self, paths: InstancePaths, system: System) -> None:
        self._paths, self._system = paths, system

    def rows(self) -> Rows:
        return Rows.of(transact(self._paths.db_socket, READ, timeout=_ANSWER_S))

    def can_filter(self) -> bool:
        """Whether a mirror can be limited to some packets, as from Open vSwitch 3.5 on (vswitch.ovsschema, Mirror)."""
        schema: Any = quick_call(self._paths.db_socket, "get_schema", [_SCHEMA], timeout=_ANSWER_S)
        return "filter" in schema["tables"]["Mirror"]["columns"]

    def make(self, bridge: str, port: str, owner: Owner, snaplen: int, filters: Sequence[str | None]) -> None:
        """Make the copies, and return when the switch has the port. Raises PrecheckFailed besides."""
        self._commit(self.rows().make(bridge, port, owner, snaplen, filters))
        if not self._followed():
            raise SwitchError(f"the switch has not made the port {NAME} within {_FOLLOWS_S:g} s",
                              hint=f"its log: {self._paths.log}")  # fmt: skip
        if (fault := self.rows().fault) is not None:
            raise SwitchError(f"the switch cannot make the port {NAME}: {fault}", hint=f"its log: {self._paths.log}")

    def wake(self) -> None:
        """Have ovs-vswitchd act on a change of its database now. It does so in several turns of its main loop, between
        which it may sleep (ofproto/ofproto-dpif.c, type_run); a command is a turn."""
        for _ in range(_TURNS):
            appctl(self._paths.vswitchd_ctl, "version", timeout=_ANSWER_S)

    def left(self) -> tuple[Left, ...]:
        return self.rows().left

    def stop(self, owner: Owner | None = None) -> bool:
        """Have nothing copied any longer, and leave the port, whose packets can still be read. Return whether there was
        anything to stop. The flows of the datapath follow within some milliseconds."""
        mirrors = self.rows().remove(owner, mirrors_only=True)
        self._commit(mirrors)
        if mirrors:
            self._followed()
            self.wake()
        return bool(mirrors)

    def remove(self, owner: Owner | None = None) -> tuple[Left, ...]:
        """Remove what there is of traces, or of the one of ``owner``, and return what there was of any.

        The mirrors go first, and the port when no flow of the datapath outputs to it any longer: what is output to a
        port that is gone counts as dropped (lib/dpif-netdev.c, datapath_drop_invalid_port). A switch that does not
        answer is not waited for.
        """
        left = self.left()
        with contextlib.suppress(SwitchError):  # then some copies do count as dropped
            self.stop(owner)
            if any(each.ports for each in left):
                for _ in range(_ROUNDS):
                    appctl(self._paths.vswitchd_ctl, "revalidator/wait", timeout=_ANSWER_S)
        self._commit(self.rows().remove(owner))
        return left

    def _followed(self) -> bool:
        return wait_until(lambda: not self.rows().pending, _FOLLOWS_S, self._system, poll_s=_POLL_S)

    def _commit(self, operations: list[dict[str, Any]]) -> None:
        if operations:
            transact(self._paths.db_socket, operations, timeout=_ANSWER_S)
