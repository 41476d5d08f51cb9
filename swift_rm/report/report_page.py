"""The report: one page with an evaluation's main figure, its findings, tables and charts, and all questions to look into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swift_rm.evaluation.intervals import percent, plain
from swift_rm.files.text import clip, counted
from swift_rm.records.rollouts import Rollout
from swift_rm.report.html_page import SKIP, Html, document, figure, table, text
from swift_rm.report.palette import chart_style
from swift_rm.report.plots.evaluation_charts import charts, left_out
from swift_rm.report.plots.evaluation_json import interval
from swift_rm.report.question_browser import Shown, browser
from swift_rm.report.question_summary import summarise_questions
from swift_rm.report.result_sentences import findings, headline
from swift_rm.report.text_clipping import size
from swift_rm.report.token_view import PARTS_STYLE, palette_style
from swift_rm.selection.rule_table import EVALUATED_WORDS

PAGE_BYTES = 8_000_000  # what a browser opens within three seconds on two cores, see benchmarks/report/report_page.py
RULES = {
    "first": "one response, whichever",
    **EVALUATED_WORDS,
    "length": "the shortest response",
    "mean_logprob": "the highest mean log-probability",
    "sum_logprob": "the highest log-probability",
    "min_logprob": "the highest log-probability of the least likely token",
    "self_certainty": "the highest self-certainty",
    "self_certainty_borda": "a vote weighted by self-certainty's rank",
    "deepconf_mean": "the highest mean token confidence",
    "deepconf_tail": "the highest confidence of the last tokens",
    "deepconf_bottom": "the highest confidence of the lowest tenth of windows",
    "deepconf_lowest": "the highest confidence of the lowest window",
    "deepconf_vote": "a vote weighted by mean token confidence",
    "oracle": "a right response, if there is one: no rule can do better",
}


@dataclass(frozen=True)
class About:
    """What was evaluated: the files, and the reward model if it is known."""

    files: Sequence[str]
    reward_model: str | None = None


def render_report(
    data: Mapping[str, Any], groups: Sequence[Sequence[Rollout]], about: About, *, budget: int = PAGE_BYTES
) -> tuple[str, Shown]:
    """Return the page of an evaluation's JSON and its questions' graded responses, and what of the questions is on it.

    The page has at most ``budget`` bytes, unless figures and charts alone have more. Raises ImportError without matplotlib.
    """
    judged = summarise_questions(groups)
    drawn = charts(data)
    missed = sum(one.kind == "missed" for one in judged)
    links = {"figures": "Figures", "charts": "Charts", "questions": "Questions"}
    links |= {"missed": f"Avoidable mistakes ({missed})"} if missed else {}
    nav = " ".join(f'<a href="#{name}">{title}</a>' for name, title in links.items())
    found = "\n".join(f"<li>{text(sentence)}</li>" for sentence in findings(data, judged))
    missing = "".join(f"<li>{text(sentence)}</li>\n" for sentence in left_out(data))
    above = f"""{SKIP}
