"""The benchmarks of heads and of labels: their statistics by hand, and both scripts whole at tiny sizes."""

import json

import numpy as np
import pytest
import torch

from benchmarks.heads.head_table import Measured, Setting, cells, table, verdict
from benchmarks.heads.head_variants import ENSEMBLE, PESSIMISTIC, VIEWS, bank_rewards, head_plans
from benchmarks.heads.question_figures import FIGURES, TestQuestions
from benchmarks.heads.rival_rows import rival_rows
from benchmarks.heads.worlds import Asked, draw_questions, sampled
from benchmarks.text_table import Table, shown
from swift_rm import SwiftConfig
from swift_rm.evaluation.intervals import SeedResamples
from swift_rm.evaluation.rule_curves import rule_curves
from swift_rm.features.read_states import Features
from swift_rm.records.rollouts import Rollout
from swift_rm.training.fit import fit_bank
from swift_rm.training.fit_settings import FitSettings
from tests.scripts import ROOT, run

HIDDEN, LAYERS = 4, (0, 1, 2, 3, 4)


def make_features(questions=20, responses=6, seed=0):
    """States with rows 0..R of each response, of which each view reads what its name says; right ones are a little higher."""
    draw = torch.Generator().manual_seed(seed)
    question = torch.arange(questions).repeat_interleave(responses)
    labels = (torch.rand(len(question), generator=draw) < 0.5).long()
    labels.view(questions, responses)[:, :2] = torch.tensor([0, 1])
    sizes = torch.randint(5, 9, (len(question),), generator=draw)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    states = torch.randn(int(offsets[-1]), HIDDEN * len(LAYERS), generator=draw)
    states += labels[torch.repeat_interleave(sizes), None] * 0.5
    masks = torch.zeros(len(states), len(VIEWS), dtype=torch.bool)
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        masks[start + 1 : end, 0] = masks[start : end - 1, 1] = masks[end - 2 : end, 2] = masks[start + 3, 3] = True
    return Features(states, offsets, labels, question, masks=masks, views=VIEWS)


def test_figures_are_those_of_the_evaluation():
    rng = np.random.default_rng(3)
    codes, rewards = rng.integers(0, 4, (12, 8)), np.round(rng.normal(size=(12, 8)), 1)
    labels = (codes == 1).astype(int)
    labels[0] = codes[0] = 0
    rollouts = [
        Rollout(f"q{q}", "p", [1], "r", [2], "stop", str(codes[q, i]), int(labels[q, i]), logprob_mean=-float(i))
        for q in range(12)
        for i in range(8)
    ]
    questions = TestQuestions(rollouts)
    found = questions.figures(torch.tensor(rewards).flatten())
    curves = rule_curves([[str(code) for code in row] for row in codes], labels.astype(float), {"swift": rewards})
    for name, rule in (("best_of_16", "swift_best"), ("vote_of_16", "swift_vote"), ("shrunk_of_16", "swift_shrunk")):
        np.testing.assert_allclose(found[name], curves[rule][:, -1], err_msg=name)
    assert np.isnan(found["auroc"][0]) and np.isfinite(found["auroc"]).sum() >= 8
    flat = questions.without_reward()
    np.testing.assert_allclose(flat["majority vote"]["vote_of_16"], curves["majority"][:, -1])
    np.testing.assert_allclose(flat["mean log-probability"]["best_of_16"], labels[:, 0])


def test_a_bank_is_read_at_once_as_each_head_reads_alone():
    features = make_features()
    config = SwiftConfig(HIDDEN, LAYERS, position="token")
    judged = fit_bank(features, head_plans(config, FitSettings(epochs=2)), LAYERS, VIEWS)
    found = bank_rewards(judged, features, LAYERS)
    assert set(found) == {one.plan.name for one in judged} | {PESSIMISTIC}
    for one in judged:
        view = VIEWS.index((one.rm.config.position, one.rm.config.region))
        columns = [HIDDEN * layer + i for layer in one.rm.config.layers for i in range(HIDDEN)]
        alone = []
        for start, end in zip(features.offsets[:-1].tolist(), features.offsets[1:].tolist(), strict=True):
            states = features.states[start:end][features.masks[start:end, view]][:, columns]
            alone.append(one.rm(states, torch.tensor([0, len(states)])).detach())
        torch.testing.assert_close(found[one.plan.name], torch.cat(alone), rtol=1e-3, atol=1e-4, msg=one.plan.name)
    spread = found[ENSEMBLE] - found[PESSIMISTIC]
    assert (spread > 0).all(), "what the heads disagree about is taken from the mean"
    assert len({tuple(np.round(rewards.tolist(), 6)) for rewards in found.values()}) > 15, "the variants differ"


def test_rivals_read_the_ends_and_the_marked_rows():
    features = make_features(questions=4)
    rows = rival_rows(features)
    for i, (start, end) in enumerate(zip(features.offsets[:-1].tolist(), features.offsets[1:].tolist(), strict=True)):
        kept = sorted({start + 1, start + 3, end - 2, end - 1})  # first token, a step's end, the answer
        for name, marked in (("steps", {start + 3}), ("answer", {end - 2, end - 1})):
            here = slice(int(rows[name].offsets[i]), int(rows[name].offsets[i + 1]))
            assert torch.equal(rows[name].states[here], features.states[kept])
            assert rows[name].boundary[here].tolist() == [row in marked for row in kept]
    with pytest.raises(ValueError, match="rivals read features of the views"):
        rival_rows(Features(features.states, features.offsets, features.labels, features.question))


