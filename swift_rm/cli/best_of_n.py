"""`swift-rm best-of-n`: questions from the command line to a table, or from a file to the lines of another, resumable."""

from __future__ import annotations

import json
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.cli.answers import STDOUT, Answering, answer_to_file, answer_to_terminal
from swift_rm.cli.arguments import REWARD_HELP, Commands, add_api, add_model, add_sampling, command
from swift_rm.cli.loading import load, sampling_of
from swift_rm.cli.output import Result
from swift_rm.records.question_records import QuestionRecord, read_records
from swift_rm.selection.rule_table import DEFAULT_RULE, EXTERNAL_RULES, RULES

if TYPE_CHECKING:
    from swift_rm.decoding.pruning import Prune
    from swift_rm.selection.candidates import BestOfN

MIN_GAIN = 0.01  # as best_of_n's


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "best-of-n", "answer questions with the best of N sampled responses")
    add_model(parser)
    parser.add_argument("--reward-model", required=True, help=REWARD_HELP)
    parser.add_argument("question", nargs="*", help="questions, as text")
    parser.add_argument(
        "--input", help="JSONL with question (text), prompt (text or messages) or prompt_ids on each line, and perhaps an id"
    )
    parser.add_argument("--out", help="with --input: JSONL file of results to write or go on with; - prints them")
    parser.add_argument("-n", type=int, default=16, help="candidates per question (default 16)")
    parser.add_argument(
        "--select",
        default=DEFAULT_RULE,
        choices=RULES,
        help="rule that chooses; shrunk (default): the answer whose candidates have the highest mean probability, shrunk by "
        "support, and where there are no answers the highest reward",
    )
    parser.add_argument("--external-model", help="sequence classification model whose rewards rank and scale fuse with")
    parser.add_argument("--prune", choices=("halving", "confidence"), help="drop hopeless candidates while they are generated")
    parser.add_argument("--prune-min-tokens", type=int, help="no candidate is dropped before it has so many (default 16)")
    parser.add_argument("--prune-model", help="reward model that pruning goes by (default: the --reward-model)")
    parser.add_argument("--stop-at", type=float, help="sample in waves until a candidate is right with this probability")
    parser.add_argument("--min-gain", type=float, help="and stop if a wave is expected to raise it by less (default 0.01)")
    parser.add_argument("--wave", type=int, help="candidates per wave (default: an eighth of n)")
    parser.add_argument("--budget", type=int, help="tokens for all questions together, spent where they help most")
    parser.add_argument("--raw", action="store_true", help="give the text to the model as it is, without the chat template")
    add_sampling(parser, batch_size=8)
    add_api(parser)
    parser.add_argument("--any-model", action="store_true", help="with --api: the reward model may be of a model of another name")
    parser.set_defaults(usual={action.dest: action.default for action in parser._actions})


def resumes(args: Namespace) -> bool:
    """Tell whether a run that was stopped goes on when it is started again."""
    return args.input is not None and args.out != STDOUT and args.budget is None


def run(args: Namespace) -> Result:
    """Answer the questions of the command line or of a file; raise ValueError in one sentence for misuse."""
    from swift_rm.cli.api_model import answer_from_api, asks_api

    check_options(args)
    records = (
        read_records(args.input) if args.input else [(f"question-{i}", {"question": q}) for i, q in enumerate(args.question)]
    )
    if asks_api(args):
        return answer_from_api(args, records)
    model, tokenizer = load(args)
    questions = [encode_question(name, record, model, tokenizer, args) for name, record in records]
    answering = _prepare(args, model, tokenizer, questions)
    return answer_to_file(args, answering, questions) if args.input else answer_to_terminal(args, answering, questions)


def check_options(args: Namespace) -> None:
    """Raise ValueError for options that contradict each other or would do nothing."""
    if args.n < 1 or args.batch_size < 1:
        raise ValueError(f"-n and --batch-size must be at least 1, got {args.n} and {args.batch_size}")
    if bool(args.question) == bool(args.input):
        raise ValueError(f"give questions either as text or with --input, got {'both' if args.input else 'neither'}")
    if bool(args.input) != bool(args.out):
        raise ValueError(
            "--input and --out go together: " + ("where to, --out?" if args.input else "typed questions are printed")
        )
    if (args.select in EXTERNAL_RULES) != bool(args.external_model):
        given = args.external_model or "none"
        raise ValueError(f"--select rank and scale, and no other rule, read an --external-model: got {args.select}, {given}")
    if not args.prune and (args.prune_model or args.prune_min_tokens is not None):
        raise ValueError("--prune-model and --prune-min-tokens say how to --prune, which is not asked for")
    if args.stop_at is None and args.budget is None and (args.wave is not None or args.min_gain is not None):
        raise ValueError("--wave and --min-gain say how to go on with --stop-at or --budget, neither of which is asked for")
    if args.input and args.out != STDOUT and Path(args.out).exists() and Path(args.out).samefile(args.input):
        raise ValueError(f"--out is the --input: {args.out}")


