"""The seam to the machine: processes, clock, files. All other modules use it, so that tests can replace it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import operator
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ovs_hotswap import background
from ovs_hotswap.errors import BusyError, CommandError, CommandTimeout, HostError
from ovs_hotswap.process_exit import Process, has_memory, start_time
from ovs_hotswap.waiting import wait_until


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished command. ``status`` is its exit status; bytes that cannot be decoded are replaced in the texts."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


_DIES_S = 5.0  # a process that was sent SIGKILL is dead within this time


class System:
    """The real machine."""

    def monotonic(self) -> float:
        """Return seconds on a clock that never steps."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since the epoch."""
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

        The command has a process group of its own, so that a Ctrl-C at the terminal reaches this process alone: it must
        not end the commands of a rollback. ``stdin`` is complete from the beginning: if this process is killed, the
        command still runs, and half of its input would be worse than none (an empty table of flows).

        Raises CommandTimeout after ``timeout`` seconds, and CommandError if the command is not installed or, with
        ``check``, exits with a status other than 0. After the timeout, or another exception here, its process group is
        killed.
        """
        for _ in range(_TRIES):
            done = self._run_once(argv, timeout, stdin, env)
            if done.stdout or done.stderr or done.status not in _BEFORE_EXEC:
                break
        if check and done.status != 0:
            text = (done.stderr or done.stdout).strip().splitlines()
            raise CommandError(f"{' '.join(argv)}: exit {done.status}: {text[-1] if text else 'no output'}")
        return done

    @staticmethod
    def _run_once(argv: Sequence[str], timeout: float, stdin: str | None, env: Mapping[str, str] | None) -> Completed:
        try:
            with contextlib.nullcontext(subprocess.DEVNULL) if stdin is None else _file_of(stdin) as file:
                child = subprocess.Popen(
                    list(argv), stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                    errors="replace", env={**os.environ, **env} if env else None, process_group=0,
                )  # fmt: skip
        except OSError as error:
            raise _not_run(argv[0], error) from error
        with child, _killed_on_error(child):
            try:
                stdout, stderr = child.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as error:
                raise CommandTimeout(f"{' '.join(argv)}: no end after {timeout:g} s; killed") from error
        return Completed(tuple(argv), child.returncode, stdout, stderr)

    def run_lines(
        self,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run ``argv`` to its end, call ``on_line`` with each line that it prints, and return its exit status.

        Raises CommandError if it is not installed, CommandTimeout after ``timeout`` seconds. Then, and if ``on_line``
        raises or the user interrupts, its process group, which it has to itself, is killed.
        """
        end, printed = self.monotonic() + timeout, False

        def told(line: str) -> None:
            nonlocal printed
            printed = True
            on_line(line)

        for _ in range(_TRIES):
            status = self._run_lines_once(argv, told, timeout, env)
            if printed or status not in _BEFORE_EXEC:
                break
        if status == -signal.SIGKILL and self.monotonic() >= end:
            raise CommandTimeout(f"{' '.join(argv)}: no end after {timeout:g} s; killed")
        return status

    @staticmethod
    def _run_lines_once(
        argv: Sequence[str], on_line: Callable[[str], None], timeout: float, env: Mapping[str, str] | None
    ) -> int:
        try:
            child = subprocess.Popen(
                list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", env={**os.environ, **env} if env else None, process_group=0,
            )  # fmt: skip
        except OSError as error:
            raise _not_run(argv[0], error) from error
        timer = threading.Timer(timeout, _kill_group, [child])
        with child, _killed_on_error(child):
            try:
                timer.start()
            except RuntimeError as error:  # it would have no deadline
                raise CommandError(f"{argv[0]}: {error}") from error
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    on_line(line.rstrip("\n"))
                return child.wait()
            finally:
                timer.cancel()

    def spawn(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> int:
        """Start ``argv`` as a daemon in a session of its own, and return its pid. Its output is appended to ``log``.

        The child outlives this process; a caller that needs to know its end must wait for it with a pidfd.
        """
        with files(log), log.open("ab") as out:
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
        """Whether ``pid`` runs. A zombie counts as dead: its address space and descriptors are gone. A process of which
        only the first thread has ended looks like a zombie, but has other threads and counts as alive."""
        return _state(pid) not in {"", "Z", "X"} or _threads(pid) > 1

    def is_still(self, pid: int, born: int | None) -> bool:
        """Whether ``pid`` is alive and still the process whose ``start_time`` was ``born``. If that is not known
        (``None``), any process with this number is accepted."""
        return self.alive(pid) and (born is None or start_time(pid) == born)

    def stopped(self, pid: int) -> bool:
        """Whether no thread of ``pid`` runs.

        It was stopped by a signal or a debugger (proc_pid_stat(5): T and t), or it crashed and writes a core file
        (proc_pid_status(5): CoreDumping), which takes seconds if much memory is mapped.
        """
        return _state(pid) in {"T", "t"} or _dumps_core(pid)

    def cmdline(self, pid: int) -> list[str]:
        """Return the arguments of ``pid``; the list is empty if it is gone."""
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def pids(self) -> list[int]:
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]

    def kill(self, pid: int, *, grace: float = 5.0) -> None:
        """End ``pid`` by SIGTERM, and after ``grace`` seconds by SIGKILL; return when it is dead.

        Raises CommandError if it is still alive 5 s after SIGKILL.
        """
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _DIES_S)):
            if patience <= 0:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if wait_until(partial(self._ended, pid), patience, self, poll_s=0.01):
                return
        raise CommandError(f"process {pid} does not die")

    def runs_deleted_files(self, pid: int) -> bool:
        """Whether ``pid`` runs code from files that have been deleted; false if ``pid`` is gone."""
        try:
            lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return any("x" in line.split()[1] and line.endswith(" (deleted)") for line in lines)

    def has_memory(self, pid: int) -> bool:
        """Whether any thread of ``pid`` can still touch memory (``process_exit.has_memory``)."""
        return has_memory(pid)

    def background(
        self, pids: Callable[[], Iterable[int]], spared: Callable[[str], bool], serving: int, patience_s: float
    ) -> contextlib.AbstractContextManager[object]:
        """Keep processes at low priority during a block (``background.Background``)."""
        return background.Background(pids, spared, serving, patience_s)

    def low_threads(self, pid: int) -> list[str]:
        """The names of the threads of ``pid`` that are at low priority; none if it is gone."""
        return sorted(set(background.low_threads(pid).values()))

    def raise_priority(self, pid: int) -> bool:
        """End the low priority of ``pid``; return false if that is not permitted. If ``pid`` has none, this takes
        microseconds."""
        return background.serve(pid)

    def end(self, pid: int) -> None:
        """Send SIGKILL to ``pid`` and return when it cannot touch memory any longer, which is before it is dead.

        Raises CommandError if that takes more than 5 s.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if wait_until(lambda: self.has_memory(pid), _DIES_S, self, done=operator.not_, poll_s=0.001):
            raise CommandError(f"process {pid} does not die")

    def _ended(self, pid: int) -> bool:
        """Whether ``pid`` is dead. The exit status of a child is collected."""
        ended = not self.alive(pid)
        self._reap(pid)
        return ended

    @staticmethod
    def _reap(pid: int) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    def read_pid(self, path: Path) -> int | None:
        """Return the pid in a pid file if that process is alive, else ``None``."""
        found = _written(path)
        return found.pid if found is not None and self.alive(found.pid) else None

    def read_writer(self, path: Path, word: str) -> int | None:
        """Return the pid in a pid file with a ``pid_text``, if the process that wrote it is alive, else ``None``. A
        file of an earlier version has the pid alone; then ``word`` must be among the process's arguments."""
        found = _written(path)
        if found is None or not self.alive(found.pid):
            return None
        if found.born is None:
            return found.pid if word in self.cmdline(found.pid) else None
        return found.pid if self.is_still(found.pid, found.born) else None

    def write_atomic(self, path: Path, text: str) -> None:
        """Replace ``path`` so that readers see the old text or the new one, even after a power cut. Files that a killed
        writer left are removed. Raises HostError; the old text is then unchanged."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with files(path):
            try:
                with temporary.open("w") as out:
                    out.write(text)
                    out.flush()
                    os.fsync(out.fileno())
                temporary.rename(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            for left in path.parent.glob(f".{path.name}.*"):
                if (number := left.suffix[1:]).isdigit() and not self.alive(int(number)):
                    left.unlink(missing_ok=True)
            _sync(path.parent)

    def write_short(self, path: Path, text: str) -> None:
        """Replace ``path`` as ``write_atomic`` does, for a text that fits into one block of the disk. If there is no
        room for a second file, the text is written over the old one. Raises HostError."""
        try:
            self.write_atomic(path, text)
        except HostError as error:
            if _number(error) not in _NO_ROOM or not path.exists():
                raise
            with files(path), path.open("r+b", buffering=0) as file:
                data = text.encode()
                file.write(data)
                file.truncate(len(data))
                os.fsync(file.fileno())

    def see_writable(self, path: Path) -> None:
        """Raise HostError if ``write_short`` could not write ``path``."""
        try:
            with files(path), tempfile.TemporaryFile(dir=path.parent):
                pass
        except HostError as error:
            if _number(error) not in _NO_ROOM or not path.exists():
                raise

    @contextlib.contextmanager
    def lock(self, path: Path, what: str) -> Iterator[None]:
        """Hold ``path`` as a lock that the kernel releases when this process dies.

        Its text, the holder's pid, is for people: an existing lock file can be used on a full or read-only disk.
        Raises BusyError, which says that ``what`` is under way, if the lock is held; HostError if it cannot be made.
        """
        with files(path):
            descriptor = _lock_file(path)
        try:
            try:
                with files(path):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except HostError as error:
                if _number(error) not in {errno.EWOULDBLOCK, errno.EAGAIN}:
                    raise
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").partition("\n")[0] or "unknown"
                raise BusyError(
                    f"{what} is already under way (process {holder})",
                    hint="wait for it: `ovs-hotswap status`",
                ) from error
            _sign(descriptor)
            yield
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def files(path: Path | None = None) -> Iterator[None]:
    """Turn an OSError of the block into a HostError that names ``path``, or else the file that the error names."""
    try:
        yield
    except OSError as error:
        raise host_error(error, path) from error


def host_error(error: OSError, path: Path | None = None) -> HostError:
    """Return an OSError as a HostError for people, with the file, the cause, and what repairs it."""
    name = path or error.filename2 or error.filename
    text = error.strerror or str(error) or type(error).__name__
    found = HostError(f"{os.fsdecode(name)}: {text}" if isinstance(name, str | bytes | os.PathLike) else text,
                      hint=_hint(error.errno))  # fmt: skip
    found.__cause__ = error
    return found


# A command is in this process's group until it gets its own, just before its program is executed (CPython
# Modules/_posixsubprocess.c, child_exec). A signal from the terminal at that moment ends it before it has begun. No
# later signal from the terminal reaches it.
_BEFORE_EXEC = {-signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT}
_TRIES = 5

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_HINTS = {
    errno.EROFS: "that file system is read-only: see `dmesg` for why, mount it writable, then try again",
    errno.EMFILE: "raise the limit of open files: `ulimit -n`",
    errno.ENFILE: "raise the limit of open files: `sysctl fs.file-max`",
    errno.EIO: "the disk fails: see `dmesg`",
}


def _hint(number: int | None) -> str | None:
    if number in {errno.EACCES, errno.EPERM}:
        return "run it as root" if os.geteuid() != 0 else "see its owner, mode and attributes: `ls -l`, `lsattr`"
    if number in _NO_ROOM:
        return "make room there (`df`, `df -i`), then try again"
    return _HINTS.get(number or 0)


def _number(error: HostError) -> int | None:
    return error.__cause__.errno if isinstance(error.__cause__, OSError) else None


def _lock_file(path: Path) -> int:
    """Open a lock file; on a read-only file system, open it for reading, which is enough for flock(2)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS and error.errno not in _NO_ROOM:
            raise
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise error from None


