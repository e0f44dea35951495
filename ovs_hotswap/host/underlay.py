"""The underlay as the instances' tunnels use it: next hops are asked, chosen, and given to an instance."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from functools import partial

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError, UplinkError
from ovs_hotswap.host.flow_tables import mac
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.next_hops import NextHops, asked, choose
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.ovsdb import ROOT_TABLES
from ovs_hotswap.switch.owned import PROGRAMMED_TUNNELS
from ovs_hotswap.switch.tunnel import TunnelConfig, Tunnels
from ovs_hotswap.uplink.driver import Speaker
from ovs_hotswap.uplink.frames import Ear, PacketSockets
from ovs_hotswap.uplink.neighbours import Asker

log = logging.getLogger(__name__)


class Underlay:
    """The underlay of a host with ``intent``. ``end`` gives a side's end of its uplink, ``active`` the recorded active
    side."""

    def __init__(
        self,
        config: Config,
        intent: Intent,
        instances: Mapping[Side, Instance],
        end: Callable[[Side], Speaker],
        active: Callable[[], Side | None],
    ) -> None:
        self._config, self._intent, self._instances = config, intent, instances
        self._end, self._active = end, active

    @property
    def asks(self) -> bool:
        """Whether there is anything to ask: neighbours without a MAC, or routes with several gateways."""
        return bool(asked(self._intent))

    def answers(self) -> dict[str, str]:
        """The MACs of the neighbours that were asked and have answered. Raises UplinkError, SwitchError."""
        return self.asker().ask(asked(self._intent), self.in_use().macs) if self.asks else {}

    def asker(self) -> Asker:
        """Make what asks neighbours. The questions are sent on the kernel's devices of the NICs, so no instance has to
        run, and the kernel sees the answers there. Where the kernel has no such device, the active instance sends
        them, and its bridge's device sees the answers: a standby may have no uplink."""
        uplink, kernel = self._config.uplink, PacketSockets(self._config.uplink.namespace)
        # A NIC that only one instance can have open is that instance's alone: DPDK may have taken it from the kernel.
        devices = [nic.device for nic in uplink.nics if nic.device is not None] if uplink.both_open else []
        running = [side for side, instance in self._instances.items() if instance.pid() is not None]
        mouths: list[Callable[[bytes], None]] = [partial(kernel.send, device) for device in devices]
        ears = [partial(kernel.listen, device) for device in devices]
        if uplink.driver == "announce":
            return self._speaking(running)
        bridges = [self._listen(side) for side in running]
        mouths = mouths or self._mouth(running)
        return Asker(self._intent.vtep, mouths, ears, bridges=bridges)

    def _mouth(self, running: Collection[Side]) -> list[Callable[[bytes], None]]:
        """What sends by an instance that would answer: the active one, if possible, because the other one may have no
        uplink."""
        for side in sorted(running, key=lambda side: side is not self._active()):
            with contextlib.suppress(SwitchError):
                return [self._end(side).send]
        return []

    def _listen(self, side: Side) -> Callable[[], AbstractContextManager[Ear]]:
        return partial(PacketSockets(self._instances[side].paths.netns).listen, self._config.bridge)

    def _speaking(self, running: Collection[Side]) -> Asker:
        """Make what asks where the VTEP's address is announced: a question from another instance than the one that
        speaks for it would teach neighbours that one's MAC. Raises SwitchError."""
        side = next((each for each in running if self._speaks(each)), None)
        if side is None:
            return Asker(self._intent.vtep, ())
        vtep = self._intent.with_mac(mac(self._config, self._intent, side)).vtep
        return Asker(vtep, (self._end(side).send,), bridges=(self._listen(side),))

    def _speaks(self, side: Side) -> bool:
        """Whether an instance speaks for the VTEP's address; one that does not answer does not count."""
        with contextlib.suppress(SwitchError):
            return self._end(side).speaks()
        return False

    def notes(self) -> dict[Side, TunnelConfig]:
        """What the running instances were given, the active one first. What an instance that does not answer was given
        is not known."""
        found = {}
        for side in sorted(Side, key=lambda side: side is not self._active()):
            if self._instances[side].pid() is not None:
                with contextlib.suppress(SwitchError):
                    if (note := self.programmed(side)) is not None:
                        found[side] = note
        return found

    def in_use(self) -> NextHops:
        """The next hops that the running instances use; those of the active one count."""
        return in_use(self.notes())

    def programmed(self, side: Side) -> TunnelConfig | None:
        """What ``program`` last gave the running side; ``None`` if that is not known. Raises SwitchError."""
        with self._instances[side].database(tables=ROOT_TABLES) as database:
            return TunnelConfig.of_note(database.external_ids().get(PROGRAMMED_TUNNELS))

    def wanted(self, answers: Mapping[str, str]) -> TunnelConfig:
        """What the tunnels of an instance need. ``answers``: of neighbours that were asked."""
        vtep, chosen = self._intent.vtep, choose(self._intent, answers, self.in_use() if self.asks else NextHops())
        return TunnelConfig(vtep.interface, chosen.gateways, chosen.macs, vtep.link_addresses)

    def program(self, side: Side, answers: Mapping[str, str] | None = None) -> None:
        """Give the side the intent's VTEP address, routes and neighbours, and remove those that have left it.
        ``answers``: of neighbours that were asked a moment ago. A neighbour without a known MAC is left out. Raises
        SwitchError."""
        before = self.programmed(side)
        if answers is None and not self._asks_in_vain(side, before):
            try:
                answers = self.answers()
            except (SwitchError, UplinkError) as error:  # what is known may be enough; `check` reports it
                log.warning("next hops cannot be asked: %s", error.message)
        wanted = self.wanted(answers or {})
        Tunnels(self._instances[side].paths, self._config.bridge).put(wanted, before)
        with self._instances[side].database(tables=ROOT_TABLES) as database:
            database.set_other_config({}, {PROGRAMMED_TUNNELS: wanted.note()})

    def _asks_in_vain(self, side: Side, before: TunnelConfig | None) -> bool:
        """Whether only ``side`` could ask, which was just started: it has no flows yet that pass answers on, and its
        VMs wait. ``before``: what it was given."""
        uplink = self._config.uplink
        if before is not None or (uplink.driver != "announce" and any(nic.device is not None for nic in uplink.nics)):
            return False
        return self._instances[side.other].pid() is None


def in_use(notes: Mapping[Side, TunnelConfig]) -> NextHops:
    """The next hops in ``notes``; those of the first one count."""
    gateways: dict[str, str] = {}
    macs: dict[str, str] = {}
    for note in notes.values():
        gateways, macs = {**note.routes, **gateways}, {**note.neighbours, **macs}
    return NextHops(gateways, macs)
