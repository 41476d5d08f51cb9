"""What a reward model reads: which hidden states, of which base model, at which tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from swift_rm.region import parse_region

Source = Literal["hidden", "logits", "top_logprobs"]
Position = Literal["generating", "token"]
SOURCES = ("hidden", "logits", "top_logprobs")
POSITIONS = ("generating", "token")


@dataclass(frozen=True)
class SwiftConfig:
    """Describe a hidden-state reward model: what its head reads and from which base model.

    ``layers`` are indices of transformers' ``hidden_states``: 0 = embedding output, L = output after the final norm, -1
    counts from the end. ``position``: ``"generating"`` is the state that produced a token, ``"token"`` the state at it
    (as published). ``region``: ``"response"``, ``"after:<marker>"`` (what follows the marker's first occurrence), or
    ``"steps:<marker>"`` (only the tokens that complete the marker, where a step ends: the comma of a sum, a blank line);
    a response without the marker is read whole and flagged. ``base_layers`` is L and ``fingerprint`` that of the base
    model's vocabulary and chat template; both are filled in by ``fit`` and checked whenever the reward model meets a
    language model. ``heads`` judge together: the reward is the mean of theirs minus ``pessimism`` times their standard
    deviation. Raises ValueError that carries the offending value.
    """

    hidden_size: int
    layers: tuple[int, ...]
    base_model: str | None = None
    base_revision: str | None = None
    source: Source = "hidden"
    position: Position = "generating"
    region: str = "response"
    gate: bool = True
    base_layers: int | None = None
    fingerprint: str | None = None
    calibration: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] | None = None
    heads: int = 1
    pessimism: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, got {self.hidden_size}")
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {SOURCES}, got {self.source!r}")
        if self.position not in POSITIONS:
            raise ValueError(f"position must be one of {POSITIONS}, got {self.position!r}")
        parse_region(self.region)
        if not isinstance(self.heads, int) or self.heads < 1:
            raise ValueError(f"heads must be a number of at least 1, got {self.heads}")
        if not (math.isfinite(self.pessimism) and self.pessimism >= 0):
            raise ValueError(f"pessimism must be finite and not negative, got {self.pessimism}")
        if not self.layers:
            raise ValueError("layers must name at least one layer, got ()")
        if self.base_layers is not None:
            resolved = [resolve_layer(layer, self.base_layers) for layer in self.layers]
            if len(set(resolved)) != len(resolved):
                raise ValueError(f"layers {self.layers} name a layer twice (the base model has {self.base_layers} layers)")
        elif len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers {self.layers} name a layer twice")

    @property
    def width(self) -> int:
        """Return D, the number of features per token."""
        return self.hidden_size * len(self.layers)

    @property
    def marker(self) -> str | None:
        """Return the text that begins or ends what is read, or None for the whole response."""
        return parse_region(self.region)[1]

    def for_base(self, base_layers: int) -> SwiftConfig:
        """Return the same configuration with its layers counted from 0 for a base model of ``base_layers`` layers."""
        resolved = tuple(resolve_layer(layer, base_layers) for layer in self.layers)
        return replace(self, layers=resolved, base_layers=base_layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready values."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SwiftConfig:
        """Build a configuration from JSON values; raise ValueError for unknown or missing keys."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        missing = sorted({"hidden_size", "layers"} - set(values))
        if unknown or missing:
            raise ValueError(f"not a SwiftConfig: unknown keys {unknown}, missing keys {missing}")
        return cls(**{**values, "layers": tuple(values["layers"])})


def resolve_layer(layer: int, base_layers: int) -> int:
    """Return a layer's index counted from 0; raise ValueError if the model has no such layer."""
    if not -base_layers - 1 <= layer <= base_layers:
        raise ValueError(
            f"layer {layer} is out of range: the model has hidden states 0..{base_layers} (or {-base_layers - 1}..-1)"
        )
    return layer % (base_layers + 1)
