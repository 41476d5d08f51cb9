"""Graded responses of the two worlds and their hidden states, for the benchmarks of heads and of labels.

Sampling goes to a folder, so that a run that was stopped goes on where it was, and two benchmarks share what they sample.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.recorder import parser_of
from swift_rm import SwiftConfig, sample
from swift_rm.features.read_states import Features, extract_features
from swift_rm.features.row_selection import Reading, reading_of
from swift_rm.models.load import TINY, TINY_2, load_language_model
from swift_rm.records.rollouts import Rollout
from swift_rm.reward.identity import describe_base
from swift_rm.tasks.task_lookup import open_world
from swift_rm.training.label_curve import draw_questions as draw_numbers
from swift_rm.training.question_split import responses_of

MODELS = (TINY, TINY_2)  # quick runs take the first alone
TWO_WORLDS = TINY_2  # the model that knows both worlds
CANDIDATES = 16  # responses to a test question


@dataclass(frozen=True)
class Asked:
    """Which responses are sampled: ``n`` to each of so many questions."""

    model: str
    world: str
    difficulty: str
    split: str
    questions: int
    n: int
    seed: int

    @property
    def file(self) -> str:
        """Return the name of the file that holds them."""
        parts = (self.model, self.world, self.difficulty, self.split, f"{self.questions}x{self.n}", str(self.seed))
        return "_".join(parts) + ".jsonl"


@dataclass(frozen=True)
class Sampled:
    """Graded responses, ``n`` to each question, question after question; their states, and what a head of these reads."""

    rollouts: list[Rollout]
    features: Features
    config: SwiftConfig


def arguments(description: str | None, names: Sequence[str] = ()) -> argparse.Namespace:
    """Read ``--quick``, ``--json``, ``--out``, ``--cache`` and, of these ``names``, ``--only``."""
    parser = parser_of(description)
    parser.add_argument("--cache", type=Path, help="folder that keeps what is sampled, for the next run or the other benchmark")
    if names:
        said = "only these heads and rivals, compared with the first, which is a head"
        parser.add_argument("--only", nargs="+", choices=names, default=list(names), metavar="NAME", help=said)
    return parser.parse_args()


def open_cache(folder: Path | None) -> AbstractContextManager[str | Path]:
    """Return the folder for what is sampled: the given one, or one that is deleted at the end."""
    if folder is None:
        return tempfile.TemporaryDirectory()
    folder.mkdir(parents=True, exist_ok=True)
    return nullcontext(folder)


@cache
def language_model(name: str) -> tuple[Any, Any]:
    """Load a language model once."""
    return load_language_model(name, progress=False)


def drawn(asked: Asked, folder: str | Path) -> list[Rollout]:
    """Sample and grade what ``folder`` does not hold yet."""
    model, tokenizer = language_model(asked.model)
    task = open_world(asked.world, asked.split, asked.difficulty)
    return sample(
        model, tokenizer, task.questions(asked.questions, asked.seed), asked.n, Path(folder) / asked.file,
        grade=task.grade, grade_timeout=None, batch_size=64, seed=asked.seed,
    )  # fmt: skip


def sampled(asked: Asked, folder: str | Path, views: Sequence[Reading] = ()) -> Sampled:
    """Sample and grade what ``folder`` does not hold yet, and read the states of all layers, by default at each token."""
    model, tokenizer = language_model(asked.model)
    rollouts = drawn(asked, folder)
    shape = model.config
    config = SwiftConfig(shape.hidden_size, tuple(range(shape.num_hidden_layers + 1)), position="token")
    config = describe_base(config, model, tokenizer)
    views = tuple(views) or (reading_of(config),)
    return Sampled(rollouts, extract_features(model, tokenizer, rollouts, config, views=views, batch_size=256), config)


def draw_questions(features: Features, questions: int, seed: int) -> Features:
    """Return the responses to some of the questions; those of the same seed are among those of a greater number."""
    return features.only(responses_of(features.question, draw_numbers(torch.arange(features.questions), questions, seed)))
