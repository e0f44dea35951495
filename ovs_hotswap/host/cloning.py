"""What an upgrade of a host that others program works with: the copy of one instance on the other, and wire mode."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property

from ovs_hotswap.clone import database, fdb
from ovs_hotswap.clone.changes import Changes, changes_of, ours
from ovs_hotswap.clone.follow import Follower
from ovs_hotswap.clone.rows import Rows, refs, single
from ovs_hotswap.config import Config, Program
from ovs_hotswap.controllers.devices import Devices
from ovs_hotswap.controllers.exchange import Exchange
from ovs_hotswap.controllers.stock_units import StockUnits
from ovs_hotswap.controllers.taps import Taps
from ovs_hotswap.controllers.well_known import WellKnown
from ovs_hotswap.errors import HostError
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System
from ovs_hotswap.wire.keeper import Keeper
from ovs_hotswap.wire.mirrors import MirrorWire, UplinkPort

_logger = logging.getLogger(__name__)
NETDEV = "ovs-netdev"
"""The device that every ovs-vswitchd with the datapath ``netdev`` makes in its network namespace, under this name, and
has no use for (ofproto/ofproto-dpif.c, ``open_dpif_backer``)."""
_ASIDE = "ovsh-netdev-"


@dataclass(frozen=True)
class Cloning:
    """``paths``: the files of both instances."""

    config: Config
    system: System
    paths: dict[Side, InstancePaths]

    def changes(self, new: Side, *, cut: bool = False) -> Changes:
        """What is to be otherwise on ``new`` than on the other side: its own devices, and what two switches in one
        network namespace cannot both have. ``cut``: the host's own ports have passed to it. Raises SwitchError."""
        without = frozenset() if cut else frozenset(self.kernel_devices(new))
        return replace(changes_of(self.config.instance(new)), without=without)

    def fill(self, new: Side, release: Release) -> None:
        """Write the other side's configuration into the empty database of ``new``. Raises SwitchError."""
        database.copy(self.paths[new.other], self.paths[new], release, self.changes(new))

    def keeps(self, new: Side) -> bool:
        """Whether an instance that is being started has its last database: where others program the host, nothing else
        knows what they have written there, unless the other instance runs."""
        alone = self.system.read_pid(self.paths[new.other].vswitchd_pid) is None
        return self.config.program is Program.CLONE and alone

    def follower(self, new: Side) -> Follower:
        return Follower(self.system, self.paths[new.other], self.paths[new], self.changes(new))

    @cached_property
    def wire(self) -> MirrorWire:
        return MirrorWire(
            self.paths, self.system, self.config.run_dir / "wire.sock", ready_s=self.config.upgrade.ready_s
        )

    def keep_wired(self) -> None:
        """Have what others remove of wire mode's flows brought back, until ``keep_wired_no_longer`` or the end of this
        process: a controller that is started again clears its bridge. Raises SwitchError, HostError, CommandError."""
        self.keep_wired_no_longer()
        self._keeper.start()

    def keep_wired_no_longer(self) -> None:
        """Before wire mode is closed. It may be repeated."""
        self._keeper.stop()

    @cached_property
    def _keeper(self) -> Keeper:
        return Keeper(self.wire, self.system, self.config.run_dir, lambda error: _logger.info("%s", error.message))

    @cached_property
    def well_known(self) -> WellKnown:
        return WellKnown(self.config.stock.run_dir, self.config.stock.kept_dir)

    @property
    def units(self) -> StockUnits:
        return StockUnits(self.config.stock.unit, self.system)

    def make_room(self, old: Side) -> None:
        """Give the device that ``old`` has as ``NETDEV`` another name. Raises HostError."""
        devices, aside = Devices(), f"{_ASIDE}{old}"
        if devices.named(aside) is None and (found := devices.named(NETDEV)) is not None:
            devices.rename(found.index, aside)

    def give_room_back(self, old: Side) -> None:
        """Undo ``make_room`` after the new switch has ended. Raises HostError."""
        devices = Devices()
        if (own := devices.named(f"{_ASIDE}{old}")) is not None:
            self._remove(NETDEV)
            try:
                devices.rename(own.index, NETDEV)
            except HostError:
                if devices.named(NETDEV) is None:
                    raise
                devices.remove(own.index)  # a switch that was started in the place of ``old`` has made one for itself

    def clear_away(self, old: Side) -> None:
        """Remove what ``make_room`` has left of ``old``, which has ended. Raises HostError."""
        self._remove(f"{_ASIDE}{old}")

    @staticmethod
    def _remove(name: str) -> None:
        devices = Devices()
        if (found := devices.named(name)) is not None:
            devices.remove(found.index)

    @cached_property
    def taps(self) -> Taps:
        return Taps(self.config.run_dir / "taps", self.system)

    def exchange(self, new: Side) -> Exchange:
        """The ports that the host itself uses, which pass from the other side to ``new``."""
        return Exchange(self.taps, self.paths[new.other].db_socket, self.paths[new].db_socket, self.system)

    def host_ports(self, new: Side) -> list[str]:
        """The ports of the other side that the host itself uses, which ``new`` gets at the cut. Raises SwitchError."""
        return [*self.exchange(new).internal(), *self.kernel_devices(new)]

    def announce(self, side: Side) -> None:
        """Have the network learn that all addresses are behind this side's uplinks now. Raises SwitchError."""
        fdb.announce(self.system, self.paths[side], [(each.bridge, each.name) for each in self.uplinks(side)])

    def kernel_devices(self, new: Side) -> list[str]:
        """The devices of the kernel that are ports of the other side, and that ``new`` has no device of its own for.
        Raises SwitchError."""
        return [name for name in self.exchange(new).devices() if name not in self.config.instance(new).port_devices]

    def uplinks(self, side: Side) -> tuple[UplinkPort, ...]:
        """The ports of a running side that have a DPDK device of their own. Raises SwitchError."""
        return uplinks_in(database.read(self.paths[side]).rows)


def uplinks_in(rows: Rows) -> tuple[UplinkPort, ...]:
    """Return the ports with an interface of type ``dpdk`` that are not parts of ovs-hotswap, as wire mode's links
    are."""
    found, own = [], ours(rows)
    interfaces, ports = rows.get("Interface", {}), rows.get("Port", {})
    for bridge in rows.get("Bridge", {}).values():
        for ref in refs(bridge.get("ports", ())):
            port = ports.get(ref.uuid, {})
            kinds = {single(interfaces.get(each.uuid, {}), "type") for each in refs(port.get("interfaces", ()))}
            if "dpdk" in kinds and ref.uuid not in own:
                found.append(UplinkPort(str(single(bridge, "name")), str(single(port, "name"))))
    return tuple(sorted(found, key=lambda each: (each.bridge, each.name)))
