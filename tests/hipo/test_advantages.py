"""Advantages by hand, against slow loops, and in every degenerate group."""

import math
import statistics

import pytest
import torch

from swift_rm.hipo.rewards.advantages import ADVANTAGES, Advantages, AdvantageSettings, Groups, advantages
from swift_rm.hipo.rewards.bias import biased_means, off_bias

ON, OFF, NONE = 1, 0, -1
NAN = math.nan


def groups(rewards, modes, baseline=None, dtype=torch.float64):
    given = None if baseline is None else torch.tensor(baseline, dtype=dtype)
    return Groups(torch.tensor(rewards, dtype=dtype), torch.tensor(modes), given)


def one(name, rewards, modes, baseline=None, **settings):
    found = advantages(name, groups([rewards], [modes], baseline), AdvantageSettings(**settings))
    return Advantages(*(part[0] for part in (found.judge, found.mode, found.answer)))


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), atol=1e-6, rtol=1e-6)


def test_hipo_by_hand():
    found = one("hipo", [1.2, 0.2, 1.2, 1.2], [ON, ON, OFF, OFF])
    # mean 0.95, of on 0.7, of off 1.2: think-off is better, so no bias; std = sqrt((3 * 0.25^2 + 0.75^2) / 3) = 0.5
    # judge: (0.7 - 0.95 + 0.3 * 0.25) / 0.51, (0.7 - 0.95 - 0.3 * 0.75) / 0.51, (1.2 - 0.95 + 0.3 * 0.25) / 0.51
    close(found.judge, [-0.343137, -0.931373, 0.637255, 0.637255])
    close(found.mode, found.judge.tolist())
    # answer: +-0.5 / (sqrt(0.5) + 0.01) in on, 0 in off
    close(found.answer, [0.697246, -0.697246, 0.0, 0.0])


