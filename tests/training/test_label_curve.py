"""The label curve: which questions it draws, and its figures by a slow reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from swift_rm import SwiftConfig
from swift_rm.features.read_states import Features
from swift_rm.selection.rules import best, reward_vote, shrunk_vote
from swift_rm.training.fit import fit_bank
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.head_grid import HeadPlan
from swift_rm.training.label_curve import SomeQuestions, draw_questions, label_counts, label_curve, question_figures
from swift_rm.training.question_split import split_questions

HIDDEN, VIEWS = 4, (("token", "response"), ("generating", "response"))
CONFIG = SwiftConfig(HIDDEN, (0,), position="token")


def make_features(questions=40, responses=4, seed=0, layers=1, views=1, mixed=None):
    """Responses of 2 to 4 tokens whose states tell, noisily, which are right; only the first ``mixed`` questions have both."""
    draw = torch.Generator().manual_seed(seed)
    question = torch.arange(questions).repeat_interleave(responses)
    labels = (torch.rand(len(question), generator=draw) < 0.5).long()
    labels.view(questions, responses)[:, :2] = torch.tensor([0, 1])
    labels[question >= (questions if mixed is None else mixed)] = 0
    sizes = torch.randint(2, 5, (len(question),), generator=draw)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    states = torch.randn(int(offsets[-1]), HIDDEN * layers, generator=draw)
    states[:, -1] += 0.7 * labels[torch.repeat_interleave(sizes)]
    masks = torch.ones(len(states), views, dtype=torch.bool) if views > 1 else None
    if masks is not None:
        masks[offsets[:-1], 1] = False
    return Features(states, offsets, labels, question, masks=masks, views=VIEWS[:views])


def plan(config=CONFIG, **settings):
    return HeadPlan(config, FitSettings(**{"epochs": 3, "seed": 5, **settings}))


def test_questions_are_drawn_within_greater_draws_and_read_in_place():
    numbers = torch.tensor([3, 5, 8, 9, 20])
    few, many = draw_questions(numbers, 2, 1), draw_questions(numbers, 4, 1)
    assert many[:2].tolist() == few.tolist() and set(many.tolist()) < set(numbers.tolist())
    assert sorted(draw_questions(numbers, 5, 1).tolist()) == numbers.tolist()
    assert len({tuple(draw_questions(numbers, 5, seed).tolist()) for seed in range(9)}) > 5
    features = make_features()
    some = SomeQuestions.of(features, numbers)
    assert set(some.question.tolist()) == set(numbers.tolist()) and len(some.labels) == 4 * 5
    assert some.shard(0) is features and len(some) == 1


def test_the_numbers_of_questions_are_halves_that_can_be_trained_on():
    assert label_counts(make_features(200), plan()) == [10, 20, 40, 80, 160]
    assert label_counts(make_features(25), plan()) == [5, 10, 20], "fewer than 5 cannot be trained on"
    sparse = make_features(200, mixed=20)  # 16 of 160 questions to train on: 5 of them only in greater draws
    counts = label_counts(sparse, plan())
    train, _ = split_questions(sparse, 0.2, 5)
    for count in (10, 20, 40, 80, 160):
        fewest = min(int((draw_questions(train, count, seed) < 20).sum()) for seed in (5, 6, 7))
        assert (count in counts) == (fewest >= 5), count
    with pytest.raises(ValueError, match=r"half of the 8 training questions too, of which at least 5 .*, but 8 in all have"):
        label_counts(make_features(10), plan())


def test_the_figures_are_those_of_heads_trained_on_copies():
    features = make_features()
    answers = [f"{index % 3}" for index in range(len(features.labels))]
    found = label_curve(features, plan(), (0,), VIEWS[:1], answers, seeds=2, bootstrap=200)
    train, held_out = split_questions(features, 0.2, 5)
    assert (found["validation_questions"], found["seeds"], found["n"]) == (len(held_out), 2, 4) == (8, 2, 4)
    assert [row["questions"] for row in found["label_efficiency"]] == [8, 16, 32]
    for row in found["label_efficiency"]:
        by_seed = []
        for seed in (5, 6):
            drawn = draw_questions(train, row["questions"], seed)
            copied = features.only(torch.isin(features.question, drawn).nonzero().flatten())
            (judged,) = fit_bank(copied, [plan(seed=seed)], (0,), VIEWS[:1])
            rewards = judged.rm(features.states, features.offsets).detach()
            by_seed.append([slow(features, rewards, answers, int(q)) for q in held_out])
        for place, name in enumerate(("auroc", "best", "shrunk")):
            assert row[name]["value"] == pytest.approx(np.mean(by_seed, axis=(0, 1))[place]), name
            assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]


def slow(features, rewards, answers, question):
    places = (features.question == question).nonzero().flatten().tolist()
    values, labels = rewards[places].tolist(), features.labels[places].tolist()
    pairs = [(a > b) for a, y in zip(values, labels, strict=True) for b, x in zip(values, labels, strict=True) if y > x]
    chosen = shrunk_vote(values, [answers[i] for i in places])
    given = [label for i, label in zip(places, labels, strict=True) if answers[i] == chosen]
    return np.mean(pairs), labels[best(values)], np.mean(given)


def test_nothing_is_learnt_from_the_questions_that_judge():
    features = make_features()
    _, held_out = split_questions(features, 0.2, 5)
    judge = torch.isin(features.question, held_out)
    turned = replace(features, labels=torch.where(judge, 1 - features.labels, features.labels))
    assert torch.equal(split_questions(turned, 0.2, 5)[1], held_out)
    rows, other = (label_curve(f, plan(), (0,), VIEWS[:1], seeds=2, bootstrap=50)["label_efficiency"] for f in (features, turned))
    for row, mirrored in zip(rows, other, strict=True):
        assert row["auroc"]["value"] == pytest.approx(1 - mirrored["auroc"]["value"]), "the same rewards, judged the other way"


def test_a_head_of_a_bank_reads_its_own_layers_and_rows():
    both = make_features(layers=2, views=2)
    rows = [torch.arange(int(a) + 1, int(b)) for a, b in zip(both.offsets[:-1], both.offsets[1:], strict=True)]
    sizes = torch.tensor([len(one) for one in rows])
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    alone = Features(both.states[torch.cat(rows), HIDDEN:], offsets, both.labels, both.question, views=VIEWS[1:])
    one = plan(SwiftConfig(HIDDEN, (1,), position="generating"), ensemble=2, pessimism=0.5)
    found = label_curve(both, one, (0, 1), VIEWS, seeds=2, bootstrap=50)
    expected = label_curve(alone, one, (1,), VIEWS[1:], seeds=2, bootstrap=50)
    assert set(found["label_efficiency"][0]) == {"questions", "auroc", "best"}, "no answers, no vote"
    for row, right in zip(found["label_efficiency"], expected["label_efficiency"], strict=True):
        assert row["auroc"]["value"] == pytest.approx(right["auroc"]["value"], abs=0.02)


def test_more_questions_help():
    features = make_features(questions=120, seed=3)
    rows = label_curve(features, plan(epochs=6), (0,), VIEWS[:1], [None] * 480)["label_efficiency"]
    assert rows[-1]["auroc"]["value"] > rows[0]["auroc"]["value"] + 0.03
    assert "shrunk" not in rows[0], "nobody answered"


def test_figures_of_questions_with_different_numbers_of_responses():
    rng = np.random.default_rng(4)
    sizes = (1, 3, 6, 9)
    rewards, labels = [rng.normal(size=n) for n in sizes], [rng.integers(0, 2, n).astype(float) for n in sizes]
    labels[2][:2] = 0, 1
    answers = [[str(a) if a else None for a in rng.integers(0, 4, n)] for n in sizes]
    answers[0] = [None]
    found = question_figures(rewards, labels, answers)
    for q in range(4):
        assert found["best"][q] == labels[q][best(rewards[q])]
        for name, vote in (("vote", reward_vote), ("shrunk", shrunk_vote)):
            chosen = vote(rewards[q], answers[q])
            right = [y for a, y in zip(answers[q], labels[q], strict=True) if a == chosen]
            assert found[name][q] == pytest.approx(np.mean(right) if chosen is not None else 0.0)
    assert np.isnan(found["auroc"][0]) and 0 <= found["auroc"][2] <= 1
    assert set(question_figures(rewards, labels)) == {"auroc", "best"}
