"""The test bed: a network, QEMU guests and a configuration, all below one directory.

``up`` makes what is missing. ``down`` removes everything, also what a killed process left behind and what runs in the
lab's instances. The user of the lab starts the switches and the broker with the lab's ``config.toml``.
"""

from __future__ import annotations

import contextlib
import operator
import os
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pyroute2 import netns

from ovs_hotswap.config import Config
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import HotswapError, LabError
from ovs_hotswap.lab.guest import Guest, command_line
from ovs_hotswap.lab.hugepages import ensure_hugepages, restore_hugepages
from ovs_hotswap.lab.initramfs import build, find_kernel
from ovs_hotswap.lab.layout import MAX_GUESTS, RECORD, GuestOptions, Layout, config_text, overlay_text
from ovs_hotswap.lab.leftovers import lab_processes, mounts_below
from ovs_hotswap.lab.network import Network
from ovs_hotswap.lab.pings import Pings, Stream
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.path_mtu import TAGS
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.memory import Demand, Reservation, Uplink, reserve
from ovs_hotswap.system import System
from ovs_hotswap.toml_file import Strict
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.watchdog.status_file import lock_path

DEFAULT_DIRECTORY = Path("/run/ovs-hotswap-lab")
RELEASE_CACHE = Path("/var/cache/ovs-hotswap/releases")  # release trees outlive a lab: making one takes a minute
INSTANCE_MB = 256  # MiB that an instance of the lab may take; four guests take a quarter of it
_POLL_S = 0.05
_LISTEN_S = 20.0


class Record(Strict):
    """The parameters of a lab. ``hugepages_before``: the pages that the pool had, if the lab has enlarged it."""

    vms: int
    options: GuestOptions
    hugepages_before: int | None = None


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """The state of a guest. ``pid``: the pid of its QEMU. ``ready``: the guest has booted, which it cannot do while
    QEMU waits for its first switch."""

    name: str
    pid: int | None
    ready: bool


@dataclass(frozen=True, slots=True)
class LabStatus:
    """The state of a lab. ``up``: the network is complete and every guest's QEMU runs. ``namespaces``: the lab's
    network namespaces that exist."""

    directory: Path
    up: bool
    guests: tuple[GuestStatus, ...]
    namespaces: tuple[str, ...]


