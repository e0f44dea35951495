"""Requests to real devices: ioctl(SIOCETHTOOL) in another network namespace, and what `uplink show` says of ``tc``."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.config_cmd import EXAMPLE
from ovs_hotswap.cli.output import Output
from ovs_hotswap.cli.overlay_cmd import EXAMPLE as OVERLAY_EXAMPLE
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import UplinkError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.uplink.ethtool import UDP_V4_FLOW, Ethtool, FlowRule, open_ioctl

NAMESPACE = "hotswap-t-ethtool"


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A network namespace with a device and two representors."""
    system = System()
    system.run(["ip", "netns", "add", NAMESPACE])
    try:
        for first, second in (("lab0", "lab3"), ("lab1", "lab2")):
            system.run(["ip", "-n", NAMESPACE, "link", "add", first, "type", "veth", "peer", second])
        for device in ("lab0", "lab1", "lab2", "lab3"):
            system.run(["ip", "-n", NAMESPACE, "link", "set", device, "up"])
        yield NAMESPACE
    finally:
        system.run(["ip", "netns", "del", NAMESPACE])


def test_a_real_device_answers_over_a_unix_socket(namespace: str) -> None:
    """The kernel takes the ioctl on any socket; the watchdog's unit allows only some families."""
    ioctl = open_ioctl(namespace)
    try:
        tool = Ethtool(ioctl, "lab0")
        assert tool.driver().driver == "veth"
        assert not tool.ntuple()
        assert tool.private_flags() == {}
        with pytest.raises(UplinkError, match="lab0: rule 1 could not be inserted: Operation not supported"):
            tool.insert(FlowRule(1, UDP_V4_FLOW, 0, 0, port=4789))
        with pytest.raises(UplinkError, match="lab9: the driver's name: No such device"):
            Ethtool(ioctl, "lab9").driver()
    finally:
        ioctl.close()


def test_show_of_software_steering(namespace: str, tmp_path: Path) -> None:
    overlay, path = tmp_path / "overlay.toml", tmp_path / "config.toml"
    overlay.write_text(OVERLAY_EXAMPLE)
    before = EXAMPLE.replace("/etc/ovs-hotswap/overlay.toml", str(overlay)).partition("\n[uplink]\n")[0]
    keys = (
        f'driver = "tc"\nnamespace = "{namespace}"\ndevice = "lab0"\nrepresentor_a = "lab1"\nrepresentor_b = "lab2"\n'
    )
    path.write_text(f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n{before}\n[uplink]\n{keys}')
    Host(load_config(path, print), System()).uplink.steer(Side.B)
    shown = run(path)
    assert "leads to  instance b" in shown
    assert "NIC       lab0, veth, 1.0" in shown
    assert "rule      lab0: UDP port 4789 of 172.31.0.1 to lab2" in shown
    # The kernel itself sends on the devices, so the number of packets taken is not known.
    assert re.search(r"^counted   instance b: 0 packets given to it, \d+ taken from it$", shown, re.MULTILINE)
    document = json.loads(run(path, "--json"))
    assert document["owner"] == "b"
    assert {side: counted["given"] for side, counted in document["counters"].items()} == {"b": 0}


def run(path: Path, *options: str) -> str:
    out = io.StringIO()
    assert main.run(["--config", str(path), *options, "uplink", "show"], App(Output(out=out))) == 0
    return out.getvalue()
