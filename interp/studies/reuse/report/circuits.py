"""The parts of the report on what models do, their circuits, and what these share."""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.plots import static
from interp.studies.formatting import estimate, place
from interp.studies.report.report import Report, escape
from interp.studies.reuse.report.claims import pair_of
from interp.studies.reuse.steps.attention_labels import RULES
from interp.studies.reuse.steps.circuits import STAGES, circuits_of, clear_heads, error_of, value_of
from interp.studies.reuse.steps.head_outputs import in_words
from interp.studies.reuse.steps.overlap import MEASURES
from interp.studies.reuse.tasks import (
    IOI,
    IOI_TRAINED,
    OBJECTS,
    OBJECTS_TRAINED,
    PUBLISHED,
    entry_named,
)
from interp.studies.steps import Result

LOOKS = 0.1
"""Attention from which a head is said to look somewhere."""


def behaviour(report: Report, results: dict[str, Result]) -> None:
    """What the models can do."""
    report.section("What the models do")
    report.text(
        "right: the most likely of answers and wrong answers is an answer; top: so is the most "
        "likely of all tokens. A task is done from 0.75 right on with an interval above chance; "
        "one whose interval is above chance is tended to, and others are left out."
    )
    report.table(
        [
            {
                "task": name,
                "model": x["model"],
                "right": estimate(x["right"]),
                "chance": round(x["chance"], 3),
                "top": estimate(x["top"]),
                "verdict": x["verdict"],
            }
            for name, x in results["behaviour"].items()
        ]
    )


def circuits(report: Report, results: dict[str, Result]) -> None:
    """Heads of every stage with their labels."""
    report.section("Circuits, stage by stage")
    report.text(
        "Path patching (noise) backwards from the logits; a stage lists the heads of largest "
        "|mean effect|, and those that support the answer are the receivers of the next. Those "
        "whose effect is not distinguishable from zero (95 % interval) are in brackets and "
        "take no part in any overlap; the others do however small they are. "
        + " ".join(f"{name}: {what}." for name, what in STAGES.items())
        + " Values are fractions of the clean-corrupted gap, ± a standard error."
    )
    report.text(
        "The stages are named for what they do in IOI on GPT-2, the labels for where a head looks; "
        "neither says how a head acts, and a head may bear a label of another stage than its own."
    )
    report.text("\n".join(f"- {name}: {rule}." for name, rule in RULES.items()))
    by_task = circuits_of(results)
    for name, found in by_task.items():
        marks = results["labels"][name]["labels"]
        report.section(name, level=3)
        report.text(f"n = {found['n']}, metric gap {found['gap']:.3f}.")
        report.table(
            [
                {
                    "stage": stage,
                    "heads (effect)": _listed(found, stage),
                    "labels": "; ".join(
                        f"{head} {', '.join(marks[head])}"
                        for head in found["stages"][stage]["heads"]
                        if head in marks
                    )
                    or "none",
                }
                for stage in STAGES
            ]
        )
    _acting(report, results, by_task)
    ioi = by_task[IOI.name]
    direct = np.array(ioi["stages"]["movers"]["values"])
    report.figure(
        static.head_map(
            direct.reshape(-1, ioi["n_heads"]),
            title="direct effect of each head on the logits, IOI",
        ),
        "ioi_direct",
        "IOI: path patching of every head into the logits (fraction of the gap).",
    )


def _listed(found: Result, stage: str) -> str:
    """A stage's heads with their effects, in brackets those not distinguishable from zero."""
    errors, seen = error_of(found, stage), clear_heads(found, stage)
    words = []
    for head, value in value_of(found, stage).items():
        decimals = 3 if abs(value) >= 0.01 else 4
        word = f"{head} ({value:+.{decimals}f} ± {errors[head]:.{decimals}f})"
        words.append(word if head in seen else f"[{word}]")
    return ", ".join(words)


def _acting(report: Report, results: dict[str, Result], by_task: dict[str, Result]) -> None:
    """What the movers of IOI and of the trained skill read and write."""
    report.section("What the movers do", level=3)
    report.text(
        "attention: from the last token to the answer, the wrong answers, the cue (the repeated "
        "name, the object asked about) and the last token itself. adds: the logits a head itself "
        "adds to the answer, and to the wrong answers, on clean prompts (through the final norm, "
        "against the mean of the vocabulary). A head can support the answer without looking at it: "
        "by reading the repeated name and lowering that, or, in the last layer, by reading the "
        "last token itself, where the answer already stands, and raising it. The first then bears "
        "the label of inhibition though it writes to the logits, and the second bears none."
    )
    rows: list[dict[str, Any]] = []
    for name in (IOI.name, IOI_TRAINED.name, OBJECTS.name, OBJECTS_TRAINED.name):
        if name not in by_task:
            continue
        attention = results["labels"][name]["attention"]
        for head, value in value_of(by_task[name], "movers").items():
            if (x := results["writes"][name].get(head)) is None:
                continue
            layer, index = place(head)
            looks = {relation: rows[layer][index] for relation, rows in attention.items()}
            seen = [f"{looks[k]:.2f}" if k in looks else "–" for k in ("answer", "wrong", "cue")]
            rows.append(
                {
                    "task": name,
                    "head": f"{head} ({value:+.3f})",
                    "attention": ", ".join([*seen, f"{x['self']:.2f}"]),
                    "adds": f"{x['answer']['mean']:+.2f}, {x['wrong']['mean']:+.2f}",
                    "so": in_words(x, looks, LOOKS),
                }
            )
    if rows:
        report.table(rows)


