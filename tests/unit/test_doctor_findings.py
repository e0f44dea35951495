"""Every finding of doctor is planted once on a healthy host and found, with a command that fixes it.

``PLANTED`` and ``ADOPTED_PLANTS`` have one entry for each. A finding of the code that has none fails a test, so that a
new finding comes with its planting.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from ovs_hotswap.cli import overview
from ovs_hotswap.config import RENAMED
from ovs_hotswap.config_changes import Change
from ovs_hotswap.doctor import (
    access,
    boot,
    catalogue,
    clock,
    cpu,
    devices,
    disk,
    files,
    kernel,
    memory,
    releases,
    runner,
    running,
    units,
    versions,
)
from ovs_hotswap.doctor.catalogue import ADOPTED, adopt
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Kind, Section
from ovs_hotswap.doctor.runner import Part, Runner
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host import memory_checks
from ovs_hotswap.host.culprit import ON_TRIAL
from ovs_hotswap.model import Finding, Release, Severity, Side, SwitchProcess
from ovs_hotswap.overlay import next_hops, path_mtu
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.next_hops import NextHops
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import StepNames
from ovs_hotswap.switch.instance import InstanceStatus, State
from ovs_hotswap.switch.memory import Demand, HugePages, PacketPool, Reservation
from ovs_hotswap.switch.release import HOST, LOCK, VSWITCHD, ReleaseEntry
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import checks, collect
from ovs_hotswap.upgrade.checks import VmFacts
from ovs_hotswap.uplink.pci import Holder, Place
from ovs_hotswap.uplink.rules import Link, Rule
from ovs_hotswap.uplink.tc import TcUplink
from ovs_hotswap.uplink.vf import Vf
from ovs_hotswap.uplink.vf_care import VfChange
from ovs_hotswap.uplink.vf_checks import VfFacts, judge
from tests.support.announce_bed import MACS, Fabric
from tests.support.fake_backends import vm_status
from tests.unit.doctor_bed import CPU, INTERRUPTS, NODE, PCI, PF, QEMU, SHIPPED, VF_A, VF_B, Bed, bad
from tests.unit.fake_system import FakeSystem
from tests.unit.test_overview import UPGRADE, healthy
from tests.unit.test_uplink import FakeTrafficControl, uplink
from tests.unit.watch_bed import RELEASE

OVERVIEW = Path(overview.__file__)
PAGE = Path(__file__).parents[2] / "docs/json.md"
Plant = Callable[[Bed], object]
Key = tuple[Section, str, Severity]


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def drop_in(unit: str, text: str) -> Plant:
    def plant(bed: Bed) -> None:
        bed.install_units()
        bed.write(f"etc/systemd/system/{unit}.d/own.conf", f"[Service]\n{text}")

    return plant


def with_units(plant: Plant) -> Plant:
    def act(bed: Bed) -> None:
        bed.install_units()
        plant(bed)

    return act


def status(**changes: object) -> Plant:
    def plant(bed: Bed) -> None:
        bed.status = healthy(**changes)

    return plant


def unknown(field: str) -> Plant:
    def plant(bed: Bed) -> None:
        bed.unknown[field] = "it does not answer"
        if field in bed.status:
            bed.status[field] = None

    return plant


def required(**changes: object) -> Plant:
    def plant(bed: Bed) -> None:
        bed.configure("[watch]", '[watch]\nmode = "required"')
        bed.status = healthy(watch__mode="required", **changes)

    return plant


def no_pages(bed: Bed) -> None:
    for place in (f"{NODE}/node0/hugepages", "sys/kernel/mm/hugepages"):
        bed.pages(place, 0, 1024)


def unready_group(bed: Bed) -> bool:
    bed.configure('# group = "libvirt"', 'group = "qemus"')
    return True


def no_iommu(bed: Bed) -> None:
    """A device that vfio-pci has without an IOMMU, under units as they were shipped."""
    bed.remove("sys/kernel/iommu_groups")
    bed.write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
    bed.systemd["CapabilityBoundingSet"] = "cap_net_admin cap_sys_admin"


def control_socket(mode: int, *, group: str | None = None) -> Plant:
    def plant(bed: Bed) -> None:
        if group is not None:
            bed.configure('# group = "libvirt"', f'group = "{group}"')
        path = bed.root.path(bed.loaded().broker_socket)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.chmod(mode)

    return plant


def mode_of(name: Callable[[Bed], Path], mode: int) -> Plant:
    def plant(bed: Bed) -> None:
        path = name(bed)
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)

    return plant


def bind(address: str, driver: str) -> Plant:
    return lambda bed: bed.link(f"{PCI}/{address}/driver", f"/sys/bus/pci/drivers/{driver}")


def unprivileged(bed: Bed) -> None:
    bed.privileged = False


def hide(bed: Bed) -> None:
    bed.install_units()
    bed.configure('# qemu_socket = "/run/ovs-hotswap/vm/{vm}.sock"', 'qemu_socket = "/home/vm/{vm}.sock"')
    bed.systemd["ProtectHome"] = "yes"


BALANCED = "echo 0 > /proc/sys/kernel/numa_balancing"
# The planting of each finding of doctor's own, by the kind that makes it.
PLANTED: list[tuple[Kind, Plant]] = [
    (cpu.ISOLATION, lambda bed: bed.write(f"{CPU}/isolated", "2")),
    (cpu.TICKS, lambda bed: bed.write(f"{CPU}/nohz_full", "3")),
    (cpu.INTERRUPT, lambda bed: (bed.write("proc/interrupts", INTERRUPTS.format(counted=7)),
                                 bed.write("proc/irq/24/effective_affinity_list", "2"))),
    (cpu.SIBLING, lambda bed: bed.write(f"{CPU}/cpu2/topology/thread_siblings_list", "0,2")),
    (cpu.GOVERNOR, lambda bed: bed.write(f"{CPU}/cpu3/cpufreq/scaling_governor", "powersave")),
    (memory.MOUNT, lambda bed: bed.write("proc/mounts", "proc /proc proc rw 0 0")),
    (memory.AT_BOOT, lambda bed: bed.remove("etc/sysctl.d/80-huge-pages.conf")),
    (devices.ABSENT, lambda bed: bed.remove(f"{PCI}/{VF_B}")),
    (devices.NO_IOMMU, lambda bed: bed.remove("sys/kernel/iommu_groups")),
    (devices.UNSAFE, lambda bed: (bed.remove("sys/kernel/iommu_groups"),
                                  bed.write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y"))),
    (devices.NO_VFIO, lambda bed: bed.remove("sys/module/vfio_pci")),
    (devices.DRIVER, bind(VF_A, "iavf")),
    (devices.GROUP, lambda bed: (bed.write(f"{PCI}/{VF_A}/iommu_group/devices/0000:04:00.0", ""),
                                 bed.link(f"{PCI}/0000:04:00.0/driver", "/sys/bus/pci/drivers/nvme"))),
    (devices.FAR, lambda bed: bed.write(f"{PCI}/{VF_A}/numa_node", "1")),
    (devices.SHORT, lambda bed: (bed.write("sys/class/net/eno1/mtu", "1400"))),
    (devices.MALICIOUS, lambda bed: bed.flags.update({"mdd-auto-reset-vf": False})),
    (devices.NO_FIRMWARE, lambda bed: setattr(bed, "firmware", None)),
    (kernel.TOO_OLD, lambda bed: (bed.write("proc/sys/kernel/osrelease", "4.19.0-21-amd64"),
                                  bed.remove("lib/modules"))),
    (kernel.REBOOT, lambda bed: (bed.write("boot/vmlinuz-6.1.0-28-amd64", ""),
                                 bed.directory_at("lib/modules/6.1.0-28-amd64"))),
    (kernel.PENDING, lambda bed: bed.write("etc/default/grub", 'GRUB_CMDLINE_LINUX="intel_iommu=on"')),
    (kernel.BALANCING, lambda bed: bed.root.path(f"{NODE}/node1").mkdir()),
    (units.MISSING, with_units(lambda bed: bed.remove("etc/systemd/system/ovs-hotswap-netns@.service"))),
    (units.DIFFERS, with_units(lambda bed: bed.write("etc/systemd/system/ovs-hotswap-watch.service", "[Service]"))),
    (units.CONTRADICTS, drop_in("ovs-hotswap-instance@a.service", "Restart=always")),
    (units.NOT_ENABLED, with_units(
        lambda bed: bed.remove("etc/systemd/system/multi-user.target.wants/ovs-hotswap-broker.service"))),
    (units.NOT_ACTIVE, with_units(lambda bed: bed.systemd.update(ActiveState="failed"))),
    (units.NOT_READ, with_units(lambda bed: bed.systemd.update(NeedDaemonReload="yes"))),
    (units.RESTARTED, with_units(lambda bed: bed.write("etc/needrestart/needrestart.conf", ""))),
    (units.CANNOT_WRITE, with_units(lambda bed: bed.configure("# state_dir =", "state_dir = '/srv/hotswap' #"))),
    (units.HIDDEN, hide),
    (units.RIGHTS, with_units(no_iommu)),
    (access.SOCKET_MODE, control_socket(0o666)),
    (access.SOCKET_GROUP, control_socket(0o660, group="ovs")),
    (access.NO_GROUP, unready_group),
    (access.NO_MEMBERS, lambda bed: (unready_group(bed), bed.write("etc/group", "qemus:x:991:"))),
    (access.RUN_DIR, mode_of(lambda bed: bed.root.path(bed.loaded().run_dir), 0o775)),
    (access.STRANGER, mode_of(lambda bed: bed.root.path(bed.loaded().state_dir), 0o777)),
    (access.NO_PLACE, lambda bed: bed.remove("run/ovs-hotswap/vm")),
    (access.OPEN_PLACE, mode_of(lambda bed: bed.root.path("run/ovs-hotswap/vm"), 0o777)),
    (access.CLOSED_PLACE, lambda bed: (bed.write("etc/libvirt/qemu.conf", '#user = "root"'),
                                       bed.write("etc/passwd", f"libvirt-qemu:x:{QEMU}:108::/var/lib/libvirt:/x"))),
    *[(kind, unprivileged) for kind in access.NOT_ROOT.values()],
    (clock.UNSYNCHRONISED, lambda bed: setattr(bed, "synchronised", False)),
    (clock.UNSEEN, lambda bed: setattr(bed, "synchronised", None)),
    (files.MISSING, lambda bed: bed.config.unlink()),
    (files.FAULTY, lambda bed: bed.configure("pmd_cores = [2]", "pmd_cores = []")),
    (files.EARLIER, lambda bed: bed.configure('# backend = "broker"', f'{next(iter(RENAMED))} = "broker"')),
    (files.NO_INTENT, lambda bed: bed.overlay.unlink()),
    (files.WRONG_INTENT, lambda bed: bed.intend("vni = 100", "vni = 0")),
    (running.SILENT, unknown("broker")),
    (running.REFUSED, lambda bed: bed.unknown.update(broker="broker at /run/x: status: [Errno 13] Permission denied")),
    (running.NEVER_STARTED, status(active=None, uplink=None,
                                   instances=[InstanceStatus(side, State.STOPPED) for side in Side])),
    *[(kind, unknown(f"{field}.a" if field in ("packet_pools", "replaced") else field))
      for field, kind in running.UNSEEN.items()],
    (running.PROBLEMS["instance"], status(instances=[InstanceStatus(Side.A, State.DEAD)])),
    (running.PROBLEMS["active"], status(active=None)),
    (running.PROBLEMS["release"], status(
        replaced={Side.A: True}, instances=[InstanceStatus(Side.A, State.RUNNING, release=RELEASE)])),
    (running.PROBLEMS["health"], status(watch__health="failed")),
    (running.PROBLEMS["journal"], status(unfinished=UPGRADE)),
    (running.PROBLEMS["uplink"], status(uplink=Side.B)),
    (running.PROBLEMS["VMs"], status(vms__unprotected=["vm1"])),
    (running.PROBLEMS["watchdog"], status(watch__running=False)),
    (running.PROBLEMS["standby"], status(watch__standby=None)),
    (running.PROBLEMS["configuration"], status(watch__differing=[Change("watch.hang_ms", 500, 700)])),
    (running.PROBLEMS["broker"], status(broker__config_fault="not TOML")),
    (running.PROBLEMS["flow"], status(flowlog={"problems": [{"text": "the relay does not run", "hint": None}]})),
    (running.REQUIRED["watchdog"], required(watch__running=False)),
    (running.REQUIRED["standby"], required(watch__standby=None)),
]  # fmt: skip


def key(kind: Kind | Found) -> Key:
    return kind.section, kind.check, kind.severity


@pytest.mark.parametrize(
    ("kind", "plant"), PLANTED, ids=[f"{kind.section}-{kind.check}-{kind.severity}" for kind, _ in PLANTED]
)
def test_a_planted_fault_is_found_alone(bed: Bed, kind: Kind, plant: Plant) -> None:
    plant(bed)
    found = bad(bed.examine(kind.section))
    assert key(kind) in {key(each) for each in found}
    assert all(named(each.hint) for each in found)
    besides = {key(each) for each in found} - {key(kind)} - BESIDES.get(key(kind), set())
    assert besides == set(), "one fault is one finding"


# What a fault brings with it: a broker that does not answer cannot be asked for its VMs, and so on.
BESIDES: dict[Key, set[Key]] = {
    key(files.MISSING): {key(runner.NOT_SEEN[Section.CONFIGURATION])},
    key(files.FAULTY): {key(runner.NOT_SEEN[Section.CONFIGURATION])},
    key(devices.ABSENT): set(),
    key(access.STRANGER): {key(access.STRANGER)},
}
_PROGRAMS = (
    r"apt-get|bpftool|cat|chgrp|chmod|chown|df|dmesg|dpdk-devbind.py|du|echo|ethtool|groupadd|install|ip|lspci|mkdir|modprobe"
    r'|mount|ps|rm|sed|systemctl|tc|timedatectl|truncate|ulimit|update-grub|usermod|"\$\{EDITOR'
)


def named(hint: str | None) -> bool:
    """Whether a hint has a command: ours in backquotes, or one of the system's."""
    return re.search(rf"`ov|(?:^|[:`;,] ?|or )(?:{_PROGRAMS})\b", hint or "") is not None


