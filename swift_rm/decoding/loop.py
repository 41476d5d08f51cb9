"""The Best-of-N decoding loop: a prompt is read once, and rows leave the batch as soon as they finish or are hopeless."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.capture.running_reward import RunningRewards
from swift_rm.decoding.decoded_candidate import DecodedBatch, DecodedCandidate, Step
from swift_rm.decoding.decoding_limits import DecodingLimits
from swift_rm.models.kv_cache_rows import closed_up, keep_rows, refuse_cache, rows_like, take_rows
from swift_rm.models.transformers_internals import (
    bound_to_rows,
    cache_is_full,
    cache_of,
    limits_length,
    next_arguments,
    next_inputs,
    prefill,
    processors_of,
)
from swift_rm.selection.candidates import FinishReason

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


class PromptBatch:
    """Prompts that a model has read, once, and from which candidates can be decoded as often as one likes.

    Made inside ``model.generate``, which prepares logits processors, stopping criteria and cache; ``decode`` is its loop
    from there on. Raises ValueError for a cache whose rows cannot be repeated, and for settings that bind a row to its
    place. ``numbers`` are those by which a callback knows the prompts; 0, 1, ... if not told.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,  # [prompts, seq], padded on the left
        logits_processor: Callable[[Tensor, Tensor], Tensor],
        stopping_criteria: Sequence[Callable[..., Tensor]],
        generation_config: GenerationConfig,
        running: RunningRewards,
        model_kwargs: dict[str, Any],
        numbers: Sequence[int] | None = None,
    ) -> None:
        processors: list[object] = logits_processor if isinstance(logits_processor, list) else []
        for processor in processors:
            if bound_to_rows(processor):
                name = type(processor).__name__
                raise ValueError(f"{name} remembers which row is which, and rows leave the batch here: leave its setting out")
        self.model, self.running, self.ids = model, running, input_ids
        self.numbers = range(len(input_ids)) if numbers is None else numbers
        self.processors, self.criteria, self.do_sample = logits_processor, stopping_criteria, generation_config.do_sample
        ends = generation_config.eos_token_id
        running.ended_by([] if ends is None else torch.as_tensor(ends).reshape(-1).tolist())
        running.begin()
        with running.tap:
            outputs = prefill(model, input_ids, generation_config, model_kwargs)
        self.kwargs = next_arguments(model, outputs, model_kwargs)
        self.cache = cache_of(outputs)  # `generate` makes one also for a model that never fills it
        refuse_cache(self.cache)
        self.logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
        self.states, self.length = running.latest(), running.length

    def __len__(self) -> int:
        return len(self.ids)

    @torch.no_grad()
    def decode(
        self,
        prompts: Sequence[int],
        limits: DecodingLimits | None = None,
        on_step: Callable[[Callable[[], Step]], None] | None = None,
        first: int = 0,
    ) -> DecodedBatch:
        """Decode one candidate for each entry of ``prompts`` (places of prompts, repeated at will), in one batch.

        After each token ``on_step`` is called with a function that returns the :class:`Step`; candidates are numbered from
        ``first`` on. After Ctrl-C what had finished comes back.
        """
        rows = Rows(self, prompts, limits or DecodingLimits(), first)
        with self.running.tap:
            try:
                while rows.choose():
                    if on_step is not None:
                        on_step(rows.seen)
                    rows.forward()
            except KeyboardInterrupt:
                return DecodedBatch([rows.done[i] for i in sorted(rows.done)], rows.tokens, interrupted=True)
        return DecodedBatch([rows.done[i] for i in range(len(prompts))], rows.tokens)


