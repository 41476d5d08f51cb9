"""Several heads that judge together: one reward model, whose reward is their mean less a multiple of their spread."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from swift_rm import StreamingReward, SwiftConfig, SwiftRewardModel, best_of_n, score
from swift_rm.cli.main import main
from swift_rm.models.load import ASSETS
from swift_rm.reward.head import combine, spread
from swift_rm.reward.reward_model import CONFIG, WEIGHTS
from swift_rm.scoring.score import score_rollouts
from swift_rm.scoring.token_scoring import score_tokens
from tests.generate_calls import SAMPLED, cut_at_end, prompt_batch
from tests.reward_models import make_rm
from tests.tiny_models import tiny_model


def members(count=3, **config):
    torch.manual_seed(1)
    models = [SwiftRewardModel(SwiftConfig(**{"hidden_size": 32, "layers": (0, 2, 3), **config})) for _ in range(count)]
    with torch.no_grad():
        for parameter in (p for model in models for p in model.parameters()):
            parameter.normal_()
    return models


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("pessimism", [0.0, 1.5])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_reward_is_the_mean_less_the_spread_of_what_each_head_says(gate, pessimism, count):
    alone = members(count, gate=gate)
    together = SwiftRewardModel.ensemble(alone, pessimism)
    features, offsets = torch.randn(9, 96), torch.tensor([0, 4, 5, 9])
    each = torch.stack([rm(features, offsets) for rm in alone], dim=1)
    assert torch.allclose(together.head_rewards(features, offsets), each, rtol=1e-5, atol=1e-5)
    mean = each.mean(1)
    deviation = ((each - mean[:, None]) ** 2).mean(1).sqrt()
    assert torch.allclose(together(features, offsets), mean - pessimism * deviation, atol=1e-5)
    assert together.head.weight.shape == (count * (1 + gate), 96)
    assert (together.head.gate, together.config.heads) == (gate, count)


def test_one_head_is_itself_however_pessimistic():
    (rm,) = members(1)
    features, offsets = torch.randn(4, 96), torch.tensor([0, 4])
    assert torch.equal(rm.with_config(pessimism=3.0)(features, offsets), rm(features, offsets))
    assert spread(torch.tensor([[2.0]])).tolist() == [0.0]


def test_disagreement_lowers_the_reward_and_nan_stays_nan():
    rewards = torch.tensor([[1.0, 1.0], [5.0, -1.0], [math.nan, 1.0]])
    assert combine(rewards, 0.0).tolist()[:2] == [1.0, 2.0]
    assert combine(rewards, 1.0).tolist()[:2] == [1.0, -1.0]
    assert math.isnan(combine(rewards, 0.0)[2])
    assert math.isnan(combine(rewards, 1.0)[2])


def test_tokens_have_the_means_of_the_heads(llama, tokenizer):
    alone = members()
    together = SwiftRewardModel.ensemble(alone, 1.0)
    (one,) = score_tokens(llama, None, together, [[20, 21]], [[22, 23, 24]])
    each = [score_tokens(llama, None, rm, [[20, 21]], [[22, 23, 24]])[0] for rm in alone]
    for name in ("gate", "reward"):
        expected = torch.tensor([getattr(rm, name) for rm in each]).mean(0).tolist()
        assert getattr(one, name) == pytest.approx(expected, abs=1e-5)
    assert one.response_reward == pytest.approx(score(llama, None, together, [[20, 21]], [[22, 23, 24]])[0], abs=1e-5)


def test_every_head_learns():
    rm = SwiftRewardModel.ensemble(members(), 0.5)
    rm(torch.randn(9, 96), torch.tensor([0, 4, 5, 9])).square().sum().backward()
    assert bool((rm.head.weight.grad.abs().sum(1) > 0).all())
    same = SwiftRewardModel.ensemble(members(1) * 2, 0.5)  # no spread, whose gradient would be 0 / 0
    same(torch.randn(9, 96), torch.tensor([0, 4, 5, 9])).sum().backward()
    assert bool(same.head.weight.grad.isfinite().all())


@pytest.mark.parametrize("position", ["generating", "token"])
@pytest.mark.parametrize("gate", [True, False])
def test_streaming_gives_the_rewards_of_score(llama, tokenizer, position, gate):
    torch.manual_seed(3)
    rm = make_rm(position=position, gate=gate, heads=4, pessimism=0.7)
    inputs = prompt_batch(llama, tokenizer)
    with StreamingReward(llama, rm, tokens=True) as stream:
        out = llama.generate(**inputs, max_new_tokens=20, num_return_sequences=3, eos_token_id=[7, 11, 13, 17, 19], **SAMPLED)
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True) for _ in range(3)]
    responses = [cut_at_end(row, [7, 11, 13, 17, 19]) for row in out[:, 5:].tolist()]
    assert len({len(response) for response in responses}) > 1, "rows should end at different steps"
    assert stream.rewards.tolist() == pytest.approx(score(llama, None, rm, prompts, responses), abs=1e-4)
    for found, expected in zip(stream.token_scores, score_tokens(llama, None, rm, prompts, responses), strict=True):
        assert found.gate.tolist() == pytest.approx(expected.gate, abs=1e-5)
        assert found.reward.tolist() == pytest.approx(expected.reward, abs=1e-4)
    assert stream.state_bytes == 4 * 12, "three floats a head"


@pytest.mark.parametrize("position", ["generating", "token"])
def test_best_of_n_ranks_by_the_ensemble(llama, tokenizer, position):
    rm = make_rm(position=position, heads=3, pessimism=2.0)
    (result,) = best_of_n(llama, tokenizer, rm, ["27+15"], n=9, max_new_tokens=24, prune="halving")
    whole = [one for one in result.candidates if one.complete]
    assert len(whole) < 9
    expected = score(llama, tokenizer, rm, ["27+15"] * len(whole), [one.token_ids for one in whole])
    assert [one.reward for one in whole] == pytest.approx(expected, abs=1e-4)
    assert expected == sorted(expected, reverse=True)


def test_states_that_are_not_finite_are_named_as_ever():
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[17] = math.nan
    with pytest.raises(ValueError, match=r"response 1 has NaN or Inf in the states of layer 0 \(1 responses"):
        score(model, None, make_rm(heads=2, pessimism=1.0), [[5], [5, 17]], [[6, 7], [8, 9]])


def test_the_spread_is_written_beside_the_reward(llama, make_rollout):
    rollouts = [make_rollout(response_ids=ids, prompt_ids=[20, 21], extra={"seen": 1}) for ids in ([5, 6], [7, 8, 9])]
    alone = members()
    each = torch.tensor([[one.reward for one in score_rollouts(llama, None, rm, rollouts)] for rm in alone])
    together = score_rollouts(llama, None, SwiftRewardModel.ensemble(alone, 0.5), rollouts)
    spreads = [one.extra["reward_spread"] for one in together]
    assert spreads == pytest.approx(each.std(0, correction=0).tolist(), abs=1e-5)
    assert [one.reward for one in together] == pytest.approx((each.mean(0) - 0.5 * torch.tensor(spreads)).tolist(), abs=1e-5)
    assert all(set(one.extra) == {"seen", "probability"} for one in score_rollouts(llama, None, alone[0], rollouts))


def test_the_commands_read_an_ensemble(capsys, tmp_path):
    one = SwiftRewardModel.from_pretrained(ASSETS / "tiny-reasoner-reward")
    other = one.with_config()
    with torch.no_grad():
        other.head.bias[-1] += 2.0
    SwiftRewardModel.ensemble([one, other], 0.5).save_pretrained(tmp_path / "rm")
    record = {"prompt": [{"role": "user", "content": "27+15"}], "response": "<think>27+15=42, </think><answer>42</answer>"}
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    found = {}
    for name in ("tiny-reasoner-reward", str(tmp_path / "rm")):
        models, files = ["--model", "tiny-reasoner", "--reward-model", name], ["--input", str(tmp_path / "in.jsonl"), "--out"]
        assert main(["score", *models, *files, str(tmp_path / "out.jsonl")]) == 0
        found[name] = json.loads((tmp_path / "out.jsonl").read_text())
        assert main(["explain", *models, *files, str(tmp_path / "view.html")]) == 0
        assert ("the means of 2 heads" in (tmp_path / "view.html").read_text()) == (name == str(tmp_path / "rm"))
    capsys.readouterr()
    single, pair = found.values()
    assert "reward_spread" not in single
    assert pair["reward_spread"] == pytest.approx(1.0, abs=1e-5)
    assert pair["reward"] == pytest.approx(single["reward"] + 1.0 - 0.5, abs=1e-5)


def test_a_saved_ensemble_is_the_same_when_loaded_and_its_card_says_what_it_is(tmp_path):
    alone = [rm.with_config(training={"questions": 12, "seed": seed}) for seed, rm in enumerate(members())]
    rm = SwiftRewardModel.ensemble(alone, 0.5)
    rm.save_pretrained(tmp_path)
    loaded = SwiftRewardModel.from_pretrained(tmp_path)
    features, offsets = torch.randn(4, 96), torch.tensor([0, 1, 4])
    assert loaded.config == rm.config
    assert torch.equal(loaded(features, offsets), rm(features, offsets))
    card = (tmp_path / "README.md").read_text()
    for expected in ("3 linear heads of 582 parameters in all, whose rewards' mean minus 0.5 x their deviation is the reward",
                     "| heads | 3 |", "| pessimism | 0.5 |", "| questions | 12 |", "| seed | [0, 1, 2] |"):  # fmt: skip
        assert expected in card
    stored = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**stored, "heads": 2}))
    with pytest.raises(ValueError, match=r"expected .*\(4, 96\).*found .*\(6, 96\)"):
        SwiftRewardModel.from_pretrained(tmp_path)


def test_models_saved_before_there_were_ensembles_load_unchanged(tmp_path):
    (rm,) = members(1)
    stored = {key: value for key, value in rm.config.to_dict().items() if key not in ("heads", "pessimism")}
    (tmp_path / CONFIG).write_text(json.dumps(stored))
    save_file({"head.weight": rm.head.weight.detach(), "head.bias": rm.head.bias.detach()}, tmp_path / WEIGHTS)
    loaded = SwiftRewardModel.from_pretrained(tmp_path)
    assert loaded.config == rm.config
    assert torch.equal(loaded.head.weight, rm.head.weight)


def test_heads_of_different_kinds_are_refused_and_what_differs_is_shown():
    one, two = members(1)[0], members(1, position="token", gate=False)[0]
    with pytest.raises(ValueError, match=r"differ: \{'position': \['generating', 'token'\], 'gate': \[True, False\]\}"):
        SwiftRewardModel.ensemble([one, two])
    with pytest.raises(ValueError, match="at least one reward model, got none"):
        SwiftRewardModel.ensemble([])


def test_ensembles_can_be_joined_and_forget_their_calibration():
    calibration = {"method": "temperature", "scale": 2.0, "shift": 0.0}
    pair = SwiftRewardModel.ensemble(members(2), 1.0)
    single = SwiftRewardModel(replace(pair.config, heads=1, pessimism=0.0, calibration=calibration))
    together = SwiftRewardModel.ensemble([single, pair], 0.25)
    assert (together.config.heads, together.config.pessimism, together.config.calibration) == (3, 0.25, None)
    assert torch.equal(together.head.weight[2:], pair.head.weight)
