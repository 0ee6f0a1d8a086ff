"""Study: the kept studies of refusals, one to run or go on with, and what the model does."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.plots.grids import share_grid
from interp.plots.lines import MARGIN, interval_lines
from interp.plots.steering import BELOW
from interp.plots.style import hover_text
from interp.studies.formatting import bare
from interp.studies.steps import Result
from interp.ui.shared import offered, widgets
from interp.ui.shared.state import write_link
from interp.ui.studies import open_study, overview
from interp.ui.studies.pages import REFUSAL_PAGES
from interp.ui.studies.run import run_panel, running

ABOUT = (
    "Which prompts a chat model declines, which of them it should have answered, where inside it "
    "that is decided, and what steering does to **both** kinds of refusal. After Arditi et al. "
    "2024 (arXiv 2406.11717) and SafeConstellations (2508.11290). The shipped prompts are "
    "harmless: the topic to be refused is gardening."
)
VERDICTS = ("direct_answer", "direct_refusal", "indirect_refusal")
SHUFFLED = "shuffled labels, 97.5 %"


def show() -> None:
    """The page."""
    write_link()
    open_study.write_view()
    st.title("What makes a model refuse, and over-refuse?", anchor=False)
    st.markdown(ABOUT)
    study = open_study.chosen(REFUSAL_PAGES, link=False)
    if study is not None:
        overview.kept_table(study)
    with st.expander("Run a study, or go on with one", expanded=study is None):
        run_panel(REFUSAL_PAGES, study)
    running(REFUSAL_PAGES)
    if study is None:
        return
    results = study.results
    model = offered.without_paths(study.model)
    st.header(widgets.plain(f"{model}, {study.directory.name}"), anchor=False)
    if system := study.settings.system:
        st.warning(f"Refusal in context, by the system prompt: {widgets.plain(system)}")
    open_study.provenance(study, *results)
    rows: list[dict[str, Any]] = list(overview.claims(study, "claim"))
    if open_study.ready(study, "behaviour", link=False):
        rows = _behaviour(results)
    if open_study.ready(study, "separation", link=False):
        _separation(results["separation"])
    names = ("behaviour", "tokens", "separation")
    open_study.take_away(study, "behaviour", rows, {n: results[n] for n in names if n in results})
    widgets.caveat(
        "The rule-based judge reads how a text begins, not whether its answer is good. A "
        "probe that separates refused from answered prompts does not show what the model's "
        "decision rests on: check whether it separates topics as well."
    )


def _behaviour(results: dict[str, Result]) -> list[dict[str, Any]]:
    """What became of every prompt, by task and kind; the rows of the table."""
    found = results["behaviour"]
    st.subheader("What the model does", anchor=False)
    left, right = st.columns([2, 3], gap="large")
    cells = {(cell["task"], cell["kind"]): cell for cell in found["cells"]}
    tasks, kinds = ([*dict.fromkeys(names)] for names in zip(*cells, strict=True))
    values = [[_refused(cells.get((task, kind))) for kind in kinds] for task in tasks]
    with left:
        widgets.figure(
            share_grid(
                values,
                x=kinds,
                y=[f"{task} " for task in tasks],
                texts=[[_said(cells.get((task, kind))) for kind in kinds] for task in tasks],
                title="share refused",
            ),
            key="refused",
            alt="Share of prompts refused, by task and kind",
        )
    rows = [
        {
            "task": cell["task"],
            "about": cell["kind"],
            "should": cell["should"],
            "n": cell["refused"]["n"],
            "refused": cell["refused"]["mean"],
            "95 % interval": widgets.interval(cell["refused"]),
            "answered": cell["answered"]["mean"],
            "neither": _neither(cell["labels"]),
        }
        for cell in found["cells"]
    ]
    with right:
        widgets.table(rows, key="cells")
    parts = ", ".join(f"{count} to {name}" for name, count in found["parts"].items())
    st.caption(
        f"Greedy texts of at most {found['decoding']['max_new_tokens']} tokens, judged by "
        f"{widgets.plain(found['judge'])}; borderline replies, thoughts alone, loops, "
        "texts cut off early and judge errors are neither. "
        f"{sum(found['parts'].values())} prompts: {parts}."
    )
    if found["examples"]:
        with st.expander("Some prompts and replies, wrong decisions first"):
            widgets.table(
                [
                    {k: x[k] for k in ("task", "label", "prompt", "reply")}
                    for x in found["examples"]
                ],
                key="examples",
            )
    if "tokens" in results:
        _tokens(results["tokens"])
    return rows


def _refused(cell: Result | None) -> float:
    return float("nan") if cell is None else cell["refused"]["mean"]


def _said(cell: Result | None) -> str:
    if cell is None:
        return "no such prompts"
    return hover_text(
        f"{cell['task']}, {cell['kind']}",
        f"should {cell['should']}",
        f"refused {widgets.value(cell['refused'])}, n = {cell['refused']['n']}",
    )


def _neither(labels: dict[str, int]) -> str:
    other = [f"{n} {name}" for name, n in labels.items() if n and name not in VERDICTS]
    return ", ".join(other) or "0"


def _tokens(found: Result) -> None:
    strings = ", ".join(repr(text) for text in found["strings"])
    st.markdown(
        f"**Refusal score**: log-odds that the next token is one of {widgets.plain(strings)}. "
        f"They hold {found['coverage']:.2f} of its probability on refused rows and "
        f"{found['spill']:.2f} on answered rows. Agreement with the judged texts of held-out "
        f"rows: sign {widgets.value(found['sign'])}, AUC {widgets.value(found['auc'])}."
    )


def _separation(found: Result) -> None:
    """Silhouettes and probes by layer."""
    st.subheader("Where refused and answered prompts separate", anchor=False)
    left, right = st.columns(2, gap="large")
    shape = {"height": 400, "legend": BELOW, "margin": {**MARGIN, "t": 30, "b": 120}}
    drawn = interval_lines(
        {name: bare(values) for name, values in found["silhouettes"].items()},
        x_title="layer",
        y_title="mean silhouette",
    )
    with left:
        widgets.figure(drawn.update_layout(shape), key="silhouettes", alt="Silhouettes by layer")
    lines = {name: (x["auc"], x["low"], x["high"]) for name, x in found["probes"].items()}
    for x in found["probes"].values():
        if "shuffled" in x:
            lines[SHUFFLED] = bare(x["shuffled"])
            break
    drawn = interval_lines(
        lines, x_title="layer", y_title="AUC", controls=[SHUFFLED], limits=(-0.02, 1.04)
    )
    with right:
        widgets.figure(
            drawn.update_layout(shape), key="separating-probes", alt="AUC of probes by layer"
        )
    counts = "; ".join(f"{name}: {x['n'][1]}" for name, x in found["probes"].items())
    st.caption(
        f"Last token of the prompt, all dimensions, {found['n']} rows. Left: a silhouette "
        "weighs all dimensions equally and can be small even if a probe is right on every "
        f"row. Right: logistic probes on held-out base texts (rows judged, {counts})."
    )


if __name__ == "__main__":
    show()
