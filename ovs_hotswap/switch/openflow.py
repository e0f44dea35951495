"""The flow tables of one instance's bridge, through ovs-ofctl, and which flows cannot be used in the window."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.errors import CommandError, SwitchError
from ovs_hotswap.overlay.flow_samples import COLLECTOR_SET
from ovs_hotswap.overlay.tables import Kind, cookie, cookie_kind, cookie_name
from ovs_hotswap.system import Completed, System

COOKIE_MASK = (1 << 64) - 1
WITH_BUNDLES = "OpenFlow13,OpenFlow14,OpenFlow15"
"""The versions of OpenFlow that have bundles: those for a bridge that others program, which may accept only some."""
_DIFFERENT = 2  # exit status of `ovs-ofctl diff-flows` where there is a difference (ovs-ofctl(8))


@dataclass(frozen=True, slots=True)
class DropCounter:
    """The number of packets that the flows with one cookie have dropped since they were installed."""

    cookie: int
    name: str
    packets: int


class OpenFlow:
    """The flows of one bridge. ``bridge_mgmt`` is its management socket, ``<run dir>/<bridge>.mgmt``.

    ``timeout`` is in seconds, and grows by one second for each thousand flows that are sent. Every method raises
    SwitchError if ovs-ofctl is missing, fails or takes longer: a switch that is stopped must not delay a caller for
    long, which may hold a lock. ``versions`` are those that ovs-ofctl may use; a bridge that others program accepts
    only those of its column ``protocols``.
    """

    def __init__(
        self, system: System, bridge_mgmt: Path, *, timeout: float = 10.0, versions: str = "OpenFlow14"
    ) -> None:
        self._system = system
        self._versions = versions
        self._target = f"unix:{bridge_mgmt.absolute()}"  # OVS resolves relative ones against its run directory
        self._timeout = timeout

    @property
    def target(self) -> str:
        """The bridge as the programs of Open vSwitch are given it."""
        return self._target

    def replace(self, lines: Sequence[str]) -> None:
        """Make ``lines`` the bridge's flows in one OpenFlow bundle: packets meet the old tables or the new.

        Flows that stay the same keep their counters. If one line is wrong, nothing changes.
        """
        self._run("replace-flows", "-", options=("--bundle",), stdin=_text(lines))

    def dump(self) -> list[str]:
        """Return the installed flows without statistics, by table, then priority (highest first), then text."""
        done = self._run("dump-flows", options=("--no-stats", "--no-names"))
        return sorted((line.strip() for line in done.stdout.splitlines() if "actions=" in line), key=_order)

    def diff(self, lines: Sequence[str]) -> list[str]:
        """Return the differences between the installed flows and ``lines``: ``-`` installed only, ``+`` lines only.

        The list is empty if they are equal; how a flow is written does not matter.
        """
        # ovs-ofctl takes a name without a slash for a bridge, so `-` does not work.
        done = self._run("diff-flows", "/dev/stdin", stdin=_text(lines), good=(0, _DIFFERENT))
        return done.stdout.splitlines()

    def drops(self, vms: Mapping[int, str] | None = None) -> tuple[DropCounter, ...]:
        """Return the drop counters of the overlay's tables, including those at 0. ``vms`` maps ofports to names."""
        return drop_counters(self.dump_counted().splitlines(), vms)

    def dump_counted(self) -> str:
        """Return the installed flows with their statistics, one in each line, in the order of the switch."""
        return self._run("dump-flows", options=("--no-names",)).stdout

    def port_counters(self) -> str:
        """Return what ``ovs-ofctl dump-ports`` prints: the statistics of every port, with a port's own counters among
        them from OpenFlow 1.4 on (lib/ofp-port.c, INTEL_PORT_STATS_CUSTOM)."""
        return self._run("dump-ports", options=("--no-names",)).stdout

    def packets(self, cookie: int, mask: int = COOKIE_MASK) -> int:
        """Return the packets that flows with this cookie, in the bits of ``mask``, have counted."""
        done = self._run("dump-flows", f"cookie={cookie:#x}/{mask:#x}", options=("--no-names",))
        return sum(int(found[1]) for found in re.finditer(r"\bn_packets=(\d+)", done.stdout))

    def arrived(self, port: int) -> int:
        """Return the packets of any kind that have come in on a port; 0 if the port does not count them."""
        done = self._run("dump-ports", str(port))
        return sum(int(found[1]) for found in re.finditer(r"\brx pkts=(\d+)", done.stdout))

    def actions(self, cookie: int) -> list[str]:
        """Return the actions of each flow with this cookie."""
        done = self._run("dump-flows", f"cookie={cookie:#x}/{COOKIE_MASK:#x}", options=("--no-stats", "--no-names"))
        return [line.partition("actions=")[2].strip() for line in done.stdout.splitlines() if "actions=" in line]

    def set_actions(self, cookie: int, actions: str) -> None:
        """Give the flows with this cookie other actions. Their counters stay, and so do all other flows."""
        self._run("mod-flows", f"cookie={cookie:#x}/{COOKIE_MASK:#x},actions={actions}")

    def has(self, cookie: int) -> bool:
        """Whether a flow with this cookie is installed."""
        done = self._run("dump-flows", f"cookie={cookie:#x}/{COOKIE_MASK:#x}", options=("--no-stats", "--no-names"))
        return "actions=" in done.stdout

    def port_mac(self, port: int) -> str | None:
        """Return the MAC address of a port's device; ``None`` if there is no such port."""
        found = re.search(rf"^ {port}\(.*\): addr:(\S+)$", self._run("dump-ports-desc").stdout, re.MULTILINE)
        return found[1].lower() if found else None

    def port_descriptions(self) -> str:
        """Return what the bridge says of its ports, with the flags that are set for each."""
        return self._run("dump-ports-desc", options=("--no-names",)).stdout

    def dump_cookie(self, cookie: int) -> list[str]:
        """Return the flows with this cookie, without statistics."""
        done = self._run("dump-flows", f"cookie={cookie:#x}/-1", options=("--no-stats", "--no-names"))
        return [line.strip() for line in done.stdout.splitlines() if "actions=" in line]

    def keep_from_floods(self, port: int) -> None:
        """Have FLOOD output nothing to a port (OFPPC_NO_FLOOD). Only OpenFlow 1.0 has that: of later versions ovs-ofctl
        sends nothing of it (lib/ofp-port.c, ofputil_encode_port_mod)."""
        self._run("mod-port", str(port), "no-flood", versions="OpenFlow10")

    def packet_out(self, frame: bytes, actions: str) -> None:
        """Have the switch carry out ``actions`` on an Ethernet frame, as if a controller had sent it."""
        self._run("packet-out", f"in_port=CONTROLLER,packet={frame.hex()},actions={actions}")

    def packet_outs(self, frames: Iterable[tuple[bytes, str]], flows: Iterable[str] = ()) -> None:
        """Have the switch carry out actions on many frames in this order; each frame comes with its actions. ``flows``
        are added first, or take the place of those with the same priority and match. All of it is done or nothing."""
        lines = [f"flow add {flow}" for flow in flows]
        lines += [f"packet-out in_port=controller,packet={frame.hex()},actions={actions}" for frame, actions in frames]
        self.bundle(lines)

    def bundle(self, lines: Sequence[str]) -> None:
        """Have the switch carry out the messages of one bundle, as ovs-ofctl(8) writes them (``bundle``), in this
        order: all of them or none."""
        self._run("bundle", "-", stdin=_text(lines))

    def _run(
        self,
        command: str,
        *arguments: str,
        options: tuple[str, ...] = (),
        stdin: str | None = None,
        good: tuple[int, ...] = (0,),
        versions: str | None = None,
    ) -> Completed:
        argv = ["ovs-ofctl", "-O", versions or self._versions, *options, command, self._target, *arguments]
        try:
            timeout = self._timeout + (0 if stdin is None else stdin.count("\n") // 1000)
            done = self._system.run(argv, timeout=timeout, check=False, stdin=stdin)
        except CommandError as error:
            raise SwitchError(error.message, hint=error.hint) from error
        if done.status not in good:
            output = (done.stderr or done.stdout).strip().splitlines()
            raise SwitchError(
                f"ovs-ofctl {command} {self._target}: {'; '.join(output[:3]) or f'exit {done.status}'}",
                hint="see whether the instance runs: `ovs-hotswap instance list`",
            )
        return done


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _order(line: str) -> tuple[int, int, str]:
    table = re.search(r"\btable=(\d+)", line)
    priority = re.search(r"\bpriority=(\d+)", line)
    # 0x8000 is OpenFlow's default priority, which ovs-ofctl does not print.
    return int(table[1]) if table else 0, -int(priority[1]) if priority else -0x8000, line


def drop_counters(dump: Sequence[str], vms: Mapping[int, str] | None = None) -> tuple[DropCounter, ...]:
    """Return the drop counters in the lines of ``ovs-ofctl dump-flows``, in the order of their cookies."""
    packets: dict[int, int] = {}
    for line in dump:
        found = re.match(r"\s*cookie=(0x[0-9a-f]+),.*?\bn_packets=(\d+)", line)
        if found is None:
            continue
        value = int(found[1], 16)
        kind = cookie_kind(value)
        if kind is not None and kind.is_drop:
            packets[value] = packets.get(value, 0) + int(found[2])
    return tuple(DropCounter(value, cookie_name(value, vms), packets[value]) for value in sorted(packets))


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    what: str
    way_out: str


def _port(name: str) -> str:
    """Return a pattern for a reserved port as an action: alone or after ``output:``."""
    return rf"(?:^|[,(])(?:output:)?{name}(?=[,)]|$)"


def _rule(pattern: str, what: str, way_out: str) -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE), what, way_out)


