from dataclasses import dataclass

import pytest

from swift_rm.hipo.rollouts.reward_drift import DriftWindow, Trickle, drift


@dataclass
class Row:
    question_id: str
    probability: float | None
    accuracy: float | None
    labelled: bool = True


def test_the_trickle_is_a_share_of_the_questions_and_always_the_same():
    names = [f"question {i}" for i in range(4000)]
    picked = [name for name in names if Trickle(0.05).picks(name)]
    assert 150 < len(picked) < 250  # 200 expected, 14 its deviation
    assert picked == [name for name in names if Trickle(0.05).picks(name)]
    assert picked != [name for name in names if Trickle(0.05, seed=1).picks(name)]
    assert set(picked) <= {name for name in names if Trickle(0.2).picks(name)}  # a larger share keeps them
    assert not any(Trickle(0.0).picks(name) for name in names)
    assert all(Trickle(1.0).picks(name) for name in names)


def test_messages_are_questions_too():
    trickle = Trickle(0.5)
    messages = [[{"role": "user", "content": f"{i}+1"}] for i in range(64)]
    picks = [trickle.picks(one) for one in messages]
    assert 16 < sum(picks) < 48
    assert picks == [trickle.picks([{"content": one[0]["content"], "role": "user"}]) for one in messages]


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"from 0 to 1, got {share}"):
        Trickle(share)


def test_drift_is_read_within_questions_from_labelled_rows_alone():
    rows = [
        Row("a", 0.9, 1.0), Row("a", 0.2, 0.0), Row("a", 0.95, 0.0),  # one of two pairs is in order
        Row("b", 0.6, 1.0), Row("b", 0.1, 0.0),  # the only pair is
        Row("c", 0.5, 1.0),  # no pair
        Row("d", 0.99, 0.0, labelled=False), Row("d", None, 0.0), Row("d", 0.7, None), Row("d", float("nan"), 1.0),
    ]  # fmt: skip
    figures = drift(rows)
    assert figures["hipo/drift_auroc"] == pytest.approx(0.75)
    assert figures["hipo/hacking_gap"] == pytest.approx((0.9 + 0.2 + 0.95 + 0.6 + 0.1 + 0.5) / 6 - 0.5)
    assert figures["hipo/drift_rows"] == 6


def test_what_cannot_be_told_is_left_out():
    assert drift([]) == {}
    assert drift([Row("a", 0.5, 1.0, labelled=False)]) == {}
    assert set(drift([Row("a", 0.5, 1.0)])) == {"hipo/hacking_gap", "hipo/drift_rows"}


def test_the_window_forgets():
    window = DriftWindow(rows=2)
    assert window.add([Row("a", 0.9, 0.0), Row("a", 0.1, 1.0)])["hipo/drift_auroc"] == 0
    assert window.add([Row("a", 0.1, 0.0, labelled=False)])["hipo/drift_auroc"] == 0
    assert window.add([Row("b", 0.9, 1.0), Row("b", 0.1, 0.0)])["hipo/drift_auroc"] == 1
    with pytest.raises(ValueError, match="at least 1 rollout, got 0"):
        DriftWindow(0)
