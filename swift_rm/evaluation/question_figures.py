"""What rewards are worth on each question, with all of its responses: AUROC, the best response, and the votes they weigh."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from swift_rm.evaluation.auroc import within_question_auroc
from swift_rm.evaluation.rule_curves import election
from swift_rm.evaluation.subset_accuracy import Count, Subsets, best_of_curves, fixed_weights, sums, vote_curve
from swift_rm.selection.rules import reward_weights, shrunk_means

Floats = npt.NDArray[np.float64]

VOTES: dict[str, Count] = {"vote": sums, "shrunk": shrunk_means}  # what an answer has from its weights, sigmoid(reward)


def question_figures(
    rewards: Sequence[Floats] | Floats, labels: Sequence[Floats] | Floats, answers: Sequence[Sequence[str | None]] | None = None
) -> dict[str, Floats]:
    """Return the figures "auroc", "best" and, with ``answers``, "vote" and "shrunk" of each question, [Q] each.

    ``rewards`` and ``labels`` have an array a question, as long as it has responses. AUROC is NaN where all labels are
    equal; the others are expected accuracies, ties being shared.
    """
    best = [best_of_curves(one[None], right[None])[0, -1] for one, right in zip(rewards, labels, strict=True)]
    found = {"auroc": within_question_auroc(rewards, labels), "best": np.array(best)}
    if answers is not None:
        cases = list(zip(rewards, labels, answers, strict=True))
        found |= {name: np.array([_elected(*case, count) for case in cases]) for name, count in VOTES.items()}
    return found


def _elected(rewards: Floats, labels: Floats, answers: Sequence[str | None], count: Count) -> float:
    everyone = Subsets(len(rewards), 1, np.random.default_rng(0), [len(rewards)])  # the only subset of that size
    codes, values = election(answers, labels)
    return float(vote_curve(fixed_weights, reward_weights(rewards), codes, values, everyone, count)[0])
