"""The care for VFs: what is set, recorded, refused, and put back."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from ovs_hotswap.config import Config
from ovs_hotswap.errors import HostError, HotswapError, SwitchError, UplinkError
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.uplink.pci import Binding, Holder, Place
from ovs_hotswap.uplink.vf import Counters, RtnlVfs, Vf, Vfs, decoded, shown
from ovs_hotswap.uplink.vf_care import VfCare
from ovs_hotswap.uplink.vf_checks import HOLDER, LINK, NUMBER, SETTINGS, SPOOF, TRUST, VLAN, VfFacts, judge, look
from tests.support.fake_vfs import FOUND, FakeBus, FakeVfs
from tests.unit.fake_system import FakeSystem
from tests.unit.test_instance import HOST, FakeHost

PF, A, B = "0000:03:00.0", "0000:03:02.0", "0000:03:02.1"
WANTED = {"trust": True, "spoof_check": False, "vlan": 100, "link_state": "enable", "mac_b": "02:00:00:00:00:0B"}
SET = Vf("02:00:00:00:00:0b", 100, False, "enable", True)


class Bed:
    """A host with a PF and two VFs, of which instance b has the second one."""

    def __init__(self, directory: Path, wanted: dict[str, Any] | None = None, **uplink: Any) -> None:
        self.directory, self.system = directory, FakeSystem()
        self.bus = FakeBus(directory)
        for number, address in enumerate((A, B)):
            self.bus.add_vf(PF, "eno1", number, address)
        self.vfs = FakeVfs({"eno1": [FOUND, FOUND]})
        self.boot = directory / "boot_id"
        self.boot.write_text("one\n")
        self.config = Config.model_validate({
            "overlay": str(directory / "overlay.toml"), "run_dir": "/run/x", "state_dir": str(directory / "state"),
            "instances": {side: {"pmd_cores": [1], "uplink_devargs": vf} for side, vf in (("a", A), ("b", B))},
            "uplink": {"vfs": WANTED if wanted is None else wanted, **uplink},
        })  # fmt: skip

    @property
    def care(self) -> VfCare:
        """Another process's each time: it remembers nothing."""
        return VfCare(self.config, Side.B, self.system, vfs=self.vfs, bus=self.bus, boot_id=self.boot)

    @property
    def vf(self) -> Vf | None:
        return self.vfs.read("eno1", 1)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def test_what_is_wanted_is_set_and_put_back_as_it_was_found(bed: Bed) -> None:
    bed.care.take()
    assert bed.vf == SET
    assert [name for _, _, name, _ in bed.vfs.sets] == ["mac", "vlan", "spoof_check", "link_state", "trust"]
    assert bed.care.give_back() == []
    assert bed.vf == FOUND
    assert bed.vfs.read("eno1", 0) == FOUND, "the other side's VF"
    assert {number for _, number, _, _ in bed.vfs.sets} == {1}
    assert list((bed.directory / "state").iterdir()) == []
    count = len(bed.vfs.sets)
    assert bed.care.give_back() == []
    assert len(bed.vfs.sets) == count


def test_a_repeated_take_sets_nothing_and_the_first_values_count(bed: Bed) -> None:
    bed.care.take()
    count = len(bed.vfs.sets)
    bed.care.take()
    assert len(bed.vfs.sets) == count
    again = Bed(bed.directory / "again", {"vlan": 7})
    again.vfs, again.boot, again.bus = bed.vfs, bed.boot, bed.bus
    care = VfCare(again.config, Side.B, bed.system, vfs=bed.vfs, bus=bed.bus, boot_id=bed.boot)
    care.path = bed.care.path
    care.take()
    assert replace(SET, vlan=7) == bed.vf
    care.give_back()
    assert bed.vf == FOUND


