import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.hipo.tiny_runs import NO_JUDGE, homework, make_trainer, weights

pytest.importorskip("trl")

from swift_rm.hipo.response.template import Template
from swift_rm.hipo.rollouts.refresh import Refresh
from swift_rm.hipo.rollouts.swift_rollouts import SwiftRollouts
from swift_rm.hipo.trainer.resume import check_settings, last_checkpoint, read_settings, write_settings
from swift_rm.models.load import resolve
from swift_rm.reward.reward_model import SwiftRewardModel

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]


def swift_rollouts():
    rm = SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))
    return SwiftRollouts(rm, template=NO_JUDGE, refresh=Refresh(share=0.7, least=2, steps=2, lr=0.01))


def run(folder, checkpoint=None, rollouts=None, **changed):
    usual = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-3}
    trainer = make_trainer(folder, others={"rollout_func": rollouts} if rollouts else None, **(usual | changed))
    trainer.train(checkpoint)
    return trainer


@pytest.mark.parametrize("swift", [False, True], ids=["generate", "swift"])
def test_four_steps_are_two_and_two_more(tmp_path, swift):
    """The parameters, the refreshed reward model and the log of the think rate are those of the run in one go."""
    make = swift_rollouts if swift else lambda: None
    changed = {"reward_source": "swift"} if swift else {}
    whole_rollouts, resumed_rollouts = make(), make()
    whole = run(tmp_path, rollouts=whole_rollouts, **changed)
    resumed = run(tmp_path, str(tmp_path / "checkpoint-2"), rollouts=resumed_rollouts, **changed)
    expected, found = weights(whole), weights(resumed)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    rates = [[entry["hipo/think_rate"] for entry in t.state.log_history if "hipo/think_rate" in entry] for t in (whole, resumed)]
    assert rates[0] == rates[1] and len(rates[0]) == 4
    oscillation = [t.state.log_history[-2]["hipo/think_rate_oscillation"] for t in (whole, resumed)]
    assert oscillation[0] == pytest.approx(oscillation[1])
    if swift:
        assert torch.equal(whole_rollouts.rm.head.weight, resumed_rollouts.rm.head.weight)
        fresh = swift_rollouts().rm.head.weight
        assert not torch.equal(whole_rollouts.rm.head.weight, fresh)


def test_a_run_stopped_in_its_second_epoch_goes_on_with_the_questions_of_that_epoch(tmp_path):
    """Three steps are an epoch of the six questions; each epoch has an order of its own."""
    asked = []

    def grade(row, answer):
        asked.append(row["question_id"])
        return float(len(answer) % 2)

    whole = run(tmp_path, grade=grade, max_steps=8, save_steps=4)
    before, asked = asked, []
    resumed = run(tmp_path, str(tmp_path / "checkpoint-4"), grade=grade, max_steps=8, save_steps=4)
    assert asked and asked == before[-len(asked) :]
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_each_generation_is_learnt_from_once_however_often_it_is_used(tmp_path):
    rollouts = swift_rollouts()
    run(tmp_path, rollouts=rollouts, reward_source="swift", num_iterations=2, save_strategy="no")
    assert rollouts.refresh.updates == 2  # of four steps


def test_a_reward_model_that_was_or_was_not_refreshed_goes_on_as_it_was(tmp_path):
    rm = SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))
    plain, refreshed = tmp_path / "plain", tmp_path / "refreshed"
    run(plain, rollouts=SwiftRollouts(rm, template=NO_JUDGE), max_steps=1, save_steps=1)
    run(refreshed, rollouts=swift_rollouts(), max_steps=1, save_steps=1)
    with pytest.raises(ValueError, match=r"trained with refresh null, but refresh is 0\.7 now"):
        run(plain, True, rollouts=swift_rollouts())
    with pytest.raises(ValueError, match=r"trained with refresh 0\.7, but refresh is null now"):
        run(refreshed, True, rollouts=SwiftRollouts(rm, template=NO_JUDGE))
    with pytest.raises(ValueError, match=r"holds no swift_refresh\.safetensors"):
        swift_rollouts().load(plain / "checkpoint-1")
    with pytest.raises(ValueError, match="a reward model that was refreshed: resume with refresh"):
        SwiftRollouts(rm, template=NO_JUDGE).load(refreshed / "checkpoint-1")
    other = SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))
    with torch.no_grad():
        other.head.bias += 1
    with pytest.raises(ValueError, match="trained with reward_model"):
        run(plain, True, rollouts=SwiftRollouts(other, template=NO_JUDGE))


