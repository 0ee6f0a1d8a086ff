"""Interventions: what sets of heads and neurons do to the verdict, to texts, and to the rest."""

from __future__ import annotations

import math

import streamlit as st

from interp.plots.lines import share_axis, stacked_shares
from interp.studies.formatting import spread
from interp.studies.steps import Result
from interp.studies.verification.study import Study
from interp.ui.shared import widgets
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
ABLATIONS = {
    "effects_zero": "zero, last tokens",
    "effects_mean": "mean, last tokens",
    "effects_resample": "resample, last tokens",
    "effects_published": "zero, as published",
}
MEASURES = {
    "disabled": 'valid attempts judged "not"',
    "invalid_kept": 'invalid attempts still judged "not"',
    "auc": "AUC: how well log P(this) - log P(not) separates valid from invalid",
    "shift_invalid": "shift of log P(this) - log P(not), invalid attempts, nats",
    "shift": "shift of log P(this) - log P(not), valid attempts, nats",
    "kl": "KL(plain || ablated), nats",
}
SIDES = ("valid into invalid", "invalid into valid")


def outcomes(study: Study) -> widgets.Rows:
    """What the model writes with each set zeroed; the rows of all rules."""
    found = study.results["interventions"]
    _outcomes(found, study.results.get("interventions_published"))
    return [{"rule": rule, **row} for rule in RULES for row in _outcome_rows(found, rule)]


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
    widgets.table(_outcome_rows(found, rule), key="outcome-table")
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
            rows = _outcome_rows(close, rule)
            kept = ("set zeroed", "size", "success", "95 % interval", "partial", "fail", "ood")
            widgets.table([{k: row[k] for k in kept} for row in rows], key="outcome-published")
            st.caption(
                f"Heads zeroed at every token, neurons at the last alone: {close['n']} attempts."
            )
    name = st.selectbox("Texts under", list(found["rows"]), key="outcome-texts")
    for column, text in zip(st.columns(3), found["rows"][name]["examples"], strict=False):
        column.code(text, language=None, wrap_lines=True)


def _outcome_rows(found: Result, rule: str) -> widgets.Rows:
    shares = {name: row["outcomes"][rule] for name, row in found["rows"].items()}
    return [
        {
            "set zeroed": name,
            "size": len(row["components"]),
            "success": shares[name]["success"]["mean"],
            "95 % interval": widgets.interval(shares[name]["success"]),
            **{kind: shares[name][kind]["mean"] for kind in ("partial", "fail", "ood", "empty")},
            "random: success": widgets.value(row["random"] and row["random"]["success"]),
            "draws": row["draws"],
            "as strong": row["share"],
        }
        for name, row in found["rows"].items()
    ]


def verdicts(study: Study) -> widgets.Rows:
    """The verdict under every ablation, with the random sets drawn; the rows of all ablations."""
    results = {kind: study.results[kind] for kind in ABLATIONS if kind in study.results}
    _verdicts(results)
    return [
        {"ablation": ABLATIONS[kind], **row}
        for kind, found in results.items()
        for row in _verdict_rows(found["sets"])
    ]


@st.fragment
def _verdicts(results: dict[str, Result]) -> None:
    left, right = st.columns(2)
    measured = {name: ABLATIONS[name] for name in results}
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
        alt=f"{MEASURES[measure]} for each set, {ABLATIONS[kind]}",
    )
    widgets.table(_verdict_rows(sets), key="verdict-table")
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
    if missing := [words for kind, words in ABLATIONS.items() if kind not in results]:
        st.caption(f"Not measured yet in this study: {'; '.join(missing)}.")
    with st.expander("The sets"):
        widgets.table(
            [{"set": name, "components": ", ".join(x["components"])} for name, x in sets.items()],
            key="sets",
        )


def _verdict_rows(sets: dict[str, Result]) -> widgets.Rows:
    return [
        {
            "set": name,
            "size": len(x["components"]),
            "AUC": widgets.value(x["auc"]),
            "random: AUC": spread(x["null"]["auc"]),
            'valid judged "not"': x["disabled"]["mean"],
            "95 % interval": widgets.interval(x["disabled"]),
            "random sets": spread(x["null"]["disabled"]),
            "draws": x["draws"],
            "as strong": x["share"],
            'invalid still "not"': x["invalid_kept"]["mean"],
            'random: still "not"': spread(x["null"]["invalid_kept"]),
            "shift, valid (nats)": widgets.value(x["shift"]),
            "shift, invalid (nats)": widgets.value(x["shift_invalid"]),
            "KL": x["kl"],
        }
        for name, x in sets.items()
    ]


