"""The table [flowlog] of the configuration: its keys and the values that each may have."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field

from ovs_hotswap.toml_file import Strict

IPFIX_PORT = 4739  # RFC 7011, section 10.3.4
_CERTAIN = 0xFFFF  # the probability 1 of the action sample (ovs-actions(7))


def split(collector: str) -> tuple[str, int]:
    """Return the address and the port of a collector. Raises ValueError."""
    address, _, port = collector.rpartition(":")
    if not port.isdecimal() or not 1 <= int(port) <= 0xFFFF:
        raise ValueError("must be ADDRESS:PORT")
    bare = address.removeprefix("[").removesuffix("]")
    found = ipaddress.ip_address(bare)
    if (found.version == 6) is not (address == f"[{bare}]"):
        raise ValueError("an address of IPv6 is in brackets, and no other is")
    if found.is_unspecified or found.is_multicast:
        raise ValueError("must be the address of a host")
    return str(found), int(port)


def _collector(value: str) -> str:
    try:
        split(value)
    except ValueError:
        raise ValueError(f"must be the IP address of a host with a UDP port, such as 192.0.2.20:{IPFIX_PORT} or "
                         f"[2001:db8::20]:{IPFIX_PORT}") from None  # fmt: skip
    return value


def _different(value: list[str]) -> list[str]:
    if twice := sorted({each for each in value if value.count(each) > 1}):
        raise ValueError(f"{', '.join(twice)} is given more than once: it would count everything twice")
    return value


class FlowLogConfig(Strict):
    """The flow log: what is exported, by IPFIX, of the packets that VMs send and are given. It is off without a
    collector.

    ``collectors``: where the records are sent, each by UDP. ``vms``: the names of the VMs that are logged; all if there
    are none. ``sampling``: one packet of so many is looked at, and counts for as many. ``observation_domain``: the
    number of this host in its records; ``None`` is what ``domain`` makes of its VTEP's address. ``export_s``: after so
    many seconds a flow's counts are exported. ``cache_flows``: the flows whose counts an instance holds until then; if
    there are more, the oldest ones are exported earlier.
    """

    collectors: Annotated[list[Annotated[str, AfterValidator(_collector)]], AfterValidator(_different)] = Field(
        default_factory=list
    )
    vms: list[str] = Field(default_factory=list)
    sampling: Annotated[int, Field(ge=1, le=10_000)] = 100
    observation_domain: Annotated[int, Field(ge=1, le=0xFFFF_FFFF)] | None = None
    export_s: Annotated[int, Field(ge=1, le=3600)] = 10
    cache_flows: Annotated[int, Field(ge=16, le=65_536)] = 1024

    @property
    def on(self) -> bool:
        return bool(self.collectors)

    @property
    def probability(self) -> int:
        """The probability of the action sample, of 65535. Open vSwitch counts each packet that it looks at as
        ``65535 // probability`` packets (ofproto/ofproto-dpif-ipfix.c, dpif_ipfix_flow_sample)."""
        return _CERTAIN // self.sampling

    def logs(self, vm: str) -> bool:
        """Whether the packets of a VM are logged."""
        return self.on and (not self.vms or vm in self.vms)

    def domain(self, vtep: str) -> int:
        """The observation domain id of the host: the configured one, or the last 32 bits of its VTEP's address."""
        if self.observation_domain is not None:
            return self.observation_domain
        return int(ipaddress.ip_address(vtep)) & 0xFFFF_FFFF
