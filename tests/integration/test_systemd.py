"""The units under a real systemd, with the real Open vSwitch and DPDK: who lives in which unit, what a restart, a
crash and a hang of each does, and what a boot brings back. The tests build on each other, in this order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.model import Release
from ovs_hotswap.system import System
from tests.support.machine import PREFIX, Machine
from tests.support.waiting import eventually

REPOSITORY = Path(__file__).parents[2]
BROKER, RESTORE, WATCH, NETNS, LOGS, FLOWLOG, METRICS = (
    f"ovs-hotswap-{name}.service" for name in ("broker", "restore", "watch", "netns@a", "logs", "flowlog", "metrics")
)
UNITS = {"a": "ovs-hotswap-instance@a.service", "b": "ovs-hotswap-instance@b.service"}
WATCHDOG_S = 3

CONFIG = """
overlay = "/etc/ovs-hotswap/overlay.toml"

[instances.a]
pmd_cores = [0]
memory_mb = 256
dpdk_extra = "{dpdk_extra}"
uplink_devargs = "eth_af_packet0,iface=vf-a"
uplink_device = "vf-a"
pmd_sleep_us = 200

[instances.b]
pmd_cores = [{last_core}]
memory_mb = 256
dpdk_extra = "{dpdk_extra}"
uplink_devargs = "eth_af_packet0,iface=vf-b"
uplink_device = "vf-b"
pmd_sleep_us = 200

[watch]
crash_limit = 100
crash_window_s = 10
hang_ms = 3000
"""
OVERLAY = """
[vtep]
address = "172.31.0.1/24"
mac = "52:54:00:1f:00:01"

[[vm]]
name = "vm1"
ofport = 11
mac = "52:54:00:00:00:01"
vni = 100
"""
# In the place of a card that has its VFs as soon as the kernel runs.
CARD = """
[Unit]
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -c 'for side in a b; do ip link add vf-$$side type veth peer rep-$$side; ip link set rep-$$side up; done'

[Install]
WantedBy=sysinit.target
"""


def config(dpdk_extra: str = "--no-pci") -> str:
    return CONFIG.format(dpdk_extra=dpdk_extra, last_core=min((os.cpu_count() or 1) - 1, 1))


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with the package and its units installed, as docs/operations.md says, and nothing of it started."""
    with Machine() as made:
        made.write("/etc/ovs-hotswap/config.toml", config())
        made.write("/etc/ovs-hotswap/overlay.toml", OVERLAY)
        made.write("/etc/systemd/system/card.service", CARD)
        made.write(f"/etc/systemd/system/{WATCH}.d/soon.conf", f"[Service]\nWatchdogSec={WATCHDOG_S}\n")
        made.run(["sh", "-c", f"install -m 644 {PREFIX}/src/systemd/*.service /etc/systemd/system/"])
        made.run(["systemctl", "enable", "--now", "card.service"])
        made.run(["systemctl", "daemon-reload"])
        yield made


def ask(machine: Machine, *arguments: str) -> Any:
    """The JSON document of a command."""
    return json.loads(machine.run(["ovs-hotswap", "--json", *arguments], check=False).stdout)