<header>
<h1>Evaluation of {text(clip(", ".join(about.files), 300))}</h1>
<p class="about">{_about(groups, about)}</p>
<p class="lead">{text(headline(data))}</p>
<nav aria-label="parts">{nav}</nav>
</header>
<main id="main">
<section>
<h2>Can the reward be trusted?</h2>
<ul>
{found}
</ul>
</section>
<section id="figures">
<h2>Figures</h2>
<div class="tables">
{_rules(data)}
{_differences(data)}
</div>
</section>
<section id="charts">
<h2>Charts</h2>
<div class="charts">
{"".join(map(figure, drawn))}
</div>
{f'<ul class="missing">{missing}</ul>' if missing else ""}
</section>
"""
    style = f"{chart_style()}\n{PARTS_STYLE}\n{palette_style()}\n{_STYLE}"
    title = f"Evaluation of {clip(', '.join(about.files), 100)}"
    room = budget - size(document(title, above, style)) - 100
    questions, shown = browser(judged, room)
    return document(title, f"{above}{questions}\n</main>", style), shown


def _about(groups: Sequence[Sequence[Rollout]], about: About) -> Html:
    flat = [one for group in groups for one in group]
    models = dict.fromkeys(_model(one.model) for one in flat)
    named = ", ".join(map(text, list(models)[:5])) + (f" and {len(models) - 5} others" if len(models) > 5 else "")
    tokens = sum(one.tokens for one in flat) / len(flat)
    reward = f", reward model <b>{text(clip(about.reward_model, 100))}</b>" if about.reward_model else ""
    return Html(
        f"<b>{counted(len(groups), 'question')}</b> \u00d7 <b>{counted(len(groups[0]), 'response')}</b> "
        f"of {tokens:.1f} tokens on average, sampled from <b>{named}</b>{reward}"
    )


def _model(known: Mapping[str, Any]) -> str:
    revision = known.get("revision")
    name = clip(known.get("id") or "a model that is not recorded", 100)
    return f"{name}, revision {clip(revision, 40)}" if revision else name


def _rules(data: Mapping[str, Any]) -> Html:
    aurocs = {"swift_best" if name == "swift" else name: figure for name, figure in data["auroc_within"].items()}
    rows = []
    for rule, accuracy in data["accuracy"].items():
        auroc = plain(interval(aurocs[rule], rule)) if rule in aurocs else None
        rows.append([rule, Html(percent(interval(accuracy, rule))), auroc and Html(auroc), RULES.get(rule)])
    return table(
        f"What each rule makes of {counted(data['n'], 'response')} a question; in brackets the 95 % intervals over questions",
        ("rule", "accuracy %", "AUROC within questions", "chooses"),
        rows,
    )


def _differences(data: Mapping[str, Any]) -> Html:
    if not data["paired"]:
        return Html("<p>There are no differences to show without rewards.</p>")
    rows = [
        [name.replace("-", " \u2212 "), Html(_minus(percent(interval(one, name), "+")))] for name, one in data["paired"].items()
    ]
    return table(
        "Differences between rules on the same questions, in points; the baseline beside the majority vote is the best "
        "log-probability score on these very questions, which favours it",
        ("difference", "points"),
        rows,
    )


def _minus(figures: str) -> str:
    return figures.replace("-", "\u2212")


_STYLE = """\
body{max-width:80rem}
.about,.count,.index summary,dd{color:var(--soft);font-size:.875rem}
.about{margin:.25rem 0}.about b{color:var(--ink);font-weight:600}
.lead{max-width:50rem;font-size:1.125rem}
nav a{margin-right:1rem}
main>section{margin-top:2rem}
section section{margin-top:1.5rem}
h3{margin:0 0 .25rem;font-size:1rem}
p,li{max-width:50rem}
ul{margin:0;padding-left:1.25rem}
li{margin:.25rem 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(30rem,100%),1fr));gap:1rem}
.missing{margin-top:1rem;color:var(--soft);font-size:.875rem}
.tables{display:flex;flex-wrap:wrap;gap:1.25rem 3rem}
th,td{white-space:nowrap}
caption{white-space:normal;max-width:min(38rem,80vw)}
.index{margin:.5rem 0}
.index td,.index th{padding-right:1rem}
.q{border:1px solid var(--line);border-radius:.5rem;background:var(--card);margin:.5rem 0}
.q>summary{padding:.5rem .875rem}
.q>summary:hover,.c>summary:hover{background:color-mix(in srgb,var(--line) 35%,transparent)}
.q>div{padding:.25rem .875rem .5rem;border-top:1px solid var(--line);scroll-margin-top:3.5rem}
h4{display:inline;margin:0;font-size:.9375rem;overflow-wrap:anywhere}
.prompt,.q .wide{margin:.75rem 0}
.count{margin:.75rem 0 .25rem}
.count b{color:var(--ink)}
.c{border-top:1px solid var(--line)}
.c>summary{display:flex;flex-wrap:wrap;gap:0 .75rem;padding:.375rem 0;font-size:.875rem;
font-variant-numeric:tabular-nums;list-style:none}
.c>summary::-webkit-details-marker{display:none}
.c>summary::before{content:"\\25b8";width:.75rem;color:var(--soft)}
.c[open]>summary::before{content:"\\25be"}
.c>summary>:first-child{white-space:pre}
.c>summary>:nth-child(2){min-width:5rem;overflow-wrap:anywhere;font-weight:600}
.c>summary>:nth-child(3){min-width:4.25rem}
.c>summary>:nth-child(5){font-weight:600}
.text{padding:.25rem 0 .75rem 1.5rem;border:0;max-width:62rem;max-height:30rem;overflow:auto}
.text i{font-style:normal;background:rgb(var(--c)/var(--a));print-color-adjust:exact}
.bar i{background:rgb(var(--c)/var(--a));print-color-adjust:exact}
.r0,.r1,.r2,.r3,.r4,.r5,.r6{text-decoration:underline dotted}
.g0{text-decoration:none}
.cut{display:inline-block;padding:0 .5rem;border:1px dashed var(--soft);border-radius:.25rem;color:var(--soft);font-weight:400}
@media print{.text{max-height:none}.q,.c{break-inside:avoid}}"""
