"""Makes the configuration of a host whose switch others installed and programmed, from the facts about it. This module
is pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ovs_hotswap.errors import ConfigError
from ovs_hotswap.stock.facts import Facts

_MEMORY_MB = 512
_SLEEP_KEYS = ("pmd-sleep-max", "pmd-maxsleep")  # since OVS 3.2, and before it


@dataclass(frozen=True, slots=True)
class Choices:
    """What the facts do not say. ``second_devices``: the new instance's DPDK device for each port of type dpdk, by the
    port's name; without one for each of them, the configuration leaves all to be filled in. ``pmd_cores``: the new
    instance's cores; none lets them be chosen. ``run_dir``, ``unit``: of the distribution's switch."""

    second_devices: Mapping[str, str] = field(default_factory=dict)
    pmd_cores: Sequence[int] = ()
    run_dir: str = "/run/openvswitch"
    unit: str = "openvswitch-switch"


def configuration(facts: Facts, cores: Collection[int], choices: Choices) -> str:
    """Return the text of a configuration. ``cores``: those of the machine. Raises ConfigError if the facts do not
    suffice."""
    switch = facts.switch
    if switch.vswitchd_pid is None or switch.database is None:
        raise ConfigError("the distribution's switch does not run, so nothing is known about it",
                          hint=f"`systemctl start {choices.unit}`, then try again")  # fmt: skip
    used = list(switch.pmd_cores) or [max(cores)]
    first = {port.name: port.devargs for port in facts.pipeline.uplinks}
    if unknown := sorted(set(choices.second_devices) - set(first)):
        raise ConfigError(f"no port {', '.join(unknown)} of type dpdk; there is {', '.join(sorted(first)) or 'none'}",
                          hint="`ovs-vsctl find interface type=dpdk`")  # fmt: skip
    missing = [name for name in first if name not in choices.second_devices]
    sleep = next((switch.other_config[key] for key in _SLEEP_KEYS if key in switch.other_config), "0")
    memory = memory_mb(switch.other_config)
    sections = [
        "# ovs-hotswap: configuration of a host whose bridges others program, made from its running switch.",
        "# `ovs-hotswap config example` has every key with a comment.",
        'program = "clone"',
        "",
        "[stock]",
        f"run_dir = {_text(choices.run_dir)}",
        f"database = {_text(switch.database)}",
        *([f"log = {_text(switch.log.file)}"] if switch.log.file is not None else []),
        f"unit = {_text(choices.unit)}",
        "",
        "# The distribution's switch, as it runs now.",
        *_instance("a", used, memory, sleep),
        *_devices(first, bool(missing)),
        "",
        "# The instance that takes over.",
        *_instance("b", list(choices.pmd_cores) or others(cores, used), memory, sleep),
        *_devices({name: choices.second_devices.get(name, "...") for name in first}, bool(missing)),
    ]
    return "\n".join(sections) + "\n"


def memory_mb(other_config: Mapping[str, str]) -> int:
    """Return the most memory, in MiB, that the switch may have on a NUMA node (ovs-vswitchd.conf.db(5):
    dpdk-socket-limit, dpdk-socket-mem, each with a number for each node)."""
    for key in ("dpdk-socket-limit", "dpdk-socket-mem"):
        numbers = [int(word) for word in other_config.get(key, "").split(",") if word.strip().isdecimal()]
        if any(numbers):
            return max(64, *numbers)
    return _MEMORY_MB


def others(cores: Collection[int], used: Sequence[int]) -> list[int]:
    """Return as many cores as are ``used``, others if there are any, the first core last: it has the host's own work.
    If all are used, both instances share them."""
    free = sorted(set(cores) - set(used), key=lambda core: (core == min(cores), core))
    return sorted(free[: len(used)]) or list(used)


def _instance(side: str, cores: Sequence[int], memory: int, sleep: str) -> list[str]:
    return [
        f"[instances.{side}]",
        f"pmd_cores = [{', '.join(map(str, cores))}]",
        f"memory_mb = {memory}",
        *([f"pmd_sleep_us = {min(int(sleep), 10_000)}"] if sleep.isdecimal() and int(sleep) else []),
    ]


def _devices(devices: Mapping[str, str], missing: bool) -> list[str]:
    """The DPDK device of each port; as a comment if one of them has to be filled in."""
    if not devices:
        return []
    ports = ", ".join(f"{_text(name)} = {_text(devargs)}" for name, devargs in devices.items())
    line = f"port_devices = {{ {ports} }}"
    return ["# Each instance needs a device of its own for each port, such as another virtual function:", f"# {line}"
            ] if missing else [line]  # fmt: skip


def _text(value: str) -> str:
    return json.dumps(value)  # a basic string of TOML is written as one of JSON (toml.io)
