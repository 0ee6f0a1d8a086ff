"""The evidence card of the refusal study: do one direction and a few heads cause refusals?"""

from __future__ import annotations

from dataclasses import asdict

from interp.core.statistics import share_estimate
from interp.overview.evidence_card import Evidence
from interp.studies.refusal.report.claims import step_of
from interp.studies.refusal.settings import RefusalSettings
from interp.studies.refusal.steps.heads import SIDES, TRIGGERS
from interp.studies.report.evidence_rows import probe_row, row, selection_row
from interp.studies.study import Study


def card(study: Study[RefusalSettings]) -> Evidence:
    """By family: replies, the direction ablated, heads exchanged, paths and probes."""
    results = study.results
    became = {name: len(x) for name, x in results["behaviour"]["became"].items()}
    refused = share_estimate(became["refused"], sum(became.values()))
    rows = [row("behavioural", "requests to refuse that are refused", asdict(refused))]
    removed = (results["directions"].get("harmful-harmless") or {}).get("ablated", {})
    if (x := removed.get("properly refused")) is not None:
        value = x["value"]
        drop = {"mean": -value["mean"], "low": -value["high"], "high": -value["low"]}
        name = "drop of the refusal score, direction ablated"
        rows.append(row("causal", name, drop | {"n": value["n"]}, [-one for one in x["random"]]))
    if (found := results[step_of("groups", SIDES[0])].get("sets")) is not None:
        x = found[TRIGGERS]
        rows.append(row("causal", "necessity of the triggers", x["necessity"], x["necessity_null"]))
    if (test := results[step_of("paths", SIDES[0])].get("path_null")) is not None:
        rows.append(selection_row("structural", "paths into the carriers", test))
    if (probes := results["separation"]["probes"].get("refused / answered")) is not None:
        name = "AUC of refused against answered"
        rows.append(probe_row(name, probes, "auc", max(probes["shuffled"]), probes["n"][1]))
    return Evidence(
        model=study.model, task="A direction and a few heads cause refusals", rows=tuple(rows)
    )
