"""Huge pages of 2 MiB: makes enough available for what is to start, and gives them back afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.errors import LabError
from ovs_hotswap.system import System

PAGE_MB = 2
MOUNT = Path("/dev/hugepages")
_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


@dataclass(frozen=True, slots=True)
class Pool:
    """The kernel's pool, in pages. ``reserved`` are promised to mappings but still free
    (Documentation/admin-guide/mm/hugetlbpage.rst)."""

    total: int
    free: int
    reserved: int

    @property
    def available(self) -> int:
        return self.free - self.reserved

    @property
    def used(self) -> int:
        return self.total - self.free + self.reserved


def wanted_total(pool: Pool, megabytes: int) -> int:
    """The number of pages that the pool must have so that ``megabytes`` MiB are available; never less than it has."""
    pages = -(-megabytes // PAGE_MB)
    return pool.total + max(0, pages - pool.available)


def restored_total(pool: Pool, before: int) -> int:
    """The number of pages to which the pool may shrink: ``before``, but not below the pages in use. It never grows."""
    return min(pool.total, max(before, pool.used))


def read_pool(directory: Path = _POOL) -> Pool:
    """Read the present pool. Raises LabError on a kernel without huge pages of 2 MiB."""
    try:
        values = [int((directory / name).read_text()) for name in ("nr_hugepages", "free_hugepages", "resv_hugepages")]
    except FileNotFoundError as error:
        raise LabError(f"this kernel has no huge pages of 2 MiB: no {error.filename}") from error
    return Pool(*values)


def ensure_hugepages(megabytes: int, system: System, directory: Path = _POOL) -> int | None:
    """Make ``megabytes`` MiB of huge pages available, and mount the hugetlbfs at /dev/hugepages.

    If the pool was enlarged, returns how many pages it had before, for ``restore_hugepages``; otherwise ``None``.
    Raises LabError if memory is too fragmented or too small.
    """
    if not MOUNT.is_mount():
        MOUNT.mkdir(parents=True, exist_ok=True)
        system.run(["mount", "-t", "hugetlbfs", "hugetlbfs", str(MOUNT)])
    pool = read_pool(directory)
    wanted = wanted_total(pool, megabytes)
    if wanted == pool.total:
        return None
    (directory / "nr_hugepages").write_text(str(wanted))
    now = read_pool(directory)
    if now.total < wanted:
        (directory / "nr_hugepages").write_text(str(restored_total(now, pool.total)))
        raise LabError(
            f"{megabytes} MiB of huge pages are needed, the kernel found {now.available * PAGE_MB} MiB",
            hint="free memory, then: echo 1 > /proc/sys/vm/compact_memory",
        )
    return pool.total


def restore_hugepages(before: int, directory: Path = _POOL) -> None:
    """Shrink the pool to ``before`` pages, or to the pages in use if these are more."""
    pool = read_pool(directory)
    (directory / "nr_hugepages").write_text(str(restored_total(pool, before)))
