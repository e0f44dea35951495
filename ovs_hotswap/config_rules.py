"""Rules about values of the configuration that are valid by themselves and contradict each other. This module is pure.

Each rule yields faults: the key, or the keys, and what is wrong with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ovs_hotswap.config import SUN_PATH_MAX, Config, Program
from ovs_hotswap.config_uplink import UplinkConfig
from ovs_hotswap.model import TAKEN_NAMES, Side

Fault = tuple[str, str]

NEEDED_FEATURES = frozenset({"PROTOCOL_FEATURES", "VERSION_1"})
_LOOKS = 3  # how often the active instance is looked at before a sign counts
_VARIABLE = re.compile(r"\{[^{}]*\}|[{}]")
# run_dir occurs in arguments of DPDK devices and in names of sockets of Open vSwitch.
_RUN_DIR = re.compile(r"[A-Za-z0-9/._+@~-]*")
_OWN_DIRECTORIES = ("vhost", *Side)
_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", re.IGNORECASE)
# Arguments of DPDK's EAL that may not be given, and why.
_OWN_ARGUMENTS = {
    "--file-prefix": "each instance has its own already",
    "--socket-mem": "set memory_mb", "--socket-limit": "set memory_mb", "-m": "set memory_mb",
    "--legacy-mem": "memory is taken as it is needed", "--no-huge": "VMs' packets need huge pages",
    "--proc-type": "an instance is a primary process",
}  # fmt: skip
ALLOW = ("-a", "--allow", "-w", "--pci-whitelist")  # the last two up to DPDK 20.11
BLOCK = ("-b", "--block", "--pci-blacklist")  # the last one up to DPDK 20.11


def faults(config: Config) -> list[Fault]:
    """Return the faults that the rules find in the configuration."""
    return [fault for rule in _RULES for fault in rule(config)]


def _bridge(config: Config) -> Iterator[Fault]:
    name = config.bridge
    if name in TAKEN_NAMES:
        yield "bridge", f"{name} is the name of another port or device; not allowed: {', '.join(sorted(TAKEN_NAMES))}"
    if name.startswith("-"):
        yield "bridge", f"may not begin with a dash (it is {name!r})"
    if name in ("all", "default"):
        yield "bridge", f"{name} stands for other devices in /proc/sys/net: no device has that name"
    for side in Side:
        if config.instance(side).uplink_device == name:
            yield "bridge", f"{name} is also instances.{side}.uplink_device: a namespace has one device of a name"


def _paths(config: Config) -> Iterator[Fault]:
    patterns = {
        "overlay": (str(config.overlay), ()),
        "run_dir": (str(config.run_dir), ()),
        "state_dir": (str(config.state_dir), ()),
        "broker.qemu_socket": (config.broker.qemu_socket, ("{vm}",)),
        "qemu.monitor": (config.qemu.monitor, ("{vm}",)),
        "qemu.socket": (config.qemu.socket, ("{vm}", "{side}")),
    }
    for key, (value, known) in patterns.items():
        if ".." in Path(value).parts:
            yield key, f"may not have .. in it (it is {value!r})"
        yield from _variables(key, value, known)
    yield from _variables("qemu.netdev", config.qemu.netdev or "", ("{vm}",))
    if not _RUN_DIR.fullmatch(str(config.run_dir)):
        wrong = "".join(sorted({letter for letter in str(config.run_dir) if not _RUN_DIR.fullmatch(letter)}))
        yield "run_dir", f"may not have {wrong!r} in it: it stands in arguments of DPDK devices"
    if config.state_dir == config.run_dir or config.state_dir.is_relative_to(config.run_dir):
        yield "state_dir", f"is in run_dir ({config.run_dir}), which is gone after a reboot"


def _variables(key: str, value: str, known: tuple[str, ...]) -> Iterator[Fault]:
    for name in dict.fromkeys(_VARIABLE.findall(value)):
        if name not in known:
            yield key, f"{name} stands for nothing here; known is {' and '.join(known) or 'no variable'}"


def _sockets(config: Config) -> Iterator[Fault]:
    patterns = {"broker.qemu_socket": config.broker.qemu_socket, "qemu.monitor": config.qemu.monitor}
    patterns |= {"qemu.socket": config.qemu.socket}
    for key, value in patterns.items():
        shortest = value.replace("{vm}", "v").replace("{side}", "a")
        if len(shortest.encode()) > SUN_PATH_MAX:
            yield key, f"too long: a socket's path must stay within {SUN_PATH_MAX} bytes"
        below = Path(value).parts[len(config.run_dir.parts) :] if Path(value).is_relative_to(config.run_dir) else ()
        if len(below) > 1 and below[0] in _OWN_DIRECTORIES:
            yield key, f"{config.run_dir / below[0]} is a directory of ovs-hotswap's own; take another"
        elif len(below) > 1 and _VARIABLE.search(below[0]):
            yield key, f"a VM could be named like a directory of ovs-hotswap's own in {config.run_dir}; take another"
    monitor, sockets = config.qemu.monitor, [config.qemu.socket.replace("{side}", side) for side in Side]
    if monitor in [config.qemu.socket, *sockets]:
        yield "qemu.monitor", "is the same as qemu.socket: QMP and vhost-user need a socket each"


def _instances(config: Config) -> Iterator[Fault]:
    yield from _own_devices(config) if config.uplink.both_open else _one_device(config)
    for side in Side:
        yield from _instance(config, side)
    for side in Side:
        instance = config.instance(side)
        if (config.uplink.second is None) != (instance.second_devargs is None):
            why = "without" if config.uplink.second is None else "is missing beside"
            yield f"instances.{side}.second_devargs", f"{why} [uplink.second]: a second NIC has both"
        if instance.second_device is not None and instance.second_devargs is None:
            yield f"instances.{side}.second_device", "without second_devargs: DPDK would not use it"
        taken = {"uplink_device": instance.uplink_device, "second_device": instance.second_device}
        for key, name in _kernel_devices(config.uplink):
            for own, device in taken.items():
                if name == device:
                    yield f"instances.{side}.{own}", f"is also uplink.{key} ({name}), which stays where it is"


def _own_devices(config: Config) -> Iterator[Fault]:
    a, b = config.instances.a, config.instances.b
    if config.program is Program.CLONE:
        yield from _port_devices(config)
        return
    if _device(a.uplink_devargs) == _device(b.uplink_devargs):
        yield (
            "instances.b.uplink_devargs",
            (
                f"names the device of instances.a.uplink_devargs ({a.uplink_devargs}); both instances run at once,"
                " each on a VF of its own"
            ),
        )
    if a.uplink_device is not None and a.uplink_device == b.uplink_device:
        yield "instances.b.uplink_device", f"is also instances.a.uplink_device ({a.uplink_device})"
    yield from _second_devices(config)


def _port_devices(config: Config) -> Iterator[Fault]:
    """Yield the devices of ports that are used twice, and ports that have one on one side only."""
    taken: dict[str, str] = {}
    for side in Side:
        for port, devargs in config.instance(side).port_devices.items():
            key, device = f"instances.{side}.port_devices.{port}", _device(devargs)
            if device in taken:
                yield key, f"names the device of {taken[device]} ({devargs}): each is another one"
            taken.setdefault(device, key)
            if port not in config.instance(side.other).port_devices:
                yield key, f"instance {side.other} has no device for it: two instances cannot both have one"


def _one_device(config: Config) -> Iterator[Fault]:
    a, b, driver = config.instances.a, config.instances.b, f'uplink.driver is "{config.uplink.driver}"'
    if a.uplink_devargs != b.uplink_devargs:
        yield "instances.b.uplink_devargs", f"must be instances.a.uplink_devargs ({a.uplink_devargs}): {driver}"
    if a.uplink_device != b.uplink_device:
        yield "instances.b.uplink_device", f"must be instances.a.uplink_device ({a.uplink_device}): {driver}"
    if config.uplink.second is not None:
        yield "uplink.second", f"{driver}, which is for one NIC"


def _second_devices(config: Config) -> Iterator[Fault]:
    """Yield the second devices that are used already: by the same instance, or by the other one."""
    taken: dict[str, str] = {}
    for side in Side:
        instance = config.instance(side)
        named = [("uplink_devargs", _device(instance.uplink_devargs), instance.uplink_devargs)]
        if instance.second_devargs is not None:
            named.append(("second_devargs", _device(instance.second_devargs), instance.second_devargs))
        for key, device, text in named:
            if "second_devargs" in (key, taken.get(device, "").rpartition(".")[2]) and device in taken:
                yield f"instances.{side}.{key}", f"names the device of {taken[device]} ({text}): each is another VF"
            taken.setdefault(device, f"instances.{side}.{key}")


def _instance(config: Config, side: Side) -> Iterator[Fault]:
    instance, key = config.instance(side), f"instances.{side}"
    if instance.uplink_device in TAKEN_NAMES:
        yield f"{key}.uplink_device", f"{instance.uplink_device} is the name of another port or device"
    if not instance.uplink_devargs.strip():
        yield f"{key}.uplink_devargs", "must name a DPDK device"
    opened = _interface(instance.uplink_devargs)
    if opened and instance.uplink_device and opened != instance.uplink_device:
        yield f"{key}.uplink_device", f"is {instance.uplink_device}, and uplink_devargs have iface={opened}"
    opened = _interface(instance.second_devargs or "")
    if opened and instance.second_device and opened != instance.second_device:
        yield f"{key}.second_device", f"is {instance.second_device}, and second_devargs have iface={opened}"
    if instance.second_device is not None and instance.second_device in (instance.uplink_device, config.bridge):
        yield f"{key}.second_device", f"{instance.second_device} is the name of another device of the instance"
    if instance.second_device in TAKEN_NAMES:
        yield f"{key}.second_device", f"{instance.second_device} is the name of another port or device"
    yield from _dpdk_extra(f"{key}.dpdk_extra", instance.dpdk_extra, instance.devices)
    if not config.uplink.both_open:
        yield from _taken_at_start(f"{key}.dpdk_extra", instance.dpdk_extra, instance.uplink_devargs)


def _taken_at_start(key: str, extra: str, devargs: str) -> Iterator[Fault]:
    """Yield ``-a`` for an uplink that an instance opens later. Open vSwitch gives back only what it has attached for a
    port, and not what DPDK has taken at its start (lib/netdev-dpdk.c, netdev_dpdk_destruct)."""
    words = extra.split()
    for word, following in zip(words, [*words[1:], ""], strict=False):  # "" has no word if there are none
        name, _, value = word.partition("=")
        if name in ALLOW and (address := pci_address(value or following)) and address == pci_address(devargs):
            yield key, f"{name} {address}: the instance would take the uplink at its start, and could not hand it over"


def _dpdk_extra(key: str, extra: str, devices: Sequence[str]) -> Iterator[Fault]:
    """Yield the arguments for DPDK that contradict the rest of the instance's table."""
    words = extra.split()
    for word in words:
        name = "-m" if re.fullmatch(r"-m\d+", word) else word.partition("=")[0]
        if name in _OWN_ARGUMENTS:
            yield key, f"{name} is not for this: {_OWN_ARGUMENTS[name]}"
    if any(map(pci_address, devices)) and (blocked := [word for word in words if word.partition("=")[0] in BLOCK]):
        yield key, f"{blocked[0]} cannot be beside -a, which is passed for the uplink's PCI device (DPDK refuses both)"


