"""A configuration of ports that no instance has tried yet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import ETHERNET_MTU
from ovs_hotswap.switch.datapath import DatapathPort
from ovs_hotswap.switch.ovsdb import PortSpec


def refuse_untried(
    active: Side, reshaped: Collection[str], others: Mapping[str, DatapathPort], wanted: Iterable[PortSpec]
) -> None:
    """Raises SwitchError if a port in use would be reconfigured in a way in which the other side's datapath does not
    have it yet. The port of a VM can be tried there only if the VM is parked: without a guest it has no MTU. An uplink
    that only one instance can have open cannot be tried.

    ``reshaped``: the ports that would be reconfigured to be as ``wanted``. ``others``: those of the other side.
    """
    tried = {name: port.mtu for name, port in others.items()}
    mtus = {port.name: port.mtu for port in wanted}
    untried = [name for name in reshaped if tried.get(name) != (mtus[name] or ETHERNET_MTU)]
    if untried:
        raise SwitchError(
            f"instance {active} would have to reconfigure port {', '.join(untried)} under traffic, and instance "
            f"{active.other} has not tried this: if it is refused, nothing passes there until it is undone",
            hint=f"`ovs-hotswap watch run`, or `instance start {active.other}`, tries the uplink there first, and "
            "a standby also tries the VMs' ports; `overlay apply --untried` skips this",
        )
