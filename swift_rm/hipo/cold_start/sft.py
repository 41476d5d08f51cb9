"""The cold start: supervised training on the rows of the data pipeline, by TRL's SFTTrainer."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    out: str | Path,
    *,
    epochs: float = 3.0,
    lr: float | None = None,
    batch_size: int = 16,
    lora: int | None = None,
    new_tokens: Sequence[int] = (),
    seed: int = 0,
    report_to: str = "none",
    progress: bool = False,
    **settings: Any,
) -> dict[str, float]:
    """Train the model on a data set as `to_dataset` makes it, the loss on the completions alone, and save it in ``out``.

    Nothing is cut: a row longer than memory allows is for ``settings`` to deal with, TRL's `SFTConfig`. ``lora`` trains
    adapters of this rank, which are merged into what is saved, and the embeddings if there are ``new_tokens``. Returns
    the mean loss of the first and of the last logged tenth, and the number of steps and rows. Raises ValueError for numbers
    that make no training.
    """
    from swift_rm.hipo.trainer.trl_version import check_trl

    check_trl()
    check_positive(epochs=epochs, lr=lr, batch_size=batch_size)
    from trl import SFTConfig, SFTTrainer

    from swift_rm.hipo.trainer.training_progress import quiet, watch

    usual: dict[str, Any] = {
        "num_train_epochs": epochs, "learning_rate": lr or (2e-5 if lora is None else 2e-4), "seed": seed,
        "per_device_train_batch_size": batch_size, "report_to": report_to, "save_strategy": "no", "logging_steps": 1,
        "completion_only_loss": True, "max_length": None, "lr_scheduler_type": "cosine", "warmup_steps": 0.05,
        "gradient_checkpointing": False, "disable_tqdm": True, **device_settings(model),
    }  # fmt: skip
    adapters = None if lora is None else lora_config(model, lora, new_tokens)
    with quiet():
        config = SFTConfig(output_dir=str(out), **(usual | settings))
        trainer = SFTTrainer(model, config, train_dataset=dataset, processing_class=tokenizer, peft_config=adapters)
        watch(trainer, "training", ("loss",), progress)
        trainer.train()
        save_merged(trainer, out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tenth = max(1, len(losses) // 10)
    return {
        "rows": len(dataset), "steps": trainer.state.global_step,
        "loss_first": sum(losses[:tenth]) / tenth, "loss_last": sum(losses[-tenth:]) / tenth,
    }  # fmt: skip


def check_positive(**numbers: float | None) -> None:
    """Raise ValueError that names the first of these that is not a finite number above 0; None stands for a default."""
    for name, number in numbers.items():
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {number}")


def device_settings(model: PreTrainedModel) -> dict[str, Any]:
    """Return where TRL is to train: where the model is, on a GPU with bfloat16 arithmetic."""
    import torch

    on_cpu = model.device.type == "cpu"
    return {"use_cpu": on_cpu, "bf16": not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()}


def lora_config(model: PreTrainedModel, rank: int, new_tokens: Sequence[int] = ()) -> LoraConfig:
    """Return adapters of all linear layers; with new tokens the embeddings are trained whole. Raises ImportError without peft."""
    if rank < 1:
        raise ValueError(f"the rank of adapters must be at least 1, got {rank}")
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError('adapters need peft: pip install "swift-rm[rl]"') from error
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = outputs is None or outputs.weight is inputs.weight
    whole = [_name(model, layer) for layer in ([inputs] if tied else [inputs, outputs])] if new_tokens else None
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM", modules_to_save=whole,
        ensure_weight_tying=bool(whole) and tied,
    )  # fmt: skip


def save_merged(trainer: Any, out: str | Path) -> None:
    """Save the trained model, adapters merged, and its tokenizer, so that `load_language_model` reads the folder.

    They are written beside and moved in when they are whole, ``config.json`` last: a folder that has one has a model.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        trainer.model = trainer.model_wrapped = model.merge_and_unload()
    made, main = Path(out) / ".saving", trainer.accelerator.is_main_process
    if main:
        shutil.rmtree(made, ignore_errors=True)  # what a stopped run left
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(made))
    trainer.accelerator.wait_for_everyone()
    if main:
        for file in sorted(made.iterdir(), key=lambda one: one.name == "config.json"):
            with file.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(file, Path(out) / file.name)
        made.rmdir()


def _name(model: PreTrainedModel, wanted: nn.Module) -> str:
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    return names[id(wanted)].rpartition(".")[2]
