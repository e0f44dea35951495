"""Carry the operator's settings from the database of one instance to the other's, and report what is carried."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.host import saved_settings, uplink_ports
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.overlay.ports import (
    PEER,
    PEER_PORT,
    SECOND_UPLINK,
    SECOND_UPLINK_PORT,
    UPLINK,
    UPLINK_PORT,
    VXLAN,
    VXLAN_PORT,
)
from ovs_hotswap.switch import settings_plan
from ovs_hotswap.switch.ovsdb import SCHEMA
from ovs_hotswap.switch.owned import CONFIGURED_SLEEP
from ovs_hotswap.switch.pmd import pmd_sleep_key
from ovs_hotswap.switch.release import programs
from ovs_hotswap.switch.rpc import quick_call, transact
from ovs_hotswap.switch.settings import (
    INTERFACE,
    PORT,
    ROOT,
    Key,
    Settings,
    Snapshot,
    foreign_ports,
    selects,
    settings,
    snapshot,
)
from ovs_hotswap.switch.settings_plan import FEATURE_KEYS, Carry, Receiver

log = logging.getLogger(__name__)

_ANSWER_S = 5.0
_SHOWN = 8  # settings named in one line of a report


def read(host: Host, side: Side, timeout: float = _ANSWER_S) -> Snapshot:
    """The present content of the side's database. Raises SwitchError."""
    socket = host.instances[side].paths.db_socket
    schema = quick_call(socket, "get_schema", [SCHEMA], timeout=timeout)
    try:
        return snapshot(schema, transact(socket, selects(schema), timeout=timeout))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # an answer of another shape
        raise SwitchError(f"{socket}: not a database of Open vSwitch: {error!r}") from error


def own(host: Host, found: Snapshot) -> Settings:
    """The operator's settings in a database of an instance, without our own values."""
    ports = [*uplink_ports.names(host.config), VXLAN, *(vm.name for vm in host.intent.vms)]
    read = settings(found, host.config.bridge, ports)
    return {key: value for key, value in read.items() if key.table not in (PORT, INTERFACE) or key.row != PEER}


def bring(host: Host, source: Side, target: Side, timeout: float = _ANSWER_S) -> Carry:
    """Give the side ``target`` the operator's settings on ``source``. If it has them already, nothing is changed.
    Raises SwitchError, also if a port of the target cannot be made with the settings."""
    return put(host, own(host, read(host, source, timeout)), source, target, timeout)


def put(host: Host, wanted: Settings, source: Side, target: Side, timeout: float = _ANSWER_S) -> Carry:
    """Like ``bring``, for the settings ``wanted`` that were read on ``source`` before. Raises SwitchError."""
    there = read(host, target, timeout)
    if source is not target:
        wanted = {key: value for key, value in wanted.items() if not _comes_by_itself(host, key)}
    change = settings_plan.carry(wanted, _receiver(host, there, source, target))
    operations = settings_plan.operations(change, there, host.config.bridge)
    if operations:
        instance = host.instances[target]
        transact(instance.paths.db_socket, operations, timeout=timeout)
        with instance.database() as database:
            database.wait_ports([port.name for port in host.bridge_spec(target).ports], host.config.upgrade.ready_s)
    return change


def keep(host: Host, side: Side, timeout: float = _ANSWER_S) -> Settings:
    """Record the operator's settings on the active instance for the next boot, and return them. Raises SwitchError and
    HostError."""
    found = read(host, side, timeout)
    wanted = own(host, found)
    saved_settings.write(host.config, host.system, side, wanted, own_sleep(host, found, side))
    return wanted


