"""doctor as a command: what it shows, its exit codes, its deadlines, and what --fix and --undo change."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.doctor_cmd import closing, lines
from ovs_hotswap.cli.output import Output
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.fixes import Fixer
from ovs_hotswap.doctor.report import Counts, Found, Report, Section
from ovs_hotswap.doctor.runner import Brief, Part, Runner
from ovs_hotswap.errors import CommandError, HostError, StateUnknown
from ovs_hotswap.model import Severity
from ovs_hotswap.system import System
from tests.support.json_schema import faults
from tests.unit.doctor_bed import CPU, INTERRUPTS, NODE, VF_A, VF_B, Bed, bad
from tests.unit.fake_system import FakeSystem
from tests.unit.test_cli import Terminal
from tools import schema

# Releases are programs of the machine that runs the test.
SECTIONS = tuple(section for section in Section if section is not Section.RELEASES)
GOVERNOR = f"{CPU}/cpu3/cpufreq/scaling_governor"
DOCTOR = json.loads((schema.DIRECTORY / "doctor.schema.json").read_text())


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


class Shell:
    """Runs `doctor` on the files of a bed. ``answers`` are a person's."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.out, self.err = io.StringIO(), io.StringIO()

    def __call__(self, *arguments: str, answers: str | None = None) -> int:
        self.out, self.err = io.StringIO(), io.StringIO() if answers is None else Terminal()
        source = io.StringIO() if answers is None else Terminal(answers)
        app = App(Output(out=self.out, err=self.err, source=source), root=self.bed.root.directory)
        return main.run(["--config", str(self.bed.config), "doctor", *arguments], app)

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.getvalue())
        assert faults(DOCTOR, found) == []
        return found


@pytest.fixture
def doctor(bed: Bed) -> Shell:
    return Shell(bed)


# ------------------------------------------------------------------------------------------------------------- healthy


def test_a_healthy_host_has_no_finding(bed: Bed) -> None:
    found = bed.examine(*SECTIONS)
    assert bad(found) == []
    assert {each.section for each in found} == set(SECTIONS)


def test_a_healthy_host_without_a_broker_has_no_finding(bed: Bed) -> None:
    bed.configure('# backend = "broker"', 'backend = "qemu-dual"')
    bed.configure('# socket = "/run/ovs-hotswap/vm/', f'socket = "{bed.directory}/run/')
    bed.status = {**bed.status, "broker": None}
    found = bed.examine(*SECTIONS)
    assert bad(found) == []
    assert Section.BROKER not in {each.section for each in found}


def test_a_healthy_host_with_units_has_no_finding(bed: Bed) -> None:
    bed.install_units()
    assert bad(bed.examine(Section.UNITS)) == []


def test_the_fix_of_a_unit_depends_on_how_it_was_installed(bed: Bed) -> None:
    bed.install_units()
    unit = "etc/systemd/system/ovs-hotswap-watch.service"
    bed.write(unit, "[Service]")
    (found,) = bad(bed.examine(Section.UNITS))
    assert found.hint is not None
    assert found.hint.startswith("install -m 644 ")
    bed.write("var/lib/dpkg/info/ovs-hotswap.list", "/.")
    (found,) = bad(bed.examine(Section.UNITS))
    assert found.hint == f"rm /{unit} && systemctl daemon-reload"
    bed.remove(unit)
    (found,) = [each for each in bad(bed.examine(Section.UNITS)) if each.check == "installed"]
    assert found.hint == "apt-get install --reinstall ovs-hotswap"


def test_a_device_of_the_kernel_is_looked_for_and_its_mtu_compared(bed: Bed) -> None:
    bed.configure(f'uplink_devargs = "{VF_B}"', 'uplink_devargs = "eth_af_packet0,iface=vf-b"\nuplink_device = "vf-b"')
    (found,) = bad(bed.examine(Section.DEVICES))
    assert found.text == "instance b's device vf-b does not exist"
    bed.write("sys/class/net/vf-b/mtu", "1400")
    (found,) = bad(bed.examine(Section.DEVICES))
    assert found.text == "vf-b has MTU 1400, the underlay 1500: longer packets are lost"
    bed.write("sys/class/net/vf-b/mtu", "1500")
    assert bad(bed.examine(Section.DEVICES)) == []


