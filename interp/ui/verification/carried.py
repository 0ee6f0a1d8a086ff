"""What sets of heads and neurons carry: exchanged class means, the chain, edited attempts."""

from __future__ import annotations

import statistics

import streamlit as st

from interp.plots.lines import interval_lines, share_axis
from interp.studies.steps import Result
from interp.studies.verification.report.claims import readable_from
from interp.studies.verification.report.report import (
    corrected_exchange,
    most_turned,
    steered_lines,
)
from interp.studies.verification.steps.interchange import ANOTHER, OTHER, OWN, SIDES
from interp.studies.verification.study import Study
from interp.ui.shared import widgets


def exchange(study: Study) -> widgets.Rows:
    """Each set's values exchanged between the classes, and each stage of the chain."""
    found = study.results["interchange"]
    sets = found["sets"] | study.results.get("interchange_chain", {"sets": {}})["sets"]
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
    rows = [row for side in SIDES for row in _exchange_rows(sets, side)]
    widgets.table(rows, key="exchange-table")
    st.caption(
        f"{found['n']} test attempts of each class. The values of a set over the last "
        f"{found['window']} tokens (the chain: "
        f"{study.results.get('interchange_chain', found)['window']}) become a mean over find "
        "samples. An effect of 1 makes the attempts like the other class. Random: matched sets "
        f"with the other class's mean, on {found['null_n']} attempts of each class; as strong is "
        "corrected for the rows of a class (max-T)."
    )
    return rows


def _exchange_rows(sets: dict[str, Result], side: str) -> widgets.Rows:
    strong = corrected_exchange(sets, side)
    rows = []
    for name, x in sets.items():
        other, own, another = (x["exchanges"][kind][side] for kind in (OTHER, OWN, ANOTHER))
        rows.append(
            {
                "class": side,
                "set": name,
                "size": len(x["components"]),
                "effect": widgets.value(other["effect"]),
                "verdicts turned": widgets.value(other["flipped"]),
                "random: turned": statistics.mean(other["flipped_null"]),
                "as strong": strong[name],
                "own mean: turned": own["flipped"]["mean"],
                "another sample: turned": another["flipped"]["mean"],
            }
        )
    return rows


def chain(study: Study) -> widgets.Rows:
    """The stages of heads that lead to the MLPs that write the verdict."""
    found = study.results["chain"]
    rows = [
        {
            "stage": number,
            "head": row["label"],
            "path effect": row["value"],
            "95 % interval": widgets.interval(row),
            "attends from": row["reads"]["query"],
            "to": row["reads"]["key"],
            "attention": widgets.value(row["reads"]),
            "other tokens": row["reads"]["other"],
        }
        for number, stage in enumerate(found["stages"], 1)
        for row in stage["heads"]
    ]
    widgets.table(rows, key="chain-table")
    st.caption(
        f"Exact path patching on {found['n']} pairs, backwards from {', '.join(found['writers'])}: "
        "stage 1 feeds these MLPs, stage 2 the queries, keys and values of stage 1, and so on. "
        "Effects are fractions of the gap. A head with an effect below 0.05 belongs to no stage."
    )
    return rows


def steered(study: Study) -> widgets.Rows:
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
    rows: widgets.Rows = [
        {
            "direction": row["direction"],
            "cosine with the unembedding": row["cosine"],
            **{
                f'"{word}", {dose:.0%}': share
                for dose, shares in zip(found["doses"], row["turned"], strict=True)
                for word, share in shares.items()
            },
        }
        for row in most_turned(study.results)
    ]
    widgets.table(rows, key="steered-table")
    st.caption(
        f"{found['n']} attempts each. Dose: share of the stream's length in that layer. The table "
        f"gives the most turned in any layer before layer {readable}, from which on the lens reads "
        "the verdict's words. A direction that is worth no more than its rivals there says nothing "
        "of the verdict."
    )
    return rows


def edits(study: Study) -> widgets.Rows:
    """The model's own attempts, each edited in one place."""
    rows: widgets.Rows = [
        {
            "text": row["words"],
            "expected": row["expected"],
            "n": row["this"]["n"],
            'judged "this"': widgets.value(row["this"]),
            "mean log-odds": row["log_odds"]["mean"],
            "AUC": widgets.value(row["auc"]),
        }
        for row in study.results["compared"]["rows"]
    ]
    widgets.table(rows, key="edits-table", most=20)
    st.caption(
        "Expected: the verdict if the model compares the written number with the target of the "
        "question. AUC: how well the log-odds separate the row from the model's own attempts of "
        "the other verdict."
    )
    return rows
