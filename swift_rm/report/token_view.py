"""The token view: one HTML page that shows why a reward model likes a response. No script, no other file, no network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape

from swift_rm.files.text import visible
from swift_rm.report.html_page import DARK_INK, LIGHT_INK, MONO, Html, document, text
from swift_rm.report.token_view_data import (
    GATE_STEPS,
    REWARD_STEPS,
    CandidateView,
    PageView,
    QuestionView,
    Scale,
    TokenView,
    numbers,
)

# Red, green and blue of the lowest reward, of 0 and of the highest, and of the ink: orange and blue are told apart by
# colour-blind eyes too, and each mode's ink can be read on all of its colours.
LIGHT = ((240, 140, 45), (222, 222, 218), (90, 165, 225)), LIGHT_INK
DARK = ((176, 80, 0), (68, 68, 72), (18, 98, 172)), DARK_INK
SHADES = (0.08, 0.35, 0.6, 0.8, 1.0)  # opacity by gate; even the palest keeps a hint of its colour


def render_page(page: PageView) -> str:
    """Return the page as HTML; every text in it is escaped, and no character in it is invisible or turns the text around.

    Candidates are put in the order of their rewards, best first, those without a finite reward last.
    """
    tokens = [token for question in page.questions for candidate in question.candidates for token in candidate.tokens]
    scale = Scale.of(tokens)
    sections = "\n".join(_question(number, question, scale) for number, question in enumerate(page.questions, start=1))
    links = " ".join(f'<a href="#q{number}">{number}</a>' for number in range(1, len(page.questions) + 1))
    shown = _of(len(page.questions), page.total, "question")
    body = f"""<header>
<h1>{escape(visible(page.title))}</h1>
<p class="about">Reward model <b>{text(page.reward_model)}</b> reading <b>{text(page.base_model)}</b>, {shown}</p>
{legend(scale, page.position, page.heads)}
<nav aria-label="questions">Questions {links}</nav>
</header>
<main>
{sections}
</main>"""
    return document(page.title, body, f"{PARTS_STYLE}\n{CARDS_STYLE}\n{_STYLE}\n{palette_style()}")


def _question(number: int, question: QuestionView, scale: Scale) -> str:
    ranked = sorted(question.candidates, key=lambda one: (not math.isfinite(one.reward), -one.reward))
    known = "" if question.question_id is None else f" <small>{text(question.question_id)}</small>"
    shown = cards([(str(rank), candidate) for rank, candidate in enumerate(ranked, start=1)], scale)
    return f"""<section id="q{number}">
<h2>Question {number}{known}</h2>
{prompt_box(question.prompt)}
<p class="count">{_of(len(ranked), question.total, "candidate")}, best first</p>
{shown}
</section>"""


def cards(named: Iterable[tuple[str, CandidateView]], scale: Scale) -> str:
    """Return candidates side by side, in a box that scrolls, each under its name; the style is ``CARDS_STYLE``."""
    shown = "\n".join(_card(name, candidate, scale) for name, candidate in named)
    return f'<div class="cards" tabindex="0">\n{shown}\n</div>'


def prompt_box(turns: Sequence[tuple[str | None, str]]) -> str:
    """Return a prompt's turns as HTML; a turn that is ``Html`` stays as it is."""
    said = []
    for role, turn in turns:
        who = "" if role is None else f"<b>{text(role)}</b> "
        said.append(f'<p dir="auto">{who}{turn if isinstance(turn, Html) else escape(visible(turn))}</p>')
    return '<div class="prompt">\n' + "\n".join(said) + "\n</div>"


def _card(name: str, candidate: CandidateView, scale: Scale) -> str:
    known = facts(candidate.answer, candidate.label, candidate.finish_reason, candidate.flag)
    listed = "".join(f"<li>{name} <b>{text(value)}</b></li>" for name, value in known.items())
    chance = f"{100 * candidate.probability:.1f} % right" if math.isfinite(candidate.probability) else ""
    weight = sum(gate for gate, _ in filter(None, map(numbers, candidate.tokens)))
    tokens = "".join(_token(token, scale, weight) for token in candidate.tokens)
    return f"""<article>
<h3><small>{name}</small> {signed(candidate.reward, 2)} <small>{chance}</small></h3>
<ul>{listed}</ul>
<p class="text" dir="auto">{tokens}</p>
</article>"""


