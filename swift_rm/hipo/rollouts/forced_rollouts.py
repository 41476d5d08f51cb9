"""Rollouts of which half are made to think and half not to, by transformers' own generation."""

from __future__ import annotations

from typing import Any

from swift_rm.hipo.response.force_mode import ForceMode
from swift_rm.hipo.response.template import Mode, Template
from swift_rm.hipo.rollouts.policy_states import encode_prompts, policy_of
from swift_rm.hipo.rollouts.prompt_groups import find_runs


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
