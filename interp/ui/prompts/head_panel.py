"""One head on one prompt: where it attends, what it adds and writes, what its weights do."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.heads.weights import HeadToken, head_tokens
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Token
from interp.overview.logit_parts import LogitParts
from interp.overview.one_prompt import Look
from interp.plots.components import attention_map, bars, effect_strip, token_bars
from interp.plots.style import visible
from interp.ui.prompts import head_weights
from interp.ui.prompts.head_maps import HeadMap
from interp.ui.prompts.strip import attention_strip
from interp.ui.shared import widgets
from interp.ui.shared.cache import HASHES
from interp.ui.shared.state import current, select

WINDOW = 64
"""Tokens of a pattern that are drawn at once."""
MOST_TOKENS = 16
"""Tokens whose OV and QK are listed at once."""
PARTS = {
    "attends": "Where it attends",
    "adds": "What it writes",
    "weights": "OV and QK",
    "composition": "Other heads",
}


def show(seen: Look, parts: LogitParts, drawn: HeadMap, target: int | None) -> None:
    """The head looked at, in one of its views; `target` is the key that is framed."""
    layer, head = drawn.cell()
    label = f"L{layer}H{head}"
    title, by_layer, by_head, clear = st.columns([2, 1, 1, 1], vertical_alignment="bottom")
    title.subheader(label, anchor=False)
    for into, name, value, size in (
        (by_layer, "layer", layer, drawn.values.shape[0]),
        (by_head, "head", head, drawn.values.shape[1]),
    ):
        limits = {"min_value": 0, "max_value": size - 1}
        widgets.picker(into.number_input, name.capitalize(), name, shown=value, **limits)
    clear.button(
        "Strongest",
        on_click=select,
        kwargs={"layer": None, "head": None},
        disabled=current().layer is None and current().head is None,
        width="stretch",
        help="Look at the strongest head of the map again.",
    )
    null = drawn.null(layer, head)
    interval = "" if drawn.low is None else f" · 95 % interval {drawn.interval(layer, head)}"
    st.markdown(
        f"{widgets.plain(drawn.name)}: **{drawn.values[layer, head]:+z.3f}**{interval} · rank "
        f"**{drawn.rank(layer, head)} of {drawn.values.size}**"
        + (f" · heads of nearby layers, absolute: {null.beside}" if null else "")
    )
    if drawn.samples is not None and drawn.low is not None and drawn.high is not None:
        widgets.figure(
            effect_strip(
                drawn.samples[:, layer, head],
                1,
                low=float(drawn.low[layer, head]),
                high=float(drawn.high[layer, head]),
                selected=current().prompt,
                title=f"{drawn.name}, each of {len(drawn.kept)} prompts",
                numbers=drawn.kept,
            ),
            key="per-prompt",
            alt=f"{label} on each prompt",
            picked=lambda data: select(prompt=data[0]),
        )
    part = widgets.choose("View", "shown", PARTS, segments=True)
    if part == "attends":
        _attends(seen, parts, layer, head, target)
    elif part == "adds":
        _writes(parts, layer, head)
    elif part == "weights":
        _weights(seen, layer, head)
        head_weights.show_directions(seen.run.model, layer, head)
    else:
        head_weights.show_composition(seen.run.model, layer, head)


def _attends(seen: Look, parts: LogitParts, layer: int, head: int, target: int | None) -> None:
    first = max(0, parts.position + 1 - WINDOW)
    shown = slice(first, parts.position + 1)
    pattern, tokens = seen.pattern(layer, head)[shown, shown], seen.tokens[shown]
    st.caption(
        "Hover over a token, or step through them with Tab: the shading shows where the head "
        "attends from it. A click, or Enter, makes it the chosen token (orange)."
    )
    attention_strip(
        pattern,
        tokens,
        first=first,
        query=parts.position,
        key=target if target is not None and target in range(first, parts.position + 1) else None,
        picked=lambda token: select(target=token),
    )
    widgets.figure(
        attention_map(pattern, tokens), key="attention", alt=f"Attention of L{layer}H{head}"
    )
    if (sink := seen.sink(layer, head)) is not None:
        st.caption(
            f"From the chosen token, {sink[parts.position]:.0%} of its attention goes to its sink, "
            f"which is no token; from all tokens, {sink.mean():.0%} on average."
        )
    if first:
        st.caption(f"Tokens {first} to {parts.position} of {seen.run.n_tokens}.")


def _writes(parts: LogitParts, layer: int, head: int) -> None:
    """What it adds to the answer through each token, and the tokens that it raises and lowers."""
    left, right = st.columns(2, gap="medium")
    total = parts.heads[layer, head]
    left.markdown(f"It adds **{total:+z.3f}** logits to {widgets.plain(parts.words)}, through:")
    sources = parts.by_source(layer, head)
    order = sorted(range(len(sources)), key=lambda i: -abs(sources[i]))[:8]
    tokens = parts.run.prompt.strings  # those of a longer answer too
    named = [(f"{visible(tokens[i])} ({i})", float(sources[i])) for i in order]
    widgets.figure(
        bars(
            sorted(named, key=lambda pair: pair[1] <= 0),
            x_title=f"added to {parts.words} (logits)",
        ),
        key="sources",
        alt=f"Tokens through which L{layer}H{head} adds to the answer",
        into=left,
    )
    written = parts.writes(layer, head, k=6)
    right.markdown("Of all tokens, it raises and lowers most:")
    widgets.figure(
        token_bars(*([(t.text, t.value) for t in side] for side in _sides(written))),
        key="written",
        alt=f"Tokens that L{layer}H{head} raises and lowers",
        into=right,
    )


def _sides(found: Any) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
    return found.promoted, found.suppressed


@st.cache_resource(max_entries=32, show_spinner="Reading the weights …", hash_funcs=HASHES)
def _head_tokens(
    model: LanguageModel, layer: int, head: int, tokens: tuple[int, ...]
) -> list[HeadToken]:
    return head_tokens(model, layer, head, tokens)


def _weights(seen: Look, layer: int, head: int) -> None:
    """What its weights do with each token of the prompt alone."""
    tokens = tuple(dict.fromkeys(seen.run.prompt.tokens))[-MOST_TOKENS:]

    def words(some: tuple[Token, ...]) -> str:
        return " ".join(visible(token.text) for token in some)

    columns = ("it then writes (OV)", "against (OV)", "it looks for (QK)")
    widgets.table(
        [
            {
                "token": visible(one.text),
                columns[0]: words(one.writes.promoted),
                columns[1]: words(one.writes.suppressed),
                columns[2]: words(one.seeks.promoted),
            }
            for one in _head_tokens(seen.run.model, layer, head, tokens)
        ],
        key="weights",
        widths={"token": 85, **dict.fromkeys(columns, 195)},
        lines=2,
        most=MOST_TOKENS,
    )
    st.caption(
        "OV: what the head writes when it attends to the token. QK: what it looks for from the "
        f"token. By the weights of L{layer}H{head} alone, from each token's own embedding, for "
        f"{len(tokens)} different tokens of the prompt. In the run, the head reads what earlier "
        "layers made of them; distance plays no part in QK here."
    )
