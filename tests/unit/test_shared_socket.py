"""The socket that both sides' switches share, and QEMU's beside it, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovs_hotswap.broker.directory_watch import DirectoryWatch
from ovs_hotswap.broker.shared_socket import GRACE_S, SharedSocket, connected
from ovs_hotswap.errors import BrokerError

HEAD = "Num       RefCount Protocol Flags    Type St Inode Path\n"
# Of a host: QEMU's listener, whose file was renamed; its connection; a listener of a broker; a connection to that.
QEMU = "0000000000000000: 00000002 00000000 00010000 0001 01 31801 /var/lib/vhost/vm 1.sock\n"
CONNECTION = "0000000000000000: 00000003 00000000 00000000 0001 03 31811 /var/lib/vhost/vm 1.sock\n"
OTHERS = (
    "0000000000000000: 00000002 00000000 00010000 0001 01 31900 /var/lib/vhost/.812\n"
    "0000000000000000: 00000003 00000000 00000000 0001 03 31901 /var/lib/vhost/.812\n"
    "0000000000000000: 00000003 00000000 00000000 0001 03 31902\n"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + OTHERS + QEMU + CONNECTION, True),
        (HEAD + OTHERS + CONNECTION, True),
        (HEAD + OTHERS + QEMU, False),
        (HEAD + OTHERS, None),
        (HEAD + OTHERS + QEMU.replace("00010000", "00000000"), None),
        (HEAD, None),
    ],
    ids=["connected", "listener gone", "listens", "none", "bound alone", "no socket"],
)
def test_the_list_of_sockets_says_whether_qemu_has_a_connection(text: str, said: bool | None) -> None:
    assert connected(text, "/var/lib/vhost/vm 1.sock") is said


class Bench:
    """A directory with QEMU's socket, as QEMU makes it, and the broker's."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.path, self.moved = directory / "vm", directory / "vm.qemu"
        self._stack = stack
        self.shared = SharedSocket(self.path, self.moved)

    def start_qemu(self) -> socket.socket:
        self.path.unlink(missing_ok=True)
        made = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        made.bind(str(self.path))
        made.listen()
        return made

    def listen(self, before: socket.socket | None = None) -> socket.socket:
        return self._stack.enter_context(self.shared.listen(before))

    def answers(self, path: Path) -> socket.socket | None:
        """A connection to the process that listens at a path, if one does."""
        made = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            made.connect(str(path))
        except OSError:
            return None
        return made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.ExitStack() as stack:
        yield Bench(tmp_path, stack)