def _interface(devargs: str) -> str | None:
    """Return the network device that a DPDK device opens or makes, or ``None``."""
    found = re.search(r"(?:^|,)iface=([^,]+)", devargs)
    return found[1] if found else None


def pci_address(devargs: str) -> str | None:
    """Return the PCI address with which DPDK arguments begin, as the kernel writes it, or ``None``."""
    found = _PCI.fullmatch(devargs.strip().partition(",")[0].removeprefix("pci:"))
    return f"{(found[1] or '0000')}:{found[2]}".lower() if found else None


def _device(devargs: str) -> str:
    """Return the part of a DPDK device that only one process can have: a network device, PCI address or representor.

    The names of virtual devices belong to a process. For a virtual device without a network device, all arguments are
    returned.
    """
    if found := _interface(devargs):
        return f"iface={found}"
    address = pci_address(devargs)
    return devargs if address is None or "representor=" in devargs else address


def _uplink(config: Config) -> Iterator[Fault]:
    uplink = config.uplink
    named = [(f"uplink.{key}", name) for key, name in _kernel_devices(uplink)]
    for key, name in named:
        if name == "lo":
            yield key, "may not be lo, on which no packet of another host arrives"
    for index, (key, name) in enumerate(named):
        for earlier, other in named[:index]:
            if name == other:
                yield key, f"is also {earlier} ({name}): they are different devices"
    for nic, place in zip(uplink.nics, ("uplink", "uplink.second"), strict=False):
        if nic.vf_a is not None and nic.vf_a == nic.vf_b:
            yield f"{place}.vf_b", f"is also {place}.vf_a ({nic.vf_a}): each instance has a VF of its own"
    yield from _announced(config)
    if uplink.locations[0] == uplink.locations[1]:
        yield "uplink.locations", f"must be two different places, not {uplink.locations[0]} twice"
    if uplink.namespace is not None:
        if uplink.namespace in ("", ".", "..") or "/" in uplink.namespace:
            yield "uplink.namespace", f"must be the name of a network namespace, not {uplink.namespace!r}"
        if uplink.namespace in [config.namespace(side) for side in Side]:
            yield "uplink.namespace", f"{uplink.namespace} is an instance's own, which is removed with it"


