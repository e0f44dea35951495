"""Who may touch the rings: whatever is called in whatever order, no second side gets them without a proof."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership, Proof

sides = st.sampled_from(Side)
proofs = st.sampled_from(Proof)


class Owners(RuleBasedStateMachine):
    """``may_touch``: the sides that were granted the rings and of which no proof has been given since."""

    def __init__(self) -> None:
        super().__init__()
        self.ownership = Ownership()
        self.may_touch: set[Side] = set()

    @initialize(suspects=st.frozensets(sides))
    def begin(self, suspects: frozenset[Side]) -> None:
        self.ownership = Ownership(suspects=suspects)
        self.may_touch = set(suspects)

    @rule(side=sides)
    def grant(self, side: Side) -> None:
        before = self.ownership
        try:
            self.ownership = self.ownership.grant(side)
        except StateUnknown:
            assert side.other in self.may_touch
            assert self.ownership is before
            return
        assert self.may_touch <= {side}
        self.may_touch.add(side)

    @rule(side=sides, proof=proofs)
    def release(self, side: Side, proof: Proof) -> None:
        self.ownership = self.ownership.released(side, proof)
        self.may_touch.discard(side)

    @rule()
    def confirm(self) -> None:
        self.ownership = self.ownership.confirm()

    @rule()
    def letting_go(self) -> None:
        self.ownership = self.ownership.letting_go()

    @rule(side=sides)
    def cut(self, side: Side) -> None:
        self.ownership = self.ownership.cut(side)

    @invariant()
    def never_two(self) -> None:
        """Two only from before this broker's time, and then nobody is given the rings."""
        assert len(self.may_touch) <= 1 or self.ownership.holder is None
        assert ({self.ownership.holder} - {None}) | self.ownership.suspects == self.may_touch

    @invariant()
    def nobody_is_certain_of_nobody(self) -> None:
        assert (self.ownership.holder is None) == (self.ownership.certainty is Certainty.NOBODY)


Owners.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestOwners = Owners.TestCase


def test_way_from_one_side_to_the_other() -> None:
    steps = [Ownership().grant(Side.A)]
    steps.append(steps[-1].confirm())
    steps.append(steps[-1].letting_go())
    steps.append(steps[-1].released(Side.A, Proof.FENCE))
    steps.append(steps[-1].grant(Side.B))
    assert steps == [
        Ownership(Side.A, Certainty.TAKING),
        Ownership(Side.A, Certainty.OWNS),
        Ownership(Side.A, Certainty.LETTING_GO),
        Ownership(),
        Ownership(Side.B, Certainty.TAKING),
    ]


@pytest.mark.parametrize("certainty", [c for c in Certainty if c is not Certainty.NOBODY])
def test_refusal_names_the_holder_and_what_mends_it(certainty: Certainty) -> None:
    with pytest.raises(StateUnknown, match=f"side a may still use the rings .{certainty}") as caught:
        Ownership(Side.A, certainty).grant(Side.B)
    assert caught.value.hint is not None


@pytest.mark.parametrize("certainty", [c for c in Certainty if c is not Certainty.NOBODY])
def test_holder_may_be_granted_again(certainty: Certainty) -> None:
    assert Ownership(Side.A, certainty).grant(Side.A) == Ownership(Side.A, Certainty.TAKING)


def test_closed_connection_is_no_proof() -> None:
    owner = Ownership(Side.A, Certainty.OWNS).cut(Side.A)
    assert owner == Ownership(Side.A, Certainty.CUT)
    with pytest.raises(StateUnknown):
        owner.grant(Side.B)
    assert owner.released(Side.A, Proof.DEAD).grant(Side.B).holder is Side.B


def test_what_happens_to_the_other_side_changes_nothing() -> None:
    owner = Ownership(Side.A, Certainty.OWNS)
    assert owner.cut(Side.B) == owner
    assert owner.released(Side.B, Proof.DEAD) == owner


def test_nobody_stays_nobody() -> None:
    assert Ownership().confirm() == Ownership().letting_go() == Ownership().cut(Side.A) == Ownership()
