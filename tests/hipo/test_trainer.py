import math
import warnings

import pytest
import torch

from swift_rm.hipo.response.template import Parsed
from swift_rm.hipo.rewards.token_advantages import token_advantages
from swift_rm.models.load import load_language_model, resolve
from tests.hipo.tiny_runs import NO_JUDGE, homework, make_trainer, settings, weights

pytest.importorskip("trl")

from trl import GRPOConfig, GRPOTrainer

from swift_rm.hipo.rollouts.refresh import Refresh
from swift_rm.hipo.rollouts.swift_rollouts import SwiftRollouts
from swift_rm.hipo.trainer.hipo_trainer import HiPOTrainer
from swift_rm.reward.reward_model import SwiftRewardModel

pytestmark = pytest.mark.filterwarnings("ignore")


def last_batch(trainer):
    """What the trainer made of its first questions, as the loss gets it."""
    rows = [dict(row) for row in trainer.train_dataset.select(range(2)) for _ in range(4)]  # TRL writes into each of them
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions(rows)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_advantages_are_spread_over_judge_marker_and_answer():
    spans = {"judge": (0, 3), "mode": (3, 4), "think": (4, 6), "answer": (6, 8)}
    whole = Parsed("on", "j", "t", "a", None, 4, 2, 2, spans)
    lost = Parsed(None, None, None, None, "no mode", 0, 0, 3)
    rows = token_advantages([whole, lost], torch.tensor([1.0, 5.0]), torch.tensor([2.0, 6.0]), torch.tensor([3.0, 7.0]), 9)
    assert rows.tolist() == [[1, 1, 1, 2, 3, 3, 3, 3, 0], [7, 7, 7, 0, 0, 0, 0, 0, 0]]


def test_the_loss_of_equal_advantages_is_that_of_grpo(tmp_path):
    """In every loss of TRL's: (B, T) that is the same along T is (B,)."""
    trainer = make_trainer(tmp_path, beta=0.0)
    batch = last_batch(trainer)
    each = torch.randn(8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        now, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1), batch["completion_ids"].size(1),
        )  # fmt: skip
    batch["old_per_token_logps"] = now + 0.3 * torch.randn(now.shape, generator=torch.Generator().manual_seed(1))
    for loss in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"):
        for level in ("token", "sequence"):
            trainer.loss_type, trainer.importance_sampling_level = loss, level
            plain = trainer._compute_loss(trainer.model, {**batch, "advantages": each})
            spread = trainer._compute_loss(trainer.model, {**batch, "advantages": each[:, None].expand_as(now)})
            assert spread.item() == pytest.approx(plain.item(), rel=1e-5), (loss, level)


def test_grpo_advantages_train_as_plain_grpo_does(tmp_path):
    """Two steps from the same seed with the same reward: the parameters are the same."""
    ours = make_trainer(tmp_path / "ours", advantages="grpo", eps=1e-4)
    before = weights(ours)
    ours.train()
    plain_args = {
        name: getattr(ours.args, name)
        for name in (
            "max_steps", "per_device_train_batch_size", "num_generations", "max_completion_length", "use_cpu", "bf16",
            "learning_rate", "optim", "lr_scheduler_type", "save_strategy", "disable_tqdm", "chat_template_kwargs",
        )
    }  # fmt: skip
    rows, _ = homework()
    model, tokenizer = load_language_model(device="cpu", progress=False)
    args = GRPOConfig(output_dir=str(tmp_path / "plain"), report_to="none", **plain_args)
    plain = GRPOTrainer(model, [ours.hipo_reward], args, rows, processing_class=tokenizer)
    plain.train()
    trained = weights(ours)
    for name, value in weights(plain).items():
        assert torch.allclose(value, trained[name], atol=1e-6), name
    assert max((trained[name] - before[name]).abs().max() for name in before) > 1e-3


def test_every_token_gets_the_advantage_of_its_part(tmp_path):
    trainer = make_trainer(tmp_path, forced_modes=True)
    batch = last_batch(trainer)
    judged = trainer.hipo_reward.judged
    assert [parsed.mode for parsed in judged.parsed] == ["on", "on", "off", "off"] * 2
    rewards = torch.tensor(judged.rewards).view(2, 4)
    assert batch["advantages"].shape == batch["completion_ids"].shape
    spread = rewards.std(1) + 0.01
    on, off = rewards[:, :2].mean(1), rewards[:, 2:].mean(1)
    bias = torch.where((on - off >= 0) & (on - off <= 0.01 * on), 0.01 * on, 0.0)
    middle = (on + off + bias) / 2
    for question in range(2):
        for place in range(4):
            row, parsed = 4 * question + place, judged.parsed[4 * question + place]
            mode = on[question] if place < 2 else off[question] + bias[question]
            decision = (mode - middle[question] + 0.3 * (rewards[question, place] - rewards[question].mean())) / spread[question]
            assert batch["advantages"][row, 0].item() == pytest.approx(decision.item(), abs=1e-4)
            pair = rewards[question, :2] if place < 2 else rewards[question, 2:]
            answer = (rewards[question, place] - pair.mean()) / (pair.std() + 0.01)
            length = parsed.think_tokens + parsed.answer_tokens + 1
            assert batch["advantages"][row, 1:length].tolist() == pytest.approx([answer.item()] * (length - 1), abs=1e-4)
            assert batch["advantages"][row, length:].eq(0).all()


