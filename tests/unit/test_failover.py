"""What is done about an active instance that has failed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.watchdog.failover import Act, FailoverState, next_act

states = st.builds(
    FailoverState, alive=st.booleans(), target_ready=st.booleans(), useless=st.booleans(),
    steered=st.booleans(), stranded=st.integers(0, 3), patience=st.booleans(),
)  # fmt: skip


@given(states)
def test_nothing_is_given_away_while_the_active_lives(state: FailoverState) -> None:
    act = next_act(state)
    if state.alive:
        assert act in {Act.NO_TARGET, Act.FENCE}
    if act is Act.FENCE:
        assert state.target_ready or state.useless
    if not state.target_ready:
        assert act in {Act.NO_TARGET, Act.FENCE}


def test_with_nowhere_to_go_only_what_forwards_nothing_is_ended() -> None:
    assert next_act(FailoverState(True, target_ready=False)) is Act.NO_TARGET
    assert next_act(FailoverState(True, target_ready=False, useless=True)) is Act.FENCE
    assert next_act(FailoverState(False, target_ready=False, useless=True)) is Act.NO_TARGET


def test_the_acts_of_a_failover_come_in_order() -> None:
    assert next_act(FailoverState(True, True)) is Act.FENCE
    assert next_act(FailoverState(False, True)) is Act.STEER
    assert next_act(FailoverState(False, True, steered=True, stranded=1)) is Act.AWAIT
    assert next_act(FailoverState(False, True, steered=True, stranded=1, patience=False)) is Act.RECORD
    assert next_act(FailoverState(False, True, steered=True)) is Act.RECORD


def test_a_failover_waits_for_vms_only_where_its_caller_says_that_there_are_some() -> None:
    assert next_act(FailoverState(alive=True, target_ready=False)) is Act.NO_TARGET
    assert next_act(FailoverState(alive=False, target_ready=True)) is Act.STEER
    assert next_act(FailoverState(alive=False, target_ready=True, steered=True, stranded=2)) is Act.AWAIT


def test_the_log_names_the_acts_so() -> None:
    assert [str(act) for act in Act] == ["no-target", "fence", "steer", "await", "record"]
