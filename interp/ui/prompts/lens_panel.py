"""What every layer of a prompt reads as, by the logit lens or the lens that ships for a model."""

from __future__ import annotations

import streamlit as st

from interp.models.language_model import LanguageModel
from interp.overview.one_prompt import Look
from interp.plots.style import visible
from interp.probing.lens import Lens
from interp.probing.lens_readings import LensReading
from interp.ui.prompts import frame
from interp.ui.shared import cache, widgets
from interp.ui.shared.prompts import AskedPrompt
from interp.ui.shared.state import current, select

LENSES = {"logit": "Logit lens", "jacobian": "Jacobian lens"}
WINDOW = 16
"""Tokens of a lens table that are drawn at once."""


def show(
    model: LanguageModel, asked: AskedPrompt, seen: Look, place: int
) -> tuple[Lens | LensReading, str]:
    """Draw the lens that is chosen: what it reads, and the Python that reads it."""
    reading = None
    if cache.has_lens(model):
        chosen = widgets.choose("Read the layers by", "lens", LENSES, segments=True)
        if chosen == "jacobian":
            reading = cache.lens_reading(model, asked.given(model), seen.lens.words)
    lens = seen.lens if reading is None else reading.lens
    _draw(seen, lens, place, "Logit lens" if reading is None else "Jacobian lens")
    _by_layer(seen, lens, place)
    call = frame.look_call(model, asked)
    if reading is None:
        widgets.caveat(
            "The lens reads a layer with the final norm and unembedding. Early layers need not "
            "write in that code: an answer that cannot be read may still be there."
        )
        return lens, f"{call}\nseen.to_dict(position={place})"
    _beside(reading, place)
    widgets.caveat(
        "This lens moves a layer's stream to the last layer by the mean Jacobian over other texts, "
        "and reads it there. It says what such a stream leads to on average, not what later layers "
        "do with this one."
    )
    words = list(lens.words)
    call = (
        f"{call}\nmaps = interp.probing.shipped_lens(model)\n"
        f"interp.probing.read_lens(model, {asked.python()}, maps, words={words!r}).to_dataframe()"
    )
    return reading, call


def _draw(seen: Look, lens: Lens, place: int, name: str) -> None:
    """The likeliest token of every layer and token, and those of the layer that is chosen."""
    first = max(0, min(place - WINDOW + 2, seen.run.n_tokens - WINDOW))
    left, right = st.columns([1, 3], gap="large")
    layer, after = current().layer, widgets.plain(visible(seen.tokens[place]))
    with left:
        if layer not in lens.layers:
            st.markdown(f"**Next token after {after}**")
            following = seen.next_tokens(12, position=place)
        else:
            st.markdown(f"**Read after {after} at layer {layer}**")
            following = lens.top(layer, group=str(place))
        widgets.table(
            [{"token": visible(t.text), "probability": t.value} for t in following], key="next"
        )
    cell = (lens.layers.index(layer), place - first) if layer in lens.layers else None
    widgets.figure(
        lens.plot(columns=slice(first, first + WINDOW), selected=cell),
        key="lens",
        title=f"{name}: the likeliest token at every layer",
        alt=f"{name}, layers by tokens",
        into=right,
        picked=lambda data: select(layer=lens.layers[data[0]], token=first + data[1]),
    )
    if seen.run.n_tokens > WINDOW:
        right.caption(f"Tokens {first} to {first + WINDOW - 1} of {seen.run.n_tokens}.")


def _by_layer(seen: Look, lens: Lens, place: int) -> None:
    """At which layer the answer can be read, and the token it is compared with."""
    with st.expander("The answer and the other token, layer by layer", icon=":material/stacks:"):
        rows: widgets.Rows = []
        for layer in lens.layers:
            rows.append({"layer": layer, "length": float(seen.norms[layer + 1, place])})
            for word in lens.words:
                shown = visible(str(word))
                for name, read in (("probability", lens.probability), ("rank", lens.rank)):
                    rows[-1][f"{shown}: {name}"] = read(word, layer, group=str(place)).mean
        widgets.table(rows, key="lens-words", picked=lambda row: select(layer=lens.layers[row]))
        st.caption(
            "Length: of the residual stream after the layer, at the token that is read. Rank 1: "
            "the likeliest token if the layer were the last one."
        )


def _beside(reading: LensReading, place: int) -> None:
    """The answer by the lens and by its controls."""
    word = reading.lens.words[0]
    with st.expander("Beside its controls", icon=":material/balance:", expanded=True):
        widgets.figure(
            reading.plot(word=word, group=str(place)),
            key="lens-controls",
            title=f"Probability of {visible(str(word))} by every lens",
            alt="Probability of the answer over layers, by the lens and its controls",
        )
        st.caption(
            "Identity: the logit lens. Shuffled layers: every layer is read with the map of "
            "another. Half 1 and half 2: fitted on half of the texts each; their distance is the "
            "error of the fit."
        )
