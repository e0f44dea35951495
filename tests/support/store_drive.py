"""Runs inside a booted machine: a VM with traffic and two switches around the broker's unit, which is restarted and
killed again and again, and stopped in the end. Prints what was seen as JSON:
``python -m tests.support.store_drive RESTARTS KILLS``."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.config import Config
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from tests.support.vhost_device import SwitchSpec
from tests.support.vhost_qemu import FakeQemu, Traffic
from tests.support.vhost_rings import Ledger, overlaps
from tests.support.vhost_switch import SwitchProcess

UNIT = "ovs-hotswap-broker.service"
VM = "vm1"
PACKETS = 1 << 20
_KEPT_S = 0.1  # by then everything is in the store


def wait(true: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 30.0
    while True:
        with contextlib.suppress(BrokerError):
            if true():
                return
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within 30 s")
        time.sleep(0.01)


def another(client: BrokerClient, before: int) -> bool:
    return bool(client.status().pid != before)


def systemctl(*arguments: str) -> str:
    return subprocess.run(["systemctl", *arguments, UNIT], check=True, stdout=subprocess.PIPE, text=True).stdout


def main(restarts: int, kills: int) -> None:
    config = load_config(Path("/etc/ovs-hotswap/config.toml"))
    ledger = Ledger(1, PACKETS)
    with contextlib.ExitStack() as stack:
        stack.callback(ledger.close)
        switches = [
            stack.enter_context(SwitchProcess(SwitchSpec([str(config.vhost_socket(side, VM))]), ledger))
            for side in Side
        ]
        client = stack.enter_context(BrokerClient(config.broker_socket))
        wait(lambda: all(client.vm(VM).switches[side].connected for side in Side), "both switches")
        vm = stack.enter_context(FakeQemu(config.qemu_socket(VM)))
        vm.boot()
        client.park(VM, Side.B)
        found = drive(config, client, vm, restarts, kills)
        assert vm.send(16) == 16
        vm.drain()
        lost, doubled = ledger.lost_and_doubled(0, vm.next_packet)
        touched = overlaps(switches[0].touches, switches[1].touches)
        found["stored"] = int(systemctl("show", "--property=NFileDescriptorStore", "--value"))
        found["late_ns"] = stop(vm, switches[client.vm(VM).owner is Side.B])
        print(
            json.dumps({**found, "sent": vm.next_packet, "lost": lost, "doubled": doubled, "touched_by_two": touched})
        )


def drive(config: Config, client: BrokerClient, vm: FakeQemu, restarts: int, kills: int) -> dict[str, Any]:
    away, descriptors, owners = [], [], []
    with Traffic([vm], PACKETS, burst=1):
        begun, first = time.monotonic(), vm.next_packet
        for number in range(restarts + kills):
            time.sleep(_KEPT_S)
            before, at = client.status().pid, time.monotonic()
            systemctl("restart") if number < restarts else systemctl("kill", "--signal=KILL", "--kill-who=main")
            wait(partial(another, client, before), "another broker")
            away.append(time.monotonic() - at)
            descriptors.append(len(os.listdir(f"/proc/{client.status().pid}/fd")))
            owner = client.vm(VM)
            owners.append([owner.owner, owner.certainty])
            assert owner.owner is not None
            client.move(VM, owner.owner.other)
            client.undelivered(VM)
        rate = (vm.next_packet - first) / (time.monotonic() - begun)
    return {"away_s": away, "descriptors": descriptors, "owners": owners, "rate": rate}


def stop(vm: FakeQemu, owner: SwitchProcess) -> int:
    """Stop the unit for good, while the owner does not hear; for how many nanoseconds that was on the rings after QEMU
    saw its back end go."""
    with Traffic([vm], PACKETS), ThreadPoolExecutor(1) as pool:
        owner.deafen(deaf=True)
        stopped = pool.submit(systemctl, "stop")
        vm.wait_hung_up(30.0)
        hung_up = time.monotonic_ns()
        stopped.result()
    return max(0, max(span.end for span in owner.touches.spans()) - hung_up)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
