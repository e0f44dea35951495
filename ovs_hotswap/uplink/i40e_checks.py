"""The prerequisites of the driver ``i40e``: what is seen of the NIC, and the command that repairs each fault.

``gather`` looks, and the rest is pure. What is said of Intel's driver was read in its version 2.28.16.
"""

from __future__ import annotations

import errno
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.uplink.ethtool import UDP_V4_FLOW, DriverInfo, FlowRule
from ovs_hotswap.uplink.i40e_card import Card, Function
from ovs_hotswap.uplink.i40e_rules import Place, Plan, words
from ovs_hotswap.uplink.rules import Link

_OTHERS = (
    'uplink.driver = "announce" (any NIC whose peers learn MAC addresses), "tc" (in software, over a device that '
    'represents the VF), or "exclusive" (the switch owns the whole NIC)'
)
_RESET_FLAG = "mdd-auto-reset-vf"


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen of one physical function (PF). ``kernel``: the release of the running kernel. ``l4mode``: the
    module's parameter as the host sets it, ``None`` if it does not."""

    device: str
    link: Link
    driver: DriverInfo
    kernel: str
    ntuple: bool
    flags: Mapping[str, bool]
    queueing: str
    functions: Mapping[int, Function]
    rules: tuple[FlowRule, ...]
    l4mode: str | None

    @property
    def out_of_tree(self) -> bool:
        """Whether it is Intel's own driver. The kernel's has no version of its own; before Linux 5.8 it had one that
        ended with "-k"."""
        name, version = self.driver.driver, self.driver.version
        return name == "i40e" and version != self.kernel and not version.endswith("-k") and version[:1].isdigit()


def gather(card: Card, plan: Plan) -> Facts | Finding:
    """Look at the PF; a finding if there is no such device. Rules are not read from a driver that cannot have ours.
    Raises UplinkError."""
    link = card.link()
    if link is None:
        return Finding("uplink", Severity.ERROR, f"there is no network device {card.device}",
                       "correct [uplink] in the configuration: `ip -br link`")  # fmt: skip
    tool = card.ethtool
    facts = Facts(
        card.device, link, tool.driver(), platform.release(), tool.ntuple(), tool.private_flags(), card.queueing(),
        card.functions(), (), card.l4mode(),
    )  # fmt: skip
    if facts.driver.driver != "i40e":
        return _other_nic(facts)
    rules = tuple(rule for at in tool.locations() if (rule := tool.rule(at)) is not None)
    return replace(facts, rules=rules)


def _other_nic(facts: Facts) -> Finding:
    return Finding(
        "uplink", Severity.ERROR,
        f'{facts.device} is a NIC of the driver {facts.driver.driver}; the uplink driver "i40e" is for X710 and XL710',
        f'uplink.driver = "switchdev" (ice and mlx5), or {_OTHERS}',
    )  # fmt: skip


def findings(facts: Facts, plan: Plan, mac: str, mtu: int) -> list[Finding]:
    """Judge a PF of the driver i40e. ``mac``: the VTEP's. ``mtu``: that of the underlay."""
    found = [*nic(facts, plan), *_device(facts, mac, mtu)]
    for side in Side:
        found += function(facts, plan.vfs[side], f"instance {side}'s")
    found += _rules(facts, plan)
    if any(each.severity is Severity.ERROR for each in found):
        return found
    owner = next((side for side in Side for rule in facts.rules if plan.place(side, rule) is Place.OURS), None)
    text = f"{facts.device}: overlay traffic goes to {f'instance {owner}' if owner else 'neither instance yet'}"
    return [*found, Finding("uplink", Severity.OK, text)]


