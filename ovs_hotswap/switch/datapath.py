"""The ports that the datapath of an instance really has, and a change of their configuration that can be undone.

If a port's new configuration fails, ovs-vswitchd removes the port from its datapath (lib/dpif-netdev.c,
reconfigure_datapath) and says so only in its log: ``Interface.error`` stays empty, ``ofport`` stays, and so may
``link_state`` and ``mtu``. A port that the datapath does not have passes nothing.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.ovsdb import BridgeSpec, PortSpec, Shape
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.rpc import transact
from ovs_hotswap.switch.settings import decode
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.waiting import wait_until

USERSPACE = "netdev@ovs-netdev"  # the one datapath of all bridges of type netdev
POLLED_TYPES = frozenset({"dpdk", "dpdkvhostuserclient"})
"""The types of ports that the datapath has under the port's own name, and that have an MTU."""
_PORT = re.compile(r"^\s+port (?P<number>\d+): (?P<name>\S+) \((?P<type>[\w-]+)(?:: (?P<config>[^)]*))?\)")
_MTU = re.compile(r"\bmtu=(\d+)")
_SENDER = re.compile(r"\btunnel\([^)]*?\b(?:ipv6_)?src=(?P<address>[^,)]+).*\bused:(?P<seconds>[\d.]+)s")
_LOG_LINE = re.compile(r"^[^|]*\|\d+\|(?:netdev_dpdk|dpif_netdev|dpdk)[^|]*\|(?:ERR|WARN)\|(?P<text>.*)$")
# The main loop confirms a new configuration to the database, and applies it to the datapath in a later turn.
_SETTLE_S = 3.0
_POLL_S = 0.05
_OPTIONAL = {"key": "integer", "min": 0, "max": 1}  # the type of Interface.mtu (vswitchd.ovsschema)

Reasons = Callable[[str], list[str]]
Look = Callable[[], Mapping[str, "DatapathPort"]]


@dataclass(frozen=True, slots=True)
class DatapathPort:
    """A port of the datapath. ``mtu`` is in bytes; it is ``None`` if the type has none, or a VM's port has no guest."""

    name: str
    type: str
    mtu: int | None

    @property
    def in_use(self) -> bool:
        """Whether packets may pass through the port: a VM's port needs a guest for that, a device's does not."""
        return self.type == "dpdk" or self.mtu is not None


def parse_senders(text: str, seconds: float) -> list[str]:
    """Return the hosts whose tunnelled packets have arrived in the last ``seconds``, from the output of
    ``dpctl/dump-flows``. A flow of tunnelled packets always matches the host's address exactly
    (ofproto/tunnel.c, tnl_wc_init)."""
    found = (_SENDER.search(line) for line in text.splitlines())
    return sorted({each["address"] for each in found if each and float(each["seconds"]) <= seconds})


def senders(ctl: Path, seconds: float) -> list[str]:
    """Call ``parse_senders`` for the instance with the control socket ``ctl``. Raises SwitchError."""
    return parse_senders(appctl(ctl, "dpctl/dump-flows", USERSPACE), seconds)


def parse_ports(text: str) -> dict[str, DatapathPort]:
    """Return the ports by name, from the output of ``dpctl/show`` (lib/dpctl.c, show_dpif).

    In brackets it prints the result of netdev_get_config, which has the MTU in OVS 3.1 and does not have it in OVS 3.5
    (lib/netdev-dpdk.c).
    """
    found = {}
    for line in text.splitlines():
        if row := _PORT.match(line):
            mtu = _MTU.search(row["config"] or "")
            found[row["name"]] = DatapathPort(row["name"], row["type"], int(mtu[1]) or None if mtu else None)
    return found


def parse_numbers(text: str) -> dict[str, str]:
    """Return the numbers that the datapath itself gives to its ports, by name, from the output of ``dpctl/show``."""
    return {row["name"]: row["number"] for line in text.splitlines() if (row := _PORT.match(line))}


def ports(ctl: Path, *, timeout: float = 5.0) -> dict[str, DatapathPort]:
    """Return the ports that ``dpctl/show`` prints, without MTUs if it prints none. Raises SwitchError."""
    return parse_ports(appctl(ctl, "dpctl/show", USERSPACE, timeout=timeout))


def ports_with_mtus(paths: InstancePaths, *, timeout: float = 5.0) -> dict[str, DatapathPort]:
    """Return the ports with MTUs, from ``Interface.mtu`` if ``dpctl/show`` prints none. Raises SwitchError."""
    found = ports(paths.vswitchd_ctl, timeout=timeout)
    if all(port.mtu is not None for port in found.values() if port.type in POLLED_TYPES):
        return found
    select = {"op": "select", "table": "Interface", "where": [], "columns": ["name", "mtu"]}
    (answer,) = transact(paths.db_socket, [select], timeout=timeout)
    return completed(found, {row["name"]: row["mtu"] for row in answer["rows"]})


