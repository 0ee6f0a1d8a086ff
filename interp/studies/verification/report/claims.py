"""The paper's claims, each with the criterion it is judged by here.

"Beyond random" is a share as strong below 0.05 among random sets like the one judged. Where fewer
than 19 such sets exist or were drawn, none can be that rare: a set that beats them all then earns
"partly" at most.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.studies.formatting import as_strong
from interp.studies.report.claims import Claim, Judged, Results, Row, Verdict, beyond, judge, least
from interp.studies.steps import Result

PAPER, UNTESTED = "arXiv 2504.14379", "not tested in the paper"

ACCURATE = 0.95
"""The accuracy from which on a probe counts as reading the verdict."""

DISABLED, CARRIED, SPARED = 0.9, 0.5, 0.9
"""Shares of verdicts: of valid ones gone when a set disables them, of pairs turned when it carries
the verdict over, of invalid ones left when it spares them."""

UNCHANGED = 0.01
"""Relative change of weights up to which they count as hardly changed: their cosine with what they
were, sqrt(1 - c^2) or more, is then 1.0000 to four digits, as the paper's figures are."""

PUBLISHED, SCORED = "A_Prev (published)", "A_Verif (published)"
BOTH = "GLU_Valid and GLU_Invalid"
KINDS = ("zero", "mean", "resample")


def claims(results: Results) -> list[Row]:
    """One row a claim that can be tested: the claim, whether it holds here, and the numbers."""
    return judge(CLAIMS, results)


def first_lasting(good: np.ndarray) -> int:
    """The first layer from which on all are good; their number if the last is not."""
    return 0 if good.all() else len(good) - int(np.argmin(good[::-1]))


def linear(results: Results) -> Judged:
    """Do probes read the verdict from early layers on?"""
    probe = results["probes"]["t_paren"]["resid_post"]
    control = np.array(probe["shuffled_high"])
    good = (np.array(probe["low"]) > control) & (np.array(probe["accuracy"]) >= ACCURATE)
    first, layers = first_lasting(good), len(good)
    holds = True if first <= layers * 4 / 36 else None if first < layers else False
    best = float(np.max(probe["accuracy"]))
    return holds, {"first": first, "layers": layers, "best": best, "control": control.max()}


def steers(results: Results) -> Judged:
    """Does the chosen direction turn verdicts, each way?"""
    found = results["steering"]
    rows = [found["rows"][number] for number in found["chosen"].values()]
    pairs = [(word, row, row[word]) for word, row in zip(found["chosen"], rows, strict=True)]
    each = [least(x["mean"] >= CARRIED, beyond(x["share"], len(x["null"]))) for _, _, x in pairs]
    holds = least(*each)
    return holds or (None if any(x is not False for x in each) else False), {
        "words": "; ".join(
            f'{x["mean"]:.2f} [{x["low"]:.2f}, {x["high"]:.2f}] of {x["n"]} judged "{word}" '
            f"({row['direction']}, {row['scale']:.0%}; {len(x['null'])} random directions "
            f"{np.mean(x['null']):.2f}, {as_strong(x['share'])})"
            for word, row, x in pairs
        )
    }


def antipodal(results: Results) -> Judged:
    """Are the two sets more opposite than sets along random directions?"""
    glu, softmax = results["glu"], results["probes"]["softmax"]
    cases = (glu["opposed_neurons"], glu["antipodes_without_probes"])
    rare = least(*(beyond(x["null"]["share"], x["null"]["draws"]) for x in cases))
    opposite = cases[0]["mean_cosine"] <= -0.5
    selected, without = (
        f"{x['mean_cosine']:.3f} (along random directions {-x['null']['mean']:.3f}, "
        f"{as_strong(x['null']['share'])})"
        for x in cases
    )
    return False if rare is False else True if rare and opposite else None, {
        "selected": selected,
        "without": without,
        "pair": np.mean(softmax["pair"]),
        "shuffled": np.mean(softmax["pair_shuffled"]),
    }


def previous(results: Results) -> Judged:
    """Do the heads that attend to the target disable verification?"""
    if _set(results, PUBLISHED) is None:
        return False, {"asked": None}
    holds, asked = _by_kind(results, PUBLISHED)
    every = _by_kind(results, "A_Prev")[1] if _set(results, "A_Prev") is not None else None
    return holds, {"asked": asked, "every": every}


