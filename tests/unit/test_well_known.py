"""The well-known paths, in a directory with real sockets: each daemon of the test answers with its instance's name."""

from __future__ import annotations

import dataclasses
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.controllers.well_known import WellKnown, is_well_known, wanted
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.switch.paths import InstancePaths, StockRecord
from tests.unit.test_instance import configuration

OWN = {"ovs-vswitchd": 101, "ovsdb-server": 102}
NEW = {"ovs-vswitchd": 201, "ovsdb-server": 202}


class Daemons:
    """Listening sockets, each of which sends the name of its instance to everyone who connects."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []

    def listen(self, path: Path, text: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self._open.append(listener)
        threading.Thread(target=self._serve, args=(listener, text), daemon=True).start()

    @staticmethod
    def _serve(listener: socket.socket, text: str) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.sendall(text.encode())
            connection.close()

    def close(self) -> None:
        for each in self._open:
            each.shutdown(socket.SHUT_RDWR)
            each.close()


def ask(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        return connection.recv(100).decode()


@pytest.fixture
def daemons() -> Iterator[Daemons]:
    made = Daemons()
    yield made
    made.close()


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path, as a socket's has to be: that of ``tmp_path`` is longer where tests run side by side."""
    with tempfile.TemporaryDirectory(prefix="ovsh-wk-") as made:
        yield Path(made)


@pytest.fixture
def own(place: Path, daemons: Daemons) -> Path:
    """The well-known directory of a distribution's switch with two bridges."""
    directory = place / "openvswitch"
    directory.mkdir()
    for name in ("db.sock", "br-int.mgmt", "br-int.snoop", "br-old.mgmt"):
        daemons.listen(directory / name, "own")
    for name, pid in OWN.items():
        daemons.listen(directory / f"{name}.{pid}.ctl", f"own {name}")
        (directory / f"{name}.pid").write_text(f"{pid}\n")
    (directory / "other.file").touch()
    return directory


@pytest.fixture
def new(place: Path, daemons: Daemons) -> InstancePaths:
    paths = InstancePaths.of(configuration(place), Side.B)
    paths.run_dir.mkdir(parents=True)
    for name in ("db.sock", "br-int.mgmt", "br-int.snoop", "br-new.mgmt"):
        daemons.listen(paths.run_dir / name, "new")
    for name, pid in NEW.items():
        daemons.listen(paths.run_dir / f"{name}.ctl", f"new {name}")
        (paths.run_dir / f"{name}.pid").write_text(f"{pid}\n")
    return paths


def own_paths(directory: Path, new: InstancePaths) -> InstancePaths:
    return dataclasses.replace(new, run_dir=directory)


def appctl(directory: Path, daemon: str) -> str:
    """Find the control socket as ovs-appctl does."""
    pid = int((directory / f"{daemon}.pid").read_text())
    return ask(directory / f"{daemon}.{pid}.ctl")


def tree(directory: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_ino for path in directory.iterdir()}


def test_every_path_leads_to_the_new_instance_and_back(own: Path, new: InstancePaths) -> None:
    before = tree(own)
    paths = WellKnown(own, own / ".kept")
    for _ in range(2):
        for _ in range(2):
            paths.lead_to(new)
            assert paths.strays(new) == ()
        assert ask(own / "db.sock") == ask(own / "br-int.mgmt") == ask(own / "br-new.mgmt") == "new"
        for daemon, pid in OWN.items():
            assert appctl(own, daemon) == ask(own / f"{daemon}.{pid}.ctl") == f"new {daemon}"
            assert ask(own / ".kept" / f"{daemon}.{pid}.ctl") == f"own {daemon}"
        assert ask(own / ".kept" / "db.sock") == "own"
        assert not (own / "br-old.mgmt").exists(), "the new instance has no such bridge"
        assert set(paths.state().values()) == {new.run_dir}
        paths.lead_to(own_paths(own, new))
        assert paths.strays(own_paths(own, new)) == ()
        assert {name: inode for name, inode in tree(own).items() if name != ".kept"} == before
        assert set(paths.state().values()) == {own}


def test_what_was_left_half_way_is_finished_in_either_direction(own: Path, new: InstancePaths) -> None:
    paths = WellKnown(own, own / ".kept")
    before = tree(own)
    names = sorted(name for name in before if is_well_known(name))
    for done in range(len(names) + 1):
        for way in (new, own_paths(own, new)):
            paths.put_back()
            for name in names[:done]:
                (own / name).unlink()
                (own / name).symlink_to(new.run_dir / name)
            (own / ".db.sock.new").symlink_to("/nowhere")
            paths.lead_to(way)
            assert paths.strays(way) == ()
            (own / ".db.sock.new").unlink(missing_ok=True)
    paths.put_back()
    assert {name: inode for name, inode in tree(own).items() if name != ".kept"} == before