@pytest.mark.parametrize("wanted", [{}, {"mac_a": "02:00:00:00:00:0a"}])
def test_without_a_wish_nothing_is_looked_at(tmp_path: Path, wanted: dict[str, Any]) -> None:
    bed = Bed(tmp_path, wanted)
    bed.bus.hold(B, 77)
    bed.care.take()
    assert bed.vfs.sets == []
    assert not bed.care.path.exists()


def test_the_record_is_on_the_disk_before_the_vf_is_changed(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise HostError("no space")

    monkeypatch.setattr(bed.system, "write_atomic", full)
    with pytest.raises(HostError):
        bed.care.take()
    assert bed.vfs.sets == []


def test_a_process_that_is_killed_while_it_sets_leaves_what_the_next_one_puts_back(bed: Bed) -> None:
    bed.care.take()
    record = json.loads(bed.care.path.read_text())
    assert stat.S_ISREG(bed.care.path.stat().st_mode)
    bed.vfs.pfs["eno1"][1] = replace(SET, trust=False)  # it had recorded trust and not set it yet
    assert [each["name"] for each in record["changes"]][-1] == "trust"
    assert bed.care.give_back() == []
    assert bed.vf == FOUND


@pytest.mark.parametrize("name", ["mac", "vlan", "spoof_check", "link_state", "trust"])
@pytest.mark.parametrize("how", ["fails", "deaf"])
def test_a_failure_in_each_setting_puts_all_back_at_once(bed: Bed, name: str, how: str) -> None:
    value = getattr(SET, name)
    if how == "fails":
        bed.vfs.fails.add((name, value))
    else:
        bed.vfs.deaf.add(name)
    with pytest.raises(UplinkError, match=name) as caught:
        bed.care.take()
    assert caught.value.hint
    assert not hasattr(caught.value, "__notes__")
    assert bed.vf == FOUND
    assert not bed.care.path.exists()


def test_what_cannot_be_put_back_at_once_is_told_and_tried_again(bed: Bed) -> None:
    bed.vfs.fails |= {("trust", True), ("vlan", 0)}
    with pytest.raises(UplinkError) as caught:
        bed.care.take()
    (note,) = caught.value.__notes__
    assert "vlan cannot be set" in note
    assert replace(FOUND, vlan=100) == bed.vf
    bed.vfs.fails.clear()
    assert bed.care.give_back() == []
    assert bed.vf == FOUND


def test_a_driver_that_is_busy_with_a_reset_is_waited_for(bed: Bed) -> None:
    bed.vfs.busy = 10
    bed.care.take()
    assert bed.vf == SET
    bed.vfs.busy = 10**6
    bed.care.give_back()
    with pytest.raises(UplinkError, match="in reset"):
        bed.care.take()


def test_what_something_else_has_set_since_stays(bed: Bed) -> None:
    bed.care.take()
    bed.vfs.pfs["eno1"][1] = replace(SET, vlan=5)
    (complaint,) = bed.care.give_back()
    assert complaint.startswith("VF 1 of eno1: vlan stays 5, to which something else has set it")
    assert replace(FOUND, vlan=5) == bed.vf
    assert not bed.care.path.exists()


def test_vfs_that_were_made_anew_are_left_alone(bed: Bed) -> None:
    bed.care.take()
    bed.vfs.pfs["eno1"] = []
    assert bed.care.give_back() == []
    assert not bed.care.path.exists()


@pytest.mark.parametrize("text", ["", "{", '{"boot": "zero", "changes": []}', '{"boot": "one", "changes": [1]}'])
def test_a_record_of_another_boot_or_a_damaged_one_changes_nothing(bed: Bed, text: str) -> None:
    bed.care.path.parent.mkdir(parents=True)
    bed.care.path.write_text(text)
    assert bed.care.give_back() == []
    assert bed.vfs.sets == []
    bed.care.take()
    assert bed.care.give_back() == []
    assert bed.vf == FOUND


@pytest.mark.parametrize("wanted", [WANTED, {"bind": True}])
def test_a_vf_that_a_process_has_open_is_never_touched(tmp_path: Path, wanted: dict[str, Any]) -> None:
    bed = Bed(tmp_path, wanted)
    bed.bus.hold(B, 77)
    with pytest.raises(UplinkError, match=r"is open in process 77 \(ovs-vswitchd\)") as caught:
        bed.care.take()
    assert caught.value.hint == "`ps -fp 77`"
    assert bed.vfs.sets == []
    assert bed.bus.driver(B) == "iavf"
    assert not bed.care.path.exists()


def test_a_vf_that_a_process_has_opened_since_is_not_reset_under_it(bed: Bed) -> None:
    bed.care.take()
    bed.bus.hold(B, 77)
    complaints = bed.care.give_back()
    assert len(complaints) == 5
    assert all("is open in process 77" in each for each in complaints)
    assert bed.vf == SET
    (bed.bus.proc / "77/fd/9").unlink()
    assert bed.care.give_back() == []
    assert bed.vf == FOUND


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda bed: bed.vfs.pfs.update(eno1=[FOUND]), "there is no VF 1 of eno1"),
        (lambda bed: bed.vfs.pfs.update(eno1=[FOUND, replace(FOUND, trust=None)]), "does not report trust"),
        (lambda bed: bed.vfs.pfs.update(eno1=[FOUND, replace(FOUND, other_tag=True)]), "has a VLAN of 802.1ad"),
        (lambda bed: (bed.bus.device(B) / "physfn").unlink(), f"{B} is no VF of a network device"),
        (lambda bed: bed.bus.device(B).rename(bed.directory / "gone"), f"{B} does not exist"),
    ],
)
def test_what_could_not_be_put_back_is_not_begun(bed: Bed, plant: Callable[[Bed], object], message: str) -> None:
    plant(bed)
    with pytest.raises(UplinkError, match=message) as caught:
        bed.care.take()
    assert caught.value.hint
    assert not bed.care.path.exists()
    assert bed.vf in (None, *bed.vfs.pfs["eno1"])
    assert [value.mac for value in bed.vfs.pfs["eno1"]] == [FOUND.mac] * len(bed.vfs.pfs["eno1"])


