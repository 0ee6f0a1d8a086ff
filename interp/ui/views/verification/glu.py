"""GLU vectors: the neurons that write along a direction, what they do, and a search by word."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.models.unembedding import unembed
from interp.neurons.glu import glu_vectors
from interp.neurons.search import search_neurons
from interp.plots.lines import spread_by_label
from interp.plots.style import visible
from interp.studies import formatting
from interp.studies.steps import Result
from interp.studies.verification.study import Study
from interp.ui.shared import widgets
from interp.ui.shared.cache import HASHES
from interp.ui.shared.state import current, select
from interp.ui.studies import open_study
from interp.ui.studies.model import loaded_model, same_weights
from interp.ui.studies.pages import VERIFICATION_PAGES

SETS = ("GLU_Valid", "GLU_Invalid")
PARTS = {"gate": "gate part, act(g · x)", "up": "up part, u · x", "product": "product h"}
MOST = 20
SIGNS = {"write them": 1, "write against them": -1}


def _show() -> None:
    study = open_study.opened(VERIFICATION_PAGES, "GLU vectors", "glu")
    if study is None:
        return
    found = study.results["glu"]
    layers = f"{found['layers'][0]} to {found['layers'][-1]}"
    about = f"{layers}, {found['top_k']} neurons of each, by {found['direction']}"
    open_study.provenance(study, "glu", layers=about)
    st.latex(
        r"\text{MLP}(x) = \sum_i h_i\, v_i, \qquad h_i = \text{act}(g_i \cdot x)\,(u_i \cdot x)"
    )
    _set(found)
    _antipodes(found)
    _tried(study.results["glu_choice"])
    st.header("Which neurons write a word?", anchor=False)
    search(study, {name: found[name]["neurons"] for name in SETS})
    rows = [{"set": name, **_row(row)} for name in SETS for row in _every(found[name])]
    open_study.take_away(study, "glu", rows, found)
    widgets.caveat(
        "A value vector along a direction shows what a neuron could write, not that it is "
        "active or read. Random directions have such neurons too (the null line). The "
        "Interventions page shows what the sets do to the verdict."
    )


@st.fragment
def _set(found: Result) -> None:
    """One set's neurons, and the one looked at."""
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    name = widgets.choose("Set", "glu", SETS, into=left, segments=True)
    seen, null = found[name], found[name]["null"]
    right.markdown(
        f"**{len(seen['neurons'])} neurons**, mean cosine {widgets.number(abs(null['selected']))}; "
        f"the same selection along random "
        f"directions {formatting.null(null)}"
    )
    rows = [_row(row) for row in _every(seen)]
    neurons = [row["neuron"] for row in _every(seen)]
    neuron = current().neuron
    at = neurons.index(neuron) if neuron in neurons else 0
    widgets.table(
        rows,
        key=f"glu-{name}-{at}",
        narrow=["writes", "writes against"],
        picked=lambda row: select(neuron=neurons[row]),
        chosen=at,
    )
    st.caption(
        f"{len(rows)} of {len(seen['neurons'])}, by cosine with the direction; means of h at "
        "t\\_paren of the test samples. gate, up and covariance add up to the difference, so "
        "they show which factor separates valid from invalid. AUC: the chance that h is "
        "larger on a valid sample."
    )
    _neuron(seen, at, neurons[at])


def _every(seen: Result) -> list[Result]:
    """The rows of all neurons; studies kept before `rest` was have the first ones only."""
    return [*seen["top"], *seen.get("rest", [])]


def _tried(found: Result) -> None:
    """What zeroing the sets does, for every direction and size."""
    st.subheader("Along which direction?", anchor=False)
    widgets.table(
        [
            {
                "direction": row["direction"],
                "a layer": row["k"],
                "neurons": row["neurons"],
                'GLU_Valid: "not"': row["GLU_Valid"]["disabled"],
                'both: "not"': row["both"]["disabled"],
                "both: log-odds": row["both"]["log_odds"],
                'random: "not"': row["random"]["disabled"],
                "random: log-odds": row["random"]["log_odds"],
            }
            for row in found["rows"]
        ],
        key="glu-tried",
    )
    st.caption(
        f'Zeroed at the last tokens of {found["n"]} valid find samples: share judged "not", and '
        "mean log P(this) - log P(not). The direction and size that lower it most are used above."
    )


def _row(row: Result) -> dict[str, object]:
    gate, up, covariance = row["parts"]
    return {
        "neuron": row["neuron"],
        "cosine": row["cosine"],
        "writes": " ".join(map(widgets.visible, row["writes_valid"])),
        "writes against": " ".join(map(widgets.visible, row["writes_invalid"])),
        "h, valid": row["valid"],
        "h, invalid": row["invalid"],
        "gate": gate,
        "up": up,
        "covariance": covariance,
        "AUC": row["auc"],
    }


def _neuron(seen: Result, at: int, neuron: str) -> None:
    """Its two factors and their product, by label."""
    st.subheader(neuron, anchor=False)
    if at >= len(seen["top"]):
        st.info(
            f"Values per sample are kept for the first {len(seen['top'])} neurons of the set "
            "only; the row above has this neuron's means and parts.",
            icon=":material/info:",
        )
        return
    samples = seen["samples"]
    labels = ["valid" if label else "invalid" for label in samples["valid"]]
    for column, (part, words) in zip(st.columns(3), PARTS.items(), strict=True):
        widgets.figure(
            spread_by_label([row[at] for row in samples[part]], labels, x_title=words),
            key=f"spread-{part}",
            alt=f"{part} of {neuron} by label",
            into=column,
        )


def _antipodes(found: Result) -> None:
    """How opposite the two sets are, as selected and beyond the probes."""
    st.subheader("Antipodal pairs", anchor=False)
    cases = {
        "opposed_neurons": "as selected",
        "antipodes_without_probes": "with the probes' directions projected out",
    }
    for column, (case, words) in zip(st.columns(2, gap="large"), cases.items(), strict=True):
        x = found[case]
        null = x["null"]
        column.markdown(
            f"**{words.capitalize()}**: mean of each one's most negative cosine "
            f"**{widgets.number(x['mean_cosine'])}**; sets selected along random directions of "
            f"both signs {widgets.number(-null['mean'])} "
            f"[{widgets.number(-null['high'])}, {widgets.number(-null['low'])}], "
            f"{formatting.as_strong(null['share'])} ({null['draws']} draws); random neurons of the "
            f"same layers {widgets.number(-x['null_neurons']['mean'])}"
        )
        pairs = [{SETS[0]: a, SETS[1]: b, "cosine": cosine} for a, b, cosine in x["pairs"]]
        widgets.table(pairs, key=case, into=column)
    st.caption("Sets chosen along w and along -w are opposite because of the selection alone.")


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


if __name__ == "__main__":
    _show()
