"""GLU vectors: the neurons that write along a direction, what they do, and a search by word."""

from __future__ import annotations

import streamlit as st

from interp.plots.lines import spread_by_label
from interp.studies import formatting
from interp.studies.steps import Result
from interp.studies.verification.report.tables import SETS, neurons_of
from interp.studies.verification.study import Study
from interp.ui.prompts import neuron_panel
from interp.ui.shared import opening, widgets
from interp.ui.shared.state import current, select
from interp.ui.studies import open_study
from interp.ui.studies.model import loaded_model, same_weights
from interp.ui.studies.pages import VERIFICATION_PAGES

PARTS = {"gate": "gate part, act(g · x)", "up": "up part, u · x", "product": "product h"}


def _show() -> None:
    opening.intro(
        "Verification: GLU vectors",
        does="It lists the neurons that write along the verdict's direction, when each of them "
        "fires, and what zeroing them does.",
        when="To find neurons that write a verdict, and neurons of the loaded model that write a "
        "word.",
        lacks="That a neuron is active or read: its vector shows what it could write. Random "
        "directions have such neurons too (the null). Interventions measures what the sets "
        "do to the verdict.",
    )
    study = open_study.opened(VERIFICATION_PAGES, "glu")
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
    open_study.take_away(study, "glu", "glu")


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
    rows = list(neurons_of(seen).values())
    neurons = list(neurons_of(seen))
    neuron = current().neuron
    at = neurons.index(neuron) if neuron in neurons else 0
    widgets.table(
        rows,
        key=f"glu-{name}-{at}",
        widths={"writes": 190, "writes against": 190},
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


def search(study: Study, sets: dict[str, list[str]]) -> None:
    """Neurons of the loaded model by the words they write; `sets` are the study's own."""
    model = loaded_model(study)
    own = sets if model is not None and same_weights(model, study) else {}
    neuron_panel.search(model, " correct", sets=own)


if __name__ == "__main__":
    _show()
