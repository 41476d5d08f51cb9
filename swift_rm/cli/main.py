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
from swift_rm.cli.arguments import (
    BANK_HELP,
    REGION_HELP,
    REWARD_HELP,
    add_api,
    add_layers,
    add_model,
    add_ray,
    add_sampling,
    add_source,
    add_store,
    add_task,
    add_temperature,
    add_template,
    add_top_logprobs,
    command,
    path,
)
from swift_rm.cli.check_engine import add_checks
from swift_rm.cli.hipo_arguments import add_hipo
from swift_rm.cli.serve_arguments import add_serve


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="swift-rm", description="Pick the best of N answers from what the language model already knows."
    )
    parser.add_argument("--version", action="version", version=f"swift-rm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    demo = command(commands, "demo", "sample, score and select with the embedded models, on fresh questions")
    demo.add_argument("--questions", type=int, help="number of held-out questions (default 300; 40 with --quick)")
    demo.add_argument("-n", type=int, default=16, help="responses per question (default 16)")
    demo.add_argument("--quick", action="store_true", help="fewer questions, a few seconds")
    demo.add_argument("--seed", type=int, default=0)

    sample = command(commands, "sample", "sample N responses per question into a rollout file; resumable")
    add_model(sample)
    add_task(sample, required=True)
    sample.add_argument("--out", required=True, help="rollout file (JSONL) to write or go on with")
    sample.add_argument("--features", help="folder of features to write or go on with: the states of what is sampled")
    add_layers(sample, None, "the last two")
    add_store(sample)
    add_top_logprobs(sample)
    add_sampling(sample, batch_size=16)
    add_ray(sample)
    add_api(sample)
    sample.set_defaults(usual={action.dest: action.default for action in sample._actions})

    train = command(commands, "train", "train reward heads on graded rollouts, pairs, a feature store, or while sampling")
    add_model(train, required=False)
    source = train.add_argument_group("what to learn from, one of these")
    source.add_argument("--rollouts", nargs="+", help="graded rollout files (JSONL)")
    source.add_argument("--pairs", nargs="+", help="preference files (JSONL): prompt, chosen, rejected")
    source.add_argument("--features", help="folder that `sample --features` wrote: needs no language model")
    source.add_argument("--online", action="store_true", help="sample --task now and train on the states as they come")
    online = train.add_argument_group("with --online")
    add_task(online)
    online.add_argument("--save-rollouts", help="rollout file (JSONL) to write or go on with")
    online.add_argument("--questions-per-batch", type=int, default=16, help="questions sampled at once (default 16)")
    online.add_argument("--replay", type=int, default=4, help="gradient steps on remembered states after each (default 4)")
    online.add_argument("--replay-gib", type=float, default=1.0, help="memory for them (default 1)")
    add_temperature(online)
    add_ray(online)
    add_template(train)
    train.add_argument("--out", required=True, help="folder of the reward model")
    add_source(train)
    add_layers(train, None, "the last two, or what the features hold")
    train.add_argument("--position", choices=("generating", "token"), help="default: generating, or what the features hold")
    train.add_argument("--region", default="response", help=REGION_HELP)
    train.add_argument("--no-gate", action="store_true", help="plain mean instead of the gated mean")
    losses = ("bce", "hinge", "dpo", "infonca", "nca")
    train.add_argument("--loss", choices=losses, help="default bce; dpo with --pairs or --source top_logprobs")
    train.add_argument("--bank", metavar="JSON", help=BANK_HELP)
    train.add_argument("--standardise", default="feature", choices=("feature", "layer", "none"), help="default: feature")
    train.add_argument("--balance", default="response", choices=("response", "question"), help="what weighs alike in the loss")
    train.add_argument("--centre", action="store_true", help="take each question's mean from its states")
    train.add_argument("--ensemble", type=int, default=1, help="heads in the reward model (default 1)")
    train.add_argument("--pessimism", type=float, default=0.0, help="of an ensemble: deviations to subtract (default 0)")
    train.add_argument(
        "--prefixes", type=float, default=0.0, help="share of the loss over unfinished responses, to guide pruning"
    )
    train.add_argument(
        "--label-curve", metavar="FILE", type=path, help="also train on fewer questions and write what each number gives (JSON)"
    )
    train.add_argument("--lr", type=float, default=0.01)
    train.add_argument("--epochs", type=int, default=40)
    train.add_argument("--validation", type=float, default=0.2, help="share of questions held out (default 0.2)")
    train.add_argument("--calibration", default="platt", choices=("platt", "temperature", "isotonic"))
    train.add_argument("--batch-size", type=int, default=32, help="responses per forward pass (default 32)")
    train.add_argument("--max-gib", type=float, help="memory for the states (default: half of what is free)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--skip-bad-lines", action="store_true", help="count invalid lines instead of stopping")
    train.set_defaults(usual={action.dest: action.default for action in train._actions})

    score = command(commands, "score", "add rewards to responses in a JSONL file")
    add_model(score, required=False)
    score.add_argument("--reward-model", required=True, help=REWARD_HELP)
    read = "JSONL with prompt and response, of which ids, where present, are read; without --model, with log-probabilities"
    score.add_argument("--input", required=True, help=read)
    score.add_argument("--out", required=True, help="JSONL file to write: the same records with reward and probability")
    score.add_argument(
        "--tokens", action="store_true", help="also keep each token's text, gate and reward, for the report's page"
    )
    score.add_argument("--batch-size", type=int, default=32)
    add_template(score)
    add_ray(score)
    score.set_defaults(usual={action.dest: action.default for action in score._actions})

    evaluate = command(commands, "evaluate", "measure rewards and baselines on graded, scored rollouts")
    evaluate.add_argument("rollouts", nargs="+", help="scored rollout files (JSONL)")
    evaluate.add_argument("-n", type=int, help="read the first n responses of each question")
    evaluate.add_argument("--deepconf-window", type=int, default=2048, help="tokens of DeepConf's window (default 2048)")
    evaluate.add_argument("--reward-model", help="folder whose model card and evaluation-results files get these figures")
    evaluate.add_argument("--dataset", metavar="ID[:TASK]", help="what the Hub calls the questions (default: the file's name)")
    evaluate.add_argument(
        "--report", metavar="FILE", type=path, help="HTML page to write: charts, tables, questions with their candidates"
    )
    evaluate.add_argument(
        "--out", metavar="DIR", type=path, help="folder for every chart as SVG and CSV, and the figures as report.json"
    )
    evaluate.add_argument("--probe", metavar="FILE", type=path, help="what `probe --out` wrote, for the chart of layers")
    evaluate.add_argument(
        "--label-curve", metavar="FILE", type=path, help="what `train --label-curve` wrote, for the chart of label efficiency"
    )
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--skip-bad-lines", action="store_true")

    compare = command(commands, "compare", "compare two reward models, or two rules, on the same questions")
    compare.add_argument("rollouts", nargs="+", metavar="FILE", help="one or two scored rollout files (JSONL)")
    compare.add_argument("--rules", nargs="+", metavar="RULE", help="one rule for both, or one for each (default swift_shrunk)")
    compare.add_argument("-n", type=int, help="read the first n responses of each question")
    compare.add_argument("--show", type=int, default=10, help="questions to list where the two disagree (default 10)")
    compare.add_argument("--report", metavar="FILE", type=path, help="HTML page to write")
    compare.add_argument("--seed", type=int, default=0)
    compare.add_argument("--skip-bad-lines", action="store_true")

    best = command(commands, "best-of-n", "answer questions with the best of N sampled responses")
    add_model(best)
    best.add_argument("--reward-model", required=True, help=REWARD_HELP)
    best.add_argument("question", nargs="*", help="questions, as text")
    best.add_argument(
        "--input", help="JSONL with question (text), prompt (text or messages) or prompt_ids on each line, and perhaps an id"
    )
    best.add_argument("--out", help="with --input: JSONL file of results to write or go on with; - prints them")
    best.add_argument("-n", type=int, default=16, help="candidates per question (default 16)")
    best.add_argument(
        "--select",
        default="shrunk",
        choices=("shrunk", "best", "majority", "vote", "borda", "rank", "scale"),
        help="rule that chooses; shrunk (default): the answer whose candidates have the highest mean probability, shrunk by "
        "support, and where there are no answers the highest reward",
    )
    best.add_argument("--external-model", help="sequence classification model whose rewards rank and scale fuse with")
    best.add_argument("--prune", choices=("halving", "confidence"), help="drop hopeless candidates while they are generated")
    best.add_argument("--prune-min-tokens", type=int, help="no candidate is dropped before it has so many (default 16)")
    best.add_argument("--prune-model", help="reward model that pruning goes by (default: the --reward-model)")
    best.add_argument("--stop-at", type=float, help="sample in waves until a candidate is right with this probability")
    best.add_argument("--min-gain", type=float, help="and stop if a wave is expected to raise it by less (default 0.01)")
    best.add_argument("--wave", type=int, help="candidates per wave (default: an eighth of n)")
    best.add_argument("--budget", type=int, help="tokens for all questions together, spent where they help most")
    best.add_argument("--raw", action="store_true", help="give the text to the model as it is, without the chat template")
    add_sampling(best, batch_size=8)
    add_api(best)
    best.add_argument("--any-model", action="store_true", help="with --api: the reward model may be of a model of another name")
    best.set_defaults(usual={action.dest: action.default for action in best._actions})

    explain = command(commands, "explain", "write a page that shows each token's gate and reward")
    add_model(explain)
    explain.add_argument("--reward-model", required=True, help=REWARD_HELP)
    explain.add_argument("--input", required=True, help="JSONL with a prompt and its response, or its candidates, on each line")
    explain.add_argument("--out", required=True, help="HTML file to write")
    explain.add_argument("--questions", type=int, default=20, help="only the first questions (default 20)")
    explain.add_argument("-n", type=int, default=16, help="only the first responses of each (default 16)")
    explain.add_argument("--batch-size", type=int, default=32, help="responses per forward pass (default 32)")
    add_template(explain)

    store = command(commands, "features", "describe a feature store, or say how large one will be")
    store.add_argument("folder", nargs="?", help="what `sample --features` wrote")
    store.add_argument("--verify", action="store_true", help="read everything and compare checksums")
    store.add_argument("--model", help="for an estimate instead: folder or Hub id (only its configuration is read)")
    store.add_argument("--revision", help="revision of the language model on the Hub")
    store.add_argument("--questions", type=int, default=1000, help="questions to be sampled (default 1,000)")
    store.add_argument("-n", type=int, default=8, help="responses per question (default 8)")
    store.add_argument("--tokens", type=int, default=1024, help="tokens of a response (default 1,024)")
    add_layers(store)
    add_store(store)

    probe = command(commands, "probe", "tell where in the hidden states the signal lives: layers, directions, gate")
    add_model(probe)
    probe.add_argument("--rollouts", required=True, nargs="+", help="graded rollout files (JSONL)")
    probe.add_argument("--reward-model", help=f"also show where its gate looks; {REWARD_HELP}")
    add_layers(probe)
    probe.add_argument("--position", choices=("generating", "token"), help="default: the reward model's, or generating")
    probe.add_argument("--region", help=f"{REGION_HELP} (default: the reward model's, or response)")
    probe.add_argument("--questions", type=int, help="only the first questions")
    probe.add_argument("--folds", type=int, default=5, help="folds of the cross-validation over questions (default 5)")
    probe.add_argument("--batch-size", type=int, default=32, help="responses per forward pass (default 32)")
    probe.add_argument("--max-gib", type=float, help="memory for the states (default: half of what is free)")
    probe.add_argument("--out", help="JSON file of all figures, with the points of the first 2,000 responses for pictures")
    probe.add_argument("--seed", type=int, default=0)
    probe.add_argument("--skip-bad-lines", action="store_true", help="count invalid lines instead of stopping")

    add_checks(commands)

    published = command(commands, "import-published", "turn a checkpoint of the paper's code into a reward model")
    published.add_argument("checkpoint", help="the .pt file")
    published.add_argument("--layers", required=True, help="the layers it reads, e.g. 0-32")
    published.add_argument("--hidden-size", type=int, required=True)
    published.add_argument("--base-model", required=True, help="Hub id of the language model it was trained on")
    published.add_argument("--out", required=True, help="folder of the reward model")
    add_hipo(commands)
    add_serve(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 for misuse, 1 for failure, 130 after Ctrl-C."""
    args = build_parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_MININTERVAL", "0.5")
    warnings.formatwarning = lambda message, *_, **__: f"swift-rm: {message}\n"
    try:
        result = getattr(importlib.import_module("swift_rm.cli.shared"), args.command.replace("-", "_"))(args)
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
            said = json.dumps(result.data, ensure_ascii=False) if args.json else result.text
            print(
                said.encode(errors="backslashreplace").decode()
            )  # half a surrogate pair, which JSON can bring, cannot be written
        sys.stdout.flush()
    except BrokenPipeError:
        return _left()
    if result.stopped:
        return _fail(result.stopped, 130)
    if result.failed:
        return _fail(result.failed, 1)
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
    if args.command == "hipo":
        return bool(args.step == "data")
    if args.command == "best-of-n":
        return args.input is not None and args.out != "-" and args.budget is None
    return bool(args.command == "sample" or (args.command == "train" and args.online and args.save_rollouts))


def _left() -> int:
    """Say nothing more to a reader, `head` say, that has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str, code: int) -> int:
    print(f"swift-rm: {' '.join(message.split()).removeprefix('[Errno 2] ')}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
