"""The reuse study's report: report.md.j2 filled with its results, numbers and a figure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from interp.core.statistics import Estimate
from interp.overview.evidence_card import FAMILIES
from interp.plots import static
from interp.studies.formatting import place
from interp.studies.report.report import Report, study_report
from interp.studies.reuse.report.claims import beyond_words, claims, mends, pair_of, suppressors
from interp.studies.reuse.report.evidence import card
from interp.studies.reuse.settings import ReuseSettings
from interp.studies.reuse.steps.circuits import STAGES, circuits_of, clear_heads, value_of
from interp.studies.reuse.steps.heads import RULES, in_words
from interp.studies.reuse.steps.repair import over_all
from interp.studies.reuse.tasks import (
    IOI,
    IOI_TRAINED,
    OBJECTS,
    OBJECTS_TRAINED,
    PUBLISHED,
    entry_named,
)
from interp.studies.steps import Result, Results
from interp.studies.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("report.md.j2")

SIDES = {"answer": "answer", "wrong": "wrong answer"}

LOOKS = 0.1
"""Attention from which a head is said to look somewhere."""


def pairs(results: Results) -> list[Result]:
    """Comparisons with IOI or the trained skill."""
    named = {IOI.name, OBJECTS_TRAINED.name}
    return [row for row in results["overlap"]["pairs"] if named & set(row["pair"])]


def estimated(x: Result) -> Estimate:
    """An overlap or a correlation with its interval."""
    return Estimate(mean=x["value"], low=x["low"], high=x["high"], n=0)


def with_ioi(results: Results, task: str, measure: str) -> str:
    """A measure of a task and IOI, of each model's own circuits."""
    found = []
    for name in circuits_of(results):
        entry = entry_named(name)
        for ioi in (IOI, IOI_TRAINED):
            row = pair_of(results, ioi.name, name)
            if entry.task != task or row is None or (ioi.trained and not entry.trained):
                continue
            x = row[measure]
            found.append(
                f"{ioi.name} / {name}: {x['value']:z.2f} [{x['low']:z.2f}, {x['high']:z.2f}]"
            )
    return "; ".join(found) or "not done by this model"


def stage_heads(found: Result, stage: str) -> str:
    """A stage's heads with their effects; those not distinguishable from zero in brackets."""
    errors, seen = value_of(found, stage, "stderr"), clear_heads(found, stage)
    words = []
    for head, value in value_of(found, stage).items():
        decimals = 3 if abs(value) >= 0.01 else 4
        word = f"{head} ({value:+z.{decimals}f} ± {errors[head]:z.{decimals}f})"
        words.append(word if head in seen else f"[{word}]")
    return ", ".join(words)


def movers(results: Results) -> list[tuple[str, ...]]:
    """What the movers of IOI and of the trained skill read and write.

    Task, head with its effect, attention, what it adds to the logits, and all that in words.
    """
    by_task = circuits_of(results)
    rows = []
    for name in (IOI.name, IOI_TRAINED.name, OBJECTS.name, OBJECTS_TRAINED.name):
        if name not in by_task:
            continue
        attention = results["labels"][name]["attention"]
        for head, value in value_of(by_task[name], "movers").items():
            if (x := results["writes"][name].get(head)) is None:
                continue
            layer, index = place(head)
            looks = {relation: values[layer][index] for relation, values in attention.items()}
            seen = [f"{looks[k]:z.2f}" if k in looks else "–" for k in ("answer", "wrong", "cue")]
            rows.append(
                (
                    name,
                    f"{head} ({value:+z.3f})",
                    ", ".join([*seen, f"{x['self']:z.2f}"]),
                    f"{x['answer']['mean']:+z.2f}, {x['wrong']['mean']:+z.2f}",
                    in_words(x, looks, LOOKS),
                )
            )
    return rows


