"""A prompt's tokens on one line: hover over a token, or reach it by keyboard, and it shades others.

The shading happens in the browser; only a click, or Enter, asks the server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st
from streamlit.components import v2

from interp.plots.style import visible
from interp.steering.projections import Projected, on_one_scale
from interp.ui.shared import widgets

HTML = "<div class='strip'></div>"
CSS = """
.strip {display: flex; flex-wrap: wrap; gap: 3px;}
.strip button {
  background: rgba(128,138,150,0.12); color: var(--st-text-color); border: 2px solid transparent;
  border-radius: 4px; padding: 0 0.3rem; line-height: 1.6rem; white-space: pre; cursor: pointer;
  font-family: var(--st-code-font); font-size: 0.85rem;
}
.strip button.from {border-color: var(--st-text-color);}
.strip button.to {border-color: #e69f00;}
"""
JS = """
export default function ({data, parentElement, setTriggerValue}) {
  const box = parentElement.querySelector(".strip");
  const tokens = data.tokens.map((text, i) => {
    const token = document.createElement("button");
    token.textContent = text;
    token.onmouseenter = token.onfocus = () => shade(i);
    token.onmouseleave = token.onblur = () => shade(data.from);
    token.onclick = () => setTriggerValue("picked", data.first + i);
    return token;
  });
  function shade(from) {
    tokens.forEach((token, i) => {
      const weight = data.rows[from][i] || 0;
      token.style.backgroundColor = `rgba(47,111,181,${0.06 + 0.94 * Math.min(1, weight)})`;
      token.style.color = weight > 0.55 ? "#fff" : "";
      token.title = `token ${data.first + i}: ${weight.toFixed(3)} of the attention from token ` +
        `${data.first + from}`;
      token.classList.toggle("from", i === from);
      token.classList.toggle("to", i === data.to);
    });
  }
  box.replaceChildren(...tokens);
  shade(data.from);
}
"""


@st.cache_resource(show_spinner=False)
def _component() -> Callable[..., Any]:
    return v2.component("interp.attention_strip", html=HTML, css=CSS, js=JS)


def attention_strip(
    pattern: Any,
    tokens: Sequence[str],
    *,
    first: int,
    query: int,
    key: int | None,
    picked: Callable[[int], None],
) -> None:
    """Where each token attends, on hover; of `query` otherwise. A click calls `picked`.

    `pattern` is (query, key) and `tokens` the texts, of the tokens from number `first` on. `query`
    and `key` are numbers of tokens, as the one that a click reports; the key is framed.
    """

    def clicked() -> None:
        if (place := st.session_state["strip"].picked) is not None:
            picked(int(place))

    _component()(
        key="strip",
        data={
            "tokens": [visible(text) for text in tokens],
            "rows": [[round(float(weight), 3) for weight in row] for row in pattern],
            "first": first,
            "from": query - first,
            "to": None if key is None else key - first,
        },
        on_picked_change=clicked,
    )


def projection_strips(found: list[Projected], reading: str, words: str) -> str:
    """Prompts as HTML, a chip a token, shaded by a reading on one scale; `words` name it."""
    values = [getattr(one, reading) for one in found]
    middle, reach, places = on_one_scale(values)
    lines = []
    for one, row, at in zip(found, values, places, strict=True):
        chips = []
        for i, (token, value, place) in enumerate(zip(one.tokens, row, at, strict=True)):
            colour = widgets.RED if place > 0 else widgets.BLUE
            shade = f"rgba({colour},{0.05 + 0.7 * abs(place):z.2f})"
            chips.append(widgets.chip(token, shade, hint=f"token {i}: {reading} {value:z.3f}"))
        lines.append(
            '<div style="display:flex;flex-wrap:wrap;gap:3px;margin-bottom:0.7rem">'
            f"{''.join(chips)}</div>"
        )
    return (
        "".join(lines) + f'<div style="{widgets.SMALL}">{words}: {middle - reach:z.3f} '
        '<span style="display:inline-block;width:9rem;height:0.7rem;vertical-align:middle;'
        f"background:linear-gradient(90deg,rgba({widgets.BLUE},0.75),rgba(128,138,150,0.08),"
        f'rgba({widgets.RED},0.75))"></span> {middle + reach:z.3f}'
        "; a first token may lie beyond</div>"
    )
