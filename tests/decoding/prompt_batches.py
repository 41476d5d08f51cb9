"""Prompts that a tiny model has read, ready for the decoding loop."""

from __future__ import annotations

import torch

from swift_rm.capture.running_reward import RunningRewards
from swift_rm.decoding.loop import PromptBatch
from tests.generate_calls import prompt_batch
from tests.tiny_models import VOCAB

OFTEN_ENDS = list(range(2, 14))  # so many ends of sequence that rows end at different steps
LENGTHS = (5, 3, 7)
WIDTH = max(LENGTHS)


class IdTokenizer:
    """What `prompt_batch` needs to know of a tokenizer."""

    pad_token_id = 0

    def __len__(self):
        return VOCAB


def read_prompts(model, rm, inputs=None, **settings):
    """Let the model read prompts, as `generate` prepares it; sampling starts from a fixed seed."""
    torch.manual_seed(0)
    made = []

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        running = RunningRewards(model, rm)
        made.append(PromptBatch(model, input_ids, logits_processor, stopping_criteria, generation_config, running, kwargs))
        return input_ids

    given = {"do_sample": True, "top_k": 0, "max_new_tokens": 12, "eos_token_id": OFTEN_ENDS, "pad_token_id": 0, **settings}
    model.generate(**(inputs or prompt_batch(model, IdTokenizer(), LENGTHS)), custom_generate=loop, **given)
    return made[0]


def prompts_of(model):
    inputs = prompt_batch(model, IdTokenizer(), LENGTHS)
    return [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
