"""What the drivers' process is given when it is started."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from bench.guests.rings import Shape

NOBODY = -1
REMOTE = -2


@dataclass(frozen=True, slots=True)
class Plan:
    """What the drivers do. ``memory``: the memfds. ``targets``: the target of each VM, which is a VM's number,
    ``REMOTE`` or -1 for none. ``remote``: an AF_PACKET socket at the remote host, whose MAC is ``remote_mac``.
    ``frame``: the bytes of a frame; ``header``: the bytes of the virtio header before it. ``flows``: see
    ``FleetSpec``."""

    shape: Shape
    memory: tuple[int, ...]
    macs: tuple[str, ...]
    targets: tuple[int, ...]
    remote: int | None
    remote_mac: str
    frame: int
    header: int
    pause_us: int
    nice: int
    flows: int = 1

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Plan:
        found = json.loads(text)
        found["shape"] = Shape(**found["shape"])
        for key in ("memory", "macs", "targets"):
            found[key] = tuple(found[key])
        return cls(**found)
