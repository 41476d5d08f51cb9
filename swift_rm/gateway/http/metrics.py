"""What a Prometheus server reads: requests, candidates, tokens, batches, and how sure the chosen candidates were."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from swift_rm.gateway.request.backend import PromptResult

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CHANCES = tuple(tenth / 10 for tenth in range(1, 11))
GONE = 499  # the status, of nginx's making, of a request whose client left


class Metrics:
    """The counts of one server, in a registry of its own; every method may be called from any thread."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        labels = ("route", "status", "rule")
        self._requests = Counter("swift_rm_requests", "requests answered", labels, registry=own)
        self._seconds = Histogram(
            "swift_rm_request_seconds", "time until the reply was complete", ("route",), buckets=SECONDS, registry=own
        )
        self._in_progress = Gauge("swift_rm_requests_in_progress", "requests under way", registry=own)
        self._candidates = Counter("swift_rm_candidates", "candidates drawn", registry=own)
        self._tokens = Counter("swift_rm_tokens", "tokens of prompts and of candidates", ("kind",), registry=own)
        self._rejected = Counter("swift_rm_rejected", "requests that found the server full", registry=own)
        self._abstained = Counter("swift_rm_abstained", "answers withheld: no candidate was good enough", registry=own)
        self._cancelled = Counter("swift_rm_cancelled", "requests whose client left", registry=own)
        self._probability = Histogram(
            "swift_rm_probability", "chosen candidates' probability of being right", buckets=CHANCES, registry=own
        )
        self._rows = Histogram("swift_rm_batch_rows", "candidates in a batch", buckets=COUNTS, registry=own)
        self._sharing = Histogram("swift_rm_batch_requests", "requests that share a batch", buckets=COUNTS, registry=own)
        self._batch_seconds = Histogram("swift_rm_batch_seconds", "time of a batch", buckets=SECONDS, registry=own)
        self._reloads = Counter("swift_rm_reward_model_reloads", "loads of a new reward model", ("ok",), registry=own)

    def began(self) -> None:
        """Count a request as under way."""
        self._in_progress.inc()

    def ended(self, route: str, status: int, rule: str, seconds: float) -> None:
        """Count a request that is over; ``route`` is a template and ``rule`` a name of ours, "plain" or empty."""
        self._in_progress.dec()
        self._requests.labels(route, str(status), rule).inc()
        self._seconds.labels(route).observe(seconds)
        if status == GONE:
            self._cancelled.inc()

    def rejected(self) -> None:
        """Count a request that found the server full."""
        self._rejected.inc()

    def answered(self, answers: Sequence[PromptResult], abstained: int) -> None:
        """Count what was drawn for a request, and what it was told."""
        self._candidates.inc(sum(answer.drawn for answer in answers))
        self.spent(sum(one.prompt_tokens for one in answers), sum(one.completion_tokens for one in answers))
        self._abstained.inc(abstained)
        for answer in answers:
            if not math.isnan(chance := answer.candidates[0].probability):
                self._probability.observe(chance)

    def spent(self, prompt: int, completion: int) -> None:
        """Count tokens."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    def batch(self, rows: int, requests: int, seconds: float) -> None:
        """Count a batch of ``rows`` candidates, for that many requests."""
        self._rows.observe(rows)
        self._sharing.observe(requests)
        self._batch_seconds.observe(seconds)

    def reloaded(self, ok: bool) -> None:
        """Count a reload of the reward model."""
        self._reloads.labels("true" if ok else "false").inc()

    def text(self) -> bytes:
        """Return everything in Prometheus's text format, of type ``content_type``."""
        return generate_latest(self.registry)
