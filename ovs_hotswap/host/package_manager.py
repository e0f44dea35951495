"""Whether Debian's package manager is at work: the files of a release are then not all of the same version."""

from __future__ import annotations

import contextlib
import fcntl
import struct
from collections.abc import Sequence
from pathlib import Path

# dpkg holds the first one in each of its runs, apt the second one in a whole transaction (dpkg(1), "lock-frontend").
LOCKS = (Path("/var/lib/dpkg/lock"), Path("/var/lib/dpkg/lock-frontend"))
_FLOCK = "hhqqi"  # struct flock of x86-64 (fcntl(2)): type, whence, start, length, pid


def at_work(locks: Sequence[Path] = LOCKS) -> bool:
    """Whether one of the locks is held. They are asked about and not taken: dpkg does not wait for a lock."""
    return any(_held(path) for path in locks)


def _held(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as lock:
        asked = struct.pack(_FLOCK, fcntl.F_RDLCK, 0, 0, 0, 0)
        found = struct.unpack(_FLOCK, fcntl.fcntl(lock, fcntl.F_GETLK, asked))
        return bool(found[0] != fcntl.F_UNLCK)
    return False
