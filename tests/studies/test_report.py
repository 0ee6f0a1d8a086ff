"""Reports and their figures: what is written is what was given, escaped, and the same each time."""

import math
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from interp.core.errors import InterpError
from interp.core.statistics import Estimate
from interp.plots import static
from interp.plots.style import LOWERS, RAISES
from interp.studies.report.claims import Claim, judge
from interp.studies.report.markdown import MISSING, cell, escape, number
from interp.studies.report.report import Report, points, render, study_report
from interp.studies.study import Study

NASTY = [
    "a | b",
    "<script>alert(1)</script>",
    "line one\nline two",
    "`tick` **bold** _under_ __x__ ~~gone~~ [link](http://x.y) ![i](j)",
    "back\\slash \\| &amp; &lt; $x$",
    "# heading",
    "1. item",
    "- item",
    "---",
    "===",
    "> quote",
    "<!-- open",
    "<div",
    "a & b",
    "trailing #",
    "logit_diff L2_H3",
]


def plain(markdown: str) -> str:
    """The text a reader sees, read back by a parser that allows raw HTML."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    inline = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inline} <= {"text"}, markdown
    return "".join(child.content for child in inline)


def cells(markdown: str) -> list[list[str]]:
    """The cells of tables, header and rules included, read with a split of our own."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def curve(n: int = 5) -> Figure:
    figure = Figure(figsize=(7, 3))
    figure.add_subplot().plot(np.arange(n), np.sqrt(np.arange(n)))
    return figure


@dataclass(frozen=True)
class Plain:
    n: int = 3


FULL = """# {{ title }}

Some *words* and `code`.

## Results

### {{ by }}

*Model's own words*

| token | value |
| --- | ---: |
{% for word in words %}
| {{ word }} | {{ behaviour.share }} |
{% endfor %}

{{ figures.curve() }}

*{{ caption }}*

## Results

End: {{ behaviour.share }}.
"""


@pytest.fixture
def write(tmp_path):
    """The report of a template, for a study with one step."""

    def write(template: str, points: int = 5, **names) -> Report:
        (tmp_path / "toy" / "report").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "toy" / "report" / "report.md.j2"
        path.write_text(template)
        study = Study(
            model="toy", model_hash="", beside={}, settings=Plain(), directory=tmp_path,
            results={"behaviour": {"share": 0.5}}, seconds={"behaviour": 120.0, "lens": 3.0},
        )  # fmt: skip
        figures = SimpleNamespace(
            curve=lambda results: curve(points),
            of=lambda results, name: curve(points),
            missing=lambda results: results["lens"],
        )
        caption = "A curve | with <i> and *stars*"
        told = {"title": "A study of <b>", "by": "By | head", "caption": caption, "words": NASTY}
        return study_report(path, study, figures, **told | names)

    return write


@pytest.fixture
def full(write) -> Report:
    return write(FULL)


@pytest.mark.parametrize("text", NASTY)
def test_escaped_text_is_read_back_as_it_was(write, text):
    shown = text.replace("\n", "↵")
    assert plain(escape(text)) == shown
    filled = write("# r\n\n| a | b |\n| --- | --- |\n| {{ text }} | 1 |\n", text=text).markdown()
    tokens = MarkdownIt("commonmark").enable("table").parse(filled)
    inside = [token.content for token in tokens if token.type == "inline"][1:]
    assert len(inside) == 4
    assert plain(inside[2]) == shown
    page = write("# r\n\n## {{ text }}\n", text=text.replace("\n", " ")).html()
    assert page.count("<h2") == 1
    assert "<script>" not in page


def test_invisible_characters_are_seen():
    assert escape(" a") == "␣a"
    assert escape("a ") == "a␣"
    assert escape("   ") == "␣␣␣"
    assert escape("a  b c") == "a␣␣b c"
    assert escape("\t\u202e\x00") == "⇥⟨U+202E⟩⟨U+0000⟩"
    assert escape("\ud800") == "⟨U+D800⟩"
    assert escape("logit_diff") == "logit_diff"
    assert escape("-0.3") == "-0.3"


