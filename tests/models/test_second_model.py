"""The same pipeline by hand on a model of another architecture, with no change of code.

``tests/models/second_model`` is a GPT-NeoX of random initialisation, trained for seven minutes on two cores by

    T="python examples/train_tiny_reasoner.py --seed 1 --out tests/models/second_model"
    $T --architecture gpt_neox --layers 3 --width 64 --last sums
    $T --init tests/models/second_model --first late --last late --scale 0.2
    $T --init tests/models/second_model --first late --last late --scale 0.4 --seed 2

It answers few questions and has not learnt to check itself, so its reward ranks no better than chance. What is tested is that
everything runs and agrees with the formula on a model that nothing was written for.
"""

import json
from pathlib import Path

import pytest

from swift_rm import SwiftRewardModel
from swift_rm.cli.main import main
from swift_rm.models.load import load_language_model
from tests.reward_models import by_the_formula

SECOND = Path(__file__).parent / "second_model"


def run(capsys, *arguments):
    code = main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def test_sample_train_evaluate_on_another_architecture(capsys, tmp_path):
    model = ["--model", SECOND]
    assert all(row["passed"] for row in run(capsys, "check-model", SECOND))
    for split, questions, n in (("reward", 200, 8), ("test", 80, 8)):
        out = ["--out", tmp_path / f"{split}.jsonl", "--max-new-tokens", 100, "--batch-size", 64]
        sampled = run(capsys, "sample", *model, "--task", f"homework:{split}", "--questions", questions, "-n", n, *out)
        assert sampled["right"] > 20, "the second model should get some answers right"
        assert sampled["not_right"] > 20
    trained = run(capsys, "train", *model, "--rollouts", tmp_path / "reward.jsonl", "--out", tmp_path / "rm", "--layers", "all")
    config = SwiftRewardModel.from_pretrained(tmp_path / "rm").config
    assert (config.base_model, config.base_layers, config.hidden_size) == ("second_model", 3, 64)
    assert trained["parameters"] == 2 * 4 * 64 + 2
    files = ["--input", tmp_path / "test.jsonl", "--out", tmp_path / "scored.jsonl"]
    run(capsys, "score", *model, "--reward-model", tmp_path / "rm", *files)
    language_model, _ = load_language_model(str(SECOND), progress=False)
    rm = SwiftRewardModel.from_pretrained(tmp_path / "rm")
    for line in (tmp_path / "scored.jsonl").read_text().splitlines()[::40]:
        record = json.loads(line)
        expected = by_the_formula(language_model, rm, record["prompt_ids"], record["response_ids"])
        assert record["reward"] == pytest.approx(expected, abs=1e-4)
    report = run(capsys, "evaluate", tmp_path / "scored.jsonl")
    assert report["questions"] == 80
    assert report["accuracy"]["oracle"]["value"] > report["accuracy"]["swift_best"]["value"] > 0
    code = main(["best-of-n", "--model", str(SECOND), "--reward-model", "tiny-reasoner-reward", "27+15-08"])
    assert code == 2
    assert "trained on tiny-reasoner" in capsys.readouterr().err
