"""One question of the report as HTML: its row in the index, its frame with the reasons of the choice, its candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from swift_rm.files.text import brief, clip, counted
from swift_rm.records.rollouts import Prompt
from swift_rm.report.html_page import Html, table, text
from swift_rm.report.question_summary import Answer, QuestionSummary, probability
from swift_rm.report.text_clipping import clip_plain
from swift_rm.report.token_view import facts, prompt_box, signed

ANSWERS = 8  # of a question, that are listed with what each rule goes by
NAME, ANSWER, FACT, BRIEF = 200, 200, 60, 24  # characters of what stands in one line

DIGIT_SPACE = "\u2007"  # as wide as a digit
RIGHT, WRONG = "\u2713", "\u2717"
_CANDIDATES = "Candidates, best reward first: rank, reward, probability of being right, answer, grade, how it ended, chosen by"


def index_header(questions: Sequence[QuestionSummary]) -> list[str]:
    """Return the names of the columns of :func:`index_row`, of which the second is a number."""
    return ["question", f"right of {len(questions[0].candidates)}", *questions[0].choices, "probability", "best right"]


def index_row(question: QuestionSummary) -> list[Html]:
    """Return a question's cells in the index: link, right candidates, each rule's answer, and how sure the first was."""
    place = question.choices[question.main]
    chance = math.nan if place is None else probability(question.candidates[place])
    best = question.best_right
    rank = "\u2013" if best is None else f"rank {question.ranked.index(best) + 1}"
    return [
        Html(f'<a href="#q{question.number}">{inline(brief(_name(question), 2 * BRIEF))}</a>'),
        Html(question.right),
        *(Html(_verdict(question, rule)) for rule in question.choices),
        Html(_percent(chance) or "\u2013"),
        Html(rank),
    ]


def question_frame(question: QuestionSummary, room: int) -> tuple[str, str]:
    """Return what stands before and after a question's candidates; each turn of the prompt gets its share of ``room`` bytes."""
    rules = [rule for rule in (question.main, "majority") if rule in question.choices]
    verdicts = ", ".join(f"{rule} {_verdict(question, rule)}" for rule in dict.fromkeys(rules))
    turns = _turns(question.candidates[0].prompt)
    said = [(role, clip_plain(turn, room // max(1, len(turns))).html) for role, turn in turns]
    reference = question.candidates[0].extra.get("reference")
    expected = (
        f'<p class="count">Expected <b>{inline(clip(reference, ANSWER))}</b></p>\n'
        if isinstance(reference, str | int | float)
        else ""
    )
    before = f"""<details class="q"><summary><h4>{inline(clip(_name(question), NAME))}</h4> \
<small>{question.right} of {len(question.candidates)} right: {verdicts}</small></summary>
<div id="q{question.number}">
{prompt_box(said)}
{expected}{_answers(question)}
<p class="count">{_CANDIDATES}</p>
"""
    return before, f'<p class="count"><a href="#{question.kind}">Back to the index</a></p>\n</div></details>\n'


def candidate_head(question: QuestionSummary, place: int) -> str:
    """Return a candidate's HTML up to its text, open where the explained rule or the best right one is concerned."""
    one = question.candidates[place]
    known = facts(None if one.answer is None else clip(one.answer, ANSWER), one.label, clip(one.finish_reason, FACT), None)
    flag = one.extra.get("flag")
    numbers = [
        str(question.ranked.index(place) + 1).rjust(len(str(len(question.candidates))), DIGIT_SPACE),
        ("\u2013" if one.reward is None else signed(one.reward, 2)).rjust(6, DIGIT_SPACE),
        _percent(probability(one)).rjust(7, DIGIT_SPACE),
    ]
    by = ", ".join(rule for rule, chosen in question.choices.items() if chosen == place)
    flagged = "" if flag is None else f", flag {inline(clip(flag, FACT).replace('_', ' '))}"
    cells = [
        (2 * DIGIT_SPACE).join(numbers),
        inline(known.get("answer", "no answer")),
        known["graded"],
        inline(known["finish"]) + flagged,
        *([f"chosen by {by}"] if by else []),
    ]
    spans = "".join(f"<span>{cell}</span>" for cell in cells)
    shown = place == question.choices[question.main] or (place == question.best_right and question.kind == "missed")
    return f'<details class="c"{" open" if shown else ""}><summary>{spans}</summary>'


def inline(said: object) -> str:
    """Return a text as HTML, as ``page.text`` does, but without an element around one that cannot reorder others."""
    shown = str(said)
    return escape(shown) if shown.isascii() and shown.isprintable() else text(shown)


def _answers(question: QuestionSummary) -> str:
    answers = question.answers()
    if not answers:
        return '<p class="count">No candidate has an answer.</p>'
    listed = [one for place, one in enumerate(answers) if place < ANSWERS or one.right][: 2 * ANSWERS]
    columns: dict[str, list[float | None]] = {"responses: majority": [float(one.responses) for one in answers]}
    if answers[0].total is not None:
        columns |= {
            "sum: swift_vote": [one.total for one in answers],
            "shrunk mean: swift_shrunk": [one.shrunk for one in answers],
            "highest: swift_best": [one.highest for one in answers],
        }
    known = [[value for value in column if value is not None] for column in columns.values()]
    tops = [max(values) for values in known]
    rows = [
        [
            Html(inline(brief(str(one.answer), BRIEF))),
            Html(_grade(one)),
            *(_figure(column[place], top) for column, top in zip(columns.values(), tops, strict=True)),
        ]
        for place, one in enumerate(answers)
        if one in listed
    ]
    more = len(answers) - len(rows)
    left_out = f'<p class="count">{counted(more, "further answer")} not listed.</p>' if more > 0 else ""
    caption = "What the rules go by; the highest figure of a column, in bold, wins"
    return table(caption, ["answer", "graded", *columns], rows, right=range(2, 2 + len(columns))) + left_out


def _figure(value: float | None, top: float) -> Html:
    if value is None:
        return Html("\u2013")
    said = f"{value:.0f}" if value.is_integer() else f"{value:.3f}".replace("-", "\u2212")
    return Html(f"<b>{said}</b>" if value == top else said)


def _grade(answer: Answer) -> str:
    if answer.right in (0, answer.responses):
        return f"right {RIGHT}" if answer.right else f"wrong {WRONG}"
    return f"{answer.right} of {answer.responses} right"


def _verdict(question: QuestionSummary, rule: str) -> str:
    place = question.choices[rule]
    if place is None:
        return f"{WRONG} nothing chosen"
    answer = question.candidates[place].answer
    said = "no answer" if answer is None else brief(str(answer), BRIEF)
    return f"{RIGHT if question.is_right(rule) else WRONG} {inline(said)}"


def _name(question: QuestionSummary) -> str:
    return question.candidates[0].question_id or f"question {question.number}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else ""


def _turns(prompt: Prompt) -> list[tuple[str | None, str]]:
    if isinstance(prompt, str):
        return [(None, prompt)]
    turns = [turn if isinstance(turn, dict) else {"content": turn} for turn in prompt]
    return [(clip(turn["role"], FACT) if "role" in turn else None, str(turn.get("content"))) for turn in turns]
