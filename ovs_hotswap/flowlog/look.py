"""Reads what `flowlog show` and `status` say of the flow log."""

from __future__ import annotations

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.flowlog import state, view
from ovs_hotswap.host.event_log import last_events
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import Intent

_EVENTS = 200


def look(host: Host) -> view.Document:
    """The document of `flowlog show`. What cannot be read is left out, as the command that needs it says it."""
    config, seen = host.config, state.read(host.config)
    sides = [str(side) for side in Side if host.instances[side].pid() is not None]
    events = last_events(config, _EVENTS) if config.flowlog.on else []
    return view.document(config.flowlog, _intent(host), seen, running=state.running(config, host.system, seen),
                         events=events, sides=sides)  # fmt: skip


def _intent(host: Host) -> Intent | None:
    try:
        return host.intent
    except HotswapError:
        return None
