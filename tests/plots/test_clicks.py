"""Figures in a real browser: a click opens what is under the pointer, labels are literal."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("plotly", reason="the app's extra is not installed")

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from interp.plots.components import (
    attention_map,
    bars,
    component_scatter,
    effect_strip,
    token_bars,
)
from interp.plots.graphs import Link, Node, layered_graph
from interp.plots.grids import candidate_grid, layer_rows, share_grid, square_map
from interp.plots.heatmaps import heat_map
from interp.plots.lines import head_map, interval_lines, stacked_shares, values_with_null
from interp.plots.steering import frontier, gate_curve, scatter_by_group, values_with_range
from interp.plots.style import escaped, hover_text
from tests.browsing import NEEDED, click_at, mouse, running_browser, texts, until

pytestmark = NEEDED

DRAW = """
const done = arguments[arguments.length - 1], spec = JSON.parse(arguments[0]);
const chart = document.getElementById("chart");
Plotly.purge(chart);
spec.layout.clickmode = "event+select";  // as Streamlit draws a figure that reports clicks
Plotly.newPlot(chart, spec.data, spec.layout, {doubleClickDelay: 0}).then(() => {
  window.opened = null;
  chart.on("plotly_selected", event => {
    window.opened = event && event.points.map(p => Array.from(p.customdata));
  });
  const {xaxis, yaxis} = chart._fullLayout, box = chart.getBoundingClientRect();
  done([box.left + xaxis._offset, box.top + yaxis._offset, xaxis._length, yaxis._length]);
});
"""
FORGET = "window.opened = null; return Plotly.restyle('chart', {selectedpoints: null})"
PLACE = """
const {xaxis, yaxis} = document.getElementById("chart")._fullLayout;
return [xaxis.d2p(arguments[0]), yaxis.d2p(arguments[1])];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("clicks")
    page = folder / "page.html"
    script = f"<script>{get_plotlyjs()}</script>"
    page.write_text(f"<meta charset=utf-8>{script}<div id=chart></div>", encoding="utf-8")
    with running_browser(folder) as driver:
        driver.set_window_size(1440, 2000)
        driver.get(page.as_uri())
        yield driver


def draw(browser: Any, figure: Any) -> tuple[float, float, float, float]:
    """Left, top, width and height of the area of a figure."""
    return browser.execute_async_script(DRAW, figure.to_json())


def opened(browser: Any, x: float, y: float) -> Any:
    """What a click there reports. A busy browser may lose one; one that it reports is taken."""
    for rest in (0.0, 0.2, 1.0, 3.0):
        browser.execute_script(FORGET)
        click_at(browser, x, y)
        time.sleep(rest)
        if found := browser.execute_script("return window.opened"):
            return found
    return None


