"""docs/hosts.md, followed to the letter on a stock host: its commands are run in their order.

``OVS_HOTSWAP_STOCK_ROUNDS``: if it is more than one, OVN programs the host, and the soak is as long as the page has it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.model import Release
from ovs_hotswap.system import System
from tests.support.lab_bed import SHORT_SOAK
from tests.support.stock_drive import differences, programmed, without_own
from tests.support.stock_host import UPLINK, StockHost, devargs
from tests.support.stock_space import PLACES

ROUNDS = int(os.environ.get("OVS_HOTSWAP_STOCK_ROUNDS", "1"))
PAGE = Path(__file__).parents[2] / "docs/hosts.md"
OWN = ("/etc/ovs-hotswap", "/var/lib/ovs-hotswap")
# Those that need systemd, of which the tests are in test_stock_systemd.py, or the network.
NOT_RUN = {"Install", "Restarts by habit"}


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The commands of each section, in their order."""
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        for block in re.findall(r"^```\n(.*?)^```$", body, re.DOTALL | re.MULTILINE):
            if title not in NOT_RUN:
                yield title, block


class Newcomer(StockHost):
    """A stock host with nothing of this project but the program."""

    places = (*PLACES, *OWN)


@pytest.fixture(scope="module")
def host(system: System) -> Iterator[Newcomer]:
    made = [Path(path) for path in OWN if not Path(path).exists()]
    for path in made:
        path.mkdir()
    try:
        with Newcomer(system, bridge="ovn" if ROUNDS > 1 else "normal", guests=2) as host:
            yield host
    finally:
        for path in made:
            path.rmdir()


def test_the_page_s_commands_do_what_it_says(host: Newcomer, tree_release: Release) -> None:
    """What an operator fills in is filled in: the name of a port, its second device, and where the release is from."""
    filled_in = {
        "dpdk0=0000:03:02.1": f"{UPLINK}={devargs('b')}",
        "--suite trixie": f"--from-directory {tree_release.root}",
    }
    text = PAGE.read_text()
    assert all(each in text for each in filled_in)
    before, stock = programmed(host), host.switch_pid
    with host.traffic() as traffic:
        for title, block in blocks(text):
            for given, own in filled_in.items():
                block = block.replace(given, own)
            if block.startswith("["):
                continue
            begun = time.monotonic()
            path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
            done = host.completed(["env", path, "sh", "-euxc", block], timeout=180.0)
            print(f"## {title}: {time.monotonic() - begun:.1f} s\n{done.stderr}\n{done.stdout}")
            assert done.status == 0, block
            if "config init" in block and ROUNDS == 1:
                config = host.outside("/etc/ovs-hotswap/config.toml")
                config.write_text(config.read_text() + SHORT_SOAK)
    print(traffic.judgement.text())
    assert traffic.judgement.faults_beyond(30) == []
    assert host.switch_pid != stock
    assert differences(without_own(before), without_own(programmed(host))) == []
