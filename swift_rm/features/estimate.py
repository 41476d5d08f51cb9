"""How large a feature store will be, said before a long run fills the disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from swift_rm.features.index import SHARDS
from swift_rm.features.key import FeatureKey
from swift_rm.features.quantised import StoreDtype, torch_dtype
from swift_rm.models.model_shape import ModelShape

LARGE = 100 * 10**9  # bytes from which smaller ways of storing are suggested
LAST_LAYERS = 4  # by themselves nearly as good as all
STRIDE = 4
SURE = 0.1  # responses that average less than a tenth of their limit are not counted on


@dataclass(frozen=True)
class FeatureEstimate:
    """The size of the features of ``questions x n`` responses of at most ``tokens`` tokens each.

    ``layers`` and ``positions`` count them. Raises ValueError for what is not positive.
    """

    questions: int
    n: int
    tokens: int
    layers: int
    hidden_size: int
    dtype: StoreDtype = "bfloat16"
    stride: int = 1
    positions: int = 1

    def __post_init__(self) -> None:
        for name in ("questions", "n", "tokens", "layers", "hidden_size", "stride", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        torch_dtype(self.dtype)

    @classmethod
    def of(cls, key: FeatureKey, questions: int, tokens: int) -> FeatureEstimate:
        """Return the estimate of a store by its key."""
        return cls(questions, key.n, tokens, len(key.layers), key.hidden_size, key.dtype, key.stride, len(key.positions))

    @property
    def rows(self) -> int:
        """Return how many rows of states the longest response has: both positions share all that the stride leaves both."""
        each = -(-self.tokens // self.stride)
        return min(self.positions * each, self.tokens + self.positions - 1)

    @property
    def bytes_per_token(self) -> int:
        """Return the bytes of one token that is kept."""
        return self.layers * self.hidden_size * torch_dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        """Return the bytes of the states if every response is as long as it may be; ids and checksums are little beside them."""
        return self.questions * self.n * self.rows * self.bytes_per_token

    def sentence(self) -> str:
        """Return what the figure is made of, in one sentence."""
        every = f", every {self.stride}th token" if self.stride > 1 else ""
        return (
            f"the features of {self.questions:,} questions x {self.n} responses of up to {self.tokens:,} tokens "
            f"({self.layers} layer{'s' * (self.layers > 1)} x {self.hidden_size:,} values in {self.dtype}{every}: "
            f"{readable(self.bytes_per_token)} a token) need up to {readable(self.bytes)}"
        )

    def smaller(self) -> dict[str, FeatureEstimate]:
        """Return the ways to store less, each on top of those before it, by what to ask for; none if it is small anyway."""
        found: dict[str, FeatureEstimate] = {}
        now = self
        if self.bytes < LARGE:
            return found
        if self.layers > LAST_LAYERS:
            now = found["the last four layers (--layers -4,-3,-2,-1)"] = replace(now, layers=LAST_LAYERS)
        if torch_dtype(self.dtype).itemsize > 1:
            now = found["int8 (--features-dtype int8)"] = replace(now, dtype="int8")
        if self.stride < STRIDE:
            found[f"every {STRIDE}th token (--stride {STRIDE})"] = replace(now, stride=STRIDE)
        return found

    def advice(self) -> str:
        """Return the estimate in words, with smaller ways where it is large."""
        ways = "; ".join(f"{way}: {readable(less.bytes)}" for way, less in self.smaller().items())
        return self.sentence() + (f"; smaller, one on top of another: {ways}" if ways else "")

    def check(self, free: int, held: int = 0) -> str | None:
        """Return a warning if the states may not fit into ``free`` bytes, ``held`` being there already; None if they will.

        Raises ValueError if not even a tenth of what is missing fits: responses hardly ever average less of their limit.
        """
        missing = max(0, self.bytes - held)
        if missing <= free:
            return None
        there = f" besides the {readable(held)} that are there" if held else ""
        if missing * SURE > free:
            raise ValueError(
                f"only {readable(free)} of disk are free{there}, not even a tenth of what may be needed: {self.advice()}"
            )
        return (
            f"only {readable(free)} of disk are free{there}, but up to {readable(missing)} more may be needed: if the disk fills "
            "up, the run stops, keeps what is written, and goes on when called again"
        )


def announce(folder: str | Path, key: FeatureKey, questions: int, tokens: int) -> str:
    """Return what to say before sampling ``questions`` of at most ``tokens`` new tokens into a store, a line or two.

    The second is the warning that the disk may be too small; raises ValueError if it is, see :meth:`FeatureEstimate.check`.
    """
    folder, estimate = Path(folder), FeatureEstimate.of(key, questions, tokens)
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    held = sum(path.stat().st_size for path in folder.glob(SHARDS))
    warning = estimate.check(shutil.disk_usage(there).free, held)
    return estimate.advice() + (f"\n{warning}" if warning else "")


def readable(count: int) -> str:
    """Return bytes in the decimal unit that suits them: 5.19 TB."""
    size, units = float(count), ["bytes", "KB", "MB", "GB", "TB", "PB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def shape_of(name: str, revision: str | None = None) -> ModelShape:
    """Return the shape of a model in a folder, on the Hub, or embedded, from its configuration: no weights are loaded."""
    from transformers import AutoConfig

    from swift_rm.models.load import resolve

    config = AutoConfig.from_pretrained(resolve(name), revision=revision).get_text_config(decoder=True)
    return ModelShape(config.num_hidden_layers, config.hidden_size)
