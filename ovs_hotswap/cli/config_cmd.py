"""``ovs-hotswap config``."""

from __future__ import annotations

import os

import click

from ovs_hotswap.broker.run_directory import control_group
from ovs_hotswap.cli.app import App, Group, pass_app
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.model import Side
from ovs_hotswap.service.hidden_paths import hidden_paths
from ovs_hotswap.service.systemctl import Unit
from ovs_hotswap.system import files
from ovs_hotswap.toml_file import refuse
from ovs_hotswap.wording import listed

EXAMPLE = """\
# ovs-hotswap: configuration of one hypervisor. Lines that start with "#" show the default or an alternative.
# `ovs-hotswap config check` validates this file.

# The overlay intent: this host's VTEP, its VMs and the remote hosts (`ovs-hotswap overlay example`).
overlay = "/etc/ovs-hotswap/overlay.toml"

# Sockets, pid files and logs of the instances and the broker; gone after a reboot. A short path: unix sockets below
# it may have 107 bytes.
# run_dir = "/run/ovs-hotswap"

# Releases, journals of upgrades: kept over a reboot.
# state_dir = "/var/lib/ovs-hotswap"

# The one bridge of each instance.
# bridge = "br0"

# What gives each VM two back ends: "broker" (stock QEMU), or "qemu-dual" (a QEMU of the series in qemu-patches).
# backend = "broker"

# Who programs the bridges: "overlay" (ovs-hotswap, from the overlay intent), or "clone" (OVN, Neutron or scripts; the
# new instance becomes a copy of the active one, and `overlay` is not needed).
# program = "overlay"

# Only for program = "clone": the files and the unit of the distribution's switch, which is taken over.
[stock]
# run_dir = "/run/openvswitch"
# database = "/etc/openvswitch/conf.db"
# log = "/var/log/openvswitch/ovs-vswitchd.log"
# unit = "openvswitch-switch"

[broker]
# Where a VM's QEMU listens (`-chardev socket,server=on,path=...`); {vm} is the VM's name. The broker's systemd unit
# sees nothing of the host's /tmp, /home and /root.
# qemu_socket = "/run/ovs-hotswap/vm/{vm}.sock"

# Group that may use the broker's control socket besides root.
# group = "libvirt"

# Longest wait, in ms, for a switch to confirm that it has released, or taken, a VM's rings.
# fence_ms = 500

# The most memory, in MiB, for frames that arrive for VMs while those are moved. If all VMs together would need more,
# they are moved in several batches, one after the other.
# capture_mb = 512

# Virtio features that VMs which start from now on are not offered. A VM that uses a feature which only a newer release
# has cannot go back to the older release.
# withhold_features = []

# Only for backend = "qemu-dual":
[qemu]
# A VM's QMP socket, one that is for ovs-hotswap alone (`-qmp unix:...,server=on,wait=off`).
# monitor = "/run/ovs-hotswap/vm/{vm}.qmp"
# Where a VM's QEMU listens for a side's switch: the netdev's `chardev` for side a, its `standby-chardev` for side b.
# Below run_dir: an instance of another release sees nothing else of the host.
# socket = "/run/ovs-hotswap/vm/{vm}.{side}.sock"
# The id of the VM's netdev. It is needed if a QEMU has several netdevs with two back ends.
# netdev = "{vm}"

# The two instances. One is active, the other is the standby of an upgrade; the names say nothing about which.
[instances]
# More keys of Open_vSwitch.other_config for both, set before ovs-vswitchd starts, such as
# { userspace-tso-enable = true, emc-insert-inv-prob = 0 }. Keys that decide which features a VM is offered must have
# the same values on both sides. What ovs-hotswap writes itself (DPDK's memory and arguments, PMD cores and sleep) has
# keys of its own in this file.
# other_config = {}

[instances.a]
# Cores of its PMD threads, each of which polls queues in an endless loop. If the two instances have different cores,
# they do not slow each other down. Handovers are fastest if one core is left without PMD threads.
pmd_cores = [2]
# The most huge page memory, in MiB, that it may take on a NUMA node, its packet pool included. It takes what its ports,
# queues and MTUs need, which `ovs-hotswap check --release NAME` shows: 66 MiB with 4 VMs, 310 with 255 VMs of 4 queues.
# memory_mb = 512
# Longest sleep, in us, of an idle PMD in normal operation; 0 polls without a pause.
# pmd_sleep_us = 0
# More keys of Open_vSwitch.other_config for this instance only.
# other_config = {}
# The DPDK device of its virtual function (VF): a PCI address bound to vfio-pci ...
uplink_devargs = "0000:03:02.0"
# More arguments of DPDK. The default keeps DPDK from all PCI devices but the uplink's, for which "-a" is passed, with
# what the release's driver needs to recover from a reset.
# dpdk_extra = "--no-pci"
# second_devargs = "eth_af_packet1,iface=vf1-a"
# Only for program = "clone", in place of the keys of the uplink: the DPDK device of each port of type dpdk.
# port_devices = { dpdk0 = "0000:03:02.0" }
# second_device = "vf1-a"

[instances.b]
pmd_cores = [3]
# memory_mb = 512
# pmd_sleep_us = 0
# other_config = {}
# ... or a virtual device on a kernel network device, which is moved into the instance's network namespace:
uplink_devargs = "eth_af_packet0,iface=vf-b"
uplink_device = "vf-b"
# With the driver "announce" each instance needs the MAC of its VF, as in: uplink_mac = "02:00:00:00:00:0b"
# dpdk_extra = "--no-pci"
# The same two of a second NIC, for both instances or for neither; [uplink] then has "second", too.
# second_devargs = "eth_af_packet1,iface=vf1-b"
# port_devices = { dpdk0 = "0000:03:02.1" }
# second_device = "vf1-b"

# How overlay traffic reaches the active instance. docs/uplinks.md says which driver is for which NIC: "tc" (software
# rules), "switchdev" (the same in hardware: E810, ConnectX), "i40e" (X710, XL710), "announce" (any NIC with VFs),
# "exclusive" (the switch owns the NIC), "none" (something else steers it).
[uplink]
driver = "tc"
# The physical function on which the traffic arrives, and the representors of the two VFs.
device = "eno1"
representor_a = "eno1_0"
representor_b = "eno1_1"
# The numbers of the two VFs at the physical function (`ip link show eno1`): what "i40e" steers to.
# vf_a = 0
# vf_b = 1
# What the rules of "i40e" look at: "udp-port" (the tunnels' UDP port alone, at any address) or "address" (the VTEP's
# address alone, which must then be an address of the overlay's own).
# match = "udp-port"
# The two places in the NIC's table of rules that "i40e" may use.
# locations = [4094, 4095]
# How long, in s, the other VF must have been silent before "announce" stops announcing.
# silence_s = 1.0
# A second NIC behind the same VTEP, and by which NIC packets leave: "active-backup" (the first with a link),
# "balance-slb" (one that the VTEP's MAC chooses), "dpdk" (as DPDK's net_bonding decides).
# second = { device = "eno2", representor_a = "eno2_0", representor_b = "eno2_1", vf_a = 0, vf_b = 1 }
# bond = "active-backup"
# The network namespace of these devices, where it is not the host's own.
# namespace = "underlay"

# What is set on an instance's VFs before it opens them, and put back after it has ended. What is not given is left as
# it is found. The commands that do the same by hand: `ip link set eno1 vf 0 trust on`, and so on.
[uplink.vfs]
# trust = true
# spoof_check = false
# "auto": the VF's link is up if the NIC's is; "enable": it is always up.
# link_state = "auto"
# The VLAN to which the NIC binds the VF; 0 is none.
# vlan = 0
# The MAC addresses of the VFs of instance a and of instance b.
# mac_a = "02:00:00:00:00:0a"
# mac_b = "02:00:00:00:00:0b"
# Bind the VF to vfio-pci before the instance starts, and to its earlier driver after the instance has ended.
# bind = false

[upgrade]
# Longest sleep, in us, of an idle PMD while both instances live; afterwards the instances' own value holds again.
# pmd_sleep_us = 100

# How long, in s, the moved VMs are watched before the old instance is given up.
# soak_s = 5

# Longest wait, in s, for an instance or a VM's queues to become ready.
# ready_s = 30

# Leave the old instance running after an upgrade, ready to take the VMs back.
# keep_old = false

# `ovs-hotswap watch run` keeps a standby instance that takes over when the active one dies or hangs.
[watch]
# "automatic": keep a standby where that is possible; "required": a host without one is in error; "restart": keep none,
# and start an active instance that ended again; "off".
# mode = "automatic"

# Time, in ms, between two looks at the active instance. The death of its process is noticed at once.
# check_ms = 50

# Within this time, in ms, a stopped active instance is ended and its VMs are moved. A PMD thread that has queues may
# stand still for this time.
# hang_ms = 500

# How long, in ms, its main thread may be silent. Packets are forwarded in that time, and the main thread is busy
# for half a second when a VM of a new kind connects.
# main_ms = 10000

# The release that the standby runs, if it is not to be the active one's. A standby of another release is replaced.
# release = "host"

# After so many deaths and failed starts of instances within so many seconds, no standby is started any longer.
# crash_limit = 5
# crash_window_s = 600

# The flow log: what VMs send and are given, exported by IPFIX (docs/flowlog.md). A change is followed by the watchdog,
# or by `ovs-hotswap overlay apply`. Not for program = "clone".
[flowlog]
# Where the records are sent, by UDP, such as ["192.0.2.20:4739", "[2001:db8::20]:4739"]. Without any it is off.
# collectors = []

# The VMs that are logged; all if there are none.
# vms = []

# One packet of so many is looked at, and counts for as many. With 1 every packet is, which costs several times the
# processor time of forwarding it (docs/flowlog.md).
# sampling = 100

# The number of this host in its records. By default the last 32 bits of its VTEP's address, as a number.
# observation_domain = 1

# After so many seconds a flow's counts are exported. If an instance dies, as many are missing at most.
# export_s = 10

# The most flows whose counts an instance holds. If there are more, the oldest ones are exported earlier. While it
# exports all of them at once, packets that are looked at wait: 5 us for each flow.
# cache_flows = 1024
"""


