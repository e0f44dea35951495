"""Leaves a report of each upgrade and rollback in the state directory."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from ovs_hotswap.config import Config
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host.event_log import last_events
from ovs_hotswap.host.host import Host
from ovs_hotswap.plan.executor import Plan, describe
from ovs_hotswap.plan.journal import Contents, Journals
from ovs_hotswap.reports.compose import Run, Seen, of_plan
from ovs_hotswap.reports.document import RunReport
from ovs_hotswap.reports.store import Reports
from ovs_hotswap.upgrade.plans import plan_for
from ovs_hotswap.upgrade.situation import Upgrade

log = logging.getLogger(__name__)

EVENTS = 200
"""How many of the newest events of the watchdog are looked at."""
_VERSION = "ovs-hotswap"  # the key of the version of this program in a journal


def directory(config: Config) -> Path:
    return config.state_dir / "reports"


def leave(host: Host, journals: Journals, error: HotswapError | None) -> None:
    """Write the report of the plan that was last worked on. ``error``: with what it ended. A fault is only logged, and
    stops nothing."""
    try:
        contents = journals.read() or next(journals.ended(), None)
        if contents is None:
            return
        vms = []
        with contextlib.suppress(HotswapError):
            vms = host.backends.vms(read=False)
        seen = Seen(
            host=os.uname().nodename,
            program=contents.header.versions.get(_VERSION, "?"),
            vms=vms,
            labels=labels(host, contents),
            descriptions=descriptions(plan_for(host.config)),
            events=last_events(host.config, EVENTS),
            message=None if error is None else error.message,
            hint=None if error is None else error.hint,
        )
        Reports(directory(host.config), host.system).write(of_contents(contents, seen))
    except Exception as fault:  # noqa: BLE001 - see above
        log.warning("the report of this upgrade cannot be written: %s", describe(fault))


def of_contents(contents: Contents, seen: Seen) -> RunReport:
    """Return the report of a journal. Raises StateUnknown if it makes no sense."""
    header = contents.header
    run = Run(header.parameters, header.shape, header.started, contents.records, contents.times)
    return of_plan(run, seen)


def descriptions(plan: Plan[Upgrade]) -> Mapping[str, str]:
    return {step.name: step.description for step in (*plan.before, *plan.after)}


def labels(host: Host, contents: Contents) -> Mapping[str, str]:
    """The versions of the releases between which a plan goes, as far as they can be found out."""
    found = {}
    for name in {str(contents.header.parameters.get(key)) for key in ("previous", "release")}:
        with contextlib.suppress(HotswapError, OSError):
            found[name] = host.releases.get(name).label
    return found
