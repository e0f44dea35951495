"""Settings of a running ovs-vswitchd that are in no database and are lost when it ends.

Each is read with a command of ovs-appctl, and there is a command that sets it. What has no command to read it cannot be
carried over: ``dpif-netdev/pmd-perf-log-set``, ``upcall/disable-megaflows``, ``bfd/set-forwarding`` and
``cfm/set-fault``. Levels of logs on the console are not settings here: they belong to how the process was started.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

Command = tuple[str, ...]
"""A command of ovs-appctl and its arguments."""


@dataclass(frozen=True, slots=True)
class Setting:
    """``put`` gives a switch this value. ``remove`` takes the setting away again from a switch that did not have it;
    it is empty for what every switch has, and for what no command removes."""

    value: str
    put: tuple[Command, ...]
    remove: tuple[Command, ...] = ()


Settings = Mapping[str, Setting]
"""Settings by name, in words."""

_LEVELS = re.compile(r"^(?P<module>\S+)\s+\w+\s+(?P<syslog>\w+)\s+(?P<file>\w+)(?P<rest>.*)$")
_DPDK_LEVEL = re.compile(r"^\s*id \d+: (?P<name>\S+), level is (?P<level>\w+)")
_NO_LIMIT = 0xFFFFFFFF
_SET_NEIGHBOUR = "tnl/neigh/set"
LOGS = ("vlog/", "dpdk/")
_ZONE_LIMIT = re.compile(r"zone=(\d+),limit=(\d+)")
_ROUTE = re.compile(
    r"^User: (?P<to>\S+)(?: MARK (?P<mark>\d+))? dev (?P<device>\S+)(?: GW (?P<gateway>\S+))?(?: SRC (?P<source>\S+))?"
    r"(?: table (?P<table>\d+))?"
)
_NEIGHBOUR = re.compile(r"^(?P<address>\S+)\s+(?P<mac>[0-9a-f]{2}(?::[0-9a-f]{2}){5})\s+(?P<device>\S+)(?P<rest>.*)")


def log_levels(text: str) -> Settings:
    """From ``vlog/list`` (lib/vlog.c, vlog_get_levels). The column of the file has no effect without a log file."""
    found: dict[str, Setting] = {}
    for row in filter(None, map(_LEVELS.match, text.splitlines()[2:])):
        module = row["module"]
        for place in ("syslog", "file"):
            put = ("vlog/set", f"{module}:{place}:{row[place].lower()}")
            found[f"log level of {module} ({place})"] = Setting(row[place], (put,))
        limited = "disabled" not in row["rest"]
        word = "enable" if limited else "disable"
        found[f"rate limit of the log of {module}"] = Setting(_on(limited), ((f"vlog/{word}-rate-limit", module),))
    return found


def dpdk_levels(text: str) -> Settings:
    """From ``dpdk/log-list`` (DPDK's lib/eal/common/eal_common_log.c, rte_log_dump)."""
    rows = filter(None, map(_DPDK_LEVEL.match, text.splitlines()))
    return {
        f"log level of DPDK's {row['name']}": Setting(
            row["level"], (("dpdk/log-set", f"{row['name']}:{row['level']}"),)
        )
        for row in rows
    }


def one_number(name: str, command: Command) -> Callable[[str], Settings]:
    """A reader of an answer that has one number. ``command`` sets it when the number is appended."""

    def read(text: str) -> Settings:
        found = re.search(r"\d+", text)
        return {name: Setting(found[0], ((*command, found[0]),))} if found else {}

    return read


def zone_limits(text: str) -> Settings:
    """From ``dpctl/ct-get-limits`` (lib/ct-dpif.c, ct_dpif_format_zone_limits).

    A default of 0 is shown where there is none. It must not be set: OVS before 3.5 then tracks no connection at all
    (lib/conntrack.c, zone_limit_update). It is deleted instead, which OVS can do since 3.3; before that the highest
    number takes its place.
    """
    found = {}
    if default := re.search(r"default limit=(\d+)", text):
        number = int(default[1])
        value = "none" if number in (0, _NO_LIMIT) else str(number)
        put: tuple[Command, ...] = (("dpctl/ct-set-limits", f"default={number or _NO_LIMIT}"),)
        if value == "none":
            put = (*put, ("dpctl/ct-del-limits", "default"))
        found["connections tracked in a zone"] = Setting(value, put)
    for zone, limit in _ZONE_LIMIT.findall(text):
        set_it = ("dpctl/ct-set-limits", f"zone={zone},limit={limit}")
        found[f"connections tracked in zone {zone}"] = Setting(
            limit, (set_it,), (("dpctl/ct-del-limits", f"zone={zone}"),)
        )
    return found


def fragments(text: str) -> Settings:
    """From ``dpctl/ipf-get-status`` (lib/dpctl.c, dpctl_ct_ipf_get_status)."""
    values = dict(re.findall(r"^\s*(v[46] enabled|min v[46] frag size|max num frags).*: (\d+)$", text, re.MULTILINE))
    found = {}
    for family in ("v4", "v6"):
        if enabled := values.get(f"{family} enabled"):
            command = "dpctl/ipf-set-enabled" if enabled == "1" else "dpctl/ipf-set-disabled"
            found[f"reassembly of IP{family}"] = Setting(_on(enabled == "1"), ((command, family),))
        if least := values.get(f"min {family} frag size"):
            found[f"shortest fragment of IP{family}"] = Setting(least, (("dpctl/ipf-set-min-frag", family, least),))
    if most := values.get("max num frags"):
        found["fragments kept"] = Setting(most, (("dpctl/ipf-set-max-nfrags", most),))
    return found


def tunnel_ports(text: str) -> Settings:
    """From ``tnl/egress_port_range`` (lib/netdev-native-tnl.c, netdev_tnl_egress_port_range)."""
    found = re.search(r"(\d+)-(\d+)", text)
    put = (("tnl/egress_port_range", found[1], found[2]),) if found else ()
    return {"source ports of tunnels": Setting(found[0], put)} if found else {}


def unique_flow_ids(text: str) -> Settings:
    """From ``upcall/show`` (ofproto/ofproto-dpif-upcall.c, upcall_unixctl_show)."""
    found = re.search(r"ufid enabled : (true|false)", text)
    if not found:
        return {}
    word = "enable" if found[1] == "true" else "disable"
    return {"unique flow identifiers": Setting(_on(word == "enable"), ((f"upcall/{word}-ufid",),))}


def routes(text: str) -> Settings:
    """From ``ovs/route/show`` (lib/ovs-router.c, ovs_router_show): the routes that were added by command.

    The switch chooses the source address from those of the device."""
    found = {}
    for row in filter(None, map(_ROUTE.match, text.splitlines())):
        mark, table = row["mark"], row["table"]
        select = (*((f"pkt_mark={mark}",) if mark else ()), *((f"table={table}",) if table else ()))
        gateway = (row["gateway"],) if row["gateway"] else ()
        put = ("ovs/route/add", row["to"], row["device"], *gateway, *select)
        name = " ".join(("route to", row["to"], *select))
        value = " via ".join((row["device"], *gateway))
        found[name] = Setting(value, (put,), (("ovs/route/del", row["to"], *select),))
    return found


def neighbours(text: str) -> Settings:
    """From ``tnl/neigh/show`` (lib/tnl-neigh-cache.c, tnl_neigh_cache_show), without those that have expired.

    An entry that is set expires like one that was learnt, after ``tnl/neigh/aging``. No command removes one alone.
    """
    rows = filter(None, map(_NEIGHBOUR.match, text.splitlines()))
    return {
        f"tunnel neighbour {row['address']} on {row['device']}": Setting(
            row["mac"], ((_SET_NEIGHBOUR, row["device"], row["address"], row["mac"]),)
        )
        for row in rows
        if "STALE" not in row["rest"]
    }


READERS: Mapping[Command, Callable[[str], Settings]] = {
    ("vlog/list",): log_levels,
    ("dpdk/log-list",): dpdk_levels,
    ("dpctl/ct-get-maxconns",): one_number("connections tracked", ("dpctl/ct-set-maxconns",)),
    ("dpctl/ct-get-sweep-interval",): one_number(
        "milliseconds between two looks for expired connections", ("dpctl/ct-set-sweep-interval",)
    ),
    ("dpctl/ct-get-limits",): zone_limits,
    ("dpctl/ipf-get-status",): fragments,
    ("tnl/egress_port_range",): tunnel_ports,
    ("tnl/neigh/aging",): one_number("seconds until a tunnel neighbour expires", ("tnl/neigh/aging",)),
    ("tnl/neigh/retrans_time",): one_number(
        "milliseconds between two questions for a tunnel neighbour", ("tnl/neigh/retrans_time",)
    ),
    ("upcall/show",): unique_flow_ids,
    ("ovs/route/show",): routes,
    ("tnl/neigh/show",): neighbours,
}
"""The commands that read settings, in the order in which settings are given to the new side: a route before the
neighbours on it."""


@dataclass(frozen=True, slots=True)
class Change:
    """``name`` is that of a setting, ``put`` and ``undo`` are the commands that give the new side the active's value
    and its own value back."""

    name: str
    put: tuple[Command, ...]
    undo: tuple[Command, ...]


def changes(active: Settings, new: Settings, commands: Collection[str], *, cut: bool) -> list[Change]:
    """Return what gives the new side the settings of the active one. ``commands`` are those that the new side has.

    A setting that only the new side has stays as it is. After the cut (``cut``) what the new side has was perhaps set
    there, and stays too. Before it, neighbours of tunnels are set even if they are equal, so that none expires soon.
    """
    found = []
    for name, wanted in active.items():
        own = new.get(name)
        if own is not None and (cut or (own.value == wanted.value and not _is_neighbour(wanted))):
            continue
        # Every switch has the levels of its modules; the new one may have other modules.
        can_be_added = bool(wanted.remove) or _is_neighbour(wanted)
        if (own is None and not can_be_added) or any(put[0] not in commands for put in wanted.put):
            continue
        found.append(Change(name, wanted.put, wanted.remove if own is None else own.put))
    return found


def _is_neighbour(setting: Setting) -> bool:
    return setting.put[0][0] == _SET_NEIGHBOUR


def different(active: Settings, new: Settings) -> Iterator[str]:
    """Yield a line for each setting that differs.

    Log levels that only one side has are none: another release has other modules. What else only the new side has is a
    difference if it can be taken away.
    """
    for name, wanted in active.items():
        own = new.get(name)
        if own is None and not wanted.put[0][0].startswith(LOGS):
            yield f"{name}: {wanted.value}, and the new side does not have it"
        elif own is not None and own.value != wanted.value:
            yield f"{name}: {wanted.value}, and {own.value} on the new side"
    for name, own in new.items():
        if name not in active and own.remove:
            yield f"{name}: only on the new side, {own.value}"


def summary(lines: Iterable[str], most: int = 20) -> tuple[str, ...]:
    """The first ``most`` lines, and how many there are beyond them."""
    every = tuple(lines)
    return every if len(every) <= most else (*every[:most], f"and {len(every) - most} more")


def _on(flag: bool) -> str:
    return "on" if flag else "off"
