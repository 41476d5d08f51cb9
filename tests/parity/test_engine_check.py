import copy
import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, score
from swift_rm.cli.check_engine import format_check, json_of
from swift_rm.cli.engine_prompts import PROMPTS, prompts_of
from swift_rm.cli.main import main
from swift_rm.integrations.vllm.offline.captured_output import kept_off_the_terminal
from swift_rm.models.load import load_language_model
from swift_rm.parity.engine_check import check_engine, identify_states
from swift_rm.parity.recorded_run import EngineRun, RecordedResponse, teacher_force
from tests.tiny_models import tiny_model

LAYERS, D = (0, 2, -1), 32
GENERATOR = torch.Generator().manual_seed(0)
RESPONSES = [
    (torch.randint(3, 40, (prompt,), generator=GENERATOR).tolist(), torch.randint(3, 40, (length,), generator=GENERATOR).tolist())
    for prompt, length in [(5, 9), (3, 14), (7, 1), (4, 6)]
]


def random_head(config):
    rm = SwiftRewardModel(config)
    for parameter in rm.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    return rm


@pytest.fixture(scope="module")
def rm():
    return random_head(SwiftConfig(D, LAYERS))


@pytest.fixture(scope="module")
def models(llama, tokenizer):
    """The model by dtype, as `check_engine` opens it."""
    smaller = copy.deepcopy(llama)
    by_dtype = {"float32": llama, **{name: copy.deepcopy(smaller).to(getattr(torch, name)) for name in ("bfloat16", "float16")}}
    return lambda dtype: (by_dtype[dtype], tokenizer)


def states_of(model, prompt, response, layers):
    """What an engine is to show, by transformers' own tuple: ``[R, D]``."""
    with torch.no_grad():
        hidden = model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states
    rows = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
    return torch.cat([hidden[layer][0, rows] for layer in layers], dim=1).float().numpy()


def engine_run(model, tokenizer, rm, dtype="float32", layers=LAYERS):
    rewards = score(model, tokenizer, rm, *zip(*RESPONSES, strict=True), batch_size=1)
    return EngineRun("fake", "1.0", dtype, "cpu", [
        RecordedResponse(prompt, response, states_of(model, prompt, response, layers), reward)
        for (prompt, response), reward in zip(RESPONSES, rewards, strict=True)
    ])  # fmt: skip


def changed(run, change):
    """The same run with other states."""
    return replace(run, responses=[replace(one, states=change(one.states.copy())) for one in run.responses])


def check(run, rm, models):
    return check_engine(run, "a-model", "a-reward-model", rm, models)


def test_an_engine_like_transformers_is_equal(models, rm):
    run = engine_run(*models("float32"), rm)
    found = check(run, rm, models)
    assert (found.verdict, found.equal, found.responses, found.tokens) == ("equal", True, 4, 30)
    assert [row.layer for row in found.layers] == [0, 2, 3]
    assert max(row.relative for row in found.layers) < 1e-5
    assert all(row.transformers_error is None for row in found.layers)
    assert found.rewards.max_difference < 1e-5
    sizes = [np.sqrt((np.concatenate([one.states for one in run.responses])[:, :D] ** 2).mean())]
    noisy = check(changed(run, lambda states: states + np.float32(5e-4 * sizes[0])), rm, models)
    assert noisy.equal
    assert noisy.layers[0].relative == pytest.approx(5e-4, rel=1e-2)
    assert noisy.layers[0].error == pytest.approx(5e-4, rel=1e-2)
    assert noisy.layers[0].max_difference == pytest.approx(5e-4 * sizes[0], rel=1e-2)


def test_a_difference_is_found_in_the_layer_that_has_it(models, rm):
    def change(states):
        states[:, D + 3] += 0.01 * np.sqrt((states[:, D : 2 * D] ** 2).mean())
        return states

    found = check(changed(engine_run(*models("float32"), rm), change), rm, models)
    assert [row.equal for row in found.layers] == [True, False, True]
    assert found.layers[1].relative == pytest.approx(0.01, rel=0.2)
    assert found.layers[1].resembles is None
    assert found.verdict == "different"
    assert found.why.startswith("layer 2 of the 3 read differs by 0.0")


def test_a_wrong_index_is_named(models, rm):
    for dtype in ("float32", "bfloat16"):
        run = engine_run(*models(dtype), rm, dtype, layers=(0, 1, 3))
        found = check(run, rm, models)
        assert [row.equal for row in found.layers] == [True, False, True], dtype
        assert found.layers[1].resembles == "layer 1"
        assert "fake's layer 2 is transformers' layer 1" in found.why


