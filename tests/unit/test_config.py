from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.cli.config_cmd import EXAMPLE
from ovs_hotswap.config import SUN_PATH_MAX, Config
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.model import Side
from ovs_hotswap.toml_file import stamp_of

MINIMAL = """\
overlay = "/etc/overlay.toml"
[instances.a]
pmd_cores = [0]
uplink_devargs = "eth_af_packet0,iface=vf-a"
[instances.b]
pmd_cores = [1]
uplink_devargs = "eth_af_packet0,iface=vf-b"
"""
TWO_NICS = (
    MINIMAL.replace("[instances.b]", "second_devargs = 'eth_af_packet1,iface={}'\n[instances.b]")
    + """
second_devargs = 'eth_af_packet1,iface={}'
[uplink.second]
device = 'pf1'
"""
)
PCI = """\
overlay = "/etc/overlay.toml"
[instances.a]
pmd_cores = [0]
uplink_devargs = "{a}"
dpdk_extra = "-a {a}"
[instances.b]
pmd_cores = [1]
uplink_devargs = "{b}"
dpdk_extra = "-a {b}"
"""
ONE_NIC = "[uplink]\ndriver = 'exclusive'\n"
SHARED = MINIMAL.replace("vf-b", "vf-a")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


MAC_A, MAC_B = "02:00:00:00:00:0a", "02:00:00:00:00:0B"
OWN_MACS = MINIMAL.replace("[instances.b]", f"uplink_mac = '{MAC_B}'\n[instances.b]") + f"uplink_mac = '{MAC_A}'\n"
OLD = "road"  # the earlier name of the key `backend`


def load(path: Path, text: str) -> Config:
    path.write_text(text)
    return load_config(path)


def faults(path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(path, text)
    assert raised.value.hint is not None
    assert "ovs-hotswap config example" in raised.value.hint
    lines = raised.value.message.splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_a_minimal_file(path: Path) -> None:
    config = load(path, MINIMAL)
    assert config.run_dir == Path("/run/ovs-hotswap")
    assert config.instance(Side.B).pmd_cores == [1]
    assert config.uplink.driver == "none"
    assert config.qemu_socket("vm1") == Path("/run/ovs-hotswap/vm/vm1.sock")
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, "bridge", "br1")  # noqa: B010 - mypy knows that it is frozen


def test_the_example_is_valid_and_names_every_key(path: Path) -> None:
    config = load(path, EXAMPLE)
    assert config.uplink.driver == "tc"
    # With every commented key enabled it is valid too, and no key of the model is missing in it.
    enabled = "\n".join(
        line[2:] if line.startswith("# ") and " = " in line and line[2].islower() and "`" not in line else line
        for line in EXAMPLE.replace('# dpdk_extra = "--no-pci"', "# dpdk_extra = ''").splitlines()
    )
    complete = load(path, enabled)
    assert keys(complete) == set()


# Keys that the example cannot have beside the others.
OTHERS = {"instances.a.uplink_device", "instances.a.uplink_mac", "instances.b.uplink_mac"}


def keys(model: object, where: str = "") -> set[str]:
    """The keys that were not given in the file."""
    missing: set[str] = set()
    fields = getattr(type(model), "model_fields", {})
    for name in fields:
        value = getattr(model, name)
        if name not in model.model_fields_set and f"{where}{name}" not in OTHERS:  # type: ignore[attr-defined]
            missing.add(f"{where}{name}")
        missing |= keys(value, f"{where}{name}.")
    return missing


def test_the_defaults_in_the_example_are_the_defaults(path: Path) -> None:
    """A key that stands commented out must show its default, so that enabling it changes nothing."""
    plain = load(path, EXAMPLE)
    for line in EXAMPLE.splitlines():
        key, _, value = line.removeprefix("# ").partition(" = ")
        optional = {
            "group",
            "namespace",
            "release",
            "netdev",
            "vf_a",
            "vf_b",
            "second",
            "trust",
            "spoof_check",
            "link_state",
            "vlan",
            "mac_a",
            "mac_b",
            "port_devices",
            "observation_domain",
        }  # fmt: skip - they have no value
        if not line.startswith("# ") or not value or key in optional or " " in key or key.startswith("second_"):
            continue
        assert load(path, EXAMPLE.replace(line, f"{key} = {value}")) == plain, key


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: no such file") as raised:
        load_config(tmp_path / "missing.toml")
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("write one from `ovs-hotswap config example`; `ovs-hotswap config init`")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)