def nic(facts: Facts, plan: Plan) -> Iterator[Finding]:
    """What the NIC and its driver must have, whichever VF it is for."""
    device, driver = facts.device, facts.driver
    if not facts.out_of_tree:
        yield Finding(
            "uplink", Severity.ERROR,
            f"{device}: the kernel's own i40e {driver.version} cannot give a VF packets that would not have come to it "
            "anyway: its rules have no such form",
            f"install Intel's i40e 2.x (https://github.com/intel/ethernet-linux-i40e), or {_OTHERS}",
        )  # fmt: skip
        return
    yield Finding("uplink", Severity.OK, f"{device}: i40e {driver.version}, firmware {driver.firmware}")
    if plan.address is None:
        yield _l4mode(facts, plan)
    if not facts.ntuple:
        yield Finding("uplink", Severity.ERROR, f"{device}: classification by rules is off, every rule is refused",
                      f"ethtool -K {device} ntuple on")  # fmt: skip
    if facts.queueing == "mqprio":
        yield Finding("uplink", Severity.ERROR, f"{device}: application queues (ADq, mqprio) exclude rules for VFs",
                      f"tc qdisc del dev {device} root")  # fmt: skip
    if facts.flags.get("MFP"):
        yield Finding(
            "uplink", Severity.ERROR,
            f"{device}: the NIC is divided into several functions for each port (MFP), which excludes these rules",
            "switch NPAR off in the firmware's setup of the NIC, and start the host again",
        )  # fmt: skip
    if _RESET_FLAG not in facts.flags:
        yield Finding("uplink", Severity.WARNING,
                      f"{device}: this driver has no {_RESET_FLAG}: after one malformed descriptor a VF is off until "
                      "it is reset", "install a newer i40e (the flag is in 2.28.16)")  # fmt: skip
    elif not facts.flags[_RESET_FLAG]:
        yield Finding("uplink", Severity.WARNING,
                      f"{device}: {_RESET_FLAG} is off: after one malformed descriptor a VF is off until it is reset",
                      f"ethtool --set-priv-flags {device} {_RESET_FLAG} on")  # fmt: skip


def _l4mode(facts: Facts, plan: Plan) -> Finding:
    """Which mode the loaded module has shows only in its rules: with a mode, a rule is reported as one for UDP
    (i40e_ethtool.c, i40e_get_cloud_filter_entry)."""
    load = "echo options i40e l4mode=0 >/etc/modprobe.d/i40e.conf, and start the host again"
    if any(rule.user >> 63 and rule.flow == UDP_V4_FLOW for rule in facts.rules):
        return Finding("uplink", Severity.OK, f"{facts.device}: the module has rules for ports")
    if facts.l4mode in ("0", "2"):
        return Finding("uplink", Severity.OK, f"{facts.device}: the host loads i40e with l4mode={facts.l4mode}")
    if facts.l4mode is not None:
        return Finding("uplink", Severity.ERROR,
                       f"{facts.device}: the host loads i40e with l4mode={facts.l4mode}, without rules for UDP ports",
                       load)  # fmt: skip
    return Finding(
        "uplink", Severity.WARNING,
        f'{facts.device}: nothing says that i40e was loaded with l4mode=0, which uplink.match = "udp-port" needs; the '
        "loaded module does not tell", f"{load}; `ovs-hotswap uplink selftest --vf {plan.vfs[Side.A]}` tries it",
    )  # fmt: skip


def _device(facts: Facts, mac: str, mtu: int) -> Iterator[Finding]:
    device, link = facts.device, facts.link
    if not link.up:
        yield Finding("uplink", Severity.ERROR, f"network device {device} is down", f"ip link set {device} up")
    if link.mac != mac:
        yield Finding(
            "uplink", Severity.ERROR,
            f"{device} has MAC {link.mac}, the VTEP {mac}: packets for the one are not taken by the other",
            f'set [vtep] mac = "{link.mac}" in the overlay file, then `ovs-hotswap overlay apply`',
        )  # fmt: skip
    if link.mtu < mtu:
        yield Finding("mtu", Severity.ERROR,
                      f"{device} has MTU {link.mtu}, the underlay {mtu}: longer packets are lost",
                      f"ip link set {device} mtu {mtu}, or correct vtep.mtu in the overlay file")  # fmt: skip


