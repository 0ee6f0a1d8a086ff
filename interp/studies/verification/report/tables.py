"""The tables of a study of verification: the rows that its pages show and offer as files."""

from __future__ import annotations

import math
import statistics

from interp.plots.style import visible
from interp.studies.formatting import ends, mean_of_draws, place, span, spread, value
from interp.studies.steps import Result, Results, Rows
from interp.studies.verification.report.claims import claims
from interp.studies.verification.report.report import corrected_exchange, most_turned
from interp.studies.verification.steps.finding_heads import strongest
from interp.studies.verification.steps.interchange import ANOTHER, OTHER, OWN, SIDES

SETS = ("GLU_Valid", "GLU_Invalid")
READ_AT = ("t_ans", "t_paren")
PROBED = ("resid_post", "attn_out", "mlp_out")
RULES = ("interp-1", "next_token", "v1", "final", "r1")
"""The rules that class a text."""
ABLATIONS = {
    "effects_zero": "zero, last tokens",
    "effects_mean": "mean, last tokens",
    "effects_resample": "resample, last tokens",
    "effects_published": "zero, as published",
}
CARRIED = ("valid into invalid", "invalid into valid")


def behaviour(results: Results) -> Rows:
    """Does the model search, compute and judge honestly?"""
    return [
        {"share": row["share"], "value": row["mean"], "95 % interval": ends(row), "n": row["n"]}
        for row in results["behaviour"]["rows"]
    ]


def probes(results: Results) -> Rows:
    """Held-out accuracy of probes at both tokens, by site and layer."""
    columns = ("accuracy", "low", "high", "auc", "shuffled_low", "shuffled_high")
    found = results["probes"]
    return [
        {"token": token, "site": site, "layer": layer}
        | {key: found[token][site][key][layer] for key in columns}
        for token in READ_AT
        for site in PROBED
        for layer in range(len(found[token][site]["accuracy"]))
    ]


def glu(results: Results) -> Rows:
    """The neurons of both sets."""
    return [
        {"set": name, **row} for name in SETS for row in neurons_of(results["glu"][name]).values()
    ]


def neurons_of(found: Result) -> dict[str, Result]:
    """A row for every neuron of a set, by its label.

    Studies kept before `rest` was have the first neurons only.
    """
    return {row["neuron"]: _neuron(row) for row in [*found["top"], *found.get("rest", [])]}


def _neuron(row: Result) -> Result:
    gate, up, covariance = row["parts"]
    return {
        "neuron": row["neuron"],
        "cosine": row["cosine"],
        "writes": " ".join(map(visible, row["writes_valid"])),
        "writes against": " ".join(map(visible, row["writes_invalid"])),
        "h, valid": row["valid"],
        "h, invalid": row["invalid"],
        "gate": gate,
        "up": up,
        "covariance": covariance,
        "AUC": row["auc"],
    }


def heads(results: Results) -> Rows:
    """Attention of every head in every case, the strongest first."""
    return [
        {
            "query and keys": name,
            "head": head,
            "mean": x["values"][layer][index],
            "excess": x["excess"][layer][index],
        }
        for name, x in results["attention"].items()
        for head in strongest(x["values"], sum(map(len, x["values"])))
        for layer, index in [place(head)]
    ]


def outcomes(results: Results) -> Rows:
    """What the model writes with each set zeroed, by every rule."""
    found = results["interventions"]
    return [{"rule": rule, **row} for rule in RULES for row in outcomes_by(found, rule)]


def outcomes_by(found: Result, rule: str) -> Rows:
    """What the model writes with each set zeroed, by one rule."""
    shares = {name: row["outcomes"][rule] for name, row in found["rows"].items()}
    return [
        {
            "set zeroed": name,
            "size": len(row["components"]),
            "success": shares[name]["success"]["mean"],
            "95 % interval": ends(shares[name]["success"]),
            **{kind: shares[name][kind]["mean"] for kind in ("partial", "fail", "ood", "empty")},
            "random: success": value(row["random"] and row["random"]["success"]),
            "draws": row["draws"],
            "as strong": row["share"],
        }
        for name, row in found["rows"].items()
    ]


def verdicts(results: Results) -> Rows:
    """The verdict under every ablation that was measured."""
    return [
        {"ablation": words, **row}
        for kind, words in ABLATIONS.items()
        if kind in results
        for row in verdicts_under(results[kind])
    ]


