"""What makes a run what it is, kept beside its checkpoints: a run goes on with the settings it began with."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.files.atomic_write import write_whole
from swift_rm.reward.identity import fingerprint, model_identity
from swift_rm.reward.reward_model import SwiftRewardModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from swift_rm.hipo.response.template import Template
    from swift_rm.hipo.trainer.trainer_config import HiPOConfig

FILE = "hipo.json"
DEFINING = (
    "advantages", "gamma", "omega", "bias", "eps", "off_bonus", "margin", "forced_modes", "format_weight", "reward_source",
    "dense", "length_cap", "cap_penalty", "num_generations", "generation_batch_size", "max_completion_length", "temperature",
    "top_p", "top_k", "learning_rate", "beta", "epsilon", "seed",
)  # fmt: skip


def run_settings(
    args: HiPOConfig,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Any,
    model: Any = None,
    questions: Any = None,
) -> dict[str, Any]:
    """Return the settings that define a run, as JSON can hold them; ``rollouts`` is its rollout function or None.

    Of the ``model`` it is the name and the ranks of its adapters, of the ``questions``, if they are no stream, what they ask.
    """
    named = {name: getattr(args, name) for name in DEFINING}
    named |= {name: getattr(rollouts, name, None) for name in ("scorer", "oversample")}
    refresh, rm = getattr(rollouts, "refresh", None), getattr(rollouts, "rm", None)
    named["refresh"] = None if refresh is None else refresh.settings.share
    if isinstance(rm, SwiftRewardModel) and refresh is None:  # a refreshed one is in the checkpoints
        named["reward_model"] = _digest(rm)
    named["model"] = None if model is None else model_identity(model)["id"]
    named["lora"] = [getattr(one, "r", None) for one in getattr(model, "peft_config", {}).values()]
    named["questions"] = _questions(questions)
    found: dict[str, Any] = json.loads(json.dumps({**named, "template": asdict(template), "vocabulary": fingerprint(tokenizer)}))
    return found


def write_settings(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Write ``hipo.json`` into a run's folder or a checkpoint's."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_whole(Path(folder) / FILE, json.dumps(settings, indent=2) + "\n")


def read_settings(checkpoint: str | Path) -> dict[str, Any]:
    """Return what ``hipo.json`` of a checkpoint says, or that of the run it lies in; ValueError if there is none."""
    checkpoint = Path(checkpoint)
    for path in (checkpoint / FILE, checkpoint.parent / FILE):
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is not valid JSON: {error}") from error
            if not isinstance(found, dict):
                raise ValueError(f"{path} does not hold the settings of a HiPO run")
            return found
    raise ValueError(f"{checkpoint} has no {FILE}: it is not a checkpoint of a HiPO run")


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the checkpoint of the most steps that was written to its end, where its ``hipo.json`` is; None if there is none."""
    found = [one for one in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", one.name)]
    return max((one for one in found if (one / FILE).is_file()), key=steps_of, default=None)


def steps_of(checkpoint: Path) -> int:
    """Return how many steps a checkpoint is the result of."""
    return int(checkpoint.name.rpartition("-")[2])


def check_settings(checkpoint: str | Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError that names the first setting that differs from the checkpoint's, with both values."""
    began = read_settings(checkpoint)
    for name, value in settings.items():
        if began.get(name) != value:
            before = json.dumps(began[name]) if name in began else "none"
            raise ValueError(
                f"{checkpoint} was trained with {name} {before}, but {name} is {json.dumps(value)} now: "
                f"go on with the same, or begin a new run in another folder"
            )


def _questions(dataset: Any) -> str | None:
    """Return a hash of the questions of a data set, which knows how many it has; None for a stream."""
    if not hasattr(dataset, "__len__"):
        return None
    asked = hashlib.sha256()
    for row in dataset:
        asked.update(json.dumps([row["question_id"], row["prompt"]], default=str).encode())
    return asked.hexdigest()[:12]


def _digest(rm: SwiftRewardModel) -> str:
    """Return a short name of the head that a run's rewards come from."""
    parts = [value.detach().cpu().float().contiguous().numpy().tobytes() for _, value in sorted(rm.state_dict().items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def keep_run(settings: Mapping[str, Any], rollouts: Any) -> TrainerCallback:
    """Return the callback that writes ``hipo.json`` into every checkpoint, and what `SwiftRollouts` have to keep."""
    from transformers import TrainerCallback

    from swift_rm.hipo.rollouts.swift_rollouts import SwiftRollouts

    class KeepRun(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                if isinstance(rollouts, SwiftRollouts):
                    rollouts.save(folder)
                write_settings(folder, settings)  # last: a checkpoint that has it is whole

    return KeepRun()
