import json
import math
import warnings
from dataclasses import replace

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, fit
from swift_rm.features.record_features import record_features
from swift_rm.records.rollouts import Rollout
from swift_rm.reward.logprob_features import feature_names, response_features
from swift_rm.reward.recorded_logprobs import is_empty
from swift_rm.scoring.record_rewards import record_rewards
from swift_rm.training.fit import fit_rollouts
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.head_grid import HeadPlan, plan_grid


def api_record(question, chosen, top, label=1, model="a-model", **extra):
    said = {"token_logprobs": chosen, "top_logprobs": top, **extra}
    return Rollout(question, "p", [], "r", [], "stop", label=label, model={"id": model, "revision": None}, extra=said)


def random_records(questions, n, top, seed=0, slip=0.0):
    """Return records of random log-probabilities; of a wrong response one token was ``slip`` less likely."""
    generator = torch.Generator().manual_seed(seed)

    def record(question, label):
        length = int(torch.randint(3, 9, (1,), generator=generator))
        logprobs = torch.log_softmax(2 * torch.randn(length, 40, generator=generator), dim=-1).sort(descending=True).values
        chosen = logprobs[:, 0].clone()
        chosen[int(torch.randint(length, (1,), generator=generator))] -= slip * (1 - label)
        return api_record(f"q{question}", chosen.tolist(), logprobs[:, :top].tolist(), label)

    return [record(question, place % 2) for question in range(questions) for place in range(n)]


def reward_model(top, heads=1, **config):
    rm = SwiftRewardModel(SwiftConfig.of_top_logprobs(top, heads=heads, **config))
    with torch.no_grad():
        for parameter in rm.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(7))
    return rm


def slow_rewards(rm, rollout):
    """Return each head's reward of one response, made on its own."""
    chosen = torch.tensor(rollout.extra["token_logprobs"])
    top = torch.tensor(rollout.extra["top_logprobs"])[:, : rm.config.top_logprobs]
    offsets = torch.tensor([0, len(chosen)])
    return rm.head_rewards(response_features(chosen, top, offsets), offsets)[0].tolist()


def test_features_of_records_are_those_of_each_response_in_the_given_order():
    rollouts = random_records(3, 2, 5)
    features = record_features(rollouts, 4, batch_size=4)
    assert features.labels.tolist() == [0, 1] * 3 and features.question.tolist() == [0, 0, 1, 1, 2, 2]
    assert features.states.dtype == torch.float32 and features.states.shape[1] == len(feature_names(4))
    for i, rollout in enumerate(rollouts):
        chosen, top = (torch.tensor(rollout.extra[key]) for key in ("token_logprobs", "top_logprobs"))
        alone = response_features(chosen, top[:, :4], torch.tensor([0, len(chosen)]))
        torch.testing.assert_close(features.states[features.offsets[i] : features.offsets[i + 1]], alone)


def test_rewards_of_records_are_each_heads_whatever_the_batch():
    rollouts, rm = random_records(4, 3, 5), reward_model(5, heads=3)
    expected = torch.tensor([slow_rewards(rm, rollout) for rollout in rollouts])
    for batch_size in (1, 5, 100):
        torch.testing.assert_close(record_rewards(rm, rollouts, batch_size=batch_size), expected)


def test_the_end_token_is_neither_trained_on_nor_scored():
    (rollout,) = random_records(1, 1, 5)
    longer = {"token_logprobs": [*rollout.extra["token_logprobs"], -0.5], "end_token": True}
    longer["top_logprobs"] = [*rollout.extra["top_logprobs"], [-0.5] * 5]
    local = replace(rollout, prompt_ids=[1], response_ids=[3] * len(longer["token_logprobs"]), extra=longer)
    rm = reward_model(5)
    assert torch.equal(record_rewards(rm, [local]), record_rewards(rm, [rollout]))
    assert torch.equal(record_features([local], 5).states, record_features([rollout], 5).states)
    unknown = replace(local, extra={key: value for key, value in longer.items() if key != "end_token"})
    with pytest.raises(ValueError, match=r"response 0 \(question 'q0'\): its record does not say whether its last token ends it"):
        record_rewards(rm, [unknown])
    assert record_rewards(rm, [replace(unknown, finish_reason="length")]).isfinite().all()


