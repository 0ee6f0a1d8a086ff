"""Neurons: which write the answer, fire or point along a direction, and one of them looked at."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.overview.one_prompt import Look, WritingNeuron
from interp.results.direction import Direction, kept_directions
from interp.ui.prompts import frame, neuron_panel
from interp.ui.shared import cache, offered, opening, prompts, widgets
from interp.ui.shared.prompts import AskedPrompt
from interp.ui.shared.state import current, fit, select

MOST = 20
ALONG = "direction "
"""How the name of an order begins that ranks by a kept direction."""

ORDERS = {
    "attribution": "what they add to the logit difference (logits)",
    "activation": "activation",
    "answer": "cosine with the answer direction",
    "foil": "cosine with prompt minus foil",
}


def _show() -> None:
    opening.intro(
        "Neurons",
        does="It ranks all MLP neurons on any prompt or along a kept direction, shows what one of "
        "them reads and writes and where it fires, and finds neurons by the words that they write.",
        when="To find neurons behind an answer, and to see whether a neuron has one meaning.",
        lacks="The words are what the weights say by themselves. A neuron also acts through later "
        "layers, and one that fires need not matter: patching neurons measures that.",
    )
    if (opened := prompts.opened("Look", ":material/visibility:")) is not None:
        _page(*opened)


@st.fragment
def _page(model: LanguageModel, asked: AskedPrompt) -> None:
    """The ranking, the neuron looked at and the search: a click reruns this part alone."""
    try:
        _neurons(model, asked)
    except InterpError as error:
        widgets.show_error(error)
    st.header("Which neurons write a word?", anchor=False)
    neuron_panel.search(model, " Paris", picked=lambda neuron: select(neuron=neuron))


def _neurons(model: LanguageModel, asked: AskedPrompt) -> None:
    asked = prompts.by_sums(model, asked)
    seen = frame.read(model, asked)
    place = frame.read_after(seen)
    frame.facts(seen, frame.parts(model, asked, place))
    orders = ORDERS if asked.foil else {k: v for k, v in ORDERS.items() if k != "foil"}
    along = _directions(model)
    orders = orders | {f"{ALONG}{name}": f"cosine with the direction {name}" for name in along}
    fit(mlp=range(model.n_layers))
    order, which = st.columns([3, 2])
    by = widgets.choose("Ranked by", "ranked", orders, into=order)
    layers = {widgets.NONE: "every layer"} | {i: f"layer {i}" for i in range(model.n_layers)}
    mlp = current().mlp
    shown = widgets.NONE if mlp is None else mlp
    widgets.picker(which.selectbox, "Neurons of", "mlp", shown=shown, options=layers)
    ranked = _ranked(model, asked, place, by, mlp)
    labels = [str(one.component) for one in ranked]
    neuron = _chosen(model, labels[0])
    rows = [_row(one) for one in ranked]
    total = (model.n_layers if mlp is None else 1) * model.d_mlp
    st.markdown(f"**The {len(rows)} strongest of {widgets.thousands(total)} neurons**, either way")
    widgets.table(
        rows,
        key=f"neurons-{neuron}",
        most=MOST,
        picked=lambda row: select(neuron=labels[row]),
        chosen=labels.index(neuron) if neuron in labels else None,
    )
    st.caption(
        "Others: the absolute score beside those of all other neurons of the layer, mean and 95 % "
        "range. A rank is no p-value: the neuron was selected. n = 1 prompt"
        + (" and one foil." if by == "foil" else ".")
    )
    title, number = st.columns([4, 1], vertical_alignment="bottom")
    title.subheader(neuron, anchor=False)
    widgets.picker(number.text_input, "Neuron", "neuron", shown=neuron, max_chars=12)
    neuron_panel.weights(model, neuron)
    runs = {"prompt": seen} | ({"foil": _foil(model, asked)} if asked.foil else {})
    neuron_panel.fires(
        model, neuron, {name: run.firing(neuron) for name, run in runs.items()}, place
    )
    neuron_panel.strongest(model, neuron)
    call = (
        f"{frame.look_call(model, asked)}\n"
        + (f"foil = interp.look(model, {asked.python(asked.foil)})\n" if by == "foil" else "")
        + _ranking_call(by, place, mlp)
        + f"interp.neurons.neuron_tokens(model, {neuron!r})"
    )
    found = {"prompt": asked.prompt, "ranked by": orders[by], "neurons": rows}
    frame.take_away("neurons", lambda: rows, lambda: found, call)


def _directions(model: LanguageModel) -> dict[str, Direction]:
    """The kept directions of the model; on a shared server none, as others made them."""
    return {} if offered.is_shared() else kept_directions(model)


def _ranking_call(by: str, place: int, mlp: int | None) -> str:
    """The Python that ranks the neurons."""
    given = f"{MOST}, position={place}" + ("" if mlp is None else f", layer={mlp}")
    if not by.startswith(ALONG):
        foil = ", foil=foil" * (by == "foil")
        return f"seen.neurons({given}, by={by!r}{foil})\n"
    name = by.removeprefix(ALONG)
    return (
        f"one = interp.results.kept_directions(model)[{name!r}]  # kept on this machine\n"
        f"seen.neurons({given}, by='direction', direction=one)\n"
    )


def _foil(model: LanguageModel, asked: AskedPrompt) -> Look:
    return cache.look(model, asked.given(model, asked.foil), None, None)


@st.cache_resource(max_entries=16, show_spinner="Ranking the neurons …", hash_funcs=cache.HASHES)
def _ranked(
    model: LanguageModel, asked: AskedPrompt, place: int, by: str, mlp: int | None
) -> list[WritingNeuron]:
    other = _foil(model, asked) if by == "foil" else None
    seen = cache.look(model, asked.given(model), asked.answer, asked.wrong)
    options: dict[str, Any] = {"position": place, "layer": mlp}
    if by.startswith(ALONG):
        one = _directions(model)[by.removeprefix(ALONG)]
        return seen.neurons(MOST, by="direction", direction=one, **options)
    return seen.neurons(MOST, by=by, foil=other, **options)


def _chosen(model: LanguageModel, first: str) -> str:
    """The neuron looked at; the first of the ranking if none, or none that is there, is chosen."""
    try:
        (part,) = model.require_parts([current().neuron or first], "post")
        return str(part)
    except InterpError as error:
        widgets.show_error(error)
        return first


def _row(one: WritingNeuron) -> dict[str, object]:
    raises, lowers = one.here
    return {
        "neuron": str(one.component),
        "score": one.score,
        "others of the layer, absolute": "no others" if one.null is None else one.null.beside,
        "adds, logits": one.value,
        "activation": one.activation,
        "raises here": neuron_panel.words(raises),
        "lowers here": neuron_panel.words(lowers),
    }


if __name__ == "__main__":
    _show()
