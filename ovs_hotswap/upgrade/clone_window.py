"""What both instances have while they live side by side on a host that others program, and how it is put back.

The host's programs own the old instance's database, so each value is put back exactly, absent ones included. The logs
keep their levels: a VM's connection can only be taken over if the old instance's log says what QEMU has sent.
"""

from __future__ import annotations

from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import ReversibleStep, Step, StepContext
from ovs_hotswap.plan.records import Facts
from ovs_hotswap.priority import Rank
from ovs_hotswap.switch.ovsdb import ROOT_TABLES
from ovs_hotswap.switch.pmd import pmd_sleep_key
from ovs_hotswap.switch.rpc import transact
from ovs_hotswap.upgrade.situation import Upgrade

_ASK_S = 5.0


class OpenCloneWindow(ReversibleStep[Upgrade]):
    """Idle PMD threads sleep, and the threads that matter are preferred. Each side gets the keys of both releases,
    because the databases are compared."""

    name = "open-window"
    description = "let idle PMD threads sleep, prefer the threads that matter"

    def facts(self, context: Upgrade, run: StepContext) -> Facts:
        host = context.host
        keys = sorted({pmd_sleep_key(host.version(side)) for side in Side if context.runs(side)})
        with host.instances[context.look().living[-1]].database(tables=ROOT_TABLES) as database:
            found = database.other_config()
        return {
            "pmd_sleep": {key: found.get(key) for key in keys},
            "scheduling": {str(side): host.scheduling(side) for side in Side},
        }

    def do(self, context: Upgrade, run: StepContext) -> None:
        host = context.host
        before = run.fact("pmd_sleep", dict)
        longest = max([host.config.upgrade.pmd_sleep_us, *(int(value) for value in before.values() if value)])
        for side in context.look().living:
            _set(host, side, dict.fromkeys(before, str(longest)))
            host.prefer_threads(side, Rank.GIVES)

    def undo(self, context: Upgrade, run: StepContext) -> None:
        for side in (context.old, context.new):
            if context.runs(side):
                put_back(host=context.host, side=side, run=run)


def put_back(host: Host, side: Side, run: StepContext) -> None:
    """Restore the operator's values on ``side``. Raises SwitchError."""
    _set(host, side, run.fact("pmd_sleep", dict))
    before = run.fact("scheduling", dict)[str(side)]
    if before is not None:
        host.schedule(side, before)


def _set(host: Host, side: Side, values: dict[str, str | None]) -> None:
    """Set or remove keys of other_config, and nothing else: the database may not be ours."""
    given = [[key, value] for key, value in values.items() if value is not None]
    mutations = [["other_config", "delete", ["set", list(values)]], ["other_config", "insert", ["map", given]]]
    change = {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": mutations}
    transact(host.instances[side].paths.db_socket, [change], timeout=_ASK_S)


class CloseCloneWindow(Step[Upgrade]):
    name = "close-window"
    description = "restore PMD sleep and the threads' priorities"

    def do(self, context: Upgrade, run: StepContext) -> None:
        sides = [context.new, *([context.old] if context.keep_old and context.runs(context.old) else [])]
        for side in sides:
            put_back(context.host, side, run)
