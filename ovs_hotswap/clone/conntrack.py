"""The connection tracking of the active side, made again on the new one.

The datapath of all bridges has one table of connections. The packets that make its entries on the new side
(``conntrack_packets``) go through any bridge of it, in bundles. Their TCP numbers are invented, because no dump has the
real ones; so the new side stops checking them (``dpctl/ct-disable-tcp-seq-chk``), for as long as it runs: the check
cannot be switched on again under connections whose numbers it does not know (lib/conntrack-tcp.c, tcp_conn_update).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.clone.applied import FLUSH, Applied, ask, attempt, commands_of
from ovs_hotswap.clone.bridges import Bridges, read_bridges
from ovs_hotswap.clone.conntrack_entries import (
    ICMPV6,
    TCP,
    WITH_PORTS,
    Comparison,
    Dump,
    Entry,
    compare,
    count_expectations,
    parse_dump,
)
from ovs_hotswap.clone.conntrack_packets import Packet, obstacle, packets, reduction
from ovs_hotswap.clone.fdb import VERSIONS
from ovs_hotswap.clone.runtime_settings import Command, summary
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System

_BUNDLE = 20_000  # packets, which keep the new side's main thread busy for less than a second
_CHECK = "dpctl/ct-get-tcp-seq-chk"
_EXPECTATIONS = "dpctl/dump-conntrack-exp"


@dataclass(frozen=True, slots=True)
class ConntrackState:
    """``timed_zones``: zones with a timeout policy. ``expectations``: how many connections helpers wait for; ``None``
    before OVS 3.2, which does not tell. ``tcp_check``: whether TCP numbers are checked."""

    dump: Dump
    timed_zones: frozenset[int]
    expectations: int | None
    tcp_check: bool


def read(paths: InstancePaths, bridges: Bridges | None = None, *, timeout: float = 60.0) -> ConntrackState:
    """Read all connections; 100 000 take the switch's main thread about 0.3 s. Raises SwitchError, and NoAnswer after
    ``timeout`` seconds."""
    ctl = paths.vswitchd_ctl
    known = bridges or read_bridges(paths.db_socket)
    waits = None
    if _EXPECTATIONS in commands_of(ctl):
        waits = count_expectations(ask(ctl, (_EXPECTATIONS,), timeout=timeout))
    dump = parse_dump(ask(ctl, ("dpctl/dump-conntrack",), "-m", "-s", timeout=timeout))
    return ConntrackState(dump, known.timed_zones, waits, tcp_check(paths))


def tcp_check(paths: InstancePaths, *, timeout: float = 10.0) -> bool:
    """Whether a switch checks TCP's sequence numbers. Raises SwitchError."""
    answer = ask(paths.vswitchd_ctl, (_CHECK,), timeout=timeout)
    if "enabled" not in answer and "disabled" not in answer:
        raise SwitchError(f"{paths.vswitchd_ctl}: {_CHECK}: {answer.strip()}")
    return "enabled" in answer


def apply(system: System, paths: InstancePaths, active: ConntrackState, *, cut: bool, timeout: float = 60.0) -> Applied:
    """Make the active side's connections on the new side, those that it does not have.

    Before the cut (``cut`` is false) the active side alone has the traffic: entries of the new side that differ are
    made again, and those that the active side no longer has are removed. After the cut what the new side has is newer,
    and stays. Raises SwitchError, after which what was made is gone again, and the check is as before.
    """
    ctl, bridges = paths.vswitchd_ctl, read_bridges(paths.db_socket)
    before = parse_dump(ask(ctl, ("dpctl/dump-conntrack",), "-m", "-s", timeout=timeout)).entries
    # OVS 3.2 brought both this command and the ports of SCTP (lib/conntrack.c, extract_l4_sctp).
    plan = plan_for(active, before, cut=cut, sctp_ports=_EXPECTATIONS in commands_of(ctl))
    done = Applied()
    try:
        unchecked = not active.tcp_check or any(entry.protocol == TCP for entry in plan.make)
        if unchecked and tcp_check(paths):
            ask(ctl, ("dpctl/ct-disable-tcp-seq-chk",))
            done += Applied(
                ("the new side no longer checks TCP sequence numbers",), undo=(("dpctl/ct-enable-tcp-seq-chk",),)
            )
        # An entry that has expired in the meantime cannot be found, which is as good.
        list(attempt(ctl, plan.remove, timeout=timeout))
        done += Applied(undo=undo_of(plan.make, before))
        inject(system, paths, bridges, plan.packets, timeout=timeout)
        after = parse_dump(ask(ctl, ("dpctl/dump-conntrack",), "-m", "-s", timeout=timeout)).entries
    except SwitchError as error:
        _take_back(ctl, done.undo, error, timeout)
        raise
    failed_to = compare(plan.make, after).missing
    made = len(plan.make) - len(failed_to)
    lines = [f"connections: {made} made, {len(plan.remove)} removed"] if made or plan.remove else []
    return done + Applied(tuple(lines), (*plan.lost, *_refused(failed_to), *plan.reduced))


@dataclass(frozen=True, slots=True)
class Plan:
    """``make``: the entries to make, those with translated addresses first, so that no other one takes their place.
    ``remove``: the commands that remove entries of the new side. ``lost``: lines for what cannot be made. ``reduced``:
    lines for entries that are made and lose something."""

    make: tuple[Entry, ...]
    remove: tuple[Command, ...]
    packets: tuple[Packet, ...]
    lost: tuple[str, ...]
    reduced: tuple[str, ...]