def _vfs(config: Config) -> Iterator[Fault]:
    uplink = config.uplink
    if not uplink.vfs.bind and not any(uplink.vfs.wanted(side) for side in Side):
        return
    if uplink.driver == "exclusive":
        yield "uplink.vfs", 'with driver "exclusive" the switch owns the whole NIC, and has no VF'
        return
    for side in Side:
        for nic, devargs in zip(uplink.nics, config.instance(side).devices, strict=False):
            if pci_address(devargs) is not None:
                continue
            if uplink.vfs.bind:
                yield "uplink.vfs.bind", f"instance {side}'s {devargs} is no PCI device"
            elif uplink.vfs.wanted(side) and (nic.device is None or nic.vf(side) is None):
                yield (
                    "uplink.vfs",
                    f"which VF instance {side}'s {devargs} is, is not known: give uplink.device and vf_{side}",
                )


def _announced(config: Config) -> Iterator[Fault]:
    macs = {side: config.instance(side).uplink_mac for side in Side}
    driver, vfs = config.uplink.driver, config.uplink.vfs
    if driver == "announce" and config.uplink.second is not None:
        yield "uplink.second", 'the driver "announce" announces the VTEP\'s address on one NIC alone'
    for side, mac in macs.items():
        if mac is None and (driver == "announce" or macs[side.other] is not None):
            yield f"instances.{side}.uplink_mac", "is missing: each instance has the VTEP's address on its own VF's MAC"
        if mac is not None and vfs.wanted(side).get("mac", mac) != mac:
            yield f"uplink.vfs.mac_{side}", f"is not instances.{side}.uplink_mac ({mac}): the VF has one MAC"
        if mac is not None and driver not in ("announce", "none"):
            yield f"instances.{side}.uplink_mac", f'packets that the driver "{driver}" steers have the MAC of the VTEP'
    if macs[Side.A] is not None and macs[Side.A] == macs[Side.B]:
        yield "instances.b.uplink_mac", f"is also instances.a.uplink_mac ({macs[Side.A]}): each VF has its own"