def function(facts: Facts, number: int, whose: str) -> Iterator[Finding]:
    """What a virtual function (VF) must have. ``whose``: whose VF it is, in the genitive."""
    device, found = facts.device, facts.functions.get(number)
    name = f"{device}: VF {number}"
    if found is None:
        yield Finding("uplink", Severity.ERROR, f"{device} has no VF {number}, {whose}", make_functions(device, number))
        return
    careful = "while its instance is stopped, because the change resets the VF"
    if found.disabled:
        yield Finding("uplink", Severity.ERROR, f"{name}, {whose}, is set down",
                      f"ip link set {device} vf {number} state auto")  # fmt: skip
    if found.spoof_checked:
        yield Finding("uplink", Severity.ERROR,
                      f"{name}, {whose}, is checked for spoofing: the NIC drops what it sends with the VTEP's MAC",
                      f"ip link set {device} vf {number} spoofchk off")  # fmt: skip
    if found.trusted is False:
        yield Finding("uplink", Severity.WARNING,
                      f"{name}, {whose}, is not trusted: it cannot be promiscuous, as Open vSwitch wants it",
                      f"ip link set {device} vf {number} trust on ({careful})")  # fmt: skip
    unknown = [what for what, value in (("spoof checking", found.spoof_checked), ("trust", found.trusted),
                                        ("counters", found.received)) if value is None]  # fmt: skip
    if unknown:
        yield Finding("uplink", Severity.WARNING,
                      f"{name}, {whose}: the NIC's driver does not report {', '.join(unknown)}",
                      f"ip -s link show {device}")  # fmt: skip


def _rules(facts: Facts, plan: Plan) -> Iterator[Finding]:
    at = {rule.location: rule for rule in facts.rules}
    for side, location in plan.locations.items():
        rule = at.get(location)
        match plan.place(side, rule):
            case Place.FOREIGN if rule is not None:
                yield Finding("uplink", Severity.ERROR,
                              f"{facts.device}: {words(rule)}: it is foreign and at instance {side}'s location",
                              move_away(facts.device, rule))  # fmt: skip
            case Place.STALE if rule is not None:
                yield Finding(
                    "uplink", Severity.WARNING,
                    f"{facts.device}: {words(rule)}: it is instance {side}'s, but from before a reset of its VF or a "
                    "change of the configuration", "the watchdog repairs it; without one: `ovs-hotswap overlay apply`",
                )  # fmt: skip
    for rule in plan.rivals(facts.rules):
        yield Finding("uplink", Severity.ERROR,
                      f"{facts.device}: {words(rule)}: it is foreign and matches the same as ours, which is refused",
                      f"ethtool -N {facts.device} delete {rule.location}")  # fmt: skip


def make_functions(device: str, number: int) -> str:
    """The command that makes enough VFs."""
    return f"echo {number + 1} >/sys/class/net/{device}/device/sriov_numvfs (0 first, if there are some already)"


def move_away(device: str, rule: FlowRule) -> str:
    return f"ethtool -N {device} delete {rule.location}, or set uplink.locations to two that are free"


def why_refused(device: str, code: int | None) -> str:
    """What is to be done after the kernel has refused a rule with this errno."""
    return {
        errno.EBUSY: f"the NIC is in a reset: ethtool -n {device}",
        errno.EEXIST: f"another rule matches the same: ethtool -n {device}",
        errno.EOPNOTSUPP: f"ethtool -K {device} ntuple on; `ovs-hotswap uplink show` names what else is missing",
        errno.EINVAL: 'uplink.match = "udp-port" needs i40e loaded with l4mode=0: `ovs-hotswap uplink show`',
        errno.ENOSPC: f"the NIC's table is full: ethtool -n {device}",
        errno.EPERM: "run it as root",
        errno.ENODEV: "correct [uplink] in the configuration: `ip -br link`",
    }.get(code or 0, f"ethtool -n {device}, and the kernel's log: dmesg | grep i40e")
