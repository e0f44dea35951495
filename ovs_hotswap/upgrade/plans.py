"""Which plan an upgrade of this host has: it depends on who programs the bridges."""

from __future__ import annotations

from ovs_hotswap.config import Config, Program
from ovs_hotswap.plan.executor import Plan
from ovs_hotswap.upgrade.clone_steps import clone_plan
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.steps import upgrade_plan


def plan_for(config: Config) -> Plan[Upgrade]:
    return clone_plan() if config.program is Program.CLONE else upgrade_plan()