def few(results: Results) -> Judged:
    """Is the smallest set that disables verification small?"""
    found = results["curves"]
    holds, words = _by_kind(results, "A_Verif")
    n, total = len(found["chosen"]), np.size(results["patching"]["noise"]["values"])
    return least(holds, n <= max(3, 0.03 * total)), {
        "heads": found["chosen"],
        "total": total,
        "most": max(3, int(0.03 * total)),
        "order": found["order"],
        "words": words,
    }


def subset(results: Results) -> Judged:
    """Is the smallest set part of A_Prev, and does the published score find one?"""
    chosen, scored = results["curves"]["chosen"], _set(results, SCORED)
    prev = [x for name in (PUBLISHED, "A_Prev") if (x := _set(results, name))]
    if not prev:
        return False, {"of": None}
    shared = set(chosen) & {head for x in prev for head in x["components"]}
    works = scored is not None and least(
        scored["disabled"]["mean"] >= DISABLED, beyond(scored["share"], scored["draws"])
    )
    within = len(shared) == len(chosen)
    both = True if within and works else None
    words = "none" if scored is None else f"{', '.join(scored['components'])}: {_against(scored)}"
    numbers = {"shared": len(shared), "of": len(chosen), "words": words}
    return both if within or works is not False else False, numbers


def glu_valid(results: Results) -> Judged:
    """Does ablating GLU_Valid disable some verification, and both GLU sets more?"""
    sets, written = results["effects_zero"]["sets"], results["interventions"]["rows"]
    one, both = sets["GLU_Valid"], sets[BOTH]
    rare = [
        least(x["disabled"]["mean"] >= 0.05, beyond(x["share"], x["draws"])) for x in (one, both)
    ]
    holds = least(*rare, both["disabled"]["low"] > one["disabled"]["high"])
    words = [
        f"{_against(x)}, {written[name]['outcomes']['final']['success']['mean']:.0%} of texts"
        for name, x in (("GLU_Valid", one), (BOTH, both))
    ]
    return holds or (None if any(x is not False for x in rare) else False), {
        **results["glu"], "words": "; ".join(words)
    }  # fmt: skip


def silent(results: Results) -> Judged:
    """Do active GLU_Valid neurons fall silent without the chosen heads?"""
    judged: dict[str, tuple[float, Verdict]] = {}
    words = []
    for place, x in results["communication"]["at"].items():
        if (share := x["silenced"]) is None or (null := x["silenced_null"]) is None:
            continue
        judged[place] = share["mean"], beyond(null["share"], null["draws"])
        words.append(
            f"at {place} {share['mean']:.2f} [{share['low']:.2f}, {share['high']:.2f}], "
            f"{null['draws']} random sets {null['mean']:.2f}, {as_strong(null['share'])}"
        )
    part = any(share >= 0.1 and rare is not False for share, rare in judged.values())
    share, rare = judged.get("t_ans", (0.0, False))
    return True if share >= 0.5 and rare else None if part else False, {"words": "; ".join(words)}


def specific(results: Results) -> Judged:
    """Do the heads leave invalid attempts, arithmetic and English alone?"""
    mine, none = (results["side_effects"][name] for name in ("A_Verif", "none"))
    found = {kind: x for kind in KINDS if (x := _set(results, "A_Verif", kind))}
    kept = {kind: x["invalid_kept"]["mean"] for kind, x in found.items()}
    change = mine.get("loss_change")
    right, before = mine["arithmetic"]["mean"], none["arithmetic"]["mean"]
    checks = [kept["zero"] >= SPARED, right >= before - 0.05]
    checks += [] if change is None else [change["high"] <= 0.1]
    return False if not all(checks) else True if min(kept.values()) >= SPARED else None, {
        "kept": ", ".join(f"{kind} {share:.2f}" for kind, share in kept.items()),
        "right": right,
        "before": before,
        "english": "the tokeniser cannot write English"
        if change is None
        else f"English {change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}] nats a "
        "token",
    }


