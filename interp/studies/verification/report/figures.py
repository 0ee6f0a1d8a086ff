"""The figures of the verification report: each function takes the results and draws one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp.plots import static
from interp.studies.formatting import band, bare, place
from interp.studies.steps import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, Result]


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
    return static.interval_lines(
        series,
        x_title="layer",
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
    return static.interval_lines(
        {
            "cos(W_valid, W_invalid)": bare(softmax["pair"]),
            "forced by the form": bare(softmax["pair_forced"]),
            "shuffled labels": bare(softmax["pair_shuffled"]),
        },
        x_title="layer",
        y_title="cosine of the two columns",
        controls=["shuffled labels"],
    )


def lens(results: Results, group: str) -> Figure:
    """Mean probabilities of words by layer."""
    words = list(results["lens"]["groups"][group]["probability"].items())[:6]
    lines = {f'"{word}"': band(rows) for word, rows in words}
    return static.interval_lines(lines, x_title="layer", y_title="mean probability")


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
    return static.interval_lines(
        {
            f"{site} at {token}": bare(np.array(found[site])[:, column])
            for site in ("attn_out", "mlp_out")
            for column, token in enumerate(("t_ans", "t_paren"))
        },
        x_title="layer",
        y_title="effect (fraction of the gap)",
        baseline=0.0,
        baseline_label="none",
    )


def curve(results: Results) -> Figure:
    """The verdict as the chosen order of heads is zeroed, against random heads."""
    points = results["curves"]["test"]
    return static.curve_with_null(
        [p["size"] for p in points],
        [p["disabled"]["mean"] for p in points],
        low=[p["disabled"]["low"] for p in points],
        high=[p["disabled"]["high"] for p in points],
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
    return static.values_with_null(
        list(sets),
        [x["disabled"]["mean"] for x in sets.values()],
        low=[x["disabled"]["low"] for x in sets.values()],
        high=[x["disabled"]["high"] for x in sets.values()],
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
    return static.interval_lines(
        {
            f'"{word}" at t_{group}, {name}': band(sides[group][word])
            for name, sides in results["base"]["lens"].items()
            for word, group in (("this", "valid"), ("not", "invalid"))
        },
        x_title="layer",
        y_title="mean probability",
    )


def base_activations(results: Results) -> Figure:
    """Relative difference of the two models' activations."""
    found = results["base"]["activations"]
    return static.interval_lines(
        {
            site: (values, found["relative_low"][site], found["relative_high"][site])
            for site, values in found["relative"].items()
        },
        x_title="layer",
        y_title="relative difference",
        baseline=0.0,
        baseline_label="none",
    )
