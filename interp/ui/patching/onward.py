"""The way from a sweep to Interventions: one of its pairs, with what was selected changed."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from interp.core.errors import InterpError
from interp.overview.planned_changes import PlannedChange
from interp.results.scores import Scores
from interp.ui import VIEWS
from interp.ui.shared import cache, prompts
from interp.ui.shared.prompts import AskedPrompt
from interp.ui.shared.state import current, may_see, select

HOW = {"other": "patch", "zero": "zero", "mean": "mean"}
"""Where the sweep's values come from -> what Interventions does with a component."""


def to_interventions(
    open_: cache.Opened, scores: Scores, labels: Sequence[str], position: str | None = None
) -> None:
    """A button that opens Interventions on the pair looked at, with these components changed.

    The run that the sweep patches is the prompt there, and the other one its foil. Pairs of token
    ids, and components that Interventions does not change, have no button.
    """
    pair = open_.task.pairs[current().prompt]
    texts = [pair.clean, pair.corrupted]
    if scores.direction == "denoise":
        texts.reverse()
    prompt, foil = texts
    if not isinstance(prompt, str) or not isinstance(foil, str) or not may_see(open_.task.name):
        return
    when = "last token" if position in ("last", "-1") else "all tokens"
    try:
        rows = [
            PlannedChange.parse(f"{label}, {HOW[current().source]}, 1, {when}") for label in labels
        ]
    except InterpError:
        return
    words = labels[0] if len(labels) == 1 else f"these {len(labels)}"
    clicked = st.button(
        f"Try {words} on pair {current().prompt}",
        key=f"onward-{'-'.join(labels)}",
        icon=":material/content_cut:",
        help="Opens Interventions on the "
        + ("corrupted" if scores.direction == "denoise" else "clean")
        + " prompt, beside random changes: the next token, the dose and the text."
        + ("" if position is None or when == "last token" else " There at all tokens."),
    )
    if clicked:
        answers = [one for (one, *_) in filter(None, (pair.answers, pair.wrong))]
        whole = [one if isinstance(one, str) else None for one in answers] + [None]
        asked = AskedPrompt(prompt, answer=whole[0], wrong=whole[1], foil=foil)
        prompts.take(asked)
        changes = tuple(map(str, rows))
        select(asked=asked.hash, changes=changes, dose=None, token=None, target=None)
        st.switch_page(VIEWS / "interventions.py")
