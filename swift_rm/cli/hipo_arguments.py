"""The arguments of `swift-rm hipo data | sft | train | report`."""

from __future__ import annotations

import argparse

from swift_rm.cli.arguments import MODEL_HELP, REWARD_HELP, TASK_HELP, add_loading, command, path

SOURCES = ("labels", "swift", "both")


def add_hipo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its steps, in the order in which they are taken."""
    hipo = commands.add_parser("hipo", help="teach a model when to think", description="Teach a model when to think, in steps.")
    steps = hipo.add_subparsers(dest="step", required=True, metavar="step")
    _add_data(steps)
    _add_sft(steps)
    _add_train(steps)
    report = command(steps, "report", "write a page with the charts of a run")
    report.add_argument("folder", help="what `hipo train --out` wrote, or a checkpoint in it")
    report.add_argument("--out", required=True, type=path, help="HTML file to write")


def _add_data(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = command(
        steps, "data", "sample in both modes and write the cold start: in which mode each question is taught; resumable"
    )
    _add_questions(data)
    data.add_argument("-n", type=int, default=8, help="responses per question and mode (default 8)")
    data.add_argument("--modes", nargs="+", default=["on", "off"], choices=("on", "off"), help="modes to sample (default: both)")
    data.add_argument("--delta", type=float, default=0.1, help="pass rates closer than this are a tie: think-off (default 0.1)")
    data.add_argument("--random-share", type=float, default=0.01, help="share of questions with a random mode (default 0.01)")
    data.add_argument("--source", default="labels", choices=SOURCES, help="where pass rates come from (default: labels)")
    data.add_argument("--reward-model", help=REWARD_HELP)
    data.add_argument(
        "--explainer", default="rule", metavar="rule|terse|URL",
        help="who writes the judge text: rule states the pass rates in words, terse in digits, an OpenAI-compatible URL asks",
    )  # fmt: skip
    data.add_argument("--explainer-model", help="with a URL: the name of the model there")
    _add_judge(data)
    data.add_argument("--temperature", type=float, default=1.0)
    data.add_argument("--max-new-tokens", type=int, help="default: what the context holds, up to 1,024")
    data.add_argument("--batch-size", type=int, default=16, help="questions per batch (default 16)")
    data.add_argument("--seed", type=int, default=0)
    data.add_argument(
        "--out", required=True, type=path, help="folder to write, or to go on with: rollouts, cold.jsonl, counts.json"
    )


def _add_sft(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sft = command(steps, "sft", "train on the cold start, so that the model knows the template")
    sft.add_argument("--model", required=True, help=MODEL_HELP)
    add_loading(sft)
    sft.add_argument("--data", required=True, type=path, help="cold.jsonl of `hipo data`")
    sft.add_argument("--out", required=True, type=path, help="folder of the trained model")
    sft.add_argument("--epochs", type=float, default=3.0, help="default 3")
    sft.add_argument("--lr", type=float, help="default 2e-5; 2e-4 with --lora")
    sft.add_argument("--batch-size", type=int, default=16, help="responses per gradient step (default 16)")
    sft.add_argument("--add-tags", action="store_true", help="give the tokenizer the tags that it lacks")
    _add_judge(sft)
    _add_lora(sft)
    _add_logging(sft)
    sft.add_argument("--seed", type=int, default=0)


def _add_train(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = command(steps, "train", "reinforce: sample, reward, and move the model towards what did better than its group")
    _add_questions(train)
    train.add_argument("--out", required=True, type=path, help="folder of checkpoints and of the trained model")
    train.add_argument("--steps", type=int, default=200, help="gradient steps (default 200)")
    train.add_argument("--prompts-per-step", type=int, default=16, help="questions per step (default 16)")
    train.add_argument("--num-generations", type=int, default=8, help="responses per question (default 8)")
    train.add_argument("--batch-size", type=int, help="responses per forward pass and process (default: all of a step)")
    train.add_argument("--max-completion-length", type=int, default=1024, help="tokens of a response (default 1,024)")
    train.add_argument("--temperature", type=float, default=1.0)
    train.add_argument("--lr", type=float, help="default 1e-6; 1e-5 with --lora")
    train.add_argument("--beta", type=float, default=0.0, help="weight of the KL to the model at the start (default 0)")
    train.add_argument("--epsilon", type=float, default=0.2, help="bound of the clipped ratio (default 0.2)")
    algorithm = train.add_argument_group("algorithm")
    algorithm.add_argument("--advantages", default="hipo", choices=("hipo", "grpo", "adaptthink", "hgpo", "step_srpo"))
    algorithm.add_argument("--gamma", type=float, default=0.3, help="HiPO: weight of a response's own reward in its choice (0.3)")
    algorithm.add_argument("--omega", type=float, default=0.01, help="HiPO: how far think-off may be behind and win (0.01)")
    algorithm.add_argument("--bias", default="mean", choices=("mean", "sample", "none"), help="HiPO: what that moves")
    algorithm.add_argument("--off-bonus", type=float, default=0.05, help="AdaptThink: reward of think-off (0.05)")
    algorithm.add_argument("--baseline", type=path, help="AdaptThink: graded rollouts (JSONL) of the model before training")
    algorithm.add_argument("--margin", type=float, default=0.2, help="HGPO: by how much think-on must be better (0.2)")
    algorithm.add_argument("--forced-modes", action="store_true", help="make half of a question's responses think, and half not")
    algorithm.add_argument("--format-weight", type=float, default=0.2, help="reward of keeping to the template (0.2)")
    algorithm.add_argument("--length-cap", type=float, help="punish think-off answers longer than so many times the usual answer")
    _add_judge(algorithm)
    swift = train.add_argument_group("rewards of hidden states")
    swift.add_argument("--reward-model", help=REWARD_HELP)
    swift.add_argument("--reward-source", default="labels", choices=SOURCES, help="where accuracy is from (default: labels)")
    swift.add_argument("--dense", type=float, default=0.0, help="weight of the probability as an additional reward (default 0)")
    swift.add_argument("--scorer", default="policy", choices=("policy", "frozen"), help="whose states are read (default: policy)")
    swift.add_argument("--refresh", type=float, metavar="SHARE", help="train the reward model on, with labels of such a share")
    swift.add_argument("--oversample", type=int, metavar="M", help="sample M responses per question, keep the most informative")
    swift.add_argument("--prune", choices=("halving", "confidence"), help="with --oversample: drop hopeless ones on their way")
    _add_lora(train)
    _add_logging(train)
    train.add_argument("--save-every", type=int, default=50, help="steps between checkpoints, of which two are kept (default 50)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    train.add_argument("--seed", type=int, default=0)


def _add_questions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    add_loading(parser)
    parser.add_argument("--task", required=True, help=TASK_HELP)
    parser.add_argument("--questions", type=int, help="number of questions (default: 400 of a world, all of a file)")
    parser.add_argument("--grading", default="auto", choices=("auto", "exact", "numeric", "math"), help="how a file is graded")


def _add_judge(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--no-judge", action="store_true", help="responses without a judge block")


def _add_lora(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lora", type=int, metavar="RANK", help="train adapters of this rank; what is written has them merged")


def _add_logging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report-to", default="none", choices=("none", "trackio", "wandb"), help="where metrics go, too")
