"""Which rows of a response's states a head reads: a view is a position and a region.

Row i of a response is the state after its prompt and i of its R tokens: row 0 chose the first token, row R is that at the
last. So the state that produced token t is row t, and the state at token t is row t + 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swift_rm.reward.config import Position, SwiftConfig
from swift_rm.tokens.region import Flag, find_region

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reading = tuple[Position, str]


def reading_of(config: SwiftConfig) -> Reading:
    """Return position and region that a configuration reads."""
    return config.position, config.region


def reading_rows(
    views: Sequence[Reading], response_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None
) -> list[tuple[Sequence[int], Flag | None]]:
    """Return the rows that each view reads of a response, and why they are all rows if its region could not be had."""
    regions = {region: find_region(response_ids, region, tokenizer) for _, region in views}
    return [(_shifted(regions[region].tokens, position == "token"), regions[region].flag) for position, region in views]


def _shifted(tokens: Sequence[int], by: int) -> Sequence[int]:
    if isinstance(tokens, range):
        return range(tokens.start + by, tokens.stop + by)
    return tuple(token + by for token in tokens)


def mark_rows(
    found: Sequence[Sequence[tuple[Sequence[int], Flag | None]]], held: Sequence[Sequence[int]]
) -> tuple[Tensor, Counter[str]]:
    """Return which of the rows ``held`` of each response each view reads, ``[T, V]``, and the flagged responses' counts.

    ``found`` is what :func:`reading_rows` gives of each response. A response of which a view reads no row that is held, as
    where only every tenth is, is read whole and flagged.
    """
    flags = Counter[str]()
    masks = torch.zeros(sum(map(len, held)), len(found[0]) if len(found) else 0, dtype=torch.bool)
    start = 0
    for views, rows in zip(found, held, strict=True):
        mask = masks[start : start + len(rows)]
        reasons = {_mark(mask[:, place], rows, *one) for place, one in enumerate(views)}
        flags.update(reason for reason in reasons if reason)
        start += len(rows)
    return masks, flags


def reading_masks(
    views: Sequence[Reading],
    responses: Sequence[Sequence[int]],
    held: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[Tensor, Counter[str]]:
    """Find the views' regions in responses of which some rows are held, and mark them, see :func:`mark_rows`."""
    return mark_rows([reading_rows(views, ids, tokenizer) for ids in responses], held)


def _mark(column: Tensor, rows: Sequence[int], wanted: Sequence[int], flag: Flag | None) -> Flag | None:
    """Set ``column`` where ``rows`` are wanted; return why all of them are set, if so."""
    if isinstance(rows, range) and isinstance(wanted, range) and rows.step == 1:
        first, last = max(wanted.start, rows.start), min(wanted.stop, rows.stop)
        column[first - rows.start : max(first, last) - rows.start] = True
        found = last > first
    else:
        column.copy_(torch.isin(torch.tensor(list(rows)), torch.tensor(list(wanted))))
        found = bool(column.any())
    if found or not len(rows):
        return flag
    column.fill_(True)
    return flag or "region_empty"