def overlap(report: Report, results: dict[str, Result]) -> None:
    """What circuits share."""
    report.section("What the circuits share")
    report.text(
        "shared: heads in common out of heads in a circuit, in any stage, of the two circuits cut "
        "to one size: in every stage the strongest of each, as many as both have. Intervals "
        "(95 %): halves of the prompts, the same ones in both tasks, about the value on all of "
        "them. random: heads with the layers of the second circuit; as strong: the share of these "
        "that has as many in common. ceiling: half of a task's "
        "prompts against its other half, the lower of the two tasks. rank correlation: of all "
        "heads' effects on the logits, lowered by the noise of as many prompts. pooled: as shared, "
        "of the whole circuits; stagewise: within stages; iou: intersection over union."
    )
    n = {name: found["n"] for name, found in circuits_of(results).items()}
    rows: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    for row in results["overlap"]["pairs"]:
        if not {IOI.name, OBJECTS_TRAINED.name} & set(row["pair"]):
            continue
        x, size = row["matched"], min(n[name] for name in row["pair"])
        tasks = {"tasks": " / ".join(row["pair"])}
        rows.append(
            tasks
            | {
                "shared": estimate(x | {"mean": x["value"], "n": size}),
                "heads": f"{row['matched_common']} of {_sizes(row['matched_sizes'])}",
                "random": f"{x['null']['mean']:.2f}",
                "as strong": f"{x['null']['share']:.3f}",
                "ceiling": f"{x['ceiling']:.2f}",
                "rank correlation": estimate(
                    row["spearman"] | {"mean": row["spearman"]["value"], "n": size}
                ),
            }
        )
        whole.append(
            tasks
            | {name: f"{row[name]['value']:.2f}" for name in MEASURES if name != "matched"}
            | {"heads": f"{len(row['common'])} of {_sizes(row['sizes'])}"}
            | {"in common": " ".join(row["common"]) or "none"}
        )
    if rows:
        report.table(rows)
        report.table(whole, caption="The whole circuits, of whatever sizes.")
    names = list(circuits_of(results))
    report.table(
        [
            {"task": one}
            | {
                other: row["matched"]["value"]
                if (row := pair_of(results, one, other)) is not None
                else float("nan")
                for other in names
            }
            for one in names
        ],
        caption="shared at matched size, every pair of tasks.",
    )
    _published(report, results)


def _sizes(sizes: list[int]) -> str:
    return " and ".join(map(str, sizes if sizes[0] != sizes[1] else sizes[:1]))


def _published(report: Report, results: dict[str, Result]) -> None:
    """The paper's shares and its rank correlation beside those of each model's own tasks."""

    def here(task: str, measure: str) -> str:
        found = []
        for name in circuits_of(results):
            entry = entry_named(name)
            for ioi in (IOI, IOI_TRAINED):
                row = pair_of(results, ioi.name, name)
                if entry.task != task or row is None or (ioi.trained and not entry.trained):
                    continue
                x = row[measure]
                found.append(
                    f"{ioi.name} / {name}: {x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}]"
                )
        return "; ".join(found) or "not done by this model"

    published = []
    for task, (count, of) in PUBLISHED["shared"].items():
        share = count / of if of else count
        words = f"{share:.3f}" + (f" ({count}/{of})" if of else "")
        published.append((f"heads shared, IOI and {task}", words, here(task, "matched")))
    words = f"{PUBLISHED['spearman']:.2f}"
    published.append(
        (
            "rank correlation of effects, IOI and colored_objects",
            words,
            here(OBJECTS.task, "spearman"),
        )
    )
    report.table(published, columns=["", "published (GPT-2 medium)", "here"])


def skipped(report: Report, results: dict[str, Result]) -> None:
    """What was left out, and why."""
    lines = [
        f"- {name}: {x['verdict']} ({x['right']['mean']:.2f}, chance {x['chance']:.2f})"
        for name, x in results["behaviour"].items()
        if x["verdict"] == "does not"
    ]
    lines += [
        f"- {escape(name)}: {escape(x['skipped'])}" for name, x in results.items() if "skipped" in x
    ]
    lines += [
        f"- {escape(name)}: no head is distinguishable from zero"
        for name in results.get("overlap", {}).get("empty", [])
    ]
    if lines:
        report.section("Left out")
        report.text("\n".join(lines))