def test_both_nics_of_a_pair_are_cared_for(tmp_path: Path) -> None:
    bed = Bed(tmp_path, {"trust": True}, second={"device": "eno2", "vf_a": 0, "vf_b": 1})
    instance = bed.config.instances.b.model_copy(update={"second_devargs": "eth_af_packet1,iface=vf"})
    instances = bed.config.instances.model_copy(update={"b": instance})
    bed.config = bed.config.model_copy(update={"instances": instances})
    bed.vfs.pfs["eno2"] = [FOUND, FOUND]
    bed.care.take()
    assert [(device, number) for device, number, _, _ in bed.vfs.sets] == [("eno1", 1), ("eno2", 1)]
    assert bed.care.give_back() == []
    assert bed.vfs.pfs["eno2"] == [FOUND, FOUND]


# ------------------------------------------------------------------------------------------------------------- binding


@pytest.mark.parametrize(("driver", "override"), [("iavf", "(null)"), (None, "(null)"), ("iavf", "iavf")])
def test_a_vf_is_bound_for_the_instance_and_back_afterwards(tmp_path: Path, driver: str | None, override: str) -> None:
    bed = Bed(tmp_path, {"bind": True})
    bed.bus._bound(B, driver)
    (bed.bus.device(B) / "driver_override").write_text(f"{override}\n")
    before = bed.bus.binding(B)
    bed.care.take()
    assert bed.bus.driver(B) == "vfio-pci"
    bed.care.take()
    assert bed.care.give_back() == []
    assert bed.bus.binding(B) == before
    assert bed.bus.driver(A) == "iavf", "the other side's VF"


