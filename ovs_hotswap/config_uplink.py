"""The table [uplink] of the configuration: its keys and the values that each may have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ovs_hotswap.mac import Mac
from ovs_hotswap.model import Side
from ovs_hotswap.toml_file import Strict

_DEVICE_BYTES = 15  # IFNAMSIZ less the final NUL (include/uapi/linux/if.h)


def _device_name(value: str) -> str:
    """Return ``value`` if a network device can have this name; else raise ValueError.

    The kernel's rules are in net/core/dev.c (``dev_valid_name``); it replaces ``%d`` by a number. ip-link(8) takes a
    name with a leading dash for an option.
    """
    if value in ("", ".", "..") or len(value.encode()) > _DEVICE_BYTES:
        raise ValueError(f"must be the name of a network device, of 1 to {_DEVICE_BYTES} bytes")
    if value.startswith("-") or any(
        letter in "/:%" or letter.isspace() or not letter.isprintable() for letter in value
    ):
        raise ValueError("must be the name of a network device: no leading dash, no /, :, %, no space")
    return value


DeviceName = Annotated[str, AfterValidator(_device_name)]


class NicConfig(Strict):
    """One NIC, on which overlay traffic arrives: a device and a virtual function (VF) of it for each instance.

    ``device``: the physical function (PF), a kernel network device. ``representor_a`` / ``representor_b``: the kernel
    devices that stand for the VFs of the two instances, on NICs that have such devices. ``vf_a`` / ``vf_b``: the
    numbers of the VFs at the PF, as `ip link show` counts them.
    """

    device: DeviceName | None = None
    representor_a: DeviceName | None = None
    representor_b: DeviceName | None = None
    vf_a: Annotated[int, Field(ge=0, le=255)] | None = None
    vf_b: Annotated[int, Field(ge=0, le=255)] | None = None

    def representor(self, side: Side) -> str | None:
        return self.representor_a if side is Side.A else self.representor_b

    def vf(self, side: Side) -> int | None:
        return self.vf_a if side is Side.A else self.vf_b


class VfsConfig(Strict):
    """What is set on the instances' VFs, of both NICs, before an instance opens its own. What is not given is left as
    it is found.

    ``trust``: the VF may receive what is for other MAC addresses. ``spoof_check``: the NIC drops what the VF sends from
    another MAC address than its own. ``link_state``: ``auto`` (the link is up if the NIC's is) or ``enable`` (it is
    always up). ``vlan``: the VLAN to which the NIC binds the VF; 0 is none. ``mac_a`` / ``mac_b``: the MAC address of
    an instance's VF. ``bind``: bind the VF to vfio-pci, and back after the instance has ended.
    """

    trust: bool | None = None
    spoof_check: bool | None = None
    link_state: Literal["auto", "enable"] | None = None
    vlan: Annotated[int, Field(ge=0, le=4094)] | None = None
    mac_a: Mac | None = None
    mac_b: Mac | None = None
    bind: bool = False

    def wanted(self, side: Side) -> dict[str, bool | int | str]:
        """Return what is to be set on the VFs of a side, by ``uplink.vf.NAMES``."""
        mac = self.mac_a if side is Side.A else self.mac_b
        every = {"mac": mac, "vlan": self.vlan, "spoof_check": self.spoof_check, "link_state": self.link_state,
                 "trust": self.trust}  # fmt: skip
        return {name: value for name, value in every.items() if value is not None}


UplinkDriver = Literal["tc", "switchdev", "i40e", "announce", "exclusive", "none"]

# Modes of a bond that a virtual function cannot have, and why.
_NO_LACP = "a virtual function gets no LACP frames, which the NIC keeps for the physical function"
_PER_FLOW = "it sends with one MAC on both NICs, which only switches with link aggregation (LACP) take"
_REFUSED_BONDS = {
    "lacp": _NO_LACP, "802.3ad": _NO_LACP, "balance-tcp": _NO_LACP, "balance-xor": _PER_FLOW, "balance-rr": _PER_FLOW,
}  # fmt: skip


def _bond(value: object) -> object:
    if isinstance(value, str) and value in _REFUSED_BONDS:
        raise ValueError(f'"{value}" is not for virtual functions: {_REFUSED_BONDS[value]}; take "active-backup"')
    return value


_NEEDED: dict[UplinkDriver, tuple[str, ...]] = {
    "tc": ("device", "representor_a", "representor_b"),
    "switchdev": ("device", "representor_a", "representor_b"),
    "i40e": ("device", "vf_a", "vf_b"),
    "announce": (),
    "exclusive": (),
    "none": (),
}


class UplinkConfig(NicConfig):
    """How overlay traffic reaches the active instance. docs/uplinks.md says which driver is for which NIC.

    ``driver``. ``tc``: the tunnels' UDP packets for the VTEP, arriving on ``device``, are redirected to the representor
    of the active instance's VF. ``switchdev``: the same in hardware, with flower rules. ``i40e``: the NIC's flow
    classification gives them to the VF. ``announce``: each instance has the VTEP's address on a VF of its own, and the
    active one announces it. ``exclusive``: the switch owns the whole NIC, and the old instance releases it before the
    new one opens it. ``none``: something else steers the traffic.

    ``namespace``: the network namespace of ``device``, if it is not the host's own. ``match``: what the rules of
    ``i40e`` look at: the tunnels' UDP port, or the VTEP's address, which is then an address of the overlay's alone.
    ``locations``: the two places in the NIC's table that the rules of ``i40e`` may use. ``silence_s``: how long, in
    seconds, the other VF must have been silent before ``announce`` stops announcing. ``second``: a second NIC, behind
    the same VTEP. ``bond``: how the instances use the two. ``active-backup``: the second only if the first has no link.
    ``balance-slb``: one of them, chosen by the VTEP's MAC. ``dpdk``: a net_bonding device of DPDK, which uses the
    second only if the first has no link. ``vfs``: what is set on the VFs.
    """

    driver: UplinkDriver = "none"
    namespace: str | None = None
    match: Literal["udp-port", "address"] = "udp-port"
    locations: tuple[Annotated[int, Field(ge=0, le=8191)], Annotated[int, Field(ge=0, le=8191)]] = Field(
        (4094, 4095), strict=False
    )
    silence_s: Annotated[float, Field(ge=0.1, le=60)] = 1.0
    second: NicConfig | None = None
    bond: Annotated[Literal["active-backup", "balance-slb", "dpdk"], BeforeValidator(_bond)] = "active-backup"
    vfs: VfsConfig = VfsConfig()

    @property
    def both_open(self) -> bool:
        """Whether both instances have their uplinks open at the same time; otherwise one has it, and hands it over."""
        return self.driver != "exclusive"

    @property
    def nics(self) -> tuple[NicConfig, ...]:
        """The NICs: one or two."""
        return (self,) if self.second is None else (self, self.second)

    @model_validator(mode="after")
    def _driver_needs(self) -> UplinkConfig:
        for nic, place in zip(self.nics, ("", "second."), strict=False):
            missing = [f"{place}{key}" for key in _NEEDED[self.driver] if getattr(nic, key) is None]
            if missing:
                raise ValueError(f'driver "{self.driver}" needs {", ".join(missing)}')
        return self
