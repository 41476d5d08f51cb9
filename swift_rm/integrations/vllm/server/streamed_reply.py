"""Pass a streamed reply of vLLM's server on as it comes, with one more chunk, before its end, that holds the rewards."""

from __future__ import annotations

from typing import Any

from swift_rm.integrations.vllm.server.reward_request import RewardRequest
from swift_rm.integrations.vllm.server.whole_reply import IDS, PROMPT_IDS, FetchRewards, as_json, hide_ids, read_json
from swift_rm.integrations.vllm.worker.sample import FINISH_REASONS, Sample

DATA, DONE, END = b"data: ", b"[DONE]", b"\n\n"
HEAD = ("id", "object", "created", "model")


class StreamedReply:
    """Take a reply's bytes as they come, and return those that the client gets."""

    def __init__(self, request: RewardRequest, rewards: FetchRewards) -> None:
        self._request, self._rewards, self._rest = request, rewards, b""
        self._head: dict[str, Any] = {}
        self._ids: dict[int, list[int]] = {}  # of each choice
        self._prompts: dict[int, list[int]] = {}
        self._ended: dict[int, str] = {}
        self._told = not request.rewarded

    async def feed(self, data: bytes, more: bool = True) -> bytes:
        """Return what is to be passed on of ``data``: whole events, and at the end what is left."""
        *events, self._rest = (self._rest + data).split(END)
        passed = [event + END for part in events if (event := await self._event(part))]
        return b"".join(passed) + (b"" if more else self._rest)

    async def _event(self, event: bytes) -> bytes:
        if event == DATA + DONE:
            return await self._chunk() + event
        chunk = read_json(event[len(DATA) :]) if event.startswith(DATA) else None
        if not isinstance(chunk, dict) or "choices" not in chunk:
            self._told |= chunk is not None  # an error: nothing that came before has an end
            return event
        chunk["id"] = self._request.public_id
        before = b""
        if self._request.rewarded:
            self._head = {key: chunk[key] for key in HEAD if key in chunk}
            for choice in chunk["choices"]:
                self._take(chunk, choice)
            before = b"" if chunk["choices"] else await self._chunk()  # what was used comes last
            if not self._request.wants_ids:
                if _for_ids_alone(chunk):
                    return b""
                hide_ids(chunk)
        return before + DATA + as_json(chunk)

    def _take(self, chunk: dict[str, Any], choice: dict[str, Any]) -> None:
        index = choice["index"]
        self._ids.setdefault(index, []).extend(choice.get(IDS) or ())
        if (prompt := (chunk if self._request.chat else choice).get(PROMPT_IDS)) is not None:
            self._prompts[0 if self._request.chat else index] = prompt
        if (reason := choice.get("finish_reason")) is not None:
            self._ended[index] = reason

    async def _chunk(self) -> bytes:
        """Return the chunk with the rewards, if it is due: when the first event comes that is not of a choice."""
        if self._told or not self._ended:
            return b""
        self._told, ended = True, sorted(self._ended)
        names = self._request.names(ended[-1] + 1)
        samples = [
            Sample(names[index], place, self._ids[index], finish_reason=FINISH_REASONS.get(self._ended[index]))
            for place, index in enumerate(ended)
        ]
        prompts = [self._prompts.get(0 if self._request.chat else index) for index in ended]
        empty: dict[str, Any] = {"delta": {}} if self._request.chat else {"text": ""}
        choices = [
            {"index": index, **empty, "logprobs": None, "finish_reason": None, **fields}
            for index, fields in zip(ended, await self._rewards(samples, prompts), strict=True)
        ]
        return DATA + as_json({**self._head, "choices": choices}) + END


def _for_ids_alone(chunk: dict[str, Any]) -> bool:
    """Tell whether vLLM sends this chunk of a conversation for its token ids: it would not without them."""
    said = [(one.get("delta"), one.get("logprobs"), one.get("finish_reason")) for one in chunk["choices"]]
    return bool(said) and all(one == ({}, None, None) for one in said)
