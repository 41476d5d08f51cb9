"""An engine is equal to transformers, or it is said where it differs: in which layer, in rewards, by which error."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from swift_rm import SwiftConfig, score
from swift_rm.cli.check_engine import json_of
from swift_rm.parity.engine_check import identify_states
from swift_rm.parity.recorded_run import EngineRun, RecordedResponse, teacher_force
from tests.parity.engine_runs import LAYERS, RESPONSES, D, changed, check, engine_run, random_head, states_of


def test_an_engine_like_transformers_is_equal(models, rm):
    run = engine_run(*models("float32"), rm)
    found = check(run, rm, models)
    assert (found.verdict, found.equal, found.responses, found.tokens) == ("equal", True, 4, 30)
    assert [row.layer for row in found.layers] == [0, 2, 3]
    assert max(row.relative for row in found.layers) < 1e-5
    assert all(row.transformers_error is None for row in found.layers)
    assert found.rewards.max_difference < 1e-5
    sizes = [np.sqrt((np.concatenate([one.states for one in run.responses])[:, :D] ** 2).mean())]
    noisy = check(changed(run, lambda states: states + np.float32(5e-4 * sizes[0])), rm, models)
    assert noisy.equal
    assert noisy.layers[0].relative == pytest.approx(5e-4, rel=1e-2)
    assert noisy.layers[0].error == pytest.approx(5e-4, rel=1e-2)
    assert noisy.layers[0].max_difference == pytest.approx(5e-4 * sizes[0], rel=1e-2)


def test_a_difference_is_found_in_the_layer_that_has_it(models, rm):
    def change(states):
        states[:, D + 3] += 0.01 * np.sqrt((states[:, D : 2 * D] ** 2).mean())
        return states

    found = check(changed(engine_run(*models("float32"), rm), change), rm, models)
    assert [row.equal for row in found.layers] == [True, False, True]
    assert found.layers[1].relative == pytest.approx(0.01, rel=0.2)
    assert found.layers[1].resembles is None
    assert found.verdict == "different"
    assert found.why.startswith("layer 2 of the 3 read differs by 0.0")


def test_a_wrong_index_is_named(models, rm):
    for dtype in ("float32", "bfloat16"):
        run = engine_run(*models(dtype), rm, dtype, layers=(0, 1, 3))
        found = check(run, rm, models)
        assert [row.equal for row in found.layers] == [True, False, True], dtype
        assert found.layers[1].resembles == "layer 1"
        assert "fake's layer 2 is transformers' layer 1" in found.why


def test_the_states_of_the_token_before_are_named(models, rm):
    model, tokenizer = models("float32")
    run = engine_run(model, tokenizer, rm)
    late = [
        replace(one, states=states_of(model, one.prompt_ids[:-1], [one.prompt_ids[-1], *one.response_ids[:-1]], LAYERS))
        for one in run.responses
    ]
    found = check(replace(run, responses=late), rm, models)
    assert [row.resembles for row in found.layers] == [f"layer {layer} of the token before" for layer in (0, 2, 3)]
    assert found.why.startswith("layers 0, 2, 3 of the 3 read differ")
    early = [replace(one, states=np.concatenate([one.states[1:], one.states[-1:]])) for one in run.responses]
    assert check(replace(run, responses=early), rm, models).layers[1].resembles == "layer 2 of the token after"


def test_states_that_the_engine_did_not_compute_are_counted(models, rm):
    def change(states):
        states[-2:, :] = np.nan
        return states

    found = check(changed(engine_run(*models("float32"), rm), change), rm, models)
    assert found.verdict == "different"
    assert found.layers[0].max_difference == math.inf
    assert "fake has no finite states at 7 of 30 tokens" in found.why  # of a response of one token there is one
    data = json.loads(json.dumps(json_of(found), allow_nan=False))
    assert data["layers"][0]["max_difference"] is None


@pytest.mark.parametrize("wrong", [1.0, math.nan, -math.inf])
def test_rewards_are_compared_too(models, rm, wrong):
    run = engine_run(*models("float32"), rm)
    others = [replace(run.responses[0], reward=run.responses[0].reward + wrong), *run.responses[1:]]
    found = check(replace(run, responses=others), rm, models)
    assert all(row.equal for row in found.layers)
    assert (found.verdict, found.rewards.equal) == ("different", False)
    assert found.rewards.max_difference == pytest.approx(1.0) or found.rewards.max_difference == math.inf
    assert found.why.startswith("the states are equal, but rewards differ by up to ")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_a_smaller_dtype_the_error_of_transformers_is_the_measure(models, rm, dtype):
    run = engine_run(*models(dtype), rm, dtype)
    found = check(run, rm, models)
    assert found.equal
    for row in found.layers:
        assert row.max_difference == 0
        assert 0 < row.error == row.transformers_error
    assert found.rewards.max_difference < 1e-5
    assert found.rewards.error == pytest.approx(found.rewards.transformers_error, rel=1e-3)
    assert f"transformers in {dtype}" in found.why

    def noise(times):
        generator = np.random.default_rng(0)

        def change(states):
            for column, row in enumerate(found.layers):
                part = states[:, column * D : (column + 1) * D]
                size = np.sqrt((part**2).mean())
                part += generator.normal(0, times * row.transformers_error * size, part.shape).astype(np.float32)
            return states

        return change

    assert check(changed(run, noise(1.4)), rm, models).equal
    more = check(changed(run, noise(4.0)), rm, models)
    assert not any(row.equal for row in more.layers)
    assert f"transformers in {dtype} errs by" in more.why


def test_output_logits_are_one_layer(models, llama, tokenizer):
    rm = random_head(SwiftConfig.of_logits(len(tokenizer)))
    rewards = score(llama, tokenizer, rm, *zip(*RESPONSES, strict=True))
    recorded = []
    for (prompt, response), reward in zip(RESPONSES, rewards, strict=True):
        with torch.no_grad():
            logits = llama(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        recorded.append(RecordedResponse(prompt, response, logits.numpy(), reward))
    run = EngineRun("fake", "1.0", "float32", "cpu", recorded)
    found = check(run, rm, models)
    assert found.equal
    assert [row.layer for row in found.layers] == ["logits"]
    assert "of the logits' size" in found.why
    other = check(changed(run, lambda states: 2 * states), rm, models)
    assert other.why.startswith("the output logits differ by ")


def test_where_transformers_has_no_numbers_there_is_nothing_to_compare_with(models, llama, tokenizer, rm):
    run = engine_run(llama, tokenizer, rm)
    broken = copy.deepcopy(llama)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight.fill_(math.inf)
    with pytest.raises(ValueError, match="transformers' own states of layer 2 are not finite in float32"):
        check(run, rm, lambda dtype: (broken, tokenizer))
    with pytest.raises(ValueError, match="transformers' own states of layer 2 are not finite in bfloat16"):
        check(replace(run, dtype="bfloat16"), rm, lambda dtype: (llama if dtype == "float32" else broken, tokenizer))


def test_a_run_without_responses_and_foreign_tokens_are_refused(models, rm):
    run = engine_run(*models("float32"), rm)
    with pytest.raises(ValueError, match="fake gave no responses to compare"):
        check(replace(run, responses=[]), rm, models)
    foreign = replace(run.responses[0], response_ids=[4] * 8 + [4000])
    with pytest.raises(ValueError, match="response 0 holds the token id 4000"):
        check(replace(run, responses=[foreign]), rm, models)


def test_teacher_forcing_pads_nothing_and_reads_every_layer_of_the_most_varied(models, rm):
    model, tokenizer = models("float32")
    run = engine_run(model, tokenizer, rm)
    found = teacher_force(model, tokenizer, rm, run.responses)
    assert [len(states) for states in found.states] == [9, 14, 1, 6]
    assert (found.varied, tuple(found.every.shape)) == (1, (4, 14, D))
    assert np.allclose(found.every[2], run.responses[1].states[:, D : 2 * D], atol=1e-5)
    assert found.rewards == pytest.approx([one.reward for one in run.responses], abs=1e-5)


def test_what_resembles_nothing_is_called_nothing():
    every = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    assert identify_states(every[2], every, own=2) is None
    assert identify_states(every[2] + 1e-3, every, own=2) is None
    assert identify_states(torch.ones(6, 8), every, own=2) is None
    assert identify_states(every[1], every, own=2) == "layer 1"
    assert identify_states(every[1] + 1e-3, every, own=2) == "layer 1"
    assert identify_states(every[1][:1], every[:, :1], own=0) == "layer 1"  # of one token there is no other
    assert identify_states(torch.roll(every[3], 1, dims=0), every, own=0) == "layer 3 of the token before"
    assert identify_states(torch.full((6, 8), math.nan), every, own=2) is None
    near = every[1] + 0.01 * torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    assert identify_states(torch.zeros(6, 8), torch.zeros(4, 6, 8), own=2) is None
    twins = torch.stack([every[0], every[1], every[1] + 0.02, every[3]])
    assert identify_states(near, twins, own=2) is None, "both layers are near: it would be a guess"
