"""The changes that help against losses in bursts, and what each of them does to packets. This module is pure.

Every setting belongs to the operator: neither OVN nor Neutron, Nova or libvirt write it, and ovs-hotswap itself only
writes the sleep of PMD threads, from the configuration, and takes another value of it for the operator's
(``Host.own_pmd_sleep``). So an upgrade carries it over as it does all of the operator's settings (``switch.settings``).
"""

from __future__ import annotations

from collections.abc import Mapping

from ovs_hotswap.bursts.found import Advice, Setting
from ovs_hotswap.bursts.values import NIC, Port, Window

DEFAULT_RING, MOST_RING = 2048, 4096
"""Descriptors of a queue of a device: what Open vSwitch takes without ``n_rxq_desc`` (lib/netdev-dpdk.c,
NIC_PORT_DEFAULT_RXQ_SIZE), and the most that is sensible; a device that has fewer takes the most that it has."""
DEFAULT_RETRIES, MOST_RETRIES = 8, 32  # lib/netdev-dpdk.c, VHOST_ENQ_RETRY_DEF and VHOST_ENQ_RETRY_MAX
OTHER_RINGS: Mapping[str, str] = {
    "net_af_packet": "`framecnt=` in its dpdk-devargs, when the port is made",
    "net_memif": "`rsize=` in its dpdk-devargs, when the port is made",
    "net_pcap": "the kernel's buffer for captures, which has a fixed length",
    "net_tap": "the kernel's `txqueuelen` of the tap",
    "net_ring": "a ring that was made with the device",
    "net_null": "none, as it has no packets",
}
"""Drivers whose receive queues do not have ``n_rxq_desc`` descriptors (DPDK, drivers/net), and what they have."""
NAMES = (
    "rx-ring:PORT", "tx-ring:PORT", "rx-queues:PORT", "tx-retries:VM", "tx-steering:PORT", "pmd-sleep", "auto-lb",
    "smc",
)  # fmt: skip
"""The names of all changes."""
_ROOT, _INTERFACE = "Open_vSwitch", "Interface"
_RECONFIGURED = (
    "the switch stops {port}, changes it and starts it again: packets of this port are lost for that time, which may "
    "be seconds if the NIC's link has to come up again"
)
_RELOADED = "PMD threads read their queues again, for some milliseconds; no port is stopped"
_AT_ONCE = "it takes effect at once, and no port or thread is stopped"


def ring_of(port: Port, key: str) -> int:
    """Return the descriptors of a device's queues. A value that is no power of two is not taken (lib/netdev-dpdk.c,
    dpdk_process_queue_size)."""
    text = port.options.get(key, "")
    value = int(text) if text.isdecimal() else 0
    return value if value > 0 and value & (value - 1) == 0 else DEFAULT_RING


def longer(length: int, lacking: int) -> int:
    """Return the length of a ring that also holds ``lacking`` packets: at least twice as long, a power of two, and at
    most ``MOST_RING``."""
    return min(MOST_RING, max(2 * length, 1 << (length + lacking - 1).bit_length()))


def rx_ring(port: Port, lacking: int) -> Advice | None:
    """Advise longer receive queues; ``None`` if they cannot be made longer. ``lacking``: the packets for which a queue
    had no room at once."""
    return _ring(port, "n_rxq_desc", "rx-ring", lacking)


def tx_ring(port: Port, lacking: int) -> Advice | None:
    return _ring(port, "n_txq_desc", "tx-ring", lacking)


def _ring(port: Port, key: str, name: str, lacking: int) -> Advice | None:
    now = ring_of(port, key)
    wanted = longer(now, lacking)
    if port.driver in OTHER_RINGS or wanted <= now:
        return None
    return Advice(f"{name}:{port.name}", (Setting(_INTERFACE, port.name, "options", key, str(wanted)),),
                  _RECONFIGURED.format(port=port.name), stops=True)  # fmt: skip


def rx_queues(port: Port, most: int) -> Advice | None:
    """Advise one more receive queue, up to ``most``; ``None`` if the device has no other."""
    now = max(len(port.queues), 1)
    if port.driver in OTHER_RINGS or now >= most or (port.most_queues is not None and now >= port.most_queues):
        return None
    return Advice(f"rx-queues:{port.name}", (Setting(_INTERFACE, port.name, "options", "n_rxq", str(now + 1)),),
                  _RECONFIGURED.format(port=port.name), stops=True)  # fmt: skip


def tx_retries(port: Port) -> Advice | None:
    """Advise to try longer to put packets into a VM's ring; ``None`` if that is done already."""
    text = port.options.get("tx-retries-max", "")
    now = int(text) if text.isdecimal() else DEFAULT_RETRIES
    if now >= MOST_RETRIES:
        return None
    setting = Setting(_INTERFACE, port.name, "options", "tx-retries-max", str(MOST_RETRIES))
    others = "a PMD thread spends more time on a VM whose ring is full, and other ports wait for it"
    return Advice(f"tx-retries:{port.name}", (setting,), f"{_AT_ONCE}; {others}")


def tx_steering(port: Port) -> Advice | None:
    """Advise to spread packets over all queues of a port (OVS 2.17); ``None`` if that is done already."""
    if port.other_config.get("tx-steering") == "hash":
        return None
    setting = Setting(_INTERFACE, port.name, "other_config", "tx-steering", "hash")
    return Advice(f"tx-steering:{port.name}", (setting,), _RELOADED)


def no_sleep(window: Window) -> Advice:
    setting = Setting(_ROOT, "", "other_config", window.sleep_key, "0")
    return Advice("pmd-sleep", (setting,), f"{_AT_ONCE}; idle PMD threads use their cores wholly again")


def auto_balance() -> Advice:
    setting = Setting(_ROOT, "", "other_config", "pmd-auto-lb", "true")
    return Advice("auto-lb", (setting,), f"later, whenever the switch finds a better spread: {_RELOADED}")


def match_cache() -> Advice:
    return Advice("smc", (Setting(_ROOT, "", "other_config", "smc-enable", "true"),), _AT_ONCE)


def room_for(window: Window, port: Port, more: int) -> bool:
    """Whether the packet pools have the buffers that ``more`` descriptors for each queue of a port hold: a queue of a
    device keeps one buffer in each of them. With no shared pool each port has its own, which grows with it."""
    needed = more * max(len(port.queues), 1)
    return not window.pools or any(pool.buffers - pool.in_use > 2 * needed for pool in window.pools)


def named(name: str, window: Window) -> Advice | None:
    """Return the change of this name for a switch as it is, whether or not a finding advises it; ``None`` if there is
    no such change, or if it is made already."""
    kind, _, place = name.partition(":")
    if not place:
        if kind == "pmd-sleep":
            return no_sleep(window) if window.may_sleep else None
        return {"auto-lb": auto_balance, "smc": match_cache}.get(kind, lambda: None)()
    port = window.ports.get(place)
    if port is None:
        return None
    if port.type == NIC:
        makes = {"rx-ring": lambda: rx_ring(port, 0), "tx-ring": lambda: tx_ring(port, 0),
                 "rx-queues": lambda: rx_queues(port, len(window.whole.cores)),
                 "tx-steering": lambda: tx_steering(port)}  # fmt: skip
    else:
        makes = {"tx-retries": lambda: tx_retries(port), "tx-steering": lambda: tx_steering(port)}
    return makes.get(kind, lambda: None)()
