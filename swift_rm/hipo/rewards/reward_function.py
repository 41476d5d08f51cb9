"""The one reward function of a HiPO run: parse a response, grade its answer, and turn both into a reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from swift_rm.hipo.response.template import Parsed, Template
from swift_rm.hipo.rewards.groups import NO_MODE, OFF, ON
from swift_rm.hipo.rewards.rollout_reward import RewardSettings, over_cap, rewards

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Grader = Callable[[Mapping[str, Any], str], float | None]  # of a row of the data set and the parsed answer
MODES = {"on": ON, "off": OFF, None: NO_MODE}
NOT_COLUMNS = ("completions", "trainer_state", "log_extra", "log_metric", "environments")


@dataclass(frozen=True)
class RewardedBatch:
    """What is known of a batch of responses, row by row."""

    completion_ids: Sequence[Sequence[int]]
    parsed: list[Parsed]
    accuracy: list[float]  # NaN: no label; 0 for what is malformed
    probability: list[float]  # NaN: none
    labelled: list[bool]  # whether the label may be learnt from
    rewards: list[float]  # NaN: no reward

    @property
    def modes(self) -> list[int]:
        """1 for think-on, 0 for think-off, -1 for neither."""
        return [MODES[parsed.mode] for parsed in self.parsed]


class HiPOReward:
    """Reward responses; what was found on the way stays in :attr:`judged` until the next batch.

    ``grade`` gets a row of the data set and the text of the answer block; None or NaN means that there is no label, and
    a response that can be rewarded by nothing else takes no part. A malformed response is not graded: its accuracy is 0.
    ``ends`` are the ids that end a text: a response without one was cut.
    ``share`` gathers an integer tensor ``[B]`` from all processes and ``place`` is this process's slice of it: the
    length cap compares with the mean of the whole batch. With the source ``"swift"`` labels are for the metrics only.
    """

    def __init__(
        self,
        grade: Grader,
        settings: RewardSettings,
        template: Template,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int] = (),
        share: Callable[[Tensor], Tensor] = lambda local: local,
        place: Callable[[int], slice] = slice,
    ) -> None:
        self.__name__ = "hipo"
        self.grade, self.settings, self.template, self.tokenizer = grade, settings, template, tokenizer
        self.ends, self.share, self.place = frozenset(ends), share, place
        self.judged: RewardedBatch | None = None

    def __call__(self, prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        """Return a reward for every response, None where there is none (TRL's interface of reward functions)."""
        parsed = [self.template.parse(ids, self.tokenizer, bool(ids) and ids[-1] in self.ends) for ids in completion_ids]
        named = {name: values for name, values in columns.items() if name not in NOT_COLUMNS and isinstance(values, list)}
        accuracy = []
        for place, response in enumerate(parsed):
            row = {"prompt": prompts[place]} | {name: values[place] for name, values in named.items()}
            accuracy.append(self._accuracy(row, response))
        probability = self._probabilities(columns.get("swift_probability"), len(parsed))
        dropped = [not whole for whole in columns.get("swift_whole") or [True] * len(parsed)]
        labelled = [bool(label) for label in columns.get("swift_labelled") or [True] * len(parsed)]
        found = rewards(
            torch.tensor(self._visible(accuracy, labelled, parsed)),
            torch.tensor([response.formatted for response in parsed]),
            None if columns.get("swift_probability") is None else torch.tensor(probability),
            self.settings,
            self._over_cap(parsed),
        ).tolist()
        for place, response in enumerate(parsed):
            if dropped[place] and not response.formatted:  # it was ended from outside: nothing can be held against it
                found[place] = math.nan
        self.judged = RewardedBatch(completion_ids, parsed, accuracy, probability, labelled, found)
        return [None if math.isnan(reward) else reward for reward in found]

    def _accuracy(self, row: Mapping[str, Any], response: Parsed) -> float:
        if response.answer is None:
            return 0.0
        found = self.grade(row, response.answer)
        return float(found) if found is not None and math.isfinite(found) else math.nan

    def _visible(self, accuracy: list[float], labelled: list[bool], parsed: list[Parsed]) -> list[float]:
        """Return the accuracy that the reward may see: with source "swift" only that a malformed response has none."""
        if self.settings.source == "labels":
            return accuracy
        seen = labelled if self.settings.source == "both" else [False] * len(parsed)
        return [
            value if see or not response.formatted else math.nan
            for value, see, response in zip(accuracy, seen, parsed, strict=True)
        ]

    def _probabilities(self, column: Sequence[float] | None, rows: int) -> list[float]:
        if column is None:
            if self.settings.source != "labels" or self.settings.dense:
                wanted = f"reward_source {self.settings.source!r}" if self.settings.source != "labels" else "a dense reward"
                raise ValueError(f"{wanted} needs rollouts that come with rewards: give rollout_func=SwiftRollouts(rm, ...)")
            return [math.nan] * rows
        return [float(value) if value is not None and math.isfinite(value) else math.nan for value in column]

    def _over_cap(self, parsed: Sequence[Parsed]) -> Tensor | None:
        if self.settings.length_cap is None:
            return None
        modes = self.share(torch.tensor([MODES[response.mode] if response.formatted else -1 for response in parsed]))
        tokens = self.share(torch.tensor([response.answer_tokens for response in parsed]))
        return over_cap(modes, tokens, self.settings.length_cap)[self.place(len(parsed))].cpu()
