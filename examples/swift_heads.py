"""The heads of a run of the paper's protocol: fitted from a feature store, then all scored by one pass of the language model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from swift_protocol import RECIPES

from swift_rm.features.key import FeatureKey
from swift_rm.features.store import FeatureStore
from swift_rm.features.writer import SHARD_BYTES, FeatureWriter
from swift_rm.files.atomic_write import write_whole
from swift_rm.records.rollouts import Rollout, finite
from swift_rm.reward.reward_model import CONFIG, SwiftRewardModel
from swift_rm.scoring.score import score_heads
from swift_rm.tokens.encoding import encode
from swift_rm.training.fit import fit_bank
from swift_rm.training.head_grid import HeadPlan

SHARD_QUESTIONS = 4  # of full length; those of usual length are about ten


def shard_bytes(key: FeatureKey, tokens: int) -> int:
    """Return the least size of a shard: a gradient step never crosses shards, so each must hold several questions.

    One question of at most ``tokens`` new tokens can fill the usual shard where all layers of a large model are kept.
    """
    return max(SHARD_BYTES, SHARD_QUESTIONS * key.n * tokens * key.width * 2)  # 2 bytes: the model's own dtype, mostly


def heads_of(
    out: Path, key: FeatureKey, tokens: int, seeds: int, sample_train: Callable[[FeatureWriter], Any], *, progress: bool = False
) -> list[SwiftRewardModel]:
    """Return the heads of each recipe, and of each its seeds, fitting those that are not in ``out/heads`` yet.

    Only then are training responses sampled, by ``sample_train`` into the writer it is given: when all heads are there,
    ``out/features`` is not read and may be gone.
    """
    folders = {(name, seed): out / "heads" / f"{name}-{seed}" for name in RECIPES for seed in range(seeds)}
    missing = [which for which, folder in folders.items() if not (folder / CONFIG).exists()]
    if missing:
        with FeatureWriter(out / "features", key, shard_bytes=shard_bytes(key, tokens), progress=progress) as features:
            sample_train(features)
        store = FeatureStore(out / "features")
        for name, seed in missing:
            plan = HeadPlan(key.config("token"), replace(RECIPES[name], seed=seed), name)
            judged = fit_bank(store, [plan], key.layers, [("token", "response")], progress=progress)
            judged[0].rm.save_pretrained(folders[name, seed])
    return [SwiftRewardModel.from_pretrained(folder) for folder in folders.values()]


def rewards_of(
    path: Path,
    model: Any,
    tokenizer: Any,
    heads: Sequence[SwiftRewardModel],
    sampled: Sequence[Rollout],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, npt.NDArray[np.float64]]:
    """Return each recipe's rewards ``[seeds, responses]``, from ``path`` if they are there; NaN where states are not finite."""
    if not path.exists():
        prompts, responses = [one.prompt_ids for one in sampled], [one.response_ids for one in sampled]
        together = SwiftRewardModel.ensemble(heads).to(model.device)
        encoded = encode(model, tokenizer, prompts, responses, together.config.region)
        scored = score_heads(model, together, encoded, batch_size=batch_size, progress=progress)
        write_whole(path, json.dumps(finite(scored.T.tolist())))
    rewards = np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.float64)
    return dict(zip(RECIPES, rewards.reshape(len(RECIPES), -1, len(sampled)), strict=True))
