"""How fast a feature store is read beside ``cat shards > /dev/null``, page cache warm; the functions of `training.py`'s figure.

Read means that every byte of the states has gone through the processor: they are summed as 64-bit integers. `take`, what a
trainer asks for, copies the rows of all responses besides, and widens quantised ones to float32.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.recorder import arguments, finish, paired_ratio, peak_bytes
from swift_rm.features.key import FeatureKey
from swift_rm.features.quantised import StoreDtype
from swift_rm.features.store import FeatureStore
from swift_rm.features.writer import FeatureWriter
from swift_rm.records.rollouts import Rollout

TOKENS, WIDTH, LAYERS = 256, 1024, 4
AT_ONCE = 4  # responses taken at a time: 16 MiB of float32, which malloc gets again without new pages


def main() -> None:
    """Measure a bfloat16 and an int8 store."""
    args = arguments(__doc__)
    size, shard_bytes, rounds = (2**28, 2**25, 5) if args.quick else (2**31, 2**28, 15)
    figures = {}
    for dtype in ("bfloat16", "int8"):
        with tempfile.TemporaryDirectory() as folder:
            make_store(folder, size, dtype, shard_bytes)
            figures[dtype] = store_read(folder, rounds)
    share = min(figures[dtype]["store_read_share"] for dtype in figures)
    finish("store_reading", args, {"store_read_share": share, **figures, "shard_bytes": shard_bytes})


def make_store(folder: str | Path, size: int, dtype: StoreDtype = "bfloat16", shard_bytes: int = 2**28) -> None:
    """Write a store of about ``size`` bytes of random states."""
    states = torch.randn(TOKENS, LAYERS * WIDTH).bfloat16()
    key = FeatureKey("random", None, "", WIDTH, LAYERS, tuple(range(LAYERS)), ("generating",), dtype, 1, 1)
    stored = TOKENS * LAYERS * WIDTH * (1 if dtype == "int8" else 2)
    with FeatureWriter(folder, key, shard_bytes=shard_bytes) as writer:
        for i in range(size // stored):
            rollout = Rollout(f"question-{i}", "", [1], "", [i % 1000] * TOKENS, "stop", label=i % 2)
            writer.add([rollout], states, torch.tensor([0, TOKENS]))


def store_read(folder: str | Path, rounds: int = 15) -> dict[str, Any]:
    """Return the speed of reading a store as a share of `cat`'s, in alternating pairs, and how much memory it took.

    ``store_take_share`` is that of taking every response for training, ``verified_share`` that of the first epoch, which
    compares checksums; memory is that of the store besides what one shard has.
    """
    store = FeatureStore(folder, verify=False)
    paths = [str(store.folder / entry.name) for entry in store.entries]
    files = sum(entry.checksums.bytes for entry in store.entries)
    states = [features.states for features in store]
    size, largest = sum(one.nbytes for one in states), max(one.nbytes for one in states)
    del states

    def cat() -> None:
        with open("/dev/null", "wb") as nowhere:
            subprocess.run(["cat", *paths], stdout=nowhere, check=True)

    def share(read: Callable[[], object], times: int) -> dict[str, float]:
        pair = paired_ratio(cat, read, times)
        scale = size / files  # cat reads the heads as well, which the store has in memory
        return {key: round(pair[key] * scale, 3) for key in ("ratio", "ratio_low", "ratio_high")} | {
            "gb_per_s": round(size / pair["seconds_other"] / 1e9, 2),
            "cat_gb_per_s": round(files / pair["seconds"] / 1e9, 2),
        }

    read = share(lambda: read_all(store), rounds)
    take = share(lambda: take_all(store), max(3, rounds // 3))
    verified = share(lambda: read_all(FeatureStore(folder)), max(3, rounds // 3))
    peak = peak_bytes(lambda: read_all(store), "cpu")
    return {
        "store_read_share": read["ratio"],
        "store_read": read,
        "store_take_share": take["ratio"],
        "store_take": take,
        "verified_share": verified["ratio"],
        "verified": verified,
        "bytes": files,
        "shards": len(store),
        "largest_shard": largest,
        "peak_bytes": peak,
    }


def read_all(store: FeatureStore) -> int:
    """Read every byte of every shard's states."""
    return sum(int(features.states.view(torch.int64).sum()) for features in store)


def take_all(store: FeatureStore) -> int:
    """Take every response, as training does."""
    total = 0
    for features in store:
        for responses in torch.split(torch.randperm(len(features.labels)), AT_ONCE):
            total += len(features.take(responses)[0])
    return total


if __name__ == "__main__":
    main()
