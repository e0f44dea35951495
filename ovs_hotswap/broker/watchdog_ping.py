"""The broker's sign of life for systemd."""

from __future__ import annotations

import asyncio

from ovs_hotswap.service import sd_notify


async def ping_forever() -> None:
    """Send ``WATCHDOG=1`` from the event loop as often as the unit wants it, which proves that the loop turns; return
    at once if nobody wants it."""
    interval = sd_notify.ping_interval()
    while interval is not None:
        sd_notify.tell("WATCHDOG=1")
        await asyncio.sleep(interval)
