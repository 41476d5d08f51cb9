"""The token view: one HTML page that shows why a reward model likes a response. No script, no other file, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
REWARD_STEPS, GATE_STEPS = 21, 5

# Red, green and blue of the lowest reward, of 0 and of the highest, and of the ink: orange and blue are told apart by
# colour-blind eyes too, and each mode's ink can be read on all of its colours.
LIGHT = ((240, 140, 45), (222, 222, 218), (90, 165, 225)), (28, 28, 30)
DARK = ((176, 80, 0), (68, 68, 72), (18, 98, 172)), (240, 240, 242)
SHADES = (0.08, 0.35, 0.6, 0.8, 1.0)  # opacity by gate; even the palest keeps a hint of its colour


@dataclass(frozen=True)
class TokenView:
    """One token: its text, its id, and its gate (0..1) and reward, which are None where the reward model does not read it."""

    text: str
    token_id: int
    gate: float | None = None
    reward: float | None = None


@dataclass(frozen=True)
class CandidateView:
    """One response: its tokens, reward, probability of being right, and what else is known of it (None: not known)."""

    tokens: Sequence[TokenView]
    reward: float
    probability: float
    answer: str | None = None
    label: int | None = None
    finish_reason: str | None = None
    flag: str | None = None


@dataclass(frozen=True)
class QuestionView:
    """One question: its id if it has one, its prompt as (role or None, text) turns, its candidates; ``total`` were there."""

    question_id: str | None
    prompt: Sequence[tuple[str | None, str]]
    candidates: Sequence[CandidateView]
    total: int


@dataclass(frozen=True)
class PageView:
    """What the page shows: its title, the models' names, at which state how many heads read, the questions of ``total``."""

    title: str
    base_model: str
    reward_model: str
    position: str
    questions: Sequence[QuestionView]
    total: int
    heads: int = 1


def render_page(page: PageView) -> str:
    """Return the page as HTML; every text in it is escaped, and no character in it is invisible or turns the text around.

    Candidates are put in the order of their rewards, best first, those without a finite reward last.
    """
    tokens = [token for question in page.questions for candidate in question.candidates for token in candidate.tokens]
    scale = Scale.of(tokens)
    title = escape(visible(page.title))
    sections = "\n".join(_question(number, question, scale) for number, question in enumerate(page.questions, start=1))
    links = " ".join(f'<a href="#q{number}">{number}</a>' for number in range(1, len(page.questions) + 1))
    shown = _of(len(page.questions), page.total, "question")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{_stylesheet()}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="about">Reward model <b>{_text(page.reward_model)}</b> reading <b>{_text(page.base_model)}</b>, {shown}</p>
{_legend(scale, page.position, page.heads)}
<nav aria-label="questions">Questions {links}</nav>
</header>
<main>
{sections}
</main>
</body>
</html>
"""


@dataclass(frozen=True)
class Scale:
    """How numbers become colours on one page: rewards from -reward to +reward, gates from 0 to gate."""

    reward: float
    gate: float

    @classmethod
    def of(cls, tokens: Sequence[TokenView]) -> Scale:
        """Fit the scale to a page: 90 % of all gate lies on rewards within it, the largest gate has the full shade.

        Rounded up to two digits. A page without numbers, or with nothing but zeros, gets the scale 1.
        """
        pairs = sorted((abs(reward), gate) for gate, reward in filter(None, map(_numbers, tokens)))
        sums = list(accumulate(gate for _, gate in pairs))
        reach = next((reward for (reward, _), sum_ in zip(pairs, sums, strict=True) if sum_ >= 0.9 * sums[-1]), 0.0)
        return cls(_round_up(reach) or 1.0, max((gate for _, gate in pairs), default=0.0) or 1.0)

    def classes(self, gate: float, reward: float) -> str:
        """Return the CSS classes of a token: one of 21 colours, one of 5 shades."""
        middle = REWARD_STEPS // 2
        colour = middle + round(max(-1.0, min(1.0, reward / self.reward)) * middle)
        return f"r{colour} g{round(min(1.0, gate / self.gate) * (GATE_STEPS - 1))}"


def visible(text: str) -> str:
    """Replace what cannot be seen or reorders text by its code point; line feeds, tabs and spaces stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\u2039U+{ord(c):04X}\u203a" for c in text)


def _text(text: str) -> str:
    return f"<bdi>{escape(visible(text))}</bdi>"


