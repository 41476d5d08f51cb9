"""A chart: a picture, the figures it shows as a table, and its main figures in words."""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from swift_rm.files.atomic_write import write_whole
from swift_rm.report.palette import FONTS, chart_style, variable
from swift_rm.report.plots.axes_and_labels import key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Cell", "Chart", "chart_style", "drawing"]

Cell = str | int | float | None

_FONT = "DejaVu Sans"  # text is measured in it, and written for the reader's own fonts
_SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "font.family": [_FONT], "text.parse_math": False}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True)
class Chart:
    """A picture with its text alternatives.

    ``name`` is the stem of its files and ids, ``title`` its caption, ``alt`` one to three sentences with its main figures;
    ``header`` and ``rows`` are exactly what is drawn; ``figure`` is matplotlib's. Raises ValueError for a name that is
    not of lower-case letters, digits and underscores.
    """

    name: str
    title: str
    alt: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    figure: Figure = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"a chart's name is of lower-case letters, digits and underscores, got {self.name!r}")

    def svg(self, themed: bool = False) -> str:
        """Return the picture as an ``<svg>`` element, the same each time; several may stand in one page.

        ``themed`` makes the colours the custom properties of :func:`chart_style` on no ground, for a page in light or
        dark; without, the ground is white and the element is a file's whole content.
        """
        drawn = io.BytesIO()
        with drawing(self.name):
            self.figure.savefig(
                drawn, format="svg", transparent=themed, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
            )
        root = ElementTree.fromstring(drawn.getvalue())
        _tidy(root, self.name, themed)
        for tag, text in (("desc", self.alt), ("title", self.title)):
            element = ElementTree.Element(tag, {"id": f"{self.name}-{tag}"})
            element.text = text
            root.insert(0, element)
        return ElementTree.tostring(root, encoding="unicode")

    def _repr_svg_(self) -> str:
        return self.svg()

    def key(self) -> list[str]:
        """Return the names written beside the lines, each with how its line looks, in words."""
        return key(self.figure)

    def csv(self) -> str:
        """Return the table as CSV: plain numbers with all digits, nothing for None and NaN, no text a spreadsheet would run."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows([_safe(cell) for cell in row] for row in self.rows)
        return out.getvalue()

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``<name>.svg`` and ``<name>.csv`` into a folder, which is made if need be, and return their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        picture, table = folder / f"{self.name}.svg", folder / f"{self.name}.csv"
        write_whole(picture, f'<?xml version="1.0" encoding="utf-8"?>\n{self.svg()}\n')
        write_whole(table, self.csv())
        return picture, table


@contextmanager
def drawing(salt: str = "") -> Iterator[None]:
    """Draw under matplotlib's own defaults and fonts, whatever the user's settings, which are back afterwards.

    Raises ImportError without matplotlib, OSError without the font that comes with it.
    """
    try:
        from matplotlib import rc_context, style
    except ModuleNotFoundError as error:
        raise ImportError('drawing charts needs matplotlib: pip install "swift-rm[report]"') from error
    with style.context("default"), rc_context({**_SETTINGS, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's own fonts may well have it
        _find_font()
        yield


def _find_font() -> None:
    """Make sure that matplotlib knows its own font: lists it kept of a machine's fonts may be empty or of another machine."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import FontProperties, fontManager

    wanted = FontProperties(family=[_FONT])
    try:
        fontManager.findfont(wanted, fallback_to_default=False)
    except ValueError:
        folder = Path(get_data_path()) / "fonts" / "ttf"
        for path in sorted(folder.glob("DejaVuSans*.ttf")):
            fontManager.addfont(path)
        try:
            fontManager.findfont(wanted, fallback_to_default=False)
        except ValueError:
            raise OSError(f"matplotlib has no font {_FONT!r} to draw charts with, nor is it in {folder}: reinstall it") from None


def _safe(cell: Cell) -> Cell:
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _tidy(root: ElementTree.Element, name: str, themed: bool) -> None:
    """Make matplotlib's file an element that harms no page: no style sheet, no foreign ids, colours as asked for."""
    elements = list(root.iter())
    for element in elements:
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: " ".join(value.split()) for key, value in element.attrib.items()}
        for child in [child for child in element if child.tag.rpartition("}")[2] in ("style", "metadata")]:
            element.remove(child)
    used = {match for element in elements for value in element.attrib.values() for match in _REFERENCE.findall(value)}
    used |= {element.attrib["href"].removeprefix("#") for element in elements if "href" in element.attrib}
    for element in elements:
        attributes = element.attrib
        if attributes.get("id") in used:
            attributes["id"] = f"{name}-{attributes['id']}"
        else:
            attributes.pop("id", None)
        if "href" in attributes:
            attributes["href"] = f"#{name}-{attributes['href'].removeprefix('#')}"
        if "clip-path" in attributes:
            attributes["clip-path"] = _REFERENCE.sub(rf"url(#{name}-\1)", attributes["clip-path"])
        if "style" in attributes:
            style = attributes["style"].replace("font-family: 'DejaVu Sans'; ", "").replace("; font-family: 'DejaVu Sans'", "")
            attributes["style"] = _COLOUR.sub(lambda match: variable(match[0]), style) if themed else style
    size = {} if themed else {key: root.attrib[key] for key in ("width", "height")}
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "class": "chart",
        **size,
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
        "style": f"font-family: {FONTS}; stroke-linejoin: round; stroke-linecap: butt",
    }