# -------------------------------------------------------------------------- what needs facts that no file can stand for


def volume(**changes: object) -> disk.Volume:
    values: dict[str, object] = {"key": "state_dir", "path": Path("/srv"), "free": 1 << 40, "inodes": 1 << 20,
                                 "read_only": False, **changes}  # fmt: skip
    return disk.Volume(**values)  # type: ignore[arg-type]


def stock(*entries: ReleaseEntry, needed: dict[str, str] | None = None, left: tuple[str, ...] = ()) -> list[Found]:
    return list(releases.judge(releases.Stock(entries, needed or {}, left)))


def test_a_release_is_made_again_from_its_source() -> None:
    sources = {"Debian trixie": "--suite trixie", "the directory /srv/ovs": "--from-directory /srv/ovs"}
    for source, option in sources.items():
        (found,) = bad(stock(GOOD, ReleaseEntry("new", None, source, "broken")))
        assert found.hint == f"`ovs-hotswap release remove new`, then `ovs-hotswap release add new {option}`"


GOOD = ReleaseEntry(HOST, Release(HOST, None, "3.1.0", "22.11"), "installed package")
BROKEN = ReleaseEntry("trixie", None, "Debian trixie", "its ovs-vswitchd is missing")
FACTS: list[tuple[Kind, Callable[[], Iterable[Found]]]] = [
    (disk.FULL, lambda: disk.judge([volume(free=0)])),
    (disk.LOW, lambda: disk.judge([volume(free=100 << 20)])),
    (disk.NO_INODES, lambda: disk.judge([volume(inodes=0)])),
    (disk.READ_ONLY, lambda: disk.judge([volume(read_only=True)])),
    (disk.LONG_LOG, lambda: disk.judge([], [disk.Log(Path("/run/x/a/ovs-vswitchd.log"), 1 << 30)])),
    (releases.NEEDED, lambda: stock(GOOD, needed={"trixie": releases.AT_BOOT})),
    (releases.ABSENT, lambda: stock(GOOD, BROKEN, needed={"trixie": releases.TO_GO_BACK})),
    (releases.UNUSABLE, lambda: stock(GOOD, BROKEN)),
    (releases.NONE, lambda: stock(ReleaseEntry(HOST, None, "installed package", "not installed"))),
    (releases.LEFT, lambda: stock(GOOD, left=("/var/lib/ovs-hotswap/releases/.build-x",))),
    (running.HANGS, lambda: [running.hangs(SwitchError("instance a: its ovs-vswitchd is stopped"))]),
    (running.LEFT_TRACE, lambda: running.left_traces(["bridge br0 has the copies of a trace"])),
    (versions.PROGRAM, lambda: versions.judge({"broker": 7})),
    (units.NOT_COMPARED, lambda: units.judge(units.Units(
        True, (units.UnitFile(units.NETNS, "/etc/x", "[Service]"),), False, Path("/var/lib/ovs-hotswap"), True))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "judge"), FACTS, ids=[f"{kind.section}-{kind.check}-{kind.severity}" for kind, _ in FACTS]
)
def test_a_fault_in_the_facts_is_found(kind: Kind, judge: Callable[[], Iterable[Found]]) -> None:
    found = [each for each in judge() if key(each) == key(kind)]
    assert len(found) == 1
    assert named(found[0].hint)


