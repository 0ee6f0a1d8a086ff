"""The parts of the report on what heads are used for: the trained skill, the repair, groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.studies.formatting import as_strong, estimate, spread
from interp.studies.report.report import Report
from interp.studies.reuse.steps.repair import over_all
from interp.studies.reuse.tasks import OBJECTS, PUBLISHED
from interp.studies.steps import Result


def trained(report: Report, results: dict[str, Result]) -> None:
    """Base against trained."""
    if "reused" not in results:
        return
    report.section("The trained skill: what it uses, what changed")
    for task, found in results["reused"].items():
        rows = [
            {"heads at their mean": "none", "right": estimate(found["none"])}
            | {"random": None, "as strong": None}
        ]
        for name, x in found["sets"].items():
            rows.append(
                {
                    "heads at their mean": name,
                    "right": estimate(x),
                    "random": spread(x["null"]),
                    "as strong": f"{x['share']:.3f}",
                }
            )
        report.table(
            rows,
            caption=f"{task} (chance {found['chance']:.2f}): movers and inhibition heads listed "
            "for each circuit, those in brackets too, at their mean at the last token, against "
            "random heads of the same layers.",
        )
    report.table(
        [
            {
                "circuit": name,
                **{
                    part: f"{x['selected']:.4f} (others {x['mean']:.4f}, {as_strong(x['share'])})"
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
                    "head (before → after ± the change's standard error)": "; ".join(
                        f"{x['head']} {x['before']:+.3f} → {x['after']:+.3f} ± {x['stderr']:.3f}"
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
    report.section("The repairing intervention on the untuned model")
    heads = "; ".join(f"{n}: {' '.join(x) or 'none'}" for n, x in found["heads"].items())
    corrected = over_all(found["sets"])
    report.text(
        "The paper's intervention is **both, full**: inhibition heads and the negative mover "
        f"attend, at the last token of {OBJECTS.name} prompts, to the two wrong colours and "
        f"nothing else. Heads are chosen on IOI alone ({heads}). Further rows, not the paper's: "
        "with as much attention as a head gives that role in IOI, the rest on the first token (as "
        "in IOI), and with the movers made to attend to the right colour (movers, all)."
    )
    report.text(
        "**What is told from outside**: which of the table's three colours are wrong (or which is "
        "right). So the intervention does not solve the task; the question is whether heads found "
        "on IOI act on what they are told, and random heads of the same layers, told the same, do "
        f"not. as strong: share of {found['sets_drawn']} random sets that do as well (at least "
        f"{1 / (1 + found['sets_drawn']):.3f}); as strong, all rows: corrected for the "
        f"{len(found['sets'])} rows tried (max-T of Westfall and Young). right is among the three "
        f"colours (chance {found['chance']:.3f}), top among all tokens; fixed and broken (new "
        "mistakes) are counted prompt by prompt. paper: GPT-2 medium."
    )
    rows = [_plain_row(found)]
    first = [name for name in ("both, full",) if name in found["sets"]]
    for name in dict.fromkeys([*first, *found["sets"]]):
        x = found["sets"][name]
        published = PUBLISHED["accuracy"].get(name.removesuffix(", full"))
        rows.append(
            {
                "intervention": name,
                "right": estimate(x["right"]),
                "paper": f"{published:.3f}" if published else None,
                "random heads": spread(x["right"]["null"]),
                "as strong": f"{x['right']['share']:.3f}",
                "as strong, all rows": f"{corrected[name]:.3f}",
                "fixed, broken": f"{x['right']['fixed']}, {x['right']['broken']}",
                "top": f"{x['top']['mean']:.3f}",
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
        "paper": f"{PUBLISHED['accuracy']['none']:.3f}",
        "random heads": None,
        "as strong": None,
        "as strong, all rows": None,
        "fixed, broken": None,
        "top": f"{found['none']['top']['mean']:.3f}",
    }


def groups(report: Report, results: dict[str, Result]) -> None:
    """Forget, retain, shared."""
    report.section("Components to forget, to retain, and shared")
    report.text(
        "For two tasks: heads listed for the first circuit alone, for the second alone, and for "
        "both (stages at the last token, heads in brackets too), and the share of right answers "
        "with each group at its mean, at the last token."
    )
    for found in results["groups"].values():
        rows = []
        for name, heads in found["groups"].items():
            row: dict[str, Any] = {"group": name, "heads": " ".join(heads) or "none"}
            for task in (found["forget"], found["retain"]):
                told = found["accuracy"][task]
                x = told["sets"].get(name)
                row[f"{task} ({told['none']['mean']:.2f} whole)"] = (
                    f"{x['mean']:.2f} (random {np.mean(x['null']):.2f}, {as_strong(x['share'])})"
                    if x
                    else None
                )
            rows.append(row)
        report.table(rows, caption=f"Forget {found['forget']}, retain {found['retain']}.")
