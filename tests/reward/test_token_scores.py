"""token_scores: z and r of each token, those that gated_pool returns with return_tokens."""

import pytest
import torch
from swift_rm_kernels import gated_pool, token_scores

from swift_rm import SwiftConfig, SwiftRewardModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("tokens", [0, 1, 5, 700])
def test_they_are_those_of_gated_pool(dtype, rows, tokens):
    torch.manual_seed(tokens)
    states = [torch.randn(tokens, 24).to(dtype) for _ in range(3)]
    weight, bias = torch.randn(rows, 72), torch.randn(rows)
    scores = token_scores(states, weight, bias)
    assert scores.dtype == torch.float32 and scores.shape == (tokens, rows)
    _, z, r = gated_pool(states, weight, bias, torch.tensor([0, tokens]), return_tokens=True)
    torch.testing.assert_close(scores[:, -1], r)
    if rows == 2:
        torch.testing.assert_close(scores[:, 0], z)
    exact = torch.cat(states, dim=1).double() @ weight.double().T + bias
    torch.testing.assert_close(scores.double(), exact, atol=1e-3, rtol=1e-4)


def test_states_may_be_views_and_the_results_alias_nothing():
    whole = torch.randn(9, 16)
    scores = token_scores([whole[2:6]], torch.ones(2, 16), torch.zeros(2))
    before = scores.clone()
    whole.zero_()
    assert torch.equal(scores, before) and not torch.equal(before, torch.zeros(4, 2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="16"):
        token_scores([torch.randn(3, 8)], torch.ones(2, 16), torch.zeros(2))
    with pytest.raises(ValueError, match="impl"):
        token_scores([torch.randn(3, 16)], torch.ones(2, 16), torch.zeros(2), impl="cuda")


def test_a_head_pools_what_the_tokens_of_a_response_said():
    torch.manual_seed(0)
    rm = SwiftRewardModel(SwiftConfig(8, (0, 1), heads=2, pessimism=0.5))
    torch.nn.init.normal_(rm.head.weight)
    states, offsets = torch.randn(7, 16), torch.tensor([0, 3, 3, 7])
    scores = torch.cat([token_scores(states, weight.detach(), bias.detach()) for weight, bias in rm.head.split()], dim=1)
    found = rm.head.pool(scores, offsets)
    assert found[1].isnan()
    torch.testing.assert_close(found[[0, 2]], rm(torch.cat([states[:3], states[3:]]), torch.tensor([0, 3, 7])).detach())
