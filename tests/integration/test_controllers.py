"""Tools, agents and the host's network pass from one real switch to another and back. The second one's database is a
copy of the first one's, and its flows are the same."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.controllers import kernel_ports, remotes
from ovs_hotswap.controllers.connections import Connections
from ovs_hotswap.controllers.exchange import Exchange
from ovs_hotswap.controllers.repoint import repoint
from ovs_hotswap.controllers.taps import Taps
from ovs_hotswap.controllers.well_known import WellKnown
from ovs_hotswap.system import System
from ovs_hotswap.uplink.frames import in_namespace
from tests.support.openflow_controller import Agent
from tests.support.two_switches import Switch, switch
from tests.support.waiting import eventually

HOST, OUTSIDE, META = (f"ovsh-{name}-{os.getpid()}" for name in ("host", "outside", "meta"))
HOST_IP, OUTSIDE_IP, METADATA_IP = "172.31.60.1", "172.31.60.2", "172.31.60.3"
ID = "0000cafe00000001"
NETWORK = f"""
netns add {HOST}
netns add {OUTSIDE}
netns add {META}
-n {HOST} link set lo up
-n {OUTSIDE} link add fabric type bridge
-n {OUTSIDE} link set fabric up
-n {OUTSIDE} address add {OUTSIDE_IP}/24 dev fabric
-n {HOST} link add up-a type veth peer name net-a netns {OUTSIDE}
-n {HOST} link add up-b type veth peer name net-b netns {OUTSIDE}
-n {HOST} link add md0 type veth peer name md1 netns {META}
-n {META} link set md1 up
-n {META} address add {METADATA_IP}/24 dev md1
-n {HOST} link set up-a up
-n {HOST} link set up-b up
-n {HOST} link set md0 up
-n {OUTSIDE} link set net-a master fabric up
-n {OUTSIDE} link set net-b master fabric up
"""
FLOWS = """\
cookie=0x8a1d,table=0,priority=0,actions=resubmit(,60)
cookie=0x8a1d,table=23,priority=0,actions=drop
cookie=0x8a1d,table=60,priority=3,actions=NORMAL
"""


@dataclass
class Bed:
    old: Switch
    new: Switch
    paths: WellKnown
    agent: Agent
    directory: Path

    def pass_to(self, new: Switch) -> list[str]:
        old = self.new if new is self.old else self.old
        found = repoint(self.paths, System(), old.paths, new.paths)
        return [client.program for client in found]

    def tool(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """A tool that knows nothing but the well-known directory."""
        environment = {**os.environ, "OVS_RUNDIR": str(self.paths.directory)}
        return subprocess.run(["ip", "netns", "exec", HOST, *argv], env=environment, check=False, capture_output=True,
                              text=True, timeout=20)  # fmt: skip


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    directory = Path(tempfile.mkdtemp(prefix="ovsh-ctl-"))
    system = System()
    old, new = (switch(directory, HOST, stock=stock) for stock in (True, False))
    agent = None
    try:
        for line in NETWORK.strip().splitlines():
            ip(*line.split())
        listener = in_namespace(HOST, lambda: socket.create_server(("127.0.0.1", 6633)))
        agent = Agent(listener)
        old.start()
        old.start_switch()
        old.vsctl("set", "Open_vSwitch", ".", f"external_ids:rundir={old.paths.run_dir}",
                  "external_ids:side=old", "--", "add-br", "br-ex",
                  "--", "set", "bridge", "br-ex", "datapath_type=netdev", "other_config:hwaddr=02:00:00:00:0e:0e",
                  "fail_mode=secure", f"other_config:datapath-id={ID}",
                  "--", "add-port", "br-ex", "up-a", "--", "add-port", "br-ex", "md0",
                  "--", "set-controller", "br-ex", "tcp:127.0.0.1:6633",
                  "--", "set-manager", "ptcp:6640:127.0.0.1")  # fmt: skip
        remotes.serve_managers(old.paths.ovsdb_ctl)
        (directory / "flows").write_text(FLOWS)
        old.ofctl("add-flows", "br-ex", str(directory / "flows"))
        in_namespace(HOST, lambda: Path("/proc/sys/net/ipv6/conf/br-ex/accept_dad").write_text("0"))
        ip("-n", HOST, "link", "set", "br-ex", "up")
        ip("-n", HOST, "address", "add", f"{HOST_IP}/24", "dev", "br-ex")
        ip("-n", HOST, "route", "add", "192.0.2.0/24", "via", OUTSIDE_IP, "dev", "br-ex", "metric", "77")
        paths = WellKnown(old.paths.run_dir, old.paths.run_dir / ".ovs-hotswap")
        made = Bed(old, new, paths, agent, directory)
        eventually(lambda: agent.canary(ID) == 1, lambda: "the old bridge has not connected")
        paths.keep()
        old.call_by(paths.kept)
        clone(made, directory)
        yield made
    finally:
        if agent is not None:
            agent.close()
        for each in (old, new):
            for daemon in ("ovs-vswitchd", "ovsdb-server"):
                if (pid := each.pid(daemon)) is not None:
                    system.kill(pid, grace=0)
        for name in (HOST, OUTSIDE, META):
            subprocess.run(["ip", "netns", "delete", name], check=False)
        subprocess.run(["rm", "-rf", directory], check=True)


def clone(bed: Bed, directory: Path) -> None:
    """The new switch: a copy of the old database with its controllers held back, another uplink, and without md0."""
    inside = Taps(directory / "taps", System())
    in_namespace(HOST, lambda: inside.make_way("ovs-netdev"))
    bed.new.start(copy=bed.old.paths.db_file)
    remotes.hold(bed.new.paths.db_socket)
    bed.new.vsctl("--no-wait", "del-port", "up-a", "--", "add-port", "br-ex", "up-b")
    bed.new.vsctl("--no-wait", "set", "Open_vSwitch", ".", "external_ids:side=new")
    kernel_ports.take(bed.new.paths.db_socket, ["md0"])
    bed.new.start_switch()
    bed.new.ofctl("add-flows", "br-ex", str(directory / "flows"))


class Watch:
    """Runs tools every 50 ms, and keeps how each answers."""

    def __init__(self, bed: Bed) -> None:
        self._bed, self._stop = bed, threading.Event()
        self.runs = 0
        self.failed: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        tools = (("ovs-vsctl", "--timeout=5", "show"), ("ovs-appctl", "version"),
                 ("ovs-appctl", "-t", "ovsdb-server", "version"), ("ovs-ofctl", "dump-flows", "br-ex"))  # fmt: skip
        while not self._stop.wait(0.05):
            for argv in tools:
                done = self._bed.tool(*argv)
                again = done if done.returncode == 0 else self._bed.tool(*argv)
                self.runs += 1
                if again.returncode != 0:
                    self.failed.append(f"{argv}: {again.stderr}")


def ports(each: Switch) -> str:
    text = each.run("ovs-appctl", "-t", str(each.paths.vswitchd_ctl), "dpif/show")
    return re.sub(r"hit:\d+ missed:\d+", "", text)


def clients(each: Switch, daemon: str = "ovs-vswitchd") -> set[str]:
    pid = each.pid(daemon)
    assert pid is not None
    return {client.program for client in Connections(pid).clients()}


def test_tools_answer_at_any_time_and_the_old_switch_keeps_all_that_it_has(bed: Bed) -> None:
    had = ports(bed.old)
    with Watch(bed) as watch:
        for target in (bed.new, bed.old, bed.new, bed.old):
            time.sleep(0.2)
            bed.pass_to(target)
            assert bed.paths.strays(target.paths) == ()
            pid = System().read_pid(target.paths.vswitchd_pid)
            assert bed.tool("cat", f"{bed.paths.directory}/ovs-vswitchd.pid").stdout == f"{pid}\n"
        time.sleep(0.2)
    assert watch.failed == []
    assert watch.runs > 4
    assert ports(bed.old) == had, "it has not taken the other one's database for its own"


def test_clients_connect_to_the_other_switch(bed: Bed) -> None:
    """None of this process's own programs is ended; one that another process has started is."""
    socket_path = f"unix:{bed.paths.directory}/db.sock"
    argv = ["ip", "netns", "exec", HOST, "ovsdb-client", "monitor", socket_path, "Open_vSwitch", "Bridge", "name"]
    own = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    log = bed.directory / "client.log"
    log.touch()
    subprocess.run(["setsid", "--fork", "sh", "-c", f'exec "$@" >{log} 2>&1', "sh", *argv], check=True)
    try:
        eventually(lambda: log.read_text().count("br-ex"), lambda: "the other client has not connected")
        assert bed.pass_to(bed.new).count("ovsdb-client") == 1
        assert own.poll() is None
    finally:
        own.terminate()
        own.wait()
        bed.pass_to(bed.old)


