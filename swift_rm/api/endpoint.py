"""Ask a chat completions endpoint, again where that may help, until a reply can be read."""

from __future__ import annotations

import json
import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from swift_rm.api.client import open_client
from swift_rm.api.failures import ApiFailure, FatalError, RequestRefused, RetryableFault, error_words, fault_of
from swift_rm.api.keys import ApiKey, host_of, without_secrets
from swift_rm.api.retry_delay import LONGEST_RETRY_AFTER_S, LONGEST_WAIT_S, backoff
from swift_rm.api.usage import Usage
from swift_rm.files.time_limit import call_within

Value = TypeVar("Value")

RESERVED_FIELDS = ("model", "messages", "n", "seed", "logprobs", "top_logprobs", "temperature", "top_p", "max_tokens", "stream")
NEWER_LIMIT = "max_completion_tokens"  # which takes the place of max_tokens where both are not accepted
DATED = re.compile(r"[-:@.]?v?\d[\w.-]*")  # what may follow a model's name for the same model: a date or version
MOST_AT_ONCE = 1000  # requests, with two threads each
LONGEST_TIMEOUT_S = 1e6


class Endpoint:
    """The model called ``model`` at ``base_url`` (None: OpenAI's own), asked with the key in the variable ``key_env``.

    Each try may take ``timeout_s`` seconds. HTTP statuses 408, 409, 429 and from 500, replies that are late, cut, no JSON or
    no chat completion are tried again up to ``retries`` times, when the server's retry-after says, before which no other
    request is made either, or after a wait that doubles up to ``longest_wait_s``. The `openai` client's own retries are not
    used: they do not cover every fault, would multiply with those that do, are not counted, and cannot be ended.
    ``concurrency`` is how many requests may be under way at once, ``extra_body`` what else every request says. ``usage``
    counts.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        key_env: str = "OPENAI_API_KEY",
        timeout_s: float = 60.0,
        retries: int = 5,
        concurrency: int = 8,
        extra_body: Mapping[str, Any] | None = None,
        longest_wait_s: float = LONGEST_WAIT_S,
    ) -> None:
        if not 0 < timeout_s <= LONGEST_TIMEOUT_S or retries < 0 or not 1 <= concurrency <= MOST_AT_ONCE:
            raise ValueError(
                f"timeout_s must be positive seconds, at most {LONGEST_TIMEOUT_S:g}, retries not negative and concurrency at "
                f"least 1 and at most {MOST_AT_ONCE}, got {timeout_s}, {retries} and {concurrency}"
            )
        if not isinstance(model, str) or not model:
            raise ValueError(f"an endpoint is asked for a model by its name, got {model!r}")
        self.extra_body = dict(extra_body or {})
        if taken := sorted(set(RESERVED_FIELDS) & set(self.extra_body)):
            raise ValueError(f"extra_body cannot set {taken[0]!r}, which has an option of its own or is set here")
        self.key = ApiKey(key_env)
        try:
            said = json.dumps(self.extra_body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra_body cannot be written as JSON: {error}") from None
        for what, text in (("extra_body", said), ("the model's name", model)):
            if self.key.wholly_in(text):
                raise ValueError(f"{what} holds the key of {key_env}, which would be recorded")
        self._client = open_client(base_url, self.key, timeout_s, retries=0)
        self.model, self.where = model, without_secrets(str(self._client.base_url)).rstrip("/")
        self.timeout_s, self.retries, self.concurrency, self.longest_wait_s = timeout_s, retries, concurrency, longest_wait_s
        self.usage = Usage()
        self._not_before = 0.0  # of time.monotonic
        self._limit_name = NEWER_LIMIT if NEWER_LIMIT in self.extra_body else limit_name(str(self._client.base_url))
        self._models = {model}  # names under which the model that was asked for answers

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        request: Mapping[str, Any],
        read: Callable[[Any], Value],
        stopped: threading.Event | None = None,
    ) -> Value:
        """Return what ``read`` makes of the reply's JSON, for which it raises RetryableFault or RequestRefused.

        Raises ApiFailure after all retries, or at the next one once ``stopped`` is set, RequestRefused for a request that the
        server does not accept, FatalError for a wrong key or model (both ValueErrors): one sentence each, without the key or
        any header.
        """
        stopped = stopped or threading.Event()
        named = {self._limit_name if key == "max_tokens" else key: value for key, value in request.items()}
        whole = {"model": self.model, "messages": list(messages), **named, "extra_body": self.extra_body}
        reason = "it asked for a wait"
        for attempt in range(self.retries + 1):
            if stopped.wait(max(0.0, self._not_before - time.monotonic())):
                break
            self.usage.count_request(again=attempt > 0)
            try:
                body = self._reply(whole)
                self._check_model(body)
                return read(body)
            except RetryableFault as fault:
                reason, told_s = str(fault), fault.wait_s
            if told_s is not None and told_s <= LONGEST_RETRY_AFTER_S:
                self._not_before = max(self._not_before, time.monotonic() + told_s)
            wait_s = told_s or backoff(attempt, self.longest_wait_s)
            if wait_s > LONGEST_RETRY_AFTER_S or (attempt < self.retries and stopped.wait(wait_s)):
                break
        tries = f"after {attempt + 1} tries" if attempt else "at the first try"
        raise ApiFailure(f"{self.where} failed {tries}: {reason}")

    def _is_version(self, told: str) -> bool:
        return told.startswith(self.model) and DATED.fullmatch(told.removeprefix(self.model)) is not None

    def _reply(self, request: Mapping[str, Any]) -> Any:
        """Send a request once; return the JSON that comes."""
        create = self._client.chat.completions.with_raw_response.create
        body = self._json(lambda: create(**request).content)
        self.usage.count_reply(body)
        if isinstance(body, dict) and body.get("error") and not body.get("choices"):
            words = self.key.shown(error_words(body))
            raise RetryableFault("a reply with an error" + (f": {words!r}" if words else ""))
        return body

    def _json(self, call: Callable[[], bytes]) -> Any:
        """Return the JSON that a call brings in time; raise what its failure means."""
        outcome = call_within(self.timeout_s, call)
        if outcome is None:
            raise RetryableFault(f"no reply within {self.timeout_s:g} s")
        if outcome.error is not None:
            raise fault_of(outcome.error, self.where, self.model, self.key, self.timeout_s) from None
        try:
            return json.loads(outcome.value or b"")
        except (ValueError, RecursionError):
            raise RetryableFault("a reply that is not JSON") from None

    def _check_model(self, body: Any) -> None:
        """Raise FatalError if another model answered than the one asked for, which the server does not have.

        A name with a date or version behind it is taken for the same, and so is any other of a server that lists the name
        asked for: llama.cpp's answers whatever it is asked for with the one model that it has.
        """
        told = body.get("model") if isinstance(body, dict) else None
        if not isinstance(told, str) or told in self._models or self._is_version(told):
            return
        shown = self.key.shown(told)
        try:
            listed = self._json(lambda: self._client.models.with_raw_response.list().content)
        except (RetryableFault, RequestRefused, FatalError):
            listed = None
        found = listed.get("data") if isinstance(listed, dict) else None
        models = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
        if not models:
            warnings.warn(f"{self.where} answers as {shown!r} for {self.model!r}, and lists no models", stacklevel=2)
        elif not any(self.model == one.get("id") or self.model in _texts(one.get("aliases")) for one in models):
            raise FatalError(
                f"{self.where} has no model {self.model!r}: it answers with {shown!r}; name the one it has (--model)"
            )
        self._models.add(told)


def limit_name(address: str) -> str:
    """Return what chat completions at an address call the limit of new tokens: the newer name is not known everywhere."""
    return NEWER_LIMIT if host_of(address) == "api.openai.com" else "max_tokens"


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
