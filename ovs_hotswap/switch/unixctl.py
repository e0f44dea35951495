"""Commands to a running OVS daemon over its control socket, as ovs-appctl(8) sends them."""

from __future__ import annotations

from pathlib import Path

from ovs_hotswap.switch.rpc import call


def appctl(socket: Path, command: str, *args: str, timeout: float = 5.0) -> str:
    """Have the daemon that listens on ``socket`` carry out ``command``; return its text.

    ``timeout`` is in seconds and holds even if the daemon's main thread is blocked. Raises NoAnswer when it passes,
    SwitchError when the daemon is not there or refuses the command.
    """
    return str(call(socket, command, list(args), timeout=timeout))
