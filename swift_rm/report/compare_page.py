"""The page of a comparison: figures, charts, and the questions on which the two disagree, their responses side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swift_rm.evaluation.intervals import percent, plain
from swift_rm.evaluation.rule_comparison import Comparison, Disagreement
from swift_rm.evaluation.rule_outcome import ChosenResponse, RuleOutcome
from swift_rm.files.text import counted
from swift_rm.records.rollouts import Rollout
from swift_rm.report.compare_tables import notes, outcome
from swift_rm.report.html_page import SKIP, Html, document, figure, scrolls, table, text
from swift_rm.report.plots.chart import chart_style
from swift_rm.report.plots.compare_charts import accuracy_by_k, difference_by_k, side_names
from swift_rm.report.text_clipping import clip_plain as fitted

ROOM = 20_000  # bytes of a turn of a prompt, or of a response; a longer one is cut in its middle, and says so

_MINUS = "\u2212"
_SIGNS = {"right": "right \u2713", "wrong": "wrong \u2717"}


def render(comparison: Comparison, show: int) -> str:
    """Return the page as HTML, with at most ``show`` of the questions where the two disagree."""
    data = comparison.to_dict()
    names = side_names(data)
    title = f"{names['a']} against {names['b']}"
    found = comparison.disagreements
    shown = found[:show]
    links = " ".join(f'<a href="#q{place}">{place}</a>' for place in range(1, len(shown) + 1))
    questions = "\n".join(_question(place, comparison, one) for place, one in enumerate(shown, start=1))
    count = f"{len(found):,} of {counted(len(comparison.matched.names), 'question')}"
    listed = f", of which {len(shown):,} below, first those on which only one is right" if shown else ""
    facts = "\n".join(f"<li>{text(sentence)}</li>" for sentence in notes(comparison))
    body = f"""{SKIP}
<header>
<h1>{text(title)}</h1>
<p class="lead">{_summary(comparison)}</p>
<nav aria-label="parts"><a href="#figures">Figures</a> <a href="#charts">Charts</a> <a href="#questions">Disagreements</a></nav>
</header>
<main id="main">
<section id="figures">
<h2>Figures</h2>
{_sides(comparison)}
{_counts(comparison)}
<ul>
{facts}
</ul>
</section>
<section id="charts">
<h2>Charts</h2>
<div class="charts">
{figure(accuracy_by_k(data))}
{figure(difference_by_k(data))}
</div>
</section>
<section id="questions">
<h2>Where A and B disagree</h2>
<p>They choose different answers, or one is right more often, on {count}{listed}.</p>
<nav aria-label="questions">{links}</nav>
{questions}
</section>
</main>"""
    return document(title, body, f"{chart_style()}\n{_STYLE}")


def _summary(comparison: Comparison) -> Html:
    last = comparison.by_k[-1]
    said = percent(last.a), percent(last.b), percent(last.difference, "+").replace("-", _MINUS)
    figures = [f"<b>{text(one)}</b>" for one in said]
    return Html(
        f"Of {counted(len(comparison.matched.names), 'question')} with {counted(last.k, 'response')} each A is right on "
        f"{figures[0]} %, B on {figures[1]} %: A {_MINUS} B is {figures[2]} points. Brackets are 95 % bootstrap intervals over "
        f"questions, the same resamples for both."
    )


def _sides(comparison: Comparison) -> Html:
    last, aurocs = comparison.by_k[-1], comparison.auroc_within
    rows: list[list[object]] = []
    for name, side, accuracy, auroc in (("A", comparison.a, last.a, aurocs.a), ("B", comparison.b, last.b, aurocs.b)):
        known = None if auroc is None else plain(auroc)
        rows.append([name, side.file, side.rule, percent(accuracy), known, round(side.tokens, 1)])
    known = None if aurocs.difference is None else plain(aurocs.difference).replace("-", _MINUS)
    difference = percent(last.difference, "+").replace("-", _MINUS)
    rows.append([f"A {_MINUS} B", None, None, difference, known, round(comparison.a.tokens - comparison.b.tokens, 1)])
    header = ["", "file", "rule", f"accuracy of {last.k} (%)", "AUROC within questions", "tokens a question"]
    return table("What is compared", header, rows)


def _counts(comparison: Comparison) -> Html:
    one = comparison.table
    rows = [["A right", one.both_right, one.only_a], ["A wrong", one.only_b, one.both_wrong]]
    return table("Questions by who is right", ["", "B right", "B wrong"], rows)


def _question(place: int, comparison: Comparison, one: Disagreement) -> str:
    matched = comparison.matched
    a, b = matched.a[one.question], matched.b[one.question]
    turns = "\n".join(
        f'<p dir="auto">{"" if role is None else f"<b>{text(role)}</b> "}{fitted(content, ROOM).html}</p>'
        for role, content in _turns(a[0].prompt)
    )
    return f"""<article id="q{place}">
