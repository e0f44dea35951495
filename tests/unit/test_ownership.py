"""Who may touch the rings: whatever is called in whatever order, no second side gets them without a proof."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ovs_hotswap.errors import ProofRejected, StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.ownership import ALLOWED, Certainty, Ownership, Proof, Released

sides = st.sampled_from(Side)
proofs = st.sampled_from(Proof)

# What each proof needs: written here a second time, so that a change of ``ALLOWED`` is seen.
FREES = {
    Proof.FENCE: {Certainty.NOBODY, Certainty.LETTING_GO},
    Proof.DEAD: {Certainty.NOBODY, Certainty.CUT, Certainty.UNKNOWN},
    Proof.RECONNECTED: {Certainty.NOBODY, Certainty.CUT, Certainty.UNKNOWN},
    Proof.NEVER: {Certainty.NOBODY, Certainty.TAKING, Certainty.OWNS, Certainty.LETTING_GO},
}
PAIRS = [(certainty, proof) for certainty in Certainty for proof in Proof]


def on_the_rings(certainty: Certainty) -> Ownership:
    """Side a is, with this certainty: as a suspect where there can be no holder."""
    if certainty in (Certainty.NOBODY, Certainty.UNKNOWN):
        return Ownership(None, certainty, frozenset({Side.A}))
    return Ownership(Side.A, certainty)


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
        before = self.ownership
        try:
            self.ownership = before.released(side, proof)
        except ProofRejected:
            assert side in self.may_touch
            assert before.certainty not in FREES[proof]
            return
        if side in self.may_touch:
            assert before.certainty in FREES[proof]
            assert self.ownership.last_proof == Released(side, proof)
        else:
            assert self.ownership is before
        self.may_touch.discard(side)

    @rule(more=st.frozensets(sides))
    def doubt(self, more: frozenset[Side]) -> None:
        self.may_touch |= more
        self.ownership = self.ownership.doubted(frozenset(self.may_touch))

    @rule(side=sides)
    def enter(self, side: Side) -> None:
        """Only a side that is alone on the rings becomes the holder without being granted them."""
        before = self.ownership
        try:
            self.ownership = before.entered(side)
        except StateUnknown:
            assert before.holder is not None or self.may_touch != {side}
            return
        assert self.may_touch == {side}

    @rule(side=sides)
    def leave_alone(self, side: Side) -> None:
        before = self.ownership
        try:
            self.ownership = before.left_alone(side)
        except StateUnknown:
            assert before != Ownership(side, Certainty.OWNS)
            return
        assert self.ownership == Ownership(suspects=frozenset({side}))

    @rule()
    def confirm(self) -> None:
        self.ownership = self.ownership.confirm()

    @rule()
    def letting_go(self) -> None:
        self.ownership = self.ownership.releasing()

    @rule(side=sides)
    def cut(self, side: Side) -> None:
        self.ownership = self.ownership.disconnected(side)

    @invariant()
    def never_two(self) -> None:
        """There are two only from before this broker's time, and then neither side is given the rings."""
        assert len(self.may_touch) <= 1 or self.ownership.holder is None
        assert ({self.ownership.holder} - {None}) | self.ownership.suspects == self.may_touch

    @invariant()
    def nobody_is_certain_of_nobody(self) -> None:
        assert (self.ownership.holder is None) == (self.ownership.certainty in (Certainty.NOBODY, Certainty.UNKNOWN))

    @invariant()
    def unknown_only_while_a_side_may_be_on_the_rings(self) -> None:
        assert self.ownership.certainty is not Certainty.UNKNOWN or self.may_touch


Owners.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestOwners = Owners.TestCase


def test_way_from_one_side_to_the_other() -> None:
    steps = [Ownership().grant(Side.A)]
    steps.append(steps[-1].confirm())
    steps.append(steps[-1].releasing())
    steps.append(steps[-1].released(Side.A, Proof.FENCE))
    steps.append(steps[-1].grant(Side.B))
    assert steps == [
        Ownership(Side.A, Certainty.TAKING),
        Ownership(Side.A, Certainty.OWNS),
        Ownership(Side.A, Certainty.LETTING_GO),
        Ownership(),
        Ownership(Side.B, Certainty.TAKING),
    ]


HELD = [each for each in Certainty if each not in (Certainty.NOBODY, Certainty.UNKNOWN)]


@pytest.mark.parametrize(("certainty", "proof"), [pair for pair in PAIRS if pair[0] in FREES[pair[1]]])
def test_a_proof_that_fits_frees_the_rings_and_is_remembered(certainty: Certainty, proof: Proof) -> None:
    free = on_the_rings(certainty).released(Side.A, proof)
    assert free == Ownership()
    assert free.last_proof == Released(Side.A, proof)
    there = free.grant(Side.B)
    assert (there.holder, there.last_proof) == (Side.B, Released(Side.A, proof))
    assert there.confirm().releasing().disconnected(Side.B).last_proof == Released(Side.A, proof)


