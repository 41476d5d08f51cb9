"""Draw candidates with their rewards, in order, for frameworks that choose among samples themselves."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swift_rm.decoding.candidate_budget import CandidatePlan
from swift_rm.decoding.engine import Engine, PromptState
from swift_rm.decoding.rank_decoded import candidates_of, decode_text
from swift_rm.reward.identity import check_base_model
from swift_rm.sampling.generation import sampling_settings, seed_for
from swift_rm.scoring.score import score
from swift_rm.selection.candidates import Candidate
from swift_rm.tokens.stop_text import cut_at_stop_string

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel

_RUNNING = threading.Lock()  # torch's random state and the taps on a model are nobody's alone


class CandidateSampler:
    """Draw candidates, or score texts, one call at a time, whatever thread it comes from.

    The same calls in the same order draw the same; a prompt that is asked again is drawn anew. Raises ValueError for a
    reward model of another language model.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rm: SwiftRewardModel, *, seed: int = 0
    ) -> None:
        check_base_model(rm.config, model, tokenizer)
        self.model, self.tokenizer, self.rm, self.seed = model, tokenizer, rm, seed
        self._asked: Counter[int] = Counter()

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        counts: Sequence[int],
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 8,
        seed: int | None = None,
        **generation_kwargs: Any,
    ) -> list[list[Candidate]]:
        """Return ``counts[i]`` candidates of the token ids ``prompts[i]``, ``batch_size`` prompts at a time.

        Their texts end before the first of ``stop_strings``, which the reward has read too; a temperature of 0 is greedy
        decoding; ``seed`` is used instead of the sampler's own. Raises ValueError as :func:`swift_rm.best_of_n` for what cannot
        be answered, and passes Ctrl-C on.
        """
        if not prompts or len(prompts) != len(counts) or min(counts) < 1:
            raise ValueError(f"expected a count of at least 1 for each prompt, got {len(prompts)} prompts and {list(counts)}")
        if empty := [i for i, ids in enumerate(prompts) if not ids]:
            raise ValueError(f"prompt {empty[0]} is empty")
        if generation_kwargs.get("temperature") == 0:
            generation_kwargs = {**generation_kwargs, "temperature": None, "do_sample": False}
        given = {name: value for name, value in generation_kwargs.items() if value is not None}
        settings = sampling_settings(self.model, max(map(len, prompts)), max(counts), max_new_tokens, given)
        asked = [PromptState(ids, count) for ids, count in zip(prompts, counts, strict=True)]
        engine = Engine(self.model, self.tokenizer, self.rm, settings, CandidatePlan(max(counts), max(counts)), None)
        key = seed_for(self.seed if seed is None else seed, [list(ids) for ids in prompts])
        with _RUNNING:
            self._asked[key] += 1
            if not engine.answer(asked, seed_for(key, self._asked[key]), batch_size=batch_size):
                raise KeyboardInterrupt
        stops = given.get("stop_strings") or ()
        stops = (stops,) if isinstance(stops, str) else stops
        texts = [[cut_at_stop_string(decode_text(self.tokenizer, one), stops) for one in own.candidates] for own in asked]
        return [candidates_of(self.rm, own.candidates, said) for own, said in zip(asked, texts, strict=True)]

    def score(self, prompts: Sequence[Sequence[int]], texts: Sequence[str]) -> list[float]:
        """Return the rewards of texts by one pass, as :func:`swift_rm.score` does, which says what it raises."""
        with _RUNNING:
            return score(self.model, self.tokenizer, self.rm, list(prompts), list(texts))
