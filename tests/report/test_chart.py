import csv
import io
import itertools
import re
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from swift_rm.evaluation.intervals import Interval
from swift_rm.files.text import shortened
from swift_rm.report.palette import DARK, LIGHT
from swift_rm.report.plots.axes_and_labels import (
    DASHES,
    Label,
    Look,
    band,
    canvas,
    dress,
    end_labels,
    line,
    percent_axis,
    plain_ticks,
    sparse,
    spread,
    whiskers,
)
from swift_rm.report.plots.chart import Chart, chart_style, drawing

matplotlib = pytest.importorskip("matplotlib")

POINTS = [Interval(0.2, 0.1, 0.3), Interval(0.4, 0.3, 0.5)]


def chart(name="some_chart", text="a label", rows=(("a", 1, 0.25),), title="A title", alt="What is seen."):
    with drawing():
        figure = canvas()
        axes = dress(figure.add_subplot(), "x", "y")
        for look in (Look("c1", "o"), Look("c2", "s", DASHES[1], filled=False)):
            band(axes, [1, 2], POINTS, look)
            whiskers(axes, [1, 2], POINTS, look)
            line(axes, [1, 2], POINTS, look)
        end_labels(axes, [Label(text, 0.4, Look("c1", "o"))], 2)
    return Chart(name, title, alt, ("rule", "k", "accuracy"), rows, figure)


def elements(svg):
    return list(ElementTree.fromstring(svg).iter())


def local(element):
    return element.tag.rpartition("}")[2]


def test_the_svg_names_and_describes_itself_and_holds_nothing_active():
    root, *rest = elements(chart(title="<b> & title", alt='quoted "alt"').svg())
    assert root.attrib["role"] == "img"
    title, desc = (next(e for e in rest if local(e) == tag) for tag in ("title", "desc"))
    assert root.attrib["aria-labelledby"].split() == [title.attrib["id"], desc.attrib["id"]]
    assert (title.text, desc.text) == ("<b> & title", 'quoted "alt"')
    assert {local(e) for e in rest} <= {"title", "desc", "defs", "g", "path", "use", "text", "clipPath", "rect"}
    assert not [key for e in rest for key in e.attrib if key.startswith("on")]


def test_the_svg_is_the_same_each_time_and_has_no_date():
    one = chart()
    assert one.svg() == one.svg() == chart().svg() == one._repr_svg_()
    assert one.svg(themed=True) == chart().svg(themed=True) != one.svg()
    assert not re.search(r"20\d\d-\d\d-\d\d|matplotlib.org", one.svg())


def test_several_charts_fit_in_one_page():
    svgs = [chart(name).svg(themed=True) for name in ("one", "two")]
    ids = [[e.attrib["id"] for e in elements(svg) if "id" in e.attrib] for svg in svgs]
    assert len(set(ids[0] + ids[1])) == len(ids[0]) + len(ids[1])
    for name, svg, own in zip(("one", "two"), svgs, ids, strict=True):
        assert all(re.match(rf"{name}-", identity) for identity in own)
        pointed = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
        assert pointed
        assert {a or b for a, b in pointed} <= set(own)
        assert "<style" not in svg
        assert "<!DOCTYPE" not in svg


def test_a_themed_svg_has_only_the_colours_of_the_style_sheet():
    plain, themed = chart().svg(), chart().svg(themed=True)
    assert not re.search(r"#[0-9a-f]{6}\b", themed)
    used = set(re.findall(r"var\((--chart-[a-z0-9]+)\)", themed))
    assert {"--chart-ink", "--chart-c1", "--chart-c2", "--chart-ground", "--chart-grid"} <= used
    light, dark = chart_style().split("@media (prefers-color-scheme: dark)")
    for sheet, colours in ((light, LIGHT), (dark, DARK)):
        assert {f"--chart-{role}:{colour}" for role, colour in colours.items()} <= set(re.findall(r"--chart-[\w-]+:#\w+", sheet))
        assert used <= {f"--chart-{role}" for role in colours}
    assert "var(" not in plain
    assert set(re.findall(r"#[0-9a-f]{6}\b", plain)) <= set(LIGHT.values())
    ground = 'd="M 0 290 L 460 290 L 460 0 L 0 0 z" style="fill: '
    assert f"{ground}#ffffff" in plain
    assert ground not in themed