def test_broken_toml_names_the_place(path: Path) -> None:
    path.write_text('overlay = "/x"\nbridge = br0\n')
    with pytest.raises(ConfigError, match=r"config\.toml: not TOML: .*line 2"):
        load_config(path)


def test_not_text(path: Path) -> None:
    path.write_bytes(b"overlay = '\xff\xfe'")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(path)


def test_an_empty_file_lacks_what_has_no_default(path: Path) -> None:
    assert faults(path, "") == ["overlay: missing", "instances: missing"]


def test_unknown_keys_say_what_is_allowed(path: Path) -> None:
    assert faults(path, MINIMAL + "[upgrade]\nsoak = 5\n") == [
        "upgrade.soak: unknown key; allowed here: keep_old, pmd_sleep_us, ready_s, soak_s"
    ]
    (top,) = faults(path, "colour = 'red'\n" + MINIMAL)
    assert top.startswith("colour: unknown key; allowed here: backend, bridge, broker, flowlog, instances, overlay,")
    (nested,) = faults(path, MINIMAL + "cores = 2\n")
    assert nested == (
        "instances.b.cores: unknown key; allowed here: "
        "dpdk_extra, memory_mb, other_config, pmd_cores, pmd_sleep_us, port_devices, second_devargs, second_device, "
        "uplink_devargs, uplink_device, uplink_mac"
    )


def test_several_faults_at_once(path: Path) -> None:
    text = MINIMAL.replace("[0]", "[-1]").replace('"/etc/overlay.toml"', '"overlay.toml"')
    found = faults(path, text + "memory_mb = '512'\n[broker]\nfence_ms = 5\nqemu_socket = '/run/vm.sock'\n")
    assert found == [
        "overlay: must be an absolute path, not 'overlay.toml' (it is 'overlay.toml')",
        "broker.qemu_socket: must contain {vm}, which stands for the VM's name (it is '/run/vm.sock')",
        "broker.fence_ms: Input should be greater than or equal to 10 (it is 5)",
        "instances.a.pmd_cores[0]: Input should be greater than or equal to 0 (it is -1)",
        "instances.b.memory_mb: Input should be a valid integer (it is '512')",
    ]


@pytest.mark.parametrize("key", ["overlay", "run_dir", "state_dir"])
def test_relative_paths(path: Path, key: str) -> None:
    text = MINIMAL.replace('overlay = "/etc/overlay.toml"\n', "") if key == "overlay" else MINIMAL
    (fault,) = faults(path, f'{key} = "some/where"\n{text}')
    assert fault.startswith(f"{key}: must be an absolute path")


def test_a_relative_qemu_socket(path: Path) -> None:
    (fault,) = faults(path, MINIMAL + "[broker]\nqemu_socket = 'vm/{vm}.sock'\n")
    assert fault.startswith("broker.qemu_socket: must be an absolute path")


def test_a_run_directory_whose_sockets_would_not_fit(path: Path) -> None:
    (fault,) = faults(path, f'run_dir = "/{"r" * 100}"\n{MINIMAL}')
    assert f"must stay within {SUN_PATH_MAX} bytes" in fault


def test_tc_needs_its_devices(path: Path) -> None:
    (fault,) = faults(path, MINIMAL + "[uplink]\ndriver = 'tc'\nrepresentor_a = 'rep-a'\n")
    assert fault == 'uplink: driver "tc" needs device, representor_b'


def test_an_unknown_driver_says_which_there_are(path: Path) -> None:
    (fault,) = faults(path, MINIMAL + "[uplink]\ndriver = 'magic'\n")
    assert fault == (
        "uplink.driver: Input should be 'tc', 'switchdev', 'i40e', 'announce', 'exclusive' or 'none' (it is 'magic')"
    )


def test_a_table_where_a_value_belongs(path: Path) -> None:
    (fault,) = faults(path, MINIMAL.replace("[instances.b]", "[instances.b]\ndpdk_extra = ['a']"))
    assert fault == "instances.b.dpdk_extra: Input should be a valid string"


def test_two_run_directories_never_share_a_namespace(path: Path) -> None:
    names = [load(path, prefix + MINIMAL).namespace(side) for prefix in ("", 'run_dir = "/run/x"\n') for side in Side]
    assert names[:2] == ["ovsh-a", "ovsh-b"]
    assert len(set(names)) == 4