def give_kept(host: Host, side: Side) -> None:
    """Give the operator's settings on the last active instance to one that was started and programmed. The instance
    forwards packets without them, so a failure is only logged."""
    found = saved_settings.read(host.config)
    if found is None:
        return
    try:
        if found.pmd_sleep_us is not None:
            host.settle_pmd_sleep(side, found.pmd_sleep_us)
        change = put(host, found.found, found.side, side)
    except Exception as error:  # noqa: BLE001 - an edited file may ask an instance for anything
        aside, why = (
            saved_settings.set_aside(host.config),
            error.message if isinstance(error, HotswapError) else repr(error),
        )
        log.warning("instance %s does not get back its settings, which are in %s: %s", side, aside, why)
        return
    if change.carried:
        log.info("instance %s has the operator's settings again: %s", side, _some(map(str, change.carried)))
    for key, reason in change.lost:
        log.warning("instance %s does not get back %s: %s", side, key, reason)


def own_sleep(host: Host, found: Snapshot, side: Side) -> int | None:
    """Like ``Host.own_pmd_sleep``, from a database that was read before. Raises SwitchError."""
    value = found.root.get("other_config", {}).get(pmd_sleep_key(host.version(side)), "0")
    configured = str(host.config.instance(side).pmd_sleep_us)
    given = found.root.get("external_ids", {}).get(CONFIGURED_SLEEP, configured)
    return int(value) if value != given and value.isdecimal() else None


def _receiver(host: Host, there: Snapshot, source: Side, target: Side) -> Receiver:
    return Receiver(
        there.schema,
        own(host, there),
        _ports(host),
        [key for key in settings_plan.before(there.root.get("external_ids", {})) if not _comes_by_itself(host, key)],
        _cores(host, source, target),
        there.root.get("other_config", {}),
        alone=source is target or host.instances[source].pid() is None,
    )


def _comes_by_itself(host: Host, key: Key) -> bool:
    """Whether a setting is that of an uplink that only one instance can have open: its options come with it
    (``uplink_ends.UplinkExchange``)."""
    return not host.config.uplink.both_open and key.table in (PORT, INTERFACE) and key.row == UPLINK


def _ports(host: Host) -> list[str]:
    return [host.config.bridge, *uplink_ports.names(host.config), VXLAN, *(vm.name for vm in host.intent.vms)]


def _cores(host: Host, source: Side, target: Side) -> tuple[list[int], list[int]]:
    return host.config.instance(source).pmd_cores, host.config.instance(target).pmd_cores


# --------------------------------------------------------------------------------------------------- what is reported


def check(host: Host, old: Side, new: Side, release: str, *, goes_on: bool) -> list[Finding]:
    """Report what an upgrade will do with the operator's settings on the active instance. ``goes_on``: the upgrade
    keeps the instance that runs on the side ``new``. Raises SwitchError, ReleaseError."""
    found = read(host, old)
    every = own(host, found)
    wanted = {key: value for key, value in every.items() if not _comes_by_itself(host, key)}
    stays = [str(key) for key in every.keys() - wanted.keys() if key[:1] + key[2:3] != (INTERFACE, "options")]
    if goes_on:
        receiver = _receiver(host, read(host, new), old, new)
    else:
        receiver = Receiver(
            _schema(host, release), {}, _ports(host), (), _cores(host, old, new), host.config.other_config(new)
        )
    numbers = taken_numbers(wanted, {vm.ofport: vm.name for vm in host.intent.vms})
    features = unlike_features(old, new, found.root.get("other_config", {}), receiver.other_config)
    found_all = [*told(settings_plan.carry(wanted, receiver), old, new), *numbers, *features]
    return [*found_all, *left_behind(stays, new), *unkept(every, _kept(host))]


def left_behind(names: list[str], new: Side) -> list[Finding]:
    """Report the settings of an uplink that only one instance can have open that do not come with it."""
    if not names:
        return []
    text = f"instance {new} opens the uplink without {_some(sorted(names))}: only the interface's options come with it"
    return [Finding("settings", Severity.WARNING, text, f"set it again in the database of instance {new}")]


def _kept(host: Host) -> Settings:
    found = saved_settings.read(host.config)
    return {} if found is None else found.found


