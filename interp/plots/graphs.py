"""Interactive figures of graphs and of faithfulness curves.

The caller gives the coordinates of nodes. A click reports the `data` of a node or link.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from interp.plots.heatmaps import click_targets
from interp.plots.style import (
    CHOSEN,
    FRAME,
    LOWERS,
    RAISES,
    SOFT,
    add_band,
    axis,
    escaped,
    lay_out,
    named_axis,
    unfaded,
)

WIDTHS = (0.8, 1.4, 2.2, 3.2, 4.6, 6.5)
"""Line widths in pixels; the strength of a link chooses one of them."""

MARKS = {
    "input": ("diamond", "#dfe5ec"),
    "head": ("circle", "#ffffff"),
    "mlp": ("square", "#eef2d8"),
    "logits": ("diamond", "#dfe5ec"),
    "neuron": ("triangle-up", "#eef2d8"),
}
"""The shape and colour of each kind of node."""

GROUPS = {"supports": RAISES, "opposes": LOWERS}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node at (x, y). A click reports `data`; hovering shows `text`."""

    label: str
    kind: str
    x: float
    y: float
    data: tuple[int, ...]
    text: str
    selected: bool = False


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link between two points. `strength`, from 0 to 1, sets its width, `group` its colour."""

    start: tuple[float, float]
    end: tuple[float, float]
    bend: float
    strength: float
    group: str
    data: tuple[int, ...]
    text: str
    selected: bool = False


def layered_graph(
    nodes: Sequence[Node],
    links: Sequence[Link],
    *,
    rows: Mapping[str, float],
    columns: Mapping[str, float] | None = None,
    colours: Mapping[str, str] = GROUPS,
    height: int = 640,
) -> Any:
    """A graph with nodes as shapes and links as curves; both can be clicked.

    `rows` gives the y of each row by name, and `columns` the x of each column; the names are
    written at the left and above. `colours` gives the colour of each group of links, which the
    legend lists. `height` is in pixels.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for y in rows.values():
        figure.add_hline(y=y, line={"color": "rgba(128,138,150,0.16)", "width": 1})
    steps = {group: [_step(link) for link in links if link.group == group] for group in colours}
    for step, width in enumerate(WIDTHS):
        for group, colour in colours.items():
            mine = [link for link in links if link.group == group and _step(link) == step]
            if not mine:
                continue
            x, y = _curves(mine)
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines",
                line={"color": colour, "width": width},
                opacity=0.35 + 0.1 * step,
                hoverinfo="skip",
                name=escaped(group),
                legendgroup=escaped(group),
                showlegend=step == max(steps[group]),  # faint lines show no colour
            )
    if chosen := [link for link in links if link.selected]:
        x, y = _curves(chosen)
        line = {"color": CHOSEN, "width": 5}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    _add_nodes(figure, nodes)
    middles = [_curve(link)[:, 12].tolist() for link in links]
    places = np.array([*middles, *((node.x, node.y) for node in nodes)]).reshape(-1, 2)
    figure.add_trace(
        click_targets(
            places[:, 0],
            places[:, 1],
            data=[list(part.data) for part in (*links, *nodes)],
            texts=[part.text for part in (*links, *nodes)],
        )
    )
    above, heights = columns or {}, [*rows.values()]
    across = named_axis([*above], at=above.values(), visible=bool(above), side="top")
    ends = [min(heights) - 0.7, max(heights) + 0.7]
    return lay_out(
        figure,
        height=height,
        margin={"l": 20, "r": 20, "t": 40, "b": 20, "pad": 0},
        xaxis=across | {"range": [-0.06, 1.26]},
        yaxis=named_axis([*rows], at=heights, range=ends, automargin=True),
        plot_bgcolor="rgba(0,0,0,0)",
    )


