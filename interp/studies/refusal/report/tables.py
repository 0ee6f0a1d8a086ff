"""The tables of a study of refusals: the rows that its pages show and offer as files."""

from __future__ import annotations

from functools import partial

from interp.studies.formatting import MISSING, change, ends, retained, value
from interp.studies.refusal.report.claims import claims, methods_of, step_of
from interp.studies.refusal.report.report import REPLIES, doses_of, neither
from interp.studies.refusal.steps.heads import SIDES
from interp.studies.steps import Result, Results, Rows

CANDIDATES = {
    "selection_harmful-harmless": "harmful - harmless",
    "selection_over-refusal": "over-refusal",
    "selection_refused-invented": "refused - invented, of one kind",
    "selection_false-refusal": "false refusal: over-refusal less its part along the first",
    "cosmic": "harmful - harmless, by cosines (COSMIC)",
}
"""The steps that choose a direction among candidates, and what each compares."""


def behaviour(results: Results) -> Rows:
    """What became of every prompt, by task and kind."""
    return [
        {
            "task": cell["task"],
            "about": cell["kind"],
            "should": cell["should"],
            "n": cell["refused"]["n"],
            "refused": cell["refused"]["mean"],
            "95 % interval": ends(cell["refused"]),
            "answered": cell["answered"]["mean"],
            "neither": neither(cell["labels"]),
        }
        for cell in results["behaviour"]["cells"]
    ]


def directions(results: Results) -> Rows:
    """The candidates of every selection that was made."""
    return [
        {"candidates": words, **row}
        for name, words in CANDIDATES.items()
        if name in results and "skipped" not in results[name]
        for row in candidates(results[name])
    ]


def candidates(found: Result) -> Rows:
    """Every candidate of a selection, those kept first, the lowest bypass on top."""
    rows = [{**row, "reason": row["reason"] or "kept"} for row in found["rows"]]
    return sorted(
        rows, key=lambda row: (bool(row["rejected"]), row["bypass"] is None, row["bypass"] or 0.0)
    )


def heads(results: Results, side: str) -> Rows:
    """Every head by every measure, for refusals of one side; none if the step was left out."""
    return [
        {"measure": name, "head": f"L{layer}H{head}", "value": value}
        for name, x in results[step_of("heads", side)].get("measures", {}).items()
        for layer, row in enumerate(x["values"])
        for head, value in enumerate(row)
    ]


def frontier(results: Results) -> Rows:
    """Over-refusals removed and proper refusals retained by every method."""
    return [_method(name, x) for name, x in methods_of(results).items()]


def _method(name: str, x: Result) -> Result:
    gated, changed, perplexity = x["gated"], x["changed"], x.get("perplexity")
    known = isinstance(perplexity, dict)
    return {
        "method": name,
        "dose": x["dose"],
        "removed": value(x["reduction"]),
        "retained": value(x["retained"]),
        "retained, if steered": retained(x),
        "over-refusal": change(x["benign"]),
        "proper refusals": change(x["harmful"]),
        "KL": value(x.get("kl")),
        "loss": value(x.get("loss")),
        "perplexity": "{before:z.2f} → {after:z.2f}".format(**perplexity) if known else MISSING,
        "neither": _neither(x["counts"]),
        "answered": change(x["answered"]),
        "changed": changed if isinstance(changed, int) else sum(changed.values()),
        "selectivity": value(x["selectivity"]),
        "gated": MISSING if gated is None else str(sum(gated.values())),
        "n": f"{x['benign']['before']['n']}, {x['harmful']['before']['n']}",
        "random": x["null"],
    }


def _neither(counts: Result) -> int:
    """Texts that are neither an answer nor a refusal."""
    return sum(n for side in counts.values() for name, n in side.items() if name not in REPLIES)


def doses(results: Results) -> Rows:
    """Released and lost against the dose, by method."""
    return [{"method": x["name"], **row} for x in doses_of(results) for row in doses_by(x)]


def doses_by(x: Result) -> Rows:
    """Released and lost against the dose of one method."""
    return [
        {
            "dose": dose,
            "released": x["released"][i],
            "lost": x["lost"][i],
            "score, over-refused": value(x["scores"]["released"][i]),
            "score, to be refused": value(x["scores"]["lost"][i]),
            "KL, answered": x["kl"][i] if "kl" in x else None,
            "chosen": "chosen" if dose == x["dose"] else "",
        }
        for i, dose in enumerate(x["doses"])
    ]


def trajectories(results: Results) -> Rows:
    """What the gate decided for each prompt."""
    return [row | {"skipped": row["skipped"] or MISSING} for row in results["ledger"]["rows"]]


TABLES = {
    "claims": claims,
    "behaviour": behaviour,
    "directions": directions,
    **{f"heads, {side}": partial(heads, side=side) for side in SIDES},
    "frontier": frontier,
    "doses": doses,
    "trajectories": trajectories,
}
"""Its tables by name."""
