"""MAC addresses as values of files, and the address from which an instance asks without saying what it is. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Annotated

from pydantic import AfterValidator

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def _mac(value: str) -> str:
    mac = value.lower()
    if not _MAC.fullmatch(mac):
        raise ValueError("must be a MAC address such as 52:54:00:00:00:01")
    if int(mac[:2], 16) & 1:
        raise ValueError("must be a unicast MAC address: an even first byte")
    if mac == "00:00:00:00:00:00":
        raise ValueError("must be a unicast MAC address, not all zeros")
    return mac


Mac = Annotated[str, AfterValidator(_mac)]


def unteaching(version: int, mac: str) -> str:
    """The sender's address in questions that teach nothing about the VTEP: over IPv4 none, as in an ARP probe (RFC
    5227, 2.1.1); over IPv6 the link-local address of ``mac`` (RFC 4291, appendix A), because the answer to a question
    from no address goes to all hosts (RFC 4861, 7.2.4)."""
    if version == 4:
        return "0.0.0.0"
    own = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([own[0] ^ 2]) + own[1:3] + b"\xff\xfe" + own[3:]
    return str(IPv6Address(b"\xfe\x80".ljust(8, b"\0") + identifier))
