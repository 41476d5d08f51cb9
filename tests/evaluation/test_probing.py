import argparse
import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.cli.probe import run_probe
from swift_rm.evaluation.class_separation import separation
from swift_rm.evaluation.gate_mass import KINDS, TENTHS, gate_mass, mass_of_gates, token_kinds
from swift_rm.evaluation.layer_auroc import cross_validated, layer_auroc, mixed_question_numbers, question_aurocs, question_folds
from swift_rm.evaluation.probed_states import read_states
from swift_rm.evaluation.probing import format_probe, probe
from swift_rm.evaluation.response_summaries import summarise
from swift_rm.features.read_states import Features, extract_features
from swift_rm.scoring.token_scoring import score_tokens
from tests.tiny_models import tiny_model

D = 8
CONFIG = SwiftConfig(D, (0, 1, 2))


def planted(questions=60, n=6, token="all", seed=0, identity=0.0):
    """States of three layers of which layer 1 alone tells right from wrong, at all tokens or only at the first or last.

    ``identity`` puts a question's share of right responses into layer 2, as a model that knows which questions are easy.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(3, 7, (questions * n,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
    ease = torch.rand(questions, generator=generator).repeat_interleave(n)
    labels = (torch.rand(questions * n, generator=generator) < (ease if identity else 0.5)).long()
    states = torch.randn(int(offsets[-1]), 3 * D, generator=generator)
    rows = {"last": offsets[1:] - 1, "first": offsets[:-1], "all": torch.arange(len(states))}[token]
    states[rows, D] += 4.0 * (2 * labels - 1).repeat_interleave(sizes)[rows]
    states[:, 2 * D] += identity * ease.repeat_interleave(sizes)
    scales = torch.logspace(-2, 2, 3 * D)
    return Features(states * scales + 3, offsets, labels, torch.arange(questions).repeat_interleave(n))


def test_summaries_are_the_mean_and_the_last_state_of_each_layer():
    features = planted(questions=50)  # more than one chunk
    made = summarise(features, CONFIG)
    for i, (start, end) in enumerate(pairwise(features.offsets.tolist())):
        states = features.states[start:end].view(-1, 3, D)
        assert np.allclose(made.mean[i], states.mean(0), rtol=1e-4, atol=1e-4)
        assert np.array_equal(made.last[i], states[-1])
    assert np.array_equal(made.states("last", 2), features.states[features.offsets[1:] - 1, 2 * D :])


def test_of_several_views_the_configured_one_is_summarised(llama, tokenizer, make_rollout):
    rollouts = [make_rollout("a", response_ids=[17, 18, 19]), make_rollout("b", label=0, response_ids=[20, 21])]
    views = (("generating", "response"), ("token", "response"))
    both = extract_features(llama, tokenizer, rollouts, SwiftConfig(32, (0, 3)), views=views)
    for position, region in views:
        config = SwiftConfig(32, (0, 3), position=position, region=region)
        one = summarise(extract_features(llama, tokenizer, rollouts, config), config)
        made = summarise(both, config)
        assert np.allclose(made.mean, one.mean, atol=1e-6)
        assert np.allclose(made.last, one.last, atol=1e-6)
    with pytest.raises(ValueError, match=r"the features were read at .* not at \('token', 'after:x'\)"):
        summarise(both, SwiftConfig(32, (0, 3), position="token", region="after:x"))


def test_a_signal_is_found_in_its_layer_and_nowhere_else():
    found = layer_auroc(summarise(planted(), CONFIG), bootstrap=500)
    assert [one.layer for one in found] == [0, 1, 2]
    assert found[1].last.value > 0.97
    assert found[1].mean.value > 0.97
    for other in (found[0], found[2]):
        for interval in (other.mean, other.last):
            assert interval.low < 0.5 < interval.high, f"layer {other.layer} holds noise, but has {interval}"


def test_what_only_the_last_token_or_only_an_early_one_knows_shows_in_its_state():
    at = {token: layer_auroc(summarise(planted(token=token), CONFIG), bootstrap=100)[1] for token in ("last", "first")}
    assert at["last"].last.value > 0.97
    assert at["first"].mean.value > 0.97
    assert at["first"].last.low < 0.5 < at["first"].last.high


def test_knowing_the_question_looks_good_pooled_and_is_no_signal_within():
    apart = {(one.layer, one.read): one for one in separation(summarise(planted(identity=6.0), CONFIG), bootstrap=300)}
    easy = apart[2, "mean"]
    assert easy.lda_pooled > 0.65
    assert easy.lda_within.low < 0.5 < easy.lda_within.high


def test_no_probe_sees_the_question_it_scores():
    made = summarise(planted(questions=30), CONFIG)
    split = question_folds(made, 5, seed=0)
    assert sorted(np.concatenate([test for _, test in split]).tolist()) == list(range(180))
    for train, test in split:
        assert not set(made.question[train]) & set(made.question[test])
        assert set(made.labels[train]) == {0, 1}

    class Nosy:
        def fit(self, states, labels):
            assert np.allclose(states.mean(0), 0, atol=1e-4)
            assert np.allclose(states.std(0), 1, atol=1e-4)
            self.seen = {tuple(row) for row in states.round(3)}
            return self

        def decision_function(self, states):
            assert np.abs(states.mean(0)).max() < 1, "what is scored is standardised as what was trained on"
            return np.array([float(tuple(row) in self.seen) for row in states.round(3)])

    scores = cross_validated(made, made.states("mean", 0), split, Nosy)
    assert len(set(scores)) == 1, "a response was scored by a probe that had been trained on it"


def test_mixed_questions_are_spread_over_the_folds_and_within_leaves_the_others_out():
    features = planted(questions=40)
    labels = torch.where(features.question < 35, 1, torch.arange(240) % 2)  # five mixed questions, thirty-five all right
    made = summarise(replace(features, labels=labels), CONFIG)
    assert mixed_question_numbers(made).tolist() == [35, 36, 37, 38, 39]
    for _, test in question_folds(made, 5, seed=3):
        assert len({q for q in made.question[test] if q >= 35}) == 1
    shuffled = np.random.default_rng(0).permutation(240)
    scores = made.labels + 0.1 * (made.question == 35)
    assert question_aurocs(scores[shuffled], made.labels[shuffled], made.question[shuffled]).tolist() == [1.0] * 5


def test_separation_of_a_planted_layer_and_of_noise():
    made = summarise(planted(), CONFIG)
    apart = {(one.layer, one.read): one for one in separation(made, bootstrap=300)}
    assert len(apart) == 6
    signal, noise = apart[1, "last"], apart[0, "last"]
    assert signal.lda_within.value > 0.97
    assert signal.lda_pooled > 0.97
    assert signal.fisher > 2
    assert noise.fisher < 0.1
    assert noise.lda_within.low < 0.5 < noise.lda_within.high
    assert signal.points.shape == (360, 3)
    lda = signal.points[:, 2]
    assert lda[made.labels == 1].mean() > lda[made.labels == 0].mean()
    states = made.states("last", 1).astype(np.float64)
    standard = (states - states.mean(0)) / states.std(0)
    values = np.linalg.eigvalsh(np.cov(standard.T))[::-1]
    assert signal.explained == pytest.approx((values[:2] / values.sum()).tolist(), abs=1e-6)
    variances = signal.points[:, :2].var(0, ddof=1)
    assert variances == pytest.approx(values[:2].tolist(), rel=1e-6)


def test_the_first_component_is_turned_by_other_questions_only():
    """Along the main direction noise ranks at one half, not above it, though the sign of a component is free."""
    one_layer, values = SwiftConfig(D, (0,)), []
    for seed in range(16):
        features = planted(questions=12, seed=seed)
        only = replace(features, states=features.states[:, :D])
        values.append(separation(summarise(only, one_layer), folds=3, bootstrap=1)[0].pca_within.value)
    assert abs(np.mean(values) - 0.5) < 0.05
    signal = planted(questions=20)
    only = replace(signal, states=signal.states[:, D : D + 1].repeat(1, D))  # the signal is all there is
    assert separation(summarise(only, one_layer), folds=3, bootstrap=1)[0].pca_within.value > 0.97


def test_a_layer_with_one_state_for_all_has_no_direction():
    features = planted(questions=10)
    features.states[:, :D] = 7.0
    made = summarise(features, CONFIG)
    apart = separation(made, bootstrap=10)[1]
    assert (apart.explained, apart.fisher, apart.lda_within.value, apart.pca_pooled) == ((0.0, 0.0), 0.0, 0.5, 0.5)
    assert layer_auroc(made, bootstrap=10)[0].last.value == 0.5


def test_one_class_one_question_and_too_few_folds_are_refused_in_one_sentence():
    features = planted(questions=8)
    same = summarise(replace(features, labels=torch.ones_like(features.labels)), CONFIG)
    single = summarise(replace(features, question=torch.zeros_like(features.question)), CONFIG)
    for measure in (layer_auroc, separation):
        with pytest.raises(ValueError, match="all 48 responses are right: a reward needs right and wrong ones"):
            measure(same)
        with pytest.raises(ValueError, match="only 1 of 1 questions have both right and wrong responses; at least 5"):
            measure(single)
        with pytest.raises(ValueError, match="cross-validation needs at least 2 folds, got 1"):
            measure(summarise(features, CONFIG), folds=1)
        with pytest.raises(ValueError, match="9 folds need as many questions with both right and wrong responses, got 8"):
            measure(summarise(features, CONFIG), folds=9)


def test_kinds_of_tokens(tokenizer):
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in ("<eos>", "</think>", "7", "+", ", ", "so ")}
    kinds = token_kinds(tokenizer, [list(ids.values())])
    assert [kinds[ids[text]] for text in ids] == ["special", "special", "digits", "punctuation", "punctuation", "words"]

    class Words:
        all_special_ids = (0,)

        def get_added_vocab(self):
            return {"</think>": 9}

        def decode(self, ids, **_):
            return ["<s>", " x1", "\n\n", " été", "\ufffd", "→", "", "٣", "", "</think>"][ids[0]]

    expected = ["special", "digits", "whitespace", "words", "part of a character", "punctuation", "whitespace", "digits"]
    assert list(token_kinds(Words(), [list(range(8)), [9]]).values()) == [*expected, "special"]


def test_gate_mass_equals_a_slow_loop_over_scored_tokens(llama, tokenizer):
    rm = SwiftRewardModel(SwiftConfig(32, (0, 3)))
    torch.manual_seed(0)
    torch.nn.init.normal_(rm.head.weight)
    generator = torch.Generator().manual_seed(1)
    responses = [torch.randint(3, 40, (size,), generator=generator).tolist() for size in (1, 4, 10, 23)]
    scored = score_tokens(llama, tokenizer, rm, [[1, 20]] * 4, responses)
    kinds, tenths, last = dict.fromkeys(KINDS, 0.0), [0.0] * 10, 0.0
    even = dict.fromkeys(KINDS, 0.0)
    for one in scored:
        total = math.fsum(one.gate)
        for i, (token, gate) in enumerate(zip(one.token_ids, one.gate, strict=True)):
            text = tokenizer.decode([token])
            kind = "special" if token < 17 else "digits" if text.isdigit() else "words" if text[0].isalpha() else "punctuation"
            kinds[kind] += gate / total / 4
            even[kind] += 1 / len(one.gate) / 4
            tenths[math.floor(10 * i / len(one.gate))] += gate / total / 4
        last += one.gate[-1] / total / 4
    made = [type("R", (), {"response_ids": ids})() for ids in responses]
    rows = [extract_rows(llama, rm.config, ids) for ids in responses]
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    mass = gate_mass(rm, torch.cat(rows), offsets, [one.response_ids for one in made], tokenizer)
    assert {name: share.gate for name, share in mass.kinds.items()} == pytest.approx(kinds, abs=1e-5)
    assert {name: share.tokens for name, share in mass.kinds.items()} == pytest.approx(even, abs=1e-9)
    assert [mass.tenths[name].gate for name in TENTHS] == pytest.approx(tenths, abs=1e-5)
    assert mass.last.gate == pytest.approx(last, abs=1e-5)
    for shares in (mass.kinds, mass.tenths):
        assert sum(share.gate for share in shares.values()) == pytest.approx(1, abs=1e-9)
        assert sum(share.tokens for share in shares.values()) == pytest.approx(1, abs=1e-9)
    assert mass.kinds["special"].weight == mass.kinds["special"].gate / mass.kinds["special"].tokens


def extract_rows(model, config, response_ids):
    with torch.no_grad():
        hidden = model(torch.tensor([[1, 20, *response_ids]]), output_hidden_states=True).hidden_states
    return torch.cat([hidden[layer][0, 1:-1] for layer in config.layers], -1)


def test_dead_gates_are_left_out_and_counted_and_no_gate_weighs_alike(tokenizer):
    gates = np.array([0.0, 0.0, 0.5, 0.5, 1.0, np.nan])
    mass = mass_of_gates(gates, [0, 2, 5, 6], [[17, 17], [17, 30, 2], [17]], tokenizer)
    assert (mass.responses, mass.left_out) == (1, 2)
    assert (mass.last.gate, mass.last.tokens) == (0.5, pytest.approx(1 / 3))
    with pytest.raises(ValueError, match="none of the 1 responses has gates"):
        mass_of_gates(gates[:2], [0, 2], [[17, 17]], tokenizer)
    with pytest.raises(ValueError, match="response 0 has 3 tokens, but 2 gates"):
        mass_of_gates(gates[:2], [0, 2], [[17, 17, 17]], tokenizer)
    plain = SwiftRewardModel(SwiftConfig(4, (0,), gate=False))
    shares = gate_mass(plain, torch.randn(3, 4), torch.tensor([0, 3]), [[17, 30, 2]], tokenizer)
    assert all(share.gate == pytest.approx(share.tokens) for share in (*shares.kinds.values(), shares.last))


def rollouts(make_rollout, questions=12, n=4):
    """Right responses hold token 18, wrong ones 19: even random states tell them apart."""
    generator = torch.Generator().manual_seed(0)
    return [
        make_rollout(
            f"q{q}", label=i % 2, prompt_ids=[1, 20 + q],
            response_ids=[*torch.randint(20, 40, (4,), generator=generator).tolist(), 18 if i % 2 else 19, 2],
        )
        for q in range(questions)
        for i in range(n)
    ]  # fmt: skip


def test_states_read_in_parts_are_those_read_at_once(llama, tokenizer, make_rollout, monkeypatch):
    made = rollouts(make_rollout)
    made = [*made[::2], *made[1::2]]  # a question's responses need not stand together
    config = SwiftConfig(32, (0, 2, 3), base_layers=3)
    rm = SwiftRewardModel(SwiftConfig(32, (3, 2)))
    torch.nn.init.normal_(rm.head.weight)
    whole, mass = read_states(llama, tokenizer, made, config, rm)
    monkeypatch.setattr("swift_rm.evaluation.probed_states.PART_BYTES", 6 * 3 * 32 * 4 * 5)
    parts, mass_again = read_states(llama, tokenizer, made, config, rm)
    assert np.allclose(whole.mean, parts.mean, atol=1e-5)
    assert np.allclose(whole.last, parts.last, atol=1e-5)
    assert np.array_equal(whole.question, parts.question)
    assert len(set(whole.question)) == 12
    assert mass.last.gate == pytest.approx(mass_again.last.gate, abs=1e-6)
    features = extract_features(llama, tokenizer, made, rm.config)
    direct = gate_mass(rm, features.states, features.offsets, [r.response_ids for r in made], tokenizer)
    assert mass.kinds["special"].gate == pytest.approx(direct.kinds["special"].gate, abs=1e-6), "layers in the head's order"
    with pytest.raises(ValueError, match=r"two states of 48 responses in 3 layers need 0\.0 GiB, more than 0\.0 GiB"):
        read_states(llama, tokenizer, made, config, max_bytes=1000)


def arguments(**given):
    values = {
        "reward_model": None, "position": None, "region": None, "layers": "all", "questions": None, "folds": 5, "seed": 0,
        "batch_size": 32, "max_gib": None, "out": None, **given,
    }  # fmt: skip
    return argparse.Namespace(**values)


def test_the_command_writes_figures_and_points_and_reads_as_the_reward_model_does(tmp_path, llama, tokenizer, make_rollout):
    made, out = rollouts(make_rollout), tmp_path / "new" / "probe.json"
    rm = SwiftRewardModel(SwiftConfig(32, (-1,), position="token", region="after:+", base_layers=3))
    rm.save_pretrained(tmp_path / "rm")
    result = run_probe(arguments(out=str(out), reward_model=str(tmp_path / "rm"), questions=10), made, llama, tokenizer)
    written = json.loads(out.read_text())
    assert (written["position"], written["region"], written["questions_left_out"]) == ("token", "after:+", 2)
    assert (written["questions"], written["mixed_questions"], written["responses"], written["right"]) == (10, 10, 40, 20)
    assert [one["layer"] for one in written["layers"]] == [0, 1, 2, 3]
    assert written["layers"][0]["mean"]["value"] > 0.9, "the embeddings of the tokens tell right from wrong here"
    assert len(written["separation"]) == 8
    assert all(np.shape(one.pop("points")) == (40, 3) for one in written["separation"])
    assert written.pop("points_labels") == [i % 2 for i in range(40)]
    assert len(written.pop("points_question")) == 40
    assert written == json.loads(json.dumps(result.data))
    assert written["gate"]["responses"] == 40
    for word in ("layer 3", "layer 0, last", "AUROC within questions", "where the gate looks", "last token"):
        assert word in result.text


def test_the_command_refuses_what_does_not_fit_together(tmp_path, llama, tokenizer, make_rollout):
    made = rollouts(make_rollout)
    SwiftRewardModel(SwiftConfig(32, (-1,), position="token")).save_pretrained(tmp_path / "rm")
    reward = {"reward_model": str(tmp_path / "rm")}
    refused = {
        r"reads at \('token', 'response'\), but .* read at \('generating'": {**reward, "position": "generating"},
        r"the reward model reads layer 3, which is not among the layers \(0, 1\)": {**reward, "layers": "0,1"},
        "layers must be 'all'": {"layers": "x"},
        "--questions must be at least 1, got 0": {"questions": 0},
        "only 4 of 4 questions have both": {"questions": 4},
    }
    for message, given in refused.items():
        with pytest.raises(ValueError, match=message):
            run_probe(arguments(**given), made, llama, tokenizer)
    with pytest.raises(ValueError, match="hidden size 32"):
        SwiftRewardModel(SwiftConfig(16, (-1,))).save_pretrained(tmp_path / "other")
        run_probe(arguments(reward_model=str(tmp_path / "other")), made, tiny_model("llama"), tokenizer)


def test_a_probe_without_a_reward_model_has_no_gate():
    found = probe(summarise(planted(questions=10), CONFIG), bootstrap=20)
    assert found.to_dict()["gate"] is None
    assert "points" not in found.to_dict()["separation"][0]
    assert "where the gate looks" not in format_probe(found)
    json.dumps(found.to_dict(points=3), allow_nan=False)