def _add_nodes(figure: Any, nodes: Sequence[Node]) -> None:
    """Nodes as shapes. Names of heads and MLPs are inside, in black; others beside their shape."""
    states = unfaded(1)
    states["unselected"] = states["unselected"] | {"textfont": {"color": FRAME}}
    inside = [node.kind in ("head", "mlp") for node in nodes]
    figure.add_scatter(
        x=[node.x for node in nodes],
        y=[node.y for node in nodes],
        mode="markers+text",
        marker={
            "symbol": [MARKS[node.kind][0] for node in nodes],
            "size": np.where(inside, 22, 18),
            "color": [MARKS[node.kind][1] for node in nodes],
            "opacity": 1,
            "line": {
                "color": [CHOSEN if node.selected else FRAME for node in nodes],
                "width": [4 if node.selected else 1.2 for node in nodes],
            },
        },
        **states,
        text=[
            escaped(node.label) if named else "" for node, named in zip(nodes, inside, strict=True)
        ],
        textfont={"size": 9, "color": FRAME},
        hoverinfo="skip",
        showlegend=False,
    )
    for node, named in zip(nodes, inside, strict=True):
        if not named and node.label:  # without a colour of its own: that of the page's theme
            figure.add_annotation(
                x=node.x, y=node.y, text=escaped(node.label), font={"size": 9}, showarrow=False,
                xanchor="left", xshift=12,
            )  # fmt: skip


def _step(link: Link) -> int:
    return min(int(link.strength * len(WIDTHS)), len(WIDTHS) - 1)


def _curve(link: Link) -> np.ndarray:
    """(2, 25) points of a quadratic Bezier curve, bent by `bend` to the right."""
    t = np.linspace(0, 1, 25)
    start, end = (np.array(place, dtype=float)[:, None] for place in (link.start, link.end))
    middle = (start + end) / 2 + np.array([[link.bend], [0.0]])
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end


def _curves(links: Sequence[Link]) -> tuple[list[float | None], list[float | None]]:
    x: list[float | None] = []
    y: list[float | None] = []
    for link in links:
        curve = _curve(link)
        x += [*curve[0].tolist(), None]
        y += [*curve[1].tolist(), None]
    return x, y


def faithfulness_figure(
    share: ArrayLike,
    values: ArrayLike,
    *,
    low: ArrayLike,
    high: ArrayLike,
    random: tuple[ArrayLike, ArrayLike, ArrayLike] | None,
    edges: Sequence[int],
    chosen: float | None = None,
) -> Any:
    """Faithfulness f against the share of edges (logarithmic), with intervals.

    All arrays are (sizes,). `random` is (mean, low, high) of random circuits. `edges` are the
    numbers of edges, shown on hover. `chosen` marks a share.
    """
    import plotly.graph_objects as go

    figure, at = go.Figure(), np.asarray(share, dtype=float)
    for y, name in ((1.0, "the model"), (0.0, "nothing kept")):
        figure.add_hline(
            y=y,
            line={"color": SOFT, "width": 1, "dash": "dot"},
            annotation={"text": name, "font": {"size": 10, "color": SOFT}},
            annotation_position="top left",
        )
    series = [("this circuit, 95 % interval", values, low, high, LOWERS)]
    if random is not None:
        series.append(("random circuits of its kind, 95 % range", *random, SOFT))
    for name, value, *ends, colour in series:
        below, above = np.array(ends, dtype=float)
        add_band(figure, at, below, above, colour, showlegend=False)
        figure.add_scatter(
            x=at,
            y=np.asarray(value, dtype=float),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            name=name,
            customdata=np.stack([below, above, np.asarray(edges)], 1),
            hovertemplate="f %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], "
            "%{customdata[2]} edges",
        )
    if chosen:
        figure.add_vline(x=chosen, line={"color": CHOSEN, "width": 2})
        # On a logarithmic axis, texts need the logarithm of x, but lines do not.
        figure.add_annotation(
            x=np.log10(chosen),
            y=0,
            yref="paper",
            text="the circuit",
            font={"size": 10},
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
        )
    return lay_out(
        figure,
        height=380,
        xaxis=axis("share of edges asked for", type="log", tickformat="~%", showgrid=False),
        yaxis=axis("faithfulness f", zeroline=False),
        hovermode="x unified",
    )
