"""BPF programs on a device that see packets before tc filters do. rtnetlink's list of filters does not contain them.

tcx (kernel 6.6 and later) runs before every filter of clsact; after a verdict other than TCX_NEXT no filter sees the
packet (net/core/dev.c, sch_handle_ingress). XDP runs before both.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

from ovs_hotswap.uplink.frames import in_namespace

_SYSCALLS = {"x86_64": 321, "aarch64": 280}  # __NR_bpf
_PROG_QUERY = 16  # include/uapi/linux/bpf.h, enum bpf_cmd
TCX_INGRESS, TCX_EGRESS = 46, 47  # enum bpf_attach_type
_COUNT = 24  # offset of prog_cnt in union bpf_attr's query part
_ATTR_BYTES = 64


def tcx_counts(namespace: str | None, index: int) -> dict[str, int]:
    """The number of tcx programs on the device, by direction, without directions that have none. On a kernel without
    tcx it is empty. Raises UplinkError."""

    def count() -> dict[str, int]:
        return {way: query(index, kind) for way, kind in (("ingress", TCX_INGRESS), ("egress", TCX_EGRESS))}

    return {way: number for way, number in in_namespace(namespace, count).items() if number}


def query(index: int, attach_type: int) -> int:
    """The number of programs at one attach point of a device in this thread's namespace. Raises OSError."""
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        return 0
    attr = ctypes.create_string_buffer(struct.pack("=II", index, attach_type), _ATTR_BYTES)
    if ctypes.CDLL(None, use_errno=True).syscall(number, _PROG_QUERY, attr, _ATTR_BYTES) < 0:
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.ENOSYS, errno.ENOENT):  # this kernel has no such point, or no program is there
            return 0
        raise OSError(code, "BPF_PROG_QUERY")
    return int(struct.unpack_from("=I", attr.raw, _COUNT)[0])
