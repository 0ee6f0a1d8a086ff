"""Study: the kept studies of refusals, how to run or continue one, and what the model does."""

from __future__ import annotations

import streamlit as st

from interp.plots.grids import share_grid
from interp.plots.lines import interval_lines
from interp.plots.style import hover_text
from interp.studies.formatting import bare
from interp.studies.refusal.report import tables
from interp.studies.steps import Result
from interp.ui.shared import opening, widgets
from interp.ui.shared.state import HIDDEN, may_read
from interp.ui.studies import first_page, open_study
from interp.ui.studies.pages import REFUSAL_PAGES

SHUFFLED = "shuffled labels, 97.5 %"


def _show() -> None:
    opening.intro(
        "What makes a model refuse, and over-refuse?",
        does="It shows which prompts a chat model declines, which of them it should have "
        "answered, where inside it that is decided, and what steering does to **both** kinds"
        " of refusal. After Arditi et al. 2024 (arXiv 2406.11717) and SafeConstellations "
        "(2508.11290). The shipped prompts are harmless: the topic to be refused is "
        "gardening.",
        when="To read what came out, claim by claim, and to run the study on another model.",
        lacks="Whether an answer is good: the rule-based judge reads how a text begins. A probe "
        "that separates refused from answered prompts may read their topic; check whether "
        "it separates topics as well.",
    )
    study = first_page.show_first(REFUSAL_PAGES)
    if study is None:
        return
    results = study.results
    if system := study.settings.system:
        shown = widgets.plain(system) if may_read() else HIDDEN
        st.warning(f"Refusal in context, by the system prompt: {shown}")
    first_page.claims(study)
    if open_study.ready(study, "behaviour", link=False):
        _behaviour(results)
    if open_study.ready(study, "separation", link=False):
        _separation(results["separation"])
    open_study.take_away(study, "behaviour", "behaviour", "tokens", "separation")


def _behaviour(results: dict[str, Result]) -> None:
    """What became of every prompt, by task and kind."""
    found = results["behaviour"]
    st.subheader("What the model does", anchor=False)
    left, right = st.columns([2, 3], gap="large")
    cells = {(cell["task"], cell["kind"]): cell for cell in found["cells"]}
    tasks, kinds = ([*dict.fromkeys(names)] for names in zip(*cells, strict=True))
    shares = {at: cell["refused"]["mean"] for at, cell in cells.items()}
    values = [[shares.get((task, kind), widgets.UNKNOWN) for kind in kinds] for task in tasks]
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
        into=left,
    )
    widgets.table(tables.behaviour(results), key="cells", into=right)
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


def _said(cell: Result | None) -> str:
    if cell is None:
        return "no such prompts"
    return hover_text(
        f"{cell['task']}, {cell['kind']}",
        f"should {cell['should']}",
        f"refused {widgets.value(cell['refused'])}, n = {cell['refused']['n']}",
    )


def _tokens(found: Result) -> None:
    strings = ", ".join(widgets.visible(text) for text in found["strings"])
    st.markdown(
        f"**Refusal score**: log-odds that the next token is one of {widgets.plain(strings)}. "
        f"They hold {found['coverage']:z.2f} of its probability on refused rows and "
        f"{found['spill']:z.2f} on answered rows. Agreement with the judged texts of held-out "
        f"rows: sign {widgets.value(found['sign'])}, AUC {widgets.value(found['auc'])}."
    )


def _separation(found: Result) -> None:
    """Silhouettes and probes by layer."""
    st.subheader("Where refused and answered prompts separate", anchor=False)
    left, right = st.columns(2, gap="large")
    drawn = interval_lines(
        {name: bare(values) for name, values in found["silhouettes"].items()},
        x_title="layer",
        y_title="mean silhouette",
    )
    widgets.legend_below(drawn, height=400, room=120)
    widgets.figure(drawn, key="silhouettes", alt="Silhouettes by layer", into=left)
    lines = {name: (x["auc"], x["low"], x["high"]) for name, x in found["probes"].items()}
    shuffled = [x["shuffled"] for x in found["probes"].values() if "shuffled" in x]
    if shuffled:
        lines[SHUFFLED] = bare(shuffled[0])
    drawn = interval_lines(
        lines, x_title="layer", y_title="AUC", controls=[SHUFFLED], limits=(-0.02, 1.04)
    )
    widgets.legend_below(drawn, height=400, room=120)
    widgets.figure(drawn, key="separating-probes", alt="AUC of probes by layer", into=right)
    counts = "; ".join(f"{name}: {x['n'][1]}" for name, x in found["probes"].items())
    st.caption(
        f"Last token of the prompt, all dimensions, {found['n']} rows. Left: a silhouette "
        "weighs all dimensions equally and can be small even if a probe is right on every "
        f"row. Right: logistic probes on held-out base texts (rows judged, {counts})."
    )


if __name__ == "__main__":
    _show()
