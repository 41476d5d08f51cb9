"""The reward model: configuration, head and calibration, saved as safetensors with a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from swift_rm.files.atomic_write import write_whole
from swift_rm.reward.calibration import Calibration
from swift_rm.reward.card import CARD_MARK, model_card
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.evaluation_results import EVALUATION_FILES, FIGURES, load_figures, main_figures, save_evaluation
from swift_rm.reward.head import GatedHead, TokenScores

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_OF_EACH_HEAD = ("heads", "pessimism", "calibration", "evaluation")  # in which the members of an ensemble may differ


class SwiftRewardModel(nn.Module, PyTorchModelHubMixin):
    """Score responses by a gated linear read-out of a language model's hidden states (SWIFT, arXiv 2505.12225).

    ``rm(features [T, D], offsets [B + 1]) -> rewards [B]`` is differentiable; ``features`` may be a list of the
    configured layers' states ``[T, d]`` instead, in the order of ``config.layers``. A reward is a logit;
    ``probability`` applies the calibration. Several heads may judge together, see :meth:`ensemble`. ``figures`` is the whole
    JSON of the evaluation, of which ``config.evaluation`` has the main figures; None if it is not known.
    """

    config: SwiftConfig
    figures: Mapping[str, Any] | None = None

    def __init__(self, config: SwiftConfig) -> None:
        super().__init__()
        self.config = config
        self.head = GatedHead(config.width, config.gate, config.heads, config.pessimism)

    def forward(self, features: Tensor | Sequence[Tensor], offsets: Tensor) -> Tensor:
        """Compute the rewards ``[B]`` of packed responses."""
        rewards: Tensor = self.head(features, offsets)
        return rewards

    def token_scores(self, features: Tensor | Sequence[Tensor]) -> TokenScores:
        """Compute gate and reward of each token, ``[T]`` each; of several heads their means."""
        return self.head.token_scores(features)

    def head_rewards(self, features: Tensor | Sequence[Tensor], offsets: Tensor) -> Tensor:
        """Compute the reward that each of the M heads gives each response, ``[B, M]``."""
        return self.head.rewards(features, offsets)

    @property
    def calibration(self) -> Calibration | None:
        """Return the stored calibration, or None if none was fitted."""
        return Calibration.from_dict(self.config.calibration) if self.config.calibration else None

    def probability(self, rewards: ArrayLike) -> NDArray[Any]:
        """Return the probability of being right for each reward: calibrated if a calibration is stored, else the sigmoid."""
        return (self.calibration or Calibration("temperature"))(rewards)

    def save_pretrained(  # type: ignore[override,unused-ignore]
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Save ``model.safetensors``, ``config.json`` and a model card, each file whole or not at all.

        What is known of an evaluation is saved beside them, see ``evaluation_results``; files of an earlier one are removed.
        Raises ValueError if the folder holds another model; a README that is not our card is left alone.
        """
        folder = Path(save_directory)
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_whole(folder / WEIGHTS, save_safetensors(weights, metadata={"format": "pt"}))
        write_whole(folder / CONFIG, json.dumps(self.config.to_dict(), indent=2, sort_keys=True) + "\n")
        results = save_evaluation(folder, self.config, self.figures)
        if not (folder / CARD).exists() or CARD_MARK in (folder / CARD).read_text(encoding="utf-8", errors="replace"):
            write_whole(folder / CARD, model_card(self.config, sum(p.numel() for p in self.parameters()), results))
        if push_to_hub:
            return str(self.push_to_hub(repo_id=repo_id or folder.name, **push_to_hub_kwargs))
        return None

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override,unused-ignore]
        """Upload what ``save_pretrained`` writes; files of an earlier evaluation are deleted there, as they are in a folder."""
        return str(super().push_to_hub(repo_id, **{"delete_patterns": list(EVALUATION_FILES), **kwargs}))

    @classmethod
    def from_pretrained(  # type: ignore[override,unused-ignore]
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **hub_kwargs: Any
    ) -> SwiftRewardModel:
        """Load a reward model from a folder or a Hub id; raise ValueError if its keys or sizes do not fit its configuration."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            if folder.is_absolute() or str(pretrained_model_name_or_path).startswith("."):
                raise FileNotFoundError(f"no reward model folder at {folder}")
            folder = _download(str(pretrained_model_name_or_path), revision, hub_kwargs)
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} is not a reward model folder: it has no {' and no '.join(missing)}")
        try:
            config = SwiftConfig.from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
            weights = load_safetensors((folder / WEIGHTS).read_bytes())
        except (ValueError, TypeError, OSError, SafetensorError) as error:
            raise ValueError(f"{folder} is not a readable reward model: {error}") from error
        model = cls(config)
        model.load_checked(weights, folder / WEIGHTS)
        model.figures = load_figures(folder, config)
        return model

    def load_checked(self, weights: Mapping[str, Tensor], origin: str | Path) -> None:
        """Load weights; raise ValueError that names keys and shapes that do not fit, or numbers that are not finite."""
        expected = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in weights.items()}
        if expected != found:
            raise ValueError(f"{origin} does not fit its configuration: expected {expected}, found {found}")
        broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
        if broken:
            raise ValueError(f"{origin} holds NaN or Inf in {broken}")
        self.load_state_dict({name: value.float() for name, value in weights.items()})

    @classmethod
    def from_published(
        cls,
        path: str | Path,
        *,
        layers: Sequence[int],
        hidden_size: int,
        base_model: str | None = None,
        base_layers: int | None = None,
    ) -> SwiftRewardModel:
        """Read a checkpoint of the paper's code: a bare ``state_dict`` of ``fused_layer`` (gate and reward) or ``reward_layer``.

        The file says neither layers nor base model, so the caller does; sizes are checked against layers x hidden size.
        Its states are those at the response's own tokens (``position="token"``). Nothing is unpickled but tensors.
        """
        from swift_rm.reward.paper_checkpoint import read_published

        weight, bias = read_published(path)
        config = SwiftConfig(
            hidden_size,
            tuple(layers),
            base_model=base_model,
            position="token",
            gate=weight.shape[0] == 2,
            base_layers=base_layers,
        )
        if weight.shape[1] != config.width:
            raise ValueError(
                f"{path} has {weight.shape[1]} weights per row, "
                f"but {len(config.layers)} layers x hidden size {hidden_size} = {config.width}"
            )
        model = cls(config)
        model.load_checked({"head.weight": weight, "head.bias": bias}, path)
        return model

    @classmethod
    def ensemble(cls, models: Sequence[SwiftRewardModel], pessimism: float = 0.0) -> SwiftRewardModel:
        """Join the heads of reward models into one, whose reward is their mean minus ``pessimism`` times their deviation.

        The models read the same states of the same base model; ValueError names what differs. No calibration is that of
        their mean, so none is kept; of their training the card says what each was.
        """
        if not models:
            raise ValueError("an ensemble needs at least one reward model, got none")
        configs = [model.config for model in models]
        found = {f.name: [getattr(config, f.name) for config in configs] for f in fields(SwiftConfig)}
        training = found.pop("training")
        differing = {
            name: values for name, values in found.items()
            if name not in _OF_EACH_HEAD and any(value != values[0] for value in values)
        }  # fmt: skip
        if differing:
            raise ValueError(f"the heads of an ensemble must read the same states, but these differ: {differing}")
        said = {key: [one.get(key) for one in training] for one in training for key in one}
        told = {key: values[0] if all(value == values[0] for value in values) else values for key, values in said.items()}
        heads = sum(found["heads"])
        together = cls(replace(configs[0], heads=heads, pessimism=pessimism, calibration=None, evaluation=None, training=told))
        weights = [model.state_dict() for model in models]
        together.load_state_dict({name: torch.cat([one[name] for one in weights]) for name in weights[0]})
        return together.to(models[0].head.weight)

    def with_evaluation(self, evaluation: Mapping[str, Any]) -> SwiftRewardModel:
        """Return the same model with an evaluation's JSON, of which its configuration and card carry the main figures.

        With ``dataset`` ({"id", "task"}: what the Hub calls the questions) a saved model has the Hub's results files, too.
        """
        model = self.with_config(evaluation=main_figures(evaluation))
        model.figures = evaluation
        return model

    def with_config(self, **changes: Any) -> SwiftRewardModel:
        """Return the same head under a changed configuration."""
        model = SwiftRewardModel(replace(self.config, **changes))
        model.load_state_dict(self.state_dict())
        model.figures = self.figures if model.config.evaluation == self.config.evaluation else None
        return model


def check_folder(folder: str | Path) -> None:
    """Raise ValueError if a reward model may not be saved here: a file, or a folder that holds another model."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder for a reward model")
    if not (folder / CONFIG).exists() and not (folder / WEIGHTS).exists():
        return
    try:
        SwiftConfig.from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError):
        raise ValueError(f"{folder} holds another model, which would be overwritten; choose another folder") from None


def _download(repo_id: str, revision: str | None, hub_kwargs: Mapping[str, Any]) -> Path:
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[WEIGHTS, CONFIG, FIGURES], **hub_kwargs))
    except (OSError, ValueError) as error:  # no network, no such repository, not even an id
        raise FileNotFoundError(
            f"no reward model {repo_id!r}: it is no folder here, and the Hub did not give it ({error})"
        ) from error
