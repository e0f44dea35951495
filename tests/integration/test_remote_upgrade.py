"""The connection is cut during an upgrade of a real lab. The upgrade finishes by itself, and is reported.

`make test` cuts one upgrade three times: before its commit, in the handovers, and after the commit. With
``OVS_HOTSWAP_CUTS=each`` (`make soak-cuts`) there is an upgrade for each step, and it is cut there.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import Lab
from ovs_hotswap.model import Release
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import Kind
from ovs_hotswap.remote.jobs import JobState
from ovs_hotswap.remote.store import Jobs
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.steps import upgrade_plan
from tests.integration.test_upgrade import GUESTS, TREE_NAME
from tests.support.lab_bed import bring_up
from tests.support.ssh_bed import SSHD, SshBed, ssh_bed
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(SSHD is None, reason="openssh-server is not installed")
SHAPE = upgrade_plan().shape
STEPS = [*SHAPE.before, *SHAPE.after]
HANDOVER = ("park", "steer", "move")
FEW = ("start-standby", "move", "close-window")
CUTS = [(step,) for step in STEPS] if os.environ.get("OVS_HOTSWAP_CUTS") == "each" else [FEW]


@pytest.fixture(scope="module")
def lab(system: System, tree_release: Release) -> Iterator[Lab]:
    made = Lab(Path(tempfile.mkdtemp(prefix="cut-")), GUESTS, system)
    try:
        made.up()
        made.config_path.write_text(f"{made.config_path.read_text()}\n[upgrade]\nsoak_s = 0.3\n")
        Releases(made.config, system).add(TREE_NAME, from_directory=Path(str(tree_release.root)))
        bring_up(made, system)
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def bed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBed]:
    with ssh_bed(tmp_path_factory.mktemp("ssh"), 1) as made:
        made.other_config = lab.config_path
        yield made


def begun(lab: Lab, step: str) -> bool:
    """Whether a step of the upgrade under way has begun."""
    contents = Journals(lab.config.state_dir, System()).read()
    return contents is not None and any(
        record.kind is Kind.START and record.step == step for record in contents.records
    )


def started(bed: SshBed, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(bed.command(*arguments), env=bed.environment(), stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def followed_again(lab: Lab, bed: SshBed, job: str, step: str) -> subprocess.Popen[str]:
    """Attach to the job, which stands still until it is followed, so that the next cut is one of this connection.
    ``step``: where the last one was cut. A handover is not made to stand still: the VMs would notice."""
    if step in HANDOVER:
        eventually(lambda: begun(lab, SHAPE.after[0]), "the VMs have moved", 120)
    pid = Jobs(lab.config.run_dir, System()).look(job).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        client = started(bed, "attach", job)
        assert client.stdout is not None
        assert client.stdout.readline(), "it is followed from its beginning"
    finally:
        os.kill(pid, signal.SIGCONT)
    return client


def cut_at(lab: Lab, bed: SshBed, client: subprocess.Popen[str], step: str, known: set[str]) -> str:
    """Cut the connection of ``client`` when a step begins; return the job that its error names, which is none of those
    that were ``known`` before."""
    eventually(lambda: begun(lab, step) or client.poll() is not None, f"step {step}", 120, poll_s=0.001)
    bed.cut()
    out, err = client.communicate(timeout=120)
    (job,) = set(Jobs(lab.config.run_dir, System()).ids()) - known
    if step != STEPS[-1]:  # after the last step the upgrade may have ended before the cut
        assert client.returncode == 20, (out, err)
        assert f"attach {job}" in err
    return job


@pytest.mark.parametrize("cuts", CUTS, ids=" ".join)
def test_the_connection_is_cut(lab: Lab, bed: SshBed, cuts: tuple[str, ...], system: System) -> None:
    host = Host(lab.config, system)
    before = host.active()
    running = host.software(before)
    assert running is not None
    wanted = "host" if running.name == TREE_NAME else TREE_NAME
    known = set(Jobs(lab.config.run_dir, system).ids())
    since = lab.pings.mark()
    client = started(bed, "upgrade", "--release", wanted)
    job = cut_at(lab, bed, client, cuts[0], known)
    for last, step in itertools.pairwise(cuts):
        assert cut_at(lab, bed, followed_again(lab, bed, job, last), step, known) == job

    done = bed.there("attach", job)
    assert (done.status, done.err) == (0, "")
    for name in STEPS:
        assert f"{name}: done" in done.out
    assert f"is active and runs {wanted}" in done.out
    document = json.loads(bed.there("--json", "attach", job).out)
    assert (document["committed"], document["release"], sorted(document["moves"])) == (True, wanted, ["vm1", "vm2"])
    assert Jobs(lab.config.run_dir, system).look(job).state is JobState.ENDED
    assert host.active() is before.other
    assert Journals(lab.config.state_dir, system).read() is None
    lab.pings.wait_flowing(30.0)
    assert sum(stats.lost for stats in lab.pings.between(since, lab.pings.mark())) == 0