def test_a_qemu_must_listen_where_every_instance_can_see_it(path: Path) -> None:
    text = 'backend = "qemu-dual"\n' + MINIMAL
    assert load(path, text).vhost_socket(Side.B, "web1") == Path("/run/ovs-hotswap/vm/web1.b.sock")
    assert load(path, text).front_end("web1") == Path("/run/ovs-hotswap/vm/web1.qmp")
    assert load(path, MINIMAL).front_end("web1") == Path("/run/ovs-hotswap/vm/web1.sock")
    (fault,) = faults(path, text + "[qemu]\nsocket = '/srv/{vm}.{side}.sock'\n")
    assert "qemu.socket must be below run_dir (/run/ovs-hotswap)" in fault


@pytest.mark.parametrize("new", ["", 'backend = "qemu-dual"\n'])
def test_the_earlier_name_of_a_key_is_read_with_a_warning(path: Path, new: str) -> None:
    path.write_text(f'{OLD} = "qemu-dual"\n{new}{MINIMAL}')
    warnings: list[str] = []
    assert load_config(path, warnings.append).backend is BackendMode.QEMU_DUAL
    assert warnings == [f"{path}: {OLD}: the name of this key is backend; {OLD} will not be read in the next release"]


def test_a_key_with_its_name_of_today_brings_no_warning(path: Path) -> None:
    path.write_text(f'backend = "qemu-dual"\n{MINIMAL}')
    warnings: list[str] = []
    assert load_config(path, warnings.append).backend is BackendMode.QEMU_DUAL
    assert warnings == []


def test_two_names_of_a_key_with_two_values(path: Path) -> None:
    (fault,) = faults(path, f'{OLD} = "qemu-dual"\nbackend = "broker"\n{MINIMAL}')
    assert fault == f"backend and {OLD}: are two names of one key, with 'broker' and 'qemu-dual': remove {OLD}"


def test_a_value_under_the_earlier_name_is_checked(path: Path) -> None:
    (fault,) = faults(path, f'{OLD} = "high"\n{MINIMAL}')
    assert fault == "backend: Input should be 'broker' or 'qemu-dual' (it is 'high')"


def test_keys_of_other_config_are_of_both_instances_or_of_one(path: Path) -> None:
    config = load(
        path,
        MINIMAL
        + """other_config = { max-idle = 7 }
[instances.other_config]
userspace-tso-enable = true
emc-insert-inv-prob = 0
max-idle = "9"
""",
    )
    both = {"userspace-tso-enable": "true", "emc-insert-inv-prob": "0"}
    assert config.other_config(Side.A) == {**both, "max-idle": "9"}
    assert config.other_config(Side.B) == {**both, "max-idle": "7"}


def test_a_key_of_other_config_that_is_ours_says_where_the_wish_belongs(path: Path) -> None:
    table = "[instances.other_config]\npmd-cpu-mask = '0x6'\nvlan-limit = 2\ndpdk-socket-mem = '1024'\n"
    (fault,) = faults(path, MINIMAL + "other_config = { dpdk-extra = '--no-pci', smc-enable = [true] }\n")
    assert fault == "instances.b.other_config: dpdk-extra is written by ovs-hotswap itself: set dpdk_extra"
    (fault,) = faults(path, MINIMAL + table)
    assert fault == (
        "instances.other_config: pmd-cpu-mask is written by ovs-hotswap itself: set pmd_cores;"
        " vlan-limit is written by ovs-hotswap itself: the flow tables need 1;"
        " dpdk-socket-mem is written by ovs-hotswap itself: set memory_mb"
    )
    (fault,) = faults(path, MINIMAL + "other_config = { smc-enable = [true] }\n")
    assert fault == "instances.b.other_config.smc-enable: Input should be a valid string"