@pytest.mark.parametrize("driver", ["vfio-pci", "mlx5_core"])
def test_a_vf_that_dpdk_can_have_is_not_bound(tmp_path: Path, driver: str) -> None:
    bed = Bed(tmp_path, {"bind": True})
    bed.bus._bound(B, driver)
    bed.care.take()
    assert bed.bus.driver(B) == driver
    assert not bed.care.path.exists()


@pytest.mark.parametrize("file", ["driver_override", "unbind", "drivers_probe"])
def test_a_failure_in_each_step_of_binding_is_undone(tmp_path: Path, file: str) -> None:
    bed = Bed(tmp_path, {"bind": True, "trust": True})
    before = bed.bus.binding(B)
    bed.bus.refuses.add(file)
    with pytest.raises(UplinkError, match=f"{B} cannot be bound to another driver") as caught:
        bed.care.take()
    assert bed.vf == FOUND
    bed.bus.refuses.clear()
    assert bed.care.give_back() == []
    assert bed.bus.binding(B) == before
    notes = getattr(caught.value, "__notes__", [])
    assert len(notes) == (file == "drivers_probe"), "it has no driver until it can be probed"


def test_a_kernel_without_vfio_is_told_how_to_get_it(tmp_path: Path) -> None:
    bed = Bed(tmp_path, {"bind": True})
    (bed.bus.sys / "bus/pci/drivers/vfio-pci").rmdir()
    with pytest.raises(UplinkError, match="which the kernel does not have") as caught:
        bed.care.take()
    assert caught.value.hint == "modprobe vfio-pci"
    assert bed.bus.driver(B) == "iavf"
    assert not bed.care.path.exists()


def test_a_driver_that_does_not_take_the_device_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bed(tmp_path).bus
    monkeypatch.setattr(bus, "_write", lambda path, text, address: None)
    with pytest.raises(UplinkError, match=f"{B} is bound to iavf, and not to vfio-pci"):
        bus.bind(B, "vfio-pci")
    with pytest.raises(UplinkError, match=f"{B} is bound to iavf, and not to none"):
        bus.put_back(Binding(B, None, ""))
    bus.put_back(Binding("0000:99:00.0", "iavf", ""))  # it is gone


# ------------------------------------------------------------------------------------------------------------- looking


def test_who_has_a_device_open_is_seen_in_every_way_in_which_it_can_be_opened(tmp_path: Path) -> None:
    bus = Bed(tmp_path).bus
    assert bus.holders(B) == []
    group = bus.sys / "kernel/iommu_groups/12/devices"
    (group / B).mkdir(parents=True)
    (bus.device(B) / "iommu_group").symlink_to(group.parent)
    (bus.device(B) / "uio/uio3").mkdir(parents=True)
    for pid, file in enumerate(("/dev/vfio/12", "/dev/vfio/noiommu-12", "/dev/uio3", "/dev/vfio/13", "/dev/null"), 1):
        bus.open(pid, file)
    bus.hold(B, 9)
    (bus.proc / "self").mkdir()
    assert bus.holders(B) == [Holder(pid, "ovs-vswitchd") for pid in (1, 2, 3, 9)]
    (group / A).mkdir()
    assert [each.pid for each in bus.holders(B)] == [3, 9], "of a group with two devices it is not known which"


def test_a_vf_is_found_by_its_address_whatever_its_pf_has_beside_it(tmp_path: Path) -> None:
    bus = Bed(tmp_path).bus
    (bus.device(PF) / "net/aaa_representor").mkdir()
    assert bus.place(B, "eno1") == Place("eno1", 1, B)
    assert bus.place(PF) is None
    assert bus.place("0000:99:00.0") is None
    for name in ("eno1", "aaa_representor"):
        (bus.device(PF) / "net" / name).rmdir()
    assert bus.place(B, "eno1") == Place("eno1", 1, B), "the PF is in another network namespace"
    assert bus.place(B) is None


