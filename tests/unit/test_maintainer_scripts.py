"""The scripts of the package, run as dpkg runs them (Debian policy, chapter 6), on a root that exists only in the test.

Paths of the scripts lead into that root. The commands of systemd and of the group database, and the program itself, are
replaced by scripts that write down how they were called.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tools.packages.program import HERE, PREFIX

# Commands of essential packages, which are there in every phase of an installation and of a removal.
ESSENTIAL = ("awk", "cat", "find", "grep", "ls", "mkdir", "mountpoint", "rm")
SYSTEMD = ("systemctl", "systemd-sysusers", "systemd-tmpfiles")
GROUPS = ("getent", "groupadd", "groupdel")
WATCHDOG = "ovs-hotswap-watch.service"
_PLACE = re.compile(r"(?<![\w$}/.*])/(run|etc|var|opt|proc|usr)\b")
_STUB = """\
#!/bin/sh
echo "${0##*/} $*" >>"$CALLS"
script=$ANSWERS/${0##*/}-$1
if [ -e "$script" ]; then . "$script"; fi
"""


class Root:
    """``calls``: what was called, in order. ``said``: what the last script printed."""

    def __init__(self, path: Path) -> None:
        self.path, self.said = path, ""
        self._calls, self._answers, self._bin = path / "calls", path / "answers", path / "bin"
        for each in (self._answers, self._bin, path / "proc/net"):
            each.mkdir(parents=True)
        for name in ESSENTIAL:
            (self._bin / name).symlink_to(str(shutil.which(name)))
        for name in (*SYSTEMD, *GROUPS):
            self.add(self._bin / name)
        self.add(self.at(f"{PREFIX}/bin/ovs-hotswap"))
        self.write("/run/systemd/system/x", "")
        self.write("/etc/ovs-hotswap/config.toml", "")
        self.write("/proc/mounts", "")
        self.write("/proc/net/unix", "")
        self.answer("getent", "group", "exit 2")
        self.answer("systemctl", "is-active", "echo active")

    def at(self, path: str) -> Path:
        return self.path / path.lstrip("/")

    def write(self, path: str, text: str) -> Path:
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_text(text)
        return self.at(path)

    def add(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_STUB)
        path.chmod(0o755)

    def without(self, *commands: str) -> None:
        for name in commands:
            (self._bin / name).unlink()

    def answer(self, command: str, first: str, script: str) -> None:
        """What ``command`` does if ``first`` is its first argument."""
        (self._answers / f"{command}-{first}").write_text(f"{script}\n")

    def instance(self, side: str, cmdline: str | None = None) -> str:
        """Shell commands that make an instance appear, with pid 70; ``cmdline`` of another process."""
        file = self.at(f"/run/ovs-hotswap/{side}/ovs-vswitchd.pid")
        line = f"ovs-vswitchd --pidfile={file}" if cmdline is None else cmdline
        process = self.at("/proc/70")
        return f"mkdir -p {file.parent} {process}; echo 70 >{file}; echo '{line}' >{process}/cmdline"

    def run(self, script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> int:
        """Run a script of the package, and return its exit status."""
        text = _PLACE.sub(rf"{self.path}/\1", (HERE / script).read_text())
        self._calls.write_text("")
        done = subprocess.run(
            ["/bin/sh", "-c", text, script, *arguments], capture_output=True, text=True, check=False, timeout=30,
            stdin=subprocess.DEVNULL, cwd="/", env={"PATH": str(self._bin), "CALLS": str(self._calls),
                                  "ANSWERS": str(self._answers), **(environment or {})},
        )  # fmt: skip
        self.said = done.stdout + done.stderr
        return done.returncode

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()

    def called(self, words: str) -> int:
        """Which call this was. StopIteration if there was none."""
        return next(number for number, call in enumerate(self.calls) if words in call)

    def left(self, *places: str) -> list[str]:
        return sorted(str(path.relative_to(self.path)) for place in places for path in self.at(place).rglob("*"))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


# ---- nothing is done in the phases that need nothing


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("preinst", ("install",)), ("preinst", ("install", "0.3.0-1")), ("preinst", ("abort-upgrade", "0.5.0-1")),
        ("prerm", ("upgrade", "0.5.0-1")), ("prerm", ("failed-upgrade", "0.3.0-1")),
        ("prerm", ("deconfigure", "in-favour", "other", "1")),
        ("postrm", ("upgrade", "0.5.0-1")), ("postrm", ("failed-upgrade", "0.3.0-1")), ("postrm", ("abort-install",)),
        ("postrm", ("abort-upgrade", "0.3.0-1")), ("postrm", ("disappear", "other", "1")),
    ],
)  # fmt: skip
def test_a_phase_that_needs_nothing(root: Root, script: str, arguments: tuple[str, ...]) -> None:
    before = root.left("/etc", "/run")
    assert root.run(script, *arguments) == 0
    assert root.calls == []
    assert root.left("/etc", "/run") == before


@pytest.mark.parametrize("phase", ["abort-upgrade", "abort-remove", "abort-deconfigure"])
def test_what_was_aborted_has_systemd_read_the_units_again(root: Root, phase: str) -> None:
    assert root.run("postinst", phase, "0.5.0-1") == 0
    assert root.calls == ["systemctl daemon-reload"]


# ---- preinst


def test_an_upgrade_of_the_switch_refuses_another_version(root: Root) -> None:
    root.answer("ovs-hotswap", "package", "exit 10")
    assert root.run("preinst", "upgrade", "0.3.0-1") == 1
    assert "OVS_HOTSWAP_PACKAGE=force" in root.said
    assert root.run("preinst", "upgrade", "0.3.0-1", environment={"OVS_HOTSWAP_PACKAGE": "force"}) == 0
    assert root.calls == []


@pytest.mark.parametrize("status", [0, 3, 127])
def test_a_program_that_does_not_work_can_be_replaced(root: Root, status: int) -> None:
    root.answer("ovs-hotswap", "package", f"exit {status}")
    assert root.run("preinst", "upgrade", "0.3.0-1") == 0
    assert root.calls == ["ovs-hotswap package may-replace"]
    root.at(f"{PREFIX}/bin/ovs-hotswap").unlink()
    assert root.run("preinst", "upgrade", "0.3.0-1") == 0


# ---- postinst


def test_the_first_installation_replaces_nothing(root: Root) -> None:
    assert root.run("postinst", "configure", "") == 0
    assert root.calls == ["getent group ovs-hotswap", "systemd-sysusers ovs-hotswap.conf",
                          "systemd-tmpfiles --create ovs-hotswap.conf", "systemctl daemon-reload"]  # fmt: skip


def test_an_upgrade_replaces_the_daemons_after_systemd_has_read_the_units(root: Root) -> None:
    assert root.run("postinst", "configure", "0.3.0-1") == 0
    assert root.called("daemon-reload") < root.called("package replace-daemons") == len(root.calls) - 1


def test_daemons_that_are_not_replaced_do_not_leave_the_package_half_configured(root: Root) -> None:
    root.answer("ovs-hotswap", "package", "exit 7")
    assert root.run("postinst", "configure", "0.3.0-1") == 0
    assert "NOT ALL DAEMONS RUN THE NEW VERSION" in root.said


def test_daemons_stay_if_the_policy_says_so(root: Root) -> None:
    root.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n").chmod(0o755)
    assert root.run("postinst", "configure", "0.3.0-1") == 0
    assert not any("replace-daemons" in call for call in root.calls)
    assert "ovs-hotswap package replace-daemons" in root.said


def test_a_host_without_configuration_has_no_daemons(root: Root) -> None:
    root.at("/etc/ovs-hotswap/config.toml").unlink()
    assert root.run("postinst", "configure", "0.3.0-1") == 0
    assert not any(call.startswith("ovs-hotswap") for call in root.calls)


def test_a_chroot_without_systemd_is_configured(root: Root) -> None:
    """``/run`` may be the host's there."""
    root.without(*SYSTEMD)
    assert root.run("postinst", "configure", "") == 0
    assert root.calls == ["getent group ovs-hotswap", "groupadd --system ovs-hotswap"]


@pytest.mark.parametrize("call", ["systemctl daemon-reload", "systemd-sysusers ovs-hotswap.conf"])
def test_a_fault_of_systemd_is_reported_and_the_package_configured(root: Root, call: str) -> None:
    command, first = call.split()
    root.answer(command, first, "exit 1")
    assert root.run("postinst", "configure", "0.3.0-1") == 0
    assert "ovs-hotswap: " in root.said
    assert root.calls[-1] == "ovs-hotswap package replace-daemons"


# ---- prerm


def test_a_removal_stops_everything_the_watchdog_first_and_the_broker_before_its_unit(root: Root) -> None:
    assert root.run("prerm", "remove") == 0
    assert (root.called("package may-remove") < root.called(f"systemctl stop {WATCHDOG}")
            < root.called("ovs-hotswap broker stop --yes") < root.called("ovs-hotswap-broker.service"))  # fmt: skip
    assert "systemctl start" not in "\n".join(root.calls)


def test_a_removal_that_the_program_refuses_stops_nothing(root: Root) -> None:
    root.answer("ovs-hotswap", "package", "exit 10")
    assert root.run("prerm", "remove") == 1
    assert root.calls == ["ovs-hotswap package may-remove"]


def test_an_instance_is_seen_although_the_program_does_not_work(root: Root) -> None:
    root.answer("ovs-hotswap", "package", "exit 127")
    subprocess.run(["sh", "-c", root.instance("b")], check=True)
    assert root.run("prerm", "remove") == 1
    assert "an instance runs: b." in root.said
    assert root.calls == ["ovs-hotswap package may-remove"]


def test_another_process_with_the_pid_of_an_instance_that_died_is_none(root: Root) -> None:
    subprocess.run(["sh", "-c", root.instance("a", "sleep 5")], check=True)
    assert root.run("prerm", "remove") == 0


@pytest.mark.parametrize("state", ["active", "activating", "inactive"])
def test_an_instance_that_the_watchdog_starts_in_the_last_moment_keeps_the_package(root: Root, state: str) -> None:
    root.answer("systemctl", "is-active", f"echo {state}; test {state} = active")
    root.answer("systemctl", "stop", root.instance("a"))
    assert root.run("prerm", "remove") == 1
    assert "ovs-hotswap broker stop --yes" not in root.calls
    watches = f"systemctl start --no-block {WATCHDOG}" in root.calls
    assert watches is (state != "inactive")


def test_a_broker_that_does_not_stop_keeps_the_package_and_the_watchdog(root: Root) -> None:
    root.answer("ovs-hotswap", "broker", "exit 7")
    assert root.run("prerm", "remove") == 1
    assert root.calls[-1] == f"systemctl start --no-block {WATCHDOG}"
    assert not any("ovs-hotswap-broker.service" in call for call in root.calls)


@pytest.mark.parametrize("chroot", [True, False])
def test_a_removal_without_systemd(root: Root, chroot: bool) -> None:
    if chroot:  # in which /run is the host's
        root.without("systemctl")
    else:
        shutil.rmtree(root.at("/run/systemd"))
    assert root.run("prerm", "remove") == 0
    assert root.calls == ["ovs-hotswap package may-remove", "ovs-hotswap broker stop --yes"]


# ---- postrm


def used(root: Root) -> None:
    """Make the files that a host has that was used."""
    for path in ("/etc/ovs-hotswap/overlay.toml", "/var/lib/ovs-hotswap/releases/trixie/release.json",
                 "/run/ovs-hotswap/upgrade.lock", "/run/ovs-hotswap/a/record.json",
                 "/etc/systemd/system/ovs-hotswap-broker.service.d/own.conf",
                 "/etc/systemd/system.control/ovs-hotswap-instance@a.service.d/50-CPUWeight.conf",
                 "/etc/tmpfiles.d/ovs-hotswap.conf"):  # fmt: skip
        root.write(path, "")
    wants = root.at("/etc/systemd/system/multi-user.target.wants")
    wants.mkdir()
    (wants / "ovs-hotswap-broker.service").symlink_to("/usr/lib/systemd/system/ovs-hotswap-broker.service")
    (wants / "ssh.service").symlink_to("/usr/lib/systemd/system/ssh.service")


OTHERS = ["etc/systemd", "etc/systemd/system", "etc/systemd/system.control",
          "etc/systemd/system/multi-user.target.wants", "etc/systemd/system/multi-user.target.wants/ssh.service",
          "etc/tmpfiles.d", "run/systemd", "run/systemd/system", "run/systemd/system/x", "var/lib"]  # fmt: skip


def test_a_purge_leaves_nothing_and_can_be_repeated(root: Root) -> None:
    used(root)
    root.answer("getent", "group", "exit 0")
    for _ in range(2):
        assert root.run("postrm", "purge") == 0
        assert root.left("/etc", "/run", "/var") == OTHERS
    assert "groupdel ovs-hotswap" in root.calls


def test_a_removal_keeps_the_configuration(root: Root) -> None:
    used(root)
    before = root.left("/etc", "/run", "/var")
    assert root.run("postrm", "remove") == 0
    assert root.left("/etc", "/run", "/var") == before
    assert root.calls[0] == "systemctl daemon-reload"


def test_a_purge_needs_only_essential_packages(root: Root) -> None:
    """In the tree of an image, for example, in which there is no systemd."""
    root.answer("getent", "group", "exit 0")
    root.without(*SYSTEMD, "groupadd", "groupdel")
    assert root.run("postrm", "purge") == 0
    assert "the group ovs-hotswap stays" in root.said
    assert root.left("/etc", "/run/ovs-hotswap") == []


@pytest.mark.parametrize("command", ["systemctl", "groupdel"])
def test_a_purge_is_not_ended_by_what_does_not_go(root: Root, command: str) -> None:
    """The group may be the first one of a user."""
    used(root)
    root.answer("getent", "group", "exit 0")
    root.answer(command, "daemon-reload" if command == "systemctl" else "ovs-hotswap", "exit 8")
    assert root.run("postrm", "purge") == 0
    assert root.left("/etc", "/run", "/var") == OTHERS


def test_a_purge_is_refused_while_something_is_mounted_in_a_release(root: Root) -> None:
    used(root)
    point = root.at("/var/lib/ovs-hotswap/releases/trixie/tree/dev")
    root.write("/proc/mounts", f"udev {point} devtmpfs rw 0 0\n")
    before = root.left("/etc", "/run", "/var")
    assert root.run("postrm", "purge") == 1
    assert str(point) in root.said
    assert root.left("/etc", "/run", "/var") == before


@pytest.mark.parametrize("named", ["", "/var"])
def test_a_socket_of_a_qemu_stays_until_the_next_boot(root: Root, named: str) -> None:
    """Its name may have blanks, and be the one below ``/var/run``."""
    used(root)
    for name in ("vm 1.sock", "vm2.sock"):
        subprocess.run(["python3", "-c", "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])", name],
                       cwd=root.at("/run/ovs-hotswap"), check=True)  # fmt: skip
    socket = root.at("/run/ovs-hotswap/vm 1.sock")
    place = _PLACE.sub(rf"{root.path}/\1", named)
    root.write("/proc/net/unix", f"0000000000000000: 00000002 00000000 00010000 0001 01 9 {place}{socket}\n")
    assert root.run("postrm", "purge") == 0
    assert root.left("/run/ovs-hotswap") == ["run/ovs-hotswap/a", "run/ovs-hotswap/vm 1.sock"]
    assert str(socket) in root.said
