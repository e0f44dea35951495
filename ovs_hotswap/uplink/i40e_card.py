"""A NIC's physical function (PF) as the driver ``i40e`` sees it: its rules and flags, its virtual functions (VFs), and
what the host has set for it."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.uplink.ethtool import Ethtool, Ioctl, SocketIoctl, open_ioctl
from ovs_hotswap.uplink.rtnl import RtnlKernel
from ovs_hotswap.uplink.rules import Link

_WITH_FUNCTIONS = 1  # RTEXT_FILTER_VF, include/uapi/linux/rtnetlink.h
_LINK_DISABLED = 2  # IFLA_VF_LINK_STATE_DISABLE, include/uapi/linux/if_link.h
_OPTIONS = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")  # modprobe.d(5)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Function:
    """A VF as its PF reports it. ``trusted`` and ``spoof_checked`` are ``None`` if the PF's driver does not report
    them. ``disabled``: its link was set down at the PF. ``received`` counts the packets that came in for it alone,
    without broadcasts, and ``sent`` all that it sent; ``None`` if they are not counted."""

    number: int
    trusted: bool | None = None
    spoof_checked: bool | None = None
    disabled: bool = False
    received: int | None = None
    sent: int | None = None


class HostLook(Protocol):
    """What else the driver looks at. All methods raise OSError and NetlinkError."""

    def link(self, device: str) -> Link | None: ...

    def functions(self, device: str) -> dict[int, Function]:
        """The device's VFs by their numbers."""

    def queueing(self, device: str) -> str:
        """The kind of the queueing discipline at the device's root, such as ``mq``."""

    def l4mode(self) -> str | None:
        """The value of i40e's module parameter that this host sets at the next load of the module; ``None`` if it sets
        none. The value of the loaded module cannot be read: the parameter has no file in /sys
        (i40e_main.c, module_param(l4mode, int, 0000))."""


class Card:
    """One PF. All methods raise UplinkError."""

    def __init__(self, device: str, ioctl: Ioctl, look: Callable[[], HostLook]) -> None:
        """``look`` is called when it is needed first."""
        self.device = device
        self.ethtool = Ethtool(ioctl, device)
        self._look = look

    def link(self) -> Link | None:
        return self._ask(lambda: self._look().link(self.device))

    def functions(self) -> dict[int, Function]:
        return self._ask(lambda: self._look().functions(self.device))

    def queueing(self) -> str:
        return self._ask(lambda: self._look().queueing(self.device))

    def l4mode(self) -> str | None:
        return self._ask(lambda: self._look().l4mode())

    def _ask(self, act: Callable[[], Result]) -> Result:
        try:
            return act()
        except (OSError, NetlinkError) as error:
            raise UplinkError(f"{self.device}: {error}") from error


class Cards(Protocol):
    """Opens a PF. ``open`` raises UplinkError."""

    def open(self) -> contextlib.AbstractContextManager[Card]: ...


class KernelCards:
    """Opens a device of ``namespace``; ``None`` is this process's own namespace. With ``keep`` what was opened stays
    open between uses, until an error. Then only one thread may use the object."""

    def __init__(self, device: str, namespace: str | None, *, keep: bool = False) -> None:
        self._device, self._namespace, self._keep = device, namespace, keep
        self._kept: _Opened | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Card]:
        opened, self._kept = self._kept or _Opened(open_ioctl(self._namespace), self._namespace), None
        try:
            yield Card(self._device, opened.ioctl, opened.look)
            self._kept = opened if self._keep else None
        finally:
            if self._kept is None:
                opened.close()


class _Opened:
    def __init__(self, ioctl: SocketIoctl, namespace: str | None) -> None:
        self.ioctl, self._namespace = ioctl, namespace
        self._route: Any = None

    def look(self) -> KernelLook:
        if self._route is None:  # flags=0: the namespace is never created
            self._route = IPRoute(netns=self._namespace, flags=0) if self._namespace else IPRoute()
        return KernelLook(self._route)

    def close(self) -> None:
        self.ioctl.close()
        if self._route is not None:
            self._route.close()


class KernelLook:
    """``HostLook`` over an rtnetlink socket, with the module's options in the files below ``root``."""

    def __init__(self, route: Any, root: Path = Path("/")) -> None:
        self._route, self._root = route, root

    def link(self, device: str) -> Link | None:
        return RtnlKernel(self._route).link(device)

    def functions(self, device: str) -> dict[int, Function]:
        message = self._route.link("get", ifname=device, ext_mask=_WITH_FUNCTIONS)[0]
        held = message.get_attr("IFLA_VFINFO_LIST")
        found = [function_of(each) for each in ([] if held is None else held.get_attrs("IFLA_VF_INFO"))]
        return {each.number: each for each in found}

    def queueing(self, device: str) -> str:
        index = self._route.link_lookup(ifname=device)
        if not index:
            raise OSError(errno.ENODEV, f"no device {device}")
        roots = [each for each in self._route.get_qdiscs(index=index[0]) if each["parent"] == 0xFFFFFFFF]  # TC_H_ROOT
        return str(roots[0].get_attr("TCA_KIND")) if roots else "noqueue"

    def l4mode(self) -> str | None:
        return module_option(self._root, "i40e", "l4mode")


def function_of(held: Any) -> Function:
    """The VF in an IFLA_VF_INFO (include/uapi/linux/if_link.h)."""
    trust, check = held.get_attr("IFLA_VF_TRUST"), held.get_attr("IFLA_VF_SPOOFCHK")
    state, counted = held.get_attr("IFLA_VF_LINK_STATE"), held.get_attr("IFLA_VF_STATS")
    counts = {} if counted is None else dict(counted["attrs"])
    received = counts.get("IFLA_VF_STATS_RX_PACKETS")
    if received is not None:
        others = (counts.get(f"IFLA_VF_STATS_{kind}", 0) for kind in ("BROADCAST", "MULTICAST"))
        received = max(0, received - sum(others))
    return Function(
        number=int(held.get_attr("IFLA_VF_MAC")["vf"]),
        trusted=_flag(trust, "trust"),
        spoof_checked=_flag(check, "spoofchk"),
        disabled=state is not None and state["link_state"] == _LINK_DISABLED,
        received=received,
        sent=counts.get("IFLA_VF_STATS_TX_PACKETS"),
    )


def _flag(held: Any, name: str) -> bool | None:
    """A setting of a VF; the kernel reports all ones for one that the driver does not have
    (net/core/rtnetlink.c, rtnl_fill_vfinfo)."""
    return None if held is None or held[name] not in (0, 1) else bool(held[name])


def module_option(root: Path, module: str, option: str) -> str | None:
    """The value of a module's option in the kernel's command line or a file of modprobe.d(5). Raises OSError."""
    found: str | None = None
    for folder in reversed(_OPTIONS):
        for path in sorted((root / folder).glob("*.conf")):
            for line in path.read_text(errors="replace").splitlines():
                words = line.split("#")[0].split()
                if words[:2] == ["options", module]:
                    found = _value(words[2:], option) or found
    boot = root / "proc/cmdline"
    return (_value(boot.read_text().split(), f"{module}.{option}") if boot.exists() else None) or found


def _value(words: list[str], option: str) -> str | None:
    given = [match[1] for word in words if (match := re.fullmatch(rf"{re.escape(option)}=(\S+)", word))]
    return given[-1] if given else None
