"""What an upgrade does to the ports of the switch that the host itself uses, for ``check``. This module is pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ovs_hotswap.model import Finding, Severity

DATAPATH = "ovs-netdev"
"""The tap of each switch that forwards in user space (lib/dpif-netdev.c). It has this name, so the old one's is given
another before the new switch starts."""
_CHECK = "host network"


def findings(taps: Mapping[str, Sequence[str]], devices: Sequence[str]) -> list[Finding]:
    """Return what becomes of each port. ``taps``: by name, what cannot pass to another tap (``taps.Taps.obstacles``).
    ``devices``: other devices of the kernel that are ports, such as veths."""
    found = []
    for name, obstacles in taps.items():
        if name == DATAPATH:
            continue
        if obstacles:
            text = f"{name} stays with the old instance until that has ended: {'; '.join(obstacles)}"
            hint = f"without it, {name} passes with the VMs; with it, the host is without {name} until then"
            found.append(Finding(_CHECK, Severity.WARNING, text, hint=hint, item=name))
        else:
            text = (f"{name} passes to a tap of the new instance, with its addresses, routes and neighbours; sockets "
                    "that are bound to the device itself, and multicast groups, do not")  # fmt: skip
            found.append(Finding(_CHECK, Severity.OK, text, item=name))
    for name in devices:
        text = f"{name} is without a switch for a moment (tens of milliseconds) when it passes to the new instance"
        found.append(Finding(_CHECK, Severity.OK, text, item=name))
    return found
