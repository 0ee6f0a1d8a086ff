"""Pieces that several pages share. Whatever a model or tokeniser wrote is escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from mimetypes import guess_type
from typing import Any

import pandas as pd
import streamlit as st

from interp.core.errors import InterpError
from interp.core.records import Provenance
from interp.plots.lines import values_with_null
from interp.plots.steering import BELOW
from interp.plots.style import MARGIN, darkened, visible
from interp.results.scores import Scores
from interp.runs import pairs
from interp.studies import formatting
from interp.studies.formatting import MISSING, band
from interp.studies.formatting import span as span
from interp.studies.steps import Result
from interp.studies.steps import Rows as Rows
from interp.ui.shared import offered
from interp.ui.shared.state import current, ignored, in_words, linked, select

COMPONENTS = {"head": "head", "kv_head": "KV head", "neuron": "neuron", "expert": "expert"}
MARKS = ("#c0392b", "#2f6fb5", "#2e8b57", "#b8860b", "#7d4fa8", "#16808a", "#c2577f", "#6b7280")
RED, BLUE, GREY = "192,57,43", "47,111,181", "rgba(128,138,150,0.12)"
SMALL = "font-size:0.75rem;letter-spacing:0.02em;opacity:0.65"

NONE = MISSING
"""Stands for a missing number, and for the option that chooses nothing."""
UNKNOWN = float("nan")
STRONG = "font-weight:600;font-size:0.92rem;white-space:nowrap"


def show_error(error: Exception) -> None:
    """An error where it arose: what was asked, what was found, what to do."""
    if isinstance(error, InterpError):
        title, text = error.asked, advice(error)
    else:
        title, text = "This is a bug", f"{type(error).__name__}: {error}"
    title, text = (plain(offered.without_paths(part)) for part in (title, text))
    st.error(f"**{title}**  \n{text}", icon=":material/error:")


def advice(error: InterpError) -> str:
    """What was found and what to do, as two sentences."""
    return f"{error.found}. {error.do[:1].upper()}{error.do[1:]}."


PICTURE = "picture"
"""Where a visit's kind of picture is kept."""
AWAITED = "awaited"
"""Where a visit keeps the future that its page waits for."""


def plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|$~:])", r"\\\1", text)


def number(value: float) -> str:
    """Three decimals, and no minus before a zero."""
    return f"{value:z.3f}"


def unsigned(cell: Any, decimals: int) -> Any:
    """A cell of a table; 0 for a number that would be shown as a minus before zeros."""
    zero = isinstance(cell, float) and cell <= 0 and round(cell, decimals) == 0
    return 0.0 if zero else cell


def thousands(count: int) -> str:
    """A whole number with spaces between thousands."""
    return f"{count:,}".replace(",", " ")


def _plain_numbers(found: Any) -> Mapping[str, Any]:
    """The numbers of an `Estimate` or `Null`, or of a step's result, which holds them by name."""
    return found if isinstance(found, Mapping) else asdict(found)


def interval(found: Any) -> str:
    """The 95 % interval of an estimate."""
    return formatting.ends(_plain_numbers(found))


def value(found: Any) -> str:
    """An estimate with its interval, or – for None."""
    return formatting.value(None if found is None else _plain_numbers(found))


def maybe(found: float | None) -> str:
    """A number that may be missing."""
    return NONE if found is None else number(found)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a file's text."""
    return pd.DataFrame(rows, dtype=object).to_csv(index=False)


