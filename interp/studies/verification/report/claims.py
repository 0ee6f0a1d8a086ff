"""Which of the paper's claims hold here, read off the steps' results by stated criteria.

"Beyond random" is a share as strong below 0.05 among random sets like the one judged. Where fewer
than 19 such sets exist or were drawn, none can be that rare: a set that beats them all then earns
"partly" at most.
"""

from __future__ import annotations

import numpy as np

from interp.studies.formatting import as_strong
from interp.studies.steps import Result

Row = dict[str, str]
Verdict = bool | None
"""Holds, does not hold, or (None) partly."""

ACCURATE = 0.95
"""The accuracy from which on a probe counts as reading the verdict."""

DISABLED, CARRIED, SPARED = 0.9, 0.5, 0.9
"""Shares of verdicts: of valid ones gone when a set disables them, of pairs turned when it carries
the verdict over, of invalid ones left when it spares them."""

UNCHANGED = 0.01
"""Relative change of weights up to which they count as hardly changed: their cosine with what they
were, sqrt(1 - c^2) or more, is then 1.0000 to four digits, as the paper's figures are."""

VERDICTS = ("valid", "invalid")


def claims(results: dict[str, Result]) -> list[Row]:
    """One row a claim: what the paper says, whether it holds here, by what test, the numbers."""
    found = [
        _linear(results),
        _steers(results),
        _antipodal(results),
        _previous(results),
        _few(results),
        _subset(results),
        _glu_valid(results),
        _silent(results),
        _specific(results),
        _sufficient(results),
    ]
    return found + ([_base(results)] if "base" in results else [])


def _row(claim: str, holds: Verdict, criterion: str, evidence: str) -> Row:
    said = {True: "holds", False: "does not hold", None: "partly"}[holds]
    return {"claim of the paper": claim, "here": said, "holds if": criterion, "evidence": evidence}


def beyond(share: float, draws: int) -> Verdict:
    """Whether a set is beyond random ones; None if it beats all, of too few to say."""
    if share < 0.05:
        return True
    return None if share <= 1 / (1 + draws) and draws < 19 else False


def least(*verdicts: Verdict) -> Verdict:
    """The weakest of several."""
    if any(verdict is False for verdict in verdicts):
        return False
    return None if None in verdicts else True


def first_lasting(good: np.ndarray) -> int:
    """The first layer from which on all are good; their number if the last is not."""
    return 0 if good.all() else len(good) - int(np.argmin(good[::-1]))


def _linear(results: dict[str, Result]) -> Row:
    probe = results["probes"]["t_paren"]["resid_post"]
    low, control = np.array(probe["low"]), np.array(probe["shuffled_high"])
    good = (low > control) & (np.array(probe["accuracy"]) >= ACCURATE)
    first = first_lasting(good)
    best = float(np.max(probe["accuracy"]))
    return _row(
        "The verdict is linear in the residual stream, from early layers on",
        True if first <= len(good) * 4 / 36 else None if first < len(good) else False,
        "a probe's accuracy at t_paren is at least 0.95, and its interval above shuffled labels, "
        "in every layer from the first ninth on (the paper: from 4 of 36); partly: from a later "
        "one on",
        f"from layer {first} of {len(good)} on (best {best:.3f}; shuffled labels at most "
        f"{control.max():.2f})"
        if first < len(good)
        else f"best accuracy {best:.3f}, shuffled labels up to {control.max():.2f}",
    )


def _steers(results: dict[str, Result]) -> Row:
    found = results["steering"]
    rows = {word: found["rows"][number] for word, number in found["chosen"].items()}
    each = [
        least(x["mean"] >= CARRIED, beyond(x["share"], len(x["null"])))
        for x in (row[word] for word, row in rows.items())
    ]
    said = "; ".join(
        f'{x["mean"]:.2f} [{x["low"]:.2f}, {x["high"]:.2f}] of {x["n"]} judged "{word}" '
        f"({row['direction']}, {row['scale']:.0%}; {len(x['null'])} random directions "
        f"{np.mean(x['null']):.2f}, {as_strong(x['share'])})"
        for word, row in rows.items()
        for x in (row[word],)
    )
    holds = least(*each)
    return _row(
        "Adding the direction that tells valid from invalid changes the verdict (three texts)",
        holds if holds else None if any(x is not False for x in each) else False,
        'added it makes at least half of invalid attempts "this", taken away half of valid ones '
        '"not", both beyond random directions; partly: one of the two',
        "in the last third of the layers, direction and share of the stream's length as chosen on "
        f"the find samples: {said}",
    )