def test_a_port_for_managers_is_the_active_one_s(bed: Bed) -> None:
    for target in (bed.new, bed.old):
        bed.pass_to(target)

        def answered(target: Switch = target) -> bool:
            found = bed.tool("ovs-vsctl", "--db=tcp:127.0.0.1:6640", "--timeout=2", "get", "Open_vSwitch", ".",
                             "external_ids:side")  # fmt: skip
            return found.stdout.strip() == target.vsctl("get", "Open_vSwitch", ".", "external_ids:side")

        eventually(answered, lambda: "the manager's port is not the active one's")


def test_an_agent_sees_the_bridge_that_it_knows_with_its_flows(bed: Bed) -> None:
    """It has the same datapath id, its canary is never missing, and no flow of either switch is lost."""
    flows = {each.stock: each.ofctl("dump-flows", "br-ex", "--no-stats") for each in (bed.old, bed.new)}
    answers: list[int | None] = []
    for target in (bed.new, bed.old):
        before = bed.agent.seen
        bed.pass_to(target)
        eventually(lambda: bed.agent.seen > before, lambda: "the bridge has not connected")  # noqa: B023
        eventually(lambda: asked(answers, bed.agent.canary(ID)), lambda: f"{answers}")
        assert set(bed.agent.bridges) == {ID}
    assert set(answers) <= {1, None}, "an empty table 23 is a restart to it"
    assert {each.stock: each.ofctl("dump-flows", "br-ex", "--no-stats") for each in (bed.old, bed.new)} == flows


