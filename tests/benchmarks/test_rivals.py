"""The rivals of the 2D + 2 head find what is planted, and nothing else, in small packed states."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.heads import rival_encoder
from benchmarks.heads.rivals import CentroidRule, EncoderSettings, LastTokenLogistic, RivalData, StepEncoder, rivals, within
from swift_rm.evaluation.auroc import pooled_auroc
from swift_rm.features.read_states import Features

HIDDEN, LAYERS, RESPONSES = 4, 2, 6
WIDTH = HIDDEN * LAYERS
QUICK = EncoderSettings(model=32, hidden=64, lr=3e-3, epochs=8, warmup=2, batch_size=8)


def make_data(questions, seed, *, signal=0.0, shift=0.0, difficulty=0.0):
    """States are a question's vector and noise; ``signal`` is added to a right response's rows, ``shift`` to its last row.

    ``difficulty`` shows in the states how likely a question's responses are right, and makes that differ by question.
    """
    draw = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(99)), dim=0)
    question = torch.arange(questions).repeat_interleave(RESPONSES)
    chance = torch.rand(questions, generator=draw) if difficulty else torch.full((questions,), 0.5)
    labels = (torch.rand(len(question), generator=draw) < chance[question]).long()
    labels.view(questions, RESPONSES)[:, :2] = torch.tensor([0, 1])  # every question has both
    sizes = torch.randint(3, 9, (len(question),), generator=draw)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    owner = torch.repeat_interleave(sizes)
    states = torch.randn(questions, WIDTH, generator=draw)[question][owner] + torch.randn(len(owner), WIDTH, generator=draw)
    states += (signal * (2 * labels - 1) + difficulty * (chance[question] - 0.5))[owner, None] * direction
    states[offsets[1:] - 1] += shift * (2 * labels - 1)[:, None] * direction
    boundary = torch.rand(len(owner), generator=draw) < 0.4
    return RivalData.of(Features(states, offsets, labels, question), boundary)


def quick_rivals():
    return [
        StepEncoder(settings=QUICK),
        StepEncoder("every token", read="tokens", settings=QUICK),
        StepEncoder("last layer", width=HIDDEN, settings=QUICK),
        LastTokenLogistic(),
        LastTokenLogistic("last layer", width=HIDDEN),
        CentroidRule(HIDDEN),
        CentroidRule(HIDDEN, "chosen", choose=True),
    ]


@pytest.mark.parametrize("rival", quick_rivals(), ids=lambda rival: f"{type(rival).__name__} {rival.name}")
def test_a_planted_signal_is_found_on_new_questions(rival):
    planted = {"shift": 5.0} if isinstance(rival, CentroidRule) else {"signal": 3.0}
    train, held_out, test = (make_data(n, seed, **planted) for n, seed in ((40, 0), (10, 1), (30, 2)))
    rival.fit(train, held_out, seed=0)
    assert rival.rewards(test).shape == (len(test.labels),)
    assert within(rival.rewards(test), test) > 0.9


@pytest.mark.parametrize("rival", quick_rivals()[::3], ids=lambda rival: rival.name)
def test_knowing_the_question_alone_is_worth_nothing_within_it(rival):
    train, held_out, test = (make_data(n, seed, difficulty=12.0) for n, seed in ((60, 0), (20, 1), (150, 2)))
    rival.fit(train, held_out, seed=0)
    rewards = rival.rewards(test)
    assert abs(within(rewards, test) - 0.5) < 0.08
    if isinstance(rival, LastTokenLogistic):  # trained on single responses, it does learn the question: pooled looks good
        assert pooled_auroc(rewards.view(150, -1).numpy(), test.labels.view(150, -1).numpy()) > 0.62


def test_a_response_alone_is_scored_as_in_a_batch():
    train, test = make_data(20, 0, signal=2.0), make_data(12, 1, signal=2.0)
    for read in ("steps", "tokens"):
        encoder = StepEncoder(read=read, settings=QUICK)
        encoder.fit(train, test, seed=0)
        together = encoder.rewards(test)
        for i in (0, 7, int(test.offsets.diff().argmax())):
            rows = slice(int(test.offsets[i]), int(test.offsets[i + 1]))
            offsets = torch.tensor([0, rows.stop - rows.start])
            alone = RivalData(test.states[rows], offsets, test.labels[i : i + 1], test.question[i : i + 1], test.boundary[rows])
            torch.testing.assert_close(encoder.rewards(alone)[0], together[i], rtol=1e-4, atol=1e-5)


def test_the_encoder_reads_step_ends_and_their_order_and_nothing_else():
    data = make_data(12, 0, signal=2.0)
    encoder = StepEncoder(settings=QUICK)
    encoder.fit(data, data, seed=0)
    rewards, read = encoder.rewards(data), data.boundary.index_fill(0, data.last, True)
    noisy = torch.where(read[:, None], data.states, torch.full_like(data.states, 1e3))
    assert torch.equal(encoder.rewards(replace(data, states=noisy)), rewards)
    states, response = data.states.clone(), int((data.rows(read).offsets.diff() > 1).nonzero()[0])
    one, other = (data.offsets[response] + read[data.offsets[response] :].nonzero().flatten())[:2].tolist()
    states[[one, other]] = states[[other, one]]
    assert not torch.isclose(encoder.rewards(replace(data, states=states))[response], rewards[response], rtol=1e-4)


def test_the_best_epoch_is_kept(monkeypatch):
    data, seen, values = make_data(8, 0, signal=1.0), [], iter([0.6, 0.9, 0.2, 0.3, 0.1])
    encoder = StepEncoder(settings=EncoderSettings(model=32, hidden=64, epochs=5, patience=2, batch_size=4))

    def scripted(rewards, _):
        seen.append(rewards)
        return next(values)

    monkeypatch.setattr(rival_encoder, "within", scripted)
    encoder.fit(data, data, seed=0)
    assert len(seen) == 4, "two epochs without a better value end the training"
    assert torch.equal(encoder.rewards(data), seen[1]) and not torch.equal(seen[1], seen[3])


@pytest.mark.parametrize("make", [lambda: StepEncoder(settings=QUICK), LastTokenLogistic, lambda: CentroidRule(HIDDEN)])
def test_the_same_seed_gives_the_same_rewards(make):
    train, held_out = make_data(16, 0, signal=0.5), make_data(8, 1, signal=0.5)
    before, found = torch.get_rng_state(), []
    for seed in (3, 3, 4):
        rival = make()
        rival.fit(train, held_out, seed=seed)
        found.append(rival.rewards(held_out))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) != isinstance(rival, StepEncoder)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was moved"


@pytest.mark.parametrize(("score", "normalise"), [("difference", False), ("difference", True), ("right", False)])
def test_the_centroid_rule_equals_its_formula(score, normalise):
    train, test = make_data(9, 0, shift=1.0), make_data(5, 1, shift=1.0)
    rule = CentroidRule(HIDDEN, score=score, normalise=normalise)
    rule.fit(train, train, seed=0)

    def deltas(data):
        rows = [data.states[a:b] for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)]
        found = np.stack([(r[-1] - r[0]).double().numpy().reshape(LAYERS, HIDDEN) for r in rows])
        return found / np.linalg.norm(found, axis=-1, keepdims=True) if normalise else found

    centroids = [deltas(train)[(train.labels == label).numpy()].mean(0) for label in (0, 1)]
    for delta, reward in zip(deltas(test), rule.rewards(test).tolist(), strict=True):
        wrong, right = (np.mean([np.linalg.norm(delta[i] - c[i]) for i in range(LAYERS)]) for c in centroids)
        assert reward == pytest.approx(wrong - right if score == "difference" else -right, abs=1e-5)


def test_the_logistic_regression_keeps_the_penalty_that_is_best_on_held_out_questions():
    train, held_out = make_data(30, 0, signal=0.5), make_data(15, 1, signal=0.5)
    rival = LastTokenLogistic()
    rival.fit(train, held_out, seed=0)
    each = {}
    for c in rival.grid:
        one = LastTokenLogistic(grid=(c,))
        one.fit(train, held_out, seed=0)
        each[c] = within(one.rewards(held_out), held_out)
    assert len(set(each.values())) > 1 and each[rival.chosen] == max(each.values())


def test_the_units_of_the_states_do_not_matter():
    train, test = make_data(20, 0, signal=1.0), make_data(10, 1, signal=1.0)
    units, zero = torch.logspace(-2, 3, WIDTH), torch.linspace(-2, 2, WIDTH)
    in_units = [replace(data, states=(data.states + zero) * units) for data in (train, test)]
    for make in (lambda: StepEncoder(settings=replace(QUICK, epochs=1)), LastTokenLogistic):
        rival, other = make(), make()
        rival.fit(train, test, seed=0)
        other.fit(*in_units, seed=0)
        both = torch.stack([other.rewards(in_units[1]), rival.rewards(test)])
        assert torch.corrcoef(both)[0, 1] > 0.999, "not one to the last digit: the first steps of AdamW enlarge rounding"


def test_the_parameters_are_counted():
    data = make_data(8, 0, signal=1.0)
    counts = {}
    for rival in rivals(HIDDEN):
        if isinstance(rival, StepEncoder):
            rival.settings = EncoderSettings(epochs=1)
        rival.fit(data, data, seed=0)
        counts[rival.name] = rival.parameters
    assert counts["step encoder"] == 1_580_289 + 256 * (WIDTH + 1)
    assert counts["step encoder, last layer"] == 1_580_289 + 256 * (HIDDEN + 1)
    assert (counts["last token logistic"], counts["last token logistic, last layer"]) == (WIDTH + 1, HIDDEN + 1)
    assert counts["centroid rule"] == 2 * WIDTH
    assert len(counts) == len(rivals(HIDDEN)), "two rivals have one name"


def test_questions_are_taken_whole():
    data = make_data(6, 0)
    taken = data.of_questions(torch.tensor([4, 1]))
    members = [i for i, q in enumerate(data.question.tolist()) if q in (1, 4)]
    spans = [range(int(data.offsets[i]), int(data.offsets[i + 1])) for i in members]
    rows = [row for span in spans for row in span]
    assert torch.equal(taken.states, data.states[rows]) and torch.equal(taken.boundary, data.boundary[rows])
    assert taken.labels.tolist() == data.labels[members].tolist() and taken.question.tolist() == data.question[members].tolist()
    assert taken.offsets.diff().tolist() == [len(span) for span in spans]


def test_features_become_float32_and_a_response_without_a_step_ends_with_its_last_row():
    offsets, labels = torch.tensor([0, 3, 5]), torch.tensor([1, 0])
    features = Features(torch.arange(10, dtype=torch.bfloat16).view(5, 2), offsets, labels, torch.zeros(2, dtype=torch.long))
    data = RivalData.of(features, torch.tensor([True, False, False, False, False]))
    assert data.boundary.tolist() == [True, False, False, False, True]
    assert data.states.dtype == torch.float32 and data.states[4].tolist() == [8, 9]


def test_bad_input_is_refused():
    data = make_data(8, 0, signal=1.0)
    with pytest.raises(ValueError, match=r"48 of 48 responses \(the first is number 0\) have no row at a step's end"):
        replace(data, boundary=torch.zeros_like(data.boundary))
    with pytest.raises(ValueError, match=r"1 of 48 responses \(the first is number 1\) have no row$"):
        replace(data, offsets=data.offsets.index_fill(0, torch.tensor([2]), int(data.offsets[1])))
    with pytest.raises(ValueError, match="47 labels"):
        replace(data, labels=data.labels[1:])
    with pytest.raises(ValueError, match="boundary must be"):
        replace(data, boundary=data.boundary[1:])
    with pytest.raises(ValueError, match=r"float32 states, got torch\.bfloat16"):
        replace(data, states=data.states.bfloat16())
    for rival in (StepEncoder(settings=QUICK), LastTokenLogistic(), CentroidRule(HIDDEN)):
        with pytest.raises(ValueError, match="all 48 responses are right"):
            rival.fit(replace(data, labels=torch.ones_like(data.labels)), data, seed=0)
        with pytest.raises(ValueError, match="no held-out question has both"):
            rival.fit(data, replace(data, labels=torch.zeros_like(data.labels)), seed=0)
        with pytest.raises(ValueError, match="8 wide, held-out ones 7"):
            rival.fit(data, replace(data, states=data.states[:, 1:]), seed=0)
    with pytest.raises(ValueError, match="the last 9 of 8 columns"):
        LastTokenLogistic(width=9).fit(data, data, seed=0)
    with pytest.raises(ValueError, match="8 wide are not layers of hidden size 3"):
        CentroidRule(3).fit(data, data, seed=0)
