"""Where the response begins in a text that holds prompt and response in one, with nothing between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASKED, SAID = [{"role": "user", "content": "0"}], [{"role": "assistant", "content": "0"}]


class WholeText:
    """Split whole texts: ``ids, response_ids = WholeText(tokenizer, ends).split(text)``, as they were before generation.

    A response begins after the last ``start``. By default that is what the chat template opens an assistant's turn with, as
    far as turns that are over and turns that are generated open alike; the prompt then gets the opening of the latter
    (``<think>`` and all, by ``chat_template_kwargs``). Prompts of plain text need ``start``: the text with which all of them
    end. A response ends with the first of the token ids ``ends``, or is given the tokenizer's end token, as in
    :func:`swift_rm.score`. Raises ValueError for a template that opens no turn, or opens it so that it is not found again.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        start: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.ends, self._plain = tokenizer, {*ends, tokenizer.eos_token_id}, start is not None
        self.start = self.opening = start or ""
        if start is None and tokenizer.chat_template:
            more: dict[str, Any] = {"tokenize": False, **(chat_template_kwargs or {})}
            asked, opened, said = (
                str(tokenizer.apply_chat_template(chat, add_generation_prompt=add, **more))
                for chat, add in ((ASKED, False), (ASKED, True), (ASKED + SAID, False))
            )
            self.opening = opened.removeprefix(asked)
            both = zip(self.opening, said.removeprefix(asked), strict=False)
            self.start = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], both))
            if self.start and self.split(said)[0] != self._ids(opened):
                self.start = ""
        if not self.start:
            raise ValueError("the chat template does not show where a response begins: give start, the text before it")

    def split(self, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids of prompt and response; raise ValueError if ``start`` is not in the text."""
        before, start, said = text.rpartition(self.start)
        if not start:
            raise ValueError(f"{self.start!r}, after which a response begins, is not in the text {text!r:.200}")
        response = self._ids(said.removeprefix(self.opening.removeprefix(start)))
        last = next((place for place, token in enumerate(response) if token in self.ends), None)
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        bare = self._plain and not (self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token))
        return self._ids(before + self.opening, bare), [*response, *end] if last is None else response[: last + 1]

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