def test_the_own_switch_is_reached_by_its_second_names_wherever_the_paths_lead(own: Path, new: InstancePaths) -> None:
    paths = WellKnown(own, own / ".kept")
    well_known = dataclasses.replace(
        new, run_dir=own, db_socket=own / "db.sock", vswitchd_ctl=own / "ovs-vswitchd.101.ctl",
        vswitchd_pid=own / "ovs-vswitchd.pid",
    )  # fmt: skip
    found = paths.by_second_names(well_known)
    paths.lead_to(new)
    assert paths.by_second_names(well_known) == found
    assert (ask(found.db_socket), ask(found.vswitchd_ctl)) == ("own", "own ovs-vswitchd")
    assert (found.vswitchd_pid.read_text(), found.run_dir) == ("101\n", own / ".kept")
    assert found.log == new.log, "it is not in the well-known directory"
    assert paths.by_second_names(new) == new
    assert paths.by_second_names(found) == found


def test_an_instance_that_does_not_run_changes_nothing(own: Path, new: InstancePaths) -> None:
    paths = WellKnown(own, own / ".kept")
    paths.keep()
    before = tree(own)
    for path in (new.vswitchd_pid, new.ovsdb_ctl, new.db_socket):
        away = path.rename(path.with_name("away"))
        with pytest.raises(SwitchError, match=path.name):
            paths.lead_to(new)
        assert tree(own) == before
        away.rename(path)


def test_the_second_names_follow_a_switch_that_was_started_again(own: Path, daemons: Daemons) -> None:
    paths = WellKnown(own, own / ".kept")
    paths.keep()
    for name in ("ovs-vswitchd.101.ctl", "br-old.mgmt", "db.sock"):
        (own / name).unlink()
    daemons.listen(own / "ovs-vswitchd.103.ctl", "again")
    daemons.listen(own / "db.sock", "again")
    paths.keep()
    kept = tree(own / ".kept")
    assert kept == {name: inode for name, inode in tree(own).items() if is_well_known(name)}
    assert ask(own / ".kept" / "db.sock") == "again"


def test_a_socket_that_a_daemon_made_over_a_link_is_kept_and_replaced(
    own: Path, new: InstancePaths, daemons: Daemons
) -> None:
    paths = WellKnown(own, own / ".kept")
    paths.lead_to(new)
    (own / "br-int.mgmt").unlink()
    daemons.listen(own / "br-int.mgmt", "own again")
    assert paths.strays(new) == ("br-int.mgmt",)
    paths.lead_to(new)
    assert (ask(own / "br-int.mgmt"), ask(own / ".kept" / "br-int.mgmt")) == ("new", "own again")


def test_paths_that_lead_nowhere_are_seen(own: Path, new: InstancePaths) -> None:
    paths = WellKnown(own, own / ".kept")
    paths.lead_to(new)
    (new.run_dir / "br-new.mgmt").unlink()
    assert paths.state()["br-new.mgmt"] is None
    assert paths.strays(new) == ("br-new.mgmt",)
    paths.lead_to(new)
    assert "br-new.mgmt" not in paths.state()


def test_when_the_own_daemons_have_ended_only_the_links_stay(own: Path, new: InstancePaths) -> None:
    paths = WellKnown(own, own / ".kept")
    paths.lead_to(new)
    paths.forget()
    assert not (own / ".kept").exists()
    assert appctl(own, "ovs-vswitchd") == "new ovs-vswitchd"
    assert not (own / "ovs-vswitchd.101.ctl").is_symlink()
    assert paths.strays(new) == ()
    paths.clear()
    assert sorted(os.listdir(own)) == ["other.file"]


def test_remembered_control_sockets_lead_to_the_same_daemon() -> None:
    found = wanted({"ovs-vswitchd.2.ctl": Path("/new/ctl"), "db.sock": Path("/new/db.sock")},
                   ["ovs-vswitchd.1.ctl", "ovsdb-server.1.ctl", "db.sock"])  # fmt: skip
    assert found == {"ovs-vswitchd.1.ctl": Path("/new/ctl"), "ovs-vswitchd.2.ctl": Path("/new/ctl"),
                     "db.sock": Path("/new/db.sock")}  # fmt: skip


def test_a_daemon_that_was_started_again_is_found_before_it_has_a_second_name(
    place: Path, own: Path, daemons: Daemons
) -> None:
    """Only ovs-vswitchd is another process then: the database's socket is the same."""
    sides = {side: {"pmd_cores": [0]} for side in Side}
    config = Config.model_validate({
        "program": "clone", "run_dir": str(place / "run"), "state_dir": str(place / "state"), "instances": sides,
        "stock": {"run_dir": str(own)},
    })  # fmt: skip
    WellKnown(own, config.stock.kept_dir).keep()
    before = StockRecord(side=Side.A, pid=OWN["ovs-vswitchd"], born=1, ovsdb_pid=OWN["ovsdb-server"], ovsdb_born=1)
    kept = InstancePaths.of_stock(config, before)
    assert {kept.vswitchd_ctl.parent, kept.ovsdb_ctl.parent} == {config.stock.kept_dir}
    daemons.listen(own / "ovs-vswitchd.4711.ctl", "again")
    again = InstancePaths.of_stock(config, before.model_copy(update={"pid": 4711}))
    assert ask(again.vswitchd_ctl) == "again"
    assert again.ovsdb_ctl == kept.ovsdb_ctl
    (own / "ovs-vswitchd.4712.ctl").symlink_to(own / "ovs-vswitchd.4711.ctl")  # it leads to the other instance
    other = InstancePaths.of_stock(config, before.model_copy(update={"pid": 4712}))
    assert other.vswitchd_ctl.parent == config.stock.kept_dir
