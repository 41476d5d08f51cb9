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
