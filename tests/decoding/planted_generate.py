"""Generate loops with a planted fault each, such as a release of transformers might bring: greedy, with a cache, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from swift_rm.models.transformers_internals import cache_name, cache_of

# fault -> what readers that count tokens say, and what a tap says, which sees forward calls and what comes out (None: nothing,
# since its states are still those of the tokens)
FAULTS: dict[str, tuple[str, str | None]] = {
    "skips a step": ("token 3 of each row was chosen by a forward call that the hooks did not see", "states of 10 tokens a row"),
    "repeats a step": ("two forward calls were made for token 2 of each row", "states of 12 tokens a row were seen where 11"),
    "reorders rows": (
        "a row was fed a token that was not chosen for it|fed are not those that came out",
        "not those that came out",
    ),
    "reorders what comes out": ("not those that came out, in 2 of 3 rows", "not those that came out, in 2 of 3 rows"),
    "crops the cache": ("cut back from 7 to 5 tokens", "cut back from 7 to 5 tokens"),
    "reads everything again": ("two forward calls were made for token 2 of each row", None),
    "feeds two tokens at once": ("token 3 of each row was chosen by a forward call that the hooks did not see", None),
    "feeds another token": ("not chosen for it|not those that came out", "not those that came out, in 3 of 3 rows"),
    "drops a token": ("states of 11 tokens a row were seen where 10", "states of 11 tokens a row were seen where 10"),
    "drops a row": ("had 3 rows, but 2 came out", "had 3 rows, but 2 came out"),
    "ignores the cache": (
        "had read 1 tokens of each row after token 2, where 7 belong",
        "states of 5 tokens a row were seen where 11",
    ),
    "reads with another model": ("token 3 of each row was chosen by a forward call", "states of 10 tokens a row"),
}


@dataclass
class Planted:
    """A ``generate`` with one of ``FAULTS`` (None: none), at the third token; put it in the place of a model's own."""

    model: Any
    fault: str | None
    at: int = 3
    other: Any = None
    cache: Any = None  # of the latest call

    def __call__(
        self, input_ids: Any, attention_mask: Any = None, max_new_tokens: int = 6, stopping_criteria: Any = (),
        logits_processor: Any = (), **settings: Any,
    ) -> Any:  # fmt: skip
        with torch.no_grad():
            return self._run(input_ids, max_new_tokens, stopping_criteria or (), logits_processor or ())

    def _run(self, ids: Any, steps: int, criteria: Any, processors: Any) -> Any:
        cache, logits, fed = None, None, 0
        for step in range(1, steps + 1):
            due = step == self.at
            if self.fault == "feeds two tokens at once" and due:
                pass  # this token is chosen by the last logits, and fed with the next one
            elif self.fault == "skips a step" and due:
                fed += 1
            else:
                cache, logits = self._forward(ids, cache, fed, due)
                fed = ids.shape[1]
            if self.fault == "repeats a step" and due:
                _, logits = self._call(ids[:, -1:], cache)
            if self.fault == "reads everything again" and due:
                cache, logits = self._call(ids, None)
            if self.fault == "crops the cache" and due:
                cache.crop(-2)
                fed -= 2
            scores = logits[:, -1].float()
            for processor in processors:
                scores = processor(ids, scores)
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
            for criterion in criteria:
                criterion(ids, None)
            if self.fault == "reorders rows" and due:
                ids = ids.flip(0)
                cache.reorder_cache(torch.arange(len(ids)).flip(0))
        if self.fault == "reorders what comes out":
            return ids.flip(0)
        if self.fault == "drops a token":
            return ids[:, :-1]
        if self.fault == "drops a row":
            return ids[:-1]
        return ids

    def _forward(self, ids: Any, cache: Any, fed: int, due: bool) -> Any:
        new = ids[:, fed:]
        if self.fault == "feeds another token" and due:
            new = (new + 1) % 20
        if self.fault == "ignores the cache" and due:
            return self._call(new, None)
        if self.fault == "reads with another model" and due:
            out = self.other(ids, use_cache=False)
            return cache, out.logits
        return self._call(new, cache)

    def _call(self, new: Any, cache: Any) -> Any:
        named = {} if cache is None else {cache_name(type(self.model)): cache}
        out = self.model(new, use_cache=True, **named)
        self.cache = cache_of(out)
        return self.cache, out.logits
