"""What the seeds of `hipo` say together: figures with intervals over seeds and questions, differences, and gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from swift_rm.evaluation.intervals import SeedResamples
from swift_rm.hipo.trainer.metrics import LEAK_FACTOR

Floats = npt.NDArray[np.float64]
Measured = Mapping[str, Any]  # of one method and seed: a list of one value a response for every name
Seeds = Sequence[Mapping[str, Measured]]  # by method, for every seed
FIGURES = ("accuracy", "tokens", "think_rate")
REFERENCE = "think_on"


class Figures:
    """The figures of every method, all from the same resamples, so that differences are paired."""

    def __init__(self, seeds: Seeds) -> None:
        self.seeds = seeds
        self.methods = [name for name in seeds[0] if all(name in seed for seed in seeds)]
        first = seeds[0][self.methods[0]]
        self.questions = list(dict.fromkeys(first["question"]))
        self.tries = len(first["question"]) // len(self.questions)
        self.difficulty = np.array(first["difficulty"][:: self.tries])
        self.resamples = SeedResamples(len(seeds), len(self.questions))
        self.values = {name: self._of_questions(name) for name in self.methods}

    def table(self) -> dict[str, Any]:
        """Return each method's figures, overall and by difficulty."""
        return {name: self._figures(name) for name in self.methods}

    def against(self, reference: str = REFERENCE) -> dict[str, Any]:
        """Return each method's difference in accuracy to the reference, and the shares of tokens and of thinking it saves."""
        found: dict[str, Any] = {}
        base = {figure: self._mean(reference, figure) for figure in FIGURES}
        for name in self.methods:
            own = {figure: self._mean(name, figure) for figure in FIGURES}
            differences = {
                "accuracy": own["accuracy"] - base["accuracy"],
                "tokens_saved": 1 - own["tokens"] / base["tokens"],
                "thinking_saved": 1 - own["think_rate"] / base["think_rate"],
            }
            found[name] = {figure: self._interval(value) for figure, value in differences.items()}
        return found

    def gain_share(self, name: str, labelled: str = "hipo", start: str = "cold_start") -> dict[str, float | None]:
        """Return the share of the accuracy that labels add to the start which a method without labels adds."""
        begin = self._mean(start, "accuracy")
        return self._interval((self._mean(name, "accuracy") - begin) / (self._mean(labelled, "accuracy") - begin))

    def dominating(self, name: str) -> list[str]:
        """Return the methods that are at least as right with at most as many tokens, by their means."""
        own = [self._mean(name, figure)[0] for figure in ("accuracy", "tokens")]
        others = {other: [self._mean(other, figure)[0] for figure in ("accuracy", "tokens")] for other in self.methods}
        return [o for o, (accuracy, tokens) in others.items() if o != name and accuracy >= own[0] and tokens <= own[1]]

    def rise(self, name: str) -> dict[str, float | None]:
        """Return by how much more of the hardest questions than of the easiest are thought about."""
        kinds = sorted(set(self.difficulty))
        hard, easy = (self._mean(name, "think_rate", kind) for kind in (kinds[-1], kinds[0]))
        return self._interval(hard - easy)

    def _figures(self, name: str) -> dict[str, Any]:
        whole = {figure: self._interval(self._mean(name, figure)) for figure in self.values[name]}
        kinds = {
            kind: {figure: self._interval(self._mean(name, figure, kind)) for figure in FIGURES}
            for kind in sorted(set(self.difficulty))
        }
        by_seed = {figure: np.nanmean(self.values[name][figure], axis=1).round(4).tolist() for figure in FIGURES}
        return {**whole, "by_difficulty": kinds, "by_seed": by_seed}

    def _mean(self, name: str, figure: str, difficulty: str | None = None) -> Floats:
        values = self.values[name][figure]
        if difficulty is not None:
            values = np.where(self.difficulty == difficulty, values, np.nan)
        return self.resamples.figures(values)

    def _interval(self, figures: Floats) -> dict[str, float | None]:
        told = self.resamples.interval(figures).to_dict()
        return {key: None if value is None else round(value, 4) for key, value in told.items()}

    def _of_questions(self, name: str) -> dict[str, Floats]:
        """Return each figure of each seed and question, [S, Q]; NaN where there is none."""
        found = [self._of_responses(seed[name]) for seed in self.seeds]
        shape = (len(self.questions), self.tries)
        return {figure: np.stack([_mean_of(one[figure].reshape(shape)) for one in found]) for figure in found[0]}

    @staticmethod
    def _of_responses(measured: Measured) -> dict[str, Floats]:
        """Return the figures of every response."""
        mode = np.array([np.nan if one is None else one for one in measured["mode"]], dtype=np.float64)
        answer, formatted = np.array(measured["answer_tokens"], dtype=np.float64), np.array(measured["formatted"])
        after_thinking = answer[formatted & (mode == 1)]
        limit = LEAK_FACTOR * after_thinking.mean() if len(after_thinking) else np.inf
        off = formatted & (mode == 0)
        return {
            "accuracy": np.array(measured["accuracy"], dtype=np.float64),
            "tokens": np.array(measured["tokens"], dtype=np.float64),
            "judge_tokens": np.array(measured["judge_tokens"], dtype=np.float64),
            "think_rate": mode,
            "leak_share": np.where(off, answer > limit, np.nan),
            "formatted": formatted.astype(np.float64),
        }


def _mean_of(values: Floats) -> Floats:
    """Return the mean of each row, NaN for one that has nothing."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(1) / known.sum(1))