def test_a_group_without_an_iommu_is_no_iommu(tmp_path: Path) -> None:
    bus = Bed(tmp_path).bus
    assert not bus.has_iommu()
    name = bus.sys / "kernel/iommu_groups/0/name"
    name.parent.mkdir(parents=True)
    name.write_text("vfio-noiommu\n")
    assert not bus.has_iommu()
    (bus.sys / "kernel/iommu_groups/1").mkdir()
    assert bus.has_iommu()


@pytest.mark.parametrize("vfs", [RtnlVfs(), FakeVfs({"lo": []})], ids=["kernel", "fake"])
def test_a_device_without_vfs_has_none_and_takes_no_settings(vfs: Vfs) -> None:
    assert vfs.read("lo", 0) is None
    assert vfs.read("no-such-device", 0) is None
    for device in ("lo", "no-such-device"):
        with pytest.raises(UplinkError, match=device) as caught:
            vfs.set(device, 0, "trust", value=True)
        assert caught.value.hint


def message(*vfs: dict[str, Any]) -> list[Any]:
    """The VFs of a message as the kernel would send it: written and read by pyroute2."""
    written = ifinfmsg()
    attrs = [["IFLA_VF_INFO", {"attrs": [[f"IFLA_VF_{name}", value] for name, value in vf.items()]}] for vf in vfs]
    written["attrs"] = [["IFLA_VFINFO_LIST", {"attrs": attrs}]]
    written.encode()
    read = ifinfmsg(written.data)
    read.decode()
    found: list[Any] = read.get_attr("IFLA_VFINFO_LIST").get_attrs("IFLA_VF_INFO")
    return found


def test_a_vf_is_read_with_its_settings_and_counters() -> None:
    counters = [[f"IFLA_VF_STATS_{name}", value] for name, value in (
        ("RX_PACKETS", 1 << 40), ("TX_PACKETS", 2), ("RX_DROPPED", 3), ("TX_DROPPED", 4))]  # fmt: skip
    tags = [[["IFLA_VF_VLAN_INFO", {"vf": 2, "vlan": 5, "qos": 0, "proto": proto}]] for proto in (0x8100, 0x88A8)]
    found = message(
        {"MAC": {"vf": 0, "mac": "02:00:00:00:00:01"}, "VLAN": {"vf": 0, "vlan": 100, "qos": 3},
         "SPOOFCHK": {"vf": 0, "spoofchk": 1}, "TRUST": {"vf": 0, "trust": 0},
         "LINK_STATE": {"vf": 0, "link_state": 2}, "STATS": {"attrs": counters}},
        {"MAC": {"vf": 1, "mac": "02:00:00:00:00:02"}, "SPOOFCHK": {"vf": 1, "spoofchk": 0xFFFFFFFF},
         "TRUST": {"vf": 1, "trust": 0xFFFFFFFF}, "LINK_STATE": {"vf": 1, "link_state": 7}},
        *({"MAC": {"vf": number, "mac": FOUND.mac}, "VLAN_LIST": {"attrs": tag}} for number, tag in enumerate(tags, 2)),
    )  # fmt: skip
    vf = decoded(found, 0)
    assert vf == Vf("02:00:00:00:00:01", 100 | 3 << 13, True, "disable", False)
    assert vf is not None
    assert vf.counters == Counters(1 << 40, 2, 3, 4)
    assert decoded(found, 1) == Vf("02:00:00:00:00:02"), "a driver that does not report them"
    assert [vf.other_tag for number in (2, 3) if (vf := decoded(found, number)) is not None] == [False, True]
    assert decoded(found, 4) is None


def test_settings_are_shown_as_they_are_typed() -> None:
    assert shown("trust", value=True) == "on"
    assert shown("vlan", 100) == "100"
    assert shown("vlan", 100 | 3 << 13) == "100 qos 3"
    assert shown("link_state", "auto") == "auto"


# ------------------------------------------------------------------------------------------------------------- judging

VTEP = "52:54:00:1f:00:01"


