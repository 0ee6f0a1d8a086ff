"""What holds in this model, read off the steps' results by stated criteria.

A claim holds where the intervals show it, on rows it was tested on; partly where only the means do,
or only a part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from interp.core.statistics import range_of_draws
from interp.studies.formatting import as_strong, change, estimate, listed, maybe, retained
from interp.studies.refusal.report.steering import methods_of
from interp.studies.refusal.steps.directions import SELECTED, place_of
from interp.studies.refusal.steps.frontier import REDUCTION, RETAINED
from interp.studies.refusal.steps.heads import SIDES
from interp.studies.refusal.steps.methods import CONSTELLATIONS, EVERY_TASK
from interp.studies.steps import Result

COLUMNS = ("claim", "here", "evidence")
NOT_TESTED = "not tested"
CARRIERS, TRIGGERS = "carries (direct attribution)", "triggers (necessity)"
Row = dict[str, str]
Results = dict[str, Result]


def claims(results: Results) -> list[Row]:
    """One row a claim: what is claimed, whether it holds here, and the numbers."""
    rows = [_one_direction(results), _same_direction(results), _attribution(results)]
    rows += [_triggers(results), _shared_heads(results), _picture(results)]
    rows += [_constellations(results), _unbarred(results), _best(results), _neurons(results)]
    return [row for row in rows if row]


def _row(claim: str, holds: bool | None | str, evidence: str) -> Row:
    """A row; None is partly, a string says itself."""
    said = {True: "holds", False: "does not hold", None: "partly"}
    here = holds if isinstance(holds, str) else said[holds]
    return {"claim": claim, "here": here, "evidence": evidence}


def _all_some_none(parts: Sequence[bool | None]) -> bool | None:
    """True where all hold, False where none does."""
    return True if all(parts) else None if any(parts) else False


def _one_direction(results: Results) -> Row:
    """Ablating the direction ends refusal, adding it makes one, and the published rule takes it.

    Random directions do neither; the rule leaves out the last fifth of the layers.
    """
    found = results["directions"].get("harmful-harmless")
    chosen = results["selection_harmful-harmless"]
    if found is None or "rows" not in chosen:
        return {}
    plain = results["directions"]["plain"]
    removed = found["ablated"]["should be refused"]
    before = plain["should be refused"]["mean"]
    bypassed = removed["value"]["high"] < min(0.0, *removed["random"])
    text = (
        f"score of rows to be refused {before:.2f}, ablated {estimate(removed['value'])}, "
        f"{_random(removed['random'])}"
    )
    induced = False
    if added := found["added"].get("answered"):
        induced = added["value"]["low"] > max(0.0, *added["random"])
        text += (
            f"; answered rows {plain['answered']['mean']:.2f}, added {estimate(added['value'])}, "
            f"{_random(added['random'])}"
        )
    if passes := chosen["best"] is not None:
        text += "; it passes the published rule"
    elif place := place_of(chosen):
        layers = 1 + max(row["layer"] for row in chosen["rows"])
        text += f"; no candidate passes the published rule (taken: layer {place[1]} of {layers})"
    both = _all_some_none((bypassed, induced))
    holds = None if both and not passes else both
    return _row("One direction mediates refusal (2406.11717)", holds, text)


def _random(values: Sequence[float]) -> str:
    if not values:
        return "no random ones"
    return f"{len(values)} random {min(values):.2f} to {max(values):.2f}"


def _same_direction(results: Results) -> Row:
    """Is over-refusal another direction than refusal, in its angle and in what it does?

    Its cosine is below nine tenths of what one direction measured twice would reach, the whole
    interval of it; and proper refusals stay where it is ablated.
    """
    found = results["geometry"]
    if "cosine" not in found:
        return {}
    cosine, layer = found["cosine"], found["layer"]
    halves = [float(np.mean(found["ceiling"][kind], 0)[layer]) for kind in SELECTED]
    # Spearman-Brown: from halves of the rows to all of them.
    reliable = [max(0.0, 2 * half / (1 + half)) if half > -1 else 0.0 for half in halves]
    ceiling = float(np.sqrt(np.prod(reliable)))
    low, high = range_of_draws(np.array(found["floor"])[:, layer])
    text = (
        f"cosine {estimate(cosine)} base texts, at position {found['position']}, layer {layer}; "
        f"one direction measured twice would reach {ceiling:.2f} (halves of the rows "
        f"{listed(halves)}); over-refusal labels shuffled inside tasks {low:.2f} to {high:.2f} "
        "(published cosine: about 0.45)"
    )
    spared = None
    effects = results["directions"].get("over-refusal", {}).get("ablated", {})
    if seen := effects.get("should be refused"):
        spared = seen["value"]["low"] > 0
        text += f"; ablated, rows to be refused score {estimate(seen['value'])}"
    apart = cosine["high"] < 0.9 * ceiling
    claim = "Over-refusal has a direction of its own (2603.27518)"
    return _row(claim, _all_some_none((apart, spared)), text)


def _attribution(results: Results) -> Row:
    """Do attribution and interchange name different heads, more than resampled pairs do?

    On a side they do where their first ten overlap by less than half of what either shares with
    itself in resampled pairs, and their first heads differ.
    """
    differ, apart, text = [], [], []
    for side in SIDES:
        found = results[_name("heads", side)]
        if "skipped" in found:
            continue
        pair = {CARRIERS, TRIGGERS}
        value = next(x["jaccard"] for x in found["jaccard"] if set(x["pair"]) == pair)
        measures = [found["measures"][name] for name in (CARRIERS, TRIGGERS)]
        own = sqrt(np.prod([x["stability"] if x["stability"] is not None else 1 for x in measures]))
        firsts = [[row["label"] for row in x["top"][:4]] for x in measures]
        apart.append(value < own / 2)
        differ.append(value < own / 2 and firsts[0][0] != firsts[1][0])
        text.append(
            f"{side}: carriers {' '.join(firsts[0])}, triggers {' '.join(firsts[1])}, Jaccard of "
            f"the top 10 {value:.2f} (with themselves, pairs resampled, {own:.2f})"
        )
    if not text:
        return {}
    holds = True if all(differ) else None if any(apart) else False
    return _row(
        "Attribution and interchange name different heads (2604.04385)", holds, "; ".join(text)
    )


def _triggers(results: Results) -> Row:
    """A few heads trigger refusal: exchanged on unseen pairs, and at zero in texts."""
    found = results[_name("groups", SIDES[0])]
    if "skipped" in found:
        return {}
    x = found["sets"][TRIGGERS]
    null = x["necessity_null"]
    above = x["necessity"]["low"] > null["high"]
    text = (
        f"{' '.join(x['heads'])} exchanged take {estimate(x['necessity'])} of the gap on unseen "
        f"pairs (random {null['mean']:.2f} [{null['low']:.2f}, {null['high']:.2f}]) and give "
        f"{estimate(x['sufficiency'])}; "
    )
    texts, flips = results["flips"].get(SIDES[0]), False
    if texts is None:
        text += "not tried in texts"
    else:
        random = texts["null"]
        flips = texts["rate"]["low"] > (random["high"] if random else 0.0)
        text += f"at zero in prompt and text, {estimate(texts['rate'])} of refusals flip"
        text += f" (random {random['mean']:.2f})" if random else ""
    most = above and x["necessity"]["mean"] >= 0.5
    holds = True if most and flips else None if above else False
    return _row("A few heads trigger refusal", holds, text)


def _shared_heads(results: Results) -> Row:
    """Are over-refusals made by the heads of proper refusals?"""
    found = results[_name("groups", SIDES[1])]
    x = found.get("sets", {}).get("the other side's triggers")
    if not x:
        return {}
    null, own = x["necessity_null"], found["sets"][TRIGGERS]["necessity"]
    above = x["necessity"]["low"] > null["high"]
    half = x["necessity"]["low"] >= own["mean"] / 2
    return _row(
        "Over-refusals are made by the heads of proper refusals",
        True if above and half else None if above else False,
        f"the heads that trigger proper refusals take {estimate(x['necessity'])} of the gap of "
        f"over-refusals (random {null['mean']:.2f} [{null['low']:.2f}, {null['high']:.2f}]; the "
        f"over-refusals' own {estimate(own)})",
    )


def _picture(results: Results) -> Row:
    """Tasks form clusters; within one, refused and answered hardly do."""
    found = results["separation"]["silhouettes"]
    within = {name: max(x) for name, x in found.items() if name != "tasks"}
    if not within:
        return {}
    tasks = max(found["tasks"])
    return _row(
        "Tasks separate more than refused and answered rows of one task (2603.27518)",
        _all_some_none([tasks > value for value in within.values()]),
        f"best silhouette of tasks {tasks:.2f} (published 0.33 to 0.45), within a task "
        + ", ".join(f"{value:.2f} ({name.split(', ')[-1]})" for name, value in within.items())
        + " (published at most 0.08)",
    )


def _constellations(results: Results) -> Row:
    """The published reduction, out of sample, with proper refusals kept."""
    found = methods_of(results).get(CONSTELLATIONS)
    if found is None or found["reduction"] is None:
        return {}
    return _row(
        f"Task constellations remove {REDUCTION:.0%} of over-refusals (2508.11290) and keep "
        f"{RETAINED:.0%} of proper refusals",
        True if _shown(found) else None if _rates(found) else False,
        _both(found),
    )


def _unbarred(results: Results) -> Row:
    """Are proper refusals kept by the steering, or by a bar on their task?"""
    found = methods_of(results).get(EVERY_TASK)
    if found is None:
        return {}
    kept = _kept(found)
    holds: bool | None | str = NOT_TESTED
    if kept is not None:
        holds = kept["low"] >= RETAINED or (None if kept["mean"] >= RETAINED else False)
    return _row(
        "They keep proper refusals where no task is barred from steering", holds, _both(found)
    )


def _best(results: Results) -> Row:
    """Whether any other method meets both targets with answers, and no random version does."""
    found = methods_of(results)
    random = [name for name, x in found.items() if x["null"] and _meets(x)]
    others = {
        name: x
        for name, x in found.items()
        if not x["null"] and _meets(x) and not name.startswith(CONSTELLATIONS)
    }
    shown = any(map(_shown, others.values())) and not random
    return _row(
        "Other steering does as well, and answers",
        True if shown else None if others else False,
        "; ".join([f"{name}: {_both(x)}" for name, x in others.items()] or ["none"])
        + f"; random versions: {', '.join(random) or 'none'}",
    )


def _neurons(results: Results) -> Row:
    """GLU neurons found as in the verification study."""
    found = results["neurons"].get("test", {}).get(SIDES[0])
    if found is None:
        return {}
    null, flipped = found["null"], found["flipped"]
    above = flipped["low"] > null["high"]
    return _row(
        "GLU neurons along the refusal direction carry it",
        True if above and flipped["mean"] >= 0.5 else None if above else False,
        f"{results['neurons']['chosen']['n']} neurons zeroed at the last token turn "
        f"{estimate(flipped)} of refusals (random {null['mean']:.2f}, {as_strong(null['share'])})",
    )


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


def _name(step: str, side: str) -> str:
    return f"{step}_{side}".replace(" ", "_")