@click.group(cls=Group)
def config() -> None:
    """Check the configuration, print an example of it, or write it for a host that others program."""


@config.command(short_help="Validate the configuration; nothing is changed.", changes=False)
@pass_app
def check(app: App) -> None:
    """Validate the configuration file as a whole, and that this host has its `broker.group`; nothing is changed.

    Every fault is listed with its key, what is wrong and what is allowed (exit code 3). Where the systemd units are
    installed, a path that they do not see (/tmp, /home, /root) is a fault too.
    With --json: {"file", "valid": true, "config"}.

    \b
    Example:
      ovs-hotswap config check
      ovs-hotswap --config ./config.toml config check --json
    """
    loaded = app.config
    control_group(loaded)
    units = [Unit(f"ovs-hotswap-{name}.service", app.system) for name in ("broker", "watch")]
    refuse(app.config_path, dict.fromkeys(hidden_paths(loaded, units)), "systemctl cat ovs-hotswap-broker")
    values = loaded.model_dump(mode="json")
    values["road"] = values["backend"]  # the key's earlier name, for programs that read that name
    app.output.document({"file": app.config_path, "valid": True, "config": values})
    app.output.line(f"{app.config_path}: valid")
    rows: list[tuple[str, object]] = [
        ("overlay", loaded.overlay), ("run_dir", loaded.run_dir), ("state_dir", loaded.state_dir),
        ("bridge", loaded.bridge), ("uplink", loaded.uplink.driver),
    ]  # fmt: skip
    for side in Side:
        instance = loaded.instance(side)
        cores = ",".join(map(str, instance.pmd_cores))
        rows.append(
            (f"instance {side}", f"PMD cores {cores}, {instance.memory_mb} MiB, uplink {instance.uplink_devargs}")
        )
    app.output.table(("key", "value"), rows)


