"""Two rivals without a network: a logistic regression on the last token's state, and CLUE's centroid rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.heads.rival_data import RivalData, check_split, last_columns, within

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass
class LastTokenLogistic:
    """Logistic regression on the state of a response's last row, all layers or the last ``width`` columns.

    Standardised by the training responses; the penalty's inverse ``C`` is the one of ``grid`` whose held-out
    within-question AUROC is highest, the smaller at a tie. Nothing is drawn at random: the seed changes nothing.
    """

    name: str = "last token logistic"
    width: int | None = None
    grid: tuple[float, ...] = C_GRID

    @property
    def parameters(self) -> int:
        """Return how many numbers were learnt; the standardisation folds into them."""
        return len(self._weight) + 1

    def fit(self, train: RivalData, held_out: RivalData, seed: int) -> None:
        """Fit one regression for each ``C`` of the grid and keep the best."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        check_split(train, held_out)
        inputs, labels = self._states(train).double().numpy(), train.labels.numpy()
        best_value = -math.inf
        for c in sorted(self.grid):
            pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(inputs, labels)
            weight, bias = _folded(*(step for _, step in pipeline.steps))
            value = within(self._states(held_out).double() @ weight + bias, held_out)
            if value > best_value:
                self._weight, self._bias, self.chosen, best_value = weight, bias, c, value

    def rewards(self, data: RivalData) -> Tensor:
        """Return the logit of being right of each response, ``[B]``."""
        return (self._states(data).double() @ self._weight + self._bias).float()

    def _states(self, data: RivalData) -> Tensor:
        return last_columns(data.states[data.last], self.width)


@dataclass
class CentroidRule:
    """CLUE (arXiv 2510.01591): how far a response's change of state lies from those of right and of wrong responses.

        delta = h_last - h_first                      one vector for each layer
        V_right, V_wrong = means of the training responses' deltas
        d(delta, V) = mean over layers of || delta_l - V_l ||_2
        reward = d(delta, V_wrong) - d(delta, V_right)

    Known from secondary sources: the delta between the states at ``<think>`` and at ``</think>``, centroids of past
    right and wrong responses, nearest centroid by Euclidean distances averaged over layers, no trainable parameters.
    Chosen here: the first and the last row that were read stand for the two tags; ``score`` "difference" ranks by how
    much nearer the right centroid is, "right" by the distance to the right centroid alone, which is, from memory, how
    the paper ranks candidates; ``normalise`` makes each layer's delta a unit vector first, so that layers of large norm
    do not decide. With ``choose`` the best of these four on the held-out questions is taken (no gradient either way).
    """

    hidden_size: int
    name: str = "centroid rule"
    score: Literal["difference", "right"] = "difference"
    normalise: bool = False
    choose: bool = False

    @property
    def parameters(self) -> int:
        """Return how many numbers were learnt: the two centroids'; none of them by gradient."""
        return self._centroids.numel()

    def fit(self, train: RivalData, held_out: RivalData, seed: int) -> None:
        """Average the deltas of right and of wrong responses; nothing is drawn at random."""
        check_split(train, held_out)
        best_value = -math.inf
        ways: list[tuple[Literal["difference", "right"], bool]] = [(self.score, self.normalise)]
        if self.choose:
            ways = [(score, normalise) for normalise in (False, True) for score in ("difference", "right")]
        for way in ways:
            deltas = self._deltas(train, way[1])
            centroids = torch.stack([deltas[train.labels == label].mean(0) for label in (0, 1)])
            value = within(_nearness(self._deltas(held_out, way[1]), centroids, way[0]), held_out)
            if value > best_value:
                self._centroids, self.chosen, best_value = centroids, way, value

    def rewards(self, data: RivalData) -> Tensor:
        """Return how much nearer each response is to the right centroid than to the wrong one, ``[B]``."""
        score, normalise = self.chosen
        return _nearness(self._deltas(data, normalise), self._centroids, score).float()

    def _deltas(self, data: RivalData, normalise: bool) -> Tensor:
        width = data.states.shape[1]
        if width % self.hidden_size:
            raise ValueError(f"states {width} wide are not layers of hidden size {self.hidden_size}")
        deltas = (data.states[data.last] - data.states[data.first]).double().view(len(data.labels), -1, self.hidden_size)
        return torch.nn.functional.normalize(deltas, dim=-1) if normalise else deltas


def _nearness(deltas: Tensor, centroids: Tensor, score: str) -> Tensor:
    """Return the rewards ``[B]`` of deltas ``[B, L, d]`` from the wrong and the right centroid ``[2, L, d]``."""
    wrong, right = (torch.linalg.vector_norm(deltas - centroid, dim=-1).mean(-1) for centroid in centroids)
    return wrong - right if score == "difference" else -right


def _folded(scaler: Any, regression: Any) -> tuple[Tensor, float]:
    """Return the weight and bias that read raw states as the regression reads standardised ones."""
    weight = regression.coef_[0] / scaler.scale_
    return torch.from_numpy(weight), float(regression.intercept_[0] - weight @ scaler.mean_)
