"""HiPOTrainer: TRL's GRPOTrainer with an advantage for every token, one for choosing a mode and one for answering under it.

A thin layer: TRL samples, gathers, clips, scales, saves and logs as it always does. Three of its methods are overridden.
``_calculate_rewards`` keeps what it gathered, ``_generate_and_score_completions`` replaces the advantages ``[B]`` by
``[B, T]``, which TRL's loss takes as they are, and ``_get_train_sampler`` lets a resumed run ask the questions in the order
in which it would have asked them. Groups are built from the rewards and modes of all processes, so it does
not matter how they are spread. LoRA (``peft_config``), accelerate, DeepSpeed, checkpoints and loggers work as in TRL;
vLLM generation is TRL's own and comes without in-pass rewards (not run by the tests, which have no GPU).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swift_rm.hipo.trainer.trl_version import check_trl

check_trl()

from trl import GRPOTrainer  # noqa: E402

from swift_rm.hipo.response.tags import check_tags  # noqa: E402
from swift_rm.hipo.response.template import Template  # noqa: E402
from swift_rm.hipo.rewards.advantages import Groups, advantages  # noqa: E402
from swift_rm.hipo.rewards.reward_function import Grader, HiPOReward, RewardedBatch  # noqa: E402
from swift_rm.hipo.rewards.token_advantages import token_advantages  # noqa: E402
from swift_rm.hipo.rollouts.forced_modes import ForcedRollouts  # noqa: E402
from swift_rm.hipo.rollouts.reward_drift import DriftWindow  # noqa: E402
from swift_rm.hipo.rollouts.swift_rollouts import SwiftRollouts  # noqa: E402
from swift_rm.hipo.trainer.metrics import (  # noqa: E402
    ModeHistory,
    Row,
    rows_of,
    step_metrics,
)
from swift_rm.hipo.trainer.resume import check_settings, keep_run, last_checkpoint, run_settings, write_settings  # noqa: E402
from swift_rm.hipo.trainer.trainer_config import HiPOConfig  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["HiPOConfig", "HiPOTrainer"]

Rollouts = Callable[[list[Any], Any], dict[str, Any]]  # TRL's rollout_func


class HiPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """Train a model to choose, question by question, whether to think.

    Args:
        model: the language model, or its name; its tokenizer must have every tag of the template as one token.
        grade: of a row of the data set and the text of its answer block, the accuracy (0 to 1); None: no label.
        args: a `HiPOConfig`.
        train_dataset: rows with ``prompt`` and ``question_id``, perhaps ``difficulty`` (a short text, for the metrics)
            and ``baseline`` (the accuracy before training, which AdaptThink needs); all columns reach ``grade``.
        processing_class: the tokenizer.
        rollout_func: a `SwiftRollouts`, whose rollouts come with rewards of the hidden states; None: TRL generates.
        template: the tags.
        reward_funcs: further reward functions, added as TRL adds them, weighted by ``args.reward_weights``; a row that
            has no reward of HiPO's own takes no part all the same.
        others: the remaining arguments of GRPOTrainer, ``peft_config`` for example.

    Raises ValueError for tags, columns or options that do not fit.
    """

    args: HiPOConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        grade: Grader,
        args: HiPOConfig,
        train_dataset: Any,
        processing_class: PreTrainedTokenizerBase,
        *,
        rollout_func: Rollouts | None = None,
        template: Template | None = None,
        reward_funcs: Sequence[Callable[..., Any]] = (),
        **others: Any,
    ) -> None:
        template = template or Template()
        check_tags(processing_class, template)
        check_columns(train_dataset, ["prompt", "question_id", *(["baseline"] if args.advantages == "adaptthink" else [])])
        tested = others.get("eval_dataset")
        for dataset in tested.values() if isinstance(tested, dict) else [tested]:
            check_columns(dataset, ["prompt", "question_id"], "evaluation")
        self.hipo_reward = HiPOReward(
            grade, args.reward_settings, template, processing_class, share=self._share, place=self._place
        )
        self.history, self.drift = ModeHistory(), DriftWindow()
        self._epochs_before = 0  # that a resumed run has behind it
        rollout_func = checked_rollouts(args, template, rollout_func)
        with warnings.catch_warnings():  # that rollout_func may change: the range of TRL's versions is pinned for that
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(
                model, [self.hipo_reward, *reward_funcs], args, train_dataset, processing_class=processing_class,
                rollout_func=rollout_func, **others,
            )  # fmt: skip
        self.hipo_reward.ends = frozenset(self.eos_token_ids)
        self.run_settings = run_settings(args, template, processing_class, rollout_func, self.model, train_dataset)
        self.add_callback(keep_run(self.run_settings, rollout_func))

    def train(self, resume_from_checkpoint: str | bool | None = None, *others: Any, **named: Any) -> Any:
        """Train, or go on from a checkpoint of the same run; raise ValueError if the settings that define it are others."""
        from transformers import TrainerState

        checkpoint: str | Path | None = None if isinstance(resume_from_checkpoint, bool) else resume_from_checkpoint
        if resume_from_checkpoint is True:
            checkpoint = last_checkpoint(self.args.output_dir)
            if checkpoint is None:
                raise ValueError(f"{self.args.output_dir} holds no whole checkpoint to go on from")
        if checkpoint:
            check_settings(checkpoint, self.run_settings)
            state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
            self.history = ModeHistory.from_log(state.log_history)
            self._epochs_before = int((state.epoch or 0.0) + 1e-6)
            if isinstance(self.rollout_func, SwiftRollouts):
                self.rollout_func.load(checkpoint)
        if self.accelerator.is_main_process:
            write_settings(self.args.output_dir, self.run_settings)
        return super().train(str(checkpoint) if checkpoint else None, *others, **named)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """Give TRL's sampler, past the orders of the epochs that a resumed run has behind it: it begins with the first again."""
        sampler = super()._get_train_sampler(dataset)
        for _ in range(self._epochs_before):
            next(iter(sampler), None)  # draws an epoch's order
        return sampler

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        """Keep the rewards of all processes ``[N, functions]`` that TRL gathers."""
        self._gathered = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._gathered

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Replace TRL's advantages ``[B]`` by those of the run's algorithm for every token, ``[B, T]``."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        judged = self.hipo_reward.judged
        assert judged is not None
        kind = "train" if self.model.training else "eval"
        group = self.num_generations if kind == "train" else self.num_generations_eval
        modes = self._share(torch.tensor(judged.modes)).view(-1, group)
        rewards = self._summed(self._gathered).view(-1, group)
        if group > 1:  # in evaluation a question may be answered once: nothing to compare, and nothing is learnt
            groups = Groups(rewards, modes, self._baseline(inputs, group))
            found = advantages(self.args.advantages, groups, self.args.advantage_settings)
            mine, width = self._place(len(inputs)), output["completion_ids"].size(1)
            judge, mode, answer = (one.flatten()[mine] for one in (found.judge, found.mode, found.answer))
            output["advantages"] = token_advantages(judged.parsed, judge, mode, answer, width)
            self._relog(found.answer.flatten().tolist())
        self._log_step(kind, inputs, judged, rewards)
        if kind == "train":
            self._learn(output, judged)
        return output

    def _learn(self, output: Mapping[str, Tensor], judged: RewardedBatch) -> None:
        """Hand the labelled rollouts to the reward model, if it is refreshed; only well-formed ones are judged by it."""
        if not isinstance(self.rollout_func, SwiftRollouts):
            return
        rows = [
            row for row, parsed in enumerate(judged.parsed)
            if judged.labelled[row] and parsed.formatted and judged.accuracy[row] == judged.accuracy[row]
        ]  # fmt: skip
        prompts = [output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist() for row in rows]
        completions = [list(judged.completion_ids[row]) for row in rows]
        for name, value in self.rollout_func.learn(prompts, completions, [judged.accuracy[row] for row in rows]).items():
            self._metrics["train"][name].append(value)

    def _relog(self, found: list[float]) -> None:
        """Put the answers' advantages in the place of TRL's in the table of completions."""
        logged = self._logs["advantages"]
        for _ in found[: len(logged)]:
            logged.pop()
        logged.extend(found)

    def _summed(self, gathered: Tensor) -> Tensor:
        """Add the weighted rewards as TRL does, NaN where HiPO's own is."""
        weighted = gathered * self.reward_weights.to(gathered).unsqueeze(0)
        total: Tensor = weighted.nansum(dim=1).where(~gathered[:, 0].isnan(), torch.nan)
        return total

    def _baseline(self, inputs: list[dict[str, Any]], group: int) -> Tensor | None:
        if "baseline" not in inputs[0]:
            return None
        # The reward that the reference would have had, if it kept to the format: a calibrated probability is as high as accuracy.
        settings, weight = self.args.reward_settings, float(self.reward_weights[0])
        accuracies = [float("nan") if row["baseline"] is None else float(row["baseline"]) for row in inputs]
        known = [weight * (accuracy * (1 + settings.dense) + settings.format_weight) for accuracy in accuracies]
        return self._share(torch.tensor(known)).view(-1, group)[:, 0]

    def _share(self, local: Tensor) -> Tensor:
        """Gather a tensor ``[B]`` from all processes, in their order."""
        gathered: Tensor = self.accelerator.gather(local.to(self.accelerator.device))
        return gathered

    def _place(self, rows: int) -> slice:
        """Return this process's rows among those of all."""
        return slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)

    def _log_step(self, kind: str, inputs: list[dict[str, Any]], judged: RewardedBatch, rewards: Tensor) -> None:
        from accelerate.utils import gather_object

        rows: list[Row] = gather_object(rows_of(inputs, judged))
        found = step_metrics(rows)
        equal = (rewards == rewards.nanmedian(dim=1, keepdim=True).values) | rewards.isnan()
        found["hipo/groups_all_equal"] = equal.all(dim=1).float().mean().item()
        if kind == "train":
            found |= self.history.step(found) | self.drift.add([row for row in rows if row.parsed.formatted])
        for name, value in found.items():
            self._metrics[kind][name].append(value)


def checked_rollouts(args: HiPOConfig, template: Template, rollout_func: Rollouts | None) -> Rollouts | None:
    """Return what generates rollouts (None: TRL does); raise ValueError for options that do not go together."""
    if rollout_func is None:
        return ForcedRollouts(template) if args.forced_modes else None
    if args.use_vllm:
        raise ValueError(f"{type(rollout_func).__name__} generates by itself: use_vllm=True has no part in it, leave one out")
    if isinstance(rollout_func, SwiftRollouts):
        for name, value in (("forced_modes", args.forced_modes), ("template", template)):
            if getattr(rollout_func, name) != value:
                raise ValueError(f"the trainer has {name}={value!r}, but the rollouts have {getattr(rollout_func, name)!r}")
    return rollout_func


def check_columns(dataset: Any, wanted: Sequence[str], kind: str = "training") -> None:
    """Raise ValueError that names the columns that a data set lacks and those that it has."""
    present = getattr(dataset, "column_names", None)
    if present is None:  # a stream need not know
        return
    if missing := [name for name in wanted if name not in present]:
        raise ValueError(f"the {kind} data lack {', '.join(map(repr, missing))}: they have {', '.join(map(repr, present))}")