@pytest.mark.parametrize(
    ("bias", "judge"),
    [
        # mean of on 1.2 adds 0.012 to think-off, which shifts the mean by 0.006 as half are off; std 0
        ("mean", [-0.6, -0.6, 0.6, 0.6]),
        ("sample", [-0.78, -0.78, 0.78, 0.78]),  # and gamma 0.3 * 0.006 / 0.01 more
        ("none", [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_a_tie_goes_to_think_off(bias, judge):
    found = one("hipo", [1.2] * 4, [ON, ON, OFF, OFF], bias=bias)
    close(found.judge, judge)
    close(found.answer, [0.0] * 4)


def test_ties_of_wrong_answers_hardly_matter():
    close(one("hipo", [0.2] * 4, [ON, ON, OFF, OFF]).judge, [-0.1, -0.1, 0.1, 0.1])
    close(one("hipo", [0.0] * 4, [ON, ON, OFF, OFF]).judge, [0.0] * 4)
    close(one("hipo", [-2.0] * 4, [ON, ON, OFF, OFF]).judge, [0.0] * 4)


def test_the_bias_needs_a_near_tie_with_think_on_ahead():
    modes = [[ON, ON, OFF, OFF]] * 4
    rewards = [[1.0, 1.0, 0.995, 0.985], [1.0, 1.0, 0.98, 0.99], [0.5, 0.5, 0.49, 0.496], [1.0, 1.0, 1.0, 1.01]]
    given = groups(rewards, modes)
    close(off_bias(given, 0.01)[:, 0], [0.01, 0.0, 0.0, 0.0])  # gaps 0.01 (the bound), 0.015, 0.007 (of 0.005), -0.005
    on, off = biased_means(given, 0.01)
    close(on, [1.0, 1.0, 0.5, 1.0])
    close(off, [1.0, 0.985, 0.493, 1.005])
    assert biased_means(groups([[1.0, 0.5]], [[ON, ON]]), 0.01)[1].isnan().all()


def test_equal_means_of_unequal_counts_are_a_tie_whatever_the_precision():
    rewards, modes = [[0.7] * 10], [[ON] * 3 + [OFF] * 7]
    for dtype in (torch.float32, torch.float64):
        found = advantages("hipo", groups(rewards, modes, dtype=dtype))
        assert found.judge.dtype == dtype
        close(found.judge[0], [-0.49] * 3 + [0.21] * 7)  # 0.007 to each off, 0.0049 to the mean


def test_one_mode_only_has_no_bracket_and_no_bias():
    found = one("hipo", [1.2, 0.2, 0.2, 0.2], [OFF] * 4)
    close(found.judge, [0.3 * 0.75 / 0.51, *[-0.3 * 0.25 / 0.51] * 3])
    close(found.answer, [0.75 / 0.51, *[-0.25 / 0.51] * 3])
    with_none = one("hipo", [1.2, 0.2, 0.2, 0.2], [OFF, OFF, OFF, NONE])
    close(with_none.judge[:3], [0.3 * 0.75 / 0.51, *[-0.3 * 0.25 / 0.51] * 2])


def test_a_response_alone_in_its_mode_has_no_answer_advantage():
    for name in ("hipo", "hgpo", "step_srpo"):
        assert one(name, [1.2, 0.2, 0.2, 1.2], [ON, OFF, OFF, OFF]).answer[0] == 0


def test_responses_without_a_mode_get_the_plain_advantage():
    plain = one("grpo", [1.2, 0.2, 0.0, 0.2], [ON, OFF, NONE, NONE]).answer
    for name in ("hipo", "hgpo", "step_srpo"):
        found = one(name, [1.2, 0.2, 0.0, 0.2], [ON, OFF, NONE, NONE])
        for part in (found.judge, found.mode, found.answer):
            close(part[2:], plain[2:].tolist())
        alone = one(name, [1.2, 0.2, 0.0, 0.2], [NONE] * 4)
        close(alone.judge, plain.tolist())


def test_grpo_by_hand():
    close(one("grpo", [1.0, 0.0, 0.0, 0.0], [ON] * 4).judge, [0.75 / 0.51, *[-0.25 / 0.51] * 3])
    close(one("grpo", [1.0, NAN, 0.0, NAN], [ON] * 4).answer, [0.697246, 0.0, -0.697246, 0.0])


def test_grpo_is_trl_with_another_eps():
    rewards = torch.tensor([[1.2, 0.2, 0.0, 1.2]])
    mean, std = rewards.mean(), rewards.std()  # as GRPOTrainer: Bessel's correction
    found = advantages("grpo", Groups(rewards, torch.ones_like(rewards)), AdvantageSettings(eps=1e-4)).answer
    torch.testing.assert_close(found, (rewards - mean) / (std + 1e-4))


def test_adaptthink_by_hand():
    found = one("adaptthink", [1.0, 0.0, 1.0, 0.0], [ON, ON, OFF, NONE], [0.8])
    close(found.judge, [0.2, -0.8, 0.25, -0.8])
    close(found.answer, found.judge.tolist())
    for baseline in (None, [NAN]):  # mean 0.5
        close(one("adaptthink", [1.0, 0.0, 1.0, 0.0], [ON, ON, OFF, OFF], baseline).mode, [0.5, -0.5, 0.55, -0.45])


def test_hgpo_by_hand():
    # on 0.75 against off 0.5 + 0.2: on wins; inter-mode 1 1 1 1 0 0, mean 2/3, std sqrt((4/9 + 8/9) / 5) = 0.516398
    found = one("hgpo", [1.0, 1.0, 1.0, 0.0, 1.0, 0.0], [ON] * 4 + [OFF] * 2)
    close(found.judge, [0.633235] * 4 + [-1.266470] * 2)
    close(found.mode, found.judge.tolist())
    close(found.answer, [0.25 / 0.51] * 3 + [-0.75 / 0.51, 0.697246, -0.697246])  # the best share
    for high in (0.7, 0.9, 1.2):  # the margin of 0.2 makes a tie: off
        for dtype in (torch.float32, torch.float64):
            tied = advantages("hgpo", groups([[high, high, high - 0.2, high - 0.2]], [[ON, ON, OFF, OFF]], dtype=dtype))
            assert tied.mode[0, 0] < 0 < tied.mode[0, 2] and not tied.answer.any()
    assert not one("hgpo", [1.0, 0.0, 0.0, 1.0], [ON] * 4).mode.any()


def test_step_srpo_by_hand():
    found = one("step_srpo", [1.2, 1.2, 1.2, 0.2], [ON, ON, OFF, OFF])  # on is right: 1 1 0 0, std sqrt(1/3)
    close(found.judge, [0.5 / 0.587350, 0.5 / 0.587350, -0.5 / 0.587350, -0.5 / 0.587350])
    close(found.answer, [0.0, 0.0, 0.697246, -0.697246])
    assert one("step_srpo", [1.2] * 4, [ON, ON, OFF, OFF]).judge[3] > 0  # a tie: off is right
    assert not one("step_srpo", [1.2] * 4, [ON, ON, OFF, OFF], bias="none").judge.any()
    assert not one("step_srpo", [1.2, 0.2], [OFF, OFF]).judge.any()


def _std(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _slow_hipo(rewards, modes, s):
    """HiPO, one response at a time, as the formula reads."""
    known = [r for r in rewards if not math.isnan(r)]
    by = {mode: [r for r, m in zip(rewards, modes, strict=True) if m == mode and not math.isnan(r)] for mode in (ON, OFF)}
    means = {mode: statistics.fmean(some) for mode, some in by.items() if some}
    mean, std, shift = statistics.fmean(known or [0.0]), _std(known), 0.0
    if len(means) == 2 and -1e-9 <= means[ON] - means[OFF] <= s.omega * means[ON] + 1e-9:
        means[OFF] += s.omega * means[ON]
        shift = s.omega * means[ON] * len(by[OFF]) / len(known)
    judge, answer = [], []
    for r, m in zip(rewards, modes, strict=True):
        if math.isnan(r):
            judge.append(0.0)
            answer.append(0.0)
        elif m == NONE:
            judge.append((r - mean) / (std + s.eps))
            answer.append((r - mean) / (std + s.eps))
        else:
            bracket = means[m] - (mean + shift) if len(means) == 2 else 0.0
            judge.append((bracket + s.gamma * (r - mean)) / (std + s.eps))
            answer.append((r - statistics.fmean(by[m])) / (_std(by[m]) + s.eps))
    return judge, answer


def _random(seed, questions=60, size=6):
    draw = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, 0.2, 1.2, 1.2, NAN, 0.7, 0.7, -2.0], dtype=torch.float64)
    rewards = values[torch.randint(len(values), (questions, size), generator=draw)]
    rewards[:5] = 1.2  # ties
    rewards[5] = NAN
    modes = torch.randint(-1, 2, (questions, size), generator=draw)
    modes[10:15], modes[15:20], modes[20:25] = ON, OFF, NONE
    modes[25:30, 1:], modes[25:30, 0] = OFF, ON
    modes[:5, 0], modes[:5, 1] = ON, OFF
    return rewards, modes


@pytest.mark.parametrize("seed", range(3))
def test_hipo_is_the_slow_formula(seed):
    rewards, modes = _random(seed)
    settings = AdvantageSettings(gamma=0.4, omega=0.02, eps=0.05)
    found = advantages("hipo", Groups(rewards, modes), settings)
    for row, (reward, mode) in enumerate(zip(rewards.tolist(), modes.tolist(), strict=True)):
        judge, answer = _slow_hipo(reward, mode, settings)
        close(found.judge[row], judge)
        close(found.answer[row], answer)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_every_algorithm_is_finite_silent_on_nan_and_alike_in_both_precisions(name):
    rewards, modes = _random(7)
    exact = advantages(name, Groups(rewards, modes))
    single = advantages(name, Groups(rewards.float(), modes))
    for part in ("judge", "mode", "answer"):
        values = getattr(exact, part)
        assert values.isfinite().all()
        assert not values[rewards.isnan()].any()
        assert getattr(single, part).dtype == torch.float32
        torch.testing.assert_close(getattr(single, part).double(), values, atol=1e-5, rtol=1e-5)
    # a NaN row is as if it were not there
    alone = advantages(name, Groups(rewards[30:31, ~rewards[30].isnan()], modes[30:31, ~rewards[30].isnan()]))
    torch.testing.assert_close(alone.judge[0], exact.judge[30][~rewards[30].isnan()])


@pytest.mark.parametrize("name", ["hipo", "grpo", "hgpo", "step_srpo"])
def test_a_constant_added_to_all_rewards_does_not_change_the_answers(name):
    rewards, modes = _random(11)
    one, other = (advantages(name, Groups(some, modes)).answer for some in (rewards, rewards + 5.0))
    torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_the_brackets_of_a_group_sum_to_nothing():
    rewards, modes = _random(3)
    modes = modes.clamp(min=0)
    for bias in ("mean", "sample", "none"):
        found = advantages("hipo", Groups(rewards, modes), AdvantageSettings(bias=bias)).judge
        close(found.sum(dim=1), [0.0] * len(found))


@pytest.mark.parametrize("name", ["hipo", "grpo", "hgpo", "step_srpo"])
def test_equal_rewards_of_one_mode_give_nothing(name):
    found = one(name, [0.7] * 5, [ON] * 5)
    close(torch.cat([found.judge, found.mode, found.answer]), [0.0] * 15)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: groups([[1.0]], [[ON]]), "at least 2 a question, got 1"),
        (lambda: groups([], []), r"at least 1 question, got \(0,\)"),
        (lambda: Groups(torch.zeros(0, 4), torch.zeros(0, 4)), r"got \(0, 4\)"),
        (lambda: Groups(torch.zeros(2, 4), torch.zeros(4, 2)), r"\(4, 2\) do not fit rewards of shape \(2, 4\)"),
        (lambda: Groups(torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2)), "got torch.int64"),
        (lambda: groups([[1.0, 0.0]], [[ON, 3]]), "got 3"),
        (lambda: groups([[1.0, 0.0]], [[ON, OFF]], [0.1, 0.2]), "does not fit 1 questions"),
        (lambda: advantages("ppo", groups([[1.0, 0.0]], [[ON, OFF]])), "hipo, grpo, adaptthink, hgpo, step_srpo, got 'ppo'"),
        (lambda: AdvantageSettings(eps=0.0), "got 0.0"),
        (lambda: AdvantageSettings(omega=-0.1), "got 0.3 and -0.1"),
        (lambda: AdvantageSettings(margin=NAN), "margin must be a finite number, got nan"),
        (lambda: AdvantageSettings(bias="both"), "mean, sample, none, got 'both'"),
    ],
)
def test_bad_input_is_one_sentence(make, said):
    with pytest.raises(ValueError, match=said) as refused:
        make()
    assert "\n" not in str(refused.value)
