"""Which of the paper's claims hold here, read off the steps' results by stated criteria."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.studies.reuse.staging import circuits_of, heads_of
from interp.studies.reuse.suite import IOI, OBJECTS, OBJECTS_TRAINED, entry_named
from interp.studies.steps import Result

Row = dict[str, str]
COLUMNS = ("claim", "here", "evidence")


def claims(results: dict[str, Result]) -> list[Row]:
    """One row a claim: what is claimed, whether it holds here, and the numbers."""
    found = [_variants(results), _specific(results)]
    circuits = circuits_of(results)
    if OBJECTS.name in circuits:
        found.append(_shared(results, OBJECTS.name, "Colored Objects reuses IOI's circuit"))
    if OBJECTS_TRAINED.name in circuits:
        claim = "The trained Colored Objects circuit reuses the base model's IOI circuit"
        found += [_shared(results, OBJECTS_TRAINED.name, claim), _needed(results)]
    found.append(_gatherers(results))
    found += [_repaired(results, name) for name in ("both", "negative mover", "inhibition")]
    return [row for row in found if row]


def pair_of(results: dict[str, Result], one: str, other: str) -> Result | None:
    """The comparison of two circuits, whichever came first."""
    rows = results["overlap"]["pairs"]
    return next((row for row in rows if set(row["pair"]) == {one, other}), None)


def _row(claim: str, holds: bool | None, evidence: str) -> Row:
    said = {True: "holds", False: "does not hold", None: "partly"}[holds]
    return {"claim": claim, "here": said, "evidence": evidence}


def shown(row: Result, measure: str = "pooled") -> str:
    """An overlap with its interval, chance level and ceiling in words."""
    x = row[measure]
    return (
        f"{x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}] (random {x['null']['mean']:.2f}, p = "
        f"{x['null']['p']:.3f}; halves of one task {x['ceiling']:.2f})"
    )


def _values(results: dict[str, Result], groups: Sequence[str]) -> dict[str, Result]:
    """IOI against the base model's tasks of some groups."""
    found = {}
    for name in circuits_of(results):
        entry = entry_named(name)
        row = pair_of(results, IOI.name, name)
        if row is not None and entry.group in groups and not entry.trained:
            found[name] = row
    return found


def _variants(results: dict[str, Result]) -> Row:
    found = _values(results, ["variant"])
    if not found:
        return {}
    above = [row["pooled"]["null"]["p"] < 0.05 for row in found.values()]
    return _row(
        "Variants of IOI share its circuit beyond chance",
        True if all(above) else None if any(above) else False,
        "; ".join(f"{name}: {shown(row)}" for name, row in found.items()),
    )


def _specific(results: dict[str, Result]) -> Row:
    """Whether controls share less than every variant does."""
    variants, controls = _values(results, ["variant"]), _values(results, ["control"])
    if not variants or not controls:
        return {}
    least = min(row["pooled"]["value"] for row in variants.values())
    most = max(row["pooled"]["value"] for row in controls.values())
    clear = min(row["pooled"]["low"] for row in variants.values()) > max(
        row["pooled"]["high"] for row in controls.values()
    )
    return _row(
        "Unrelated tasks share less of it",
        True if clear else None if least > most else False,
        "; ".join(f"{name}: {shown(row)}" for name, row in controls.items())
        + f". Least of the variants {least:.2f}",
    )


def _shared(results: dict[str, Result], name: str, claim: str) -> Row:
    row = pair_of(results, IOI.name, name)
    assert row is not None
    controls = {
        other: found
        for other in circuits_of(results)
        if entry_named(other).group == "control"
        and (found := pair_of(results, other, name)) is not None
    }
    above = row["pooled"]["null"]["p"] < 0.05
    beyond = all(row["pooled"]["value"] > x["pooled"]["value"] for x in controls.values())
    return _row(
        claim,
        True if above and beyond else None if above else False,
        f"with IOI {shown(row)}"
        + "".join(f"; with {other} {shown(x)}" for other, x in controls.items()),
    )


def _needed(results: dict[str, Result]) -> Row:
    found = results["reused"][OBJECTS_TRAINED.name]
    mine = found["sets"].get(IOI.name)
    own = found["sets"].get(OBJECTS_TRAINED.name)
    if mine is None or own is None:
        return {}
    return _row(
        "Without the base model's IOI heads the trained skill breaks, more than by chance",
        mine["p"] < 0.05,
        f"right {found['none']['mean']:.2f}; IOI heads at their mean {mine['mean']:.2f} "
        f"[{mine['low']:.2f}, {mine['high']:.2f}] (random {np.mean(mine['null']):.2f}, p = "
        f"{mine['p']:.3f}); its own heads {own['mean']:.2f} (random {np.mean(own['null']):.2f})",
    )


def _gatherers(results: dict[str, Result]) -> Row:
    """Of the heads that tell Colored Objects' movers where to look, those that read the object."""
    circuits = circuits_of(results)
    name = next((n for n in (OBJECTS_TRAINED.name, OBJECTS.name) if n in circuits), None)
    if name is None:
        return {}
    heads = heads_of(circuits[name], "inhibition", 1)
    marks = results["labels"][name]["labels"]
    reading = [head for head in heads if "content gatherer" in marks.get(head, [])]
    ours = heads_of(circuits[IOI.name], "inhibition", 1)
    new = [head for head in reading if head not in ours]
    return _row(
        "Where IOI has inhibition heads, Colored Objects has content gatherers of its own",
        bool(reading) if len(new) == len(reading) else None if new else False,
        f"{name}: of {len(heads)} supporting heads of that stage {len(reading)} attend from the "
        f"last token to the object asked about ({' '.join(reading) or 'none'}), of which "
        f"{len(reading) - len(new)} are in IOI's stage too",
    )


def _repaired(results: dict[str, Result], name: str) -> Row:
    found = results["repair"]
    x = found["sets"].get(f"{name}, full")
    if x is None:
        return {}
    right, none = x["right"], found["none"]["right"]
    better = right["fixed"] > right["broken"] and right["p_paired"] < 0.05
    what = {
        "both": "inhibition heads and negative mover",
        "negative mover": "the negative mover alone",
        "inhibition": "inhibition heads alone",
    }[name]
    return _row(
        f"Attention of {what} turned to the wrong colours repairs Colored Objects",
        True if better and right["p"] < 0.05 else None if better else False,
        f"right {none['mean']:.2f} -> {right['mean']:.2f} [{right['low']:.2f}, "
        f"{right['high']:.2f}], {right['fixed']} fixed, {right['broken']} new mistakes; random "
        f"heads of the same layers {np.mean(right['null']):.2f} (highest "
        f"{max(right['null']):.2f}), p = {right['p']:.3f}",
    )
