"""The names of ports, and what flows of ours do, for telling the output of ``ofproto/trace`` in words. It is pure."""

from __future__ import annotations

from collections.abc import Callable

from ovs_hotswap.diagnose.facts import Wanted
from ovs_hotswap.overlay.tables import cookie_kind, cookie_name

Ports = dict[tuple[str, str], str]
"""The names of ports, by bridge and OpenFlow number as a text."""


def meaning_of(wanted: Wanted) -> Callable[[int], str | None]:
    """Return what says of a cookie what its flows do; ``None`` of a flow that is not ours."""
    by_ofport = wanted.by_ofport()

    def meaning(cookie: int) -> str | None:
        return cookie_name(cookie, by_ofport) if cookie_kind(cookie) is not None else None

    return meaning


def ports_of(wanted: Wanted) -> Ports:
    """Return the ports that are known without the switch."""
    ports = {(vm.bridge, str(vm.ofport)): vm.name for vm in wanted.vms.values()}
    ports |= {(wanted.bridge, str(number)): name for name, number in wanted.fixed_ports.items()}
    ports[wanted.bridge, "LOCAL"] = f"the bridge {wanted.bridge} itself"
    return ports
