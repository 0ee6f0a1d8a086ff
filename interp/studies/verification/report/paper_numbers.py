"""The paper's numbers beside ours: texts under intervention, and every other table of it.

Numbers are those of the released notebooks and posts (ajyl/self_verification, ajyl/verify_circuit,
ajyl.github.io) on a Qwen2.5-3B trained on CountDown: 36 layers, 576 heads, 396,288 GLU neurons.
"""

from __future__ import annotations

import numpy as np

from interp.studies.formatting import listed
from interp.studies.report.report import Report
from interp.studies.steps import Result
from interp.studies.verification.report.claims import ACCURATE, first_lasting

V1 = {
    "none": (0.0, 0.0),
    "GLU_Valid": (16.3, 1.0),
    "GLU_Valid and GLU_Invalid": (33.0, 10.67),
    "A_Prev": (93.33, 6.0),
    "A_Verif": (92.33, 7.33),
}
"""Success and partial in percent by rule `v1`, n = 300 (none: n = 20)."""

FINAL = {
    "none": (0.0, 0.0, 100.0),
    "GLU_Valid": (16.33, 1.0, 82.67),
    "GLU_Valid and GLU_Invalid": (44.67, 2.33, 53.0),
    "A_Prev": (96.0, 3.67, 0.33),
    "A_Verif": (95.33, 4.67, 0.0),
}
"""Success, partial and fail in percent by rule `final`, of the same texts."""

INTERVALS = {
    "GLU_Valid": (12.6, 20.9),
    "GLU_Valid and GLU_Invalid": (39.1, 50.3),
    "A_Prev": (93.1, 97.7),
    "A_Verif": (92.3, 97.2),
}
"""Wilson's 95 % interval of that success, which was not published."""

CURVES = {
    "attention (published)": (
        "by attention",
        "0, .78, .82, .93, .90, .92, 1.0, then 1.0",
        '1.0, .22, .18, .07, .10, .08, 0 ("this" or "equals")',
    ),
    "head-GLU, diag (published)": (
        "by the published score",
        "0, .08, 1.0",
        '.98, .92, 0 ("this" or "equals")',
    ),
    "head-GLU, diag": (
        "by the published score over other heads (29 by hand; here: the target anywhere before)",
        "–, –, .05, 1.0, 1.0",
        '–, –, .95, 0, 0 ("this" or "equals")',
    ),
}
"""The order here; in words; the share judged "not" with 1, 2, ... heads; and judged valid."""

RANKED = "L17H11 L17H14 L17H10 L5H15 L3H13 L19H13 L5H14 L13H6 L15H8 L4H5"
"""The first ten of the 33 heads of A_Prev by the published score."""

DENSITIES = ".93 (L17H14), .78 (L17H10), .63, .61, .61, .53, .49, .41, .40, .35"

Line = tuple[str, str, str]


def outcomes(report: Report, results: dict[str, Result]) -> None:
    """The texts under intervention by every published rule."""
    found, close = results["interventions"], results["interventions_published"]
    names = list(found["rows"])
    rows = []
    for name, x in found["rows"].items():
        paper = name.removesuffix(" (published)")
        if paper == name and f"{name} (published)" in names:
            paper = ""  # the paper's numbers stand beside its own choice of heads
        rows.append(
            {
                "intervention": name,
                "next word: success": x["outcomes"]["next_token"]["success"]["mean"],
                "v1: success / partial": _percent(x, "v1", ("success", "partial")),
                "paper, v1": _numbers(V1.get(paper)),
                "final: success / partial / fail": _percent(x, "final"),
                "paper, final": _numbers(FINAL.get(paper)),
                "paper, 95 %": "–"
                if paper not in INTERVALS
                else "{:g} to {:g}".format(*INTERVALS[paper]),
                "published tokens, final": _percent(close["rows"][name], "final"),
            }
        )
    report.table(
        rows,
        caption="The same texts by the published rules, in percent, beside the paper's 300 texts "
        '(none: 20). Next word: the first behind " (" alone, which does not hang on the length '
        f"generated. Published tokens: heads zeroed at every token, neurons at the last alone, "
        f"{close['n']} texts. The paper's intervals are Wilson's, from its counts.",
    )