def unkept(wanted: Settings, recorded: Settings) -> list[Finding]:
    """Report the settings that would be lost if the host went down without notice."""
    lacking = [str(key) for key, value in wanted.items() if recorded.get(key) != value]
    if not lacking:
        return []
    text = f"not recorded for the next boot, should the host go down without notice: {_some(lacking)}"
    return [Finding("settings", Severity.WARNING, text, "`ovs-hotswap instance keep`; the watchdog does it by itself")]


def compared(host: Host, wanted: Settings, side: Side) -> list[Finding]:
    """Check that the side has ``wanted``, which was carried over to it. Raises SwitchError."""
    if not wanted:
        return []
    there = read(host, side)
    has, all_of_it = own(host, there), there.root.get("other_config", {})
    lacking = [
        str(key)
        for key, value in wanted.items()
        if has.get(key) != value and not (key.table == ROOT and all_of_it.get(key.key) == value)
    ]
    if lacking:
        text = f"instance {side} does not have what was carried over to it: {_some(lacking)}"
        return [
            Finding("settings", Severity.ERROR, text, f"set it with `ovs-vsctl` in the database of instance {side}")
        ]
    return [Finding("settings", Severity.OK, f"{len(wanted)} carried over")]


def told(change: Carry, old: Side, new: Side) -> list[Finding]:
    """One finding for each reason why settings are lost, and one for all settings that are carried over."""
    name = "settings"
    reasons: dict[str, list[str]] = {}
    for key, reason in change.lost:
        reasons.setdefault(reason, []).append(str(key))
    findings = [
        Finding(
            name, Severity.WARNING, f"only instance {old} has, and instance {new} will not: {_some(keys)}: {reason}"
        )
        for reason, keys in reasons.items()
    ]
    text = (
        f"{_some(map(str, change.carried))} of instance {old}: carried over" if change.carried else "none to carry over"
    )
    return [*findings, Finding(name, Severity.OK, text)]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def taken_numbers(wanted: Settings, vms: dict[int, str]) -> list[Finding]:
    """Report the operator's ports that ask for an OpenFlow number that one of our ports needs. A port that has such a
    number without asking for it gives it up (vswitchd/bridge.c, bridge_delete_or_reconfigure_ports)."""
    ours = {
        UPLINK_PORT: UPLINK,
        SECOND_UPLINK_PORT: SECOND_UPLINK,
        VXLAN_PORT: VXLAN,
        PEER_PORT: "the peer link",
        **vms,
    }
    findings = []
    for name in foreign_ports(wanted):
        for interface in wanted[Key(PORT, name, "", "")]:
            for number in wanted.get(Key(INTERFACE, interface, "ofport_request", ""), []):
                if number in ours:
                    text = f"port {interface} asks for OpenFlow number {number}, which {ours[number]} needs"
                    hint = f"ovs-vsctl set Interface {interface} ofport_request=5000"
                    findings.append(Finding("settings", Severity.ERROR, text, hint))
    return findings


def unlike_features(old: Side, new: Side, active: Any, standby: Any) -> list[Finding]:
    """Check that the two instances have the same values of the keys that decide which features they offer VMs."""
    unlike = [
        f"{key} is {active.get(key, 'false')} on instance {old} and {standby.get(key, 'false')} on instance {new}"
        for key in sorted(FEATURE_KEYS)
        if active.get(key, "false") != standby.get(key, "false")
    ]
    if not unlike:
        return []
    text = f"{'; '.join(unlike)}: they offer VMs different features, and a VM cannot move to where it would lose one"
    return [Finding("features", Severity.WARNING, text, "set it alike in [instances.other_config]")]


def _schema(host: Host, release: str) -> dict[str, Any]:
    """The schema of the databases of a release."""
    found = host.releases.get(release)
    path = Path((found.root or "") + programs(found).schema)
    try:
        schema = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SwitchError(f"{path}: not a schema of Open vSwitch: {error}") from error
    if not isinstance(schema, dict) or not isinstance(schema.get("tables"), dict):
        raise SwitchError(f"{path}: not a schema of Open vSwitch")
    return schema