def side_effects(study: Study) -> widgets.Rows:
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
    rows = [
        {
            "set, zeroed at every token": name,
            "last digit right": x["arithmetic"]["mean"],
            "95 % interval": widgets.interval(x["arithmetic"]),
            "random sets": _mean(x.get("arithmetic_null")),
            "draws": len(x.get("arithmetic_null", ())),
            "right, less random": widgets.value(x.get("arithmetic_beside")),
            "perplexity of plain English": math.exp(x["loss"]["mean"]) if "loss" in x else None,
            "more nats a token": widgets.value(x.get("loss_change")),
            "random: more nats": _mean(x.get("loss_change_null")),
            "nats, less random": widgets.value(x.get("loss_change_beside")),
        }
        for name, x in found.items()
    ]
    widgets.table(rows, key="side-table")
    st.caption(
        f"{study.results['side_effects']['n']} results of the model's own attempts. Nats: the "
        "loss on plain English with the set zeroed minus the plain model's, text by text; "
        "left out if the tokeniser cannot write English. Random: the mean over the draws, "
        "each on two results and one text. Less random: the set minus a random set on the "
        "same results and texts."
    )
    return rows


def _mean(draws: list[float] | None) -> str:
    """The mean of some draws; each is on too few samples for their range to say much."""
    return "–" if not draws else widgets.number(sum(draws) / len(draws))


def sufficiency(study: Study) -> widgets.Rows:
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
        for side in SIDES
    ]
    share_axis(drawings, "x")
    for side, drawn, column in zip(SIDES, drawings, st.columns(2, gap="large"), strict=True):
        alt = f"Effect of each set, {side}"
        widgets.figure(drawn, key=f"carried-{side}", alt=alt, title=side.capitalize(), into=column)
    rows = [
        {
            "direction": side,
            "set": name,
            "effect": x["effect"],
            "95 % interval": widgets.span(x["effect_low"], x["effect_high"]),
            "random sets": spread(x["effect_null"]),
            "draws": len(x["effect_null"]),
            "as strong": x["share"],
            "verdicts flipped": widgets.value(x["flipped"]),
            "random: flipped": spread(x["flipped_null"]),
        }
        for side in SIDES
        for name, x in found[side].items()
    ]
    widgets.table(rows, key="sufficiency-table")
    st.caption(
        f"{found['n']} test pairs that differ in the target alone; sets patched at the last "
        f"{found['window']} tokens; the gap is {found['gap']:z.2f} nats. Intervals are over "
        f"pairs; random sets are run on {found['null_n']} of them."
    )
    return rows


SECTIONS = {
    "verdicts": Section(
        draw=verdicts,
        steps="effects_*",
        needed=("effects_zero",),
        caveat='A verdict that becomes "not" while the AUC stays has moved its threshold; the '
        "model still tells right from wrong. Zeroed values are out of distribution; compare mean "
        "and resample.",
    ),
    "exchange": Section(
        draw=carried.exchange,
        steps="interchange*",
        needed=("interchange",),
        caveat="A class mean holds everything in which valid and invalid attempts differ on "
        "average, not the verdict alone.",
    ),
    "chain": Section(
        draw=carried.chain,
        steps="chain",
        needed=("chain",),
        caveat="Direct paths alone: what passes through heads between two stages is not counted, "
        "and a stage can have other heads in other texts.",
    ),
    "edits": Section(
        draw=carried.edits,
        steps="compared",
        needed=("compared",),
        caveat="Edited texts are not the model's own. Wordings and long targets it was not trained "
        "on ask for more than the verdict.",
    ),
    "one layer": Section(
        draw=carried.steered,
        steps="steering_by_layer",
        needed=("steering_by_layer", "lens"),
        caveat="A direction that turns the verdict in a layer shows that later layers read it, not "
        "that the model uses it there on its own.",
    ),
    "texts": Section(
        draw=outcomes,
        steps="interventions",
        needed=("interventions",),
        caveat="Success means that the model no longer accepts a correct sum, not that it has lost "
        "nothing else: see side effects.",
    ),
    "side effects": Section(
        draw=side_effects,
        steps="side_effects",
        needed=("side_effects",),
        caveat="Completing a result by its last digit is one narrow skill, and eight short texts "
        "are a small sample of English. What is not listed was not measured.",
    ),
    "sufficiency": Section(
        draw=sufficiency,
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
    show_section(
        VERIFICATION_PAGES,
        "Interventions",
        SECTIONS,
        name="",
        about="verdicts: the next token under ablation. exchange: values of the other class "
        "put in. chain: heads traced backwards. edits: what the verdict compares. one layer: "
        "steering beside its rivals. texts: what the model then writes. "
        "side effects: arithmetic and English with the set zeroed. sufficiency: the set carried "
        "from one run into the other. generate: try it on the loaded model.",
    )


if __name__ == "__main__":
    _show()