def picker(
    widget: Callable[..., Any], label: str, field: str, *, shown: Any = None, **options: Any
) -> Any:
    """A widget that shows one field of the selection, or `shown`, and changes the field.

    `options`, if it has any, may map each option to the words that are shown for it. While the page
    waits for something, a choice draws the whole page: Streamlit can leave what a part showed
    before below what it shows now, if the part that waits is drawn right after it.

    If something else changed the field, such as a step of a tour, it is a new widget. A page that
    asks by itself whether a thread is done sends what its widgets showed when it asked; an old
    value must not be taken for a choice.
    """
    if isinstance(words := options.get("options"), Mapping):
        options |= {"options": list(words), "format_func": words.__getitem__}
    value = getattr(current(), field) if shown is None else shown
    value = list(value) if isinstance(value, tuple) else value
    name = f"pick-{field}"
    if st.session_state.get(_newest(name), value) != value:
        st.session_state[f"{name}-count"] = st.session_state.get(f"{name}-count", 0) + 1
    key = _newest(name)
    st.session_state[key] = value

    def changed() -> None:
        if key != _newest(name):
            return
        new = st.session_state[key]
        new = tuple(new) if isinstance(new, list | tuple) else new
        select(**{field: None if new in (NONE, "") else new})
        if AWAITED in st.session_state and not st.session_state[AWAITED].done():
            st.rerun()

    return widget(label, key=key, on_change=changed, **options)


def _newest(name: str) -> str:
    """The key of the widget that shows a field now; earlier ones were replaced."""
    return f"{name}-{st.session_state.get(f'{name}-count', 0)}"


def choose(
    label: str,
    field: str,
    options: Sequence[str] | Mapping[str, str],
    *,
    into: Any = st,
    segments: bool = False,
    **more: Any,
) -> str:
    """A `picker` among a page's options, in a list or as `segments` side by side.

    The first option is shown if the field has none of them.
    """
    value = getattr(current(), field)
    known = value in options
    if value is not None and not known and field in linked():
        ignored().append(in_words(field, str(value), "not offered on this page"))
    linked().discard(field)
    widget = into.segmented_control if segments else into.selectbox
    more |= {"required": True} if segments else {}
    shown = value if known else next(iter(options))
    return picker(widget, label, field, shown=shown, options=options, **more)


def choose_model(
    names: Sequence[str], chosen: str | None, *, into: Any = st, key: str | None = None
) -> str:
    """A list of models that takes any other name too; the first is shown if none is chosen."""
    known = list(names) if chosen is None or chosen in names else [*names, chosen]
    return into.selectbox(
        "Model",
        known,
        0 if chosen is None else known.index(chosen),
        accept_new_options=True,
        key=key,
        help="A listed model, a Hugging Face id or a local directory.",
    )


def choose_draws(label: str, first: Any, second: Any) -> tuple[int, int]:
    """How many random components stand beside the chosen ones, and the seed of their choice."""
    draws, seed = current().draws or 20, current().draw_seed or 0
    limits = {"min_value": 2, "max_value": 200}
    picker(first.number_input, label, "draws", shown=draws, **limits)
    limits = {"min_value": 0, "max_value": 2**31}
    picker(second.number_input, "Their seed", "draw_seed", shown=seed, **limits)
    return draws, seed


def start_button(
    label: str,
    action: Callable[..., Any] | None = None,
    *args: Any,
    into: Any = st,
    disabled: bool = False,
) -> bool:
    """The button that starts a page's work: it calls `action` with `args`, if there is one."""
    return into.button(
        label,
        type="primary",
        icon=":material/play_arrow:",
        disabled=disabled,
        on_click=action,
        args=args,
    )


def generate_button(asked: object, *, key: str, into: Any, disabled: bool) -> bool:
    """The button that has texts written; True after a click, as long as the same is asked for."""
    if start_button("Generate", into=into, disabled=disabled):
        st.session_state[key] = asked
    return not disabled and st.session_state.get(key) == asked


def generated_text(name: str, text: str, about: str, *, into: Any) -> None:
    """A generated text under the name of its run, and what is said of it."""
    into.markdown(f"**{name.capitalize()}**")
    into.code(text or "(nothing)", language=None, wrap_lines=True)
    into.markdown(about)


