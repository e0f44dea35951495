"""The seam to the machine: processes, clock, files. Everything else asks it, so that tests can stand in its place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ovs_hotswap.errors import BusyError, CommandError
from ovs_hotswap.exits import has_memory


@dataclass(frozen=True, slots=True)
class Completed:
    """What a finished command left: ``status`` is its exit status, texts are decoded with replacement."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


class System:
    """The real machine."""

    def monotonic(self) -> float:
        """Seconds on a clock that never steps."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run ``argv`` to its end; ``env`` is added to the environment.

        ``stdin`` is there as a whole from the beginning: if this process is killed meanwhile, the command goes on, and
        half of what it was to read is worse than nothing (an empty table of flows).

        Raises CommandError if it is not installed, takes longer than ``timeout`` seconds (it is killed), or, with
        ``check``, exits with a status other than 0.
        """
        try:
            with contextlib.nullcontext(subprocess.DEVNULL) if stdin is None else _file_of(stdin) as file:
                done = subprocess.run(
                    list(argv), stdin=file, capture_output=True, text=True, errors="replace", timeout=timeout,
                    env={**os.environ, **env} if env else None, check=False,
                )  # fmt: skip
        except OSError as error:
            raise _not_run(argv[0], error) from error
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"{' '.join(argv)}: no end after {timeout:g} s; killed") from error
        if check and done.returncode != 0:
            text = (done.stderr or done.stdout).strip().splitlines()
            raise CommandError(f"{' '.join(argv)}: exit {done.returncode}: {text[-1] if text else 'no output'}")
        return Completed(tuple(argv), done.returncode, done.stdout, done.stderr)

    def run_lines(
        self,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run ``argv`` to its end and give ``on_line`` each line it prints as it comes; return its exit status.

        Raises CommandError if it is not installed or takes longer than ``timeout`` seconds. Then, and when ``on_line``
        raises or the user interrupts, it is killed; its children are its own affair.
        """
        try:
            child = subprocess.Popen(
                list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", env={**os.environ, **env} if env else None,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise CommandError(f"{argv[0]}: not installed", hint="run `make setup`") from error
        end = self.monotonic() + timeout
        timer = threading.Timer(timeout, child.kill)
        timer.start()
        with child:
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    on_line(line.rstrip("\n"))
                status = child.wait()
            except BaseException:
                child.kill()
                raise
            finally:
                timer.cancel()
        if status == -signal.SIGKILL and self.monotonic() >= end:
            raise CommandError(f"{' '.join(argv)}: no end after {timeout:g} s; killed")
        return status

    def spawn(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> int:
        """Start ``argv`` as a daemon of its own session, output appended to ``log``; return its pid.

        The child outlives this process; whoever needs its exit status must wait for it with a pidfd.
        """
        with log.open("ab") as out:
            try:
                child = subprocess.Popen(
                    list(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                    env={**os.environ, **env} if env else None, cwd="/",
                )  # fmt: skip
            except OSError as error:
                raise _not_run(argv[0], error) from error
        child.returncode = 0  # not ours to reap: silences the ResourceWarning of an abandoned Popen
        return child.pid

    def alive(self, pid: int) -> bool:
        """Whether ``pid`` runs. A zombie counts as dead: its address space and descriptors are gone. One whose first
        thread alone has ended looks like a zombie, but has other threads."""
        return _state(pid) not in {"", "Z", "X"} or _threads(pid) > 1

    def stopped(self, pid: int) -> bool:
        """Whether all of ``pid`` stands still: it is stopped by a signal or a debugger (proc_pid_stat(5): T and t), or
        crashed and writes a core file (proc_pid_status(5): CoreDumping), which takes seconds where much is mapped."""
        return _state(pid) in {"T", "t"} or _dumps_core(pid)

    def cmdline(self, pid: int) -> list[str]:
        """The arguments of ``pid``; empty if it is gone."""
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def pids(self) -> list[int]:
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]

    def kill(self, pid: int, *, grace: float = 5.0) -> None:
        """End ``pid``: SIGTERM, after ``grace`` seconds SIGKILL, and return once it is dead.

        Raises CommandError if it is still there 5 s after SIGKILL.
        """
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            if patience <= 0:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            end = self.monotonic() + patience
            while self.alive(pid) and self.monotonic() < end:
                self._reap(pid)
                self.sleep(0.01)
            if not self.alive(pid):
                self._reap(pid)
                return
        raise CommandError(f"process {pid} does not die")

    def runs_deleted_files(self, pid: int) -> bool:
        """Whether code of ``pid`` comes from files that are there no more; false if it is gone."""
        try:
            lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return any("x" in line.split()[1] and line.endswith(" (deleted)") for line in lines)

    def has_memory(self, pid: int) -> bool:
        """Whether any thread of ``pid`` can still touch memory (``exits.has_memory``)."""
        return has_memory(pid)

    def end(self, pid: int) -> None:
        """SIGKILL ``pid`` and return once it cannot touch memory any more, which is before it is dead.

        Raises CommandError if that takes more than 5 s.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        end = self.monotonic() + 5.0
        while self.has_memory(pid):
            if self.monotonic() >= end:
                raise CommandError(f"process {pid} does not die")
            self.sleep(0.001)

    @staticmethod
    def _reap(pid: int) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    def read_pid(self, path: Path) -> int | None:
        """The pid in a pid file if that process is alive, else ``None``."""
        try:
            pid = int(path.read_text().strip() or "0")
        except (FileNotFoundError, ValueError):
            return None
        return pid if pid > 0 and self.alive(pid) else None

    def write_atomic(self, path: Path, text: str) -> None:
        """Replace ``path`` so that readers, also after a power cut, see the old text or the new. What a writer that was
        killed has left is removed."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("w") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        for left in path.parent.glob(f".{path.name}.*"):
            if (number := left.suffix[1:]).isdigit() and not self.alive(int(number)):
                left.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextlib.contextmanager
    def lock(self, path: Path, what: str) -> Iterator[None]:
        """Hold ``path`` as a lock that the kernel drops when this process dies. Raises BusyError if it is held."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise BusyError(
                    f"{what} is already under way (process {holder})",
                    hint="wait for it: `ovs-hotswap status`",
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)


def many_descriptors() -> None:
    """Allow this process as many descriptors as it may have: the usual soft limit of 1024 is meant for users of
    select(2), and a broker has some ten a VM and two more a ring."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _state(pid: int) -> str:
    """The letter of a process's state; empty if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[0]


def _dumps_core(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "\nCoreDumping:\t1" in status


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _file_of(text: str) -> BinaryIO:
    """Memory with ``text`` in it, to be read from its beginning."""
    file = open(os.memfd_create("stdin", os.MFD_CLOEXEC), "w+b")  # noqa: SIM115
    file.write(text.encode())
    file.seek(0)
    return file


def _not_run(program: str, error: OSError) -> CommandError:
    if isinstance(error, FileNotFoundError):
        return CommandError(f"{program}: not installed", hint="run `make setup`")
    return CommandError(f"{program}: {error.strerror}")
