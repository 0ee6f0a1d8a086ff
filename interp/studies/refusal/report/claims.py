"""The tests of the claims in claims.toml.

A claim holds where the intervals show it, on rows it was tested on; partly where only the means do,
or only a part of it.
"""

from __future__ import annotations

import sys
from math import sqrt

import numpy as np

from interp.core.statistics import range_of_draws
from interp.studies.formatting import change, maybe, retained
from interp.studies.refusal.steps.carriers import FROZEN, KEPT
from interp.studies.refusal.steps.directions import SELECTED, place_of
from interp.studies.refusal.steps.frontier import REDUCTION, RETAINED
from interp.studies.refusal.steps.geometry import measured_twice
from interp.studies.refusal.steps.heads import CARRIERS, SIDES, TRIGGERS
from interp.studies.refusal.steps.methods import CONSTELLATIONS, EVERY_TASK
from interp.studies.report.claims import Finding, Row, judge, read_claims, some
from interp.studies.steps import Result, Results

NOT_TESTED = "not tested"


def step_of(step: str, side: str) -> str:
    """The name of a step of one side."""
    return f"{step}_{side}".replace(" ", "_")


def methods_of(results: Results) -> dict[str, Result]:
    """Evaluations by method, random versions last."""
    found = {x["name"]: x for name, x in results.items() if name.startswith("method_")}
    return dict(sorted(found.items(), key=lambda pair: (pair[1]["null"], pair[0])))


def claims(results: Results) -> list[Row]:
    """One row a claim that can be tested: the claim, whether it holds here, and the numbers."""
    return judge(read_claims(sys.modules[__name__]), results)


def one_direction(results: Results) -> Finding | None:
    """Does ablating the direction end refusal, and adding it cause one?"""
    found = results["directions"].get("harmful-harmless")
    chosen = results["selection_harmful-harmless"]
    if found is None or "rows" not in chosen:
        return None
    plain, removed = results["directions"]["plain"], found["ablated"]["properly refused"]
    added, place = found["added"].get("answered"), place_of(chosen)
    bypassed = removed["value"]["high"] < min(0.0, *removed["random"])
    induced = bool(added) and added["value"]["low"] > max(0.0, *added["random"])
    both, passes = some((bypassed, induced)), chosen["best"] is not None
    layers = 1 + max(row["layer"] for row in chosen["rows"])
    numbers = {"plain": plain, "removed": removed, "added": added, "passes": passes}
    return None if both and not passes else both, numbers | {"place": place, "layers": layers}


def beyond_words(results: Results) -> Finding | None:
    """Does the direction do more than its rivals, ablated and added?"""
    found = results["rivals"]
    wanted = {"ablated": ("properly refused", "high", -1), "added": ("answered", "low", 1)}
    beaten, words = [], []
    for what, (side, end, sign) in wanted.items():
        if side not in found["own"][what]:
            continue
        apart = {x["name"]: x[what][side]["apart"] for x in found["rivals"]}
        beaten.append(all(sign * one[end] > 0 for one in apart.values()))
        words.append(
            f"{what}, {side}: {maybe(found['own'][what][side])}, apart from "
            + ", ".join(f"{name} by {maybe(one)}" for name, one in apart.items())
        )
    holds = False if found["equal"] else some(beaten)
    cosine = found["rivals"][0]["cosines"][0]
    return holds, {"words": "; ".join(words), "cosine": cosine, "kind": found["kind"]}


def same_direction(results: Results) -> Finding | None:
    """Is over-refusal another direction than refusal, in its angle and in what it does?"""
    found = results["geometry"]
    if "cosine" not in found:
        return None
    cosine, layer = found["cosine"], found["layer"]
    halves = [float(np.mean(found["ceiling"][kind], 0)[layer]) for kind in SELECTED]
    ceiling = sqrt(np.prod([measured_twice(half) for half in halves]))
    low, high = range_of_draws(np.array(found["floor"])[:, layer])
    effects = results["directions"].get("over-refusal", {}).get("ablated", {})
    seen = effects.get("properly refused")
    spared = seen["value"]["low"] > 0 if seen else None
    numbers = {**found, "ceiling": ceiling, "halves": halves, "low": low, "high": high}
    return some((cosine["high"] < 0.9 * ceiling, spared)), numbers | {"ablated": seen}


