"""The `swift-rm` command: arguments, errors in one sentence, output. Needs no torch until a command runs."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import warnings
from collections.abc import Sequence

from swift_rm._version import __version__

MODEL_HELP = "folder or Hub id of the language model; 'tiny-reasoner' is the one that comes with the package"
REWARD_HELP = "folder or Hub id of the reward model; 'tiny-reasoner-reward' comes with the package"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="swift-rm", description="Pick the best of N answers from what the language model already knows."
    )
    parser.add_argument("--version", action="version", version=f"swift-rm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    demo = _command(commands, "demo", "sample, score and select with the embedded models, on fresh questions")
    demo.add_argument("--questions", type=int, help="number of held-out questions (default 300; 40 with --quick)")
    demo.add_argument("-n", type=int, default=16, help="responses per question (default 16)")
    demo.add_argument("--quick", action="store_true", help="fewer questions, a few seconds")
    demo.add_argument("--seed", type=int, default=0)

    sample = _command(commands, "sample", "sample N responses per question into a rollout file; resumable")
    _add_model(sample)
    sample.add_argument("--task", required=True, help="homework, homework:test, or a JSONL file with questions and answers")
    sample.add_argument("--questions", type=int, help="number of questions (default: 400 of homework, all of a file)")
    sample.add_argument("--grading", default="auto", choices=("auto", "exact", "numeric", "math"), help="how a file is graded")
    sample.add_argument("-n", type=int, default=8, help="responses per question (default 8)")
    sample.add_argument("--out", required=True, help="rollout file (JSONL) to write or go on with")
    _add_sampling(sample, batch_size=16)

    train = _command(commands, "train", "train a reward model on graded rollouts")
    _add_model(train)
    train.add_argument("--rollouts", required=True, nargs="+", help="graded rollout files (JSONL)")
    train.add_argument("--out", required=True, help="folder of the reward model")
    train.add_argument("--layers", default="all", help="'all', or indices such as -4,-3,-2,-1 or 16-32 (default all)")
    train.add_argument("--position", default="generating", choices=("generating", "token"))
    train.add_argument("--region", default="response", help="'response' or 'after:<marker>', e.g. after:</think>")
    train.add_argument("--no-gate", action="store_true", help="plain mean instead of the gated mean")
    train.add_argument("--loss", default="bce", choices=("bce", "hinge", "dpo", "infonca", "nca"))
    train.add_argument(
        "--prefixes", type=float, default=0.0, help="share of the loss over unfinished responses, to guide pruning"
    )
    train.add_argument("--lr", type=float, default=0.01)
    train.add_argument("--epochs", type=int, default=40)
    train.add_argument("--validation", type=float, default=0.2, help="share of questions held out (default 0.2)")
    train.add_argument("--calibration", default="platt", choices=("platt", "temperature", "isotonic"))
    train.add_argument("--batch-size", type=int, default=32, help="responses per forward pass (default 32)")
    train.add_argument("--max-gib", type=float, help="memory for the states (default: half of what is free)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--skip-bad-lines", action="store_true", help="count invalid lines instead of stopping")

    score = _command(commands, "score", "add rewards to responses in a JSONL file")
    _add_model(score)
    score.add_argument("--reward-model", required=True, help=REWARD_HELP)
    score.add_argument("--input", required=True, help="JSONL with prompt and response (ids, where present, are what is read)")
    score.add_argument("--out", required=True, help="JSONL file to write: the same records with reward and probability")
    score.add_argument("--batch-size", type=int, default=32)
    _add_template(score)

    evaluate = _command(commands, "evaluate", "measure rewards and baselines on graded, scored rollouts")
    evaluate.add_argument("rollouts", nargs="+", help="scored rollout files (JSONL)")
    evaluate.add_argument("-n", type=int, help="read the first n responses of each question")
    evaluate.add_argument("--deepconf-window", type=int, default=2048, help="tokens of DeepConf's window (default 2048)")
    evaluate.add_argument("--reward-model", help="folder whose model card gets this evaluation's table")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--skip-bad-lines", action="store_true")

    best = _command(commands, "best-of-n", "answer questions with the best of N sampled responses")
    _add_model(best)
    best.add_argument("--reward-model", required=True, help=REWARD_HELP)
    best.add_argument("question", nargs="*", help="questions, as text")
    best.add_argument(
        "--input", help="JSONL with question (text), prompt (text or messages) or prompt_ids on each line, and perhaps an id"
    )
    best.add_argument("--out", help="with --input: JSONL file of results to write or go on with; - prints them")
    best.add_argument("-n", type=int, default=16, help="candidates per question (default 16)")
    best.add_argument("--select", default="best", choices=("best", "majority", "vote", "borda", "rank", "scale"))
    best.add_argument("--external-model", help="sequence classification model whose rewards rank and scale fuse with")
    best.add_argument("--prune", choices=("halving", "confidence"), help="drop hopeless candidates while they are generated")
    best.add_argument("--prune-min-tokens", type=int, help="no candidate is dropped before it has so many (default 16)")
    best.add_argument("--prune-model", help="reward model that pruning goes by (default: the --reward-model)")
    best.add_argument("--stop-at", type=float, help="sample in waves until a candidate is right with this probability")
    best.add_argument("--min-gain", type=float, help="and stop if a wave is expected to raise it by less (default 0.01)")
    best.add_argument("--wave", type=int, help="candidates per wave (default: an eighth of n)")
    best.add_argument("--budget", type=int, help="tokens for all questions together, spent where they help most")
    best.add_argument("--raw", action="store_true", help="give the text to the model as it is, without the chat template")
    _add_sampling(best, batch_size=8)

    explain = _command(commands, "explain", "write a page that shows each token's gate and reward")
    _add_model(explain)
    explain.add_argument("--reward-model", required=True, help=REWARD_HELP)
    explain.add_argument("--input", required=True, help="JSONL with a prompt and its response, or its candidates, on each line")
    explain.add_argument("--out", required=True, help="HTML file to write")
    explain.add_argument("--questions", type=int, default=20, help="only the first questions (default 20)")
    explain.add_argument("-n", type=int, default=16, help="only the first responses of each (default 16)")
    explain.add_argument("--batch-size", type=int, default=32, help="responses per forward pass (default 32)")
    _add_template(explain)

    check = _command(commands, "check-model", "check that this model's hidden states are captured exactly")
    check.add_argument("model", help=MODEL_HELP)
    _add_loading(check)

    published = _command(commands, "import-published", "turn a checkpoint of the paper's code into a reward model")
    published.add_argument("checkpoint", help="the .pt file")
    published.add_argument("--layers", required=True, help="the layers it reads, e.g. 0-32")
    published.add_argument("--hidden-size", type=int, required=True)
    published.add_argument("--base-model", required=True, help="Hub id of the language model it was trained on")
    published.add_argument("--out", required=True, help="folder of the reward model")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 for misuse, 1 for failure, 130 after Ctrl-C."""
    args = build_parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_MININTERVAL", "0.5")
    warnings.formatwarning = lambda message, *_, **__: f"swift-rm: {message}\n"
    try:
        result = getattr(importlib.import_module("swift_rm.commands"), args.command.replace("-", "_"))(args)
    except KeyboardInterrupt:
        kept = "what was finished is kept, and the same command goes on from there"
        return _fail(f"stopped; {kept if _resumes(args) else 'nothing was written'}", 130)
    except (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        return _fail(str(error), 2)
    except BrokenPipeError:
        return _left()
    except (OSError, RuntimeError, ImportError) as error:
        return _fail(str(error), 1)
    try:
        if result.data is not None:
            print(json.dumps(result.data, ensure_ascii=False) if args.json else result.text)
        sys.stdout.flush()
    except BrokenPipeError:
        return _left()
    if result.stopped:
        return _fail(result.stopped, 130)
    return 0 if result.ok else 1


def _joined(arguments: Sequence[str]) -> list[str]:
    """Write ``--layers -4,-3`` as ``--layers=-4,-3``, which argparse would take for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--layers":
            joined[-1] = f"--layers={argument}"
        else:
            joined.append(argument)
    return joined


def _resumes(args: argparse.Namespace) -> bool:
    """Tell whether the command writes what it goes on from when it is called again."""
    if args.command == "best-of-n":
        return args.input is not None and args.out != "-" and args.budget is None
    return bool(args.command == "sample")


def _left() -> int:
    """Say nothing more to a reader, `head` say, that has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str, code: int) -> int:
    print(f"swift-rm: {' '.join(message.split())}", file=sys.stderr)
    return code


def _command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    _add_loading(parser)


def _add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", help="revision of the language model on the Hub")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", help="float32, bfloat16, ... (default: the file's)")


def _add_sampling(parser: argparse.ArgumentParser, batch_size: int) -> None:
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, help="default: what the context holds, up to 1,024")
    parser.add_argument("--batch-size", type=int, default=batch_size, help=f"questions per batch (default {batch_size})")
    parser.add_argument("--seed", type=int, default=0)
    _add_template(parser)


def _add_template(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat-template-kwargs",
        type=json.loads,
        metavar="JSON",
        help="for the chat template, e.g. '{\"enable_thinking\": false}'",
    )


if __name__ == "__main__":
    sys.exit(main())
