import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from swift_rm import SwiftRewardModel
from swift_rm.cli.loading import parse_layers
from swift_rm.cli.main import COMMANDS, main, module_of
from swift_rm.files.text import printable
from swift_rm.models.load import ASSETS
from tests.scripts import ROOT

TINY = ["--model", "tiny-reasoner"]
REWARD = ["--reward-model", "tiny-reasoner-reward"]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    out = tmp_path_factory.mktemp("rollouts") / "rollouts.jsonl"
    assert main(["sample", *TINY, "--task", "homework", "--questions", "60", "-n", "4", "--out", str(out)]) == 0
    return out


def test_sample_train_score_evaluate_by_hand(capsys, sampled, tmp_path):
    code, out, _ = run(capsys, "train", *TINY, "--rollouts", sampled, "--out", tmp_path / "rm", "--layers", "-2,-1", "--json")
    assert code == 0
    trained = json.loads(out)
    assert trained["questions"] + trained["validation_questions"] == 60
    assert SwiftRewardModel.from_pretrained(tmp_path / "rm").config.base_model == "tiny-reasoner"
    scored = tmp_path / "scored.jsonl"
    code, out, _ = run(capsys, "score", *TINY, "--reward-model", tmp_path / "rm", "--input", sampled, "--out", scored, "--json")
    assert code == 0
    assert json.loads(out)["responses"] == 240
    code, out, _ = run(capsys, "evaluate", scored, "--reward-model", tmp_path / "rm", "--json")
    report = json.loads(out)
    assert code == 0
    assert {"questions", "n", "accuracy", "paired", "auroc_within", "tokens_per_response", "seconds"} <= set(report)
    assert (report["questions"], report["n"]) == (60, 4)
    for rule in ("first", "majority", "mean_logprob", "swift_best", "swift_vote", "oracle"):
        assert set(report["accuracy"][rule]) == {"value", "low", "high"}
    assert "60 questions, 4 responses each" in (tmp_path / "rm" / "README.md").read_text()
    code, out, _ = run(capsys, "evaluate", scored)
    assert code == 0
    assert "swift_best" in out


