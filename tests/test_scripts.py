"""The scripts run whole at tiny sizes, so that they cannot rot; no time is measured here."""

import json
import os
import subprocess
import sys
from pathlib import Path

from swift_rm import SwiftRewardModel

ROOT = Path(__file__).parent.parent


def run(*command):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600, env=environment, cwd="/"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_scoring_benchmark_prints_its_figures():
    figures = json.loads(run(ROOT / "benchmarks/scoring.py", "--quick", "--json"))
    assert figures["score_vs_forward"] > 0
    assert 0 < figures["peak_bytes_at_512"] < 8 * figures["peak_bytes_at_64"], "512 responses may not hold eight times the states"
    assert {"command", "device", "versions"} <= set(figures)


def test_the_engine_benchmark_prints_its_figures():
    figures = json.loads(run(ROOT / "benchmarks/engine.py", "--quick", "--json"))
    keys = {"scoring_overhead", "best_of_n_vs_published", "best_of_n_vs_generate", "prune_tokens_saved", "stop_at_tokens_share"}
    assert keys <= set(figures)
    assert figures["best_of_n_vs_published"] > 0
    assert set(figures["prune_accuracy_loss"]) == {"value", "low", "high"}
    assert 0 < figures["prune_tokens_saved"] < 1 and 0 < figures["stop_at_tokens_share"] <= 1
    kept, stored = figures["bytes_per_candidate"], figures["stored_bytes_per_candidate"]
    assert len(set(kept.values())) == 1, "what is kept of a candidate does not depend on its length"
    assert stored["32"] == 4 * stored["8"] > kept["32"]
    shares = {one["n"]: one["share"] for one in figures["fewer_candidates_curve"]}
    assert shares[8] == 1 > shares[4] > shares[1], "a replay that reads all candidates spends all tokens"
    random = [one for one in figures["prune_curve"] if one["signal"] == "random"]
    assert all(0 <= one["saved"] < 1 for one in random) and len(random) > 1


def test_the_models_can_be_made_from_nothing(tmp_path):
    trainer, out = ROOT / "examples/train_tiny_reasoner.py", tmp_path / "lm"
    log = run(trainer, "--scale", 0.25, "--layers", 2, "--width", 32, "--last", "sums", "--out", out)
    assert "sums 100" in log
    run(trainer, "--init", out, "--first", "early", "--scale", 0.004, "--out", out)
    reward = ["--model", "tiny-reasoner", "--questions", 40, "-n", 4, "--test-questions", 10]
    table = run(ROOT / "examples/train_tiny_reward.py", *reward, "--out", tmp_path / "rm")
    assert "swift_vote" in table
    config = SwiftRewardModel.from_pretrained(tmp_path / "rm").config
    assert (config.evaluation["questions"], config.evaluation["n"]) == (10, 16)
