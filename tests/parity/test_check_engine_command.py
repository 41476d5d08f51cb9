"""`swift-rm check-engine`: its table, JSON, exit codes, prompts and errors, with what vLLM would have recorded."""

import json
import os
from argparse import Namespace

import numpy as np
import pytest

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.cli.check_engine import PROMPTS, format_check, json_of, prompts_of
from swift_rm.cli.main import main
from swift_rm.models.load import load_language_model
from tests.parity.engine_runs import changed, check, engine_run, random_head
from tests.tiny_models import tiny_model


def test_the_table_and_the_json_say_it_all(models, rm):
    found = check(engine_run(*models("bfloat16"), rm, "bfloat16", layers=(0, 1, 3)), rm, models)
    lines = format_check(found).splitlines()
    assert lines[0] == "fake 1.0 and transformers in bfloat16, a-model with a-reward-model"
    assert lines[1] == "4 responses of 30 tokens"
    assert lines[3].split("  ")[0] == "layer"
    rows = {line.split()[0]: line.split()[-1] for line in lines[5:9]}
    assert rows == {"0": "equal", "2": "DIFFERENT", "3": "equal", "rewards": "equal"}
    assert lines[-1] == f"different: {found.why}"
    data = json_of(found)
    assert {"engine", "engine_version", "model", "reward_model", "dtype", "responses", "tokens", "layers"} < set(data)
    assert (data["engine"], data["dtype"], data["tokens"], data["verdict"]) == ("fake", "bfloat16", 30, "different")
    assert data["layers"][1]["layer"] == 2
    assert data["layers"][1]["resembles"] == "layer 1"
    assert data["worst_reward_difference"] == data["rewards"]["max_difference"]
    exact = format_check(check(engine_run(*models("float32"), rm), rm, models))
    assert "transformers' own" not in exact
    assert exact.splitlines()[-1].startswith("equal: they differ by at most ")


ARGUMENTS = ("check-engine", "vllm", "--model", "tiny-reasoner", "--reward-model", "tiny-reasoner-reward")


@pytest.fixture(scope="module")
def recorded():
    model, tokenizer = load_language_model(progress=False)
    rm = SwiftRewardModel.from_pretrained("swift_rm/assets/tiny-reasoner-reward")
    return engine_run(model, tokenizer, rm, layers=rm.config.layers)


@pytest.fixture
def asked(monkeypatch, recorded):
    """The calls of `record_vllm`, which gives the recorded run."""
    calls = []

    def record(model, reward_model, prompts, **settings):
        calls.append({"model": model, "reward_model": reward_model, "prompts": prompts, **settings})
        os.write(1, b"noise\n")
        return recorded

    monkeypatch.setattr("swift_rm.integrations.vllm.versions.version.installed_version", lambda: "0.32.0")
    monkeypatch.setattr("swift_rm.integrations.vllm.offline.parity_recording.record_vllm", record)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    return calls


