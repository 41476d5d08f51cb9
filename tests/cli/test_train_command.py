import importlib
import json

import pytest
import torch

from swift_rm.cli.main import main
from swift_rm.reward.reward_model import SwiftRewardModel

TINY = ["--model", "tiny-reasoner", "--dtype", "float32", "--device", "cpu"]
SMALL = ["--task", "homework", "--questions", "48", "-n", "4"]
BANK = '{"layers": ["all", "-1", [3, 4]], "loss": ["bce", "dpo"], "gate": [true, false]}'


def command(capsys, *arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    return (json.loads(out) if "--json" in arguments and code == 0 else out), err


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """Rollouts of the tiny reasoner and, written beside them, the states of both positions."""
    folder = tmp_path_factory.mktemp("sampled")
    out = ["--out", folder / "rollouts.jsonl", "--features", folder / "features", "--positions", "token", "generating"]
    out += ["--layers", "all"]
    arguments = ["sample", *TINY, *SMALL, *out, "--features-dtype", "float32", "--batch-size", "24"]
    assert main([str(argument) for argument in arguments]) == 0
    return folder


def test_heads_are_trained_while_sampling_and_the_table_is_told(tmp_path, capsys):
    arguments = ["train", "--online", *TINY, *SMALL, "--questions-per-batch", 24, "--out", tmp_path / "rm", "--bank", BANK]
    data, _ = command(capsys, *arguments, "--position", "token", "--save-rollouts", tmp_path / "r.jsonl", "--json")
    assert len(data["heads"]) == 12
    assert data["head"] in {row["name"] for row in data["heads"]}
    assert data["validation_auroc_within"] == max(round(row["auroc_within"]["value"], 4) for row in data["heads"])
    assert data["online"] and data["gradient_steps"] > 0 and 0 < data["seconds_training"] < data["seconds"]
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 192
    assert SwiftRewardModel.from_pretrained(tmp_path / "rm").config.training["online"]
    again, _ = command(capsys, *arguments, "--position", "token", "--save-rollouts", tmp_path / "r.jsonl")
    assert "AUROC within questions" in again and again.count("loss=dpo") >= 6


def test_a_store_trains_without_the_language_model_what_rollouts_train_with_it(sampled, tmp_path, capsys):
    more = ["--position", "token", "--json", "--epochs", 4, "--layers", "all"]
    stored, _ = command(capsys, "train", "--features", sampled / "features", "--out", tmp_path / "stored", *more)
    read, _ = command(capsys, "train", "--rollouts", sampled / "rollouts.jsonl", *TINY, "--out", tmp_path / "read", *more)
    assert stored["questions"] == read["questions"] and stored["shards"] == 1
    one, other = (SwiftRewardModel.from_pretrained(tmp_path / name) for name in ("stored", "read"))
    assert one.config.fingerprint == other.config.fingerprint and one.config.layers == other.config.layers
    assert stored["validation_auroc_within"] == pytest.approx(read["validation_auroc_within"], abs=0.02)
    weights = torch.stack([model.head.weight.detach().flatten() for model in (one, other)])
    assert torch.corrcoef(weights)[0, 1] > 0.999
    scored = ["score", *TINY, "--reward-model", tmp_path / "stored", "--input", sampled / "rollouts.jsonl"]
    command(capsys, *scored, "--out", tmp_path / "scored.jsonl")


def test_regions_of_a_store_need_the_tokenizer_only(sampled, tmp_path, capsys):
    arguments = ["train", "--features", sampled / "features", "--out", tmp_path / "rm", "--region", "steps:, ", "--json"]
    _, error = command(capsys, *arguments, code=2)
    assert "needs the tokenizer: give --model" in error
    data, _ = command(capsys, *arguments, "--model", "tiny-reasoner")
    assert data["questions"] > 0
    assert SwiftRewardModel.from_pretrained(tmp_path / "rm").config.region == "steps:, "


def test_a_store_of_another_tokenizer_is_refused_and_a_bank_reads_parts_of_it(sampled, tmp_path, capsys, tokenizer):
    tokenizer.save_pretrained(tmp_path / "other")
    edited = json.loads((tmp_path / "other/tokenizer.json").read_text().replace('"so "', '"sO "'))
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(edited))
    arguments = ["train", "--features", sampled / "features", "--out", tmp_path / "rm"]
    _, error = command(capsys, *arguments, "--region", "steps:, ", "--model", tmp_path / "other", code=2)
    assert "was sampled by tiny-reasoner, whose vocabulary" in error
    bank = '{"layers": ["all", "-1", [-2, -1]], "position": ["token", "generating"], "region": ["response", "steps:zzz"]}'
    data, _ = command(capsys, *arguments, "--model", "tiny-reasoner", "--bank", bank, "--epochs", 2, "--json")
    assert [row["layers"] for row in data["heads"]][::4] == [[0, 1, 2, 3, 4], [4], [3, 4]]
    assert data["marker_missing"] == 192, "regions that could not be had are counted"