def sufficient(results: Results) -> Judged:
    """Do the heads carry the verdict from one run to another?"""
    sides = ("valid into invalid", "invalid into valid")
    rows = {side: results["sufficiency"][side]["A_Verif"] for side in sides}
    every = rows.values()
    rare = [beyond(x["share"], len(x["effect_null"])) for x in every]
    full = [x["effect_low"] >= CARRIED and x["flipped"]["mean"] >= CARRIED for x in every]
    part = any(x["effect"] >= CARRIED or x["flipped"]["mean"] >= CARRIED for x in every)
    holds = True if all(full) and all(x is True for x in rare) else None
    return holds if part and False not in rare else False, {
        "words": "; ".join(
            f"{side} {x['effect']:.2f} [{x['effect_low']:.2f}, {x['effect_high']:.2f}] of the gap "
            f"(random {np.mean(x['effect_null']):.2f}, {as_strong(x['share'])}) and "
            f"{x['flipped']['mean']:.2f} of verdicts flipped"
            for side, x in rows.items()
        )
    }


def base_has_them(results: Results) -> Judged | None:
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
        "says": [f"{lens[group]['this'][-1]['mean']:.2f}" for group in ("valid", "invalid")],
    }


def _set(results: Results, name: str, kind: str = "zero") -> Any:
    return results[f"effects_{kind}"]["sets"].get(name)


def _against(x: Result) -> str:
    return (
        f"{len(x['components'])} components zeroed: {x['disabled']['mean']:.2f} "
        f"[{x['disabled']['low']:.2f}, {x['disabled']['high']:.2f}] of valid attempts judged "
        f'"not", {x["draws"]} random sets {np.mean(x["null"]["disabled"]):.2f}, '
        f"{as_strong(x['share'])}"
    )


def _by_kind(results: Results, name: str) -> tuple[bool | None, str]:
    """Whether a set disables verification: under every kind of ablation, or zeroed only."""
    zero, *others = (_set(results, name, kind) for kind in KINDS)
    zeroed = least(zero["disabled"]["mean"] >= DISABLED, beyond(zero["share"], zero["draws"]))
    rest = [
        least(x["disabled"]["mean"] >= 0.5, beyond(x["share"], x["draws"])) if x else False
        for x in others
    ]
    words = [
        f"{kind} ablation {x['disabled']['mean']:.2f}, {as_strong(x['share'])}"
        for kind, x in zip(KINDS[1:], others, strict=True)
        if x
    ]
    holds = True if zeroed and all(x is True for x in rest) else None
    return False if zeroed is False else holds, f"{_against(zero)}; {'; '.join(words)}"


BY_KIND = (
    'zeroing the set makes at least 90 % of valid attempts "not", and mean and resample ablation '
    "at least 50 %, all beyond random; partly: only zeroing does"
)