def facts(side: Side = Side.B, **changes: Any) -> VfFacts:
    number = int(side is Side.B)
    values: dict[str, Any] = {"vf": Vf(VTEP, 0, False, "auto", True), **changes}
    return VfFacts(side, 0, Place("eno1", number, (A, B)[number]), **values)


@pytest.mark.parametrize(
    ("changes", "check", "severity", "hint"),
    [
        ({"vf": replace(FOUND, trust=True)}, SPOOF, Severity.WARNING, "`ip link set eno1 vf 1 spoofchk off`"),
        ({"vf": replace(FOUND, spoof_check=False)}, TRUST, Severity.WARNING, "`ip link set eno1 vf 1 trust on`"),
        ({"vf": replace(FOUND, spoof_check=False), "runs": True}, TRUST, Severity.WARNING,
         "when instance b does not run, because the VF is reset: `ip link set eno1 vf 1 trust on`"),
        ({"vf": Vf(VTEP, link_state="disable")}, LINK, Severity.ERROR, "`ip link set eno1 vf 1 state auto`"),
        ({"vf": Vf(VTEP, 100)}, VLAN, Severity.ERROR, "`ip link set eno1 vf 1 vlan 0`"),
        ({"holders": (Holder(77, "ovs-vswitchd"),)}, HOLDER, Severity.ERROR, "`ps -fp 77`; an Open vSwitch"),
        ({"configured": 3}, NUMBER, Severity.ERROR, "correct vf_b in [uplink]: `ip link show eno1`"),
        ({"vf": None}, SETTINGS, Severity.UNKNOWN, "`ip -d link show eno1`"),
        ({"runs": True, "wanted": {"trust": False}}, SETTINGS, Severity.WARNING, "when instance b does not run"),
    ],
)  # fmt: skip
def test_each_fault_of_a_vf_is_one_finding(changes: dict[str, Any], check: str, severity: Severity, hint: str) -> None:
    (found,) = judge([facts(Side.A), facts(**changes)], dict.fromkeys(Side, VTEP), (Side.B,))
    assert (found.check, found.severity) == (check, severity)
    assert (found.hint or "").startswith(hint)
    assert list(judge([facts(Side.A), facts(**changes)], dict.fromkeys(Side, VTEP), ())) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vf": FOUND, "wanted": {"trust": True, "spoof_check": False}},  # it will be set
        {"vf": Vf(VTEP, 100), "wanted": {"vlan": 0}},
        {"vf": Vf(VTEP, spoof_check=True, trust=False)},  # it has the VTEP's MAC address itself
        {"vf": Vf()},  # a driver that reports nothing
        {"configured": 1},
    ],
)
def test_a_vf_that_is_well_has_no_finding(changes: dict[str, Any]) -> None:
    assert list(judge([facts(Side.A), facts(**changes)], dict.fromkeys(Side, VTEP), tuple(Side))) == []


@pytest.mark.parametrize(("runs_a", "runs_b", "blamed"), [(0, 0, "a"), (1, 0, "b"), (0, 1, "a"), (1, 1, "a")])
def test_different_vlans_are_one_finding_at_the_side_that_can_be_changed(runs_a: int, runs_b: int, blamed: str) -> None:
    both = [facts(Side.A, runs=bool(runs_a)), facts(runs=bool(runs_b), vf=Vf(VTEP, 100 | 3 << 13))]
    (found,) = judge(both, dict.fromkeys(Side, VTEP), tuple(Side))
    assert (found.item or "").startswith(f"instance {blamed}'s VF")
    assert "VLAN 100 qos 3" in found.text
    assert "no VLAN" in found.text


