"""Probes and lens: from which layer the verdict can be read, and in which words."""

from __future__ import annotations

import streamlit as st

from interp.plots.lines import head_map, interval_lines
from interp.plots.style import null_band
from interp.studies.formatting import band, bare, place
from interp.studies.steps import Result
from interp.ui.shared import widgets
from interp.ui.studies import open_study
from interp.ui.studies.pages import VERIFICATION_PAGES
from interp.ui.verification.lens import GROUPS, lens

SITES = {
    "resid_post": "residual stream after the layer",
    "attn_out": "what attention adds",
    "mlp_out": "what the MLP adds",
}
RANDOM = "random directions"
TOKENS = {"t_ans": "the result's last digit", "t_paren": 'the " (" behind it'}


def show() -> None:
    """The page."""
    study = open_study.opened(VERIFICATION_PAGES, "Probes and lens")
    if study is None:
        return
    if not open_study.ready(study, "probes"):
        return
    found = study.results["probes"]
    one = found["t_paren"]["resid_post"]
    split = f"{one['n_train']} fitted, {one['n_test']} held out"
    open_study.provenance(study, "probes", "steering", "lens", **{"split by problem": split})
    rows = _accuracy(found)
    left, right = st.columns([2, 3], gap="large")
    with left:
        _heads(found["t_paren"]["z"])
    with right:
        _geometry(found["softmax"])
    st.header("Does the verdict follow the direction?", anchor=False)
    if open_study.ready(study, "steering"):
        _steered(study.results["steering"])
    st.header("Logit lens", anchor=False)
    if open_study.ready(study, "lens"):
        lens(study.results["lens"])
    open_study.take_away(
        study,
        "probes",
        rows,
        {s: study.results[s] for s in ("probes", "steering", "lens") if s in study.results},
    )
    widgets.caveat(
        "A probe that reads the verdict does not show that the model uses it there: see the "
        "directions added to the stream, and Interventions. The logit lens applies the final "
        "unembedding early: information may be present in a form that only later layers "
        "convert to tokens."
    )


def _accuracy(found: Result) -> list[dict[str, object]]:
    """Held-out accuracy by layer at both tokens; the rows of all sites."""
    site = open_study.pick(
        st.segmented_control,
        "Where the probe reads",
        "probed",
        list(SITES),
        format_func=lambda site: f"{site}: {SITES[site]}",
        required=True,
    )
    for column, (token, words) in zip(st.columns(2), TOKENS.items(), strict=True):
        x = found[token][site]
        column.markdown(f"**At {widgets.plain(token)}**, {words}")
        with column:
            widgets.figure(
                interval_lines(
                    {
                        "accuracy": (x["accuracy"], x["low"], x["high"]),
                        "shuffled labels": (None, x["shuffled_low"], x["shuffled_high"]),
                    },
                    x_title="layer",
                    y_title="held-out accuracy",
                    controls=["shuffled labels"],
                    limits=(0, 1.04),
                ),
                key=f"accuracy-{token}",
                alt=f"Accuracy of probes at {token} by layer",
            )
    st.caption(
        "Logistic probes; no problem is on both sides of the split. Grey: the range of probes "
        "fitted to shuffled labels, the chance level at this n."
    )
    return [
        {"token": token, "site": s, "layer": layer}
        | {key: found[token][s][key][layer] for key in ("accuracy", "low", "high", "auc")}
        | {f"shuffled_{end}": found[token][s][f"shuffled_{end}"][layer] for end in ("low", "high")}
        for token in TOKENS
        for s in SITES
        for layer in range(len(found[token][s]["accuracy"]))
    ]


