"""The verification study's report: report.md.j2 filled with its results, numbers and figures.

The paper's numbers are those of the released notebooks and posts (ajyl/self_verification,
ajyl/verify_circuit, ajyl.github.io) on a Qwen2.5-3B trained on CountDown: 36 layers, 576 heads,
396,288 GLU neurons.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from interp.core.nulls import max_t_shares
from interp.overview.evidence_card import FAMILIES
from interp.plots import static
from interp.studies.formatting import band, bare, place
from interp.studies.report.report import Report, study_report
from interp.studies.steps import Result, Results
from interp.studies.study import Study
from interp.studies.verification.report.claims import ACCURATE, claims, first_lasting, readable_from
from interp.studies.verification.report.evidence import card
from interp.studies.verification.settings import VerificationSettings
from interp.studies.verification.steps.finding_heads import RANDOM_SETS
from interp.studies.verification.steps.interchange import OTHER
from interp.studies.verification.steps.steering import ANSWER, SHUFFLED

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

TEMPLATE = Path(__file__).with_name("report.md.j2")

LOOKS = 0.05
"""The least attention that the picture of the chain names a token for."""

by_layer = partial(static.interval_lines, x_title="layer")

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


def published_outcomes(results: Results) -> list[tuple[str | float, ...]]:
    """The texts under intervention by every published rule, in percent, with the paper's."""
    found, close = (results[f"interventions{end}"]["rows"] for end in ("", "_published"))
    rows = []
    for name, x in found.items():
        paper = name.removesuffix(" (published)")
        if paper == name and f"{name} (published)" in found:
            paper = ""  # the paper's numbers are shown with its own choice of heads
        interval = INTERVALS.get(paper)
        rows.append(
            (
                name,
                x["outcomes"]["next_token"]["success"]["mean"],
                _percent(x, "v1", ("success", "partial")),
                _slashed(V1.get(paper)),
                _percent(x, "final"),
                _slashed(FINAL.get(paper)),
                "–" if interval is None else "{:g} to {:g}".format(*interval),
                _percent(close[name], "final"),
            )
        )
    return rows


def _percent(
    row: Result, rule: str, kinds: tuple[str, ...] = ("success", "partial", "fail")
) -> str:
    return _slashed(tuple(100 * row["outcomes"][rule][kind]["mean"] for kind in kinds))


def _slashed(values: tuple[float, ...] | None) -> str:
    return "–" if values is None else " / ".join(f"{round(value, 2):g}" for value in values)


