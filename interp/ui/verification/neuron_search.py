"""A search of the loaded model's neurons by the words they write."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.models.unembedding import unembed
from interp.neurons.glu import glu_vectors
from interp.neurons.search import search_neurons
from interp.plots.style import visible
from interp.studies.verification.study import Study
from interp.ui.shared import widgets
from interp.ui.shared.cache import HASHES
from interp.ui.studies.model import loaded_model, same_weights

MOST = 20
SIGNS = {"write them": 1, "write against them": -1}


@st.cache_resource(max_entries=32, show_spinner="Searching the neurons …", hash_funcs=HASHES)
def written(model: LanguageModel, words: tuple[str, ...], *, sign: int) -> list[dict[str, Any]]:
    """The neurons that write some words most (or most against them), and what else they write.

    Raises:
        InterpError: no words, one of several tokens, or a model whose neurons cannot be read so.
    """
    rows = []
    for found in search_neurons(model, words, k=MOST, sign=sign):
        row: dict[str, Any] = {"neuron": f"L{found.layer}N{found.index}", "score": found.score}
        for word, logit, rank in zip(words, found.logits, found.ranks, strict=True):
            row |= {f"logit of {visible(word)}": logit, f"rank of {visible(word)}": rank}
        if model.gated:
            (seen,) = unembed(
                model, glu_vectors(model, found.layer, found.index).value, k=6, norm=True
            )
            row["writes"] = " ".join(visible(token.text) for token in seen.promoted)
            row["against"] = " ".join(visible(token.text) for token in seen.suppressed)
        rows.append(row)
    return rows


def search(study: Study, sets: dict[str, list[str]]) -> None:
    """Neurons of the loaded model by the words they write; `sets` are the study's own."""
    model = loaded_model(study)
    text, side = st.columns([3, 2], vertical_alignment="bottom")
    asked = text.text_input(
        "Words, each one token, separated by commas (keep the leading space)", " correct"
    )
    towards = side.segmented_control(
        "Neurons that", list(SIGNS), default=next(iter(SIGNS)), required=True
    )
    if model is None:
        return
    words = tuple(word for word in asked.split(",") if word)
    try:
        rows = written(model, words, sign=SIGNS[towards])
    except InterpError as error:
        widgets.show_error(error)
        return
    own = sets if same_weights(model, study) else {}
    widgets.table(
        [
            {**row, "in": ", ".join(name for name in own if row["neuron"] in own[name]) or "–"}
            for row in rows
        ],
        key="search",
        narrow=["writes", "against"],
    )
    st.caption(
        f"{widgets.plain(model.name)}, the first {len(rows)} over all {model.n_layers} layers; "
        "score: how far the words stand out among all tokens of what the neuron writes, in "
        "standard deviations. Rank 1 is the token that the neuron writes most"
        + (", here against." if SIGNS[towards] < 0 else ".")
    )
