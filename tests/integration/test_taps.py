"""The host's own network passes from one tap to another and back, in a network namespace with the kernel's real tables.

The two taps stand for those of two switches: this process has them open, as the switches have theirs.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.controllers.taps import Place, Taps
from ovs_hotswap.errors import HostError
from ovs_hotswap.system import System
from ovs_hotswap.uplink.frames import in_namespace
from tests.support.waiting import eventually

SPACE = f"ovsh-taps-{os.getpid()}"
NAME = "br-ex"
TUNSETIFF, TUNSETPERSIST, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x400454CB, 0x2, 0x1000  # linux/if_tun.h
MAC = "02:00:00:00:0e:0e"
SETUP = f"""
link set lo up
link set {NAME} address {MAC} mtu 1400 txqueuelen 500 alias uplink group 7 allmulticast on
link set {NAME} up
address add 172.31.9.1/24 broadcast 172.31.9.255 label {NAME}:v dev {NAME}
address add 172.31.9.2/24 dev {NAME}
address add 10.7.0.1 peer 10.7.0.2/32 dev {NAME}
address add 10.8.0.1/24 dev {NAME} metric 300 noprefixroute valid_lft 5000 preferred_lft 4000
address add fd00:9::1/64 dev {NAME} nodad
address add fd00:9::2/64 dev {NAME} nodad
address add fd00:8::1/64 dev {NAME} noprefixroute nodad preferred_lft 0
route add default via 172.31.9.254 dev {NAME} metric 50
route add 192.0.2.0/24 via 172.31.9.253 dev {NAME} src 172.31.9.2 mtu 1300 advmss 1200
route add 198.51.100.0/24 via 203.0.113.1 dev {NAME} onlink
route add 192.0.2.0/25 dev {NAME} scope link table 100 proto static
route add 203.0.113.0/24 nexthop via 172.31.9.254 dev {NAME} weight 2 nexthop via 172.31.9.253 dev {NAME}
route add blackhole 10.99.0.0/16
-6 route add default via fd00:9::fe dev {NAME} pref high
-6 route add fd00:77::/64 dev {NAME} metric 5 mtu 1290
-6 route add fd00:78::/64 via fd00:9::fd dev {NAME} expires 3000
neighbour add 172.31.9.254 lladdr 02:00:00:00:00:fe nud permanent dev {NAME}
neighbour add 172.31.9.253 lladdr 02:00:00:00:00:fd nud stale dev {NAME}
-6 neighbour add fd00:9::fe lladdr 02:00:00:00:00:fe nud stale dev {NAME}
rule add iif {NAME} table 100
"""
SYSCTLS = {
    "ipv4/conf/{}/rp_filter": "2", "ipv4/conf/{}/arp_ignore": "1", "ipv4/conf/{}/forwarding": "1",
    "ipv6/conf/{}/accept_ra": "2", "ipv6/conf/{}/hop_limit": "33", "ipv4/neigh/{}/gc_stale_time": "77",
    "ipv6/conf/{}/accept_dad": "1", "ipv6/conf/{}/dad_transmits": "0",
}  # fmt: skip
# Does one step in a process that ends itself by SIGKILL at call number ARGV[3] that changes something.
STEP = """
import os, signal, sys
from pathlib import Path
from ovs_hotswap.controllers.taps import Taps
from ovs_hotswap.system import System
left = int(sys.argv[4])
def count(frame, event, function):
    global left
    if event == "c_call" and function.__name__ in ("send", "sendto", "replace", "rename", "write"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
taps = Taps(Path(sys.argv[1]), System())
sys.setprofile(count)
getattr(taps, sys.argv[2])(sys.argv[3])
"""


def ip(*words: str) -> str:
    return subprocess.run(["ip", "-n", SPACE, *words], check=True, capture_output=True, text=True).stdout


def sysctl(name: str, text: str | None = None) -> str:
    path = Path("/proc/sys/net") / name.format(NAME)

    def act() -> str:
        if text is not None:
            path.write_text(text)
        return path.read_text().strip()

    return in_namespace(SPACE, act)


@pytest.fixture
def taps(tmp_path: Path) -> Iterator[Taps]:
    """The old switch's tap with all that a host may have on it."""
    subprocess.run(["ip", "netns", "add", SPACE], check=True)
    try:
        old = in_namespace(SPACE, make_tap)
        for name, text in SYSCTLS.items():
            sysctl(name, text)
        for line in SETUP.strip().splitlines():
            ip(*line.split())
        # Until then the kernel asks whether another host has the address, and has no route to it.
        eventually(lambda: "tentative" not in ip("address"), lambda: ip("address"))
        yield Taps(tmp_path, System())
        os.close(old)
    finally:
        for descriptor in _NEW:
            os.close(descriptor)
        _NEW.clear()
        subprocess.run(["ip", "netns", "delete", SPACE], check=True)


def inside(act: Callable[[], Any]) -> Any:
    """The result of ``act`` in the namespace; its error is raised here."""
    faults: list[HostError] = []

    def caught() -> Any:
        try:
            return act()
        except HostError as error:
            faults.append(error)
            return None

    result = in_namespace(SPACE, caught)
    if faults:
        raise faults[0]
    return result


def sorted_rows(rows: list[Any]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def seen() -> dict[str, Any]:
    """What the host has, as ip(8) shows it, without what is another device's by nature and the remaining lifetimes."""
    (link,) = json.loads(ip("-details", "-json", "address", "show", "dev", NAME))
    addresses = link.pop("addr_info")
    for each in addresses:
        for key in ("valid_life_time", "preferred_life_time"):
            each[key] = each[key] > 10_000 if each[key] != 0 else 0
    kept = ("ifname", "flags", "mtu", "txqlen", "ifalias", "group", "address", "operstate", "inet6_addr_gen_mode")
    routes = json.loads(ip("-json", "-N", "route", "show", "table", "all"))
    routes += json.loads(ip("-json", "-N", "-6", "route", "show", "table", "all"))
    for each in routes:
        each.pop("expires", None)
    neighbours = json.loads(ip("-json", "neighbour", "show", "dev", NAME))
    return {
        "link": {key: link.get(key) for key in kept}, "addresses": addresses, "routes": sorted_rows(routes),
        "neighbours": sorted_rows(neighbours), "rules": ip("rule"),
        "sysctls": {name: sysctl(name) for name in SYSCTLS},
    }  # fmt: skip


def index(name: str) -> int:
    return int(json.loads(ip("-json", "link", "show", name))[0]["ifindex"])


def make_tap() -> int:
    """Make a tap that outlives its process, as ovs-vswitchd does (lib/netdev-linux.c), and return its descriptor."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", NAME.encode(), IFF_TAP | IFF_NO_PI))
    fcntl.ioctl(tap, TUNSETPERSIST, 1)
    return tap


_NEW: list[int] = []


def new_switch() -> None:
    """The new switch makes its tap, which is down, and has another MAC address if the copy of the database lost it."""
    _NEW.append(in_namespace(SPACE, make_tap))


def test_everything_passes_to_the_new_tap_and_back(taps: Taps) -> None:
    before, old = seen(), index(NAME)
    assert inside(lambda: taps.obstacles(NAME)) == []
    for _ in range(2):
        assert inside(lambda: taps.make_way(NAME)) == ()
    assert not inside(lambda: taps.is_ready(NAME))
    assert json.loads(ip("-json", "route", "get", "192.0.2.200"))[0]["gateway"] == "172.31.9.253", "it is on it still"
    new_switch()
    assert inside(lambda: taps.is_ready(NAME))
    for _ in range(2):
        for _ in range(2):
            assert inside(lambda: taps.pass_to_new(NAME)) == ()
        assert index(NAME) != old
        assert seen() == before
        for _ in range(2):
            assert inside(lambda: taps.pass_back(NAME)) == ()
        assert index(NAME) == old
        assert seen() == before
    inside(lambda: taps.forget_new(NAME))
    assert seen() == before
    assert [each["ifname"] for each in json.loads(ip("-json", "link"))] == ["lo", NAME]
    assert inside(lambda: taps.pass_back(NAME)) == (), "nothing is left of it"


def test_what_the_host_changes_in_between_is_kept(taps: Taps) -> None:
    inside(lambda: taps.make_way(NAME))
    ip("address", "add", "172.31.10.1/24", "dev", f"ovsh{taps.record(NAME).old}")  # type: ignore[union-attr]
    new_switch()
    inside(lambda: taps.pass_to_new(NAME))
    ip("address", "add", "172.31.11.1/24", "dev", NAME)
    ip("address", "delete", "172.31.9.2/24", "dev", NAME)
    inside(lambda: taps.pass_to_new(NAME))
    inside(lambda: taps.pass_back(NAME))
    found = {each["local"] for each in seen()["addresses"]}
    assert {"172.31.10.1", "172.31.11.1"} < found
    assert "172.31.9.2" not in found
    ip("address", "add", "172.31.12.1/24", "dev", NAME)
    inside(lambda: taps.pass_back(NAME))
    assert "172.31.12.1" in {each["local"] for each in seen()["addresses"]}


def test_when_the_old_switch_has_ended_its_tap_is_removed(taps: Taps) -> None:
    before, old = seen(), index(NAME)
    inside(lambda: taps.make_way(NAME))
    new_switch()
    with pytest.raises(HostError, match="still on the old"):
        inside(lambda: taps.finish(NAME))
    inside(lambda: taps.pass_to_new(NAME))
    with pytest.raises(HostError, match="not on the old"):
        inside(lambda: taps.forget_new(NAME))
    inside(lambda: taps.finish(NAME))
    inside(lambda: taps.finish(NAME))
    assert seen() == before
    assert old not in {each["ifindex"] for each in json.loads(ip("-json", "link"))}


def test_without_the_new_switch_s_tap_it_goes_back(taps: Taps) -> None:
    before = seen()
    inside(lambda: taps.make_way(NAME))
    with pytest.raises(HostError, match="has not made its tap"):
        inside(lambda: taps.pass_to_new(NAME))
    assert inside(lambda: taps.pass_back(NAME)) == ()
    assert seen() == before


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("link set br-ex master other", "part of other"),
        ("link property add dev br-ex altname uplink0", "alternative name uplink0"),
    ],
)
def test_what_cannot_pass_is_refused_before_anything_changes(taps: Taps, words: str, text: str) -> None:
    ip("link", "add", "other", "type", "bridge")
    ip(*words.split())
    before = seen()
    assert any(text in each for each in inside(lambda: taps.obstacles(NAME)))
    with pytest.raises(HostError, match=text):
        inside(lambda: taps.make_way(NAME))
    assert seen() == before
    assert taps.record(NAME) is None


def test_a_device_that_is_no_tap_is_refused(taps: Taps) -> None:
    with pytest.raises(HostError, match="no tap"):
        inside(lambda: taps.make_way("lo"))


@pytest.mark.parametrize("step", ["make_way", "pass_to_new", "pass_back"])
def test_a_step_that_was_killed_anywhere_is_finished_or_undone(taps: Taps, tmp_path: Path, step: str) -> None:
    """Each second kill is followed by the step again, each other one by the way back."""
    before, old = seen(), index(NAME)
    calls, killed = 0, True
    stride = int(os.environ.get("OVS_HOTSWAP_TAPS_STRIDE", "7"))
    while killed:
        calls += stride
        assert inside(lambda: taps.pass_back(NAME)) == ()
        if taps.record(NAME) is None or step != "make_way":
            inside(lambda: taps.make_way(NAME)) if step != "make_way" else None
        if step != "make_way" and not inside(lambda: taps.is_ready(NAME)):
            new_switch()
        if step == "pass_back":
            inside(lambda: taps.pass_to_new(NAME))
        argv = ["ip", "netns", "exec", SPACE, sys.executable, "-c", STEP, str(tmp_path), step, NAME, str(calls)]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        killed = done.returncode == -signal.SIGKILL
        assert killed or done.returncode == 0, done.stderr
        if calls // stride % 2 and step != "pass_back":
            assert inside(lambda: getattr(taps, step)(NAME)) == ()
            place = taps.record(NAME).place  # type: ignore[union-attr]
            assert place is (Place.OLD_ASIDE if step == "make_way" else Place.NEW)
            if step == "pass_to_new":
                assert seen() == before
        assert inside(lambda: taps.pass_back(NAME)) == ()
        now = seen()
        assert [key for key in before if now[key] != before[key]] == []
        assert index(NAME) == old
        if step == "make_way":
            (tmp_path / f"{NAME}.json").unlink(missing_ok=True)
    assert calls > stride, "it was killed at least once"
