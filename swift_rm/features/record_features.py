"""Rollouts whose records hold log-probabilities, as an API's do: their features, without the language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from swift_rm.features.read_states import Features, free_bytes
from swift_rm.features.row_selection import Reading
from swift_rm.records.rollouts import Rollout, labels_of, question_numbers
from swift_rm.reward.logprob_features import feature_names
from swift_rm.reward.recorded_logprobs import BATCH_SIZE, feature_batches, read_tokens

WHOLE: Reading = ("generating", "response")  # what is read: APIs do not tell where a marker's tokens are


def record_features(
    rollouts: Sequence[Rollout], top: int, *, batch_size: int = BATCH_SIZE, max_bytes: int | None = None, progress: bool = False
) -> Features:
    """Return the features ``[T, F]`` of graded rollouts, float32, made of each token's and ``top`` alternatives' records.

    A response's last token is left out where it is the end token. Raises ValueError that names the response and its question
    for a record without usable log-probabilities, of fewer alternatives, or of the end token alone; for missing labels; and
    if the features need more than ``max_bytes``, by default half of the memory that is free.
    """
    labels, width = labels_of(rollouts), len(feature_names(top))
    sizes = torch.tensor([read_tokens(rollout) for rollout in rollouts])
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    needed, max_bytes = 4 * width * int(offsets[-1]), max_bytes or free_bytes() // 2
    if needed > max_bytes:
        raise ValueError(
            f"the features of {len(rollouts)} responses ({int(offsets[-1]):,} tokens x {width}) need {needed / 2**30:.1f} GiB, "
            f"more than max_bytes = {max_bytes / 2**30:.1f} GiB: read fewer responses, or fewer alternatives (now {top})"
        )
    states = torch.empty(int(offsets[-1]), width)
    for batch, features, _ in feature_batches(
        rollouts, range(len(rollouts)), top, batch_size, "reading log-probabilities", progress
    ):
        states[offsets[batch[0]] : offsets[batch[-1] + 1]] = features
    question = torch.tensor(question_numbers(rollouts))
    return Features(states, offsets, torch.tensor(labels), question, views=(WHOLE,))
