"""What `flowlog show` and `status` say of the flow log. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ovs_hotswap.config_flowlog import FlowLogConfig
from ovs_hotswap.flowlog.state import Gap, RelayState
from ovs_hotswap.overlay.intent import Intent

Document = dict[str, Any]

START = "`systemctl restart ovs-hotswap-flowlog`, or `ovs-hotswap flowlog run`"


def document(
    flow_log: FlowLogConfig, intent: Intent | None, state: RelayState | None, *, running: bool,
    events: Sequence[Mapping[str, Any]], sides: Sequence[str],
) -> Document:  # fmt: skip
    """The document of `flowlog show` in docs/json.md. ``state``: the last one of a relay; ``running``: whether that one
    runs. ``events``: those of the watchdog, oldest first. ``sides``: those whose instance runs. ``intent``: ``None`` if
    it cannot be read."""
    vms = () if intent is None else intent.vms
    return {
        "on": flow_log.on,
        "observation_domain": None if intent is None else flow_log.domain(intent.vtep.address),
        "sampling": flow_log.sampling,
        "export_s": flow_log.export_s,
        "vms": [{"vm": vm.name, "observation_point": vm.ofport, "logged": flow_log.logs(vm.name)} for vm in vms],
        "relay": _relay(state, running),
        "collectors": _collectors(flow_log, state, running),
        "gaps": [gap.model_dump() for gap in gaps(flow_log, state, events)] if flow_log.on else [],
        "problems": list(problems(flow_log, intent, state, running, sides)),
    }


def _relay(state: RelayState | None, running: bool) -> Document:
    seen = state if running else None
    sources = {} if seen is None else {side: each.model_dump() for side, each in seen.sources.items()}
    return {"running": running, "pid": None if seen is None else seen.pid,
            "listening": [] if seen is None else seen.listening, "sources": sources}  # fmt: skip


def _collectors(flow_log: FlowLogConfig, state: RelayState | None, running: bool) -> list[Document]:
    known = state.collectors if state is not None and running else {}
    return [{"collector": name, **(known[name].model_dump() if name in known else {"sent": None, "refused": None,
             "fault": None})} for name in flow_log.collectors]  # fmt: skip


def gaps(flow_log: FlowLogConfig, state: RelayState | None, events: Iterable[Mapping[str, Any]]) -> list[Gap]:
    """The times in which records may be missing, in order: what the relay saw, and what an instance held when it
    died."""
    found = [] if state is None else list(state.gaps)
    for each in events:
        match each:
            case {"event": "failover", "from": str(side), "detected": int() | float() as time}:
                found.append(_of_death(flow_log, side, float(time)))
            case {"event": "restart", "side": str(side), "time": int() | float() as time}:
                found.append(_of_death(flow_log, side, float(time)))
    return sorted(found, key=lambda gap: gap.begin)


def _of_death(flow_log: FlowLogConfig, side: str, time: float) -> Gap:
    why = f"instance {side} died with what it had not exported"
    return Gap(begin=time - flow_log.export_s, end=time, why=why)


def problems(
    flow_log: FlowLogConfig, intent: Intent | None, state: RelayState | None, running: bool, sides: Sequence[str]
) -> Iterator[Document]:
    """Yield what a person has to solve: ``text`` and ``hint``."""
    if not flow_log.on:
        return
    if state is None or not running:
        yield {"text": "the relay does not run: nothing reaches the collectors", "hint": START}
        return
    for side in sides:
        if side not in state.listening:
            yield {"text": f"the relay does not hear instance {side}", "hint": "`journalctl -u ovs-hotswap-flowlog`"}
    for name, seen in state.collectors.items():
        if seen.fault is not None and name in flow_log.collectors and seen.refused * 2 > seen.sent:
            yield {"text": f"collector {name}: {seen.fault}", "hint": "see whether it runs and can be reached"}
    if intent is not None and (unknown := sorted(set(flow_log.vms) - {vm.name for vm in intent.vms})):
        yield {"text": f"flowlog.vms names what is not in the intent: {', '.join(unknown)}",
               "hint": "`ovs-hotswap overlay show`"}  # fmt: skip
