"""SwiftRollouts: a TRL rollout function whose rollouts come with their hidden-state rewards, at no extra forward pass."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from swift_rm.decoding.pruning import Halving, Prune, get_prune
from swift_rm.hipo.response.template import Mode, Template
from swift_rm.hipo.rollouts.forced_modes import ForceMode
from swift_rm.hipo.rollouts.policy_states import FrozenScorer, encode_prompts, gathered, policy_of, read_rollouts
from swift_rm.hipo.rollouts.prompt_groups import PromptGroup, find_runs
from swift_rm.hipo.rollouts.refresh import FILE, Refresh
from swift_rm.hipo.rollouts.reward_drift import Trickle
from swift_rm.hipo.rollouts.rollout_selection import keep_informative
from swift_rm.reward.reward_model import SwiftRewardModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.decoding.decoded_candidate import DecodedCandidate

Scorer = Literal["policy", "frozen"]
SCORERS = ("policy", "frozen")


@dataclass(frozen=True)
class Rollout:
    """One rollout as it is handed to the trainer; ``whole`` False: it was dropped on its way, and has no reward."""

    token_ids: list[int]
    reward: float
    whole: bool


class SwiftRollouts:
    """Generate a step's rollouts with the Best-of-N engine, for ``GRPOTrainer(..., rollout_func=SwiftRollouts(rm))``.

    Tokens are sampled as the trainer would (its temperature, top_p, top_k, min_p, penalty, length and
    ``generation_kwargs``; without dropout), each prompt is read once for all of its rollouts, and the rewards are those
    of generation, equal to ``score`` of the same tokens. Beside ``prompt_ids``, ``completion_ids`` and ``logprobs`` (None:
    the trainer computes what it needs) the reward functions get, for each rollout, ``swift_reward`` (a logit, NaN if it
    has none), ``swift_probability``, ``swift_whole`` and ``swift_labelled`` (whether its label may be used). Seeds follow
    from the trainer's seed and step, so that a resumed run samples the same.

    ``scorer="frozen"`` reads the rollouts once more with ``frozen_model``, the model that training started from: its
    rewards cannot be gamed by moving the states, but the pass costs what the engine saves.
    ``oversample=M`` generates M rollouts a question in training and hands on the most informative, see
    ``keep_informative``; ``prune`` ("halving", "confidence" or a rule) drops hopeless ones on their way, by the in-pass
    rewards. ``forced_modes`` forces the first half of each group to think and the second not to, in training.
    ``trickle`` picks the questions whose labels may be used (None: all, or ``refresh``'s share); ``refresh`` learns from
    these when :meth:`learn` is called, on a copy of the reward model, which is ``rm`` here. ``batch_size`` counts prompts
    (None: all at once, as the trainer generates). In evaluation rollouts are plain: no forced mode, no over-sampling.

    Raises ValueError for options that do not go together and a reward model of another base model.
    """

    def __init__(
        self,
        rm: SwiftRewardModel,
        *,
        scorer: Scorer = "policy",
        oversample: int | None = None,
        prune: Prune | str | None = None,
        forced_modes: bool = False,
        template: Template | None = None,
        batch_size: int | None = None,
        frozen_model: PreTrainedModel | None = None,
        refresh: Refresh | None = None,
        trickle: Trickle | None = None,
    ) -> None:
        if scorer not in SCORERS:
            raise ValueError(f"scorer must be one of {SCORERS}, got {scorer!r}")
        if (scorer == "frozen") != (frozen_model is not None):
            raise ValueError(f"scorer={scorer!r} and frozen_model={type(frozen_model).__name__} do not go together")
        if prune is not None and oversample is None:
            raise ValueError(f"prune={prune!r} drops rollouts, so it needs oversample=M, more than are trained on")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.rm = rm if refresh is None else copy.deepcopy(rm)
        self.scorer, self.oversample, self.forced_modes, self.refresh = scorer, oversample, forced_modes, refresh
        self.template, self.batch_size, self._frozen_model = template or Template(), batch_size, frozen_model
        self.prune = get_prune(prune, rm)
        self.trickle = trickle or (Trickle(refresh.settings.share, refresh.settings.seed) if refresh is not None else None)
        self._trainer: Any = None
        self._calls: Counter[tuple[str, int]] = Counter()

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Return a rollout for each of ``prompts``, which come repeated; the trainer calls this."""
        training = bool(trainer.model.training)
        group = trainer.num_generations if training else trainer.num_generations_eval
        if training and self.oversample is not None and self.oversample < group:
            raise ValueError(f"oversample={self.oversample} is less than the {group} rollouts a question that are trained on")
        first = trainer.accelerator.process_index * len(prompts)
        runs = find_runs(prompts, first, group, forced=self.forced_modes and training)
        tokenizer = trainer.processing_class
        with policy_of(trainer) as model:
            if self._trainer is not trainer:
                self._meet(trainer, model, tokenizer)
            prompt_ids = encode_prompts(trainer, [prompts[run.start] for run in runs])
            found = self._generate(trainer, model, tokenizer, runs, prompt_ids, group if training else None)
        rollouts = [one for group_ in found for one in group_]
        picked = [self.trickle is None or self.trickle.picks(prompts[run.start]) for run in runs]
        rewards = [one.reward for one in rollouts]
        return {
            "prompt_ids": [prompt_ids[i] for i, run in enumerate(runs) for _ in range(run.count)],
            "completion_ids": [one.token_ids for one in rollouts],
            "logprobs": None,
            "swift_reward": rewards,
            "swift_probability": self.rm.probability(rewards).tolist(),
            "swift_whole": [one.whole for one in rollouts],
            "swift_labelled": [picked[i] for i, run in enumerate(runs) for _ in range(run.count)],
        }

    def learn(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], labels: Sequence[float]
    ) -> dict[str, float]:
        """Refresh the head from labelled rollouts (label 1 right, 0 not, NaN unknown) and return what to log.

        To be called once a step, before the policy is updated, by every process with its own rollouts, also if it has
        none: their states are read again by one pass over these alone, and gathered. Without ``refresh`` nothing is done.
        """
        if self.refresh is None:
            return {}
        if self._trainer is None:
            raise RuntimeError("learn() was called before any rollout was generated")
        with policy_of(self._trainer) as policy:
            model = policy if self._frozen_model is None else self._frozen_model
            states, offsets = read_rollouts(model, self._trainer.processing_class, self.rm, prompt_ids, completion_ids)
        accelerator, device = self._trainer.accelerator, self._trainer.accelerator.device
        sizes = gathered(accelerator, offsets.diff().to(device))
        told = gathered(accelerator, torch.tensor(list(labels), dtype=torch.float32, device=device))
        states = gathered(accelerator, states.to(device))
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return self.refresh.learn(self.rm, states, offsets, told.tolist())

    def save(self, folder: str | Path) -> None:
        """Write what a checkpoint needs to go on: the refreshed reward model and its replay (nothing without ``refresh``)."""
        if self.refresh is not None:
            self.refresh.save(folder, self.rm)

    def load(self, folder: str | Path) -> None:
        """Go on from a checkpoint; raises as :meth:`Refresh.load`, and ValueError if it was refreshed and this is not."""
        if self.refresh is not None:
            self.refresh.load(folder, self.rm)
        elif (Path(folder) / FILE).is_file():
            raise ValueError(f"{folder} holds {FILE}, a reward model that was refreshed: resume with refresh=Refresh(...), too")

    def _meet(self, trainer: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check, at the first call, that the reward model reads this model, and put it beside it."""
        from swift_rm.models.generation_config import refuse_other_decoding
        from swift_rm.reward.identity import check_base_model

        check_base_model(self.rm.config, model, tokenizer)
        refuse_other_decoding(model, trainer.generation_kwargs)
        self.rm.to(model.device)
        self._trainer = trainer

    def _generate(
        self,
        trainer: Any,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        runs: Sequence[PromptGroup],
        prompts: Sequence[list[int]],
        group: int | None,
    ) -> list[list[Rollout]]:
        """Return the rollouts of each run; ``group`` is None where they are to be plain."""
        from swift_rm.sampling.generation import seed_for

        oversample = self.oversample if group is not None else None
        key = ("train" if trainer.model.training else "eval", int(trainer.state.global_step))
        self._calls = Counter({key: self._calls[key]})  # of earlier steps nothing need be known
        seed = seed_for(trainer.args.seed, *key, self._calls[key], trainer.accelerator.process_index)
        self._calls[key] += 1
        found: list[list[Rollout]] = [[] for _ in runs]
        kinds = list(dict.fromkeys((run.mode, run.count) for run in runs))
        spent, dropped = 0, 0
        for mode, keep in kinds:
            places = [i for i, run in enumerate(runs) if (run.mode, run.count) == (mode, keep)]
            n = keep if oversample is None or group is None else math.ceil(oversample * keep / group)
            rule = self.prune if oversample is not None else None
            if isinstance(rule, Halving):
                rule = replace(rule, least=max(rule.least, keep))  # as many are to come to their end
            decoded = self._decode(
                trainer, model, tokenizer, [prompts[i] for i in places], n, mode, rule, seed_for(seed, mode, keep)
            )
            spent += sum(len(one.token_ids) for candidates in decoded for one in candidates)
            dropped += len(places) * (n - keep)
            for i, made in zip(places, self._scored([prompts[i] for i in places], decoded, tokenizer), strict=True):
                found[i] = made if n == keep else self._chosen(made, keep, tokenizer)
        if oversample is not None:
            trainer._log_metric("swift/dropped", float(dropped))
            trainer._log_metric("swift/tokens_generated", float(spent))
        return found

    def _decode(
        self,
        trainer: Any,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[list[int]],
        n: int,
        mode: Mode | None,
        prune: Prune | None,
        seed: int,
    ) -> list[list[DecodedCandidate]]:
        """Return ``n`` candidates of each prompt, from the engine; Ctrl-C is passed on."""
        from swift_rm.decoding.candidate_budget import CandidatePlan
        from swift_rm.decoding.engine import Engine, PromptState

        settings: dict[str, Any] = {k: v for k, v in trainer.generation_kwargs.items() if k != "pad_token_id"}
        processors = None if mode is None else lambda width: [ForceMode(self.template, tokenizer, mode, width)]
        engine = Engine(model, tokenizer, self.rm, settings, CandidatePlan(n, n), prune, processors)
        asked = [PromptState(ids) for ids in prompts]
        if not engine.answer(asked, seed, batch_size=self.batch_size or len(asked)):
            raise KeyboardInterrupt
        return [one.candidates for one in asked]

    def _scored(
        self, prompts: Sequence[list[int]], decoded: Sequence[Sequence[DecodedCandidate]], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[Rollout]]:
        """Return the candidates with their rewards: those of generation, or the frozen model's."""
        if self._frozen_model is None:
            rewards = iter([one.reward for candidates in decoded for one in candidates])
        else:
            scorer = FrozenScorer(self._frozen_model, tokenizer, self.rm)
            asked = [prompt for prompt, candidates in zip(prompts, decoded, strict=True) for _ in candidates]
            rewards = iter(scorer(asked, [one.token_ids for candidates in decoded for one in candidates]))
        return [[_rollout(one, next(rewards)) for one in candidates] for candidates in decoded]

    def _chosen(self, made: Sequence[Rollout], keep: int, tokenizer: PreTrainedTokenizerBase) -> list[Rollout]:
        """Return the most informative rollouts, in the order in which they were generated."""
        modes = [self.template.parse(one.token_ids, tokenizer).mode for one in made]
        probabilities = self.rm.probability([one.reward for one in made]).tolist()
        return [made[i] for i in keep_informative(probabilities, keep, modes, [one.whole for one in made])]


def _rollout(one: DecodedCandidate, reward: float) -> Rollout:
    whole = one.complete and math.isfinite(reward)
    return Rollout(one.token_ids, reward if whole else math.nan, whole)
