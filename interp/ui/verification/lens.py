"""The study's logit lens: watched words by layer, and the likeliest tokens."""

from __future__ import annotations

import streamlit as st

from interp.plots.lines import interval_lines
from interp.studies.formatting import band
from interp.studies.steps import Result
from interp.ui.shared import widgets
from interp.ui.studies import open_study

GROUPS = ("valid", "invalid")


def lens(found: Result) -> None:
    """Watched words by layer, and the likeliest tokens."""
    words = found["words"]
    chosen = st.multiselect(
        "Words",
        words,
        words[:4],
        format_func=repr,
        max_selections=6,
        key=f"lens-words-{open_study.view().study}",
    )
    sides = dict(zip(GROUPS, st.columns(2), strict=True))
    for group, column in sides.items():
        seen = found["groups"][group]
        series = {repr(word): band(seen["probability"][word]) for word in chosen}
        column.markdown(f'**At t\\_{group}**: the " (" of {group} attempts')
        with column:
            if series:
                widgets.figure(
                    interval_lines(
                        series, x_title="layer", y_title="mean probability", limits=(-0.02, 1.04)
                    ),
                    key=f"lens-{group}",
                    alt=f"Mean probability of {', '.join(chosen)} by layer, {group} attempts",
                )
    st.caption(
        f"Mean over samples of the probability, with its 95 % interval; {found['n']} test samples, "
        "half of them valid. A leading space is part of a word."
    )
    layers = range(len(found["groups"]["valid"]["top"]))
    widgets.table(
        [
            {
                "layer": layer,
                **{
                    f"at t_{group}": "   ".join(
                        f"{widgets.visible(text)} {share:.2f}"
                        for text, share in found["groups"][group]["top"][layer]
                    )
                    for group in GROUPS
                },
            }
            for layer in reversed(layers)
        ],
        key="lens-top",
    )
    st.caption("The tokens of highest mean probability, the last layer on top; ␣ is a space.")
