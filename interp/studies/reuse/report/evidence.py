"""The evidence card of the reuse study: do IOI's heads serve Colored Objects?"""

from __future__ import annotations

from interp.overview.evidence_card import Evidence
from interp.studies.report.evidence_rows import row
from interp.studies.reuse.report.claims import pair_of
from interp.studies.reuse.settings import ReuseSettings
from interp.studies.reuse.steps.circuits import circuits_of
from interp.studies.reuse.tasks import IOI, IOI_TRAINED, OBJECTS, OBJECTS_TRAINED
from interp.studies.study import Study


def card(study: Study[ReuseSettings]) -> Evidence:
    """By family: right answers, the repair, and the overlap of circuits found by paths."""
    results = study.results
    ioi = results["behaviour"][IOI.name]
    rows = [row("behavioural", "IOI, right answers", ioi["right"], least=ioi["chance"])]
    repair = results["repair"]
    if (found := repair["sets"].get("both")) is not None:
        x, before = found["right"], repair["none"]["right"]["high"]
        name = "right answers on Colored Objects, IOI's heads told the wrong colours"
        rows.append(row("causal", name, x, x["null"], least=before, p=x["p_paired"]))
    for one, other in ((IOI_TRAINED, OBJECTS_TRAINED), (IOI, OBJECTS)):
        if (pair := pair_of(results, one.name, other.name)) is not None:
            n, x = circuits_of(results)[one.name]["n"], pair["matched"]
            name = f"heads shared by the circuits of {one.name} and {other.name}"
            found = {end: x[end] for end in ("low", "high")} | {"mean": x["value"], "n": n}
            null = x["null"]
            rows.append(row("structural", name, found, null, p=null["share"], held_out=False))
            break
    return Evidence(model=study.model, task="IOI's heads serve Colored Objects", rows=tuple(rows))
