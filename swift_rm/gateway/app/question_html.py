"""The gateway's page as HTML: a form, and what became of it. No script; every text in it is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from swift_rm.files.text import counted, visible
from swift_rm.gateway.request.settings import Settings
from swift_rm.report.html_page import POLICY, SKIP, document, text
from swift_rm.report.token_view import CARDS_STYLE, PARTS_STYLE, cards, legend, palette_style, signed
from swift_rm.report.token_view_data import CandidateView, Scale
from swift_rm.reward.identity import short_name
from swift_rm.selection.rule_table import RULE_TABLE, SERVED_RULES

if TYPE_CHECKING:
    from swift_rm.gateway.request.errors import GatewayError

PAGE_POLICY = f"{POLICY}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
META_POLICY = f"{POLICY}; form-action 'self'; base-uri 'none'"  # what a page can say of itself
RULE_TEXTS = {rule.name: rule.words for rule in RULE_TABLE if not rule.external}
TITLE = "Best of N"


@dataclass(frozen=True)
class QuestionOutcome:
    """What became of a question: its candidates in the order of the answer, and the choice or why there is none.

    ``text`` and ``chosen`` are of the candidate that was chosen; ``refusal`` says why none was good enough.
    """

    candidates: Sequence[CandidateView]
    text: str
    refusal: str | None
    drawn: int
    tokens: int
    seconds: float
    rule: str | None
    ended: str = "all"


@dataclass(frozen=True)
class QuestionPage:
    """What the page shows: the models' names, what was typed, and what became of it; ``closed`` says why there is no form."""

    model: str
    settings: Settings
    typed: Mapping[str, str] = field(default_factory=dict)
    outcome: QuestionOutcome | None = None
    error: GatewayError | None = None
    closed: str | None = None


def render(page: QuestionPage) -> str:
    """Return the page."""
    rm = page.settings.reward_model
    reads = f"the reward model <b>{text(short_name(rm))}</b> rates each," if rm else "a reward model rates each,"
    inside = f'<p class="said">{text(page.closed)}</p>' if page.closed else _form(page)
    body = f"""{SKIP}
<header>
<h1>{TITLE}</h1>
<p class="about">Ask once: <b>{text(page.model)}</b> answers several times, {reads} and a rule chooses one.</p>
</header>
<main id="main">
{inside}
{_error(page.error) if page.error else ""}{_outcome(page.outcome) if page.outcome else ""}
</main>
<footer><p>The same for programs: <code>/v1/chat/completions</code>, <code>/v1/models</code>,
<code>/metrics</code></p></footer>"""
    return document(TITLE, body, f"{PARTS_STYLE}\n{CARDS_STYLE}\n{_STYLE}\n{palette_style()}", META_POLICY)


def _form(page: QuestionPage) -> str:
    settings, typed = page.settings, page.typed
    options = "".join(
        f'<option value="{rule}"{" selected" if rule == typed.get("rule") else ""}>{rule}: {RULE_TEXTS[rule]}</option>'
        for rule in SERVED_RULES
    )
    most = f'min="1" max="{settings.max_n}" step="1" required'
    return f"""<form method="post" action="#answer" accept-charset="utf-8">
<p class="whole"><label for="question">Question</label>
<textarea id="question" name="question" rows="4" required dir="auto" maxlength="{settings.max_prompt_chars}">
{escape(typed.get("question", ""))}</textarea></p>
<p class="rule"><label for="rule">Rule</label><select id="rule" name="rule">{options}</select></p>
{_number("n", "Candidates (N)", typed, most)}
{_number("temperature", "Temperature", typed, 'min="0" max="100" step="any"')}
{_number("max_tokens", "Most new tokens", typed, 'min="1" step="1" placeholder="default"')}
{_number("abstain_below", "Abstain below", typed, 'min="0" max="1" step="any" placeholder="never"')}
<p class="go"><button type="submit">Ask</button></p>
</form>"""