def _antipodal(results: dict[str, Result]) -> Row:
    glu, softmax = results["glu"], results["probes"]["softmax"]
    cases = (glu["opposed_neurons"], glu["antipodes_without_probes"])
    rare = least(*(beyond(x["null"]["share"], x["null"]["draws"]) for x in cases))
    opposite = cases[0]["mean_cosine"] <= -0.5
    said = [
        f"{x['mean_cosine']:.3f} (along random directions {-x['null']['mean']:.3f}, "
        f"{as_strong(x['null']['share'])})"
        for x in cases
    ]
    return _row(
        "GLU_Valid and GLU_Invalid are antipodal",
        False if rare is False else True if rare and opposite else None,
        "each vector's most negative cosine with the other set is -0.5 or less on average, and "
        "beyond sets selected along random directions of both signs, with the probes' directions "
        "projected out too; partly: beyond them, but weaker",
        f"mean most negative cosine {said[0]}; with the directions projected out {said[1]}. The "
        f"probe's pair: cosine {np.mean(softmax['pair']):.2f}, with shuffled labels "
        f"{np.mean(softmax['pair_shuffled']):.2f}",
    )


def _set(results: dict[str, Result], name: str, kind: str = "zero") -> Result | None:
    return results[f"effects_{kind}"]["sets"].get(name)


def _against(x: Result) -> str:
    return (
        f"{len(x['components'])} components zeroed: {x['disabled']['mean']:.2f} "
        f"[{x['disabled']['low']:.2f}, {x['disabled']['high']:.2f}] of valid attempts judged "
        f'"not", {x["draws"]} random sets {np.mean(x["null"]["disabled"]):.2f}, '
        f"{as_strong(x['share'])}"
    )


BY_KIND = (
    'zeroing the set makes at least 90 % of valid attempts "not", mean and resample ablation at '
    "least 50 %, all beyond random; partly: zeroing alone does"
)


def _by_kind(results: dict[str, Result], name: str) -> tuple[Verdict, str]:
    """Whether a set disables verification: under every kind of ablation, or zeroed only."""
    zero, *others = (_set(results, name, kind) for kind in ("zero", "mean", "resample"))
    assert zero is not None
    enough = zero["disabled"]["mean"] >= DISABLED
    zeroed = least(enough, beyond(zero["share"], zero["draws"]))
    rest = [
        least(x["disabled"]["mean"] >= 0.5, beyond(x["share"], x["draws"])) if x else False
        for x in others
    ]
    said = "; ".join(
        f"{kind} ablation {x['disabled']['mean']:.2f}, {as_strong(x['share'])}"
        for kind, x in zip(("mean", "resample"), others, strict=True)
        if x
    )
    holds = True if zeroed and all(x is True for x in rest) else None
    return False if zeroed is False else holds, f"{_against(zero)}; {said}"


def _previous(results: dict[str, Result]) -> Row:
    claim = "Heads that attend to earlier occurrences of the target (A_Prev) carry verification"
    name, other = "A_Prev (published)", "A_Prev"
    if _set(results, name) is None:
        return _row(claim, False, BY_KIND, "no head attends to the target above the threshold")
    holds, evidence = _by_kind(results, name)
    if _set(results, other) is not None:
        evidence += f". With all earlier occurrences as keys: {_by_kind(results, other)[1]}"
    return _row(claim, holds, BY_KIND, f"target as asked for: {evidence}")