def _prepare(args: Namespace, model: Any, tokenizer: Any, questions: Sequence[QuestionRecord]) -> Answering:
    """Load the other models, and say in full what decides the results."""
    from swift_rm.decoding.best_of_n import best_of_n
    from swift_rm.decoding.pruning import PRUNING_RULES
    from swift_rm.models.load import resolve
    from swift_rm.reward.identity import check_base_model, model_identity, short_name, weights_fingerprint
    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.sampling.generation import sampling_settings
    from swift_rm.scoring.external import SequenceClassificationReward

    rm = SwiftRewardModel.from_pretrained(resolve(args.reward_model)).to(model.device)
    guide = SwiftRewardModel.from_pretrained(resolve(args.prune_model)).to(model.device) if args.prune_model else None
    if guide is not None:
        check_base_model(guide.config, model, tokenizer)
    how = {} if args.prune_min_tokens is None else {"min_tokens": args.prune_min_tokens}
    prune = PRUNING_RULES[args.prune](guide=guide, **how) if args.prune else None
    second, external = None, None
    if args.external_model:
        if blind := [question.question_id for question in questions if question.prompt is None]:
            raise ValueError(f"--external-model reads text or messages, but question {blind[0]!r} has only token ids")
        second = SequenceClassificationReward.from_pretrained(args.external_model, device=args.device, dtype=args.dtype)
        readable = {tuple(question.prompt_ids): question.prompt for question in questions}

        def external(prompts: list[Any], responses: list[str]) -> list[float]:  # best_of_n is given ids
            return second([readable[tuple(prompt)] for prompt in prompts], responses)

    min_gain = MIN_GAIN if args.min_gain is None else args.min_gain
    longest = max(len(question.prompt_ids) for question in questions)
    sampling = sampling_of(args)
    drawn = sampling_settings(model, longest, args.n, args.max_new_tokens, sampling)

    def ask(batch: Sequence[QuestionRecord], rule: Prune | None, **more: Any) -> list[BestOfN]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="stopped by Ctrl-C")  # the command says it, and how to go on
            return best_of_n(
                model, tokenizer, rm, [question.prompt_ids for question in batch], args.n, args.select, rule, args.stop_at,
                budget=args.budget, wave=args.wave, min_gain=min_gain, external=external,
                max_new_tokens=drawn["max_new_tokens"], **sampling, **more,
            )  # fmt: skip

    settings = {
        "n": args.n, "select": args.select, "external_model": second and model_identity(second.model),
        "prune": args.prune, "prune_min_tokens": getattr(prune, "min_tokens", None),
        "prune_model": guide and f"{short_name(args.prune_model)} {weights_fingerprint(guide)}",
        "stop_at": args.stop_at, "min_gain": min_gain, "wave": args.wave, "budget": args.budget, "seed": args.seed, **drawn,
        "chat_template_kwargs": args.chat_template_kwargs, "dtype": str(model.dtype).removeprefix("torch."),
        "reward_weights": weights_fingerprint(rm),
    }  # fmt: skip
    decided_by = {"settings": settings, "model": model_identity(model), "reward_model": short_name(args.reward_model)}
    return Answering(tokenizer, guide or rm, prune, ask, json.loads(json.dumps(decided_by)))


def encode_question(name: str, record: Mapping[str, Any], model: Any, tokenizer: Any, args: Namespace) -> QuestionRecord:
    """Turn a record into what the model reads; raise ValueError that names the question if it cannot read it."""
    from swift_rm.tokens.encoding import check_vocabulary, encode_prompt, vocabulary_size

    prompt, ids = record.get("prompt"), record.get("prompt_ids")
    if prompt is None and isinstance(text := record.get("question"), str):
        prompt = text if args.raw or not tokenizer.chat_template else [{"role": "user", "content": text}]
    ids = encode_prompt(tokenizer, ids or prompt or "", args.chat_template_kwargs)
    if not ids:
        raise ValueError(f"the prompt of question {name!r} is empty")
    check_vocabulary(vocabulary_size(model), ids, f"the prompt of question {name!r}")
    return QuestionRecord(name, prompt, ids)