def _question(number: int, question: QuestionView, scale: Scale) -> str:
    ranked = sorted(question.candidates, key=lambda one: (not math.isfinite(one.reward), -one.reward))
    known = "" if question.question_id is None else f" <small>{_text(question.question_id)}</small>"
    turns = "\n".join(
        f'<p dir="auto">{"" if role is None else f"<b>{_text(role)}</b> "}{escape(visible(text))}</p>'
        for role, text in question.prompt
    )
    cards = "\n".join(_card(rank, candidate, scale) for rank, candidate in enumerate(ranked, start=1))
    return f"""<section id="q{number}">
<h2>Question {number}{known}</h2>
<div class="prompt">
{turns}
</div>
<p class="count">{_of(len(ranked), question.total, "candidate")}, best first</p>
<div class="cards" tabindex="0">
{cards}
</div>
</section>"""


def _card(rank: int, candidate: CandidateView, scale: Scale) -> str:
    known = {"answer": candidate.answer, "graded": _GRADES.get(candidate.label), "finish": candidate.finish_reason}
    known |= {"flag": candidate.flag.replace("_", " ") if candidate.flag else None}
    facts = "".join(f"<li>{name} <b>{_text(value)}</b></li>" for name, value in known.items() if value is not None)
    chance = f"{100 * candidate.probability:.1f} % right" if math.isfinite(candidate.probability) else ""
    weight = sum(gate for gate, _ in filter(None, map(_numbers, candidate.tokens)))
    tokens = "".join(_token(token, scale, weight) for token in candidate.tokens)
    return f"""<article>
<h3><small>{rank}</small> {_signed(candidate.reward, 2)} <small>{chance}</small></h3>
<ul>{facts}</ul>
<p class="text" dir="auto">{tokens}</p>
</article>"""


_GRADES = {1: "right \u2713", 0: "wrong \u2717", None: None}


def _token(token: TokenView, scale: Scale, weight: float) -> str:
    text = escape(visible(token.text), quote=False) or "\u25cc"
    text = text.replace("\t", "\u21e5\t").replace("\n", "\u23ce\n")
    numbers = _numbers(token)
    if numbers is None:
        return f'<span data-i="{token.token_id}">{text}</span>'
    gate, reward = numbers
    adds = _signed(gate * reward / weight if weight else 0.0)
    return (
        f'<span class="t {scale.classes(gate, reward)}" data-r="{_signed(reward)}" data-g="{gate:.3f}" data-a="{adds}" '
        f'data-i="{token.token_id}" tabindex="0">{text}</span>'
    )


def _legend(scale: Scale, position: str, heads: int) -> str:
    colours = "".join(f'<i class="r{step} g{GATE_STEPS - 1}"></i>' for step in range(REWARD_STEPS))
    shades = "".join(f'<i class="r{REWARD_STEPS - 1} g{step}"></i>' for step in range(GATE_STEPS))
    reach = f"{scale.reward:g}"
    state = "that produced it, before it was chosen" if position == "generating" else "at the token itself"
    several = f" A token shows the means of {heads} heads; the response's reward is made of each's own." if heads > 1 else ""
    return f"""<dl>
<div><dt>Colour: the token's reward</dt>
<dd><span class="bar">{colours}</span><span class="ends"><span>\u2212{reach} or less</span><span>0</span>\
<span>+{reach} or more</span></span>
Blue speaks for the response, orange against it. One scale for the whole page.</dd></div>
<div><dt>Shade: the token's gate</dt>
<dd><span class="bar">{shades}</span><span class="ends"><span>0</span><span>{scale.gate:.3f}</span></span>
How much the token counts. What is pale hardly counts, whatever its reward.</dd></div>
<div><dt>The response's reward</dt>
<dd><code>\u03a3 gate \u00b7 reward / \u03a3 gate</code> over its tokens: a logit, of which the probability of being right is
a function. A token <em>adds</em> <code>gate \u00b7 reward / \u03a3 gate</code> to it. Its gate and reward are read from the
hidden state {state}.{several}</dd></div>
<div><dt>Reading a token</dt>
<dd>Point at it, tap it, or press Tab, for its numbers. Signs: \u23ce end of line, \u21e5 tab, \u25cc part of a character that
a later token completes, \u2039U+202E\u203a and the like a character that cannot be seen.</dd></div>
</dl>"""


def _of(shown: int, total: int, what: str) -> str:
    """Say how many are shown, and of how many where that is not all."""
    plural = what if total == 1 else f"{what}s"
    return f"{shown} {plural}" if shown == total else f"{shown} of {total} {plural}"


def _numbers(token: TokenView) -> tuple[float, float] | None:
    """Return gate and reward, or None if the token is not read or its state was not finite."""
    if token.gate is None or token.reward is None or not math.isfinite(token.gate + token.reward):
        return None
    return token.gate, token.reward


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+z.{digits}f}".replace("-", "\u2212") if math.isfinite(value) else "not finite"


