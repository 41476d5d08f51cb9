"""`swift-rm sample`: responses to questions, graded, into a rollout file that can be gone on with."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from swift_rm.cli.arguments import (
    Commands,
    add_api,
    add_layers,
    add_model,
    add_ray,
    add_sampling,
    add_store,
    add_task,
    add_top_logprobs,
    command,
)
from swift_rm.cli.loading import layers_of, open_model, open_task_of, sampling_of
from swift_rm.cli.output import Result, count_samples, listing, watched


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "sample", "sample N responses per question into a rollout file; resumable")
    add_model(parser)
    add_task(parser, required=True)
    parser.add_argument("--out", required=True, help="rollout file (JSONL) to write or go on with")
    parser.add_argument("--features", help="folder of features to write or go on with: the states of what is sampled")
    add_layers(parser, None, "the last two")
    add_store(parser)
    add_top_logprobs(parser)
    add_sampling(parser, batch_size=16)
    add_ray(parser)
    add_api(parser)
    parser.set_defaults(usual={action.dest: action.default for action in parser._actions})


def resumes(args: Namespace) -> bool:
    """Tell whether a run that was stopped goes on when it is started again."""
    return True


def run(args: Namespace) -> Result:
    """Sample responses into a rollout file."""
    from swift_rm.cli.api_model import asks_api, sample_from_api

    if asks_api(args):
        return sample_from_api(args)
    from swift_rm.sampling.sample import iter_samples

    with (
        open_model(args) as (model, tokenizer, workers),
        open_task_of(args, tokenizer) as (questions, grade),
        feature_writer(args, model, tokenizer, len(questions)) as features,
    ):
        batches = iter_samples(
            model, tokenizer, questions, args.n, args.out, grade=grade, batch_size=args.batch_size, seed=args.seed,
            max_new_tokens=args.max_new_tokens, progress=watched(), features=features, grade_timeout=args.grade_timeout,
            chat_template_kwargs=args.chat_template_kwargs, workers=workers, top_logprobs=args.top_logprobs, **sampling_of(args),
        )  # fmt: skip
        counts = count_samples(batches)
    data = {"out": args.out, "questions": len(questions), **counts}
    return Result(listing(data), data)


def feature_writer(args: Namespace, model: Any, tokenizer: Any, questions: int) -> AbstractContextManager[Any]:
    """Return the writer of ``--features``, having said how much disk it may need, or a context of None without it."""
    if args.features is None:
        return nullcontext()
    from swift_rm.features.estimate import announce
    from swift_rm.features.key import FeatureKey
    from swift_rm.features.writer import FeatureWriter
    from swift_rm.models.model_shape import model_shape
    from swift_rm.sampling.generation import sampling_settings

    layers = layers_of(args, model_shape(model).layers)
    key = FeatureKey.of(model, tokenizer, layers, args.positions, dtype=args.features_dtype, stride=args.stride, n=args.n)
    tokens = sampling_settings(model, 0, args.n, args.max_new_tokens, {})["max_new_tokens"]
    sys.stderr.write(f"swift-rm: {announce(args.features, key, questions, tokens)}\n")
    return FeatureWriter(args.features, key, progress=watched())