_GRADES = {1: "right \u2713", 0: "wrong \u2717", None: None}


def facts(answer: str | None, label: int | None, finish_reason: str | None, flag: str | None) -> dict[str, str]:
    """Return what is known of a response, by the name a reader knows it by."""
    known = {"answer": answer, "graded": _GRADES.get(label), "finish": finish_reason, "flag": flag and flag.replace("_", " ")}
    return {name: value for name, value in known.items() if value is not None}


@lru_cache(2**16)
def token_text(said: str) -> str:
    """Return a token's text as HTML, with signs for what has no shape: ends of lines, tabs, parts of a character."""
    shown = escape(visible(said), quote=False) or "\u25cc"
    return shown.replace("\t", "\u21e5\t").replace("\n", "\u23ce\n")


def _token(token: TokenView, scale: Scale, weight: float) -> str:
    said = token_text(token.text)
    name = "\u2013" if token.token_id is None else token.token_id
    known = numbers(token)
    if known is None:
        return f'<span data-i="{name}">{said}</span>'
    gate, reward = known
    adds = signed(gate * reward / weight if weight else 0.0)
    return (
        f'<span class="t {scale.classes(gate, reward)}" data-r="{signed(reward)}" data-g="{gate:.3f}" data-a="{adds}" '
        f'data-i="{name}" tabindex="0">{said}</span>'
    )


def scale_legend(scale: Scale) -> str:
    """Return the parts of a definition list that explain a page's colours and shades."""
    colours = "".join(f'<i class="r{step} g{GATE_STEPS - 1}"></i>' for step in range(REWARD_STEPS))
    shades = "".join(f'<i class="r{REWARD_STEPS - 1} g{step}"></i>' for step in range(GATE_STEPS))
    reach = f"{scale.reward:g}"
    return f"""<div><dt>Colour: the token's reward</dt>
<dd><span class="bar">{colours}</span><span class="ends"><span>\u2212{reach} or less</span><span>0</span>\
<span>+{reach} or more</span></span>
Blue speaks for the response, orange against it. One scale for the whole page.</dd></div>
<div><dt>Shade: the token's gate</dt>
<dd><span class="bar">{shades}</span><span class="ends"><span>0</span><span>{scale.gate:.3f}</span></span>
How much the token counts. What is pale hardly counts, whatever its reward.</dd></div>"""


def legend(scale: Scale, position: str | None = None, heads: int = 1) -> str:
    """Return the list that explains a page's numbers, colours and signs; ``position`` None leaves out what they are read from."""
    state = "that produced it, before it was chosen" if position == "generating" else "at the token itself"
    source = f" Its gate and reward are read from the\nhidden state {state}." if position else ""
    several = f" A token shows the means of {heads} heads; the response's reward is made of each's own." if heads > 1 else ""
    return f"""<dl>
{scale_legend(scale)}
<div><dt>The response's reward</dt>
<dd><code>\u03a3 gate \u00b7 reward / \u03a3 gate</code> over its tokens: a logit, of which the probability of being right is
a function. A token <em>adds</em> <code>gate \u00b7 reward / \u03a3 gate</code> to it.{source}{several}</dd></div>
<div><dt>Reading a token</dt>
<dd>Point at it, tap it, or press Tab, for its numbers. Signs: \u23ce end of line, \u21e5 tab, \u25cc part of a character that
a later token completes, \u2039U+202E\u203a and the like a character that cannot be seen.</dd></div>
</dl>"""


