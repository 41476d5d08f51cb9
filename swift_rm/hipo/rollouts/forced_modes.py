"""Force a mode: once the judge block is closed, the mode's marker is the only token that may follow; half of a group think."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.hipo.response.template import Mode, Template
from swift_rm.hipo.rollouts.policy_states import encode_prompts, policy_of
from swift_rm.hipo.rollouts.prompt_groups import find_runs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ForceMode:
    """A logits processor for one mode: after a response's first closing judge tag, only the mode's marker can be sampled.

    Without a judge block in the template, the marker is the first token. A response that never closes its judge block is
    left alone. It goes by each row's tokens and keeps nothing between calls, so that rows may leave the batch. All rows
    begin with ``prompt_length`` tokens of prompt, padding on the left included. It works in transformers' `generate` and in
    the Best-of-N engine. Raises ValueError for a tag that is not a single token of the tokenizer.
    """

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase, mode: Mode, prompt_length: int) -> None:
        self.mode, self.prompt_length = mode, prompt_length
        self.marker = _token(tokenizer, template.marker(mode))
        self.closing = None if template.judge is None else _token(tokenizer, template.judge[1])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores ``[rows, V]`` of the tokens that follow ``input_ids [rows, seq]``: 0 for the marker, else -inf."""
        forced = self._forced(input_ids)
        if not bool(forced.any()):
            return scores
        only = torch.full_like(scores[:1], -torch.inf)
        only[:, self.marker] = 0
        return torch.where(forced[:, None], only, scores)

    def _forced(self, input_ids: Tensor) -> Tensor:
        """Tell in which rows ``[rows]`` the next token is the marker."""
        sampled = input_ids[:, self.prompt_length :]
        if self.closing is None or not sampled.shape[1]:
            first = self.closing is None and not sampled.shape[1]
            return torch.full((len(input_ids),), first, dtype=torch.bool, device=input_ids.device)
        last = sampled[:, -1] == self.closing
        return last & ((sampled == self.closing).sum(1) == 1) if bool(last.any()) else last


def _token(tokenizer: PreTrainedTokenizerBase, tag: str) -> int:
    ids = tokenizer(tag, add_special_tokens=False)["input_ids"]
    unknown = ids == [tokenizer.unk_token_id] and tag != tokenizer.unk_token
    if len(ids) != 1 or unknown:
        raise ValueError(f"to force a mode, the tag {tag!r} must be one token of the tokenizer, but it spells it {ids}: add it")
    return int(ids[0])


class ForcedRollouts:
    """A ``rollout_func`` of TRL: the first half of each question's responses gets the think-on marker, the rest think-off.

    The judge block, where the template has one, is sampled freely before it. In evaluation the modes are free. The marker
    counts as if it had been sampled: its advantage moves the choice of the mode as that of any other token.
    """

    def __init__(self, template: Template) -> None:
        self.template = template

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Return the tokens of one response to each prompt; ``prompts`` hold every question as often as it is to be answered."""
        ids = encode_prompts(trainer, prompts)
        training = bool(trainer.model.training)
        group = trainer.num_generations if training else trainer.num_generations_eval
        runs = find_runs(prompts, trainer.accelerator.process_index * len(prompts), group, forced=training)
        places: dict[Mode | None, list[int]] = {}
        for run in runs:
            places.setdefault(run.mode, []).extend(range(run.start, run.start + run.count))
        found: dict[int, list[int]] = {}
        for mode, rows in places.items():
            found.update(zip(rows, self._generate(trainer, [ids[row] for row in rows], mode), strict=True))
        return {"prompt_ids": ids, "completion_ids": [found[row] for row in range(len(ids))], "logprobs": None}

    def _generate(self, trainer: Any, prompts: list[list[int]], mode: Mode | None) -> list[list[int]]:
        """Sample one response of this mode to each prompt with the trainer's settings, up to its end of text."""
        from swift_rm.sampling.generation import left_padded

        tokenizer = trainer.processing_class
        ids, mask, _ = left_padded(tokenizer, prompts, trainer.accelerator.device)
        width = ids.shape[1]
        processors = [] if mode is None else [ForceMode(self.template, tokenizer, mode, width)]
        with policy_of(trainer) as model:
            rows = model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, generation_config=trainer.generation_config, logits_processor=processors
            )
        return [_ended(row, trainer.eos_token_ids) for row in rows[:, width:].tolist()]


def _ended(ids: list[int], ends: list[int]) -> list[int]:
    """Return the ids up to the first that ends a text, which padding follows."""
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: end + 1]
