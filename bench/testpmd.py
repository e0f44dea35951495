"""Guests that are not QEMU's: DPDK's ``virtio_user`` ports (a vhost-user front end of its own) in one ``dpdk-testpmd``
that sends back what it receives, so that frames circulate between them without end."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from bench.bed import Bed
from ovs_hotswap.errors import LabError
from ovs_hotswap.model import Side
from ovs_hotswap.priority import control_core

TESTPMD = "dpdk-testpmd"
IN_FLIGHT = 64  # testpmd's first burst on each port
_LINK_S = 20.0
_RATE = re.compile(r"Rx-pps:\s+(\d+)")


def needed() -> None:
    """Raises LabError if there is no testpmd."""
    if shutil.which(TESTPMD) is None:
        raise LabError(f"{TESTPMD} is not installed", hint="`apt-get install dpdk-dev`")


class Guests:
    """A testpmd with a port for each guest, on the core without PMD threads. ``properties``: of the devices, as DPDK's
    virtio PMD has them. ``nice``: what it yields to what else runs on that core, which it never leaves. ``sockets``:
    where guests listen, if not all guests of ``bed`` where QEMU would."""

    def __init__(
        self, bed: Bed, properties: str = "queues=1", *, nice: int = 0, sockets: Mapping[str, Path] | None = None
    ) -> None:
        config = bed.config
        sockets = sockets or {guest.name: config.qemu_socket(guest.name) for guest in bed.layout.guests}
        guests = [guest for guest in bed.layout.guests if guest.name in sockets]
        self._log = bed.layout.directory / f"testpmd-{guests[0].name}.log"
        core = min(control_core([core for side in Side for core in config.instance(side).pmd_cores]), default=0)
        ports = [
            f"--vdev=net_virtio_user{number},mac={guest.mac},path={sockets[guest.name]},server=1,{properties}"
            for number, guest in enumerate(guests)
        ]
        peers = [f"--eth-peer={number},{guest.mac}" for number, guest in enumerate(reversed(guests))]
        argv = [
            "nice", "-n", str(nice), TESTPMD,
            f"--lcores=0@{core},1@{core}", "--main-lcore=0", "--in-memory", "--single-file-segments",
            "-m", "64", "--no-pci", *ports, "--",
            "--forward-mode=io", "--auto-start", "--tx-first", "--stats-period=1", "--total-num-mbufs=4096", *peers,
        ]  # fmt: skip
        for socket in sockets.values():
            socket.unlink(missing_ok=True)
        with self._log.open("w") as out:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/")

    def rates(self) -> list[int]:
        """Frames received by both guests in each second so far. Raises LabError if testpmd ended."""
        text = self._log.read_text()
        if self._process.poll() is not None:
            raise LabError(f"{TESTPMD} ended: {text[-400:]}")
        each = [int(rate) for rate in _RATE.findall(text)]
        return [one + other for one, other in zip(each[::2], each[1::2], strict=False)]

    def wait_flowing(self, bed: Bed) -> None:
        """Return when frames come now. Raises LabError if testpmd ended, SwitchError if none come."""
        before = len(self.rates())
        bed.host.wait(
            lambda: len(self.rates()) > before + 1 and self.rates()[-1] > 0, _LINK_S, lambda: "no frames come"
        )

    def stop(self) -> None:
        """Keep the guests from running."""
        self._process.send_signal(signal.SIGSTOP)

    def run_for(self, seconds: float) -> float:
        """Have stopped guests run for a while; return how long that was, in seconds."""
        begin = time.monotonic()
        self._process.send_signal(signal.SIGCONT)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGSTOP)
        return time.monotonic() - begin

    def close(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