def _few(results: dict[str, Result]) -> Row:
    found = results["curves"]
    holds, evidence = _by_kind(results, "A_Verif")
    n, total = len(found["chosen"]), np.size(results["patching"]["noise"]["values"])
    return _row(
        "A few heads (three of 576 in the paper) disable verification",
        least(holds, n <= max(3, 0.03 * total)),
        f"at most {max(3, int(0.03 * total))} heads (3 %), and {BY_KIND}",
        f"{', '.join(found['chosen'])} of {total} heads, the smallest set found, by the order "
        f"{found['order']!r}; {evidence}",
    )


def _subset(results: dict[str, Result]) -> Row:
    claim = "Those few are heads of A_Prev, found by how much they feed GLU_Valid"
    criterion = (
        "every head of the smallest set is in A_Prev, and the first three of A_Prev by the "
        "published score disable at least 90 %, beyond random; partly: one of the two"
    )
    chosen = results["curves"]["chosen"]
    previous = [x for name in ("A_Prev (published)", "A_Prev") if (x := _set(results, name))]
    if not previous:
        return _row(claim, False, criterion, "there is no A_Prev")
    inside = {head for x in previous for head in x["components"]}
    shared, scored = set(chosen) & inside, _set(results, "A_Verif (published)")
    works = scored is not None and least(
        scored["disabled"]["mean"] >= DISABLED, beyond(scored["share"], scored["draws"])
    )
    within = len(shared) == len(chosen)
    said = "none" if scored is None else f"{', '.join(scored['components'])}: {_against(scored)}"
    both = True if within and works else None
    return _row(
        claim,
        both if within or works is not False else False,
        criterion,
        f"{len(shared)} of {len(chosen)} are in A_Prev, by either choice of keys; the first three "
        "by the published score, "
        f"{said}",
    )


def _glu_valid(results: dict[str, Result]) -> Row:
    one, both = (_set(results, name) for name in ("GLU_Valid", "GLU_Valid and GLU_Invalid"))
    assert one is not None
    assert both is not None
    rare = [
        least(x["disabled"]["mean"] >= 0.05, beyond(x["share"], x["draws"])) for x in (one, both)
    ]
    more = both["disabled"]["low"] > one["disabled"]["high"]
    written = results["interventions"]["rows"]
    said = "; ".join(
        f"{_against(x)}, {written[name]['outcomes']['final']['success']['mean']:.0%} of texts"
        for name, x in (("GLU_Valid", one), ("GLU_Valid and GLU_Invalid", both))
    )
    holds = least(*rare, more)
    return _row(
        "Ablating GLU_Valid disables some verification (16 %), both GLU sets more (45 %)",
        holds if holds else None if any(x is not False for x in rare) else False,
        'each makes at least 5 % of valid attempts "not", beyond random, and both sets more than '
        "one, their intervals apart; partly: one of them is beyond random",
        f"{results['glu']['top_k']} a layer along the {results['glu']['direction']}: {said}",
    )


def _silent(results: dict[str, Result]) -> Row:
    claim = "GLU_Valid falls silent without those heads"
    criterion = (
        "zeroing the heads silences at least half of the active neurons at t_ans (below a tenth of "
        "what they were), beyond random; partly: at least a tenth of them, there or at t_paren"
    )
    places = results["communication"]["at"]
    judged: dict[str, tuple[float, Verdict]] = {}
    said = []
    for place, x in places.items():
        if (share := x["silenced"]) is None or (null := x["silenced_null"]) is None:
            continue
        judged[place] = share["mean"], beyond(null["share"], null["draws"])
        said.append(
            f"at {place} {share['mean']:.2f} [{share['low']:.2f}, {share['high']:.2f}], "
            f"{null['draws']} random sets {null['mean']:.2f}, {as_strong(null['share'])}"
        )
    if not judged:
        return _row(claim, False, criterion, "no neuron was active, or there is no other head")
    some = any(share >= 0.1 and rare is not False for share, rare in judged.values())
    share, rare = judged.get("t_ans", (0.0, False))
    holds = True if share >= 0.5 and rare else None if some else False
    return _row(claim, holds, criterion, f"active neurons silenced: {'; '.join(said)}")


