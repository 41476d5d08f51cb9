"""Train a tiny reasoner on graded work of imperfect students and save it as a transformers folder.

From nothing, on homework: first drills of single steps, where attention has nowhere to go wrong, until adding and
checking are learnt; then longer drills, then the whole mix: drills and marked attempts first, students' plain text mostly.
About 45 minutes on two cores. With ``--grow`` a trained one gets more layers and learns further worlds the same way.
Needs torch 2.9 or newer, for Muon.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from courses import GROWING_STAGES, STAGES, Stage
from graded_corpus import batches, blend, make_tokenizer
from homework_corpus import HOMEWORK
from rewriting_corpus import REWRITING
from tiny_reasoner import Progress, grown, new_model, save
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

LESSONS = {"homework": HOMEWORK, "rewriting": REWRITING}


def main() -> None:
    """Train, print what is learnt as it goes, save."""
    names = [stage.name for stage in (*STAGES, *GROWING_STAGES)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to save to, every 100 steps and after every stage")
    parser.add_argument("--scale", type=float, default=1.0, help="scale of the steps of every stage (default 1)")
    parser.add_argument("--init", help="go on from this folder; see --first")
    parser.add_argument("--grow", type=int, help="insert so many layers that do nothing yet into --init; then its own stages run")
    parser.add_argument(
        "--worlds", nargs="+", choices=LESSONS, default=["homework"], help="what it is to know (default homework)"
    )
    parser.add_argument(
        "--first", choices=names, metavar="STAGE", help="the first stage to run (default sums, with --grow new sums)"
    )
    parser.add_argument("--last", choices=names, metavar="STAGE", help="the last stage to run")
    parser.add_argument("--architecture", default="llama", help="a model type of transformers (default llama)")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    stages = chosen_stages(parser, args)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    lessons = {name: LESSONS[name] for name in args.worlds}
    tokenizer = make_tokenizer(tuple(symbol for lesson in lessons.values() for symbol in lesson.symbols))
    model = AutoModelForCausalLM.from_pretrained(args.init, dtype=torch.float32) if args.init else None
    if model is not None and args.grow is not None:
        model = grown(model, args.grow, tokenizer)
    model = (model or new_model(args.architecture, args.layers, args.width, tokenizer)).to(args.device)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(others, lr=0.002, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    bases = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    start, window, step = time.monotonic(), Progress(tokenizer, lessons), 0
    for stage in stages:
        limit = round(stage.steps * args.scale)
        source = batches(tokenizer, rng, blend(stage.mix, stage.shares(args.worlds)), lessons, stage.rows, **stage.weights)
        for i in range(limit):
            warm, decay = (step + 1) / 100, 2 * (1 - i / limit) if stage.decays else 1.0
            factor = stage.rate * min(1.0, warm, max(0.02, decay))
            for optimizer, base in zip(optimizers, bases, strict=True):
                for group, lr in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = lr * factor
            learn(model, optimizers, window, *(part.to(args.device) for part in next(source)))
            step += 1
            if (i + 1) % 100 == 0:
                save(model, tokenizer, args.out)
                known = window.known()
                print(f"{stage.name} {step} {time.monotonic() - start:.0f} s {window.flush()}", flush=True)
                if known >= stage.goal:
                    break
        save(model, tokenizer, args.out)


def chosen_stages(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[Stage, ...]:
    """Return the stages from --first to --last, all of one of the two courses."""
    if args.grow is not None and args.init is None:
        parser.error("--grow needs --init, a model to grow")
    named = [name for name in (args.first, args.last) if name]
    growing = any(stage.name in named for stage in GROWING_STAGES) or (not named and args.grow is not None)
    course = GROWING_STAGES if growing else STAGES
    names = [stage.name for stage in course]
    if not set(named) <= set(names):
        parser.error(f"--first {args.first} and --last {args.last} are not of one course; this one has {', '.join(names)}")
    first, last = names.index(args.first or names[0]), names.index(args.last or names[-1])
    return course[first : last + 1]


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


if __name__ == "__main__":
    main()
