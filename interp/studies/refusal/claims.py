"""What holds in this model, read off the steps' results by stated criteria."""

from __future__ import annotations

import numpy as np

from interp.studies.refusal.comparing import REDUCTION, RETAINED
from interp.studies.refusal.heading import SIDES
from interp.studies.refusal.methods import CONSTELLATIONS
from interp.studies.refusal.pointing import SELECTED
from interp.studies.refusal.sections_steered import methods_of
from interp.studies.shown import change, estimate, listed
from interp.studies.steps import Result

COLUMNS = ("claim", "here", "evidence")
Row = dict[str, str]
Results = dict[str, Result]


def claims(results: Results) -> list[Row]:
    """One row a claim: what is claimed, whether it holds here, and the numbers."""
    rows = [_one_direction(results), _same_direction(results), _attribution(results)]
    rows += [_triggers(results), _shared_heads(results), _picture(results)]
    rows += [_constellations(results), _best(results), _neurons(results)]
    return [row for row in rows if row]


def _row(claim: str, holds: bool | None, evidence: str) -> Row:
    said = {True: "holds", False: "does not hold", None: "partly"}[holds]
    return {"claim": claim, "here": said, "evidence": evidence}


def _one_direction(results: Results) -> Row:
    """Ablating the direction ends refusal, adding it makes one; random ones do neither."""
    found = results["directions"].get("harmful-harmless")
    if found is None:
        return {}
    plain = results["directions"]["plain"]
    removed = found["ablated"]["should be refused"]
    before = plain["should be refused"]["mean"]
    bypassed = removed["value"]["high"] < min(0.0, *removed["random"])
    text = (
        f"score of rows to be refused {before:.2f}, ablated {estimate(removed['value'])}, random "
        f"ablated {listed(removed['random'])}"
    )
    induced = None
    if added := found["added"].get("answered"):
        induced = added["value"]["low"] > max(0.0, *added["random"])
        text += (
            f"; answered rows {plain['answered']['mean']:.2f}, added {estimate(added['value'])}, "
            f"random added {listed(added['random'])}"
        )
    both = {bypassed, induced}
    holds = True if both == {True} else False if both == {False} else None
    return _row("One direction mediates refusal (2406.11717)", holds, text)


def _same_direction(results: Results) -> Row:
    """Is over-refusal the refusal direction? Cosine against what its noise would leave of one."""
    found = results["geometry"]
    if not set(SELECTED) <= set(found["names"]) or "cosines" not in found:
        return {}
    i, j = (found["names"].index(kind) for kind in SELECTED)
    layer = found["layer"]
    cosine = found["cosines"][i][j][layer]
    halves = [float(np.mean(found["ceiling"][kind], 0)[layer]) for kind in SELECTED]
    # Spearman-Brown: from halves of the rows to all of them.
    reliable = [max(0.0, 2 * half / (1 + half)) for half in halves]
    ceiling = float(np.sqrt(np.prod(reliable)))
    floor = float(np.abs(np.array(found["floor"])[:, layer]).max())
    text = (
        f"cosine {cosine:.2f} at position {found['position']}, layer {layer}; one direction "
        f"measured twice would reach {ceiling:.2f} (halves of the rows {listed(halves)}), shuffled "
        f"labels reach {floor:.2f} (published: about 0.45)"
    )
    holds = cosine < 0.9 * ceiling
    return _row("Over-refusal has a direction of its own (2603.27518)", holds, text)


def _attribution(results: Results) -> Row:
    """Do carriers, needed heads and triggers differ?"""
    found = results[_name("heads", SIDES[0])]
    if "skipped" in found:
        return {}
    pair = {"carries (direct attribution)", "triggers (necessity)"}
    value = next(x["jaccard"] for x in found["jaccard"] if set(x["pair"]) == pair)
    carriers, triggers = (
        " ".join(row["label"] for row in found["measures"][name]["top"][:4])
        for name in ("carries (direct attribution)", "triggers (necessity)")
    )
    return _row(
        "Attribution and interchange name different heads (2604.04385)",
        value < 0.5,
        f"carriers {carriers}; triggers {triggers}; Jaccard of the top 10 {value:.2f}",
    )


def _triggers(results: Results) -> Row:
    """A few heads trigger refusal: exchanged on unseen pairs, against random heads."""
    found = results[_name("groups", SIDES[0])]
    if "skipped" in found:
        return {}
    x = found["sets"]["triggers (necessity)"]
    null = x["necessity_null"]
    holds = x["necessity"]["low"] > null["high"] and x["necessity"]["mean"] >= 0.5
    partly = x["necessity"]["low"] > null["high"]
    return _row(
        "A few heads trigger refusal",
        True if holds else None if partly else False,
        f"{' '.join(x['heads'])} exchanged take {estimate(x['necessity'])} of the gap on unseen "
        f"pairs (random {null['mean']:.2f} [{null['low']:.2f}, {null['high']:.2f}]) and give "
        f"{estimate(x['sufficiency'])}",
    )


def _shared_heads(results: Results) -> Row:
    """Are over-refusals made by the heads of proper refusals?"""
    found = results[_name("groups", SIDES[1])]
    x = found.get("sets", {}).get("the other side's triggers")
    if not x:
        return {}
    null, own = x["necessity_null"], found["sets"]["triggers (necessity)"]["necessity"]
    above = x["necessity"]["low"] > null["high"]
    half = x["necessity"]["mean"] >= own["mean"] / 2
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
        tasks > max(within.values()),
        f"best silhouette of tasks {tasks:.2f} (published 0.33 to 0.45), within a task "
        + ", ".join(f"{value:.2f} ({name.split(', ')[1]})" for name, value in within.items())
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
        True if _meets(found) else None if _rates(found) else False,
        _both(found),
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
    return _row(
        "Other steering does as well, and answers",
        bool(others) and not random,
        "; ".join([f"{name}: {_both(x)}" for name, x in others.items()] or ["none"])
        + f"; random versions: {', '.join(random) or 'none'}",
    )


def _neurons(results: Results) -> Row:
    """GLU neurons found as in the verification study."""
    found = results["neurons"].get("test", {}).get(SIDES[0])
    if found is None:
        return {}
    null, flipped = found["null"], found["flipped"]
    return _row(
        "GLU neurons along the refusal direction carry it",
        flipped["low"] > null["high"] and flipped["mean"] >= 0.5,
        f"{results['neurons']['chosen']['n']} neurons zeroed at the last token turn "
        f"{estimate(flipped)} of refusals (random {null['mean']:.2f}, p = {null['p']:.2f})",
    )


def _rates(x: Result) -> bool:
    """Both targets: over-refusals removed, proper refusals retained."""
    if x["reduction"] is None or x["retained"] is None:
        return False
    return x["reduction"]["mean"] >= REDUCTION and x["retained"]["mean"] >= RETAINED


def _meets(x: Result) -> bool:
    """Both, by answers: of what is no longer refused nine tenths is answered, not a loop."""
    answered = x["answered"]
    more = answered["after"]["mean"] - answered["before"]["mean"]
    return _rates(x) and more >= 0.9 * x["benign"]["difference"]["mean"]


def _both(x: Result) -> str:
    removed, retained = (
        "cannot be said (none before)" if x[name] is None else estimate(x[name])
        for name in ("reduction", "retained")
    )
    return f"removed {removed}, retained {retained}, unseen rows; answered {change(x['answered'])}"


def _name(step: str, side: str) -> str:
    return f"{step}_{side}".replace(" ", "_")
