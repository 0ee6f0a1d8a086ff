"""The paper's claims, each with the criterion it is judged by here."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from interp.studies.formatting import as_strong
from interp.studies.report.claims import Claim, Judged, Results, Row, judge, some
from interp.studies.reuse.report.numbers import pair_of
from interp.studies.reuse.steps.circuits import circuits_of, clear_heads, value_of
from interp.studies.reuse.steps.repair import over_all
from interp.studies.reuse.tasks import IOI, IOI_TRAINED, OBJECTS, OBJECTS_TRAINED, entry_named
from interp.studies.steps import Result

PAPER, UNTESTED = "arXiv 2310.08744", "not tested in the paper"


def claims(results: Results) -> list[Row]:
    """One row a claim that can be tested: the claim, whether it holds here, and the numbers."""
    return judge(CLAIMS, results)


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


def variants(results: Results) -> Judged | None:
    """Do variants of IOI share its circuit beyond chance?"""
    found = _with_ioi(results, "variant")
    if not found:
        return None
    above = [row["matched"]["null"]["share"] < 0.05 for row in found.values()]
    return some(above), {"rows": _listed(found)}


def specific(results: Results) -> Judged | None:
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


def shared(results: Results, name: str) -> Judged | None:
    """Does a task share IOI's circuit beyond chance, and more than any control does?"""
    circuits = circuits_of(results)
    if name not in circuits or (row := pair_of(results, IOI.name, name)) is None:
        return None
    controls = {
        other: found
        for other in circuits
        if entry_named(other).group == "control"
        and (found := pair_of(results, other, name)) is not None
    }
    above = row["matched"]["null"]["share"] < 0.05
    beyond = all(row["matched"]["value"] > x["matched"]["value"] for x in controls.values())
    words = [f"with {other} {shown(x)}" for other, x in {"IOI": row, **controls}.items()]
    return True if above and beyond else None if above else False, {"rows": "; ".join(words)}


def needed(results: Results) -> Judged | None:
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


def gatherers(results: Results) -> Judged | None:
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


def repaired(results: Results, name: str) -> Judged | None:
    """Does pointing heads to the wrong colours repair the task, beyond random heads?"""
    found = results["repair"]
    x = found["sets"].get(f"{name}, full")
    if x is None:
        return None
    right, rows = x["right"], len(found["sets"])
    better = right["fixed"] > right["broken"] and right["p_paired"] * rows < 0.05
    rare = over_all(found["sets"])[f"{name}, full"]
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


BEYOND_CONTROLS = (
    "the share of heads in common is beyond random heads of the same layers, and larger than with "
    "any control task; partly: beyond random heads"
)
REPAIR = Claim(
    claim="Pointed to the two wrong colours, the attention of {} repairs Colored Objects",
    source=PAPER,
    holds_if="it fixes more than it breaks, and random heads of the same layers, pointed to the "
    "same colours, do not do as well (p below 0.05 over all rows tried); partly: it fixes more "
    "than it breaks",
    test=lambda results: None,
    evidence="right {{ before.right.mean | fixed(2) }} → {{ right.mean | fixed(2) }} "
    "[{{ right.low | fixed(2) }}, {{ right.high | fixed(2) }}], {{ right.fixed }} fixed, "
    "{{ right.broken }} new mistakes; random heads of the same layers, pointed to the same "
    "colours, {{ null | fixed(2) }} (highest {{ highest | fixed(2) }}), {{ share }}, over the "
    "{{ rows }} rows tried {{ rare | fixed(3) }}. Among all tokens the right colour is on top in "
    "{{ before.top.mean | fixed(2) }} → {{ top | fixed(2) }}",
)

CLAIMS = (
    Claim(
        claim="Variants of IOI share its circuit beyond chance",
        source=UNTESTED,
        holds_if="every variant shares more heads with IOI than random heads of the same layers do "
        "(share as strong below 0.05); partly: some do",
        test=variants,
        evidence="{{ rows }}",
    ),
    Claim(
        claim="Unrelated tasks share less of it",
        source=UNTESTED,
        holds_if="every control shares less than every variant, their intervals apart; partly: "
        "less by the values",
        test=specific,
        evidence="{{ rows }}. Least of the variants {{ least | fixed(2) }}",
    ),
    Claim(
        claim="Colored Objects reuses IOI's circuit",
        source=PAPER,
        holds_if=BEYOND_CONTROLS,
        test=partial(shared, name=OBJECTS.name),
        evidence="{{ rows }}",
    ),
    Claim(
        claim="The trained Colored Objects circuit reuses the base model's IOI circuit",
        source=PAPER,
        holds_if=BEYOND_CONTROLS,
        test=partial(shared, name=OBJECTS_TRAINED.name),
        evidence="{{ rows }}",
    ),
    Claim(
        claim="Without the base model's IOI heads the trained skill breaks, more than by chance",
        source=UNTESTED,
        holds_if="with these heads at their mean fewer answers are right than with random heads of "
        "the same layers (share as strong below 0.05)",
        test=needed,
        evidence="right {{ whole | fixed(2) }}; IOI heads at their mean {{ mine.mean | fixed(2) }} "
        "[{{ mine.low | fixed(2) }}, {{ mine.high | fixed(2) }}] (random "
        "{{ mine_random | fixed(2) }}, {{ share }}); its own heads {{ own | fixed(2) }} (random "
        "{{ own_random | fixed(2) }})",
    ),
    Claim(
        claim="Where IOI has inhibition heads, Colored Objects has content gatherers of its own",
        source=PAPER,
        holds_if="some heads of that stage attend to the object asked about, and none of these is "
        "in IOI's stage of the same model; partly: some of these are",
        test=gatherers,
        evidence="{{ name }}: {{ reading | length }} of {{ n }} supporting heads of that stage "
        "attend from the last token to the object asked about ({{ reading | join(' ') or 'none' "
        "}}); {{ there | length }} of these are in the stage of {{ other }} too{% if there %} "
        "({{ there | each('{} {:+.3f}') }}){% endif %}",
    ),
    *(
        replace(REPAIR, claim=REPAIR.claim.format(heads), test=partial(repaired, name=name))
        for name, heads in (
            ("both", "inhibition heads and negative mover"),
            ("negative mover", "the negative mover alone"),
            ("inhibition", "inhibition heads alone"),
        )
    ),
)