def test_features_are_described_and_estimated(sampled, capsys):
    data, _ = command(capsys, "features", sampled / "features", "--verify", "--json")
    assert (data["questions"], data["responses"], data["broken"]) == (48, 192, {})
    estimate, _ = command(capsys, "features", "--model", "tiny-reasoner", "--questions", 6000, "--tokens", 300, "--json")
    assert estimate["bytes"] == 6000 * 8 * 300 * 5 * 96 * 2
    _, error = command(capsys, "features", code=2)
    assert "name either the folder" in error


def test_a_store_that_lost_a_shard_is_mended_by_the_same_command(sampled, tmp_path, capsys):
    (shard,) = sorted((sampled / "features").glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    _, error = command(capsys, "train", "--features", sampled / "features", "--out", tmp_path / "rm", code=2)
    assert shard.name in error
    out = ["--out", sampled / "rollouts.jsonl", "--features", sampled / "features", "--positions", "token", "generating"]
    out += ["--layers", "all"]
    before = (sampled / "rollouts.jsonl").read_bytes()
    with pytest.warns(UserWarning, match=shard.name):
        command(capsys, "sample", *TINY, *SMALL, *out, "--features-dtype", "float32", "--batch-size", "24")
    assert (sampled / "rollouts.jsonl").read_bytes() == before
    mended, _ = command(capsys, "features", sampled / "features", "--verify", "--json")
    assert (mended["responses"], mended["broken"]) == (192, {})


def test_the_last_two_layers_are_read_unless_told_otherwise_and_all_of_a_store(sampled, tmp_path, capsys):
    from_rollouts = ["train", "--rollouts", sampled / "rollouts.jsonl", *TINY, "--epochs", 1, "--json"]
    command(capsys, *from_rollouts, "--out", tmp_path / "two")
    command(capsys, *from_rollouts, "--out", tmp_path / "bank", "--bank", '{"layers": ["all"]}')
    command(capsys, "train", "--features", sampled / "features", "--epochs", 1, "--out", tmp_path / "store")
    found = {name: SwiftRewardModel.from_pretrained(tmp_path / name).config.layers for name in ("two", "bank", "store")}
    assert found == {"two": (3, 4), "bank": (0, 1, 2, 3, 4), "store": (0, 1, 2, 3, 4)}


def test_a_label_curve_reads_the_states_once_and_judges_on_the_held_out_questions(sampled, tmp_path, capsys, monkeypatch):
    fit = importlib.import_module("swift_rm.training.fit")  # the package has a function of that name
    reads, read = [], fit.extract_features
    monkeypatch.setattr(fit, "extract_features", lambda *args, **kwargs: reads.append(1) or read(*args, **kwargs))
    curves = {}
    sources = {"read": ["--rollouts", sampled / "rollouts.jsonl", *TINY], "stored": ["--features", sampled / "features"]}
    for name, source in sources.items():
        file = tmp_path / name / "curve.json"
        more = ["--label-curve", file, "--epochs", 4, "--position", "token", "--bank", BANK, "--json"]
        data, _ = command(capsys, "train", *source, "--out", tmp_path / "rm", *more)
        curves[name] = json.loads(file.read_text())
        assert data["label_curve"] == str(file) and curves[name]["validation_questions"] == data["validation_questions"]
        assert [row["questions"] for row in curves[name]["label_efficiency"]][-1] == data["questions"]
    assert reads == [1]
    assert (curves["read"]["seeds"], curves["read"]["n"]) == (3, 4)
    assert {tuple(row) for row in curves["read"]["label_efficiency"]} == {("questions", "auroc", "best", "shrunk")}
    assert {tuple(row) for row in curves["stored"]["label_efficiency"]} == {("questions", "auroc", "best")}, "it has no answers"


def test_a_label_curve_that_cannot_be_is_refused_before_training_and_one_that_is_stopped_costs_no_head(
    sampled, tmp_path, capsys, monkeypatch
):
    curve = importlib.import_module("swift_rm.training.label_curve")
    arguments = ["train", "--features", sampled / "features", "--epochs", 1, "--out", tmp_path / "rm", "--label-curve"]
    _, error = command(capsys, *arguments, tmp_path, code=2)
    assert f"{tmp_path} is a folder" in error and error.count("\n") == 1
    _, error = command(capsys, *arguments, sampled / "rollouts.jsonl" / "curve.json", code=1)
    assert "rollouts.jsonl" in error and error.count("\n") == 1
    _, error = command(capsys, *arguments, tmp_path / "c.json", "--validation", 0.9, code=2)
    assert "a label curve trains on half of the" in error and not (tmp_path / "rm").exists()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(curve, "train_bank", interrupted)
    _, error = command(capsys, *arguments, tmp_path / "c.json", code=130)
    assert f"stopped; the reward model is in {tmp_path / 'rm'}" in error and not (tmp_path / "c.json").exists()
    assert SwiftRewardModel.from_pretrained(tmp_path / "rm").config.training["questions"] > 0


def test_preference_pairs_train_a_reward(tmp_path, capsys):
    pairs = [{"prompt": f"{i % 90 + 10}+{i % 7 + 10}", "chosen": f"so {i % 10}", "rejected": f"hmm {i % 10}"} for i in range(120)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    arguments = ["train", "--pairs", tmp_path / "pairs.jsonl", *TINY, "--out", tmp_path / "rm", "--json"]
    data, _ = command(capsys, *arguments)
    assert data["loss"] == "dpo" and data["pairs"] == 120 and data["validation_auroc_within"] > 0.95
    lines = [{"prompt": "12+12", "response": text} for text in ("so 5", "hmm 5")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command(
        capsys, "score", *TINY, "--reward-model", tmp_path / "rm", "--input", tmp_path / "in.jsonl", "--out", tmp_path / "o.jsonl"
    )
    chosen, rejected = (json.loads(line)["reward"] for line in (tmp_path / "o.jsonl").read_text().splitlines())
    assert chosen > rejected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "train needs one of --rollouts, --pairs, --features and --online, got 0"),
        (["--online", "--features", "x"], "got 2"),
        (["--online"], "--online needs the language model: --model"),
        (["--online", "--model", "tiny-reasoner"], "--online needs the questions: --task"),
        (["--online", *TINY, *SMALL, "--bank", "{"], "--bank must be a JSON object of lists"),
        (["--online", *TINY, *SMALL, "--bank", "[1]"], "--bank must be a JSON object of lists"),
        (["--online", *TINY, *SMALL, "--bank", '{"depth": [1]}'], "got 'depth'"),
        (["--features", "nowhere"], "nowhere"),
        (
            ["--online", *TINY, *SMALL, "--epochs", "3"],
            "--epochs goes with --rollouts or --pairs or --features, not",
        ),
        (["--online", *TINY, *SMALL, "--batch-size", "3"], "--batch-size goes with --rollouts or --pairs"),
        (["--features", "x", "--task", "homework"], "--task goes with --online, not with --features"),
        (
            ["--online", *TINY, *SMALL, "--label-curve", "curve.json"],
            "--label-curve goes with --rollouts or --pairs or --features, not with --online",
        ),
        (["--features", "x", "--max-gib", "1"], "--max-gib goes with --rollouts or --pairs"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(arguments, message, tmp_path, capsys):
    _, error = command(capsys, "train", *arguments, "--out", tmp_path / "rm", code=2)
    assert message in error and error.count("\n") == 1