def one_effect(results: Results) -> Finding | None:
    """Do kinds of refusal have directions apart, and do these lower each other's refusals?"""
    found = results["one_effect"]
    if "skipped" in found:
        return None
    above = np.triu_indices(len(found["groups"]), 1)
    cosines, reach = (np.array(found[name])[above] for name in ("cosines", "reach"))
    apart = bool((cosines < 0.9 * reach).all())
    others, random = found["others"].values(), max(found["random"])
    alike = all(x["beyond"]["low"] > 0 and x["drop"]["low"] > random for x in others)
    ends = {"low": float(cosines.min()), "high": float(cosines.max())}
    return some((apart, alike)), found | ends | {"least": float(reach.min())}


def carriers(results: Results) -> Finding | None:
    """Is a steering carried by what heads write, and not by where they look?"""
    found = results["carriers"]["sides"]
    if not found:
        return None
    look, write, _, _ = FROZEN
    kept, needed, words = [], [], []
    for side, x in found.items():
        frozen, tenth = x["frozen"], x["sparse"][KEPT.index(0.1)]
        kept.append(frozen[look]["low"] >= 0.9)
        needed.append(frozen[write]["high"] < frozen[look]["low"])
        every = "; ".join(f"{name} {maybe(one)}" for name, one in frozen.items())
        words.append(
            f"{side} (n = {x['n']}), share left with frozen: {every}; with a tenth of the "
            f"entries {maybe(tenth['largest'])}"
        )
    return some((all(kept), all(needed))), {"words": ". ".join(words)}


def attribution(results: Results) -> Finding | None:
    """Do attribution and interchange name different heads, more than resampled pairs do?"""
    differ, apart, words = [], [], []
    for side in SIDES:
        found = results[step_of("heads", side)]
        if "skipped" in found:
            continue
        pair = {CARRIERS, TRIGGERS}
        value = next(x["jaccard"] for x in found["jaccard"] if set(x["pair"]) == pair)
        measures = [found["measures"][name] for name in (CARRIERS, TRIGGERS)]
        own = sqrt(np.prod([x["stability"] if x["stability"] is not None else 1 for x in measures]))
        firsts = [[row["label"] for row in x["top"][:4]] for x in measures]
        apart.append(value < own / 2)
        differ.append(value < own / 2 and firsts[0][0] != firsts[1][0])
        words.append(
            f"{side}: carriers {' '.join(firsts[0])}, triggers {' '.join(firsts[1])}, Jaccard of "
            f"the top 10 {value:z.2f} (with themselves, pairs resampled, {own:z.2f})"
        )
    if not words:
        return None
    return True if all(differ) else None if any(apart) else False, {"words": "; ".join(words)}


def triggers(results: Results) -> Finding | None:
    """Do a few heads trigger refusal, exchanged on unseen pairs and zeroed in texts?"""
    found = results[step_of("groups", SIDES[0])]
    if "skipped" in found:
        return None
    x, texts = found["sets"][TRIGGERS], results["flips"].get(SIDES[0])
    above = x["necessity"]["low"] > x["necessity_null"]["high"]
    random = texts and texts["null"]
    flips = bool(texts) and texts["rate"]["low"] > (random["high"] if random else 0.0)
    most = above and x["necessity"]["mean"] >= 0.5
    return True if most and flips else None if above else False, {**x, "texts": texts}


