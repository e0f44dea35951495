"""Leaves a report of each failover in the state directory, from the watchdog's own events."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from datetime import UTC, datetime

from ovs_hotswap import __version__
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host.event_log import last_events
from ovs_hotswap.host.flow_log import may_lack
from ovs_hotswap.host.host import Host
from ovs_hotswap.plan.executor import describe
from ovs_hotswap.reports.compose import Seen, of_failover
from ovs_hotswap.reports.document import RunReport, VmPart
from ovs_hotswap.reports.store import Reports
from ovs_hotswap.upgrade.run_report import EVENTS, directory

log = logging.getLogger(__name__)


class FailoverReport:
    """Writes the report of the newest failover when it is due: the VMs were seen to be served, or a standby is ready
    again since.

    What became of the VMs is read only once, because later handovers would hide it.
    """

    def __init__(self) -> None:
        self.due = False
        self._vms: tuple[float, tuple[VmPart, ...]] | None = None  # when that failover was detected

    def write_if_due(self, host: Host) -> None:
        """Write it. A fault is only logged, and stops nothing."""
        if not self.due:
            return
        self.due = False
        try:
            self._write(host)
        except Exception as fault:  # noqa: BLE001 - see above
            log.warning("the report of the failover cannot be written: %s", describe(fault))

    def _write(self, host: Host) -> None:
        events = last_events(host.config, EVENTS)
        vms = []
        with contextlib.suppress(HotswapError):
            vms = host.backends.vms(read=False)
        found = of_failover(events, Seen(os.uname().nodename, __version__, vms))
        if found is None:
            return
        if self._vms is not None and self._vms[0] == found.started:
            found = replace(found, vms=self._vms[1])
        elif vms:
            self._vms = found.started, found.vms
        found = replace(found, warnings=(*found.warnings, *_unlogged(host, found)))
        Reports(directory(host.config), host.system).write(found)


def _unlogged(host: Host, found: RunReport) -> list[str]:
    """What the flow log lacks: an instance that died had counts that it had not exported."""
    if not host.config.flowlog.on or found.old is None:
        return []
    export_s = host.config.flowlog.export_s
    begin, end = (f"{datetime.fromtimestamp(found.started - back, UTC):%H:%M:%S}" for back in (export_s, 0))
    return [f"{may_lack(export_s, found.old)}: {begin} to {end} UTC"]
