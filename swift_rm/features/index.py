"""The index of a feature store: its key, and every shard with its checksums and counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from swift_rm.features.key import FeatureKey
from swift_rm.features.shard_file import Checksums
from swift_rm.files.atomic_write import write_whole

INDEX = "index.json"
SHARDS = "shard-*.safetensors"


@dataclass(frozen=True)
class ShardEntry:
    """A shard by its number, with its checksums, and how many questions, responses, tokens and rows of states it holds.

    ``right``, ``wrong`` and ``ungraded`` responses add up to ``responses``; the ungraded ones and their rows are stored last.
    """

    number: int
    checksums: Checksums
    questions: int
    responses: int
    right: int
    wrong: int
    ungraded: int
    tokens: int
    rows: int

    @property
    def name(self) -> str:
        """Return the name of the shard's file."""
        return shard_name(self.number)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ShardEntry:
        """Build an entry from its JSON object; raise ValueError for unknown or missing keys."""
        if wrong := sorted(set(values) ^ {f.name for f in fields(cls)}):
            raise ValueError(f"unknown or missing keys of a shard: {wrong}")
        return cls(**{**values, "checksums": Checksums(**values["checksums"])})


@dataclass(frozen=True)
class FeatureIndex:
    """What ``index.json`` holds: the store's key and its shards in the order of their numbers."""

    key: FeatureKey
    shards: tuple[ShardEntry, ...] = ()

    def write(self, folder: Path) -> None:
        """Write the index of a folder whole."""
        shards = [asdict(entry) for entry in self.shards]
        write_whole(folder / INDEX, json.dumps({"key": self.key.to_dict(), "shards": shards}, indent=1) + "\n")


def read_index(folder: str | Path) -> FeatureIndex:
    """Read a store's index; raise ValueError that says what the folder is instead, and what to do if the index is gone."""
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        shards = sum(1 for _ in folder.glob(SHARDS))
        if shards:
            raise ValueError(
                f"{folder} holds {shards} shards but no {INDEX}, which has their checksums: put it back, or delete the folder "
                "and run the command that made it again"
            )
        raise ValueError(f"{folder} is no feature store: it has no {INDEX}")
    try:
        content = json.loads((folder / INDEX).read_bytes())
        return FeatureIndex(FeatureKey.from_dict(content["key"]), tuple(map(ShardEntry.from_dict, content["shards"])))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is not the index of a feature store: {error}") from error


def shard_name(number: int) -> str:
    """Return the name of a shard's file."""
    return f"shard-{number:05}.safetensors"


def entries_in_order(entries: Iterable[ShardEntry]) -> tuple[ShardEntry, ...]:
    """Return shards in the order of their numbers."""
    return tuple(sorted(entries, key=lambda entry: entry.number))