def test_nothing_a_model_wrote_becomes_html(full):
    page = full.html()
    assert "<script" not in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "line one↵line two" in page
    assert "<strong>bold" not in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3, "3"),
        (np.int64(123456), "123456"),
        (0.5, "0.500"),
        (0.0, "0.000"),
        (-0.0001e-3, "-1.0e-07"),
        (0.00234, "0.0023"),
        (1234.56, "1234.6"),
        (123456.7, "123457"),
        (np.float32(0.25), "0.250"),
        (torch.tensor(2.5), "2.500"),
        (math.nan, "–"),
        (torch.tensor(math.nan), "–"),
        (None, "–"),
        (pd.NA, "–"),
        (pd.NaT, "–"),
        (math.inf, "∞"),
        (True, "yes"),
        (np.bool_(False), "no"),
        ((1, 0.5, None), "1, 0.500, –"),
        (Estimate(mean=0.953, low=0.923, high=0.9721, n=300), "0.953 [0.923, 0.972]"),
        (Estimate(mean=0.0, low=-0.0001, high=0.5, n=3), "0.000 [0.000, 0.500]"),
        (Estimate(mean=1.0, low=-math.inf, high=math.inf, n=1), "1.000 [-∞, ∞]"),
        (Estimate(mean=math.nan, low=math.nan, high=math.nan, n=2), "–"),
        ("text", "text"),
    ],
)
def test_cells(value, shown):
    assert cell(value) == shown


def test_number_of_a_nan_is_a_dash():
    assert number(math.nan) == MISSING
    assert number(7) == "7"


def test_columns_of_numbers_stand_right(write):
    rows = [(1.5, Estimate(mean=0.5, low=0.4, high=0.6, n=9), True), (np.nan, None, False)]
    text = "# r\n\n| a | b | c |\n| ---: | ---: | --- |\n{% for row in rows %}\n|{% for x in row %}"
    report = write(text + " {{ x }} |{% endfor %}\n\n{% endfor %}", rows=rows)
    assert cells(report.markdown())[2:] == [
        ["1.500", "0.500 [0.400, 0.600]", "yes"],
        ["–", "–", "no"],
    ]
    assert report.html().count("text-align:right") == 6


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("<b>hi</b>", "raw HTML"),
        ("![i](http://x/y.png)", "an image"),
        ("```\nopen", "left open"),
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{{ behaviour.nothing }}", "no attribute 'nothing'"),
        ("| a | b |\n| --- | --- |\n| 1 |", r"rows of unlike length: \| a \| b \|"),
        ("| a |\n| --- |\n| {{ 'x|y' }} | 2 |", "rows of unlike length"),
        ("{{ figures.nothing() }}", "no attribute 'nothing'"),
        ("{{ figures.missing() }}", "KeyError: 'lens'"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{% include 'nothing.j2' %}", "nothing.j2"),
        ("{{ figures.of('../x') }}", "not a name"),
    ],
)
def test_bad_templates_are_refused(write, text, match):
    with pytest.raises(InterpError, match=match):
        write(f"# r\n\n{text}\n")


def test_evidence_names_what_its_test_returns():
    claim = Claim(
        claim="It holds", source="here", holds_if="always", test=lambda results: (None, {"n": 3}),
        evidence=Environment(undefined=StrictUndefined).from_string("{{ n }}  of\n{{ m }}"),
    )  # fmt: skip
    with pytest.raises(InterpError, match="the evidence for 'It holds'.*'m' is undefined"):
        judge([claim], {})
    (row,) = judge([replace(claim, test=lambda results: (None, {"n": 3, "m": 4}))], {})
    assert (row["here"], row["evidence"]) == ("partly", "3 of 4")
    assert judge([replace(claim, test=lambda results: None)], {}) == []


def test_a_report_needs_a_title(write):
    for text in ("", "Words.\n", "## Section\n"):
        with pytest.raises(InterpError, match="the report of toy.*begin with a title"):
            write(text)


def test_a_template_is_filled_with_named_values(write):
    assert write("# {{ study.model }}\n\n{{ figures.of('t ans') }}\n\n*Cap*\n").markdown() == (
        "# toy\n\n![of_t_ans](figures/of_t_ans.svg)\n\n*Cap*\n"
    )
    numbered = write("# r\n\n{{ figures.of(1) }}\n\n*Cap*\n").markdown()
    assert "![of_1](figures/of_1.svg)" in numbered
    values = {"x": 0.25, "pairs": {"L1*": 2}, "none": None, "model": "a_b", "own": "```\n_x_"}
    filled = {
        "{{ x }} {{ x | fixed(1) }} {{ x | percent }}": "0.250 0.2 25%",
        "{{ pairs | each('{} ({} times)') }}": r"L1\* (2 times)",
        "{{ model | code }}": "`a_b`",
        "{{ own | block }}": "```\n\n_x_\n```",
    }
    for text, shown in filled.items():
        assert write(f"# T\n{text}", **values).markdown() == f"# T\n{shown}"