def test_the_devices_of_a_second_nic_are_looked_for_too(bed: Bed) -> None:
    bed.configure(f'uplink_devargs = "{VF_B}"', f'uplink_devargs = "{VF_B}"\nsecond_devargs = "0000:07:02.0"')
    bed.configure(f'uplink_devargs = "{VF_A}"', f'uplink_devargs = "{VF_A}"\nsecond_devargs = "eth_af_packet1"')
    bed.configure("\n[uplink]\n", '\n[uplink.second]\ndevice = "pf1"\n[uplink]\n')
    (found,) = bad(bed.examine(Section.DEVICES))
    assert found.text == "instance b's device 0000:07:02.0 does not exist"
    bed.configure('"0000:07:02.0"', '"eth_af_packet1,iface=vf1-b"\nsecond_device = "vf1-b"')
    bed.write("sys/class/net/pf1/mtu", "1400")
    assert [found.text for found in bad(bed.examine(Section.DEVICES))] == [
        "pf1 has MTU 1400, the underlay 1500: longer packets are lost", "instance b's device vf1-b does not exist",
    ]  # fmt: skip


def test_nothing_is_changed_by_looking(bed: Bed) -> None:
    bed.write(GOVERNOR, "powersave")
    before = {path: path.read_bytes() for path in bed.directory.rglob("*") if path.is_file()}
    bed.examine()
    assert {path: path.read_bytes() for path in bed.directory.rglob("*") if path.is_file()} == before
    assert not [argv for argv in bed.system.ran if argv[:2] == ("systemctl", "enable")]


# --------------------------------------------------------------------------------------------------- half of it missing


def test_without_a_configuration_it_looks_at_what_needs_none(bed: Bed) -> None:
    bed.config.unlink()
    bed.write("proc/mounts", "")
    found = bed.examine()
    assert {each.section for each in found} == set(Section)
    severities = {each.section: {one.severity for one in found if one.section is each.section} for each in found}
    for section in (Section.CPU, Section.DEVICES, Section.INSTANCES, Section.STANDBY, Section.UPLINK, Section.VMS):
        assert severities[section] == {Severity.UNKNOWN}, section
    assert Severity.ERROR in severities[Section.MEMORY], "huge pages need no configuration"
    assert Severity.ERROR in severities[Section.CONFIGURATION]
    assert severities[Section.KERNEL] == {Severity.OK}


