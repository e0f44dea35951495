"""The lab's decisions: names, addresses, files, command lines, what belongs to it, how many huge pages it takes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import LabError
from ovs_hotswap.lab import GuestOptions, Lab
from ovs_hotswap.lab.guest import command_line
from ovs_hotswap.lab.hugepages import Pool, restored_total, wanted_total
from ovs_hotswap.lab.initramfs import (
    INIT,
    PINGER,
    Entry,
    archive,
    find_kernel,
    load_order,
    parse_dependencies,
    parse_libraries,
)
from ovs_hotswap.lab.layout import (
    MAX_GUESTS,
    PF,
    REMOTE,
    VF_MACS,
    Layout,
    WireOptions,
    config_text,
    overlay_text,
    partner,
)
from ovs_hotswap.lab.leftovers import ancestors, is_lab_program, mounts_below, names_directory
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import load_intent
from ovs_hotswap.system import System

DIRECTORY = Path("/run/lab")


def layout(count: int = 4, directory: Path = DIRECTORY, options: GuestOptions | None = None) -> Layout:
    return Layout(directory, count, options or GuestOptions())


# -- layout


def test_partners_of_four() -> None:
    assert [partner(number, 4) for number in (1, 2, 3, 4)] == [3, 4, 1, 2]


@given(st.integers(2, MAX_GUESTS))
def test_everyone_has_another_partner(count: int) -> None:
    for number in range(1, count + 1):
        other = partner(number, count)
        assert other is not None
        assert other != number
        assert 1 <= other <= count
        if count % 2 == 0:
            assert partner(other, count) == number


def test_a_single_guest_pings_the_remote_only() -> None:
    assert [target.name for target in layout(1).guests[0].targets] == [REMOTE]


def test_each_instance_of_an_announced_lab_has_its_own_mac(tmp_path: Path) -> None:
    options = GuestOptions(wire=WireOptions(driver="announce"))
    file = tmp_path / "config.toml"
    file.write_text(config_text(layout(options=options), memory_mb=256, cores=(0, 1)))
    config = load_config(file)
    assert config.uplink.driver == "announce"
    assert {side: config.instance(side).uplink_mac for side in Side} == VF_MACS
    assert config.uplink.device is None


@pytest.mark.parametrize("count", [1, 4, MAX_GUESTS])
@pytest.mark.parametrize("queues", [1, 4])
def test_files_load(tmp_path: Path, count: int, queues: int) -> None:
    made = layout(count, Path("/run/lab"), GuestOptions(queues=queues))
    config_file, overlay_file = tmp_path / "config.toml", tmp_path / "overlay.toml"
    config_file.write_text(config_text(made, memory_mb=256, cores=(0, 1)))
    overlay_file.write_text(overlay_text(made))
    config, intent = load_config(config_file), load_intent(overlay_file)
    assert config.overlay == made.overlay_file
    assert config.uplink.namespace == made.host_namespace
    assert [config.instance(side).uplink_device for side in Side] == ["vf-a", "vf-b"]
    assert [config.qemu_socket(vm.name) for vm in intent.vms] == [
        made.guest_file(guest.name, "sock") for guest in made.guests
    ]
    assert [(vm.mac, vm.queues) for vm in intent.vms] == [(guest.mac, queues) for guest in made.guests]


def test_a_lab_with_one_nic_has_it_for_both_instances(tmp_path: Path) -> None:
    made = layout(1, Path("/run/lab"), GuestOptions(wire=WireOptions(driver="exclusive")))
    file = tmp_path / "config.toml"
    file.write_text(config_text(made, memory_mb=256, cores=(0, 1)))
    config = load_config(file)
    assert config.uplink.driver == "exclusive"
    assert {config.instance(side).uplink_device for side in Side} == {PF}


@pytest.mark.parametrize("wire", [WireOptions(), WireOptions(ipv6=True), WireOptions(vlan=100, udp_port=8472)])
def test_the_intent_is_that_of_the_wire(tmp_path: Path, wire: WireOptions) -> None:
    path = tmp_path / "overlay.toml"
    path.write_text(overlay_text(layout(1, options=GuestOptions(wire=wire, mtu=wire.tunnel_mtu))))
    vtep = load_intent(path).vtep
    assert (vtep.version == 6, vtep.vlan, vtep.port) == (wire.ipv6, wire.vlan, wire.udp_port)
    assert (vtep.tunnel_mtu, vtep.local_jumbo) == (wire.tunnel_mtu, False)


def test_a_lab_with_two_nics_has_a_configuration_of_both(tmp_path: Path) -> None:
    made = layout(1, Path("/run/lab"), GuestOptions(wire=WireOptions(pair=True)))
    config_file = tmp_path / "config.toml"
    config_file.write_text(config_text(made, memory_mb=256, cores=(0, 1)))
    config = load_config(config_file)
    assert [nic.device for nic in config.uplink.nics] == [nic.pf for nic in made.nics] == ["pf0", "pf1"]
    assert [config.instance(side).second_device for side in Side] == ["vf1-a", "vf1-b"]


def test_labs_in_two_directories_share_no_namespace() -> None:
    one, two = layout(directory=Path("/run/lab")), layout(directory=Path("/run/lab2"))
    assert not {one.host_namespace, one.remote_namespace} & {two.host_namespace, two.remote_namespace}


def test_command_line_has_what_qemu_7_needs() -> None:
    made = layout(2, options=GuestOptions(queues=2, hugepages=True))
    line = command_line(made, made.guests[0], Path("/boot/vmlinuz"))
    text = " ".join(line)
    devices = [line[at + 1] for at, word in enumerate(line) if word == "-device"]
    assert all("vectors=0" in device for device in devices if "-pci" in device)
    assert "share=on,hugetlb=on" in text
    assert f"path={made.guest_file('vm1', 'sock')},server=on,wait=off" in text
    assert "queues=2" in text
    assert "mq=on" in text
    assert line[line.index("-smp") + 1] == "2"
    for target in made.guests[0].targets:
        assert f"path={made.report_file('vm1', target.name)},append=on" in text


@pytest.mark.parametrize("vms", [0, MAX_GUESTS + 1])
def test_number_of_guests_is_limited(tmp_path: Path, vms: int) -> None:
    with pytest.raises(LabError, match=f"not {vms}"):
        Lab(tmp_path / "lab", vms, System()).up()
    assert not (tmp_path / "lab").exists()


def test_directory_must_be_absolute() -> None:
    with pytest.raises(LabError, match="absolute"):
        Lab(Path("lab"), 1, System())


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    lab = Lab(tmp_path, 1, System())
    with pytest.raises(LabError, match="holds no lab"):
        lab.up()
    with pytest.raises(LabError, match="holds no lab"):
        lab.down()
    assert precious.read_text() == "mine"


def test_unknown_guest_is_named() -> None:
    with pytest.raises(LabError, match="no guest vm9; it has vm1, vm2"):
        Lab(DIRECTORY, 2, System()).guest("vm9")


# -- initramfs


def test_modules_come_after_what_they_need() -> None:
    listed = parse_dependencies(
        "k/net.ko: k/failover.ko k/virtio.ko\nk/virtio.ko: k/ring.ko\nk/ring.ko:\nk/failover.ko:\n"
    )
    order = load_order(listed, ["net"])
    assert sorted(order) == sorted(listed)
    assert all(order.index(needed) < order.index(path) for path, all_needed in listed.items() for needed in all_needed)


def test_compressed_modules_and_dashes_are_found() -> None:
    assert load_order({"k/virtio-rng.ko.xz": []}, ["virtio_rng"]) == ["k/virtio-rng.ko.xz"]


def test_missing_module_is_named() -> None:
    with pytest.raises(LabError, match="virtio_net"):
        load_order({}, ["virtio_net"])


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_archive_is_unpacked_by_busybox(tmp_path: Path) -> None:
    entries = [
        Entry("directory", stat.S_IFDIR | 0o755),
        Entry("directory/program", stat.S_IFREG | 0o755, b"#!/bin/sh\n" * 7),
        Entry("empty", stat.S_IFREG | 0o644),
    ]
    subprocess.run(["busybox", "cpio", "-idm"], input=archive(entries), cwd=tmp_path, check=True, capture_output=True)
    program = tmp_path / "directory/program"
    assert program.read_bytes() == b"#!/bin/sh\n" * 7
    assert stat.S_IMODE(program.stat().st_mode) == 0o755
    assert (tmp_path / "empty").read_bytes() == b""


def test_libraries_of_ldd() -> None:
    text = (
        "\tlinux-vdso.so.1 (0x00007ffd)\n"
        "\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f21)\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007f22)\n"
    )
    assert parse_libraries(text) == [Path("/lib/x86_64-linux-gnu/libm.so.6"), Path("/lib64/ld-linux-x86-64.so.2")]


def test_latest_kernel_with_modules(tmp_path: Path) -> None:
    boot, modules = tmp_path / "boot", tmp_path / "modules"
    for version in ("6.1.0-1-cloud-amd64", "6.1.0-2-cloud-amd64", "6.1.0-3-cloud-amd64"):
        (modules / version).mkdir(parents=True)
        boot.mkdir(exist_ok=True)
        (boot / f"vmlinuz-{version}").touch()
        if "-3-" not in version:
            (modules / version / "modules.dep").touch()
    assert find_kernel(boot, modules).image.name == "vmlinuz-6.1.0-2-cloud-amd64"
    with pytest.raises(LabError, match="no cloud kernel"):
        find_kernel(tmp_path, modules)


@pytest.mark.parametrize(
    ("shell", "script"), [(("sh", "-n"), INIT), (("perl", "-Mstrict", "-Mwarnings", "-c"), PINGER)]
)
def test_guest_scripts_compile(shell: tuple[str, ...], script: Path) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    done = subprocess.run([*shell, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- huge pages

POOLS = st.builds(
    lambda total, free, reserved: Pool(total, min(total, free), min(total, free, reserved)),
    st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000),
)  # fmt: skip


@given(POOLS, st.integers(0, 10_000))
def test_pool_is_enlarged_only_as_needed(pool: Pool, megabytes: int) -> None:
    total = wanted_total(pool, megabytes)
    assert total >= pool.total
    available = pool.available + total - pool.total
    assert available * 2 >= megabytes
    assert total == pool.total or (available - 1) * 2 < megabytes


@given(POOLS, st.integers(0, 5000))
def test_pool_is_given_back_without_what_is_in_use(pool: Pool, before: int) -> None:
    total = restored_total(pool, before)
    assert total <= pool.total
    assert total >= min(pool.total, pool.used)
    assert total == max(before, pool.used) or total == pool.total


# -- leftovers


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("/run/lab", True),
        ("/run/lab/", True),
        ("--config=/run/lab/config.toml", True),
        ("socket,path=/run/lab/vm/vm1.sock,server=on", True),
        ("unix:/run/lab/run/a/db.sock", True),
        ("/run/lab2", False),
        ("/run/lab2:/run/lab/x", True),
        ("/run/lab.old/x", False),
        ("/run/lab-2/x", False),
        ("/srv/run/lab/x", False),
        ("run/lab", False),
    ],
)
def test_directory_in_a_word(word: str, named: bool) -> None:
    assert names_directory(["x", word], "/run/lab") is named


@pytest.mark.parametrize(
    ("cmdline", "ours"),
    [
        (["/usr/bin/python3", "-P", "-m", "ovs_hotswap", "--config", "/d/c", "broker", "supervise"], True),
        (["qemu-system-x86_64", "-name", "vm1"], True),
        (["/usr/sbin/ovs-vswitchd", "unix:/run/lab/run/a/db.sock"], True),
        (["/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"], True),
        (["ovsdb-server", "/run/lab/run/a/conf.db"], True),
        (["/usr/bin/python3", "/usr/bin/ovs-hotswap", "--config", "/run/lab/config.toml", "broker"], True),
        (["python3", "-m", "ovs_hotswap.cli.main", "broker"], True),
        (["vi", "/run/lab/config.toml"], False),
        (["tail", "-f", "/run/lab/vm/vm1.log"], False),
        (["python3", "-m", "pytest", "ovs_hotswap"], False),
        (["bash", "-c", "ls /run/lab"], False),
        ([], False),
    ],
)
def test_programs_of_a_lab(cmdline: list[str], ours: bool) -> None:
    assert is_lab_program(cmdline) is ours


def test_ancestors_reach_the_first_process() -> None:
    found = ancestors(os.getpid())
    assert {os.getpid(), os.getppid()} <= found


def test_mounts_innermost_first() -> None:
    info = "\n".join(
        f"36 35 98:0 / {point} rw - ext3 /dev/root rw"
        for point in ("/", "/run", "/run/lab", "/run/lab/a", "/run/lab/a/b\\040c", "/run/lab2/x")
    )
    assert mounts_below(Path("/run/lab"), info) == ["/run/lab/a/b c", "/run/lab/a"]


def test_the_record_of_an_earlier_version_is_read() -> None:
    assert GuestOptions.model_validate({"road": "qemu-dual"}).backend is BackendMode.QEMU_DUAL
