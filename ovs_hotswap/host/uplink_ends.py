"""The instances' ends of their uplinks, as the uplink's driver uses them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ovs_hotswap.config import Config
from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.host import saved_settings, uplink_ports
from ovs_hotswap.model import Life, Side
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.ports import UPLINK, UPLINK_PORT
from ovs_hotswap.overlay.tables import Kind, Voice, cookie, voice_lines
from ovs_hotswap.switch.answering import see_answering, see_going
from ovs_hotswap.switch.datapath import ports, senders
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.switch.ovsdb import INTERFACE_TABLES
from ovs_hotswap.waiting import POLL_S, Deadline, RealClock, wait_until

_CLOSE_S = 10.0
_BUSY_S = 2.0  # a device that another process has just closed may be busy for a moment
_AGAIN_S = 0.1
_NO_DATAPATH = "failed (No such device)"  # `dpctl/show` of an instance without a bridge (lib/dpctl.c, show_dpif)


@dataclass(frozen=True, slots=True)
class UplinkEnd:
    """One instance's end of its uplink (``uplink.announce.Speaker``). ``flows``: the flows of its bridge. ``control``:
    the control socket of its ovs-vswitchd. ``port``: the OpenFlow port of one NIC."""

    flows: OpenFlow
    control: Path
    port: int = UPLINK_PORT

    def send(self, frame: bytes) -> None:
        self.flows.packet_out(frame, self._out)

    @property
    def _out(self) -> str:
        return f"output:{self.port}"

    def probes(self) -> int:
        return self.flows.packets(cookie(Kind.DROP_UNKNOWN_VNI))

    def received(self) -> int:
        return self.flows.packets(cookie(Kind.FROM_UPLINK))

    def senders(self, seconds: float) -> list[str]:
        return senders(self.control, seconds)

    def answers(self) -> int:
        return self.flows.packets(cookie(Kind.PROOF))

    def speaks(self) -> bool:
        return self.flows.has(cookie(Kind.ASKS_VTEP))

    def speak(self, address: str, voice: Voice, frames: Sequence[bytes] = (), vlan: int | None = None) -> None:
        self.flows.packet_outs([(frame, self._out) for frame in frames], voice_lines(address, voice, vlan))

    def announce(self, frames: Sequence[bytes]) -> None:
        self.flows.packet_outs((frame, self._out) for frame in frames)

    def mac(self) -> str | None:
        return self.flows.port_mac(self.port)


@dataclass(frozen=True, slots=True)
class UplinkExchange:
    """The port of an uplink that only one of the two instances has at a time. All methods raise SwitchError, and those
    that open and close it also HostError.

    ``intent`` returns the present intent.
    """

    config: Config
    instances: Mapping[Side, Instance]
    intent: Callable[[], Intent]

    def configured(self, side: Side) -> bool:
        """Whether the side's database has the port."""
        with self.instances[side].database(tables=INTERFACE_TABLES) as database:
            return UPLINK in database.interfaces()

    def present(self, side: Side) -> bool:
        """Whether the side's datapath has the port. If its process has ended, it does not."""
        instance = self.instances[side]
        life = instance.life()
        if life is Life.DEAD:
            return False
        if life is Life.STOPPED:
            see_going(instance)
        try:
            return UPLINK in ports(instance.paths.vswitchd_ctl)
        except SwitchError as error:
            if _NO_DATAPATH in error.message:
                return False
            raise

    def link_up(self, side: Side) -> bool:
        with self.instances[side].database(tables=INTERFACE_TABLES) as database:
            found = database.interfaces().get(UPLINK)
            return found is not None and found.link_state == "up"

    def open(self, side: Side) -> None:
        """Take the device and add the port with the options that the operator gave to it; return when the datapath has
        it. If this fails, the port is removed and the device is given back."""
        instance = self.instances[side]
        see_answering(instance)
        self.instances[side.other].devices.give_back()
        try:
            instance.devices.take()
            self._add(side)
        except BaseException:
            with contextlib.suppress(HotswapError):  # the first fault is the one to be told
                self.release(side)
            raise

    def _add(self, side: Side) -> None:
        options = saved_settings.port_options(self.config, UPLINK)
        spec = replace(uplink_ports.first(self.config, self.intent(), side), found=options)
        deadline = Deadline.after(_BUSY_S, RealClock())
        with self.instances[side].database() as database:
            while True:
                database.add_port(self.config.bridge, spec)
                try:
                    database.wait_ports([UPLINK], self.config.upgrade.ready_s)
                    break
                except SwitchError:
                    if deadline.passed:
                        raise
                    database.remove_port(self.config.bridge, UPLINK)
                    database.wait_ports([], self.config.upgrade.ready_s)
                time.sleep(_AGAIN_S)
        if not wait_until(lambda: self.present(side), _CLOSE_S, poll_s=POLL_S):
            raise SwitchError(f"instance {side}: the datapath does not have the uplink", hint="its log says more")

    def release(self, side: Side) -> None:
        """Remove the port, return when the datapath no longer has it, and give the device back. Nothing is to be
        removed on an instance that has ended."""
        instance = self.instances[side]
        if instance.life() is not Life.DEAD:
            see_answering(instance)
            with instance.database() as database:
                if database.remove_port(self.config.bridge, UPLINK):
                    database.wait_ports([], self.config.upgrade.ready_s)
            if wait_until(lambda: self.present(side), _CLOSE_S, done=lambda there: not there, poll_s=POLL_S):
                raise SwitchError(
                    f"instance {side} does not close its uplink", hint=f"`ovs-hotswap instance stop {side}` would"
                )
        instance.devices.give_back()


@dataclass(frozen=True, slots=True)
class UplinkEnds:
    """The ends of both instances (``uplink.base.Switches``). ``openflow`` returns the flows of a side's bridge, and
    raises SwitchError if no process would answer; ``control`` returns its control socket. ``numbers`` has the OpenFlow
    port of each NIC."""

    openflow: Callable[[Side], OpenFlow]
    control: Callable[[Side], Path]
    exchange: UplinkExchange | None = None
    numbers: Sequence[int] = (UPLINK_PORT,)

    def end(self, side: Side, nic: int = 0) -> UplinkEnd:
        return UplinkEnd(self.openflow(side), self.control(side), self.numbers[nic])

    def answers(self, side: Side) -> int:
        return self.openflow(side).packets(cookie(Kind.ANSWERS_VTEP))

    def configured(self, side: Side) -> bool:
        """Whether the side's database has the port of the uplink."""
        return self._exchange.configured(side)

    def has_uplink(self, side: Side) -> bool:
        return self._exchange.present(side)

    def link_up(self, side: Side) -> bool:
        return self._exchange.link_up(side)

    def open_uplink(self, side: Side) -> None:
        self._exchange.open(side)

    def release_uplink(self, side: Side) -> None:
        self._exchange.release(side)

    @property
    def _exchange(self) -> UplinkExchange:
        assert self.exchange is not None
        return self.exchange
