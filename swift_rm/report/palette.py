"""The charts' colours: one set for a light ground and one for a dark, told apart by colour-blind eyes and in contrast.

Blue, red, green, purple and yellow, near Okabe and Ito's hues, were moved to be as far apart as they get under all three
colour-blindnesses with a contrast of 3:1 at least on white, on the page's grey and on the dark card. Charts are drawn in
the light set; a page replaces it by CSS custom properties.
"""

from __future__ import annotations

LIGHT = {
    "ground": "#ffffff",
    "ink": "#1c1c1e",
    "soft": "#5c5c61",
    "quiet": "#8b8b91",
    "grid": "#e2e2de",
    "c1": "#527bce",
    "c2": "#ea2033",
    "c3": "#155546",
    "c4": "#834882",
    "c5": "#546311",
}
DARK = {
    "ground": "#1f1f22",
    "ink": "#f0f0f2",
    "soft": "#a9a9b0",
    "quiet": "#7c7c83",
    "grid": "#3a3a3f",
    "c1": "#5d96e2",
    "c2": "#f84541",
    "c3": "#9cdda7",
    "c4": "#ed94c9",
    "c5": "#e4d258",
}
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_ROLES = {colour: role for role, colour in LIGHT.items()}


def variable(colour: str) -> str:
    """Return the CSS value that stands for a colour of the light set; another colour stays itself."""
    return f"var(--chart-{_ROLES[colour]})" if colour in _ROLES else colour


def chart_style() -> str:
    """Return the CSS of a page with themed charts: their colours in either mode, and their size in a figure."""

    def mode(colours: dict[str, str]) -> str:
        return ":root{" + ";".join(f"--chart-{role}:{colour}" for role, colour in colours.items()) + "}"

    return f"""\
{mode(LIGHT)}
@media (prefers-color-scheme: dark){{{mode(DARK)}}}
svg.chart{{display:block;width:100%;min-width:28rem;max-width:46rem;height:auto}}"""
