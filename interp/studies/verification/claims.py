"""Which of the paper's claims hold here, read off the steps' results by stated criteria."""

from __future__ import annotations

import numpy as np

from interp.studies.steps import Result

Row = dict[str, str]


def claims(results: dict[str, Result]) -> list[Row]:
    """One row a claim: what the paper says, whether it holds here, and the numbers."""
    found = [_linear(results), _antipodal(results), _previous(results), _few(results)]
    found += [_glu_valid(results), _silent(results), _specific(results), _sufficient(results)]
    return found + ([_base(results)] if "base" in results else [])


def _row(claim: str, holds: bool | None, evidence: str) -> Row:
    said = {True: "holds", False: "does not hold", None: "partly"}[holds]
    return {"claim of the paper": claim, "here": said, "evidence": evidence}


def _linear(results: dict[str, Result]) -> Row:
    probe = results["probes"]["t_paren"]["resid_post"]
    low, control = np.array(probe["low"]), np.array(probe["shuffled_high"])
    good = (low > control) & (np.array(probe["accuracy"]) >= 0.95)
    # From the first layer on behind which no layer fails.
    first = len(good) - int(np.argmin(good[::-1])) if not good.all() else 0
    best = float(np.max(probe["accuracy"]))
    early = first < len(good) / 2
    return _row(
        "The verdict is linear in the residual stream, from early layers on",
        True if early else None if first < len(good) else False,
        f"accuracy at t_paren is at least 0.95 from layer {first} of {len(good)} on (best "
        f"{best:.3f}; shuffled labels at most {control.max():.2f})"
        if first < len(good)
        else f"best accuracy {best:.3f}, shuffled labels up to {control.max():.2f}",
    )


def _antipodal(results: dict[str, Result]) -> Row:
    glu, softmax = results["glu"], results["probes"]["softmax"]
    plain, without = glu["antipodes"], glu["antipodes_without_probes"]
    holds = plain["null"]["p"] < 0.05
    beyond = without["null"]["p"] < 0.05
    return _row(
        "GLU_Valid and GLU_Invalid are antipodal",
        True if holds and beyond else None if holds else False,
        f"mean most negative cosine {plain['mean_cosine']:.3f} (random {-plain['null']['mean']:.3f}"
        f", p = {plain['null']['p']:.3f}); with the probes projected out "
        f"{without['mean_cosine']:.3f} (random {-without['null']['mean']:.3f}, p = "
        f"{without['null']['p']:.3f}). The probe's pair: cosine {np.mean(softmax['pair']):.2f}, "
        f"with shuffled labels {np.mean(softmax['pair_shuffled']):.2f}",
    )


def _set(results: dict[str, Result], name: str) -> Result | None:
    return results["effects_zero"]["sets"].get(name)


def _against(x: Result) -> str:
    return (
        f"{len(x['components'])} components: {x['disabled']['mean']:.2f} "
        f"[{x['disabled']['low']:.2f}, {x['disabled']['high']:.2f}] of valid attempts judged "
        f'"not", {x["draws"]} random sets {np.mean(x["null"]["disabled"]):.2f}, p = {x["p"]:.3f}'
    )


def _previous(results: dict[str, Result]) -> Row:
    claim = "Heads that attend to earlier occurrences of the target (A_Prev) carry verification"
    if (x := _set(results, "A_Prev")) is None:
        return _row(claim, False, "no head attends to them above the threshold")
    return _row(claim, x["disabled"]["mean"] >= 0.9 and x["p"] < 0.05, _against(x))


def _few(results: dict[str, Result]) -> Row:
    found, x = results["curves"], _set(results, "A_Verif")
    assert x is not None
    n, total = len(found["chosen"]), np.size(results["patching"]["noise"]["values"])
    beats = x["disabled"]["mean"] >= 0.9 and x["p"] < 0.05
    return _row(
        "A few heads (three of 576 in the paper) disable verification",
        True if beats and n <= max(3, 0.03 * total) else None if beats else False,
        f"{', '.join(found['chosen'])} of {total} heads, found by the order {found['order']!r}; "
        f"{_against(x)}",
    )


def _glu_valid(results: dict[str, Result]) -> Row:
    rows = [_set(results, name) for name in ("GLU_Valid", "GLU_Valid and GLU_Invalid")]
    beyond = [x["p"] < 0.05 and x["disabled"]["mean"] > 0.05 for x in rows if x]
    return _row(
        "Ablating GLU_Valid disables some verification (16 %), both GLU sets more (45 %)",
        True if all(beyond) else None if any(beyond) else False,
        "; ".join(_against(x) for x in rows if x),
    )


def _silent(results: dict[str, Result]) -> Row:
    found = results["communication"]
    share, null = found["silenced"], found["silenced_null"]
    if share is None or null is None:
        return _row("GLU_Valid falls silent without those heads", False, "no neuron was active")
    return _row(
        "GLU_Valid falls silent without those heads",
        False if null["p"] >= 0.05 else True if share["mean"] >= 0.5 else None,
        f"{share['mean']:.2f} of active neurons silenced, random heads {null['mean']:.2f}, p = "
        f"{null['p']:.3f}",
    )


def _specific(results: dict[str, Result]) -> Row:
    x, side = _set(results, "A_Verif"), results["side_effects"]
    assert x is not None
    mine, none = side["A_Verif"]["arithmetic"]["mean"], side["none"]["arithmetic"]["mean"]
    spared = x["invalid_kept"]["mean"] >= 0.9 and mine >= none - 0.1
    return _row(
        "(not tested in the paper) the same heads leave the rest alone",
        spared,
        f'invalid attempts stay "not": {x["invalid_kept"]["mean"]:.2f}; the result\'s last digit '
        f"right {mine:.2f} with the heads zeroed at every token, {none:.2f} without",
    )


def _sufficient(results: dict[str, Result]) -> Row:
    found = results["sufficiency"]
    rows = [found[side]["A_Verif"] for side in ("valid into invalid", "invalid into valid")]
    return _row(
        "(not tested in the paper) those heads alone carry the verdict from run to run",
        all(row["effect"] >= 0.5 and row["p"] < 0.05 for row in rows),
        f"into invalid runs {rows[0]['effect']:.2f} of the gap (random "
        f"{np.mean(rows[0]['effect_null']):.2f}), into valid runs {rows[1]['effect']:.2f} (random "
        f"{np.mean(rows[1]['effect_null']):.2f})",
    )


def _base(results: dict[str, Result]) -> Row:
    found = results["base"]
    changes = [null for parts in found["weights"].values() for null in parts.values()]
    auc = found["forced"][found["base"]]["auc"]
    spared = all(change["p"] >= 0.05 for change in changes)
    return _row(
        "Training hardly changes those components; the base model has them already",
        True if spared and auc >= 0.9 else None if spared or auc >= 0.9 else False,
        f"relative change of their weights {np.mean([c['selected'] for c in changes]):.3f}, others "
        f"of their layers {np.mean([c['mean'] for c in changes]):.3f} (least p "
        f"{min(c['p'] for c in changes):.3f}); {found['base']} tells valid from invalid at t_paren "
        f"with AUC {auc:.2f}",
    )
