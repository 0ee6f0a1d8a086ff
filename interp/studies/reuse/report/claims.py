"""The tests of the claims in claims.toml."""

from __future__ import annotations

import sys

import numpy as np

from interp.studies.formatting import as_strong
from interp.studies.report.claims import Finding, Row, judge, read_claims, some
from interp.studies.reuse.steps.circuits import circuits_of, clear_heads, value_of
from interp.studies.reuse.steps.repair import over_all
from interp.studies.reuse.tasks import IOI, IOI_TRAINED, OBJECTS, OBJECTS_TRAINED, entry_named
from interp.studies.steps import Result, Results


def pair_of(results: Results, one: str, other: str) -> Result | None:
    """The comparison of two circuits, whichever came first."""
    rows = results["overlap"]["pairs"]
    return next((row for row in rows if set(row["pair"]) == {one, other}), None)


def claims(results: Results) -> list[Row]:
    """One row a claim that can be tested: the claim, whether it holds here, and the numbers."""
    return judge(read_claims(sys.modules[__name__]), results)


def shown(row: Result) -> str:
    """An overlap at matched size with its interval and chance level."""
    x = row["matched"]
    return (
        f"{x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}] (random {x['null']['mean']:.2f}, "
        f"{as_strong(x['null']['share'])})"
    )


def _with_ioi(results: Results, group: str) -> dict[str, Result]:
    """IOI against the base model's tasks of a group."""
    found = {}
    for name in circuits_of(results):
        entry = entry_named(name)
        row = pair_of(results, IOI.name, name)
        if row is not None and entry.group == group and not entry.trained:
            found[name] = row
    return found


def _listed(rows: dict[str, Result], words: str = "{}: {}") -> str:
    return "; ".join(words.format(name, shown(row)) for name, row in rows.items())


def variants(results: Results) -> Finding | None:
    """Do variants of IOI share its circuit beyond chance?"""
    found = _with_ioi(results, "variant")
    if not found:
        return None
    above = [row["matched"]["null"]["share"] < 0.05 for row in found.values()]
    return some(above), {"rows": _listed(found)}


def specific(results: Results) -> Finding | None:
    """Do controls share less than every variant does?"""
    alike, controls = (_with_ioi(results, group) for group in ("variant", "control"))
    if not alike or not controls:
        return None
    least = min(row["matched"]["value"] for row in alike.values())
    most = max(row["matched"]["value"] for row in controls.values())
    lowest = min(row["matched"]["low"] for row in alike.values())
    clear = lowest > max(row["matched"]["high"] for row in controls.values())
    holds = True if clear else None if least > most else False
    return holds, {"rows": _listed(controls), "least": least}


def shared(results: Results, of: str) -> Finding | None:
    """Does a task share IOI's circuit beyond chance, and more than any control does?"""
    circuits = circuits_of(results)
    if of not in circuits or (row := pair_of(results, IOI.name, of)) is None:
        return None
    controls = {
        other: found
        for other in circuits
        if entry_named(other).group == "control"
        and (found := pair_of(results, other, of)) is not None
    }
    above = row["matched"]["null"]["share"] < 0.05
    beyond = all(row["matched"]["value"] > x["matched"]["value"] for x in controls.values())
    words = [f"with {other} {shown(x)}" for other, x in {"IOI": row, **controls}.items()]
    return True if above and beyond else None if above else False, {"rows": "; ".join(words)}


def needed(results: Results) -> Finding | None:
    """Does the trained skill break without the base model's IOI heads?"""
    if OBJECTS_TRAINED.name not in circuits_of(results):
        return None
    found = results["reused"][OBJECTS_TRAINED.name]
    mine, own = (found["sets"].get(name) for name in (IOI.name, OBJECTS_TRAINED.name))
    if mine is None or own is None:
        return None
    return mine["share"] < 0.05, {
        "whole": found["none"]["mean"],
        "mine": mine,
        "mine_random": np.mean(mine["null"]),
        "share": as_strong(mine["share"]),
        "own": own["mean"],
        "own_random": np.mean(own["null"]),
    }


def gatherers(results: Results) -> Finding | None:
    """Does Colored Objects have content gatherers that IOI's stage does not have?

    Its own are those that IOI's stage in the same model does not have, with either sign.
    """
    circuits = circuits_of(results)
    name = next((n for n in (OBJECTS_TRAINED.name, OBJECTS.name) if n in circuits), None)
    other = IOI_TRAINED.name if name == OBJECTS_TRAINED.name else IOI.name
    if name is None or other not in circuits:
        return None
    heads = clear_heads(circuits[name], "inhibition", 1)
    marks = results["labels"][name]["labels"]
    reading = [head for head in heads if "content gatherer" in marks.get(head, [])]
    signed = value_of(circuits[other], "inhibition")
    there = [head for head in reading if head in clear_heads(circuits[other], "inhibition")]
    return False if len(there) == len(reading) else None if there else True, {
        "name": name,
        "other": other,
        "n": len(heads),
        "reading": reading,
        "there": {head: signed[head] for head in there},
    }


def repaired(results: Results, of: str) -> Finding | None:
    """Does pointing heads to the wrong colours repair the task, beyond random heads?"""
    found = results["repair"]
    x = found["sets"].get(f"{of}, full")
    if x is None:
        return None
    right, rows = x["right"], len(found["sets"])
    better = right["fixed"] > right["broken"] and right["p_paired"] * rows < 0.05
    rare = over_all(found["sets"])[f"{of}, full"]
    return True if better and rare < 0.05 else None if better else False, {
        "right": right,
        "null": np.mean(right["null"]),
        "highest": max(right["null"]),
        "share": as_strong(right["share"]),
        "rows": rows,
        "rare": rare,
        "before": found["none"],
        "top": x["top"]["mean"],
    }
