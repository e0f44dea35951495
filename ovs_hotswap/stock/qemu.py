"""Finds the QEMU at the other end of each VM's port, without a word to it: from /proc and from sock_diag(7)."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ovs_hotswap.errors import CommandError
from ovs_hotswap.stock import qemu_options
from ovs_hotswap.stock.facts import Confinement, Monitor, PortKind, StockQemu, StockVm
from ovs_hotswap.stock.qemu_options import MonitorOption
from ovs_hotswap.stock.sockets import UnixSocket, clients, connections, holders, inode_of
from ovs_hotswap.system import System

_PROC = Path("/proc")
_LIBVIRT = {"libvirtd", "virtqemud"}  # the daemons that hold the monitors of their domains
_OTHERS = 0o022  # the bits that let others write


Versions = dict[tuple[int, int], "str | None"]
"""The version of each program that was asked, by device and inode of its file."""


@dataclass(frozen=True, slots=True)
class _Sockets:
    """All connections, the named ones by path, and the processes that hold them."""

    all: tuple[UnixSocket, ...]
    named: Mapping[str, list[UnixSocket]]
    holder: Mapping[int, tuple[int, ...]]


def with_qemus(vms: tuple[StockVm, ...], system: System, broker: int | None = None) -> tuple[StockVm, ...]:
    """Return the VMs with their QEMUs. ``broker``: the pid of this program's broker. Raises HostError."""
    found = connections()
    named: dict[str, list[UnixSocket]] = {}
    for each in found:
        if each.name:
            named.setdefault(_real(each.name), []).append(each)
    sockets = _Sockets(found, named, holders([each.inode for each in found], system.pids()))
    versions: Versions = {}
    return tuple(_with_qemu(vm, sockets, system, broker, versions) for vm in vms)


def confinement() -> Confinement:
    """Return what limits this process towards others."""
    scope = _text(_PROC / "sys/kernel/yama/ptrace_scope")
    return Confinement(
        int(scope) if scope.isdecimal() else None,
        _text(_PROC / "self/attr/current") or "unconfined",
        _text(Path("/sys/fs/selinux/enforce")) == "1",
    )


def _with_qemu(vm: StockVm, sockets: _Sockets, system: System, broker: int | None, versions: Versions) -> StockVm:
    if vm.kind is PortKind.VDUSE or not vm.socket:
        return vm
    ends = sockets.named.get(_real(vm.socket), [])
    if vm.kind is PortKind.SERVER:  # the switch accepted the connection: QEMU is at the end without a name
        inodes = [each.peer for each in ends if each.peer is not None]
    else:
        inodes = [each.inode for each in ends]
    for inode in inodes:
        for pid in sockets.holder.get(inode, ()):
            if "qemu" in _program(pid) or "kvm" in _program(pid):
                peers = {peer for each in ends if each.inode == inode and (peer := each.peer) is not None}
                other = {pid for peer in peers for pid in sockets.holder.get(peer, ())}
                return replace(
                    vm, qemu=_qemu(pid, sockets, system, versions), adopted=broker is not None and broker in other
                )
    return vm


def _qemu(pid: int, sockets: _Sockets, system: System, versions: Versions) -> StockQemu:
    options = qemu_options.parse(system.cmdline(pid))
    monitors = tuple(_monitor(pid, option, sockets) for option in options.monitors)
    held = {client for each in monitors for client in (each.client or "").split(", ")}
    return StockQemu(
        pid=pid,
        guest=options.guest,
        version=_version(pid, system, versions),
        monitors=monitors,
        libvirt=options.libvirt and bool(held & _LIBVIRT),
        memory=options.memory,
        machine=options.machine,
        kvm=options.kvm,
        label=_text(_PROC / str(pid) / "attr/current") or "unconfined",
        traceable=_traceable(pid),
    )


def _monitor(pid: int, option: MonitorOption, sockets: _Sockets) -> Monitor:
    path = (option.path or "").partition(",")[0]
    if option.fd is not None:  # libvirt passes a socket that listens already
        inode = inode_of(pid, option.fd)
        path = _listening_path(inode) if inode is not None else ""
    names = [_program(each) for each in clients(path, sockets.all, sockets.holder)] if path else []
    return Monitor(path, ", ".join(names) or None)


def _listening_path(inode: int) -> str:
    """Return the path of a listening socket: /proc/net/unix has the inode in its seventh column, the path behind it."""
    for line in _text(_PROC / "net/unix").splitlines():
        columns = line.split(None, 7)
        if len(columns) == 8 and columns[6] == str(inode):
            return columns[7]
    return ""


def _version(pid: int, system: System, known: Versions) -> str | None:
    """Ask the program that the process runs, which may have been replaced on the disk, for its version. It is run only
    if root alone could have written it, because this process may be root's."""
    program = _PROC / str(pid) / "exe"
    try:
        found = program.stat()
        if found.st_uid != 0 or stat.S_IMODE(found.st_mode) & _OTHERS:
            return None
        key = found.st_dev, found.st_ino
        if key not in known:
            known[key] = qemu_options.version(system.run([str(program), "--version"], timeout=10.0).stdout)
        return known[key]
    except (OSError, CommandError):
        return None


def _traceable(pid: int) -> bool:
    """Whether the kernel lets this process duplicate descriptors of another (pidfd_getfd(2)). Opening its memory asks
    the kernel's security modules the same question, with PTRACE_MODE_ATTACH (fs/proc/base.c, mem_open)."""
    try:
        os.close(os.open(_PROC / str(pid) / "mem", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _program(pid: int) -> str:
    try:
        return Path(os.readlink(_PROC / str(pid) / "exe").removesuffix(" (deleted)")).name
    except OSError:
        return ""


def _real(path: str) -> str:
    """Return the path with links in the directories resolved; the socket itself may have another name by now."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
