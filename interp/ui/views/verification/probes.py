"""Probes and lens: from which layer the verdict can be read, and in which words."""

from __future__ import annotations

import streamlit as st

from interp.plots.lines import interval_lines
from interp.plots.style import null_band
from interp.studies.formatting import band, bare
from interp.studies.steps import Result
from interp.ui.shared import opening, widgets
from interp.ui.shared.state import current
from interp.ui.studies import head_maps, open_study
from interp.ui.studies.pages import VERIFICATION_PAGES

SITES = {
    "resid_post": "resid_post: residual stream after the layer",
    "attn_out": "attn_out: what attention adds",
    "mlp_out": "mlp_out: what the MLP adds",
}
RANDOM = "random directions"
TOKENS = {"t_ans": "the result's last digit", "t_paren": 'the " (" behind it'}
GROUPS = ("valid", "invalid")


def _show() -> None:
    opening.intro(
        "Verification: probes and lens",
        does="It shows at which layer the verdict can be read from the model's state, by probes "
        "and by the logit lens, and whether adding the probe's direction turns the verdict.",
        when="To see where in the model the verdict arises, before looking for heads and neurons.",
        lacks="That the model uses what a probe reads: see the directions added to the stream, "
        "and Interventions. The lens applies the last unembedding early, so a word it does "
        "not show may still be there.",
    )
    study = open_study.opened(VERIFICATION_PAGES, "probes")
    if study is None:
        return
    found = study.results["probes"]
    one = found["t_paren"]["resid_post"]
    split = f"{one['n_train']} fitted, {one['n_test']} held out"
    steps = ("probes", "steering", "lens")
    open_study.provenance(study, *steps, **{"split by problem": split})
    _accuracy(found)
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
    open_study.take_away(study, "probes", *steps)


def _accuracy(found: Result) -> None:
    """Held-out accuracy by layer at both tokens."""
    site = widgets.choose("Where the probe reads", "probed", SITES, segments=True)
    for column, (token, words) in zip(st.columns(2), TOKENS.items(), strict=True):
        x = found[token][site]
        column.markdown(f"**At {widgets.plain(token)}**, {words}")
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
            into=column,
        )
    st.caption(
        "Logistic probes; no problem is on both sides of the split. Grey: the range of probes "
        "fitted to shuffled labels, the chance level at this n."
    )


@st.fragment
def _heads(found: Result) -> None:
    """A probe on every head's output."""
    st.subheader("One head at a time", anchor=False)
    head_maps.show_map(
        found["accuracy"],
        key="probe-heads",
        alt="Accuracy of a probe on each head's z",
        title="accuracy at t_paren",
        diverging=False,
        limits=(0.5, 1.0),
    )
    head_maps.choose_head("Head", found["accuracy"])
    if (at := head_maps.looked_at(found["accuracy"])) is not None:
        layer, index = at
        x = {key: found[key][layer][index] for key in found if key not in ("n_train", "n_test")}
        st.markdown(
            f"**L{layer}H{index}** accuracy {widgets.value({**x, 'mean': x['accuracy']})}, AUC "
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
        null = null_band([row[word]["null"] for row in rows[chosen[word]]])
        drawn = interval_lines(
            {**series, RANDOM: null},
            x=doses,
            x_title="dose (share of the stream's length)",
            y_title=f'{words} judged "{word}"',
            controls=[RANDOM],
            limits=(-0.02, 1.04),
        )
        widgets.figure(
            widgets.legend_below(drawn, height=360, room=110),
            key=f"steered-{word}",
            alt=f"Share of {words} judged {word} by dose",
            into=column,
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


def lens(found: Result) -> None:
    """Watched words by layer, and the likeliest tokens."""
    words = found["words"]
    chosen = st.multiselect(
        "Words",
        words,
        words[:4],
        format_func=widgets.visible,
        max_selections=6,
        key=f"lens-words-{current().study}",
    )
    for group, column in zip(GROUPS, st.columns(2), strict=True):
        seen = found["groups"][group]
        series = {widgets.visible(word): band(seen["probability"][word]) for word in chosen}
        column.markdown(f'**At t\\_{group}**: the " (" of {group} attempts')
        if series:
            widgets.figure(
                interval_lines(
                    series, x_title="layer", y_title="mean probability", limits=(-0.02, 1.04)
                ),
                key=f"lens-{group}",
                alt=f"Mean probability of {', '.join(chosen)} by layer, {group} attempts",
                into=column,
            )
    st.caption(
        f"Mean over samples of the probability, with its 95 % interval; {found['n']} test samples, "
        "half of them valid. A leading space is part of a word."
    )
    layers = range(len(found["groups"]["valid"]["top"]))
    widgets.table(
        [
            {
                "layer": layer,
                **{
                    f"at t_{group}": "   ".join(
                        f"{widgets.visible(text)} {share:z.2f}"
                        for text, share in found["groups"][group]["top"][layer]
                    )
                    for group in GROUPS
                },
            }
            for layer in reversed(layers)
        ],
        key="lens-top",
    )
    st.caption("The tokens of highest mean probability, the last layer on top; ␣ is a space.")


if __name__ == "__main__":
    _show()