def test_text_is_written_as_text_and_formulas_and_markup_as_themselves():
    hostile = "</svg><script>x</script> $\\frac{1}{2$ <!-- & id=\"m1\" 'q' 漢字"
    svg = chart(text=hostile).svg()
    assert hostile in [element.text for element in elements(svg) if local(element) == "text"]
    assert "<script" not in svg
    assert "-apple-system" in elements(svg)[0].attrib["style"]
    assert "font-family" not in svg.split(">", 1)[1]


def test_csv_has_plain_numbers_and_runs_no_formula():
    rows = (("=1+1", 1, 0.1 + 0.2), ("-x", 2, None), ('a,"b"\nc', 3, -1e-12), ("+", 16, 1.0), ("@x", 0, float("nan")))
    read = list(csv.reader(io.StringIO(chart(rows=rows).csv())))
    assert read[0] == ["rule", "k", "accuracy"]
    assert [row[0] for row in read[1:]] == ["'=1+1", "'-x", 'a,"b"\nc', "'+", "'@x"]
    assert [row[1] for row in read[1:]] == ["1", "2", "3", "16", "0"]
    assert float(read[1][2]) == 0.1 + 0.2
    assert [row[2] for row in read[2:]] == ["", "-1e-12", "1.0", ""]


def test_save_writes_a_picture_that_stands_alone_and_its_table(tmp_path):
    one = chart()
    picture, table = one.save(tmp_path / "new" / "folder")
    assert (picture.name, table.name) == ("some_chart.svg", "some_chart.csv")
    root = ElementTree.parse(picture).getroot()
    assert (root.attrib["width"], root.attrib["viewBox"]) == ("460pt", "0 0 460 290")
    assert "var(" not in picture.read_text()
    assert table.read_text() == one.csv()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        one.save(tmp_path / "file")


@pytest.mark.parametrize("name", ["", "a b", "../x", "Name", '"><script>', "1st"])
def test_a_name_that_is_no_stem_is_refused(name):
    with pytest.raises(ValueError, match="lower-case letters, digits and underscores"):
        chart(name)


def test_no_setting_of_the_user_changes_the_picture_and_none_is_changed(caplog):
    wanted = chart().svg()
    mine = {"font.family": ["No Such Font"], "font.size": 40, "svg.fonttype": "path", "axes.facecolor": "#ff0000"}
    with matplotlib.rc_context(mine), warnings.catch_warnings():
        warnings.simplefilter("error")
        before = str(matplotlib.rcParams)
        assert chart().svg() == wanted
        assert str(matplotlib.rcParams) == before
        assert "漢字" in chart(text="漢字").svg()  # the bundled font has no such glyphs
    assert not caplog.records


def test_a_machine_without_fonts_draws_without_a_word(tmp_path):
    program = (
        "import matplotlib.font_manager as fonts\n"
        "fonts.fontManager.ttflist = [f for f in fonts.fontManager.ttflist if 'mpl-data' in f.fname]\n"
        "from tests.report.test_chart import chart\n"
        "import sys; print(len(chart().svg()), 'matplotlib.pyplot' in sys.modules)"
    )
    environment = {
        "MPLCONFIGDIR": str(tmp_path),
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "HOME": str(tmp_path),
        "PATH": "",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(chart().svg())), "False"]
    assert "findfont" not in done.stderr


@pytest.fixture
def no_fonts(monkeypatch):
    """A list of fonts that is empty, as one kept of another machine may be."""
    from matplotlib.font_manager import fontManager

    monkeypatch.setattr(fontManager, "ttflist", [])
    fontManager._findfont_cached.cache_clear()
    yield fontManager
    fontManager._findfont_cached.cache_clear()


def test_an_empty_list_of_fonts_is_filled_with_those_that_matplotlib_brings(no_fonts):
    svg = chart(text="a name").svg()
    assert "a name" in svg
    assert {font.name for font in no_fonts.ttflist} >= {"DejaVu Sans"}
    no_fonts._findfont_cached.cache_clear()
    assert svg == chart(text="a name").svg()