def _round_up(value: float) -> float:
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")


def colour(step: int, palette: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """Return red, green and blue of one of the 21 colours, from the lowest reward (0) to the highest (20)."""
    middle = REWARD_STEPS // 2
    end = palette[0] if step < middle else palette[2]
    share = abs(step - middle) / middle
    red, green, blue = (round(zero + share * (full - zero)) for zero, full in zip(palette[1], end, strict=True))
    return red, green, blue


def _stylesheet() -> str:
    def mode(palette: Sequence[Sequence[int]], ink: Sequence[int]) -> str:
        steps = "\n".join(f".r{k}{{--c:{' '.join(map(str, colour(k, palette)))}}}" for k in range(REWARD_STEPS))
        return f":root{{--ink:rgb({' '.join(map(str, ink))})}}\n{steps}"

    shades = "\n".join(f".g{k}{{--a:{opacity}}}" for k, opacity in enumerate(SHADES))
    return f"{_STYLE}\n{shades}\n{mode(*LIGHT)}\n@media (prefers-color-scheme: dark){{\n{_DARK_PAGE}\n{mode(*DARK)}\n}}"


_STYLE = """\
:root{color-scheme:light dark;--page:#f6f6f4;--card:#fff;--line:#dcdcd8;--soft:#5c5c61;--link:#0b5cad}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem clamp(1rem,3vw,3rem) 4rem;background:var(--page);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{margin:0;font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}
h2{margin:0 0 .5rem;font-size:1.125rem}
small,.about,.count,nav,dd,li{color:var(--soft);font-size:.875rem;font-weight:400}
.about{margin:.25rem 0 1.25rem}
.about b,li b{color:var(--ink);font-weight:600}
a{color:var(--link);padding:0 .25rem}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(14.5rem,100%),1fr));gap:1rem 1.75rem;margin:0 0 1rem;
padding:1rem 1.25rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem}
dt{font-weight:600;font-size:.875rem}
dd{margin:.25rem 0 0;line-height:1.45}
code{font:.8125rem ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;color:var(--ink);white-space:nowrap}
.bar{display:flex;height:1rem;margin:.375rem 0 .125rem;border-radius:.25rem;overflow:hidden}
.bar i{flex:1}
.ends{display:flex;justify-content:space-between;margin-bottom:.25rem;font-variant-numeric:tabular-nums}
section{margin-top:1.25rem}
.prompt{max-width:50rem;max-height:16rem;overflow:auto;padding:.25rem 0 .25rem 1rem;border-left:3px solid var(--line)}
.prompt p{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.prompt b{color:var(--soft);font-weight:400;margin-right:.5rem}
.count{margin:.75rem 0 .5rem}
.cards{display:grid;grid-auto-flow:column;grid-auto-columns:min(22rem,86vw);justify-content:start;gap:1rem;
overflow-x:auto;padding:2px 2px 3rem}
article{position:relative;padding:.875rem 1rem 1rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem}
h3{margin:0;font-size:1.25rem;font-variant-numeric:tabular-nums;display:flex;gap:.5rem;align-items:baseline}
h3 small:last-child{margin-left:auto}
ul{display:flex;flex-wrap:wrap;gap:0 1rem;margin:.25rem 0 .75rem;padding:0;list-style:none}
li{overflow-wrap:anywhere}
.text{margin:0;padding-top:.75rem;border-top:1px solid var(--line);white-space:pre-wrap;overflow-wrap:anywhere;tab-size:4;
font:.875rem/1.75 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.text span{border-radius:.1875rem;padding:.125rem 0}
.t,.bar i{background:rgb(var(--c)/var(--a))}
.text span:hover,.text span:focus{outline:2px solid var(--ink);outline-offset:0}
.text span:hover::before,.text span:focus::before{content:"not read  \\b7  id " attr(data-i);position:absolute;z-index:1;
left:.75rem;margin-top:1.75rem;padding:.125rem .5rem;border-radius:.25rem;background:var(--ink);color:var(--card);
font-size:.75rem;line-height:1.6;white-space:pre;pointer-events:none}
.text .t:hover::before,.text .t:focus::before{content:"reward " attr(data-r) "   gate " attr(data-g) "\\a" \
"adds " attr(data-a) "   id " attr(data-i)}
.cards:focus-visible{outline:2px solid var(--link)}"""

_DARK_PAGE = ":root{--page:#161618;--card:#1f1f22;--line:#3a3a3f;--soft:#a9a9b0;--link:#7db8f0}"
