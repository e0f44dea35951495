"""What `check` says of the devices of the instance to which an upgrade goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ovs_hotswap.config import DEFAULT_RUN_DIR
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.upgrade.device_checks import precheck
from tests.support.fake_vfs import FOUND
from tests.unit.test_vf_care import VTEP, A, B, Bed

WELL = replace(FOUND, mac=VTEP, spoof_check=False, trust=True)


class CheckBed(Bed):
    """A host whose instance a is active, in process 5, and whose units are installed."""

    def __init__(self, directory: Path, **wanted: Any) -> None:
        super().__init__(directory, wanted)
        self.config = self.config.model_copy(update={"run_dir": DEFAULT_RUN_DIR})
        self.vfs.pfs["eno1"] = [WELL, WELL]
        self.shown = {"LoadState": "loaded", "CapabilityBoundingSet": "cap_net_admin cap_sys_admin"}
        self.system.handler = self._systemctl
        for address in (A, B):
            self.bus._bound(address, "vfio-pci")
        (self.bus.sys / "kernel/iommu_groups/1").mkdir(parents=True)

    def _systemctl(self, argv: Sequence[str]) -> tuple[int, str]:
        return 0, self.shown.get(argv[2].removeprefix("--property="), "")

    def check(self) -> list[tuple[str, Severity]]:
        pids = {Side.A: 5, Side.B: None}
        host = SimpleNamespace(
            config=self.config, system=self.system, intent=SimpleNamespace(vtep=SimpleNamespace(mac=VTEP)),
            instances={side: SimpleNamespace(pid=lambda side=side: pids[side]) for side in Side},
        )  # fmt: skip
        found = precheck(cast(Host, host), Side.B, self.bus, self.vfs.read, self.directory)
        return [(each.check, each.severity) for each in found]


@pytest.fixture
def bed(tmp_path: Path) -> CheckBed:
    return CheckBed(tmp_path)


def no_iommu(bed: CheckBed) -> bool:
    (bed.bus.sys / "kernel/iommu_groups/1").rmdir()
    return True


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (lambda bed: None, []),
        (lambda bed: bed.bus.hold(A, 77), []),
        (lambda bed: bed.bus.hold(B, 77), [("VF holder", Severity.ERROR)]),
        (lambda bed: bed.bus.hold(B, 5), [("VF holder", Severity.ERROR)]),  # the active instance has both
        (lambda bed: bed.vfs.pfs["eno1"].__setitem__(0, replace(WELL, link_state="disable")), []),
        (lambda bed: bed.vfs.pfs["eno1"].__setitem__(1, replace(WELL, link_state="disable")),
         [("VF link", Severity.ERROR)]),
        (lambda bed: bed.vfs.pfs["eno1"].__setitem__(0, replace(WELL, vlan=9)), [("VLAN", Severity.ERROR)]),
        (lambda bed: bed.vfs.pfs["eno1"].pop(), [("VF settings", Severity.WARNING)]),
        (no_iommu, [("device rights", Severity.ERROR)]),
        (lambda bed: (no_iommu(bed), bed.shown.update(CapabilityBoundingSet="cap_net_admin cap_sys_rawio")), []),
        (lambda bed: (no_iommu(bed), bed.shown.update(CapabilityBoundingSet="")), []),  # systemd does not say
        (lambda bed: (no_iommu(bed), bed.shown.update(LoadState="not-found")), []),  # no unit starts it
        (lambda bed: (no_iommu(bed), bed.bus._bound(B, "iavf")), []),  # DPDK does not get it through vfio
        (lambda bed: bed.bus._bound(B, "igb_uio"), [("device rights", Severity.ERROR)]),
    ],
)  # fmt: skip
def test_each_fault_of_the_new_side_s_devices_is_found(
    bed: CheckBed, plant: Callable[[CheckBed], object], found: list[tuple[str, Severity]]
) -> None:
    plant(bed)
    assert bed.check() == found


def test_a_vf_that_will_be_bound_needs_the_same_rights(tmp_path: Path) -> None:
    bed = CheckBed(tmp_path, bind=True)
    no_iommu(bed)
    bed.bus._bound(B, "iavf")
    assert bed.check() == [("device rights", Severity.ERROR)]
