"""Patching: which components carry the behaviour, and one of them looked at."""

from __future__ import annotations

from typing import Any

import streamlit as st

import interp
from interp.core.errors import InterpError
from interp.results.scores import Scores
from interp.ui.patching.controls import sweep_controls
from interp.ui.patching.explore import explore
from interp.ui.shared import cache, jobs, offered, widgets
from interp.ui.shared.state import current, write_link

LONG = 60.0  # seconds beyond which a run asks first

FORMULAS = {
    "denoise": r"\text{effect}(c) = \frac{\overline{m}[\text{corrupted run, } c \leftarrow "
    r"\text{patched}] - \overline{m}[\text{corrupted}]}"
    r"{\overline{m}[\text{clean}] - \overline{m}[\text{corrupted}]}",
    "noise": r"\text{effect}(c) = \frac{\overline{m}[\text{clean}] - "
    r"\overline{m}[\text{clean run, } c \leftarrow \text{patched}]}"
    r"{\overline{m}[\text{clean}] - \overline{m}[\text{corrupted}]}",
}


def show() -> None:
    """The page."""
    write_link()
    if current().model is None:
        widgets.to_setup("Patching")
        return
    try:
        open_ = cache.opened()
        with st.sidebar:
            sweep_controls(open_)
        arguments = cache.sweep(current(), open_)
        plan = cache.plan(open_, arguments)
    except InterpError as error:
        widgets.show_error(error)
        return
    result = cache.result(plan.key)
    if result is None:
        _run(open_, arguments, plan)
        _meaning(arguments["direction"])
        return
    jobs.forget(plan.key)
    with st.sidebar:
        st.success("Stored result: nothing to run.", icon=":material/check:")
    _provenance(result.scores)
    explore(open_, result, plan.key)


def _run(open_: cache.Opened, arguments: dict[str, Any], plan: cache.Plan) -> None:
    """The estimate and the button; while it runs, the progress; if it failed, why."""
    name = widgets.plain(offered.without_paths(open_.model.name))
    st.header(f"Patching {arguments['site']} in {name}", anchor=False)
    job = jobs.find(plan.key)
    if job is not None and job.state == "running":
        jobs.watch(job)
        return
    if job is not None and job.state == "failed" and job.error is not None:
        widgets.show_error(job.error)
    if job is not None and job.state == "done":
        jobs.not_kept()
    if job is not None and job.state == "cancelled":
        st.info(
            f"Stopped after {job.done} of {job.total or '…'} chunks. Finished chunks are kept; "
            "Run continues from them.",
            icon=":material/pause_circle:",
        )
    seconds = plan.cost.seconds
    widgets.facts(
        {
            "task": f"{open_.task.name}, {len(open_.task)} pairs",
            "patched runs": f"{plan.cost.runs:,}".replace(",", " "),
            "estimated time": plan.cost.words,
        }
    )
    sure = seconds <= LONG or st.checkbox(
        f"This will take {plan.cost.words} on this machine. Run it anyway.",
        key=f"sure-{plan.key}",
    )

    def work(job: jobs.Job) -> Scores:
        return interp.activation_patching(
            open_.model,
            open_.task,
            **arguments,
            progress=job.progress,
            cancelled=job.cancel.is_set,
        )

    st.button(
        "Run",
        type="primary",
        icon=":material/play_arrow:",
        disabled=not sure,
        on_click=jobs.start,
        args=(plan.key, work),
    )
    st.caption("The result is kept. The same call from Python or the command line reuses it.")


def _meaning(direction: str) -> None:
    """What an effect is."""
    st.divider()
    st.markdown("**What will be measured**, for every component $c$, with a 95 % interval:")
    st.latex(FORMULAS[direction])
    st.caption(
        "1 is the whole gap between the clean and the corrupted prompts; positive supports "
        "the behaviour. It is a ratio of means over prompts, so one prompt with a small gap "
        "cannot dominate."
    )


def _provenance(scores: Scores) -> None:
    """Where every number on the page comes from."""
    origin = scores.provenance
    st.header(f"{scores.method.capitalize()} of {scores.site}", anchor=False)
    widgets.facts(
        {
            "model": f"{offered.without_paths(origin.model)} · {origin.model_hash[:12]}",
            "precision": origin.dtype,
            "task": f"{origin.task} · n = {scores.n} · seed {origin.seed}",
            f"{scores.metric}, clean → corrupted": f"{scores.clean.mean():.3f} → "
            f"{scores.corrupted.mean():.3f} {scores.metric_unit}",
            "direction": scores.direction,
            "positions": scores.positions,
            "engine": scores.extra.get("engine", "–"),
            "commit": origin.commit or "–",
        }
    )


if __name__ == "__main__":
    show()
