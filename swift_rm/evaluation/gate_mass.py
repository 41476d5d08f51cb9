"""Where a reward model looks: the share of the gate's mass by kind of token and by place in the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel

KINDS = ("digits", "words", "punctuation", "whitespace", "special", "part of a character")
TENTHS = tuple(f"tenth {place}" for place in range(1, 11))
LAST = "last token"


@dataclass(frozen=True)
class Share:
    """Which share of the gate's mass lies on some tokens, and which share of the tokens they are, means over responses."""

    gate: float
    tokens: float

    @property
    def weight(self) -> float:
        """How much such a token counts against the average token, 1 being the same; NaN where there is none."""
        return self.gate / self.tokens if self.tokens else float("nan")

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers by name."""
        return {"gate": self.gate, "tokens": self.tokens, "weight": self.weight}


@dataclass(frozen=True)
class GateMass:
    """The shares by kind of token (they sum to 1), by tenth of the response (these too), and of the last token.

    ``responses`` were averaged; ``left_out`` are those whose gates are all 0 or not finite.
    """

    kinds: Mapping[str, Share]
    tenths: Mapping[str, Share]
    last: Share
    responses: int
    left_out: int

    def to_dict(self) -> dict[str, object]:
        """Return the shares by name, as plain values."""
        return {
            "kinds": {name: share.to_dict() for name, share in self.kinds.items()},
            "tenths": [share.to_dict() for share in self.tenths.values()],
            "last": self.last.to_dict(),
            "responses": self.responses,
            "left_out": self.left_out,
        }


def gate_mass(
    rm: SwiftRewardModel,
    states: Tensor,  # [T, D]
    offsets: Tensor,  # [B + 1]
    token_ids: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> GateMass:
    """Return where the gates of packed responses lie; ``token_ids`` are the tokens read, one list a response.

    A token's share is g_t / sum g over its response. A head without a gate weighs every token alike.
    """
    with torch.no_grad():
        gates = rm.token_scores(states.to(rm.head.weight)).gate
    return mass_of_gates(gates.double().cpu().numpy(), offsets.tolist(), token_ids, tokenizer)


def mass_of_gates(
    gates: npt.NDArray[np.float64],  # [T]
    offsets: Sequence[int],  # [B + 1]
    token_ids: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> GateMass:
    """Return where given gates lie; raise ValueError if a response has not as many tokens as gates."""
    kinds = {token: KINDS.index(kind) for token, kind in token_kinds(tokenizer, token_ids).items()}
    names = (*KINDS, *TENTHS, LAST)
    gate, tokens = np.zeros(len(names)), np.zeros(len(names))
    counted = 0
    for number, ids in enumerate(token_ids):
        mine = gates[offsets[number] : offsets[number + 1]]
        if len(mine) != len(ids):
            raise ValueError(f"response {number} has {len(ids)} tokens, but {len(mine)} gates")
        total = mine.sum()
        if not (np.isfinite(total) and total > 0):
            continue
        kind = np.array([kinds[token] for token in ids])
        tenth = len(KINDS) + np.arange(len(ids)) * 10 // len(ids)
        share, even = mine / total, np.full(len(ids), 1 / len(ids))
        for sums, values in ((gate, share), (tokens, even)):
            sums += np.bincount(kind, values, len(names)) + np.bincount(tenth, values, len(names))
            sums[-1] += values[-1]
        counted += 1
    if not counted:
        raise ValueError(f"none of the {len(token_ids)} responses has gates that are finite and not all 0")
    shares = {name: Share(float(g), float(t)) for name, g, t in zip(names, gate / counted, tokens / counted, strict=True)}
    return GateMass(
        {name: shares[name] for name in KINDS}, {name: shares[name] for name in TENTHS}, shares[LAST],
        counted, len(token_ids) - counted,
    )  # fmt: skip


def token_kinds(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[Sequence[int]]) -> dict[int, str]:
    """Return the kind of every token that occurs, by its own text: a digit makes digits, else a letter a word.

    Special are the tokenizer's special and added tokens (a chat template's, ``</think>``).
    """
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return {
        token: "special" if token in special else _kind(str(tokenizer.decode([token], clean_up_tokenization_spaces=False)))
        for token in sorted({token for ids in token_ids for token in ids})
    }


def _kind(text: str) -> str:
    if "\ufffd" in text:
        return "part of a character"
    if not text.strip():
        return "whitespace"
    if any(character.isdigit() for character in text):
        return "digits"
    return "words" if any(character.isalpha() for character in text) else "punctuation"