def test_score_reads_plain_text_too(capsys, tmp_path):
    messages = [{"role": "user", "content": "27+15-08"}]
    (tmp_path / "in.jsonl").write_text(
        json.dumps({"prompt": messages, "response": "<think>27+15=42, </think>", "mine": 7}) + "\n"
    )
    code, _, _ = run(capsys, "score", *TINY, *REWARD, "--input", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    record = json.loads((tmp_path / "out.jsonl").read_text())
    assert code == 0
    assert record["mine"] == 7
    assert 0 <= record["probability"] <= 1


def test_best_of_n_marks_the_chosen_candidate(capsys, monkeypatch):
    command = ["best-of-n", *TINY, *REWARD, "-n", 4, "--select", "vote", "27+15-08", "31-14+22"]
    code, out, _ = run(capsys, *command)
    records = [json.loads(line) for line in out.splitlines()]
    assert (code, len(records)) == (0, 2), "off a terminal there is a line of JSON for each question"
    assert all(record["best"] in record["candidates"] for record in records)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, _ = run(capsys, *command)
    assert code == 0
    assert out.count("\n* ") == 2
    code, out, _ = run(capsys, "best-of-n", *TINY, *REWARD, "-n", 4, "27+15-08", "--json")
    result = json.loads(out)[0]
    assert len(result["candidates"]) == 4
    of_its_answer = [one for one in result["candidates"] if one["answer"] == result["best"]["answer"]]
    assert result["best"] == of_its_answer[0], "of the candidates with the chosen answer the highest reward should be shown"
    _, out, _ = run(capsys, "best-of-n", *TINY, *REWARD, "-n", 4, "27+15-08", "--json", "--select", "best")
    assert json.loads(out)[0]["best"] == result["candidates"][0]
    assert (result["ended"], result["tokens_saved"]) == ("all", 0)
    assert result["tokens_spent"] == sum(len(candidate["token_ids"]) for candidate in result["candidates"])


def test_demo_prints_one_json_object(capsys):
    code, out, _ = run(capsys, "demo", "--questions", 20, "-n", 4, "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["questions"], report["n"]) == (20, 4)
    assert [point["k"] for point in report["curves"]["swift_best"]] == [1, 2, 3, 4]


def test_check_model_passes_on_the_embedded_model(capsys):
    code, out, _ = run(capsys, "check-model", "tiny-reasoner")
    assert code == 0
    assert "FAIL" not in out
    assert out.count("ok") >= 5


def test_import_published(capsys, tmp_path):
    torch.save({"fused_layer.weight": torch.ones(2, 24), "fused_layer.bias": torch.zeros(2)}, tmp_path / "best.pt")
    arguments = ["import-published", tmp_path / "best.pt", "--hidden-size", 8, "--base-model", "org/m", "--out", tmp_path / "rm"]
    assert run(capsys, *arguments, "--layers", "0-2")[0] == 0
    assert SwiftRewardModel.from_pretrained(tmp_path / "rm").config.layers == (0, 1, 2)
    code, _, error = run(capsys, *arguments, "--layers", "0-3")
    assert code == 2
    assert "24 weights per row, but 4 layers x hidden size 8 = 32" in error


@pytest.mark.parametrize(
    ("text", "layers"),
    [("all", (0, 1, 2, 3)), ("-2,-1", (-2, -1)), ("0-2", (0, 1, 2)), ("0,2-3", (0, 2, 3)), (" 1 , 3 ", (1, 3))],
)
def test_layers_are_read(text, layers):
    assert parse_layers(text, 3) == layers


@pytest.mark.parametrize("text", ["", "a", "1-", "1,,2", "1.5"])
def test_what_names_no_layers_is_refused(text):
    with pytest.raises(ValueError, match=r"layers must be 'all' or like"):
        parse_layers(text, 3)


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[31m\nb\u202ec\r") == "a [31m b c "


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", *TINY, "--rollouts", "{tmp}/none.jsonl", "--out", "{tmp}/rm"], 2, "none.jsonl"),
        (["evaluate", "{tmp}/bad.jsonl"], 2, "bad.jsonl:1: not valid JSON"),
        (["sample", *TINY, "--task", "{tmp}/bad.jsonl", "--out", "{tmp}/o"], 2, "bad.jsonl"),
        (["sample", *TINY, "--task", "{tmp}/fields.jsonl", "--out", "{tmp}/o"], 2, "fields.jsonl"),
        (["sample", *TINY, "--task", "homework:exam", "--out", "{tmp}/o"], 2, "exam"),
        (["sample", *TINY, "--task", "homework", "--out", "{tmp}/o", "-n", "0"], 2, "n and batch_size must be at least 1, got 0"),
        (["best-of-n", *TINY, "--reward-model", "{tmp}", "27+15"], 2, "it has no config.json and no model.safetensors"),
        (["best-of-n", *TINY, *REWARD, "--dtype", "float7", "27+15"], 2, "float7"),
        (["best-of-n", *TINY, *REWARD], 2, "give questions either as text or with --input, got neither"),
        (["best-of-n", *TINY, *REWARD, "--input", "{tmp}/bad.jsonl", "--out", "-"], 2, "bad.jsonl:1: not valid JSON"),
    ],
)
def test_misuse_is_one_sentence_on_stderr_and_exit_code_2(capsys, tmp_path, arguments, code, message):
    (tmp_path / "bad.jsonl").write_text('{"question": \n')
    (tmp_path / "fields.jsonl").write_text('{"text": "1+1", "solution_of_it": "2"}\n')
    got, out, error = run(capsys, *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert got == code
    assert out == ""
    assert message in error
    assert error.startswith("swift-rm: ")
    assert error.count("\n") == 1


def test_files_of_the_same_questions_are_joined_and_of_others_under_the_same_id_told_apart(capsys, sampled, tmp_path):
    records = [json.loads(line) for line in sampled.read_text().splitlines()]
    again = [{**record, "sampling": {**record["sampling"], "seed": 1}} for record in records]
    (tmp_path / "again.jsonl").write_text("".join(json.dumps(record) + "\n" for record in again))
    (tmp_path / "copy.jsonl").write_text(sampled.read_text())
    others = [{**record, "prompt_ids": [*record["prompt_ids"], 7]} for record in records]
    (tmp_path / "others.jsonl").write_text("".join(json.dumps(record) + "\n" for record in others))
    code, out, _ = run(capsys, "evaluate", sampled, tmp_path / "again.jsonl", "--json")
    assert code == 0
    assert (json.loads(out)["questions"], json.loads(out)["n"]) == (60, 8)
    code, out, _ = run(capsys, "evaluate", sampled, tmp_path / "others.jsonl", "--json")
    assert code == 0
    assert (json.loads(out)["questions"], json.loads(out)["n"]) == (120, 4)
    code, _, error = run(capsys, "evaluate", sampled, tmp_path / "copy.jsonl", "--json")
    assert code == 2
    assert "240 responses are given twice" in error


def test_what_cannot_be_read_in_score_is_flagged_or_named_by_its_line(capsys, sampled, tmp_path):
    record = json.loads(sampled.read_text().splitlines()[0])
    bad = {**record, "response_ids": None, "response": None}
    (tmp_path / "in.jsonl").write_text("\n" + json.dumps({**record, "prompt_ids": None}) + "\n" + json.dumps(bad) + "\n")
    code, _, error = run(capsys, "score", *TINY, *REWARD, "--input", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    assert code == 2
    assert "in.jsonl:3: neither 'response_ids' nor 'response'" in error
    assert not (tmp_path / "out.jsonl").exists()


def test_scoring_again_leaves_nothing_of_an_earlier_reward_model(capsys, sampled, tmp_path):
    once, old, twice = tmp_path / "once.jsonl", tmp_path / "old.jsonl", tmp_path / "twice.jsonl"
    options = ["score", "--model", "tiny-reasoner", "--reward-model", "tiny-reasoner-reward", "--json"]
    run(capsys, *options, "--input", sampled, "--out", once)
    said = {"reward_spread": 9.0, "flag": "not_finite", "tokens": {"text": ["OLD"], "gate": [1.0], "reward": [1.0]}}
    old.write_text("".join(json.dumps(json.loads(line) | said) + "\n" for line in once.read_text().splitlines()))
    run(capsys, *options, "--input", old, "--out", twice)
    assert twice.read_bytes() == once.read_bytes()
    run(capsys, *options, "--input", old, "--out", twice, "--tokens")
    for line in twice.read_text().splitlines():
        record = json.loads(line)
        tokens = record["tokens"]
        assert "".join(tokens["text"]).replace("<eos>", "").endswith(record["response"][-5:])
        pairs = [pair for pair in zip(tokens["gate"], tokens["reward"], strict=True) if pair[0] is not None]
        mean = sum(gate * reward for gate, reward in pairs) / sum(gate for gate, _ in pairs)
        assert mean == pytest.approx(record["reward"], abs=0.02)


def test_a_place_that_cannot_be_written_and_half_a_surrogate_lose_no_scoring(capsys, sampled, tmp_path):
    options = ["score", "--model", "tiny-reasoner", "--reward-model", "tiny-reasoner-reward"]
    assert main([*options, "--input", str(sampled), "--out", str(tmp_path)]) == 2
    assert "is a folder, so no file can be written there" in capsys.readouterr().err
    odd = tmp_path / "odd.jsonl"
    odd.write_text(sampled.read_text().splitlines()[0].replace('"question_id": "', '"question_id": "\\ud800\u00e9') + "\n")
    assert main([*options, "--input", str(odd), "--out", str(tmp_path / "scored.jsonl")]) == 0
    assert json.loads((tmp_path / "scored.jsonl").read_bytes())["question_id"].startswith("\ud800\u00e9")


def test_a_reward_model_is_not_saved_over_a_language_model(capsys, sampled, tmp_path):
    shutil.copytree(ASSETS / "tiny-reasoner", tmp_path / "lm")
    code, _, error = run(capsys, "train", "--model", tmp_path / "lm", "--rollouts", sampled, "--out", tmp_path / "lm")
    assert code == 2
    assert "holds another model" in error
    before, after = ((folder / "model.safetensors").read_bytes() for folder in (ASSETS / "tiny-reasoner", tmp_path / "lm"))
    assert before == after


def test_bad_lines_can_be_skipped_and_are_counted(capsys, sampled, tmp_path):
    (tmp_path / "r.jsonl").write_text(sampled.read_text() + "{half a line\n")
    code, out, error = run(capsys, "evaluate", tmp_path / "r.jsonl", "--skip-bad-lines", "--json")
    assert code == 0
    assert json.loads(out)["questions"] == 60
    assert "skipped 1 invalid lines" in error


def test_ctrl_c_is_said_in_a_sentence_and_keeps_the_file(tmp_path):
    out = tmp_path / "r.jsonl"
    command = ["sample", *TINY, "--task", "homework", "--questions", "300", "-n", "2", "--batch-size", "1", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "swift_rm.cli", *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    # Two questions are on disk: the signal may come while a batch is written, which is then taken back whole.
    while not (out.exists() and out.read_bytes().count(b"\n") >= 4) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip().endswith("the same command goes on from there")
    assert "Traceback" not in error
    assert out.read_text().endswith("}\n")


def test_two_runs_on_one_file(sampled, capsys):
    import fcntl

    with open(sampled) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, error = run(capsys, "sample", *TINY, "--task", "homework", "--questions", 60, "-n", 4, "--out", sampled)
    assert code == 1
    assert "another run is writing" in error


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m swift_rm.cli --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == 0
    assert done.stderr == ""


def test_every_command_is_a_module_with_what_main_needs():
    """And every module that adds a command is found."""
    room = ROOT / "swift_rm" / "cli"
    adding = {path.stem for path in room.glob("*.py") if "\ndef add_parser(commands: Commands)" in path.read_text()}
    steps = {"hipo_data", "hipo_sft", "hipo_train"}
    assert adding - steps == {command.replace("-", "_") for command in COMMANDS}
    for command in COMMANDS:
        module = module_of(command)
        assert callable(module.add_parser) and callable(module.run), command
        assert callable(getattr(module, "resumes", bool))
