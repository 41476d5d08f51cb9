"""Rewards, the length cap and the reward of a mode choice, by hand."""

import math

import pytest
import torch

from swift_rm.hipo.rewards.groups import Groups
from swift_rm.hipo.rewards.rollout_reward import RewardSettings, mode_choice_reward, over_cap, rewards

NAN = math.nan


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def given(accuracy, formatted, probability=None, cap=None, **settings):
    likely = None if probability is None else tensor(*probability)
    capped = None if cap is None else torch.tensor(cap)
    return rewards(tensor(*accuracy), torch.tensor(formatted), likely, RewardSettings(**settings), capped).tolist()


def close(found, expected):
    assert found == pytest.approx(expected, nan_ok=True)


def test_labels_and_format():
    close(given([1, 0, NAN, 1, 0, NAN], [True, True, True, False, False, False]), [1.2, 0.2, NAN, 0, 0, 0])
    close(given([1, 0], [True, True], format_weight=0.5), [1.5, 0.5])


def test_a_probability_stands_in_for_accuracy():
    close(given([1, 0, NAN, 1], [True, True, True, False], [0.9, 0.4, NAN, 0.9], source="swift"), [1.1, 0.6, NAN, 0])
    close(given([1, NAN, NAN, NAN], [True, True, True, False], [0.9, 0.4, math.inf, 0.9], source="both"), [1.2, 0.6, NAN, 0])
    close(given([1, NAN], [True, True], [0.9, 0.4]), [1.2, NAN])  # source labels: probabilities are not read


def test_a_dense_term_is_added_and_needs_its_probability():
    found = given([1, 0, 1, NAN, 1], [True, True, True, True, False], [0.9, 0.4, NAN, 0.5, 0.9], dense=0.5)
    close(found, [1.65, 0.4, NAN, NAN, 0])


def test_over_the_cap_is_the_penalty_whatever_the_answer():
    found = given([1, 0, NAN, 1], [True, True, True, False], cap=[True, False, True, True])
    close(found, [-2.0, 0.2, -2.0, 0.0])
    close(given([1], [True], cap=[True], cap_penalty=-0.5), [-0.5])


def test_the_cap_is_a_factor_of_what_follows_thinking():
    modes = torch.tensor([1, 1, 0, 0, 0, -1])
    tokens = torch.tensor([4, 8, 12, 13, 3, 99])  # mean after thinking 6, allowed 12
    assert over_cap(modes, tokens, 2.0).tolist() == [False, False, False, True, False, False]
    assert over_cap(modes, tokens, 0.5).tolist() == [False, False, True, True, False, False]
    assert not over_cap(torch.tensor([0, 0, -1]), torch.tensor([100, 1, 1]), 2.0).any()  # nothing to compare with
    assert over_cap(torch.tensor([], dtype=torch.int64), torch.tensor([]), 2.0).shape == (0,)


def test_the_better_mode_is_the_right_choice():
    values = tensor(1.2, 1.2, 0.2, 0.2), tensor(1.2, 1.2, 1.2, 1.2), tensor(0.0, 0.0, 0.0, 0.0), tensor(1.2, NAN, 0.2, 1.2)
    modes = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, -1]])
    found = mode_choice_reward(Groups(torch.stack(values), modes), 0.01)
    assert found.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert not mode_choice_reward(Groups(values[1][None], modes[:1]), 0.0).any()  # without a bias a tie has no right choice
    assert not mode_choice_reward(Groups(values[0][None], torch.ones(1, 4)), 0.01).any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "judge"}, "labels, swift, both, got 'judge'"),
        ({"format_weight": -0.1}, "got -0.1 and 0.0"),
        ({"dense": NAN}, "dense must be a finite number, got nan"),
        ({"cap_penalty": math.inf}, "cap_penalty must be a finite number, got inf"),
        ({"length_cap": 0}, "above 0, or None for no cap, got 0"),
        ({"length_cap": NAN}, "got nan"),
    ],
)
def test_bad_settings_are_one_sentence(settings, said):
    with pytest.raises(ValueError, match=said):
        RewardSettings(**settings)


def test_what_is_missing_or_does_not_fit_is_named():
    with pytest.raises(ValueError, match="source='both' needs the probability"):
        given([1], [True], source="both")
    with pytest.raises(ValueError, match=r"dense=0\.5 needs the probability"):
        given([1], [True], dense=0.5)
    with pytest.raises(ValueError, match=r"formatted of shape \(1,\) does not fit \(2,\)"):
        given([1, 0], [True])
    with pytest.raises(ValueError, match=r"over_cap of shape \(1,\)"):
        given([1, 0], [True, True], cap=[True])
