"""The model card written beside every saved reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from swift_rm.config import SwiftConfig
from swift_rm.tables import counted

CARD_MARK = "library_name: swift-rm"


def model_card(config: SwiftConfig, parameters: int, results: Sequence[str] = ()) -> str:
    """Write the card: what the head reads, its base model, its training data's size, its evaluation table.

    ``results`` are the files beside it that have more of the evaluation.
    """
    base = config.base_model or "not recorded"
    hub_id = base.count("/") == 1 and not base.startswith((".", "/"))
    front = ["---", CARD_MARK, "tags: [reward-model, hidden-states, best-of-n, swift]"]
    front += [f"base_model: {json.dumps(base)}"] if hub_id else []
    training = "\n".join(f"| {key} | {_cell(value)} |" for key, value in config.training.items()) or "| not recorded | |"
    return "\n".join(
        [
            *front,
            "---",
            "# Hidden-state reward model",
            "",
            f"{_kind(config, parameters)} the hidden states of a language model while it",
            "generates and says how likely the response is right. Made with `swift-rm` (method: SWIFT, arXiv 2505.12225).",
            "It is of use with its base model only.",
            "",
            "| reads | |",
            "|---|---|",
            f"| base model | {_cell(base)}, revision {_cell(config.base_revision or 'not recorded')} |",
            f"| source | {config.source} |",
            f"| layers | {', '.join(map(str, config.layers))} of 0..{config.base_layers or '?'} |",
            f"| hidden size | {config.hidden_size} |",
            f"| position | {config.position} |",
            f"| region | {_cell(config.region)} |",
            f"| gate | {'yes' if config.gate else 'no'} |",
            *([f"| heads | {config.heads} |", f"| pessimism | {config.pessimism:g} |"] if config.heads > 1 else []),
            "",
            "## Training",
            "",
            "| | |",
            "|---|---|",
            training,
            "",
            "## Evaluation",
            "",
            evaluation_table(config.evaluation) if config.evaluation else "No evaluation was stored with this model.",
            "",
            *([f"More of this evaluation: {', '.join(f'`{name}`' for name in results)}.", ""] if results else []),
        ]
    )


def _kind(config: SwiftConfig, parameters: int) -> str:
    if config.heads == 1:
        return f"A linear head of {parameters:,} parameters that reads"
    less = f" minus {config.pessimism:g} x their deviation" if config.pessimism else ""
    return f"{config.heads} linear heads of {parameters:,} parameters in all, whose rewards' mean{less} is the reward. They read"


def evaluation_table(evaluation: Mapping[str, Any]) -> str:
    """Write the accuracies of an evaluation's JSON as a Markdown table, in percent with intervals over questions."""
    auroc, dataset = evaluation.get("auroc_within", {}), evaluation.get("dataset")
    lines = [
        f"{counted(evaluation['questions'], 'question')}, {counted(evaluation['n'], 'response')} each"
        + (f", of {_cell(dataset['id'])} (task {_cell(dataset.get('task') or 'default')})." if dataset else "."),
        "",
        "| rule | accuracy % | 95 % interval |",
        "|---|---|---|",
    ]
    for rule, figure in evaluation["accuracy"].items():
        lines.append(f"| {rule} | {100 * figure['value']:.1f} | {100 * figure['low']:.1f} to {100 * figure['high']:.1f} |")
    if "swift" in auroc:
        lines += ["", f"Within-question AUROC: {auroc['swift']['value']:.3f}."]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
