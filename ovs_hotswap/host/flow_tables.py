"""The flow tables that a side of a host is to have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ovs_hotswap.config import Config
from ovs_hotswap.host import uplink_ports
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.flow_samples import sampled
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.tables import Form, Table, Voice, lines, render
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.system import System
from ovs_hotswap.uplink.announced import AnnouncedFile
from ovs_hotswap.uplink.nic_links import NicLinks


class Configured(Protocol):
    """A host as far as its flow tables depend on it (``Host``)."""

    config: Config
    system: System

    @property
    def intent(self) -> Intent: ...


class Bridges(Configured, Protocol):
    """A host whose bridges can be asked."""

    @property
    def nic_links(self) -> NicLinks: ...

    def openflow(self, side: Side) -> OpenFlow:
        """The side's bridge. Raises SwitchError."""


def mac(config: Config, intent: Intent, side: Side) -> str:
    """The MAC of the side's bridge, from which it sends."""
    return config.instance(side).uplink_mac or intent.vtep.mac


def tables(host: Configured, side: Side, form: Form, live: Sequence[int] | None = None) -> tuple[Table, ...]:
    """The tables of a side. ``live``: the numbers of the NICs that have a link; ``None`` if all have one. Where the
    VTEP's address is announced, the side that was announced last speaks for it. Raises ConfigError, and UplinkError if
    it cannot be read which side that is."""
    config, own = host.config, host.intent.with_mac(mac(host.config, host.intent, side))
    ports = uplink_ports.ports(config, range(len(config.uplink.nics)) if live is None else live)
    found = render(own, form, ports, whole_nic=not config.uplink.both_open, voice=_voice(host, side))
    return sampled(found, own, config.flowlog)


def _voice(host: Configured, side: Side) -> Voice | None:
    if host.config.uplink.driver != "announce":
        return None
    announced = AnnouncedFile(host.config.announced_file, host.system).read()
    return Voice.SPEAKS if announced is not None and announced.side is side else Voice.SILENT


def flows(host: Bridges, side: Side, form: Form) -> list[str]:
    """The flows of a side for the NICs that have a link now. Raises what ``tables`` does."""
    return lines(tables(host, side, form, host.nic_links.live() if uplink_ports.two(host.config) else None))


def differences(host: Bridges, side: Side, form: Form) -> list[str]:
    """How the side's flows differ from the intent; not at all if only the NICs by which packets leave are other ones
    than now. Raises SwitchError, and what ``tables`` does."""
    openflow = host.openflow(side)
    found = openflow.diff(flows(host, side, form))
    if found:
        for live in uplink_ports.choices(host.config):
            if not openflow.diff(lines(tables(host, side, form, live))):
                return []
    return found
