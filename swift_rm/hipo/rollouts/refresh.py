"""Refresh: the head learns on from the labelled rollouts, so that it follows the policy whose states it reads."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from swift_rm.features.read_states import Features
from swift_rm.files.atomic_write import write_whole
from swift_rm.reward.calibration import Calibration, fit_calibration
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.training.input_standardisation import Scaling, measure_scaling
from swift_rm.training.losses import bce

FILE = "swift_refresh.safetensors"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's


@dataclass(frozen=True)
class RefreshSettings:
    """How the head is refreshed: ``share`` of the questions is labelled; after each step come ``steps`` of Adam, rate ``lr``.

    ``replay`` responses, the latest, are remembered, of which a gradient step takes ``batch``. ``pull`` is the weight of the
    squared distance from the head that there was at the start, in standardised units: with few labels, or all of one kind,
    the head stays near it. No step is taken before ``least`` responses are there, and the calibration stays as it is until
    there are ``calibrate`` of them, a tenth of each kind.
    """

    share: float = 0.05
    lr: float = 0.01
    steps: int = 8
    replay: int = 512
    batch: int = 64
    pull: float = 1.0
    least: int = 8
    calibrate: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}: without labels nothing can be refreshed")
        if not self.lr > 0 or not self.pull >= 0:
            raise ValueError(f"refreshing needs lr > 0 and pull >= 0, got {self.lr} and {self.pull}")
        for name in ("steps", "replay", "batch", "least", "calibrate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Refresh:
    """Take the states of labelled rollouts, step by step, and move a reward model's head and calibration after them.

    The loss is that of fitting (BCE on the gated mean), on inputs standardised by the first responses; the new head is
    folded back, so that it always reads raw states. The calibration (Platt) is fitted on what the head said of each
    response before it had learnt from it: what it says afterwards is too sure. The same calls give the same head, whether
    or not there was a :meth:`save` and a :meth:`load` between them.
    """

    def __init__(self, share: float = 0.05, **settings: Any) -> None:
        self.settings = RefreshSettings(share, **settings)
        self.updates = 0  # calls that brought a label
        self._held: deque[tuple[Tensor, float]] = deque(maxlen=self.settings.replay)  # states [t, D] and label
        self._said: deque[tuple[float, float]] = deque(maxlen=self.settings.replay)  # reward beforehand and label
        self._scaling: Scaling | None = None
        self._parameters: list[Tensor] = []  # weight and bias that read standardised states
        self._start: list[Tensor] = []
        self._optimizer: torch.optim.Adam | None = None

    def learn(self, rm: SwiftRewardModel, states: Tensor, offsets: Tensor, labels: Sequence[float]) -> dict[str, float]:
        """Learn from responses ``states [T, D]`` with ``offsets [B + 1]`` and labels (1 right, 0 not); ``rm`` changes in place.

        Responses without a label (NaN), or with states that are not finite, are left out. Returns what to log.
        """
        ends = offsets.tolist()
        parts = [states[a:b].detach() for a, b in pairwise(ends)]
        usable = [
            (part, float(label)) for part, label in zip(parts, labels, strict=True)
            if label == label and len(part) and bool(torch.isfinite(part).all())
        ]  # fmt: skip
        figures = {"swift/labelled": float(len(usable))}
        if not usable:
            return figures
        self.updates += 1
        with torch.no_grad():
            rewards = rm(*_packed([part for part, _ in usable], rm.head.weight)).tolist()
        self._said.extend(zip(rewards, (label for _, label in usable), strict=True))
        self._held.extend((part.clone(), label) for part, label in usable)
        if len(self._held) >= self.settings.least:
            figures["swift/refresh_loss"] = self._descend(rm)
        self._calibrate(rm)
        return figures

    @torch.enable_grad()
    def _descend(self, rm: SwiftRewardModel) -> float:
        """Take the gradient steps and fold the head back; return the mean loss."""
        if self._scaling is None:
            self._begin(rm)
        assert self._scaling is not None and self._optimizer is not None
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.updates)
        weight, bias = self._parameters
        losses = []
        for _ in range(self.settings.steps):
            drawn = torch.randperm(len(self._held), generator=generator)[: self.settings.batch].tolist()
            chosen = [self._held[i] for i in sorted(drawn)]
            labels = torch.tensor([label for _, label in chosen], device=weight.device)
            features, offsets = _packed([part for part, _ in chosen], weight)
            raw = weight / self._scaling.scale
            head = {"weight": raw, "bias": bias - raw @ self._scaling.mean}
            rewards: Tensor = torch.func.functional_call(rm.head, head, (features, offsets))
            loss = bce(rewards, labels, labels)
            pull = sum((now - then).square().sum() for now, then in zip(self._parameters, self._start, strict=True))
            self._optimizer.zero_grad(set_to_none=True)
            (loss + self.settings.pull * pull).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            losses.append(float(loss.detach()))
        with torch.no_grad():
            raw = weight / self._scaling.scale
            rm.head.weight.copy_(raw)
            rm.head.bias.copy_(bias - raw @ self._scaling.mean)
        return sum(losses) / len(losses)

    def _begin(self, rm: SwiftRewardModel) -> None:
        states, offsets = _packed([part for part, _ in self._held], rm.head.weight)
        every = torch.arange(len(self._held))
        labels = torch.tensor([label for _, label in self._held])
        found = measure_scaling(Features(states.cpu(), offsets.cpu(), labels, every), every)[0]
        device = rm.head.weight.device
        self._scaling = Scaling(found.mean.to(device), found.scale.to(device))
        weight = rm.head.weight.detach()
        self._start = [weight * self._scaling.scale, rm.head.bias.detach() + weight @ self._scaling.mean]
        self._resume([part.clone() for part in self._start])

    def _resume(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = [part.requires_grad_(True) for part in parameters]
        self._optimizer = torch.optim.Adam(self._parameters, lr=self.settings.lr)

    def _calibrate(self, rm: SwiftRewardModel) -> None:
        labels = [int(label > 0.5) for _, label in self._said]
        if len(labels) < self.settings.calibrate or min(sum(labels), len(labels) - sum(labels)) < len(labels) / 10:
            return
        rm.config = replace(rm.config, calibration=fit_calibration([reward for reward, _ in self._said], labels).to_dict())

    def save(self, folder: str | Path, rm: SwiftRewardModel) -> None:
        """Write the head, the replay and the optimiser into a folder, whole or not at all; nothing is pickled."""
        tensors = {"head.weight": rm.head.weight, "head.bias": rm.head.bias, "said": torch.tensor(list(self._said)).view(-1, 2)}
        if self._held:
            tensors["states"], tensors["offsets"] = _packed([part for part, _ in self._held])
            tensors["labels"] = torch.tensor([label for _, label in self._held])
        if self._scaling is not None and self._optimizer is not None:
            tensors |= {"mean": self._scaling.mean, "scale": self._scaling.scale}
            for i, (now, then) in enumerate(zip(self._parameters, self._start, strict=True)):
                tensors |= {f"now.{i}": now, f"start.{i}": then}
                tensors |= {f"{name}.{i}": self._optimizer.state[now][name] for name in _MOMENTS}
        told = {"settings": asdict(self.settings), "updates": self.updates, "calibration": rm.config.calibration}
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        write_whole(Path(folder) / FILE, save_safetensors(plain, metadata={"refresh": json.dumps(told)}))

    def load(self, folder: str | Path, rm: SwiftRewardModel) -> None:
        """Go on from what :meth:`save` wrote; ``rm`` gets its head and calibration.

        Raises ValueError where there is none, if it cannot be read, and if it was made with other settings.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"{folder} holds no {FILE}: that run did not refresh its reward model, so resume it without")
        try:
            with safe_open(path, "pt") as file:
                told = json.loads((file.metadata() or {})["refresh"])
            tensors = load_safetensors(path.read_bytes())
            there, calibration, updates = told["settings"], told["calibration"], int(told["updates"])
            self._check(there, path)
            rm.load_checked({name: tensors[name] for name in ("head.weight", "head.bias")}, path)
            rm.config = replace(rm.config, calibration=calibration and Calibration.from_dict(calibration).to_dict())
            self._restore(tensors, rm.head.weight.device)
        except (KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{path} is not a readable state of a refreshed reward model: {error}") from error
        self.updates = updates

    def _check(self, there: dict[str, Any], path: Path) -> None:
        here = asdict(self.settings)
        differing = {name: (there.get(name), value) for name, value in here.items() if there.get(name) != value}
        if differing:
            name, (then, now) = next(iter(differing.items()))
            raise ValueError(f"{path} was made with {name}={then} of the refreshing, not {now}: resume with the same settings")

    def _restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self._said.clear()
        self._said.extend((reward, label) for reward, label in tensors["said"].tolist())
        self._held.clear()
        ends = tensors["offsets"].tolist() if "states" in tensors else [0]
        for i, (start, end) in enumerate(pairwise(ends)):
            self._held.append((tensors["states"][start:end].to(device), float(tensors["labels"][i])))
        self._scaling, self._optimizer = None, None
        if "mean" not in tensors:
            return
        self._scaling = Scaling(tensors["mean"].to(device), tensors["scale"].to(device))
        self._start = [tensors[f"start.{i}"].to(device) for i in range(2)]
        self._resume([tensors[f"now.{i}"].to(device) for i in range(2)])
        assert self._optimizer is not None
        for i, parameter in enumerate(self._parameters):
            moments = {name: tensors[f"{name}.{i}"] for name in _MOMENTS}
            self._optimizer.state[parameter] = {n: v if n == "step" else v.to(device) for n, v in moments.items()}


def _packed(parts: Sequence[Tensor], like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return states ``[T, D]`` and ``offsets [B + 1]``, on the device and in the dtype of ``like``, else on the CPU.

    The parts may be on several devices: those of a checkpoint are where the reward model was when it was loaded.
    """
    offsets = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    states = torch.cat([part.cpu() if like is None else part.to(like) for part in parts])
    return states, offsets if like is None else offsets.to(like.device)
