"""Compare the tokens that a model was fed with those that came out: the proof that every state belongs to its token.

Hooks see forward calls, and `generate` returns tokens; nothing but transformers' present habits says that the one goes with
the other. Each token that comes out, but the last, must have been fed, once, in its row and in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BASE = 6364136223846793005  # odd: a checksum is a polynomial in it, modulo 2^64


class FedTokens:
    """Count the tokens of a sequence's forward calls, and keep a checksum of each row's ids ``[rows]``.

    A forward call whose ids are not seen (embeddings were given) starts the checksum anew. One call back is remembered,
    since `generate` may take one more than it returns.
    """

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, past: int) -> None:
        """Start a sequence in a cache that holds ``past`` tokens already."""
        self.past, self.rows, self.unseen = past, 0, False
        self.known = 0  # tokens in the checksum: all that were fed since the last call whose ids were not seen
        self._sums: Tensor | None = None
        self._before: tuple[int, Tensor] | None = None

    def add(self, ids: Tensor | None, rows: int) -> None:
        """Take the ids ``[rows, new]`` of a forward call, or None where they are not seen."""
        self.rows = rows
        if ids is None or ids.dim() != 2 or ids.shape[0] != rows:
            self.known, self._sums, self._before, self.unseen = 0, None, None, True
            return
        sums, new = self._sums, ids.shape[1]
        if sums is not None and (len(sums) != rows or sums.device != ids.device):
            sums = None  # the rows changed, as where somebody else reads batches one after another
            self.known, self.unseen = 0, True
        self._before = None if sums is None else (self.known, sums)
        self.known += new
        if new == 1 and sums is not None:
            self._sums = torch.add(ids[:, 0], sums, alpha=_BASE)
        else:
            self._sums = _checksums(ids) if sums is None else _checksums(ids) + sums * _power(new)

    def contradiction(self, sequences: Tensor, prompt: int | None, may_exceed: bool) -> str | None:
        """Say what of ``sequences [rows, seq]``, which `generate` returned, does not go with the forward calls; None if all does.

        ``prompt`` is the number of tokens in them that `generate` was given (None: unknown). ``may_exceed`` allows for
        forward calls after the last token: one, which is told apart, or several, of processes that wait for others.
        """
        rows, length = sequences.shape
        if not self.rows:
            return f"no forward call was seen, but {rows} rows of {length} tokens came out"
        if rows != self.rows:
            return f"the forward calls had {self.rows} rows, but {rows} came out"
        kept = (self.known, self._sums)
        for known, sums in (kept, self._before) if may_exceed and self._before is not None else (kept,):
            expected = self._expected(length, prompt)
            if known not in expected or sums is None:
                continue
            differing = (_checksums(sequences[:, length - 1 - known : -1]) != sums.to(sequences.device)).nonzero().flatten()
            if len(differing):
                return (
                    f"the tokens that the model was fed are not those that came out, in {len(differing)} of {rows} rows "
                    f"(row {int(differing[0])} first): rows changed places, or a step was taken back"
                )
            return None
        expected = self._expected(length, prompt)
        if (self._sums is None and 0 in expected) or (may_exceed and self.known > max(expected, default=0)):
            return None
        wanted = " or ".join(map(str, sorted(expected)))
        return f"states of {self.known} tokens a row were seen where {wanted} belong to the {length} that came out"

    def _expected(self, length: int, prompt: int | None) -> set[int]:
        """Return how many tokens the checksum may hold if ``length`` came out."""
        if not self.unseen:  # with a cache of the user's, `generate` was given its tokens, too, or the new ones only
            return {length - 1, length - 1 - self.past}
        return {length - 1 - prompt} if prompt is not None else {self.known} & set(range(length))


def _checksums(ids: Tensor) -> Tensor:
    """Return a checksum of each row of ids ``[rows, n]``; rows may be empty."""
    powers = torch.tensor([_power(i) for i in range(ids.shape[1])][::-1], dtype=torch.long, device=ids.device)
    return (ids.long() * powers).sum(1)


_POWERS = [1]


def _power(exponent: int) -> int:
    """Return a power of the base as 64 bits with a sign, in which tensors multiply."""
    while len(_POWERS) <= exponent:
        _POWERS.append((_POWERS[-1] * _BASE + 2**63) % 2**64 - 2**63)
    return _POWERS[exponent]
