"""One seed of `hipo`: responses in both modes, cold starts, a reward head, and every method trained and measured."""

from __future__ import annotations

import copy
import json
import random
import time
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.hipo.methods import METHODS, Method, Sizes, Start
from swift_rm import SwiftConfig, SwiftRewardModel, fit, sample
from swift_rm.evaluation.auroc import within_question_auroc
from swift_rm.files.atomic_write import write_whole
from swift_rm.hipo import Template
from swift_rm.hipo.cold_start.cold_rows import to_dataset
from swift_rm.hipo.cold_start.judge_text import RuleExplainer
from swift_rm.hipo.cold_start.mode_sampling import MODES, sample_modes
from swift_rm.hipo.cold_start.pipeline import build
from swift_rm.hipo.cold_start.questions import answer_grader, hipo_rows
from swift_rm.hipo.cold_start.sft import sft
from swift_rm.hipo.response.template import FREE, Mode
from swift_rm.hipo.rollouts.forced_modes import ForceMode
from swift_rm.hipo.rollouts.refresh import Refresh
from swift_rm.hipo.rollouts.reward_drift import Trickle
from swift_rm.hipo.rollouts.swift_rollouts import SwiftRollouts
from swift_rm.hipo.trainer.metrics import Row
from swift_rm.hipo.trainer.policy_evaluation import measure
from swift_rm.models.load import TINY_THINKER, load_language_model
from swift_rm.models.model_shape import model_shape
from swift_rm.records.rollouts import Rollout, group_by_question
from swift_rm.scoring.score import score_rollouts
from swift_rm.tasks.homework import HomeworkTask
from swift_rm.tasks.task import Question
from swift_rm.tokens.encoding import encode_prompt

LABELLED = 0.05
MAX_NEW_TOKENS = 96
CURVES = (
    "hipo/accuracy",
    "hipo/tokens",
    "hipo/think_rate",
    "hipo/think_rate_oscillation",
    "hipo/drift_auroc",
    "hipo/hacking_gap",
)