def corrected(sets: Result) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of draws as low in AUC, and as high in disabled, corrected for a table's rows.

    Every draw counts by how far it is beyond the set on the draw's own samples.
    """

    def shares(measure: str, sign: int) -> dict[str, float]:
        beyond = [
            (sign * (np.array(x["null"][measure]) - x["own"][measure])).tolist()
            for x in sets.values()
        ]
        return dict(zip(sets, max_t_shares([0.0] * len(sets), beyond), strict=True))

    return shares("auc", -1), shares("disabled", 1)


def corrected_exchange(sets: Result, side: str) -> dict[str, float]:
    """The shares of draws as strong of an exchange, corrected for the rows of a class."""
    rows = [x["exchanges"][OTHER][side] for x in sets.values()]
    shares = max_t_shares([x["own"] for x in rows], [x["null"] for x in rows])
    return dict(zip(sets, shares, strict=True))


def most_turned(results: Results) -> list[Result]:
    """For each direction: its cosine with the unembedding's, and the most turned at each dose.

    The largest over the layers before the lens reads the words (at least the first).
    """
    found, early = results["steering_by_layer"], max(1, readable_from(results))
    return [
        {
            "direction": name,
            "cosine": max(x["cosine"][:early]),
            "turned": [
                {word: max(row[dose] for row in x[word][:early]) for word in ("this", "not")}
                for dose in range(len(found["doses"]))
            ],
        }
        for name, x in found["directions"].items()
    ]


def steered_lines(
    results: Results, word: str
) -> tuple[dict[str, tuple[ArrayLike, ArrayLike, ArrayLike]], list[str]]:
    """The verdicts turned in each layer by each direction, and the names of those in grey.

    Of the shuffled verdicts and of the other facts, the strongest in each layer.
    """
    found = results["steering_by_layer"]
    dose = found["dose"]
    turned = {name: np.array(x[word])[:, dose] for name, x in found["directions"].items()}
    lines = {name: turned.pop(name) for name in (*found["learnt"], ANSWER)}
    shuffled = [turned.pop(name) for name in list(turned) if name.startswith("shuffled")]
    groups = {"shuffled verdicts (most)": shuffled, "other facts (most)": list(turned.values())}
    controls = {name: np.max(rows, 0) for name, rows in groups.items() if rows}
    return {name: bare(values) for name, values in (lines | controls).items()}, list(controls)


def steered(results: Results, word: str) -> Figure:
    """Verdicts turned by a direction in one layer alone, beside its rivals."""
    lines, controls = steered_lines(results, word)
    return by_layer(lines, y_title=f'judged "{word}"', controls=controls)


def chain(results: Results) -> Figure:
    """The stages of the chain from left to right, and the MLPs that write the verdict."""
    found = results["chain"]

    def where(reads: Result) -> str:
        key = f"{reads['key']} {reads['mean']:z.2f}" if reads["mean"] >= LOOKS else "no named token"
        return f"{reads['query']} to\n{key}"

    def boxes(stage: Result) -> list[tuple[str, str]]:
        return [
            (f"{row['label']} {row['value']:+z.2f}", where(row["reads"])) for row in stage["heads"]
        ]

    stages = [boxes(stage) for stage in reversed(found["stages"])]
    writers = [(label, "writes the verdict") for label in found["writers"]]
    return static.stages([*stages, writers])


def probes(results: Results, token: str) -> Figure:
    """Accuracy of probes by layer, and of probes of shuffled labels."""
    found = results["probes"][token]
    series = {
        site: (x["accuracy"], x["low"], x["high"])
        for site in ("resid_post", "attn_out", "mlp_out")
        if (x := found[site])
    }
    low, high = (found["resid_post"][f"shuffled_{end}"] for end in ("low", "high"))
    series["shuffled labels"] = (np.mean([low, high], axis=0), low, high)
    return by_layer(
        series,
        y_title=f"held-out accuracy at {token}",
        baseline=0.5,
        baseline_label="chance",
        controls=["shuffled labels"],
    )


def probes_heads(results: Results) -> Figure:
    """Accuracy of a probe on every head."""
    values = np.array(results["probes"]["t_paren"]["z"]["accuracy"])
    title = "accuracy of a probe on each head's z"
    return static.head_map(values, title=title, diverging=False)


def probes_pair(results: Results) -> Figure:
    """Cosine of the softmax probe's two columns."""
    softmax = results["probes"]["softmax"]
    return by_layer(
        {
            "cos(W_valid, W_invalid)": bare(softmax["pair"]),
            "forced by the form": bare(softmax["pair_forced"]),
            "shuffled labels": bare(softmax["pair_shuffled"]),
        },
        y_title="cosine of the two columns",
        controls=["shuffled labels"],
    )


def lens(results: Results, group: str) -> Figure:
    """Mean probabilities of words by layer."""
    words = list(results["lens"]["groups"][group]["probability"].items())[:6]
    lines = {f'"{word}"': band(rows) for word, rows in words}
    return by_layer(lines, y_title="mean probability")


def attention(results: Results) -> Figure:
    """Attention of every head to the target; heads above the threshold are framed."""
    found = results["attention"]["t_ans to earlier"]
    return static.head_map(
        found["values"],
        title="attention from t_ans to earlier occurrences of the target",
        marked=[place(head) for head in found["heads"]],
        diverging=False,
    )


