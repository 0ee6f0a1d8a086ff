"""What sets of heads and neurons carry: exchanged class means, the chain, edited attempts."""

from __future__ import annotations

import streamlit as st

from interp.plots.lines import interval_lines, share_axis
from interp.studies.verification.report import tables
from interp.studies.verification.report.claims import readable_from
from interp.studies.verification.report.report import (
    steered_lines,
)
from interp.studies.verification.steps.interchange import OTHER, SIDES
from interp.studies.verification.study import Study
from interp.ui.shared import widgets


def exchange(study: Study) -> None:
    """Each set's values exchanged between the classes, and each stage of the chain."""
    found = study.results["interchange"]
    sets = tables.exchanged_sets(study.results)
    drawings = [
        widgets.estimates_with_null(
            {name: x["exchanges"][OTHER][side]["effect"] for name, x in sets.items()},
            [x["exchanges"][OTHER][side]["null"] for x in sets.values()],
            value_title="share of the way to the other class",
            value_label="the set",
        )
        for side in SIDES
    ]
    share_axis(drawings, "x")
    for side, drawn, column in zip(SIDES, drawings, st.columns(2, gap="large"), strict=True):
        title = f"{side.capitalize()} attempts, the other class's mean"
        widgets.figure(drawn, key=f"exchange-{side}", alt=title, title=title, into=column)
    widgets.table(tables.exchange(study.results), key="exchange-table")
    st.caption(
        f"{found['n']} test attempts of each class. The values of a set over the last "
        f"{found['window']} tokens (the chain: "
        f"{study.results.get('interchange_chain', found)['window']}) become a mean over find "
        "samples. An effect of 1 makes the attempts like the other class. Random: matched sets "
        f"with the other class's mean, on {found['null_n']} attempts of each class; as strong is "
        "corrected for the rows of a class (max-T)."
    )


def chain(study: Study) -> None:
    """The stages of heads that lead to the MLPs that write the verdict."""
    found = study.results["chain"]
    widgets.table(tables.chain(study.results), key="chain-table")
    st.caption(
        f"Exact path patching on {found['n']} pairs, backwards from {', '.join(found['writers'])}: "
        "stage 1 feeds these MLPs, stage 2 the queries, keys and values of stage 1, and so on. "
        "Effects are fractions of the gap. A head with an effect below 0.05 belongs to no stage."
    )


def steered(study: Study) -> None:
    """Verdicts turned by a direction in one layer alone, beside directions that know nothing."""
    found, readable = study.results["steering_by_layer"], readable_from(study.results)
    dose = found["doses"][found["dose"]]
    for word, column in zip(("this", "not"), st.columns(2, gap="large"), strict=True):
        lines, controls = steered_lines(study.results, word)
        drawn = interval_lines(
            lines,
            x_title="the one layer steered",
            y_title=f'judged "{word}"',
            controls=controls,
        )
        title = f'Turned to "{word}", dose {dose:.0%}'
        widgets.figure(drawn, key=f"steered-{word}", alt=title, title=title, into=column)
    widgets.table(tables.one_layer(study.results), key="steered-table")
    st.caption(
        f"{found['n']} attempts each. Dose: share of the stream's length in that layer. The table "
        f"gives the most turned in any layer before layer {readable}, from which on the lens reads "
        "the verdict's words. A direction that is worth no more than its rivals there says nothing "
        "of the verdict."
    )


def edits(study: Study) -> None:
    """The model's own attempts, each edited in one place."""
    widgets.table(tables.edits(study.results), key="edits-table", most=20)
    st.caption(
        "Expected: the verdict if the model compares the written number with the target of the "
        "question. AUC: how well the log-odds separate the row from the model's own attempts of "
        "the other verdict."
    )
