"""Makes the two instances of a host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ovs_hotswap.config import Config, Program
from ovs_hotswap.host.cloning import Cloning
from ovs_hotswap.model import Side
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.memory import Reservation
from ovs_hotswap.switch.stock_instance import instance_class
from ovs_hotswap.switch.units import InstanceUnit, PreexistingNamespaces
from ovs_hotswap.system import System
from ovs_hotswap.uplink.vf_care import VfCare


def make_instance(
    config: Config, system: System, side: Side, memory: Callable[[], Reservation], cloning: Callable[[], Cloning]
) -> Instance:
    """Return the instance of a side. ``memory``: what it is to reserve when it is started. ``cloning`` is asked when
    it is started on a host that others program."""
    return instance_class(config, side)(
        config, side, system, unit=InstanceUnit(side, system), vfs=VfCare(config, side, system), memory=memory,
        **_database_of(config, side, cloning),
    )  # fmt: skip


def instance_of_unit(
    config: Config, system: System, side: Side, memory: Callable[[], Reservation], cloning: Callable[[], Cloning]
) -> Instance:
    """Return the instance as the command of its own unit has it: what is there before that command, and what stays
    after it, is not this instance's. The arguments are as those of ``make_instance``."""
    namespaces = None if config.program is Program.CLONE else PreexistingNamespaces()
    return Instance(config, side, system, namespaces=namespaces, memory=memory, **_database_of(config, side, cloning))


def _database_of(config: Config, side: Side, cloning: Callable[[], Cloning]) -> dict[str, Any]:
    if config.program is not Program.CLONE:
        return {}
    return {"fill_database": lambda release: cloning().fill(side, release),
            "keeps_database": lambda: cloning().keeps(side)}  # fmt: skip
