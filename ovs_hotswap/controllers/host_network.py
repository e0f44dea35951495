"""What of the host's own network cannot pass to another instance while the old one lives. This module is pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ovs_hotswap.model import Finding, Severity

DATAPATH = "ovs-netdev"
"""The tap of each switch that forwards in user space (lib/dpif-netdev.c). It has this name, so the old one's is given
another before the new switch starts."""


def findings(taps: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Return what ``check`` says of taps. ``taps``: by name, what cannot pass (``taps.Taps.obstacles``)."""
    found = []
    for name, obstacles in taps.items():
        if obstacles and name != DATAPATH:
            text = f"port {name} stays with the old instance until that has ended, and the host is without it from the "
            hint = f"see `ip -details link show {name}`; without that, {name} passes with the VMs"
            text += f"cut on: {'; '.join(obstacles)}"
            found.append(Finding("host ports", Severity.WARNING, text, hint=hint, item=f"port {name}"))
    return found
