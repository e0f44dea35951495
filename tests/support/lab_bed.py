"""Labs whose guests are served by an active instance, with which integration tests begin."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ovs_hotswap.broker.lifecycle import start_broker
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance
from ovs_hotswap.lab import GuestOptions, Lab
from ovs_hotswap.model import Side
from ovs_hotswap.system import System

SHORT_SOAK = "\n[upgrade]\nsoak_s = 0.3\n"


@contextlib.contextmanager
def serving_lab(
    system: System,
    prefix: str,
    settings: str = SHORT_SOAK,
    *,
    vms: int = 2,
    options: GuestOptions | None = None,
    prepare: Callable[[Lab], object] = lambda lab: None,
) -> Iterator[Lab]:
    """A lab whose guests ping each other and the remote end, on the active instance a of the host's release. It is
    removed afterwards. ``settings``: what its configuration has besides. ``prepare`` is called before the broker
    starts."""
    lab = Lab(Path(tempfile.mkdtemp(prefix=prefix)), vms, system, options)
    try:
        lab.up()
        lab.config_path.write_text(lab.config_path.read_text() + settings)
        prepare(lab)
        bring_up(lab, system)
        yield lab
    finally:
        lab.down()


def bring_up(lab: Lab, system: System) -> None:
    """Start the broker and instance a, and wait for the guests' pings."""
    host = Host(lab.config, system)
    start_broker(lab.config, system, lab.config_path, 10.0)
    start_instance(host, Side.A, host.releases.get("host"))
    lab.pings.wait_flowing(60.0)
