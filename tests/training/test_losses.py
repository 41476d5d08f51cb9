import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from swift_rm.training.losses import LOSSES, get_loss, question_weights

R = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64)
Y = torch.tensor([1, 0, 0, 1])
Q = torch.tensor([0, 0, 1, 1])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_bce_by_hand():
    by_hand = -(math.log(sigmoid(2)) + math.log(1 - sigmoid(-1)) + math.log(1 - sigmoid(0.5)) + math.log(sigmoid(3))) / 4
    assert float(get_loss("bce")(R, Y, Q)) == pytest.approx(by_hand)


def test_hinge_by_hand():
    assert float(get_loss("hinge")(R, Y, Q)) == pytest.approx((0 + 0 + 1.5 + 0) / 4)


def test_dpo_takes_all_pairs_of_a_question_and_none_across():
    assert float(get_loss("dpo")(R, Y, Q)) == pytest.approx(-(math.log(sigmoid(3)) + math.log(sigmoid(2.5))) / 2)


def test_infonca_and_nca_by_hand():
    log_share = [math.log(math.exp(2) / (math.exp(2) + math.exp(-1))), math.log(math.exp(3) / (math.exp(3) + math.exp(0.5)))]
    assert float(get_loss("infonca")(R, Y, Q)) == pytest.approx(-sum(log_share) / 2)
    first = -logsigmoid(R[0]) - (logsigmoid(-R[0]) + logsigmoid(-R[1])) / 2
    second = -logsigmoid(R[3]) - (logsigmoid(-R[2]) + logsigmoid(-R[3])) / 2
    assert float(get_loss("nca")(R, Y, Q)) == pytest.approx(float(first + second) / 2)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_pulls_right_up_and_wrong_down(name):
    rewards = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    get_loss(name)(rewards, Y, Q).backward()
    assert (rewards.grad[Y == 1] < 0).all()
    assert (rewards.grad[Y == 0] > 0).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_question_that_is_all_right_gives_a_finite_gradient(name):
    rewards = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    get_loss(name)(rewards, torch.ones(3), torch.zeros(3)).backward()
    assert torch.isfinite(rewards.grad).all()


def test_an_unknown_loss_lists_the_names():
    with pytest.raises(ValueError, match=r"loss must be one of \['bce', .*\], got 'mse'"):
        get_loss("mse")


def test_balanced_questions_weigh_the_same_and_in_each_both_sides_do():
    labels = torch.tensor([1, 0, 0, 0, 1, 1, 1, 0, 1, 1])
    question = torch.tensor([5, 5, 5, 5, 2, 2, 2, 2, 9, 9])
    weight = question_weights(labels, question)
    assert torch.allclose(weight, torch.tensor([3, 1, 1, 1, 1, 1, 1, 3, 0, 0]) / 6)
    rewards = torch.linspace(-1, 1, 10)
    by_question = []
    for q in (5, 2):
        margins = (rewards[(question == q) & (labels == 1)][:, None] - rewards[(question == q) & (labels == 0)]).flatten()
        by_question.append(torch.nn.functional.softplus(-margins).mean())
    assert torch.allclose(LOSSES["dpo"](rewards, labels, question, weight), torch.stack(by_question).mean())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_question_of_weight_0_is_as_if_it_were_not_there_and_equal_weights_change_nothing(name):
    generator = torch.Generator().manual_seed(0)
    rewards, labels = torch.randn(12, generator=generator), torch.tensor([0, 1, 1, 0] * 3)
    question = torch.arange(3).repeat_interleave(4)
    kept = question != 1
    alone = LOSSES[name](rewards[kept], labels[kept], question[kept])
    assert torch.allclose(LOSSES[name](rewards, labels, question, kept.float()), alone)
    assert torch.allclose(
        LOSSES[name](rewards, labels, question, torch.full((12,), 0.3)), LOSSES[name](rewards, labels, question)
    )
    nothing = LOSSES[name](rewards.requires_grad_(), labels, question, torch.zeros(12))
    assert nothing.item() == 0 and torch.isfinite(torch.autograd.grad(nothing, rewards)[0]).all()
