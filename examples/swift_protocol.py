"""What the paper did (SWIFT, arXiv 2505.12225): its sizes, prompts and training, and the figures it published.

Sources: the paper and its official code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from swift_rm.features.key import FeatureKey
from swift_rm.features.quantised import is_quantised
from swift_rm.files.atomic_write import write_whole
from swift_rm.training.fit_settings import FitSettings


@dataclass(frozen=True)
class Protocol:
    """How many questions and responses are sampled, how, and for which k Best-of-k is reported."""

    train_questions: int = 6000
    train_n: int = 8
    test_questions: int = 500
    test_n: int = 64
    temperature: float = 1.0
    top_p: float = 0.9
    max_new_tokens: int = 1024
    ks: tuple[int, ...] = (4, 16, 64)

    def within_test(self) -> Protocol:
        """Return the same with Best-of-k only for the k that there are test responses for, or for all of them."""
        return replace(self, ks=tuple(k for k in self.ks if k <= self.test_n) or (self.test_n,))


SMOKE = Protocol(40, 4, 12, 8, max_new_tokens=128, ks=(2, 4, 8))

# Both read the state at each token, so that only the training differs. "published" takes 16 responses, two questions' eight,
# at a step. It was stopped by the loss on held-out responses, and its "best" weights were the last; here both recipes keep
# those of the best AUROC on held-out questions.
RECIPES: Mapping[str, FitSettings] = {
    "published": FitSettings(
        "bce", lr=1e-4, weight_decay=1e-5, epochs=40, patience=3, batch_size=2, validation=0.2, standardise="none"
    ),
    "ours": FitSettings(),
}

# One user message, the instruction before the question, as published; the words are ours (--prompt takes others).
_SOLVE = (
    "Solve this math problem step by step. Simplify the answer as far as possible, and give it at the end in \\boxed{}.\n"
    "{question}"
)
_CHOOSE = (
    "This is a multiple-choice question with five options, A to E. Solve it step by step, and end with the letter of the "
    "right option in \\boxed{}, or the answer will not count.\n{question}"
)
PROMPTS = {"math": _SOLVE, "gsm8k": _SOLVE, "aqua": _CHOOSE, "jsonl": _SOLVE, "homework": "{question}"}

# Accuracy in % on 500 questions of MATH, Best-of-4, -16 and -64 by the first k of 64 responses.
PUBLISHED_KS = (4, 16, 64)
PUBLISHED: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "SWIFT": {"Llama-3.2-3B": (49.8, 54.6, 53.6), "Llama-3.1-8B": (55.4, 59.4, 62.6), "Ministral-8B": (57.8, 61.6, 62.8)},
    "Skywork-8B": {"Llama-3.2-3B": (43.8, 48.4, 48.8), "Llama-3.1-8B": (52.2, 52.4, 53.4), "Ministral-8B": (56.8, 59.0, 61.6)},
    "Eurus-7B": {"Llama-3.2-3B": (42.6, 48.2, 46.8), "Llama-3.1-8B": (50.8, 52.0, 52.2), "Ministral-8B": (54.6, 56.8, 55.0)},
}
PUBLISHED_MODELS = {
    "meta-llama/Llama-3.2-3B-Instruct": "Llama-3.2-3B",
    "meta-llama/Llama-3.1-8B-Instruct": "Llama-3.1-8B",
    "mistralai/Ministral-8B-Instruct-2410": "Ministral-8B",
}


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Remember what a run was begun with; raise ValueError that shows the difference if it is now called otherwise."""
    now = json.loads(json.dumps(settings))
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
    if differ := {name: (there.get(name), now[name]) for name in now if there.get(name) != now[name]}:
        raise ValueError(f"{path.parent} was begun with other settings (there, now): {differ}; choose another --out")
    write_whole(path, json.dumps(now, indent=1) + "\n")


def deviations(protocol: Protocol, key: FeatureKey) -> list[str]:
    """Return in what a run's sizes and states are not the published ones, a clause each."""
    paper = Protocol()
    found = [
        f"{field.name.replace('_', ' ')} {getattr(protocol, field.name)} instead of {getattr(paper, field.name)}"
        for field in fields(Protocol)
        if getattr(protocol, field.name) != getattr(paper, field.name)
    ]
    if len(key.layers) <= key.base_layers:
        found.append(f"{len(key.layers)} instead of all {key.base_layers + 1} layers")
    if is_quantised(key.dtype):
        found.append(f"training states in {key.dtype}")
    return found


def published_name(model: str, dataset: str) -> str | None:
    """Return what the published table calls a language model, a Hub id or its folder; None if these figures are not of it."""
    folders = {hub.split("/")[1]: name for hub, name in PUBLISHED_MODELS.items()}
    name = folders.get(Path(model).resolve().name) if Path(model).is_dir() else PUBLISHED_MODELS.get(model)
    return name if dataset == "math" else None
