"""nfcapd, a collector of Debian (package nfdump), and what nfdump reads of its files."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.waiting import eventually

_END_S = 20.0


@dataclass
class Nfcapd:
    """``address``: where it listens. ``directory``: its files."""

    address: str
    directory: Path
    process: subprocess.Popen[bytes]

    def end(self) -> None:
        """End it when it has read what it was sent. Its last file is complete then."""
        eventually(lambda: _waiting(self.address) == 0, "nfcapd reads")
        self.process.terminate()
        self.process.wait(_END_S)

    @property
    def files(self) -> list[Path]:
        return sorted(self.directory.glob("nfcapd.2*"))

    def _nfdump(self, *arguments: str) -> str:
        return subprocess.run(["nfdump", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout

    def flows(self) -> list[dict[str, Any]]:
        """The records that it has kept. It must have ended."""
        found = []
        for path in self.files:
            found += json.loads(self._nfdump("-r", str(path), "-o", "json") or "[]")
        return found

    def sums(self, what: str = "in_packets") -> Counter[tuple[int, int, int]]:
        """The records' counts by domain, observation point and direction (0: from the VM, 1: to it)."""
        found: Counter[tuple[int, int, int]] = Counter()
        for flow in self.flows():
            domain = next(value for key, value in flow.items() if re.fullmatch("observationDo(main|amin)ID", key))
            found[domain, flow["observationPointID"], flow["direction"]] += flow[what]
        return found

    def sequence_failures(self) -> int:
        found = [re.findall(r"Sequence failures: (\d+)", self._nfdump("-E", str(path))) for path in self.files]
        return sum(int(number) for numbers in found for number in numbers)


def _waiting(address: str) -> int | None:
    """The bytes in the queue of the socket at a port of this host; ``None`` if there is no such socket (proc(5))."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(port):
            return int(words[4].partition(":")[2], 16)
    return None


@contextlib.contextmanager
def nfcapd(directory: Path) -> Iterator[Nfcapd]:
    """One that takes what comes at a port of 127.0.0.1 that is free now. It is ended afterwards, if it has not been."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = directory / "nfcapd"
    kept.mkdir()
    command = ["nfcapd", "-b", "127.0.0.1", "-p", str(port), "-w", str(kept), "-t", "3600", "-B", str(1 << 20)]
    with (directory / "nfcapd.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    found = Nfcapd(f"127.0.0.1:{port}", kept, process)
    try:
        eventually(lambda: _waiting(found.address) is not None, "nfcapd listens")
        yield found
    finally:
        if process.poll() is None:
            found.end()
