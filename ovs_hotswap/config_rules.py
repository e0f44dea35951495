"""What values of the configuration that are each right for themselves may not be together. Pure.

Each rule yields faults as the key, or the keys, and what is wrong with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ovs_hotswap.model import TAKEN_NAMES, Side

if TYPE_CHECKING:
    from ovs_hotswap.config import Config

Fault = tuple[str, str]

SUN_PATH_MAX = 107  # bytes of a unix socket's path, without the final NUL (unix(7))
NEEDED_FEATURES = frozenset({"PROTOCOL_FEATURES", "VERSION_1"})
_LOOKS = 3  # at the active instance, before a sign counts
_VARIABLE = re.compile(r"\{[^{}]*\}|[{}]")
# run_dir stands in arguments of DPDK devices and in names of sockets of Open vSwitch.
_RUN_DIR = re.compile(r"[A-Za-z0-9/._+@~-]*")
_OWN_DIRECTORIES = ("vhost", *Side)


def faults(config: Config) -> list[Fault]:
    """Everything in the configuration that cannot be."""
    return [fault for rule in _RULES for fault in rule(config)]


def _bridge(config: Config) -> Iterator[Fault]:
    name = config.bridge
    if name in TAKEN_NAMES:
        yield "bridge", f"{name} is the name of another port or device; not allowed: {', '.join(sorted(TAKEN_NAMES))}"
    if name.startswith("-"):
        yield "bridge", f"may not begin with a dash (it is {name!r})"
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
        if "\0" in value or "\n" in value:
            yield key, f"may not have control characters in it (it is {value!r})"
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
    a, b = config.instances.a, config.instances.b
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
    uplink = config.uplink
    others = {"device": uplink.device, "representor_a": uplink.representor_a, "representor_b": uplink.representor_b}
    for side in Side:
        for key, name in others.items():
            if name is not None and name == config.instance(side).uplink_device:
                yield f"instances.{side}.uplink_device", f"is also uplink.{key} ({name}), which stays where it is"


def _device(devargs: str) -> str:
    """What of a DPDK device only one process can have: a network device, a PCI address, or a representor of one."""
    if found := re.search(r"(?:^|,)iface=([^,]+)", devargs):
        return f"iface={found[1]}"
    if "representor=" in devargs:
        return devargs
    name = devargs.partition(",")[0]
    return f"0000:{name}" if re.fullmatch(r"[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]", name) else name


def _uplink(config: Config) -> Iterator[Fault]:
    uplink = config.uplink
    names = [("device", uplink.device), ("representor_a", uplink.representor_a),
             ("representor_b", uplink.representor_b)]  # fmt: skip
    for index, (key, name) in enumerate(names):
        for earlier, other in names[:index]:
            if name is not None and name == other:
                yield f"uplink.{key}", f"is also uplink.{earlier} ({name}): they are three devices"
    if uplink.namespace is not None:
        if uplink.namespace in ("", ".", "..") or "/" in uplink.namespace:
            yield "uplink.namespace", f"must be the name of a network namespace, not {uplink.namespace!r}"
        if uplink.namespace in [config.namespace(side) for side in Side]:
            yield "uplink.namespace", f"{uplink.namespace} is an instance's own, which is removed with it"


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


_RULES = (_bridge, _paths, _sockets, _instances, _uplink, _features, _watch)


def sockets(config: Config, vms: list[str]) -> list[tuple[int, str]]:
    """What of the VMs' names does not fit the configuration: the number of each such VM, and why."""
    found: list[tuple[int, str]] = []
    owners = {path: "ovs-hotswap's own" for path in config.own_sockets}
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
