"""The checks of an upgrade on a host that others program."""

from __future__ import annotations

from collections.abc import Collection

from ovs_hotswap.clone import database
from ovs_hotswap.errors import ReleaseError
from ovs_hotswap.host import memory_checks, traces
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.machine import descriptor_limit
from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.service.hidden_paths import BROKER, out_of_reach
from ovs_hotswap.service.systemctl import Unit
from ovs_hotswap.stock.survey import running_paths
from ovs_hotswap.stock.vms import vm_ports as takeable
from ovs_hotswap.switch.machine_parts import numa_nodes
from ovs_hotswap.switch.pools import huge_page_pools
from ovs_hotswap.upgrade import checks, collect, stock_checks, stock_collect
from ovs_hotswap.vm_ports import VmPort


def precheck(host: Host, old: Side, new: Side, release: str, leave_out: Collection[str] = ()) -> list[Finding]:
    """Check everything that can be known before anything is changed. A fault of the host is a finding and never
    raises."""
    return collect.gathered(
        lambda: collect.release_checks(host, old, release),
        lambda: collect.beside(host, new, release),
        lambda: checks.descriptors(descriptor_limit(host, new), [(2, port.queues) for port in vm_ports(host)]),
        lambda: memory(host, new),
        lambda: collect.broker(host),
        lambda: of_host(host, release, leave_out),
        lambda: reach(host),
        lambda: losses(host, release),
        lambda: traces.check(host),
    )


def of_host(host: Host, release: str, leave_out: Collection[str]) -> list[Finding]:
    """Check the running switch and its VMs, and whether a release can serve in its place. Raises HostError."""
    facts, findings = stock_collect.examine(host.config, host.system, leave_out)
    try:
        version = host.releases.get(release).ovs_version
    except ReleaseError:
        version = None  # `collect.release_checks` says so
    return [*findings, *stock_checks.conntrack_of(version, facts.pipeline)]


def reach(host: Host) -> list[Finding]:
    """Check that the broker's unit, if there is one, can listen at the VMs' sockets. Raises CommandError, HostError."""
    unit = Unit(BROKER, host.system)
    if not unit.serves(host.config):
        return []
    directories = sorted({str(port.socket.parent) for port in vm_ports(host)})
    found = {directory: why for directory in directories if (why := out_of_reach(unit, directory)) is not None}
    return [Finding("sockets", Severity.ERROR, why,
                    f"`systemctl edit {BROKER}`: PrivateTmp=no, ProtectHome=no or ReadWritePaths={directory} "
                    "(docs/hosts.md, Install), then restart it")
            for directory, why in found.items()]  # fmt: skip


def losses(host: Host, release: str) -> list[Finding]:
    """What the database of a release cannot hold of what the active instance has. Raises SwitchError, ReleaseError."""
    lost = database.losses(running_paths(host.config, host.system), host.releases.get(release))
    return [Finding("database", Severity.WARNING, f"release {release} cannot hold it, so it is lost: {text}")
            for text in lost]  # fmt: skip


def memory(host: Host, new: Side) -> list[Finding]:
    """Check the huge pages that an instance takes which is started now."""
    if host.running(new):
        return []
    own = host.config.instance(new)
    return memory_checks.huge_pages(huge_page_pools(), host.reservation(new).mib, numa_nodes(own.pmd_cores))


def postcheck(host: Host, new: Side) -> list[Finding]:
    """Check the new instance after the upgrade. Raises SwitchError, HostError."""
    strays = host.cloning.well_known.strays(host.instances[new].paths)
    if not strays:
        return [Finding("well-known paths", Severity.OK, f"they lead to instance {new}")]
    text = f"{', '.join(strays)} in {host.config.stock.run_dir} do not lead to instance {new}"
    return [Finding("well-known paths", Severity.WARNING, text, f"`ls -l {host.config.stock.run_dir}`")]


def vm_ports(host: Host) -> tuple[VmPort, ...]:
    """The VMs' ports that the switch which serves them has now. Raises HostError, StateUnknown."""
    return takeable(stock_collect.collect(host.config, host.system).vms)