@pytest.mark.parametrize(
    ("text", "key", "part"),
    [
        *((f'bridge = "{name}"\n' + MINIMAL, "bridge", f"{name} is the name of another port or device")
          for name in ("uplink", "vxlan", "peer", "ovs-netdev", "lo")),
        ('bridge = "-br"\n' + MINIMAL, "bridge", "may not begin with a dash"),
        ('bridge = "vf-b"\n' + MINIMAL + 'uplink_device = "vf-b"', "bridge", "also instances.b.uplink_device"),
        ('run_dir = "/run/a,b"\n' + MINIMAL, "run_dir", "may not have ',' in it"),
        ('run_dir = "/run/a b"\n' + MINIMAL, "run_dir", "may not have ' ' in it"),
        ('run_dir = "/run/../x"\n' + MINIMAL, "run_dir", "may not have .. in it"),
        ('run_dir = "/run/x"\nstate_dir = "/run/x"\n' + MINIMAL, "state_dir", "is in run_dir (/run/x)"),
        ('run_dir = "/run/x"\nstate_dir = "/run/x/state"\n' + MINIMAL, "state_dir", "is in run_dir (/run/x)"),
        (MINIMAL.replace("vf-b", "vf-a"), "instances.b.uplink_devargs", "eth_af_packet0,iface=vf-a"),
        (PCI.format(a="0000:03:02.0", b="03:02.0"), "instances.b.uplink_devargs", "0000:03:02.0"),
        (MINIMAL + ONE_NIC, "instances.b.uplink_devargs", "must be instances.a.uplink_devargs (eth_af_packet0,"),
        (SHARED.replace("[instances.b]", "uplink_device = 'vf-a'\n[instances.b]") + ONE_NIC,
         "instances.b.uplink_device", "must be instances.a.uplink_device (vf-a)"),
        (SHARED.replace("[instances.b]", "second_devargs = 'x'\n[instances.b]") + "second_devargs = 'x'\n" + ONE_NIC
         + "[uplink.second]\n", "uplink.second", "which is for one NIC"),
        (PCI.format(a="0000:03:0a.0", b="0000:03:0A.0,mprq_en=1"), "instances.b.uplink_devargs", "0000:03:0a.0"),
        *((PCI.replace("-a {a}", f"-a {{a}} {word} 03:02.7").format(a="03:02.0", b="03:02.1"), "instances.a.dpdk_extra",
           f"{word} cannot be beside -a") for word in ("-b", "--block")),
        *((MINIMAL.replace("eth_af_packet0,iface=vf-a", "03:02.0") + f"[uplink.vfs]\n{line}\n", key, part)
          for line, key, part in (
              ("bind = true", "uplink.vfs.bind", "instance b's eth_af_packet0,iface=vf-b is no PCI device"),
              ("vlan = 0", "uplink.vfs", "which VF instance b's eth_af_packet0,iface=vf-b is, is not known"),
              ("mac_b = '02:00:00:00:00:0b'", "uplink.vfs", "give uplink.device and vf_b"),
              ("mac_a = '03:00:00:00:00:0b'", "uplink.vfs.mac_a", "must be a unicast MAC address: an even"),
              ("mac_a = '00:00:00:00:00:00'", "uplink.vfs.mac_a", "must be a unicast MAC address, not all zeros"),
              ("mac_a = '2:0:0:0:0:0'", "uplink.vfs.mac_a", "must be a MAC address such as"))),
        (SHARED + "[uplink]\ndriver = 'exclusive'\nvfs = { trust = true }\n",
         "uplink.vfs", "has no VF"),
        *((MINIMAL + f"dpdk_extra = '--no-pci {word}'\n", "instances.b.dpdk_extra", part) for word, part in (
            ("--file-prefix=x", "--file-prefix is not for this: each instance has its own already"),
            ("--socket-mem 1024", "set memory_mb"), ("-m 1024", "set memory_mb"), ("-m1024", "set memory_mb"),
            ("--no-huge", "huge pages"), ("--proc-type=secondary", "primary process"))),
        (MINIMAL.replace("eth_af_packet0,iface=vf-a", " "), "instances.a.uplink_devargs", "must name a DPDK device"),
        (MINIMAL + "uplink_device = 'vf-c'", "instances.b.uplink_device",
         "is vf-c, and uplink_devargs have iface=vf-b"),
        *((MINIMAL.replace("iface=vf-b", "a") + f"uplink_device = '{name}'", "instances.b.uplink_device",
           f"{name} is the name of another port or device") for name in ("lo", "ovs-netdev", "uplink")),
        *((f'bridge = "{name}"\n' + MINIMAL, "bridge", "no device has that name") for name in ("all", "default")),
        (MINIMAL + "[uplink]\ndevice = 'lo'\n", "uplink.device", "may not be lo"),
        (MINIMAL.replace("iface=", "x=").replace("pmd", "uplink_device = 'v'\npmd"),
         "instances.b.uplink_device", "is also instances.a.uplink_device (v)"),
        (MINIMAL + "[broker]\nqemu_socket = '/run/{vm}/../x'\n", "broker.qemu_socket", "may not have .. in it"),
        (MINIMAL + "[broker]\nqemu_socket = '/run/{vm}-{nic}'\n", "broker.qemu_socket", "{nic} stands for nothing"),
        (MINIMAL + "[broker]\nqemu_socket = '/run/{vm}-{side}'\n", "broker.qemu_socket", "{side} stands for nothing"),
        (MINIMAL + "[broker]\nqemu_socket = '/run/{vm}-{'\n", "broker.qemu_socket", "{ stands for nothing"),
        ('state_dir = "/srv/{vm}"\n' + MINIMAL, "state_dir", "{vm} stands for nothing here; known is no variable"),
        (MINIMAL + "[qemu]\nnetdev = 'n-{nic}'\n", "qemu.netdev", "{nic} stands for nothing here; known is {vm}"),
        (MINIMAL + "[broker]\nqemu_socket = '/run/ovs-hotswap/vhost/a/{vm}.sock'\n", "broker.qemu_socket",
         "/run/ovs-hotswap/vhost is a directory of ovs-hotswap's own"),
        (MINIMAL + "[broker]\nqemu_socket = '/run/ovs-hotswap/{vm}/s'\n", "broker.qemu_socket", "a VM could be named"),
        (MINIMAL + f"[broker]\nqemu_socket = '/{'x' * 110}/{{vm}}'\n", "broker.qemu_socket", "too long"),
        (MINIMAL + "[qemu]\nmonitor = '/run/ovs-hotswap/{vm}'\nsocket = '/run/ovs-hotswap/{vm}'\n", "qemu.socket",
         "must contain {side}"),
        (MINIMAL + "[qemu]\nmonitor = '/run/ovs-hotswap/{vm}.b'\nsocket = '/run/ovs-hotswap/{vm}.{side}'\n",
         "qemu.monitor", "the same as qemu.socket"),
        (MINIMAL + "[uplink]\ndriver = 'tc'\ndevice = 'p'\nrepresentor_a = 'r'\nrepresentor_b = 'r'\n",
         "uplink.representor_b", "is also uplink.representor_a (r)"),
        (MINIMAL + "[uplink]\ndriver = 'tc'\ndevice = 'p'\nrepresentor_a = 'p'\nrepresentor_b = 'r'\n",
         "uplink.representor_a", "is also uplink.device (p)"),
        (MINIMAL + "uplink_device = 'vf-b'\n[uplink]\ndevice = 'vf-b'\n", "instances.b.uplink_device",
         "also uplink.device"),
        (TWO_NICS.format("vf-a", "v2"), "instances.a.second_devargs", "names the device of instances.a.uplink_devargs"),
        (TWO_NICS.format("v1", "vf-a"), "instances.b.second_devargs", "names the device of instances.a.uplink_devargs"),
        (TWO_NICS.format("vf1", "vf1"), "instances.b.second_devargs", "names the device of instances.a.second_devargs"),
        (TWO_NICS.format("vf-b", "v"), "instances.b.uplink_devargs", "names the device of instances.a.second_devargs"),
        (TWO_NICS.format("v1", "v2").replace("[uplink.", "second_device = 'v3'\n[uplink."),
         "instances.b.second_device", "is v3, and second_devargs have iface=v2"),
        (TWO_NICS.format("v1", "v2").replace("iface=v2", "x").replace("[uplink.", "second_device = 'vxlan'\n[uplink."),
         "instances.b.second_device", "vxlan is the name of another port or device"),
        (TWO_NICS.format("v1", "v2").replace("iface=v2", "x").replace("[uplink.", "second_device = 'br0'\n[uplink."),
         "instances.b.second_device", "br0 is the name of another device of the instance"),
        (MINIMAL + f"uplink_mac = '{MAC_B}'\n[uplink]\ndriver = 'announce'\n", "instances.a.uplink_mac", "is missing"),
        (MINIMAL + f"uplink_mac = '{MAC_B}'\n", "instances.a.uplink_mac", "is missing"),
        (MINIMAL.replace("pmd", f"uplink_mac = '{MAC_B}'\npmd"), "instances.b.uplink_mac",
         f"is also instances.a.uplink_mac ({MAC_B.lower()})"),
        (MINIMAL + "uplink_mac = '03:00:00:00:00:01'\n", "instances.b.uplink_mac", "must be a unicast MAC address"),
        (OWN_MACS + "[uplink]\ndevice = 'p'\nvf_a = 0\nvf_b = 1\n[uplink.vfs]\nmac_a = '02:00:00:00:00:99'\n",
         "uplink.vfs.mac_a", f"is not instances.a.uplink_mac ({MAC_B.lower()})"),
        (OWN_MACS.replace("pmd", "second_devargs = 'x'\npmd", 1) + "second_devargs = 'y'\n"
         "[uplink]\ndriver = 'announce'\n[uplink.second]\n", "uplink.second", "on one NIC alone"),
        (MINIMAL + "[uplink]\nnamespace = '../x'\n", "uplink.namespace", "must be the name of a network namespace"),
        (MINIMAL + "[uplink]\nnamespace = 'ovsh-a'\n", "uplink.namespace", "is an instance's own"),
        (MINIMAL + "[broker]\nwithhold_features = ['NET_CSUM', 'PROTOCOL_FEATURES']\n", "broker.withhold_features",
         "PROTOCOL_FEATURES cannot be withheld"),
        (MINIMAL + "[watch]\ncheck_ms = 1000\nhang_ms = 200\n", "watch.hang_ms", "3 times watch.check_ms, 3000"),
        (MINIMAL + "[watch]\nhang_ms = 20000\n", "watch.main_ms", "at least watch.hang_ms, 20000 (it is 10000)"),
    ],
)  # fmt: skip
def test_what_cannot_be_together_is_refused_with_its_key(path: Path, text: str, key: str, part: str) -> None:
    (fault,) = faults(path, text)
    assert fault.startswith(f"{key}: ")
    assert part in fault


