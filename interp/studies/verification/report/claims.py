"""The tests of the claims in claims.toml.

"Beyond random" is a share as strong below 0.05 among random sets like the one judged. Where fewer
than 19 such sets exist or were drawn, none can be that rare: a set that beats them all then earns
"partly" at most.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from interp.core.statistics import share_estimate
from interp.studies.report.claims import Finding, Row, beyond, judge, least, read_claims
from interp.studies.steps import Result, Results
from interp.studies.verification.steps.interchange import EXCHANGES

ACCURATE = 0.95
"""The accuracy from which on a probe counts as reading the verdict."""

DISABLED, CARRIED, SPARED = 0.9, 0.5, 0.9
"""Shares of verdicts: of valid ones gone when a set disables them, of pairs turned when it carries
the verdict over, of invalid ones left when it spares them."""

BLIND = 0.75
"""The AUC up to which a model hardly tells valid from invalid attempts."""

UNCHANGED = 0.01
"""Relative change of weights up to which they count as hardly changed: their cosine with what they
were, sqrt(1 - c^2) or more, is then 1.0000 to four digits, as the paper's figures are."""

PUBLISHED, SCORED = "A_Prev (published)", "A_Verif (published)"
BOTH = "GLU_Valid and GLU_Invalid"
KINDS = ("zero", "mean", "resample")


def claims(results: Results) -> list[Row]:
    """One row a claim that can be tested: the claim, whether it holds here, and the numbers."""
    return judge(read_claims(sys.modules[__name__]), results)


def first_lasting(good: np.ndarray) -> int:
    """The first layer from which on all are good; their number if the last is not."""
    return 0 if good.all() else len(good) - int(np.argmin(good[::-1]))


def linear(results: Results) -> Finding:
    """Do probes read the verdict from early layers on?"""
    probe = results["probes"]["t_paren"]["resid_post"]
    control = np.array(probe["shuffled_high"])
    good = (np.array(probe["low"]) > control) & (np.array(probe["accuracy"]) >= ACCURATE)
    first, layers = first_lasting(good), len(good)
    holds = True if first <= layers * 4 / 36 else None if first < layers else False
    best = float(np.max(probe["accuracy"]))
    return holds, {"first": first, "layers": layers, "best": best, "control": control.max()}


def steers(results: Results) -> Finding:
    """Does the mean difference turn verdicts in a layer where the words cannot be read yet?

    The layer is chosen on find samples. In it the direction must turn at least half of the samples
    each way, and more of them than every rival: the unembedding's direction, shuffled verdicts,
    other facts.
    """
    found, readable = results["steering_by_layer"], readable_from(results)
    name, dose = found["learnt"][0], found["dose"]
    rival = {
        word: np.max(
            [x[word] for n, x in found["directions"].items() if n not in found["learnt"]], 0
        )
        for word in ("this", "not")
    }
    own = found["directions"][name]
    rows = []
    for layer in range(readable):
        turned = {word: own[word][layer][dose] for word in rival}
        beside = {word: float(rival[word][layer, dose]) for word in rival}
        rows.append({"layer": layer, "turned": turned, "rival": beside})
    best = max(
        rows,
        key=lambda row: min(x[row["layer"]][dose] for x in found["find"].values()),
        default=None,
    )
    numbers = {
        "found": found, "readable": readable, "best": best, "dose": found["doses"][dose],
        "name": name,
    }  # fmt: skip
    if best is None:
        return False, numbers
    ways = [
        turned >= CARRIED and _apart(turned, best["rival"][word], found["n"])
        for word, turned in best["turned"].items()
    ]
    return True if all(ways) else None if any(ways) else False, numbers


def readable_from(results: Results) -> int:
    """The first layer at which the lens reads the verdict in its words.

    There the mean probability of "this" on valid attempts is at least 0.1 above that on invalid
    ones, or that of "not" on invalid ones above that on valid ones.
    """
    groups = results["lens"]["groups"]

    def means(group: str, word: str) -> np.ndarray:
        return np.array([row["mean"] for row in groups[group]["probability"][word]])

    this = means("valid", "this") - means("invalid", "this")
    no = means("invalid", "not") - means("valid", "not")
    read = np.maximum(this, no) >= 0.1
    return int(read.argmax()) if read.any() else len(read)


def _apart(one: float, other: float, n: int) -> bool:
    """Whether Wilson's intervals of two shares of n do not overlap, the first one higher."""
    low, high = (share_estimate(round(x * n), n) for x in (one, other))
    return low.low > high.high


