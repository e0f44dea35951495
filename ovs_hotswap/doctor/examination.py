"""The parts of an examination, from the cores of the host to its VMs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ovs_hotswap.config import Config
from ovs_hotswap.doctor import (
    access,
    clock,
    cpu,
    devices,
    disk,
    files,
    kernel,
    memory,
    releases,
    running,
    units,
    versions,
)
from ovs_hotswap.doctor.catalogue import adopt
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Section, by_section
from ovs_hotswap.doctor.runner import NOT_SEEN, Observe, Part, Runner
from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.host import flow_tables, traces
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.machine import cores, descriptor_limit, running_switches
from ovs_hotswap.model import Side
from ovs_hotswap.overlay import path_mtu
from ovs_hotswap.overlay.intent import ETHERNET_MTU
from ovs_hotswap.service import device_rights
from ovs_hotswap.service.hidden_paths import hidden_paths
from ovs_hotswap.service.systemctl import Unit
from ovs_hotswap.switch.machine_parts import numa_nodes
from ovs_hotswap.switch.memory import Reservation, reserve
from ovs_hotswap.switch.pools import page_mib
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import checks, collect, device_checks
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.uplink import driver_info, vf_checks
from ovs_hotswap.uplink.pci import PciBus
from ovs_hotswap.uplink.vf import RtnlVfs

Status = Callable[[Host], tuple[Mapping[str, Any], Mapping[str, str]]]
"""What makes the document of `status`, and the reason for each field that cannot be read."""


@dataclass(frozen=True, slots=True)
class Queries:
    """What the kernel is asked because no file has it: whether the clock is synchronised, which firmware a network
    device has, the settings of a VF (``None``: those in the uplink's network namespace), and the private flags of a
    driver. ``group`` asks what else names groups. ``root``: the kernel answers root, to whom it says everything."""

    synchronised: Callable[[], bool | None] = clock.synchronised
    firmware: devices.Ask = driver_info.firmware
    vf: vf_checks.Read | None = None
    flags: Callable[[str], Mapping[str, bool]] = driver_info.private_flags
    group: Callable[[str], access.Members | None] = access.group
    root: bool = field(default_factory=lambda: os.geteuid() == 0)


@dataclass
class Examination:
    """Looks below ``root`` at the host that the file ``config_path`` describes. ``status`` makes the document of
    `status`. Nothing is changed."""

    root: Root
    config_path: Path
    system: System
    status: Status
    queries: Queries = field(default_factory=Queries)
    config: Config | None = None

    def run(self, runner: Runner, sections: Iterable[Section] = tuple(Section)) -> list[Found]:
        """Return the findings of these sections, in their order."""
        wanted = tuple(section for section in Section if section in set(sections))
        first, *others = self._parts()
        found = runner.run(first)  # the others depend on the configuration
        for part in others:
            if set(part.sections) & set(wanted):
                found += runner.run(part)
        return [each for section in by_section(found, wanted).values() for each in section]

    def _read(self) -> list[Found]:
        self.config, found = files.read(self.config_path)
        return found

    def _parts(self) -> list[Part]:
        root, queries = self.root, self.queries
        return [
            Part("configuration", (Section.CONFIGURATION,), self._read),
            self._with_config("cores", _look_at_cores, Section.CPU),
            Part("memory", (Section.MEMORY,), self._look_at_memory),
            self._with_config("devices", _look_at_devices, Section.DEVICES),
            Part("kernel", (Section.KERNEL,), lambda: kernel.judge(kernel.read(root))),
            Part("packages", (Section.VERSIONS,), lambda: versions.installed(versions.packages(root))),
            self._with_config("running versions", _look_at_versions, Section.VERSIONS),
            self._with_paths("units", _look_at_units, Section.UNITS),
            self._with_config("other switches", _look_at_switches, Section.UNITS),
            self._with_paths("permissions", _look_at_access, Section.ACCESS),
            Part("clock", (Section.CLOCK,), lambda: [clock.judge(clock.read(root, queries.synchronised()))]),
            self._with_paths("disks", lambda look: disk.judge(*disk.read(root, look.config)), Section.DISK),
            self._with_paths("releases", _look_at_releases, Section.RELEASES),
            self._with_config("overlay", _look_at_overlay, Section.OVERLAY),
            self._with_config("status", self._look_at_status, *running.SECTIONS),
            self._with_config("broker", _look_at_broker, Section.BROKER),
            self._with_config("active instance", _look_at_active, Section.INSTANCES),
            self._with_config("traces", _look_at_traces, Section.INSTANCES),
            self._with_config("uplink", _look_at_uplink, Section.UPLINK),
            self._with_config("VMs", _look_at_vms, Section.VMS),
        ]

    def _with_config(self, name: str, act: Callable[[Look], Iterable[Found]], *sections: Section) -> Part:
        return Part(name, sections, partial(self._acted, act, sections))

    def _acted(self, act: Callable[[Look], Iterable[Found]], sections: Iterable[Section]) -> Iterable[Found]:
        if self.config is not None:
            return act(Look(self.root, self.config, self.config_path, self.system, self.queries))
        text = "not everything was looked at, because the configuration cannot be read"
        return [NOT_SEEN[section](text, "`ovs-hotswap config check`") for section in sections]

    def _with_paths(self, name: str, act: Callable[[Look], Iterable[Found]], section: Section) -> Part:
        """Make a part that needs to know where things are. If there is no configuration yet, they are where they are
        by default."""
        return Part(name, (section,), partial(self._acted_with_paths, act, section))

    def _acted_with_paths(self, act: Callable[[Look], Iterable[Found]], section: Section) -> Iterable[Found]:
        if self.config is None and not self.config_path.exists():
            return act(Look(self.root, files.DEFAULTS, self.config_path, self.system, self.queries))
        return self._acted(act, (section,))

    def _look_at_memory(self) -> Iterator[Found]:
        """Look at the huge pages of the host also if it is not known who needs them."""
        if self.config is None:
            yield from memory.judge(memory.read(self.root), (), adopt)
        yield from self._acted(_look_at_memory, (Section.MEMORY,))

    def _look_at_status(self, look: Look) -> Iterator[Found]:
        return running.judge(*self.status(look.host), look.config)


@dataclass
class Look:
    """One part's look at a host with a configuration. Each part has adapters of its own, because an earlier part may
    still hang in one."""

    root: Root
    config: Config
    config_path: Path
    system: System
    queries: Queries

    @cached_property
    def host(self) -> Host:
        return Host(self.config, self.system, quick=True)

    def control_group(self, side: Side) -> str | None:
        unit = self.host.instances[side].unit()
        return None if unit is None else unit.control_group()

    @property
    def unfinished(self) -> bool:
        """Whether an upgrade runs, or was interrupted. Raises StateUnknown."""
        return Upgrader(self.host).unfinished() is not None

    @property
    def active(self) -> tuple[Side, str] | None:
        """The active side and the name of its release; ``None`` if none is active."""
        side = self.host.recorded_active()
        release = None if side is None else self.host.instances[side].release()
        return None if side is None or release is None else (side, release.name)


def _look_at_cores(look: Look) -> Iterator[Found]:
    wanted = {side: look.config.instance(side).pmd_cores for side in Side}
    look.root.need(cpu.ONLINE)  # without it the cores of the caller would be taken for those of the host
    allowed = cores(look.control_group(Side.A), look.root.sys, look.root.proc)
    yield from adopt(Section.CPU, checks.cpu_set(allowed, wanted))
    yield from cpu.judge(cpu.read(look.root, {core for side in Side for core in wanted[side]}))


def _look_at_memory(look: Look) -> Iterator[Found]:
    idle = [side for side in Side if not look.host.running(side)]
    yield from memory.judge(memory.read(look.root), [_need(look, side) for side in idle], adopt)
    for side in Side:
        if side not in idle and look.host.recorded_active() is side:
            wanted = reserve(look.host.demand(side.other), page_mib(look.root.sys))
            yield from adopt(Section.MEMORY, collect.pool_in_use(look.host, side, wanted))


def _need(look: Look, side: Side) -> memory.Need:
    instance = look.config.instance(side)
    nodes = frozenset(numa_nodes(instance.pmd_cores, look.root.sys))
    if look.host.pool_for_each_port(side):
        return memory.Need(side, nodes, instance.memory_mb, Reservation(instance.memory_mb, 0), None)
    demand = look.host.demand(side)
    return memory.Need(side, nodes, instance.memory_mb, reserve(demand, page_mib(look.root.sys)), demand)


def _look_at_devices(look: Look) -> Iterator[Found]:
    root, config, ask = look.root, look.config, look.queries.firmware
    found = [devices.read(root, side, address, ask) for side, address in devices.addresses(config)]
    bus = devices.read_bus(root, config)
    macs, mtu = dict[Side, str](), ETHERNET_MTU
    with contextlib.suppress(HotswapError):  # a fault of the intent is a finding of its own section
        intent = look.host.intent
        macs, mtu = {side: flow_tables.mac(config, intent, side) for side in Side}, intent.vtep.mtu or ETHERNET_MTU
    yield from devices.judge_bus(bus, found)
    for each in found:
        yield from devices.judge(bus, each, mtu, binds=config.uplink.vfs.bind)
    for pf in dict.fromkeys(each.parent.name for each in found if each.parent is not None):
        yield from devices.judge_flags(pf, look.queries.flags(pf))
    yield from _look_at_vfs(look, macs)
    for name in filter(None, (nic.device for nic in config.uplink.nics)):
        if config.uplink.namespace is None and root.exists(f"sys/class/net/{name}"):
            yield from devices.judge_nic(devices.read_nic(root, name, ask), mtu)
    idle = [side for side in Side if look.host.instances[side].pid() is None]
    if not config.uplink.both_open and len(idle) == 1:  # the other one may have the device that both use
        idle = []
    if config.uplink.namespace is None:
        yield from devices.judge_kernel_devices(root, config, idle, mtu)


def _look_at_vfs(look: Look, macs: Mapping[Side, str]) -> Iterator[Found]:
    bus, pids = PciBus(look.root.sys, look.root.proc), {side: look.host.instances[side].pid() for side in Side}
    ask = look.queries.vf or RtnlVfs(look.config.uplink.namespace).read
    facts = vf_checks.look(look.config, bus, ask, pids, device_checks.left(look.config, look.system))
    yield from adopt(Section.DEVICES, vf_checks.judge(facts, macs, tuple(Side)))


def _look_at_versions(look: Look) -> Iterator[Found]:
    if not look.queries.root:
        yield access.unseen(Section.VERSIONS)
    yield from versions.judge(versions.read(look.host))


def _look_at_units(look: Look) -> Iterator[Found]:
    yield from units.judge(units.read(look.root, look.config, units.shipped_directory(), look.system))
    if units.uses_units(look.root, look.config):
        booted = look.root.path("run/systemd/system")
        ours = [Unit(name, look.system, booted=booted) for name in (units.BROKER, units.WATCH)]
        for key, text in hidden_paths(look.config, ours):
            yield units.HIDDEN(f"{key}: {text}", f'"${{EDITOR:-editor}}" {look.config_path}', key)
        openers = [Unit(name, look.system, booted=booted) for name in device_rights.UNITS]
        for lack in device_checks.rights(look.config, PciBus(look.root.sys, look.root.proc), openers):
            yield units.RIGHTS(lack.text, lack.hint, lack.unit)


def _look_at_switches(look: Look) -> Iterator[Found]:
    host, config = look.host, look.config
    own = [pid for side in Side if (pid := host.instances[side].pid()) is not None]
    switches = running_switches(look.system)
    if not look.queries.root:
        yield access.unseen(Section.UNITS)
    for side in Side:
        if not host.running(side):
            run_dir = os.path.realpath(config.side_dir(side))
            found = checks.conflicting_processes(switches, own, run_dir, config.namespace(side))
            yield from adopt(Section.UNITS, found)
        regions = [(2, vm.queues) for vm in host.intent.vms]
        yield from adopt(Section.UNITS, checks.descriptors(descriptor_limit(host, side), regions))


def _look_at_access(look: Look) -> Iterator[Found]:
    queries = look.queries
    facts = access.read(look.root, look.config, look.config_path, queries.root, queries.group)
    return access.judge(facts, look.config)


def _look_at_releases(look: Look) -> Iterable[Found]:
    if not look.queries.root:  # the programs of a tree are asked for their versions in that tree (chroot(2))
        return [access.unseen(Section.RELEASES)]
    upgrader = Upgrader(look.host)
    before = None
    active = look.active
    with contextlib.suppress(HotswapError):  # a journal that cannot be read is a finding of another section
        before = upgrader.release_before(None if active is None else active[1])
    return releases.judge(releases.read(look.root, look.config, look.host.releases.list(), before))


def _look_at_overlay(look: Look) -> Iterator[Found]:
    intent, found = files.intent(look.config)
    yield from found
    if intent is not None:
        yield from adopt(Section.OVERLAY, path_mtu.judge(intent, collect.path_seen(look.host)))


def _look_at_broker(look: Look) -> Iterator[Found]:
    if look.config.broker_socket.exists():  # otherwise `status` has said that there is none
        yield from adopt(Section.BROKER, collect.broker(look.host))


def _look_at_active(look: Look) -> Iterator[Found]:
    if look.unfinished:
        yield running.in_between(Section.INSTANCES)
    elif look.active is not None:
        try:
            found = collect.active(look.host, look.active[0])
        except SwitchError as error:
            yield running.hangs(error)
            return
        yield from adopt(Section.INSTANCES, found)


def _look_at_traces(look: Look) -> Iterator[Found]:
    return running.left_traces(traces.abandoned(look.host))


def _look_at_uplink(look: Look) -> Iterator[Found]:
    yield from adopt(Section.UPLINK, look.host.uplink.check())
    yield from adopt(Section.UPLINK, collect.next_hops(look.host))


def _look_at_vms(look: Look) -> Iterator[Found]:
    active = look.active
    if look.unfinished:
        yield running.in_between(Section.VMS)
        return
    if active is None:
        return
    side, release = active
    yield from adopt(Section.VMS, collect.vms(look.host, side, side.other, release))
    yield from adopt(Section.VMS, collect.rings_before(look.host))


def examine(
    root: Path, config_path: Path, status: Status, sections: Iterable[Section], observe: Observe, system: System
) -> list[Found]:
    """Examine the host whose files are below ``root``."""
    examination = Examination(Root(root), config_path, system, status)
    return examination.run(Runner(system, observe), sections)
