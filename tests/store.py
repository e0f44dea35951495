"""The part of a service manager that keeps descriptors, for tests of services without systemd (sd_notify(3),
sd_listen_fds(3)). What it does is checked against the real one by the tests that boot systemd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

# Descriptors come as 3, 4, ...: first out of the way of each other, then to their places.
_EXEC = """
import fcntl, os, sys
numbers = [int(fd) for fd in sys.argv[1].split(",") if fd]
given = [fcntl.fcntl(fd, fcntl.F_DUPFD, 1000) for fd in numbers]
for fd in numbers:
    os.close(fd)
for place, fd in enumerate(given, 3):
    os.dup2(fd, place)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """Listens at ``path`` for what a service says, and keeps its descriptors by name. Context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.stored: list[tuple[str, int]] = []
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Manager:
        self._socket.bind(str(self._path))
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(b"END", str(self._path))
        self._thread.join()
        self._socket.close()
        self._path.unlink()
        for _, left in self.stored:
            os.close(left)

    def _listen(self) -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 253)
            text = data.decode()
            if text == "END":
                return
            with self._lock:
                self.said.append(text)
                self._take(dict(line.split("=", 1) for line in text.splitlines()), descriptors)

    def _take(self, said: dict[str, str], descriptors: list[int]) -> None:
        name = said.get("FDNAME", "stored")
        if said.get("FDSTORE") == "1":
            self.stored += [(name, descriptor) for descriptor in descriptors]
        elif said.get("FDSTOREREMOVE") == "1":
            for kept in [kept for kept in self.stored if kept[0] == name]:
                self.stored.remove(kept)
                os.close(kept[1])

    def spawn(self, argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a service with everything that is stored."""
        with self._lock, log.open("ab") as out:
            descriptors = [descriptor for _, descriptor in self.stored]
            environment = {
                **os.environ,
                "NOTIFY_SOCKET": str(self._path),
                "LISTEN_FDS": str(len(descriptors)),
                "LISTEN_FDNAMES": ":".join(name for name, _ in self.stored),
            }
            return subprocess.Popen(
                [sys.executable, "-c", _EXEC, ",".join(map(str, descriptors)), *argv],
                stdout=out, stderr=out, env=environment, pass_fds=descriptors, cwd=Path(__file__).parent.parent,
            )  # fmt: skip
