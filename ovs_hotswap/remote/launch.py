"""Starts a job in a place of its own: the end of the session, of the connection and of our services does not end it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from ovs_hotswap.errors import CommandError
from ovs_hotswap.remote.jobs import Job
from ovs_hotswap.remote.store import Jobs
from ovs_hotswap.service.sd_notify import BOOTED
from ovs_hotswap.system import System

UNIT = "ovs-hotswap-job-"
_START_S = 20.0  # within SILENCE_S of the connection that waits for it
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "OVS_HOTSWAP_CONFIG")
# systemd.kill(5), systemd.service(5). KillMode=process: an instance or a broker that the job started as its child is
# not ended with the job. A stop of the unit, which happens when the host goes down, is SIGTERM: an upgrade undoes what
# it did. OOMPolicy=continue: the end of one process by the kernel is not that of the job.
_PROPERTIES = ("Type=exec", "KillMode=process", "TimeoutStopSec=300", "OOMPolicy=continue", "StandardInput=null")


def start(jobs: Jobs, arguments: Iterable[str], config: Path, system: System, *, asks: bool = False,
          booted: Path = BOOTED) -> Job:  # fmt: skip
    """Start the command line ``arguments`` as a job: in a transient unit of systemd if systemd runs the host, and
    otherwise in a process with a session of its own. ``config``: the configuration with whose ``run_dir`` the job is
    found. Raises CommandError, HostError."""
    job = jobs.create(list(arguments), asks=asks, by=started_by())
    program = [sys.executable, "-P", "-m", "ovs_hotswap", "--config", str(config), "job", "execute", job.id]
    try:
        if booted.exists():
            system.run(transient_unit(job.id, program), timeout=_START_S)
        else:
            system.spawn(program, log=jobs.directory / job.id / "log")
    except CommandError:
        if jobs.give_up(job.id):
            raise
    return job


def transient_unit(name: str, program: list[str]) -> list[str]:
    """The command that starts ``program`` in a transient unit (systemd-run(1)), in system.slice and not in the session
    of the caller: neither logging out nor ``KillUserProcesses=`` of logind.conf(5) ends it. Our services are other
    units, so an upgrade of the package does not end it."""
    environment = [f"--setenv={key}={os.environ[key]}" for key in _PASSED_ON if key in os.environ]
    properties = [f"--property={each}" for each in _PROPERTIES]
    return ["systemd-run", f"--unit={UNIT}{name}", "--quiet", "--collect",
            f"--description=ovs-hotswap: job {name}", *properties, *environment, "--", *program]  # fmt: skip


def started_by() -> str:
    """Who starts a job: the user before sudo(8), and where the SSH connection comes from."""
    user = os.environ.get("SUDO_USER") or os.environ.get("USER") or str(os.getuid())
    where = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    return f"{user} from {where}" if where else user