def test_the_same_facts_without_the_fault_have_no_finding() -> None:
    assert bad([*disk.judge([volume()]), *stock(GOOD), *versions.judge({})]) == []


@pytest.mark.parametrize("section", Section)
def test_what_cannot_be_seen_is_unknown(section: Section) -> None:
    def fails() -> Iterator[Found]:
        raise SwitchError("it does not answer", hint="`ovs-hotswap status`")
        yield

    (found,) = Runner(FakeSystem()).run(Part("part", (section,), fails))
    assert key(found) == key(runner.NOT_SEEN[section])
    assert (found.text, found.hint) == ("part: it does not answer", "`ovs-hotswap status`")


# ----------------------------------------------------------------------------- findings that other commands report, too


def vm(**changes: object) -> VmFacts:
    values: dict[str, object] = {
        "name": "vm1",
        "connected": True,
        "acked": 0,
        "regions": 2,
        "queue_pairs": 1,
        **changes,
    }
    return VmFacts(**values)  # type: ignore[arg-type]


OTHER = SwitchProcess(7, "/run/x", "ovsh-b", True)
DEMAND, WANTED = Demand((1,), (1500,), 1), Reservation(66, 16_384)


def steering(link: Link | None = None, *, bpf: bool = False, rules: list[Rule] | None = None) -> list[Finding]:
    control = FakeTrafficControl()
    if link is not None:
        control.links["pf0"] = link
    control.bpf = {2: ("an XDP program",)} if bpf else {}
    control.installed = {2: rules or []}
    found: TcUplink = uplink(control)
    return found.check()


