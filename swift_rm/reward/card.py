"""The model card written beside every saved reward model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from swift_rm.files.text import counted
from swift_rm.reward.config import SwiftConfig

CARD_MARK = "library_name: swift-rm"
SOURCE_TITLES = {"hidden": "Hidden-state", "logits": "Logits", "top_logprobs": "Log-probabilities"}
SOURCE_READS = {
    "hidden": "the hidden states",
    "logits": "the output logits",
    "top_logprobs": "the log-probabilities of the tokens",
}
SOURCE_TAGS = {"hidden": "hidden-states", "logits": "logits", "top_logprobs": "logprobs"}


def model_card(config: SwiftConfig, parameters: int, results: Sequence[str] = ()) -> str:
    """Write the card: what the head reads, its base model, its training data's size, its evaluation table.

    ``results`` are the files beside it that have more of the evaluation.
    """
    base = config.base_model or "not recorded"
    hub_id = base.count("/") == 1 and not base.startswith((".", "/"))
    front = ["---", CARD_MARK, f"tags: [reward-model, {SOURCE_TAGS[config.source]}, best-of-n, swift]"]
    front += [f"base_model: {json.dumps(base)}"] if hub_id else []
    training = "\n".join(f"| {key} | {_cell(value)} |" for key, value in config.training.items()) or "| not recorded | |"
    return "\n".join(
        [
            *front,
            "---",
            f"# {SOURCE_TITLES[config.source]} reward model",
            "",
            f"{_kind(config, parameters)} {SOURCE_READS[config.source]} of a language model while it",
            "generates and says how likely the response is right. Made with `swift-rm` (method: SWIFT, arXiv 2505.12225).",
            "It is of use with its base model only.",
            "",
            *_use(config),
            "",
            "| reads | |",
            "|---|---|",
            f"| base model | {_cell(base)}, revision {_cell(config.base_revision or 'not recorded')} |",
            f"| source | {config.source} |",
            *_source(config),
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


def _use(config: SwiftConfig) -> list[str]:
    """Return how the reward model is used, as a block of code; the folder of the card is ``MODEL``."""
    base = " ".join((config.base_model or "BASE").split())
    named = f'--model {shlex.quote(base)} --reward-model MODEL "a question"'
    if config.source != "top_logprobs":
        return ["```sh", f"swift-rm best-of-n {named}", "```"]
    return [
        "It needs an API that returns log-probabilities, or a file of what such an API said, and no weights:",
        "",
        "```sh",
        'pip install "swift-rm[api]"',
        f"swift-rm best-of-n --api URL {named}",
        "swift-rm score --reward-model MODEL --input api.jsonl --out scored.jsonl",
        "```",
        "",
        "```python",
        "from swift_rm import ApiBestOfN, SwiftRewardModel",
        "",
        f'best_of_n = ApiBestOfN({json.dumps(base)}, SwiftRewardModel.from_pretrained("MODEL"), "URL")',
        'print(best_of_n(["a question"])[0].best.text)',
        "```",
    ]


def _source(config: SwiftConfig) -> list[str]:
    """Return the rows of the table that say what a token's features are."""
    if config.source == "hidden":
        layers = f"| layers | {', '.join(map(str, config.layers))} of 0..{config.base_layers or '?'} |"
        return [layers, f"| hidden size | {config.hidden_size} |"]
    if config.source == "logits":
        return [f"| vocabulary | {config.hidden_size} |"]
    return [
        f"| alternatives a token | {config.top_logprobs} |",
        f"| features a token | {config.hidden_size}, version {config.features_version} |",
    ]


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
