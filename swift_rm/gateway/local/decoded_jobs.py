"""One batch of jobs in the engine: each is answered as soon as the last of its candidates has left the batch."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from swift_rm.decoding.candidate_budget import CandidatePlan
from swift_rm.decoding.decoded_candidate import DecodedCandidate, Step
from swift_rm.decoding.engine import Engine, PromptState
from swift_rm.decoding.rank_decoded import candidates_of, decode_text, result_of
from swift_rm.gateway.local.batching import Job
from swift_rm.gateway.local.incremental_detokenizer import IncrementalDetokenizer, unsettled_tokens
from swift_rm.gateway.request.backend import Delta, PromptResult
from swift_rm.gateway.request.errors import GatewayError
from swift_rm.report.token_view_data import view_candidate
from swift_rm.sampling.generation import sampling_settings
from swift_rm.scoring.token_scoring import read_tokens
from swift_rm.selection.candidates import Candidate, why_no_reward
from swift_rm.tokens.encoding import encode
from swift_rm.tokens.stop_text import cut_at_stop_string

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.report.token_view_data import CandidateView
    from swift_rm.reward.reward_model import SwiftRewardModel


def decode_jobs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rm: SwiftRewardModel, jobs: Sequence[Job]) -> None:
    """Decode jobs with equal sampling in one batch and set their futures; one that is cancelled gets nothing."""
    n, tokens = max(job.rows for job in jobs), max(job.asked.max_new_tokens or 1 for job in jobs)
    settings = sampling_settings(model, 0, n, tokens, jobs[0].sampling.settings())
    running = _Running(tokenizer, rm, jobs)
    live = running.on_step if any(job.on_delta is not None for job in jobs) else None
    seed = secrets.randbits(56) if jobs[0].seed is None else jobs[0].seed
    asked = [job.asked for job in jobs]
    Engine(model, tokenizer, rm, settings, CandidatePlan(n, n), None).answer(asked, seed, live, len(jobs), running.on_done)
    for job, answer in running.unseen:
        if not job.asked.cancelled:
            job.finish(replace(answer, views=_views(model, tokenizer, rm, job, answer.candidates)))


class _Running:
    """The jobs of a batch while it runs: what has left it, and the text of those that stream.

    A candidate's index among its job's is by when it was first seen. Where memory runs out, the batch begins anew, with fewer
    rows: what had left stays, and a job that had streamed a part of its text fails, since it would go on in another way.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rm: SwiftRewardModel, jobs: Sequence[Job]) -> None:
        self._tokenizer, self._rm, self._jobs = tokenizer, rm, jobs
        self._done: list[dict[int, DecodedCandidate]] = [{} for _ in jobs]
        self._live: list[dict[int, _Row]] = [{} for _ in jobs]
        self._open_ends = unsettled_tokens(tokenizer) if any(job.on_delta is not None for job in jobs) else frozenset[int]()
        self.unseen: list[tuple[Job, PromptResult]] = []  # answers that still lack the view of their tokens

    def on_step(self, look: Callable[[], Step]) -> None:
        """Pass on the new text of jobs that stream."""
        step = look()
        for number, candidate, ids in zip(step.prompts, step.candidates, step.token_ids, strict=True):
            job = self._jobs[number]
            if job.on_delta is None or job.asked.cancelled or candidate in self._done[number]:
                continue
            row = self._row(number, candidate, ids)
            if row is not None and (text := row.text.push(ids)):
                job.on_delta(Delta(row.index, text, prompt_tokens=len(job.asked.prompt_ids)))

    def on_done(self, number: int, candidate: int, decoded: DecodedCandidate) -> None:
        """Take in a candidate that has left the batch, and answer its job if it was the last."""
        job, done = self._jobs[number], self._done[number]
        if job.asked.cancelled or candidate in done:
            return
        done[candidate] = decoded
        if job.on_delta is not None and (row := self._row(number, candidate, decoded.token_ids)) is not None:
            self._tell_end(job, row, decoded)
        if len(done) == job.rows and not job.asked.cancelled:
            self._answer(job, [done[one] for one in sorted(done)])

    def _row(self, number: int, candidate: int, ids: list[int]) -> _Row | None:
        """Return a candidate's row, with its tokens of now; None, and its job fails, if others than these have been streamed."""
        rows, job = self._live[number], self._jobs[number]
        if candidate not in rows:
            rows[candidate] = _Row(
                job.first_index + len(rows), IncrementalDetokenizer(self._tokenizer, job.sampling.stop, self._open_ends)
            )
        row = rows[candidate]
        if ids[: len(row.ids)] != row.ids:
            job.fail(GatewayError(429, "the server ran out of memory while it answered: try again"))
            return None
        row.ids = ids
        return row

    def _tell_end(self, job: Job, row: _Row, decoded: DecodedCandidate) -> None:
        text = self._text(job, decoded)
        (candidate,) = candidates_of(self._rm, [decoded], [text])
        if (end := _as_drawn([candidate])) and job.on_delta is not None:
            job.on_delta(Delta(row.index, row.text.finish(text), end[0], len(job.asked.prompt_ids)))
        else:
            job.fail(_no_reward([decoded]))

    def _answer(self, job: Job, decoded: Sequence[DecodedCandidate]) -> None:
        texts = [self._text(job, one) for one in decoded]
        tokens = sum(len(one.token_ids) for one in decoded)
        chosen = self._chosen(job, decoded, texts, tokens)
        answer = PromptResult(len(job.asked.prompt_ids), tokens, len(decoded), chosen)
        if not chosen:
            job.fail(_no_reward(decoded))
        elif job.views:
            self.unseen.append((job, answer))
        else:
            job.finish(answer)

    def _chosen(self, job: Job, decoded: Sequence[DecodedCandidate], texts: Sequence[str], tokens: int) -> list[Candidate]:
        """Return the candidates that may be returned, in their order; none where that would be less than was asked for."""
        if job.rule is None or not any(one.complete for one in decoded):
            whole = _as_drawn(candidates_of(self._rm, decoded, texts))
            return whole if job.rule is not None or len(whole) == len(decoded) else []
        asked = PromptState(job.asked.prompt_ids, candidates=list(decoded), tokens=tokens, started=len(decoded), ended="all")
        result = result_of(self._rm, None, asked, texts, len(decoded), job.rule)
        return [result.best, *(one for one in result.candidates if one.complete and one is not result.best)]

    def _text(self, job: Job, decoded: DecodedCandidate) -> str:
        return cut_at_stop_string(decode_text(self._tokenizer, decoded), job.sampling.stop)


