"""The broker's sign of life for systemd."""

from __future__ import annotations

import asyncio

from ovs_hotswap import sd


async def ping_forever() -> None:
    """Send ``WATCHDOG=1`` from the event loop as often as the unit wants it, which proves that the loop turns; return
    at once if nobody wants it."""
    interval = sd.ping_interval()
    while interval is not None:
        sd.tell("WATCHDOG=1")
        await asyncio.sleep(interval)
