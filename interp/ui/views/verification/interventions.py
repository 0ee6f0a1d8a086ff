"""Interventions: what sets of heads and neurons do to the verdict, to texts, and to the rest."""

from __future__ import annotations

import streamlit as st

from interp.plots.lines import share_axis, stacked_shares
from interp.studies.steps import Result
from interp.studies.verification.report import tables
from interp.studies.verification.study import Study
from interp.ui.shared import opening, widgets
from interp.ui.studies.open_study import Section, show_section
from interp.ui.studies.pages import VERIFICATION_PAGES
from interp.ui.verification import carried
from interp.ui.verification.generate import side_by_side

RULES = {
    "interp-1": "interp-1 · ours, by whole words",
    "next_token": "next_token · the next word alone",
    "v1": "v1 · published, first version",
    "final": "final · published, 3B",
    "r1": "r1 · published, 14B",
}
MEASURES = {
    "disabled": 'valid attempts judged "not"',
    "invalid_kept": 'invalid attempts still judged "not"',
    "auc": "AUC: how well log P(this) - log P(not) separates valid from invalid",
    "shift_invalid": "shift of log P(this) - log P(not), invalid attempts, nats",
    "shift": "shift of log P(this) - log P(not), valid attempts, nats",
    "kl": "KL(plain || ablated), nats",
}


def outcomes(study: Study) -> None:
    """What the model writes with each set zeroed."""
    found = study.results["interventions"]
    _outcomes(found, study.results.get("interventions_published"))


@st.fragment
def _outcomes(found: Result, close: Result | None) -> None:
    rule = widgets.choose("Rule that classes a text", "rule", RULES, segments=True)
    shares = {name: row["outcomes"][rule] for name, row in found["rows"].items()}
    widgets.figure(
        stacked_shares(
            {name: {k: v["mean"] for k, v in each.items()} for name, each in shares.items()},
            x_title=f"texts, rule {rule}; success: verification disabled",
        ),
        key="outcomes",
        alt=f"Outcomes of every set by rule {rule}",
    )
    widgets.table(tables.outcomes_by(found, rule), key="outcome-table")
    st.caption(
        f"{found['n']} valid attempts, cut at t\\_ans; {found['max_new_tokens']} tokens each; "
        f'the set is zeroed at the last {found["where"]} tokens for the token after every " '
        '(". Random: the texts of all random sets together, matched in kind, layer and count, '
        f"each on about {found['each']} of the attempts, always by rule interp-1. Published: "
        "the heads that attend to the target before the first attempt, and the first three of "
        "them by the published score."
    )
    if close is not None:
        with st.expander("The same at the published tokens"):
            rows = tables.outcomes_by(close, rule)
            kept = ("set zeroed", "size", "success", "95 % interval", "partial", "fail", "ood")
            widgets.table([{k: row[k] for k in kept} for row in rows], key="outcome-published")
            st.caption(
                f"Heads zeroed at every token, neurons at the last alone: {close['n']} attempts."
            )
    name = st.selectbox("Texts under", list(found["rows"]), key="outcome-texts")
    for column, text in zip(st.columns(3), found["rows"][name]["examples"], strict=False):
        column.code(text, language=None, wrap_lines=True)


def verdicts(study: Study) -> None:
    """The verdict under every ablation, with the random sets drawn."""
    results = {kind: study.results[kind] for kind in tables.ABLATIONS if kind in study.results}
    _verdicts(results)


@st.fragment
def _verdicts(results: dict[str, Result]) -> None:
    left, right = st.columns(2)
    measured = {name: tables.ABLATIONS[name] for name in results}
    kind = widgets.choose("Ablation", "ablation", measured, into=left, segments=True)
    measure = widgets.choose("Measure", "measure", MEASURES, into=right)
    found = results[kind]
    sets = found["sets"]
    bare = {"low": widgets.UNKNOWN, "high": widgets.UNKNOWN}
    widgets.figure(
        widgets.estimates_with_null(
            {
                k: bare | {"mean": x["kl"]} if measure == "kl" else x[measure]
                for k, x in sets.items()
            },
            [x["null"][measure] for x in sets.values()],
            value_title=MEASURES[measure],
        ),
        key="verdicts",
        alt=f"{MEASURES[measure]} for each set, {tables.ABLATIONS[kind]}",
    )
    widgets.table(tables.verdicts_under(found), key="verdict-table")
    none = found["none"]
    draws, few = (
        " or ".join(map(str, sorted({x[key] for x in sets.values()})))
        for key in ("draws", "null_n")
    )
    where = "Heads zeroed at all tokens, neurons at the last. " if found["where"] == "all" else ""
    st.caption(
        f"{where}{found['n']} samples, half of them valid; plain model: AUC "
        f"{widgets.value(none['auc'])}, {widgets.value(none['disabled'])} and "
        f"{widgets.value(none['invalid_kept'])}. {draws} random sets each, matched in kind, "
        f"layer and count, run on {few} of the samples: mean [95 % range]; as strong: share of "
        "them at least as strong in disabling on the same samples, the set itself counted."
    )
    if missing := [words for kind, words in tables.ABLATIONS.items() if kind not in results]:
        st.caption(f"Not measured yet in this study: {'; '.join(missing)}.")
    with st.expander("The sets"):
        widgets.table(
            [{"set": name, "components": ", ".join(x["components"])} for name, x in sets.items()],
            key="sets",
        )


