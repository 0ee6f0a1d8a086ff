"""The evidence card of the verification study: do a few heads carry the verdict?"""

from __future__ import annotations

from interp.overview.evidence_card import Evidence
from interp.studies.report.evidence_rows import probe_row, row, selection_row
from interp.studies.steps import Results
from interp.studies.study import Study
from interp.studies.verification.settings import VerificationSettings
from interp.studies.verification.steps.behaviour import SHARES
from interp.studies.verification.steps.interchange import OTHER


def card(study: Study[VerificationSettings]) -> Evidence:
    """By family: own verdicts, exchanged heads, patching, paths and probes."""
    results: Results = study.results
    shares = {x["share"]: x for x in results["behaviour"]["rows"]}
    rows = [
        row("behavioural", f'own verdicts "{word}" that are right', shares[SHARES[name]], least=0.5)
        for name, word in (("this", "this"), ("no", "not"))
    ]
    if (found := results["interchange"]["sets"].get("A_Verif")) is not None:
        rows += [
            row("causal", f"{side} verdicts turned by A_Verif", x["flipped"], x["flipped_null"])
            for side, x in found["exchanges"][OTHER].items()
        ]
    rows.append(
        selection_row("causal", "activation patching", results["patching"]["noise"]["null"])
    )
    for into, words in (("direct", "the logits"), ("glu", "the GLU sets")):
        rows.append(
            selection_row("structural", f"paths into {words}", results[f"paths_{into}"]["null"])
        )
    probes = results["probes"]["t_paren"]["resid_post"]
    shuffled = max(probes["shuffled_high"])
    rows.append(probe_row("accuracy of a probe", probes, "accuracy", shuffled, probes["n_test"]))
    return Evidence(model=study.model, task="A few heads carry the verdict", rows=tuple(rows))
