"""What every advantage is computed from and to, and the statistics of a group of which only some responses take part."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Bias = Literal["mean", "sample", "none"]

ON, OFF, NO_MODE = 1, 0, -1


@dataclass(frozen=True)
class Groups:
    """The rewards of G responses to each of Q questions.

    ``rewards`` is [Q, G]; one that is NaN or infinite could not be given: its response takes no part, and its advantage is
    0. ``modes`` is [Q, G], 1 for think-on, 0 for think-off, -1 for none. ``baseline`` [Q] is the accuracy of the reference
    model on each question, which only AdaptThink reads; NaN where it is not known. Raises ValueError for other shapes or
    modes, for no question, and for groups of fewer than 2 responses, which have nothing to be compared with.
    """

    rewards: Tensor  # [Q, G]
    modes: Tensor  # [Q, G]
    baseline: Tensor | None = None  # [Q]

    def __post_init__(self) -> None:
        shape = tuple(self.rewards.shape)
        if len(shape) != 2 or not shape[0]:
            raise ValueError(f"advantages need rewards of shape [questions, responses] with at least 1 question, got {shape}")
        if shape[1] < 2:
            raise ValueError(f"an advantage compares the responses of a group: it needs at least 2 a question, got {shape[1]}")
        if not self.rewards.is_floating_point():
            raise ValueError(f"rewards must be floating-point numbers, got {self.rewards.dtype}")
        if tuple(self.modes.shape) != shape:
            raise ValueError(f"modes of shape {tuple(self.modes.shape)} do not fit rewards of shape {shape}")
        if self.baseline is not None and tuple(self.baseline.shape) != shape[:1]:
            raise ValueError(f"a baseline of shape {tuple(self.baseline.shape)} does not fit {shape[0]} questions")
        others = self.modes[(self.modes != ON) & (self.modes != OFF) & (self.modes != NO_MODE)]
        if len(others):
            raise ValueError(f"a mode is 1 (think-on), 0 (think-off) or -1 (none), got {others[0].item()}")

    def exact(self) -> Groups:
        """Return the groups in float64 on the CPU, in which the mean of equal rewards is that reward and a tie is a tie."""
        baseline = None if self.baseline is None else self.baseline.detach().cpu().double()
        return Groups(self.rewards.detach().cpu().double(), self.modes.cpu(), baseline)

    @property
    def known(self) -> Tensor:
        """Which responses have a reward, [Q, G]."""
        return self.rewards.isfinite()

    def of(self, mode: int) -> Tensor:
        """Return which responses have a reward and this mode, [Q, G]."""
        return self.known & (self.modes == mode)

    @property
    def both(self) -> Tensor:
        """Which questions have rewarded responses in both modes, [Q, 1]."""
        return self.of(ON).any(dim=1, keepdim=True) & self.of(OFF).any(dim=1, keepdim=True)


@dataclass(frozen=True)
class Advantages:
    """One advantage a response for the tokens of its judge block, for its mode marker, and for all later ones; each [Q, G]."""

    judge: Tensor
    mode: Tensor
    answer: Tensor

    def like(self, rewards: Tensor) -> Advantages:
        """Return the advantages on the device and with the precision of the rewards."""
        return Advantages(*(one.to(rewards) for one in (self.judge, self.mode, self.answer)))


@dataclass(frozen=True)
class AdvantageSettings:
    """The numbers of all algorithms, each of which reads only its own.

    ``gamma`` weighs a response's own reward in HiPO's judge advantage; ``omega`` and ``bias`` are its tie rule
    (see :mod:`swift_rm.hipo.rewards.bias`); ``eps`` is added to every standard deviation; ``delta`` is AdaptThink's reward for
    think-off, and ``margin`` HGPO's. Raises ValueError for a number that is not finite, a negative one (``margin`` and
    ``delta`` may be), ``eps`` 0, or another bias.
    """

    gamma: float = 0.3
    omega: float = 0.01
    bias: Bias = "mean"
    eps: float = 0.01
    delta: float = 0.05
    margin: float = 0.2

    def __post_init__(self) -> None:
        for name in ("gamma", "omega", "eps", "delta", "margin"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)}")
        if self.gamma < 0 or self.omega < 0:
            raise ValueError(f"gamma and omega must not be negative, got {self.gamma} and {self.omega}")
        if self.eps <= 0:
            raise ValueError(f"eps must be above 0, as equal rewards have a deviation of 0, got {self.eps}")
        if self.bias not in get_args(Bias):
            raise ValueError(f"bias must be one of {', '.join(get_args(Bias))}, got {self.bias!r}")


Algorithm = Callable[[Groups, AdvantageSettings], Advantages]


def mean(values: Tensor, among: Tensor) -> Tensor:
    """Return the mean of ``values`` [Q, G] over those ``among`` which to count, [Q, 1]; 0 where there are none."""
    return torch.where(among, values, 0).sum(dim=1, keepdim=True) / among.sum(dim=1, keepdim=True).clamp(min=1)


def deviation(values: Tensor, among: Tensor) -> Tensor:
    """Return the standard deviation (over n - 1, as in TRL) of those ``among``, [Q, 1]; 0 where there are fewer than 2."""
    squares = torch.where(among, values - mean(values, among), 0).square().sum(dim=1, keepdim=True)
    return (squares / (among.sum(dim=1, keepdim=True) - 1).clamp(min=1)).sqrt()


def normalised(values: Tensor, among: Tensor, eps: float) -> Tensor:
    """Return ``(values - mean) / (deviation + eps)`` over those ``among``, and 0 for the others, [Q, G]."""
    return torch.where(among, values - mean(values, among), 0) / (deviation(values, among) + eps)


def within_modes(values: Tensor, groups: Groups, eps: float) -> Tensor:
    """Return ``values`` normalised among the responses of the same mode, and 0 for those of none, [Q, G]."""
    return normalised(values, groups.of(ON), eps) + normalised(values, groups.of(OFF), eps)


def plain_elsewhere(decision: Tensor, answer: Tensor, groups: Groups, eps: float) -> Advantages:
    """Return the two advantages where a response has a mode, and the plain one of its group where it has none."""
    plain = normalised(groups.rewards, groups.known, eps)
    none = groups.of(NO_MODE)
    decision, answer = torch.where(none, plain, decision), torch.where(none, plain, answer)
    return Advantages(decision, decision, answer)