def side_effects(study: Study) -> None:
    """Arithmetic and plain English with each set zeroed at every token."""
    found = {name: x for name, x in study.results["side_effects"].items() if name != "n"}
    widgets.figure(
        widgets.estimates_with_null(
            {name: x["arithmetic"] for name, x in found.items()},
            [x.get("arithmetic_null") for x in found.values()],
            value_title="results whose last digit is still right",
        ),
        key="arithmetic",
        alt="Arithmetic with each set zeroed at every token",
    )
    widgets.table(tables.side_effects(study.results), key="side-table")
    st.caption(
        f"{study.results['side_effects']['n']} results of the model's own attempts. Nats: the "
        "loss on plain English with the set zeroed minus the plain model's, text by text; "
        "left out if the tokeniser cannot write English. Random: the mean over the draws, "
        "each on two results and one text. Less random: the set minus a random set on the "
        "same results and texts."
    )


def sufficiency(study: Study) -> None:
    """Sets carried from one run of a pair into the other."""
    found = study.results["sufficiency"]
    drawings = [
        widgets.estimates_with_null(
            {
                name: {"mean": x["effect"], "low": x["effect_low"], "high": x["effect_high"]}
                for name, x in found[side].items()
            },
            [x["effect_null"] for x in found[side].values()],
            value_title="share of the log-odds gap carried over",
            value_label="the set",
        )
        for side in tables.CARRIED
    ]
    share_axis(drawings, "x")
    for side, drawn, column in zip(
        tables.CARRIED, drawings, st.columns(2, gap="large"), strict=True
    ):
        alt = f"Effect of each set, {side}"
        widgets.figure(drawn, key=f"carried-{side}", alt=alt, title=side.capitalize(), into=column)
    widgets.table(tables.sufficiency(study.results), key="sufficiency-table")
    st.caption(
        f"{found['n']} test pairs that differ in the target alone; sets patched at the last "
        f"{found['window']} tokens; the gap is {found['gap']:z.2f} nats. Intervals are over "
        f"pairs; random sets are run on {found['null_n']} of them."
    )


SECTIONS = {
    "verdicts": Section(
        draw=verdicts,
        table="verdicts",
        steps="effects_*",
        needed=("effects_zero",),
        caveat='A verdict that becomes "not" while the AUC stays has moved its threshold; the '
        "model still tells right from wrong. Zeroed values are out of distribution; compare mean "
        "and resample.",
    ),
    "exchange": Section(
        draw=carried.exchange,
        table="exchange",
        steps="interchange*",
        needed=("interchange",),
        caveat="A class mean holds everything in which valid and invalid attempts differ on "
        "average, not the verdict alone.",
    ),
    "chain": Section(
        draw=carried.chain,
        table="chain",
        steps="chain",
        needed=("chain",),
        caveat="Direct paths alone: what passes through heads between two stages is not counted, "
        "and a stage can have other heads in other texts.",
    ),
    "edits": Section(
        draw=carried.edits,
        table="edits",
        steps="compared",
        needed=("compared",),
        caveat="Edited texts are not the model's own. Wordings and long targets it was not trained "
        "on ask for more than the verdict.",
    ),
    "one layer": Section(
        draw=carried.steered,
        table="one layer",
        steps="steering_by_layer",
        needed=("steering_by_layer", "lens"),
        caveat="A direction that turns the verdict in a layer shows that later layers read it, not "
        "that the model uses it there on its own.",
    ),
    "texts": Section(
        draw=outcomes,
        table="texts",
        steps="interventions",
        needed=("interventions",),
        caveat="Success means that the model no longer accepts a correct sum, not that it has lost "
        "nothing else: see side effects.",
    ),
    "side effects": Section(
        draw=side_effects,
        table="side effects",
        steps="side_effects",
        needed=("side_effects",),
        caveat="Completing a result by its last digit is one narrow skill, and eight short texts "
        "are a small sample of English. What is not listed was not measured.",
    ),
    "sufficiency": Section(
        draw=sufficiency,
        table="sufficiency",
        steps="sufficiency",
        needed=("sufficiency",),
        caveat="A set that transfers little may still be needed, and one that transfers everything "
        "may only pass on what others computed.",
    ),
    "generate": Section(
        draw=side_by_side,
        caveat="One text and one random set: an illustration, not a measurement. Shares with "
        "intervals are under texts.",
    ),
}


def _show() -> None:
    opening.intro(
        "Verification: interventions",
        does="It sets heads and neurons to zero, to a mean, or to their values in another run, "
        "and measures what happens to the verdict, to the texts and to everything else.",
        when="To see whether a set of heads or neurons causes the verdict, beside random sets "
        "like it.",
        lacks="More than its own question, section by section: the line at the end of each says "
        "what is left open.",
    )
    show_section(
        VERIFICATION_PAGES,
        SECTIONS,
        about="verdicts: the next token under ablation. exchange: values of the other class "
        "put in. chain: heads traced backwards. edits: what the verdict compares. one layer: "
        "steering beside its rivals. texts: what the model then writes. "
        "side effects: arithmetic and English with the set zeroed. sufficiency: the set carried "
        "from one run into the other. generate: try it on the loaded model.",
    )


if __name__ == "__main__":
    _show()
