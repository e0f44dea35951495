"""Sends the broker's sign of life to systemd."""

from __future__ import annotations

import asyncio

from ovs_hotswap.service import sd_notify


async def ping_forever() -> None:
    """Send ``WATCHDOG=1`` from the event loop as often as the unit asks for it, which proves that the loop runs.

    Return at once if the unit does not ask for it.
    """
    interval = sd_notify.ping_interval()
    while interval is not None:
        sd_notify.tell("WATCHDOG=1")
        await asyncio.sleep(interval)