class Recipe:
    """What the methods of one seed share; each is made when it is first asked for."""

    def __init__(self, seed: int, sizes: Sizes, folder: Path) -> None:
        self.seed, self.sizes, self.folder = seed, sizes, folder
        self.task = HomeworkTask("reward", "wide")
        hard = HomeworkTask("reward", "hard").questions(sizes.hard_questions, seed=seed)
        known = {one.question_id: one for one in (*self.task.questions(sizes.questions, seed=seed), *hard)}
        self.asked = random.Random(seed).sample(list(known.values()), len(known))
        self.grade = answer_grader(self.task.grade)
        test = HomeworkTask("test", "wide").questions(sizes.test_questions, seed=0)  # the same ones for every seed
        self.test = list(hipo_rows(list(test)))
        self._heads: dict[bool, SwiftRewardModel] = {}
        self.base, self.tokenizer = load_language_model(TINY_THINKER, device="cpu", progress=False)

    @cached_property
    def tried(self) -> dict[Mode, Any]:
        """The base model's responses in each mode."""
        return sample_modes(
            self.base, self.tokenizer, self.asked, self.sizes.tries, grade=self.task.grade, seed=self.seed, batch_size=64,
            max_new_tokens=MAX_NEW_TOKENS,
        )  # fmt: skip

    def cold_rows(self, start: Start) -> Any:
        """Return the data of a cold start and the counts of what became of the questions."""
        rollouts = {"on": self.tried["on"]} if start == "on" else self.tried
        judged = start == "both"
        return build(
            rollouts, self.tokenizer, questions=self.asked, judged=judged, explain=RuleExplainer("terse"), seed=self.seed
        )  # fmt: skip

    def start(self, start: Start) -> Any:
        """Return a copy of the model that a method starts from."""
        if start == "base":
            return copy.deepcopy(self.base)
        folder = self.folder / f"cold-{start}"
        if not (folder / "model.safetensors").exists():
            model = copy.deepcopy(self.base)
            data = to_dataset(self.cold_rows(start).rows, self.tokenizer)
            with torch.random.fork_rng():
                sft(
                    model, self.tokenizer, data, folder, epochs=self.sizes.epochs, lr=5e-4,
                    batch_size=32, seed=self.seed,
                )  # fmt: skip
        return load_language_model(str(folder), device="cpu", progress=False)[0]

    def reward_model(self, both_modes: bool) -> SwiftRewardModel:
        """Return the head that reads the cold start's states, trained on labelled questions before RL."""
        if both_modes not in self._heads:
            model = self.start("both")
            shape = model_shape(model)
            config = SwiftConfig(shape.hidden_size, tuple(range(shape.layers + 1)), base_model=TINY_THINKER, position="token")
            rollouts = self._labelled(model, both_modes)
            self._heads[both_modes] = fit(model, self.tokenizer, rollouts, config, seed=self.seed, forward_batch_size=256)
        return self._heads[both_modes]

    def _labelled(self, model: Any, both_modes: bool) -> list[Rollout]:
        """Return 8 graded responses to each of the reward head's questions, half of them in each mode if asked for."""
        asked = self.asked[: self.sizes.reward_questions]
        if not both_modes:
            return self._graded(model, asked, 8)
        found = []
        widths = [len(encode_prompt(self.tokenizer, question.prompt, FREE)) for question in asked]
        for width in sorted(set(widths)):  # a forced mode counts from the end of the prompt
            alike = [question for question, length in zip(asked, widths, strict=True) if length == width]
            for mode in MODES:
                force = ForceMode(Template(), self.tokenizer, mode, width)
                found += self._graded(model, alike, 4, logits_processor=[force])
        return found

    def _graded(self, model: Any, asked: list[Question], n: int, **settings: Any) -> list[Rollout]:
        """Return ``n`` graded responses to each question, in the mode that the model chooses."""
        return sample(
            model, self.tokenizer, asked, n, grade=self.task.grade, seed=self.seed, batch_size=64, chat_template_kwargs=FREE,
            max_new_tokens=MAX_NEW_TOKENS, **settings,
        )  # fmt: skip

    def judged_by(self, both_modes: bool) -> dict[str, float | None]:
        """Return the head's within-question AUROC on the cold start's responses to test questions: of all, and in each mode."""
        model = self.start("both")
        asked = list(HomeworkTask("test", "wide").questions(self.sizes.test_questions, seed=0))
        rollouts = self._graded(model, asked, 8)
        scored = score_rollouts(model, self.tokenizer, self.reward_model(both_modes), rollouts, batch_size=256)
        marked = {"all": "", "on": Template().on, "off": Template().off}
        return {kind: _auroc([one for one in scored if mark in one.response]) for kind, mark in marked.items()}

    def run(self, method: Method) -> dict[str, Any]:
        """Train and measure a method, or read what it gave before."""
        out = self.folder / f"{method.name}.json"
        if out.exists():
            return dict(json.loads(out.read_text()))
        begun = time.monotonic()
        model, curves = self.start(method.start), []
        if method.settings is not None:
            curves = self._train(model, method)
        rows = measure(
            model, self.tokenizer, self.test, self.grade, self.sizes.test_tries, template=_template(method), batch_size=100,
            max_new_tokens=MAX_NEW_TOKENS, seed=self.seed,
        )  # fmt: skip
        result = {**_measured(rows), "curves": curves, "seconds": round(time.monotonic() - begun, 1)}
        write_whole(out, json.dumps(result))
        return result

    def _train(self, model: Any, method: Method) -> list[dict[str, float]]:
        from transformers import PrinterCallback

        from swift_rm.hipo.trainer.hipo_trainer import HiPOConfig, HiPOTrainer

        sizes = self.sizes
        batch = sizes.prompts * sizes.rollouts
        thinking = self.tried["on"]
        baseline = {
            question.question_id: sum(one.label or 0 for one in thinking[i * sizes.tries : (i + 1) * sizes.tries]) / sizes.tries
            for i, question in enumerate(self.asked)
        }
        args = HiPOConfig(
            output_dir=str(self.folder / f"run-{method.name}"), max_steps=sizes.steps * sizes.updates,
            num_generations=sizes.rollouts, per_device_train_batch_size=batch // sizes.updates,
            steps_per_generation=sizes.updates, gradient_accumulation_steps=1, learning_rate=sizes.learning_rate,
            warmup_steps=4, max_completion_length=MAX_NEW_TOKENS, temperature=1.0,
            logging_steps=sizes.updates, save_strategy="no", report_to="none", use_cpu=True, seed=self.seed, disable_tqdm=True,
            gradient_checkpointing=False, bf16=False, reward_source="swift" if method.scorer else "labels",
            **method.settings or {},
        )  # fmt: skip
        trainer = HiPOTrainer(
            model, self.grade, args, hipo_rows(self.asked, baseline), self.tokenizer, template=_template(method),
            rollout_func=self._rollouts(method),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train()
        log = [entry for entry in trainer.state.log_history if "hipo/accuracy" in entry]
        return [
            {"step": i + 1, **{k.removeprefix("hipo/"): entry[k] for k in CURVES if k in entry}} for i, entry in enumerate(log)
        ]

    def _rollouts(self, method: Method) -> SwiftRollouts | None:
        if method.scorer is None:
            return None
        watched, head = Trickle(LABELLED, self.seed), self.reward_model(method.both_modes)
        if method.scorer == "frozen":
            frozen = self.start("both")
            return SwiftRollouts(head, scorer="frozen", frozen_model=frozen, trickle=watched)
        refresh = Refresh(LABELLED, seed=self.seed) if method.scorer == "refreshed" else None
        return SwiftRollouts(head, refresh=refresh, trickle=watched)


def _auroc(rollouts: list[Rollout]) -> float | None:
    """Return the mean over questions that have both labels, None if there is none."""
    groups = list(group_by_question(rollouts).values())
    found = within_question_auroc(
        [np.array([one.reward for one in group]) for group in groups],
        [np.array([one.label for one in group]) for group in groups],
    )
    return None if np.isnan(found).all() else round(float(np.nanmean(found)), 4)


def _template(method: Method) -> Template:
    return Template() if method.judged else Template(judge=None)


def _measured(rows: list[Row]) -> dict[str, Any]:
    """Return what of each response the figures are made of, in the order of the questions."""
    modes = {"on": 1, "off": 0, None: None}
    return {
        "question": [row.question_id for row in rows],
        "difficulty": [row.difficulty for row in rows],
        "accuracy": [row.accuracy for row in rows],
        "tokens": [row.length for row in rows],
        "judge_tokens": [row.parsed.decision for row in rows],
        "answer_tokens": [row.parsed.answer_tokens for row in rows],
        "mode": [modes[row.parsed.mode] for row in rows],
        "formatted": [row.parsed.formatted for row in rows],
    }


def run_seed(seed: int, sizes: Sizes, folder: Path) -> dict[str, dict[str, Any]]:
    """Return what every method gave with one seed, and what its heads are worth; what is in the folder already is read."""
    warnings.filterwarnings("ignore", message="The training data lack")
    folder.mkdir(parents=True, exist_ok=True)
    made_with, kept = json.dumps({k: v for k, v in vars(sizes).items() if k != "methods"}), folder / "sizes.json"
    if kept.exists() and kept.read_text() != made_with:
        raise ValueError(f"{folder} holds results of other sizes, {kept.read_text()}: give another --cache")
    write_whole(kept, made_with)
    recipe = Recipe(seed, sizes, folder)
    methods = [method for method in METHODS if not sizes.methods or method.name in sizes.methods]
    found = {method.name: recipe.run(method) for method in methods}
    heads, kinds = folder / "heads.json", sorted({method.both_modes for method in methods if method.scorer})
    if not heads.exists():
        aurocs = {"both modes" if both else "the mode it chooses": recipe.judged_by(both) for both in kinds}
        write_whole(heads, json.dumps(aurocs))
    return {"methods": found, "heads": json.loads(heads.read_text())}