_FIXED = "name the ports: one flow for each destination MAC"
_STATELESS = "match on addresses, ports and TCP flags instead"
_MATCH_RULES = (
    _rule(r"(?:^|[,\s])ct_\w+=", "matches connection state, which the other instance does not have", _STATELESS),
    _rule(r"(?:^|[,\s])(?:idle|hard)_timeout=[1-9]", "expires by itself, on each instance at another time",
          "install it without a time-out"),
)  # fmt: skip
_ACTION_RULES = (
    _rule(_port("normal"), "NORMAL outputs to ports that each instance learns for itself", _FIXED),
    _rule(_port("(?:flood|all)"), "FLOOD and ALL output to every port, the peer link among them",
          "name the ports of the flood"),
    _rule(_port("in_port"), "IN_PORT sends a packet back to a VM that may be on the other instance",
          "name the port, with a flow for each port of arrival"),
    # The port from which a packet came is where it may not go back: a flow that rewrites it sends back as IN_PORT does.
    _rule(r"(?:->|pop:)(?:NXM_OF_IN_PORT|OXM_OF_IN_PORT|in_port(?:_oxm)?)\b",
          "rewrites in_port, so that packets can go back to a VM that may be on the other instance",
          "name the port, with a flow for each port of arrival"),
    _rule(r"(?:^|[,(])output:(?:reg\d|xxreg\d|xreg\d|NXM_|OXM_|\w+\[)",
          "outputs to a port that a register names, which cannot be copied to the peer link", _FIXED),
    _rule(r"(?:^|[,(])(?:learn\(|delete_learned)", "learn() makes flows on one instance that the other lacks",
          "install what it would learn"),
    _rule(r"(?:^|[,(])(?:ct\(|ct_clear|ct(?=[,)]|$))",
          "ct() keeps connections on one instance; the other would see their packets as invalid or new", _STATELESS),
    _rule(r"(?:^|[,(])(?:output:)?controller\b", "sends packets to a controller, from both instances",
          "answer by flows, or drop"),
    _rule(r"(?:^|[,(])group:", "groups are not replaced together with the flows, and their choice is per instance",
          "output to the ports of its buckets"),
    _rule(r"(?:^|[,(])(?:bundle|bundle_load)\(", "bundle() chooses a port by liveness, on each instance for itself",
          "output to one port"),
    _rule(r"(?:^|[,(])meter:", "meters are not replaced together with the flows, and each instance grants the rate",
          "limit the rate of the port: `ingress_policing_rate` or QoS"),
    _rule(r"(?:^|[,(])enqueue[:(]", "enqueue picks a queue of one port and has no form for the peer link",
          "use set_queue and output"),
    # The flow log's own are where each packet passes on one of the two instances.
    _rule(rf"(?:^|[,(])sample\((?![^)]*\bcollector_set_id={COLLECTOR_SET}\b)",
          "sample() exports packets to a collector, from both instances",
          "sample on the ports: IPFIX of the bridge, or sFlow"),
    _rule(r"(?:^|[,(])fin_timeout\(", "fin_timeout shortens the flow's life on one instance only", "leave it out"),
)  # fmt: skip


_TO_UPLINK = re.compile(
    rf"\bcookie={cookie(Kind.TO_UPLINK):#x}, ?priority=\d+,in_port=LOCAL "
    r"actions=(?:push_vlan:0x8100,set_field:\d+->vlan_vid,)?bundle\(eth_src,"
)


def window_incapable(flow_lines: Sequence[str]) -> list[str]:
    """Return why these flows cannot run on two instances at once: a text ``FLOW: REASON; WAY OUT`` for each reason.

    In the window each output to a VM becomes an output to the VM and to the peer link, on both instances. That needs
    outputs to fixed ports, and nothing that one instance remembers and the other does not. Our own flow to the uplink
    may choose between two NICs: what it chooses from is on one instance only.
    """
    findings = []
    for line in flow_lines:
        flow = line.strip()
        if not flow or flow.startswith("#") or _TO_UPLINK.search(flow):
            continue
        match, _, actions = re.sub(r'"[^"]*"', '""', flow).partition("actions=")
        for rules, part in ((_MATCH_RULES, match), (_ACTION_RULES, actions.replace(" ", ""))):
            findings += [f"{flow}: {rule.what}; {rule.way_out}" for rule in rules if rule.pattern.search(part)]
    return findings