def antipodal(results: Results) -> Finding:
    """Are the two sets more opposite than sets along random directions?"""
    glu, softmax = results["glu"], results["probes"]["softmax"]
    cases = (glu["opposed_neurons"], glu["antipodes_without_probes"])
    rare = least(*(beyond(x["null"]["share"], x["null"]["draws"]) for x in cases))
    opposite = cases[0]["mean_cosine"] <= -0.5
    return False if rare is False else True if rare and opposite else None, {
        "cases": cases,
        "pair": np.mean(softmax["pair"]),
        "shuffled": np.mean(softmax["pair_shuffled"]),
    }


def previous(results: Results) -> Finding:
    """Do the heads that attend to the target disable verification?"""
    asked, every = (_kinds(results, name) for name in (PUBLISHED, "A_Prev"))
    return _disables(asked) if asked else False, {"asked": asked, "every": every}


def few(results: Results) -> Finding:
    """Is the smallest set that disables verification small?"""
    found, kinds = results["curves"], _kinds(results, "A_Verif") or {}
    n, total = len(found["chosen"]), np.size(results["patching"]["noise"]["values"])
    return least(_disables(kinds), n <= max(3, 0.03 * total)), {
        "heads": found["chosen"],
        "total": total,
        "most": max(3, int(0.03 * total)),
        "order": found["order"],
        "kinds": kinds,
    }


def subset(results: Results) -> Finding:
    """Is the smallest set part of A_Prev, and does the published score find one?"""
    chosen, scored = results["curves"]["chosen"], _set(results, SCORED)
    prev = [x for name in (PUBLISHED, "A_Prev") if (x := _set(results, name))]
    if not prev:
        return False, {"of": None}
    shared = set(chosen) & {head for x in prev for head in x["components"]}
    works = scored is not None and _blinds(scored)
    within = len(shared) == len(chosen)
    both = True if within and works else None
    numbers = {"shared": len(shared), "of": len(chosen), "scored": scored}
    return both if within or works is not False else False, numbers


def carries(results: Results) -> Finding:
    """Does exchanging the chosen heads' values for a class mean turn verdicts, and no other do?"""
    found = results["interchange"]["sets"].get("A_Verif")
    if found is None:
        return False, {"cells": None}
    cells = {exchange: found["exchanges"][exchange] for exchange in EXCHANGES}
    other, *same = cells.values()
    ways = [
        least(x["flipped"]["mean"] >= CARRIED, beyond(x["share"], len(x["null"])))
        for x in other.values()
    ]
    quiet = all(x["flipped"]["mean"] <= 1 - SPARED for kept in same for x in kept.values())
    holds = least(*ways, quiet)
    part = quiet and any(way is not False for way in ways)
    return True if holds else None if part else False, {"cells": cells}


def compares(results: Results) -> Finding:
    """Is an edited attempt judged by whether the written number is the question's target?"""
    rows = {row["words"]: row for row in results["compared"]["rows"]}
    right = {
        words: row["this"]["mean"] if row["expected"] == "this" else 1 - row["this"]["mean"]
        for words, row in rows.items()
    }
    worst = min(right, key=right.__getitem__)
    good = [share >= SPARED for share in right.values()]
    own = [words for words in right if words.startswith("own ")]
    holds = True if all(good) else None if all(right[words] >= SPARED for words in own) else False
    return holds, {"rows": rows, "right": right, "worst": worst, "good": sum(good)}


def chained(results: Results) -> Finding:
    """Do stages of heads lead to the writing MLPs, and does exchanging them turn the verdict?"""
    stages = results["chain"]["stages"]
    sets = results["interchange_chain"]["sets"]
    whole = sets.get("all stages") or next(iter(sets.values()), None)
    if whole is None:
        return False, {"stages": stages, "cells": None}
    cells = whole["exchanges"][EXCHANGES[0]]
    ways = [
        least(x["flipped"]["mean"] >= CARRIED, beyond(x["share"], len(x["null"])))
        for x in cells.values()
    ]
    traced = len(stages) >= 2 and least(*ways)
    part = any(way is not False for way in ways)
    return True if traced else None if part else False, {"stages": stages, "cells": cells}


def glu_valid(results: Results) -> Finding:
    """Does ablating GLU_Valid disable some verification, and both GLU sets more?"""
    sets, written = results["effects_zero"]["sets"], results["interventions"]["rows"]
    one, both = sets["GLU_Valid"], sets[BOTH]
    lower = [
        least(x["auc"]["mean"] <= 0.95, beyond(x["auc_share"], x["draws"])) for x in (one, both)
    ]
    rare = [
        least(x["disabled"]["mean"] >= 0.05, beyond(x["share"], x["draws"])) for x in (one, both)
    ]
    holds = least(*lower, both["auc"]["high"] < one["auc"]["low"])
    texts = [written[name]["outcomes"]["final"]["success"]["mean"] for name in ("GLU_Valid", BOTH)]
    numbers = {**results["glu"], "sets": list(zip((one, both), texts, strict=True))}
    part = any(x is not False for x in (*lower, *rare))
    return True if holds else None if part else False, numbers