def check_map(browser: Any, figure: Any, rows: int, columns: int, *, down: bool = False) -> None:
    """Click five cells, in the middle and near two corners; `down`: the first row on top."""
    left, top, width, height = draw(browser, figure)
    ends = [(r, c) for r in (0, rows - 1) for c in (0, columns - 1)]
    wrong = []
    for row, column in dict.fromkeys([*ends, (rows // 2, columns // 2)]):
        for aside, below in ((0.5, 0.5), (0.1, 0.1), (0.9, 0.88)):
            x = left + width * (column + aside) / columns
            from_top = row if down else rows - 1 - row
            y = top + height * (from_top + below) / rows
            found = opened(browser, x, y)
            if found != [[row, column]]:
                wrong.append(((row, column), (aside, below), found))
    assert not wrong


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(30, 9), (28, 12), (36, 16), (12, 12), (1, 1), (64, 64), (30, 1), (2, 40)],
)
def test_a_click_opens_the_cell_under_the_pointer(browser: Any, rows: int, columns: int) -> None:
    values = np.random.default_rng(0).normal(size=(rows, columns))
    x, y = ([str(i) for i in range(size)] for size in (columns, rows))
    drawn = heat_map(values, x=x, y=y, x_title="head", y_title="layer", colour_title="effect")
    check_map(browser, drawn, rows, columns)


VALUES = np.random.default_rng(1).normal(size=(30, 9))
ROWS = [str(row) for row in range(30)]
WORDS = [[hover_text("a", "b") for _ in row] for row in VALUES]


@pytest.mark.parametrize(
    ("figure", "down"),
    [
        (head_map(VALUES, title="effect", selected=(3, 4), marked=[(2, 2)]), False),
        (
            candidate_grid(
                VALUES, x="abcdefghi", y=ROWS, rejected=VALUES > 0,
                texts=WORDS, colour_title="score", coloured=True,
            ),
            False,
        ),
        (share_grid(VALUES, x="abcdefghi", y=ROWS, texts=WORDS, title="share"), True),
        (layer_rows(VALUES, rows=ROWS, title="value"), True),
    ],
    ids=["heads", "candidates", "shares", "layers"],
)  # fmt: skip
def test_other_maps_too(browser: Any, figure: Any, down: bool) -> None:
    check_map(browser, figure, *VALUES.shape, down=down)


def check_points(
    browser: Any, figure: Any, points: Sequence[tuple[float, float]], data: Sequence[Any]
) -> None:
    left, top, *_ = draw(browser, figure)
    for (x, y), wanted in zip(points, data, strict=True):
        across, down = browser.execute_script(PLACE, float(x), float(y))
        assert opened(browser, left + across, top + down) == [list(wanted)]


def test_crowded_neurons_and_prompts_are_told_apart(browser: Any) -> None:
    """Points nearer to each other than a marker's radius: the one aimed at, not the last drawn."""
    values = np.array([[0.5, 0.5, 0.1, 0.5], [0.5033, 0.4, 0.1, 0.3]])
    neurons = ["0", "4", "700", "1500"]
    drawn = component_scatter(
        values, x=neurons, y=["3", "4"], x_title="neuron", y_title="layer", colour_title="effect"
    )
    cells = [(0, 0), (1, 0), (0, 1), (1, 3)]
    points = [(float(neurons[column]), values[row, column]) for row, column in cells]
    check_points(browser, drawn, points, cells)

    gained = np.zeros(23)
    gained[[0, 11, 22]] = [0.0, 0.004, 0.008]  # in one row of the strip, 4 pixels apart
    gained[5] = 1.0
    strip = effect_strip(gained, 1.0, low=0.0, high=0.1, selected=11)
    check_points(browser, strip, [(gained[i], 0.0) for i in (0, 11, 22)], [[0], [11], [22]])


def test_nodes_that_overlap_are_told_apart(browser: Any) -> None:
    """Heads of a wide model overlap, and links pass behind nodes."""
    nodes = [
        Node(label=f"H{i}", kind="head", x=0.3 + i * 0.012, y=1.0, data=(1, i, 0), text=f"H{i}")
        for i in range(5)
    ]
    start, end = (nodes[2].x - 0.005, 0.0), (nodes[2].x - 0.005, 2.0)
    link = Link(
        start=start, end=end, bend=0.0, strength=1.0, group="supports", data=(0, 7, 8), text="link"
    )
    drawn = layered_graph(nodes, [link], rows={"a": 0.0, "b": 1.0, "c": 2.0})
    points = [(node.x, node.y) for node in nodes]
    check_points(browser, drawn, [*points, (start[0], 1.0)], [*(n.data for n in nodes), link.data])


EVIL = "<b>x</b><br>&lt;$a$%{x}"
"""A token that Plotly would read as markup, as a formula, and as a place to fill in."""
ONE = {"mean": 0.5, "low": 0.4, "high": 0.6, "p": 0.5}
BUILDERS: dict[str, Callable[[], Any]] = {
    "heat_map": lambda: heat_map(
        np.ones((1, 1)), x=[EVIL], y=[EVIL], x_title=EVIL, y_title=EVIL, colour_title=EVIL
    ),
    "component_scatter": lambda: component_scatter(
        np.ones((1, 1)), x=["0"], y=[EVIL], x_title=EVIL, y_title=EVIL, colour_title=EVIL,
        names=[[EVIL]],
    ),
    "attention_map": lambda: attention_map(np.ones((1, 1)), [EVIL], title=EVIL),
    "token_bars": lambda: token_bars([(EVIL, 1.0)], [(EVIL, -1.0)]),
    "interval_lines": lambda: interval_lines(
        {EVIL: ([1.0], [1.0], [1.0])}, x_title=EVIL, y_title=EVIL, names=[EVIL]
    ),
    "values_with_null": lambda: values_with_null(
        [EVIL], [1.0], low=[1.0], high=[1.0], null=[[1.0]], value_title=EVIL, value_label=EVIL,
        null_label=EVIL,
    ),
    "stacked_shares": lambda: stacked_shares({EVIL: {EVIL: 1.0}}, x_title=EVIL),
    "candidate_grid": lambda: candidate_grid(
        np.ones((1, 1)), x=[EVIL], y=[EVIL], rejected=[[True]], texts=[[hover_text(EVIL, EVIL)]],
        colour_title=EVIL, coloured=True,
    ),
    "square_map": lambda: square_map(np.ones((1, 1)), names=[EVIL], title=EVIL, limits=(0, 1)),
    "layer_rows": lambda: layer_rows(np.ones((1, 1)), rows=[EVIL], title=EVIL),
    "frontier": lambda: frontier(
        [{"name": EVIL, "null": False, "x": ONE, "y": ONE}], x_target=0.5, y_target=0.5
    ),
    "gate_curve": lambda: gate_curve(
        [0.0, 1.0], {EVIL: ([0, 1], [0, 1], [0, 1])}, marks={EVIL: 0.5}
    ),
    "scatter_by_group": lambda: scatter_by_group([[0.0, 0.0]], [EVIL], [True], notice=EVIL),
    "values_with_range": lambda: values_with_range(
        [EVIL], {EVIL: [ONE]}, {EVIL: [ONE | {"share": 0.5}]}, x_title=EVIL
    ),
    "layered_graph": lambda: layered_graph(
        [Node(label=EVIL, kind="head", x=0, y=0, data=(0,), text=hover_text(EVIL, EVIL, EVIL))],
        [
            Link(
                start=(0, 0), end=(1, 1), bend=0, strength=1, group=EVIL, data=(0,),
                text=hover_text(EVIL),
            )
        ],
        rows={EVIL: 0.0},
        columns={EVIL: 0.5},
        colours={EVIL: "red"},
    ),
}  # fmt: skip


def test_the_number_of_a_short_bar_is_not_under_the_names(browser: Any) -> None:
    drawn = bars([("long", 2.68), ("short", -0.39)], x_title="logits")
    left, _, width, _ = draw(browser, drawn.update_layout(width=330))
    script = """return [...document.querySelectorAll("#chart .bartext")].map(
        text => [text.getBoundingClientRect().left, text.getBoundingClientRect().right])"""
    numbers = browser.execute_script(script)
    assert len(numbers) == 2
    assert all(left <= start and end <= left + width for start, end in numbers)


def test_a_cell_of_an_attention_map_names_both_tokens(browser: Any) -> None:
    tokens, weights = ["The", "<b>", "The"], np.tril(np.linspace(0.1, 0.9, 9).reshape(3, 3))
    left, top, width, height = draw(browser, attention_map(weights, tokens))
    for query, key in ((1, 0), (2, 1), (2, 2)):
        place = left + (key + 0.5) * width / 3, top + (query + 0.5) * height / 3
        said = (
            f"from {query} {tokens[query]}to {key} {tokens[key]}attention {weights[query, key]:.3f}"
        )
        mouse(browser, "mouseMoved", *place)
        until(lambda words=said: words in texts(browser, "#chart .hovertext"), said, seconds=20)


def test_an_attention_map_does_not_repeat_its_tokens_in_every_cell() -> None:
    tokens = [f"{'long' * 5}{i}" for i in range(64)]
    assert len(attention_map(np.ones((64, 64), np.float32), tokens).to_json()) < 75_000


@pytest.mark.parametrize("name", BUILDERS)
def test_every_figure_escapes_every_label(name: str) -> None:
    said = json.dumps(json.loads(BUILDERS[name]().to_json()))
    assert escaped(EVIL) in said
    assert EVIL not in said


def test_escaped_labels_are_shown_as_they_are(browser: Any) -> None:
    tokens = ["<b>", "<br>", "&amp;", "a & b", "$x$", EVIL]
    drawn = go.Figure(go.Scatter(x=[0, 1], y=[0, 1]))
    drawn.update_layout(
        xaxis={"tickvals": [0], "ticktext": [escaped("\n".join(tokens))]},
        yaxis={"tickvals": [0.5], "ticktext": [escaped(EVIL)]},
    )
    draw(browser, drawn)
    assert texts(browser, ".xtick text") == [" ".join(tokens)]
    assert texts(browser, ".ytick text") == [EVIL]
