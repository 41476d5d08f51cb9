"""What a saved reward model says of its evaluation beside its card: all figures as JSON, and the Hub's results files.

`.eval_results/*.yaml` is what the Hub shows on a model's page and on a benchmark's leaderboard
(huggingface.co/docs/hub/eval-results). Several scores of one benchmark are several files, which their notes tell apart:
one for each rule that chooses by the reward. The configuration keeps the main figures only, the JSON has them all.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.files.atomic_write import write_whole
from swift_rm.files.text import counted, visible
from swift_rm.records.rollouts import finite
from swift_rm.reward.config import SwiftConfig

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry

FIGURES, RESULTS = "swift_evaluation.json", ".eval_results"
REPORTED_RULES = ("swift_shrunk", "swift_best", "swift_vote")
EVALUATION_FILES = (
    *(f"{RESULTS}/{rule}.yaml" for rule in REPORTED_RULES),
    FIGURES,
)  # all that may be written, and is ours to remove
MAIN = ("questions", "n", "accuracy", "auroc_within", "dataset", "date")


def main_figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an evaluation's JSON a configuration keeps; raise KeyError for a figure that every evaluation has."""
    return {key: evaluation[key] for key in MAIN if key in evaluation or key not in ("dataset", "date")}


def result_entries(evaluation: Mapping[str, Any], base_model: str | None) -> dict[str, EvalResultEntry]:
    """Return the Hub's entry for each rule by reward, by the rule's name: its accuracy in percent, and notes.

    There are none without ``dataset`` ({"id", "task"}), which says what the Hub calls the questions.
    """
    from huggingface_hub import EvalResultEntry

    dataset, accuracy = evaluation.get("dataset"), evaluation["accuracy"]
    if not dataset:
        return {}
    date = evaluation.get("date")
    beside = [f"{words} {_percent(accuracy[rule])}" for rule, words in _BESIDE.items() if rule in accuracy]
    if "swift" in evaluation["auroc_within"]:
        beside.append(f"AUROC within questions {evaluation['auroc_within']['swift']['value']:.3f}")
    return {
        rule: EvalResultEntry(
            dataset_id=_line(dataset["id"]), task_id=_line(dataset.get("task") or "default"),
            value=round(100 * accuracy[rule]["value"], 2), date=None if date is None else _line(date),
            notes=f"best of {counted(evaluation['n'], 'answer')} of {_line(base_model or 'a model that is not recorded')}, "
            f"rule {rule}, 95 % interval [{_percent(accuracy[rule], 'low')}, {_percent(accuracy[rule], 'high')}], "
            f"{counted(evaluation['questions'], 'question')}{'; ' if beside else ''}{', '.join(beside)}",
        )
        for rule in REPORTED_RULES if rule in accuracy
    }  # fmt: skip


def hub_name(given: str) -> str:
    """Return a file's name as the Hub allows names: at most 96 of some characters, neither "--" nor "..", no ".git"."""
    kept = re.sub(r"-*\.[.-]*|-+", lambda some: "." if "." in some[0] else "-", re.sub(r"[^\w.-]", "-", given, flags=re.ASCII))
    kept = kept.strip("-.")[:96].strip("-.")
    while kept.endswith(".git"):
        kept = kept.removesuffix(".git").strip("-.")
    return kept or "rollouts"


def save_evaluation(folder: Path, config: SwiftConfig, figures: Mapping[str, Any] | None) -> list[str]:
    """Write the files of an evaluation and remove those of an earlier one; return the names of what was written."""
    import yaml  # type: ignore[import-untyped,unused-ignore]
    from huggingface_hub import eval_result_entries_to_yaml

    entries = result_entries(config.evaluation, config.base_model) if config.evaluation else {}
    contents = {
        f"{RESULTS}/{rule}.yaml": yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, width=2**20)
        for rule, entry in entries.items()
    }
    if figures is not None:
        contents[FIGURES] = json.dumps(finite(figures), indent=1, allow_nan=False) + "\n"
    for name in EVALUATION_FILES:
        if name in contents:
            (folder / name).parent.mkdir(exist_ok=True)
            write_whole(folder / name, contents[name])
        else:
            (folder / name).unlink(missing_ok=True)
    if (folder / RESULTS).is_dir() and not any((folder / RESULTS).iterdir()):
        (folder / RESULTS).rmdir()
    return list(contents)


def load_figures(folder: Path, config: SwiftConfig) -> dict[str, Any] | None:
    """Read all figures of the evaluation that a configuration holds; None, with a warning, if the file is of another."""
    path = folder / FIGURES
    if not path.is_file():
        return None
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(figures, dict) and main_figures(figures) == config.evaluation:
            return figures
    except (ValueError, KeyError, OSError):
        pass  # said below
    warnings.warn(f"{path} is left out: it is not the evaluation that {folder / 'config.json'} holds", stacklevel=3)
    return None


_BESIDE = {"first": "single answer", "majority": "majority vote"}


def _percent(figure: Mapping[str, float], key: str = "value") -> str:
    return f"{100 * figure[key]:.1f}"


def _line(text: str) -> str:
    """Return text on one line, with what cannot be seen made visible."""
    return " ".join(visible(text).split())
