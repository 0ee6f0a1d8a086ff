"""The tests of the claims in claims.toml."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from interp.studies.formatting import as_strong
from interp.studies.report.claims import Finding, Row, judge, least, read_claims, some
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
        f"{x['value']:z.2f} [{x['low']:z.2f}, {x['high']:z.2f}] (random {x['null']['mean']:z.2f}, "
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
    """Do variants of IOI share its circuit beyond random heads?"""
    found = _with_ioi(results, "variant")
    if not found:
        return None
    above = [row["matched"]["null"]["share"] < 0.05 for row in found.values()]
    return some(above), {"rows": _listed(found)}


def apart(controls: Sequence[Result]) -> bool | None:
    """Whether two circuits share more than either shares with any control's circuit.

    True if every interval of the difference is above zero, None if only every difference is.
    """
    if not controls or any(x["value"] <= 0 for x in controls):
        return False
    return True if all(x["low"] > 0 for x in controls) else None


def beyond_words(controls: Sequence[Result]) -> str:
    """The smallest difference to a control, with its interval."""
    x = min(controls, key=lambda x: (x["low"], x["value"]))
    return (
        f"{x['value']:+z.2f} [{x['low']:+z.2f}, {x['high']:+z.2f}] (minus what {x['circuit']} "
        f"shares with {x['control']})"
    )


def specific(results: Results) -> Finding | None:
    """Do controls share less of IOI's circuit than every variant does?"""
    alike, controls = (_with_ioi(results, group) for group in ("variant", "control"))
    if not alike or not controls:
        return None
    found = {
        name: [x for x in row["matched"]["controls"] if x["circuit"] == IOI.name]
        for name, row in alike.items()
    }
    listed = {name: beyond_words(rows) for name, rows in found.items()}
    return least(*map(apart, found.values())), {"rows": _listed(controls), "beyond": listed}


def shared(results: Results, of: str) -> Finding | None:
    """Does a task share IOI's circuit beyond random heads and beyond every control?"""
    if of not in circuits_of(results) or (row := pair_of(results, IOI.name, of)) is None:
        return None
    x = row["matched"]
    if not x["controls"]:
        return None
    verdict = least(x["null"]["share"] < 0.05, apart(x["controls"]))
    found = {
        name: (row[name]["value"], beyond_words(row[name]["controls"]))
        for name in ("matched", "inner", "weighted")
    }
    return verdict, {"shown": shown(row), **found}


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


def mends(results: Results) -> dict[str, bool | None]:
    """For every row of the repair: does it mend the task, and random heads told the same do not?

    True if it fixes more than it breaks (McNemar's exact p times the rows below 0.05) and its share
    as strong, corrected for the rows, is below 0.05. None if only the first, else False.
    """
    sets = results["repair"]["sets"]
    rare, found = over_all(sets), {}
    for name, x in sets.items():
        right = x["right"]
        better = right["fixed"] > right["broken"] and right["p_paired"] * len(sets) < 0.05
        found[name] = True if better and rare[name] < 0.05 else None if better else False
    return found


def repaired(results: Results, of: str) -> Finding | None:
    """Does telling heads the wrong colours repair the task, beyond random heads?"""
    found = results["repair"]
    alone = of == "negative mover"
    name = next(iter(found["heads"][of]), of) if alone else of
    x = found["sets"].get(name)
    if x is None:
        return None
    right = x["right"]
    return mends(results)[name], {
        "name": name,
        "right": right,
        "null": np.mean(right["null"]),
        "highest": max(right["null"]),
        "rows": len(found["sets"]),
        "rare": over_all(found["sets"])[name],
        "before": found["none"],
        "top": x["top"]["mean"],
    }


def suppressors(results: Results) -> list[str]:
    """The suppressors among the heads told one by one, the one that lowers its name most first."""
    found = results["repair"]
    roles = {h: x for h, x in found["roles"].items() if x and h in found["sets"]}
    mine = [head for head, x in roles.items() if x["role"] == "suppressor"]
    return sorted(mine, key=lambda head: roles[head]["adds"]["mean"])


def one_suppressor(results: Results) -> Finding | None:
    """Does the strongest suppressor of IOI, told the wrong colours alone, repair the task?

    And does no head with another role do so?
    """
    mine, verdicts = suppressors(results), mends(results)
    if not mine:
        return None
    found = results["repair"]
    mending = [head for head in found["roles"] if verdicts.get(head)]
    known = [head in mine for head in mending]
    holds = (True if mine[0] in mending and all(known) else None) if any(known) else False

    def told(head: str) -> str:
        right = found["sets"][head]["right"]
        return (
            f"{head} {right['mean']:z.2f} [{right['low']:z.2f}, {right['high']:z.2f}] "
            f"({right['fixed']} fixed, {right['broken']} broken)"
        )

    roles = {head: (x or {}).get("role") or "neither" for head, x in found["roles"].items()}
    rest = [head for head in found["roles"] if head in found["sets"] and head not in mending]
    best = max(rest, key=lambda head: found["sets"][head]["right"]["mean"], default=None)
    return holds, {
        "n": len(found["roles"]),
        "mine": mine,
        "mending": [f"{told(head)}, {roles[head]}" for head in mending],
        "best": best and f"{told(best)}, {roles[best]}",
        "before": found["none"]["right"],
    }