def test_a_row_without_a_reward_takes_no_part_and_is_counted(tmp_path):
    rows, right = homework()
    asked = []

    def grade(row, answer):
        asked.append(answer)
        return None if len(asked) < 3 else math.nan if len(asked) == 3 else right(row, answer)

    trainer = make_trainer(tmp_path, data=rows, grade=grade, forced_modes=True)
    batch = last_batch(trainer)
    lost = [row for row, reward in enumerate(trainer.hipo_reward.judged.rewards) if math.isnan(reward)]
    assert len(lost) == 3
    assert batch["advantages"][lost].eq(0).all()
    assert trainer._metrics["train"]["hipo/skipped"] == [3.0]
    kept = torch.tensor([value for value in trainer.hipo_reward.judged.rewards if value == value])
    assert trainer._metrics["train"]["reward"][0] == pytest.approx(kept.mean().item())


def test_what_is_cut_at_the_limit_is_malformed_and_never_graded(tmp_path):
    graded = []
    trainer = make_trainer(tmp_path, max_completion_length=4, grade=lambda row, answer: graded.append(answer) or 1.0)
    last_batch(trainer)
    assert graded == []
    assert trainer.hipo_reward.judged.rewards == [0.0] * 8
    assert trainer._metrics["train"]["hipo/cut"] == [1.0]
    assert trainer._metrics["train"]["hipo/groups_all_equal"] == [1.0]
    assert {parsed.error for parsed in trainer.hipo_reward.judged.parsed} == {"cut at the length limit"}


def test_further_reward_functions_are_added_with_their_weights(tmp_path):
    def length(completion_ids, **_):
        return [float(len(ids)) for ids in completion_ids]

    trainer = make_trainer(tmp_path, others={"reward_funcs": [length]}, reward_weights=[1.0, 0.5], advantages="grpo", eps=1e-4)
    batch = last_batch(trainer)
    judged = trainer.hipo_reward.judged
    total = torch.tensor([r + 0.5 * len(ids) for r, ids in zip(judged.rewards, judged.completion_ids, strict=True)]).view(2, 4)
    expected = (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(batch["advantages"][:, 0].view(2, 4), expected, atol=1e-4)


def test_adaptthink_compares_with_the_reward_that_the_reference_would_have_had(tmp_path):
    """Of a response as right and as well formed as the reference's the advantage is 0, whatever a reward is made of."""
    rm = SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))
    rows, _ = homework()
    trainer = make_trainer(
        tmp_path, data=rows.add_column("baseline", [0.5] * len(rows)), advantages="adaptthink", off_bonus=0.0, dense=0.5,
        grade=lambda row, answer: 1.0, reward_weights=[2.0], others={"rollout_func": SwiftRollouts(rm, template=NO_JUDGE)},
    )  # fmt: skip
    batch, judged = last_batch(trainer), trainer.hipo_reward.judged
    formed = [row for row, parsed in enumerate(judged.parsed) if parsed.formatted]
    assert formed
    for row in formed:
        reward, reference = 1.0 + 0.5 * judged.probability[row] + 0.2, 0.5 + 0.5 * 0.5 + 0.2
        assert batch["advantages"][row, 0].item() == pytest.approx(2 * (reward - reference), abs=1e-5)


def test_evaluation_measures_and_changes_nothing(tmp_path):
    rm = SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))
    rollouts = SwiftRollouts(rm, template=NO_JUDGE, forced_modes=True, refresh=Refresh(1.0, least=1))
    rows, _ = homework()
    for count in (1, 2):  # an answer a question is nothing to compare
        trainer = make_trainer(
            tmp_path, forced_modes=True, reward_source="swift", others={"rollout_func": rollouts, "eval_dataset": rows},
            num_generations_eval=count, per_device_eval_batch_size=6,
        )  # fmt: skip
        found = trainer.evaluate()
        assert 0 <= found["eval_hipo/think_rate"] <= 1 and "eval_hipo/hacking_gap" in found
        assert rollouts.refresh.updates == 0 and torch.equal(rollouts.rm.head.weight, rm.head.weight)
        assert "eval_hipo/think_rate_oscillation" not in found and not trainer._metrics["train"]


