"""Teach the tiny reasoner to answer homework at once as well, for HiPO: with think-off it answers at chance otherwise.

Its own text goes on beside, so that it keeps what it knows. Answers given at once are right in this text. Of two operations
the units were learnt first, then the tens but for their parity, which only tens without units brought (every wrong answer
was off by 50): so that is a stage of its own. About half an hour on one core. Needs torch 2.9 or newer, for Muon.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from graded_corpus import batches, blend, document
from homework_corpus import HOMEWORK
from tiny_reasoner import save
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from swift_rm.models.load import TINY, resolve
from swift_rm.tasks import student_exercises as world

KEPT = {"check-4": 0.05, "textbook": 0.05, "marked": 0.15, "student": 0.75}


@dataclass(frozen=True)
class Stage:
    """So many training steps on ``rows`` answers at once, of as many operations as ``operations`` draws alike.

    Of those of several operations the share ``tens`` has no units, and of the others ``carryless`` no carry in any step.
    Every ``kept_every``-th step takes ``kept_rows`` of the model's own text too. ``units`` weighs the answer's second digit.
    ``judged`` is the share of answers, and of as much of its own text again, with a judge block of two random digits: they say
    nothing, but a model so small reads places as much as tokens, and must find the question from behind one.
    """

    steps: int
    rows: int
    operations: tuple[int, ...]
    tens: float = 0.0
    carryless: float = 0.0
    kept_rows: int = 24
    kept_every: int = 1
    units: float = 1.0
    rate: float = 0.6
    judged: float = 0.0
    decays: bool = False


# As it went, but for a few restarts.
STAGES = (
    Stage(1000, 256, (1,)),
    Stage(2000, 256, (1, 2, 2, 2, 2)),
    Stage(800, 256, (1, 2, 2, 2, 2), carryless=0.75, kept_every=4, units=0.3),
    Stage(1600, 128, (1, 2, 2, 2, 2, 2, 2, 2, 2, 2), tens=0.8, carryless=0.3, kept_rows=16, kept_every=8, units=0.3, rate=0.7),
    Stage(500, 160, (1, 1, 2, 2, 2, 2, 2, 3), tens=0.15, carryless=0.1, kept_rows=32, units=0.3, decays=True),
    Stage(300, 128, (1, 1, 2), tens=0.3, kept_rows=16, kept_every=4, units=0.3, judged=0.85),
    Stage(400, 128, (1, 2, 2, 2, 2, 2), tens=0.5, kept_rows=16, kept_every=6, units=0.3, judged=0.85),
    Stage(400, 128, (1, 2, 2, 2), tens=0.15, kept_every=2, judged=0.6),
    Stage(350, 256, (1, 2, 2, 2, 2, 2), kept_rows=16, kept_every=8, judged=0.9),
    Stage(350, 160, (1, 2, 2, 2), tens=0.1, kept_every=2, judged=0.6, decays=True),
)


def main() -> None:
    """Train, print the share of right answers by number of operations as it goes, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to save to, after every stage")
    parser.add_argument("--init", default=TINY, help="the model to go on from (default the tiny reasoner)")
    parser.add_argument("--first", type=int, default=1, help="the first stage to run, by number (default 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="scale of the steps of every stage (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(resolve(args.init))
    model = AutoModelForCausalLM.from_pretrained(resolve(args.init), dtype=torch.float32)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01), 0.02),
        (torch.optim.AdamW(others, lr=0.002, weight_decay=0.0, betas=(0.9, 0.98)), 0.002),
    ]
    begun = time.monotonic()
    mix, lessons = blend(KEPT, {"homework": 1.0}), {"homework": HOMEWORK}
    for number, stage in list(enumerate(STAGES, start=1))[args.first - 1 :]:
        kept = batches(tokenizer, rng, mix, lessons, stage.kept_rows, grade_weight=6.0, notice_weight=1.5)
        steps = max(1, round(stage.steps * args.scale))
        for step in range(steps):
            for optimizer, rate in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * stage.rate * min(1.0, (step + 1) / 50) * ((1 - step / steps) if stage.decays else 1.0)
            if step % stage.kept_every == 0:
                (0.6 * loss_of(model, *next(kept))).backward()
            if stage.judged and step % stage.kept_every == 1:
                texts = [judged(rng, document(rng, {"homework/student": 1.0}, lessons)) for _ in range(stage.kept_rows)]
                ids = padded(tokenizer, texts)
                (0.6 * loss_of(model, ids, (ids != 0).float())).backward()
            texts = [answer_at_once(rng, rng.choice(stage.operations), stage) for _ in range(stage.rows)]
            ids = padded(tokenizer, [judged(rng, text) if rng.random() < stage.judged else text for text in texts])
            loss_of(model, ids, answers_weight(tokenizer, ids, stage.units)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, _ in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if (step + 1) % 50 == 0:
                right = [
                    share_right(model, tokenizer, operations, blocks) for blocks in (False, True) for operations in (1, 2, 3)
                ]
                print(f"stage {number} step {step + 1} {time.monotonic() - begun:.0f} s right {right}", flush=True)
        save(model, tokenizer, args.out)


def answer_at_once(rng: random.Random, operations: int, stage: Stage | None = None) -> str:
    """Write a question and its right answer, with no step in between; without a stage, one that the model never learns from."""
    exercise = None
    if stage is not None and operations > 1 and rng.random() < stage.tens:
        while exercise is None or world.split_of(exercise) != "lm":
            operands = tuple(rng.choice((-10, 10)) * rng.randrange(1, 10) for _ in range(operations))
            exercise = HOMEWORK.world(10 * rng.randrange(10), operands)
    else:
        carryless = stage is not None and operations > 1 and rng.random() < stage.carryless
        split: world.Split = "lm" if stage is not None else "reward"
        exercise = world.make_exercise(rng, HOMEWORK.world, split, steps=(operations,), traps=0 if carryless else None)
    return f"<bos><question>{exercise.text}<student><think_off><answer>{exercise.show(exercise.answer)}</answer><eos>"


def judged(rng: random.Random, text: str) -> str:
    """Put a judge block that says nothing before the student's mode."""
    return text.replace("<student>", f"<student><judge>{rng.randrange(100):02d}</judge>")


def padded(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Return the texts as ids ``[rows, length]``, padded on the right."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def answers_weight(tokenizer: PreTrainedTokenizerFast, ids: Tensor, units: float) -> Tensor:
    """Weigh the two digits of the answer; all else is noise, or known."""
    weight = (ids != 0).float() * 0.02
    begin, rows = answer_places(tokenizer, ids), torch.arange(len(ids))
    weight[rows, begin + 1], weight[rows, begin + 2] = 1.0, units
    return weight


def answer_places(tokenizer: PreTrainedTokenizerFast, ids: Tensor) -> Tensor:
    """Return where the answer's tag is in each row ``[rows]``."""
    return (ids == tokenizer.convert_tokens_to_ids("<answer>")).int().argmax(1)


def loss_of(model: PreTrainedModel, ids: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean loss of the next tokens."""
    logits = model(input_ids=ids).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weight[:, 1:].flatten()).sum() / weight[:, 1:].sum()


@torch.no_grad()
def share_right(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, operations: int, blocks: bool) -> float:
    """Return the share of 256 unseen questions whose likeliest answer, given at once (behind judge ``blocks``), is right."""
    rng = random.Random(9)
    texts = [answer_at_once(rng, operations) for _ in range(256)]
    ids = padded(tokenizer, [judged(rng, text) for text in texts] if blocks else texts)
    told = model(input_ids=ids).logits.argmax(-1)
    begin, rows = answer_places(tokenizer, ids), torch.arange(len(ids))
    first, second = (told[rows, begin + i] == ids[rows, begin + i + 1] for i in (0, 1))
    return round(float((first & second).float().mean()), 3)


if __name__ == "__main__":
    main()