def silent(results: Results) -> Finding:
    """Do active GLU_Valid neurons fall silent without the chosen heads?"""
    at = results["communication"]["at"]
    found = {place: x for place, x in at.items() if x["silenced"] and x["silenced_null"]}
    nulls = {place: x["silenced_null"] for place, x in found.items()}
    judged = {
        place: (x["silenced"]["mean"], beyond(nulls[place]["share"], nulls[place]["draws"]))
        for place, x in found.items()
    }
    part = any(share >= 0.1 and rare is not False for share, rare in judged.values())
    share, rare = judged.get("t_ans", (0.0, False))
    return True if share >= 0.5 and rare else None if part else False, {"found": found}


def specific(results: Results) -> Finding:
    """Do the heads leave invalid attempts, arithmetic and English alone?"""
    mine, none = (results["side_effects"][name] for name in ("A_Verif", "none"))
    found = {kind: x for kind in KINDS if (x := _set(results, "A_Verif", kind))}
    kept = {kind: x["invalid_kept"]["mean"] for kind, x in found.items()}
    change = mine.get("loss_change")
    right, before = mine["arithmetic"]["mean"], none["arithmetic"]["mean"]
    checks = [kept["zero"] >= SPARED, right >= before - 0.05]
    checks += [] if change is None else [change["high"] <= 0.1]
    return False if not all(checks) else True if min(kept.values()) >= SPARED else None, {
        "kept": kept,
        "right": right,
        "before": before,
        "change": change,
    }


def sufficient(results: Results) -> Finding:
    """Do the heads carry the verdict from one run to another?"""
    sides = ("valid into invalid", "invalid into valid")
    rows = {side: results["sufficiency"][side]["A_Verif"] for side in sides}
    every = rows.values()
    rare = [beyond(x["share"], len(x["effect_null"])) for x in every]
    full = [x["effect_low"] >= CARRIED and x["flipped"]["mean"] >= CARRIED for x in every]
    part = any(x["effect"] >= CARRIED or x["flipped"]["mean"] >= CARRIED for x in every)
    holds = True if all(full) and all(x is True for x in rare) else None
    return holds if part and False not in rare else False, {"rows": rows}


def base_has_them(results: Results) -> Finding | None:
    """Are the chosen components hardly changed, and does the base model read the verdict?"""
    if (found := results.get("base")) is None:
        return None
    changes = [x for parts in found["weights"].values() for x in parts.values()]
    most, auc = max(x["most"] for x in changes), found["forced"][found["base"]]["auc"]
    lens = found["lens"][found["base"]]
    hardly, there = most <= UNCHANGED, auc >= 0.9
    return True if hardly and there else None if hardly or there else False, {
        "most": most,
        "cosine": min(x["cosine"] for x in changes),
        "mean": np.mean([x["selected"] for x in changes]),
        "others": np.mean([x["mean"] for x in changes]),
        "rarest": min(1.0, len(changes) * min(x["share"] for x in changes)),
        "tests": len(changes),
        "base": found["base"],
        "auc": auc,
        "says": [f"{lens[group]['this'][-1]['mean']:z.2f}" for group in ("valid", "invalid")],
    }


def _set(results: Results, name: str, kind: str = "zero") -> Any:
    return results[f"effects_{kind}"]["sets"].get(name)


def _kinds(results: Results, name: str) -> dict[str, Result] | None:
    """A set's effects under every kind of ablation it was measured with; None without the set."""
    found = {kind: x for kind in KINDS if (x := _set(results, name, kind))}
    return found or None


def _blinds(row: Result) -> bool | None:
    """Whether the log-odds hardly separate valid from invalid attempts, beyond random sets."""
    return least(row["auc"]["mean"] <= BLIND, beyond(row["auc_share"], row["draws"]))


def _disables(kinds: dict[str, Result]) -> bool | None:
    """Whether a set disables verification; None if it only moves the verdict's threshold.

    It disables if valid and invalid attempts can no longer be told apart: an AUC of at most
    `BLIND`, lower than random sets leave, under every kind of ablation.
    """
    if not kinds:
        return False
    blind = [_blinds(x) for x in kinds.values()]
    if all(x is True for x in blind) and len(kinds) == len(KINDS):
        return True
    moved = (x := kinds.get("zero")) and least(
        x["disabled"]["mean"] >= DISABLED, beyond(x["share"], x["draws"])
    )
    return None if moved or any(x is not False for x in blind) else False
