"""Who is at the other end of a unix socket."""

from __future__ import annotations

import os
import socket

from ovs_hotswap.peer import credentials


def test_the_other_end_is_known() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert credentials(ours) == (os.getpid(), os.geteuid(), os.getegid())
