"""Two states of each response in every layer, and where a reward model's gate looks, read in one pass for a probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from swift_rm.records.rollouts import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.evaluation.gate_mass import GateMass
    from swift_rm.evaluation.response_summaries import Summaries
    from swift_rm.reward.config import SwiftConfig
    from swift_rm.reward.reward_model import SwiftRewardModel

PART_BYTES = 2**30  # states held at once


def read_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Sequence[Rollout],
    config: SwiftConfig,
    rm: SwiftRewardModel | None = None,
    *,
    batch_size: int = 32,
    max_bytes: int | None = None,
    progress: bool = False,
) -> tuple[Summaries, GateMass | None]:
    """Run the model over the rollouts once and keep two states a response and layer, and where the gate looks.

    Token states are held for some responses at a time, so that all layers of a large model can be read. Raises ValueError
    if what is kept would need more than ``max_bytes``, by default half of the memory that is free, or as
    ``extract_features``.
    """
    import numpy as np
    import torch
    from tqdm.auto import tqdm

    from swift_rm.evaluation.gate_mass import mass_of_gates
    from swift_rm.evaluation.response_summaries import Summaries, summarise
    from swift_rm.features.read_states import extract_features, free_bytes
    from swift_rm.records.rollouts import check_trainable
    from swift_rm.tokens.region import find_region

    check_trainable([(rollout.question_id, rollout.label) for rollout in rollouts])
    columns = None if rm is None else _columns(rm, model, tokenizer, config)
    needed, limit = len(rollouts) * 2 * config.width * 4, max_bytes or free_bytes() // 2
    if needed > limit:
        raise ValueError(
            f"two states of {len(rollouts)} responses in {len(config.layers)} layers need {needed / 2**30:.1f} GiB, "
            f"more than {limit / 2**30:.1f} GiB: read fewer layers or fewer questions"
        )
    parts, gates, read = [], [], []
    with tqdm(total=len(rollouts), desc="reading states", unit="response", disable=not progress, delay=1) as bar:
        for some in _parts(rollouts, config.width * model.dtype.itemsize):
            features = extract_features(model, tokenizer, some, config, batch_size=batch_size, max_bytes=max_bytes)
            parts.append(summarise(features, config))
            if rm is not None:
                with torch.no_grad():
                    mine = features.states[:, columns].to(rm.head.weight)
                    gates.append(rm.token_scores(mine).gate.double().cpu().numpy())
                for rollout in some:
                    tokens = find_region(rollout.response_ids, config.region, tokenizer).tokens
                    read.append([rollout.response_ids[token] for token in tokens])
            bar.update(len(some))
    numbers = {name: i for i, name in enumerate(dict.fromkeys(rollout.question_id for rollout in rollouts))}
    summaries = Summaries.joined(parts, np.array([numbers[rollout.question_id] for rollout in rollouts]))
    if rm is None:
        return summaries, None
    offsets = np.cumsum([0, *map(len, read)]).tolist()
    return summaries, mass_of_gates(np.concatenate(gates), offsets, read, tokenizer)


def _parts(rollouts: Sequence[Rollout], token_bytes: int) -> Iterator[list[Rollout]]:
    """Yield the rollouts in parts whose states fit into ``PART_BYTES``, one at least."""
    part: list[Rollout] = []
    held = 0
    for rollout in rollouts:
        size = len(rollout.response_ids) * token_bytes
        if part and held + size > PART_BYTES:
            yield part
            part, held = [], 0
        part.append(rollout)
        held += size
    yield part


def _columns(rm: SwiftRewardModel, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: SwiftConfig) -> list[int]:
    """Return the columns of the states that the reward model reads; raise ValueError if it reads others than are read here."""
    from swift_rm.features.row_selection import reading_of
    from swift_rm.models.model_shape import model_shape
    from swift_rm.reward.identity import check_base_model

    if rm.config.source != "hidden":
        raise ValueError(f"layers are probed for hidden states, but the reward model reads the source {rm.config.source!r}")
    check_base_model(rm.config, model, tokenizer)
    if reading_of(rm.config) != reading_of(config):
        raise ValueError(f"the reward model reads at {reading_of(rm.config)}, but states are to be read at {reading_of(config)}")
    layers = rm.config.for_base(model_shape(model).layers).layers
    if missing := [layer for layer in layers if layer not in config.layers]:
        raise ValueError(f"the reward model reads layer {missing[0]}, which is not among the layers {config.layers}")
    d = config.hidden_size
    return [config.layers.index(layer) * d + unit for layer in layers for unit in range(d)]
