"""The broker as `ovs-hotswap broker start` starts it where there is no systemd: below a supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ovs_hotswap.broker.lifecycle import replace_broker, stop_broker
from ovs_hotswap.cli.logs import LIMIT
from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.model import Side
from tests.support.service_bed import PACKETS, Guest, Host, wait
from tests.support.vhost_qemu import Traffic

KILLS = 20


def test_killed_again_and_again_no_vm_notices(host: Host) -> None:
    pid = host.start()
    (notify,) = host.config.run_dir.glob("*.notify")
    assert stat.S_IMODE(notify.stat().st_mode) == 0o600
    guest = Guest(host)
    with Traffic([guest.vm], PACKETS):
        for _ in range(KILLS):
            os.kill(pid, signal.SIGKILL)
            pid = host.wait_other(pid)
            guest.kept()
            assert guest.client.vm("vm0").owner == "a"
    assert host.log.read_text().count("QEMU connected") == 1
    guest.ends_well()


def test_two_that_start_it_at_once_get_one(host: Host) -> None:
    def start(_: int) -> int | None:
        with contextlib.suppress(HotswapError):  # that another one is a moment ahead
            return host.start()
        return None

    with ThreadPoolExecutor(4) as pool:
        pids = {pid for pid in pool.map(start, range(4)) if pid is not None}
    assert pids == {host.start()}
    assert host.supervisor() is not None

    def running() -> int:
        return sum(str(host.path) in host.system.cmdline(pid) for pid in host.system.pids())

    wait(lambda: running() == 2)  # the broker and its supervisor


def test_a_successor_comes_with_its_own_supervisor(host: Host) -> None:
    pid = host.start()
    first = host.supervisor()
    guest = Guest(host)
    with Traffic([guest.vm], PACKETS):
        new = int(replace_broker(host.config, host.system, host.path, 20.0).pid)
        assert new != pid
        second = host.supervisor()
        assert second not in (None, first)
        wait(lambda: first is not None and not host.system.alive(first))
        guest.kept()
        os.kill(new, signal.SIGKILL)
        host.wait_other(new)
        assert host.supervisor() == second
    assert host.log.read_text().count("QEMU connected") == 1
    guest.ends_well()


def test_its_log_is_made_anew_when_it_is_too_long_also_after_a_succession(host: Host) -> None:
    older = host.log.with_name("broker.log.1")

    def made_anew(pid: int) -> None:
        os.truncate(host.log, LIMIT + 1)
        os.kill(pid, signal.SIGKILL)
        broker, supervisor = host.wait_other(pid), host.supervisor()
        for process in (broker, supervisor):
            assert all(host.log.samefile(f"/proc/{process}/fd/{number}") for number in (1, 2))
        assert "ended with status -9" in host.log.read_text()
        assert host.log.stat().st_size < LIMIT < older.stat().st_size

    made_anew(host.start())
    made_anew(int(replace_broker(host.config, host.system, host.path, 20.0).pid))


def test_a_supervisor_that_dies_leaves_the_broker_at_work(host: Host) -> None:
    pid = host.start()
    guest = Guest(host)
    supervisor = host.supervisor()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    wait(lambda: not host.system.alive(supervisor))
    assert not guest.client.status().supervised
    guest.client.move("vm0", Side.B)
    assert host.start() == pid
    assert replace_broker(host.config, host.system, host.path, 20.0).supervised
    assert host.supervisor() is not None
    guest.ends_well()


def test_stopping_takes_the_rings_back_before_qemu_sees_it_go(host: Host) -> None:
    """QEMU would take the rings itself."""
    host.start()
    guest = Guest(host)
    with Traffic([guest.vm], PACKETS):
        guest.served()
        with ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(stop_broker, host.config, host.system)
            guest.vm.wait_hung_up()
            hung_up = time.monotonic_ns()
            assert stopped.result()
        assert host.supervisor() is None
    guest.untouched_since(hung_up)
    assert not host.config.broker_socket.exists()
    host.start()
    guest.vm.boot()
    wait(lambda: guest.client.vm("vm0").certainty == "owns")
    guest.ends_well(loses=True)


def test_one_that_cannot_start_says_why(host: Host) -> None:
    host.config.overlay.write_text("nonsense")
    with pytest.raises(BrokerError, match=r"the broker ended: .*overlay"):
        host.start()
    assert host.supervisor() is None


def test_in_the_foreground_a_signal_takes_the_rings_back_too(host: Host) -> None:
    log = host.log.open("wb")
    with log, subprocess.Popen(
        [sys.executable, "-m", "ovs_hotswap", "--config", str(host.path), "broker", "run"],
        stderr=log, cwd=Path(__file__).parents[2],
    ) as broker:  # fmt: skip
        wait(lambda: host.system.read_pid(host.config.run_dir / "broker.pid") == broker.pid)
        host.start()  # it runs, so it only waits
        guest = Guest(host)
        with Traffic([guest.vm], PACKETS):
            guest.served()
            broker.terminate()
            guest.vm.wait_hung_up()
            hung_up = time.monotonic_ns()
            assert broker.wait(20) == 0
    guest.untouched_since(hung_up)
    assert not host.config.broker_socket.exists()
