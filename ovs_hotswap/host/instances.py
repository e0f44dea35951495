"""Makes the two instances of a host."""

from __future__ import annotations

from collections.abc import Callable

from ovs_hotswap.config import Config, Program
from ovs_hotswap.host.cloning import Cloning
from ovs_hotswap.model import Side
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.memory import Reservation
from ovs_hotswap.switch.stock_instance import instance_class
from ovs_hotswap.switch.units import InstanceUnit
from ovs_hotswap.system import System
from ovs_hotswap.uplink.vf_care import VfCare


def make_instance(
    config: Config, system: System, side: Side, memory: Callable[[], Reservation], cloning: Callable[[], Cloning]
) -> Instance:
    """Return the instance of a side. ``memory``: what it is to reserve when it is started. ``cloning`` is asked when
    it is started on a host that others program."""
    cloned = config.program is Program.CLONE
    return instance_class(config, side)(
        config, side, system, unit=InstanceUnit(side, system), vfs=VfCare(config, side, system), memory=memory,
        fill_database=(lambda release: cloning().fill(side, release)) if cloned else None,
        keeps_database=lambda: cloned and cloning().keeps(side),
    )  # fmt: skip