def sent_to_the_other() -> list[Finding]:
    fabric = Fabric()
    fabric.uplink().steer(Side.A)
    fabric.peers[0].knows = MACS[Side.B]
    fabric.sleep(1.0)
    return fabric.uplink().check()


HEAD = Link(2, True, "52:54:00:1f:00:01")
VF, OWN_MAC = Vf(HEAD.mac, 0, False, "auto", True), "02:00:00:00:00:99"
LEFT = VfChange(device="eno1", number=1, address=None, name="trust", before=False, after=True)


def vf(found: Vf | None = VF, **changes: Any) -> Iterable[Finding]:
    other = VfFacts(Side.A, 0, Place("eno1", 0), VF, runs=True)
    return judge([other, VfFacts(Side.B, 0, Place("eno1", 1), found, **changes)], {Side.B: HEAD.mac}, (Side.B,))


ADOPTED_PLANTS: dict[Key, Callable[[], Iterable[Finding]]] = {
    (Section.CPU, "PMD cores", Severity.ERROR): lambda: checks.cpu_set({0, 1}, {Side.A: [0], Side.B: [9]}),
    (Section.CPU, "PMD cores", Severity.WARNING): lambda: checks.cpu_set({0, 1}, {Side.A: [0], Side.B: [0]}),
    (Section.MEMORY, "huge pages", Severity.ERROR): lambda: memory_checks.huge_pages([HugePages(2048, 0, 9)], 66, [0]),
    (Section.MEMORY, "huge pages", Severity.WARNING): lambda: memory_checks.huge_pages(
        [HugePages(2048, 99, 99), HugePages(2048, 0, 0, 1)], 66, [0]),
    (Section.MEMORY, "packet pool", Severity.ERROR): lambda: [
        *memory_checks.allowed(Side.A, DEMAND, WANTED, 64),
        *memory_checks.in_use(Side.A, [PacketPool(0, 65_536, 20_000, 3008)], WANTED)],
    (Section.DEVICES, "VF link", Severity.ERROR): lambda: vf(replace(VF, link_state="disable")),
    (Section.DEVICES, "spoof checking", Severity.WARNING): lambda: vf(replace(VF, mac=OWN_MAC, spoof_check=True)),
    (Section.DEVICES, "trust", Severity.WARNING): lambda: vf(replace(VF, mac=OWN_MAC, trust=False)),
    (Section.DEVICES, "VLAN", Severity.ERROR): lambda: vf(replace(VF, vlan=100)),
    (Section.DEVICES, "VF holder", Severity.ERROR): lambda: vf(holders=(Holder(77, "ovs-vswitchd"),)),
    (Section.DEVICES, "VF number", Severity.ERROR): lambda: vf(configured=3),
    (Section.DEVICES, "VF settings", Severity.WARNING): lambda: [
        *vf(runs=True, wanted={"trust": False}), *vf(left=(LEFT,))],
    (Section.DEVICES, "VF settings", Severity.UNKNOWN): lambda: vf(None),
    (Section.UNITS, "other switches", Severity.ERROR): lambda: [
        *checks.conflicting_processes([OTHER], [], "/run/y", "ovsh-b"),
        *checks.conflicting_processes([OTHER], [], "/run/x", "z")],
    (Section.UNITS, "other switches", Severity.WARNING): lambda: checks.conflicting_processes(
        [OTHER], [], "/run/y", "z"),
    (Section.UNITS, "descriptor limit", Severity.ERROR): lambda: checks.descriptors(64, [(2, 1)]),
    (Section.OVERLAY, "mtu", Severity.ERROR): lambda: path_mtu.vms(_intent(9000)),
    (Section.OVERLAY, "mtu", Severity.WARNING): lambda: [
        *path_mtu.vms(_intent(None)), *path_mtu._other(_intent(1450), Side.B, {"vm1": 1500})],
    (Section.BROKER, "broker", Severity.ERROR): lambda: checks.broker("0.1", "0.2", supervised=True),
    (Section.BROKER, "broker", Severity.WARNING): lambda: checks.broker("0.2", "0.2", supervised=False),
    (Section.INSTANCES, "active", Severity.ERROR): lambda: [collect.not_running(Side.A)],
    (Section.INSTANCES, "database", Severity.ERROR): lambda: checks.database(Side.A, answers=False),
    (Section.INSTANCES, "priority", Severity.WARNING): lambda: checks.priority(Side.A, {7: ["pmd"]}),
    (Section.INSTANCES, "datapath", Severity.ERROR): lambda: checks.ports_polled({"uplink": "no memory"}, ["vm1"]),
    (Section.INSTANCES, "datapath", Severity.WARNING): lambda: checks.ports_polled({"vm1": "no memory"}, ["vm1"]),
    (Section.INSTANCES, "flows", Severity.ERROR): lambda: checks.window_flows(["table=0 actions=NORMAL: learns; "]),
    (Section.INSTANCES, "flow tables", Severity.ERROR): lambda: checks.tables(Side.A, ["-table=0"]),
    (Section.UPLINK, "uplink", Severity.ERROR): lambda: [
        *steering(Link(2, False, HEAD.mac)), *steering(Link(2, True, "02:00:00:00:00:99"))],
    (Section.UPLINK, "uplink", Severity.WARNING): lambda: steering(rules=[Rule(1, 8, 1, (), None)]),
    (Section.UPLINK, "uplink programs", Severity.WARNING): lambda: steering(bpf=True),
    (Section.UPLINK, "next hops", Severity.ERROR): lambda: next_hops.judge(_intent(1450, None), {}, NextHops()),
    (Section.UPLINK, "next hops", Severity.WARNING): lambda: next_hops.judge(
        _intent(1450, None), {}, NextHops({}, {"172.31.0.2": "52:54:00:1f:00:02"})),
    (Section.UPLINK, "uplink peers", Severity.WARNING): sent_to_the_other,
    (Section.UPLINK, "mtu", Severity.ERROR): lambda: steering(Link(2, True, HEAD.mac, 1400)),
    (Section.VMS, "VMs", Severity.ERROR): lambda: checks.known_vms(["vm1"], ["vm2"]),
    (Section.VMS, "QEMU", Severity.WARNING): lambda: checks.vms_connected([vm(connected=False)], "/run/{}".format),
    (Section.VMS, "memory regions", Severity.ERROR): lambda: checks.memory_regions([vm(regions=8)]),
    (Section.VMS, "queue pairs", Severity.WARNING): lambda: checks.queue_pairs([vm(queue_pairs=4)], {"vm1": 1}),
    (Section.VMS, "capture rings", Severity.WARNING): lambda: checks.uncaught_rings([vm(uncaught=1)]),
    (Section.VMS, "quarantine", Severity.ERROR): lambda: [
        collect.quarantined(vm_status(quarantine=ON_TRIAL), "VM vm1")],
    (Section.VMS, "quarantine", Severity.WARNING): lambda: [
        collect.quarantined(vm_status(quarantine="by order"), "VM vm1")],
    (Section.VMS, "owner", Severity.ERROR): lambda: [collect.astray(vm_status(owner=Side.B), Side.A, Severity.ERROR)],
    (Section.VMS, "features", Severity.ERROR): lambda: [
        collect.not_offered("VM vm1", ["NET_CSUM"], Side.B, "`ovs-hotswap upgrade --release x`", Severity.ERROR)],
    (Section.VMS, "rings", Severity.WARNING): lambda: checks.rings_before({}, ["vm1"]),
}  # fmt: skip


