import math

import pytest
import torch

from swift_rm import SwiftConfig, fit, score
from swift_rm.evaluation.auroc import within_question_auroc
from swift_rm.features.read_states import Features, extract_features
from swift_rm.training.fit import FitSettings, fit_features, split_questions
from swift_rm.training.losses import LOSSES
from tests.tiny_models import tiny_model
from tests.training.planted_states import CONFIG, auroc, planted, rollouts


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_finds_what_was_planted_on_fresh_questions(loss):
    rm = fit_features(planted(), CONFIG, FitSettings(loss=loss, lr=0.03))
    assert auroc(rm, planted(seed=1)) > 0.95


def test_the_folded_head_reads_raw_states_and_scores_as_while_training():
    features = planted()
    rm = fit_features(features, CONFIG)
    _, held_out = split_questions(features, 0.2, 0)
    members = torch.isin(features.question, held_out)
    with torch.no_grad():
        rewards = rm(features.states, features.offsets)[members].view(len(held_out), -1)
    by_question = within_question_auroc(rewards.numpy(), features.labels[members].view_as(rewards).numpy())
    assert float(torch.tensor(by_question).nanmean()) == pytest.approx(rm.config.training["validation_auroc_within"], abs=2e-4)


def test_the_best_epoch_is_kept_not_the_last():
    features = planted(noise=1.5)
    rms = [fit_features(features, CONFIG, FitSettings(lr=1.0, epochs=epochs, patience=99)) for epochs in range(1, 9)]
    best = [rm.config.training["validation_auroc_within"] for rm in rms]
    assert best == sorted(best), "more epochs may not make the kept weights worse"
    epoch = rms[-1].config.training["best_epoch"]
    assert epoch < 8, "the case is only of use if the last epoch is not the best"
    assert torch.equal(rms[-1].head.weight, rms[epoch - 1].head.weight)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    one, two, other = (fit_features(planted(), CONFIG, FitSettings(seed=seed, epochs=3)) for seed in (0, 0, 1))
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_questions_are_split_whole_and_mixed_ones_fall_on_both_sides():
    features = planted(questions=50)
    labels = torch.arange(len(features.labels)) % 2
    labels[features.question < 40] = 1  # forty questions all right, ten mixed
    train, held_out = split_questions(Features(features.states, features.offsets, labels, features.question), 0.2, 3)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(50))
    assert (held_out >= 40).sum() == 2
    assert (held_out < 40).sum() == 8


def test_the_calibration_is_honest_on_fresh_questions():
    features = planted(questions=300, noise=2.0)
    labels = features.labels * (torch.rand(len(features.labels), generator=torch.Generator().manual_seed(2)) < 0.6).long()
    rare = Features(features.states, features.offsets, labels, features.question)  # 30 % right
    rm = fit_features(rare, CONFIG)
    fresh = planted(questions=300, noise=2.0, seed=5)
    with torch.no_grad():
        probability = rm.probability(rm(fresh.states, fresh.offsets).numpy())
    expected = 0.6 * fresh.labels.double().mean()
    assert probability.mean() == pytest.approx(float(expected), abs=0.05)


def test_gate_off_and_constant_inputs():
    features = planted()
    features.states[:, 3] = 7.0
    rm = fit_features(features, SwiftConfig(8, (0,), gate=False), FitSettings(lr=0.03))
    assert rm.head.weight.shape == (1, 8)
    assert torch.isfinite(rm.head.weight).all()
    assert auroc(rm, planted(seed=1)) > 0.9


def test_labels_all_equal_too_few_questions_and_bad_settings_are_refused_with_counts():
    features = planted(questions=6)
    for value, word in ((0, "wrong"), (1, "right")):
        same = Features(features.states, features.offsets, torch.full_like(features.labels, value), features.question)
        with pytest.raises(ValueError, match=f"all 36 responses are {word}"):
            fit_features(same, CONFIG)
    labels = torch.where(features.question < 4, features.labels, 1)
    few = Features(features.states, features.offsets, labels, features.question)
    with pytest.raises(ValueError, match="only 4 of 6 questions have both right and wrong responses; at least 5"):
        fit_features(few, CONFIG)
    with pytest.raises(ValueError, match=r"validation must be .* got 1\.5"):
        FitSettings(validation=1.5)
    with pytest.raises(ValueError, match="epochs must be positive, got 0"):
        FitSettings(epochs=0)


