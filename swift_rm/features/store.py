"""Read a feature store: shards of packed states, memory-mapped, one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from swift_rm.features.index import ShardEntry, read_index
from swift_rm.features.read_states import Features
from swift_rm.features.row_selection import Reading, mark_rows, reading_masks, reading_rows
from swift_rm.features.shard_file import ShardHead, map_states, read_head
from swift_rm.reward.config import StateSource
from swift_rm.tokens.region import WHOLE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Graded:
    """What is remembered of a shard: of its graded responses everything but states and token ids, and where states are."""

    offsets: Tensor
    labels: Tensor
    question: Tensor
    quantised: Mapping[str, Tensor]
    dtype: torch.dtype
    shape: tuple[int, int]


class FeatureStore:
    """The hidden states in ``folder`` as ``views`` read them (none: every row that is stored), shard by shard.

    ``key`` says of which model, layers and positions they are. ``labels [B]`` and ``question [B]`` (0..Q-1, with their names
    in ``question_ids``) are those of all graded responses, shard after shard; two questions of one id with other prompts are
    two, the second named ``id#2``. ``ungraded`` counts the responses that are left out for want of a label. A store of two
    positions needs views to be read, without them it can only be described. Opening reads no states. Raises ValueError for a
    shard that is missing or corrupt, by name, and with the way to redo it: its checksum is compared when it is first used,
    unless ``verify`` is False.
    """

    states_source: ClassVar[StateSource] = (
        "hidden"  # of no other: logits would fill any disk, log-probabilities are in the records
    )

    def __init__(
        self,
        folder: str | Path,
        views: Sequence[Reading] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        verify: bool = True,
    ) -> None:
        self.folder, self.views, self._tokenizer = Path(folder), tuple(views), tokenizer
        index = read_index(folder)
        self.key, self.entries = index.key, index.shards
        for position, region in self.views:
            self.key.config(position, region)  # refuses what the store does not have
        self._verified = set(range(len(self.entries))) if not verify else set()
        self._masks: dict[int, tuple[Tensor | None, Counter[str]]] = {}
        numbers: dict[tuple[str, str], int] = {}
        self._graded = [_graded(self._head(entry), entry, numbers) for entry in self.entries]
        nothing = torch.empty(0, dtype=torch.int64)
        self.labels = torch.cat([nothing, *(one.labels for one in self._graded)])
        self.question = torch.cat([nothing, *(one.question for one in self._graded)])
        self.question_ids = _names(numbers)
        self.ungraded = sum(entry.ungraded for entry in self.entries)

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self.entries)

    def __iter__(self) -> Iterator[Features]:
        """Yield the shards one after another."""
        return (self.shard(index) for index in range(len(self)))

    def shard(self, index: int) -> Features:
        """Return one shard; its states are mapped, not copied, and let go with the last tensor that looks at them."""
        if not self.views and len(self.key.positions) > 1:
            raise ValueError(f"{self.folder} holds states of the positions {self.key.positions}: say which views to read")
        entry, graded = self.entries[index], self._graded[index]
        try:
            path, verify = self.folder / entry.name, index not in self._verified
            states = map_states(path, entry.checksums, graded.dtype, graded.shape, verify=verify)
        except ValueError as error:
            raise self._unusable(entry, error) from error
        self._verified.add(index)
        if index not in self._masks:
            self._masks[index] = self._read_masks(index)
        masks, flags = self._masks[index]
        return Features(
            states[: graded.offsets[-1]], graded.offsets, graded.labels, graded.question, flags, masks, self.views,
            graded.quantised.get("scale"), graded.quantised.get("zero"),
        )  # fmt: skip

    def _head(self, entry: ShardEntry) -> ShardHead:
        try:
            return read_head(self.folder / entry.name, entry.checksums)
        except ValueError as error:
            raise self._unusable(entry, error) from error

    def _unusable(self, entry: ShardEntry, error: ValueError) -> ValueError:
        return ValueError(
            f"{self.folder / entry.name} cannot be used: {error}; run the command that made {self.folder} again, which redoes "
            f"the {entry.responses} responses of this shard only"
        )

    def _read_masks(self, index: int) -> tuple[Tensor | None, Counter[str]]:
        """Find which rows the views read; kept from then on, a byte per row and view."""
        one_position = len(self.key.positions) == 1
        if not self.views or (one_position and all(region == WHOLE for _, region in self.views)):
            return None, Counter()
        tensors = self._head(self.entries[index]).tensors
        ids = tensors["response_ids"].tensor_split(tensors["response_offsets"][1:-1])
        responses = [one.tolist() for one in ids[: len(self._graded[index].labels)]]
        if one_position or self.key.stride == 1:
            return reading_masks(self.views, responses, [self.key.kept(len(one)) for one in responses], self._tokenizer)
        return self._masks_by_position(responses)

    def _masks_by_position(self, responses: Sequence[Sequence[int]]) -> tuple[Tensor, Counter[str]]:
        """Find the rows where positions keep rows of their own, so that no view reads those that are there for another."""
        places = {one: [v for v, (position, _) in enumerate(self.views) if position == one] for one in self.key.positions}
        masks, flags = [torch.empty(0, len(self.views), dtype=torch.bool)], Counter[str]()
        for ids in responses:
            rows, found = torch.tensor(self.key.kept(len(ids))), reading_rows(self.views, ids, self._tokenizer)
            mask, reasons = torch.zeros(len(rows), len(self.views), dtype=torch.bool), set[str]()
            for position, columns in places.items():
                own = self.key.kept(len(ids), position)
                read, why = mark_rows([[found[v] for v in columns]], [own])
                at = torch.isin(rows, torch.tensor(own)).nonzero()
                mask[at, torch.tensor(columns, dtype=torch.int64)] = read
                reasons.update(why)
            masks.append(mask)
            flags.update(reasons)
        return torch.cat(masks), flags


def _graded(head: ShardHead, entry: ShardEntry, numbers: dict[tuple[str, str], int]) -> _Graded:
    """Return what is remembered of a shard; ``numbers`` gets those of the questions that are new in it."""
    count = entry.right + entry.wrong
    names = list(zip(head.records["question_ids"], head.records["prompts"], strict=True))
    labels, local = head.tensors["labels"][:count].clone(), head.tensors["question"][:count].tolist()
    question = torch.tensor([numbers.setdefault(names[number], len(numbers)) for number in local], dtype=torch.int64)
    quantised = {name: head.tensors[name].clone() for name in ("scale", "zero") if name in head.tensors}
    return _Graded(head.tensors["offsets"][: count + 1].clone(), labels, question, quantised, head.dtype, head.shape)


def _names(numbers: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    """Return the questions' ids in the order of their numbers; one that is there with another prompt gets a number."""
    seen = Counter[str]()
    names = []
    for name, _ in numbers:
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(names)