class Rows:
    """The rows of one batch that are still decoded, and the candidates that have left it."""

    def __init__(self, source: PromptBatch, prompts: Sequence[int], limits: DecodingLimits, first: int = 0) -> None:
        self._source, self._running, self._limits, self._first = source, source.running, limits, first
        self._lengths = frozenset(limits.lengths.values())
        start = torch.tensor(list(prompts), dtype=torch.long, device=source.ids.device)
        self._ids = source.ids.index_select(0, start)  # [rows, seq]
        self._logits = source.logits.index_select(0, start)  # [rows, V]
        self._cache = take_rows(source.cache, start)
        self._kwargs = {name: rows_like(name, value, start, len(source)) for name, value in source.kwargs.items()}
        self._processors = processors_of(source.processors, start)
        self._running.resume(source.states, start, source.length)
        self._logprob = torch.zeros(len(start), device=start.device)  # [rows]: sum over tokens
        self._prompts = list(prompts)  # of each candidate
        self._rows = list(range(len(prompts)))  # the candidate of each row
        self._ended: dict[int, FinishReason] = {}  # candidates that leave when the state of their last token has been read
        self.done: dict[int, DecodedCandidate] = {}
        self.tokens = 0

    def choose(self) -> bool:
        """Choose the next token of every row, and let go of the rows that are done; False when none is left."""
        self._leave(self._ended)
        self._ended = {}
        if not self._rows:
            return False
        chosen, broken = self._sample()
        self._ids = torch.cat([self._ids, chosen[:, None]], dim=-1)
        self._running.count(chosen, ~broken)
        self.tokens += len(chosen)
        ended = self._find_ended(broken)
        if self._running.due is None:
            self._leave(ended)
        else:  # one step more, which reads the state of the last token
            self._ended = ended
        self._leave(self._find_cancelled())
        self._leave(self._find_dropped())
        return bool(self._rows)

    def forward(self) -> None:
        """Feed the chosen tokens to the model."""
        model = self._source.model
        # `generate` leaves no room for the step that reads the last tokens; elsewhere a cache is never full.
        full = len(self._ended) == len(self._rows) and cache_is_full(model, self._cache)
        inputs = next_inputs(model, self._ids, None if full else self._cache, self._kwargs)
        outputs = model(**inputs, return_dict=True)
        self._kwargs, after = next_arguments(model, outputs, self._kwargs), cache_of(outputs)
        self._cache = self._cache if after is None else after
        self._logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=self._ids.device)

    def seen(self) -> Step:
        """Return what a callback sees of this step."""
        tokens = self._ids[:, self._source.ids.shape[1] :].tolist()
        candidates = [self._first + candidate for candidate in self._rows]
        prompts = [self._source.numbers[self._prompts[candidate]] for candidate in self._rows]
        return Step(candidates, prompts, tokens, self._running.partial().tolist())

    def _sample(self) -> tuple[Tensor, Tensor]:
        """Return each row's token, drawn as `generate` draws it, and whether its distribution is broken: NaN or Inf."""
        total = self._logits.logsumexp(-1)
        scores = self._processors(self._ids, self._logits.clone())  # some write into what they are given
        if self._source.do_sample:
            probabilities = torch.softmax(scores, dim=-1)
            broken = probabilities[:, 0].isnan()  # one NaN makes a whole row of them
            if bool(broken.any()):
                probabilities = torch.where(broken[:, None], 1.0, probabilities)
            chosen = torch.multinomial(probabilities, num_samples=1).squeeze(1)
        else:
            chosen = scores.argmax(dim=-1)
            broken = ~scores.gather(-1, chosen[:, None]).squeeze(1).isfinite()
        self._logprob += self._logits.gather(-1, chosen[:, None]).squeeze(1) - total
        return chosen, broken

    def _find_ended(self, broken: Tensor) -> dict[int, FinishReason]:
        """Ask the stopping criteria, and tell an end of the response from an end of the room for it."""
        stop, length = torch.zeros_like(broken), torch.zeros_like(broken)
        for criterion in self._source.criteria:
            hits = criterion(self._ids, None)
            if limits_length(criterion):
                length = length | hits
            else:
                stop = stop | hits
        ended: dict[int, FinishReason] = {}
        told = torch.stack([broken, stop, length]).tolist()
        for candidate, is_broken, is_stop, is_length in zip(self._rows, *told, strict=True):
            if is_broken or is_stop or is_length:
                ended[candidate] = "not_finite" if is_broken else "stop" if is_stop else "length"
        if (length_now := self._ids.shape[1] - self._source.ids.shape[1]) in self._lengths:
            own = (one for one in self._rows if self._limits.lengths.get(self._prompts[one]) == length_now)
            ended = {**dict.fromkeys(own, "length"), **ended}
        return ended

    def _find_cancelled(self) -> dict[int, FinishReason]:
        """Return the candidates of cancelled prompts, whether their last token's state is read or not."""
        if self._limits.cancelled is None or not (gone := self._limits.cancelled()):
            return {}
        cancelled = [candidate for candidate in self._rows if self._prompts[candidate] in gone]
        self._ended = {candidate: reason for candidate, reason in self._ended.items() if candidate not in cancelled}
        return dict.fromkeys(cancelled, "cancelled")

    def _find_dropped(self) -> dict[int, FinishReason]:
        """Say which unfinished candidates are dropped now: all at the limit of tokens, else those that are pruned."""
        limits = self._limits
        unfinished = [candidate for candidate in self._rows if candidate not in self._ended]
        if limits.tokens is not None and self.tokens >= limits.tokens:
            return dict.fromkeys(unfinished, "budget")
        length = self._ids.shape[1] - self._source.ids.shape[1] - (self._running.due is not None)  # tokens scored so far
        if limits.prune is None or not unfinished or not limits.prune.checks(length):
            return {}
        partial = dict(zip(self._rows, self._running.partial().tolist(), strict=True))
        return limits.to_prune(length, unfinished, partial, self._prompts, self._ended, self.done.values())

    def _leave(self, reasons: Mapping[int, FinishReason]) -> None:
        """Let these candidates go, as finished for the reason told; the other rows close up."""
        if not reasons:
            return
        self._running.verify()
        rewards, partial = self._running.rewards().tolist(), self._running.partial().tolist()
        flags, width = self._running.flags(), self._source.ids.shape[1]
        tokens, logprobs = self._ids[:, width:].tolist(), self._logprob.tolist()
        for row, candidate in enumerate(self._rows):
            if candidate not in reasons:
                continue
            reason, flag, reward = reasons[candidate], flags[row], rewards[row]
            # A candidate that is dropped at once may have no token that is scored yet: that is no fault of its states.
            if reason == "not_finite" or not (math.isfinite(reward) or reason in ("budget", "cancelled")):
                nothing_read = flag == "region_empty" and reason != "not_finite"  # it said its end token, which is not read
                reason, flag = "not_finite", flag if nothing_read else "not_finite"
                reward = partial[row] = math.nan
            self.done[candidate] = DecodedCandidate(
                self._prompts[candidate], tokens[row], reward, logprobs[row] / len(tokens[row]), reason, flag, partial[row]
            )
            if self._limits.on_done is not None:
                self._limits.on_done(self._first + candidate, self.done[candidate])
        staying = closed_up([candidate not in reasons for candidate in self._rows])
        rows = torch.tensor(staying, dtype=torch.long, device=self._ids.device)
        count = len(self._rows)
        self._rows = [self._rows[row] for row in staying]
        self._ids, self._logits, self._logprob = (x.index_select(0, rows) for x in (self._ids, self._logits, self._logprob))
        self._kwargs = {name: rows_like(name, value, rows, count) for name, value in self._kwargs.items()}
        self._processors = processors_of(self._processors, rows)
        self._running.select(rows)
        if staying:
            keep_rows(self._cache, rows)
