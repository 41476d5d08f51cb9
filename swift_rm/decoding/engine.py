"""Answer many prompts: in batches and waves, retried when memory runs out, interrupted by Ctrl-C, with the tokens spent."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from swift_rm.capture.running_reward import RunningRewards
from swift_rm.decoding.candidate_budget import CandidatePlan, QuestionProgress
from swift_rm.decoding.decoded_candidate import DecodedBatch, DecodedCandidate, Step
from swift_rm.decoding.decoding_limits import DecodingLimits
from swift_rm.decoding.loop import PromptBatch
from swift_rm.decoding.pruning import Prune
from swift_rm.models.eval_mode import in_eval_mode
from swift_rm.models.generation_config import setting
from swift_rm.sampling.generation import NEUTRAL, left_padded
from swift_rm.selection.candidates import Ended
from swift_rm.tokens.stop_text import StopText

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel

Item = TypeVar("Item")
Out = TypeVar("Out")
StepCallback = Callable[[Callable[[], Step]], None]
CandidateDone = Callable[[int, int, DecodedCandidate], None]


class OutOfMemory(RuntimeError):
    """There is not enough memory, not even for half of the rows."""


@dataclass
class PromptState:
    """One prompt: its candidates so far, the tokens spent on it, and why it gets no more.

    ``n`` and ``max_new_tokens`` are its own, if not those of the plan and of the settings, which must be no smaller. Another
    thread may set ``cancelled``: at the next token its rows leave the batch.
    """

    prompt_ids: Sequence[int]
    n: int | None = None
    max_new_tokens: int | None = None
    cancelled: bool = False
    candidates: list[DecodedCandidate] = field(default_factory=list)
    tokens: int = 0
    started: int = 0
    ended: Ended | None = None

    def whole(self) -> list[float]:
        """Return what pruning goes by of the candidates that came to their end."""
        return [candidate.partial for candidate in self.candidates if candidate.complete]


@dataclass(frozen=True)
class Engine:
    """What answers prompts: the models, how tokens are drawn, how candidates are pruned and handed out.

    ``processors`` makes logits processors that must know the width to which the prompts of a batch are padded.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rm: SwiftRewardModel
    settings: Mapping[str, Any]
    plan: CandidatePlan
    prune: Prune | None
    processors: Callable[[int], Sequence[Any]] | None = None

    def answer(
        self,
        asked: Sequence[PromptState],
        seed: int,
        on_step: StepCallback | None = None,
        batch_size: int = 8,
        on_done: CandidateDone | None = None,
    ) -> bool:
        """Decode the candidates of these prompts, ``batch_size`` at a time; False after Ctrl-C, with what had finished kept.

        Memory that runs out is tried again, once, with half of the rows, and said aloud; raises OutOfMemory, a RuntimeError,
        if that does not help. ``on_step`` is called after each token with a function that returns the :class:`Step`.
        ``on_done(place, number, candidate)`` is called when a candidate finishes or is dropped: the prompt's place in
        ``asked``, the candidate's number in its batch, as a step has it, and what was decoded; twice where memory ran out.
        """
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), in_eval_mode(self.model):
                torch.manual_seed(seed)
                numbered = list(enumerate(asked))
                parts = [numbered[start : start + batch_size] for start in range(0, len(asked), batch_size)]
                batches = [batch for part in parts for batch in _halved(self._read, part, "prompts")]
                done = self._waves(asked, batches, on_step, on_done)
        except KeyboardInterrupt:
            done = False
        for one in asked:
            one.ended = one.ended or ("all" if done else "interrupted")
        return done

    def _waves(
        self,
        asked: Sequence[PromptState],
        batches: Sequence[PromptBatch],
        on_step: StepCallback | None,
        on_done: CandidateDone | None,
    ) -> bool:
        while True:
            counts, ended = self.plan.next_wave([self._sampled(one) for one in asked])
            for one, reason in zip(asked, ended, strict=True):
                one.ended = reason
            if not any(counts):
                return True
            capped = self.plan.budget is not None and any(one.started for one in asked)  # every question gets one wave
            for batch in batches:
                own = [asked[number] for number in batch.numbers]
                wanted = [0 if one.cancelled else counts[number] for number, one in zip(batch.numbers, own, strict=True)]
                rows = [place for place, count in enumerate(wanted) for _ in range(count)]
                tokens = (self.plan.budget or 0) - sum(one.tokens for one in asked) if capped else None
                if not rows or (tokens is not None and tokens < 1):
                    continue
                if not self._decode(batch, rows, own, self._limits(batch, own, tokens, on_done), on_step):
                    return False

    def _limits(
        self, batch: PromptBatch, asked: Sequence[PromptState], tokens: int | None, on_done: CandidateDone | None
    ) -> DecodingLimits:
        """Return what may end the candidates of a batch, whose prompts are ``asked``, early."""
        places = range(len(asked))
        return DecodingLimits(
            self.prune, {place: asked[place].whole() for place in places}, tokens,
            {place: limit for place in places if (limit := asked[place].max_new_tokens) is not None},
            lambda: [place for place in places if asked[place].cancelled],
            None if on_done is None else lambda number, one: on_done(batch.numbers[one.prompt], number, one),
        )  # fmt: skip

    def _decode(
        self,
        batch: PromptBatch,
        rows: list[int],
        asked: Sequence[PromptState],
        limits: DecodingLimits,
        on_step: StepCallback | None,
    ) -> bool:
        """Decode one candidate per row of ``rows`` (places in the batch, which are ``asked``); False after Ctrl-C."""

        def decode(part: Sequence[tuple[int, int]]) -> list[tuple[list[int], DecodedBatch]]:
            places = [place for _, place in part]
            return [(places, batch.decode(places, limits, on_step, part[0][0]))]

        for part, decoding in _halved(decode, list(enumerate(rows)), "candidates"):
            for candidate in decoding.candidates:
                asked[candidate.prompt].candidates.append(candidate)
                asked[candidate.prompt].tokens += len(candidate.token_ids)
            for place in part:
                asked[place].started += 1
            if decoding.interrupted:
                return False
        return True

    def _sampled(self, one: PromptState) -> QuestionProgress:
        rewards = [c.reward for c in one.candidates if c.complete]
        return QuestionProgress(self.rm.probability(rewards).tolist(), one.started, one.tokens, one.n, one.cancelled)

    def _read(self, part: Sequence[tuple[int, PromptState]]) -> list[PromptBatch]:
        """Let the model read some prompts, prepared as `generate` prepares them."""
        guide = self.prune.guide if self.prune is not None else None
        running = RunningRewards(self.model, self.rm, self.tokenizer, guide=guide)
        ids, mask, pad = left_padded(self.tokenizer, [one.prompt_ids for _, one in part], self.model.device)
        made: list[PromptBatch] = []

        def loop(model: PreTrainedModel, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
                 **model_kwargs: Any) -> Any:  # fmt: skip
            made.append(
                PromptBatch(
                    model, input_ids, logits_processor, stopping_criteria, generation_config, running, model_kwargs,
                    [number for number, _ in part],
                )
            )  # fmt: skip
            return input_ids

        settings = {**self.settings, "stop_strings": None}  # with a loop of one's own, `generate` has no tokenizer for them
        strings = setting(self.model, self.settings, "stop_strings")
        if strings:
            stop = StopText(self.tokenizer, strings, ids.shape[1])
            settings["stopping_criteria"] = [*(settings.get("stopping_criteria") or []), stop]
        if self.processors is not None:
            settings["logits_processor"] = [*(settings.get("logits_processor") or []), *self.processors(ids.shape[1])]
        self.model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, custom_generate=loop, pad_token_id=pad, num_return_sequences=1,
            **{**NEUTRAL, **settings},
        )  # fmt: skip
        return made


def _halved(run: Callable[[Sequence[Item]], list[Out]], items: Sequence[Item], what: str) -> Iterator[Out]:
    """Run on all items, or, if memory runs out, on the first half and then on the second, but no less than that."""
    try:
        yield from run(items)
        return
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        if len(items) < 2:
            raise OutOfMemory(_too_much(1, what)) from error
    warnings.warn(f"out of memory with {len(items)} {what} at once: trying again with half of them", stacklevel=2)
    middle = (len(items) + 1) // 2
    for half in (items[:middle], items[middle:]):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            yield from run(half)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            raise OutOfMemory(_too_much(len(half), what)) from error


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _too_much(count: int, what: str) -> str:
    return (
        f"out of memory with {count} {what} at once, after one retry with half as many: "
        "ask for a smaller batch_size, n or max_new_tokens"
    )
