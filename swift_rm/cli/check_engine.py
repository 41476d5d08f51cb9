"""`swift-rm check-engine`: that an inference engine's states and rewards are those of transformers."""

from __future__ import annotations

import argparse
import json
import os
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from swift_rm.cli.arguments import MODEL_HELP, REWARD_HELP, TASK_HELP, Commands, command
from swift_rm.records.rollouts import Prompt

if TYPE_CHECKING:
    from swift_rm.cli.output import Result
    from swift_rm.parity.engine_verdict import EngineCheck

PROMPTS = (
    "The capital of France is",
    "2, 4, 6, 8,",
    "Once upon a time there was a small house at the edge of the wood, and in it lived",
    "def add(a, b):\n    return",
    "Question: What is 17 + 25?\nAnswer:",
    "Water boils when",
    "Der Zug nach Basel",
    "1. Wash the rice.\n2.",
    '{"name": "Ada", "born":',
    "She looked at the clock, which said 10:45, and",
    "A list of the planets, from the sun outwards: Mercury, Venus,",
    "To be, or not",
)

DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "check-engine", "check that an inference engine's states and rewards are those of transformers")
    parser.add_argument("engine", choices=("vllm",), help="vllm, in whose environment this must be run")
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--reward-model", required=True, help=REWARD_HELP)
    parser.add_argument("--revision", help="revision of the language model on the Hub")
    parser.add_argument("--device", help="where transformers runs: cpu, cuda, ... (default: where the engine ran)")
    parser.add_argument(
        "--attn-implementation", metavar="NAME", help="transformers' attention: eager, sdpa, ... (default: its own)"
    )
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="of both sides (default: auto, what the engine takes)")
    parser.add_argument("--task", help=f"questions: {TASK_HELP} (default: built-in prompts)")
    parser.add_argument("--input", help="questions: JSONL with question, prompt or prompt_ids on each line")
    parser.add_argument("--questions", type=int, default=8, help="so many of them (default 8)")
    parser.add_argument("-n", type=int, default=4, help="responses to each, of which one is greedy (default 4)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="length of a response (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("of vLLM, as in its own command")
    how.add_argument("--enforce-eager", action="store_true", help="without compiling: the check begins sooner")
    how.add_argument("--max-model-len", type=int, metavar="TOKENS", help="the longest context (default: the model's)")
    how.add_argument("--kv-cache-memory-bytes", type=int, metavar="BYTES", help="memory for keys and values")
    said = 'any other settings of vLLM\'s LLM, a JSON object such as {"tensor_parallel_size": 2}'
    how.add_argument("--engine-args", type=json.loads, default={}, metavar="JSON", help=said)


def run(args: argparse.Namespace) -> Result:
    """Sample with the engine, read the same tokens with transformers, and compare."""
    from swift_rm.cli.output import Result, watched
    from swift_rm.integrations.vllm.offline.captured_output import kept_off_the_terminal
    from swift_rm.integrations.vllm.offline.parity_recording import record_vllm
    from swift_rm.integrations.vllm.versions.version import check_version
    from swift_rm.integrations.vllm.worker.settings import additional_config, load_reward_models
    from swift_rm.models.load import load_language_model, load_outline
    from swift_rm.parity.engine_check import check_engine as compare
    from swift_rm.reward.identity import check_base_model

    version = check_version()
    settings = _settings(args)
    (rm,) = load_reward_models(additional_config(args.reward_model))
    # What is wrong is said before the engine starts, which takes a minute.
    model, tokenizer = load_outline(args.model, revision=args.revision)
    check_base_model(rm.config, model, tokenizer)
    prompts = prompts_of(args, tokenizer)
    show = "VLLM_LOGGING_LEVEL" in os.environ
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    _tell(f"sampling with vLLM {version}, which starts first")
    with kept_off_the_terminal(show):
        run = record_vllm(args.model, args.reward_model, prompts, n=args.n, max_new_tokens=args.max_new_tokens, **settings)
    how = {"device": args.device or run.device, "revision": args.revision, "attn_implementation": args.attn_implementation}

    def open_model(dtype: str) -> tuple[Any, Any]:
        _tell(f"reading {len(run.responses)} responses with transformers in {dtype}")
        return load_language_model(args.model, dtype=dtype, progress=watched(), **how)

    found = compare(run, args.model, args.reward_model, rm, open_model)
    return Result(format_check(found), json_of(found), ok=found.equal)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of vLLM; raise ValueError for those that cannot be."""
    if not isinstance(args.engine_args, dict):
        raise ValueError(f"--engine-args must be a JSON object of vLLM's settings, got {args.engine_args!r}")
    if args.n < 1 or args.max_new_tokens < 1:
        raise ValueError(f"-n and --max-new-tokens must be at least 1, got {args.n} and {args.max_new_tokens}")
    settings = {
        "dtype": args.dtype, "seed": args.seed, "revision": args.revision, "tokenizer_revision": args.revision,
        "max_model_len": args.max_model_len, "kv_cache_memory_bytes": args.kv_cache_memory_bytes,
        "enforce_eager": args.enforce_eager or None,
    }  # fmt: skip
    if twice := sorted(set(args.engine_args) & {*settings, "model"}):
        raise ValueError(f"--engine-args has {twice[0]!r}, which is an argument of its own")
    return {**args.engine_args, **{name: value for name, value in settings.items() if value is not None}}


def json_of(check: EngineCheck) -> Any:
    """Return the comparison as JSON has it: null for what is not finite."""
    from swift_rm.records.rollouts import finite

    return finite(check.to_dict())


def format_check(check: EngineCheck) -> str:
    """Return the comparison as a table, a row a layer and one for the rewards, and the verdict below it."""
    from swift_rm.files.text import aligned, counted

    head = [
        f"{check.engine} {check.engine_version} and transformers in {check.dtype}, {check.model} with {check.reward_model}",
        f"{counted(check.responses, 'response')} of {counted(check.tokens, 'token')}",
    ]
    lower = any(row.transformers_error is not None for row in check.layers)
    names = ["layer", "largest difference", "of the layer's size"]
    names += [f"{check.engine}'s error", "transformers' own"] if lower else []
    rows = [[*names, ""]]
    for row in check.layers:
        rows.append([str(row.layer), f"{row.max_difference:.1e}", f"{row.relative:.1e}"])
        rows[-1] += [f"{row.error:.1e}", f"{row.transformers_error:.1e}"] if lower else []
        rows[-1].append("equal" if row.equal else "DIFFERENT")
    rewards = check.rewards
    rows.append(["rewards", f"{rewards.max_difference:.1e}", "-"])
    rows[-1] += [f"{rewards.error:.1e}", f"{rewards.transformers_error:.1e}"] if lower else []
    rows[-1].append("equal" if rewards.equal else "DIFFERENT")
    return "\n\n".join(["\n".join(head), aligned(rows), f"{check.verdict}: {check.why}"])


def _tell(what: str) -> None:
    """Tell somebody who is watching what takes its time now."""
    if sys.stderr.isatty():
        sys.stderr.write(f"swift-rm: {what}\n")


def prompts_of(args: Namespace, tokenizer: Any) -> list[Prompt]:
    """Return the first ``--questions`` prompts of ``--task`` or ``--input``, or of those above, which are given as they are.

    Raises ValueError for both, for more of them than there are, and for what is no task and no readable file.
    """
    if args.task and args.input:
        raise ValueError(f"give questions by --task or by --input, got both: {args.task} and {args.input}")
    if args.questions < 1:
        raise ValueError(f"--questions must be at least 1, got {args.questions}")
    if args.task:
        return _of_task(args, tokenizer)
    found: list[Prompt] = _of_file(args.input, tokenizer) if args.input else list(PROMPTS)
    if not args.input and len(found) < args.questions:
        raise ValueError(f"there are {len(PROMPTS)} built-in prompts, got --questions {args.questions}: give --task or --input")
    return found[: args.questions]


def _of_task(args: Namespace, tokenizer: Any) -> list[Prompt]:
    from swift_rm.tasks.task_lookup import open_task

    messages = bool(tokenizer.chat_template)
    questions, _, close = open_task(args.task, questions=args.questions, seed=args.seed, grading="exact", chat_template=messages)
    close()
    return [question.prompt for question in questions]


def _of_file(path: str, tokenizer: Any) -> list[Prompt]:
    from swift_rm.records.question_records import read_records

    prompts: list[Prompt] = []
    for _, record in read_records(path):
        prompt = record.get("prompt_ids") or record.get("prompt")
        if prompt is None:
            text = record["question"]
            prompt = [{"role": "user", "content": text}] if tokenizer.chat_template else text
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} holds no records")
    return prompts
