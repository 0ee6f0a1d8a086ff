"""Circuits: every task's heads stage by stage, what the circuits share, and what repairs."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.plots.grids import square_map
from interp.studies.formatting import place
from interp.studies.reuse.report.claims import pair_of
from interp.studies.reuse.report.report import LOOKS
from interp.studies.reuse.steps.circuits import STAGES, circuits_of, clear_heads, value_of
from interp.studies.reuse.steps.heads import in_words
from interp.studies.reuse.steps.repair import over_all
from interp.studies.steps import Result
from interp.studies.study import Study
from interp.ui.shared import widgets
from interp.ui.studies import head_maps
from interp.ui.studies.open_study import Section, show_section
from interp.ui.studies.pages import REUSE_PAGES


@st.fragment
def _heads(study: Study[Any]) -> widgets.Rows:
    """Every head's effect at a stage of a task's circuit, and the head looked at."""
    circuits = circuits_of(study.results)
    left, right = st.columns(2)
    task = widgets.choose("Task", "candidates", list(circuits), into=left)
    stages = {name: f"{name}: {words}" for name, words in STAGES.items()}
    stage = widgets.choose("Stage", "side", stages, into=right)
    found, labels = circuits[task], study.results["labels"][task]
    rows = _rows(found, labels, stage)
    flat, width = found["stages"][stage]["values"], found["n_heads"]
    values = [flat[start : start + width] for start in range(0, len(flat), width)]
    drawn, listed = st.columns([2, 3], gap="large")
    head_maps.show_map(
        values,
        key="stage",
        alt=f"Effect of every head, {task}, {stage}",
        heading=widgets.plain(f"{task}: {STAGES[stage]}"),
        into=drawn,
        title="fraction of the gap",
        marked=[place(row["head"]) for row in rows],
    )
    with listed:
        head_maps.choose_head("Head looked at", values)
        widgets.table(rows, key="stage-heads")
        if at := head_maps.looked_at(values):
            _one_head(study.results, at)
    st.caption(
        f"Path patching (noise) backwards from the logits, n = {found['n']}, metric gap "
        f"{found['gap']:z.2f}. Framed: the heads that the stage lists. A head that is not clear is "
        "not distinguishable from zero and takes no part in any overlap."
    )
    return rows


def _rows(found: Result, labels: Result, stage: str) -> widgets.Rows:
    """A stage's heads with their effects and labels."""
    errors, seen = value_of(found, stage, "stderr"), clear_heads(found, stage)
    return [
        {
            "head": head,
            "effect": value,
            "± stderr": errors[head],
            "clear": "yes" if head in seen else "no",
            "attends as": ", ".join(labels["labels"].get(head, ())) or widgets.NONE,
        }
        for head, value in value_of(found, stage).items()
    ]


def _one_head(results: dict[str, Result], at: tuple[int, int]) -> None:
    """A head's effect in every task and stage, and what it writes."""
    layer, index = at
    name, rows = f"L{layer}H{index}", []
    for task, found in circuits_of(results).items():
        number = layer * found["n_heads"] + index
        effects = {stage: found["stages"][stage]["values"][number] for stage in STAGES}
        attention = results["labels"][task]["attention"]
        looks = {relation: values[layer][index] for relation, values in attention.items()}
        written = results["writes"][task].get(name)
        words = widgets.NONE if written is None else in_words(written, looks, LOOKS)
        rows.append({"task": task, **effects, "what it does": words})
    st.markdown(f"**{name} in every task**")
    widgets.table(rows, key="head-tasks")


def _overlap(study: Study[Any]) -> widgets.Rows:
    """Heads in common of every pair of circuits, beside chance."""
    results = study.results
    names = [name for name in circuits_of(results) if name not in results["overlap"]["empty"]]
    pairs = [[pair_of(results, one, other) for other in names] for one in names]
    values = [[1.0 if row is None else row["matched"]["value"] for row in line] for line in pairs]
    widgets.figure(
        square_map(values, names=names, title="heads in common", limits=(0, 1)),
        key="overlap",
        alt="Share of heads in common, for every pair of tasks",
    )
    rows = [
        {
            "tasks": " / ".join(row["pair"]),
            "heads in common": x["value"],
            "95 % interval": widgets.interval(x),
            "random heads": x["null"]["mean"],
            "share of random as strong": x["null"]["share"],
            "half against half": x["ceiling"],
            "rank correlation": row["spearman"]["value"],
            "which": " ".join(row["common"]) or widgets.NONE,
        }
        for row in results["overlap"]["pairs"]
        for x in [row["matched"]]
    ]
    widgets.table(rows, key="pairs", most=16)
    st.caption(
        "Heads in common out of heads in a circuit, of two circuits cut to one size in every "
        "stage. Random heads: as many in the layers of the second circuit. half against half: the "
        "same share between halves of one task's prompts, the lower of the two tasks."
    )
    return rows


def _repair(study: Study[Any]) -> widgets.Rows:
    """Accuracy on Colored Objects as heads are made to attend as they do in IOI."""
    found = study.results["repair"]
    sets, corrected = found["sets"], over_all(found["sets"])
    widgets.figure(
        widgets.estimates_with_null(
            {name: x["right"] for name, x in sets.items()},
            [x["right"]["null"] for x in sets.values()],
            value_title="share right",
            value_label="these heads, 95 % interval",
            null_label="random heads, same layers",
        ),
        key="repair",
        alt="Share of right answers under each intervention, and with random heads",
    )
    rows = [
        {
            "heads made to attend": name,
            "right": x["right"]["mean"],
            "95 % interval": widgets.interval(x["right"]),
            "repaired": x["right"]["fixed"],
            "broken": x["right"]["broken"],
            "share of random as strong": x["right"]["share"],
            "corrected for the rows": corrected[name],
        }
        for name, x in sets.items()
    ]
    widgets.table(rows, key="sets")
    st.caption(
        f"{found['n']} prompts of Colored Objects; without a change "
        f"{widgets.value(found['none']['right'])} are right, by chance {found['chance']:z.2f}. "
        f"{found['sets_drawn']} random sets a row."
    )
    return rows


SECTIONS = {
    "Heads": Section(
        draw=_heads,
        steps="circuit_*",
        needed=("labels", "writes"),
        caveat="Stages and labels say where a head acts and where it looks, not how it acts.",
    ),
    "Overlap": Section(
        draw=_overlap,
        steps="overlap",
        needed=("overlap",),
        caveat="Two circuits can share heads that do different things in each: compare the signs "
        "of their effects under Heads.",
    ),
    "Repair": Section(
        draw=_repair,
        steps="repair",
        needed=("repair",),
        caveat="The heads are told which colours are wrong, so the intervention does not solve "
        "the task.",
    ),
}


if __name__ == "__main__":
    show_section(
        REUSE_PAGES,
        "Circuits",
        SECTIONS,
        name="reuse-",
        about="Heads of each task's circuit, what circuits share, and the repairing intervention.",
    )