class Lab:
    """A lab of ``vms`` guests below ``directory``. All methods raise LabError.

    A test bed with other guests is a subclass with its own ``_make_guests``. ``most``: how many guests it may have.
    """

    most = MAX_GUESTS

    def __init__(self, directory: Path, vms: int, system: System, options: GuestOptions | None = None) -> None:
        if not directory.is_absolute():
            raise LabError(f"{directory}: the lab's directory must be an absolute path")
        self.layout = Layout(Path(os.path.normpath(directory)), vms, options or GuestOptions())
        self._system = system
        self._network = Network(self.layout, system)
        self.guests = tuple(Guest(self.layout, guest, system) for guest in self.layout.guests)

    @classmethod
    def existing(cls, directory: Path, system: System) -> Lab:
        """The lab in ``directory``, which another process may have brought up. If there is none, the result has no
        guests."""
        record = read_record(directory / RECORD)
        return cls(directory, record.vms, system, record.options) if record else cls(directory, 0, system)

    @property
    def config_path(self) -> Path:
        return self.layout.config_file

    @cached_property
    def config(self) -> Config:
        """The lab's configuration, which exists once the lab is up."""
        return load_config(self.layout.config_file)

    @cached_property
    def pings(self) -> Pings:
        """The figures of the guests' pings."""
        streams = [
            Stream(guest.name, target.name, self.layout.report_file(guest.name, target.name))
            for guest in self.layout.guests
            for target in guest.targets
        ]
        return Pings(streams, self.layout.options.ping_interval_ms, self._system)

    def guest(self, name: str) -> Guest:
        for guest in self.guests:
            if guest.name == name:
                return guest
        raise LabError(f"the lab has no guest {name}; it has {', '.join(guest.name for guest in self.guests)}")

    def up(self, releases: Path | None = None) -> None:
        """Make what is missing of the lab; return when every QEMU listens for its switch.

        ``releases``: a directory of release trees to use instead of one of the lab's own. Raises LabError if the
        directory has a lab of another size or with other options. If making a new lab fails, everything is removed
        again.
        """
        directory = self.layout.directory
        if not 1 <= self.layout.count <= self.most:
            raise LabError(f"a lab has 1 to {self.most} guests, not {self.layout.count}")
        record = read_record(self.layout.record_file)
        if record is not None and (record.vms, record.options) != (self.layout.count, self.layout.options):
            raise LabError(
                f"{directory} holds a lab of {record.vms} guests with other options",
                hint=f"`ovs-hotswap lab down --directory {directory}`",
            )
        if record is None and directory.exists() and any(directory.iterdir()):
            raise LabError(f"{directory} is not empty and holds no lab", hint="choose another directory")
        directory.mkdir(parents=True, exist_ok=True)
        with self._lock():
            try:
                self._make(record or Record(vms=self.layout.count, options=self.layout.options), releases)
            except BaseException as error:
                if record is None:
                    self._undo(error)
                raise

    def down(self) -> bool:
        """End and remove everything of the lab; return whether there was anything to remove.

        Raises the first failure after everything else has been tried.
        """
        directory = self.layout.directory
        if not directory.exists():
            return self._remove()
        if read_record(self.layout.record_file) is None and any(directory.iterdir()):
            raise LabError(f"{directory} holds no lab; nothing was removed")
        with self._lock():
            return self._remove()

    def status(self) -> LabStatus:
        """The present state of the lab."""
        guests = tuple(GuestStatus(guest.name, guest.pid, guest.boots() > 0) for guest in self.guests)
        running = bool(guests) and all(guest.pid is not None for guest in guests)
        return LabStatus(
            directory=self.layout.directory,
            up=running and self._network.complete(),
            guests=guests,
            namespaces=tuple(self._namespaces()),
        )

    def start_guest(self, name: str) -> None:
        """Start the guest's QEMU if it does not run; return when it listens for its switch."""
        guest = self.guest(name)
        pid = guest.pid
        if pid is None:
            for path in guest.sockets:
                path.unlink(missing_ok=True)
            argv = command_line(self.layout, guest.layout, find_kernel().image)
            pid = self._system.spawn(argv, log=self.layout.guest_file(name, "err"))
            guest.pid_file.write_text(f"{pid}\n")

        def listens() -> bool:
            found = all(path.exists() for path in guest.sockets)
            if not found and not self._system.alive(pid):
                tail = self.layout.guest_file(name, "err").read_text(errors="replace").strip().splitlines()
                raise LabError(f"{name}: QEMU ended: {tail[-1] if tail else 'no message'}")
            return found

        if not wait_until(listens, _LISTEN_S, self._system, poll_s=_POLL_S):
            raise LabError(f"{name}: QEMU does not listen on {guest.sockets[0]} within {_LISTEN_S:g} s")

    def stop_guest(self, name: str) -> None:
        """End the guest's QEMU if it runs."""
        guest = self.guest(name)
        if guest.pid is not None:
            self._system.kill(guest.pid)
        guest.pid_file.unlink(missing_ok=True)

    def wait_guests(self, timeout_s: float, boots: int = 1) -> None:
        """Wait until every guest has booted ``boots`` times. Its network need not work.

        QEMU runs a guest only after a switch or a broker has connected to it, so connect one first.
        """

        def missing() -> list[str]:
            return [guest.name for guest in self.guests if guest.boots() < boots]

        if waiting := wait_until(missing, timeout_s, self._system, done=operator.not_, poll_s=_POLL_S):
            hint = f"logs: {self.layout.guest_dir}"
            raise LabError(f"not up within {timeout_s:g} s: {', '.join(waiting)}", hint=hint)

    def _make(self, record: Record, releases: Path | None) -> None:
        layout = self.layout
        for directory in (layout.run_dir, layout.switch_dir, layout.state_dir, layout.guest_dir):
            directory.mkdir(exist_ok=True)
        self._write(record)
        if record.hugepages_before is None and not self._processes():
            before = ensure_hugepages(self.megabytes(), self._system)
            self._write(record.model_copy(update={"hugepages_before": before}))
        link = layout.state_dir / "releases"
        if releases is not None and not link.exists():
            releases.mkdir(parents=True, exist_ok=True)
            link.symlink_to(releases)
        if not layout.config_file.exists():
            layout.overlay_file.write_text(overlay_text(layout))
            layout.config_file.write_text(self._config_text())
        self._network.up()
        self._make_guests()

    def _make_guests(self) -> None:
        if not self.layout.initramfs_file.exists():
            self.layout.initramfs_file.write_bytes(build(find_kernel(), self._system))
        for guest in self.guests:
            self.start_guest(guest.name)

    def _config_text(self) -> str:
        last = (os.cpu_count() or 1) - 1
        cores = min(1, last), min(2, last)  # with two cores or more, the first one is left for everything else
        return config_text(self.layout, memory_mb=self._instance_mb(), cores=cores)

    def _reservation(self) -> Reservation:
        """The huge pages of one instance."""
        options = self.layout.options
        longest = max(options.mtu, options.wire.mtu) if self.layout.one_nic else options.mtu
        mtus = (options.wire.mtu, longest + TAGS)  # the underlay's and the peer link's
        uplinks = (Uplink(),) * len(self.layout.nics)
        return reserve(Demand((options.queues,) * self.layout.count, mtus, pmds=1, uplinks=uplinks))

    def _instance_mb(self) -> int:
        return max(INSTANCE_MB, self._reservation().mib)

    @cached_property
    def _written(self) -> Config:
        """The configuration that ``up`` writes. ``down`` uses this one, because the file may have changed."""
        return Config.model_validate(tomllib.loads(self._config_text()))

    def megabytes(self) -> int:
        """The MiB of huge pages for two instances, and for the guests if they have their memory on huge pages."""
        options = self.layout.options
        return 2 * self._reservation().mib + (self.layout.count * options.memory_mb if options.hugepages else 0)

    def _write(self, record: Record) -> None:
        self._system.write_atomic(self.layout.record_file, record.model_dump_json(indent=2) + "\n")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with self._system.lock(self.layout.directory / "lock", f"work on the lab in {self.layout.directory}"):
            yield

    def _undo(self, error: BaseException) -> None:
        try:
            self._remove()
        except HotswapError as second:
            error.add_note(f"and undoing it failed: {second.message}")

    def _remove(self) -> bool:
        """Remove first the watchdog, which would start a stopped instance again; then the instances; then every
        process, namespace, mount and file that is left. Returns whether there was anything to remove."""
        record = read_record(self.layout.record_file)
        failures: list[HotswapError] = []
        found = self.layout.directory.exists() or bool(self._namespaces()) or bool(self._processes())
        for act in (
            self._end_watchdog,
            self._stop_instances,
            self._kill_processes,
            self._remove_namespaces,
            self._unmount,
        ):
            try:
                act()
            except HotswapError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        if record is not None and record.hugepages_before is not None:
            restore_hugepages(record.hugepages_before)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.layout.directory)
        return found

    def _end_watchdog(self) -> None:
        pid = self._system.read_pid(lock_path(self._written))
        if pid in self._processes():
            self._system.kill(pid)

    def _stop_instances(self) -> None:
        for side in Side:
            Instance(self._written, side, self._system).stop()

    def _kill_processes(self) -> None:
        for _ in range(5):  # a process that is being started may be missed once
            pids = self._processes()
            if not pids:
                return
            for pid in pids:
                self._system.kill(pid, grace=1.0)
        raise LabError(f"processes of {self.layout.directory} start again: {pids}")

    def _processes(self) -> list[int]:
        return lab_processes(self.layout.directory, self._system)

    def _namespaces(self) -> list[str]:
        """The lab's network namespaces that exist, those of its instances included."""
        own = {self.layout.host_namespace, self.layout.remote_namespace, *map(self._written.namespace, Side)}
        return sorted(own & set(netns.listnetns()))

    def _remove_namespaces(self) -> None:
        for name in self._namespaces():
            try:
                netns.remove(name)
            except OSError as error:
                raise LabError(f"network namespace {name} cannot be removed: {error}") from error

    def _unmount(self) -> None:
        """Unmount everything below the directory: files below a mount point are not the lab's, so nothing is removed
        while there is one."""
        for point in mounts_below(self.layout.directory, Path("/proc/self/mountinfo").read_text()):
            self._system.run(["umount", point])


def read_record(path: Path) -> Record | None:
    """The record of a lab; ``None`` if there is none. Raises LabError if it cannot be read."""
    try:
        return Record.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LabError(f"{path}: not the record of a lab: {error}") from error