def test_drawn_questions_are_whole_and_nested():
    features = make_features(questions=30)
    few, many = draw_questions(features, 10, seed=3), draw_questions(features, 20, seed=3)
    assert len(few.question.unique()) == 10 and set(few.question.tolist()) < set(many.question.tolist())
    assert (torch.bincount(few.question)[few.question] == 6).all()
    assert set(few.question.tolist()) != set(draw_questions(features, 10, seed=4).question.tolist())


def make_setting(name, values, number=0):
    rng = np.random.default_rng(number)
    base = rng.normal(0, 0.01, size=(4, 30))
    heads = {
        head: Measured({key: base + value for key in FIGURES}, parameters, 1.0) for head, (value, parameters) in values.items()
    }
    return Setting(name, heads, SeedResamples(4, 30, bootstrap=100, seed_seed=number), {})


def test_the_verdict_says_what_is_better_and_where():
    one = {"default": (0.7, 10), "dpo": (0.75, 10), "hinge": (0.6, 10), "large": (0.9, 50), "small": (0.7, 2),
           "weak": (0.5, 99), "strong": (0.8, 99)}  # fmt: skip
    other = one | {"weak": (0.72, 99), "dpo": (0.72, 10)}
    rows = table([make_setting("a", one), make_setting("b", other, 1)], ["weak", "strong"])
    said = verdict(rows)
    assert (said["best_head"], said["best_of_all"], said["goal_met"]) == ("dpo", "large", False)
    assert list(said["better_than_default"]) == ["dpo"]
    weak, strong = (said["default_at_least"][name] for name in ("weak", "strong"))
    assert weak["met"] and weak["below_in"] == ["b, auroc", "b, best_of_16"]
    assert weak["auroc"] == pytest.approx({"value": 0.09, "low": 0.09, "high": 0.09})
    assert not strong["met"] and strong["auroc"]["high"] < 0 and len(strong["below_in"]) == 4
    dpo = next(row for row in rows if row["head"] == "dpo")
    assert dpo["settings"]["b"]["difference"]["auroc"]["value"] == pytest.approx(0.02)
    lines = cells(rows)
    assert [line[0] for line in lines[1:]] == ["large", "strong", "dpo", "default", "small", "weak", "hinge"]
    assert len({len(line) for line in lines}) == 1


def test_a_table_is_aligned_and_is_json():
    rows = Table([{"a": 1}], [["head", "AUROC"], ["default", shown({"value": 0.5, "low": 0.25, "high": 0.75})]])
    assert str(rows) == "\nhead                 AUROC\ndefault  50.0 [25.0, 75.0]"
    assert json.loads(json.dumps(rows)) == [{"a": 1}]
    assert shown({"value": 0.5, "low": None, "high": None}) == "-"
    assert shown({"value": 0.011, "low": -0.02, "high": 0.03}, signed=True) == "+1.1 [-2.0, +3.0]"


def test_what_is_sampled_is_kept_and_not_another_run_s(tmp_path):
    asked = Asked("tiny-reasoner", "homework", "easy", "reward", 3, 2, 7)
    first = sampled(asked, tmp_path, VIEWS)
    content = (tmp_path / asked.file).read_bytes()
    again = sampled(asked, tmp_path)
    assert (tmp_path / asked.file).read_bytes() == content and again.rollouts == first.rollouts
    assert TestQuestions(first.rollouts).labels.shape == (3, 2) and first.features.masks.shape[1] == len(VIEWS)
    torch.testing.assert_close(again.features.states, first.features.states[first.features.masks[:, 0]], rtol=1e-4, atol=1e-4)
    assert len({Asked(*place, 3, 2, 7).file for place in (("m", "w", "d", "s"), ("m", "w", "s", "d"))}) == 2


def test_both_scripts_run_whole_and_share_what_they_sample(tmp_path):
    options = ("--quick", "--json", "--cache", tmp_path)
    figures = json.loads(run(ROOT / "benchmarks/heads/heads.py", *options))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    rows = {row["head"]: row for row in figures["table"]}
    assert {"default", "dpo", "answer only", PESSIMISTIC, "step encoder", "centroid rule"} <= set(rows)
    assert set(figures["default_at_least"]) == {name for name, row in rows.items() if row["kind"] == "rival"}
    assert figures["best_head"] in rows and set(figures["better_than_default"]) < set(rows)
    assert set(rows["dpo"]["settings"]) == set(figures["settings"]) == {"tiny-reasoner easy", "tiny-reasoner hard"}
    for row in rows.values():
        for place in (row["pooled"], *row["settings"].values()):
            assert all(place[key]["low"] <= place[key]["value"] <= place[key]["high"] for key in FIGURES)
    assert set(rows["default"]["pooled"]["difference"]["auroc"].values()) == {0.0}
    assert {"command", "device", "versions", "seeds", "step_encoder"} <= set(figures)
    labels = json.loads(run(ROOT / "benchmarks/heads/labels.py", *options))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "the responses of heads.py were sampled anew"
    assert [point["questions"] for point in labels["label_efficiency"]] == [12, 24]
    assert all({"auroc", "best_of_16"} <= set(point) for point in labels["label_efficiency"])
    places = [(row["train"], row["test"], "difference" in row) for row in labels["transfer"]]
    assert places == [("easy", "easy", False), ("hard", "easy", True), ("easy", "hard", True), ("hard", "hard", False)]
    assert {row["rule"] for row in labels["without_training"]} == {"majority vote", "mean log-probability"}
