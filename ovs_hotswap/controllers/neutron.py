"""What must hold so that Neutron's Open vSwitch agent (ML2/OVS) passes from one instance to the other unaware.

The agent listens for the bridges (``of_listen_address``, 127.0.0.1:6633) and knows each by its datapath id. In each
round it asks br-int for the flows of table 23: an empty answer means to it that Open vSwitch was restarted, and it
programs every port again, which interrupts the VMs for seconds (neutron, plugins/ml2/drivers/openvswitch/agent:
common/constants.py, CANARY_TABLE; openflow/native/br_int.py, check_canary_table; ovs_neutron_agent.py,
check_ovs_status). Flows that do not have its present cookie are stale to it, and it deletes them when it has started
(openflow/native/ofswitch.py, cleanup_flows). This module is pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ovs_hotswap.model import Finding, Severity

CANARY_TABLE = 23
INTEGRATION_BRIDGE = "br-int"
_CHECK = "neutron"
_COOKIE, _TABLE = re.compile(r"cookie=(0x[0-9a-f]+)"), re.compile(r"table=(\d+)")


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge of one instance. ``datapath_id``: 16 hexadecimal digits. ``controllers``: the targets of its row, by
    which it connects or would connect. ``fail_mode``: ``secure``, ``standalone`` or empty. ``flows``: as ``ovs-ofctl
    dump-flows`` writes them."""

    datapath_id: str
    controllers: frozenset[str]
    fail_mode: str
    flows: Sequence[str]


def canary(flows: Sequence[str]) -> bool:
    """Whether the agent's check finds a flow in table 23."""
    return any((found := _TABLE.search(flow)) is not None and int(found[1]) == CANARY_TABLE for flow in flows)


def cookies(flows: Sequence[str]) -> frozenset[str]:
    return frozenset(found[1] if (found := _COOKIE.search(flow)) else "0x0" for flow in flows)


def serves(bridges: Mapping[str, Bridge]) -> bool:
    """Whether an agent of this kind programs the bridges: br-int has a controller and the canary's flow."""
    bridge = bridges.get(INTEGRATION_BRIDGE)
    return bridge is not None and bool(bridge.controllers) and canary(bridge.flows)


def findings(active: Mapping[str, Bridge], new: Mapping[str, Bridge]) -> list[Finding]:
    """Return what would make the agent notice another switch, for each bridge of ``active`` that has a controller.

    ``new`` is the other instance right before its bridges connect to the controllers, with the targets that they will
    have then. No finding means that nothing was found.
    """
    found: list[Finding] = []

    def say(bridge: str, text: str) -> None:
        found.append(Finding(_CHECK, Severity.ERROR, f"{bridge}: {text}", item=bridge))

    for name, old in active.items():
        if not old.controllers:
            continue
        copy = new.get(name)
        if copy is None:
            say(name, "the new instance has no such bridge")
            continue
        if copy.datapath_id != old.datapath_id:
            say(name, f"its datapath id is {copy.datapath_id}, and the agent knows {old.datapath_id}")
        if copy.controllers != old.controllers:
            say(name, f"its controllers are {_listed(copy.controllers)}, not {_listed(old.controllers)}")
        if copy.fail_mode != old.fail_mode:
            say(name, f"its fail_mode is {copy.fail_mode or 'not set'}, not {old.fail_mode or 'not set'}")
        if canary(old.flows) and not canary(copy.flows):
            say(name, f"table {CANARY_TABLE} is empty: to the agent Open vSwitch was restarted")
        if lacking := cookies(old.flows) - cookies(copy.flows):
            say(name, f"no flow has cookie {_listed(lacking)}: the agent would delete flows as stale")
    return found


def _listed(words: frozenset[str]) -> str:
    return ", ".join(sorted(words)) or "none"
