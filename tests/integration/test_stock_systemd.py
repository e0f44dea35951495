"""The distribution's own units of Open vSwitch in front of a real systemd, with the real daemons and scripts: what an
operator's habits do before and after they are shielded. The tests build on each other, in this order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.model import Release
from tests.support.machine import PREFIX, PYTHON, Machine
from tests.support.stock_strike import MOST
from tests.support.waiting import eventually

UNIT, SWITCH, DATABASE = "openvswitch-switch.service", "ovs-vswitchd.service", "ovsdb-server.service"
UNITS = (UNIT, SWITCH, DATABASE)
OVS_CTL = "/usr/share/openvswitch/scripts/ovs-ctl"
CONFIG = """
program = "clone"

[instances.a]
pmd_cores = [0]

[instances.b]
pmd_cores = [0]
"""
BROKER, SOCKET = "ovs-hotswap-broker", "/var/lib/vhost_sockets/vm1"
REPOSITORY = Path(__file__).parents[2]
# In the place of a QEMU of another user: what makes a socket and listens.
QEMU = f"""
[Service]
Type=exec
User=daemon
UMask=0027
ExecStartPre=+install -d -o daemon /var/lib/vhost_sockets
ExecStart=/usr/bin/python3 -c 'import socket, time; made = socket.socket(socket.AF_UNIX); made.bind("{SOCKET}"); \\
  made.listen(); time.sleep(600)'
"""
# In the place of the upgrade itself: what `systemctl reload` is to call is this program with these arguments.
PROGRAM = """#!/bin/sh
case "$*" in "upgrade --release host") echo "$*" >>/run/upgraded; exit ;; esac
exec {prefix}/bin/python -c 'from ovs_hotswap.cli.main import main; main()' "$@"
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as made:
        made.write("/etc/ovs-hotswap/config.toml", CONFIG)
        made.write(f"{PREFIX}/bin/ovs-hotswap", PROGRAM.format(prefix=PREFIX))
        made.run(["rm", "-rf", "/etc/openvswitch"])
        made.run(["systemctl", "start", UNIT])
        yield made


def ask(machine: Machine, *words: str) -> Any:
    return json.loads(machine.run(["ovs-hotswap", "--json", "stock", *words]).stdout)


def install_units(machine: Machine) -> None:
    """Do what docs/hosts.md says, with the units of this checkout."""
    blocks = re.findall(r"^```\n(.*?)^```$", (REPOSITORY / "docs/hosts.md").read_text(), re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if "hosts.conf" in block]
    machine.run(["sh", "-c", f"install -m 644 {PREFIX}/src/systemd/*.service /etc/systemd/system/"])
    machine.run(["sh", "-euc", "\n".join(line for line in block.splitlines() if not line.startswith("apt "))])


def pids(machine: Machine) -> dict[str, str]:
    return {
        name: machine.run(["cat", f"/run/openvswitch/{name}.pid"]).stdout for name in ("ovs-vswitchd", "ovsdb-server")
    }


def test_the_broker_s_unit_serves_at_another_user_s_socket(machine: Machine) -> None:
    """With the drop-in of docs/hosts.md, as it stands there."""
    install_units(machine)
    port = {"name": "vm1", "bridge": "br-int", "ofport": 1, "socket": SOCKET}
    machine.write("/var/lib/ovs-hotswap/ports.json", json.dumps({"ports": [port]}))
    machine.write("/etc/systemd/system/qemu.service", QEMU)
    machine.run(["systemctl", "start", "qemu"])
    machine.run(["systemctl", "start", BROKER])
    eventually(lambda: machine.run(["test", "-S", f"{SOCKET}.qemu"], check=False).returncode == 0,
               lambda: machine.log(f"{BROKER}.service"))  # fmt: skip
    assert machine.run(["stat", "--format=%U %a", SOCKET, f"{SOCKET}.qemu"]).stdout == "daemon 750\n" * 2
    (vm,) = json.loads(machine.run(["ovs-hotswap", "--json", "vm", "list"]).stdout)["vms"]
    assert vm["name"] == "vm1"
    machine.run(["systemctl", "stop", "qemu", BROKER])
    machine.run(["sh", "-c", "rm -r /etc/systemd/system/ovs-hotswap-*; systemctl daemon-reload"])


def test_unshielded_a_restart_ends_the_switch(machine: Machine) -> None:
    found = ask(machine, "show")
    assert found == {"installed": False, "script": False, "shielded": {name.split(".")[0]: False for name in UNITS}}
    before = pids(machine)
    machine.run(["systemctl", "restart", UNIT])
    assert not set(pids(machine).values()) & set(before.values())


def test_reload_upgrades(machine: Machine) -> None:
    for _ in range(2):
        assert ask(machine, "install") == {"installed": True, "script": True}
    before = pids(machine)
    machine.run(["systemctl", "reload", UNIT])
    assert machine.run(["cat", "/run/upgraded"]).stdout == "upgrade --release host\n"
    assert pids(machine) == before
    assert machine.run(["systemd-analyze", "verify", UNIT], check=False).stderr.count("ovs-hotswap") == 0


