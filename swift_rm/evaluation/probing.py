"""Where the signal lives: which layers tell right from wrong responses, how far apart they lie, where the gate looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swift_rm.evaluation.class_separation import Separation, separation
from swift_rm.evaluation.gate_mass import GateMass, Share
from swift_rm.evaluation.intervals import plain
from swift_rm.evaluation.layer_auroc import FOLDS, LayerAuroc, layer_auroc, mixed_question_numbers
from swift_rm.evaluation.response_summaries import Summaries
from swift_rm.files.text import aligned, counted
from swift_rm.records.rollouts import finite


@dataclass(frozen=True)
class Probe:
    """What was found in some responses' states; ``summaries`` are the states, ``gate`` is None without a reward model."""

    summaries: Summaries
    layers: Sequence[LayerAuroc]
    separation: Sequence[Separation]
    gate: GateMass | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many responses, right ones, questions, and questions with both right and wrong responses there are."""
        return {
            "responses": len(self.summaries.labels),
            "right": int(self.summaries.labels.sum()),
            "questions": len(set(self.summaries.question.tolist())),
            "mixed_questions": len(mixed_question_numbers(self.summaries)),
        }

    def to_dict(self, points: int = 0) -> dict[str, Any]:
        """Return all figures as JSON-ready values, with the places of the first ``points`` responses for pictures."""
        data: dict[str, Any] = {
            **self.counts,
            "layers": [{"layer": one.layer, "mean": one.mean.to_dict(), "last": one.last.to_dict()} for one in self.layers],
            "separation": [one.to_dict() for one in self.separation],
            "gate": None if self.gate is None else self.gate.to_dict(),
        }
        if points:
            for named, one in zip(data["separation"], self.separation, strict=True):
                named["points"] = one.points[:points].round(4).tolist()
            data["points_labels"] = self.summaries.labels[:points].tolist()
            data["points_question"] = self.summaries.question[:points].tolist()
        readable: dict[str, Any] = finite(data)
        return readable


def probe(
    summaries: Summaries,
    gate: GateMass | None = None,
    *,
    folds: int = FOLDS,
    bootstrap: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> Probe:
    """Probe and separate each layer, see :func:`layer_auroc` and :func:`separation`, whose errors these are."""
    probed = layer_auroc(summaries, folds=folds, bootstrap=bootstrap, seed=seed, progress=progress)
    apart = separation(summaries, folds=folds, bootstrap=bootstrap, seed=seed, progress=progress)
    return Probe(summaries, probed, apart, gate)


def format_probe(found: Probe) -> str:
    """Return the probe as plain-text tables for a terminal; "[low, high]" is the bootstrap interval over questions."""
    counts = found.counts
    blocks = [
        [
            [f"{counted(counts['questions'], 'question')}, {counted(counts['responses'], 'response')}, {counts['right']} right"],
            [f"{counted(counts['mixed_questions'], 'question')} with both right and wrong responses"],
        ],
        [
            ["AUROC within questions", "mean state", "last state"],
            *([f"layer {one.layer}", plain(one.mean), plain(one.last)] for one in found.layers),
        ],
        [
            ["separation", "PC 1, 2 (% var.)", "PC 1 within", "PC 1 pooled", "LDA within", "LDA pooled", "Fisher ratio"],
            *(_separation_row(one) for one in found.separation),
        ],
    ]
    if found.gate is not None:
        rows = {**found.gate.kinds, **found.gate.tenths, "last token": found.gate.last}
        header = ["where the gate looks", "gate (%)", "tokens (%)", "gate / tokens"]
        blocks.append([header, *(_share_row(name, share) for name, share in rows.items() if share.tokens)])
    return "\n\n".join(aligned(block) for block in blocks)


def _separation_row(one: Separation) -> list[str]:
    first, second = one.explained
    return [
        f"layer {one.layer}, {one.read}", f"{100 * first:.0f}, {100 * second:.0f}", plain(one.pca_within),
        f"{one.pca_pooled:.3f}", plain(one.lda_within), f"{one.lda_pooled:.3f}", f"{one.fisher:.2f}",
    ]  # fmt: skip


def _share_row(name: str, share: Share) -> list[str]:
    return [name, f"{100 * share.gate:.1f}", f"{100 * share.tokens:.1f}", f"{share.weight:.2f}"]