def wait(machine: Machine, true: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    def logs() -> str:
        return "\n".join(f"-- {unit}\n{machine.log(unit)[-3000:]}" for unit in (BROKER, WATCH, *UNITS.values()))

    eventually(true, lambda: f"{what}\n{logs()}", seconds, poll_s=0.1)


def pids(machine: Machine) -> dict[str, tuple[int | None, int | None]]:
    """ovs-vswitchd and ovsdb-server of each side."""
    found = ask(machine, "instance", "list")["instances"]
    return {each["side"]: (each["vswitchd_pid"], each["ovsdb_pid"]) for each in found}


def ready(machine: Machine, active: str) -> bool:
    status = ask(machine, "watch", "status")
    return bool(status["ready"] and status["active"] == active)


def lives_in_its_unit(machine: Machine, side: str) -> bool:
    """Both processes of an instance are in its unit, and nothing else is."""
    vswitchd, ovsdb = pids(machine)[side]
    assert vswitchd is not None
    assert set(machine.processes(UNITS[side])) == {vswitchd, ovsdb}
    assert machine.show(UNITS[side], "MainPID") == str(vswitchd)
    return machine.show(UNITS[side], "ActiveState") == "active"


def test_the_units_are_free_of_faults(machine: Machine) -> None:
    done = machine.run(["systemd-analyze", "verify", BROKER, RESTORE, WATCH, NETNS, FLOWLOG, METRICS, UNITS["a"]])
    assert done.stdout + done.stderr == ""


def documented_scores() -> dict[str, float]:
    rows = re.findall(r"^\| `(ovs-hotswap-\S+)` \|.*\| ([0-9.]+) \|$",
                      (REPOSITORY / "docs/operations.md").read_text(), re.MULTILINE)  # fmt: skip
    return {unit: float(score) for unit, score in rows}


@pytest.mark.parametrize("unit", [BROKER, RESTORE, WATCH, NETNS, LOGS, FLOWLOG, METRICS, UNITS["a"]])
def test_a_unit_is_as_hard_as_documented(machine: Machine, unit: str) -> None:
    out = machine.run(["systemd-analyze", "security", "--no-pager", unit]).stdout
    score = re.search(r"exposure level for \S+: ([0-9.]+)", out)
    assert score is not None
    print(score[0])
    assert float(score[1]) <= documented_scores()[unit.replace("@a", "@")]


def test_a_start_that_fails_says_why_and_leaves_nothing(machine: Machine) -> None:
    """The command's own configuration counts, not the one in /etc."""
    machine.write("/etc/ovs-hotswap/faulty.toml", config("--no-pci --iova-mode none"))
    start = ["ovs-hotswap", "--config", "/etc/ovs-hotswap/faulty.toml", "instance", "start", "a"]
    done = machine.run(start, check=False)
    cause = "Invalid 'command line' arguments"
    assert done.returncode == 8
    assert cause in done.stderr
    assert "correct dpdk_extra" in done.stderr
    status = machine.run(["systemctl", "status", "--no-pager", "--full", UNITS["a"]], check=False).stdout
    assert "failed" in status
    assert cause in status
    assert machine.processes(UNITS["a"]) == {}
    assert machine.run(["ip", "netns", "list"]).stdout == ""
    assert "vf-a" in machine.run(["ip", "link"]).stdout
    assert machine.run(["ls", "/run/ovs-hotswap"]).stdout.split() == ["upgrade.lock"]


def test_without_an_order_the_unit_does_not_start(machine: Machine) -> None:
    assert machine.run(["systemctl", "start", UNITS["b"]], check=False).returncode != 0
    assert "there is no order to start instance b" in machine.log(UNITS["b"])
    machine.run(["ovs-hotswap", "instance", "stop", "b"])
    assert machine.show(UNITS["b"], "ActiveState") == "inactive"
    assert machine.run(["ip", "netns", "list"]).stdout == ""


def test_only_root_gives_orders(machine: Machine) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    machine.run(["test", "-d", "/run/ovs-hotswap"])
    done = machine.run([*nobody, "touch", "/run/ovs-hotswap/order-b.json"], check=False)
    assert "Permission denied" in done.stderr


def test_the_commands_of_the_broker_are_the_unit_s(machine: Machine) -> None:
    machine.run(["systemctl", "enable", "--now", BROKER, RESTORE])  # there is nothing to restore yet
    assert machine.show(BROKER, "StatusText").startswith("serves 1 VM")
    first = machine.show(BROKER, "MainPID")
    assert str(ask(machine, "broker", "start")["pid"]) == first
    second = ask(machine, "broker", "take-over")["pid"]
    assert str(second) == machine.show(BROKER, "MainPID") != first
    assert list(machine.processes(BROKER)) == [second]


def test_an_instance_lives_in_a_unit_of_its_own(machine: Machine) -> None:
    machine.run(["ovs-hotswap", "instance", "start", "a"])
    assert lives_in_its_unit(machine, "a")
    shown = machine.run(["systemctl", "status", "--no-pager", UNITS["a"]]).stdout
    assert "ovs-vswitchd" in shown
    assert "ovsdb-server" in shown
    assert machine.run(["ip", "netns", "list"]).stdout.split()[0] == "ovsh-a"


def test_the_watchdog_s_standby_is_not_the_watchdog_s(machine: Machine) -> None:
    machine.run(["systemctl", "enable", "--now", WATCH])
    wait(machine, lambda: ready(machine, "a"), "a standby")
    assert lives_in_its_unit(machine, "b")
    assert list(machine.processes(WATCH)) == [int(machine.show(WATCH, "MainPID"))]
    wait(machine, lambda: "standby b: ready" in machine.show(WATCH, "StatusText"), "the status line")


def test_the_metrics_read_everything_from_within_their_unit(machine: Machine) -> None:
    """No right that the unit lacks keeps a part of the host from being read."""
    machine.run(["systemctl", "start", METRICS])
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9865/metrics').read().decode())"
    text = machine.run([f"{PREFIX}/bin/python", "-c", fetch]).stdout
    machine.run(["systemctl", "stop", METRICS])
    assert re.search(r'^ovs_hotswap_standby_ready\{host="[^"]+"\} 1\.0$', text, re.MULTILINE), text
    assert re.search(r'^ovs_hotswap_unknown\{.*part="flows",side="b"\} 0\.0$', text, re.MULTILINE)
    assert re.findall(r"^ovs_hotswap_unknown\{.*\} 1\.0$", text, re.MULTILINE) == []
    assert machine.show(METRICS, "Result") == "success"


def test_a_restart_of_the_watchdog_leaves_both_instances(machine: Machine) -> None:
    before = pids(machine)
    watchdog = machine.show(WATCH, "MainPID")
    machine.run(["systemctl", "restart", WATCH])
    wait(machine, lambda: ready(machine, "a"), "the standby, again")
    assert machine.show(WATCH, "MainPID") != watchdog
    assert pids(machine) == before


def test_the_flow_log_is_followed_and_its_relay_hears_both_instances(machine: Machine) -> None:
    def sets() -> list[str]:
        found = [
            machine.run(
                [
                    "ovs-vsctl",
                    "--timeout=10",
                    f"--db=unix:/run/ovs-hotswap/{side}/db.sock",
                    "--bare",
                    "--columns=id",
                    "list",
                    "Flow_Sample_Collector_Set",
                ]
            ).stdout.strip()
            for side in "ab"
        ]
        return [each for each in found if each]  # fmt: skip

    assert sets() == []
    machine.write("/etc/ovs-hotswap/config.toml", config() + '\n[flowlog]\ncollectors = ["127.0.0.1:4739"]\n')
    machine.run(["systemctl", "start", FLOWLOG])
    wait(machine, lambda: ask(machine, "flowlog", "show")["relay"]["listening"] == ["a", "b"], "both are heard")
    wait(machine, lambda: len(sets()) == 2, "the watchdog follows")
    assert ask(machine, "flowlog", "show")["problems"] == []
    assert list(machine.processes(FLOWLOG)) == [int(machine.show(FLOWLOG, "MainPID"))]
    machine.write("/etc/ovs-hotswap/config.toml", config())
    wait(machine, lambda: sets() == [], "the watchdog follows again")
    machine.run(["systemctl", "stop", FLOWLOG])
    assert machine.log(FLOWLOG).count("WARNING") == 0


def test_a_watchdog_that_hangs_is_replaced(machine: Machine) -> None:
    before = pids(machine)
    watchdog, restarts = machine.show(WATCH, "MainPID"), int(machine.show(WATCH, "NRestarts"))
    machine.run(["systemctl", "kill", "--signal=STOP", WATCH])
    wait(machine, lambda: int(machine.show(WATCH, "NRestarts")) == restarts + 1, "a new watchdog")
    wait(machine, lambda: ready(machine, "a"), "the standby, again")
    assert machine.show(WATCH, "MainPID") != watchdog
    assert f"Watchdog timeout (limit {WATCHDOG_S}s)" in machine.log(WATCH)
    assert pids(machine) == before


def test_a_database_server_that_ended_is_started_again_in_its_unit(machine: Machine) -> None:
    vswitchd, ovsdb = pids(machine)["a"]
    machine.run(["kill", "-KILL", str(ovsdb)])
    wait(machine, lambda: pids(machine)["a"][1] not in {None, ovsdb}, "a database server")
    assert pids(machine)["a"][0] == vswitchd
    assert lives_in_its_unit(machine, "a")


def test_a_killed_instance_is_failed_over_and_not_restarted_by_systemd(machine: Machine) -> None:
    standby = pids(machine)["b"]
    machine.run(["systemctl", "kill", "--signal=KILL", UNITS["a"]])
    wait(machine, lambda: ready(machine, "b"), "a new standby")
    after = pids(machine)
    assert after["b"] == standby
    assert lives_in_its_unit(machine, "a")
    assert lives_in_its_unit(machine, "b")
    assert machine.show(UNITS["a"], "NRestarts") == "0"
    events = [event["event"] for event in ask(machine, "watch", "status", "--events", "100")["events"]]
    seen = [event for event in events if event not in ("rings", "uplink", "failover-uplink")]
    assert seen == ["standby", "database", "failover", "standby"]


def test_a_boot_brings_back_what_was_active(machine: Machine) -> None:
    """The instance starts with the operator's settings, which only this kind of unit has seen."""
    vsctl = ["ovs-vsctl", "--timeout=10", "--db=unix:/run/ovs-hotswap/b/db.sock"]
    machine.run(["systemctl", "stop", WATCH])
    machine.run([*vsctl, "set", "Open_vSwitch", ".", "other_config:max-idle=30000"])
    machine.reboot()
    wait(machine, lambda: ready(machine, "b"), "what was active, and its standby", 60.0)
    assert [machine.show(unit, "ActiveState") for unit in (BROKER, RESTORE, WATCH)] == ["active"] * 3
    assert lives_in_its_unit(machine, "b")
    assert lives_in_its_unit(machine, "a")
    assert "instance b runs release host" in machine.log(RESTORE)
    assert machine.run([*vsctl, "get", "Open_vSwitch", ".", "other_config:max-idle"]).stdout == '"30000"\n'


def test_a_release_tree_runs_in_the_unit(machine: Machine, tree_release: Release) -> None:
    """The watchdog asks the tree's programs for their versions, and replaces its standby by one that runs them."""
    machine.run(["ovs-hotswap", "release", "add", "tree", "--from-directory", str(tree_release.root)])
    machine.write("/etc/ovs-hotswap/config.toml", config() + 'release = "tree"\n')
    machine.run(["systemctl", "restart", WATCH])

    def runs() -> list[str]:
        return [each["release"]["name"] for each in ask(machine, "instance", "list")["instances"] if each["release"]]

    wait(machine, lambda: runs() == ["tree", "host"] and ready(machine, "b"), "a standby of the tree")
    assert lives_in_its_unit(machine, "a")


def test_a_stop_leaves_nothing(machine: Machine) -> None:
    machine.run(["systemctl", "stop", WATCH])
    for side in ("a", "b"):
        machine.run(["ovs-hotswap", "instance", "stop", side, "--force"])
        assert machine.show(UNITS[side], "ActiveState") == "inactive"
        assert machine.processes(UNITS[side]) == {}
    assert machine.run(["ip", "netns", "list"]).stdout == ""
    assert "vf-a" in machine.run(["ip", "link"]).stdout
    assert ask(machine, "instance", "restore") == {"side": None, "release": None}  # it was stopped on purpose


def test_a_watchdog_that_is_off_ends_without_a_failure(machine: Machine) -> None:
    machine.write("/etc/ovs-hotswap/config.toml", config() + 'mode = "off"\n')
    machine.run(["systemctl", "start", WATCH])
    assert machine.show(WATCH, "Result") == "success"
    wait(machine, lambda: machine.show(WATCH, "ActiveState") == "inactive", "the end of a watchdog that is off")


def test_a_broker_that_is_stopped_stays_so(machine: Machine) -> None:
    assert ask(machine, "broker", "stop") == {"stopped": True}
    assert machine.show(BROKER, "ActiveState") == "inactive"
    assert ask(machine, "broker", "stop") == {"stopped": False}


FORGOTTEN = """
import sys, time
from tests.support.machine import Machine
machine = Machine()
print(machine.pid(), *machine.groups, flush=True)
time.sleep(600)
"""


def test_nothing_is_left_of_a_machine_whose_test_was_killed() -> None:
    child = subprocess.Popen([sys.executable, "-c", FORGOTTEN], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    with child:
        assert child.stdout is not None
        pid, *groups = child.stdout.readline().split()
        assert System().alive(int(pid))
        assert all(map(os.path.isdir, groups))
        child.send_signal(signal.SIGKILL)
    eventually(lambda: not System().alive(int(pid)) and not any(map(os.path.exists, groups)), "the end of all of it")