<h3>{place}. {text(matched.names[one.question])} <small>{_verdict(one)}</small></h3>
<div class="said"{scrolls("prompt")}>
{turns}
</div>
<div class="pair">
{_card("A", comparison.a, one.a, a)}
{_card("B", comparison.b, one.b, b)}
</div>
</article>"""


def _verdict(one: Disagreement) -> str:
    if {one.a.value, one.b.value} == {0.0, 1.0}:
        return f"only {'A' if one.a.value else 'B'} is right"
    if one.a.value == one.b.value:
        return {1.0: "both are right", 0.0: "both are wrong"}.get(one.a.value, "both are as often right")
    return f"{'A' if one.a.value > one.b.value else 'B'} is right more often"


def _card(name: str, side: RuleOutcome, choice: ChosenResponse, group: Sequence[Rollout]) -> str:
    word = outcome(choice.value)
    head = f"<h4>{name}: {text(side.rule)} \u2013 {_SIGNS.get(word, word)}</h4>"
    if choice.place is None:
        return f"<section>{head}\n<p>It chooses none: no response has an answer or a score to go by.</p></section>"
    rollout = group[choice.place]
    known: dict[str, Any] = {
        "answer": choice.answer,
        "reward": None if choice.reward is None else f"{choice.reward:+.2f}".replace("-", _MINUS),
        "response": f"{choice.place + 1} of {len(group)}",
        "tokens": rollout.tokens,
        "finish": rollout.finish_reason,
    }
    facts = "".join(f"<li>{label} <b>{text(value)}</b></li>" for label, value in known.items() if value is not None)
    return f"""<section>{head}
<ul class="facts">{facts}</ul>
<p class="said"{scrolls(f"response of {name}")} dir="auto">{fitted(rollout.response, ROOM).html}</p></section>"""


def _turns(prompt: Any) -> list[tuple[str | None, str]]:
    """Return a prompt as (role, text) turns; a text has one, without a role."""
    if isinstance(prompt, str):
        return [(None, prompt)]
    return [(str(one.get("role")), str(one.get("content"))) if isinstance(one, dict) else (None, str(one)) for one in prompt]


_STYLE = """\
section{margin-top:1.5rem}
.lead{max-width:50rem}
.lead b{white-space:nowrap}
tbody th{white-space:nowrap}
.wide+.wide{margin-top:1rem}
nav a{display:inline-block;padding:.125rem .375rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(30rem,100%),1fr));gap:1rem;align-items:start}
article{margin-top:1rem;padding:.875rem 1rem 1rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem}
h3,h4{margin:0 0 .5rem;font-size:1.0625rem;overflow-wrap:anywhere}
h4{font-size:1rem}
.said{margin:0;max-height:24rem;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;tab-size:4;
padding:.5rem .75rem;border-left:3px solid var(--line)}
div.said{white-space:normal}
div.said p{margin:0;white-space:pre-wrap}
div.said b{color:var(--soft);font-weight:400;margin-right:.5rem}
p.said{font:.875rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:0 1.5rem}
.pair section{margin-top:.875rem;min-width:0}
.facts{display:flex;flex-wrap:wrap;gap:0 1rem;margin:0 0 .5rem;padding:0;list-style:none;font-size:.875rem;color:var(--soft)}
.facts b{color:var(--ink);font-weight:600}
.facts li{overflow-wrap:anywhere}"""
