"""The report of a HiPO run: one page with what became of accuracy, tokens and think rate, alarms, and charts over the steps."""

from __future__ import annotations

from pathlib import Path

from swift_rm.files.atomic_write import write_whole
from swift_rm.files.text import clip, counted
from swift_rm.hipo.report.charts import charts, left_out
from swift_rm.hipo.report.run_findings import alarms, ends_table, sentences
from swift_rm.hipo.report.run_log import History, run_log
from swift_rm.report.html_page import SKIP, Html, document, figure, table, text
from swift_rm.report.palette import chart_style


def render_run(folder: str | Path, out: str | Path | None = None) -> str:
    """Return the page of a run's folder as HTML, the same for the same log, and write it to ``out`` if that is given.

    Raises what :func:`run_log` raises, and ImportError without matplotlib.
    """
    history = run_log(folder)
    page = render(history, Path(folder).resolve().name)
    if out is not None:
        write_whole(out, page)
    return page


def render(history: History, name: str) -> str:
    """Return the page of a run's history under a name."""
    first, last, count = history.steps
    title = f"HiPO run {clip(name, 100)}"
    found = "\n".join(f"<li>{text(sentence)}</li>" for sentence in [*sentences(history), *alarms(history)])
    drawn = "\n".join(map(figure, charts(history)))
    missing = "".join(f"<li>{text(sentence)}</li>\n" for sentence in left_out(history))
    body = f"""{SKIP}
<header>
<h1>{text(title)}</h1>
<p class="about">{counted(count, "logged step")}, {first} to {last}, from {text(history.source.name)} of {_place(history)}</p>
</header>
<main id="main">
<section>
<h2>What became of it</h2>
<ul>
{found}
</ul>
</section>
<section>
<h2>Figures</h2>
{_figures(history)}
</section>
<section>
<h2>Charts</h2>
<div class="charts">
{drawn}
</div>
{f'<ul class="missing">{missing}</ul>' if missing else ""}
</section>
</main>"""
    return document(title, body, f"{chart_style()}\n{_STYLE}")


def _place(history: History) -> Html:
    return text(clip(history.source.resolve().parent.name, 100))


def _figures(history: History) -> Html:
    return table(
        "Means of the first and of the last tenth of the logged steps, over all responses of training",
        ("figure", "first tenth", "last tenth", "difference"),
        ends_table(history),
        right={1, 2, 3},
    )


_STYLE = """\
body{max-width:80rem}
.about{margin:.25rem 0;color:var(--soft);font-size:.875rem}
main>section{margin-top:2rem}
h3{margin:0 0 .25rem;font-size:1rem}
li{max-width:50rem;margin:.25rem 0}
ul{margin:0;padding-left:1.25rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(30rem,100%),1fr));gap:1rem}
.missing{margin-top:1rem;color:var(--soft);font-size:.875rem}"""
