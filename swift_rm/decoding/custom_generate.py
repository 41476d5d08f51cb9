"""BestOfNDecoding: Best-of-N as one argument of transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from swift_rm.capture.running_reward import RunningRewards
from swift_rm.decoding.decoded_candidate import DecodedCandidate
from swift_rm.decoding.decoding_limits import DecodingLimits
from swift_rm.decoding.loop import PromptBatch
from swift_rm.decoding.pruning import Prune, get_prune
from swift_rm.decoding.rank_decoded import decode_text
from swift_rm.models.generation_config import refuse_other_decoding
from swift_rm.models.kv_cache_rows import rows_like
from swift_rm.models.transformers_internals import pads_with, processors_of
from swift_rm.reward.identity import check_base_model
from swift_rm.selection.candidates import why_no_reward
from swift_rm.selection.rule_table import EXTERNAL_RULES
from swift_rm.selection.rules import select as choose
from swift_rm.tasks.answers import find_answer

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel


@dataclass
class BestOfNOutput(ModelOutput):
    """What `generate` returns with ``return_dict_in_generate=True``.

    ``sequences [prompts * k, seq]``: prompt and response of the k best candidates of each prompt (k is
    ``num_return_sequences``), best first, padded on the right; ``rewards [prompts * k]`` theirs; ``candidates`` all of
    them, prompt by prompt: the chosen one, then the others in the order of their rewards.
    """

    sequences: Tensor | None = None
    rewards: Tensor | None = None
    candidates: list[list[DecodedCandidate]] | None = None


class BestOfNDecoding:
    """Return the best of ``n`` responses from ``model.generate(**inputs, do_sample=True, custom_generate=BestOfNDecoding(rm))``.

    Everything else that `generate` is told applies: sampling settings, logits processors, stopping criteria, lengths.
    Since rows leave the batch, your own processors and criteria must go by a row's tokens, never by its number. With
    ``num_return_sequences=k`` the k best come back: the one that the rule ``select`` chooses, then by reward. Every rule
    of :mod:`swift_rm.selection.rules` but "best" elects an ``answer(text)`` and so needs the tokenizer. ``prune`` is a rule of
    :mod:`swift_rm.decoding.pruning` or its name. The tokenizer is needed for a region with a marker, too. After a call,
    ``candidates`` holds all of its candidates. `generate` hands ``stop_strings`` and streamers to its own loops only.

    Raises ValueError for another base model, n < 1, a rule that it cannot follow, beam search, greedy decoding of n > 1,
    and caches whose rows cannot be repeated.
    """

    def __init__(
        self,
        rm: SwiftRewardModel,
        n: int = 16,
        *,
        select: str = "best",
        answer: Callable[[str], str | None] = find_answer,
        prune: Prune | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if select in EXTERNAL_RULES:
            raise ValueError(f"select={select!r} fuses with an external reward, which best_of_n takes and this does not")
        choose(select, [0.0], [None])  # an unknown rule is refused before anything is sampled
        if select != "best" and tokenizer is None:
            raise ValueError(f"select={select!r} reads the candidates' answers, for which the tokenizer is needed")
        self.select, self.answer = select, answer
        self.rm, self.n, self.prune, self.tokenizer = rm, n, get_prune(prune, rm), tokenizer
        self.candidates: list[list[DecodedCandidate]] = []

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Callable[[Tensor, Tensor], Tensor],
        stopping_criteria: Sequence[Callable[..., Tensor]],
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor | BestOfNOutput:
        """Run the loop with what `generate` prepared; `generate` calls this."""
        check_base_model(self.rm.config, model, self.tokenizer)
        wanted = generation_config.num_return_sequences or 1
        refuse_other_decoding(model, {"generation_config": generation_config})
        if not generation_config.do_sample and self.n > 1:
            raise ValueError(f"greedy decoding gives {self.n} equal responses: pass do_sample=True, or n=1")
        if wanted > self.n:
            raise ValueError(f"num_return_sequences={wanted} of n={self.n} candidates cannot be returned")
        running = RunningRewards(model, self.rm, self.tokenizer, guide=self.prune.guide if self.prune else None)
        if wanted > 1:  # `generate` repeated each prompt so many times
            expanded = len(input_ids)
            firsts = torch.arange(0, expanded, wanted, device=input_ids.device)
            input_ids, logits_processor = input_ids[firsts], processors_of(logits_processor, firsts)
            model_kwargs = {name: rows_like(name, value, firsts, expanded) for name, value in model_kwargs.items()}
        batch = PromptBatch(model, input_ids, logits_processor, stopping_criteria, generation_config, running, model_kwargs)
        decoding = batch.decode([prompt for prompt in range(len(batch)) for _ in range(self.n)], DecodingLimits(prune=self.prune))
        self.candidates = [[] for _ in range(len(batch))]
        for candidate in sorted(decoding.candidates, key=_order):
            self.candidates[candidate.prompt].append(candidate)
        if decoding.interrupted:  # what had finished is in `candidates`
            raise KeyboardInterrupt
        for prompt, group in enumerate(self.candidates):
            if not group[0].complete:
                why = why_no_reward([one.flag for one in group])
                raise ValueError(f"none of the {self.n} candidates of prompt {prompt} has a reward: {why}")
            if self.select != "best" and self.tokenizer is not None:
                texts = [decode_text(self.tokenizer, one) for one in group if one.complete]  # which come first
                answers = [self.answer(text) for text in texts]
                choice = choose(self.select, [one.reward for one in group[: len(texts)]], answers)
                group.insert(0, group.pop(choice.index))
        chosen = [candidate for group in self.candidates for candidate in group[:wanted]]
        sequences = _sequences(batch.ids, chosen, generation_config)
        if not generation_config.return_dict_in_generate:
            return sequences
        rewards = torch.tensor([candidate.reward for candidate in chosen], device=sequences.device)
        return BestOfNOutput(sequences=sequences, rewards=rewards, candidates=self.candidates)


def _order(candidate: DecodedCandidate) -> tuple[bool, bool, float]:
    """Sort whole responses first, then those cut short, then those without a reward, each by reward."""
    broken = candidate.reward != candidate.reward
    return broken, not candidate.complete, 0.0 if broken else -candidate.reward


def _sequences(prompts: Tensor, chosen: Sequence[DecodedCandidate], config: GenerationConfig) -> Tensor:
    width = max(len(candidate.token_ids) for candidate in chosen)
    out = torch.full((len(chosen), prompts.shape[1] + width), pads_with(config), device=prompts.device)
    for row, candidate in enumerate(chosen):
        out[row, : prompts.shape[1]] = prompts[candidate.prompt]
        end = prompts.shape[1] + len(candidate.token_ids)
        out[row, prompts.shape[1] : end] = torch.tensor(candidate.token_ids)
    return out