def accepted(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_qemus_socket_is_renamed_and_answers_under_both_names(bench: Bench) -> None:
    qemu = bench.start_qemu()
    bench.path.chmod(0o640)
    os.chown(bench.path, 7, 9)
    own = bench.listen()
    assert bench.answers(bench.moved)
    assert accepted(qemu)
    assert bench.answers(bench.path)
    assert accepted(own)
    assert (bench.path.stat().st_uid, bench.path.stat().st_gid, bench.path.stat().st_mode & 0o777) == (7, 9, 0o640)
    assert bench.shared.listen(own) is own


def test_the_rights_of_the_brokers_unit_suffice_for_the_socket_of_another_user(bench: Bench) -> None:
    """systemd/ovs-hotswap-broker.service, CapabilityBoundingSet=."""
    qemu = bench.start_qemu()
    bench.path.chmod(0o640)
    os.chown(bench.path, 7, 9)
    program = (f"from pathlib import Path; from ovs_hotswap.broker.shared_socket import SharedSocket; "
               f"SharedSocket(Path({str(bench.path)!r}), Path({str(bench.moved)!r})).listen(None)")  # fmt: skip
    rights = "-all,+chown,+dac_override,+sys_nice"
    subprocess.run(["setpriv", f"--bounding-set={rights}", sys.executable, "-P", "-c", program], check=True)
    found = bench.path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (7, 9, 0o640)
    assert bench.answers(bench.moved)
    assert accepted(qemu)


def test_a_listener_that_cannot_be_made_leaves_qemus_socket_where_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = bench.start_qemu()
    with monkeypatch.context() as patch:
        patch.setattr(os, "chown", refused)
        with pytest.raises(BrokerError, match="Operation not permitted"):
            bench.shared.listen(None)
    assert not bench.moved.exists()
    assert bench.answers(bench.path)
    assert accepted(qemu)
    assert accepted_after(bench, bench.listen())


def test_a_listener_that_cannot_be_made_again_is_made_by_the_next_attempt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = bench.listen()
    qemu = bench.start_qemu()
    with monkeypatch.context() as patch:
        patch.setattr(os, "chown", refused)
        with pytest.raises(BrokerError, match="Operation not permitted"):
            bench.shared.listen(own)
    assert not bench.path.exists()  # no switch is to find QEMU
    time.sleep(GRACE_S)
    bench.shared.listen(own)
    time.sleep(GRACE_S)
    assert accepted_after(bench, bench.listen(own))
    assert bench.answers(bench.moved)
    assert accepted(qemu)


def refused(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def accepted_after(bench: Bench, own: socket.socket) -> bool:
    return bench.answers(bench.path) is not None and accepted(own)


def test_there_need_not_be_a_qemu(bench: Bench) -> None:
    own = bench.listen()
    assert not bench.moved.exists()
    assert bench.shared.listen(own) is own


def test_a_qemu_that_starts_replaces_the_socket_and_is_renamed(bench: Bench) -> None:
    bench.start_qemu()
    own = bench.listen()
    qemu = bench.start_qemu()
    again = bench.listen(own)
    assert again is not own
    assert bench.answers(bench.moved)
    assert accepted(qemu)
    assert bench.answers(bench.path)
    assert accepted(again)


def test_a_socket_that_is_gone_is_made_again_when_no_qemu_is_about_to_make_its_own(bench: Bench) -> None:
    own = bench.listen()
    bench.path.unlink()
    assert bench.shared.listen(own) is own
    assert bench.shared.waits
    assert not bench.path.exists()
    time.sleep(GRACE_S)
    assert bench.listen(own) is not own
    assert not bench.shared.waits
    assert bench.path.exists()


def test_the_socket_of_a_broker_that_has_ended_is_replaced_and_qemus_stays(bench: Bench) -> None:
    qemu = bench.start_qemu()
    bench.listen().close()
    bench.shared = SharedSocket(bench.path, bench.moved)
    own = bench.listen()
    assert bench.answers(bench.moved)
    assert accepted(qemu)
    assert bench.answers(bench.path)
    assert accepted(own)


def test_a_qemu_that_started_while_there_was_no_broker_is_found(bench: Bench) -> None:
    bench.start_qemu()
    bench.listen().close()
    qemu = bench.start_qemu()
    bench.shared = SharedSocket(bench.path, bench.moved)
    bench.listen()
    accepted(qemu)  # the question whether it listens
    assert bench.answers(bench.moved)
    assert accepted(qemu)


def test_a_successor_continues_with_the_listener(bench: Bench) -> None:
    own, made = bench.listen(), bench.shared.made
    bench.shared = SharedSocket(bench.path, bench.moved)
    bench.shared.inherit(made)
    assert bench.shared.listen(own) is own
    qemu = bench.start_qemu()
    bench.shared.inherit(made)  # the socket was replaced while no broker looked
    assert bench.listen(own) is not own
    assert bench.answers(bench.moved)
    assert accepted(qemu)


def test_a_socket_is_given_back_once(bench: Bench) -> None:
    qemu = bench.start_qemu()
    own = bench.listen()
    bench.shared.give_back()
    assert not bench.moved.exists()
    assert bench.shared.listen(own) is own  # nothing is renamed any longer
    bench.shared.give_back()
    assert bench.answers(bench.path)
    assert accepted(qemu)
    assert bench.listen() is not own  # until it is to be served again
    assert bench.moved.exists()


def test_a_socket_that_qemu_has_made_since_is_not_removed(bench: Bench) -> None:
    bench.listen()
    qemu = bench.start_qemu()
    bench.shared.give_back()
    assert bench.answers(bench.path)
    assert accepted(qemu)


def test_what_a_qemu_has_left_is_removed_after_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.start_qemu().close()
    bench.listen()
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bench.shared.refused()
    bench.shared.reached()
    now += 5
    bench.shared.refused()
    assert bench.moved.exists()
    now += 5
    bench.shared.refused()
    assert not bench.moved.exists()


def test_a_directory_that_cannot_be_written(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BrokerError, match=r"file.vm: File exists"):
        SharedSocket(tmp_path / "file" / "vm", tmp_path / "file" / "vm.qemu").listen(None)


def test_changes_in_directories_are_seen(tmp_path: Path) -> None:
    async def main() -> None:
        seen, missing = asyncio.Event(), tmp_path / "missing"
        watch = DirectoryWatch(asyncio.get_running_loop(), seen.set)
        for path in (tmp_path / "one", tmp_path / "two"):
            path.mkdir()
        watch.watch({tmp_path / "one", missing})

        async def sees(act: Callable[[], object]) -> bool:
            seen.clear()
            act()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(seen.wait(), 0.3)
            return seen.is_set()

        made, renamed = tmp_path / "one" / "vm", tmp_path / "one" / "vm.qemu"
        assert await sees(made.touch)
        assert await sees(lambda: made.rename(renamed))
        assert await sees(renamed.unlink)
        assert not await sees((tmp_path / "two" / "vm").touch)
        missing.mkdir()
        watch.watch({missing})
        assert not await sees(made.touch)
        assert await sees((missing / "vm").touch)
        watch.close()
        assert not await sees(lambda: os.kill(os.getpid(), signal.SIGIO))  # it does no harm

    before = signal.getsignal(signal.SIGIO)
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGIO, before)
