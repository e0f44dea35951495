"""What `status` prints: one look at the whole host, and the problems that a person has to solve.

``look`` makes the document of `status` in docs/json.md. ``problems`` and ``lines`` are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.config import Config, Program
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.flowlog import look as flowlog
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.instance import State
from ovs_hotswap.switch.memory import PacketPool
from ovs_hotswap.system import host_error
from ovs_hotswap.upgrade.upgrade import Report, Upgrader
from ovs_hotswap.watchdog import report, status_file

Document = dict[str, Any]
Line = tuple[str, str]
"""A label and a text."""

_START_AGAIN = "systemctl restart ovs-hotswap-watch"
MEMORY = "memory"  # the label of lines that differ from one look to the next


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that a person has to solve. ``about``: the part of the host, such as ``uplink``. ``hint``: the command
    that shows more or helps."""

    about: str
    text: str
    hint: str | None = None


def look(host: Host) -> Document:
    """Read the state of the host. A field that cannot be read is null; its name is in ``unknown_fields``, and the
    reason is in ``unknown``."""
    return look_with_reasons(host)[0]


def look_with_reasons(host: Host) -> tuple[Document, dict[str, str]]:
    """Read the state of the host. Returns it with the reason for each field that cannot be read."""
    unknown: dict[str, str] = {}

    def tried(field: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except (HotswapError, OSError) as fault:
            unknown[field] = (host_error(fault) if isinstance(fault, OSError) else fault).message
            return None

    watch = report.read(host.config, host.system)
    upgrader = Upgrader(host)
    broker = host.config.backend is BackendMode.BROKER
    document: Document = {
        "active": tried("active", host.recorded_active),
        "uplink": tried("uplink", lambda: host.uplink.owner()),
        "instances": [host.instances[side].status() for side in Side],
        "replaced": {side: tried(f"replaced.{side}", host.instances[side].outdated) for side in Side},
        "packet_pools": {side: tried(f"packet_pools.{side}", partial(_pools, host, side)) for side in Side},
        "vms": tried("vms", partial(_vms, host, watch["unprotected"])),
        "unfinished": tried("unfinished", partial(_unfinished, upgrader)),
        "last": tried("last", partial(_last, upgrader)),
        "watch": watch,
        "broker": None,
        "flowlog": None,
    }
    if broker and "vms" in unknown:
        unknown["broker"] = unknown["vms"]  # the broker is not asked twice: each question may take its whole time
    elif broker:
        document["broker"] = tried("broker", lambda: host.broker.status().document())
    if host.config.flowlog.on:
        document["flowlog"] = tried("flowlog", lambda: flowlog.look(host))
    document["unknown"] = list(dict.fromkeys(unknown.values()))
    document["unknown_fields"] = list(unknown)
    document["problems"] = [asdict(each) for each in _problems_of(document, host.config)]
    return document, unknown


def _pools(host: Host, side: Side) -> list[PacketPool]:
    return host.packet_pools(side) if host.instances[side].pid() is not None else []


def _vms(host: Host, unprotected: list[str] | None) -> Document:
    vms = host.backends.vms()
    owners = {str(side): sum(vm.owner == side for vm in vms) for side in Side}
    quarantined = {vm.name: vm.quarantine for vm in vms if vm.quarantine}
    return {"total": len(vms), "connected": sum(vm.has_guest for vm in vms), "owners": owners,
            "quarantined": quarantined, "unprotected": unprotected}  # fmt: skip


def _unfinished(upgrader: Upgrader) -> Document | None:
    contents = upgrader.unfinished()
    if contents is None:
        return None
    standing = contents.standing
    return {"kind": contents.header.kind, "phase": standing.phase, "parameters": contents.header.parameters,
            "failure": standing.failure or None, "rebooted": upgrader.journals.rebooted(contents)}  # fmt: skip


def _last(upgrader: Upgrader) -> Document | None:
    found = upgrader.last()
    return None if found is None else document_of(found)


def document_of(found: Report) -> Document:
    """The JSON document of an ended upgrade."""
    return {
        "old": found.old, "new": found.new, "release": found.release, "previous": found.previous,
        "committed": found.committed, "moves": found.moves, "warnings": found.warnings,
        "changed": found.changed, "uplink_gap_ms": found.uplink_gap_ms,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------- what is wrong


def _problems_of(document: Document, config: Config) -> list[Problem]:
    found = problems(document, steered=config.uplink.driver != "none")
    if config.program is Program.CLONE:  # before the first upgrade the distribution's switch serves the VMs
        found = [each for each in found if each.about != "active" or document["active"] is not None]
    return found


def problems(document: Document, *, steered: bool) -> list[Problem]:
    """The problems that a document shows. ``steered``: whether ovs-hotswap steers the uplink."""
    found = [*_of_instances(document), *(_of_uplink(document) if steered else ()), *_of_vms(document)]
    found += [*_of_upgrade(document), *_of_watch(document), *_of_broker(document)]
    logged = document["flowlog"] or {"problems": []}
    return found + [Problem("flow log", each["text"], each["hint"]) for each in logged["problems"]]


def _of_instances(document: Document) -> Iterator[Problem]:
    active = document["active"]
    for each in document["instances"]:
        if each.state is State.DEAD:
            hint = f"the watchdog starts it again; without one: `ovs-hotswap instance start {each.side}`"
            yield Problem(f"instance {each.side}", "it has ended by itself", hint)
        elif each.release is not None and document["replaced"].get(each.side):
            yield _of_replaced_files(each.side, each.release.name, each.side == active)
    if active is None and "active" not in document["unknown_fields"]:
        owners = {} if document["vms"] is None else document["vms"]["owners"]
        serving = [side for side, count in owners.items() if count]
        text = f"none is recorded, though {' and '.join(serving)} owns VMs: nothing takes over if it fails"
        yield Problem("active", text if serving else "no instance is active: no VM has a network",
                      f"`ovs-hotswap instance start {serving[0] if serving else Side.A}`")  # fmt: skip


def _of_replaced_files(side: Side, release: str, active: bool) -> Problem:
    """An instance keeps running the files with which it was started."""
    if active:
        return Problem("release", f"newer files of {release} are installed than those that instance {side} runs",
                       f"`ovs-hotswap upgrade --release {release}` upgrades to them")  # fmt: skip
    return Problem("release", f"instance {side} runs files of {release} that were replaced since",
                   "the watchdog replaces it if the versions are the same, otherwise the upgrade does")  # fmt: skip


def _of_uplink(document: Document) -> Iterator[Problem]:
    owner, active = document["uplink"], document["active"]
    if {"uplink", "active"} & set(document["unknown_fields"]) or active is None or document["unfinished"]:
        return
    if owner != active:
        where = f"to {owner}" if owner else "nowhere"
        yield Problem("uplink", f"it is steered {where}, not to the active instance {active}",
                      "`ovs-hotswap overlay apply` steers it")  # fmt: skip


def _of_vms(document: Document) -> Iterator[Problem]:
    vms, active = document["vms"], document["active"]
    if vms is None:
        return
    for side, count in vms["owners"].items():
        if active is not None and side != active and count and document["unfinished"] is None:
            yield Problem("VMs", f"{count} are owned by {side}, which is not active", "`ovs-hotswap vm list`")
    for name, cause in vms["quarantined"].items():
        yield Problem(f"VM {name}", f"in quarantine: {cause}", f"`ovs-hotswap vm release {name}` ends it")
    if vms["unprotected"]:
        names = ", ".join(map(str, vms["unprotected"]))
        yield Problem("VMs", f"not protected, as they are not parked on the standby: {names}",
                      "`ovs-hotswap watch status` has the causes")  # fmt: skip


def _of_upgrade(document: Document) -> Iterator[Problem]:
    unfinished = document["unfinished"]
    if unfinished is not None:
        failure = f": {unfinished['failure']}" if unfinished["failure"] else ""
        yield Problem("journal", f"an upgrade runs, or was interrupted ({unfinished['phase']}){failure}",
                      "if it does not run: `ovs-hotswap resume` or `ovs-hotswap rollback`")  # fmt: skip


def _of_watch(document: Document) -> Iterator[Problem]:
    watch = document["watch"]
    if watch["mode"] == "off":
        return
    if not watch["running"]:
        yield Problem("watchdog", "it does not run: no instance takes over if the active one fails"
                      if watch["mode"] != "restart" else "it does not run: an active instance that ends stays away",
                      "`systemctl restart ovs-hotswap-watch`, or `ovs-hotswap watch run`")  # fmt: skip
        return
    if watch["health"] not in (None, "healthy"):
        yield Problem("health", f"the active instance is {watch['health']}: {watch['reason'] or 'no reason is known'}")
    if watch["standby"] is None and document["unfinished"] is None and watch["mode"] != "restart":
        yield Problem("standby", f"none is ready: {watch['keeping'] or 'not looked at yet'}")
    if watch["gave_up"]:
        yield Problem("standby", f"none is started any longer, after {watch['failures']} failures of instances",
                      f"repair the cause, then start the watchdog again: {_START_AGAIN}")  # fmt: skip
    yield from (Problem("watchdog", watch[key]) for key in status_file.PROBLEMS if watch[key])
    for seen in (watch["uplinks"] or {}).values():
        if seen["severity"] != Severity.OK:
            yield Problem("uplink", seen["text"])
    for each in watch["differing"]:
        yield Problem(
            "configuration",
            f"{each}",
            f"start the watchdog again, so that it follows it: {_START_AGAIN}",
        )


def _of_broker(document: Document) -> Iterator[Problem]:
    broker = document["broker"] or {}
    if fault := broker.get("config_fault"):
        yield Problem("broker", f"the configuration cannot be read, the one before is in force: {fault}")
    for each in broker.get("differing", ()):
        text = f"{each['key']}: {each['configured']!r} is configured, {each['in_use']!r} in use"
        yield Problem("configuration", text, "`ovs-hotswap broker take-over`, so that the broker follows it")
    for kept in broker.get("leaving", ()):
        yield Problem("broker", f"a VM that left the intent is kept, as a switch may use its rings: {kept}",
                      "`ovs-hotswap vm list`")  # fmt: skip


# ------------------------------------------------------------------------------------------------------ how it is shown


def lines(document: Document) -> list[Line]:
    """The lines for people, without the table of the instances."""
    unknown = set(document["unknown_fields"])
    found = [("active", "unknown" if "active" in unknown else str(document["active"] or "none"))]
    steered = document["uplink"] or "not steered by ovs-hotswap"
    found.append(("uplink", "unknown" if "uplink" in unknown else str(steered)))
    found += [_vm_line(document), *_watch_lines(document["watch"])]
    if document["broker"] is not None:
        found.append(("broker", f"{document['broker']['version']}, process {document['broker']['pid']}"))
    if (logged := document["flowlog"]) is not None:
        found.append(("flow log", f"1 of {logged['sampling']} packets, to {', '.join(_collectors(logged))}"))
    if (unfinished := document["unfinished"]) is not None:
        found.append(("journal", f"an unfinished {unfinished['kind']} ({unfinished['phase']}); "
                      "`ovs-hotswap resume` or `ovs-hotswap rollback`"))  # fmt: skip
    if (last := document["last"]) is not None:
        end = "committed" if last["committed"] else "rolled back"
        found.append(("last", f"{last['previous']} on {last['old']} -> {last['release']} on {last['new']}: {end}"))
    for side, pools in document["packet_pools"].items():
        for pool in pools or ():
            found.append((MEMORY, f"instance {side}, NUMA node {pool.node}: a pool of {pool.buffers} packet buffers "
                          f"({pool.mib} MiB), {pool.in_use} in use"))  # fmt: skip
    for each in document["problems"]:
        hint = f"; {each['hint']}" if each["hint"] else ""
        found.append(("problem", f"{each['about']}: {each['text']}{hint}"))
    return found + [("unknown", text) for text in document["unknown"]]


def _collectors(logged: Document) -> list[str]:
    return [each["collector"] for each in logged["collectors"]]


def _vm_line(document: Document) -> Line:
    vms = document["vms"]
    if vms is None:
        return "VMs", "unknown"
    owners = ", ".join(f"{side}: {count}" for side, count in vms["owners"].items())
    return "VMs", f"{vms['total']}, {vms['connected']} with a QEMU; owned by {owners}"


def _watch_lines(watch: Mapping[str, Any]) -> list[Line]:
    if not watch["running"]:
        return [("watchdog", f"does not run, mode {watch['mode']}")]
    health = ": ".join(filter(None, (watch["health"], watch["reason"])))
    return [("health", health or "not looked at yet"),
            ("standby", f"{watch['standby'] or 'none'}, {watch['keeping'] or 'not looked at yet'}")]  # fmt: skip


def differences(before: list[Line], after: list[Line]) -> list[str]:
    """What has changed between two looks, with one text for each change."""
    old, new = ([line for line in each if line[0] != MEMORY] for each in (before, after))
    added = [line for line in new if line not in old]
    changed = {label for label, _ in added} - {"problem", "unknown"}
    over = [(label, text) for label, text in old if (label, text) not in new and label not in changed]
    return [f"{label:<9}{text}" for label, text in added] + [f"{label:<9}no longer: {text}" for label, text in over]