@st.fragment
def _heads(found: Result) -> None:
    """A probe on every head's output."""
    st.subheader("One head at a time", anchor=False)
    heads = [
        f"L{layer}H{head}"
        for layer, row in enumerate(found["accuracy"])
        for head in range(len(row))
    ]
    head = open_study.view().picked
    at = place(head) if head in heads and head is not None else None
    widgets.clickable(
        head_map(
            found["accuracy"],
            title="accuracy at t_paren",
            diverging=False,
            limits=(0.5, 1.0),
            selected=at,
        ),
        key="probe-heads",
        alt="Accuracy of a probe on each head's z",
        filename="probe-heads",
        picked=lambda data: open_study.change(picked=f"L{data[0]}H{data[1]}"),
    )
    open_study.pick(st.selectbox, "Head", "picked", [widgets.NONE, *heads])
    if at is not None:
        layer, index = at
        x = {key: found[key][layer][index] for key in found if key not in ("n_train", "n_test")}
        st.markdown(
            f"**{head}** accuracy {widgets.value({**x, 'mean': x['accuracy']})}, AUC "
            f"{widgets.number(x['auc'])}; shuffled labels "
            f"{widgets.span(x['shuffled_low'], x['shuffled_high'])}"
        )


def _geometry(found: Result) -> None:
    """How much of the antipodal pair the probe's form forces."""
    st.subheader("Are W_valid and W_invalid antipodal?", anchor=False)
    st.caption(
        "The authors' probe has two columns under one softmax. They always receive opposite "
        "gradients, so they become antipodal for any labels. With large activations the loss "
        "vanishes before they leave their random initialisation."
    )
    pair = {
        "cos(W_valid, W_invalid)": bare(found["pair"]),
        "forced by the form": bare(found["pair_forced"]),
        "shuffled labels": bare(found["pair_shuffled"]),
    }
    adjacent = {
        "cos(layer, next layer)": bare(found["adjacent"]),
        "shuffled labels": bare(found["adjacent_shuffled"]),
    }
    for name, series, y in (
        ("pair", pair, "cosine of the two columns"),
        ("adjacent", adjacent, "cosine of neighbours"),
    ):
        drawn = interval_lines(
            series,
            x_title="layer",
            y_title=y,
            controls=["shuffled labels"],
            dashed=["forced by the form"],
        )
        drawn.update_layout(height=270)
        widgets.figure(drawn, key=f"probe-{name}", alt=y)
    st.caption(
        f"Two random directions have a cosine within ±{widgets.number(found['random_limit'])}."
    )
    with st.expander("The probe's direction read as tokens"):
        widgets.table(
            [
                {"layer": layer, **{side: "  ".join(map(repr, row[side])) for side in GROUPS}}
                for layer, row in enumerate(found["tokens"])
            ],
            key="probe-tokens",
        )


def _steered(found: Result) -> None:
    """Verdicts turned by each direction at each dose, and by random directions."""
    chosen = {word: found["rows"][row]["direction"] for word, row in found["chosen"].items()}
    rows = {
        name: [row for row in found["rows"] if row["direction"] == name]
        for name in dict.fromkeys(row["direction"] for row in found["rows"])
    }
    doses = list(dict.fromkeys(row["scale"] for row in found["rows"]))
    sides = {"this": "added: invalid attempts", "not": "taken away: valid attempts"}
    for column, (word, words) in zip(st.columns(2), sides.items(), strict=True):
        series = {name: band([row[word] for row in mine]) for name, mine in rows.items()}
        with column:
            widgets.figure(
                interval_lines(
                    {
                        **series,
                        RANDOM: null_band([row[word]["null"] for row in rows[chosen[word]]]),
                    },
                    x=doses,
                    x_title="dose (share of the stream's length)",
                    y_title=f'{words} judged "{word}"',
                    controls=[RANDOM],
                    limits=(-0.02, 1.04),
                ),
                key=f"steered-{word}",
                alt=f"Share of {words} judged {word} by dose",
            )
    first, last = found["layers"]
    text = found["text"]
    st.caption(
        f"A direction added at t_paren in layers {first} to {last}, test samples. Grey: mean and "
        f"95 % range of random directions, all layers' turned together, on {found['null_n']} of "
        f"the samples (left: for the {chosen['this']}, right: for the {chosen['not']})."
    )
    with st.expander("A text with the direction added"):
        for column, name in zip(st.columns(2), ("plain", "steered"), strict=True):
            column.markdown(f"**{name}**")
            column.code(text["before"] + text[name], language=None, wrap_lines=True)


if __name__ == "__main__":
    show()