def test_labels_do_not_reach_the_reward_of_hidden_states(tmp_path):
    """Source "swift": whatever the labels say, rewards and advantages are the same; the metrics see them."""
    rm = SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))
    seen = []
    for label in (0.0, 1.0, None):
        trainer = make_trainer(
            tmp_path, grade=lambda row, answer, label=label: label, reward_source="swift",
            others={"rollout_func": SwiftRollouts(rm, template=NO_JUDGE)},
        )  # fmt: skip
        seen.append((last_batch(trainer)["advantages"], trainer.hipo_reward.judged, trainer._metrics["train"]["hipo/accuracy"]))
    (first, judged, wrong), (second, _, right), (third, _, none) = seen
    assert torch.equal(first, second) and torch.equal(first, third)
    assert first.abs().sum() > 0
    assert wrong == [0.0] and right[0] > 0 and none == []
    formed = [row for row, parsed in enumerate(judged.parsed) if parsed.formatted]
    for row in formed:
        assert judged.rewards[row] == pytest.approx(judged.probability[row] + 0.2, abs=1e-6)


def test_an_adapter_is_all_that_changes(tmp_path):
    from peft import LoraConfig

    trainer = make_trainer(tmp_path, others={"peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")})
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("lora_" in name for name in moved)


def test_the_template_and_what_the_loss_reads_fit_conversations_without_a_mode_given(tmp_path):
    """The chat template leaves the choice to the model: the prompt ends before the marker."""
    trainer = make_trainer(tmp_path)
    batch = last_batch(trainer)
    marker = trainer.processing_class.convert_tokens_to_ids(["<think_on>", "<think_off>"])
    assert not torch.isin(batch["prompt_ids"], torch.tensor(marker)).any()
    assert torch.isin(batch["completion_ids"][:, 0], torch.tensor(marker)).any()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_generations": 1}, "num_generations must be at least 2, got 1"),
        ({"advantages": "ppo"}, "advantages must be one of hipo, grpo, adaptthink, hgpo, step_srpo, got 'ppo'"),
        ({"bias": "median"}, "got 'median'"),
        ({"reward_source": "guess"}, "got 'guess'"),
        ({"gamma": -1.0}, "-1.0"),
        ({"length_cap": 0.0}, "0.0"),
        ({"forced_modes": True, "num_generations": 3}, "even num_generations, got 3"),
        ({"forced_modes": True, "use_vllm": True}, "use_vllm=True cannot"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "normalize_then_sum"),
    ],
)
def test_settings_that_are_none_are_refused_by_value(tmp_path, changed, said):
    with pytest.raises(ValueError, match="(?s)" + said.replace("(", r"\(")):
        settings(tmp_path, **changed)


def test_missing_columns_are_named_with_those_that_are_there(tmp_path):
    rows, _ = homework()
    with pytest.raises(ValueError, match=r"lack 'question_id': they have 'prompt', 'reference', 'difficulty'"):
        make_trainer(tmp_path, data=rows.remove_columns("question_id"))
    with pytest.raises(ValueError, match="lack 'baseline'"):
        make_trainer(tmp_path, advantages="adaptthink")
    with pytest.raises(ValueError, match="the evaluation data lack 'question_id': they have 'prompt'"):
        make_trainer(tmp_path, others={"eval_dataset": {"new": rows.select_columns("prompt")}})


def test_rewards_of_hidden_states_need_rollouts_that_bring_them(tmp_path):
    with pytest.raises(ValueError, match="'swift' needs rollouts"):
        last_batch(make_trainer(tmp_path, reward_source="swift"))


def test_rollouts_that_do_not_fit_the_trainer_are_refused(tmp_path):
    rm = SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))
    with pytest.raises(ValueError, match="forced_modes=True, but the rollouts have False"):
        make_trainer(tmp_path, forced_modes=True, others={"rollout_func": SwiftRollouts(rm, template=NO_JUDGE)})
    with pytest.raises(ValueError, match="the trainer has template="):
        make_trainer(tmp_path, others={"rollout_func": SwiftRollouts(rm)})
    with pytest.raises(ValueError, match="SwiftRollouts generates by itself: use_vllm=True"):
        make_trainer(tmp_path, use_vllm=True, others={"rollout_func": SwiftRollouts(rm, template=NO_JUDGE)})


def test_a_tokenizer_without_the_tags_is_refused(tmp_path, llama):
    from transformers import PreTrainedTokenizerFast

    _, tokenizer = load_language_model(device="cpu", progress=False)
    vocabulary = tokenizer.backend_tokenizer.to_str().replace("<think_off>", "<think_of>")
    from tokenizers import Tokenizer

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(vocabulary), eos_token=tokenizer.eos_token)
    rows, grade = homework()
    with pytest.raises(ValueError, match="<think_off>"):
        HiPOTrainer(llama, grade, settings(tmp_path), rows, other, template=NO_JUDGE)


def test_nothing_is_warned_of_that_the_user_did_not_do(tmp_path):
    rows, grade = homework()
    model, tokenizer = load_language_model(device="cpu", progress=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        HiPOTrainer(model, grade, settings(tmp_path, forced_modes=True), rows, tokenizer, template=NO_JUDGE)
    assert not [warning for warning in caught if "rollout_func" in str(warning.message)]
