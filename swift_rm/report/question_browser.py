"""The report's browser of questions and candidates: those first that the rule got wrong though a right answer was there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from swift_rm.files.text import counted
from swift_rm.report.html_page import Html, scrolls, table
from swift_rm.report.page_budget import Block, fit_page
from swift_rm.report.question_html import index_header
from swift_rm.report.question_summary import Kind, QuestionSummary, by_kind
from swift_rm.report.token_view import scale_legend
from swift_rm.report.token_view_data import Scale

TITLES: dict[Kind, str] = {
    "missed": "Wrong, although a right candidate was there",
    "gained": "Right, where the majority vote is wrong",
    "kept": "Right, as the majority vote is",
    "lost": "Wrong, as every candidate is",
}
WORDS: dict[Kind, str] = {
    "missed": "The rule's own mistakes, first those it was most certain of. A question opens with what was chosen and with the "
    "best right candidate, so that one can see what misled it.",
    "gained": "What the reward adds to counting answers, first where the fewest candidates are right.",
    "kept": "First where the fewest candidates are right.",
    "lost": "No rule can choose a right answer here, and the rewards ought to be low. First those it was most certain of.",
}


@dataclass(frozen=True)
class Shown:
    """What of the questions is on the page, and what is not; ``shaded`` and ``shortened`` count candidates."""

    questions: int
    questions_left_out: int
    candidates: int
    candidates_left_out: int
    shaded: int
    shortened: int
    characters_left_out: int


def browser(questions: Sequence[QuestionSummary], room: int) -> tuple[Html, Shown]:
    """Return the index and the questions in at most ``room`` bytes, and what of them that is."""
    kinds = by_kind(questions)
    blocks, scale = fit_page(list(chain.from_iterable(kinds.values())), room - 12_000)  # for what is said around them
    items = [item for block in blocks for item in block.items]
    shown = Shown(
        questions=len(blocks),
        questions_left_out=len(questions) - len(blocks),
        candidates=len(items),
        candidates_left_out=sum(len(block.question.candidates) - len(block.items) for block in blocks),
        shaded=sum(item.shaded for item in items),
        shortened=sum(item.fitted.left_out > 0 for item in items),
        characters_left_out=sum(item.fitted.left_out for item in items),
    )
    groups = "\n".join(
        _group(kind, len(some), [block for block in blocks if block.question.kind == kind])
        for kind, some in kinds.items()
        if some
    )
    rules = ", ".join(questions[0].choices)
    said = "".join(f"<p>{sentence}</p>\n" for sentence in _limits(shown))
    return Html(
        f"""<section id="questions">
<h2>Questions and candidates</h2>
<p>Why an answer was chosen: each question lists what the rules go by, and its candidates, ranked by reward. The groups are by \
<b>{questions[0].main}</b>; all rules here: {rules}. \u2713 is right, \u2717 is wrong. Of equals the first is taken here; \
the figures above share them.</p>
{said}{_legend(scale) if shown.shaded else ""}{groups}
</section>"""
    ), shown


def _group(kind: Kind, total: int, blocks: Sequence[Block]) -> str:
    shown = "" if len(blocks) == total else f", {len(blocks)} of them below"
    above = f"""<section id="{kind}">
<h3>{TITLES[kind]}: {counted(total, "question")}{shown}</h3>
<p>{WORDS[kind]}</p>
"""
    if not blocks:
        return f"{above}</section>"
    questions = [block.question for block in blocks]
    caption = (
        f"The answer that each rule chose, the probability of {questions[0].main}'s choice, and the rank of the best right one"
    )
    index = table(caption, index_header(questions), [block.row for block in blocks], right=[1])
    return f"""{above}<details class="index"{" open" if kind == "missed" else ""}><summary>Index</summary>
{index}
</details>
{"".join(map(_block, blocks))}</section>"""


def _block(block: Block) -> str:
    candidates = "".join(
        f'{item.head}<p class="text" dir="auto"{_focus(item.fitted.html)}>{item.fitted.html}</p></details>\n'
        for item in sorted(block.items, key=lambda item: item.rank)
    )
    left_out = len(block.question.candidates) - len(block.items)
    if left_out:
        shown = {item.rank for item in block.items}
        hidden = [place for rank, place in enumerate(block.question.ranked) if rank not in shown]
        right = sum(block.question.candidates[place].label == 1 for place in hidden)
        candidates += f'<p class="count">{counted(left_out, "further candidate")} left out, {right} of them right.</p>\n'
    return f"{block.before}{candidates}{block.after}"


def _focus(said: str) -> str:
    return scrolls("response") if len(said) > 3000 or said.count("\n") > 20 else ""  # it scrolls, by keyboard too


def _limits(shown: Shown) -> list[str]:
    """Say in sentences what the page leaves out."""
    said = []
    if shown.shaded:
        rest = (
            "" if shown.shaded == shown.candidates else "; the others' texts are plain, for the page's size or for want of tokens"
        )
        said.append(f"The tokens of {shown.shaded:,} of {counted(shown.candidates, 'candidate')} are shaded{rest}.")
        said.append(
            "Those that speak most against it are underlined, too. <code>swift-rm explain</code> shows single tokens' numbers."
        )
    elif shown.candidates:
        said.append(
            "The texts are plain: <code>swift-rm score --tokens</code> keeps what the report needs to shade their tokens."
        )
    if shown.shortened:
        said.append(
            f"To keep the page small {counted(shown.shortened, 'text')} {_is(shown.shortened)} cut in the middle: "
            f"{counted(shown.characters_left_out, 'character')} in all."
        )
    if shown.candidates_left_out:
        number = shown.candidates_left_out
        said.append(f"{counted(number, 'candidate')} {_is(number)} left out to keep the page small, none that a rule chose.")
    if shown.questions_left_out:
        number = shown.questions_left_out
        said.append(
            f"{counted(number, 'question')} {_is(number)} left out to keep the page small, the last in this order or the largest."
        )
    return [" ".join(said)] if said else []


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _legend(scale: Scale) -> str:
    return f"<dl>\n{scale_legend(scale)}\n</dl>\n"
