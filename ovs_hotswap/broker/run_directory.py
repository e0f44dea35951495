"""What makes a process the only broker of a run directory: a lock, a pid file, and the group of its control socket.

``Place`` and its ``prepare`` do all that can fail, before the old broker of a takeover is asked to stop. What is left
for afterwards fails only if another broker was quicker; other faults of it are logged.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import logging
import os
from pathlib import Path

from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, BusyError, ConfigError
from ovs_hotswap.service import sd_notify
from ovs_hotswap.service.supervisor import SUCCEEDED
from ovs_hotswap.system import pid_text

log = logging.getLogger(__name__)


def control_group(config: Config) -> int | None:
    """Return the id of the group that may use the control socket, or ``None`` if none may.

    Raises ConfigError if this host has no such group.
    """
    if config.broker.group is None:
        return None
    try:
        return grp.getgrnam(config.broker.group).gr_gid
    except KeyError as error:
        name = config.broker.group
        raise ConfigError(
            f"broker.group: no group {name!r} on this host", hint=f"`groupadd --system {name}`, or name another one"
        ) from error


def remove_socket(path: Path) -> None:
    """Remove a socket. If it stays, because the disk is read-only, the next process that listens there replaces it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.error("%s: %s", path, error.strerror)


class Place:
    """The place of the broker in ``config.run_dir``, which is given back at the end of the context.

    Raises BrokerError if the run directory cannot be written.
    """

    def __init__(self, config: Config) -> None:
        self._lock_path, self._pid_path = config.run_dir / "broker.lock", config.run_dir / "broker.pid"
        self._prepared = config.run_dir / f".broker.pid.{os.getpid()}"
        self._taken = False
        try:
            config.run_dir.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BrokerError(f"{self._lock_path}: {error.strerror}") from error

    def prepare(self) -> None:
        """Write the pid file under a temporary name. Raises BrokerError if there is no room for it."""
        try:
            self._prepared.write_text(pid_text(os.getpid()))
            self._prepared.chmod(0o644)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._prepared.unlink(missing_ok=True)
            raise BrokerError(f"{self._pid_path}: {error.strerror}") from error

    def take(self) -> None:
        """Become the broker. Raises BusyError if another process is the broker. A fault of the disk is only logged."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            sd_notify.notify(SUCCEEDED)  # so that the supervisor does not start this process again
            raise BusyError(f"a broker is already under way (process {holder})",
                            hint="wait for it: `ovs-hotswap status`") from error  # fmt: skip
        self._taken = True
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, str(os.getpid()).encode(), 0)
            if not self._prepared.exists():
                self._prepared.write_text(pid_text(os.getpid()))
            self._prepared.rename(self._pid_path)
        except OSError as error:
            log.error("%s: %s: it does not name this broker, process %d", self._pid_path, error.strerror, os.getpid())

    def pass_on(self) -> None:
        """Leave the pid file to a successor, which replaces it, so that there is a pid file at any time."""
        self._taken = False

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            self._prepared.unlink(missing_ok=True)
            if self._taken and _number(self._pid_path) == os.getpid():
                self._pid_path.unlink()
        os.close(self._lock)


def _number(path: Path) -> int:
    return int(path.read_text().split()[0])