def patching(results: Results) -> Figure:
    """The effect of every head."""
    found = results["patching"]["noise"]
    return static.head_map(
        found["values"],
        title="noise: effect of breaking each head at t_ans and t_paren",
        marked=[place(x["label"]) for x in found["top"][:6]],
    )


def patching_layers(results: Results) -> Figure:
    """The effect of whole attention and MLP outputs, layer by layer."""
    found = results["patching"]
    return by_layer(
        {
            f"{site} at {token}": bare(np.array(found[site])[:, column])
            for site in ("attn_out", "mlp_out")
            for column, token in enumerate(("t_ans", "t_paren"))
        },
        y_title="effect (fraction of the gap)",
        baseline=0.0,
        baseline_label="none",
    )


def curve(results: Results) -> Figure:
    """The verdict as the chosen order of heads is zeroed, against random heads."""
    points = results["curves"]["test"]
    values, low, high = band([p["disabled"] for p in points])
    return static.curve_with_null(
        [p["size"] for p in points],
        values,
        low=low,
        high=high,
        null=[p.get("null") for p in points],
        x_title="heads zeroed together",
        y_title='valid attempts judged "not"',
        labels=[f"{p['size']}: +{p['added']}" for p in points],
        null_label="random heads, same layers",
    )


def silent(results: Results) -> Figure:
    """The most active GLU_Valid neurons before and after the chosen heads are zeroed."""
    found = results["communication"]
    at = found["at"]["t_ans"]
    order = np.argsort(-np.abs(at["before"]))[:14]
    return static.paired_rows(
        [found["neurons"][i] for i in order],
        {side: bare([at[side][i] for i in order]) for side in ("before", "after")},
        x_title="mean activation at t_ans",
    )


def effects(results: Results) -> Figure:
    """The verdict with each set zeroed, and random sets."""
    sets = results["effects_zero"]["sets"]
    values, low, high = band([x["disabled"] for x in sets.values()])
    return static.values_with_null(
        list(sets),
        values,
        low=low,
        high=high,
        value_title='valid attempts judged "not"',
        null=[x["null"]["disabled"] for x in sets.values()],
    )


def outcomes(results: Results) -> Figure:
    """What becomes of the texts with each set zeroed."""
    return static.stacked_shares(
        {
            name: {key: value["mean"] for key, value in x["outcomes"]["interp-1"].items()}
            for name, x in results["interventions"]["rows"].items()
        }
    )


def base_lens(results: Results) -> Figure:
    """The right verdict by layer, in the trained model and in the base model."""
    return by_layer(
        {
            f'"{word}" at t_{group}, {name}': band(sides[group][word])
            for name, sides in results["base"]["lens"].items()
            for word, group in (("this", "valid"), ("not", "invalid"))
        },
        y_title="mean probability",
    )


def base_activations(results: Results) -> Figure:
    """Relative difference of the two models' activations."""
    found = results["base"]["activations"]
    return by_layer(
        {
            site: (values, found["relative_low"][site], found["relative_high"][site])
            for site, values in found["relative"].items()
        },
        y_title="relative difference",
        baseline=0.0,
        baseline_label="none",
    )


def write_up(study: Study[VerificationSettings]) -> Report:
    """The report of a finished study."""
    results = study.results
    sets = (x for x in results["side_effects"].values() if isinstance(x, dict))
    accurate = np.array(results["probes"]["softmax"]["accuracy"]) >= ACCURATE
    return study_report(
        TEMPLATE,
        study,
        sys.modules[__name__],
        card=card(study),
        FAMILIES=FAMILIES,
        claims=claims(results),
        random_sets=RANDOM_SETS,
        shuffled=SHUFFLED,
        draws=max(len(x.get("arithmetic_null", ())) for x in sets),
        accurate_from=first_lasting(accurate),
    )
