"""Calls of `generate` that tests make: padded prompts, rows that say what a script tells them, and the hooks left behind."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from swift_rm.capture.tap import HiddenStateTap
from tests.tiny_models import VOCAB

END = 2  # the end token of tiny models
SAMPLED = {"do_sample": True, "top_k": 0}
MARKER = "42, </think>"
NEW = 5


def padded_batch(rows: tuple[int, ...] = (9, 5), seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (len(rows), max(rows)), generator=generator)
    mask = (torch.arange(max(rows)) >= max(rows) - torch.tensor(rows)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def greedy(model: Any, batch: dict[str, torch.Tensor], **settings: Any) -> Any:
    return model.generate(**batch, **{"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **settings})


def hooks(model: Any) -> int:
    """Count the hooks of taps: transformers leaves some of its own once it was asked for output_hidden_states."""
    found = [hook for part in model.modules() for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())]
    return sum(isinstance(getattr(getattr(hook, "func", hook), "__self__", None), HiddenStateTap) for hook in found)


def prompt_batch(model, tokenizer, lengths=(5, 3)):
    ids = torch.full((len(lengths), max(lengths)), tokenizer.pad_token_id)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.randint(20, len(tokenizer), (length,), generator=torch.Generator().manual_seed(row))
    return {"input_ids": ids.to(model.device), "attention_mask": (ids != tokenizer.pad_token_id).long()}


def cut_at_end(tokens, ends):
    """Return a row's tokens up to and with the first of ``ends``."""
    last = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: last + 1]


class Script(LogitsProcessor):
    """Make each row say its own tokens, one after another, and the last one again and again."""

    def __init__(self, prompt_width, *rows):
        self.prompt_width, self.rows = prompt_width, rows

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.prompt_width
        forced = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(self.rows):
            forced[row, tokens[min(step, len(tokens) - 1)]] = 0
        return forced


class EndAfter(StoppingCriteria):
    """End each row after so many tokens of its own."""

    def __init__(self, prompt_width, *lengths):
        self.prompt_width, self.lengths = prompt_width, torch.tensor(lengths)

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] - self.prompt_width >= self.lengths
