"""`swift-rm check-engine vllm` on real engines: equal where it should be, and a difference is found and named."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.cli.main import main
from swift_rm.models.load import load_language_model, resolve
from swift_rm.parity.engine_check import check_engine
from swift_rm.reward.identity import describe_base
from swift_rm.tasks.task_lookup import open_world
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.vllm
SETTINGS = {"kv_cache_memory_bytes": 128 << 20, "max_model_len": 300, "max_num_seqs": 16}
TINY, REWARD = "tiny-reasoner", "tiny-reasoner-reward"


@pytest.fixture(scope="module")
def transformers():
    return load_language_model(progress=False)


def record(model, reward_model, prompts, **settings):
    from swift_rm.integrations.vllm.offline.captured_output import kept_off_the_terminal
    from swift_rm.integrations.vllm.offline.parity_recording import record_vllm

    with kept_off_the_terminal():
        return record_vllm(str(model), str(reward_model), prompts, **{**SETTINGS, "enforce_eager": True, **settings})


def check(run, model, rm):
    def open_model(dtype):
        return load_language_model(str(model), dtype=dtype, progress=False)

    return check_engine(run, str(model), "rm", rm, open_model)


def save_random_head(config, folder, model, tokenizer):
    rm = SwiftRewardModel(describe_base(config, model, tokenizer))
    for parameter in rm.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    rm.save_pretrained(folder)
    return rm


@pytest.fixture(scope="module")
def split():
    """The tiny reasoner in float32, with prompts split over steps."""
    prompts = [question.prompt for question in open_world("homework").questions(6)]
    settings = {"dtype": "float32", "max_num_batched_tokens": 8, "max_num_seqs": 8}
    return record(TINY, REWARD, prompts, n=3, max_new_tokens=48, **settings)


@pytest.fixture(scope="module")
def random_llama(tmp_path_factory, transformers):
    """A folder of a random Llama whose heads are of a size that vLLM has on CPUs too."""
    _, tokenizer = transformers
    model = tiny_model("llama", vocab_size=len(tokenizer), hidden_size=128, initializer_range=0.2, max_position_embeddings=512)
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    save_random_head(SwiftConfig(128, (0, 1, -1)), folder / "rm", *load_language_model(str(folder / "model"), progress=False))
    return folder


@pytest.fixture(scope="module")
def compiled(random_llama):
    """The random Llama, compiled, in float32."""
    settings = {"dtype": "float32", "enforce_eager": False}
    prompts = [[4, 5, 6 + number] for number in range(8)]
    return record(random_llama / "model", random_llama / "rm", prompts, n=3, max_new_tokens=24, **settings)


def test_split_prompts_and_cached_ones_give_the_states_of_transformers(split, transformers):
    model, _ = transformers
    assert (split.engine, split.dtype, len(split.responses)) == ("vllm", "float32", 18)
    assert min(len(one.prompt_ids) for one in split.responses) > 8, "no prompt was split over steps"
    found = check(split, TINY, SwiftRewardModel.from_pretrained(resolve(REWARD)))
    assert found.equal, found.why
    assert [row.layer for row in found.layers] == [0, 1, 2, 3, 4]
    assert 0 < max(row.relative for row in found.layers) < 1e-3
    assert found.rewards.max_difference < 1e-3
    assert found.tokens == sum(len(one.states) for one in split.responses)
    greedy = split.responses[0]
    again = model.generate(torch.tensor([greedy.prompt_ids]), do_sample=False, max_new_tokens=len(greedy.response_ids))
    assert again[0, len(greedy.prompt_ids) :].tolist() == list(greedy.response_ids)
    same = [one.response_ids for one in split.responses if one.prompt_ids == greedy.prompt_ids]
    assert len(same) == 3
    assert len({tuple(ids) for ids in same}) > 1, "the others are sampled"


def test_vllm_is_gone_afterwards(split):
    import psutil

    left = [process for process in psutil.Process().children(recursive=True) if process.status() != psutil.STATUS_ZOMBIE]
    assert not [process for process in left if "VLLM" in process.name()]


def test_a_weight_that_is_another_is_found_in_the_layers_after_it(split, transformers):
    model, tokenizer = transformers
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[2].mlp.down_proj.weight.mul_(1.05)
    rm = SwiftRewardModel.from_pretrained(resolve(REWARD))
    found = check_engine(split, TINY, REWARD, rm, lambda dtype: (other, tokenizer))
    assert [row.equal for row in found.layers] == [True, True, True, False, False]
    assert found.verdict == "different"
    assert found.why.startswith("layers 3, 4 of the 5 read differ")


def test_compiled_layers_are_those_asked_for(compiled, random_llama):
    found = check(compiled, random_llama / "model", SwiftRewardModel.from_pretrained(random_llama / "rm"))
    assert found.equal, found.why
    assert [row.layer for row in found.layers] == [0, 1, 3]
    assert len(compiled.responses) == 24


def test_layers_one_off_are_named(compiled, random_llama):
    rm = SwiftRewardModel.from_pretrained(random_llama / "rm")
    rm.config = replace(rm.config, layers=(0, 2, 3))  # as if vLLM had been asked for layer 2 and had shown 1
    found = check(compiled, random_llama / "model", rm)
    assert [(row.equal, row.resembles) for row in found.layers] == [(True, None), (False, "layer 1"), (True, None)]
    assert "vllm's layer 2 is transformers' layer 1" in found.why
    late = [replace(one, states=np.roll(one.states, 1, axis=0)) for one in compiled.responses]
    named = check(replace(compiled, responses=late), random_llama / "model", rm).layers
    assert named[2].resembles == "layer 3 of the token before"


def test_output_logits_are_those_of_transformers(transformers, tmp_path):
    model, tokenizer = transformers
    rm = save_random_head(SwiftConfig.of_logits(model.config.vocab_size), tmp_path / "rm", model, tokenizer)
    prompts = [question.prompt for question in open_world("homework").questions(3)]
    run = record(TINY, tmp_path / "rm", prompts, n=2, max_new_tokens=32, dtype="float32")
    found = check(run, TINY, rm)
    assert found.equal, found.why
    assert [row.layer for row in found.layers] == ["logits"]


def command(*arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_LOGGING")}
    own = ["--max-model-len", 300, "--kv-cache-memory-bytes", 128 << 20, "--enforce-eager"]
    program = [sys.executable, "-m", "swift_rm.cli", "check-engine", "vllm", *own, *arguments]
    return subprocess.run([str(part) for part in program], capture_output=True, text=True, timeout=500, env=environment)


def test_the_command_compares_what_vllm_takes_by_itself_and_prints_nothing_else():
    sizes = ["--task", "homework", "--questions", 5, "-n", 3, "--max-new-tokens", 40]
    done = command("--model", TINY, "--reward-model", REWARD, *sizes, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert (data["engine"], data["dtype"], data["verdict"], data["responses"]) == ("vllm", "bfloat16", "equal", 15)
    assert data["engine_version"].startswith("0.32")
    for row in data["layers"]:
        assert row["error"] <= 2 * row["transformers_error"] + 0.002


def test_a_difference_is_exit_code_1(capfd, monkeypatch, transformers):
    model, tokenizer = transformers
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[3].self_attn.o_proj.weight.zero_()
    monkeypatch.setattr("swift_rm.models.load.load_language_model", lambda *_, **__: (other, tokenizer))
    own = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "300", "--kv-cache-memory-bytes", str(128 << 20)]
    own += ["--questions", "2", "-n", "1", "--max-new-tokens", "16"]
    code = main(["check-engine", "vllm", "--model", TINY, "--reward-model", REWARD, *own])
    lines = capfd.readouterr().out.splitlines()
    assert code == 1
    assert [line.split()[-1] for line in lines[5:10]] == ["equal"] * 4 + ["DIFFERENT"]
    assert lines[-1].startswith("different: layer 4 of the 5 read differs")


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"no_such_setting": 1}, 2, "has no setting 'no_such_setting'"),
        ({"pipeline_parallel_size": 2}, 2, "pipeline_parallel_size=2: no worker sees all layers"),
        ({"load_format": "sharded_state"}, 1, "vLLM failed: "),
    ],
)
def test_what_vllm_does_not_start_with_is_told_in_a_sentence(settings, code, said):
    done = command("--model", TINY, "--reward-model", REWARD, "--engine-args", json.dumps(settings))
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("swift-rm: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