@pytest.mark.parametrize("bond", ["lacp", "802.3ad", "balance-tcp", "balance-xor", "balance-rr"])
def test_a_bond_that_virtual_functions_cannot_have_is_refused_by_its_name(path: Path, bond: str) -> None:
    (fault,) = faults(path, MINIMAL + f"[uplink]\nbond = '{bond}'\n")
    assert f'"{bond}" is not for virtual functions' in fault
    assert 'take "active-backup"' in fault


def test_two_macs_are_for_an_uplink_that_is_not_steered_by_its_mac(path: Path) -> None:
    tc = "[uplink]\ndriver = 'tc'\ndevice = 'p'\nrepresentor_a = 'r'\nrepresentor_b = 's'\n"
    for driver in ("announce", "none"):
        assert load(path, OWN_MACS + f"[uplink]\ndriver = '{driver}'\n").instances.a.uplink_mac == MAC_B.lower()
    assert [fault.partition(":")[0] for fault in faults(path, OWN_MACS + tc)] == [
        f"instances.{side}.uplink_mac" for side in Side
    ]


def test_an_instance_may_have_no_dpdk_arguments(path: Path) -> None:
    text = MINIMAL.replace("iface=vf-b", "x").replace("eth_af_packet0,x", "0000:03:02.1") + "dpdk_extra = ''\n"
    assert load(path, text).instances.b.dpdk_extra == ""