def test_a_response_of_the_end_token_alone_has_no_reward_and_trains_nothing():
    rollouts = random_records(2, 1, 5)
    empty = [api_record("e", [-0.1], [[-0.1] * 5], end_token=True), api_record("e", [], [])]
    assert list(map(is_empty, [*empty, *rollouts])) == [True, True, False, False]
    rewards = record_rewards(reward_model(5), [empty[0], rollouts[0], empty[1], rollouts[1]], batch_size=1)
    assert rewards.isnan().flatten().tolist() == [True, False, True, False]
    assert torch.equal(rewards[[1, 3]], record_rewards(reward_model(5), rollouts))
    with pytest.raises(ValueError, match=r"^response 2 \(question 'e'\) has no token but the end token"):
        record_features([*rollouts, empty[0]], 5)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"token_logprobs": None}, "it has no 'token_logprobs'"),
        ({"token_logprobs": [-1.0, None]}, "the log-probability of token 1 is missing"),
        ({"token_logprobs": [-1.0, 0.5]}, "the log-probability of token 1 must be at most 0, got 0.5"),
        ({"top_logprobs": [[-1.0, -2.0], [-1.0]]}, "token 1 has 1 alternatives, but the reward model reads 2: .*--top 1"),
        ({"top_logprobs": None}, "token 0 has 0 alternatives, but the reward model reads 2: .*top_logprobs=2"),
        (
            {"top_logprobs": [[-1.0, -2.0], [-1.0, math.nan]]},
            "the log-probability of an alternative of token 1 must be at most 0, got nan",
        ),
        ({"top_logprobs": [[-1.0, -2.0]]}, "there are 2 tokens' log-probabilities, but alternatives of 1 tokens"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_with_its_question(extra, said):
    good = api_record("q1", [-1.0, -2.0], [[-1.0, -2.0], [-1.0, -2.0]])
    rollouts = [good, good, replace(good, question_id="q7", extra={**good.extra, **extra})]
    for read in (lambda: record_features(rollouts, 2, batch_size=2), lambda: record_rewards(reward_model(2), rollouts)):
        with pytest.raises(ValueError, match=rf"^response 2 \(question 'q7'\): {said}"):
            read()


def test_labels_and_memory_are_asked_for_before_anything_is_read():
    rollouts = random_records(2, 2, 5)
    with pytest.raises(ValueError, match=r"1 of 4 rollouts have no label \(the first is number 3\)"):
        record_features([*rollouts[:3], replace(rollouts[3], label=None)], 5)
    with pytest.raises(ValueError, match=r"the features of 4 responses .* more than max_bytes .* alternatives \(now 5\)"):
        record_features(rollouts, 5, max_bytes=100)


def test_a_head_that_reads_something_else_is_refused_by_name():
    rollouts = random_records(6, 2, 5)
    for config, reads in (
        (SwiftConfig(8, (-1,), base_model="org/m"), r"'hidden' reads hidden states.*give --model, the language model \(org/m\)"),
        (SwiftConfig.of_logits(40), "'logits' reads output logits, which records do not hold: give --model"),
    ):
        with pytest.raises(ValueError, match=reads):
            record_rewards(SwiftRewardModel(config), rollouts)
        with pytest.raises(ValueError, match=reads):
            fit(None, None, rollouts, config)


def test_another_models_records_are_warned_of_and_the_same_models_are_not():
    rollouts = random_records(2, 2, 5)
    with pytest.warns(UserWarning, match="4 of 4 rollouts were sampled by a-model, but the reward model was trained on other"):
        record_rewards(reward_model(5, base_model="other"), rollouts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record_rewards(reward_model(5, base_model="a-model"), rollouts)
        record_rewards(reward_model(5), rollouts)


def test_a_head_is_trained_without_any_model_and_knows_whose_records_they_were(tmp_path):
    rollouts = random_records(60, 4, 5, slip=2.0)
    rm = fit(None, None, rollouts[:160], SwiftConfig.of_top_logprobs(5), epochs=15)
    assert (rm.config.base_model, rm.config.source, rm.config.training["questions"]) == ("a-model", "top_logprobs", 32)
    rewards = record_rewards(rm, rollouts[160:]).flatten()
    labels = torch.tensor([rollout.label for rollout in rollouts[160:]])
    assert (rewards[labels == 1][:, None] > rewards[labels == 0]).double().mean() > 0.85
    rm.save_pretrained(tmp_path)
    again = SwiftRewardModel.from_pretrained(tmp_path)
    torch.testing.assert_close(record_rewards(again, rollouts[160:]).flatten(), rewards)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "features_version": 9}))
    with pytest.raises(ValueError, match="features_version must be 1, which this package makes, got 9"):
        SwiftRewardModel.from_pretrained(tmp_path)


def test_records_of_several_models_are_warned_of_and_none_becomes_the_base_model():
    mixed = [replace(one, model={"id": "b"}) if i % 3 == 0 else one for i, one in enumerate(random_records(12, 4, 5))]
    with pytest.warns(UserWarning, match="rollouts were sampled by a-model, so b is not recorded as the base model"):
        rm = fit(None, None, mixed, SwiftConfig.of_top_logprobs(5), epochs=1)
    assert rm.config.base_model is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(None, None, mixed, SwiftConfig.of_top_logprobs(5, base_model="b"), epochs=1).config.base_model == "b"
        nameless = [replace(one, model={}) for one in mixed]
        assert fit(None, None, nameless, SwiftConfig.of_top_logprobs(5), epochs=1).config.base_model is None


def test_a_bank_is_trained_from_records_but_has_no_layers_to_vary():
    config, settings = SwiftConfig.of_top_logprobs(5), FitSettings(epochs=2)
    judged = fit_rollouts(
        None, None, random_records(12, 4, 5), plan_grid(config, settings, loss=["bce", "dpo"], gate=[True, False])
    )
    assert [one.plan.name for one in judged] == [
        "loss=bce gate=True",
        "loss=bce gate=False",
        "loss=dpo gate=True",
        "loss=dpo gate=False",
    ]
    with pytest.raises(ValueError, match="layers cannot be varied: the source 'top_logprobs' is made after the last layer"):
        plan_grid(config, settings, layers=[(-1,), (-2,)])
    with pytest.raises(ValueError, match=r"got .* position 'token'"):
        plan_grid(config, settings, position=["generating", "token"])
    with pytest.raises(ValueError, match="a reward model of the source 'hidden' reads hidden states"):
        fit_rollouts(None, None, random_records(12, 4, 5), [HeadPlan(SwiftConfig(8, (-1,)), settings)])
