"""The form of a hybrid response: it judges the question, names a mode, thinks if the mode is think-on, and answers.

    <judge>why this mode</judge><think_on><think>reasoning</think><answer>final</answer>
    <judge>why this mode</judge><think_off><answer>final</answer>

A response is well formed if it has exactly these blocks in this order, nothing but white space outside them, no tag inside
them and an answer that is not empty. End of text may close the answer; the length limit may not. (HiPO, arXiv 2509.23967.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from swift_rm.hipo.response.token_text import Piece, cut_at_tags, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Mode = Literal["on", "off"]
FREE: Mapping[str, Any] = MappingProxyType({"enable_thinking": None})  # for a chat template: the mode is left to the model
CUT = "cut at the length limit"


@dataclass(frozen=True)
class Parsed:
    """What a response's sampled ids say.

    ``mode`` is that of the mode marker if there is exactly one, in a malformed response too. ``judge``, ``think`` and
    ``answer`` are the blocks' texts, None where there is no such block, and all None in a malformed response, whose
    ``error`` says in a few words what is wrong. ``decision`` counts the ids up to the end of the mode marker (0: no mode),
    ``think_tokens`` those after it up to the end of the think block, ``answer_tokens`` all others, end of text and padding
    included: together they are all ids. ``spans`` are ``[start, end)`` in the ids of "judge", "mode", "think" and
    "answer", tags included, of those that were found.
    """

    mode: Mode | None
    judge: str | None
    think: str | None
    answer: str | None
    error: str | None
    decision: int
    think_tokens: int
    answer_tokens: int
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def formatted(self) -> bool:
        """Tell whether the response is well formed."""
        return self.error is None


@dataclass(frozen=True)
class Template:
    """The tags of a hybrid response; ``judge`` None: responses have no judge block and begin with the mode marker."""

    judge: tuple[str, str] | None = ("<judge>", "</judge>")
    on: str = "<think_on>"
    off: str = "<think_off>"
    think: tuple[str, str] = ("<think>", "</think>")
    answer: tuple[str, str] = ("<answer>", "</answer>")

    def __post_init__(self) -> None:
        for tag in self.tags:
            if not tag.strip() or sum(tag in other for other in self.tags) > 1:
                raise ValueError(f"every tag must be a text of its own that is in no other, got {tag!r} among {self.tags}")

    @property
    def tags(self) -> tuple[str, ...]:
        """Return all tags, in the order in which a response may have them."""
        return (*(self.judge or ()), self.on, self.off, *self.think, *self.answer)

    def marker(self, mode: Mode) -> str:
        """Return the tag that names a mode; raise ValueError for what is no mode."""
        if mode not in ("on", "off"):
            raise ValueError(f"the mode must be 'on' or 'off', got {mode!r}")
        return self.on if mode == "on" else self.off

    def render(self, mode: Mode, answer: str, *, judge: str = "", think: str | None = None) -> str:
        """Write a well-formed response, without end of text; raise ValueError for parts that cannot make one."""
        marker = self.marker(mode)
        if (think is None) == (mode == "on"):
            raise ValueError(f"think-{mode} and a think block {'missing' if think is None else 'given'} do not go together")
        if judge and self.judge is None:
            raise ValueError(f"the template has no judge block to write {judge!r:.80} in")
        if not answer.strip():
            raise ValueError("the answer is empty")
        for name, text in (("judge", judge), ("think", think or ""), ("answer", answer)):
            held = next((tag for tag in self.tags if tag in text), None)
            if held is not None:
                raise ValueError(f"the {name} text holds the tag {held!r}: {text!r:.80}")
        judged = "" if self.judge is None else judge.join(self.judge)
        thought = "" if think is None else think.join(self.think)
        return f"{judged}{marker}{thought}{answer.join(self.answer)}"

    def parse(self, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, finished: bool | None = None) -> Parsed:
        """Read the ids of a sampled response; see :class:`Parsed`. Nothing in a malformed one is guessed.

        ``finished`` says whether the ids end with an end-of-text token, whichever; None: whether the tokenizer's is there.
        Padding may follow it. A response that ends with the tag that closes its answer needs no end of text.
        """
        ids = list(map(int, ids))
        end, finished, tail = _end_of_text(ids, tokenizer, finished)
        pieces = cut_at_tags(ids[:end], tokenizer, self.tags)
        markers = [piece for piece in pieces if piece.tag in (self.on, self.off)]
        mode: Mode | None = None if len(markers) != 1 else "on" if markers[0].tag == self.on else "off"
        decision = markers[0].end if mode is not None else 0
        spans, texts = self._blocks(pieces, end if finished else None)
        if mode is not None:
            spans["mode"] = (markers[0].start, markers[0].end)
        closed = bool(pieces) and pieces[-1].tag == self.answer[1]
        error = CUT if not finished and not closed else tail or self._error(pieces, mode, finished)
        if error is None and not texts["answer"].strip():
            error = "empty answer"
        thought = max(decision, self._thought(pieces, end))
        read = {} if error is not None else texts
        return Parsed(
            mode, read.get("judge"), read.get("think"), read.get("answer"), error, decision, thought - decision,
            len(ids) - thought, spans,
        )  # fmt: skip

    @property
    def _pairs(self) -> dict[str, tuple[str, str]]:
        judge = {} if self.judge is None else {"judge": self.judge}
        return {**judge, "think": self.think, "answer": self.answer}

    def _blocks(self, pieces: Sequence[Piece], end: int | None) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        """Return the spans and texts of the blocks that are there once; ``end`` closes the answer if it is not None."""
        spans, texts = {}, {}
        for name, (opening, closing) in self._pairs.items():
            first = [i for i, piece in enumerate(pieces) if piece.tag == opening]
            last = [i for i, piece in enumerate(pieces) if piece.tag == closing]
            if name == "answer" and not last and end is not None:
                last = [len(pieces)]
            if len(first) == len(last) == 1 and first < last:
                inner = pieces[first[0] + 1 : last[0]]
                until = pieces[last[0]].end if last[0] < len(pieces) else end or 0
                spans[name] = (pieces[first[0]].start, until)
                texts[name] = "".join(piece.text for piece in inner)
        return spans, texts

    def _error(self, pieces: Sequence[Piece], mode: Mode | None, finished: bool) -> str | None:
        """Say what is wrong with the pieces of a response that was not cut, None if nothing is."""
        counts = Counter(piece.tag for piece in pieces if piece.tag is not None)
        for name, (opening, closing) in self._pairs.items():
            if max(counts[opening], counts[closing]) > 1:
                return f"more than one {name} block"
        if mode is None:
            return "no mode marker" if not counts[self.on] + counts[self.off] else "more than one mode marker"
        if mode == "off" and counts[self.think[0]] + counts[self.think[1]]:
            return "a think block in think-off"
        wanted = [name for name in self._pairs if mode == "on" or name != "think"]
        for name in wanted:
            opening, closing = self._pairs[name]
            if not counts[opening]:
                return f"no {name} block"
            if not counts[closing] and not (name == "answer" and finished):
                return f"the {name} block is not closed"
        order = [tag for name in wanted for tag in self._pairs[name]]
        order.insert(0 if self.judge is None else 2, self.marker(mode))
        tags = [piece.tag for piece in pieces if piece.tag is not None]
        if tags != order[: len(tags)]:
            return "blocks out of order"
        opened = {opening for opening, _ in self._pairs.values()}
        before: str | None = None
        for piece in pieces:
            if piece.tag is None and before not in opened and piece.text.strip():
                return "text outside the blocks"
            before = piece.tag
        return None

    def _thought(self, pieces: Sequence[Piece], end: int) -> int:
        """Return where the think block ends: at its closing tag, or, if it was opened and never closed, with the response."""
        closing = next((piece.end for piece in pieces if piece.tag == self.think[1]), None)
        opened = any(piece.tag == self.think[0] for piece in pieces)
        return closing if closing is not None else end if opened else 0


def _end_of_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, finished: bool | None) -> tuple[int, bool, str | None]:
    """Return how many ids come before end of text, whether it is there, and what is wrong with what follows it."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if eos in ids:
        end = ids.index(eos)
        strange = any(token not in (eos, pad) for token in ids[end:])
        return end, finished is not False, "tokens after the end of text" if strange else None
    end = len(ids)
    while end and ids[end - 1] == pad:
        end -= 1
    if finished and end and ids[end - 1] in special_tokens(tokenizer):  # end of text by another name, such as <|im_end|>
        end -= 1
    return end, bool(finished), None