@pytest.mark.parametrize("extra", ["", 'dpdk_extra = "--no-pci"', 'dpdk_extra = "-a 03:02.7"', 'dpdk_extra = "-a {a}"'])
def test_a_pci_device_needs_no_dpdk_arguments(path: Path, extra: str) -> None:
    text = PCI.replace('dpdk_extra = "-a {a}"', extra).format(a="03:02.0", b="03:02.1")
    assert load(path, text).instances.a.devices == ("03:02.0",)


def test_what_is_set_on_vfs_is_of_each_side(path: Path) -> None:
    """A VF that is no PCI device for DPDK is known by its number."""
    table = "[uplink]\ndevice = 'p'\nvf_a = 0\nvf_b = 1\n[uplink.vfs]\nvlan = 0\nmac_b = '02:00:00:00:00:0B'\n"
    vfs = load(path, MINIMAL + table).uplink.vfs
    assert vfs.wanted(Side.A) == {"vlan": 0}
    assert vfs.wanted(Side.B) == {"vlan": 0, "mac": "02:00:00:00:00:0b"}
    assert load(path, MINIMAL).uplink.vfs.wanted(Side.A) == {}
    load(path, MINIMAL.replace("eth_af_packet0,iface=vf-a", "03:02.0") + "[uplink.vfs]\nmac_a = '02:00:00:00:00:0b'\n")


