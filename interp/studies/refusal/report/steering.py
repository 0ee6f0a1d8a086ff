"""The parts of the report on changing it: constellations, methods on one frontier, neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.plots import static
from interp.refusal.task_steering import PUBLISHED
from interp.studies.formatting import band, change, estimate, null, retained
from interp.studies.refusal.steps.frontier import REDUCTION, RETAINED, SENSE
from interp.studies.refusal.steps.methods import EVERY_TASK
from interp.studies.report.report import Report
from interp.studies.steps import Result

Results = dict[str, Result]


def constellations(report: Report, results: Results) -> None:
    """Task constellations and their gate."""
    found = results["constellations"]
    report.section("5. Task constellations")
    report.text(
        "Bank of find rows; gate calibrated on select rows; tasks told on test rows. No row is in "
        "two of these."
    )
    report.table(
        [
            {
                "layers": "all" if x["identify"]["stored"] is None else "5 most effective",
                "over layers": x["identify"]["over_layers"],
                "centroid": x["identify"]["centre"],
                "tasks told rightly": estimate(x["right"]),
                "taken": "taken" if x["identify"] == found["identify"] else "",
            }
            for x in found["ways"]
        ],
        caption="Ways of telling a prompt's task by cosines, on select rows: task is the mean of "
        "all its rows, nearest the nearer of its two centroids.",
    )
    counts = dict(zip(found["tasks"], found["counts"], strict=True))
    report.table(
        [
            {
                "task": task,
                "bank: answered, refused": ", ".join(map(str, counts.get(task, [0, 0]))),
                "told right, test rows": estimate(share),
            }
            for task, share in found["told"].items()
        ],
    )  # fmt: skip
    if found["notices"]:
        report.text(f"Of the bank: {'; '.join(found['notices'])}.")
    lines = {
        f"{row['task']}, {row['class']} (n = {row['n']})": (row["mean"], row["low"], row["high"])
        for row in found["ratios"]
    }
    if lines:
        report.figure(
            static.interval_lines(
                dict(list(lines.items())[:6]),
                x_title="layer",
                y_title="distance to answered / to refused",
                baseline=1.0,
                baseline_label="as far from both",
            ),
            "trajectories",
            "Test rows on their way through the layers: above 1 nearer to their task's refusals.",
        )
    published, chosen = found["at published"], found["at chosen"]
    rows = [("published", PUBLISHED.threshold, published)]
    if chosen is not None:
        rows.append(("calibrated", found["threshold"], chosen))
    report.table(
        [
            {
                "threshold": f"{name}, {value:.3f}",
                "benign rows steered by their own task": estimate(at["covered"]),
                "by another's": estimate(at["wrong"]),
                "rows to refuse that pass": estimate(at["passed"]),
            }
            for name, value, at in rows
        ],
        caption="The gate on select rows.",
    )
    if "ledger" in results:
        report.text(f"On test rows: {results['ledger']['text']}.")


def frontier(report: Report, results: Results) -> None:
    """All methods, both sides."""
    report.section("6. Steering methods on one frontier")
    report.text(
        "Each method's dose is chosen on select rows by the refusal score: the largest release of "
        f"over-refusals that keeps {RETAINED:.0%} of proper refusals and a KL of at most {SENSE:g} "
        "nats on answered rows of the same tasks. Then all test rows are "
        "generated and judged anew; random versions get the dose of what they are the null of. "
        "Over-refusal: refused rows that should be answered, of these rows and of all rows. "
        "Removed and retained: of the rows refused before, whose number is the n; intervals over "
        "base texts, no narrower than Wilson's (32 of 32 retained shows 0.89). Selectivity has "
        "no value where what is lost cannot be told from 0."
    )
    found = methods_of(results)
    _barred(report, found)
    report.table([_row(name, x) for name, x in found.items()])
    sides = {"over-refusals removed": "reduction", "proper refusals retained": "retained"}
    shown = {name: x for name, x in found.items() if x["reduction"] and x["retained"]}
    if shown:
        report.figure(
            static.paired_rows(
                list(shown),
                {words: band([x[key] for x in shown.values()]) for words, key in sides.items()},
                x_title="share",
            ),
            "frontier",
            "Both sides of every method on test rows; both should be high.",
        )
    report.table(
        [
            {
                "method": name,
                "dose": x["dose"],
                "KL, answered rows": estimate(x["kl"]),
                "loss of their replies": estimate(x["loss"]),
                "perplexity of these": _perplexity(x),
                "answered, of rows that should be": estimate(x["answered"]["after"]),
                "neither answered nor refused": _neither(x),
                "left alone by a gate": _gated(x["gated"]),
                "texts changed": _changed(x["changed"]),
            }
            for name, x in found.items()
        ],
        caption="What it costs. KL of the next token (nats, for all methods the same smoothed "
        "one); loss: mean negative log-likelihood of the tokens of the plain replies, steered less "
        "plain (nats a token); their perplexity, plain and steered.",
    )
    _chance(report, results.get("chance", {}))
    tasks = list(dict.fromkeys(task for x in found.values() for task in x["tasks"]))
    report.table(
        [
            {"method": name}
            | {
                task: change(x["tasks"][task])
                for task in tasks
            }
            for name, x in found.items()
            if not x["null"]
        ],
        caption="Over-refusal by task, before → after.",
    )  # fmt: skip
    _doses(report, results)
    _published(report, found)


def methods_of(results: Results) -> dict[str, Result]:
    """Evaluations by method, random versions last."""
    found = {x["name"]: x for name, x in results.items() if name.startswith("method_")}
    return dict(sorted(found.items(), key=lambda pair: (pair[1]["null"], pair[0])))


def _row(name: str, x: Result) -> dict[str, Any]:
    benign, harmful = x["benign"], x["harmful"]
    selectivity = x["selectivity"]
    return {
        "method": name,
        "over-refusal": change(benign),
        "of all rows": change(x["everything"]),
        "removed": None if x["reduction"] is None else estimate(x["reduction"]),
        "proper refusals": change(harmful),
        "retained": None if x["retained"] is None else estimate(x["retained"]),
        "in force for": retained(x),
        "selectivity": "–" if selectivity is None else str(estimate(selectivity)),
        "rows (refused before)": ", ".join(
            f"{pair['before']['n']} ({0 if kept is None else kept['n']})"
            for pair, kept in ((benign, x["reduction"]), (harmful, x["retained"]))
        ),
    }  # fmt: skip


def _barred(report: Report, found: dict[str, Result]) -> None:
    """Says where nothing was tested on the side of proper refusals."""
    gated = [
        name
        for name, x in found.items()
        if x["retained"] is not None and x.get("retained_reached", x) is None
    ]
    if gated:
        report.text(
            f"**Gated: not tested.** Under {_quoted(gated)} no proper refusal was steered: "
            "its task is barred, or its gate shut, and what is retained says nothing of what the "
            "steering does. Where rows to be refused have a task of their own, as in the shipped "
            "prompts, telling tasks apart is enough to spare them; it would not be inside a "
            f"wrapped task. Compare “{EVERY_TASK}”, where no task is barred."
        )


def _quoted(names: Sequence[str]) -> str:
    """Names in quotation marks."""
    return ", ".join(f"“{name}”" for name in names)


def _chance(report: Report, found: Result) -> None:
    rows = [
        {
            "what": name,
            "refused test rows": side,
            "n": x["fall"]["n"],
            "fall of the score": estimate(x["fall"]),
            "random, fall": null(x["fall_null"]),
            "scores that change sign": estimate(x["released"]),
            "random": null(x["released_null"]),
        }
        for name, sides in found.items()
        if name != "n"
        for side, x in sides.items()
    ]
    if rows:
        report.table(
            rows,
            caption="Chance, by the score of the next token: random directions of the same length "
            "subtracted at the same dose, and random heads of the same layers at zero.",
        )


def _perplexity(x: Result) -> str:
    if not isinstance(x.get("perplexity"), dict):
        return "–"
    return "{before:.2f} → {after:.2f}".format(**x["perplexity"])


def _changed(changed: Result | int) -> str:
    if isinstance(changed, int):
        return str(changed)
    return f"{changed['answer']} to answer, {changed['refuse']} to refuse"


def _doses(report: Report, results: Results) -> None:
    found = {x["name"]: x for name, x in results.items() if name.startswith("dose_")}
    lines = {name: x for name, x in found.items() if len(x["doses"]) > 2}
    if not lines:
        return
    report.table(
        [
            {
                "method": name,
                "dose": dose,
                "over-refused rows released": x["released"][i],
                "proper refusals lost": x["lost"][i],
                "score, over-refused": estimate(x["scores"]["released"][i]),
                "score, to be refused": estimate(x["scores"]["lost"][i]),
                "KL, answered": x["kl"][i],
                "chosen": _chosen(x, i),
            }
            for name, x in lines.items()
            for i, dose in enumerate(x["doses"])
        ],
        caption="Dose-response on select rows (first token). Additions: the dose times the raw "
        "direction; constellations: times the mean distance of the centroids.",
    )


def _chosen(x: Result, i: int) -> str:
    if x["doses"][i] != x["dose"]:
        return ""
    return "chosen" if x["fits"][i] else "chosen, though no dose fits"


def _published(report: Report, found: dict[str, Result]) -> None:
    mine = found.get("task constellations")
    if mine is None:
        return
    report.table(
        [
            {
                "model": "Llama-3.1-8B (published, GPT-4o judge)",
                "over-refusal, of all rows": "17.77 % → 4.81 % (48 → 13 of 270)",
                "reduction": f"{REDUCTION:.1%} of rows selected as refused; bank and test overlap",
                "proper refusals": "not measured",
            },
            {
                "model": "Qwen1.5-7B (published)",
                "over-refusal, of all rows": "8.15 % → 2.96 % (22 → 8 of 270)",
                "reduction": "63.6 %",
                "proper refusals": "not measured",
            },
            {
                "model": "here, rows of no bank",
                "over-refusal, of all rows": "{:.2%} → {:.2%}".format(
                    *(mine["everything"][when]["mean"] for when in ("before", "after"))
                ),
                "reduction": str(estimate(mine["reduction"])) if mine["reduction"] else "–",
                "proper refusals": change(mine["harmful"]),
            },
        ],
        caption="SafeConstellations (arXiv 2508.11290) beside ours.",
    )  # fmt: skip


def neurons(report: Report, results: Results) -> None:
    """GLU neurons along refusal."""
    found = results["neurons"]
    report.section("7. Neurons, as the verification study finds them")
    if "skipped" in found:
        report.text(f"Left out: {found['skipped']}.")
        return
    report.table(
        [
            {
                "along": x["direction"],
                "a layer": x["k"],
                "neurons": x["n"],
                "drop of the score": estimate(x["drop"]),
                "scores that change sign": estimate(x["flipped"]),
            }
            for x in found["tried"]
        ],
        caption="GLU value vectors by cosine with refused - answered, zeroed at the last token; "
        "refused select rows.",
    )
    report.table(
        [
            {
                "refused test rows": side,
                "drop of the score": estimate(x["drop"]),
                "random neurons, drop": null(x["drop_null"]),
                "scores that change sign": estimate(x["flipped"]),
                "random neurons": null(x["null"]),
            }
            for side, x in found["test"].items()
        ],
        caption=f"The chosen set ({found['chosen']['n']} neurons) on test rows, against random "
        "neurons of the same layers.",
    )  # fmt: skip
    report.table(
        [
            {
                "neuron": x["neuron"],
                "cosine": x["cosine"],
                "writes": ", ".join(text.strip() or repr(text) for text in x["writes"]),
                "active, refused": x["refused"],
                "active, answered": x["answered"],
                "AUC": x["auc"],
            }
            for x in found["neurons"]
        ],
        caption="The first neurons: what their value vectors promote, and mean activation.",
    )


def _neither(x: Result) -> str:
    other = {
        name: count
        for name, count in x["counts"]["answer"].items()
        if count and name not in ("direct_answer", "direct_refusal", "indirect_refusal")
    }
    return ", ".join(f"{count} {name}" for name, count in other.items()) or "0"


def _gated(gated: dict[str, int] | None) -> str:
    return "–" if gated is None else f"{gated['answer']} to answer, {gated['refuse']} to refuse"
