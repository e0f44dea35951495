"""What makes a process the one broker of a run directory, on a real file system."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ovs_hotswap.broker.run_directory import Place, control_group
from ovs_hotswap.config import Config
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import BrokerError, BusyError, ConfigError
from ovs_hotswap.system import pid_text

_INSTANCES = "".join(f'[instances.{x}]\npmd_cores = [0]\nuplink_devargs = "net_null_{x}"\n' for x in "ab")
_HOLD = """
import sys
from pathlib import Path
from ovs_hotswap.config_file import load_config
from ovs_hotswap.broker.run_directory import Place
with Place(load_config(Path(sys.argv[1]))) as place:
    place.take()
    print("holds", flush=True)
    sys.stdin.read()
"""

Configured = Callable[..., Config]


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    def make(broker: str = "") -> Config:
        path = tmp_path / "config.toml"
        places = f'overlay = "{tmp_path}/overlay.toml"\nrun_dir = "{tmp_path}/run"\n'
        path.write_text(f"{places}[broker]\n{broker}\n{_INSTANCES}")
        return load_config(path)

    return make


def files(config: Config) -> dict[str, str]:
    return {path.name: path.read_text() for path in config.run_dir.iterdir()}


def test_the_pid_file_says_who_is_the_broker_for_as_long_as_it_is(configured: Configured) -> None:
    config = configured()
    with Place(config) as place:
        place.prepare()
        assert "broker.pid" not in files(config)
        place.take()
        assert files(config) == {"broker.pid": pid_text(os.getpid()), "broker.lock": str(os.getpid())}
    assert "broker.pid" not in files(config)


def test_a_broker_that_is_succeeded_leaves_its_pid_file_to_the_successor(configured: Configured) -> None:
    config = configured()
    with Place(config) as place:
        place.take()
        place.pass_on()
    assert files(config)["broker.pid"] == pid_text(os.getpid())


def test_one_that_did_not_become_the_broker_leaves_the_others_pid_file(configured: Configured) -> None:
    config = configured()
    config.run_dir.mkdir()
    (config.run_dir / "broker.pid").write_text("1\n")
    with Place(config) as place:
        place.prepare()
    assert files(config) == {"broker.pid": "1\n", "broker.lock": ""}


def test_a_pid_file_that_cannot_be_written_is_told_while_another_is_the_broker(configured: Configured) -> None:
    config = configured()
    with Place(config) as place:
        (config.run_dir / f".broker.pid.{os.getpid()}").mkdir()  # as good as a full disk: it cannot be written
        with pytest.raises(BrokerError, match=r"broker\.pid"):
            place.prepare()


def test_a_pid_file_that_cannot_be_replaced_ends_no_broker(
    configured: Configured, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured()
    (config.run_dir / "broker.pid" / "x").mkdir(parents=True)
    with caplog.at_level(logging.ERROR), Place(config) as place:
        place.prepare()
        place.take()
    assert "does not name this broker" in caplog.text


def test_there_is_one_broker(configured: Configured) -> None:
    config = configured()
    argv = [sys.executable, "-c", _HOLD, str(config.run_dir.parent / "config.toml")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        with Place(config) as place:
            with pytest.raises(BusyError, match=f"process {other.pid}"):
                place.take()
            other.stdin.close()
            other.wait()
            place.take()


def test_a_run_directory_that_cannot_be_made(configured: Configured) -> None:
    config = configured()
    config.run_dir.write_text("a file")
    with pytest.raises(BrokerError, match=r"broker\.lock"):
        Place(config)


def test_the_group_of_the_control_socket(configured: Configured) -> None:
    assert control_group(configured()) is None
    assert control_group(configured('group = "root"')) == 0
    with pytest.raises(ConfigError, match=r"broker\.group: no group 'no-such-group'"):
        control_group(configured('group = "no-such-group"'))
