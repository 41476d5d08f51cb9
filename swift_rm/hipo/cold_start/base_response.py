"""Read a response as a base model gives it before it knows the template: what it thought, and what it answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swift_rm.hipo.response.template import Mode, Template
from swift_rm.hipo.response.token_text import Piece, cut_at_tags, single_token, special_tokens
from swift_rm.records.rollouts import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class BaseResponse:
    """The parts of a response in a model's own form, as it wrote them; ``think`` is None in think-off.

    Only lines' ends around the answer are left out: white space may belong to a token that the vocabulary has no other way
    to write.
    """

    think: str | None
    answer: str


def read_native(rollout: Rollout, mode: Mode, tokenizer: PreTrainedTokenizerBase, template: Template) -> BaseResponse | None:
    """Return what a response thought and answered, None where that cannot be told: nothing is guessed.

    Think-on: all before the one closing think tag is thought (the opening tag comes first, or stood in the prompt), the
    rest answers. Think-off: all answers, and there is no think tag, but for an empty block at the beginning. If there is an
    answer block, it is the only one, with nothing outside it, and its content is the answer; end of text may close it. A
    response that was cut, that names a mode or judges, whose answer is empty, or in which a special token stands, is not read.
    """
    ids, special = list(rollout.response_ids), special_tokens(tokenizer)
    while ids and ids[-1] in special:
        ids.pop()
    pieces = [piece for piece in cut_at_tags(ids, tokenizer, template.tags) if piece.tag is not None or piece.text.strip()]
    special -= {single_token(tokenizer, tag) for tag in template.tags}
    if rollout.finish_reason != "stop" or special.intersection(ids) or any(piece.tag in _others(template) for piece in pieces):
        return None
    opening, closing = template.think
    tags = [piece.tag for piece in pieces]
    think = None
    if mode == "on" or tags[:2] == [opening, closing]:
        if tags.count(closing) != 1 or tags.count(opening) > 1 or (opening in tags and tags[0] != opening):
            return None
        end = tags.index(closing)
        thought = [piece for piece in pieces[:end] if piece.tag != opening]
        if any(piece.tag is not None for piece in thought):
            return None
        think = "".join(piece.text for piece in thought)
        pieces = pieces[end + 1 :]
    answer = _answer(pieces, template)
    return None if not answer.strip() else BaseResponse(think if mode == "on" else None, answer)


def _answer(pieces: Sequence[Piece], template: Template) -> str:
    """Return the answer among the pieces after the thinking, "" if there is none, or more than one."""
    tags = [piece.tag for piece in pieces]
    opening, closing = template.answer
    if tags in ([opening, None, closing], [opening, None]):
        return pieces[1].text.strip("\n")
    return pieces[0].text.strip("\n") if tags == [None] else ""


def _others(template: Template) -> tuple[str, ...]:
    return (*(template.judge or ()), template.on, template.off)
