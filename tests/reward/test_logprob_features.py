import json
import math

import pytest
import torch

from swift_rm import SwiftConfig
from swift_rm.reward.logprob_features import VERSION, LogprobFeatures, feature_names, response_features
from swift_rm.training.input_standardisation import Scaling


def logs(*probabilities):
    return [math.log(p) for p in probabilities]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def random_responses(lengths, top, seed=0, vocabulary=30):
    """Return log-probabilities of random tokens: the chosen one need not be among the likeliest."""
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.log_softmax(2 * torch.randn(sum(lengths), vocabulary, generator=generator), dim=-1)
    chosen = logprobs.gather(1, torch.randint(vocabulary, (sum(lengths), 1), generator=generator)).squeeze(1)
    return chosen, logprobs.topk(top, dim=1).values, torch.tensor([0, *lengths]).cumsum(0)


def test_every_feature_of_two_tokens_with_three_alternatives_by_hand():
    chosen = torch.tensor(logs(0.25, 0.05))
    top = torch.tensor([logs(0.5, 0.25, 0.125), logs(0.8, 0.1, 0.05)])
    first, second = response_features(chosen, top, torch.tensor([0, 2])).tolist()
    m1, m2 = 0.125 - 0.001, 0.05 - 0.001  # what others have, beyond a server's rounding
    h1 = -(0.5 * math.log(0.5) + 0.25 * math.log(0.25) + 0.125 * math.log(0.125) + m1 * math.log(m1))
    h2 = -(0.8 * math.log(0.8) + 0.1 * math.log(0.1) + 0.05 * math.log(0.05) + m2 * math.log(m2))
    l1, l2, r1, r2 = math.log(0.25), math.log(0.05), math.log(2), math.log(16)
    expected = {
        "logprob": (l1, l2), "prob": (0.25, 0.05),
        "unlikely_1": (sigmoid(4 * (-1 - l1)), sigmoid(4 * (-1 - l2))),
        "unlikely_2": (sigmoid(4 * (-2 - l1)), sigmoid(4 * (-2 - l2))),
        "unlikely_4": (sigmoid(4 * (-4 - l1)), sigmoid(4 * (-4 - l2))),
        "top_1": logs(0.5, 0.8), "top_2": logs(0.25, 0.1), "top_3": logs(0.125, 0.05),
        "prob_1": (0.5, 0.8), "prob_2": (0.25, 0.1), "prob_3": (0.125, 0.05),
        "margin_1": logs(2, 8), "margin_2": logs(2, 2),
        "rank_0": (0, 0), "rank_1": (1, 0), "rank_2": (0, 1),
        "entropy": (h1, h2), "missing": (m1, m2), "regret": (r1, r2), "most_entropy": (h1, max(h1, h2)),
        "most_regret": (r1, r2),
        "mean_logprob": (l1, (l1 + l2) / 2), "mean_entropy": (h1, (h1 + h2) / 2), "mean_regret": (r1, (r1 + r2) / 2),
        "mean_missing": (m1, (m1 + m2) / 2),
        "previous_logprob": (0, l1), "previous_entropy": (0, h1), "previous_regret": (0, r1), "previous_missing": (0, m1),
        "before_logprob": (0, 0), "before_entropy": (0, 0), "before_regret": (0, 0), "before_missing": (0, 0),
        "least_logprob": (l1, l2), "sum_logprob": (l1 / 10, (l1 + l2) / 10),
        "log_position": (0, math.log(2)), "position": (0, 1 / 64),
    }  # fmt: skip
    names = feature_names(3)
    assert set(expected) == set(names)
    assert h1 > h2 > 0, "so that the most so far is not the latest"
    for place, name in enumerate(names):
        assert (first[place], second[place]) == pytest.approx(tuple(expected[name]), abs=2e-6), name


def test_the_token_before_the_last_is_remembered_and_a_long_response_has_a_last_position():
    chosen = torch.linspace(-3, -0.1, 300)
    features = dict(
        zip(feature_names(0), response_features(chosen, chosen.new_empty(300, 0), torch.tensor([0, 300])).T, strict=True)
    )
    assert torch.equal(features["before_logprob"][2:], chosen[:-2]) and features["before_logprob"][:2].tolist() == [0, 0]
    torch.testing.assert_close(features["mean_logprob"], chosen.cumsum(0) / torch.arange(1, 301))
    assert features["position"][64] == 1 and features["position"].max() == 4 == features["position"][256]
    assert torch.equal(features["least_logprob"], torch.full((300,), -3.0))


@pytest.mark.parametrize("top", range(21))
def test_names_and_width_agree_for_every_number_of_alternatives(top):
    names = feature_names(top)
    chosen, alternatives, offsets = random_responses([2, 1], top)
    features = response_features(chosen, alternatives, offsets)
    assert features.shape == (3, len(names)) and len(set(names)) == len(names)
    assert SwiftConfig.of_top_logprobs(top).width == len(names)
    columns = dict(zip(names, features.T, strict=True))
    for i in range(1, top + 1):
        assert torch.equal(columns[f"top_{i}"], alternatives[:, i - 1])
    for i in range(1, min(4, top - 1) + 1):
        assert torch.equal(columns[f"margin_{i}"], alternatives[:, i - 1] - alternatives[:, i])
    assert torch.equal(columns["prob"], chosen.exp()) and columns["log_position"].tolist() == pytest.approx([0, math.log(2), 0])
    if top:
        assert torch.equal(columns["regret"], (alternatives[:, 0] - chosen).clamp_min(0))
        ranks = torch.stack([columns[f"rank_{i}"] for i in range(min(4, top))], dim=1)
        assert torch.equal(ranks.sum(1), ((alternatives > chosen[:, None]).sum(1) < min(4, top)).float())