def test_a_run_goes_on_with_the_settings_it_began_with(tmp_path):
    trainer = run(tmp_path, max_steps=1, save_steps=1)
    written = json.loads((tmp_path / "hipo.json").read_text())
    assert written == json.loads((tmp_path / "checkpoint-1" / "hipo.json").read_text()) == trainer.run_settings
    assert written["advantages"] == "hipo" and written["template"]["on"] == "<think_on>"
    before = (tmp_path / "hipo.json").read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint-1 was trained with gamma 0.3, but gamma is 0.5 now"):
        run(tmp_path, True, gamma=0.5)
    with pytest.raises(ValueError, match='trained with advantages "hipo", but advantages is "grpo" now'):
        run(tmp_path, str(tmp_path / "checkpoint-1"), advantages="grpo")
    assert (tmp_path / "hipo.json").read_bytes() == before
    for name, value, before in [("learning_rate", 0.5, "0.001"), ("seed", 7, "42"), ("beta", 0.1, "0.0")]:
        with pytest.raises(ValueError, match=f"trained with {name} {before}, but {name} is {value} now"):
            run(tmp_path, True, **{name: value})
    with pytest.raises(ValueError, match="trained with questions"):
        run(tmp_path, True, data=homework(5)[0])
    with pytest.raises(ValueError, match=r"trained with lora \[\], but lora is \[2\] now"):
        check_settings(tmp_path / "checkpoint-1", {**trainer.run_settings, "lora": [2]})
    (tmp_path / "checkpoint-7").mkdir()  # killed before its end
    (tmp_path / "checkpoint-x").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1" and last_checkpoint(tmp_path / "checkpoint-1") is None
    other = {**trainer.run_settings, "template": None}
    with pytest.raises(ValueError, match="template"):
        check_settings(tmp_path / "checkpoint-1", other)
    assert Template(judge=None) == NO_JUDGE


def test_what_is_no_checkpoint_of_a_hipo_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint-9 has no hipo.json: it is not a checkpoint of a HiPO run"):
        read_settings(tmp_path / "checkpoint-9")
    (tmp_path / "hipo.json").write_text("{")
    with pytest.raises(ValueError, match=r"hipo.json is not valid JSON"):
        read_settings(tmp_path / "checkpoint-9")
    (tmp_path / "hipo.json").write_text("[]")
    with pytest.raises(ValueError, match=r"does not hold the settings"):
        read_settings(tmp_path / "checkpoint-9")
    write_settings(tmp_path, {"gamma": 0.3})
    with pytest.raises(ValueError, match=r"trained with omega none, but omega is 0\.01 now"):
        check_settings(tmp_path / "checkpoint-9", {"gamma": 0.3, "omega": 0.01})


SPREAD = """
import os, sys, torch, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [os.getcwd()]
import random
from tests.hipo.tiny_runs import make_trainer

class Told:
    # the same 8 responses to each question, whichever process asks for them
    def __call__(self, prompts, trainer):
        ids = trainer._tokenize_prompts(prompts)[0]
        names = ["<think_on>", "<think>", "</think>", "<answer>", "</answer>", "<think_off>"]
        on, think, unthink, answer, unanswer, off = trainer.processing_class.convert_tokens_to_ids(names)
        digits = trainer.processing_class.convert_tokens_to_ids(list("0123456789"))
        first, end = trainer.accelerator.process_index * len(prompts), trainer.processing_class.eos_token_id
        made = []
        for i in range(first, first + len(prompts)):
            said = [answer, digits[i % 2], digits[i % 3], unanswer, end]
            made.append([on, think, *digits[: i % 5], unthink, *said] if i % 3 else [off, *said])
        return {"prompt_ids": ids, "completion_ids": made, "logprobs": None}

batch = int(sys.argv[2])
trainer = make_trainer(sys.argv[1], grade=lambda row, answer: float(answer in ("11", "00")), num_generations=4, max_steps=1,
    per_device_train_batch_size=batch, others={"rollout_func": Told()}, length_cap=0.9)
seen = []
make = trainer._generate_and_score_completions
def kept(inputs):
    output = make(inputs)
    seen.append(output["advantages"])
    return output
trainer._generate_and_score_completions = kept
trainer.train()
torch.save(seen[0], os.path.join(sys.argv[1], f"seen{trainer.accelerator.process_index}.pt"))
"""


@pytest.mark.servers
def test_groups_spread_over_two_processes_have_the_advantages_of_one(tmp_path):
    """Six rows in each of two processes: a group of four has two rows in either."""
    (tmp_path / "spread.py").write_text(SPREAD)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "TRL_EXPERIMENTAL_SILENCE": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    for processes, batch in (("1", "12"), ("2", "6")):
        folder = tmp_path / processes
        folder.mkdir()
        done = subprocess.run(
            [*launch, processes, str(tmp_path / "spread.py"), str(folder), batch],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    one = torch.load(tmp_path / "1" / "seen0.pt", weights_only=True)
    two = [torch.load(tmp_path / "2" / f"seen{i}.pt", weights_only=True) for i in range(2)]
    wide = [torch.nn.functional.pad(part, (0, one.shape[1] - part.shape[1])) for part in two]
    assert torch.allclose(torch.cat(wide), one, atol=1e-6)
    assert one.abs().sum() > 0
