"""Pieces that several pages share. Whatever a model or tokeniser wrote is escaped."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.plots.style import visible
from interp.studies.formatting import as_strong
from interp.ui import VIEWS
from interp.ui.shared import offered
from interp.ui.shared.state import current, select

UNITS = {"head": "head", "kv_head": "KV head", "neuron": "neuron"}
MARKS = ("#c0392b", "#2f6fb5", "#2e8b57", "#b8860b", "#7d4fa8", "#16808a", "#c2577f", "#6b7280")
SMALL = "font-size:0.75rem;letter-spacing:0.02em;opacity:0.65"

NONE = "–"
"""Stands for a missing number, and for the option that chooses nothing."""
STRONG = "font-weight:600;font-size:0.92rem;white-space:nowrap"


def to_setup(title: str) -> None:
    """A page that has nothing to show yet, and the way to where a model is loaded."""
    st.title(title, anchor=False)
    st.info("Load a model and a task first.", icon=":material/tune:")
    st.page_link(VIEWS / "setup.py", label="Go to Setup", icon=":material/arrow_back:")


def show_error(error: Exception) -> None:
    """An error where it arose: what was asked, what was found, what to do."""
    if isinstance(error, InterpError):
        title, text = error.asked, f"{error.found}. Do: {error.do}."
    else:
        title, text = "This is a bug", f"{type(error).__name__}: {error}"
    title, text = (plain(offered.without_paths(part)) for part in (title, text))
    st.error(f"**{title}**  \n{text}", icon=":material/error:")


def plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|$~:])", r"\\\1", text)


def number(value: float) -> str:
    """Three decimals, and no minus before a zero."""
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def span(low: float, high: float) -> str:
    """An interval."""
    return f"{number(low)} to {number(high)}"


def estimate(mean: float, low: float, high: float) -> str:
    """A value with its interval."""
    return f"{number(mean)} [{number(low)}, {number(high)}]"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a file's text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def picker(widget: Callable[..., Any], label: str, field: str, **options: Any) -> Any:
    """A widget that shows one field of the selection and changes it."""
    key = f"pick-{field}"
    value = getattr(current(), field)
    st.session_state[key] = list(value) if isinstance(value, tuple) else value

    def changed() -> None:
        new = st.session_state[key]
        select(**{field: tuple(new) if isinstance(new, list | tuple) else new})

    return widget(label, key=key, on_change=changed, **options)


def facts(entries: Mapping[str, object]) -> None:
    """A row of labelled facts."""
    shown = "".join(
        f'<div><div style="{SMALL}">{escape(label)}</div>'
        f'<div style="{STRONG}">{escape(str(value))}</div></div>'
        for label, value in entries.items()
    )
    st.html(
        '<div style="display:flex;flex-wrap:wrap;gap:0.5rem 1.5rem;padding:0.55rem 0.9rem;'
        f'border:1px solid rgba(128,138,150,0.3);border-radius:0.4rem">{shown}</div>'
    )


def token_strip(
    clean: Sequence[str], corrupted: Sequence[str] | None, marks: Mapping[str, int]
) -> None:
    """A pair of prompts, token above token; named positions on top, differences shaded."""
    colors = {name: MARKS[i % len(MARKS)] for i, name in enumerate(marks)}
    rows = [clean] if corrupted is None else [clean, corrupted]
    columns = []
    for index in range(len(clean)):
        names = [name for name, place in marks.items() if place == index]
        label = "<br>".join(
            f'<span style="color:{colors[name]};font-weight:700">{escape(name)}</span>'
            for name in names
        )
        line = colors[names[0]] if names else "transparent"
        differs = len({row[index] for row in rows}) > 1
        chips = "".join(
            _chip(row[index], index, differs, ("47,111,181", "192,57,43")[which])
            for which, row in enumerate(rows)
        )
        columns.append(
            '<div style="display:flex;flex-direction:column;align-items:stretch;gap:3px;'
            'text-align:center;justify-content:flex-end">'
            f'<div style="font-size:0.72rem;line-height:1.1">{label}</div>{chips}'
            f'<div style="height:3px;border-radius:2px;background:{line}"></div></div>'
        )
    titles = "".join(
        f'<div style="{SMALL};line-height:1.75rem;text-align:right">{title}</div>'
        for title in ("clean", "corrupted")[: len(rows)]
    )
    legend = (
        '<div style="display:flex;flex-direction:column;gap:3px;justify-content:flex-end">'
        f'{titles}<div style="height:3px"></div></div>'
    )
    st.html(
        '<div style="display:flex;flex-wrap:wrap;gap:0.6rem 3px;align-items:stretch">'
        f"{legend}{''.join(columns)}</div>"
    )


def _chip(token: str, index: int, differs: bool, color: str) -> str:
    shade = f"rgba({color},0.22)" if differs else "rgba(128,138,150,0.12)"
    weight = 700 if differs else 400
    return (
        f'<div title="token {index}" style="background:{shade};border-radius:4px;'
        "padding:0 0.35rem;line-height:1.75rem;white-space:pre;font-family:monospace;"
        f'font-size:0.86rem;font-weight:{weight}">{escape(visible(token))}</div>'
    )


def clickable(
    figure: Any, *, key: str, alt: str, filename: str, picked: Callable[[list[int]], None]
) -> None:
    """A figure whose points report their customdata to `picked` when clicked.

    The figure changes with every pick, and a changed chart forgets what was selected in it, so the
    callback hands the pick on while it exists.
    """

    def clicked() -> None:
        if points := st.session_state[key].selection.points:
            picked(point_data(points[0]))

    st.plotly_chart(
        figure,
        key=key,
        on_select=clicked,
        selection_mode="points",
        width="content" if figure.layout.width else "stretch",
        config=chart_config(filename),
        alt=alt,
    )


def point_data(point: Mapping[str, Any]) -> list[int]:
    """A point's customdata: the browser sends a list, or of an array a dict by position."""
    data = point["customdata"]
    return [int(value) for value in (data.values() if isinstance(data, dict) else data)]