def test_fit_reads_states_once_and_records_the_base_model(llama, tokenizer, make_rollout):
    made = rollouts(make_rollout)
    rm = fit(llama, tokenizer, made, SwiftConfig(32, (-1, 0), base_model="tiny"), lr=0.05)
    assert rm.config.layers == (3, 0)
    assert rm.config.fingerprint
    assert rm.config.training["questions"] + rm.config.training["validation_questions"] == 60
    rewards = score(llama, tokenizer, rm, [r.prompt_ids for r in made], [r.response_ids for r in made])
    right = [reward for reward, r in zip(rewards, made, strict=True) if r.label]
    wrong = [reward for reward, r in zip(rewards, made, strict=True) if not r.label]
    wins = sum(r > w for r in right for w in wrong) / len(right) / len(wrong)
    assert wins > 0.97
    assert sum(rm.probability(right)) / len(right) > 0.8


def test_features_are_the_states_in_the_rollouts_order(make_rollout):
    model, config = tiny_model("gpt2"), SwiftConfig(32, (1, 3), position="token")
    made = [
        make_rollout("a", response_ids=[5, 6, 7]),
        make_rollout("b", response_ids=[8], label=0),
        make_rollout("a", response_ids=[9] * 5),
    ]
    features = extract_features(model, None, made, config, batch_size=2)
    assert features.offsets.tolist() == [0, 3, 4, 9]
    assert (features.question.tolist(), features.labels.tolist()) == ([0, 1, 0], [1, 0, 1])
    with torch.no_grad():
        for i, rollout in enumerate(made):
            hidden = model(torch.tensor([rollout.prompt_ids + rollout.response_ids]), output_hidden_states=True).hidden_states
            expected = torch.cat([hidden[1][0, 3:], hidden[3][0, 3:]], -1)
            assert torch.allclose(features.states[features.offsets[i] : features.offsets[i + 1]], expected, atol=1e-6)
    states, offsets = features.take(torch.tensor([2, 0]))
    assert offsets.tolist() == [0, 5, 8]
    assert torch.equal(states, torch.cat([features.states[4:9], features.states[0:3]]))


def test_too_much_memory_missing_labels_and_nan_states_are_refused(make_rollout):
    model, config = tiny_model("llama"), SwiftConfig(32, (0, 1))
    made = [make_rollout("a"), make_rollout("b", label=0)]
    with pytest.raises(ValueError, match=r"2 responses \(4 tokens x 64 features\) need .* GiB: read fewer layers \(now 2\)"):
        extract_features(model, None, made, config, max_bytes=100)
    with pytest.raises(ValueError, match=r"1 of 2 rollouts have no label \(the first is number 1\)"):
        extract_features(model, None, [made[0], make_rollout("b", label=None)], config)
    with torch.no_grad():
        model.get_input_embeddings().weight[6] = math.nan
    with pytest.raises(ValueError, match=r"response 1 \(question 'b'\) has NaN or Inf in the states of layer 0"):
        extract_features(model, None, [make_rollout("a", response_ids=[5, 4]), make_rollout("b", response_ids=[6, 5])], config)


def test_prefixes_train_a_reward_that_knows_before_the_end():
    """The sign is planted on the second token: a head that learnt from beginnings must know it there already."""
    generator = torch.Generator().manual_seed(0)
    questions, n, size = 60, 6, 8
    labels = torch.randint(0, 2, (questions * n,), generator=generator)
    states = torch.randn(questions * n * size, 4, generator=generator) * 0.3
    states[1::size, 0] += (2 * labels - 1).float()  # an early hint
    states[size - 1 :: size, 1] += 4.0 * (2 * labels - 1)  # the last token tells plainly
    offsets = torch.arange(0, len(states) + 1, size)
    features = Features(states, offsets, labels, torch.arange(questions).repeat_interleave(n))
    early = torch.arange(0, len(states), size)[:, None] + torch.arange(3)  # the first three tokens of each

    def auroc_early(prefixes, seed):
        rm = fit_features(features, SwiftConfig(4, (0,)), FitSettings(lr=0.03, prefixes=prefixes, seed=seed))
        with torch.no_grad():
            rewards = rm(states[early.flatten()], torch.arange(0, early.numel() + 1, 3)).view(questions, n)
        assert rm.config.training.get("prefixes", 0) == prefixes
        return float(torch.tensor(within_question_auroc(rewards.numpy(), labels.view(questions, n).numpy())).nanmean())

    with_prefixes, without = ([auroc_early(prefixes, seed) for seed in range(4)] for prefixes in (1.0, 0.0))
    assert min(with_prefixes) > 0.9
    assert sum(with_prefixes) / 4 > sum(without) / 4 + 0.02, "single heads differ by their luck, four of them less"


@pytest.mark.parametrize(
    ("settings", "message"), [({"prefixes": 1.5}, "from 0 to 1, got 1.5"), ({"prefixes": 1, "loss": "dpo"}, "got 'dpo'")]
)
def test_prefixes_that_cannot_be_had_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FitSettings(**settings)