def test_all_that_cannot_be_together_is_told_at_once(path: Path) -> None:
    text = MINIMAL.replace("vf-b", "vf-a") + "[watch]\ncheck_ms = 400\n[uplink]\ndevice = 'p'\nrepresentor_b = 'p'\n"
    keys = [fault.partition(":")[0] for fault in faults(path, 'bridge = "peer"\n' + text)]
    assert keys == ["bridge", "instances.b.uplink_devargs", "uplink.representor_b", "watch.hang_ms"]


def test_representors_of_one_device_are_two_devices(path: Path) -> None:
    load(path, PCI.format(a="0000:03:00.0,representor=vf0", b="0000:03:00.0,representor=vf1"))


def test_ports_that_are_named_by_their_mac_are_two_devices(path: Path) -> None:
    text = MINIMAL.replace("eth_af_packet0,iface=vf-a", "class=eth,mac=02:00:00:00:00:0a")
    load(path, text.replace("eth_af_packet0,iface=vf-b", "class=eth,mac=02:00:00:00:00:0b"))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("x = " + "9" * 5000, "not TOML: Exceeds the limit"),
        ("x = " + "[" * 20000, "nested too deeply"),
        ("x = " + "{a=" * 20000, "nested too deeply"),
        (".".join(["x"] * 2000) + " = 1", "x: unknown key"),
        ("bridge = 0x" + "f" * 5000, "bridge: Input should be a valid string (it is a number of more than 18 digits)"),
        ("bridge = '" + "b" * 9000 + "'", "bbb..."),
    ],
)  # fmt: skip
def test_a_file_that_nobody_would_write_is_a_faulty_one(path: Path, line: str, part: str) -> None:
    path.write_text(f"{line}\n{MINIMAL}")
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert part in raised.value.message
    assert len(raised.value.message) < 1000


@pytest.mark.parametrize("name", ["", ".", "..", "a:b", "a/b", "a b", "eth%d", "-x", "ü" * 8, "0123456789abcdef"])
def test_what_the_kernel_gives_no_device_is_no_name_of_one(path: Path, name: str) -> None:
    for key in ("device", "representor_a"):
        (fault,) = faults(path, MINIMAL + f"[uplink]\n{key} = '{name}'\n")
        assert fault.startswith(f"uplink.{key}: must be the name of a network device")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (MINIMAL + 'dpdk_extra = "--no-pci\\n"', "instances.b.dpdk_extra"),
        (MINIMAL.replace("vf-a", "vf-a\\u0000"), "instances.a.uplink_devargs"),
        (MINIMAL + 'other_config = { smc-enable = "\\u007f" }', "instances.b.other_config.smc-enable"),
        (MINIMAL + 'other_config = { "smc\\u0000" = "1" }', "instances.b.other_config, the key"),
        (MINIMAL + '[broker]\ngroup = "libvirt\\u0000"', "broker.group"),
        (MINIMAL + '[uplink]\nnamespace = "x\\u0000"', "uplink.namespace"),
        (MINIMAL + '[broker]\nwithhold_features = ["\\u001b[31m"]', "broker.withhold_features[0]"),
    ],
)
def test_no_text_has_control_characters_in_it(path: Path, text: str, key: str) -> None:
    (fault,) = faults(path, text)
    assert fault.startswith(f"{key}: may not have control characters in it, such as ")
    assert fault.isprintable()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[upgrade]\nsoak_s = true\n", "upgrade.soak_s: Input should be a valid number (it is True)"),
        ("[upgrade]\nready_s = '5'\n", "upgrade.ready_s: Input should be a valid number (it is '5')"),
        ("[upgrade]\nsoak_s = nan\n", "upgrade.soak_s: Input should be less than or equal to 86400 (it is nan)"),
        ("[watch]\ncrash_window_s = true\n", "watch.crash_window_s: Input should be a valid number (it is True)"),
        ("[watch]\nrelease = '../x'\n", "watch.release: "),
        ("[watch]\nrelease = ''\n", "watch.release: "),
        ("[broker]\ngroup = ''\n", "broker.group: "),
        ("other_config = { '' = 'x' }\n", "instances.b.other_config: a key may not be empty"),
        ("other_config = { flow-restore-wait = true }\n", "instances.b.other_config: flow-restore-wait is"),
    ],
)
def test_what_only_looks_like_a_value_is_none(path: Path, text: str, fault: str) -> None:
    (found,) = faults(path, MINIMAL + text)
    assert found.startswith(fault)