def test_the_states_of_the_token_before_are_named(models, rm):
    model, tokenizer = models("float32")
    run = engine_run(model, tokenizer, rm)
    late = [
        replace(one, states=states_of(model, one.prompt_ids[:-1], [one.prompt_ids[-1], *one.response_ids[:-1]], LAYERS))
        for one in run.responses
    ]
    found = check(replace(run, responses=late), rm, models)
    assert [row.resembles for row in found.layers] == [f"layer {layer} of the token before" for layer in (0, 2, 3)]
    assert found.why.startswith("layers 0, 2, 3 of the 3 read differ")
    early = [replace(one, states=np.concatenate([one.states[1:], one.states[-1:]])) for one in run.responses]
    assert check(replace(run, responses=early), rm, models).layers[1].resembles == "layer 2 of the token after"


def test_states_that_the_engine_did_not_compute_are_counted(models, rm):
    def change(states):
        states[-2:, :] = np.nan
        return states

    found = check(changed(engine_run(*models("float32"), rm), change), rm, models)
    assert found.verdict == "different"
    assert found.layers[0].max_difference == math.inf
    assert "fake has no finite states at 7 of 30 tokens" in found.why  # of a response of one token there is one
    data = json.loads(json.dumps(json_of(found), allow_nan=False))
    assert data["layers"][0]["max_difference"] is None


@pytest.mark.parametrize("wrong", [1.0, math.nan, -math.inf])
def test_rewards_are_compared_too(models, rm, wrong):
    run = engine_run(*models("float32"), rm)
    others = [replace(run.responses[0], reward=run.responses[0].reward + wrong), *run.responses[1:]]
    found = check(replace(run, responses=others), rm, models)
    assert all(row.equal for row in found.layers)
    assert (found.verdict, found.rewards.equal) == ("different", False)
    assert found.rewards.max_difference == pytest.approx(1.0) or found.rewards.max_difference == math.inf
    assert found.why.startswith("the states are equal, but rewards differ by up to ")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_a_smaller_dtype_the_error_of_transformers_is_the_measure(models, rm, dtype):
    run = engine_run(*models(dtype), rm, dtype)
    found = check(run, rm, models)
    assert found.equal
    for row in found.layers:
        assert row.max_difference == 0
        assert 0 < row.error == row.transformers_error
    assert found.rewards.max_difference < 1e-5
    assert found.rewards.error == pytest.approx(found.rewards.transformers_error, rel=1e-3)
    assert f"transformers in {dtype}" in found.why

    def noise(times):
        generator = np.random.default_rng(0)

        def change(states):
            for column, row in enumerate(found.layers):
                part = states[:, column * D : (column + 1) * D]
                size = np.sqrt((part**2).mean())
                part += generator.normal(0, times * row.transformers_error * size, part.shape).astype(np.float32)
            return states

        return change

    assert check(changed(run, noise(1.4)), rm, models).equal
    more = check(changed(run, noise(4.0)), rm, models)
    assert not any(row.equal for row in more.layers)
    assert f"transformers in {dtype} errs by" in more.why


