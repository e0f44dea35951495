"""The flow log in the overlay's tables: the action ``sample`` where a VM's packets are seen. Pure.

A packet that a VM sends is looked at where its port is first known (table classify), if it has the VM's MAC. A packet
for a VM is looked at where it is delivered (table deliver), before it is output to the VM's port and, in the window, to
the peer link. What comes from the peer link is not looked at again. So each packet is looked at by one instance in each
direction: by the one that had it from a VM or from the uplink, no matter which one owns the receiving VM's rings.

The ids in a record are the same on both instances and in every release: the domain is the host's, the point is the VM's
OpenFlow number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ovs_hotswap.config_flowlog import FlowLogConfig
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.tables import Flow, Kind, Table, cookie

COLLECTOR_SET = 0x6873
"""The id of our row of the table Flow_Sample_Collector_Set, to which the actions refer (ovs-vswitchd.conf.db(5))."""


def sampled(tables: Iterable[Table], intent: Intent, flow_log: FlowLogConfig) -> tuple[Table, ...]:
    """Return the tables with the flow log's actions. Without a flow log they are as they were."""
    if not flow_log.on:
        return tuple(tables)
    actions = _actions(intent, flow_log)
    return tuple(replace(table, flows=tuple(_sampled(flow, actions) for flow in table.flows)) for table in tables)


def _sampled(flow: Flow, actions: dict[int, str]) -> Flow:
    action = actions.get(flow.cookie)
    return flow if action is None else replace(flow, actions=f"{action},{flow.actions}")


def _actions(intent: Intent, flow_log: FlowLogConfig) -> dict[int, str]:
    """The action of each flow that has one, by the flow's cookie."""
    domain = flow_log.domain(intent.vtep.address)
    found = {}
    for vm in intent.vms:
        if not flow_log.logs(vm.name):
            continue
        for kind, direction in ((Kind.FROM_VM, "ingress"), (Kind.DELIVER, "egress")):
            found[cookie(kind, vni=vm.vni, ofport=vm.ofport)] = (
                f"sample(probability={flow_log.probability},collector_set_id={COLLECTOR_SET},obs_domain_id={domain},"
                f"obs_point_id={vm.ofport},sampling_port={vm.ofport},{direction})"
            )
    return found
