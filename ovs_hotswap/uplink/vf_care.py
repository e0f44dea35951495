"""Sets the VFs of one side as [uplink.vfs] says, before its instance opens them, and puts them back afterwards.

Most drivers reset a VF when its trust, MAC address, VLAN or link state is set, and a DPDK port then loses its
connection. So nothing is set while a process has the VF open: ``take`` is called when no instance of the side runs,
looks for other processes by itself, and sets only what differs.

What was found is in the state directory before anything is changed. It holds for this boot, which VFs and their
settings do not outlive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from ovs_hotswap.config import Config
from ovs_hotswap.config_rules import pci_address
from ovs_hotswap.errors import HotswapError, UplinkError
from ovs_hotswap.model import Side
from ovs_hotswap.plan.journal import BOOT_ID
from ovs_hotswap.system import System, files
from ovs_hotswap.toml_file import Strict
from ovs_hotswap.uplink.pci import BIFURCATED, VFIO, Binding, PciBus, Place
from ovs_hotswap.uplink.vf import RtnlVfs, Value, Vf, VfBusy, Vfs, command, shown
from ovs_hotswap.waiting import wait_until

_BUSY_S = 5.0  # a VF's reset takes up to 0.3 s (i40e_set_vf_mac)
Made = TypeVar("Made", "VfChange", "Rebound")


class VfChange(Strict, extra="ignore"):
    """A setting of a VF that was changed, with its value before and after that (``vf.Vf``). ``address``: that of the
    VF, if it is a PCI device."""

    device: str
    number: int
    address: str | None
    name: Literal["mac", "vlan", "spoof_check", "link_state", "trust"]
    before: Value
    after: Value

    @property
    def place(self) -> Place:
        return Place(self.device, self.number, self.address)


class Rebound(Strict, extra="ignore"):
    """A device that was bound to vfio-pci, and how it was bound before (``pci.Binding``)."""

    address: str
    driver: str | None
    override: str


class Record(Strict, extra="ignore"):
    """The content of the file. ``boot``: the boot in which the changes were made. Fields that a newer version writes in
    addition are ignored."""

    boot: str
    changes: tuple[VfChange, ...] = ()
    rebound: tuple[Rebound, ...] = ()


class Part(NamedTuple):
    """A VF of a side. ``why_not``: why it is not known which one, or empty."""

    place: Place | None
    address: str | None
    why_not: str = ""


def parts(config: Config, side: Side, bus: PciBus) -> Iterator[Part]:
    """Yield the VFs of a side, one for each NIC: by their PCI addresses, or by their numbers in the configuration."""
    for nic, devargs in zip(config.uplink.nics, config.instance(side).devices, strict=False):
        address, number = pci_address(devargs), nic.vf(side)
        if address is not None:
            place = bus.place(address, nic.device)
            reason = "is no VF of a network device" if bus.exists(address) else "does not exist"
            yield Part(place, address, "" if place is not None else f"{address} {reason}")
        elif nic.device is not None and number is not None:
            yield Part(Place(nic.device, number), None)


class VfCare:
    """The care for the VFs of ``side``. One process at a time may call it: the caller holds the lock."""

    def __init__(
        self, config: Config, side: Side, system: System, *, vfs: Vfs | None = None, bus: PciBus | None = None,
        boot_id: Path = BOOT_ID,
    ) -> None:  # fmt: skip
        self._config, self._side, self._system = config, side, system
        self._vfs = vfs or RtnlVfs(config.uplink.namespace)
        self._bus = bus or PciBus()
        self._boot_id = boot_id
        self.path = config.state_dir / f"vfs-{side}.json"

    def take(self) -> None:
        """Set the side's VFs, and bind them, as the configuration says. Raises UplinkError or HostError; the VFs are
        then as they were before, or the error says what is not."""
        wanted, bind = self._config.uplink.vfs.wanted(self._side), self._config.uplink.vfs.bind
        if not wanted and not bind:
            return
        every = list(parts(self._config, self._side, self._bus))
        for part in every:
            self._refuse(part)
        try:
            for place in (part.place for part in every if part.place is not None):
                self._set(place, wanted)
            for address in (part.address for part in every if bind and part.address is not None):
                self._bind(address)
        except BaseException as error:
            for complaint in self.give_back():
                error.add_note(complaint)
            raise

    def give_back(self) -> list[str]:
        """Put back what ``take`` has changed, as far as nothing else has changed it since. Returns what could not be
        put back, and is tried again by the next call."""
        record = self.record()
        if record is None:
            return []
        complaints: list[str] = []
        rebound = [each for each in reversed(record.rebound) if self._tried(complaints, self._rebind, each)]
        changes = [each for each in reversed(record.changes) if self._tried(complaints, self._restore, each)]
        left = record.model_copy(update={"changes": tuple(reversed(changes)), "rebound": tuple(reversed(rebound))})
        try:
            self._keep(left)
        except HotswapError as error:
            complaints.append(error.message)
        return complaints

    def record(self) -> Record | None:
        """What was changed in this boot and not put back; ``None`` if that is nothing. A file that cannot be read was
        not written by ``_keep``, so nothing is known."""
        try:
            found = Record.model_validate_json(self.path.read_text())
        except (OSError, ValueError):
            return None
        return found if found.boot == self._boot() else None

    # -- steps

    def _refuse(self, part: Part) -> None:
        """Raise UplinkError if the VF is not known, or a process has it open."""
        if part.place is None and part.why_not:
            raise UplinkError(f"instance {self._side}: {part.why_not}, so [uplink.vfs] cannot be set on it",
                              hint="ls -l /sys/class/net/*/device/virtfn*")  # fmt: skip
        self._refuse_open(part.address)

    def _refuse_open(self, address: str | None) -> None:
        """Raise UplinkError if a process has the device open."""
        holders = [] if address is None else self._bus.holders(address)
        if holders:
            raise UplinkError(f"instance {self._side}: its device {address} is open in {holders[0]}, under which it "
                              "would be reset", hint=f"`ps -fp {holders[0].pid}`")  # fmt: skip

    def _set(self, place: Place, wanted: dict[str, Value]) -> None:
        found = self._read(place)
        if "vlan" in wanted and found.other_tag:
            typed = command(*_at(place), "vlan", 0)
            raise UplinkError(f"{place} has a VLAN of 802.1ad, which could not be put back",
                              hint=f"take vlan out of [uplink.vfs], or remove that VLAN: `{typed}`")  # fmt: skip
        for name, value in found.differing(wanted).items():
            before = found.value(name)
            if before is None:
                raise UplinkError(f"{place}: its driver does not report {name}, so that could not be put back",
                                  hint=f"set it by hand, and take {name} out of [uplink.vfs]: "
                                  f"`{command(*_at(place), name, value)}`")  # fmt: skip
            self._note(place, name, before, value)
            self._change(place, name, value)

    def _change(self, place: Place, name: str, value: Value) -> None:
        """Set one setting, and read it back. Raises UplinkError."""

        def done() -> bool:
            try:
                self._vfs.set(*_at(place), name, value)
            except VfBusy:
                return False
            return True

        if not wait_until(done, _BUSY_S, self._system):
            self._vfs.set(*_at(place), name, value)
        now = self._read(place).value(name)
        if now != value:
            found = "unknown" if now is None else shown(name, now)
            raise UplinkError(f"{place}: {name} was set to {shown(name, value)}, and is {found}",
                              hint=f"`{command(*_at(place), name, value)}`, and `dmesg`")  # fmt: skip

    def _bind(self, address: str) -> None:
        before = self._bus.binding(address)
        if before.driver == VFIO or before.driver in BIFURCATED:
            return
        record = self.record() or Record(boot=self._boot())
        kept = Rebound(address=address, driver=before.driver, override=before.override)
        if address not in [each.address for each in record.rebound]:
            self._keep(record.model_copy(update={"rebound": (*record.rebound, kept)}))
        self._bus.bind(address, VFIO)

    def _restore(self, change: VfChange) -> str:
        """Put a setting back, or return why it stays. Raises UplinkError."""
        found = self._vfs.read(*_at(change.place))
        now = None if found is None else found.value(change.name)
        if now == change.after:
            self._refuse_open(change.address)
            self._change(change.place, change.name, change.before)
        elif now not in (change.before, None):
            return (
                f"{change.place}: {change.name} stays {shown(change.name, now or 0)}, to which something else has set "
                f"it; before the instance's start it was {shown(change.name, change.before)}"
            )
        return ""

    def _rebind(self, before: Rebound) -> str:
        self._refuse_open(before.address)
        self._bus.put_back(Binding(before.address, before.driver, before.override))
        return ""

    @staticmethod
    def _tried(complaints: list[str], act: Callable[[Made], str], each: Made) -> bool:
        """Whether ``act`` has failed and is to be tried again."""
        try:
            complaint = act(each)
        except HotswapError as error:
            complaints.append(error.message if error.hint is None else f"{error.message}; by hand: {error.hint}")
            return True
        complaints += [complaint] if complaint else []
        return False

    # -- the record

    def _note(self, place: Place, name: str, before: Value, after: Value) -> None:
        """Record a change before it is made. What the VF had before an earlier change counts."""
        record = self.record() or Record(boot=self._boot())
        made: dict[tuple[str, int, str], VfChange] = {
            (each.device, each.number, each.name): each for each in record.changes
        }
        key = place.device, place.number, name
        before = made[key].before if key in made else before
        change = VfChange.model_validate({"device": place.device, "number": place.number, "address": place.address,
                                        "name": name, "before": before, "after": after})  # fmt: skip
        self._keep(record.model_copy(update={"changes": tuple({**made, key: change}.values())}))

    def _keep(self, record: Record) -> None:
        if not record.changes and not record.rebound:
            with files(self.path):
                self.path.unlink(missing_ok=True)
            return
        with files(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._system.write_atomic(self.path, record.model_dump_json() + "\n")

    def _read(self, place: Place) -> Vf:
        found = self._vfs.read(*_at(place))
        if found is None:
            raise UplinkError(f"there is no {place}", hint=f"ip link show {place.device}")
        return found

    def _boot(self) -> str:
        with files(self._boot_id):
            return self._boot_id.read_text().strip()


def _at(place: Place) -> tuple[str, int]:
    return place.device, place.number