def chart_config(filename: str) -> dict[str, Any]:
    """The tool bar of a figure: the camera saves a PNG at three times the size."""
    keep = {"format": "png", "filename": filename, "scale": 3}
    return {
        "displaylogo": False,
        "displayModeBar": True,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "zoom2d", "pan2d", "autoScale2d"],
        "toImageButtonOptions": keep,
    }


def table(
    rows: Sequence[Mapping[str, Any]], *, key: str, narrow: Sequence[str] = (), **more: Any
) -> None:
    """A table: numbers with three decimals, and as high as it needs to be, up to 14 rows."""
    columns: dict[str, Any] = dict.fromkeys(narrow, st.column_config.Column(width=190))
    if rows and "layer" in rows[0]:
        columns["layer"] = st.column_config.Column(width=60)
    columns |= {
        name: st.column_config.NumberColumn(format="%.3f")
        for name in (rows[0] if rows else {})
        if any(isinstance(row[name], float) for row in rows)
    }
    st.dataframe(
        rows,
        key=key,
        hide_index=True,
        row_height=30,
        height=min(14, max(1, len(rows))) * 30 + 34,
        column_config=columns,
        **more,
    )


def interval(found: Mapping[str, float]) -> str:
    """An estimate's 95 % interval."""
    return span(found["low"], found["high"])


def value(found: Mapping[str, float]) -> str:
    """An estimate with its interval."""
    return estimate(found["mean"], found["low"], found["high"])


def null_words(null: Mapping[str, float]) -> str:
    """A null: mean, 95 % range and share as strong."""
    return f"{value(null)}, {as_strong(null['share'])} ({null['draws']} draws)"


def maybe(found: float | None) -> str:
    """A number that may be missing."""
    return NONE if found is None else number(found)


def figure(drawn: Any, *, key: str, alt: str) -> None:
    """A figure that takes no clicks."""
    st.plotly_chart(
        drawn,
        key=key,
        width="content" if drawn.layout.width else "stretch",
        config=chart_config(key),
        alt=alt,
    )


def caveat(text: str) -> None:
    """What the page does not show."""
    st.caption(f"**What this does not show.** {text}")


def left_out(found: Mapping[str, Any]) -> bool:
    """Whether a step was skipped; it then says why."""
    if "skipped" in found:
        st.caption(f"Left out: {plain(str(found['skipped']))}.")
    return "skipped" in found