def _kernel_devices(uplink: UplinkConfig) -> list[tuple[str, str]]:
    """The kernel devices that [uplink] names, each with its key, such as ``second.device``."""
    return [
        (f"{place}{key}", name)
        for nic, place in zip(uplink.nics, ("", "second."), strict=False)
        for key, name in (("device", nic.device), ("representor_a", nic.representor_a),
                          ("representor_b", nic.representor_b))
        if name is not None
    ]  # fmt: skip


def _features(config: Config) -> Iterator[Fault]:
    for name in sorted(NEEDED_FEATURES & set(config.broker.withhold_features)):
        yield "broker.withhold_features", f"{name} cannot be withheld: no VM would have a network without it"


def _watch(config: Config) -> Iterator[Fault]:
    watch = config.watch
    if watch.hang_ms < _LOOKS * watch.check_ms:
        yield (
            "watch.hang_ms",
            (
                f"must be at least {_LOOKS} times watch.check_ms, {_LOOKS * watch.check_ms} (it is {watch.hang_ms}):"
                " within it the active instance is looked at more than once"
            ),
        )
    if watch.main_ms < watch.hang_ms:
        yield "watch.main_ms", f"must be at least watch.hang_ms, {watch.hang_ms} (it is {watch.main_ms})"


_RULES = (_bridge, _paths, _sockets, _instances, _uplink, _vfs, _features, _watch)


def sockets(config: Config, vms: list[str]) -> list[tuple[int, str]]:
    """Return the number of each VM whose name does not fit the configuration, and why it does not."""
    found: list[tuple[int, str]] = []
    owners = {path: "ovs-hotswap's own" for path in config.own_paths}
    for number, name in enumerate(vms):
        if name == config.bridge:
            found.append((number, f"{name} is the name of the bridge"))
        for path in config.sockets_of(name):
            if path in owners:
                found.append((number, f"the path of a socket of VM {name} is {owners[path]} as well: {path}"))
            elif len(bytes(path)) > SUN_PATH_MAX:
                found.append((number, f"path of its socket is longer than {SUN_PATH_MAX} bytes: {path}"))
            owners.setdefault(path, f"VM {name}'s")
    return found
