"""The tables of a study of circuit reuse: the rows that its pages show and offer as files."""

from __future__ import annotations

from interp.studies.formatting import MISSING, ends
from interp.studies.reuse.report.claims import claims
from interp.studies.reuse.steps.circuits import STAGES, circuits_of, clear_heads, value_of
from interp.studies.reuse.steps.repair import over_all
from interp.studies.steps import Results, Rows


def behaviour(results: Results) -> Rows:
    """Which tasks the models do."""
    return [
        {
            "task": name,
            "model": x["model"],
            "right": x["right"]["mean"],
            "95 % interval": ends(x["right"]),
            "chance": x["chance"],
            "most likely of all": x["top"]["mean"],
            "n": x["right"]["n"],
            "verdict": x["verdict"],
            "a prompt": str(x["example"]),
        }
        for name, x in results["behaviour"].items()
    ]


def heads(results: Results) -> Rows:
    """The heads of every task's circuit, stage by stage."""
    return [
        {"task": task, "stage": stage, **row}
        for task in circuits_of(results)
        for stage in STAGES
        for row in heads_of(results, task, stage)
    ]


def heads_of(results: Results, task: str, stage: str) -> Rows:
    """A stage's heads with their effects and labels."""
    found, labels = circuits_of(results)[task], results["labels"][task]["labels"]
    errors, seen = value_of(found, stage, "stderr"), clear_heads(found, stage)
    return [
        {
            "head": head,
            "effect": value,
            "± stderr": errors[head],
            "clear": "yes" if head in seen else "no",
            "attends as": ", ".join(labels.get(head, ())) or MISSING,
        }
        for head, value in value_of(found, stage).items()
    ]


def overlap(results: Results) -> Rows:
    """Heads in common of every pair of circuits, beside chance."""
    return [
        {
            "tasks": " / ".join(row["pair"]),
            "in common": x["value"],
            "95 % interval": ends(x),
            "random": x["null"]["mean"],
            "as strong": x["null"]["share"],
            "halves": x["ceiling"],
            "Spearman": row["spearman"]["value"],
            "which": " ".join(row["common"]) or MISSING,
        }
        for row in results["overlap"]["pairs"]
        for x in [row["matched"]]
    ]


def repair(results: Results) -> Rows:
    """Accuracy on Colored Objects as heads are made to attend as they do in IOI."""
    sets = results["repair"]["sets"]
    corrected = over_all(sets)
    return [
        {
            "heads made to attend": name,
            "right": x["right"]["mean"],
            "95 % interval": ends(x["right"]),
            "repaired": x["right"]["fixed"],
            "broken": x["right"]["broken"],
            "as strong": x["right"]["share"],
            "corrected for the rows": corrected[name],
        }
        for name, x in sets.items()
    ]


TABLES = {
    "claims": claims,
    "behaviour": behaviour,
    "heads": heads,
    "overlap": overlap,
    "repair": repair,
}
"""Its tables by name."""