def test_shielded_nothing_that_an_operator_or_a_package_does_ends_the_switch(machine: Machine) -> None:
    assert all(ask(machine, "shield")["shielded"].values())
    before = pids(machine)
    for verb in ("restart", "stop", "try-restart"):
        for unit in UNITS:
            refused = machine.run(["systemctl", verb, unit], check=False)
            assert refused.returncode != 0, (verb, unit)
            assert "refused" in refused.stderr
    machine.run(["deb-systemd-invoke", "restart", UNIT], check=False)  # Debian's postinst
    machine.run(["/usr/share/openvswitch/scripts/ovs-systemd-reload"], check=False)
    for verb in ("stop", "restart"):
        refused = machine.run([OVS_CTL, "--system-id=random", verb], check=False)
        assert refused.returncode != 0
        assert "ovs-hotswap upgrade --release host" in refused.stderr
    machine.run([OVS_CTL, "--system-id=random", "start"])
    assert "upgrade --release host" in machine.show(SWITCH, "Description")
    assert pids(machine) == before
    assert machine.show(SWITCH, "ActiveState") == "active"


def test_retired_daemons_are_neither_started_again_nor_stopped_by_path(machine: Machine) -> None:
    """The well-known pid files name another process by then. One daemon is killed, and another unit that cannot run
    beside it has systemd stop the other one."""
    retire = ("from ovs_hotswap.controllers.stock_units import StockUnits; from ovs_hotswap.system import System; "
              "StockUnits('openvswitch-switch', System()).retire()")  # fmt: skip
    machine.run([f"{PREFIX}/bin/python", "-c", retire])
    machine.write(
        "/run/systemd/system/other.service", f"[Unit]\nConflicts={DATABASE}\n[Service]\nExecStart=sleep 600\n"
    )
    switch = pids(machine)["ovs-vswitchd"].strip()
    machine.run(["sh", "-ec", "systemctl daemon-reload; setsid --fork sleep 600 </dev/null >/dev/null 2>&1; "
                 "pidof -s sleep >/run/other; "
                 "for name in ovs-vswitchd ovsdb-server; do cp /run/other /run/openvswitch/$name.pid; done; "
                 f"kill -KILL {switch}; until systemctl is-failed --quiet {SWITCH}; do sleep 0.1; done; "
                 "systemctl start other.service; kill -0 $(cat /run/other)"])  # fmt: skip
    for unit in (SWITCH, DATABASE):
        assert machine.show(unit, "ActiveState") in ("failed", "inactive")
        assert machine.show(unit, "NRestarts") == "0"
    assert machine.run(["pidof", "ovs-vswitchd", "ovsdb-server"], check=False).stdout == ""
    machine.run(["sh", "-ec", "systemctl stop other.service; kill $(cat /run/other)"])


def test_taken_back_nothing_is_left(machine: Machine) -> None:
    assert not any(ask(machine, "unshield")["shielded"].values())
    for _ in range(2):
        assert ask(machine, "remove") == {"installed": False, "script": False}
    left = machine.run(["find", "/etc/systemd", "/run/systemd/system", "/usr/share/openvswitch", "-name",
                        "*ovs-hotswap*", "-o", "-name", "*.distrib"]).stdout  # fmt: skip
    assert left == ""
    machine.run(["rm", "-f", "/run/openvswitch/ovs-vswitchd.pid", "/run/openvswitch/ovsdb-server.pid"])
    machine.run(["systemctl", "start", UNIT])
    assert machine.run(["ovs-vsctl", "show"]).stdout != ""


def test_a_host_whose_switch_is_a_unit_is_upgraded_and_a_crash_is_mended(tree_release: Release) -> None:
    """Broker, instances and watchdog in their units, with the drop-ins of docs/hosts.md."""
    with Machine() as machine:
        install_units(machine)
        machine.run(["rm", "-rf", "/etc/openvswitch"])
        drive = f"cd {PREFIX}/src && exec {PYTHON} -m tests.support.stock_systemd_drive {tree_release.root}"
        done = json.loads(machine.run(["sh", "-c", drive], timeout=600).stdout.splitlines()[-1])
    print(done)
    ours = ["ovs-hotswap-broker.service", "ovs-hotswap-watch.service"]
    assert done["check"] == []
    assert done["stock ended"] is True
    assert done["active"] == [*ours, "ovs-hotswap-instance@b.service"]
    assert done["crash"]["flows"] is True
    assert done["events"] == ["restart"]
    assert done["active at the end"] == [*ours, "ovs-hotswap-instance@a.service"]
    assert done["stock units"] == []
    for way in ("there", "back"):
        assert done[way]["committed"] is True
        assert done[way]["lost"] <= MOST
