"""What runs: broker, instances, standby, uplink and VMs, from one look at the host (the document of `status`)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.config import NO_STANDBY, Config
from ovs_hotswap.doctor.report import Found, Kind, Section, ok
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.instance import State

SILENT = Kind(Section.BROKER, "answers", Severity.ERROR)
REFUSED = Kind(Section.BROKER, "answers", Severity.UNKNOWN)
HANGS = Kind(Section.INSTANCES, "answers", Severity.ERROR)
NEVER_STARTED = Kind(Section.INSTANCES, "active", Severity.WARNING)
LEFT_TRACE = Kind(Section.INSTANCES, "trace", Severity.WARNING)
UNSEEN = {
    "active": Kind(Section.INSTANCES, "active", Severity.UNKNOWN),
    "uplink": Kind(Section.UPLINK, "uplink", Severity.UNKNOWN),
    "replaced": Kind(Section.VERSIONS, "release", Severity.UNKNOWN),
    "packet_pools": Kind(Section.INSTANCES, "packet pool", Severity.UNKNOWN),
    "vms": Kind(Section.VMS, "VMs", Severity.UNKNOWN),
    "unfinished": Kind(Section.INSTANCES, "journal", Severity.UNKNOWN),
    "last": Kind(Section.INSTANCES, "journal", Severity.UNKNOWN),
    "flowlog": Kind(Section.INSTANCES, "flow log", Severity.UNKNOWN),
}
_WATCH = "`ovs-hotswap watch status --events 50`"
# The problems of `status` by the first word of what they are about, with the command for those that name none.
PROBLEMS = {
    "instance": Kind(Section.INSTANCES, "instance", Severity.ERROR, "`ovs-hotswap status`"),
    "active": Kind(Section.INSTANCES, "active", Severity.ERROR, "`ovs-hotswap instance start a`"),
    "release": Kind(Section.VERSIONS, "release", Severity.WARNING, "`ovs-hotswap release list`"),
    "health": Kind(Section.INSTANCES, "health", Severity.ERROR, _WATCH),
    "journal": Kind(Section.INSTANCES, "journal", Severity.WARNING, "`ovs-hotswap status`"),
    "uplink": Kind(Section.UPLINK, "uplink", Severity.ERROR, _WATCH),
    "VMs": Kind(Section.VMS, "VMs", Severity.WARNING, "`ovs-hotswap vm list`"),
    "watchdog": Kind(Section.STANDBY, "watchdog", Severity.WARNING, _WATCH),
    "standby": Kind(Section.STANDBY, "standby", Severity.WARNING, _WATCH),
    "configuration": Kind(Section.CONFIGURATION, "in use", Severity.WARNING, "`ovs-hotswap status`"),
    "broker": Kind(Section.BROKER, "broker", Severity.WARNING, "`ovs-hotswap broker status`"),
    "flow": Kind(Section.INSTANCES, "flow log", Severity.WARNING, "`ovs-hotswap flowlog show`"),
}
REQUIRED = {
    about: Kind(Section.STANDBY, about, Severity.ERROR, PROBLEMS[about].hint) for about in ("watchdog", "standby")
}
"""The same problems if the configuration has ``mode = "required"``."""
SECTIONS = (
    Section.VERSIONS,
    Section.BROKER,
    Section.INSTANCES,
    Section.STANDBY,
    Section.UPLINK,
    Section.VMS,
    Section.CONFIGURATION,
)


def judge(document: Mapping[str, Any], unknown: Mapping[str, str], config: Config) -> Iterator[Found]:
    """Judge the document of `status`. ``unknown`` has the reason for each field that cannot be read."""
    if config.backend is BackendMode.BROKER:
        yield from _broker(document, unknown)
    for field, reason in unknown.items():
        if field != "broker":
            kind = UNSEEN[field.partition(".")[0]]
            yield kind(f"{field} cannot be read: {reason}", "`ovs-hotswap status`", field)
    yield from _problems(document, config)
    yield from _well(document, unknown)


def in_between(section: Section) -> Found:
    """Return the finding about what an upgrade is just changing."""
    kind = UNSEEN["vms" if section is Section.VMS else "active"]
    return kind("an upgrade runs, or was interrupted: what it changes is not judged until it is finished",
                "`ovs-hotswap status`")  # fmt: skip


def hangs(error: SwitchError) -> Found:
    """Return the finding about an active instance that does not answer."""
    return HANGS(error.message, error.hint or "`ovs-hotswap watch status`")


def left_traces(texts: Iterable[str]) -> Iterator[Found]:
    """Yield a finding for each trace whose process ended without removing its copies."""
    for text in texts:
        yield LEFT_TRACE(f"{text}: it takes time from the core that serves the VM", "`ovs-hotswap trace --clean`")


def _broker(document: Mapping[str, Any], unknown: Mapping[str, str]) -> Iterator[Found]:
    if os.strerror(errno.EACCES) in unknown.get("broker", ""):  # it may be well, and answer those who may ask
        yield REFUSED(unknown["broker"], "as root, or as a member of broker.group: `ovs-hotswap doctor`")
    elif "broker" in unknown:
        yield SILENT(unknown["broker"], "systemctl restart ovs-hotswap-broker, or `ovs-hotswap broker start`")
    elif document["broker"] is not None:
        text = f"version {document['broker']['version']}, process {document['broker']['pid']}"
        yield ok(Section.BROKER, SILENT.check, text)


def _problems(document: Mapping[str, Any], config: Config) -> Iterator[Found]:
    for problem in document["problems"]:
        about = problem["about"].partition(" ")[0]
        if about == "VM":  # the precheck of VMs says the same, and knows how it ends
            continue
        kind = PROBLEMS[about]
        if config.watch.mode == "required":
            kind = REQUIRED.get(about, kind)
        if about == "active" and all(each.state is State.STOPPED for each in document["instances"]):
            kind = NEVER_STARTED
        hint = problem["hint"] or kind.hint
        text = problem["text"] if problem["about"] == kind.check else f"{problem['about']}: {problem['text']}"
        yield kind(text, hint)


def _well(document: Mapping[str, Any], unknown: Mapping[str, str]) -> Iterator[Found]:
    """Say what is well, and nothing about what has a problem."""
    wrong = {problem["about"].partition(" ")[0] for problem in document["problems"]}
    active, watch, vms = document["active"], document["watch"], document["vms"]
    if active is not None and not wrong & {"active", "instance", "health"}:
        yield ok(Section.INSTANCES, "active", f"instance {active} is active")
    if active is not None and not unknown.keys() & {"uplink", "active"} and "uplink" not in wrong:
        steered = document["uplink"]
        yield ok(Section.UPLINK, "uplink", f"steered to {steered}" if steered else "steered by something else")
    if watch["mode"] in NO_STANDBY:
        if "watchdog" not in wrong:
            yield ok(Section.STANDBY, "watchdog", f'mode "{watch["mode"]}": no standby is kept')
    elif watch["standby"] is not None and not wrong & {"watchdog", "standby"}:
        yield ok(Section.STANDBY, "standby", f"instance {watch['standby']}, {watch['keeping']}")
    if vms is not None and "VMs" not in wrong:
        owners = ", ".join(f"{side}: {vms['owners'].get(side, 0)}" for side in Side)
        yield ok(Section.VMS, "VMs", f"{vms['total']}, {vms['connected']} with a QEMU; owned by {owners}")
