"""The interface of a backend, which answers the gateway's requests: a model here, or a server elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.selection.candidates import Candidate, Ended

if TYPE_CHECKING:
    from swift_rm.report.token_view_data import CandidateView


@dataclass(frozen=True)
class PromptResult:
    """One prompt's candidates in the order in which they are returned: the chosen one first; all are complete.

    ``drawn`` of them were sampled, for ``completion_tokens``; without a reward model rewards are NaN. ``views`` are the same
    candidates as a page shows them, if that was asked for.
    """

    prompt_tokens: int
    completion_tokens: int
    drawn: int
    candidates: Sequence[Candidate]
    ended: Ended = "all"
    views: Sequence[CandidateView] = field(default=())


@dataclass(frozen=True)
class Delta:
    """A piece of a plain response while it is generated: more ``text`` of choice ``index``, and at its end the candidate."""

    index: int
    text: str
    candidate: Candidate | None = None
    prompt_tokens: int = 0


@dataclass(frozen=True)
class ForwardedReply:
    """What an upstream replied to a request that passes through: status, type, and the body as it comes.

    A body that streams holds the upstream's connection: who reads it calls its ``aclose`` at the end, whatever the end.
    ``headers`` are those that pass on beside the type.
    """

    status: int
    content_type: str
    body: AsyncGenerator[bytes, None] | bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Backend(Protocol):
    """Answers requests. Cancelling a call ends the work for it; failures are GatewayErrors.

    ``forwards`` tells whether requests for the plain model pass through as they are (``forward``) or are answered and streamed
    here (``answer``, ``live``); ``rewards`` whether there is a reward model.
    """

    @property
    def name(self) -> str:
        """The plain model's name in the API."""

    @property
    def forwards(self) -> bool:
        """Whether requests for the plain model pass through."""

    @property
    def rewards(self) -> bool:
        """Whether there is a reward model."""

    def start(self) -> None:
        """Load or look up what is needed, which may take minutes; raise ValueError, OSError, ImportError or RuntimeError."""

    def reload(self) -> str:
        """Load the reward model anew, for requests that come from now on; return its name, raise as ``start`` does."""

    async def close(self) -> None:
        """End what is under way."""

    async def health(self) -> str | None:
        """Return why nothing can be answered now, None if it can."""

    def ignored(self, request: CompletionRequest) -> list[str]:
        """Return the names of a request's fields about which nothing is done."""

    async def answer(self, request: CompletionRequest, views: bool = False) -> list[PromptResult]:
        """Answer each prompt of a request."""

    def live(self, request: CompletionRequest) -> AsyncIterator[Delta]:
        """Yield the pieces of a plain request's responses as they are generated."""

    async def forward(self, path: str, body: bytes, stream: bool) -> ForwardedReply:
        """Pass a request for the plain model on, as it is; ``path`` is "chat/completions" or "completions"."""
