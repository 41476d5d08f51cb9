"""What a feature store is keyed by: everything that decides what the stored numbers mean."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.capture.state_recorder import RecordingSpec
from swift_rm.features.quantised import STORE_DTYPES, StoreDtype, is_quantised, torch_dtype
from swift_rm.models.model_shape import model_shape
from swift_rm.records.rollouts import Rollout
from swift_rm.reward.config import POSITIONS, Position, SwiftConfig, resolve_layer
from swift_rm.reward.identity import fingerprint, model_identity

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1


@dataclass(frozen=True)
class FeatureKey:
    """The base model, its layers and positions, and how their states are stored; stores with unequal keys never mix.

    ``layers`` are counted from 0 and in the order of the columns; ``base_layers`` is L. ``n`` is the number of responses per
    question. With ``stride`` S only the tokens at a distance from the response's last that S divides are stored.
    """

    base_model: str
    base_revision: str | None
    fingerprint: str
    hidden_size: int
    base_layers: int
    layers: tuple[int, ...]
    positions: tuple[Position, ...]
    dtype: StoreDtype
    stride: int
    n: int
    format: int = FORMAT

    def __post_init__(self) -> None:
        layers = tuple(resolve_layer(layer, self.base_layers) for layer in self.layers)
        if not layers or len(set(layers)) != len(layers):
            raise ValueError(f"layers must name at least one layer, and none twice, got {self.layers}")
        if not self.positions or any(position not in POSITIONS for position in self.positions):
            raise ValueError(f"positions must be one or both of {POSITIONS}, got {self.positions}")
        if self.dtype not in STORE_DTYPES:
            raise ValueError(f"the dtype of features must be one of {STORE_DTYPES}, got {self.dtype!r}")
        for name in ("stride", "n", "hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "positions", tuple(p for p in POSITIONS if p in self.positions))

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layers: Sequence[int],
        positions: Sequence[Position] = ("generating",),
        *,
        dtype: StoreDtype = "bfloat16",
        stride: int = 1,
        n: int = 8,
    ) -> FeatureKey:
        """Return the key of states of a loaded model; layers may count from the end."""
        shape, identity = model_shape(model), model_identity(model)
        return cls(
            identity["id"], identity["revision"], fingerprint(tokenizer), shape.hidden_size, shape.layers,
            tuple(layers), tuple(positions), dtype, stride, n,
        )  # fmt: skip

    @property
    def width(self) -> int:
        """Return D, the number of values per token."""
        return self.hidden_size * len(self.layers)

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """Return the dtype that states are kept in as they come, or None where that is their own until they are quantised."""
        return None if is_quantised(self.dtype) else torch_dtype(self.dtype)

    @property
    def recording(self) -> RecordingSpec:
        """Return which states a recorder has to keep for a store of this key."""
        return RecordingSpec(self.layers, self.positions)

    def kept(self, tokens: int, position: Position | None = None) -> Sequence[int]:
        """Return which recorded rows of a response of R ``tokens`` the stride keeps, of one ``position`` or of all.

        The last row of each position is always kept, and from there every ``stride``-th before it.
        """
        positions = self.positions if position is None else (position,)
        if self.stride == 1:
            return RecordingSpec(self.layers, positions).rows(tokens)
        each = [RecordingSpec(self.layers, (one,)).rows(tokens)[::-1][:: self.stride] for one in positions]
        return sorted(set().union(*each))

    def config(self, position: Position | None = None, region: str = "response", **more: Any) -> SwiftConfig:
        """Return the configuration of a head that reads this store; raise ValueError for a position that it lacks."""
        position = position or self.positions[0]
        if position not in self.positions:
            raise ValueError(f"the features hold states of position {self.positions}, not {position!r}")
        return SwiftConfig(
            self.hidden_size, self.layers, self.base_model, self.base_revision, position=position, region=region,
            base_layers=self.base_layers, fingerprint=self.fingerprint, **more,
        )  # fmt: skip

    def check(self, folder: str | Path, now: FeatureKey) -> None:
        """Raise ValueError that shows (there, now) unless ``now`` asks for what the store in ``folder`` holds."""
        there, here = self.to_dict(), now.to_dict()
        if differ := {key: (there[key], here[key]) for key in there if there[key] != here[key]}:
            raise ValueError(f"{folder} holds features of another kind (there, now): {differ}; choose another folder")

    def to_dict(self) -> dict[str, Any]:
        """Return the key as JSON-ready values."""
        return {**asdict(self), "layers": list(self.layers), "positions": list(self.positions)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureKey:
        """Build a key from JSON values; raise ValueError for another format, and for unknown or missing keys."""
        if values.get("format") != FORMAT:
            raise ValueError(f"format {values.get('format')!r} is not the one that this version reads, which is {FORMAT}")
        if wrong := sorted(set(values) ^ {f.name for f in fields(cls)}):
            raise ValueError(f"unknown or missing keys: {wrong}")
        return cls(**{**values, "layers": tuple(values["layers"]), "positions": tuple(values["positions"])})


def check_states(key: FeatureKey, rollouts: Sequence[Rollout], states: Tensor, places: list[int]) -> None:
    """Raise ValueError unless ``states [T, D]`` are finite, and as many as the key says of each response."""
    sizes = [len(key.recording.rows(len(rollout.response_ids))) for rollout in rollouts]
    expected = [0, *accumulate(sizes)]
    if places != expected or tuple(states.shape) != (expected[-1], key.width):
        raise ValueError(
            f"expected states [{expected[-1]}, {key.width}] of {len(rollouts)} responses (positions "
            f"{key.positions}, layers {key.layers}), got {list(states.shape)} with {len(places) - 1} responses"
        )
    limit = torch.finfo(key.stored_dtype or states.dtype).max
    # The least and the greatest value are NaN if any is: two reductions, and nothing as large as the states.
    if not states.numel() or bool(torch.stack(states.aminmax()).abs().amax() <= limit):
        return
    row, column = ((~(states.abs() <= limit)).nonzero()[0]).tolist()
    owner, value = rollouts[bisect_right(places, row) - 1], float(states[row, column])
    what = f"too large for {key.dtype} ({value:.3g})" if math.isfinite(value) else "NaN or Inf"
    raise ValueError(f"the states of question {owner.question_id!r} at layer {key.layers[column // key.hidden_size]} are {what}")