def verdicts_under(found: Result) -> Rows:
    """The verdict under one ablation of each set."""
    return [
        {
            "set": name,
            "size": len(x["components"]),
            "AUC": value(x["auc"]),
            "random: AUC": spread(x["null"]["auc"]),
            'valid judged "not"': x["disabled"]["mean"],
            "95 % interval": ends(x["disabled"]),
            "random sets": spread(x["null"]["disabled"]),
            "draws": x["draws"],
            "as strong": x["share"],
            'invalid still "not"': x["invalid_kept"]["mean"],
            'random: still "not"': spread(x["null"]["invalid_kept"]),
            "shift, valid (nats)": value(x["shift"]),
            "shift, invalid (nats)": value(x["shift_invalid"]),
            "KL": x["kl"],
        }
        for name, x in found["sets"].items()
    ]


def side_effects(results: Results) -> Rows:
    """Arithmetic and plain English with each set zeroed at every token."""
    return [
        {
            "set, zeroed at every token": name,
            "last digit right": x["arithmetic"]["mean"],
            "95 % interval": ends(x["arithmetic"]),
            "random sets": mean_of_draws(x.get("arithmetic_null")),
            "draws": len(x.get("arithmetic_null", ())),
            "right, less random": value(x.get("arithmetic_beside")),
            "perplexity of plain English": math.exp(x["loss"]["mean"]) if "loss" in x else None,
            "more nats a token": value(x.get("loss_change")),
            "random: more nats": mean_of_draws(x.get("loss_change_null")),
            "nats, less random": value(x.get("loss_change_beside")),
        }
        for name, x in results["side_effects"].items()
        if name != "n"
    ]


def sufficiency(results: Results) -> Rows:
    """Sets carried from one run of a pair into the other."""
    return [
        {
            "direction": side,
            "set": name,
            "effect": x["effect"],
            "95 % interval": span(x["effect_low"], x["effect_high"]),
            "random sets": spread(x["effect_null"]),
            "draws": len(x["effect_null"]),
            "as strong": x["share"],
            "verdicts flipped": value(x["flipped"]),
            "random: flipped": spread(x["flipped_null"]),
        }
        for side in CARRIED
        for name, x in results["sufficiency"][side].items()
    ]


def exchanged_sets(results: Results) -> dict[str, Result]:
    """The sets whose values were exchanged, and the stages of the chain if they were."""
    return results["interchange"]["sets"] | results.get("interchange_chain", {"sets": {}})["sets"]


def exchange(results: Results) -> Rows:
    """Each set's values exchanged between the classes, and those of each stage of the chain."""
    sets = exchanged_sets(results)
    return [row for side in SIDES for row in _exchanged(sets, side)]


def _exchanged(sets: dict[str, Result], side: str) -> Rows:
    strong, rows = corrected_exchange(sets, side), []
    for name, x in sets.items():
        other, own, another = (x["exchanges"][kind][side] for kind in (OTHER, OWN, ANOTHER))
        rows.append(
            {
                "class": side,
                "set": name,
                "size": len(x["components"]),
                "effect": value(other["effect"]),
                "verdicts turned": value(other["flipped"]),
                "random: turned": statistics.mean(other["flipped_null"]),
                "as strong": strong[name],
                "own mean: turned": own["flipped"]["mean"],
                "another sample: turned": another["flipped"]["mean"],
            }
        )
    return rows


def chain(results: Results) -> Rows:
    """The stages of heads that lead to the MLPs that write the verdict."""
    return [
        {
            "stage": number,
            "head": row["label"],
            "path effect": row["value"],
            "95 % interval": ends(row),
            "attends from": row["reads"]["query"],
            "to": row["reads"]["key"],
            "attention": value(row["reads"]),
            "other tokens": row["reads"]["other"],
        }
        for number, stage in enumerate(results["chain"]["stages"], 1)
        for row in stage["heads"]
    ]


def one_layer(results: Results) -> Rows:
    """The most verdicts that each direction turns in a layer where no word can be read yet."""
    doses = results["steering_by_layer"]["doses"]
    return [
        {
            "direction": row["direction"],
            "cosine with the unembedding": row["cosine"],
            **{
                f'"{word}", {dose:.0%}': share
                for dose, shares in zip(doses, row["turned"], strict=True)
                for word, share in shares.items()
            },
        }
        for row in most_turned(results)
    ]


def edits(results: Results) -> Rows:
    """The model's own attempts, each edited in one place."""
    return [
        {
            "text": row["words"],
            "expected": row["expected"],
            "n": row["this"]["n"],
            'judged "this"': value(row["this"]),
            "mean log-odds": row["log_odds"]["mean"],
            "AUC": value(row["auc"]),
        }
        for row in results["compared"]["rows"]
    ]


TABLES = {
    "claims": claims,
    "behaviour": behaviour,
    "probes": probes,
    "glu": glu,
    "heads": heads,
    "verdicts": verdicts,
    "exchange": exchange,
    "chain": chain,
    "edits": edits,
    "one layer": one_layer,
    "texts": outcomes,
    "side effects": side_effects,
    "sufficiency": sufficiency,
}
"""Its tables by name."""