class _Row:
    """One candidate whose text streams: its index among the choices of the request, its tokens so far, its text."""

    def __init__(self, index: int, text: IncrementalDetokenizer) -> None:
        self.index, self.text, self.ids = index, text, list[int]()


def _as_drawn(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that have come to an end, be it an empty response, in which a reward model found nothing to read."""
    ended = [replace(one, finish_reason="stop") if one.flag == "region_empty" and not one.complete else one for one in candidates]
    return [one for one in ended if one.complete]


def _no_reward(decoded: Sequence[DecodedCandidate]) -> GatewayError:
    return GatewayError(
        500,
        f"the model here failed: none of {len(decoded)} candidates has a reward, {why_no_reward([one.flag for one in decoded])}",
    )


def _views(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rm: SwiftRewardModel,
    job: Job,
    candidates: Sequence[Candidate],
) -> list[CandidateView]:
    """Read candidates once more, for the gate and reward of each token."""
    prompt, responses = job.asked.prompt_ids, [one.token_ids for one in candidates]
    encoded = encode(model, tokenizer, [prompt] * len(responses), responses, rm.config.region)
    records: list[Mapping[str, str | None]] = [{"answer": one.answer, "finish_reason": one.finish_reason} for one in candidates]
    return [
        view_candidate(tokenizer, prompt, scored, one.probability, record)
        for one, scored, record in zip(candidates, read_tokens(model, rm, encoded), records, strict=True)
    ]