def downloads(
    files: Mapping[str, tuple[Callable[[], str], str]],
    *,
    name: str,
    caption: str | None = None,
) -> None:
    """Download buttons in a row: label -> (how the text is made, the file's suffix).

    `name` is the name of the files without suffix. Without a caption, it is a page with figures:
    the kind of picture is chosen here too.
    """
    for label, (make, suffix) in files.items():
        st.download_button(
            label,
            make,
            file_name=f"{name}.{suffix}".replace("/", "-"),
            mime=guess_type(f"file.{suffix}")[0],
            icon=":material/download:",
            on_click="ignore",
            key=f"{name}-{label}",
        )
    if caption is None:
        choose_picture(f"picture-{name}")
    st.caption("Link: the address bar." if caption is None else caption)


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


def stored_result(title: str, origin: Provenance, n: int, more: Mapping[str, object]) -> None:
    """The head of a page with a stored result: where every number on it comes from."""
    with st.sidebar:
        st.success("Stored result: nothing to run.", icon=":material/check:")
    st.header(title, anchor=False)
    seed = "" if origin.seed is None else f" · seed {origin.seed}"
    facts(
        {
            "model": f"{offered.without_paths(origin.model)} · {origin.model_hash[:12]}",
            "precision": origin.dtype,
            "task": f"{origin.task} · n = {n}{seed}",
            **more,
            "commit": origin.commit or "–",
        }
    )


def negative_gap(scores: Scores) -> None:
    """A warning where the metric is lower on the clean prompts: what a positive effect means."""
    if (words := pairs.negative_gap(scores.clean, scores.corrupted)) is not None:
        st.warning(f"**A negative gap:** {words}.", icon=":material/swap_vert:")


def token_strip(
    clean: Sequence[str],
    corrupted: Sequence[str] | None,
    marks: Mapping[str, int],
    sides: tuple[str, str] = ("clean prompt", "corrupted prompt"),
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
        shades = (f"rgba({colour},0.22)" if differs else GREY for colour in (BLUE, RED))
        chips = "".join(
            chip(row[index], shade, hint=f"token {index}", bold=differs)
            for row, shade in zip(rows, shades, strict=False)
        )
        columns.append(
            '<div style="display:flex;flex-direction:column;align-items:stretch;gap:3px;'
            'text-align:center;justify-content:flex-end">'
            f'<div style="font-size:0.72rem;line-height:1.1">{label}</div>{chips}'
            f'<div style="height:3px;border-radius:2px;background:{line}"></div></div>'
        )
    titles = "".join(
        f'<div style="{SMALL};line-height:1.75rem;text-align:right">{title}</div>'
        for title in sides[: len(rows)]
    )
    legend = (
        '<div style="display:flex;flex-direction:column;gap:3px;justify-content:flex-end">'
        f'{titles}<div style="height:3px"></div></div>'
    )
    st.html(
        '<div style="display:flex;flex-wrap:wrap;gap:0.6rem 3px;align-items:stretch">'
        f"{legend}{''.join(columns)}</div>"
    )


def chip(token: str, shade: str, *, hint: str, bold: bool = False) -> str:
    """A token as HTML on a shade (a CSS colour), with a hint on hover."""
    return (
        f'<div title="{hint}" style="background:{shade};border-radius:4px;padding:0 0.35rem;'
        "line-height:1.75rem;white-space:pre;font-family:monospace;font-size:0.86rem;"
        f'font-weight:{700 if bold else 400}">{escape(visible(token))}</div>'
    )


def figure(
    drawn: Any,
    *,
    key: str,
    alt: str,
    title: str = "",
    filename: str = "",
    into: Any = st,
    picked: Callable[[list[int]], None] | None = None,
) -> None:
    """A figure under its title; a click on a point calls `picked` with the point's customdata.

    The figure changes with every pick, and a changed chart forgets what was selected in it, so the
    callback hands the pick on while it exists. `into` is a column, or the page.
    """

    def clicked() -> None:
        if picked is not None and (points := st.session_state[key].selection.points):
            picked(point_data(points[0]))

    if title:
        into.markdown(f"**{title}**")
    into.plotly_chart(
        darkened(drawn) if st.context.theme.type == "dark" else drawn,
        key=key,
        on_select="ignore" if picked is None else clicked,
        selection_mode="points",
        width="content" if drawn.layout.width else "stretch",
        config=_chart_config(filename or key),
        alt=alt,
    )


def legend_below(drawn: Any, *, height: int, room: int) -> Any:
    """A figure of this height with its legend below, which takes `room` pixels."""
    return drawn.update_layout(height=height, legend=BELOW, margin={**MARGIN, "t": 30, "b": room})


def estimates_with_null(estimates: Mapping[str, Result], null: Sequence[Any], **words: str) -> Any:
    """`interp.plots.lines.values_with_null` of estimates by label."""
    mean, low, high = band(list(estimates.values()))
    return values_with_null(list(estimates), mean, low=low, high=high, null=null, **words)


def point_data(point: Mapping[str, Any]) -> list[int]:
    """A point's customdata: the browser sends a list, or of an array a dict by position."""
    data = point["customdata"]
    return [int(value) for value in (data.values() if isinstance(data, dict) else data)]


def choose_picture(key: str) -> None:
    """What the camera above every figure saves, for the rest of the visit."""

    def chosen() -> None:
        st.session_state[PICTURE] = st.session_state[key]

    st.session_state[key] = st.session_state.get(PICTURE, "PNG")
    st.segmented_control(
        "The camera above a figure saves",
        ["PNG", "SVG"],
        key=key,
        required=True,
        on_change=chosen,
        help="PNG at three times the size on the screen, or SVG for print.",
    )


def _chart_config(filename: str) -> dict[str, Any]:
    """The tool bar of a figure."""
    kind = st.session_state.get(PICTURE, "PNG").lower()
    keep = {"format": kind, "filename": filename, "scale": 3 if kind == "png" else 1}
    return {
        "displaylogo": False,
        "displayModeBar": True,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "zoom2d", "pan2d", "autoScale2d"],
        "toImageButtonOptions": keep,
    }


