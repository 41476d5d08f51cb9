"""`swift-rm score`: rewards, and tokens if asked for, of the responses in a file."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from swift_rm.cli.arguments import REWARD_HELP, Commands, add_model, add_ray, add_template, command

if TYPE_CHECKING:
    from torch import Tensor

    from swift_rm.cli.output import Result
    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.scoring.scoring_job import Columns
    from swift_rm.tokens.region import Flag

OURS = ("reward", "probability", "reward_spread", "tokens", "flag")  # what an earlier reward model may have said
BATCHES_A_JOB = 8  # batches that are sorted by length together, wherever they are scored

Records = Sequence[tuple[int, dict[str, Any]]]  # with the numbers of their lines


class Scored(NamedTuple):
    """What each head gives each response, ``[B, M]``; why its region could not be had; its tokens in columns, or None."""

    heads: Tensor
    flags: Sequence[Flag | None]
    columns: Sequence[Columns | None]


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "score", "add rewards to responses in a JSONL file")
    add_model(parser, required=False)
    parser.add_argument("--reward-model", required=True, help=REWARD_HELP)
    read = "JSONL with prompt and response, of which ids, where present, are read; without --model, with log-probabilities"
    parser.add_argument("--input", required=True, help=read)
    parser.add_argument("--out", required=True, help="JSONL file to write: the same records with reward and probability")
    parser.add_argument(
        "--tokens", action="store_true", help="also keep each token's text, gate and reward, for the report's page"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    add_template(parser)
    add_ray(parser)
    parser.set_defaults(usual={action.dest: action.default for action in parser._actions})


def run(args: Namespace) -> Result:
    """Add reward and probability to every record of a JSONL file, and its tokens' texts, gates and rewards if asked for.

    Without a language model the records' log-probabilities are read, by a reward model of these.
    """
    from swift_rm.cli.output import Result, listing
    from swift_rm.files.atomic_write import check_writable, write_whole
    from swift_rm.files.json_lines import json_line, read_json_lines
    from swift_rm.models.load import resolve
    from swift_rm.records.rollouts import finite
    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.scoring.score import reward_spreads

    records = read_json_lines(args.input)
    check_writable(args.out)
    rm = SwiftRewardModel.from_pretrained(resolve(args.reward_model))
    heads, region_flags, columns = (_by_records if args.model is None else _by_model)(args, rm, records)
    rewards: list[float] = rm.head.combine(heads).tolist()
    scored = []
    for (_, record), region_flag, reward, spread, probability, tokens in zip(
        records, region_flags, rewards, reward_spreads(heads), rm.probability(rewards).tolist(), columns, strict=True
    ):
        why = "not_finite" if reward != reward and region_flag != "region_empty" else region_flag
        found = {"reward": reward, "probability": probability, **spread, **({"tokens": tokens} if tokens else {})}
        known = {key: value for key, value in record.items() if key not in OURS}
        scored.append({**known, **finite(found), **({"flag": why} if why else {})})
    write_whole(args.out, "".join(json_line(record) + "\n" for record in scored))
    flags = Counter(record["flag"] for record in scored if "flag" in record)
    good = [reward for reward in rewards if reward == reward]
    data = {"out": args.out, "responses": len(rewards), "mean_reward": sum(good) / max(1, len(good)), **flags}
    return Result(listing(data), data)


def _by_model(args: Namespace, rm: SwiftRewardModel, records: Records) -> Scored:
    """Score by passes of the language model over the token ids, or over the texts where there are none."""
    import torch
    from tqdm.auto import tqdm

    from swift_rm.cli.loading import open_model
    from swift_rm.cli.output import watched
    from swift_rm.reward.identity import check_base_model
    from swift_rm.sampling.batch_runner import InProcess
    from swift_rm.scoring.scoring_job import Scoring
    from swift_rm.scoring.teacher_forced_states import drop_end_tokens
    from swift_rm.tokens.encoding import encode

    prompts = [_either(args.input, number, record, "prompt") for number, record in records]
    responses = [_either(args.input, number, record, "response") for number, record in records]
    with open_model(args) as (model, tokenizer, workers):
        check_base_model(rm.config, model, tokenizer)
        encoded = encode(model, tokenizer, prompts, responses, rm.config.region, args.chat_template_kwargs)
        encoded = drop_end_tokens(model, rm.config.source, encoded)
        size = BATCHES_A_JOB * args.batch_size
        jobs = [encoded[start : start + size] for start in range(0, len(encoded), size)]
        runner = InProcess(model, tokenizer) if workers is None else workers
        parts = []
        with (
            tqdm(total=len(encoded), desc="scoring", unit="response", disable=not watched(), delay=2) as bar,
            closing(runner.run(Scoring(rm, args.batch_size, args.tokens), jobs)) as done,
        ):
            for job, part in zip(jobs, done, strict=True):
                parts.append(part)
                bar.update(len(job))
    columns: Sequence[Columns | None] = [one for _, part in parts for one in part or ()] or [None] * len(records)
    return Scored(torch.cat([part for part, _ in parts]), [one.region.flag for one in encoded], columns)


def _by_records(args: Namespace, rm: SwiftRewardModel, records: Records) -> Scored:
    """Score by the log-probabilities that the records hold, without a language model."""
    from swift_rm.cli.output import watched
    from swift_rm.cli.train_options import refuse_without_model
    from swift_rm.records.rollouts import Rollout
    from swift_rm.reward.recorded_logprobs import is_empty
    from swift_rm.scoring.record_rewards import check_record_source, record_rewards

    check_record_source(rm.config)
    refuse_without_model(args)
    if args.tokens:
        raise ValueError("--tokens goes with --model: records of log-probabilities do not hold the tokens' texts")
    rollouts = []
    for number, record in records:
        try:
            rollouts.append(Rollout.from_dict(record))
        except ValueError as error:
            raise ValueError(f"{args.input}:{number}: not a rollout record: {error}") from error
    try:
        heads = record_rewards(rm, rollouts, progress=watched())
    except ValueError as error:
        raise ValueError(f"{args.input}: {error}") from error
    return Scored(heads, ["region_empty" if is_empty(one) else None for one in rollouts], [None] * len(rollouts))


def _either(path: str, number: int, record: dict[str, Any], kind: str) -> Any:
    """Return the token ids of a record's prompt or response, or else its text or messages: an API tells no ids."""
    ids, value = record.get(f"{kind}_ids"), record.get(kind)
    value = ids if ids is not None and (ids or not value) else value
    if not isinstance(value, str | list):
        raise ValueError(
            f"{path}:{number}: neither '{kind}_ids' nor {kind!r} is there as ids, text or messages; it has {sorted(record)}"
        )
    return value
