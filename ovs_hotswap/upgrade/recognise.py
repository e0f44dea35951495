"""The first upgrade of a host that others program: its active instance is the distribution's switch."""

from __future__ import annotations

import re
from dataclasses import replace

from ovs_hotswap.config import Program
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Release, Side
from ovs_hotswap.stock.survey import stock_paths
from ovs_hotswap.switch.paths import read_stock, recorded_stock
from ovs_hotswap.switch.stock_instance import processes, recognise
from ovs_hotswap.switch.unixctl import appctl

_VERSION = re.compile(r"\(Open vSwitch\) (?P<ovs>\S+)")


def recognised(host: Host) -> Host:
    """Return the host with the distribution's switch as its active instance, if others program the host and it has no
    active instance yet, or if that switch was started again since.

    Only records of ours are made, and second names of the switch's sockets. Raises SwitchError, HostError.
    """
    if host.config.program is not Program.CLONE:
        return host
    active, stock = host.recorded_active(), read_stock(host.config)
    if active is not None and (stock is None or stock.side is not active):
        return host
    side = Side.A if stock is None else stock.side
    if stock is None or stock != recorded_stock(host.config):
        processes(host.config, host.system)
        host.cloning.well_known.keep()
        recognise(host.config, host.system, side, _running(host))
    found = Host(host.config, host.system)
    if active is None:
        found.record_active(side)
    return found


def _running(host: Host) -> Release:
    """The release of the distribution's switch: the installed one, in the version that runs."""
    paths, installed = stock_paths(host.config, host.system), host.releases.installed()
    text = appctl(paths.vswitchd_ctl, "version")
    found = _VERSION.search(text)
    if found is None:
        raise SwitchError(f"{paths.vswitchd_ctl}: its version cannot be read from {text!r}")
    return installed if found["ovs"] == installed.ovs_version else replace(installed, ovs_version=found["ovs"])
