"""What the steps of `swift-rm hipo` share: arguments, the template, what is loaded, and checks of what will be written."""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.cli.arguments import MODEL_HELP, TASK_HELP, add_loading
from swift_rm.cli.loading import load

if TYPE_CHECKING:
    from swift_rm.hipo.response.template import Template
    from swift_rm.reward.reward_model import SwiftRewardModel

SOURCES = ("labels", "swift", "both")


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Add the language model and the questions."""
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    add_loading(parser)
    parser.add_argument("--task", required=True, help=TASK_HELP)
    parser.add_argument("--questions", type=int, help="number of questions (default: 400 of a world, all of a file)")
    parser.add_argument("--grading", default="auto", choices=("auto", "exact", "numeric", "math"), help="how a file is graded")


def add_judge(parser: argparse._ActionsContainer) -> None:
    """Add whether responses have a judge block."""
    parser.add_argument("--no-judge", action="store_true", help="responses without a judge block")


def add_lora(parser: argparse.ArgumentParser) -> None:
    """Add training by adapters."""
    parser.add_argument("--lora", type=int, metavar="RANK", help="train adapters of this rank; what is written has them merged")


def add_logging(parser: argparse.ArgumentParser) -> None:
    """Add where metrics go."""
    parser.add_argument("--report-to", default="none", choices=("none", "trackio", "wandb"), help="where metrics go, too")


def latest(series: Any) -> dict[str, Any]:
    """Return the first and last tenth's mean of each figure of HiPO."""
    ends = {name: points.ends() for name, points in series.items() if name.startswith("hipo/")}
    return {"figures": {name: {"first": first, "last": last} for name, (first, last) in ends.items()}}


def template_of(args: Namespace) -> Template:
    """Return the template, without a judge block if there is to be none."""
    from swift_rm.hipo.response.template import Template

    return Template(judge=None) if args.no_judge else Template()


def load_to_train(args: Namespace) -> tuple[Any, Any]:
    """Load the language model in float32 unless another type is asked for: small steps vanish in bfloat16 weights."""
    if args.dtype is None:
        args.dtype = "float32"
    return load(args)


def load_reward_model(args: Namespace, model: Any) -> SwiftRewardModel | None:
    """Load the reward model, if there is one, beside the language model."""
    from swift_rm.models.load import resolve
    from swift_rm.reward.reward_model import SwiftRewardModel

    if args.reward_model is None:
        return None
    return SwiftRewardModel.from_pretrained(resolve(args.reward_model)).to(model.device)


def check_folder(out: str, name: str = "config.json") -> None:
    """Raise OSError now if the file of this name, of a model say, could not be written there in the end."""
    from swift_rm.files.atomic_write import check_writable

    if Path(out).exists() and not Path(out).is_dir():
        raise NotADirectoryError(f"--out {out} is a file, not a folder")
    check_writable(os.path.join(out, name))


def check_not_itself(args: Namespace) -> None:
    """Raise ValueError if the folder to write is that of the model to begin with, which would be lost."""
    from swift_rm.models.load import resolve

    if Path(args.out).resolve() == Path(resolve(args.model)).resolve():
        raise ValueError(f"--out {args.out} is the folder of --model, which training would replace: choose another")
