"""One neuron: what it reads and writes, and where it fires; and a search by word."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from html import escape
from typing import Any

import streamlit as st

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Token, unembed, written_vectors
from interp.neurons.firing import NeuronFiring, StrongestTexts, neuron_firing, strongest_texts
from interp.neurons.search import search_neurons
from interp.neurons.weights import NeuronTokens, neuron_tokens
from interp.plots.style import visible
from interp.ui.shared import cache, jobs, offered, widgets
from interp.ui.shared.cache import HASHES
from interp.ui.shared.state import LONGEST, current
from interp.ui.shared.widgets import Rows

SIGNS = {"write them": 1, "write against them": -1}
MOST_FOUND = 20
MOST_PROMPTS = 8
"""Prompts of the loaded set that are shown: those in which the neuron fires most."""
MOST_SHOWN = 120
"""Tokens of a prompt that are shown: those around the strongest activation."""


def words(tokens: Sequence[Token]) -> str:
    """Tokens with visible spaces, on one line."""
    return " ".join(visible(token.text) for token in tokens)


@st.cache_resource(max_entries=64, show_spinner="Reading the weights …", hash_funcs=HASHES)
def _tokens(model: LanguageModel, neuron: str) -> NeuronTokens:
    return neuron_tokens(model, neuron)


@st.cache_resource(max_entries=32, show_spinner="Running the prompts …", hash_funcs=HASHES)
def firing(model: LanguageModel, neuron: str, prompts: tuple[Prompt, ...]) -> list[NeuronFiring]:
    """One neuron on every token of some prompts."""
    return neuron_firing(model, prompts, neuron)


def weights(model: LanguageModel, neuron: str) -> None:
    """What it reads and writes, both signs."""
    seen = _tokens(model, neuron)
    parts = {"gate reads" if seen.up else "reads": seen.gate, "up reads": seen.up}
    sides = ("most", "least, or against")
    widgets.table(
        [
            {"part": name, sides[0]: words(part.promoted), sides[1]: words(part.suppressed)}
            for name, part in {**parts, "writes": seen.writes}.items()
            if part is not None
        ],
        key="neuron-weights",
    )
    st.caption(
        "By its weights alone. Reads: the tokens on whose own embedding the part is largest and "
        "smallest. Writes: the tokens whose logits its output weights raise and lower at a "
        "positive activation; a negative one swaps the two."
    )


def fires(model: LanguageModel, neuron: str, mine: Mapping[str, NeuronFiring], place: int) -> None:
    """Its activation on the tokens of the prompts at hand, on one scale.

    `mine` has them by name; the first one is read at `place`.
    """
    names, shown = list(mine), list(mine.values())
    here = shown[0]
    widgets.facts(
        {
            "activation at the token read": f"{here.activation[place]:+z.3f}",
            "gate, before the activation function": f"{here.gate[place]:+z.3f}",
            "up": widgets.NONE if here.up is None else f"{here.up[place]:+z.3f}",
        }
    )
    if st.toggle("Also in the prompts loaded in Setup", key="neuron-set"):
        try:
            open_ = cache.opened()
            every = firing(model, neuron, tuple(pair.clean for pair in open_.task.pairs))
        except InterpError as error:
            widgets.show_error(error)
        else:
            order = sorted(range(len(every)), key=lambda i: -every[i].peak)[:MOST_PROMPTS]
            shown += [every[i] for i in order]
            names += [f"prompt {i} of {open_.task.name}" for i in order]
            st.caption(
                f"The {len(order)} of {len(every)} prompts of {widgets.plain(open_.task.name)} in "
                "which it fires most."
            )
    limit = max(one.peak for one in shown) or 1.0
    for name, one in zip(names, shown, strict=True):
        _strip(name, one, limit)
    st.caption(f"Red: positive, blue: negative; full colour is {limit:z.3f}. Hover for the number.")


@st.cache_resource(max_entries=32, show_spinner=False, hash_funcs=HASHES)
def _strongest(model: LanguageModel, neuron: str) -> Future[StrongestTexts]:
    return jobs.THREADS.submit(strongest_texts, model, neuron)


def strongest(model: LanguageModel, neuron: str) -> None:
    """The passages that ship in which it fires most; read when they are asked for."""
    if not st.toggle("Texts in which it fires most", key="neuron-texts"):
        return
    try:
        found = jobs.later(_strongest(model, neuron), "Reading the passages …")
    except InterpError as error:
        widgets.show_error(error)
        return
    if found is None:
        return
    limit = max(one.peak for one in found.texts) or 1.0
    for number, one in zip(found.numbers, found.texts, strict=True):
        _strip(f"passage {number}", one, limit)
    st.caption(
        f"The {len(found.texts)} of {found.n} short passages in which it fires most, the first "
        f"token left out. Over all their tokens its absolute activation has a median of "
        f"{found.usual[0]:z.3f}, and 1 % are above {found.usual[1]:z.3f}. "
        f"`interp.neurons.strongest_texts(model, {neuron!r})` also reads a file of texts of yours."
    )


def _strip(name: str, one: NeuronFiring, limit: float) -> None:
    """A prompt's tokens shaded by activation; of a long prompt those around the strongest."""
    peak = int(abs(one.activation).argmax())
    first = max(0, min(peak - MOST_SHOWN // 2, len(one.tokens) - MOST_SHOWN))
    chips = []
    for i in range(first, min(len(one.tokens), first + MOST_SHOWN)):
        value = float(one.activation[i])
        colour = widgets.RED if value > 0 else widgets.BLUE
        shade = f"rgba({colour},{0.05 + 0.85 * abs(value) / limit:z.3f})"
        chips.append(widgets.chip(one.tokens[i], shade, hint=f"token {i}: {value:+z.3f}"))
    if len(one.tokens) > MOST_SHOWN:
        name += f", tokens {first} to {first + MOST_SHOWN - 1}"
    st.html(
        f'<div style="{widgets.SMALL}">{escape(name)} · largest {one.peak:z.3f}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:3px">{"".join(chips)}</div>'
    )


@st.cache_resource(max_entries=32, show_spinner=False, hash_funcs=HASHES)
def _search(model: LanguageModel, asked: tuple[str, ...], sign: int) -> Future[Rows]:
    return jobs.THREADS.submit(written, model, asked, sign=sign)


def written(model: LanguageModel, asked: tuple[str, ...], *, sign: int) -> Rows:
    """The neurons that write some words most (or most against them), and what else they write.

    Raises:
        InterpError: no words, one of several tokens, or a model whose neurons cannot be read so.
    """
    rows = []
    for found in search_neurons(model, asked, k=MOST_FOUND, sign=sign):
        label = str(Component(found.layer, "post", found.index))
        row: dict[str, Any] = {"neuron": label, "score": found.score}
        for word, logit, rank in zip(asked, found.logits, found.ranks, strict=True):
            row |= {f"logit of {visible(word)}": logit, f"rank of {visible(word)}": rank}
        vectors = written_vectors(model.require_decoder("searching neurons"), found.layer)
        (seen,) = unembed(model, vectors[found.index], k=6)
        rows.append(row | {"writes": words(seen.promoted), "against": words(seen.suppressed)})
    return rows


def search(
    model: LanguageModel | None,
    example: str,
    *,
    sets: Mapping[str, Collection[str]] | None = None,
    picked: Callable[[str], None] | None = None,
) -> None:
    """A search of all neurons by the words they write.

    Nothing is searched without a model. `sets` adds a column with the names of those that a neuron
    is in; a click on a row calls `picked` with its neuron.
    """
    text, side = st.columns([3, 2], vertical_alignment="bottom")
    asked = current().searched or example
    label = "Words, each one token, separated by commas (keep the leading space)"
    widgets.picker(text.text_input, label, "searched", shown=asked, max_chars=LONGEST)
    towards = widgets.choose("Neurons that", "sign", list(SIGNS), into=side, segments=True)
    if model is None:
        return
    try:
        words_asked = tuple(filter(None, asked.split(",")))
        rows = jobs.later(_search(model, words_asked, SIGNS[towards]), "Searching the neurons …")
    except InterpError as error:
        widgets.show_error(error)
        return
    if rows is None:
        return
    neurons = [row["neuron"] for row in rows]
    if sets is not None:
        inside = [", ".join(name for name in sets if one in sets[name]) for one in neurons]
        rows = [{**row, "in": names or "–"} for row, names in zip(rows, inside, strict=True)]
    widgets.table(
        rows,
        key="search",
        most=MOST_FOUND,
        widths={"writes": 190, "against": 190},
        picked=None if picked is None else lambda row: picked(neurons[row]),
    )
    st.caption(
        f"{widgets.plain(offered.without_paths(model.name))}, the first {len(rows)} over all "
        f"{model.n_layers} layers; score: how far the words stand out among all tokens of what "
        "the neuron writes, in standard deviations. Rank 1 is the token that the neuron writes "
        "most" + (", here against." if SIGNS[towards] < 0 else ".")
    )