def _percent(
    row: Result, rule: str, kinds: tuple[str, ...] = ("success", "partial", "fail")
) -> str:
    return _numbers(tuple(100 * row["outcomes"][rule][kind]["mean"] for kind in kinds))


def _numbers(values: tuple[float, ...] | None) -> str:
    return "–" if values is None else " / ".join(f"{round(value, 2):g}" for value in values)


def numbers(report: Report, results: dict[str, Result]) -> None:
    """Every other quantity of the paper that exists here, in its order."""
    lines = [*_probe(results), *_lens(results), *_glu(results), *_heads(results)]
    lines += [*_silent(results), *(_base(results) if "base" in results else [])]
    report.section("15. The paper's numbers beside ours")
    columns = ("quantity", "paper, Qwen2.5-3B", "here")
    report.table(
        [dict(zip(columns, line, strict=True)) for line in lines],
        caption="The interventions are beside ours in section 10. The paper's incremental curves "
        "are over 60 samples, its densities over 10, its lens and activations over one.",
    )


def _probe(results: dict[str, Result]) -> list[Line]:
    softmax = results["probes"]["softmax"]
    good = np.array(softmax["accuracy"]) >= ACCURATE
    first = first_lasting(good)
    last = softmax["tokens"][-1]
    return [
        (
            "accuracy of the softmax probe",
            "near 1 from layer 4 of 36 on",
            f"at least 0.95 from layer {first} of {len(good)} on"
            if first < len(good)
            else f"below 0.95 in the last layer, at best {max(softmax['accuracy']):.2f}",
        ),
        (
            "cosine of its two columns",
            "-0.98 to -0.995 (as released)",
            f"{min(softmax['pair']):.2f} to {max(softmax['pair']):.2f}",
        ),
        (
            "cosine of one layer's W_valid with the next one's",
            "0.23 to 0.80 (as released)",
            f"{min(softmax['adjacent']):.2f} to {max(softmax['adjacent']):.2f}",
        ),
        (
            "tokens W_valid writes",
            "Successful, SUCCESS, Exactly, 正是, 成功 (layers 28 to 35)",
            f"{_words(last['valid'])} (last layer)",
        ),
        (
            "tokens W_invalid writes",
            "不对, 不应, 不该, ≠ (layers 28 to 35)",
            f"{_words(last['invalid'])} (last layer)",
        ),
    ]


def _words(tokens: list[str]) -> str:
    return ", ".join(repr(token)[1:-1] for token in tokens[:5])


def _lens(results: dict[str, Result]) -> list[Line]:
    plainly, without = results["lens"]["groups"]["valid"], results["lens_without"]["groups"]
    lines: list[Line] = []
    words = plainly["probability"]
    n = f"{results['lens']['n'] // 2} and {results['lens_without']['n']} attempts"
    if " success" in words and "GLU_Valid" in without:
        means = [row["mean"] for row in words[" success"]]
        layer = int(np.argmax(means))
        after = without["GLU_Valid"]["probability"][" success"][layer]["mean"]
        lines.append(
            (
                'lens, "success" without GLU_Valid',
                ".73 to .38 (layer 26)",
                f"{means[layer]:.3f} to {after:.3f} (layer {layer}, where it is largest; {n})",
            )
        )
    both = without.get("GLU_Valid and GLU_Invalid")
    if both is not None and {"this", "not"} <= set(words):
        before = words["this"][-1]["mean"]
        this, no = (both["probability"][word][-1]["mean"] for word in ("this", "not"))
        lines.append(
            (
                "lens, P(this) without both GLU sets",
                ".97 to .15, P(not) .08 (layer 35, before its MLP)",
                f"{before:.2f} to {this:.2f}, P(not) {no:.2f} (last layer; {n})",
            )
        )
    return lines


