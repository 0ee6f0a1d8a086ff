"""Which of the paper's claims hold here, read off the steps' results by stated criteria."""

from __future__ import annotations

import numpy as np

from interp.studies.steps import Result

Row = dict[str, str]

VERDICTS = ("valid", "invalid")


def claims(results: dict[str, Result]) -> list[Row]:
    """One row a claim: what the paper says, whether it holds here, and the numbers."""
    found = [_linear(results), _antipodal(results), _previous(results), _few(results)]
    found += [
        _subset(results),
        _glu_valid(results),
        _silent(results),
        _specific(results),
        _sufficient(results),
    ]
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
    paper = len(good) * 4 / 36
    return _row(
        "The verdict is linear in the residual stream, from early layers on",
        True if first <= 2 * paper else None if first < len(good) else False,
        f"accuracy at t_paren is at least 0.95 from layer {first} of {len(good)} on (best "
        f"{best:.3f}; in the paper from 4 of 36 on; shuffled labels at most {control.max():.2f})"
        if first < len(good)
        else f"best accuracy {best:.3f}, shuffled labels up to {control.max():.2f}",
    )


def _antipodal(results: dict[str, Result]) -> Row:
    glu, softmax = results["glu"], results["probes"]["softmax"]
    plain, without = glu["antipodes"], glu["antipodes_without_probes"]
    beyond = without["null"]["p"] < 0.05
    far = -plain["mean_cosine"] >= plain["null"]["mean"] + 0.1 and plain["null"]["p"] < 0.05
    return _row(
        "GLU_Valid and GLU_Invalid are antipodal",
        True if far and beyond else None if far or beyond else False,
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
        f"{len(x['components'])} components zeroed: {x['disabled']['mean']:.2f} "
        f"[{x['disabled']['low']:.2f}, {x['disabled']['high']:.2f}] of valid attempts judged "
        f'"not", {x["draws"]} random sets {np.mean(x["null"]["disabled"]):.2f}, p = {x["p"]:.3f}'
    )


def _by_kind(results: dict[str, Result], name: str) -> tuple[bool | None, str]:
    """Whether a set disables verification: under every kind of ablation, or zeroed only."""
    shares = {
        kind: results[f"effects_{kind}"]["sets"][name]["disabled"]["mean"]
        for kind in ("mean", "resample")
    }
    x = _set(results, name)
    assert x is not None
    zeroed = x["disabled"]["mean"] >= 0.9 and x["p"] < 0.05
    said = "; ".join(f"{kind} ablation {share:.2f}" for kind, share in shares.items())
    holds = True if min(shares.values()) >= 0.5 else None
    return holds if zeroed else False, f"{_against(x)}; {said}"


def _previous(results: dict[str, Result]) -> Row:
    claim = "Heads that attend to earlier occurrences of the target (A_Prev) carry verification"
    if _set(results, "A_Prev") is None:
        return _row(claim, False, "no head attends to them above the threshold")
    return _row(claim, *_by_kind(results, "A_Prev"))


def _few(results: dict[str, Result]) -> Row:
    found = results["curves"]
    holds, evidence = _by_kind(results, "A_Verif")
    n, total = len(found["chosen"]), np.size(results["patching"]["noise"]["values"])
    return _row(
        "A few heads (three of 576 in the paper) disable verification",
        holds if n <= max(3, 0.03 * total) else False,
        f"{', '.join(found['chosen'])} of {total} heads, found by the order {found['order']!r}; "
        f"{evidence}",
    )


def _subset(results: dict[str, Result]) -> Row:
    claim = "Those few are heads of A_Prev, found by how much they feed GLU_Valid"
    found = results["curves"]
    if (x := _set(results, "A_Prev")) is None:
        return _row(claim, False, "there is no A_Prev")
    shared = set(found["chosen"]) & set(x["components"])
    size = len(found["chosen"])
    tries = {
        name.removeprefix("head-GLU, "): row["curve"][min(size, len(row["curve"])) - 1]["disabled"][
            "mean"
        ]
        for name, row in found["find"].items()
        if name.startswith("head-GLU")
    }
    best = max(tries.values())
    shares = ", ".join(f"{mode} {share:.2f}" for mode, share in tries.items())
    return _row(
        claim,
        True if len(shared) == size and best >= 0.9 else None if shared or best >= 0.9 else False,
        f"{len(shared)} of {size} are in A_Prev; the first {size} of A_Prev by head-GLU score "
        f"disable, on the find samples: {shares}",
    )


def _glu_valid(results: dict[str, Result]) -> Row:
    rows = [_set(results, name) for name in ("GLU_Valid", "GLU_Valid and GLU_Invalid")]
    beyond = [x["p"] < 0.05 and x["disabled"]["mean"] > 0.05 for x in rows if x]
    return _row(
        "Ablating GLU_Valid disables some verification (16 %), both GLU sets more (45 %)",
        True if all(beyond) else None if any(beyond) else False,
        f"{results['glu']['top_k']} a layer along the {results['glu']['direction']}: "
        + "; ".join(_against(x) for x in rows if x),
    )


def _silent(results: dict[str, Result]) -> Row:
    found = results["communication"]
    share, null = found["silenced"], found["silenced_null"]
    if share is None or null is None:
        return _row("GLU_Valid falls silent without those heads", False, "no neuron was active")
    holds = None if share["mean"] < 0.5 else True
    holds = holds if share["mean"] >= 0.1 and null["p"] < 0.05 else False
    return _row(
        "GLU_Valid falls silent without those heads",
        holds,
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
        f'invalid attempts stay "not": {x["invalid_kept"]["mean"]:.2f} (as they would under '
        "anything that only pushes towards it); the result's last digit "
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


UNCHANGED = 0.01
"""Relative change of weights up to which they count as hardly changed: their cosine with what they
were, sqrt(1 - c^2) or more, is then 1.0000 to four digits, as the paper's figures are."""


def _base(results: dict[str, Result]) -> Row:
    found = results["base"]
    changes = [null for parts in found["weights"].values() for null in parts.values()]
    most = max(change["selected"] for change in changes)
    auc = found["forced"][found["base"]]["auc"]
    hardly, there = most <= UNCHANGED, auc >= 0.9
    least = min(1.0, len(changes) * min(change["p"] for change in changes))
    says = [found["lens"][found["base"]][group]["this"][-1]["mean"] for group in VERDICTS]
    return _row(
        "Training hardly changes those components; the base model has them already",
        True if hardly and there else None if hardly or there else False,
        f"relative change of their weights up to {most:.3f} (at most {UNCHANGED} counts as hardly; "
        f"least cosine {min(change['cosine'] for change in changes):.4f}, 1.0000 in the paper), "
        f"of others in their layers {np.mean([c['mean'] for c in changes]):.3f} (least p "
        f"{least:.3f}, corrected for {len(changes)} tests); on the trained model's texts "
        f"{found['base']} tells valid from invalid at t_paren with AUC {auc:.2f} (0.9 is asked), "
        f'and gives "this" {says[0]:.2f} and {says[1]:.2f}',
    )
