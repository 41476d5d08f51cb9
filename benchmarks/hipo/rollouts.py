"""What rollouts with in-pass rewards cost beside TRL's own generation, and beside that and a second, scoring pass.

Both generate as many tokens (the end of text is suppressed until the limit) through the trainer that would train on them:
the tiny reasoner, 16 questions x 8, and a random Llama of about 100 M parameters, where the model dominates. With natural
lengths, where rows leave the engine's batch as they end, figures are per generated token. Ratios are medians of pairs run in
turn in one process, with the lowest and the highest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.random_llama import random_llama
from benchmarks.recorder import arguments, finish, paired_ratio
from swift_rm import SwiftRewardModel
from swift_rm.hipo.rollouts.policy_states import FrozenScorer
from swift_rm.hipo.rollouts.swift_rollouts import SwiftRollouts
from swift_rm.models.load import ASSETS, TINY_REWARD, load_language_model
from swift_rm.tasks.homework import HomeworkTask

GROUP = 8


def main() -> None:
    """Measure, and print or write the figures."""
    args = arguments(__doc__)
    torch.manual_seed(0)
    tiny, tokenizer = load_language_model(progress=False)
    rm = SwiftRewardModel.from_pretrained(ASSETS / TINY_REWARD)
    questions = [question.prompt for question in HomeworkTask("test").questions(2 if args.quick else 16)]
    rounds = 1 if args.quick else 7
    length = 12 if args.quick else 96
    result: dict[str, Any] = {
        "tiny": measure(Setting(tiny, tokenizer, rm, questions, length, fixed=True), rounds),
        "tiny_natural_lengths": measure(Setting(tiny, tokenizer, rm, questions, length, fixed=False), rounds),
        "tiny_generating": measure(
            Setting(tiny, tokenizer, rm.with_config(position="generating"), questions, length, fixed=True), rounds
        ),
    }
    model, words, head = random_llama(args.quick)
    speak_words(model, words)
    prompt_tokens, length = (16, 4) if args.quick else (128, 32)
    prompts = [
        " ".join(f"w{i}" for i in torch.randint(3, 8000, (prompt_tokens,)).tolist()) for _ in range(2 if args.quick else 4)
    ]
    result["llama"] = measure(Setting(model, words, head, prompts, length, fixed=True), 1 if args.quick else 3)
    result["llama"]["parameters"] = sum(p.numel() for p in model.parameters())
    result["rollout_overhead"] = {name: result[name]["overhead"] for name in ("tiny", "llama")}
    finish("hipo_rollouts", args, result)


def speak_words(model: Any, tokenizer: Any) -> None:
    """Let the random model's tokenizer read texts of its words, and end them, as a trainer asks for."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.eos_token = "w1"
    model.generation_config.eos_token_id = tokenizer.eos_token_id


class Setting:
    """A trainer and its three ways to rollouts; ``tokens`` and ``rewards`` are the latest call's."""

    def __init__(self, model: Any, tokenizer: Any, rm: SwiftRewardModel, questions: list[Any], length: int, fixed: bool) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        extra = {"min_new_tokens": length} if fixed else None
        settings = GRPOConfig(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=GROUP, num_generations=GROUP, report_to=[],
            max_completion_length=length, generation_kwargs=extra, bf16=False, gradient_checkpointing=False,
        )  # fmt: skip
        self.trainer = GRPOTrainer(
            model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=settings,
            train_dataset=Dataset.from_list([{"prompt": question} for question in questions]), processing_class=tokenizer,
        )  # fmt: skip
        self.trainer.model.train()
        self.prompts = [question for question in questions for _ in range(GROUP)]
        self.rollouts, self.scorer = SwiftRollouts(rm), FrozenScorer(self.trainer.model, tokenizer, rm)
        self.length, self.fixed, self.tokens = length, fixed, {"trl": [0], "ours": [0]}

    def trl(self) -> tuple[list[list[int]], list[list[int]]]:
        """Generate as the trainer does by itself."""
        ids, images, fields = self.trainer._tokenize_prompts(self.prompts)
        tokens, _ = self.trainer._generate_single_turn(ids, images, fields, GROUP)
        self.tokens["trl"].append(sum(map(len, tokens)))
        return ids, tokens

    def trl_and_scoring(self) -> list[float]:
        """Generate as the trainer does, and read every rollout once more for its reward."""
        return self.scorer(*self.trl())

    def ours(self) -> dict[str, Any]:
        """Generate with rewards."""
        out = self.rollouts(self.prompts, self.trainer)
        self.tokens["ours"].append(sum(map(len, out["completion_ids"])))
        return out


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """Compare the three; refuse to if the rewards are not those of scoring the tokens, or the lengths differ."""
    check(setting)
    beside = _timed(setting, setting.ours, setting.trl, rounds)
    twice = _timed(setting, setting.trl_and_scoring, setting.ours, rounds)
    return {
        "overhead": round(beside["ratio"] - 1, 4),
        "overhead_range": [round(beside["ratio_low"] - 1, 4), round(beside["ratio_high"] - 1, 4)],
        "scoring_pass_vs_in_pass": round(twice["ratio"], 3),
        "scoring_pass_vs_in_pass_range": [round(twice["ratio_low"], 3), round(twice["ratio_high"], 3)],
        "seconds": {"trl": round(beside["seconds_other"], 4), "in_pass": round(beside["seconds"], 4),
                    "trl_and_scoring": round(twice["seconds"], 4)},
        "rollouts": len(setting.prompts), "length": setting.length, "fixed_length": setting.fixed, "rounds": rounds,
        "position": setting.rollouts.rm.config.position,
    }  # fmt: skip


def _timed(setting: Setting, one: Callable[[], object], other: Callable[[], object], rounds: int) -> dict[str, float]:
    """Return ``paired_ratio``, where lengths are natural with the ratios per token of all rounds."""
    setting.tokens = {"trl": [], "ours": []}
    timed = paired_ratio(one, other, rounds)
    if not setting.fixed:
        trl, ours = (sum(setting.tokens[name]) for name in ("trl", "ours"))
        factor = trl / ours if one == setting.ours else ours / trl
        timed |= {name: timed[name] * factor for name in ("ratio", "ratio_low", "ratio_high")}
    return timed


def check(setting: Setting) -> None:
    """Refuse to time rollouts whose rewards differ from those of scoring, or of other lengths."""
    out = setting.ours()
    expected = setting.scorer(out["prompt_ids"], out["completion_ids"])
    worst = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(out["swift_reward"], expected, strict=True))
    lengths = {len(ids) for tokens in (out["completion_ids"], setting.trl()[1]) for ids in tokens}
    if worst > 1e-3 or (setting.fixed and lengths != {setting.length}):
        raise SystemExit(f"rewards differ from those of scoring by {worst}, lengths are {sorted(lengths)}")


if __name__ == "__main__":
    main()