def completed(found: Mapping[str, DatapathPort], told: Mapping[str, Any]) -> dict[str, DatapathPort]:
    """Return ``found`` with MTUs. ``told`` is ``Interface.mtu`` by name, as RFC 7047, 5.1 writes it.

    ovs-vswitchd copies that column from the port's device a moment after the device took a new MTU. It is empty or 0
    for a port that the datapath has lost, and for a VM's port before its guest has come. For a port in the datapath it
    is therefore the MTU that is in force, or was until now.
    """
    return {
        name: port if port.mtu is not None or port.type not in POLLED_TYPES
        else replace(port, mtu=next(iter(decode(told.get(name, 0), _OPTIONAL)), 0) or None)
        for name, port in found.items()
    }  # fmt: skip


def refused(found: Mapping[str, DatapathPort], wanted: Iterable[PortSpec]) -> dict[str, str]:
    """Return each port of ``wanted`` that the datapath lacks, or has with another MTU than requested, and the fault."""
    faults = {}
    for spec in wanted:
        if spec.type not in POLLED_TYPES:
            continue
        port = found.get(spec.name)
        if port is None:
            asked = "" if spec.mtu is None else f" with an MTU of {spec.mtu}"
            faults[spec.name] = f"the datapath does not have it{asked}, so nothing passes"
        elif spec.mtu is not None and port.mtu is not None and port.mtu != spec.mtu:
            faults[spec.name] = f"its MTU is {port.mtu}, not {spec.mtu}"
    return faults


def reasons(log: str, name: str) -> list[str]:
    """Return what the switch logged about a port that it could not configure."""
    named = re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])")
    lines = (found["text"] for line in log.splitlines() if (found := _LOG_LINE.match(line)))
    return list(dict.fromkeys(text for text in lines if named.search(text)))


class Database(Protocol):
    """The part of a ``SwitchDb`` that this module needs."""

    def shapes(self, spec: BridgeSpec) -> dict[str, Shape]: ...
    def apply(self, spec: BridgeSpec) -> bool: ...
    def wait_ports(self, names: Collection[str], timeout: float) -> None: ...
    def put_back(self, shapes: Mapping[str, Shape]) -> bool: ...


def put_ports(
    database: Database,
    look: Look,
    spec: BridgeSpec,
    timeout: float,
    log: Path | None = None,
    settle_s: float = _SETTLE_S,
) -> None:
    """Bring the bridge to ``spec`` and check that its datapath has the ports.

    An existing port whose new configuration fails gets its earlier one again. ``look`` returns the datapath's ports,
    ``timeout`` is how long, in seconds, ovs-vswitchd may take, and ``log`` is its log, from which the reason is read.
    Raises SwitchError, which names each port with its reason.
    """
    names = [port.name for port in spec.ports]
    before = database.shapes(spec)
    logged = _size(log)
    database.apply(spec)
    try:
        database.wait_ports(names, timeout)
        await_ports(look, spec.ports, lambda name: reasons(_text(log, logged), name), settle_s=settle_s)
    except SwitchError as error:
        if not before:
            raise
        became = _undo(database, look, spec, before, timeout)
        raise SwitchError(f"{error.message}; {became}", hint=error.hint) from error


def await_ports(
    look: Look, wanted: Iterable[PortSpec], why: Reasons = lambda _name: [], *, settle_s: float = _SETTLE_S
) -> None:
    """Wait until the datapath has the ports. Raises SwitchError, which names each port that it does not have."""
    wanted = list(wanted)
    if faults := wait_until(lambda: refused(look(), wanted), settle_s, done=operator.not_, poll_s=_POLL_S):
        texts = [": ".join([f"port {name}: {fault}", *why(name)[:2]]) for name, fault in faults.items()]
        raise SwitchError("; ".join(texts), hint="the log of ovs-vswitchd says more")


def _undo(database: Database, look: Look, spec: BridgeSpec, before: Mapping[str, Shape], timeout: float) -> str:
    """Give ports their earlier configuration again, and return a text that says whether that succeeded."""
    earlier = [PortSpec(port.name, port.type, port.ofport) for port in spec.ports if port.name in before]
    try:
        database.put_back(before)
        database.wait_ports(list(before), timeout)
        await_ports(look, earlier)
    except SwitchError as error:
        return f"its earlier configuration could not be put back: {error.message}"
    return "the earlier configuration was put back"


def _size(log: Path | None) -> int:
    with contextlib.suppress(OSError):
        return 0 if log is None else log.stat().st_size
    return 0


def _text(log: Path | None, offset: int) -> str:
    try:
        if log is None:
            return ""
        with log.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
