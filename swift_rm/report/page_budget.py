"""How the report's browser is made to fit: which questions and candidates it shows, and how much of their texts.

What every question and candidate needs in any case comes first: where that is too much, each question loses the candidates
of least interest, down to four, and then the last questions go, and those that are too large alone. What is left is for
texts: two thirds, or what the others do not need, for the candidates that a rule chose and the best right ones, with their
tokens shaded; the rest for the others; and what remains then for the others' shading, from the highest rank down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from swift_rm.records.rollouts import Rollout
from swift_rm.report.html_page import Html
from swift_rm.report.question_html import candidate_head, index_row, question_frame
from swift_rm.report.question_summary import QuestionSummary
from swift_rm.report.text_clipping import Fitted, Tokens, clip_plain, clip_shaded, level, plain_html, shaded_size, size, tokens_of
from swift_rm.report.token_view_data import Scale

LEAST = 400  # bytes of its text that every candidate gets, if it has as many
FEWEST = 4  # candidates of a question that stay when questions have to go
CANDIDATE_BYTES = 60  # of mark-up around a candidate's text
SCALE_TOKENS = 200_000  # from which colours get their scale
EMPTY = Fitted(Html(""))


@dataclass
class Item:
    """A candidate on the page: its rank from 0, whether a rule or the best right one is concerned, and its text as it fits.

    ``whole`` is the number of bytes of its plain text. Only a main candidate's tokens are read at once.
    """

    rank: int
    main: bool
    head: str
    rollout: Rollout
    whole: int
    tokens: Tokens | None = None
    fitted: Fitted = EMPTY
    shaded: bool = False

    @property
    def least(self) -> int:
        """Return the number of bytes it needs in any case."""
        return size(self.head) + CANDIDATE_BYTES + min(self.whole, LEAST)


@dataclass
class Block:
    """A question on the page: its row in the index, what stands around its candidates, and these, most important first."""

    question: QuestionSummary
    row: list[Html]
    before: str
    after: str
    items: list[Item]

    @property
    def frame(self) -> int:
        """Return the number of bytes it needs besides its candidates, the row's mark-up included."""
        return sum(map(size, (*self.row, self.before, self.after))) + 30 * len(self.row) + 200


def fit_page(questions: Sequence[QuestionSummary], room: int) -> tuple[list[Block], Scale]:
    """Return the questions that fit into ``room`` bytes, in their order, with fitted texts, and the scale of the colours."""
    prompt = max(LEAST, min(20_000, room // 10 // max(1, len(questions))))
    blocks, used = [], 0
    for question in questions:
        block = _block(question, prompt)
        needed = block.frame + sum(item.least for item in block.items[:FEWEST])
        if used + needed <= room:
            blocks.append(block)
            used += needed
    most = max((len(block.items) for block in blocks), default=0)
    columns = [sum(block.items[k].least for block in blocks if k < len(block.items)) for k in range(most)]
    needs = list(accumulate(columns, initial=sum(block.frame for block in blocks)))
    most = next((k for k in range(most, FEWEST, -1) if needs[k] <= room), min(most, FEWEST))
    for block in blocks:
        del block.items[most:]
    items = [item for block in blocks for item in block.items]
    scale = _scale(item.tokens for item in items if item.main and item.tokens)
    _fit_texts(items, room - needs[most] + sum(min(item.whole, LEAST) for item in items), scale)
    return blocks, scale


def _block(question: QuestionSummary, prompt: int) -> Block:
    chosen = [place for place in (*question.choices.values(), question.best_right) if place is not None]
    places = dict.fromkeys([*chosen, *question.ranked])
    ranks = {place: rank for rank, place in enumerate(question.ranked)}
    items = []
    for place in places:
        one, main = question.candidates[place], place in chosen
        head, whole = candidate_head(question, place), size(plain_html(one.response))
        items.append(Item(ranks[place], main, head, one, whole, tokens_of(one) if main else None))
    return Block(question, index_row(question), *question_frame(question, prompt), items)


def _fit_texts(items: Sequence[Item], room: int, scale: Scale) -> None:
    main, others = [item for item in items if item.main], [item for item in items if not item.main]
    least, need = sum(min(item.whole, LEAST) for item in others), sum(item.whole for item in others)
    limit = level(
        [item.whole if item.tokens is None else shaded_size(item.tokens) for item in main],
        max(min(2 * room // 3, room - least), room - need),
    )
    for item in main:
        item.shaded = item.tokens is not None
        item.fitted = clip_plain(item.rollout.response, limit) if item.tokens is None else clip_shaded(item.tokens, scale, limit)
        room -= size(item.fitted.html)
    limit = level([item.whole for item in others], room)
    for item in others:
        item.fitted = clip_plain(item.rollout.response, limit)
        room -= size(item.fitted.html)
    for item in sorted(others, key=lambda item: item.rank):
        if room < LEAST:
            break
        tokens, before = tokens_of(item.rollout), size(item.fitted.html)
        if tokens is None or item.fitted.left_out or (needed := shaded_size(tokens)) - before > room:
            continue
        item.shaded, item.fitted = True, clip_shaded(tokens, scale, needed)
        room -= size(item.fitted.html) - before


def _scale(responses: Iterable[Tokens]) -> Scale:
    """Fit the colours to tokens of the main candidates, evenly taken, as many as there is time for."""
    kept = list(responses)
    step = 1 + sum(map(len, kept)) // SCALE_TOKENS
    return Scale.of([tokens[place] for tokens in kept for place in range(0, len(tokens), step)])