def table(
    rows: Sequence[Mapping[str, Any]],
    *,
    key: str,
    widths: Mapping[str, int] | None = None,
    decimals: int = 3,
    most: int = 14,
    lines: int = 1,
    into: Any = st,
    picked: Callable[[int], None] | None = None,
    chosen: int | None = None,
) -> None:
    """A table: numbers with `decimals`, and as high as it needs to be, up to `most` rows.

    `widths` of columns are in pixels; other columns are as wide as their texts. A text is broken
    into as many `lines` as a row has. `into` is a column, or the page. A click on a row calls
    `picked` with its number; `chosen` is the row shown as selected.
    """
    wide, high = {"layer": 60, **(widths or {})}, 30 * lines
    columns: dict[str, Any] = {
        name: st.column_config.Column(width=width) for name, width in wide.items()
    }
    columns |= {
        name: st.column_config.NumberColumn(format=f"%.{decimals}f", width=wide.get(name))
        for name in (rows[0] if rows else {})
        if any(isinstance(row[name], float) for row in rows)
    }

    def clicked() -> None:
        if picked is not None and (places := st.session_state[key].selection.rows):
            picked(places[0])

    clickable: dict[str, Any] = {
        "on_select": clicked,
        "selection_mode": "single-row",
        "selection_default": {"selection": {"rows": [] if chosen is None else [chosen]}},
    }
    into.dataframe(
        [{name: unsigned(cell, decimals) for name, cell in row.items()} for row in rows],
        key=key,
        hide_index=True,
        row_height=high,
        height=min(most, max(1, len(rows))) * high + 34,
        column_config=columns,
        **({} if picked is None else clickable),
    )


def caveat(text: str) -> None:
    """What the page does not show."""
    st.caption(f"**What this does not show.** {text}")


def left_out(found: Mapping[str, Any]) -> bool:
    """Whether a step was skipped; it then says why."""
    if "skipped" in found:
        st.caption(f"Left out: {plain(str(found['skipped']))}.")
    return "skipped" in found