def left_out(results: Results) -> list[str]:
    """Tasks and steps that the comparison leaves out, and why."""
    lines = [
        f"{name}: {x['verdict']} ({x['right']['mean']:z.2f}, chance {x['chance']:z.2f})"
        for name, x in results["behaviour"].items()
        if x["verdict"] == "does not"
    ]
    lines += [f"{name}: {x['skipped']}" for name, x in results.items() if "skipped" in x]
    empty = results.get("overlap", {}).get("empty", [])
    return lines + [f"{name}: no head is distinguishable from zero" for name in empty]


def ioi_direct(results: Results) -> Figure:
    """The direct effect of every head on the logits, in IOI."""
    found = circuits_of(results)[IOI.name]
    values = np.array(found["stages"]["movers"]["values"]).reshape(-1, found["n_heads"])
    return static.head_map(values, title="direct effect of each head on the logits, IOI")


def overlap_matrix(results: Results) -> Figure:
    """Heads in common of every pair of circuits, cut to one size."""
    names = [name for name in circuits_of(results) if name not in results["overlap"]["empty"]]
    rows = [[pair_of(results, one, other) for other in names] for one in names]
    values = [[np.nan if row is None else row["matched"]["value"] for row in line] for line in rows]
    return static.square_map(values, names=names, title="share of heads in common")


def repair_bars(results: Results) -> Figure:
    """The share right of every row of the repair, beside its random heads; the best first."""
    found = results["repair"]
    rows, lowering = repair_rows(results), suppressors(results)
    bars = [found["none"]["right"], *(found["sets"][name]["right"] for name in rows)]
    return static.values_with_null(
        ["no change", *(f"{x}, suppressor" if x in lowering else x for x in rows)],
        [x["mean"] for x in bars],
        low=[x["low"] for x in bars],
        high=[x["high"] for x in bars],
        null=[None, *(found["sets"][name]["right"]["null"] for name in rows)],
        null_label="random heads, told the same",
        value_title="share right",
    )


def repair_rows(results: Results) -> list[str]:
    """The rows of the repair: the sets of the paper, then single heads, the best first."""
    found = results["repair"]
    single = [name for name in found["sets"] if name in found["roles"]]
    single.sort(key=lambda name: -found["sets"][name]["right"]["mean"])
    return [*(name for name in found["sets"] if name not in single), *single]


def role_of(results: Results, head: str) -> str:
    """What a head does in IOI to the name it attends to, with the logit it adds; – if nothing."""
    x = results["repair"]["roles"].get(head)
    if not x:
        return "–"
    where = f"{x['attention']:z.2f} on the {SIDES[x['side']]}, {x['adds']['mean']:+z.2f}"
    return f"{x['role'] or 'neither'} ({where})"


def found_in_short(results: Results) -> Result:
    """What the opening of the report says was found: the sharing, and the heads that repair."""
    target = next(
        (n for n in (OBJECTS_TRAINED.name, OBJECTS.name) if n in circuits_of(results)), None
    )
    row = target and pair_of(results, IOI.name, target)
    verdicts = mends(results)
    single = {
        h: x["right"]
        for h, x in results["repair"]["sets"].items()
        if h in results["repair"]["roles"]
    }
    return {
        "target": target,
        "row": row,
        "beyond": row and row["matched"]["controls"] and beyond_words(row["matched"]["controls"]),
        "single": len(single),
        "mending": {h: x for h, x in single.items() if verdicts[h]},
    }


def write_up(study: Study[ReuseSettings]) -> Report:
    """The report of a finished study."""
    sets = study.results["repair"]["sets"]
    return study_report(
        TEMPLATE,
        study,
        sys.modules[__name__],
        card=card(study),
        FAMILIES=FAMILIES,
        claims=claims(study.results),
        circuits=circuits_of(study.results),
        stages=STAGES,
        rules=RULES,
        objects=OBJECTS.name,
        published=PUBLISHED,
        corrected=over_all(sets),
        repair_order=repair_rows(study.results),
    )
