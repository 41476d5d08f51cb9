"""How far right and wrong responses lie apart in each layer: along the main directions, and along the best one (LDA)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from swift_rm.evaluation.auroc import pooled_auroc
from swift_rm.evaluation.intervals import Interval, Resamples
from swift_rm.evaluation.layer_auroc import FOLDS, Fold, cross_validated, mixed_question_numbers, question_aurocs, question_folds
from swift_rm.evaluation.response_summaries import READS, Summaries

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Separation:
    """One layer's separation of right from wrong responses by their mean or last state (``read``).

    ``explained`` are the shares of the variance on the first two principal components. ``pca_within`` and
    ``pca_pooled`` are the AUROC of the first, ``lda_within`` and ``lda_pooled`` that of the linear discriminant.
    ``fisher`` is the discriminant's (m1 - m0)^2 / (s1^2 + s0^2), m and s the means and deviations of the right and the wrong.
    ``points`` [B, 3] are the responses' places on both components and on the discriminant, for pictures.
    """

    layer: int
    read: str
    explained: tuple[float, float]
    pca_within: Interval
    pca_pooled: float
    lda_within: Interval
    lda_pooled: float
    fisher: float
    points: Floats

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name, without the points."""
        named = {**asdict(self), "pca_within": self.pca_within.to_dict(), "lda_within": self.lda_within.to_dict()}
        return {name: value for name, value in named.items() if name != "points"}


def separation(
    summaries: Summaries, *, folds: int = FOLDS, bootstrap: int = 2000, seed: int = 0, progress: bool = False
) -> list[Separation]:
    """Return the separation in each layer by the mean and by the last state, features standardised.

    Principal components know no labels: they are those of all responses, and only which end of the first counts as right
    is read off the other folds' questions, so that its AUROC may fall below one half. The discriminant (covariances
    shrunk as by Ledoit and Wolf) is cross-validated over questions. Raises ValueError as :func:`layer_auroc` does.
    """
    split = question_folds(summaries, folds, seed)
    resamples = Resamples(len(mixed_question_numbers(summaries)), bootstrap=bootstrap, seed=seed)
    found = []
    for column, layer in enumerate(tqdm(summaries.layers, desc="separating", unit="layer", disable=not progress, delay=1)):
        for read in READS:
            found.append(_separate(summaries, layer, read, summaries.states(read, column), split, resamples, seed))
    return found


def _separate(
    summaries: Summaries,
    layer: int,
    read: str,
    states: npt.NDArray[np.float32],
    split: list[Fold],
    resamples: Resamples,
    seed: int,
) -> Separation:
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.preprocessing import StandardScaler

    standard = StandardScaler().fit_transform(states.astype(np.float64))
    pca = PCA(2, random_state=seed)
    # Where all responses have one and the same state there is no direction: all lie at 0.
    flat = not standard.any()
    components = np.zeros((len(states), 2)) if flat else pca.fit_transform(standard)
    explained = (0.0, 0.0) if flat else (float(pca.explained_variance_ratio_[0]), float(pca.explained_variance_ratio_[1]))
    first = _turned(summaries, components[:, 0], split)
    lda = (
        np.zeros(len(states))
        if flat
        else cross_validated(summaries, states, split, lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    )
    right, wrong = lda[summaries.labels == 1], lda[summaries.labels == 0]
    spread = right.var() + wrong.var()
    first_within, lda_within = (
        resamples.interval(resamples.ratio(question_aurocs(scores, summaries.labels, summaries.question)))
        for scores in (first, lda)
    )
    return Separation(
        layer,
        read,
        explained,
        first_within,
        _pooled(summaries, first),
        lda_within,
        _pooled(summaries, lda),
        float((right.mean() - wrong.mean()) ** 2 / spread) if spread else 0.0,
        np.column_stack([components, lda]),
    )


def _turned(summaries: Summaries, component: Floats, split: list[Fold]) -> Floats:
    """Return the component with, in each fold, the sign that ranks the other folds' questions better."""
    turned = component.copy()
    for train, test in split:
        if question_aurocs(component[train], summaries.labels[train], summaries.question[train]).mean() < 0.5:
            turned[test] *= -1
    return turned


def _pooled(summaries: Summaries, scores: Floats) -> float:
    return float(pooled_auroc(scores[:, None], summaries.labels[:, None].astype(np.float64))[0])
