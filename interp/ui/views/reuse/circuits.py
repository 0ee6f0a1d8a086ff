"""Circuits: every task's heads stage by stage, what the circuits share, and what repairs."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.plots.grids import square_map
from interp.studies.formatting import place
from interp.studies.reuse.report import tables
from interp.studies.reuse.report.claims import pair_of
from interp.studies.reuse.report.report import LOOKS
from interp.studies.reuse.steps.circuits import STAGES, circuits_of
from interp.studies.reuse.steps.heads import in_words
from interp.studies.steps import Result
from interp.studies.study import Study
from interp.ui.shared import opening, widgets
from interp.ui.studies import head_maps
from interp.ui.studies.open_study import Section, show_section
from interp.ui.studies.pages import REUSE_PAGES


@st.fragment
def _heads(study: Study[Any]) -> None:
    """Every head's effect at a stage of a task's circuit, and the head looked at."""
    circuits = circuits_of(study.results)
    left, right = st.columns(2)
    task = widgets.choose("Task", "candidates", list(circuits), into=left)
    stages = {name: f"{name}: {words}" for name, words in STAGES.items()}
    stage = widgets.choose("Stage", "side", stages, into=right)
    found, rows = circuits[task], tables.heads_of(study.results, task, stage)
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


def _overlap(study: Study[Any]) -> None:
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
    widgets.table(tables.overlap(results), key="pairs", most=16)
    st.caption(
        "in common: heads in both out of heads in a circuit, of two circuits cut to one size in "
        "every stage. random: as many heads in the layers of the second circuit; as strong: the "
        "share of such sets with as many in common. halves: the same between halves of one task's "
        "prompts, the lower of the two tasks. Spearman: rank correlation of all effects."
    )


def _repair(study: Study[Any]) -> None:
    """Accuracy on Colored Objects as heads are made to attend as they do in IOI."""
    found = study.results["repair"]
    sets = found["sets"]
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
    widgets.table(tables.repair(study.results), key="sets")
    st.caption(
        f"{found['n']} prompts of Colored Objects; without a change "
        f"{widgets.value(found['none']['right'])} are right, by chance {found['chance']:z.2f}. "
        f"{found['sets_drawn']} random sets a row; as strong: the share that repair as much."
    )


SECTIONS = {
    "Heads": Section(
        draw=_heads,
        table="heads",
        steps="circuit_*",
        needed=("labels", "writes"),
        caveat="Stages and labels say where a head acts and where it looks, not how it acts.",
    ),
    "Overlap": Section(
        draw=_overlap,
        table="overlap",
        steps="overlap",
        needed=("overlap",),
        caveat="Two circuits can share heads that do different things in each: compare the signs "
        "of their effects under Heads.",
    ),
    "Repair": Section(
        draw=_repair,
        table="repair",
        steps="repair",
        needed=("repair",),
        caveat="The heads are told which colours are wrong, so the intervention does not solve "
        "the task.",
    ),
}


def _show() -> None:
    opening.intro(
        "Reuse: circuits",
        does="It shows the heads of every task's circuit stage by stage, how many heads two "
        "circuits have in common, and what becomes of mistakes when heads are made to attend"
        " as in another task.",
        when="To see whether tasks share heads, and what one head does in each of them.",
        lacks="How a head acts: stages and labels say where it acts and where it looks. The line "
        "at the end of each section says what else is left open.",
    )
    show_section(
        REUSE_PAGES,
        SECTIONS,
        about="Heads of each task's circuit, what circuits share, and the repairing intervention.",
    )


if __name__ == "__main__":
    _show()