def plan_for(active: ConntrackState, new: Iterable[Entry], *, cut: bool, sctp_ports: bool = True) -> Plan:
    """``sctp_ports``: the new side tracks SCTP with its ports."""
    compared = compare(active.dump.entries, new)
    unread = len(active.dump.unread)
    changed = () if cut else compared.changed
    # A line that cannot be read may be the active side's entry of a connection that only the new side seems to have.
    gone = () if cut or unread else compared.extra
    due = (*compared.missing, *(entry for entry, _ in changed))
    reasons = [(entry, obstacle(entry, sctp_ports=sctp_ports)) for entry in due]
    able = sorted((entry for entry, reason in reasons if reason is None), key=_is_plain)
    lost = [reason for _, reason in reasons if reason]
    return Plan(
        tuple(able),
        tuple(filter(None, map(flush, (*(own for _, own in changed), *gone)))),
        tuple(packet for entry in able
              for packet in packets(entry, default_timeouts=entry.zone not in active.timed_zones)),
        (*_counted(lost, "connections not carried over"),
         *([f"lines about the active side's connections that cannot be read: {unread}"] if unread else []),
         *([f"connections that helpers wait for, and that are not carried over: {active.expectations}"]
           if active.expectations else [])),
        tuple(_counted((reason for reason in map(reduction, able) if reason), "connections carried over in part")),
    )  # fmt: skip


def inject(
    system: System, paths: InstancePaths, bridges: Bridges, frames: Sequence[Packet], *, timeout: float = 60.0
) -> None:
    """Have the switch carry out the packets. Raises SwitchError."""
    if not frames:
        return
    bridge = next(iter(bridges.ports), None)
    if bridge is None:
        raise SwitchError(
            f"{paths.db_socket}: there is no bridge of the userspace datapath, so no connection can be made",
            hint="copy the active side's database first",
        )
    openflow = OpenFlow(system, paths.mgmt(bridge), timeout=timeout, versions=VERSIONS)
    for begin in range(0, len(frames), _BUNDLE):
        openflow.packet_outs(frames[begin : begin + _BUNDLE])


def undo_of(made: Iterable[Entry], before: Iterable[Entry]) -> tuple[Command, ...]:
    """Return the commands that remove entries: a whole zone at once where the new side had none before."""
    kept = {entry.zone for entry in before}
    zones = sorted({entry.zone for entry in made} - kept)
    single = filter(None, (flush(entry) for entry in made if entry.zone in kept))
    return (*((FLUSH, f"zone={zone}") for zone in zones), *single)


def flush(entry: Entry) -> Command | None:
    """The command that removes one entry (lib/ofp-ct.c, ofp_ct_tuple_parse), and ``None`` for ICMPv6: OVS before 3.5
    ends at it (lib/conntrack.c, tuple_to_conn_key, which takes the type for one of ICMP). Such an entry expires within
    a minute."""
    original = entry.original
    if entry.protocol == ICMPV6:
        return None
    kind = "ct_ipv6" if original.ipv6 else "ct_nw"
    fields = [f"{kind}_src={original.source}", f"{kind}_dst={original.target}", f"ct_nw_proto={entry.protocol}"]
    if original.icmp is not None:
        identifier, icmp_type, code = original.icmp
        fields += [f"icmp_type={icmp_type}", f"icmp_code={code}", f"icmp_id={identifier}"]
    elif entry.protocol in WITH_PORTS:
        fields += [f"ct_tp_src={original.source_port}", f"ct_tp_dst={original.target_port}"]
    return FLUSH, f"zone={entry.zone}", ",".join(fields)


def differences(paths: InstancePaths, active: ConntrackState, *, timeout: float = 60.0) -> tuple[str, ...]:
    """Return lines that count the connections which differ, each kind with an example. Raises SwitchError."""
    new = parse_dump(ask(paths.vswitchd_ctl, ("dpctl/dump-conntrack",), "-m", "-s", timeout=timeout))
    found = list(_described(compare(active.dump.entries, new.entries)))
    if new.unread:
        found.append(f"lines about the new side's connections that cannot be read: {len(new.unread)}")
    if active.tcp_check and not tcp_check(paths):
        found.append("the new side does not check TCP sequence numbers")
    return tuple(found)


def _described(compared: Comparison) -> Iterator[str]:
    for entries, text in (
        (compared.missing, "the new side lacks"),
        ([entry for entry, _ in compared.changed], "the new side has with another state, mark or label"),
        (compared.extra, "only the new side has"),
    ):
        if entries:
            yield f"connections: {text} {len(entries)}, for example {entries[0]}"


def _is_plain(entry: Entry) -> bool:
    original, reply = entry.original, entry.reply
    return (original.source, original.target) == (reply.target, reply.source)


def _counted(reasons: Iterable[str], text: str) -> Iterator[str]:
    for reason, count in Counter(reasons).most_common():
        yield f"{text}: {count}, because {reason}"


def _refused(entries: Sequence[Entry]) -> tuple[str, ...]:
    reason = "the new side did not make it (a limit of its zone, or its addresses are taken)"
    return summary((f"{entry}: {reason}" for entry in entries), most=5)


def _take_back(ctl: Path, commands: Iterable[Command], error: SwitchError, timeout: float) -> None:
    """Undo what was done before ``error``, and add to it what could not be undone."""
    try:
        refused = list(attempt(ctl, commands, timeout=timeout))
    except SwitchError as again:
        refused = [again.message]
    for line in summary(refused, most=5):
        error.add_note(f"not undone: {line}")
