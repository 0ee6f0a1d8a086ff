"""Interactive figures of single components, attention patterns and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interp.plots.heatmaps import click_targets, colour_bar
from interp.plots.style import (
    CHOSEN,
    LOWERS,
    RAISES,
    SOFT,
    axis,
    escaped,
    hover_text,
    lay_out,
    named_axis,
    unfaded,
    visible,
)

NUMBER = 0.25
"""Share of the width of bars that is kept free for a number that does not fit into its bar."""


def component_scatter(
    values: np.ndarray,
    *,
    x: Sequence[str],
    y: Sequence[str],
    x_title: str,
    y_title: str,
    colour_title: str,
    stderr: np.ndarray | None = None,
    selected: tuple[int, int] | None = None,
    names: Sequence[Sequence[str]] | None = None,
    most: int = 2000,
) -> Any:
    """A point for the effect of each component, for layers with too many for a `heat_map`.

    The arguments are those of `heat_map`. Each row has its own colour. Only the `most` largest
    absolute values are drawn, and the axis title says so. The customdata of a point is
    (row, column).
    """
    import plotly.graph_objects as go

    rows, columns = values.shape
    order = np.sort(np.argsort(-np.abs(values.ravel()), kind="stable")[:most])
    at_row, at_column = np.unravel_index(order, values.shape)
    figure = go.Figure()
    for row in range(rows):
        mine: list[int] = at_column[at_row == row].tolist()
        error = np.zeros(columns) if stderr is None else stderr[row]
        places = {"x": [int(x[c]) for c in mine], "y": values[row, mine]}
        name = escaped(f"{y_title} {y[row]}")
        figure.add_scatter(
            **places,
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=rows > 1,
            marker={"size": 6, "opacity": 0.75},
            **unfaded(0.75),
            hoverinfo="skip",
        )
        figure.add_trace(
            click_targets(
                **places,
                data=[[row, c] for c in mine],
                texts=[
                    hover_text(
                        names[row][c] if names else x[c], f"{values[row, c]:z.3f} ± {error[c]:z.3f}"
                    )
                    for c in mine
                ],
                legendgroup=name,  # hidden with the points
            )
        )
    if selected is not None:
        figure.add_scatter(
            x=[int(x[selected[1]])],
            y=[values[selected]],
            mode="markers",
            marker={"size": 15, "symbol": "circle-open", "color": CHOSEN, "line": {"width": 3}},
            hoverinfo="skip",
            showlegend=False,
        )
    drawn = "" if values.size <= most else f", the {most} largest of {values.size}"
    return lay_out(
        figure,
        height=460,
        margin={"l": 70, "r": 20, "t": 36, "b": 54, "pad": 0},
        xaxis={"title": escaped(f"{x_title}{drawn}"), "showgrid": False, "zeroline": False},
        yaxis=axis(colour_title),
        legend=None,
    )


def attention_map(pattern: np.ndarray, tokens: Sequence[str], *, title: str = "") -> Any:
    """The attention of one head on one prompt, from 0 to 1: queries downwards, keys across.

    `pattern` is (query_pos, key_pos).
    """
    import plotly.graph_objects as go

    labels = [visible(token) for token in tokens]
    figure = go.Figure(
        go.Heatmap(
            z=np.where(np.tril(np.ones_like(pattern)) > 0, pattern, np.nan),
            colorscale="Blues",
            zmin=0,
            zmax=1,
            xgap=1,
            ygap=1,
            customdata=np.moveaxis(np.indices(pattern.shape, dtype=np.uint16), 0, -1),
            hoverongaps=False,
            hovertemplate="from <b>%{customdata[0]} %{y}</b><br>to <b>%{customdata[1]} %{x}</b>"
            "<br>attention %{z:.3f}<extra></extra>",  # x and y: the labels of the axes
            colorbar=colour_bar("attention"),
        )
    )
    size = int(np.clip(420 // len(tokens), 9, 26))
    space = 20 + 7 * min(12, max(len(label) for label in labels))
    tokens_axis = named_axis(labels)
    return lay_out(
        figure,
        title={"text": escaped(title), "font": {"size": 14}},
        width=max(len(tokens) * size, 200) + space + 46,
        height=len(tokens) * size + space + 126,
        margin={"l": space + 20, "r": 26, "t": 96, "b": space + 30, "pad": 0},
        xaxis=tokens_axis | {"tickangle": -60, "title": {"text": "to (key)", "standoff": 8}},
        yaxis=tokens_axis
        | {"autorange": "reversed", "title": {"text": "from (query)", "standoff": 8}},
        plot_bgcolor="rgba(0,0,0,0)",
    )


def token_bars(
    promoted: Sequence[tuple[str, float]], suppressed: Sequence[tuple[str, float]]
) -> Any:
    """Tokens whose logits a component raises (red) and lowers (blue), in logits."""
    named = [(visible(token), value) for token, value in [*promoted, *reversed(suppressed)]]
    return bars(named, x_title="added to the logit (logits)")


def bars(values: Sequence[tuple[str, float]], *, x_title: str) -> Any:
    """Named values as bars, the first on top: above zero red, below it blue."""
    import plotly.graph_objects as go

    names, sizes = [name for name, _ in values], [value for _, value in values]
    low, high = min([0.0, *sizes]), max([0.0, *sizes])
    room = NUMBER * ((high - low) or 1.0)
    figure = go.Figure(
        go.Bar(
            x=sizes,
            y=list(range(len(values))),
            orientation="h",
            marker={"color": [RAISES if value > 0 else LOWERS for value in sizes]},
            text=[f"{value:+z.2f}" for value in sizes],
            textposition="auto",
            customdata=[[escaped(name)] for name in names],
            hovertemplate="<b>%{customdata[0]}</b>  %{x:+.3f}<extra></extra>",
        )
    )
    return lay_out(
        figure,
        height=21 * len(values) + 90,
        margin={"l": 110, "r": 20, "t": 36, "b": 54, "pad": 0},
        bargap=0.25,
        xaxis=axis(x_title, zeroline=True, range=[low - room * (low < 0), high + room]),
        yaxis=named_axis(names, autorange="reversed"),
    )


def layer_bars(series: Mapping[str, np.ndarray], *, y_title: str) -> Any:
    """For each series of (layer,) values a bar beside the others; customdata is the layer."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for (name, values), colour in zip(series.items(), (LOWERS, RAISES, SOFT), strict=False):
        layers = list(range(len(values)))
        figure.add_bar(
            x=layers,
            y=values,
            name=escaped(name),
            marker={"color": colour},
            customdata=[[layer] for layer in layers],
            hovertemplate=f"<b>layer %{{x}}</b>  %{{y:+.3f}}<extra>{escaped(name)}</extra>",
        )
    return lay_out(
        figure,
        height=340,
        barmode="group",
        bargap=0.2,
        xaxis=axis("layer", showgrid=False),
        yaxis=axis(y_title, zeroline=True),
    )


