"""The arguments that give DPDK the uplink's devices, by its version."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovs_hotswap.switch.devargs import arguments, is_iavf

VF, RECOVERY = "0000:03:02.0", "auto_reset=1,no-poll-on-link-down=1"


@pytest.mark.parametrize(
    ("extra", "devices", "dpdk", "found"),
    [
        ("--no-pci", [VF], "22.11.11", f"-a {VF}"),
        ("--no-pci", [VF], "23.07", f"-a {VF}"),
        ("--no-pci", [VF], "23.11.0", f"-a {VF},{RECOVERY}"),
        ("--no-pci", [VF], "26.03", f"-a {VF},{RECOVERY}"),
        ("--no-pci", [VF], "26.07", f"-a {VF}"),
        ("--no-pci", [VF], "17.11.10", f"-w {VF}"),
        ("--no-pci", [VF], "unknown", f"-a {VF}"),
        ("", ["03:02.0"], "22.11", f"-a {VF}"),
        ("--no-pci", ["pci:0000:03:02.0,queue-num=4"], "24.11", f"-a {VF},queue-num=4,{RECOVERY}"),
        ("-a 03:02.0", [VF], "24.11", f"-a {VF},{RECOVERY}"),
        (f"--allow={VF},auto_reset=0", [f"{VF},x=[1,2]"], "24.11",
         f"-a {VF},auto_reset=0,x=[1,2],no-poll-on-link-down=1"),
        ("--log-level=8 -a 0000:05:00.0 -v", [VF], "22.11", f"--log-level=8 -a 0000:05:00.0 -v -a {VF}"),
        ("--no-pci", [VF, "0000:04:02.0"], "24.11", f"-a {VF},{RECOVERY} -a 0000:04:02.0"),
        ("--no-pci", [VF, "eth_af_packet0,iface=v"], "22.11", f"-a {VF}"),
        ("--no-pci --log-level=8", ["eth_af_packet0,iface=v"], "24.11", "--no-pci --log-level=8"),
        ("-v  ", ["eth_af_packet0,iface=v"], "24.11", "-v  "),
        ("-a", [VF], "22.11", f"-a  -a {VF}"),
    ],
)  # fmt: skip
def test_only_the_uplink_s_devices_are_allowed(extra: str, devices: list[str], dpdk: str, found: str) -> None:
    assert arguments(extra, devices, dpdk, lambda address: address == VF) == found


@pytest.mark.parametrize(
    ("vendor", "device", "taken"),
    [("0x8086", "0x154c", True), ("0x8086", "0x1889", True), ("0x8086", "0x37cd", True), ("0x8086", "0x1572", False),
     ("0x15b3", "0x154c", False), ("", "0x154c", False)],
)  # fmt: skip
def test_only_vfs_of_the_iavf_driver_get_its_arguments(tmp_path: Path, vendor: str, device: str, taken: bool) -> None:
    place = tmp_path / "bus/pci/devices" / VF
    place.mkdir(parents=True)
    (place / "vendor").write_text(f"{vendor}\n")
    (place / "device").write_text(f"{device}\n")
    assert is_iavf(VF, tmp_path) is taken
    assert not is_iavf("0000:99:00.0", tmp_path)
