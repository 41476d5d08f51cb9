"""Train the tiny reasoner from nothing on graded homework and save it as a transformers folder.

First drills of single steps, where attention has nowhere to go wrong, until adding and checking are learnt; then
longer drills, then the whole mix: drills and marked attempts first, students' plain text mostly. About 45 minutes on
two cores. Needs torch 2.9 or newer, for Muon.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from homework_corpus import CHECKS, EARLY, LATE, LONGER_CHECKS, POLISH, SUMS, batches, make_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Stage:
    """A text to learn from: for so many steps, or until so large a share of its drills' marks is told right."""

    name: str
    mix: dict[str, float]
    rows: int
    steps: int = 0
    goal: float = 2.0
    decays: bool = False
    weights: dict[str, float] = field(default_factory=dict)


STAGES = (
    Stage("sums", SUMS, 384, steps=400),
    Stage("checks", CHECKS, 384, steps=3000, goal=0.985),
    Stage("longer checks", LONGER_CHECKS, 192, steps=2000, goal=0.97),
    Stage("early", EARLY, 96, steps=800),
    Stage("late", LATE, 96, steps=4000, decays=True),
    Stage("polish", POLISH, 96, steps=1800, decays=True, weights={"grade_weight": 12.0, "notice_weight": 3.0}),
)


def main() -> None:
    """Train, print what is learnt as it goes, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to save to")
    parser.add_argument("--scale", type=float, default=1.0, help="scale of the steps of every stage (default 1)")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--init", type=Path, help="go on from this folder; see --first")
    parser.add_argument("--first", default=names[0], choices=names, help="the first stage to run")
    parser.add_argument("--last", default=names[-1], choices=names, help="the last stage to run")
    parser.add_argument("--architecture", default="llama", help="a model type of transformers (default llama)")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = make_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(args.init) if args.init else None
    model = (model or new_model(args.architecture, args.layers, args.width, tokenizer)).to(args.device)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(others, lr=0.002, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    bases = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    start, window, step = time.monotonic(), Progress(tokenizer), 0
    for stage in STAGES[names.index(args.first) : names.index(args.last) + 1]:
        limit = round(stage.steps * args.scale)
        source = batches(tokenizer, rng, stage.mix, stage.rows, **stage.weights)
        for i in range(limit):
            warm, decay = (step + 1) / 100, 2 * (1 - i / limit) if stage.decays else 1.0
            factor = min(1.0, warm, max(0.02, decay))
            for optimizer, base in zip(optimizers, bases, strict=True):
                for group, lr in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = lr * factor
            learn(model, optimizers, window, *(part.to(args.device) for part in next(source)))
            step += 1
            if (i + 1) % 100 == 0:
                known = window.known()
                print(f"{stage.name} {step} {time.monotonic() - start:.0f} s {window.flush()}", flush=True)
                if known >= stage.goal:
                    break
        save(model, tokenizer, args.out)


def learn(model: PreTrainedModel, optimizers: list[torch.optim.Optimizer], window: Progress, ids: Tensor, weight: Tensor) -> None:
    """Take one step on one batch."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    loss = (losses * weight[:, 1:].flatten()).sum() / weight[:, 1:].sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    window.add(ids, logits, float(loss.detach()))


def new_model(architecture: str, layers: int, width: int, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Make the untrained model; embeddings start larger than usual, which the drills need to get going."""
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config)


class Progress:
    """Count how often the model prefers the true mark: in drills, after steps of attempts, as the final grade."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.right, self.wrong, self.marked, self.end = tokenizer.convert_tokens_to_ids(
            ["<right>", "<wrong>", "<marked>", "<eos>"]
        )
        self.flush()

    def add(self, ids: Tensor, logits: Tensor, loss: float) -> None:
        """Take one batch."""
        target = ids[:, 1:]
        mark = (target == self.right) | (target == self.wrong)
        hit = (logits[..., self.right] > logits[..., self.wrong]) == (target == self.right)
        drill, grade = mark & (ids[:, 1] == self.marked)[:, None], mark & (ids[:, :-1] == self.end)
        for name, which in (("drill", drill), ("step", mark & ~drill & ~grade), ("grade", grade)):
            self.hits[name][0] += int(hit[which].sum())
            self.hits[name][1] += int(which.sum())
        self.losses.append(loss)

    def known(self) -> float:
        """Return the share of drills' marks that the model has told right since the last flush."""
        hits, count = self.hits["drill"]
        return hits / max(1, count)

    def flush(self) -> str:
        """Return the figures since the last call."""
        text = ""
        if getattr(self, "losses", None):
            marks = {name: round(hits / count, 4) for name, (hits, count) in self.hits.items() if count}
            text = f"loss {sum(self.losses) / len(self.losses):.4f} marks right {json.dumps(marks)}"
        self.hits = {name: [0, 0] for name in ("drill", "step", "grade")}
        self.losses: list[float] = []
        return text


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save model and tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