def effect_strip(
    gained: np.ndarray,
    gap: float,
    *,
    low: float,
    high: float,
    selected: int | None = None,
    title: str = "effect on each prompt (fraction of the mean gap)",
    numbers: Sequence[int] | None = None,
) -> Any:
    """The effect of one component on each prompt, with its mean and the interval from low to high.

    `gained` is (n,), the metric gained on each prompt, drawn as fractions of `gap`, the mean of
    clean - corrupted. The customdata of a point is the number of its prompt, from `numbers` or
    counted from 0; `selected` marks one.
    """
    import plotly.graph_objects as go

    effects = gained / gap
    prompts = np.arange(len(effects)) if numbers is None else np.array(numbers)
    # Points are spread vertically, so that equal effects do not overlap.
    places = {"x": effects, "y": (prompts * 7) % 11 / 10}
    marks = {
        "size": np.where(prompts == selected, 14, 10),
        "color": np.where(prompts == selected, CHOSEN, RAISES),
        "opacity": 0.85,
    }
    figure = go.Figure()
    figure.add_scatter(**places, mode="markers", marker=marks, **unfaded(0.85), hoverinfo="skip")
    figure.add_trace(
        click_targets(
            **places,
            data=prompts[:, None],
            texts=[
                hover_text(f"prompt {i}", f"{x:z.3f}")
                for i, x in zip(prompts, effects, strict=True)
            ],
        )
    )
    if np.isfinite([low, high]).all():  # one prompt has no interval
        figure.add_vrect(x0=low, x1=high, fillcolor=RAISES, opacity=0.15, line_width=0)
    figure.add_vline(x=float(effects.mean()), line={"color": RAISES, "width": 2})
    return lay_out(
        figure,
        height=190,
        margin={"l": 20, "r": 20, "t": 36, "b": 50, "pad": 0},
        xaxis=axis(title, zeroline=True),
        yaxis=axis(visible=False, range=[-0.3, 1.3]),
        showlegend=False,
    )
