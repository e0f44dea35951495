"""A process that opens wire mode, wires and cuts, and is killed after so many acts: as module with the arguments
CONFIG ACTS. It prints how many acts it made if it comes to the end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovs_hotswap.config_file import load_config
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.ports import UPLINK
from ovs_hotswap.system import Completed, System
from ovs_hotswap.vm_ports import VmPort
from ovs_hotswap.wire.mirror_flows import Mode
from ovs_hotswap.wire.mirrors import MirrorWire, UplinkPort


class Doomed(System):
    """Counts the commands and transactions, and ends this process after the last one that it may make."""

    def __init__(self, acts: int) -> None:
        self.made, self._acts = 0, acts

    def act(self) -> None:
        self.made += 1
        if self.made == self._acts:
            os.kill(os.getpid(), signal.SIGKILL)

    def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:  # fmt: skip
        done = super().run(argv, timeout=timeout, check=check, stdin=stdin, env=env)
        if not any(argument.startswith("dump-") for argument in argv):
            self.act()
        return done


class DoomedWire(MirrorWire):
    def __init__(self, system: Doomed, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._doom = system

    def _transact(self, side: Side, operations: Any) -> Any:
        results = super()._transact(side, operations)
        if any(operation["op"] != "select" for operation in operations):
            self._doom.act()
        return results


def main(config_file: str, acts: str) -> None:
    system = Doomed(int(acts))
    config = load_config(Path(config_file))
    host = Host(config, system)
    sides = {side: host.instances[side].paths for side in Side}
    wire = DoomedWire(system, sides, system, config.run_dir / "wire.sock")
    ports = [
        VmPort(name=vm.name, bridge=config.bridge, ofport=vm.ofport, socket=config.qemu_socket(vm.name))
        for vm in host.intent.vms
    ]
    wire.open(Side.A, ports, [UplinkPort(config.bridge, UPLINK)])
    wire.wire(Side.B)
    wire.wire(Side.B, Mode.UPLINKS)
    wire.cut(Side.B)
    wire.remove(ports[:1])
    for side in Side:
        wire.close(side)
    print(system.made)


if __name__ == "__main__":
    main(*sys.argv[1:])