def test_output_logits_are_one_layer(models, llama, tokenizer):
    rm = random_head(SwiftConfig.of_logits(len(tokenizer)))
    rewards = score(llama, tokenizer, rm, *zip(*RESPONSES, strict=True))
    recorded = []
    for (prompt, response), reward in zip(RESPONSES, rewards, strict=True):
        with torch.no_grad():
            logits = llama(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        recorded.append(RecordedResponse(prompt, response, logits.numpy(), reward))
    run = EngineRun("fake", "1.0", "float32", "cpu", recorded)
    found = check(run, rm, models)
    assert found.equal
    assert [row.layer for row in found.layers] == ["logits"]
    assert "of the logits' size" in found.why
    other = check(changed(run, lambda states: 2 * states), rm, models)
    assert other.why.startswith("the output logits differ by ")


def test_where_transformers_has_no_numbers_there_is_nothing_to_compare_with(models, llama, tokenizer, rm):
    run = engine_run(llama, tokenizer, rm)
    broken = copy.deepcopy(llama)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight.fill_(math.inf)
    with pytest.raises(ValueError, match="transformers' own states of layer 2 are not finite in float32"):
        check(run, rm, lambda dtype: (broken, tokenizer))
    with pytest.raises(ValueError, match="transformers' own states of layer 2 are not finite in bfloat16"):
        check(replace(run, dtype="bfloat16"), rm, lambda dtype: (llama if dtype == "float32" else broken, tokenizer))


def test_a_run_without_responses_and_foreign_tokens_are_refused(models, rm):
    run = engine_run(*models("float32"), rm)
    with pytest.raises(ValueError, match="fake gave no responses to compare"):
        check(replace(run, responses=[]), rm, models)
    foreign = replace(run.responses[0], response_ids=[4] * 8 + [4000])
    with pytest.raises(ValueError, match="response 0 holds the token id 4000"):
        check(replace(run, responses=[foreign]), rm, models)


def test_teacher_forcing_pads_nothing_and_reads_every_layer_of_the_most_varied(models, rm):
    model, tokenizer = models("float32")
    run = engine_run(model, tokenizer, rm)
    found = teacher_force(model, tokenizer, rm, run.responses)
    assert [len(states) for states in found.states] == [9, 14, 1, 6]
    assert (found.varied, tuple(found.every.shape)) == (1, (4, 14, D))
    assert np.allclose(found.every[2], run.responses[1].states[:, D : 2 * D], atol=1e-5)
    assert found.rewards == pytest.approx([one.reward for one in run.responses], abs=1e-5)


def test_what_resembles_nothing_is_called_nothing():
    every = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    assert identify_states(every[2], every, own=2) is None
    assert identify_states(every[2] + 1e-3, every, own=2) is None
    assert identify_states(torch.ones(6, 8), every, own=2) is None
    assert identify_states(every[1], every, own=2) == "layer 1"
    assert identify_states(every[1] + 1e-3, every, own=2) == "layer 1"
    assert identify_states(every[1][:1], every[:, :1], own=0) == "layer 1"  # of one token there is no other
    assert identify_states(torch.roll(every[3], 1, dims=0), every, own=0) == "layer 3 of the token before"
    assert identify_states(torch.full((6, 8), math.nan), every, own=2) is None
    near = every[1] + 0.01 * torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    assert identify_states(torch.zeros(6, 8), torch.zeros(4, 6, 8), own=2) is None
    twins = torch.stack([every[0], every[1], every[1] + 0.02, every[3]])
    assert identify_states(near, twins, own=2) is None, "both layers are near: it would be a guess"


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


# The command, with what vLLM would have recorded.

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


# What vLLM prints.

LOG = """(Worker pid=1) ERROR 11-22 21:22:34 [multiproc_executor.py:953] Traceback (most recent call last):
(Worker pid=1) ERROR 11-22 21:22:34 [multiproc_executor.py:953]     raise ValueError("x: y")
(Worker pid=1) ERROR 11-22 21:22:34 [multiproc_executor.py:953] torch.OutOfMemoryError: 3 of 2 bytes are needed
Exception: WorkerProc initialization failed due to an exception in a background process.
"""


def say(text):
    """As a process that vLLM started would."""
    os.system(f"printf '%s' '{text}'; printf '%s' '{text}' >&2")


def test_what_is_printed_inside_is_kept_off_the_terminal(capfd):
    with kept_off_the_terminal():
        say("by a child")
        os.write(2, b"here")
    os.write(1, b"after\n")
    assert tuple(capfd.readouterr()) == ("after\n", "")


def test_what_python_has_not_written_yet_goes_where_it_was_meant_to():
    program = "from swift_rm.integrations.vllm.offline.captured_output import kept_off_the_terminal as kept\nprint('before')\n"
    program += "with kept():\n    print('inside')\nprint('after')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("before\nafter\n", "")


def test_with_show_standard_output_stays_clean(capfd):
    with kept_off_the_terminal(show=True):
        say("by a child ")
        os.write(1, b"here")
    os.write(1, b"after\n")
    out, error = capfd.readouterr()
    assert out == "after\n"
    assert error.count("by a child") == 2
    assert "here" in error


def test_a_failure_is_told_by_its_first_cause(capfd):
    with (
        pytest.raises(RuntimeError, match=r"^vLLM failed: OutOfMemoryError: 3 of 2 bytes are needed \(VLLM_LOGGING_LEVEL=INFO"),
        kept_off_the_terminal(),
    ):
        os.write(2, LOG.encode())
        raise RuntimeError("Engine core initialization failed. See root cause above.")
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_failure_without_a_cause_shows_what_was_printed(capfd):
    with pytest.raises(RuntimeError, match=r"^killed$"), kept_off_the_terminal():
        os.write(1, b"the last words\n")
        raise RuntimeError("killed")
    assert tuple(capfd.readouterr()) == ("", "the last words\n")
    with pytest.raises(ValueError, match=r"^misuse$"), kept_off_the_terminal():
        os.write(1, b"the last words\n")
        raise ValueError("misuse")
    assert tuple(capfd.readouterr()) == ("", "")


def test_the_sentence_of_another_base_model_comes_from_its_shape(capfd, asked, tmp_path, tokenizer):
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code, _, error = run(capfd, "--model", tmp_path)
    assert code == 2
    assert "expected hidden states of width 96" in error