def test_on_a_machine_without_any_of_the_files_nothing_is_reported_as_well_that_was_not_seen(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.remove("")
    bed.root.directory.mkdir()
    found = bed.examine(Section.CPU, Section.DEVICES, Section.UNITS, Section.ACCESS)
    assert not [each for each in found if each.text.startswith("internal error")]
    assert {each.check for each in found if each.section is Section.CPU and each.severity is Severity.OK} <= {
        "PMD cores"
    }


@pytest.mark.parametrize(
    ("name", "section"),
    [("proc/interrupts", Section.CPU), (f"{CPU}/online", Section.CPU), ("proc/meminfo", Section.MEMORY),
     ("proc/mounts", Section.MEMORY), ("sys/kernel/mm", Section.MEMORY), ("sys/bus/pci", Section.DEVICES),
     ("proc/cmdline", Section.KERNEL)],
)  # fmt: skip
def test_what_a_container_hides_is_unknown(bed: Bed, name: str, section: Section) -> None:
    bed.remove(name)
    (found,) = bad(bed.examine(section))
    assert (found.severity, found.check) == (Severity.UNKNOWN, "look")
    assert f"{bed.root.path(name)}" in found.text


def test_a_systemd_that_says_nothing_is_no_unit_that_has_ended(bed: Bed) -> None:
    bed.install_units()
    bed.systemd["ActiveState"] = ""
    (found,) = bad(bed.examine(Section.UNITS))
    assert (found.severity, found.check) == (Severity.UNKNOWN, "look")


def test_a_file_that_may_not_be_read_is_unknown() -> None:
    def refused() -> Iterator[Found]:
        raise PermissionError(13, "Permission denied", "/proc/7/maps")
        yield

    (found,) = Runner(FakeSystem()).run(Part("processes", (Section.VERSIONS,), refused))
    assert (found.severity, found.text) == (Severity.UNKNOWN, "processes: /proc/7/maps: Permission denied")


# ----------------------------------------------------------------------------------------------------------- deadlines


def test_a_part_that_hangs_is_left_behind_and_what_it_had_found_stays() -> None:
    release = threading.Event()

    def hangs() -> Iterator[Found]:
        yield Found(Section.VMS, "VMs", Severity.OK, "two")
        release.wait()

    seen: list[str] = []
    runner = Runner(System(), seen.append, part_s=0.2)
    first, second = runner.run(Part("VMs", (Section.VMS,), hangs))
    release.set()
    assert (first.text, second.severity, second.text) == ("two", Severity.UNKNOWN, "VMs: no answer after 0.2 s")
    assert second.hint == "`ovs-hotswap doctor --section vms`"
    assert seen == ["VMs"]


def test_parts_for_which_no_time_is_left_are_unknown_and_not_begun() -> None:
    begun: list[str] = []

    def begins() -> list[Found]:
        begun.append("VMs")
        return []

    part = Part("VMs", (Section.VMS, Section.UPLINK), begins)
    found = Runner(FakeSystem(), whole_s=0).run(part)
    assert ([each.section for each in found], begun) == ([Section.VMS, Section.UPLINK], [])


def test_a_systemd_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts ask it, and there would be no time left for the VMs."""
    hangs, log = tmp_path / "systemctl", tmp_path / "systemctl.log"
    log.touch()
    hangs.write_text("#!/bin/sh\necho asked >> $0.log\nexec sleep 60\n")
    hangs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    system = Brief()
    with pytest.raises(CommandError, match="no end after"):
        system.run(["systemctl", "show", "x"], timeout=0.2)
    with pytest.raises(CommandError, match="systemctl did not answer before"):
        system.run(["systemctl", "show", "y"])
    assert system.run(["true"]).status == 0
    assert log.read_text() in ("", "asked\n")


def test_a_fault_of_the_program_does_not_keep_the_other_parts_from_being_seen() -> None:
    (found,) = Runner(FakeSystem()).run(Part("x", (Section.CPU,), lambda: [1 / 0]))  # type: ignore[list-item]
    assert found.text == "x: internal error: ZeroDivisionError: division by zero"


# ------------------------------------------------------------------------------------------------------ how it is shown


def test_a_section_without_findings_is_a_line(doctor: Shell) -> None:
    assert doctor("--section", "cpu", "--section", "kernel") == 0
    assert doctor.out.getvalue().splitlines() == [
        "ok    cpu", "ok    kernel", "errors: 0, warnings: 0, unknown: 0, ok: 6"
    ]  # fmt: skip
    assert doctor("--section", "kernel", "-v") == 0
    assert "      ok    version: 6.1.0-27-amd64" in doctor.out.getvalue()


def test_a_finding_has_its_command_and_says_whether_doctor_can_run_it(bed: Bed, doctor: Shell) -> None:
    bed.write(GOVERNOR, "powersave")
    bed.write(f"{CPU}/isolated", "2")
    assert doctor("--section", "cpu") == 0, "a warning is no error"
    text = doctor.out.getvalue()
    assert text.startswith("WARN  cpu\n      WARN  isolation: core 3 has PMD threads")
    assert f"            echo performance > /{GOVERNOR}    # or: doctor --fix\n" in text
    assert "update-grub`, then when no VM runs here: `systemctl reboot`\n" in text


@pytest.mark.parametrize(
    ("counts", "status"),
    [(Counts(1, 1, 0, 0), 0), (Counts(1, 0, 1, 1), 4), (Counts(1, 0, 0, 1), StateUnknown.exit_code)],
)
def test_the_exit_code_is_that_of_the_worst(bed: Bed, doctor: Shell, counts: Counts, status: int) -> None:
    if counts.warning:
        bed.write(GOVERNOR, "powersave")
    if counts.error:
        bed.configure("pmd_cores = [2]", "pmd_cores = [9]")
        bed.remove("proc/interrupts")
    if counts.unknown and not counts.error:
        bed.config.unlink()
    assert doctor("--section", "cpu") == status
    assert doctor("--section", "cpu", "--json") == status
    assert doctor.document["ready"] == (status == 0)


def test_the_document_is_as_its_schema_says(bed: Bed, doctor: Shell) -> None:
    bed.write(GOVERNOR, "powersave")
    assert doctor("--section", "cpu", "--json") == 0
    document = doctor.document
    assert document["sections"] == ["cpu"]
    assert document["counts"]["warning"] == 1
    (finding,) = [each for each in document["findings"] if each["severity"] == "warning"]
    assert finding == {"section": "cpu", "check": "governor", "severity": "warning", "safe": True, "item": "core 3",
                       "text": "core 3 has a PMD thread, and the governor 'powersave' lowers its frequency",
                       "hint": f"echo performance > /{GOVERNOR}"}  # fmt: skip


def test_findings_about_many_things_are_one_line_for_people() -> None:
    many = [Found(Section.CPU, "interrupts", Severity.WARNING, f"{n} arrives", f"echo 0 > /{n}", str(n), True)
            for n in range(10, 30)]  # fmt: skip
    shown = [text for _, text in lines(Report.of([Section.CPU], many), verbose=False)]
    assert shown[1].startswith("      WARN  interrupts: 20 times: 10 arrives; also of")
    assert len(shown) == 3


def test_the_last_line_counts() -> None:
    assert closing(Counts(4, 3, 2, 1)) == "errors: 2, warnings: 3, unknown: 1, ok: 4"


# ------------------------------------------------------------------------------------------------------- fix and undo


def governor(bed: Bed) -> str:
    return bed.root.path(GOVERNOR).read_text().strip()


def test_fix_runs_the_command_that_it_prints_and_undo_puts_it_back(bed: Bed, doctor: Shell) -> None:
    bed.write(GOVERNOR, "powersave")
    assert doctor("--section", "cpu", "--fix", "--yes", "--json") == 0
    assert doctor.document["changed"] == [f"echo performance > /{GOVERNOR}"]
    assert doctor.document["counts"]["warning"] == 0, "it looks again"
    assert governor(bed) == "performance"
    (change,) = Fixer(bed.root, bed.loaded().state_dir, System()).changes()
    assert (change.before, change.after) == ("powersave", "performance")
    assert doctor("--section", "cpu", "--undo", "--yes", "--json") == 0
    assert doctor.document["changed"] == [f"/{GOVERNOR}: performance -> powersave"]
    assert governor(bed) == "powersave"
    assert doctor("--section", "cpu", "--undo", "--yes") == 0
    assert doctor.out.getvalue().startswith("nothing was put back\n")


def test_each_change_is_asked_about(bed: Bed, doctor: Shell) -> None:
    other = f"{CPU}/cpu2/cpufreq/scaling_governor"
    bed.write(GOVERNOR, "powersave")
    bed.write(other, "ondemand")
    assert doctor("--section", "cpu", "--fix", answers="n\ny\n") == 0
    assert (bed.root.path(other).read_text().strip(), governor(bed)) == ("ondemand", "performance")
    assert doctor.err.getvalue().count("run this? [y/N]") == 2
    assert doctor("--section", "cpu", "--undo", answers="n\n") == 0
    assert governor(bed) == "performance"


def test_a_dry_run_changes_nothing(bed: Bed, doctor: Shell) -> None:
    bed.write(GOVERNOR, "powersave")
    assert doctor("--section", "cpu", "--fix", "--dry-run") == 0
    assert f"  echo performance > /{GOVERNOR}    # now powersave" in doctor.out.getvalue()
    assert governor(bed) == "powersave"
    assert not (bed.loaded().state_dir / "doctor.json").exists()
    assert doctor("--section", "cpu", "--fix", "--yes") == 0
    assert doctor("--section", "cpu", "--undo", "--dry-run") == 0
    assert governor(bed) == "performance"


@pytest.mark.parametrize("arguments", [("--fix",), ("--undo",), ("--fix", "--json"), ("--fix", "--undo", "--yes"),
                                       ("--yes",), ("--dry-run",), ("--section", "nothing")])  # fmt: skip
def test_options_that_are_not_clear_are_refused(bed: Bed, doctor: Shell, arguments: tuple[str, ...]) -> None:
    bed.write(GOVERNOR, "powersave")
    assert doctor(*arguments) == 2
    assert governor(bed) == "powersave"


def test_huge_pages_are_added_if_the_host_has_the_memory(bed: Bed, doctor: Shell) -> None:
    place = f"{NODE}/node0/hugepages"
    bed.pages(place, 0, 512)
    assert doctor("--section", "memory", "--fix", "--yes", "--json") == 4, "this kernel does not free any"
    assert doctor.document["changed"] == [
        f"echo {512 + 66} > /{place}/hugepages-2048kB/nr_hugepages"
    ]  # fmt: skip
    bed.pages(place, 0, 512)
    bed.write("proc/meminfo", "MemTotal:       65536000 kB\nMemAvailable:   16400000 kB\n")
    assert doctor("--section", "memory", "--fix", "--yes", "--json") == 4
    assert doctor.document["changed"] == [], "too little memory would be left"


def test_a_value_that_another_program_has_changed_since_is_left(bed: Bed, doctor: Shell) -> None:
    bed.write(GOVERNOR, "powersave")
    doctor("--section", "cpu", "--fix", "--yes")
    bed.write(GOVERNOR, "schedutil")
    assert doctor("--section", "cpu", "--undo", "--yes") == 0
    assert governor(bed) == "schedutil"
    assert "was left as it is: it is schedutil now, and not performance" in doctor.err.getvalue()
    assert Fixer(bed.root, bed.loaded().state_dir, System()).changes() == ()


def test_a_value_that_was_put_back_by_hand_needs_no_undo(bed: Bed, doctor: Shell) -> None:
    bed.write(GOVERNOR, "powersave")
    doctor("--section", "cpu", "--fix", "--yes")
    bed.write(GOVERNOR, "powersave")
    assert doctor("--section", "cpu", "--undo", "--yes") == 0
    assert (governor(bed), doctor.err.getvalue()) == ("powersave", "")


def test_without_a_record_nothing_is_changed(bed: Bed, doctor: Shell) -> None:
    bed.write(GOVERNOR, "powersave")
    (bed.directory / "state").rmdir()
    (bed.directory / "state").write_text("not a directory")
    assert doctor("--section", "cpu", "--fix", "--yes") == 0
    assert governor(bed) == "powersave"
    assert "warning: " in doctor.err.getvalue()


def test_a_change_that_the_kernel_ignores_is_reported_and_not_recorded(bed: Bed, doctor: Shell) -> None:
    path = bed.root.path("proc/irq/24/smp_affinity_list")
    path.unlink()
    path.symlink_to("/dev/null")
    bed.write("proc/interrupts", INTERRUPTS.format(counted=7))
    bed.write("proc/irq/24/effective_affinity_list", "2")
    assert doctor("--section", "cpu", "--fix", "--yes", "--json") == 0
    assert doctor.document["changed"] == []
    assert "/proc/irq/24/smp_affinity_list stays " in doctor.err.getvalue()
    assert Fixer(bed.root, bed.loaded().state_dir, System()).changes() == ()


def test_the_mode_of_a_directory_is_changed_and_put_back(bed: Bed, doctor: Shell) -> None:
    place = bed.root.path("run/ovs-hotswap/vm")
    place.chmod(0o777)
    fixer = Fixer(bed.root, bed.loaded().state_dir, System())
    change = fixer.plan("chmod 755 /run/ovs-hotswap/vm")
    assert change is not None
    assert (change.before, change.after) == ("0777", "0755")
    fixer.make(change)
    assert place.stat().st_mode & 0o777 == 0o755
    assert fixer.undo(fixer.changes()[0]).why_not == ""
    assert place.stat().st_mode & 0o777 == 0o777


def test_a_unit_is_enabled_and_disabled(bed: Bed) -> None:
    enabled: list[str] = []

    def systemctl(argv: Any) -> tuple[int, str]:
        if argv[1] == "is-enabled":
            return 0, ("enabled" if enabled else "disabled") if argv[2] != "masked.service" else "masked"
        enabled[:] = [argv[2]] if argv[1] == "enable" else []
        return 0, ""

    fixer = Fixer(bed.root, bed.loaded().state_dir, FakeSystem(systemctl))
    change = fixer.plan("systemctl enable ovs-hotswap-broker.service")
    assert change is not None
    assert fixer.make(change).after == "enabled"
    assert enabled == ["ovs-hotswap-broker.service"]
    fixer.undo(fixer.changes()[0])
    assert enabled == []
    with pytest.raises(HostError, match="is masked, which could not be put back"):
        fixer.plan("systemctl enable masked.service")


@pytest.mark.parametrize("command", ["rm -rf /x", "echo 1 > /etc/passwd", "echo 1 > /sys/x; reboot", "",
                                     "chmod u+s /bin/sh", "systemctl enable x.service; reboot"])  # fmt: skip
def test_other_commands_are_not_run(bed: Bed, command: str) -> None:
    assert Fixer(bed.root, bed.loaded().state_dir, System()).plan(command) is None


def test_a_change_that_a_boot_has_ended_is_not_put_back(bed: Bed, doctor: Shell) -> None:
    """After the boot the same number may be another interrupt, and the value be that of another program."""
    bed.write(GOVERNOR, "powersave")
    state, place = bed.loaded().state_dir, bed.root.path("srv")
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    assert doctor("--section", "cpu", "--fix", "--yes") == 0
    fixer = Fixer(bed.root, state, System())
    change = fixer.plan("chmod 755 /srv")
    assert change is not None
    fixer.make(change)
    bed.write("proc/sys/kernel/random/boot_id", "another")
    assert [each.target for each in fixer.changes()] == ["/srv"], "a mode on a disk stays"
    assert doctor("--section", "cpu", "--undo", "--yes") == 0
    assert (governor(bed), place.stat().st_mode & 0o777) == ("performance", 0o777)


@pytest.mark.parametrize(("now", "after"), [("540", "512"), ("578", "512"), ("600", "600"), ("512", "512")])
def test_a_change_that_doctor_was_killed_in_can_be_undone(bed: Bed, now: str, after: str) -> None:
    """The kernel may have given a part of the huge pages that it was asked for."""
    pages = f"/{NODE}/node0/hugepages/hugepages-2048kB/nr_hugepages"
    bed.write(pages, "512")
    fixer = Fixer(bed.root, bed.loaded().state_dir, System())
    change = fixer.plan(f"echo 578 > {pages}")
    assert change is not None
    fixer._keep((change.model_copy(update={"made": False}),))  # which is the last that a killed doctor has done
    bed.write(pages, now)
    fixer.undo(fixer.changes()[0])
    assert bed.root.text(pages) == after
    assert fixer.changes() == ()


def test_huge_pages_are_never_taken_away_by_a_fix(bed: Bed) -> None:
    pages = f"/{NODE}/node0/hugepages/hugepages-2048kB/nr_hugepages"
    assert Fixer(bed.root, bed.loaded().state_dir, System()).plan(f"echo 66 > {pages}") is None, (
        "another has added some"
    )


def test_a_thing_that_is_gone_needs_no_undo(bed: Bed, doctor: Shell) -> None:
    bed.write(GOVERNOR, "powersave")
    doctor("--section", "cpu", "--fix", "--yes")
    bed.remove(GOVERNOR)
    assert doctor("--section", "cpu", "--undo", "--yes") == 0
    assert "was left as it is: it is not there any longer" in doctor.err.getvalue()
    assert Fixer(bed.root, bed.loaded().state_dir, System()).changes() == ()


def test_two_doctors_do_not_change_a_host_at_the_same_time(bed: Bed, doctor: Shell) -> None:
    """The later record would have lost the changes of the other."""
    bed.write(GOVERNOR, "powersave")
    state = bed.loaded().state_dir
    with System().lock(state / "doctor.lock", "a change by doctor"):
        assert doctor("--section", "cpu", "--fix", "--yes") == 0
    assert governor(bed) == "powersave"
    assert "a change by doctor is already under way" in doctor.err.getvalue()


def test_a_link_is_not_followed_when_a_mode_is_changed(bed: Bed) -> None:
    """Who can write to the directory could have put it there, to have the mode of another file changed."""
    secret = bed.write("etc/shadow", "secret")
    secret.chmod(0o600)
    bed.link("run/ovs-hotswap/socket", str(secret))
    fixer = Fixer(bed.root, bed.loaded().state_dir, System())
    with pytest.raises(HostError, match="is a symbolic link"):
        fixer.plan("chmod 755 /run/ovs-hotswap/socket")
    assert secret.stat().st_mode & 0o777 == 0o600


def test_a_record_that_others_could_have_written_is_not_believed(bed: Bed, doctor: Shell) -> None:
    bed.write(GOVERNOR, "powersave")
    doctor("--section", "cpu", "--fix", "--yes")
    bed.loaded().state_dir.chmod(0o777)
    assert doctor("--undo", "--yes", "--section", "cpu") == HostError.exit_code
    assert governor(bed) == "performance"


def test_a_damaged_record_is_named(bed: Bed, doctor: Shell) -> None:
    (bed.loaded().state_dir / "doctor.json").write_text("{")
    with pytest.raises(HostError, match="is not a record of changes"):
        Fixer(bed.root, bed.loaded().state_dir, System()).changes()
    assert doctor("--undo", "--yes") == HostError.exit_code


def test_every_safe_finding_has_a_command_that_doctor_can_run(bed: Bed) -> None:
    bed.write(GOVERNOR, "powersave")
    bed.root.path(f"{NODE}/node1").mkdir()
    bed.pages(f"{NODE}/node0/hugepages", 0, 0)
    bed.give_place_to_qemu(0o777)
    fixer = Fixer(Root(bed.root.directory), bed.directory / "state", System())
    safe = [each for each in bed.examine() if each.safe and each.severity is not Severity.OK]
    assert {each.check for each in safe} == {"governor", "huge pages", "NUMA balancing", "QEMU's sockets"}
    assert all(fixer.plan(each.hint or "") for each in safe)
