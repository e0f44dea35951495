"""Puts questions to the flow tables (``ofproto/trace``), and finds what `--to` names."""

from __future__ import annotations

from ipaddress import ip_address

from ovs_hotswap.diagnose import megaflows, trace
from ovs_hotswap.diagnose.facts import Facts, VmPort
from ovs_hotswap.diagnose.judging import Answer, Asked
from ovs_hotswap.diagnose.switch_look import appctl
from ovs_hotswap.diagnose.target import find, is_address, is_mac, questions
from ovs_hotswap.errors import ConfigError, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Life


def asked(facts: Facts, vm: str | None, to: str | None) -> Asked:
    """Return what the user asks, given what is known. Raises ConfigError for a VM that does not exist, and for a target
    that is neither a VM nor an address."""
    if vm is None:
        return Asked()
    port = _vm(facts, vm)
    if to is None:
        return Asked(port)
    if is_mac(to):
        return Asked(port, to, find(facts.wanted, port, to.lower(), None))
    if is_address(to):
        flows = facts.switch.megaflows if facts.switch is not None else None
        address = str(ip_address(to))  # as Open vSwitch prints it
        return Asked(port, to, find(facts.wanted, port, megaflows.mac_of(flows or (), address), address))
    return Asked(port, to, find(facts.wanted, port, _vm(facts, to).mac, None))


def _vm(facts: Facts, name: str) -> VmPort:
    found = facts.wanted.vms.get(name)
    if found is None:
        raise ConfigError(f"there is no VM {name} on this host", hint="`ovs-hotswap vm list` lists them")
    return found


def answers(host: Host, facts: Facts, wish: Asked) -> list[Answer]:
    """Ask the flow tables of the active instance what they do with packets of the VM. What becomes of the packet of a
    question without an answer is not known. A switch that is silent is not asked."""
    switch = facts.switch
    if wish.vm is None or switch is None or switch.life is not Life.RUNS or switch.silent is not None:
        return []
    found = []
    for question in questions(facts.wanted, wish.vm, wish.target):
        try:
            text = appctl(host, switch.side, "ofproto/trace", question.bridge, question.flow)
        except SwitchError:
            text = ""
        found.append(Answer(question, trace.parse(text)))
    return found
