"""The features of log-probabilities that rollout records hold, as an API gives them, a batch at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from swift_rm.records.rollouts import Rollout
from swift_rm.reward.identity import warn_of_others
from swift_rm.reward.logprob_features import features_of
from swift_rm.reward.logprobs import TokenLogprobs

BATCH_SIZE = 512  # responses whose features are made at once


def sampled_by(rollouts: Sequence[Rollout]) -> Mapping[str, Any]:
    """Return ``base_model`` and ``base_revision`` as the records agree on them, None otherwise; warn where models differ."""
    known = Counter(rollout.model["id"] for rollout in rollouts if rollout.model.get("id"))
    if len(known) != 1:
        if known:
            name = next(iter(known))
            warn_of_others(rollouts, name, f"so {name} is not recorded as the base model")
        return {"base_model": None, "base_revision": None}
    revisions = {rollout.model.get("revision") for rollout in rollouts if rollout.model.get("id")}
    return {"base_model": next(iter(known)), "base_revision": revisions.pop() if len(revisions) == 1 else None}


def is_empty(rollout: Rollout) -> bool:
    """Tell whether a record's log-probabilities are of no token, or of the end token alone: there is nothing to read."""
    return isinstance(rollout.extra.get("token_logprobs"), list) and not read_tokens(rollout)


def read_tokens(rollout: Rollout) -> int:
    """Return the number of tokens that are read, all but the end token."""
    given = len(rollout.extra.get("token_logprobs") or ())
    return max(0, given - bool(rollout.extra.get("end_token")))


def feature_batches(
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
