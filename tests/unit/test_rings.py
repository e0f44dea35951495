"""What ring indices tell, and for how long one must look."""

from __future__ import annotations

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.host import rings
from ovs_hotswap.host.rings import Patience, RingSample
from tests.support import fake_backends
from tests.support.fake_backends import vm_status


def ring(avail: int, used: int, *, number: int = 1, vm: str = "vm1") -> RingSample:
    return RingSample(vm, number, True, 256, avail, used)


def test_a_ring_is_unserved_when_it_was_so_for_long_enough() -> None:
    patience = Patience([ring(10, 9)], 1.0)
    assert patience.look(0.0, [ring(10, 9)]) == {}
    assert patience.waiting == {("vm1", 1): "stuck, 1 buffers outstanding at index 9"}
    assert patience.look(0.9, [ring(11, 9)]) == {}
    assert patience.look(1.0, [ring(12, 9)]) == {("vm1", 1): "stuck, 3 buffers outstanding at index 9"}


def test_a_ring_that_goes_on_begins_anew() -> None:
    patience = Patience([ring(10, 9)], 1.0)
    patience.look(0.0, [ring(10, 9)])
    patience.look(0.5, [ring(11, 10)])
    assert patience.waiting == {}
    assert patience.look(1.2, [ring(11, 10)]) == {}
    assert patience.look(2.1, [ring(11, 10)]) == {}
    assert list(patience.look(2.2, [ring(11, 10)])) == [("vm1", 1)]


def test_indices_that_do_not_fit_are_looked_at_twice() -> None:
    """The indices of a ring that is written during the read may not belong together."""
    patience = Patience([ring(5, 5)], 0.5)
    assert patience.look(0.0, [ring(5000, 5)]) == {}
    assert patience.look(0.2, [ring(6, 6)]) == {}
    patience.look(1.0, [ring(5000, 6)])
    assert "does not fit" in patience.look(1.5, [ring(5000, 6)])[("vm1", 1)]


def test_what_is_known_is_not_judged() -> None:
    first = [ring(10, 9), ring(10, 9, vm="vm2")]
    patience = Patience(first, 0.0, known={("vm1", 1)})
    assert list(patience.look(0.0, first)) == [("vm2", 1)]
    patience.forgo([("vm2", 1)])
    assert patience.waiting == {}
    assert patience.look(1.0, first) == {}


def vm(name: str, available: int | None, used: int | None) -> VmStatus:
    return vm_status(name, rings=(fake_backends.ring_status(0, available, used),))


def test_a_vm_whose_rings_cannot_be_read_is_told_from_one_that_never_stands_still() -> None:
    vms = [vm("vm1", 7, 5), vm("vm2", None, None), vm("vm3", None, 9)]
    assert [sample.vm for sample in rings.samples(vms)] == ["vm1"]
    assert rings.unread(vms) == ["vm2"]