CLAIMS = (
    Claim(
        claim="The verdict is linear in the residual stream, from early layers on",
        source=PAPER,
        holds_if="a probe's accuracy at t_paren is at least 0.95, and its interval above shuffled "
        "labels, in every layer from the first ninth on (the paper: from 4 of 36); partly: from a "
        "later one on",
        test=linear,
        evidence="{% if first < layers %}from layer {{ first }} of {{ layers }} on (best "
        "{{ best | fixed(3) }}; shuffled labels at most {{ control | fixed(2) }}){% else %}"
        "best accuracy {{ best | fixed(3) }}, shuffled labels up to {{ control | fixed(2) }}"
        "{% endif %}",
    ),
    Claim(
        claim="Adding the direction that separates valid from invalid changes the verdict (shown "
        "on three texts)",
        source=PAPER,
        holds_if='added, it makes at least half of invalid attempts "this", and subtracted half of '
        'valid ones "not", both beyond random directions; partly: one of the two',
        test=steers,
        evidence="in the last third of the layers, with the direction and the dose chosen on the "
        "find samples: {{ words }}",
    ),
    Claim(
        claim="GLU_Valid and GLU_Invalid are antipodal",
        source=PAPER,
        holds_if="each vector's most negative cosine with the other set is -0.5 or less on "
        "average, and beyond sets selected along random directions of both signs, also with the "
        "probes' directions projected out; partly: beyond them, but weaker",
        test=antipodal,
        evidence="mean most negative cosine {{ selected }}; with the directions projected out "
        "{{ without }}. The probe's pair: cosine {{ pair | fixed(2) }}, with shuffled labels "
        "{{ shuffled | fixed(2) }}",
    ),
    Claim(
        claim="Heads that attend to earlier occurrences of the target (A_Prev) carry verification",
        source=PAPER,
        holds_if=BY_KIND,
        test=previous,
        evidence="{% if asked %}target as asked for: {{ asked }}{% if every %}. With all earlier "
        "occurrences as keys: {{ every }}{% endif %}{% else %}no head attends to the target above "
        "the threshold{% endif %}",
    ),
    Claim(
        claim="A few heads (three of 576 in the paper) disable verification",
        source=PAPER,
        holds_if=f"at most 3 % of all heads (or three), and {BY_KIND}",
        test=few,
        evidence="{{ heads }} of {{ total }} heads (3 %: {{ most }}), the smallest set found, by "
        "the order '{{ order }}'; {{ words }}",
    ),
    Claim(
        claim="Those few are heads of A_Prev, found by how much they feed GLU_Valid",
        source=PAPER,
        holds_if="every head of the smallest set is in A_Prev, and the first three of A_Prev by "
        "the published score disable at least 90 %, beyond random; partly: one of the two",
        test=subset,
        evidence="{% if of %}{{ shared }} of {{ of }} are in A_Prev, by either choice of keys; the "
        "first three by the published score, {{ words }}{% else %}there is no A_Prev{% endif %}",
    ),
    Claim(
        claim="Ablating GLU_Valid disables some verification (16 %), both GLU sets more (45 %)",
        source=PAPER,
        holds_if='each makes at least 5 % of valid attempts "not", beyond random, and both sets '
        "more than one, their intervals apart; partly: one of them is beyond random",
        test=glu_valid,
        evidence="{{ top_k }} a layer along the {{ direction }}: {{ words }}",
    ),
    Claim(
        claim="GLU_Valid falls silent without those heads",
        source=PAPER,
        holds_if="zeroing the heads silences at least half of the active neurons at t_ans (below a "
        "tenth of what they were), beyond random; partly: at least a tenth of them, at t_ans or at "
        "t_paren",
        test=silent,
        evidence="{% if words %}active neurons silenced: {{ words }}{% else %}no neuron was "
        "active, or there is no other head{% endif %}",
    ),
    Claim(
        claim="The same heads leave everything else alone",
        source=UNTESTED,
        holds_if='at least 90 % of invalid attempts stay "not" under zero, mean and resample '
        "ablation; with the heads zeroed at every token arithmetic falls by at most 0.05 and "
        "English costs at most 0.1 nats a token more (upper end); partly: only mean or resample "
        "ablation fails",
        test=specific,
        evidence='invalid attempts that stay "not": {{ kept }} (zeroing pushes to "not" anyway; '
        "resampling brings in the other verdict); last digit right {{ right | fixed(2) }}, "
        "{{ before | fixed(2) }} without; {{ english }}",
    ),
    Claim(
        claim="Those heads alone carry the verdict from run to run",
        source=UNTESTED,
        holds_if="in both directions they carry at least half of the gap (lower end), flip at "
        "least half of the verdicts, and are beyond random; partly: beyond random in both, and "
        "half of the gap or of the verdicts in one",
        test=sufficient,
        evidence="{{ words }}",
    ),
    Claim(
        claim="Training hardly changes those components; the base model has them already",
        source=PAPER,
        holds_if=f"their weights change by at most {UNCHANGED:.0%}, and the base model separates "
        "valid from invalid at t_paren with an AUC of 0.9; partly: one of the two",
        test=base_has_them,
        evidence="relative change of their weights up to {{ most | fixed(3) }} (least cosine "
        "{{ cosine | fixed(4) }}, 1.0000 in the paper), on average {{ mean | fixed(3) }}, of "
        "others in their layers {{ others | fixed(3) }} (least share as strong "
        "{{ rarest | fixed(3) }}, corrected for {{ tests }} tests); on the trained model's texts "
        '{{ base }} separates valid from invalid with AUC {{ auc | fixed(2) }}, and gives "this" '
        "{{ says | join(' and ') }}",
    ),
)