def _specific(results: dict[str, Result]) -> Row:
    side = results["side_effects"]
    kept = {
        kind: x["invalid_kept"]["mean"]
        for kind in ("zero", "mean", "resample")
        if (x := _set(results, "A_Verif", kind))
    }
    mine, none = side["A_Verif"]["arithmetic"]["mean"], side["none"]["arithmetic"]["mean"]
    change = side["A_Verif"].get("loss_change")
    checks = [kept["zero"] >= SPARED, mine >= none - 0.05]
    checks += [] if change is None else [change["high"] <= 0.1]
    under_all = min(kept.values()) >= SPARED
    said = ", ".join(f"{kind} {share:.2f}" for kind, share in kept.items())
    english = (
        "the tokeniser cannot write English"
        if change is None
        else f"English {change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}] nats a "
        "token"
    )
    return _row(
        "(not tested in the paper) the same heads leave the rest alone",
        False if not all(checks) else True if under_all else None,
        'at least 90 % of invalid attempts stay "not" under zero, mean and resample ablation; with '
        "the heads zeroed at every token arithmetic falls by 0.05 at most and English costs 0.1 "
        "nats a token more at most (upper end); partly: only mean or resample ablation fails",
        f'invalid attempts that stay "not": {said} (zeroing pushes to "not" anyway; resampling '
        f"brings the other verdict in); last digit right {mine:.2f}, {none:.2f} without; {english}",
    )


def _sufficient(results: dict[str, Result]) -> Row:
    found = results["sufficiency"]
    rows = {side: found[side]["A_Verif"] for side in ("valid into invalid", "invalid into valid")}
    every = rows.values()
    rare = [beyond(x["share"], len(x["effect_null"])) for x in every]
    full = [x["effect_low"] >= CARRIED and x["flipped"]["mean"] >= CARRIED for x in every]
    said = "; ".join(
        f"{side} {x['effect']:.2f} [{x['effect_low']:.2f}, {x['effect_high']:.2f}] of the gap "
        f"(random {np.mean(x['effect_null']):.2f}, {as_strong(x['share'])}) and "
        f"{x['flipped']['mean']:.2f} of verdicts flipped"
        for side, x in rows.items()
    )
    some = any(x["effect"] >= CARRIED or x["flipped"]["mean"] >= CARRIED for x in every)
    holds = True if all(full) and all(x is True for x in rare) else None
    return _row(
        "(not tested in the paper) those heads alone carry the verdict from run to run",
        holds if some and False not in rare else False,
        "in both directions they carry at least half of the gap over (lower end), flip at least "
        "half of the verdicts, and are beyond random; partly: beyond random in both, and half of "
        "the gap or of the verdicts in one",
        said,
    )


def _base(results: dict[str, Result]) -> Row:
    found = results["base"]
    changes = [null for parts in found["weights"].values() for null in parts.values()]
    most = max(change["most"] for change in changes)
    auc = found["forced"][found["base"]]["auc"]
    rarest = min(1.0, len(changes) * min(change["share"] for change in changes))
    hardly, there = most <= UNCHANGED, auc >= 0.9
    says = [found["lens"][found["base"]][group]["this"][-1]["mean"] for group in VERDICTS]
    return _row(
        "Training hardly changes those components; the base model has them already",
        True if hardly and there else None if hardly or there else False,
        f"their weights change by {UNCHANGED:.0%} at most, and the base model tells valid from "
        "invalid at t_paren with an AUC of 0.9; partly: one of the two",
        f"relative change of their weights up to {most:.3f} (least cosine "
        f"{min(change['cosine'] for change in changes):.4f}, 1.0000 in the paper), on average "
        f"{np.mean([c['selected'] for c in changes]):.3f}, of others in their layers "
        f"{np.mean([c['mean'] for c in changes]):.3f} (least share as strong {rarest:.3f}, "
        f"corrected for {len(changes)} tests); on the trained model's texts {found['base']} tells "
        f'valid from invalid with AUC {auc:.2f}, and gives "this" {says[0]:.2f} and {says[1]:.2f}',
    )