def test_without_any_font_one_sentence_says_so_before_anything_is_drawn(no_fonts, monkeypatch, tmp_path):
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(OSError, match=r"^matplotlib has no font 'DejaVu Sans' .* nor is it in .*ttf: reinstall it$"), drawing():
        pass


def test_a_chart_says_in_words_how_its_lines_look():
    assert chart(text="<b>").key() == ["<b>: solid line with circles"]
    looks = [Look("c1", marker, dash, filled) for marker in ("", *"osD^vPX") for dash in DASHES for filled in (True, False)]
    drawn = {look.words for look in looks if look.marker or look.filled}
    assert len(drawn) == 7 * 5 * 2 + 5
    assert Look("quiet", width=0.8).words == "thin solid line"
    assert Look("c2", "s", DASHES[1], filled=False).words == "dashed line with hollow squares"


def test_ticks_below_zero_have_a_minus():
    with drawing():
        axes = canvas().add_subplot()
        axes.plot([-2, 1], [-0.1, 0.1])
        percent_axis(axes)
        plain_ticks(axes, [-2, 1])
        axes.figure.canvas.draw()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["\u22122", "1"]
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert "\u221210" in ticks and not any("-" in tick for tick in ticks)


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'^drawing charts needs matplotlib: pip install "swift-rm\[report\]"$'), drawing():
        pass


def test_labels_move_as_little_as_keeps_them_apart_and_within():
    assert spread([5, 50, 90], 10, 0, 100) == [5, 50, 90]
    assert spread([50, 50], 10, 0, 100) == [55, 45]
    assert spread([52, 50, 10], 10, 0, 100) == [56, 46, 10]
    assert spread([99, 100], 10, 0, 100) == [90, 100]
    assert spread([0, 1, 2], 10, 0, 100) == [0, 10, 20]
    assert spread([3.0] * 5, 10, 0, 20) == [20, 15, 10, 5, 0]  # too many: closer
    assert spread([], 10, 0, 20) == []
    places = np.random.default_rng(0).uniform(0, 100, 12).tolist()
    moved = spread(places, 8, 0, 100)
    assert np.argsort(moved).tolist() == np.argsort(places).tolist()
    assert min(np.diff(sorted(moved))) >= 8 - 1e-9
    assert min(moved) >= -1e-9
    assert max(moved) <= 100 + 1e-9


def test_long_names_are_shortened_in_the_middle():
    assert shortened("short", 9) == "short"
    assert shortened("abcdefghij", 9) == "abcd…ghij"
    assert len(shortened("x" * 500)) == 20


def test_ticks_have_room():
    assert sparse([25, 50, 100, 200, 400, 800]) == [25, 50, 100, 200, 400, 800]
    assert sparse([10, 1000, 1001]) == [10, 1001]
    assert sparse([1, 2, 4, 8, 16, 18]) == [1, 2, 4, 8, 18]
    assert sparse([7]) == [7]
    assert len(sparse(list(range(1, 500)))) <= 10


def linear(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    low, high = sorted(linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("colours", "grounds"), [(LIGHT, ["#ffffff", "#f6f6f4"]), (DARK, ["#1f1f22"])])
def test_lines_and_text_have_contrast(colours, grounds):
    for ground in grounds:
        for role in ("ink", "soft"):
            assert contrast(colours[role], ground) >= 4.5, role
        for role in ("quiet", "c1", "c2", "c3", "c4", "c5"):
            assert contrast(colours[role], ground) >= 3, role
    assert colours["ground"] in grounds


# How a deuteranope, a protanope and a tritanope see linear RGB: Machado, Oliveira and Fernandes (2009), severity 1.
SIGHTS = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(light):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(light, 0, 1)
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colours", [LIGHT, DARK])
@pytest.mark.parametrize("sight", SIGHTS)
def test_colour_blind_eyes_tell_the_colours_apart(colours, sight):
    seen = {role: lab(np.array(SIGHTS[sight]) @ linear(colours[role])) for role in ("ink", "quiet", "c1", "c2", "c3", "c4", "c5")}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)  # 2.3 is just noticeable