@pytest.mark.parametrize("place", ADOPTED_PLANTS, ids=lambda place: "-".join(map(str, place)))
def test_a_planted_fault_of_another_command_is_found_in_its_section(place: Key) -> None:
    found = bad(list(adopt(place[0], ADOPTED_PLANTS[place]())))
    assert {key(each) for each in found} == {place}
    assert all(named(each.hint) for each in found), [each.hint for each in found]


# ------------------------------------------------------------------------------------------- nothing is left unplanted


def test_every_finding_of_doctor_is_planted() -> None:
    planted = {key(kind) for kind, _ in PLANTED} | {key(kind) for kind, _ in FACTS}
    planted |= {key(kind) for kind in runner.NOT_SEEN.values()}
    assert {name: key(kind) for name, kind in catalogue.own().items() if key(kind) not in planted} == {}


@pytest.mark.parametrize("section", Section)
def test_the_page_has_the_name_of_every_finding(section: Section) -> None:
    page = PAGE.read_text().partition("\n## doctor\n")[2].partition("\n## ")[0]
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{section}` | ")]
    kinds = [kind for kind in (*catalogue.own().values(), *ADOPTED) if kind.section is section]
    assert re.findall("`([^`]+)`", row)[1:] == sorted({kind.check for kind in kinds} - {"look"})


def test_every_adopted_finding_is_planted() -> None:
    assert {key(kind) for kind in ADOPTED} == set(ADOPTED_PLANTS)


def test_findings_are_made_by_kinds_alone() -> None:
    """Otherwise the list of them would not be complete."""
    made = {}
    for path in Path(catalogue.__file__).parent.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = [node.func.id for node in calls if isinstance(node.func, ast.Name)]
        if path.name != "report.py" and {"Found", "Finding"} & set(names):
            made[path.name] = names
    assert made == {}


def _intent(mtu: int | None, mac: str | None = "52:54:00:1f:00:02") -> Intent:
    """A VM that has a remote MAC to send to, behind a neighbour with ``mac``."""
    return Intent.model_validate({
        "vtep": {"address": "172.31.0.1/24", "mac": "52:54:00:1f:00:01"},
        "vm": [{"name": "vm1", "ofport": 10, "mac": "52:54:00:00:00:01", "vni": 1, **({"mtu": mtu} if mtu else {})}],
        "remote": [{"vni": 1, "mac": "52:54:00:00:01:01", "vtep": "172.31.0.2"}],
        "neighbour": [{"address": "172.31.0.2", "mac": mac}],
    })  # fmt: skip


# The functions whose findings doctor adopts.
SOURCES: list[Callable[..., object]] = [
    checks.cpu_set, checks.conflicting_processes, checks.descriptors, checks.broker,
    checks.database, checks.priority, checks.ports_polled, checks.window_flows, checks.tables, checks.known_vms,
    checks.vms_connected, checks.memory_regions, checks.queue_pairs, checks.uncaught_rings, checks.rings_before,
    memory_checks.huge_pages, memory_checks._on_node, memory_checks.allowed, memory_checks.in_use,
    collect.not_running, collect.quarantined, collect.astray, collect.not_offered, TcUplink.check,
    TcUplink._check_place, path_mtu.vms, path_mtu.short_device, path_mtu._drivers, path_mtu._other,
    next_hops.judge,
]  # fmt: skip


def produced(function: Callable[..., object]) -> set[tuple[str, Severity]]:
    """The names and severities of the findings that the code of a function makes, except those that are ok."""
    assert isinstance(function, FunctionType)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    local = {node.targets[0].id: node.value for node in ast.walk(tree)
             if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}  # fmt: skip
    found: set[tuple[str, Severity]] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        words = {each.id for each in ast.walk(node.func) if isinstance(each, ast.Name)}
        severities = {Severity[word[1:].upper()] for word in words & {"_warning", "_error"}}
        if "judged" in words:
            severities = {Severity.WARNING, Severity.ERROR}
        if words == {"Finding"}:
            inside = {each.attr for each in ast.walk(node.args[1]) if isinstance(each, ast.Attribute)}
            severities = {Severity[name] for name in inside} or _anywhere(tree)
        name = node.args[0]
        value = local.get(name.id, name) if isinstance(name, ast.Name) else name
        text = value.value if isinstance(value, ast.Constant) else function.__globals__.get(ast.unparse(name))
        found |= {(str(text), each) for each in severities - {Severity.OK}}
    return found


def _anywhere(tree: ast.AST) -> set[Severity]:
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {Severity[name] for name in names & set(Severity.__members__)} or {Severity.ERROR}


@pytest.mark.parametrize("function", SOURCES, ids=lambda function: function.__qualname__)
def test_every_finding_of_an_adopted_check_has_a_kind(function: Callable[..., object]) -> None:
    known = {(kind.check, kind.severity) for kind in ADOPTED}
    assert produced(function) <= known
    assert produced(function) or function in (collect.astray, collect.not_offered)


def test_the_test_sees_what_a_check_makes() -> None:
    assert produced(checks.broker) == {("broker", Severity.ERROR), ("broker", Severity.WARNING)}
    assert produced(checks.ports_polled) == {("datapath", Severity.ERROR), ("datapath", Severity.WARNING)}
    assert produced(path_mtu.short_device) == {("mtu", Severity.ERROR)}


def test_every_problem_of_status_has_a_kind() -> None:
    calls = [node for node in ast.walk(ast.parse(OVERVIEW.read_text()))
             if isinstance(node, ast.Call) and ast.unparse(node.func) == "Problem"]  # fmt: skip
    about = [call.args[0].values[0] if isinstance(call.args[0], ast.JoinedStr) else call.args[0] for call in calls]
    names = {str(each.value).split()[0] for each in about if isinstance(each, ast.Constant)}
    assert names - {"VM"} == running.PROBLEMS.keys()
    assert len(about) == len(calls)


def test_every_field_of_status_that_may_be_unknown_has_a_kind() -> None:
    tree = ast.parse(OVERVIEW.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "tried"]
    texts = [next(each.value for each in ast.walk(call.args[0]) if isinstance(each, ast.Constant)) for call in calls]
    fields = {str(text).partition(".")[0] for text in texts}
    assert fields - {"broker"} == running.UNSEEN.keys()


@pytest.mark.parametrize("rule", units.CONTRADICTIONS, ids=lambda rule: f"{rule.unit}-{rule.key}")
def test_no_shipped_unit_has_a_setting_that_a_drop_in_may_not_have(rule: units.Contradiction) -> None:
    values = dict(units.settings((SHIPPED / rule.unit).read_text()))
    assert rule.key not in values or not rule.wrong.match(values[rule.key]), values[rule.key]


WRONG = {"Restart": "on-abort", "FileDescriptorStoreMax": "512", "LimitNOFILE": "1024", "LimitMEMLOCK": "64K",
         "OOMPolicy": "kill", "RuntimeDirectoryPreserve": "no", "ProtectSystem": "full"}  # fmt: skip


@pytest.mark.parametrize("rule", units.CONTRADICTIONS, ids=lambda rule: f"{rule.unit}-{rule.key}")
def test_a_drop_in_that_contradicts_a_unit_is_found_with_the_reason(bed: Bed, rule: units.Contradiction) -> None:
    value = "no" if (rule.unit, rule.key) == (units.WATCH, "Restart") else WRONG.get(rule.key, "yes")
    drop_in(rule.unit, f"# {rule.key}=\n{rule.key} = {value}")(bed)
    (found,) = bad(bed.examine(Section.UNITS))
    assert found.text.endswith(f"/own.conf sets {rule.key}={value}: {rule.why}")


PLACE = "/run/ovs-hotswap/vm"


def place_of_qemus(bed: Bed) -> Found:
    (found,) = [each for each in bed.examine(Section.ACCESS) if each.check == "QEMU's sockets"]
    return found


def test_a_directory_is_not_closed_to_the_qemus_that_make_their_sockets_in_it(bed: Bed) -> None:
    """If it is root's, QEMU's user has no other right there than everybody's, and the next VM could not be started."""
    bed.write("etc/libvirt/qemu.conf", 'user = "+64055"')
    bed.root.path(PLACE).chmod(0o1777)
    found = place_of_qemus(bed)
    assert (found.safe, found.hint) == (False, f"install -d -m 755 -o 64055 {PLACE}")
    bed.give_place_to_qemu(0o777)
    found = place_of_qemus(bed)
    assert (found.safe, found.hint) == (True, f"chmod 755 {PLACE}")
    bed.give_place_to_qemu(0o755)
    assert place_of_qemus(bed).severity is Severity.OK


def test_the_directory_of_qemus_is_given_to_their_user_at_each_boot(bed: Bed) -> None:
    bed.root.path("run/systemd/system").mkdir(parents=True)
    bed.write("etc/libvirt/qemu.conf", "# user =")
    bed.write("etc/passwd", f"libvirt-qemu:x:{QEMU}:108::/var/lib/libvirt:/x")
    command = (f"echo 'd {PLACE} 0755 libvirt-qemu - -' > /etc/tmpfiles.d/ovs-hotswap.conf "
               "&& systemd-tmpfiles --create ovs-hotswap.conf")  # fmt: skip
    assert place_of_qemus(bed).hint == command
    bed.remove(PLACE)
    assert place_of_qemus(bed).hint == command
    bed.write("etc/libvirt/qemu.conf", 'user = "root"')
    bed.write("etc/passwd", "root:x:0:0::/root:/x")
    bed.directory_at(PLACE)
    assert place_of_qemus(bed).severity is Severity.OK, "root's QEMUs may write everywhere"


def test_a_group_of_a_directory_service_is_a_group(bed: Bed) -> None:
    bed.configure('# group = "libvirt"', 'group = "operators"')
    assert [each.check for each in bad(bed.examine(Section.ACCESS))] == ["group"]
    bed.directory_service["operators"] = 70_000, ("jane",)
    assert bad(bed.examine(Section.ACCESS)) == []


def test_the_owner_of_a_link_is_changed_and_not_that_of_its_target() -> None:
    assert access._own("/srv/a b belongs to user 1000") == "chown -h root: '/srv/a b' && chmod go-w '/srv/a b'"
    assert access._own("/srv can be written by group 1000") == "chown -h root: /srv && chmod go-w /srv"


def hint_of(bed: Bed, kind: Kind) -> str:
    (found,) = [each for each in bad(bed.examine(kind.section)) if key(each) == key(kind)]
    return found.hint or ""


def test_the_command_against_a_drop_in_removes_the_setting_however_it_is_written(bed: Bed) -> None:
    drop_in("ovs-hotswap-watch.service", "Nice=1\n  Restart = no\nRestartSec=1")(bed)
    (found,) = bad(bed.examine(Section.UNITS))
    script = re.search("'(.*)'", found.hint or "")
    assert script is not None
    path = bed.root.path("etc/systemd/system/ovs-hotswap-watch.service.d/own.conf")
    System().run(["sed", "-i", script[1], str(path)])
    assert path.read_text() == "[Service]\nNice=1\nRestartSec=1\n"


def test_a_release_that_is_being_added_is_not_taken_for_a_leftover(bed: Bed) -> None:
    directory = bed.loaded().releases_dir
    (directory / ".build-new").mkdir(parents=True)
    machine = Root()  # which knows the locks
    with System().lock(directory / LOCK, "adding or removing a release"):
        assert releases.read(machine, bed.loaded(), [], None).left == ()
    assert releases.read(machine, bed.loaded(), [], None).left == (f"{directory}/.build-new",)


def test_a_host_that_runs_other_releases_needs_no_package(bed: Bed) -> None:
    usable = ReleaseEntry("trixie", Release("trixie", "/srv", "3.5.0", "24.11"), "Debian trixie")
    absent = ReleaseEntry(HOST, None, "installed package", f"release host: {VSWITCHD} is missing")
    assert bad(stock(absent, usable)) == []
    (found,) = bad(stock(replace(absent, error="release host: DPDK's drivers net-vhost are missing"), usable))
    assert found.check == "usable"
    (found,) = bad(stock(absent))
    assert found.severity is Severity.ERROR


@pytest.mark.parametrize("section", [Section.INSTANCES, Section.VMS])
def test_what_an_upgrade_is_just_changing_is_no_fault(bed: Bed, section: Section) -> None:
    """Both sides own VMs then, and one of them is not the active one."""
    (bed.directory / "run/active").write_text("a\n")
    with Journals(bed.loaded().state_dir, System()).begin("upgrade", StepNames(("move",))):
        found = [each for each in bad(bed.examine(section)) if "an upgrade runs, or was interrupted" in each.text]
    assert [(each.section, each.severity) for each in found] == [(section, Severity.UNKNOWN)]


def test_a_log_that_goes_while_it_is_looked_at_is_no_fault(tmp_path: Path) -> None:
    assert list(disk._sizes([tmp_path / "gone.log"])) == []


def test_a_log_of_a_running_instance_is_rotated_and_not_cut(tmp_path: Path) -> None:
    hints = [each.hint for each in disk.judge([], [disk.Log(Path(f"/run/x{name}"), 1 << 30)
                                                   for name in ("/a/ovs-vswitchd.log", "/broker.log")])]  # fmt: skip
    assert hints == ["`ovs-hotswap instance rotate-logs`; if it stays: `truncate -s 0 /run/x/a/ovs-vswitchd.log`",
                     "truncate -s 0 /run/x/broker.log"]  # fmt: skip


def test_no_command_boots_a_host_under_its_vms(bed: Bed) -> None:
    """A command is typed as it is printed. What is in one pair of backquotes is one."""
    bed.write(f"{CPU}/isolated", "2")
    bed.remove("sys/kernel/iommu_groups")
    bed.write("sys/firmware/acpi/tables/DMAR", "")
    bed.write("etc/default/grub", 'GRUB_CMDLINE_LINUX="iommu=pt"')
    bed.write("boot/vmlinuz-6.1.0-28-amd64", "")
    bed.directory_at("lib/modules/6.1.0-28-amd64")
    found = [each for each in bad(bed.examine()) if "reboot" in (each.hint or "")]
    assert {each.check for each in found} == {"isolation", "IOMMU", "reboot", "command line"}
    for each in found:
        assert re.search(r"when no VM runs here: `systemctl reboot`$", each.hint or ""), each.hint


def test_the_iommu_is_turned_on_where_it_is_off(bed: Bed) -> None:
    bed.remove("sys/kernel/iommu_groups")
    assert hint_of(bed, devices.NO_IOMMU).startswith("turn VT-d or AMD-Vi on in the firmware's setup")
    table = bed.write("sys/firmware/acpi/tables/DMAR", "")
    assert "intel_iommu=on iommu=pt $GRUB_CMDLINE_LINUX" in hint_of(bed, devices.NO_IOMMU)
    table.rename(table.with_name("IVRS"))
    assert hint_of(bed, devices.NO_IOMMU).startswith("take amd_iommu=off and iommu=off from")


def test_what_is_put_on_the_command_line_is_what_then_waits_for_a_boot(bed: Bed) -> None:
    bed.write(f"{CPU}/isolated", "")
    bed.write("etc/default/grub", "GRUB_CMDLINE_LINUX='quiet'\nGRUB_CMDLINE_LINUX_DEFAULT=isolcpus=1")
    bed.write("etc/default/grub.d/90-cloud.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="splash"')
    assert boot.configured(bed.root) == {"quiet", "splash"}, "the later file counts"
    found = re.search("echo '(.*)' > (/etc/default/grub.d/ovs-hotswap-cores.cfg)", hint_of(bed, cpu.ISOLATION))
    assert found is not None
    bed.write(found[2], found[1])
    assert boot.configured(bed.root) == {"isolcpus=managed_irq,domain,2-3", "nohz_full=2-3", "rcu_nocbs=2-3", "quiet",
                                         "splash"}  # fmt: skip
    bed.write("proc/cmdline", "quiet splash")
    (pending,) = [each for each in bad(bed.examine(Section.KERNEL)) if key(each) == key(kernel.PENDING)]
    assert pending.text.startswith("isolcpus=managed_irq,domain,2-3 nohz_full=2-3 rcu_nocbs=2-3: configured, and not")


def test_pages_of_the_size_that_sysctl_is_not_about_are_left_to_the_command_line(bed: Bed) -> None:
    """vm.nr_hugepages=1024 would be a terabyte of pages of 1 GiB."""
    bed.remove("etc/sysctl.d/80-huge-pages.conf")
    assert hint_of(bed, memory.AT_BOOT) == "echo vm.nr_hugepages=1024 > /etc/sysctl.d/80-ovs-hotswap.conf"
    bed.write("proc/meminfo", "MemTotal: 65536000 kB\nMemAvailable: 32768000 kB\nHugepagesize:    1048576 kB")
    assert "hugepagesz=2M hugepages=1024 $GRUB_CMDLINE_LINUX" in hint_of(bed, memory.AT_BOOT)


def test_pages_that_are_not_mounted_do_not_count(bed: Bed) -> None:
    """On a host with 1 GiB as the default for VMs, systemd mounts these alone."""
    bed.write("proc/meminfo", "MemTotal: 65536000 kB\nMemAvailable: 32768000 kB\nHugepagesize:    1048576 kB")
    bed.write("proc/mounts", "hugetlbfs /dev/hugepages hugetlbfs rw,relatime 0 0")
    (mount,) = [each for each in bad(bed.examine(Section.MEMORY)) if each.check == "mount"]
    place = "/dev/hugepages-2048K"
    assert mount.hint == f"mkdir -p {place} && mount -t hugetlbfs -o pagesize=2048K nodev {place}"
    for place in (f"{NODE}/node0/hugepages", "sys/kernel/mm/hugepages"):
        bed.pages(place, 1, 8, 1 << 20)
    (found,) = [each for each in bed.examine(Section.MEMORY) if each.check == "huge pages"]
    assert found.text == "NUMA node 0: 1 of 1048576 KiB free, 132 MiB needed", "the small ones are there, and useless"
    bed.pages(f"{NODE}/node0/hugepages", 0, 8, 1 << 20)
    (found,) = [each for each in bed.examine(Section.MEMORY) if each.check == "huge pages"]
    assert found.severity is Severity.ERROR


def test_vfs_that_a_boot_has_taken_away_are_made_again(bed: Bed) -> None:
    bed.remove(f"{PCI}/{VF_B}")
    assert hint_of(bed, devices.ABSENT) == "lspci -D -nn | grep -i ethernet"
    bed.write(f"{PCI}/{PF}/sriov_totalvfs", "64")
    bed.write(f"{PCI}/{PF}/sriov_numvfs", "0")
    assert hint_of(bed, devices.ABSENT).startswith("`echo 2 > /sys/class/net/eno1/device/sriov_numvfs` makes VFs")
    bed.write(f"{PCI}/{PF}/sriov_numvfs", "2")
    assert hint_of(bed, devices.ABSENT) == "lspci -D -nn | grep -i ethernet"


def test_a_device_that_the_host_may_need_is_not_given_away_in_passing(bed: Bed) -> None:
    bed.link(f"{PCI}/0000:04:00.0/driver", "/sys/bus/pci/drivers/nvme")
    bed.write(f"{PCI}/{VF_A}/iommu_group/devices/0000:04:00.0", "")
    assert "if the host does not need 0000:04:00.0: `dpdk-devbind" in hint_of(bed, devices.GROUP)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (lambda bed: bed.vfs.__setitem__(1, None), "VF settings"),
        (lambda bed: bed.vfs.__setitem__(1, replace(VF, mac=OWN_MAC, spoof_check=True)), "spoof checking"),
        (lambda bed: bed.vfs.__setitem__(1, replace(VF, vlan=100)), "VLAN"),
        (lambda bed: (bed.write(f"{PCI}/{VF_B}/vfio-dev/vfio1/dev", "240:1"), bed.write("proc/77/comm", "dpdk-testpmd"),
                      bed.link("proc/77/fd/9", "/dev/vfio/devices/vfio1")), "VF holder"),
        (lambda bed: (bed.configure("# vf_a = 0", "vf_a = 7"), bed.configure("# vf_b = 1", "vf_b = 1")), "VF number"),
        (lambda bed: bed.write("sys/kernel/iommu_groups/1/name", "vfio-noiommu"), "IOMMU"),
    ],
)  # fmt: skip
def test_a_fault_of_a_vf_is_found_on_the_host(bed: Bed, plant: Plant, check: str) -> None:
    plant(bed)
    (found,) = bad(bed.examine(Section.DEVICES))
    assert found.check == check


def test_a_device_that_the_start_of_an_instance_binds_has_no_finding(bed: Bed) -> None:
    bind(VF_A, "iavf")(bed)
    bed.configure("# bind = false", "bind = true")
    assert bad(bed.examine(Section.DEVICES)) == []
    with_units(no_iommu)(bed)
    assert "device rights" in [each.check for each in bad(bed.examine(Section.UNITS))], (
        "it will have it without an IOMMU"
    )


@pytest.mark.parametrize("writes", [False, True])
def test_a_unit_that_binds_vfs_writes_to_sys(bed: Bed, writes: bool) -> None:
    bed.install_units()
    bed.configure("# bind = false", "bind = true")
    bed.systemd["ProtectKernelTunables"] = "no" if writes else "yes"
    found = [each for each in bad(bed.examine(Section.UNITS)) if each.check == "device rights"]
    assert [each.item for each in found] == ([] if writes else ["ovs-hotswap-watch.service",
                                                               "ovs-hotswap-restore.service"])  # fmt: skip


def test_the_drop_in_for_devices_without_an_iommu_is_one_that_is_looked_for(bed: Bed) -> None:
    with_units(no_iommu)(bed)
    script = re.search(r"printf '(.*)' >", hint_of(bed, units.RIGHTS))
    assert script is not None
    lines = script[1].split("\\n")
    assert "CapabilityBoundingSet=CAP_SYS_RAWIO" in lines
    bed.systemd["CapabilityBoundingSet"] += " cap_sys_rawio"
    assert bad(bed.examine(Section.UNITS)) == []


def test_the_vfs_of_the_bed_are_those_of_its_nic(bed: Bed) -> None:
    assert bed.root.names(f"{PCI}/{PF}") == ["net", "virtfn0", "virtfn1"]
