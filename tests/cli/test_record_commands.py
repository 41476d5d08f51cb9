"""From the records of an API to rewards: train, score and evaluate without the language model."""

import json
from dataclasses import replace

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.cli.main import main
from swift_rm.records.rollouts import read_rollouts
from swift_rm.selection.baselines import mean_logprob
from tests.api.api_records import sampled_records

QUESTIONS, N, TRAIN = 90, 5, 65
TINY = ["--model", "tiny-reasoner", "--dtype", "float32", "--device", "cpu"]
TOP = ["--source", "top_logprobs"]


def command(capsys, *arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    return (json.loads(out) if "--json" in arguments and code == 0 else out), err


def write(path, rollouts):
    path.write_text("".join(rollout.to_json() + "\n" for rollout in rollouts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Files to train on and to score: the tiny reasoner's answers to easy homework, as an API would give them."""
    folder = tmp_path_factory.mktemp("records")
    _, local, api = sampled_records(QUESTIONS, N, 20)
    for name, rollouts in (("local", local), ("api", api)):
        write(folder / f"{name}-train.jsonl", rollouts[: TRAIN * N])
        write(folder / f"{name}-test.jsonl", rollouts[TRAIN * N :])
    assert main(["train", "--rollouts", str(folder / "api-train.jsonl"), *TOP, "--loss", "dpo", "--out", str(folder / "rm")]) == 0
    return folder


def test_a_head_is_trained_scored_with_and_evaluated_without_the_language_model(records, tmp_path, capsys):
    config = SwiftRewardModel.from_pretrained(records / "rm").config
    weight = SwiftRewardModel.from_pretrained(records / "rm").head.weight.detach()
    assert float(weight.abs().max()) < 1000, "the twenty likeliest of forty tokens leave hardly any mass: it must not count"
    assert (config.source, config.top_logprobs, config.base_model, config.width) == ("top_logprobs", 20, "tiny-reasoner", 62)
    scored = tmp_path / "scored.jsonl"
    said, _ = command(
        capsys, "score", "--reward-model", records / "rm", "--input", records / "api-test.jsonl", "--out", scored, "--json"
    )
    assert said["responses"] == (QUESTIONS - TRAIN) * N
    page = ["--report", tmp_path / "page.html", "--out", tmp_path / "charts"]
    data, _ = command(capsys, "evaluate", scored, "--deepconf-window", 8, "--json", *page)
    assert data["auroc_within"]["swift"]["value"] > 0.6
    assert {"length", "mean_logprob", "sum_logprob", "min_logprob", "deepconf_mean", "deepconf_bottom"} < set(
        data["auroc_within"]
    )
    assert "self_certainty" not in data["auroc_within"] and "self_certainty_borda" not in data["accuracy"]
    rollouts = read_rollouts(scored)
    assert data["tokens_per_response"] == pytest.approx(
        sum(len(rollout.extra["token_logprobs"]) for rollout in rollouts) / len(rollouts)
    )
    assert f"of {data['tokens_per_response']:.1f} tokens on average" in (tmp_path / "page.html").read_text()
    table, _ = command(capsys, "evaluate", scored)
    assert "swift_best" in table and "nan" not in table.lower()
    side, _ = command(capsys, "compare", scored, "--rules", "swift_best", "mean_logprob", "--json")
    assert side["a"]["tokens_per_question"] == pytest.approx(N * data["tokens_per_response"])


def test_what_the_records_say_is_what_a_pass_of_the_model_says(records, tmp_path, capsys):
    score = ["score", "--reward-model", records / "rm", "--input"]
    command(capsys, *score, records / "api-test.jsonl", "--out", tmp_path / "records.jsonl")
    command(capsys, *score, records / "local-test.jsonl", *TINY, "--out", tmp_path / "pass.jsonl")
    from_records, from_pass = read_rollouts(tmp_path / "records.jsonl"), read_rollouts(tmp_path / "pass.jsonl")
    assert [one.reward for one in from_records] == pytest.approx([one.reward for one in from_pass], abs=1e-3)
    command(capsys, *score, records / "api-test.jsonl", *TINY, "--out", tmp_path / "text.jsonl")
    again = read_rollouts(tmp_path / "text.jsonl")
    assert [one.reward for one in again] == pytest.approx([one.reward for one in from_pass], abs=1e-3), "the texts are encoded"


def test_fewer_alternatives_are_read_by_a_head_that_was_trained_on_fewer(records, tmp_path, capsys):
    rollouts = read_rollouts(records / "api-test.jsonl")
    few = [replace(one, extra={**one.extra, "top_logprobs": [row[:2] for row in one.extra["top_logprobs"]]}) for one in rollouts]
    path = write(tmp_path / "few.jsonl", few)
    _, error = command(
        capsys, "score", "--reward-model", records / "rm", "--input", path, "--out", tmp_path / "out.jsonl", code=2
    )
    assert "few.jsonl: response " in error and "has 2 alternatives, but the reward model reads 20" in error
    assert not (tmp_path / "out.jsonl").exists()
    train = ["train", "--rollouts", path, *TOP, "--epochs", 2, "--out", tmp_path / "two"]
    _, error = command(capsys, *train, code=2)
    assert "(question " in error and "--top 2" in error
    data, _ = command(capsys, *train, "--top", 2, "--bank", '{"loss": ["bce", "dpo"]}', "--json")
    assert (data["source"], len(data["heads"])) == ("top_logprobs", 2)
    command(capsys, "score", "--reward-model", tmp_path / "two", "--input", path, "--out", tmp_path / "out.jsonl")
    assert all(one.reward is not None for one in read_rollouts(tmp_path / "out.jsonl"))


def test_a_label_curve_is_drawn_from_records_and_empty_responses_are_counted(records, tmp_path, capsys):
    rollouts = read_rollouts(records / "api-train.jsonl")
    nothing = {**rollouts[0].extra, "sample": 99, "token_logprobs": [], "top_logprobs": [], "token_confidence": []}
    path = write(tmp_path / "r.jsonl", [*rollouts, replace(rollouts[0], label=0, extra=nothing)])
    arguments = ["train", "--rollouts", path, *TOP, "--epochs", 2, "--label-curve", tmp_path / "c.json", "--out", tmp_path / "rm"]
    data, _ = command(capsys, *arguments, "--json")
    assert data["empty_responses"] == 1 and data["questions"] + data["validation_questions"] == TRAIN
    curve = json.loads((tmp_path / "c.json").read_text())
    assert len(curve["label_efficiency"]) >= 2 and "shrunk" in curve["label_efficiency"][0]
    said, _ = command(
        capsys, "score", "--reward-model", tmp_path / "rm", "--input", path, "--out", tmp_path / "s.jsonl", "--json"
    )
    assert said["region_empty"] == 1
    last = json.loads((tmp_path / "s.jsonl").read_text().splitlines()[-1])
    assert (last["reward"], last["probability"], last["flag"]) == (None, None, "region_empty")
    command(capsys, "evaluate", tmp_path / "s.jsonl", "-n", N)


def test_a_response_of_its_end_token_alone_is_left_out_of_training_with_the_model_too(records, tmp_path, capsys):
    local = read_rollouts(records / "local-train.jsonl")
    local[3] = replace(local[3], response="", response_ids=[2], extra={"sample": 3})
    path = write(tmp_path / "r.jsonl", local)
    data, _ = command(capsys, "train", "--rollouts", path, *TOP, *TINY, "--epochs", 1, "--out", tmp_path / "rm", "--json")
    assert data["empty_responses"] == 1


def test_files_that_number_other_questions_alike_are_told_apart_by_their_prompts(records, tmp_path, capsys):
    rollouts = read_rollouts(records / "api-train.jsonl")
    names = {name: f"q{i % 40}" for i, name in enumerate(dict.fromkeys(one.question_id for one in rollouts))}
    alike = [replace(one, question_id=names[one.question_id]) for one in rollouts]
    halves = write(tmp_path / "a.jsonl", alike[: 40 * N]), write(tmp_path / "b.jsonl", alike[40 * N :])
    data, _ = command(capsys, "train", "--rollouts", *halves, *TOP, "--epochs", 1, "--out", tmp_path / "rm", "--json")
    assert data["questions"] + data["validation_questions"] == TRAIN


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rollouts", "R"], "--rollouts needs the language model: --model"),
        (["--rollouts", "R", "--source", "logits"], "--rollouts needs the language model: --model"),
        (["--pairs", "R", *TOP], "--pairs needs the language model: --model"),
        (["--online", *TOP, *TINY], "--online learns from hidden states or logits.*sample --top-logprobs.*--rollouts"),
        (["--features", "R", "--source", "logits"], "--source goes with --rollouts or --pairs or --online, not with --features"),
        (["--rollouts", "R", *TINY, "--top", "20"], "--top goes with --source top_logprobs, not with --source hidden"),
        (["--rollouts", "R", *TOP, "--top", "21"], "top_logprobs must be 0 to 20 alternatives, got 21"),
        (["--rollouts", "R", *TOP, "--top", "-1"], "top_logprobs must be 0 to 20 alternatives, got -1"),
        (["--rollouts", "R", *TOP, "--device", "cpu"], "--device goes with --model"),
        (["--rollouts", "R", *TOP, "--batch-size", "8"], "--batch-size goes with --model"),
        (["--rollouts", "R", *TOP, "--layers", "-2"], "goes with --source hidden: the source 'top_logprobs' is made after"),
        (
            ["--rollouts", "R", "--source", "logits", *TINY],
            r"rollout 0 .* has no token ids; records of an API .* 'top_logprobs', without",
        ),
        (["--rollouts", "R", *TOP, "--position", "token"], "got .* position 'token'"),
        (["--rollouts", "R", *TOP, "--region", "after:so"], "reads whole responses, got region 'after:so'"),
        (["--rollouts", "R", *TOP, "--bank", '{"layers": ["all", "-1"]}'], "layers cannot be varied: the source 'top_logprobs'"),
        (["--rollouts", "R", "--source", "logits", *TINY, "--bank", '{"layers": [[3]]}'], "layers cannot be varied: .* 'logits'"),
    ],
)
def test_what_a_source_cannot_do_is_refused_by_name(records, tmp_path, capsys, arguments, said):
    given = [str(records / "api-train.jsonl") if one == "R" else one for one in arguments]
    _, error = command(capsys, "train", *given, "--out", tmp_path / "rm", code=2)
    assert error.count("\n") == 1
    with pytest.raises(AssertionError, match=said):  # the message is matched as a pattern
        raise AssertionError(error)
    assert not (tmp_path / "rm").exists()


def test_options_that_mean_the_same_are_taken(records, tmp_path, capsys):
    same = ["--layers", "-1", "--position", "generating", "--region", "response", "--epochs", 1]
    command(capsys, "train", "--rollouts", records / "api-train.jsonl", *TOP, *same, "--out", tmp_path / "rm")
    assert SwiftRewardModel.from_pretrained(tmp_path / "rm").config.layers == (-1,)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--tokens"], "--tokens goes with --model: records of log-probabilities do not hold the tokens' texts"),
        (["--ray"], "--ray goes with --model"),
        (["--dtype", "float32"], "--dtype goes with --model"),
        (["--batch-size", "3"], "--batch-size goes with --model"),
        (["--reward-model", "tiny-reasoner-reward"], "reads hidden states, which records do not hold: give --model"),
    ],
)
def test_what_cannot_be_scored_without_a_model_is_refused_by_name(records, tmp_path, capsys, more, said):
    arguments = ["score", "--reward-model", records / "rm", "--input", records / "api-test.jsonl", "--out", tmp_path / "s.jsonl"]
    _, error = command(capsys, *arguments, *more, code=2)
    assert said in error and not (tmp_path / "s.jsonl").exists()


