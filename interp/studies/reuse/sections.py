"""The parts of the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from interp import plots
from interp.report import Report, escape
from interp.studies.reuse.claims import pair_of, shown
from interp.studies.reuse.labels import RULES
from interp.studies.reuse.staging import STAGES, circuits_of, value_of
from interp.studies.reuse.suite import IOI, OBJECTS, OBJECTS_TRAINED, PUBLISHED, entry_named
from interp.studies.shown import estimate
from interp.studies.steps import Result


def behaviour(report: Report, results: dict[str, Result]) -> None:
    """What the models can do."""
    report.section("1. What the models do")
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
    report.section("2. Circuits, stage by stage")
    report.text(
        "Path patching (noise) backwards from the logits; a stage keeps the heads of largest "
        "|mean effect|, and those that support the answer are the receivers of the next. "
        + " ".join(f"{name}: {what}." for name, what in STAGES.items())
        + " Values are fractions of the clean-corrupted gap."
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
                    "heads (effect)": " ".join(
                        f"{head} ({value:+.3f})" for head, value in value_of(found, stage).items()
                    ),
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
    ioi = by_task[IOI.name]
    direct = np.array(ioi["stages"]["movers"]["values"])
    report.figure(
        plots.head_grid(
            direct.reshape(-1, ioi["n_heads"]),
            title="direct effect of each head on the logits, IOI",
        ),
        "ioi_direct",
        "IOI: path patching of every head into the logits (fraction of the gap).",
    )


def overlap(report: Report, results: dict[str, Result]) -> None:
    """What circuits share."""
    report.section("3. What the circuits share")
    report.text(
        "pooled: heads in common out of heads in a circuit (any stage); stagewise: the same within "
        "stages; iou: intersection over union. Intervals: prompts of both tasks resampled, which "
        "adds noise, so that a value may lie above its interval. Random: heads with the layers of "
        "the second circuit. Ceiling: half of a task's prompts against its other half."
    )
    rows: list[dict[str, Any]] = []
    for row in results["overlap"]["pairs"]:
        if not {IOI.name, OBJECTS_TRAINED.name} & set(row["pair"]):
            continue
        spearman = row["spearman"]
        rows.append(
            {
                "tasks": " / ".join(row["pair"]),
                "pooled": shown(row),
                "stagewise": shown(row, "stagewise"),
                "iou": shown(row, "iou"),
                "rank correlation, movers": f"{spearman['value']:.2f} [{spearman['low']:.2f}, "
                f"{spearman['high']:.2f}]",
                "heads in common": " ".join(row["common"]) or "none",
            }
        )
    report.table(rows)
    names = list(circuits_of(results))
    report.table(
        [
            {"task": one}
            | {
                other: row["pooled"]["value"]
                if (row := pair_of(results, one, other)) is not None
                else float("nan")
                for other in names
            }
            for one in names
        ],
        caption="pooled, every pair of tasks.",
    )
    _published(report, results)


def _published(report: Report, results: dict[str, Result]) -> None:
    published = []
    for task, (count, of) in PUBLISHED["shared"].items():
        found = [
            (name, row)
            for name in circuits_of(results)
            if entry_named(name).task == task
            and (row := pair_of(results, IOI.name, name)) is not None
        ]
        share = count / of if of else count
        published.append(
            {
                "IOI and": task,
                "published (GPT-2 medium)": f"{share:.3f}" + (f" ({count}/{of})" if of else ""),
                "here": "; ".join(f"{name}: {row['pooled']['value']:.3f}" for name, row in found)
                or "not done by this model",
            }
        )
    report.table(published, caption="Heads shared with IOI beside the published shares.")


def trained(report: Report, results: dict[str, Result]) -> None:
    """Base against trained."""
    if "reused" not in results:
        return
    report.section("4. The trained skill: what it uses, what changed")
    for task, found in results["reused"].items():
        rows = [
            {"heads at their mean": "none", "right": estimate(found["none"]), "random": "", "p": ""}
        ]
        for name, x in found["sets"].items():
            low, high = np.quantile(x["null"], [0.025, 0.975])
            rows.append(
                {
                    "heads at their mean": name,
                    "right": estimate(x),
                    "random": f"{np.mean(x['null']):.3f} [{low:.3f}, {high:.3f}]",
                    "p": f"{x['p']:.3f}",
                }
            )
        report.table(
            rows,
            caption=f"{task} (chance {found['chance']:.2f}): movers and inhibition heads of each "
            "circuit at their mean at the last token, against random heads of the same layers.",
        )
    report.table(
        [
            {
                "circuit": name,
                **{
                    part: f"{x['selected']:.4f} (others {x['mean']:.4f}, p = {x['p']:.3f})"
                    for part, x in parts.items()
                },
            }
            for name, parts in results["weights"]["sets"].items()
        ],
        caption="Relative change of weights by training, of each circuit's heads.",
    )
    top = " ".join(f"{x['head']} ({x['change']:.4f})" for x in results["weights"]["top"])
    report.text(f"Heads whose weights changed most: {top}.")
    for name, found in results["effects"].items():
        report.table(
            [
                {
                    "stage": stage,
                    "head (before -> after, stderr of the change)": "; ".join(
                        f"{x['head']} {x['before']:+.3f} -> {x['after']:+.3f} ({x['stderr']:.3f})"
                        for x in rows[:6]
                    ),
                }
                for stage, rows in found["stages"].items()
            ],
            caption=f"{name}: effects that training changed most, in the metric's unit.",
        )


def repair(report: Report, results: dict[str, Result]) -> None:
    """The intervention."""
    found = results["repair"]
    report.section("5. The repairing intervention on the untuned model")
    heads = "; ".join(f"{n}: {' '.join(x) or 'none'}" for n, x in found["heads"].items())
    report.text(
        f"Heads chosen on IOI alone ({heads}) are made to attend, at the last token of "
        f"{OBJECTS.name} prompts, to the two wrong colours (inhibition heads, negative mover) or "
        "to the right one (movers): with all their attention (full), or as much as they give that "
        "role in IOI, the rest on the first token. right is among the table's three colours. "
        "fixed and new mistakes are counted prompt by prompt; p: share of "
        f"{found['sets_drawn']} sets of random heads of the same layers, told the same colours, "
        "that do as well."
    )
    names = {"both": "both", "inhibition": "inhibition", "negative mover": "negative mover"}
    rows = [_plain_row(found)]
    for name, x in found["sets"].items():
        short = name.removesuffix(", full")
        published = PUBLISHED["accuracy"].get(names.get(short, ""))
        low, high = np.quantile(x["right"]["null"], [0.025, 0.975])
        rows.append(
            {
                "intervention": name,
                "right": estimate(x["right"]),
                "fixed": str(x["right"]["fixed"]),
                "new mistakes": str(x["right"]["broken"]),
                "random heads": f"{np.mean(x['right']['null']):.3f} [{low:.3f}, {high:.3f}]",
                "p": f"{x['right']['p']:.3f}",
                "top": estimate(x["top"]),
                "published (GPT-2 medium)": f"{published:.3f}" if published else "",
            }
        )
    report.table(rows)
    if "attention" in found:
        moved = found["attention"]
        report.table(
            [
                {
                    "to": side,
                    "change here": estimate(moved[side]),
                    "published": f"{PUBLISHED['attention'][side]:+.3f}",
                }
                for side in ("wrong", "right")
            ],
            caption="Change of the movers' attention to colours under both, full.",
        )


def _plain_row(found: Result) -> dict[str, Any]:
    return {
        "intervention": "none",
        "right": estimate(found["none"]["right"]),
        "fixed": "",
        "new mistakes": "",
        "random heads": f"chance {found['chance']:.3f}",
        "p": "",
        "top": estimate(found["none"]["top"]),
        "published (GPT-2 medium)": f"{PUBLISHED['accuracy']['none']:.3f}",
    }


def groups(report: Report, results: dict[str, Result]) -> None:
    """Forget, retain, shared."""
    report.section("6. Components to forget, to retain, and shared")
    report.text(
        "For two tasks: heads of the first circuit alone, of the second alone, and of both (stages "
        "at the last token), and the share of right answers with each group at its mean."
    )
    for found in results["groups"].values():
        rows = []
        for name, heads in found["groups"].items():
            row: dict[str, Any] = {"group": name, "heads": " ".join(heads) or "none"}
            for task in (found["forget"], found["retain"]):
                told = found["accuracy"][task]
                x = told["sets"].get(name)
                row[f"{task} ({told['none']['mean']:.2f} whole)"] = (
                    f"{x['mean']:.2f} (random {np.mean(x['null']):.2f}, p = {x['p']:.3f})"
                    if x
                    else ""
                )
            rows.append(row)
        report.table(rows, caption=f"Forget {found['forget']}, retain {found['retain']}.")


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
    if lines:
        report.section("Left out")
        report.text("\n".join(lines))