def test_a_time_may_be_a_whole_number(path: Path) -> None:
    assert load(path, MINIMAL + "[upgrade]\nsoak_s = 3\n").upgrade.soak_s == 3


def test_a_core_has_one_pmd_thread(path: Path) -> None:
    (fault,) = faults(path, MINIMAL.replace("[1]", "[3, 1, 3, 1]"))
    assert fault == "instances.b.pmd_cores: a core has one PMD thread: 1, 3 is given more than once"


def test_a_byte_order_mark_is_named(path: Path) -> None:
    """Editors on Windows write one, and do not show it."""
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    with pytest.raises(ConfigError, match="begins with a byte order mark") as raised:
        load_config(path)
    assert raised.value.hint is not None
    subprocess.run(["sh", "-c", raised.value.hint], check=True)
    load_config(path)
    path.write_bytes(MINIMAL.replace("\n", "\r\n").encode())
    load_config(path)


def test_the_stamp_of_a_file_differs_when_it_was_written_again(path: Path) -> None:
    path.write_text("a")
    before = stamp_of(path)
    assert before == stamp_of(path)
    path.write_text("ab")
    assert stamp_of(path) not in (None, before)
    path.unlink()
    assert stamp_of(path) is None


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ("--no-pci", ""),
        ("-a 0000:04:00.0", ""),
        ("-a 03:00.0", "-a 0000:03:00.0: the instance would take the uplink at its start"),
        ("--allow=0000:03:00.0,x=1", "--allow 0000:03:00.0: the instance would take the uplink at its start"),
    ],
)
def test_an_instance_that_gets_the_uplink_later_does_not_take_it_at_its_start(
    path: Path, extra: str, fault: str
) -> None:
    text = PCI.format(a="0000:03:00.0", b="0000:03:00.0").replace("-a 0000:03:00.0", extra) + ONE_NIC
    if not fault:
        assert not load(path, text).uplink.both_open
        return
    assert [fault in each for each in faults(path, text)] == [True, True]


CLONED = """\
program = "clone"
[instances.a]
pmd_cores = [0]
port_devices = { dpdk0 = "0000:03:02.0" }
[instances.b]
pmd_cores = [1]
port_devices = { dpdk0 = "0000:03:02.1" }
"""


def test_a_host_that_others_program_needs_neither_an_intent_nor_keys_of_the_uplink(path: Path) -> None:
    config = load(path, CLONED)
    assert config.instance(Side.B).devices == ("0000:03:02.1",)
    assert [config.namespace(side) for side in Side] == ["", ""]
    assert config.watch.mode == "restart"
    assert config.database_file(Side.B).parent.parent == config.state_dir


@pytest.mark.parametrize(("more", "fault"), [
    ('[uplink]\ndriver = "tc"\ndevice = "eth0"\nrepresentor_a = "x"\nrepresentor_b = "y"\n', 'must be "none"'),
    ('backend = "qemu-dual"\n', 'must be "broker"'),
    ('[watch]\nmode = "automatic"\n', 'must be "restart" or "off"'),
])  # fmt: skip
def test_what_a_host_that_others_program_cannot_have(path: Path, more: str, fault: str) -> None:
    text = more + CLONED if more.startswith("backend") else CLONED + more
    assert any(fault in each for each in faults(path, text)), faults(path, text)


def test_a_device_of_both_sides_is_named(path: Path) -> None:
    (fault,) = faults(path, CLONED.replace("02.1", "02.0"))
    assert "instances.b.port_devices.dpdk0: names the device of instances.a.port_devices.dpdk0" in fault


def test_a_port_with_a_device_on_one_side_only_is_named(path: Path) -> None:
    (fault,) = faults(path, CLONED.replace('{ dpdk0 = "0000:03:02.1" }', "{}"))
    assert "instances.a.port_devices.dpdk0: instance b has no device for it" in fault
