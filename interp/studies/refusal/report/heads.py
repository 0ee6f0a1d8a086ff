"""The part of the report on heads: carriers, necessary heads, triggers, and what passes between."""

from __future__ import annotations

from interp.plots import static
from interp.studies.formatting import estimate, null, selected
from interp.studies.refusal.steps.heads import SIDES
from interp.studies.report.report import Report
from interp.studies.steps import Result

Results = dict[str, Result]


def heads(report: Report, results: Results) -> None:
    """Carriers, necessary heads, triggers, and what passes between."""
    report.section("4. Heads")
    report.text(
        "Pairs of a refused and an answered prompt of one task and equal length. Direct "
        "attribution finds what writes the refusal, ablation what it cannot do without, and "
        "interchange what triggers it; they need not agree. Values are fractions of the gap in "
        "logit difference (first tokens of refusals against first tokens of answers)."
    )
    for side in SIDES:
        found = results[f"heads_{side}".replace(" ", "_")]
        report.section(side.capitalize(), level=3)
        if "skipped" in found:
            report.text(f"Left out: {found['skipped']}.")
            continue
        report.table(
            [
                {
                    "measure": name,
                    "first heads (value)": " ".join(
                        f"{row['label']} ({row['value']:+.2f})" for row in x["top"][:6]
                    ),
                    "same top 10 in resampled pairs": x["stability"],
                    "heads beyond permuted labels": x.get("beyond"),
                }
                for name, x in found["measures"].items()
            ]
            + [
                {
                    "measure": "any change (Ships)",
                    "first heads (value)": " ".join(found["ships"]["top"][:6]),
                    "same top 10 in resampled pairs": None,
                    "heads beyond permuted labels": None,
                }
            ],
            caption=f"n = {found['n']} find pairs, gap {found['gap']:.2f} logits. Permuted: which "
            "prompt of a pair is refused, corrected for the number of heads.",
        )
        report.table(
            [{"measures": " / ".join(x["pair"]), "Jaccard of top 10": x["jaccard"]}
             for x in found["jaccard"]],
            caption="Do the measures name the same heads?",
        )  # fmt: skip
        values = found["measures"]["triggers (necessity)"]["values"]
        report.figure(
            static.head_map(values, title=f"interchange, necessity: {side}"),
            f"heads_{side.replace(' ', '_')}",
            f"What each head's exchange takes from the gap, {side}.",
        )
        _groups(report, results[f"groups_{side}".replace(" ", "_")])
        _passing(report, results[f"paths_{side}".replace(" ", "_")])
    _flips(report, results["flips"])


def _groups(report: Report, found: Result) -> None:
    if "skipped" in found:
        return
    report.table(
        [
            {
                "heads of": name,
                "heads": " ".join(x["heads"]),
                "necessity": estimate(x["necessity"]),
                "random, necessity": null(x["necessity_null"]),
                "sufficiency": estimate(x["sufficiency"]),
                "random, sufficiency": null(x["sufficiency_null"]),
            }
            for name, x in found["sets"].items()
        ],
        caption=f"The first four of each measure exchanged together, on {found['n']} test pairs, "
        "against as many random heads of the same layers.",
    )


def _passing(report: Report, found: Result) -> None:
    if "skipped" in found:
        return
    paths = ", ".join(f"{x['label']} {x['value']:+.3f}" for x in found["paths"]["top"][:6])
    report.text(
        f"Path patching of every head into the queries, keys and values of the carriers "
        f"{' '.join(found['carriers'])} ({found['n']} test pairs): {paths}. Of the triggers: "
        + ", ".join(
            f"{head} {value:+.3f}"
            for head, value in zip(found["triggers"], found["of triggers"], strict=True)
        )
        + f". First four together {selected(found['path_null'])}."
    )
    cascade = found.get("cascade")
    if isinstance(cascade, list):
        report.table(
            [
                {
                    "carrier": row["head"],
                    "change of what it writes, %": row["change"],
                    "random gate, %": null(row["null"]),
                }
                for row in cascade
            ],
            caption=f"Cascade: {found['triggers'][0]} switched off.",
        )
    group = found["greedy_head_group"]
    report.text(
        f"Group that moves the last states most (greedy, from the first of Ships): "
        f"{' '.join(group['heads'])}, {group['curve'][-1]:.3f} radians; random groups, not "
        f"searched for, {null(group['null'])}."
    )


def _flips(report: Report, found: Result) -> None:
    if not found:
        return
    report.table(
        [
            {
                "test rows": name,
                "heads zeroed": " ".join(x["heads"]),
                "texts that flip": estimate(x["rate"]),
                "random heads": null(x["null"]),
                "after": ", ".join(f"{k} {label}" for label, k in x["after"].items() if k),
            }
            for name, x in found.items()
        ],
        caption="Texts with the triggers at zero in the prompt and in the text.",
    )  # fmt: skip
