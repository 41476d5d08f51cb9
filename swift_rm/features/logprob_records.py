"""Rollouts whose records hold log-probabilities, as an API's do: features and rewards without the language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from swift_rm.features.read_states import Features, free_bytes
from swift_rm.features.row_selection import View
from swift_rm.records.rollouts import Rollout, labels_of, question_numbers
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.identity import warn_of_others
from swift_rm.reward.logprob_features import feature_names, features_of
from swift_rm.reward.logprobs import TokenLogprobs

if TYPE_CHECKING:
    from swift_rm.reward.reward_model import SwiftRewardModel

BATCH = 512  # responses whose features are made at once
WHOLE: View = ("generating", "response")  # what is read: APIs do not tell where a marker's tokens are


def record_features(
    rollouts: Sequence[Rollout], top: int, *, batch_size: int = BATCH, max_bytes: int | None = None, progress: bool = False
) -> Features:
    """Return the features ``[T, F]`` of graded rollouts, float32, made of each token's and ``top`` alternatives' records.

    A response's last token is left out where it is the end token. Raises ValueError that names the response and its question
    for a record without usable log-probabilities, of fewer alternatives, or of the end token alone; for missing labels; and
    if the features need more than ``max_bytes``, by default half of the memory that is free.
    """
    labels, width = labels_of(rollouts), len(feature_names(top))
    sizes = torch.tensor([_read_tokens(rollout) for rollout in rollouts])
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    needed, max_bytes = 4 * width * int(offsets[-1]), max_bytes or free_bytes() // 2
    if needed > max_bytes:
        raise ValueError(
            f"the features of {len(rollouts)} responses ({int(offsets[-1]):,} tokens x {width}) need {needed / 2**30:.1f} GiB, "
            f"more than max_bytes = {max_bytes / 2**30:.1f} GiB: read fewer responses, or fewer alternatives (now {top})"
        )
    states = torch.empty(int(offsets[-1]), width)
    for batch, features, _ in _batches(rollouts, range(len(rollouts)), top, batch_size, "reading log-probabilities", progress):
        states[offsets[batch[0]] : offsets[batch[-1] + 1]] = features
    question = torch.tensor(question_numbers(rollouts))
    return Features(states, offsets, torch.tensor(labels), question, views=(WHOLE,))


def record_rewards(
    rm: SwiftRewardModel, rollouts: Sequence[Rollout], *, batch_size: int = BATCH, progress: bool = False
) -> Tensor:
    """Return the rewards that each head gives each response, ``[B, M]`` on the CPU, from the records' log-probabilities.

    A response without a token, or of the end token alone, has no reward: NaN. Raises ValueError as :func:`record_features`,
    and for a reward model of another source; warns of rollouts that another model sampled than it was trained on.
    """
    config, weight = rm.config, rm.head.weight
    top = check_record_source(config)
    if config.base_model is not None:
        warn_of_others(rollouts, config.base_model, "on which the reward model was trained")
    rewards = torch.full((len(rollouts), config.heads), torch.nan, dtype=torch.promote_types(weight.dtype, torch.float32))
    spoken = [i for i, rollout in enumerate(rollouts) if not is_empty(rollout)]
    with torch.inference_mode():
        for batch, features, offsets in _batches(rollouts, spoken, top, batch_size, "scoring", progress):
            rewards[batch] = rm.head_rewards(features.to(weight.device), offsets).cpu()
    return rewards


def check_record_source(config: SwiftConfig) -> int:
    """Return how many alternatives a reward model reads; raise ValueError for one that reads what records do not hold."""
    if config.top_logprobs is None:
        reads = "output logits" if config.source == "logits" else "hidden states"
        raise ValueError(
            f"a reward model of the source {config.source!r} reads {reads}, which records do not hold: "
            f"give --model, the language model{f' ({config.base_model})' if config.base_model else ''}"
        )
    return config.top_logprobs


def sampled_by(rollouts: Sequence[Rollout]) -> Mapping[str, Any]:
    """Return ``base_model`` and ``base_revision`` as the records agree on them, None otherwise; warn where models differ."""
    known = Counter(rollout.model["id"] for rollout in rollouts if rollout.model.get("id"))
    if len(known) != 1:
        if known:
            warn_of_others(rollouts, next(iter(known)), "which is not recorded as the base model therefore")
        return {"base_model": None, "base_revision": None}
    revisions = {rollout.model.get("revision") for rollout in rollouts if rollout.model.get("id")}
    return {"base_model": next(iter(known)), "base_revision": revisions.pop() if len(revisions) == 1 else None}


def is_empty(rollout: Rollout) -> bool:
    """Tell whether a record's log-probabilities are of no token, or of the end token alone: there is nothing to read."""
    return isinstance(rollout.extra.get("token_logprobs"), list) and not _read_tokens(rollout)


def _read_tokens(rollout: Rollout) -> int:
    """Return the number of tokens that are read, all but the end token."""
    given = len(rollout.extra.get("token_logprobs") or ())
    return max(0, given - bool(rollout.extra.get("end_token")))


def _batches(
    rollouts: Sequence[Rollout], chosen: Sequence[int], top: int, size: int, said: str, progress: bool
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield the indices of some of the ``chosen`` responses, their features ``[T, F]`` and ``offsets [B + 1]``."""
    with tqdm(total=len(chosen), desc=said, unit="response", disable=not progress, delay=2) as bar:
        for start in range(0, len(chosen), size):
            batch = list(chosen[start : start + size])
            names = [f"response {i} (question {rollouts[i].question_id!r})" for i in batch]
            read = [_logprobs(rollouts[i], name) for i, name in zip(batch, names, strict=True)]
            yield batch, *features_of(read, top, names)
            bar.update(len(batch))


def _logprobs(rollout: Rollout, name: str) -> TokenLogprobs:
    if rollout.response_ids and rollout.finish_reason == "stop" and "end_token" not in rollout.extra:
        raise ValueError(
            f"{name}: its record does not say whether its last token ends it ('end_token'): "
            f"give --model, which reads the token ids, or sample with --top-logprobs"
        )
    try:
        return TokenLogprobs.of_record(rollout.extra)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