def run(capfd, *arguments):
    code = main([*ARGUMENTS, *map(str, arguments)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_the_command_prints_the_verdict_and_nothing_of_vllm(capfd, asked):
    code, out, error = run(capfd, "--json", "--dtype", "float32", "--enforce-eager", "--max-model-len", 300, "--questions", 3)
    data = json.loads(out)
    assert (code, data["verdict"], data["responses"], data["tokens"]) == (0, "equal", 4, 30)
    assert (data["model"], data["reward_model"]) == ("tiny-reasoner", "tiny-reasoner-reward")
    assert error == "noise\n"  # its log was asked for, and goes to standard error
    (call,) = asked
    assert call == {
        "model": "tiny-reasoner", "reward_model": "tiny-reasoner-reward", "prompts": list(PROMPTS[:3]), "n": 4,
        "max_new_tokens": 64, "dtype": "float32", "seed": 0, "enforce_eager": True, "max_model_len": 300,
    }  # fmt: skip
    assert run(capfd, "--engine-args", '{"max_num_batched_tokens": 64}')[0] == 0
    assert asked[1]["max_num_batched_tokens"] == 64
    assert "enforce_eager" not in asked[1]


def test_a_difference_is_exit_code_1(capfd, asked, monkeypatch, recorded):
    other = changed(recorded, lambda states: states * np.float32(1.01))
    monkeypatch.setattr("swift_rm.integrations.vllm.offline.parity_recording.record_vllm", lambda *_, **__: other)
    code, out, _ = run(capfd)
    assert code == 1
    assert out.splitlines()[-1].startswith("different: layers 0, 1, 2, 3, 4 of the 5 read differ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reward-model", "nowhere/at/all", "-n", 0], "-n and --max-new-tokens must be at least 1, got 0 and 64"),
        (["--max-new-tokens", 0], "got 4 and 0"),
        (["--questions", 13], "there are 12 built-in prompts, got --questions 13"),
        (["--questions", 0], "--questions must be at least 1, got 0"),
        (["--task", "homework", "--input", "file"], "give questions by --task or by --input, got both: homework and file"),
        (["--task", "homwork"], "no task and no file is called 'homwork'"),
        (["--engine-args", "[1]"], "--engine-args must be a JSON object of vLLM's settings, got [1]"),
        (["--engine-args", '{"dtype": "auto"}'], "--engine-args has 'dtype', which is an argument of its own"),
        (["--engine-args", '{"model": "x"}'], "--engine-args has 'model', which is an argument of its own"),
        (["--model", "tiny-reasoner-2"], "the reward model was trained on tiny-reasoner"),
        (["--reward-model", "/no/such/folder"], "no reward model folder at /no/such/folder"),
    ],
)
def test_misuse_is_told_before_vllm_starts(capfd, asked, arguments, said):
    code, out, error = run(capfd, *arguments)
    assert (code, out, asked) == (2, "", [])
    assert said in error
    assert error.startswith("swift-rm: ")
    assert error.count("\n") == 1


def test_a_reward_model_of_log_probabilities_is_refused(capfd, asked, tmp_path):
    random_head(SwiftConfig.of_top_logprobs(5)).save_pretrained(tmp_path / "rm")
    code, _, error = run(capfd, "--reward-model", tmp_path / "rm")
    assert code == 2
    assert "this reward model reads log-probabilities" in error


def test_without_vllm_or_with_another_version_it_says_what_to_install(capfd, monkeypatch):
    for version, said in ((None, "which is not installed"), ("0.31.2", "but 0.31.2 is installed")):
        monkeypatch.setattr("swift_rm.integrations.vllm.versions.version.installed_version", lambda version=version: version)
        code, out, error = run(capfd)
        assert (code, out) == (1, "")
        assert said in error
        assert 'pip install "vllm>=0.32,<0.34"' in error


def test_prompts_come_from_a_task_a_file_or_the_package(tmp_path, tokenizer):
    def ask(**given):
        return prompts_of(Namespace(**{"task": None, "input": None, "questions": 2, "seed": 0, **given}), tokenizer)

    assert ask() == list(PROMPTS[:2])
    assert ask(questions=12) == list(PROMPTS)
    homework = ask(task="homework:test")
    assert len(homework) == 2
    assert homework[0][0]["role"] == "user"
    assert homework != ask(task="homework:test", seed=1)
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "2 + 2"}\n{"prompt": "as it is"}\n{"prompt_ids": [4, 5]}\n')
    assert ask(input=str(file), questions=8) == [[{"role": "user", "content": "2 + 2"}], "as it is", [4, 5]]
    file.write_text('{"answer": "4"}\n')
    with pytest.raises(ValueError, match=r"questions.jsonl:1: no question to answer"):
        ask(input=str(file))
    file.write_text("")
    with pytest.raises(ValueError, match=r"questions.jsonl holds no records"):
        ask(input=str(file))


def test_the_sentence_of_another_base_model_comes_from_its_shape(capfd, asked, tmp_path, tokenizer):
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code, _, error = run(capfd, "--model", tmp_path)
    assert code == 2
    assert "expected hidden states of width 96" in error
