"""The step-state encoder (HSRM, arXiv 2608.30841): a small transformer over the hidden states at step ends.

    h_s (rows at step ends) -> standardise -> linear to 256 -> + position of the step -> 2-layer transformer encoder
        (4 heads, ffn 1024) -> mean over the steps -> linear -> reward
    loss: -log sigmoid(R+ - R-) over the right x wrong pairs of a question

From the paper: the sizes above, mean pooling and the pairwise loss; reading the answer region only is left to the
``boundary`` mask. Not known from it, chosen here: sinusoidal positions of the step's number (no parameters, any length),
normalisation before each block and after the last, GELU, dropout, standardised inputs, AdamW with a short warm-up, and
early stopping on the held-out questions' within-question AUROC. The last row counts as a step's end, since a mark between
steps, such as a comma, never ends the last one. The encoder has 1,580,289 parameters beside the input layer's 256 D + 256:
2.1 M at D = 2048, as the paper says.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.heads.rival_data import RivalData, check_split, within
from swift_rm.features.read_states import Features
from swift_rm.training.input_standardisation import measure_scaling
from swift_rm.training.losses import dpo
from swift_rm.training.question_split import responses_of

Read = Literal["steps", "tokens"]
RESPONSES_AT_ONCE = 128


@dataclass(frozen=True)
class EncoderSettings:
    """The encoder's sizes and how it is trained: ``batch_size`` counts questions, ``patience`` epochs, ``warmup`` steps."""

    model: int = 256
    heads: int = 4
    hidden: int = 1024
    depth: int = 2
    lr: float = 3e-4
    weight_decay: float = 0.01
    dropout: float = 0.1
    epochs: int = 10
    patience: int = 3
    batch_size: int = 16
    warmup: int = 20


class StepNetwork(nn.Module):
    """Packed step states ``[t, D]`` with ``offsets [b + 1]`` -> rewards ``[b]``."""

    def __init__(self, width: int, settings: EncoderSettings) -> None:
        super().__init__()
        model, dropout = settings.model, settings.dropout
        self.project = nn.Linear(width, model)
        layer = nn.TransformerEncoderLayer(
            model, settings.heads, settings.hidden, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, settings.depth, nn.LayerNorm(model), enable_nested_tensor=False)
        self.score = nn.Linear(model, 1)

    def forward(self, states: Tensor, offsets: Tensor) -> Tensor:
        """Pad to the longest response of the batch; neither attention nor the mean sees the padding."""
        sizes = offsets.diff()
        real = torch.arange(int(sizes.max())) < sizes[:, None]  # [b, S]; in row order, as the packed states are
        steps = states.new_zeros(*real.shape, self.project.out_features)
        steps[real] = self.project(states)
        steps = self.encoder(steps + positions(*steps.shape[1:]), src_key_padding_mask=~real)
        mean = (steps * real[..., None]).sum(1) / sizes[:, None]
        return self.score(mean).squeeze(-1)


@dataclass
class StepEncoder:
    """The step-state encoder as a rival; ``read`` "tokens" takes every row, ``width`` only the last columns (a layer's)."""

    name: str = "step encoder"
    read: Read = "steps"
    width: int | None = None
    settings: EncoderSettings = field(default_factory=EncoderSettings)

    @property
    def parameters(self) -> int:
        """Return how many numbers were learnt."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    def fit(self, train: RivalData, held_out: RivalData, seed: int) -> None:
        """Train on the questions that have pairs; keep the epoch whose held-out within-question AUROC is highest."""
        check_split(train, held_out)
        steps, chosen_by = self._rows(train), self._rows(held_out)
        mixed = torch.tensor(
            [q for q in torch.unique(steps.question) if 0 < steps.labels[steps.question == q].double().mean() < 1]
        )
        self._scaling = measure_scaling(steps, torch.unique(steps.question))[0]
        settings, generator = self.settings, torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the weights and dropout draw from the global generator
            self._network = network = StepNetwork(steps.states.shape[1], settings)
            optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
            warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / settings.warmup))
            best, best_value, best_epoch = copy.deepcopy(network.state_dict()), -math.inf, 0
            for epoch in range(1, settings.epochs + 1):
                network.train()
                for chunk in torch.split(mixed[torch.randperm(len(mixed), generator=generator)], settings.batch_size):
                    members = responses_of(steps.question, chunk)
                    rewards = self._forward(steps, members)
                    optimizer.zero_grad(set_to_none=True)
                    dpo(rewards, steps.labels[members], steps.question[members]).backward()
                    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                    warmup.step()
                value = within(self._predict(chosen_by), chosen_by)
                if value > best_value:
                    best, best_value, best_epoch = copy.deepcopy(network.state_dict()), value, epoch
                elif epoch - best_epoch >= settings.patience:
                    break
        network.load_state_dict(best)

    def rewards(self, data: RivalData) -> Tensor:
        """Return the reward of each response, ``[B]``."""
        return self._predict(self._rows(data))

    def _rows(self, data: RivalData) -> Features:
        ends = torch.ones_like(data.boundary) if self.read == "tokens" else data.boundary.index_fill(0, data.last, True)
        return data.rows(ends, self.width)

    def _forward(self, steps: Features, members: Tensor) -> Tensor:
        states, offsets = steps.take(members)
        return self._network((states - self._scaling.mean) / self._scaling.scale, offsets)

    @torch.no_grad()
    def _predict(self, steps: Features) -> Tensor:
        self._network.eval()
        order = steps.offsets.diff().argsort(stable=True)  # like lengths together: little padding
        rewards = torch.empty(len(order))
        for chunk in torch.split(order, RESPONSES_AT_ONCE):
            rewards[chunk] = self._forward(steps, chunk)
        return rewards


def positions(steps: int, model: int) -> Tensor:
    """Return the sinusoidal encoding ``[S, model]`` of the steps' numbers (Vaswani et al., 2017)."""
    rates = torch.exp(torch.arange(0, model, 2) * (-math.log(10_000) / model))
    angles = torch.arange(steps)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
