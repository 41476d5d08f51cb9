"""The shell of every page: one self-contained HTML file, without script or network, light and dark, all text escaped."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from swift_rm.files.text import visible

if TYPE_CHECKING:
    from swift_rm.report.plots.chart import Chart

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
LIGHT_INK, DARK_INK = (28, 28, 30), (240, 240, 242)  # red, green, blue of text
SKIP = '<a class="skip" href="#main">Skip to the content</a>'  # a body's first element, where a <main id="main"> follows
MONO = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace'


class Html(str):
    """Text that is HTML already: where other text is escaped, this is not."""

    __slots__ = ()


def document(title: str, body: str, style: str = "", policy: str = POLICY) -> str:
    """Return a page of this title, HTML body and further CSS; the title is escaped here, the body must have been.

    ``policy`` is its content security policy.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(visible(title))}</title>
<style>
{_STYLE}
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def text(value: object) -> Html:
    """Return a value as HTML text that can neither act nor reorder what surrounds it; what is ``Html`` stays as it is."""
    return value if isinstance(value, Html) else Html(f"<bdi>{escape(visible(str(value)))}</bdi>")


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[object]], right: Collection[int] = ()) -> Html:
    """Return a table in a box that scrolls; the first column names the rows.

    Cells are text, numbers, ``Html``, or None for nothing; a float has four digits, and one that is not finite is nothing.
    Columns of numbers, and those counted in ``right``, are aligned to the right.
    """
    rows = [list(row) for row in rows]
    numeric = [
        i in right or (any(isinstance(row[i], int | float) for row in rows) and not any(isinstance(row[i], str) for row in rows))
        for i in range(len(header))
    ]
    kinds = [' class="n"' if number else "" for number in numeric]
    head = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(header, kinds, strict=True))
    lines = []
    for row in rows:
        first, *others = (_cell(value) for value in row)
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], others, strict=True))
        lines.append(f'<tr><th scope="row"{kinds[0]}>{first}</th>{cells}</tr>')
    body = "\n".join(lines)
    return Html(
        f'<div class="wide"{scrolls(caption)}><table>\n<caption>{text(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def figure(chart: Chart) -> Html:
    """Return a chart with its title, its text alternative and its numbers; the page's style needs ``palette.chart_style()``."""
    numbers = table(f"{chart.title}: the numbers drawn", chart.header, chart.rows)
    return Html(
        f'<figure id="chart-{chart.name}">\n<h3>{text(chart.title)}</h3>\n'
        f'<div class="wide"{scrolls(chart.title)}>{chart.svg(themed=True)}</div>\n'
        f"<figcaption>{text(chart.alt)}{_key(chart)}</figcaption>\n"
        f"<details><summary>The numbers of this chart</summary>\n{numbers}\n</details>\n</figure>"
    )


def scrolls(name: str) -> Html:
    """Return the attributes of a box that scrolls: keys reach it, and a screen reader says its name."""
    return Html(f' tabindex="0" role="group" aria-label="{escape(visible(name))}"')


def _key(chart: Chart) -> str:
    """Say how each line looks, for a narrow window, in which the names beside the lines are out of view."""
    lines = chart.key()
    return f'<span class="key"> The lines: {text("; ".join(lines))}.</span>' if lines else ""


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "\u2013"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "\u2212")
    return str(value).replace("-", "\u2212") if isinstance(value, int) else text(value)


def _rgb(channels: Sequence[int]) -> str:
    return f"rgb({' '.join(map(str, channels))})"


_STYLE = f"""\
:root{{color-scheme:light dark;--page:#f6f6f4;--card:#fff;--line:#dcdcd8;--soft:#5c5c61;--link:#0b5cad;--ink:{_rgb(LIGHT_INK)}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;padding:1.5rem clamp(1rem,3vw,3rem) 4rem;background:var(--page);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}}
h1{{margin:0;font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}}
h2{{margin:0 0 .5rem;font-size:1.125rem}}
small{{color:var(--soft);font-size:.875rem;font-weight:400}}
a{{color:var(--link)}}
code{{font:.8125rem {MONO};color:var(--ink)}}
:focus-visible{{outline:2px solid var(--link);outline-offset:1px}}
.skip{{position:absolute;left:-99rem;padding:.5rem 1rem;background:var(--card)}}
.skip:focus{{left:.5rem;top:.5rem;z-index:2}}
.wide{{overflow-x:auto;max-width:100%}}
table{{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}}
caption{{text-align:left;padding:.25rem 0 .5rem;color:var(--soft)}}
th,td{{padding:.25rem .75rem .25rem 0;text-align:left;font-weight:400;border-bottom:1px solid var(--line);vertical-align:top}}
thead th{{font-weight:600;vertical-align:bottom}}
.n{{text-align:right}}
summary{{cursor:pointer}}
.key{{display:none}}
@media (max-width:34rem){{.key{{display:inline}}}}
figure{{margin:0;padding:1rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem;min-width:0}}
figcaption,figure summary{{margin:.5rem 0 0;color:var(--soft);font-size:.875rem;overflow-wrap:anywhere}}
@media (prefers-color-scheme:dark){{:root{{--page:#161618;--card:#1f1f22;--line:#3a3a3f;--soft:#a9a9b0;--link:#7db8f0;
--ink:{_rgb(DARK_INK)}}}}}"""