def _of(shown: int, total: int, what: str) -> str:
    """Say how many are shown, and of how many where that is not all."""
    plural = what if total == 1 else f"{what}s"
    return f"{shown} {plural}" if shown == total else f"{shown} of {total} {plural}"


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign, or the words "not finite"."""
    return f"{value:+z.{digits}f}".replace("-", "\u2212") if math.isfinite(value) else "not finite"


PARTS_STYLE = f"""\
dl{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(14.5rem,100%),1fr));gap:1rem 1.75rem;margin:0 0 1rem;
padding:1rem 1.25rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem}}
dt{{font-weight:600;font-size:.875rem}}
dd{{margin:.25rem 0 0;line-height:1.45}}
.bar{{display:flex;height:1rem;margin:.375rem 0 .125rem;border-radius:.25rem;overflow:hidden}}
.bar i{{flex:1}}
.ends{{display:flex;justify-content:space-between;margin-bottom:.25rem;font-variant-numeric:tabular-nums}}
.prompt{{max-width:50rem;max-height:16rem;overflow:auto;padding:.25rem 0 .25rem 1rem;border-left:3px solid var(--line)}}
.prompt p{{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}}
.prompt b{{color:var(--soft);font-weight:400;margin-right:.5rem}}
.text{{margin:0;padding-top:.75rem;border-top:1px solid var(--line);white-space:pre-wrap;overflow-wrap:anywhere;tab-size:4;
font:.875rem/1.75 {MONO}}}"""

CARDS_STYLE = """\
small,.count,li{color:var(--soft);font-size:.875rem;font-weight:400}
li b{color:var(--ink);font-weight:600}
code{white-space:nowrap}
.count{margin:.75rem 0 .5rem}
.cards{display:grid;grid-auto-flow:column;grid-auto-columns:min(22rem,86vw);justify-content:start;gap:1rem;
overflow-x:auto;padding:2px 2px 3rem}
article{position:relative;padding:.875rem 1rem 1rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem}
h3{margin:0;font-size:1.25rem;font-variant-numeric:tabular-nums;display:flex;gap:.5rem;align-items:baseline}
h3 small:last-child{margin-left:auto}
ul{display:flex;flex-wrap:wrap;gap:0 1rem;margin:.25rem 0 .75rem;padding:0;list-style:none}
li{overflow-wrap:anywhere}
.text span{border-radius:.1875rem;padding:.125rem 0}
.t,.bar i{background:rgb(var(--c)/var(--a))}
.text span:hover,.text span:focus{outline:2px solid var(--ink);outline-offset:0}
.text span:hover::before,.text span:focus::before{content:"not read  \\b7  id " attr(data-i);position:absolute;z-index:1;
left:.75rem;margin-top:1.75rem;padding:.125rem .5rem;border-radius:.25rem;background:var(--ink);color:var(--card);
font-size:.75rem;line-height:1.6;white-space:pre;pointer-events:none}
.text .t:hover::before,.text .t:focus::before{content:"reward " attr(data-r) "   gate " attr(data-g) "\\a" \
"adds " attr(data-a) "   id " attr(data-i)}
.cards:focus-visible{outline:2px solid var(--link)}"""


_STYLE = """\
.about,nav,dd{color:var(--soft);font-size:.875rem;font-weight:400}
.about{margin:.25rem 0 1.25rem}
.about b{color:var(--ink);font-weight:600}
nav a{padding:0 .25rem}
section{margin-top:1.25rem}"""


def colour(step: int, palette: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """Return red, green and blue of one of the 21 colours, from the lowest reward (0) to the highest (20)."""
    middle = REWARD_STEPS // 2
    end = palette[0] if step < middle else palette[2]
    share = abs(step - middle) / middle
    red, green, blue = (round(zero + share * (full - zero)) for zero, full in zip(palette[1], end, strict=True))
    return red, green, blue


def palette_style() -> str:
    """Return the CSS of the colours r0 ... r20 and the shades g0 ... g4, in light and dark: what paints ``.t``."""

    def mode(palette: Sequence[Sequence[int]]) -> str:
        return "\n".join(f".r{k}{{--c:{' '.join(map(str, colour(k, palette)))}}}" for k in range(REWARD_STEPS))

    shades = "\n".join(f".g{k}{{--a:{opacity}}}" for k, opacity in enumerate(SHADES))
    return f"{shades}\n{mode(LIGHT[0])}\n@media (prefers-color-scheme: dark){{\n{mode(DARK[0])}\n}}"