def shared_heads(results: Results) -> Finding | None:
    """Are over-refusals made by the heads of proper refusals?"""
    found = results[step_of("groups", SIDES[1])].get("sets", {})
    if not (x := found.get("the other side's triggers")):
        return None
    own = found[TRIGGERS]["necessity"]
    above = x["necessity"]["low"] > x["necessity_null"]["high"]
    half = x["necessity"]["low"] >= own["mean"] / 2
    return True if above and half else None if above else False, {**x, "own": own}


def clusters(results: Results) -> Finding | None:
    """Do tasks separate more than refused and answered rows of one task?"""
    found = results["separation"]["silhouettes"]
    within = {name: max(x) for name, x in found.items() if name != "tasks"}
    if not within:
        return None
    tasks = max(found["tasks"])
    words = [f"{value:z.2f} ({name.split(', ')[-1]})" for name, value in within.items()]
    return some(tasks > value for value in within.values()), {"tasks": tasks, "within": words}


def constellations(results: Results) -> Finding | None:
    """Does the method reach the published reduction, out of sample, with proper refusals kept?"""
    found = methods_of(results).get(CONSTELLATIONS)
    if found is None or found["reduction"] is None:
        return None
    return True if _shown(found) else None if _rates(found) else False, {"words": _both(found)}


def unbarred(results: Results) -> Finding | None:
    """Are proper refusals kept by the steering, or by a bar on their task?"""
    found = methods_of(results).get(EVERY_TASK)
    if found is None:
        return None
    kept, holds = _kept(found), NOT_TESTED
    if kept is not None:
        holds = kept["low"] >= RETAINED or (None if kept["mean"] >= RETAINED else False)
    return holds, {"words": _both(found)}


def other_methods(results: Results) -> Finding:
    """Does any other method meet both targets with answers, and no random version?"""
    meets = {name: x for name, x in methods_of(results).items() if _meets(x)}
    random = [name for name, x in meets.items() if x["null"]]
    others = {
        name: x
        for name, x in meets.items()
        if not x["null"] and not name.startswith(CONSTELLATIONS)
    }
    shown = any(map(_shown, others.values())) and not random
    return True if shown else None if others else False, {
        "methods": "; ".join(f"{name}: {_both(x)}" for name, x in others.items()) or "none",
        "random": random or "none",
    }


def neurons(results: Results) -> Finding | None:
    """Do GLU neurons along the refusal direction carry it?"""
    found = results["neurons"].get("test", {}).get(SIDES[0])
    if found is None:
        return None
    null, flipped = found["null"], found["flipped"]
    above = flipped["low"] > null["high"]
    numbers = {**found, "n": results["neurons"]["chosen"]["n"]}
    return True if above and flipped["mean"] >= 0.5 else None if above else False, numbers


def _kept(x: Result) -> Result | None:
    """What is retained of the proper refusals that the steering was in force for."""
    return x["retained_reached"] if "retained_reached" in x else x["retained"]


def _rates(x: Result) -> bool:
    """Both targets, by the means: over-refusals removed, proper refusals retained."""
    if x["reduction"] is None or x["retained"] is None:
        return False
    return x["reduction"]["mean"] >= REDUCTION and x["retained"]["mean"] >= RETAINED


def _meets(x: Result) -> bool:
    """Both, by answers: of what is no longer refused nine tenths is answered, not a loop."""
    answered = x["answered"]
    more = answered["after"]["mean"] - answered["before"]["mean"]
    return _rates(x) and more >= 0.9 * x["benign"]["difference"]["mean"]


def _shown(x: Result) -> bool:
    """Both by the low ends of their intervals, the second on rows the steering was in force for."""
    kept = _kept(x)
    if not _meets(x) or kept is None:
        return False
    return x["reduction"]["low"] >= REDUCTION and kept["low"] >= RETAINED


def _both(x: Result) -> str:
    return (
        f"removed {maybe(x['reduction'])}, retained {maybe(x['retained'])} ({retained(x)}), "
        f"unseen rows; answered {change(x['answered'])}"
    )