def test_there_are_twelve_features_of_chosen_tokens_alone_and_sixty_two_of_twenty_alternatives():
    assert (len(feature_names(0)), len(feature_names(20))) == (12, 62)


@pytest.mark.parametrize("top", [0, 5, 20])
def test_step_by_step_gives_what_whole_responses_give(top):
    lengths = [7, 1, 12, 7, 3]
    chosen, alternatives, offsets = random_responses(lengths, top, seed=3)
    whole = response_features(chosen, alternatives, offsets)
    for row, length in enumerate(lengths):
        maker = LogprobFeatures(top)
        maker.begin(1)
        for step in range(length):
            place = int(offsets[row]) + step
            found = maker.step(chosen[place : place + 1], alternatives[place : place + 1])
            torch.testing.assert_close(found[0], whole[place], rtol=0, atol=1e-6)


def test_rows_are_kept_in_any_order_and_one_may_be_kept_twice():
    chosen, alternatives, _ = random_responses([4] * 3, 5, seed=4)
    chosen, alternatives = chosen.view(3, 4), alternatives.view(3, 4, 5)
    whole = response_features(chosen.flatten(), alternatives.flatten(0, 1), torch.arange(0, 13, 4)).view(3, 4, -1)
    maker = LogprobFeatures(5)
    maker.begin(3)
    for step in range(2):
        maker.step(chosen[:, step], alternatives[:, step])
    rows = torch.tensor([2, 0, 2])
    maker.select(rows)
    other = chosen[rows, 2].clone()
    other[2] = -7.0  # what a copy goes on with is its own
    found = maker.step(other, alternatives[rows, 2])
    torch.testing.assert_close(found[:2], whole[rows[:2], 2])
    assert found[2, 0] == -7 and found[2, feature_names(5).index("previous_logprob")] == chosen[2, 1]


def test_begin_forgets_the_response_before():
    maker = LogprobFeatures(2)
    top = torch.tensor([[-0.5, -1.5]])
    maker.begin(1)
    first = maker.step(torch.tensor([-1.5]), top)
    maker.step(torch.tensor([-0.5]), top)
    maker.begin(1)
    assert torch.equal(maker.step(torch.tensor([-1.5]), top), first)


def test_alternatives_rounded_to_more_than_everything_miss_nothing():
    features = response_features(torch.tensor([-0.1]), torch.tensor([[-0.1, -2.0]]), torch.tensor([0, 1]))[0]
    found = dict(zip(feature_names(2), features.tolist(), strict=True))
    assert found["missing"] == 0 and found["regret"] == 0 and math.isfinite(found["entropy"])


def test_mass_within_a_servers_rounding_is_not_missing_and_what_hardly_varies_is_not_blown_up():
    three = torch.tensor([logs(0.7, 0.2, 0.0995), logs(0.7, 0.2, 0.1)])  # 0.0005 is another token's, and nothing is
    features = response_features(three[:, 0], three, torch.tensor([0, 1, 2]))
    place = feature_names(3).index("missing")
    assert features[:, place].tolist() == [0, 0]
    measured = Scaling(torch.zeros(3), torch.tensor([1e-6, 0.5, 1.0]))
    assert measured.of(slice(None), "feature", 1, least=0.01).scale.tolist() == pytest.approx([0.01, 0.5, 1.0])
    assert measured.of(slice(None), "feature", 1).scale[0] == pytest.approx(1e-6), "hidden states have no scale of their own"


def test_a_configuration_of_log_probabilities_survives_json():
    config = SwiftConfig.of_top_logprobs(5, base_model="org/model", heads=2)
    assert (config.source, config.top_logprobs, config.features_version, config.layers) == ("top_logprobs", 5, VERSION, (-1,))
    assert SwiftConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.for_base(6).layers == (6,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 62}, "5 alternatives make 44 features, got 62"),
        ({"features_version": VERSION + 1}, f"features_version must be {VERSION}, which this package makes, got {VERSION + 1}"),
        ({"features_version": None}, "features_version must be .* got None"),
        ({"top_logprobs": 21}, "top_logprobs must be 0 to 20 alternatives, got 21"),
        ({"top_logprobs": "5"}, "top_logprobs must be 0 to 20 alternatives, got '5'"),
        ({"top_logprobs": None}, "top_logprobs must be 0 to 20 alternatives, got None"),
        ({"region": "after:</think>"}, "reads whole responses, got region 'after:</think>'"),
        ({"position": "token"}, "read after the last layer and where a token is generated, got .* position 'token'"),
        ({"layers": [-2]}, r"read after the last layer .* got layers \(-2,\)"),
        ({"source": "logits"}, "top_logprobs and features_version go with the source 'top_logprobs', not 'logits'"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(change, said):
    known = SwiftConfig.of_top_logprobs(5).to_dict()
    with pytest.raises(ValueError, match=said):
        SwiftConfig.from_dict({**known, **change})


def test_logits_are_read_over_the_vocabulary_and_perhaps_of_a_region():
    config = SwiftConfig.of_logits(101, region="after:</think>")
    assert (config.width, config.source, config.layers, config.top_logprobs) == (101, "logits", (-1,), None)
    assert SwiftConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