def test_a_bad_line_is_named_with_its_file(records, tmp_path, capsys):
    good = (records / "api-test.jsonl").read_text().splitlines()[:2]
    for change, said in (
        ({"top_logprobs": [[-1.0, "x"]]}, "bad.jsonl:2: not a rollout record: 'top_logprobs[0][1]' must be a number or null"),
        ({"token_logprobs": None}, "bad.jsonl: response 1 (question "),
    ):
        bad = {**json.loads(good[1]), **change}
        (tmp_path / "bad.jsonl").write_text(f"{good[0]}\n{json.dumps(bad)}\n")
        arguments = ["--reward-model", records / "rm", "--input", tmp_path / "bad.jsonl", "--out", tmp_path / "s.jsonl"]
        _, error = command(capsys, "score", *arguments, code=2)
        assert said in error


def test_sampling_keeps_what_a_head_is_trained_on_with_and_without_the_model(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    task = ["--task", "homework:reward:easy", "--questions", 40, "-n", 4, "--batch-size", 40]
    command(capsys, "sample", *TINY, *task, "--top-logprobs", 3, "--out", path)
    rollouts = read_rollouts(path)
    assert {len(row) for one in rollouts for row in one.extra["top_logprobs"]} == {3}
    assert all(one.extra["end_token"] == (one.finish_reason == "stop") for one in rollouts)
    assert [mean_logprob(one) for one in rollouts] == pytest.approx([one.logprob_mean for one in rollouts], abs=1e-4)
    train = ["train", "--rollouts", path, *TOP, "--top", 3, "--epochs", 4, "--out"]
    command(capsys, *train, tmp_path / "records")
    command(capsys, *train, tmp_path / "pass", *TINY)
    one, other = (SwiftRewardModel.from_pretrained(tmp_path / name) for name in ("records", "pass"))
    assert (other.config.fingerprint, one.config.fingerprint) != (None, None) and one.config.fingerprint is None
    weights = torch.stack([model.head.weight.detach().flatten() for model in (one, other)])
    assert torch.corrcoef(weights)[0, 1] > 0.999


def test_logits_train_from_rollouts_pairs_and_while_sampling(records, tmp_path, capsys):
    logits = ["--source", "logits", *TINY, "--epochs", 2]
    local = records / "local-train.jsonl"
    command(capsys, "train", "--rollouts", local, *logits, "--out", tmp_path / "rollouts")
    rollouts = read_rollouts(local)
    pairs = [
        {"prompt_ids": right.prompt_ids, "chosen_ids": right.response_ids, "rejected_ids": wrong.response_ids}
        for right in rollouts for wrong in rollouts
        if (right.question_id, right.label, wrong.label) == (wrong.question_id, 1, 0)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs[::3]))
    command(capsys, "train", "--pairs", tmp_path / "pairs.jsonl", *logits, "--out", tmp_path / "pairs")
    task = ["--task", "homework:reward:easy", "--questions", 40, "-n", 4, "--questions-per-batch", 20]
    command(capsys, "train", "--online", *logits[:-2], *task, "--out", tmp_path / "online")
    for name in ("rollouts", "pairs", "online"):
        config = SwiftRewardModel.from_pretrained(tmp_path / name).config
        assert (config.source, config.width, config.layers) == ("logits", 40, (4,)), name


def test_the_card_says_what_is_read_and_how_it_is_used(tmp_path):
    for name, config, expected in (
        ("top", SwiftConfig.of_top_logprobs(5, base_model="org/m"), (
            "# Log-probabilities reward model", "| source | top_logprobs |", "| alternatives a token | 5 |",
            "| features a token | 44, version 1 |", "swift-rm score --reward-model MODEL --input api.jsonl",
            'ApiBestOfN("org/m", ', "swift-rm best-of-n --api URL --model org/m",
        )),
        ("logits", SwiftConfig.of_logits(101), ("# Logits reward model", "| vocabulary | 101 |", "--model BASE --reward-model")),
        ("hidden", SwiftConfig(8, (-1,)), ("# Hidden-state reward model", "| hidden size | 8 |", "| layers | -1 of 0..? |")),
    ):  # fmt: skip
        SwiftRewardModel(config).save_pretrained(tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        assert all(line in card for line in expected), card
        assert ("layers" in card) == (name == "hidden")