def _glu(results: dict[str, Result]) -> list[Line]:
    glu, sets = results["glu"], results["effects_zero"]["sets"]
    cosines = glu["GLU_Valid"]["cosines"]
    lines: list[Line] = [
        (
            "cosines of GLU_Valid vectors with the direction",
            ".27 (L24N3143), .26 (L26N6475), .18 (L29N6676), among those shown",
            f"{listed(cosines[:3])} the largest, {np.mean(cosines):.2f} on average",
        )
    ]
    for name, text in (
        ("GLU_Valid", "900 neurons: 16 % of texts"),
        ("GLU_Valid and GLU_Invalid", "1,800 neurons: 45 % of texts"),
    ):
        share = results["interventions"]["rows"][name]["outcomes"]["final"]["success"]
        lines.append(
            (
                f"verification disabled, {name} zeroed",
                text,
                f"{len(sets[name]['components']):,} neurons: {share['mean']:.0%} "
                f"[{share['low']:.0%}, {share['high']:.0%}] of texts, "
                f"{sets[name]['disabled']['mean']:.0%} of next words",
            )
        )
    return lines


def _heads(results: dict[str, Result]) -> list[Line]:
    asked, scores = results["attention"]["t_ans to asked"], results["head_scores"]
    total = np.size(asked["values"])
    order = [head for head in scores["diag"]["order"] if head in asked["heads"]]
    top = ", ".join(f"{x['attention']['mean']:.2f} ({x['head']})" for x in asked["top"][:10])
    lines: list[Line] = [
        ("A_Prev: heads above 0.1", "33 of 576", f"{len(asked['heads'])} of {total}"),
        ("largest attention to the target", DENSITIES, top),
        ("A_Prev by the published score", RANKED, " ".join(order[:10]) or "–"),
    ]
    found = results["curves"]["find"]
    for name, (words, share, valid) in CURVES.items():
        if name in found:
            ours = listed([point["disabled"]["mean"] for point in found[name]["curve"][:8]])
            text = f"{share}; judged valid {valid}"
            lines.append((f'share "not" with the first 1, 2, ... heads {words}', text, ours))
    return lines


def _silent(results: dict[str, Result]) -> list[Line]:
    found = results["communication"]["at"]["t_ans"]["silenced"]
    if found is None:
        return []
    return [
        (
            "GLU_Valid at t_ans without the chosen heads",
            '"no longer activated" (one sample, no number)',
            f"{found['mean']:.0%} [{found['low']:.0%}, {found['high']:.0%}] of them silenced",
        )
    ]


def _base(results: dict[str, Result]) -> list[Line]:
    found = results["base"]
    asked, weights = found["asked"]["correct"], found["weights"]
    before, after = (asked[state]["share_positive"]["mean"] for state in ("plain", "without"))
    least = min(found["least_cosine"].values())
    changed = [x["selected"] for parts in weights.values() for x in parts.values()]
    return [
        (
            "base model asked about a correct attempt, heads zeroed: P(yes)",
            ".958 to .009 (29 heads)",
            f"{before:.3f} to {after:.3f}",
        ),
        ("the same: P(no)", ".042 to .991", f"{1 - before:.3f} to {1 - after:.3f}"),
        (
            "the same, mass on both words",
            ".129 to .0017",
            f"{asked['plain']['mass']['mean']:.3f} to {asked['without']['mass']['mean']:.3f}",
        ),
        (
            "cosine of trained and base weights",
            "1.0000 (g, u, v of 100 GLU_Valid vectors)",
            f"at least {least:.3f} (any head or neuron)",
        ),
        (
            "change of their norm, or of the weights",
            "1e-5 to 2.4e-4 (norms)",
            f"{min(changed):.3f} to {max(changed):.3f} (relative; mean of chosen heads or neurons)",
        ),
    ]
