"""The evidence card of the study of training: does each adapter change its own behaviour alone?"""

from __future__ import annotations

from interp.overview.evidence_card import Evidence
from interp.studies.report.evidence_rows import row
from interp.studies.study import Study
from interp.studies.training.settings import TrainingSettings


def card(study: Study[TrainingSettings]) -> Evidence:
    """By family: each behaviour under its adapter beside the other adapters, and IOI's heads.

    The null of a behaviour is what the other adapters do to it.
    """
    results, rows = study.results, []
    whole = next((x for name, x in results.items() if name.startswith("compressed ")), None)
    if whole is not None:
        heads, task = whole["heads_before"], whole["task"]
        rows.append(row("behavioural", f"{task}, the right answer ahead", whole["before"]))
        name, p = f"heads of {task} patched together", heads["flips"]["p"]
        rows.append(row("causal", name, heads["effect"], heads["null"], p=p))
    alone = results["alone"]
    for name in alone:
        others = [alone[other][name]["change"]["mean"] for other in alone if other != name]
        own = alone[name][name]["change"]
        rows.append(row("causal", f"change of its behaviour by {name}", own, others))
    return Evidence(
        model=study.model, task="Each adapter changes its own behaviour alone", rows=tuple(rows)
    )