@config.command(short_help="Print a configuration with a comment for every key.", changes=False)
@pass_app
def example(app: App) -> None:
    """Print a complete configuration with a comment for every key.

    With --json: {"example"}, the same text.

    \b
    Example:
      ovs-hotswap config example > /etc/ovs-hotswap/config.toml
    """
    app.output.document({"example": EXAMPLE})
    app.output.line(EXAMPLE.rstrip())


@config.command(short_help="Write the configuration of a host that others program.", changes=True)
@click.option(
    "--second-device", "second_devices", metavar="PORT=DEVARGS", multiple=True,
    help="The new instance's device for a port of type dpdk, as in options:dpdk-devargs. May be given several times. "
         "What is not given has to be filled in before an upgrade.",
)  # fmt: skip
@click.option("--pmd-cores", metavar="LIST", help="The new instance's cores, as in 2,4-5. By default free ones.")
@click.option("--stock-run-dir", metavar="DIR", default="/run/openvswitch", show_default=True,
              help="Where the distribution's switch has its sockets.")  # fmt: skip
@click.option("--unit", metavar="NAME", default="openvswitch-switch", show_default=True, help="Its systemd unit.")
@click.option("--force", is_flag=True, help="Replace a configuration file that exists.")
@pass_app
def init(
    app: App, second_devices: tuple[str, ...], pmd_cores: str | None, stock_run_dir: str, unit: str, force: bool
) -> None:
    """Write the configuration of a host whose switch others installed and program, from what runs there.

    It says `program = "clone"`, where the running switch has its files, and gives both instances the memory and as many
    cores as the switch has now. Only the configuration file is written; `ovs-hotswap check` is next.

    With --json: {"file", "config"}, the text of the file.

    \b
    Example:
      ovs-hotswap config init --second-device dpdk0=0000:03:02.1
    """
    from ovs_hotswap.cli.stock_cmd import new_configuration
    from ovs_hotswap.stock.new_config import Choices

    if app.config_path.exists() and not force:
        raise ConfigError(f"{app.config_path} exists already", hint="--force replaces it; or edit it")
    chosen = sorted(listed(pmd_cores or ""))
    if pmd_cores is not None and not chosen:
        raise click.BadParameter(f"{pmd_cores!r} is no list of cores such as 2,4-5", param_hint="--pmd-cores")
    devices = dict(each.partition("=")[::2] for each in second_devices)
    if not all(devices.values()):
        raise click.BadParameter("must be PORT=DEVARGS", param_hint="--second-device")
    text = new_configuration(app, os.sched_getaffinity(0), Choices(devices, chosen, stock_run_dir, unit))
    with files(app.config_path):
        app.config_path.parent.mkdir(parents=True, exist_ok=True)
    app.system.write_atomic(app.config_path, text)
    app.output.done = True
    app.output.document({"file": app.config_path, "config": text})
    app.output.line(f"{app.config_path}: written; `ovs-hotswap check` is next")
