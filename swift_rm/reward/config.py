"""What a reward model reads: which hidden states, of which base model, at which tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from swift_rm.reward.logprob_features import VERSION, feature_names
from swift_rm.reward.logprobs import MOST_ALTERNATIVES
from swift_rm.tokens.region import parse_region

StateSource = Literal["hidden", "logits", "top_logprobs"]
Position = Literal["generating", "token"]
STATE_SOURCES = ("hidden", "logits", "top_logprobs")
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
    deviation.

    ``source`` is what the features are: ``"hidden"`` states; ``"logits"``, the output logits of the step that produced a
    token, over the whole vocabulary (:meth:`of_logits`); or ``"top_logprobs"``, made of the token's log-probability and those
    of ``top_logprobs`` alternatives, as APIs return them, in ``features_version`` of ``logprob_features``
    (:meth:`of_top_logprobs`). The last two are made after the last layer, and ``layers`` is that alone. Raises ValueError
    that carries the offending value.
    """

    hidden_size: int
    layers: tuple[int, ...]
    base_model: str | None = None
    base_revision: str | None = None
    source: StateSource = "hidden"
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
    top_logprobs: int | None = None
    features_version: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, got {self.hidden_size}")
        if self.source not in STATE_SOURCES:
            raise ValueError(f"source must be one of {STATE_SOURCES}, got {self.source!r}")
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
        self._check_source()

    def _check_source(self) -> None:
        if self.source != "hidden" and (self.position != "generating" or self.layers not in ((-1,), (self.base_layers,))):
            raise ValueError(
                f"the source {self.source!r} is read after the last layer and where a token is generated, got layers "
                f"{self.layers} and position {self.position!r}"
            )
        if self.source != "top_logprobs":
            if (self.top_logprobs, self.features_version) != (None, None):
                raise ValueError(f"top_logprobs and features_version go with the source 'top_logprobs', not {self.source!r}")
            return
        if not isinstance(self.top_logprobs, int) or not 0 <= self.top_logprobs <= MOST_ALTERNATIVES:
            raise ValueError(f"top_logprobs must be 0 to {MOST_ALTERNATIVES} alternatives, got {self.top_logprobs!r}")
        if self.features_version != VERSION:
            raise ValueError(f"features_version must be {VERSION}, which this package makes, got {self.features_version!r}")
        if self.hidden_size != len(feature_names(self.top_logprobs)):
            raise ValueError(
                f"{self.top_logprobs} alternatives make {len(feature_names(self.top_logprobs))} features, got {self.hidden_size}"
            )
        if self.region != "response":
            raise ValueError(f"the source 'top_logprobs' reads whole responses, got region {self.region!r}")

    @classmethod
    def of_logits(cls, vocabulary: int, **settings: Any) -> SwiftConfig:
        """Describe a reward model that reads output logits, ``vocabulary`` of them a token."""
        return cls(vocabulary, (-1,), source="logits", **settings)

    @classmethod
    def of_top_logprobs(cls, top: int = MOST_ALTERNATIVES, **settings: Any) -> SwiftConfig:
        """Describe a reward model that reads log-probabilities: each token's, and those of ``top`` alternatives."""
        width = len(feature_names(top))
        return cls(width, (-1,), source="top_logprobs", top_logprobs=top, features_version=VERSION, **settings)

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
