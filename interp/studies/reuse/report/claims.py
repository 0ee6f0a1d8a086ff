"""Which of the paper's claims hold here, read off the steps' results by stated criteria."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.studies.formatting import as_strong
from interp.studies.reuse.steps.circuits import circuits_of, clear_heads, value_of
from interp.studies.reuse.steps.repair import over_all
from interp.studies.reuse.tasks import IOI, IOI_TRAINED, OBJECTS, OBJECTS_TRAINED, entry_named
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


def shown(row: Result, measure: str = "matched") -> str:
    """An overlap with its interval and chance level in words."""
    x = row[measure]
    return (
        f"{x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}] (random {x['null']['mean']:.2f}, "
        f"{as_strong(x['null']['share'])})"
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
    above = [row["matched"]["null"]["share"] < 0.05 for row in found.values()]
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
    least = min(row["matched"]["value"] for row in variants.values())
    most = max(row["matched"]["value"] for row in controls.values())
    clear = min(row["matched"]["low"] for row in variants.values()) > max(
        row["matched"]["high"] for row in controls.values()
    )
    return _row(
        "Unrelated tasks share less of it",
        True if clear else None if least > most else False,
        "; ".join(f"{name}: {shown(row)}" for name, row in controls.items())
        + f". Least of the variants {least:.2f}",
    )


def _shared(results: dict[str, Result], name: str, claim: str) -> Row:
    row = pair_of(results, IOI.name, name)
    if row is None:
        return {}
    controls = {
        other: found
        for other in circuits_of(results)
        if entry_named(other).group == "control"
        and (found := pair_of(results, other, name)) is not None
    }
    above = row["matched"]["null"]["share"] < 0.05
    beyond = all(row["matched"]["value"] > x["matched"]["value"] for x in controls.values())
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
        mine["share"] < 0.05,
        f"right {found['none']['mean']:.2f}; IOI heads at their mean {mine['mean']:.2f} "
        f"[{mine['low']:.2f}, {mine['high']:.2f}] (random {np.mean(mine['null']):.2f}, "
        f"{as_strong(mine['share'])}); its own heads {own['mean']:.2f} "
        f"(random {np.mean(own['null']):.2f})",
    )


def _gatherers(results: dict[str, Result]) -> Row:
    """Of the heads that tell Colored Objects' movers where to look, those that read the object.

    Their own are those that IOI's stage in the same model does not have, with either sign.
    """
    circuits = circuits_of(results)
    name = next((n for n in (OBJECTS_TRAINED.name, OBJECTS.name) if n in circuits), None)
    other = IOI_TRAINED.name if name == OBJECTS_TRAINED.name else IOI.name
    if name is None or other not in circuits:
        return {}
    heads = clear_heads(circuits[name], "inhibition", 1)
    marks = results["labels"][name]["labels"]
    reading = [head for head in heads if "content gatherer" in marks.get(head, [])]
    signed = value_of(circuits[other], "inhibition")
    there = [head for head in reading if head in clear_heads(circuits[other], "inhibition")]
    return _row(
        "Where IOI has inhibition heads, Colored Objects has content gatherers of its own",
        False if len(there) == len(reading) else None if there else True,
        f"{name}: of {len(heads)} supporting heads of that stage {len(reading)} attend from the "
        f"last token to the object asked about ({' '.join(reading) or 'none'}); of these "
        f"{len(there)} are in the stage of {other} too"
        + (f" ({', '.join(f'{head} {signed[head]:+.3f}' for head in there)})" if there else ""),
    )


def _repaired(results: dict[str, Result], name: str) -> Row:
    found = results["repair"]
    x = found["sets"].get(f"{name}, full")
    if x is None:
        return {}
    right, none = x["right"], found["none"]["right"]
    rows = len(found["sets"])
    better = right["fixed"] > right["broken"] and right["p_paired"] * rows < 0.05
    rare = over_all(found["sets"])[f"{name}, full"]
    what = {
        "both": "inhibition heads and negative mover",
        "negative mover": "the negative mover alone",
        "inhibition": "inhibition heads alone",
    }[name]
    return _row(
        f"Pointed to the two wrong colours, the attention of {what} repairs Colored Objects",
        True if better and rare < 0.05 else None if better else False,
        f"right {none['mean']:.2f} → {right['mean']:.2f} [{right['low']:.2f}, "
        f"{right['high']:.2f}], {right['fixed']} fixed, {right['broken']} new mistakes; random "
        f"heads of the same layers, pointed to the same colours, {np.mean(right['null']):.2f} "
        f"(highest {max(right['null']):.2f}), {as_strong(right['share'])}, over the {rows} rows "
        f"tried {rare:.3f}. Of all tokens the right colour is on top in "
        f"{found['none']['top']['mean']:.2f} → {x['top']['mean']:.2f}",
    )
