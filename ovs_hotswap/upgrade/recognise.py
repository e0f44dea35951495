"""The first upgrade of a host that others program: its active instance is the distribution's switch."""

from __future__ import annotations

import re
from dataclasses import replace

from ovs_hotswap.config import Program
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Release, Side
from ovs_hotswap.stock.survey import running_paths
from ovs_hotswap.switch.paths import read_stock
from ovs_hotswap.switch.stock_instance import recognise
from ovs_hotswap.switch.unixctl import appctl

_VERSION = re.compile(r"\(Open vSwitch\) (?P<ovs>\S+)")


def recognised(host: Host) -> Host:
    """Return the host with the distribution's switch as its active instance, if it has none yet and others program it.

    Only records of ours are made, and second names of the switch's sockets. Raises SwitchError, HostError.
    """
    if host.config.program is not Program.CLONE or host.recorded_active() is not None:
        return host
    if read_stock(host.config) is None:
        host.cloning.well_known.keep()
        recognise(host.config, host.system, Side.A, _running(host))
    found = Host(host.config, host.system)
    found.record_active(Side.A)
    return found


def _running(host: Host) -> Release:
    """The release of the distribution's switch: the installed one, in the version that runs."""
    paths, installed = running_paths(host.config, host.system), host.releases.installed()
    text = appctl(paths.vswitchd_ctl, "version")
    found = _VERSION.search(text)
    if found is None:
        raise SwitchError(f"{paths.vswitchd_ctl}: its version cannot be read from {text!r}")
    return installed if found["ovs"] == installed.ovs_version else replace(installed, ovs_version=found["ovs"])