def asked(answers: list[int | None], answer: int | None) -> bool:
    answers.append(answer)
    return answer is not None


def test_controllers_that_are_held_come_back_as_they_were(bed: Bed) -> None:
    def rows() -> str:
        return (bed.old.vsctl("--columns=_uuid,target,external_ids,connection_mode", "list", "controller")
                + bed.old.vsctl("--columns=_uuid,controller,fail_mode,external_ids", "list", "bridge"))  # fmt: skip

    bed.old.vsctl("set", "controller", "br-ex", "connection_mode=out-of-band", "external_ids:own=1")
    bed.old.vsctl("set-fail-mode", "br-ex", "standalone")
    before = rows()
    assert remotes.hold(bed.old.paths.db_socket) == ("tcp:127.0.0.1:6633",)
    assert remotes.hold(bed.old.paths.db_socket) == ()
    eventually(lambda: bed.agent.canary(ID) is None, lambda: "it is still connected")
    assert bed.old.vsctl("get", "bridge", "br-ex", "fail_mode") == "secure"
    assert remotes.release(bed.old.paths.db_socket) == ("tcp:127.0.0.1:6633",)
    assert remotes.release(bed.old.paths.db_socket) == ()
    assert rows() == before
    bed.old.vsctl("set-fail-mode", "br-ex", "secure")


def test_the_hosts_network_and_a_kernel_port_pass_over_and_back(bed: Bed) -> None:
    """The bridge's own tap with its address and route, and a veth port with an agent behind it: the host is reached
    from outside and by the agent after each step."""
    inside = Exchange(
        Taps(bed.directory / "taps", System()), bed.old.paths.db_socket, bed.new.paths.db_socket, System()
    )
    before = host_network()
    reachable()
    assert in_namespace(HOST, inside.devices) == ["md0", "up-a"]
    pings = ["ip", "netns", "exec", META, "busybox", "ping", "-i", "0.01", "-q", HOST_IP]
    pinger = subprocess.Popen(pings, stdout=subprocess.PIPE, text=True)
    for _ in range(2):
        passing = in_namespace(HOST, inside.make_way)
        assert passing == ("br-ex",)
        in_namespace(HOST, lambda: inside.pass_to_new(passing, ["md0"], lambda: None))  # noqa: B023
        reachable()
        assert host_network() == before
        assert bed.new.vsctl("get", "interface", "br-ex", "error") == "[]"
        in_namespace(HOST, lambda: inside.pass_back(passing, ["md0"]))  # noqa: B023
        reachable()
        assert host_network() == before
    pinger.send_signal(signal.SIGINT)
    print("the agent's pings over four exchanges:", pinger.communicate()[0].splitlines()[-2:])
    assert bed.old.vsctl("get", "interface", "md0", "type") == '""'


def host_network() -> dict[str, Any]:
    (link,) = json.loads(ip("-n", HOST, "-json", "address", "show", "dev", "br-ex"))
    routes = [*json.loads(ip("-n", HOST, "-json", "route", "show", "table", "all")),
              *json.loads(ip("-n", HOST, "-json", "-6", "route", "show", "table", "all"))]  # fmt: skip
    routes = [each for each in routes if each.get("dev") == "br-ex"]
    return {"addresses": link["addr_info"], "flags": link["flags"], "mtu": link["mtu"], "mac": link["address"],
            "routes": sorted(json.dumps(each, sort_keys=True) for each in routes)}  # fmt: skip


def reachable() -> None:
    """The host speaks first, as after a steering: the fabric then knows on which uplink it is."""
    for source, target in ((HOST, OUTSIDE_IP), (OUTSIDE, HOST_IP), (META, HOST_IP)):
        ping = ["ip", "netns", "exec", source, "busybox", "ping", "-c", "1", "-W", "1", "-q", target]
        eventually(lambda: subprocess.run(ping, check=False, capture_output=True).returncode == 0,  # noqa: B023
                   lambda: f"{source} does not reach {target}", 20)  # noqa: B023  # fmt: skip
