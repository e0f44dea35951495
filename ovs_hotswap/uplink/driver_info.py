"""What the driver of a network device of the host says of itself, if it answers (ethtool(8), ``-i`` and
``--show-priv-flags``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.uplink.ethtool import Ethtool, open_ioctl


def firmware(name: str) -> str | None:
    """The version of a device's firmware, which is nowhere in /sys; empty if it has none, ``None`` if its driver does
    not answer."""
    try:
        with _open(name) as tool:
            return tool.driver().firmware.strip()
    except UplinkError:
        return None


def private_flags(name: str) -> dict[str, bool]:
    """The private flags of a device by their names; none if it has none, or its driver does not answer."""
    try:
        with _open(name) as tool:
            return tool.private_flags()
    except UplinkError:
        return {}


@contextlib.contextmanager
def _open(name: str) -> Iterator[Ethtool]:
    with contextlib.closing(open_ioctl(None)) as ioctl:
        yield Ethtool(ioctl, name)
