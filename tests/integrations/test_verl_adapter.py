import asyncio
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, score
from swift_rm.models.load import ASSETS, TINY, TINY_REWARD, load_language_model

verl = pytest.mark.verl
TEXTS = {"27+15": "42", "82-51+77": "82-51=31, 31+77=08, so 08", "9-4": "9-4=5"}
NAME = "swift_rm.integrations.verl"


@pytest.fixture(scope="module")
def loaded():
    return load_language_model(device="cpu", progress=False)


@pytest.fixture(scope="module")
def rollouts(loaded):
    """Prompts and responses as token ids; the last response was cut."""
    tokenizer = loaded[1]
    chats = [[{"role": "user", "content": question}] for question in TEXTS]
    prompts = [list(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]) for chat in chats]
    responses = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in TEXTS.values()]
    return prompts, [*responses[:2], responses[2][:-2]]


@pytest.fixture(scope="module")
def expected(loaded, rollouts):
    return score(*loaded, SwiftRewardModel.from_pretrained(ASSETS / TINY_REWARD), *rollouts)


def settings(**reward):
    """verl's own configuration of rewards, with what a run adds to it."""
    import verl
    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(verl.__file__).parent / "trainer/config/reward/reward.yaml")
    config.reward_manager.name = "swift"
    config.reward_kwargs = {"reward_model": str(ASSETS / TINY_REWARD), **reward}
    actor = {"model": {"path": str(ASSETS / TINY), "tokenizer_path": None}}
    return OmegaConf.create({"reward": config, "actor_rollout_ref": actor})


def padded(rows, side):
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_side=side)


def batch_of(prompts, responses, side="left"):
    """Rollouts as verl hands over a batch: the mask is that of the prompts beside the responses."""
    from tensordict import TensorDict
    from verl import DataProto

    masks = [padded([[1] * len(row) for row in rows], place) for rows, place in ((prompts, side), (responses, "right"))]
    tensors = {"prompts": padded(prompts, side), "responses": padded(responses, "right"), "attention_mask": torch.cat(masks, 1)}
    return DataProto(batch=TensorDict(tensors, batch_size=len(prompts)))


def trajectory_of(prompts, responses):
    """Sequences of one trajectory as verl's agent loop hands them over: all on the left, the mask that of both joined."""
    import numpy as np
    from tensordict import TensorDict
    from verl import DataProto

    joined = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    mask = padded([[1] * len(row) for row in joined], "right")
    tensors = {"prompts": padded(prompts, "right"), "responses": padded(responses, "right"), "attention_mask": mask}
    known = {"prompt_len": np.array([*map(len, prompts)]), "response_len": np.array([*map(len, responses)])}
    return DataProto(batch=TensorDict(tensors, batch_size=len(joined)), non_tensor_batch=known)


@pytest.fixture(scope="module")
def worker():
    """What verl runs in a Ray actor."""
    importlib.import_module(NAME)
    from verl.experimental.reward_loop import RewardLoopWorker

    return RewardLoopWorker(settings())


@verl
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_rewarded_as_score_does(worker, rollouts, expected, side):
    found = asyncio.run(worker.compute_score_batch(batch_of(*rollouts, side)))
    assert [one["reward_score"] for one in found] == pytest.approx(expected, abs=1e-4)
    for one in found:
        extra = one["reward_extra_info"]
        assert extra["swift_reward"] == one["reward_score"]
        assert extra["swift_probability"] == pytest.approx(float(worker.reward_manager.rm.probability([one["reward_score"]])[0]))


@verl
def test_of_a_trajectory_the_last_sequence_is_rewarded(worker, rollouts, expected):
    prompts, responses = rollouts
    for last in range(3):
        order = [*(place for place in range(3) if place != last), last]
        data = trajectory_of([prompts[i] for i in order], [responses[i] for i in order])
        assert asyncio.run(worker.compute_score(data))["reward_score"] == pytest.approx(expected[last], abs=1e-4)


@verl
def test_probabilities_may_be_the_reward(loaded, rollouts, expected):
    manager_class = importlib.import_module(NAME).SwiftRewardManager
    manager = manager_class(settings(probability=True), loaded[1], reward_router_address=None, reward_model_tokenizer=None)
    found = asyncio.run(manager.run_single(batch_of(*([row[0]] for row in rollouts))))
    assert found["reward_score"] == pytest.approx(float(manager.rm.probability(expected[:1])[0]), abs=1e-4)
    assert found["reward_extra_info"]["swift_reward"] == pytest.approx(expected[0], abs=1e-4)


@verl
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reward_model": None}, ValueError, "reward.reward_kwargs needs reward_model"),
        ({"reward_model": "./nowhere"}, FileNotFoundError, "no reward model folder at nowhere"),
        ({"temperature": 2}, ValueError, "may have model, probability, device, dtype, got .*temperature"),
        ({"model": str(ASSETS / "tiny-reasoner-2")}, ValueError, "with 4 layers, but tiny-reasoner-2 has 6"),
        ({"dtype": "float31"}, ValueError, "dtype must be one of torch's, .*got 'float31'"),
    ],
)
def test_settings_that_cannot_be_are_refused(loaded, change, error, message):
    manager_class = importlib.import_module(NAME).SwiftRewardManager
    with pytest.raises(error, match=message):
        manager_class(settings(**change), loaded[1])


@verl
def test_another_tokenizer_and_bad_rollouts_are_refused(worker, rollouts, tokenizer, tmp_path):
    manager_class = importlib.import_module(NAME).SwiftRewardManager
    SwiftRewardModel(SwiftConfig(32, (0,))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected hidden states of width 32"):
        manager_class(settings(reward_model=str(tmp_path)), tokenizer)
    for row, message in (([9999], "holds the token id 9999"), ([], "response 0 is empty")):
        with pytest.raises(ValueError, match=message):
            asyncio.run(worker.compute_score(trajectory_of(rollouts[0][:1], [row])))


WHOLE = """
import json, sys
import ray, verl
from tests.integrations.test_verl_adapter import batch_of, settings
from verl.experimental.reward_loop import RewardLoopManager
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
assert get_reward_manager_cls("swift").__module__ == "swift_rm.integrations.verl"
config = settings()
config.reward.num_workers = 2
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
out = RewardLoopManager(config).compute_rm_score(batch_of(*json.loads(sys.argv[1])))
print(json.dumps([out.batch["rm_scores"].tolist(), out.non_tensor_batch["swift_probability"].tolist()]))
"""


@verl
def test_verl_finds_it_by_its_entry_point_and_its_workers_reward_a_batch(rollouts, expected, tmp_path):
    installed = tmp_path / "plugin-1.dist-info"  # as the installed package has it
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[verl.plugins]\nswift_rm = {NAME}\n")
    root = Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (tmp_path, root, root / "kernels", root / "examples")))
    given = {**os.environ, "PYTHONPATH": path, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", WHOLE, json.dumps(rollouts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    scores, probabilities = json.loads(done.stdout.splitlines()[-1])
    for row, response, reward in zip(scores, rollouts[1], expected, strict=True):
        assert row[len(response) - 1] == pytest.approx(reward, abs=1e-4)
        assert not any(row[: len(response) - 1] + row[len(response) :])
    rm = SwiftRewardModel.from_pretrained(ASSETS / TINY_REWARD)
    assert probabilities == pytest.approx(rm.probability(expected).tolist(), abs=1e-4)


def test_without_verl_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "verl", None)
    for module in [name for name in sys.modules if name.startswith("verl.") or name == NAME]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match=r'rewards for verl need verl 0.9 .*pip install "swift-rm\[verl\]"'):
        importlib.import_module(NAME)