def _number(name: str, label: str, typed: Mapping[str, str], limits: str) -> str:
    value = escape(visible(typed.get(name, "")))
    return (
        f'<p><label for="{name}">{label}</label><input id="{name}" name="{name}" type="number" inputmode="decimal" '
        f'value="{value}" {limits}></p>'
    )


def _error(error: GatewayError) -> str:
    return f"""<section class="error" role="alert" aria-labelledby="answer">
<h2 id="answer">Not answered <small>{error.status}</small></h2>
<p>{text(error.message)}</p>
</section>"""


def _outcome(outcome: QuestionOutcome) -> str:
    scale = Scale.of([token for candidate in outcome.candidates for token in candidate.tokens])
    chosen = outcome.refusal is None
    first = outcome.candidates[0]
    names = ["chosen" if chosen and not place else str(place + 1) for place in range(len(outcome.candidates))]
    said = escape(visible(outcome.text)) if chosen else text((outcome.refusal or "").removeprefix("no answer: "))
    facts = {
        "answer": first.answer if chosen else None,
        "reward": signed(first.reward, 2),
        "right": f"{100 * first.probability:.1f} %" if math.isfinite(first.probability) else None,
        "drawn": counted(outcome.drawn, "candidate"),
        "tokens": f"{outcome.tokens:,}",
        "time": f"{outcome.seconds:.2f} s",
        "rule": outcome.rule,
        "ended": None if outcome.ended == "all" else outcome.ended,
    }
    listed = "".join(f"<li>{name} <b>{text(value)}</b></li>" for name, value in facts.items() if value is not None)
    return f"""<section aria-labelledby="answer">
<h2 id="answer">{"Answer" if chosen else "No answer"}</h2>
<p class="said" dir="auto">{said}</p>
<ul>{listed}</ul>
</section>
<section aria-labelledby="all" class="{"picked" if chosen else "none"}">
<h2 id="all">{f"All {len(names)} candidates" if len(names) > 1 else "The candidate"}</h2>
{cards(zip(names, outcome.candidates, strict=True), scale)}
{legend(scale)}
</section>"""


_STYLE = """\
header,main,footer{max-width:80rem;margin:0 auto}
.about,footer,dd{color:var(--soft);font-size:.875rem}
.about{margin:.25rem 0 1.25rem}
.about b{color:var(--ink);font-weight:600}
section{margin-top:1.5rem}
form{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:1rem;padding:1rem 1.25rem 1.25rem;background:var(--card);
border:1px solid var(--line);border-radius:.5rem}
form p{margin:0;min-width:0}
.whole{grid-column:1/-1}
.go{align-self:end}
.rule{grid-column:span 3}
label{display:block;margin-bottom:.25rem;font-size:.875rem;font-weight:600}
select,input,button{height:2.625rem}
textarea,select,input{width:100%;padding:.5rem .625rem;font:inherit;color:var(--ink);background:var(--page);
border:1px solid var(--soft);border-radius:.375rem}
textarea{display:block;resize:vertical;min-height:6rem}
select{text-overflow:ellipsis}
::placeholder{color:var(--soft);opacity:1}
button{width:100%;padding:.5rem 1.5rem;font:inherit;font-weight:600;color:var(--page);
background:var(--link);border:0;border-radius:.375rem;cursor:pointer}
.said{max-height:24rem;overflow:auto;margin:.5rem 0;padding:.875rem 1rem;background:var(--card);border:1px solid var(--line);
border-left:3px solid var(--link);border-radius:.5rem;white-space:pre-wrap;overflow-wrap:anywhere}
.error{padding:.875rem 1rem;background:var(--card);border:1px solid var(--line);border-left:3px solid #d4541c;border-radius:.5rem}
.error p{margin:0;overflow-wrap:anywhere}
.picked article:first-child{border:2px solid var(--link)}
.picked article:first-child h3 small:first-child{color:var(--link);font-weight:600}
footer{margin-top:2rem}
@media (max-width:40rem){form{grid-template-columns:repeat(2,minmax(0,1fr))}.rule,.go{grid-column:1/-1}}"""
