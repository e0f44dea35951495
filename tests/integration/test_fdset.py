"""DPDK's notify pipe, of real switches: the host's, and the patched one, which has done away with what it is for."""

from __future__ import annotations

import fcntl
import os
import struct
import termios

from ovs_hotswap.switch.notify_pipe import notify_pipe
from ovs_hotswap.switch.threads import vhost_thread
from tests.support.patched_bed import PatchedBed
from tests.support.patched_bed import bed as bed
from tests.support.vhost_qemu import Traffic
from tests.support.waiting import eventually


def filled(pipe: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


def test_a_switch_takes_what_is_written_and_nothing_comes_of_it(bed: PatchedBed) -> None:
    vm = bed.vm("vm1")
    thread = vhost_thread(bed.pid)
    assert thread is not None
    pipe = notify_pipe(bed.pid, thread)
    if bed.is_patched:
        assert pipe is None
        return
    assert pipe is not None
    with Traffic([vm], 1 << 20):
        for _ in range(50):
            assert os.write(pipe, bytes(16 * 9)) == 16 * 9
            eventually(lambda: not filled(pipe), "the thread takes it")
    os.close(pipe)
    vm.drain()
    assert vm.send(8) == 8
    vm.drain()
