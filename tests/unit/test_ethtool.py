"""The bytes of SIOCETHTOOL requests, compared with those of the real ``ethtool``."""

from __future__ import annotations

import errno
import platform
import re
from pathlib import Path

import pytest

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.uplink.ethtool import (
    IP_USER_FLOW,
    SRXCLSRLDEL,
    UDP_V4_FLOW,
    DriverInfo,
    Ethtool,
    FlowRule,
    code_of,
    insert_request,
    location_request,
    open_ioctl,
)
from tests.support import ioctl_trace
from tests.support.fake_i40e import FakeI40e

CLOUD, OUTER = 1 << 63, 1 << 62
BY_HAND = pytest.mark.skipif(platform.machine() != "x86_64", reason="the tracer knows the registers of x86-64")
FORMS = {
    "flow-type udp4 dst-port 4789 user-def 0x8000000000000000 action 0x20000ffff loc 4094":
        FlowRule(4094, UDP_V4_FLOW, 1, 0xFFFF, port=4789, user=CLOUD),
    "flow-type udp4 dst-ip 172.31.0.1 dst-port 4789 vf 0 queue 3 loc 0":
        FlowRule(0, UDP_V4_FLOW, 0, 3, address="172.31.0.1", port=4789),
    "flow-type ip4 dst-ip 172.31.0.1 user-def 0x8000000000000000 action 0x200000000 loc 3":
        FlowRule(3, IP_USER_FLOW, 1, 0, address="172.31.0.1", user=CLOUD),
    "flow-type ip4 dst-ip 10.0.255.254 user-def 0xc000000000000000 vf 127 queue 0xffff loc 8191":
        FlowRule(8191, IP_USER_FLOW, 127, 0xFFFF, address="10.0.255.254", user=CLOUD | OUTER),
    "flow-type ip4 dst-ip 172.31.0.1 action 2 loc 7": FlowRule(7, IP_USER_FLOW, None, 2, address="172.31.0.1"),
}  # fmt: skip


def ethtool(nic: FakeI40e, *arguments: str) -> ioctl_trace.Run:
    """Run the real program on the fake NIC."""
    return ioctl_trace.run(["ethtool", *arguments], nic.call)


@BY_HAND
@pytest.mark.parametrize("text", FORMS)
def test_an_insert_has_the_bytes_of_ethtool(text: str) -> None:
    """Compared are the command and the rule. The rest of the request the kernel ignores, and the program does not
    fill it."""
    (theirs,) = ethtool(FakeI40e(), "-N", "pf0", *text.split()).requests
    ours = insert_request(FORMS[text])
    assert (ours[:4], ours[16:180]) == (theirs[:4], theirs[16:180])
    assert len(ours) == len(theirs)


@BY_HAND
def test_a_delete_has_the_bytes_of_ethtool() -> None:
    (theirs,) = ethtool(FakeI40e(), "-N", "pf0", "delete", "4095").requests
    ours = location_request(SRXCLSRLDEL, 4095)
    assert (ours[:4], ours[176:180]) == (theirs[:4], theirs[176:180])


@BY_HAND
@pytest.mark.parametrize("text", [each for each in FORMS if "user-def" in each])
def test_ethtool_shows_what_was_inserted_and_deletes_it(text: str) -> None:
    """Both directions: the program reads from the fake what we gave it, and we read what the program gave it."""
    wanted = FORMS[text]
    nic = FakeI40e(l4mode=wanted.flow == UDP_V4_FLOW)
    for number in (1, 127):
        nic.vfs[number] = nic.vfs[0]
    tool = Ethtool(nic, "pf0")
    tool.insert(wanted)
    shown = ethtool(nic, "-n", "pf0", "rule", str(wanted.location)).output
    assert re.search(rf"Filter: {wanted.location}\n", shown)
    assert f"User-defined: {wanted.user:#x}" in shown
    if wanted.address:
        assert f"Dest IP addr: {wanted.address}" in shown
    if wanted.port:
        assert f"Dest port: {wanted.port}" in shown
    assert ethtool(nic, "-N", "pf0", "delete", str(wanted.location)).status == 0
    assert tool.locations() == []
    assert ethtool(nic, "-N", "pf0", *text.split()).status == 0
    assert tool.locations() == [wanted.location]
    found = tool.rule(wanted.location)
    assert found is not None
    assert (found.address, found.port, found.user, found.queue) == (
        wanted.address, wanted.port, wanted.user, wanted.queue,
    )  # fmt: skip


@BY_HAND
def test_all_rules_are_listed_as_ethtool_lists_them() -> None:
    nic = FakeI40e()
    assert ethtool(nic, "-N", "pf0", "flow-type", "tcp4", "dst-port", "22", "action", "1", "loc", "17").status == 0
    Ethtool(nic, "pf0").insert(FlowRule(4094, UDP_V4_FLOW, 0, 0xFFFF, port=4789, user=CLOUD))
    shown = ioctl_trace.run(["ethtool", "-n", "pf0"], lambda device, request: _rings(nic, device, request))
    assert [int(each) for each in re.findall(r"Filter: (\d+)", shown.output)] == [17, 4094]
    assert Ethtool(nic, "pf0").locations() == [17, 4094]
    other = Ethtool(nic, "pf0").rule(17)
    assert other is not None
    assert (other.user, other.queue, other.vf) == (0, 1, None), "another kind of rule is read as far as it is known"


def _rings(nic: FakeI40e, device: str, request: bytes) -> bytes:
    """The fake, which also says that it has four rings (ETHTOOL_GRXRINGS), as the program asks first."""
    return request[:8] + (4).to_bytes(8, "little") + request[16:] if request[0] == 0x2D else nic.call(device, request)


def test_driver_flags_and_features_of_a_nic() -> None:
    tool = Ethtool(FakeI40e(ntuple=False), "pf0")
    assert tool.driver() == DriverInfo("i40e", "2.28.16", "9.50 0x8000f2fe 1.3682.0")
    assert tool.private_flags() == {"MFP": False, "mdd-auto-reset-vf": True}
    assert not tool.ntuple()
    assert Ethtool(FakeI40e(), "pf0").ntuple()
    assert Ethtool(FakeI40e(flags={}), "pf0").private_flags() == {}
    assert tool.rule(4094) is None


def test_an_error_names_the_device_and_keeps_its_number() -> None:
    with pytest.raises(UplinkError, match="pf0: rule 4094 could not be deleted: No such file or directory") as caught:
        Ethtool(FakeI40e(), "pf0").delete(4094)
    assert code_of(caught.value) == errno.ENOENT
    assert code_of(UplinkError("of another kind")) is None


def test_a_namespace_that_is_missing_is_named() -> None:
    with pytest.raises(UplinkError, match="network namespace no-such"):
        open_ioctl("no-such")


@pytest.mark.parametrize("unit", ["watch", "restore"])
def test_the_socket_is_of_a_family_that_the_units_allow(unit: str) -> None:
    """The watchdog steers, and so does what restores the host at boot."""
    ioctl = open_ioctl(None)
    family = ioctl._carrier.family.name
    ioctl.close()
    text = (Path(__file__).parents[2] / f"systemd/ovs-hotswap-{unit}.service").read_text()
    (allowed,) = re.findall(r"^RestrictAddressFamilies=(.*)$", text, re.MULTILINE)
    assert family in allowed.split()
