"""Names for what vhost-user has and the broker does not carry, for messages about a front end that uses it anyway.

A front end that continues from a saved state names the protocol features of its earlier back end, without asking which
ones this back end has. Most of these features only permit a message, so nothing is wrong as long as that message is not
sent.
"""

from __future__ import annotations

from collections.abc import Sequence

# Spec, *Protocol features*. Those that the broker carries are in the list, too.
_PROTOCOL_FEATURES = (
    "MQ", "LOG_SHMFD", "RARP", "REPLY_ACK", "MTU", "BACKEND_REQ", "CROSS_ENDIAN", "CRYPTO_SESSION", "PAGEFAULT",
    "CONFIG", "BACKEND_SEND_FD", "HOST_NOTIFIER", "INFLIGHT_SHMFD", "RESET_DEVICE", "INBAND_NOTIFICATIONS",
    "CONFIGURE_MEM_SLOTS", "STATUS", "XEN_MMAP", "SHARED_OBJECT", "DEVICE_STATE",
)  # fmt: skip
# XEN_MMAP gives the memory table another shape: it cannot be ignored.
CHANGES_MESSAGES = 1 << _PROTOCOL_FEATURES.index("XEN_MMAP")
# Spec, *Front-end message types*: the request, and the protocol feature that allows it.
_REQUESTS = {
    22: ("IOTLB_MSG", None), 23: ("SET_VRING_ENDIAN", "CROSS_ENDIAN"), 24: ("GET_CONFIG", "CONFIG"),
    25: ("SET_CONFIG", "CONFIG"), 26: ("CREATE_CRYPTO_SESSION", "CRYPTO_SESSION"),
    27: ("CLOSE_CRYPTO_SESSION", "CRYPTO_SESSION"), 28: ("POSTCOPY_ADVISE", "PAGEFAULT"),
    29: ("POSTCOPY_LISTEN", "PAGEFAULT"), 30: ("POSTCOPY_END", "PAGEFAULT"), 31: ("GET_INFLIGHT_FD", "INFLIGHT_SHMFD"),
    33: ("GPU_SET_SOCKET", None), 34: ("RESET_DEVICE", "RESET_DEVICE"), 35: ("VRING_KICK", "INBAND_NOTIFICATIONS"),
    36: ("GET_MAX_MEM_SLOTS", "CONFIGURE_MEM_SLOTS"), 37: ("ADD_MEM_REG", "CONFIGURE_MEM_SLOTS"),
    38: ("REM_MEM_REG", "CONFIGURE_MEM_SLOTS"), 41: ("GET_SHARED_OBJECT", "SHARED_OBJECT"),
    42: ("SET_DEVICE_STATE_FD", "DEVICE_STATE"), 43: ("CHECK_DEVICE_STATE", "DEVICE_STATE"),
}  # fmt: skip


def protocol_feature_names(bits: int) -> str:
    """Return the names of the set bits, lowest first; a bit without a name here is called ``bit 40``."""
    return ", ".join(
        _PROTOCOL_FEATURES[bit] if bit < len(_PROTOCOL_FEATURES) else f"bit {bit}"
        for bit in range(64)
        if bits >> bit & 1
    )


def not_carried(request: int) -> str:
    """Return why the broker refuses a request."""
    name, feature = _REQUESTS.get(request, (None, None))
    called = f"request {request}" if name is None else f"{name} (request {request})"
    return f"{called} is not carried" + ("" if feature is None else f": protocol feature {feature} is not offered")


def turned_away(withheld: Sequence[str], queue_pairs: int) -> str:
    """Return the message about a QEMU that hung up after it was sent the offer, without acknowledging any of it.

    Such a QEMU does not say why. A QEMU whose guest runs does so, and connects again and again, if the guest uses a
    feature that is not offered, or more queue pairs (net/vhost-user.c, ``vhost_user_start``). Features are withheld
    only from VMs that start; they are offered when the QEMU connects again.
    """
    lacks = ["packed rings", *([f"{', '.join(withheld)} (withheld; offered if it comes again)"] if withheld else [])]
    return (f"QEMU hung up when it had seen what is offered: a guest that runs may use {', '.join(lacks)} or more than "
            f"{queue_pairs} queue pairs, which are not; end its QEMU and start it again")  # fmt: skip
