"""The published training recipe, as plainly as its description: the language model is run again over all data in every epoch.

From the paper (arXiv 2505.12225): all hidden states by ``output_hidden_states``, cast to float32, AdamW with learning rate 1e-4
and weight decay 1e-5, binary cross-entropy, nothing standardised; and from its code, 16 responses a step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import Tensor

from swift_rm.records.rollouts import Rollout
from swift_rm.training.head_validation import held_out_auroc

BATCH = 16


def published_training(
    model: Any, rollouts: Sequence[Rollout], held_out: Set[str], goal: float, epochs: int, seed: int = 0
) -> dict[str, Any]:
    """Train until the held-out questions' AUROC is ``goal``, or for so many epochs; return seconds, epochs, AUROC, reached."""
    train = [one for one in rollouts if one.question_id not in held_out and one.label is not None]
    judge = [one for one in rollouts if one.question_id in held_out and one.label is not None]
    names = {name: i for i, name in enumerate(dict.fromkeys(one.question_id for one in judge))}
    labels, question = torch.tensor([one.label for one in judge]), torch.tensor([names[one.question_id] for one in judge])
    torch.manual_seed(seed)
    width = model.config.hidden_size * (model.config.num_hidden_layers + 1)
    head = torch.nn.Linear(width, 2).to(model.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4, weight_decay=1e-5)
    start, auroc, done = time.perf_counter(), 0.0, 0
    while done < epochs and auroc < goal:
        done += 1
        for chunk in torch.split(torch.randperm(len(train)), BATCH):
            batch = [train[i] for i in chunk.tolist()]
            right = torch.tensor([float(one.label or 0) for one in batch], device=model.device)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(rewards(model, head, batch), right)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found = [rewards(model, head, judge[i : i + BATCH]) for i in range(0, len(judge), BATCH)]
        auroc = held_out_auroc(torch.cat(found).cpu(), labels, question)
    return {"seconds": time.perf_counter() - start, "epochs": done, "auroc": auroc, "reached": auroc >= goal}


def rewards(model: Any, head: torch.nn.Linear, batch: Sequence[Rollout]) -> Tensor:
    """Run the language model on a batch and return the gated means, ``[B]``."""
    rows = [[*one.prompt_ids, *one.response_ids] for one in batch]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    states = torch.cat(hidden, dim=-1).float()
    z, r = head(states).unbind(-1)
    read = torch.zeros_like(z)
    for i, one in enumerate(batch):
        read[i, len(one.prompt_ids) : len(rows[i])] = 1
    gate = torch.sigmoid(z) * read
    return (gate * r).sum(1) / (gate.sum(1) + 1e-8)
