"""What an operator types on a stock host, and what has to be the same before and after it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ovs_hotswap.model import Release
from ovs_hotswap.system import Completed
from tests.support.stock_host import StockHost
from tests.support.stock_ovn import Ovn
from tests.support.stock_strike import RELEASE

# Columns in which a switch reports; who programs it does not write them (vswitchd/vswitch.ovsschema, ephemeral ones and
# those of ovs-vswitchd(8) at its start).
_REPORTED = {
    "_version", "statistics", "status", "cur_cfg", "next_cfg", "link_resets", "link_state", "link_speed", "admin_state",
    "duplex", "mac_in_use", "mtu", "ifindex", "error", "lacp_current", "is_connected", "role", "rstp_statistics",
    "rstp_status", "ovs_version", "db_version", "dpdk_version", "dpdk_initialized", "datapath_types", "iface_types",
    "bfd_status", "cfm_fault", "cfm_flap_count", "cfm_health", "cfm_mpid", "cfm_remote_mpids", "cfm_remote_opstate",
    "cfm_fault_status", "bond_active_slave", "datapaths",
}  # fmt: skip


class Operator:
    """Commands of ovs-hotswap on the host, with a configuration of its own. ``more``: further tables of it."""

    def __init__(self, host: StockHost, more: str = "") -> None:
        self._host = host
        self.config = host.directory / "config.toml"
        self.config.write_text(host.config_text(more=more))

    def command(self, *words: str, timeout: float = 180.0) -> Completed:
        """Run a command, whatever its exit status."""
        argv = [sys.executable, "-P", "-m", "ovs_hotswap", "--config", str(self.config), "--json", *words]
        return self._host.completed(argv, timeout=timeout)

    def ask(self, *words: str, timeout: float = 180.0) -> Any:
        """The JSON document of a command that must succeed."""
        done = self.command(*words, timeout=timeout)
        assert done.status == 0, f"{' '.join(words)}: exit {done.status}: {done.stderr or done.stdout}"
        return json.loads(done.stdout)

    def start_broker(self) -> None:
        self.ask("broker", "start")

    def make_ready(self, release: Release) -> None:
        """Add ``release``, which has a tree, as RELEASE, and start the broker."""
        assert release.root is not None
        self.add_release(RELEASE, Path(release.root))
        self.start_broker()

    def add_release(self, name: str, tree: Path) -> None:
        self.ask("release", "add", name, "--from-directory", str(tree))


def programmed(host: StockHost) -> dict[str, object]:
    """Everything that others have programmed in the switch that is now at the well-known paths: the database without
    what the switch reports, and flows, groups and meters of each bridge."""
    found: dict[str, object] = {}
    for bridge in sorted(host.vsctl("list-br").split()):
        found[f"flows of {bridge}"] = host.flows(bridge)
        for what in ("dump-groups", "dump-meters", "dump-tlv-map"):
            # The first line names the kind of answer and a transaction.
            found[f"{what} of {bridge}"] = sorted(host.ofctl(what, bridge).splitlines()[1:])
    return found | {f"table {name}": rows for name, rows in database(host).items()}


def database(host: StockHost) -> dict[str, dict[str, dict[str, object]]]:
    """The rows of each table by their UUID, without the columns in which the switch reports, and without empty ones: a
    newer release has columns that the older one lacks."""
    text = host.run(["ovsdb-client", "--format=json", "dump", "unix:/var/run/openvswitch/db.sock", "Open_vSwitch"])
    found: dict[str, dict[str, dict[str, object]]] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        table = json.loads(line)
        rows = (dict(zip(table["headings"], row, strict=True)) for row in table["data"])
        found[table["caption"].split()[0]] = {
            row["_uuid"][1]: {
                name: value for name, value in row.items() if name not in _REPORTED and value not in _EMPTY
            }
            for row in rows
        }
    return found


_EMPTY = (["set", []], ["map", []])
# What each instance has for itself: what it uses of the machine, and numbers that switches choose by themselves.
_OWN_KEYS = {
    ("Open_vSwitch", "other_config"): {"dpdk-extra", "dpdk-init", "dpdk-socket-mem", "dpdk-socket-limit",
                                       "pmd-cpu-mask", "dpdk-lcore-mask", "shared-mempool-config"},
    ("Open_vSwitch", "external_ids"): {"ovs-hotswap", "ovs-hotswap-pmd-sleep"},
    ("Bridge", "other_config"): {"datapath-id", "hwaddr"},
    ("Interface", "options"): {"dpdk-devargs"},
    ("Interface", "ofport_request"): None,
}  # fmt: skip


def without_own(found: dict[str, Any]) -> dict[str, Any]:
    """A result of ``programmed`` without what each instance has for itself."""
    left = {name: value for name, value in found.items() if name != "table Datapath"}  # of which others write nothing
    for (table, column), keys in _OWN_KEYS.items():
        rows = left[f"table {table}"]
        left[f"table {table}"] = {uuid: _without(row, column, keys) for uuid, row in rows.items()}
    return left


def _without(row: dict[str, Any], column: str, keys: set[str] | None) -> dict[str, Any]:
    rest = {name: value for name, value in row.items() if name != column}
    if keys is None or column not in row:
        return rest
    kept = [pair for pair in row[column][1] if pair[0] not in keys]
    return {**rest, column: ["map", kept]} if kept else rest


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two results of ``programmed``, in lines for people."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            lines += [f"{name} {key}: {one.get(key)} -> {other.get(key)}"
                      for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]  # fmt: skip
        elif isinstance(one, list) and isinstance(other, list):
            lines += [f"{name}: -{line}" for line in one if line not in other]
            lines += [f"{name}: +{line}" for line in other if line not in one]
        elif one != other:
            lines.append(f"{name}: {one} -> {other}")
    return lines


def reprogram(host: StockHost) -> None:
    """What others do on any day: a new ACL or flow, and a new VM, which is left for ``plug``. Returns when the VM has
    its network, which it has only if the active instance was programmed."""
    if host.kind == "ovn":
        Ovn(host).add_acl("to-lport", 1100, "outport == @guests && ip4 && tcp.dst == 5001", "allow-related")
    else:
        host.ofctl("add-flow", "br-int", "cookie=0xd4,table=0,priority=95,tcp,tp_dst=5001,actions=NORMAL")
    for guest in [guest for guest in host.guests if guest not in host.running]:
        host.plug(guest.name)


def stepwise(host: StockHost, operator: Operator, release: str, acts: Mapping[str, Callable[[], object]]) -> Completed:
    """An upgrade that waits at the beginning of each step that ``acts`` names, until its act has returned. ``STEP+``:
    at the first progress within the step."""
    program = f"""
import sys
from pathlib import Path
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host.host import Host
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader
moments = {list(acts)!r}
def watch(event):
    print(event, file=sys.stderr, flush=True)
    name = event.step + dict(started="", progress="+").get(event.kind, "?")
    if name in moments:
        moments.remove(name)
        print(name, flush=True)
        sys.stdin.readline()
try:
    Upgrader(Host(load_config(Path({str(operator.config)!r})), System())).upgrade({release!r}, watch, force=True)
except HotswapError as error:
    print(type(error).__name__, error, error.hint, file=sys.stderr)
    raise SystemExit(error.exit_code)
"""
    with tempfile.TemporaryFile("w+") as said:
        upgrade = host.space.popen(
            [sys.executable, "-P", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        )
        assert upgrade.stdin is not None
        assert upgrade.stdout is not None
        try:
            for line in upgrade.stdout:
                acts[line.strip()]()
                print(file=upgrade.stdin, flush=True)
        finally:
            upgrade.stdin.close()  # it continues to its end without an answer as well
            status = upgrade.wait(180.0)
            said.seek(0)
            text = said.read()
            print(text)
        return Completed(("upgrade",), status, "", text)
