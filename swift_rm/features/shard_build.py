"""From responses that wait in memory to one shard: order, quantise, write; and the same shard with other labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from swift_rm.features.index import ShardEntry, shard_name
from swift_rm.features.quantised import StoreDtype, is_quantised, quantise, torch_dtype
from swift_rm.features.shard_file import ShardHead, ShardImage, map_states, read_head
from swift_rm.records.rollouts import Rollout

Held = tuple[str, int, str]  # a response: its question, its number, a hash of its ids


@dataclass(frozen=True)
class PendingResponse:
    """A response and its states ``[rows, D]``, those of its tokens that are kept.

    ``digest`` is the hash of its prompt's and its own ids, ``prompt`` that of the prompt's alone.
    """

    question_id: str
    sample: int
    digest: str
    prompt: str
    label: int | None
    response_ids: list[int]
    states: Tensor

    @property
    def name(self) -> Held:
        """Return what the response is known by."""
        return self.question_id, self.sample, self.digest

    @property
    def question(self) -> tuple[str, str]:
        """Return what its question is known by: two questions of one id differ in their prompts."""
        return self.question_id, self.prompt


def build_shard(
    folder: Path,
    number: int,
    pending: Sequence[PendingResponse],
    dtype: StoreDtype,
    scaling: tuple[Tensor, Tensor] | None = None,
) -> ShardEntry:
    """Write a shard of responses and return its entry; ungraded ones come last, so that the graded ones' states are one block.

    ``scaling`` are the scale and zero ``[D]`` of states that are quantised already.
    """
    ordered = [one for one in pending if one.label is not None] + [one for one in pending if one.label is None]
    questions = {name: i for i, name in enumerate(dict.fromkeys(one.question for one in pending))}
    labels = [-1 if one.label is None else one.label for one in ordered]
    tensors = {
        "offsets": _offsets([len(one.states) for one in ordered]),
        "labels": torch.tensor(labels),
        "question": torch.tensor([questions[one.question] for one in ordered]),
        "response_offsets": _offsets([len(one.response_ids) for one in ordered]),
        "response_ids": torch.tensor([token for one in ordered for token in one.response_ids], dtype=torch.int32),
    }
    records = {
        "question_ids": [name for name, _ in questions],
        "prompts": [prompt for _, prompt in questions],
        "samples": [one.sample for one in ordered],
        "digests": [one.digest for one in ordered],
    }
    parts = [one.states for one in ordered]
    rows, width = sum(map(len, parts)), parts[0].shape[1]
    if is_quantised(dtype):
        nothing = torch.empty(width, dtype=torch.float32)
        image = ShardImage({**tensors, "scale": nothing, "zero": nothing}, records, torch_dtype(dtype), (rows, width))
        if scaling is None:
            _, scale, zero = quantise(torch.cat(parts), dtype, image.states)
        else:
            scale, zero = scaling
            torch.cat(parts, out=image.states)
        image.head["scale"].copy_(scale)
        image.head["zero"].copy_(zero)
    else:
        image = ShardImage(tensors, records, torch_dtype(dtype), (rows, width))
        torch.cat(parts, out=image.states)
    return ShardEntry(
        number, image.write(folder / shard_name(number)), len(questions), len(labels),
        labels.count(1), labels.count(0), labels.count(-1), len(tensors["response_ids"]), rows,
    )  # fmt: skip


def relabel_shard(folder: Path, entry: ShardEntry, labels: Mapping[Held, int | None], dtype: StoreDtype) -> ShardEntry:
    """Write a shard again with other ``labels`` of some of its responses and the same states; return its new entry.

    Raises ValueError with the reason if the file is not as it was written.
    """
    path = folder / entry.name
    head = read_head(path, entry.checksums)
    states = map_states(path, entry.checksums, head.dtype, head.shape, verify=True)
    ids = head.tensors["response_ids"].tensor_split(head.tensors["response_offsets"][1:-1])
    parts = states.tensor_split(head.tensors["offsets"][1:-1])
    question = head.tensors["question"].tolist()
    pending = [
        PendingResponse(*name, head.records["prompts"][question[i]], labels.get(name, label), ids[i].tolist(), parts[i])
        for i, (name, label) in enumerate(held_in(head).items())
    ]
    came = sorted(range(len(pending)), key=lambda i: (question[i], pending[i].sample))  # not graded first, ungraded last
    scaling = (head.tensors["scale"], head.tensors["zero"]) if is_quantised(dtype) else None
    return build_shard(folder, entry.number, [pending[i] for i in came], dtype, scaling)


def held_in(head: ShardHead) -> dict[Held, int | None]:
    """Return the responses that a shard holds, in its order, with their labels."""
    names, records = head.records["question_ids"], head.records
    columns = head.tensors["question"].tolist(), records["samples"], records["digests"], head.tensors["labels"].tolist()
    return {(names[q], sample, digest): None if label < 0 else label for q, sample, digest, label in zip(*columns, strict=True)}


def _offsets(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def response_key(rollout: Rollout) -> Held:
    """Return what a response is known by: question, number, and a hash of the prompt's and the response's ids."""
    return rollout.question_id, int(rollout.extra.get("sample", 0)), ids_digest([rollout.prompt_ids, rollout.response_ids])


def ids_digest(ids: Sequence[object]) -> str:
    """Return a short hash of token ids."""
    return hashlib.blake2b(json.dumps(ids).encode(), digest_size=8).hexdigest()