def test_what_a_start_has_set_and_nothing_has_put_back_is_a_finding(bed: Bed) -> None:
    bed.care.take()
    record = bed.care.record()
    assert record is not None
    bed.bus.hold(A, 5)
    pids: dict[Side, int | None] = {Side.A: 5, Side.B: None}
    seen = look(bed.config, bed.bus, bed.vfs.read, pids, lambda side: record.changes if side is Side.B else ())
    found = [each for each in judge(seen, {}, tuple(Side)) if "has not been put back" in each.text]
    assert len(found) == 5
    assert {each.hint for each in found} == {"`ovs-hotswap instance stop b`"}
    assert HOLDER not in [each.check for each in judge(seen, {}, tuple(Side))], "instance a has its own VF open"


@pytest.mark.parametrize(("driver", "found"), [("none", [HOLDER]), ("exclusive", [])])
def test_a_device_that_is_handed_over_may_be_open_in_the_other_instance(
    bed: Bed, driver: str, found: list[str]
) -> None:
    bed.bus.hold(B, 5)
    uplink = bed.config.uplink.model_copy(update={"driver": driver})
    config, pids = bed.config.model_copy(update={"uplink": uplink}), {Side.A: 5, Side.B: None}
    seen = look(config, bed.bus, bed.vfs.read, pids, lambda _side: ())
    assert [each.check for each in judge(seen, {}, (Side.B,)) if each.check == HOLDER] == found


# --------------------------------------------------------------------------------------------------------- an instance


@pytest.fixture
def started(tmp_path: Path) -> tuple[Bed, FakeHost, Instance]:
    bed = Bed(tmp_path)
    values = bed.config.model_dump(mode="json") | {"run_dir": str(tmp_path / "r")}
    bed.config = Config.model_validate_json(json.dumps(values))
    host = FakeHost(bed.config)
    instance = Instance(
        bed.config, Side.B, host, namespaces=host.namespaces, connect=host.instance._connect,
        control=host.instance._control, vfs=bed.care,
    )  # fmt: skip
    return bed, host, instance


def test_the_vf_is_set_before_the_switch_opens_it_and_put_back_after_its_end(
    started: tuple[Bed, FakeHost, Instance],
) -> None:
    bed, host, instance = started
    order: list[str] = []

    def run(argv: Sequence[str]) -> tuple[int, str]:
        order.append("set" if bed.vf == SET else "found")
        return host._run(argv)

    host.handler = run
    instance.start(HOST)
    assert set(order) == {"set"}
    with pytest.raises(SwitchError, match="is running already"):
        instance.start(HOST)
    assert bed.vf == SET, "nothing is set, and nothing put back, under a running instance"
    instance.stop()
    assert bed.vf == FOUND


def test_a_start_that_fails_puts_the_vf_back(started: tuple[Bed, FakeHost, Instance]) -> None:
    bed, host, instance = started
    host.fails = "ovs-vswitchd-dpdk"
    with pytest.raises(SwitchError):
        instance.start(HOST)
    assert bed.vf == FOUND


def test_an_instance_is_not_started_on_a_vf_that_another_process_has(started: tuple[Bed, FakeHost, Instance]) -> None:
    bed, host, instance = started
    bed.bus.hold(B, 77)
    with pytest.raises(UplinkError, match="process 77"):
        instance.start(HOST)
    assert host.processes == {}
    assert bed.vf == FOUND


def test_a_vf_that_cannot_be_put_back_does_not_keep_the_side_from_being_started_again(
    started: tuple[Bed, FakeHost, Instance], caplog: pytest.LogCaptureFixture
) -> None:
    bed, _, instance = started
    instance.start(HOST)
    bed.vfs.fails.add(("vlan", 0))
    with caplog.at_level(logging.WARNING):
        instance.stop()
    assert "vlan cannot be set" in caplog.text
    instance.start(HOST)
    assert bed.vf == SET
    bed.vfs.fails.clear()
    instance.stop()
    assert bed.vf == FOUND


def test_every_error_is_one_of_ours(bed: Bed) -> None:
    bed.boot.unlink()
    with pytest.raises(HotswapError):
        bed.care.take()
    assert bed.vfs.sets == []
