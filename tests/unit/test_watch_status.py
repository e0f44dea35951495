"""What `watch status` says of a watchdog that runs: by which configuration it goes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.output import Output
from ovs_hotswap.config_changes import changes, values
from ovs_hotswap.config_file import load_config
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.watchdog import status_file

CONFIG = """
overlay = "{0}/overlay.toml"
run_dir = "{0}/run"
state_dir = "{0}/state"
[instances.a]
pmd_cores = [0]
uplink_devargs = "net_null0"
[instances.b]
pmd_cores = [1]
uplink_devargs = "net_null1"
other_config = {{ key = "1" }}
[watch]
hang_ms = 500
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(tmp_path))
    (tmp_path / "run").mkdir()
    return path


def status(path: Path, *, text: bool = False) -> Any:
    out = io.StringIO()
    arguments = ["--config", str(path), *([] if text else ["--json"]), "watch", "status"]
    assert main.run(arguments, App(Output(out=out, err=out))) == 0, out.getvalue()
    return out.getvalue() if text else json.loads(out.getvalue())


def write(path: Path, **fields: Any) -> None:
    status_file.state_path(load_config(path)).write_text(json.dumps(fields))


@pytest.fixture
def watchdog() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "watch"]) as process:
        while b"watch" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        yield process.pid
        process.kill()


def test_what_changed_in_the_configuration_since_it_was_started_is_named(path: Path, watchdog: int) -> None:
    write(path, pid=watchdog, born=start_time(watchdog), config=values(load_config(path)))
    assert status(path)["differing"] == []
    path.write_text(path.read_text().replace("hang_ms = 500", "hang_ms = 700").replace('key = "1"', 'key = "2"'))
    assert status(path)["differing"] == [
        {"key": "instances.b.other_config", "in_use": {"key": "1"}, "configured": {"key": "2"}},
        {"key": "watch.hang_ms", "in_use": 500, "configured": 700},
    ]
    assert "watch.hang_ms: 700 is configured, 500 in use: start the watchdog again" in status(path, text=True)


def test_keys_that_one_version_alone_knows_do_not_differ() -> None:
    assert changes({"old": 1, "both": 2}, {"new": 3, "both": 2}) == []
