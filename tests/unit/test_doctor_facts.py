"""How doctor reads what it judges: from the kernel, and from files of all shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovs_hotswap.doctor import clock, cpu, devices, kernel, units, versions
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.model import Side
from ovs_hotswap.uplink import driver_info
from ovs_hotswap.wording import listed, ranges
from tests.unit.doctor_bed import PCI, PF, VF_A, VF_B, Bed


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


# ---------------------------------------------------------------------------------------------------------- the kernel


def test_a_device_without_firmware_says_so() -> None:
    assert driver_info.firmware("no-such-device") is None
    assert driver_info.private_flags("no-such-device") == driver_info.private_flags("lo") == {}


def test_the_kernel_says_whether_the_clock_is_synchronised() -> None:
    assert clock.synchronised() in (True, False)


# ----------------------------------------------------------------------------------------------------------- the files


def test_a_vf_is_found_with_its_pf(bed: Bed) -> None:
    found = devices.read(bed.root, Side.B, VF_B, lambda name: f"firmware of {name}")
    assert (found.driver, found.node, found.group) == ("vfio-pci", 0, {})
    assert found.parent == devices.Nic("eno1", "i40e", "firmware of eno1", 9000)
    whole = devices.read(bed.root, Side.A, PF, lambda name: "")
    assert (whole.driver, whole.parent) == (None, devices.Nic("eno1", "i40e", "", 9000))
    bed.write(f"{PCI}/{VF_A}/numa_node", "-1")
    assert devices.read(bed.root, Side.A, VF_A, lambda name: "").node is None, "a machine without NUMA"


def test_interrupts_are_counted_on_the_polling_cores_alone(bed: Bed) -> None:
    bed.write("proc/interrupts", "   CPU0 CPU2 CPU3\n  9: 4 5 6 IO-APIC 9-edge acpi\nLOC: 7 7 7\n 10: 1\n")
    bed.write("proc/irq/9/effective_affinity_list", "2-3")
    (found,) = cpu.read(bed.root, [2, 3]).interrupts
    assert found == cpu.Interrupt(9, "IO-APIC 9-edge acpi", frozenset({2, 3}), 11)


def test_cores_of_an_isolated_partition_count_as_isolated(bed: Bed) -> None:
    bed.write("sys/devices/system/cpu/isolated", "")
    bed.write("sys/fs/cgroup/cpuset.cpus.isolated", "2-3")
    assert cpu.read(bed.root, [2, 3]).isolated == {2, 3}


@pytest.mark.parametrize(
    ("text", "found"),
    [("6.1.0-27-amd64", (6, 1, 0, 27)), ("6.12.43+deb13-amd64", (6, 12, 43)), ("6.18.44-fc", (6, 18, 44)), ("", ())],
)
def test_versions_of_kernels_are_compared_as_numbers(text: str, found: tuple[int, ...]) -> None:
    assert kernel.version(text) == found


def test_packages_that_were_removed_are_not_installed(bed: Bed) -> None:
    removed = "Package: python3\nStatus: deinstall ok config-files\nVersion: 3"
    there = "Package: qemu-system-x86\nStatus: install ok installed\nVersion: 1:7.2"
    bed.write("var/lib/dpkg/status", f"{removed}\n\n{there}\n\nPackage: x\nStatus: install ok installed")
    assert versions.packages(bed.root) == {"qemu-system-x86": "1:7.2"}


def test_a_setting_over_several_lines_is_one() -> None:
    assert list(units.settings("[Service]\nExecStart=/bin/x \\\n  y\n# Restart=no\n;a=b\nNice = 5")) == [
        ("ExecStart", "/bin/x  y"), ("Nice", "5"),
    ]  # fmt: skip


def test_the_units_are_found_beside_the_program() -> None:
    directory = units.shipped_directory()
    assert directory is not None
    assert [name for name in units.UNITS if not (directory / name).is_file()] == []


@pytest.mark.parametrize("name", ["proc/x", "proc/interrupts/x", "proc"])
def test_a_file_that_is_not_there_is_no_error(bed: Bed, name: str) -> None:
    assert bed.root.text(name) is None
    assert bed.root.number(name) is None
    assert bed.root.numbers(name) == frozenset()


def test_the_root_is_the_machine_unless_given() -> None:
    assert Root().path("proc/self/stat") == Path("/proc/self/stat")
    assert (Root().text("/proc/self/comm") or "") != ""


def test_lists_of_numbers_are_written_and_read_as_the_kernel_does() -> None:
    assert ranges({5, 0, 1, 2}) == "0-2,5"
    assert ranges([]) == ""
    assert listed("0-2,5\n") == {0, 1, 2, 5}
    assert listed("") | listed("all") == frozenset()
