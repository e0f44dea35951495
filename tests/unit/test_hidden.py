"""Paths of the configuration that the installed units do not see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.service.hidden_paths import hidden_paths, out_of_reach
from ovs_hotswap.service.systemctl import Unit
from tests.unit.fake_system import FakeSystem

SHIPPED = {"LoadState": "loaded", "PrivateTmp": "yes", "ProtectHome": "yes"}


def configuration(directory: Path, **changes: Any) -> Config:
    instances = {side: {"pmd_cores": [0], "uplink_devargs": f"net_null_{side}"} for side in "ab"}
    return Config.model_validate({"overlay": "/etc/overlay.toml", "run_dir": "/run/ovs-hotswap", "instances": instances}
                                 | changes)  # fmt: skip


def hidden(directory: Path, config: Config, properties: dict[str, str]) -> list[str]:
    def show(argv: Sequence[str]) -> tuple[int, str]:
        return 0, properties[argv[2].removeprefix("--property=")] + "\n"

    units = [Unit(f"ovs-hotswap-{name}.service", FakeSystem(show), booted=directory) for name in ("broker", "watch")]
    return [key for key, _ in dict.fromkeys(hidden_paths(config, units))]


@pytest.mark.parametrize("place", ["/tmp/{vm}.sock", "/var/tmp/vm/{vm}", "/home/qemu/{vm}.sock", "/root/{vm}"])
def test_a_socket_that_the_broker_s_unit_does_not_see(tmp_path: Path, place: str) -> None:
    config = configuration(tmp_path, broker={"qemu_socket": place})
    assert hidden(tmp_path, config, SHIPPED) == ["broker.qemu_socket"]
    assert hidden(tmp_path, config, {**SHIPPED, "PrivateTmp": "no", "ProtectHome": "read-only"}) == []
    assert hidden(tmp_path, config, {**SHIPPED, "LoadState": "not-found"}) == []
    assert hidden(tmp_path / "systemd", config, SHIPPED) == []  # systemd does not run this host


@pytest.mark.parametrize("place", ["/run/ovs-hotswap/vm/{vm}.sock", "/var/lib/one/{vm}", "/tmpfs/{vm}", "/homes/{vm}"])
def test_other_places_are_seen(tmp_path: Path, place: str) -> None:
    assert hidden(tmp_path, configuration(tmp_path, broker={"qemu_socket": place}), SHIPPED) == []


def test_a_link_is_followed(tmp_path: Path) -> None:
    """``tmp_path`` is below /tmp."""
    assert str(tmp_path.resolve()).startswith("/tmp/")
    config = configuration(tmp_path, broker={"qemu_socket": f"/proc/self/root{tmp_path.resolve()}/{{vm}}"})
    assert hidden(tmp_path, config, SHIPPED) == ["broker.qemu_socket"]


def test_without_a_broker_the_watchdog_looks_for_the_monitor(tmp_path: Path) -> None:
    config = configuration(
        tmp_path, backend="qemu-dual", qemu={"monitor": "/tmp/{vm}.qmp"}, overlay="/home/overlay.toml"
    )
    assert hidden(tmp_path, config, SHIPPED) == ["overlay", "qemu.monitor", "overlay", "qemu.monitor"]


STRICT = {"PrivateTmp": "yes", "ProtectHome": "yes", "ProtectSystem": "strict",
          "ReadWritePaths": "-/run/openvswitch +/var/lib/vhost_sockets"}  # fmt: skip


@pytest.mark.parametrize(
    ("directory", "changes", "why"),
    [
        ("/tmp/vhost", {}, "does not see /tmp of the host (PrivateTmp=)"),
        ("/home/vms", {"ProtectHome": "read-only"}, "cannot write to /home/vms (ProtectSystem=)"),
        ("/srv/vhost", {}, "cannot write to /srv/vhost (ProtectSystem=)"),
        ("/srv/vhost", {"ProtectSystem": "full"}, None),
        ("/srv/vhost", {"ReadWritePaths": "-/srv"}, None),
        ("/run/openvswitch", {}, None),
        ("/var/lib/vhost_sockets/a", {}, None),
        ("/var/lib/vhost_sockets2", {}, "cannot write"),
        ("/run/openvswitch", {"ReadWritePaths": ""}, "cannot write"),
    ],
)
def test_a_directory_in_which_a_unit_can_make_no_socket(
    directory: str, changes: dict[str, str], why: str | None
) -> None:
    def show(argv: Sequence[str]) -> tuple[int, str]:
        return 0, {**STRICT, **changes}[argv[2].removeprefix("--property=")] + "\n"

    found = out_of_reach(Unit("ovs-hotswap-broker.service", FakeSystem(show)), directory)
    assert found is None if why is None else why in (found or "")
