"""The evidence for the default selection rule: its figures by hand, and the script whole at tiny sizes."""

import json

import numpy as np
import pytest

from benchmarks.decoding import over_optimisation
from swift_rm.evaluation.intervals import Resamples
from swift_rm.evaluation.rule_curves import rule_curves
from swift_rm.records.rollouts import Rollout
from tests.scripts import ROOT, run


def test_its_curves_are_those_of_the_evaluation():
    rng = np.random.default_rng(0)
    codes, rewards = rng.integers(0, 3, (20, 8)), rng.normal(size=(20, 8))
    labels = (codes == 1).astype(float)
    groups = [[Rollout("q", "p", [1], "r", [2], "stop", str(code), 0) for code in row] for row in codes]
    size = over_optimisation.Size(questions=20, n=8, train=0, few=0, seeds=0, subsets=100, bootstrap=0)
    found = over_optimisation.rule_curves(groups, labels, rng.random((20, 8)), rewards, size)
    expected = rule_curves([[str(code) for code in row] for row in codes], labels, {"swift": rewards}, vote_subsets=100)
    for rule, name in (("best", "swift_best"), ("vote", "swift_vote"), ("shrunk", "swift_shrunk"), ("majority", "majority")):
        np.testing.assert_allclose(found[rule], expected[name][:, [0, 1, 3, 7]], atol=1e-9, err_msg=rule)
    assert set(found) > {"best by length", "noisy-or", "mean"}


def test_falls_and_shortfalls_are_counted():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.01, (50, 1))
    curves = {
        "best": np.tile([0.5, 0.6, 0.55], (50, 1)) + noise,
        "vote": np.tile([0.5, 0.58, 0.7], (50, 1)) + noise,
        "shrunk": np.tile([0.5, 0.6, 0.69], (50, 1)) + noise,
    }
    found = {rule: over_optimisation.judged(curves, rule, Resamples(50, bootstrap=100)) for rule in curves}
    assert {rule: (one["falls"], one["below"]) for rule, one in found.items()} == {
        "best": (1, 1),
        "vote": (0, 1),
        "shrunk": (0, 1),
    }
    assert [one["value"] for one in found["shrunk"]["against_better"]] == pytest.approx([0.0, 0.0, -0.01])
    assert [one["value"] for one in found["best"]["gains"]] == pytest.approx([0.1, -0.05])


def test_heads_are_combined():
    heads = np.array([[[1.0, 2.0]], [[3.0, 2.0]]])
    found = {name: values.tolist() for name, values in over_optimisation.combined(heads).items()}
    assert found[", mean"] == [[2.0, 2.0]] and found[", min"] == [[1.0, 2.0]]
    assert found[", mean - 1.0 std"][0] == pytest.approx([2 - 2**0.5, 2.0])
    assert list(over_optimisation.combined(heads[:1])) == [""]


def test_the_script_prints_its_figures():
    figures = json.loads(run(ROOT / "benchmarks/decoding/over_optimisation.py", "--quick", "--json"))
    assert figures["default"] == "shrunk" and isinstance(figures["goal_met"], bool)
    (setting,) = figures["settings"]
    assert {
        "embedded",
        "head, seed 0",
        "ensemble, seed 0, mean",
        "ensemble, seed 0, mean - 1.0 std",
        "head of few questions, seed 0",
    } <= set(setting["rewards"])
    for table in setting["rewards"].values():
        firsts = {one["curve"][0]["value"] for one in table.values()}
        assert firsts == {setting["pass_rate"]}, "one candidate is the same for every rule"
        assert all(len(one["curve"]) == len(figures["n"]) == len(one["gains"]) + 1 for one in table.values())
    assert all(0 <= one["falls"] <= one["comparisons"] for one in figures["rules"].values())