def test_how_it_was_run_is_a_partial(write):
    text = " ".join(write('# T\n\n{% include "run.md.j2" %}').markdown().split())
    assert "Settings: n 3. 2 minutes of computing, the longest steps behaviour 120 s, lens" in text
    assert "Versions: interp " in text


def test_html_is_whole_and_navigable(full):
    page = full.html()
    assert page.startswith("<!doctype html>")
    assert re.findall(r'<li class="(h\d)"><a href="#([^"]*)">([^<]*)<', page) == [
        ("h2", "results", "Results"),
        ("h3", "by--head", "By | head"),
        ("h2", "results-1", "Results"),
    ]
    for anchor in re.findall(r'href="#([^"]*)"', page):
        assert page.count(f'id="{anchor}"') == 1
    assert page.count('<div class="scroll"') == page.count("</table></div>") == 1
    assert '<p class="caption"><em>Model\'s own words</em></p>' in page
    figure = page[page.index("<figure>") : page.index("</figure>")]
    assert re.search(r'src="data:image/svg\+xml;base64,[^"]+"', figure)
    assert "<figcaption><em>A curve | with &lt;i&gt; and *stars*</em></figcaption>" in figure
    assert 'alt="A curve | with &lt;i&gt; and *stars*"' in figure
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_saving_twice_gives_the_same_bytes(write, tmp_path):
    for run in ("a", "b"):
        assert write(FULL).save(tmp_path / run) == tmp_path / run / "report.md"
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert [str(name) for name in names] == ["figures/curve.svg", "report.html", "report.md"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a/report.md").read_text() == write(FULL).markdown()
    svg = (tmp_path / "a/figures/curve.svg").read_text()
    assert "<dc:date>" not in svg
    assert "Matplotlib" not in svg


def test_many_points_become_a_png_and_replace_the_svg(write, tmp_path):
    write(FULL, points=5).save(tmp_path)
    assert (tmp_path / "figures/curve.svg").exists()
    report = write(FULL, points=5000)
    report.save(tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["curve.png"]
    assert "figures/curve.png" in report.markdown()
    assert "data:image/png;base64" in report.html()
    assert 'width="672"' in report.html()
    assert points(curve(5000)) - points(curve(5)) == 4995


@pytest.mark.parametrize("drawn", [5, 5000])  # an SVG, a PNG
def test_a_saved_report_is_read_back(write, tmp_path, drawn):
    report = write(FULL, points=drawn)
    report.save(tmp_path / "a")
    assert Report.load(tmp_path / "a") == report
    with pytest.raises(InterpError, match="no such file"):
        Report.load(tmp_path / "b")


def test_a_large_report_warns_and_a_small_one_does_not(write, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(FULL).save(tmp_path)
    with pytest.warns(UserWarning, match="largest: report.html"):
        write("# r\n\n" + "word " * 120_000).save(tmp_path)


def test_rendering_leaves_the_settings_alone():
    before = dict(mpl.rcParams)
    render(curve(), name="c")
    static.interval_lines({"a": ([1.0], [0.0], [2.0])}, x_title="x", y_title="y")
    assert dict(mpl.rcParams) == before


@pytest.mark.long
def test_figures_do_not_import_pyplot():
    script = (
        "import sys; from io import BytesIO; from interp.plots import static; "
        "static.head_map([[1.0, 2.0]], title='t').savefig(BytesIO(), format='svg'); "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def texts(figure: Figure) -> list[str]:
    """Every text the figure shows, as in its SVG."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", render(figure).data.decode())


def test_lines_draw_the_numbers():
    value = np.array([0.5, 0.7, np.nan, 0.9])
    series = {
        "probe": (value, value - 0.1, value + 0.1),
        "shuffled": (np.full(4, 0.5), np.full(4, 0.4), np.full(4, 0.6)),
    }
    figure = static.interval_lines(
        series, x_title="layer", y_title="accuracy", baseline=0.5, controls=["shuffled"]
    )
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), value)
    band = axes.collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.4, 0.6)
    assert axes.lines[0].get_color() == LOWERS
    assert axes.lines[1].get_color() == static.SOFT
    assert list(axes.lines[2].get_ydata()) == [0.5, 0.5]
    assert {"probe", "shuffled", "baseline", "layer", "accuracy"} <= set(texts(figure))


def test_names_at_line_ends_keep_apart_and_in_order():
    level = {f"s{i}": 0.5 + 0.001 * i for i in range(5)}
    series = {name: ([0.0, v], [0.0, v], [1.0, v]) for name, v in level.items()}
    figure = static.interval_lines(series, x_title="x", y_title="y")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert [text.get_text() for text in figure.axes[0].texts] == list(level)
    for below, above in zip(boxes, boxes[1:], strict=False):
        assert below.y1 <= above.y0 + 1


def test_a_head_map_shows_each_head_at_its_place():
    values = np.arange(6.0).reshape(3, 2) - 2
    values[1, 1] = np.nan
    figure = static.head_map(values, title="effect", marked=[(2, 0)])
    axes = figure.axes[0]
    image = axes.images[0]
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), values.T)
    assert image.get_clim() == (-3, 3)
    assert image.origin == "lower"
    assert {patch.get_xy() for patch in axes.patches} == {(1.5, -0.5)}
    one_hue = static.head_map(values, title="effect", diverging=False).axes[0].images[0]
    assert one_hue.get_clim() == (-2, 3)
    fixed = static.head_map(values, title="effect", limits=(-1, 1)).axes[0].images[0]
    assert fixed.get_clim() == (-1, 1)


def test_curve_with_null_draws_band_and_names():
    x, value = np.arange(3), np.array([1.0, 0.4, 0.1])
    figure = static.curve_with_null(
        x,
        value,
        low=value - 0.1,
        high=value + 0.1,
        null=[[0.8, 0.9, 1.0], None, [0.6, 0.6, 0.9]],
        x_title="head ablated",
        y_title="accuracy",
        labels=["none", "L1H2", "L3H0"],
    )
    axes = figure.axes[0]
    random, selected = axes.lines
    np.testing.assert_array_equal(selected.get_ydata(), value)
    np.testing.assert_array_equal(random.get_xdata(), [0, 2])
    np.testing.assert_allclose(random.get_ydata(), [0.9, 0.7])
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(0.995)
    assert band[:, 1].min() == pytest.approx(0.6)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "L1H2", "L3H0"]
    named = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert named == {"selected": pytest.approx(0.1), "random sets": pytest.approx(0.7)}


def test_bars_with_null_have_heights_whiskers_and_chance():
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=50), rng.normal(size=500)
    figure = static.values_with_null(
        ["a", "b", "c", "d"],
        [0.5, -0.2, 0.1, np.nan],
        low=[0.4, -0.3, -np.inf, np.nan],
        high=[0.7, -0.1, np.inf, np.nan],
        null=[few, many, None, np.zeros(300)],
        value_title="effect",
    )
    axes = figure.axes[0]
    bars = axes.containers[0].patches
    assert [bar.get_height() for bar in bars[:3]] == [0.5, -0.2, 0.1]
    assert [bar.get_facecolor()[:3] for bar in bars[:2]] == [to_rgb(RAISES), to_rgb(LOWERS)]
    whiskers = axes.containers[1].lines[2][0].get_segments()
    assert [tuple(ends[:, 1]) for ends in whiskers[:2]] == [(0.4, 0.7), (-0.3, -0.1)]
    assert not len(whiskers[2])
    strips = [line for line in axes.lines if len(line.get_xdata()) in (50, 300)]
    np.testing.assert_array_equal(strips[0].get_ydata(), few)
    assert abs(np.asarray(strips[0].get_xdata()) - 0.3).max() <= 0.1
    violin = axes.collections[-1].get_paths()[0].vertices
    assert (violin[:, 1].min(), violin[:, 1].max()) == (many.min(), many.max())
    assert [text.get_text() for text in axes.texts] == ["0.50", "−0.20", "0.10"]
    assert "random" in texts(figure)


def test_paired_rows_have_a_point_and_an_interval_a_group():
    groups = {
        "before": ([0.9, 0.8], [0.8, 0.7], [1.0, 0.9]),
        "after": ([0.2, 0.3], [0.1, 0.2], [0.3, 0.5]),
    }
    axes = static.paired_rows(["x", "y"], groups, x_title="accuracy").axes[0]
    assert len(axes.containers) == len(groups)
    for drawn, (value, low, high) in zip(axes.containers, groups.values(), strict=True):
        dots, _, (whiskers,) = drawn.lines
        np.testing.assert_array_equal(dots.get_xdata(), value)
        np.testing.assert_array_equal(np.round(dots.get_ydata()), [0, 1])
        ends = [path.vertices[:, 0] for path in whiskers.get_paths()]
        np.testing.assert_allclose(ends, np.transpose([low, high]))
    assert axes.yaxis_inverted()
    assert {"before", "after", "x", "y"} <= set(texts(axes.figure))


def test_stacked_outcomes_add_up():
    rows = {
        "as it is": {"success": 0.9, "fail": 0.1},
        "heads off": {"success": 0.2, "partial": 0.5, "fail": 0.28, "other": 0.02},
    }
    figure = static.stacked_shares(rows)
    axes = figure.axes[0]
    assert axes.yaxis.get_inverted()
    widths = np.array([[bar.get_width() for bar in box.patches] for box in axes.containers])
    np.testing.assert_allclose(widths, [[90, 20], [10, 28], [0, 50], [0, 2]])
    np.testing.assert_allclose(axes.containers[2].patches[1].get_x(), 48)
    shown = texts(figure)
    assert {"90", "10", "20", "50", "28", "success", "partial", "as it is"} <= set(shown)
    assert shown.count("2") == 0


def test_labels_are_drawn_as_they_are():
    figure = static.values_with_null(
        ["$x$\n", "<b>"], [1, 2], low=[0, 1], high=[2, 3], value_title="$y$"
    )
    assert {"$x$↵", "&lt;b&gt;", "$y$"} <= set(texts(figure))


@pytest.mark.parametrize(
    ("draw", "match"),
    [
        (lambda: static.interval_lines({}, x_title="", y_title=""), "series"),
        (
            lambda: static.interval_lines(
                {"a": ([1.0], [1.0], [1.0])}, x_title="", y_title="", controls=["b"]
            ),
            "no such name",
        ),
        (
            lambda: static.interval_lines(
                {"a": ([1.0], [1.0], [1.0]), "b": ([1.0, 2.0],) * 3}, x_title="", y_title=""
            ),
            "2 values, but 1",
        ),
        (
            lambda: static.values_with_null(["a"], [0.5], low=[0.1], high=[0.1], value_title=""),
            "half-widths",
        ),
        (
            lambda: static.values_with_null(
                ["a"], [0.5], low=[0], high=[1], value_title="", null=[]
            ),
            "0 values, but 1",
        ),
        (lambda: static.head_map([1.0, 2.0], title=""), "shape"),
        (lambda: static.head_map([[1.0]], title="", marked=[(0, 1)]), "L0H1"),
        (lambda: static.head_map([[1.0]], title="", marked=[(-1, 0)]), "L-1H0"),
        (lambda: static.stacked_shares({"a": {"x": 0.5, "y": 0.4}}), "add up to 1"),
        (lambda: static.stacked_shares({"a": {"x": 1.5, "y": -0.5}}), "add up to 1"),
        (lambda: static.stacked_shares({"a": {"x": math.nan}}), "add up to 1"),
        (lambda: static.stacked_shares({}), "series"),
        (lambda: static.paired_rows(["a"], {}, x_title=""), "series"),
        (
            lambda: static.curve_with_null(
                [0],
                [0.5],
                low=[0.4],
                high=[0.6],
                null=[[0.9], [0.1]],
                x_title="",
                y_title="",
            ),
            "null",
        ),
    ],
)
def test_bad_numbers_are_refused(draw, match):
    with pytest.raises(InterpError, match=match):
        draw()


MACHADO = {
    "usual": np.eye(3),
    "protan": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deutan": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritan": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def lab(colour: str, vision: str) -> np.ndarray:
    """CIE L*a*b* of a colour as it is seen (Machado, Oliveira and Fernandes 2009, severity 1)."""
    linear = MACHADO[vision] @ np.power(to_rgb(colour), 2.2)
    to_xyz = np.array([[0.412, 0.358, 0.181], [0.213, 0.715, 0.072], [0.019, 0.119, 0.951]])
    x, y, z = np.cbrt(to_xyz @ linear.clip(1e-6, 1) / [0.95, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", MACHADO)
@pytest.mark.parametrize("palette", [static.SERIES, static.OUTCOMES])
def test_colours_keep_apart(palette, vision):
    seen = [lab(colour, vision) for colour in palette]
    least = min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])
    assert least > 25


def test_stages_are_drawn_from_left_to_right():
    figure = static.stages(
        [[], [("L2H0 +0.79", "t_ans to\nthe result")], [("L3.mlp_out", "writes")]]
    )
    texts = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert texts["L2H0 +0.79\nt_ans to\nthe result"][0] < texts["L3.mlp_out\nwrites"][0]
    assert len(figure.axes[0].lines) == 1  # every box with those of the next column
    with pytest.raises(InterpError, match="no box"):
        static.stages([[], []])
