"""Do what the paper of SWIFT (arXiv 2505.12225) did, and beside it what it should have done; write table.md and results.json.

Its way: 6,000 questions x 8 responses to train, 500 x 64 to test, temperature 1, top-p 0.9, at most 1,024 new tokens, all
layers, AdamW at 1e-4, the best of the first k. Beside it: exact Best-of-k over all subsets, majority vote, log-probability,
oracle, intervals over questions, several seeds of the head, our own training recipe. Training states are kept in
OUT/features, whose size is said first (terabytes for all layers of an 8B model: see --layers and --features-dtype); they may
be deleted once OUT/heads is complete. A stopped run goes on when called again.

NOT RUN ON A LARGE MODEL BY US: only --smoke is tested, all of this on the embedded tiny reasoner.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import swift_protocol as paper
from swift_heads import heads_of, rewards_of
from swift_questions import check_disjoint, digest_of, open_questions, question_files
from swift_table import measure, write_table

from swift_rm.cli.loading import parse_layers
from swift_rm.features.estimate import announce
from swift_rm.features.key import FeatureKey
from swift_rm.files.atomic_write import write_whole
from swift_rm.models.load import TINY, load_language_model
from swift_rm.models.model_shape import model_shape
from swift_rm.records.rollouts import Rollout, finite
from swift_rm.sampling.sample import sample

SIZES = ("train_questions", "train_n", "test_questions", "test_n", "max_new_tokens")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options and run; an error is one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="run it whole, tiny, on the embedded tiny reasoner's questions")
    parser.add_argument("--model", help="Hub id or folder of the language model")
    parser.add_argument("--dataset", choices=("math", "gsm8k", "aqua", "jsonl"), help="jsonl: any questions, by --data")
    parser.add_argument("--data", nargs=2, metavar=("TRAIN", "TEST"), help="JSONL files instead of the Hub's data set")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; the same call resumes")
    parser.add_argument("--prompt", help="another prompt than the data set's, with {question} in it")
    parser.add_argument("--layers", default="all", help="'all' (default, as published), or such as --layers=-4,-3,-2,-1")
    parser.add_argument("--features-dtype", default="bfloat16", help="bfloat16 (default), int8, float8_e4m3, float32")
    for name in SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default {getattr(paper.Protocol(), name):,}")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the head (default 3)")
    parser.add_argument("--rows", type=int, default=32, help="responses at once, at least one question's (default 32)")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--dtype", help="of the language model (default: its own)")
    args = parser.parse_args(arguments)
    if args.smoke:
        if args.dataset or args.data:
            parser.error("--smoke has its own questions: give neither --dataset nor --data")
        args.model, args.dataset = args.model or TINY, "homework"
    if args.model is None or args.dataset is None:
        parser.error("--model and --dataset are needed, or --smoke")
    if args.seeds < 1 or args.rows < 1:
        parser.error(f"--seeds and --rows must be at least 1, got {args.seeds} and {args.rows}")
    try:
        print(run(args, progress=sys.stderr.isatty()))
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"reproduce_swift: {error}") from error


def run(args: argparse.Namespace, *, progress: bool = False) -> str:
    """Sample, fit, score and measure whatever is not in ``args.out`` yet; return the table."""
    out, prompt = args.out, args.prompt or paper.PROMPTS[args.dataset]
    sizes = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    protocol = replace(paper.SMOKE if args.smoke else paper.Protocol(), **sizes).within_test()
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_language_model(args.model, device=args.device, dtype=args.dtype, progress=progress)
    layers = parse_layers(args.layers, model_shape(model).layers)
    key = FeatureKey.of(model, tokenizer, layers, ("token",), dtype=args.features_dtype, n=protocol.train_n)
    with ExitStack() as stack:
        train_file, test_file, left_out = question_files(args.dataset, args.data, out, protocol)
        chat = bool(tokenizer.chat_template)
        train_task, train = open_questions(stack, train_file, protocol.train_questions, prompt, chat=chat)
        test_task, test = open_questions(stack, test_file, protocol.test_questions, prompt, chat=chat)
        check_disjoint(train, test)
        settings = {"protocol": asdict(protocol), "questions": digest_of([*train, *test]), "features": key.to_dict()}
        paper.check_settings(out / "settings.json", {**settings, "seeds": args.seeds, "dtype": str(model.dtype)})

        def responses(task: Any, questions: Any, n: int, name: str, features: Any = None) -> list[Rollout]:
            return sample(
                model, tokenizer, questions, n, out / name, grade=task.grade, batch_size=max(1, args.rows // n),
                max_new_tokens=protocol.max_new_tokens, temperature=protocol.temperature, top_p=protocol.top_p,
                features=features, progress=progress,
            )  # fmt: skip

        def sample_train(features: Any) -> list[Rollout]:
            sys.stderr.write(f"{announce(features.folder, key, len(train), protocol.max_new_tokens)}\n")
            return responses(train_task, train, protocol.train_n, "train_rollouts.jsonl", features)

        heads = heads_of(out, key, protocol.max_new_tokens, args.seeds, sample_train, progress=progress)
        sampled = responses(test_task, test, protocol.test_n, "test_rollouts.jsonl")
    rewards = rewards_of(out / "rewards.json", model, tokenizer, heads, sampled, batch_size=args.rows, progress=progress)
    results = {
        "model": args.model, "dataset": args.dataset, "data": args.data, "left_out": left_out, "prompt": prompt,
        "protocol": asdict(protocol), "layers": list(key.layers), "features_dtype": key.dtype, "seeds_of_head": args.seeds,
        "published_model": paper.published_name(args.model, args.dataset), "deviations": paper.deviations(protocol, key),
        "train": {key: heads[0].config.training[key] for key in ("questions", "validation_questions", "right_share")},
        **measure(sampled, rewards, protocol.ks),
    }  # fmt: skip
    table = write_table(results)
    write_whole(out / "results.json", json.dumps(finite(results), indent=1, ensure_ascii=False) + "\n")
    write_whole(out / "table.md", table)
    return table


if __name__ == "__main__":
    main()