@pytest.mark.parametrize(("certainty", "proof"), [pair for pair in PAIRS if pair[0] not in FREES[pair[1]]])
def test_a_proof_that_contradicts_the_record_frees_nothing(certainty: Certainty, proof: Proof) -> None:
    before = on_the_rings(certainty)
    with pytest.raises(ProofRejected, match=f"^{proof} does not prove side a off the rings .{certainty}.$"):
        before.released(Side.A, proof)
    with pytest.raises(StateUnknown):
        before.grant(Side.B)


def test_the_table_is_complete() -> None:
    assert {proof: {at for at in ALLOWED if proof in ALLOWED[at]} for proof in Proof} == FREES
    assert set(ALLOWED) == set(Certainty)


@pytest.mark.parametrize("proof", Proof)
def test_a_proof_about_a_side_that_is_not_on_the_rings_changes_nothing(proof: Proof) -> None:
    for before in (Ownership(), Ownership(Side.A, Certainty.OWNS), Ownership(suspects=frozenset({Side.A}))):
        assert before.released(Side.B, proof) is before


@pytest.mark.parametrize("proof", [Proof.DEAD, Proof.RECONNECTED])
def test_after_a_contradiction_each_side_has_to_be_proven_off_by_its_process(proof: Proof) -> None:
    both = frozenset(Side)
    unknown = Ownership(Side.A, Certainty.OWNS).doubted(both)
    assert unknown == Ownership(None, Certainty.UNKNOWN, both)
    one = unknown.released(Side.A, proof)
    assert one == Ownership(None, Certainty.UNKNOWN, frozenset({Side.B}))
    with pytest.raises(StateUnknown):
        one.grant(Side.A)
    assert one.released(Side.B, proof).grant(Side.A) == Ownership(Side.A, Certainty.TAKING)


@pytest.mark.parametrize("before", [Ownership(Side.A, Certainty.CUT), Ownership(suspects=frozenset({Side.A}))])
def test_a_doubt_leaves_out_no_side_that_may_be_on_the_rings(before: Ownership) -> None:
    with pytest.raises(ValueError, match="left out"):
        before.doubted(frozenset({Side.B}))


@pytest.mark.parametrize("certainty", HELD)
def test_refusal_names_the_holder_and_what_mends_it(certainty: Certainty) -> None:
    with pytest.raises(StateUnknown, match=f"side a may still use the rings .{certainty}") as caught:
        Ownership(Side.A, certainty).grant(Side.B)
    assert caught.value.hint is not None


@pytest.mark.parametrize("certainty", HELD)
def test_holder_may_be_granted_again(certainty: Certainty) -> None:
    assert Ownership(Side.A, certainty).grant(Side.A) == Ownership(Side.A, Certainty.TAKING)


def test_closed_connection_is_no_proof() -> None:
    owner = Ownership(Side.A, Certainty.OWNS).disconnected(Side.A)
    assert owner == Ownership(Side.A, Certainty.CUT)
    with pytest.raises(StateUnknown):
        owner.grant(Side.B)
    assert owner.released(Side.A, Proof.DEAD).grant(Side.B).holder is Side.B


def test_what_happens_to_the_other_side_changes_nothing() -> None:
    owner = Ownership(Side.A, Certainty.OWNS)
    assert owner.disconnected(Side.B) == owner
    assert owner.released(Side.B, Proof.DEAD) == owner


def test_nobody_stays_nobody() -> None:
    assert Ownership().confirm() == Ownership().releasing() == Ownership().disconnected(Side.A) == Ownership()


def test_a_suspect_beside_a_holder_is_proven_off_by_its_answer_and_the_holder_stays() -> None:
    """A snapshot may have both. What is known of the holder does not decide which proof frees the other side."""
    owner = Ownership(Side.A, Certainty.OWNS, frozenset({Side.B}))
    assert owner.released(Side.B, Proof.FENCE) == Ownership(Side.A, Certainty.OWNS)


def test_the_end_of_the_holder_says_nothing_about_a_suspect() -> None:
    both = Ownership(Side.A, Certainty.CUT, frozenset({Side.B}))
    assert both.released(Side.A, Proof.DEAD) == Ownership(suspects=frozenset({Side.B}))


def test_a_doubt_keeps_the_last_proof_for_the_log() -> None:
    moved = Ownership().grant(Side.A).released(Side.A, Proof.NEVER).grant(Side.B)
    assert moved.doubted(frozenset(Side)).last_proof == Released(Side.A, Proof.NEVER)


def test_documents_of_other_versions_name_proofs_and_certainties_as_this_one_does() -> None:
    assert [str(proof) for proof in Proof] == ["fence", "dead", "reconnected", "never"]
    assert [str(each) for each in Certainty] == ["nobody", "owns", "taking", "letting-go", "cut", "unknown"]


@pytest.mark.parametrize(
    ("ownership", "text"),
    [
        (Ownership(), f"<Ownership: {Certainty.NOBODY}>"),
        (Ownership(Side.A, Certainty.OWNS), "<Ownership: a owns>"),
        (Ownership(suspects=frozenset(Side)), f"<Ownership: {Certainty.NOBODY}, suspects: a and b>"),
        (Ownership(Side.A, Certainty.CUT, frozenset({Side.B})), "<Ownership: a cut, suspects: b>"),
    ],
)
def test_the_log_shows_holder_certainty_and_suspects(ownership: Ownership, text: str) -> None:
    assert repr(ownership) == text