def _sign(descriptor: int) -> None:
    """Write this process's pid over the last holder's; if there is no room, leave the file empty."""
    text = f"{os.getpid()}\n".encode()
    with contextlib.suppress(OSError):
        try:
            os.pwrite(descriptor, text, 0)
            os.ftruncate(descriptor, len(text))
        except OSError:
            os.ftruncate(descriptor, 0)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kill_group(child: subprocess.Popen[str]) -> None:
    """Send SIGKILL to a command and its children, unless it was waited for: its number may be reused then."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


@contextlib.contextmanager
def _killed_on_error(child: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _kill_group(child)
        raise


def many_descriptors() -> None:
    """Raise this process's limit of descriptors to its hard limit.

    The usual soft limit of 1024 is meant for users of select(2); a broker has about ten per VM and two per ring.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _state(pid: int) -> str:
    """Return the letter of a process's state, or an empty text if it is gone."""
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


def pid_text(pid: int) -> str:
    """Return the content of a pid file of this program: the pid, and when the process was started (``start_time``)."""
    return f"{pid}\n{start_time(pid) or ''}\n"


def _written(path: Path) -> Process | None:
    try:
        pid, *more = [int(text) for text in path.read_text().split()[:2]]
    except (FileNotFoundError, ValueError):
        return None
    return Process(pid, more[0] if more else None) if pid > 0 else None


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _file_of(text: str) -> BinaryIO:
    """Return a file in memory that has ``text`` in it and is read from its beginning."""
    file = open(os.memfd_create("stdin", os.MFD_CLOEXEC), "w+b")  # noqa: SIM115
    file.write(text.encode())
    file.seek(0)
    return file


def _not_run(program: str, error: OSError) -> CommandError:
    if isinstance(error, FileNotFoundError):
        return CommandError(f"{program}: not installed", hint=f"install the package that has `{Path(program).name}`")
    return CommandError(f"{program}: {error.strerror}")
